"""The frames between supervisor and worker: a small typed header, then raw bytes. Never pickle.

One frame is ``HEADER`` (little endian, 32 bytes) and ``payload_bytes`` bytes:

=========  =====================  ============================================================
kind       direction              payload
=========  =====================  ============================================================
TASK       supervisor to worker   JSON: the task and where the submission lies
REQUEST    supervisor to worker   ``first`` and ``seed`` (two int64): make ``count`` images
HELLO      worker to supervisor   none: the interpreter runs, nothing of the submission yet
READY      worker to supervisor   none: ``setup`` has returned, or the command is to start
IMAGES     worker to supervisor   uint8 count×3×height×width, the batch ``index``
FAILED     worker to supervisor   UTF-8 text: the exception the submission raised
VIOLATION  worker to supervisor   UTF-8 text: how the submission broke the contract
DONE       worker to supervisor   none: the command has ended, with exit status 0
=========  =====================  ============================================================

The reader asks what may come before it takes memory: a header is only believed if it announces
exactly what was asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = [
    "HEADER",
    "MAX_TEXT_BYTES",
    "Frame",
    "FrameReader",
    "Header",
    "Kind",
    "WireError",
    "pack_request",
    "read_frame",
    "unpack_request",
    "write_frame",
]

# magic, kind, channels, index, count, height, width, payload_bytes
HEADER: Final = struct.Struct("<4sHHIIIIQ")
REQUEST_PAYLOAD: Final = struct.Struct("<qq")
MAGIC: Final = b"DDC1"
MAX_TEXT_BYTES: Final = 4096


class WireError(Exception):
    """A frame that does not keep to the table above; the text says what was wrong."""


class Kind(IntEnum):
    """What a frame is."""

    TASK = 1
    REQUEST = 2
    HELLO = 3
    READY = 4
    IMAGES = 5
    FAILED = 6
    VIOLATION = 7
    DONE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a frame announces; sizes in pixels and bytes."""

    kind: Kind
    channels: int = 0
    index: int = 0
    count: int = 0
    height: int = 0
    width: int = 0
    payload_bytes: int = 0

    def pack(self) -> bytes:
        """The 32 bytes of this header."""
        return HEADER.pack(
            MAGIC,
            self.kind,
            self.channels,
            self.index,
            self.count,
            self.height,
            self.width,
            self.payload_bytes,
        )

    @classmethod
    def unpack(cls, raw: bytes | bytearray | memoryview) -> Header:
        """The header in 32 bytes; raises :class:`WireError` for bytes that are none."""
        magic, kind, channels, index, count, height, width, payload_bytes = HEADER.unpack(raw)
        if magic != MAGIC:
            raise WireError("the frame does not begin like a frame")
        try:
            known = Kind(kind)
        except ValueError:
            raise WireError(f"the frame has the unknown kind {kind}") from None
        return cls(
            kind=known,
            channels=channels,
            index=index,
            count=count,
            height=height,
            width=width,
            payload_bytes=payload_bytes,
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame."""

    header: Header
    payload: bytearray


class FrameReader:
    """Puts frames together from a non-blocking descriptor, a piece at a time.

    ``admit`` is called with each header before memory for its payload is taken and raises
    :class:`WireError` for what must not come.
    """

    def __init__(self, descriptor: int, admit: Callable[[Header], None]) -> None:
        self._descriptor = descriptor
        self._admit = admit
        self._header = bytearray(HEADER.size)
        self._parsed: Header | None = None
        self._buffer = self._header
        self._filled = 0
        self.closed = False

    def poll(self) -> Frame | None:
        """Read what is there; a frame once it is whole, else None. Sets ``closed`` at the end.

        Raises :class:`WireError` for a frame that is refused or cut off by the end.
        """
        while True:
            while self._filled < len(self._buffer):
                view = memoryview(self._buffer)[self._filled :]
                try:
                    got = os.readv(self._descriptor, [view])
                except BlockingIOError:
                    return None
                if got == 0:
                    self.closed = True
                    if self._filled or self._parsed:
                        raise WireError("the last frame was cut off")
                    return None
                self._filled += got
            if self._parsed is None:
                header = Header.unpack(self._header)
                self._admit(header)
                self._parsed = header
                self._buffer = bytearray(header.payload_bytes)
                self._filled = 0
                if header.payload_bytes:
                    continue
            frame = Frame(self._parsed, self._buffer)
            self._parsed, self._buffer, self._filled = None, self._header, 0
            return frame


def read_frame(descriptor: int) -> Frame | None:
    """One frame from a blocking descriptor, None at its end. For the worker, which trusts us."""
    raw = _read_exactly(descriptor, HEADER.size)
    if raw is None:
        return None
    header = Header.unpack(raw)
    payload = _read_exactly(descriptor, header.payload_bytes)
    if payload is None:
        raise WireError("the last frame was cut off")
    return Frame(header, payload)


def _read_exactly(descriptor: int, size: int) -> bytearray | None:
    buffer = bytearray(size)
    filled = 0
    while filled < size:
        got = os.readv(descriptor, [memoryview(buffer)[filled:]])
        if got == 0:
            if filled:
                raise WireError("the last frame was cut off")
            return None
        filled += got
    return buffer


def write_frame(descriptor: int, header: Header, payload: bytes | memoryview = b"") -> None:
    """One whole frame to a blocking descriptor; raises :class:`BrokenPipeError`."""
    parts = [memoryview(header.pack()), memoryview(payload).cast("B")]
    while parts:
        written = os.writev(descriptor, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts and written:
            parts[0] = parts[0][written:]


def pack_request(index: int, first: int, count: int, seed: int) -> tuple[Header, bytes]:
    """The frame that asks for the batch ``index``: sampled images first to first+count-1."""
    payload = REQUEST_PAYLOAD.pack(first, seed)
    header = Header(kind=Kind.REQUEST, index=index, count=count, payload_bytes=len(payload))
    return header, payload


def unpack_request(frame: Frame) -> tuple[int, int]:
    """``(first, seed)`` of a REQUEST frame."""
    first, seed = REQUEST_PAYLOAD.unpack(frame.payload)
    return first, seed
