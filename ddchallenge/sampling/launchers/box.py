"""The walls of a container: the engine's options, and a look from inside that they stand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ddchallenge.records import Limits
from ddchallenge.sampling.launchers.engine import EngineName
from ddchallenge.sampling.launchers.image import USER
from ddchallenge.sampling.launchers.variables import PASSED_PREFIXES, SET, passed_variables

__all__ = [
    "TRAINING",
    "WORK",
    "box_environment",
    "box_options",
    "breaches",
    "disk_in_memory",
    "keep_work",
    "mount_training",
]

# Where a worker in a container finds what it is given.
WORK: Final = Path("/work")
TRAINING: Final = Path("/training")

# Podman's own default can be above what it may set; the kernel counts all of a user's.
USER_TASKS: Final = 4096
SHARED_MEMORY: Final = 1 << 30
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")


def box_options(
    engine: EngineName, limits: Limits, *, gpu: bool, direct: bool = False
) -> tuple[tuple[str, str], ...]:
    """The options of ``engine run`` that make the box, as ``(option, value)``.

    ``direct`` is that of :class:`~ddchallenge.sampling.launchers.engine.Engine`.
    """
    memory = limits.memory_bytes
    disk = disk_in_memory(limits)
    options = [
        ("--pull", "never"),
        ("--network", "none"),
        ("--hostname", "box"),
        ("--read-only", "true"),
        ("--tmpfs", f"{WORK}:rw,exec,nosuid,nodev,size={disk},mode=1777"),
        ("--workdir", str(WORK)),
        ("--shm-size", str(min(SHARED_MEMORY, memory // 4))),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--user", USER),
        ("--pids-limit", str(limits.processes)),
        ("--memory", str(memory)),
        ("--memory-swap", str(memory)),  # no more with swap than without
        ("--ulimit", f"nofile={limits.open_files}:{limits.open_files}"),
        ("--ulimit", "core=0:0"),
        ("--log-driver", "passthrough" if direct else "none"),  # neither keeps anything
        ("--stop-timeout", "0"),
    ]
    if limits.cpus is not None:
        options.append(("--cpus", f"{limits.cpus:g}"))
    if engine == "podman":
        tasks = max(USER_TASKS, 2 * limits.processes)
        options += [
            ("--ulimit", f"nproc={tasks}:{tasks}"),
            ("--read-only-tmpfs", "false"),
            ("--http-proxy", "false"),
            ("--sdnotify", "ignore"),
        ]
    if gpu:
        options.append(
            ("--device", "nvidia.com/gpu=all") if engine == "podman" else ("--gpus", "all")
        )
    return tuple(options)


def disk_in_memory(limits: Limits) -> int:
    """How many bytes may be written where the working folder is in memory."""
    # What lies in a temporary file system is memory; half of it leaves room to compute in.
    return min(limits.disk_bytes, limits.memory_bytes // 2)


def mount_training(folder: Path) -> tuple[str, str]:
    """The option that shows the training images, for reading only."""
    return "--mount", f"type=bind,{_source(folder)},target={TRAINING},readonly"


def keep_work(
    options: tuple[tuple[str, str], ...], folder: Path | None, limits: Limits
) -> tuple[tuple[str, str], ...]:
    """The box with a folder of this machine to work in instead of memory; None to describe it.

    The kernel bounds each file then, and the launcher has to look at all of them together.
    """
    source = f"{_source(folder)}," if folder else ""
    return (
        *(option for option in options if not option[1].startswith(f"{WORK}:")),
        ("--mount", f"type=bind,{source}target={WORK}"),
        ("--ulimit", f"fsize={limits.disk_bytes}:{limits.disk_bytes}"),
    )


def _source(folder: Path) -> str:
    # The engines read this as a line of comma-separated values.
    return '"' + f"source={folder}".replace('"', '""') + '"'


def box_environment(engine: EngineName) -> dict[str, str]:
    """The variables a worker in a container gets beside its image's.

    Of the user's those that say how a device and its libraries are to be used and name no path.
    """
    passed = {
        name: value
        for name, value in passed_variables(os.environ).items()
        if name.startswith(PASSED_PREFIXES) and "/" not in value
    }
    fixed = {name: value.format(work=WORK) for name, value in SET.items()}
    # Docker's configuration may put a proxy, with its password, into every container.
    proxies = (*_PROXIES, *(name.lower() for name in _PROXIES)) if engine == "docker" else ()
    return passed | fixed | dict.fromkeys(proxies, "") | {"HOME": str(WORK), "USER": "worker"}


# --------------------------------------------------------------------------------- from inside


def breaches(report: Mapping[str, object], limits: Limits, *, gpu: bool) -> list[str]:
    """What of a report of :func:`main` is not as it should be, for people."""
    found = []
    if report.get("user") in (0, None):
        found.append("the worker would be root")
    if report.get("capabilities") != 0 or report.get("no_new_privileges") != 1:
        found.append("the worker could gain privileges")
    if report.get("interfaces") not in ([], ["lo"]):
        found.append(f"there is a network: {report.get('interfaces')}")
    if report.get("writable") != []:
        found.append(f"can be written to: {report.get('writable')}")
    for name, most in (("memory", limits.memory_bytes), ("processes", limits.processes)):
        value = report.get(name)
        if not isinstance(value, int) or value > most:
            found.append(f"the limit of {name} is {value}, not {most}")
    if gpu and not report.get("gpu"):
        found.append("there is no GPU")
    return found


def main() -> None:
    """In the box: print what it is like, as JSON."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    groups = Path("/sys/fs/cgroup")
    report = {
        "user": os.getuid(),
        "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
        "no_new_privileges": int(status.get("NoNewPrivs", "0")),
        "interfaces": sorted(os.listdir("/sys/class/net")),  # noqa: PTH208
        "writable": [
            place
            for place in ("/", "/etc", "/run", "/submission", "/harness", "/var/tmp", "/home")  # noqa: S108
            if os.access(place, os.W_OK)
        ],
        "memory": _limit(groups / "memory.max", groups / "memory/memory.limit_in_bytes"),
        "processes": _limit(groups / "pids.max", groups / "pids/pids.max"),
        "gpu": any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


def _limit(*files: Path) -> int | None:
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


if __name__ == "__main__":
    main()
