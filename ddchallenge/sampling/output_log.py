"""The worker's stdout and stderr in a file of bounded size: its beginning and its end."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Final

from ddchallenge.errors import OutputError
from ddchallenge.jsonio import printable

__all__ = ["OutputLog"]

HEAD_BYTES: Final = 1 << 20
TAIL_BYTES: Final = 1 << 18
READ_BYTES: Final = 1 << 16


class OutputLog:
    """Copies what a descriptor gives to ``path``, at most head and tail of it."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from None
        self._head_left = HEAD_BYTES
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._dropped = 0
        self._last = b""

    def drain(self, descriptor: int) -> int | None:
        """Take a bounded piece of what a non-blocking descriptor has.

        Returns its bytes, 0 if there is nothing now, None at the end.
        """
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            return None
        self._last = (self._last + data)[-4096:]
        head, rest = data[: self._head_left], data[self._head_left :]
        self._head_left -= len(head)
        self._write(head)
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
                old = self._tail.popleft()
                self._tail_bytes -= len(old)
                self._dropped += len(old)
        return len(data)

    def drain_rest(self, descriptor: int) -> None:
        """Take what is left, at most a megabyte: a flood must not hold us up."""
        for _ in range(HEAD_BYTES // READ_BYTES):
            if not self.drain(descriptor):
                return

    def last_line(self) -> str:
        """The last line that is not blank, at most 300 characters; empty if there was none."""
        for line in reversed(self._last.decode("utf-8", "replace").splitlines()):
            if line.strip():
                return printable(line.strip()[:300])
        return ""

    def close(self) -> None:
        """Write the tail and close."""
        if self._dropped:
            self._write(f"\n[... {self._dropped} bytes of output left out ...]\n".encode())
        for piece in self._tail:
            self._write(piece)
        self._file.close()

    def _write(self, data: bytes) -> None:
        # A log that cannot grow must not end a run that can go on.
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._head_left = 0
