"""What ran this: versions, hardware, and the git revision of the harness."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ddchallenge
from ddchallenge.records import Environment

__all__ = ["describe_environment", "git_revision", "thread_count"]


def describe_environment(device: str) -> Environment:
    """What this process runs on. ``device`` is a torch device string, ``cpu`` or ``cuda[:n]``."""
    commit, dirty = git_revision(Path(ddchallenge.__file__).resolve().parent)
    return Environment(
        version=ddchallenge.__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=_torch_version(),
        platform=platform.platform(),
        device=device,
        hardware=_gpu_name(device) if device.startswith("cuda") else _cpu_name(),
    )


def thread_count() -> int:
    """How many threads PyTorch computes with on the CPU."""
    import torch

    return torch.get_num_threads()


def git_revision(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the package in ``folder`` and whether it was changed; None for not known."""

    # An installed wheel may lie inside some other project's checkout: only a repository that
    # tracks this very file counts.
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", "__init__.py"):
        # An image knows what it was built from; `make image` says it of clean checkouts only.
        built = os.environ.get("DDCHALLENGE_COMMIT", "")
        return (built, False) if re.fullmatch(r"[0-9a-f]{40,64}", built) else (None, None)
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "not installed"


def _gpu_name(device: str) -> str:
    import torch

    return str(torch.cuda.get_device_name(device))


def _cpu_name() -> str:
    import psutil

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the platform's own name is all there is
    return f"{name}, {psutil.cpu_count(logical=True)} cores"
