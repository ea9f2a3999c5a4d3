"""Taking a command's files out of its working folder, whatever it has made of that."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from ddchallenge.generator import Command
from ddchallenge.jsonio import printable

__all__ = ["IMAGES_FILE", "LABELS_FILE", "Taker"]

# What the taken files are called beside worker.log, whatever the command called them.
IMAGES_FILE: Final = "output.pt"
LABELS_FILE: Final = "output-labels.pt"


class Taker:
    """Takes a command's files out of its working folder, whatever the command has made of it.

    The folder is held open from before the command runs: it may replace it by another, or by a
    link, and that is then not looked at.
    """

    def __init__(self, work: Path, command: Command, most_bytes: int) -> None:
        self._folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._wanted = {command.output: IMAGES_FILE}
        if command.labels:
            self._wanted[command.labels] = LABELS_FILE
        self._most = most_bytes
        self._seen: dict[str, tuple[int, ...] | None] | None = None

    def look(self) -> None:
        """Note how the files are now: so they must be when all of the run is dead."""
        self._seen = {name: self._state(name) for name in self._wanted}

    def take(self, folder: Path) -> str:
        """Move the files to ``folder``; what is wrong with them, for people, or nothing.

        Nothing of the run must live any more.
        """
        for name in self._wanted:
            if problem := self._problem(name):
                return problem
        for name, taken in self._wanted.items():
            try:
                os.rename(name, folder / taken, src_dir_fd=self._folder)
            except OSError as error:
                return f"{name} cannot be moved to {folder} ({error.strerror})."
        return ""

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._folder)

    def _problem(self, name: str) -> str:
        try:
            # No link is followed, and opening a named pipe does not wait for its other end.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=self._folder)
        except FileNotFoundError:
            return f"there is no {name}{self._others()}."
        except OSError as error:
            state = self._state(name)
            if state is not None and not stat.S_ISREG(state[0]):
                return f"{name} is no plain file."
            return f"{name} cannot be opened ({error.strerror})."
        try:
            found = os.fstat(file)
        finally:
            os.close(file)
        if not stat.S_ISREG(found.st_mode):
            return f"{name} is no plain file."
        if self._seen is None or self._seen[name] != self._state(name):
            return f"{name} was still being written when the time was up."
        if found.st_size > self._most:
            return (
                f"{name} has {found.st_size / 1e9:,.1f} GB, more than the "
                f"{self._most / 1e9:,.1f} GB allowed."
            )
        return ""

    def _state(self, name: str) -> tuple[int, ...] | None:
        try:
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            return None
        return (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _others(self) -> str:
        """What the command did write, for whoever named the output wrongly."""
        names = [
            entry.name for entry in os.scandir(self._folder) if entry.is_file(follow_symlinks=False)
        ]
        shown = printable(", ".join(name[:60] for name in sorted(names)[:5]))
        more = ", ..." if len(names) > 5 else ""
        return f"; it wrote {shown}{more}" if names else "; it wrote no file"
