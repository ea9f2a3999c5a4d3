"""What the processes of a run take together, measured by their guardian (Linux).

Standard library only, and of that the light part: the guardian loads it under the clock.
"""

# ruff: noqa: PTH116, PTH123, PTH208 - pathlib is not light

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import Final

__all__ = ["INTERVAL_SECONDS", "Watch", "descendants", "folder_bytes", "pause"]

INTERVAL_SECONDS: Final = 0.1
# On a machine of thousands of processes, or with a million files, it is measured more seldom.
SHARE: Final = 0.05
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
        self._next_run = self._next_disk = time.monotonic()
        self._shared_before = _shared_memory()

    def exceeded(self) -> str | None:
        """Which limit is exceeded, for people, or None. Measures when it is time to."""
        problem = None
        if (now := time.monotonic()) >= self._next_run:
            problem = self._run()
            self._next_run = now + pause(now)
        if not problem and (now := time.monotonic()) >= self._next_disk:
            size, most = folder_bytes(self._folder), self._limits["disk_bytes"]
            self._next_disk = now + pause(now)
            if size > most:
                problem = f"{_mib(size)} of files, {_mib(most)} are allowed"
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
        # A file in /dev/shm is memory, though no process need have it mapped.
        written = self._written(pids)
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
                if os.stat(folder).st_dev != os.stat(_SHARED_MEMORY).st_dev:
                    return _shared_memory(folder)
            except OSError:
                continue  # a zombie, or gone
            break
        return _shared_memory() - self._shared_before


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


def folder_bytes(folder: str) -> int:
    """What the files below a folder take on disk; those that vanish meanwhile count nothing."""
    total = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    total += found.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue
    return total
