"""What the processes of a run take together, measured by their guardian (Linux).

Standard library only, and of that the light part: the guardian loads it under the clock.
"""

# ruff: noqa: PTH116, PTH123, PTH208 - pathlib is not light

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterable
from typing import Final

__all__ = ["INTERVAL_SECONDS", "Watch", "descendants", "folder_bytes", "folder_problem", "pause"]

INTERVAL_SECONDS: Final = 0.1
# On a machine of thousands of processes, or with a million files, it is measured more seldom.
SHARE: Final = 0.05
# So many descriptors it takes to measure a folder.
MAX_DEPTH: Final = 200
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - measured, not written


def descendants() -> set[int]:
    """The children of this process, their children, and so on; zombies among them."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    me = os.getpid()
    below: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        below.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [me]
    while waiting:
        children = below.get(waiting.pop(), [])
        found.update(children)
        waiting += children
    return found


class Watch:
    """Says when the run of this process's descendants exceeds a limit.

    ``limits`` are the fields of :class:`ddchallenge.records.Limits`.
    """

    def __init__(self, limits: dict[str, int], folder: str) -> None:
        self._limits = limits
        self._folder = folder
        self._next_run = self._next_disk = self._next_held = time.monotonic()
        self._shared_before = _shared_memory()
        self._held = Held()

    def exceeded(self) -> str | None:
        """Which limit is exceeded, for people, or None. Measures when it is time to."""
        problem = None
        if (now := time.monotonic()) >= self._next_run:
            problem = self._run()
            self._next_run = now + pause(now)
        if not problem and (now := time.monotonic()) >= self._next_disk:
            most = self._limits["disk_bytes"]
            problem = folder_problem(self._folder, most, self._held.disk)
            self._next_disk = now + pause(now)
        return problem

    def _run(self) -> str | None:
        pids = descendants()
        tasks = memory = shared = 0
        for pid in pids:
            status = _numbers(f"/proc/{pid}/status")
            tasks += status.get(b"Threads", 0)
            memory += (status.get(b"RssAnon", 0) + status.get(b"VmSwap", 0)) << 10
            shared += status.get(b"RssShmem", 0) << 10
        most = self._limits["processes"]
        if tasks > most:
            return f"{tasks:,} processes and threads, {most:,} are allowed"
        # A file in /dev/shm, or in no folder, is memory, though no process need have it mapped.
        written = self._written(pids)
        if (now := time.monotonic()) >= self._next_held:
            problem = self._held.look(pids)
            self._next_held = now + pause(now)
            if problem:
                return problem
        written += self._held.memory
        most = self._limits["memory_bytes"]
        if memory + max(shared, written) > most:
            # Forked processes share pages, which a plain sum counts more than once.
            memory, shared = _proportional(pids)
            memory += max(shared, written)
            if memory > most:
                return f"{_mib(memory)} of memory, {_mib(most)} are allowed"
        return None

    def _written(self, pids: Iterable[int]) -> int:
        """Bytes the run has in /dev/shm: in all of its own, or more than there were in ours."""
        for pid in pids:
            folder = f"/proc/{pid}/root{_SHARED_MEMORY}"
            try:
                device = os.stat(folder).st_dev
                if device != os.stat(_SHARED_MEMORY).st_dev:
                    self._held.shared_devices.add(device)
                    return _shared_memory(folder)
            except OSError:
                continue  # a zombie, or gone
            break
        return _shared_memory() - self._shared_before


class Held:
    """What files take that are in no folder any more, or never were, but open in a process.

    ``disk`` are bytes on a disk; ``memory`` are bytes of memfds. Unlinked files in a /dev/shm, one
    of ``shared_devices``, are in neither: its file system counts them.
    """

    def __init__(self) -> None:
        self.disk = self.memory = 0
        self._unseen: set[int] = set()
        self.shared_devices: set[int] = set()
        self._memory_device = -1
        try:
            self.shared_devices.add(os.stat(_SHARED_MEMORY).st_dev)
            descriptor = os.memfd_create("ddchallenge")
        except (OSError, AttributeError):
            return
        self._memory_device = os.fstat(descriptor).st_dev
        os.close(descriptor)

    def look(self, pids: Iterable[int]) -> str | None:
        """Measure again; says whose descriptors cannot be seen, the second time it is so."""
        sizes: dict[tuple[int, int], int] = {}
        unseen = set()
        for pid in pids:
            folder = f"/proc/{pid}/fd"
            try:
                names = os.listdir(folder)
            except PermissionError:
                unseen.add(pid)
                continue
            except OSError:
                continue
            for name in names:
                try:
                    found = os.stat(f"{folder}/{name}")
                except OSError:
                    continue
                if found.st_nlink == 0 and stat.S_ISREG(found.st_mode):
                    sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
        self.memory = self.disk = 0
        for (device, _), size in sizes.items():
            if device == self._memory_device:
                self.memory += size
            elif device not in self.shared_devices:
                self.disk += size
        hiding = unseen & self._unseen
        self._unseen = unseen
        if hiding:
            return f"process {min(hiding)} does not let its open files be measured"
        return None


def pause(began: float) -> float:
    """Seconds until the next measurement may come, after one that has taken since ``began``."""
    return max(INTERVAL_SECONDS, (time.monotonic() - began) / SHARE)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def _numbers(path: str) -> dict[bytes, int]:
    """The numbers in a file of lines like ``VmRSS: 12 kB``; empty for a process that is gone."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError:
        return {}
    numbers = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b":")
        first = rest.split()[:1]
        if first and first[0].isdigit():
            numbers[name] = int(first[0])
    return numbers


