"""What probes say, and how they are asked: all at once, each with a time of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Final, Literal

from ddchallenge.jsonio import printable

__all__ = ["GIB", "Finding", "Probe", "State", "ask", "last_line", "look_around"]

State = Literal["ok", "missing", "unknown"]

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one probe found.

    ``key`` is stable, for machines; ``title`` and ``text`` are for people. ``amount`` is the
    number in ``text``: bytes of memory and disks, a count of GPUs, cores and images; None where
    there is none. ``state`` is unknown where the probe itself failed; ``text`` then says how.
    ``advice`` is what to do about what is missing.
    """

    key: str
    title: str
    text: str
    state: State = "ok"
    amount: int | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """Something to look at, for so many seconds.

    ``key`` and ``title`` are of the finding that is made where ``look`` raises or gives no answer.
    """

    key: str
    title: str
    look: Callable[[], Iterable[Finding]]
    seconds: float = 10


def look_around(probes: Iterable[Probe]) -> tuple[Finding, ...]:
    """What the probes find, in their order; all look at once."""
    began = monotonic()
    waiting: list[tuple[Probe, SimpleQueue[tuple[Finding, ...]]]] = []
    for probe in probes:
        answer: SimpleQueue[tuple[Finding, ...]] = SimpleQueue()
        # One that hangs, in a dead network disk for instance, must not keep Python from ending.
        Thread(target=_answer, args=(probe, answer), daemon=True).start()
        waiting.append((probe, answer))
    findings: list[Finding] = []
    for probe, answer in waiting:
        try:
            findings += answer.get(timeout=max(0.0, began + probe.seconds - monotonic()))
        except Empty:
            text = f"no answer within {probe.seconds:.0f} s"
            findings.append(_unknown(probe, text))
    return tuple(findings)


def _answer(probe: Probe, answer: SimpleQueue[tuple[Finding, ...]]) -> None:
    try:
        answer.put(tuple(probe.look()))
    except Exception as error:
        answer.put((_unknown(probe, f"{type(error).__name__}: {error}"),))


def _unknown(probe: Probe, text: str) -> Finding:
    text = last_line(text) or "the probe failed"
    return Finding(key=probe.key, title=probe.title, text=text, state="unknown")


def last_line(text: str) -> str:
    """The last line of what a program said, fit to be shown."""
    lines = [line.strip() for line in printable(text[-4000:]).splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def ask(*command: str, seconds: float) -> tuple[int, str, str]:
    """Status and both outputs of a program; 127 where there is none, 124 where it took too long."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return 127, "", f"{command[0]} cannot be started ({error.strerror})"
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # The group: what it started may hold the pipes.
            os.killpg(process.pid, signal.SIGKILL)
            return 124, "", f"{command[0]} gave no answer within {seconds:.0f} s"
    return process.returncode, out, err
