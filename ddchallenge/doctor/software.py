"""Python and its packages, the compiler, container engines, git, the kernel's sandbox."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from ddchallenge.doctor.findings import Finding, ask, last_line
from ddchallenge.jsonio import printable
from ddchallenge.sampling.launchers.engine import QUESTIONS
from ddchallenge.sampling.launchers.sandbox import landlock_abi

__all__ = [
    "find_compiler",
    "find_engine",
    "find_git",
    "find_landlock",
    "find_python",
    "find_versions",
]

_DISTRIBUTION: Final = "ddchallenge"


def find_python() -> Iterable[Finding]:
    """The interpreter of this process."""
    text = ".".join(map(str, sys.version_info[:3])) + f", {sys.executable}"
    yield Finding(key="python", title="Python", text=text)


def find_versions() -> Iterable[Finding]:
    """What is installed, against the lower bounds of pyproject.toml as the install has them."""
    try:
        bounds = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        yield Finding(
            key="versions", title="packages", text="ddchallenge is not installed, only found",
            state="unknown", advice="Install it: `make install`",
        )  # fmt: skip
        return
    good, wrong = [], []
    for bound in bounds:
        match = re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", bound)
        if not match:
            continue  # of an extra
        name, least = match.groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed ({least} or later is needed)")
            continue
        if _numbers(found) < _numbers(least):
            wrong.append(f"{name} is {found}, {least} or later is needed")
        else:
            good.append(f"{name} {found}")
    yield Finding(
        key="versions", title="packages", text="; ".join(wrong) or ", ".join(good),
        state="missing" if wrong else "ok", amount=len(good),
        advice="Install ddchallenge again (`make install`)" if wrong else None,
    )  # fmt: skip


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def find_compiler() -> Iterable[Finding]:
    """What torch.compile does with it: a shared library with OpenMP."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    advice = f"Install {name} (fast numerics run uncompiled without it, and longer)"
    if shutil.which(name) is None:
        yield Finding(
            key="compiler", title="C++ compiler", state="missing", advice=advice,
            text=f"there is no {printable(name)}",
        )  # fmt: skip
        return
    with tempfile.TemporaryDirectory(prefix="ddchallenge-doctor-") as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\n#include <cmath>\nint f() { return std::sin(1.0) > 0 "
                          "? omp_get_max_threads() : 0; }\n", encoding="utf-8")  # fmt: skip
        status, _, err = ask(
            name, "-shared", "-fPIC", "-fopenmp", "-o", f"{folder}/probe.so", str(source),
            seconds=25,
        )  # fmt: skip
    if status != 0:
        text = f"{printable(name)} does not compile: {last_line(err)}"
        yield Finding(
            key="compiler", title="C++ compiler", text=text, state="missing", advice=advice
        )
        return
    _, out, _ = ask(name, "--version", seconds=5)
    text = printable(out.splitlines()[0])[:100] if out else printable(name)
    yield Finding(key="compiler", title="C++ compiler", text=text)


def find_engine() -> Iterable[Finding]:
    """The first container engine that answers."""
    refused = []
    for name, question in QUESTIONS.items():
        if shutil.which(name) is None:
            continue
        status, out, err = ask(name, *question, seconds=12)
        if status == 0 and out.strip():
            user = "as root" if os.geteuid() == 0 else "without root"
            yield Finding(
                key="engine", title="containers", text=f"{name} {last_line(out).split()[0]}, {user}"
            )
            return
        refused.append(f"{name} does not answer ({last_line(err) or f'status {status}'})")
    yield Finding(
        key="engine", title="containers", state="missing",
        text="; ".join(refused) or f"no {' or '.join(QUESTIONS)}",
        advice="Start its service, or get permission to use it" if refused
        else "Install podman or docker",
    )  # fmt: skip


def find_git() -> Iterable[Finding]:
    """Git, which fetches the code a result names."""
    status, out, err = ask("git", "--version", seconds=5)
    if status == 0:
        text = last_line(out).removeprefix("git version ")
        yield Finding(key="git", title="git", text=text)
    else:
        text = last_line(err)
        yield Finding(key="git", title="git", text=text, state="missing", advice="Install git")


def find_landlock() -> Iterable[Finding]:
    """What the kernel offers to keep a process from files."""
    advice = "A submission can read your files: run strangers' with --launcher container"
    if sys.platform != "linux":
        text = f"none on {sys.platform}"
        yield Finding(key="landlock", title="Landlock", text=text, state="missing", advice=advice)
        return
    abi = landlock_abi()
    if abi is not None:
        yield Finding(key="landlock", title="Landlock", text=f"ABI {abi}", amount=abi)
    else:
        text = "not in this kernel, or not allowed here"
        yield Finding(key="landlock", title="Landlock", text=text, state="missing", advice=advice)
