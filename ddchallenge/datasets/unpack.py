"""Unpack a zip archive into a new folder, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final
from zipfile import BadZipFile, ZipFile, ZipInfo

from ddchallenge.datasets.files import writing
from ddchallenge.errors import DataError

__all__ = ["MAX_MEMBERS", "MAX_UNPACKED_BYTES", "unpack_zip"]

# Tiny ImageNet unpacks to 0.25 GB in 120 607 members.
MAX_UNPACKED_BYTES: Final = 2 << 30
MAX_MEMBERS: Final = 500_000


def unpack_zip(
    file: BinaryIO,
    archive: Path,
    target: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Unpack the open zip ``file`` so that its one top folder becomes the new folder ``target``.

    ``archive`` is its path, for messages. ``on_progress`` is told the unpacked bytes written and
    to write. The work is done in a hidden folder beside ``target`` that is renamed at the end.

    Raises :class:`DataError` when a member would lie elsewhere than in the folder named like
    ``target``, is a link or device, or when all together are larger than ``MAX_UNPACKED_BYTES``;
    :class:`OutputError` and :class:`StorageError` when ``target`` exists already or cannot be
    written.
    """
    partial = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(target, "pass --data-dir or set DDCHALLENGE_DATA"):
        try:
            with ZipFile(file) as opened:
                members = opened.infolist()
                _check(members, archive, target.name)
                total, done = sum(member.file_size for member in members), 0
                for member in members:
                    path = partial.joinpath(*PurePosixPath(member.filename).parts[1:])
                    if member.is_dir():
                        path.mkdir(parents=True, exist_ok=True)
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # zipfile stops at the size the directory declares, which was checked.
                    with opened.open(member) as source, path.open("xb") as out:
                        shutil.copyfileobj(source, out)
                    done += member.file_size
                    if on_progress:
                        on_progress(done, total)
            partial.rename(target)
        except (BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _check(members: list[ZipInfo], archive: Path, top: str) -> None:
    size = sum(member.file_size for member in members)
    if size > MAX_UNPACKED_BYTES or len(members) > MAX_MEMBERS:
        raise DataError(
            f"{archive} would unpack to {size} bytes in {len(members)} members; at most "
            f"{MAX_UNPACKED_BYTES} bytes in {MAX_MEMBERS} are expected. Nothing was unpacked."
        )
    for member in members:
        parts = PurePosixPath(member.filename).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        if (
            parts[:1] != (top,)
            or ".." in parts
            or "\\" in member.filename
            or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
        ):
            raise DataError(
                f"{archive}: {member.filename!r} is no file or folder inside {top}/. "
                "Nothing was unpacked."
            )
