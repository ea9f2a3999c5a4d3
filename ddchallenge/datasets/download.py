"""Download one file: resumed after a broken connection, bounded, checked, placed in one step.

What has arrived lies in ``<filename>.part`` beside the target, so that also a later process goes
on from there. The target exists only once its SHA-256 has matched.
"""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from ddchallenge.datasets.files import sha256_of, writing
from ddchallenge.errors import DataError, DownloadError, StorageError
from ddchallenge.records import Source

if TYPE_CHECKING:
    import httpx

__all__ = ["download"]

_ATTEMPTS: Final = 5
_TEMPORARY: Final = {408, 425, 429, 500, 502, 503, 504}
_ADVICE: Final = "pass --data-dir or set DDCHALLENGE_DATA"


class _BrokenOffError(Exception):
    """The transfer ended early for a reason that may pass."""


def download(
    source: Source,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    client: httpx.Client | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download ``source`` into ``folder`` and return the path of the verified file.

    ``on_progress`` is told the bytes that are there and the bytes of the whole. After five
    attempts in a row that brought nothing new, with 1, 2, 4 and 8 seconds between them, it is
    given up; what had arrived is kept.

    Raises :class:`DownloadError` when the server cannot be reached, refuses or keeps breaking
    off; :class:`DataError` when it offers another size or when the checksum of the whole is wrong
    (what had arrived is then removed); :class:`OutputError` and :class:`StorageError` when the
    folder cannot be written or is full.
    """
    # At INFO and DEBUG these two log every request; the caller shows the progress.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    part = folder / f"{source.filename}.part"
    with writing(folder, _ADVICE):
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(part) as file, _client(client) as connection:
            _check_space(source, folder, file)
            transfer = _Transfer(source, file, connection, on_progress)
            try:
                _persist(transfer, part, sleep)
                _check(source, file)
            except DataError:
                # Nobody should go on from what is not the official file.
                part.unlink()
                raise
            part.replace(folder / source.filename)
    return folder / source.filename


def _persist(transfer: _Transfer, part: Path, sleep: Callable[[float], None]) -> None:
    """Attempt until the transfer is complete, or nothing new has come too often."""
    import httpx

    source = transfer.source
    best, failures = transfer.arrived, 0
    while not transfer.complete:
        try:
            transfer.attempt()
        except (_BrokenOffError, httpx.TransportError) as error:
            failures = 0 if transfer.arrived > best else failures + 1
            best = max(best, transfer.arrived)
            if failures == _ATTEMPTS:
                raise DownloadError(
                    f"{source.url} could not be downloaded: {error or type(error).__name__} "
                    f"({_ATTEMPTS} attempts in a row).\n{transfer.arrived} of {source.size} bytes "
                    f"are kept in {part}; run this again to go on from there."
                ) from error
            sleep(2.0 ** max(failures - 1, 0))
        except httpx.HTTPError as error:
            raise DownloadError(f"{source.url} could not be downloaded: {error}.") from error


def _check(source: Source, file: BinaryIO) -> None:
    found = sha256_of(file)
    if found != source.sha256:
        raise DataError(
            f"{source.url} is not the official file; what arrived was removed.\n"
            f"Expected SHA-256 {source.sha256}, found {found}.\n"
            "Run this again to download it from the start."
        )


class _Transfer:
    """The bytes of one download, however many requests they take."""

    def __init__(
        self,
        source: Source,
        file: BinaryIO,
        client: httpx.Client,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.source = source
        self._file = file
        self._client = client
        self._on_progress = on_progress
        self.arrived = file.seek(0, 2)
        if self.arrived > source.size:
            self._restart()

    @property
    def complete(self) -> bool:
        return self.arrived == self.source.size

    def attempt(self) -> None:
        """One request; returns when it has brought all, raises when it broke off."""
        # Identity: a byte range is of the file itself, not of a compressed form of it.
        headers = {"Accept-Encoding": "identity"}
        if self.arrived:
            headers["Range"] = f"bytes={self.arrived}-"
        with self._client.stream("GET", self.source.url, headers=headers) as response:
            self._accept(response)
            for chunk in response.iter_raw():
                if self.arrived + len(chunk) > self.source.size:
                    self._refuse(f"more than {self.source.size} bytes")
                self._file.write(chunk)
                self.arrived += len(chunk)
                if self._on_progress:
                    self._on_progress(self.arrived, self.source.size)
        self._file.flush()
        if not self.complete:
            raise _BrokenOffError(f"it ended after {self.arrived} of {self.source.size} bytes")

    def _accept(self, response: httpx.Response) -> None:
        """Make ready for the body, or raise; a body that starts elsewhere is started over."""
        status = response.status_code
        if status in _TEMPORARY:
            raise _BrokenOffError(f"the server answered {status} {response.reason_phrase}")
        if status == 416:
            # It does not have the range we are at: what we have is of something else.
            self._restart()
            raise _BrokenOffError("the server has no bytes to go on with")
        if status not in (200, 206):
            raise DownloadError(
                f"{self.source.url}: the server answered {status} {response.reason_phrase}.\n"
                f"{self.source.filename} can also be downloaded by other means and put into the "
                "data folder."
            )
        total = response.headers.get("Content-Length", "")
        if status == 206:
            match = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "")
            )
            if not match or int(match[1]) != self.arrived:
                self._restart()
                raise _BrokenOffError("the server sent another range than was asked for")
            total = match[2]
        elif self.arrived:
            # The server knows no ranges and starts again.
            self._restart()
        if total.isdecimal() and int(total) != self.source.size:
            self._refuse(f"{total} bytes")

    def _restart(self) -> None:
        self._file.truncate(0)
        self.arrived = self._file.seek(0)

    def _refuse(self, offered: str) -> None:
        raise DataError(
            f"{self.source.url} is not the official file: expected {self.source.size} bytes, "
            f"the server sends {offered}.\nNothing of it was kept."
        )


@contextmanager
def _opened(part: Path) -> Iterator[BinaryIO]:
    """The part file, to read and to append to, for this process alone."""
    with part.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(
                f"Another process is downloading to {part}. Wait for it and run this again."
            ) from None
        yield file


@contextmanager
def _client(given: httpx.Client | None) -> Iterator[httpx.Client]:
    if given is not None:
        yield given
        return
    import httpx

    with httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30, connect=15)) as client:
        yield client


def _check_space(source: Source, folder: Path, file: BinaryIO) -> None:
    needed = source.size - file.seek(0, 2)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{source.filename} needs {needed >> 20} MiB more in {folder}, "
            f"but only {free >> 20} MiB are free.\nTo use another place, {_ADVICE}."
        )
