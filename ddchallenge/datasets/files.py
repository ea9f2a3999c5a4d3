"""Reading, hashing and writing files so that what goes wrong is said in a person's words."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ddchallenge.errors import DataError, DDChallengeError, OutputError, StorageError
from ddchallenge.records import Source

__all__ = ["check_regular", "check_source", "read_bounded", "reading", "sha256_of", "writing"]

_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while a dataset's files are read into a :class:`DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read: {error.strerror or error}."
        ) from error


@contextmanager
def writing(folder: Path, advice: str) -> Iterator[None]:
    """Turn an ``OSError`` while writing into ``folder`` into the error that says what to do.

    :class:`StorageError` for a full or failing disk, :class:`OutputError` for a folder that
    cannot be written. ``advice`` ends the sentence "To use another place, ...".
    """
    try:
        yield
    except OSError as error:
        raise _write_error(folder, advice, error) from error


def _write_error(folder: Path, advice: str, error: OSError) -> DDChallengeError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageError(
            f"Writing to {folder} failed: {reason}. Nothing half-written counts.\n"
            f"Free some space and run this again. To use another place, {advice}."
        )
    return OutputError(f"{folder} cannot be written: {reason}.\nTo use another place, {advice}.")


def check_regular(path: Path, status: os.stat_result) -> None:
    """Raise :class:`DataError` unless ``status`` is that of a file.

    Opening a pipe waits for somebody who writes into it, and a device may never end.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise DataError(f"{path} cannot be read: expected a file, found {kind}.")


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a file; :class:`DataError` if there are more than ``limit``, or it is none."""
    with reading(path):
        check_regular(path, path.stat())
        with path.open("rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path} is larger than {limit} bytes: this is no file of the dataset.")
    return content


def sha256_of(file: BinaryIO) -> str:
    """The hex SHA-256 of everything from the start of an open file; leaves it at the start."""
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


def check_source(source: Source, file: BinaryIO, path: Path) -> None:
    """Raise :class:`DataError` unless the open ``file`` is, byte for byte, the official one."""
    size = file.seek(0, 2)
    found, expected = f"{size} bytes", f"{source.size} bytes"
    if size == source.size:
        found, expected = f"SHA-256 {sha256_of(file)}", f"SHA-256 {source.sha256}"
    file.seek(0)
    if found != expected:
        raise DataError(
            f"{path} is damaged or is not the official file; nothing in it was opened.\n"
            f"Expected {expected}, found {found}.\n"
            "Remove it and fetch it again."
        )
