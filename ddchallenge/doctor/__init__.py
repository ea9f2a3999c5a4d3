"""What this machine can do, and what is missing for which command.

Every probe runs in a thread of its own with a time of its own, and what may crash or hang in a
driver runs in another process: a probe that fails is a line of the diagnosis, never its end.
Nothing is changed or left behind.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    commands = tuple(_readiness(command, keys, by_key) for command, keys in _needs().items())
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


def _needs() -> dict[str, tuple[str, ...]]:
    """Each command and the keys of what it needs, the main job first."""
    main = ("python", "versions", "torch", "cache", "here", "data.digits")
    others = tuple(name for name in DATASETS if name != "digits")
    return {
        "run --dataset digits": main,
        "run --launcher container": (*main, "engine"),
        "run, your files out of reach": (*main, "landlock"),
        "score --numerics fast": (*main, "compiler"),
        "score --device cuda": (*main, "gpu"),
        **{f"run --dataset {name}": (*main, f"data.{name}") for name in others},
        "reproduce": (*main, "git"),
    }


def _readiness(command: str, keys: Iterable[str], findings: dict[str, Finding]) -> Readiness:
    # A probe that failed has not said all it might have.
    known = [
        findings.get(key, Finding(key=key, title=key, text="not found out", state="unknown"))
        for key in keys
    ]
    wanting = [found for found in known if found.state != "ok"]
    why = "; ".join(
        f"{found.title}: {found.text}" + (f". {found.advice}" if found.advice else "")
        for found in wanting
    )
    return Readiness(command=command, ready=not wanting, why=why or None)
