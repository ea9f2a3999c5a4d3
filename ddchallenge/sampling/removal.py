"""Removing what a stranger's program has written: however deep, however named, without raising."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

__all__ = ["remove_folder"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_folder(folder: Path) -> bool:
    """Remove a folder and all below it; returns whether it is gone. Never raises.

    Links are removed, not followed. Folders within folders are moved up to the top before they
    are emptied: so neither the depth of a tree nor the length of its paths matters, and two
    descriptors are enough. All that wrote there must be dead.
    """
    try:
        top = _open(str(folder), None)
        try:
            _empty(top)
        finally:
            os.close(top)
        folder.rmdir()
    except (OSError, ValueError, RecursionError, MemoryError):
        pass
    return not os.path.lexists(folder)


def _open(name: str, parent: int | None) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _FOLDER, dir_fd=parent)


def _empty(top: int) -> None:
    moved = 0
    waiting: list[str] = _clear(top)
    prefix = secrets.token_hex(8)  # that nothing at the top is called so
    while waiting:
        name = waiting.pop()
        try:
            child = _open(name, top)
        except OSError:
            continue
        try:
            for inner in _clear(child):
                moved += 1
                new = f"{prefix}-{moved}"
                try:
                    _make_ours(inner, child)
                    os.rename(inner, new, src_dir_fd=child, dst_dir_fd=top)
                except OSError:
                    continue
                waiting.append(new)
        finally:
            os.close(child)
        try:
            os.rmdir(name, dir_fd=top)
        except OSError:
            continue


def _make_ours(name: str, parent: int) -> None:
    """Moving a folder takes the right to write in it."""
    child = _open(name, parent)
    try:
        os.fchmod(child, 0o700)
    finally:
        os.close(child)


def _clear(folder: int) -> list[str]:
    """Remove what is no folder from an open one; returns the names of the folders in it."""
    folders = []
    try:
        os.fchmod(folder, 0o700)
    except OSError:
        pass  # not ours: it may be writable as it is
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=folder)
        except OSError:
            continue
    return folders
