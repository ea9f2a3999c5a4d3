"""A container's control group as the host's kernel shows it: who is in it, what it was refused."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ControlGroup"]

_ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """The folders of a process's group, for memory and for processes; one and the same in v2."""

    memory: Path
    pids: Path

    @classmethod
    def of(cls, pid: int) -> ControlGroup | None:
        """The group of a process; None where it is gone, or this is not its kernel."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        places: dict[str, str] = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            places.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
        if {"memory", "pids"} <= places.keys():
            memory, pids = _ROOT / "memory" / places["memory"], _ROOT / "pids" / places["pids"]
        elif places.get(""):
            memory = pids = _ROOT / places[""]
        else:
            return None  # the root itself is no container's
        return cls(memory, pids) if memory.is_dir() and pids.is_dir() else None

    def killed_for_memory(self) -> int:
        """How many processes the kernel has killed because the group's memory was used up."""
        return max(
            _number(self.memory / "memory.events", "oom_kill"),
            _number(self.memory / "memory.oom_control", "oom_kill"),
        )

    def refused_processes(self) -> int:
        """How often a process or thread was not made because there were too many."""
        return _number(self.pids / "pids.events", "max")

    def processes(self) -> set[int]:
        """Who is in it; nobody when it is gone."""
        try:
            return {int(pid) for pid in (self.pids / "cgroup.procs").read_text().split()}
        except OSError:
            return set()

    def kill(self) -> None:
        """Kill everybody in it, as far as this user may."""
        try:
            (self.pids / "cgroup.kill").write_text("1")
            return
        except OSError:
            pass  # an older kernel, or another user's
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue


def _number(file: Path, name: str) -> int:
    try:
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name and value.strip().isdigit():
                return int(value)
    except OSError:
        pass
    return 0
