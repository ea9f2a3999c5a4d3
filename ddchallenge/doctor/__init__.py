"""What this machine can do, and what is missing for which command.

Every probe runs in a thread of its own with a time of its own, and what may crash or hang in a
driver runs in another process: a probe that fails is a line of the diagnosis, never its end.
Nothing is changed or left behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddchallenge.datasets import DATASETS
from ddchallenge.doctor.findings import Finding, Probe, State, look_around
from ddchallenge.doctor.hardware import find_machine, find_torch
from ddchallenge.doctor.places import data_probes, find_cache, find_here
from ddchallenge.doctor.software import (
    find_compiler,
    find_engine,
    find_git,
    find_landlock,
    find_python,
    find_versions,
)

__all__ = ["Diagnosis", "Finding", "Readiness", "State", "diagnose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a command can be used here; ``why`` says what is missing, and what to do."""

    command: str
    ready: bool
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All of it. ``able`` says whether the main job, a run on digits, can be done."""

    able: bool
    findings: tuple[Finding, ...]
    commands: tuple[Readiness, ...]


def diagnose(data_dir: Path | None = None) -> Diagnosis:
    """Look at this machine; takes seconds, and at most as long as its slowest probe may."""
    findings = look_around([*_PROBES, *data_probes(data_dir)])
    by_key = {finding.key: finding for finding in findings}
    commands = _all_ready(by_key)
    return Diagnosis(able=commands[0].ready, findings=findings, commands=commands)


_PROBES: Final = (
    Probe("cpu", "CPU", find_machine, 30),
    Probe("torch", "PyTorch", find_torch, 90),
    Probe("python", "Python", find_python),
    Probe("versions", "packages", find_versions),
    Probe("compiler", "C++ compiler", find_compiler, 40),
    Probe("engine", "containers", find_engine, 30),
    Probe("git", "git", find_git),
    Probe("landlock", "Landlock", find_landlock),
    Probe("cache", "cache", find_cache),
    Probe("here", "working folder", find_here),
)


_MAIN_JOB: Final = "run --dataset digits"
_MAIN: Final = ("python", "versions", "torch", "cache", "here", "data.digits")


def _needs() -> dict[str, tuple[str, ...]]:
    """Each command, and the keys of what it needs beyond the main job, which comes first."""
    others = tuple(name for name in DATASETS if name != "digits")
    return {
        _MAIN_JOB: _MAIN,
        "run --launcher container": ("engine",),
        "run, your files out of reach": ("landlock",),
        "score --numerics fast": ("compiler",),
        "score --device cuda": ("gpu",),
        **{f"run --dataset {name}": (f"data.{name}",) for name in others},
        "reproduce": ("git",),
    }


def _all_ready(findings: dict[str, Finding]) -> tuple[Readiness, ...]:
    ready: list[Readiness] = []
    for command, keys in _needs().items():
        reasons = list(filter(None, (_wanting(key, findings) for key in keys)))
        if ready and not ready[0].ready:
            reasons.insert(0, f"all that {_MAIN_JOB} needs.")
        why = " ".join(reasons)
        ready.append(Readiness(command=command, ready=not why, why=why or None))
    return tuple(ready)


def _wanting(key: str, findings: dict[str, Finding]) -> str | None:
    found = findings.get(key)
    if found is None:  # a probe that failed has not said all it might have
        return f"{key}: not found out."
    if found.state == "ok":
        return None
    advice = f" {found.advice}." if found.advice else ""
    return f"{found.title}: {found.text.rstrip('.')}.{advice}"
