"""Files and folders that appear whole or not at all.

Imports nothing of ours but the errors, so any module may write through it. What is written goes to
a temporary name beside the target and is renamed at the end; on any failure the temporary is
removed and the target is as it was.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddchallenge.errors import DDChallengeError, OutputError, StorageError

__all__ = ["atomic_file", "atomic_folder"]

# EFBIG is what a file size limit (ulimit -f) gives: to whoever waits for the file, the same thing.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def atomic_file(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields the path to write to; it becomes ``target`` when the block ends without an error.

    Folders above ``target`` are made. Without ``overwrite`` an existing target is refused.

    Raises :class:`OutputError` for a place that cannot be written, :class:`StorageError` for a full
    or failing disk.
    """
    with _writing(target, overwrite=overwrite) as temporary:
        try:
            yield temporary
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes ``target`` when the block ends without an error.

    Folders above ``target`` are made. Raises :class:`OutputError` where ``target`` exists or cannot
    be written, :class:`StorageError` for a full or failing disk.
    """
    with _writing(target, overwrite=False) as temporary:
        temporary.mkdir()
        try:
            yield temporary
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    if not overwrite and os.path.lexists(target):
        raise OutputError(
            f"{target} exists already and was left as it is.\n"
            "Name another place, or move it away first."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    except OSError as error:
        raise _explained(error, target) from error


def _explained(error: OSError, target: Path) -> DDChallengeError:
    reason = error.strerror or str(error)
    if error.filename == str(target.parent):
        reason = f"{error.filename}: {reason}"
    if error.errno in _NO_ROOM:
        return StorageError(
            f"There was no room to write {target} ({reason}).\n"
            "Nothing half-written was left behind; free some space, or name another disk."
        )
    if error.errno == errno.EIO:
        return StorageError(
            f"The disk failed while {target} was written ({reason}); nothing was left behind."
        )
    return OutputError(
        f"{target} cannot be written ({reason}).\nName a folder that you may write to."
    )