def _proportional(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes of private and of shared memory, shared pages divided among those who share them."""
    private = shared = 0
    for pid in pids:
        found = _numbers(f"/proc/{pid}/smaps_rollup")
        private += (found.get(b"Pss_Anon", 0) + found.get(b"SwapPss", 0)) << 10
        shared += found.get(b"Pss_Shmem", 0) << 10
    return private, shared


def _shared_memory(folder: str = _SHARED_MEMORY) -> int:
    """Bytes in /dev/shm, of whoever."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def folder_problem(folder: str, most: int, held: int = 0) -> str | None:
    """What is wrong with a folder that may take ``most`` bytes on disk, for people, or None.

    ``held`` are bytes to be added. What cannot be measured is not allowed: folders more than
    :data:`MAX_DEPTH` deep, and such as cannot be read. What vanishes meanwhile counts nothing.
    """
    try:
        size = held + folder_bytes(folder)
    except OSError as error:
        why = error.strerror or "they cannot be read"
        return f"files that cannot be measured ({why}), {_mib(most)} are allowed"
    return f"{_mib(size)} of files, {_mib(most)} are allowed" if size > most else None


def folder_bytes(folder: str) -> int:
    """What the files below a folder take on disk; those that vanish meanwhile count nothing.

    Goes from folder to folder by descriptors, so that no path is too long. Raises ``OSError`` for
    what cannot be measured.
    """
    total = 0
    open_folders: list[tuple[int, list[str]]] = []
    try:
        _enter(folder, None, open_folders)
        while open_folders:
            descriptor, names = open_folders[-1]
            if not names:
                os.close(descriptor)
                open_folders.pop()
                continue
            name = names.pop()
            try:
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            total += found.st_blocks * 512
            if stat.S_ISDIR(found.st_mode):
                if len(open_folders) > MAX_DEPTH:
                    raise OSError(errno.ELOOP, f"folders more than {MAX_DEPTH} deep")
                _enter(name, descriptor, open_folders)
    finally:
        for descriptor, _ in open_folders:
            os.close(descriptor)
    return total


def _enter(name: str, parent: int | None, open_folders: list[tuple[int, list[str]]]) -> None:
    how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, how, dir_fd=parent)
    except OSError as error:
        # It has vanished, or is another thing by now.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    names: list[str] = []
    open_folders.append((descriptor, names))
    names += os.listdir(descriptor)
