"""Images on disk as they arrive, so that neither memory nor a crash loses them.

One append-only file. Every entry is ``ENTRY`` (little endian) and its raw uint8 images: either the
images of a batch, or the augmented copies of some of them. An entry counts once it is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddchallenge.errors import OutputError, StorageError
from ddchallenge.records import LabeledImages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Found", "Spool"]

# All that is needed to make a bundle of a spool whose supervisor was killed:
# magic, copies (0: the images themselves), side, first, count, seed, received_seconds
ENTRY: Final = struct.Struct("<4sIIQIqd")
MAGIC: Final = b"DDS1"
# Beside the bundle's own copy of the images: manifest and log, and a contact sheet that is no
# larger than the images, nor than this.
RESERVED_BYTES: Final = 2 << 20
MAX_SHEET_BYTES: Final = 14 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int  # of the images, in bytes
    first: int
    count: int
    copies: int


@dataclass(frozen=True, slots=True)
class Found:
    """The header of an entry in a spool that somebody else has written; as ``ENTRY`` has it."""

    copies: int
    first: int
    count: int
    seed: int
    received_seconds: float


class Spool:
    """Writes entries, and reads all of them back in the order a bundle has.

    Raises :class:`OutputError` if ``path`` cannot be made.
    """

    def __init__(self, path: Path, image_size: int, *, exists: bool = False) -> None:
        self.path = path
        self._size = image_size
        self._image_bytes = 3 * image_size * image_size
        self._entries: list[_Entry] = []
        self._end = 0
        how = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(path, how if exists else how | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from None
        self.ours = self._lock()

    def _lock(self) -> bool:
        """Hold the file for as long as this process lives; False if another one does."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        return True

    def find(self, admit: Callable[[Found], bool]) -> int:
        """Take up the entries an earlier process wrote, as long as they are whole and admitted.

        The file is a stranger's: an entry counts if its header is right and all its images are
        there. Returns how many bytes are left over after the last one taken.
        """
        status = os.fstat(self._file)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        while self._end + ENTRY.size <= size:
            header = os.pread(self._file, ENTRY.size, self._end)
            magic, copies, side, first, count, seed, received = ENTRY.unpack(header)
            images = count * max(copies, 1) * self._image_bytes
            after = self._end + ENTRY.size + images
            whole = magic == MAGIC and side == self._size and count > 0 and after <= size
            if not whole or not admit(Found(copies, first, count, seed, received)):
                break
            self._entries.append(_Entry(self._end + ENTRY.size, first, count, copies))
            self._end = after
        return size - self._end

    def append(
        self,
        images: memoryview | bytearray,
        *,
        first: int,
        count: int,
        copies: int = 0,
        seed: int = 0,
        received_seconds: float,
    ) -> None:
        """Add the sampled images ``first`` to ``first + count - 1``, or ``copies`` of each.

        Raises :class:`StorageError` when the disk is full, or so full that a bundle of these
        images would not fit beside the spool; all earlier entries stay whole.
        """
        full = f"the disk is full: {self.path.parent} has no room for more images"
        after = self._end + ENTRY.size + len(images)
        disk = os.fstatvfs(self._file)
        bundle = after + min(after, MAX_SHEET_BYTES) + RESERVED_BYTES
        if disk.f_bavail * disk.f_frsize < len(images) + bundle:
            raise StorageError(full)
        header = ENTRY.pack(MAGIC, copies, self._size, first, count, seed, received_seconds)
        try:
            self._write(header)
            self._write(images)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageError(full) from None
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from None
        self._entries.append(_Entry(self._end + ENTRY.size, first, count, copies))
        self._end = after

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def read(self, first: int, count: int, entry: int) -> NDArray[np.uint8]:
        """Some sampled images of entry number ``entry``: uint8 count×3×size×size."""
        import numpy as np

        where = self._entries[entry]
        offset = where.offset + (first - where.first) * self._image_bytes
        raw = os.pread(self._file, count * self._image_bytes, offset)
        return np.frombuffer(raw, np.uint8).reshape(count, 3, self._size, self._size)

    def __len__(self) -> int:
        return len(self._entries)

    def assemble(self, num_classes: int, copies_end: int | None = None) -> LabeledImages:
        """Everything in the spool, class-major: by label, then by sampled image, then by copy.

        Copies of the sampled images from ``copies_end`` on are left out. Within a class a sampled
        image is followed by its copies (Su et al.'s order). Images are uint8 N×3×size×size in
        memory once; labels int64 N.
        """
        import numpy as np

        entries = self._entries
        if copies_end is not None:
            entries = [
                replace(e, count=min(e.count, copies_end - e.first)) if e.copies else e
                for e in entries
                if not e.copies or e.first < copies_end
            ]
        numbers, copy_of = [], []
        for entry in entries:
            run = np.arange(entry.first, entry.first + entry.count, dtype=np.int64)
            numbers.append(np.repeat(run, max(entry.copies, 1)))
            copy = np.tile(np.arange(1, entry.copies + 1), entry.count)
            copy_of.append(copy if entry.copies else np.zeros(entry.count, dtype=np.int64))
        number = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
        copy_number = np.concatenate(copy_of) if copy_of else np.empty(0, np.int64)
        labels = number % num_classes
        order = np.lexsort((copy_number, number, labels))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))

        images = np.empty((len(order), 3, self._size, self._size), dtype=np.uint8)
        done = 0
        for entry in entries:
            total = entry.count * max(entry.copies, 1)
            for start in range(0, total, 4096):
                some = min(4096, total - start)
                raw = os.pread(
                    self._file,
                    some * self._image_bytes,
                    entry.offset + start * self._image_bytes,
                )
                block = np.frombuffer(raw, np.uint8).reshape(some, 3, self._size, self._size)
                images[place[done + start : done + start + some]] = block
            done += total
        return LabeledImages(images, labels[order])

    def close(self) -> None:
        """Close the file and leave it where it is."""
        os.close(self._file)

    def delete(self) -> None:
        """Remove the file, once its images are safe elsewhere."""
        self.path.unlink(missing_ok=True)
