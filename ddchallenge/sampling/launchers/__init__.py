"""What starts a worker and stops it: a process or a container, behind one small interface.

The supervisor owns the clock and the frames; a launcher owns the box. In order::

    launcher.prepare(submission, device, say)      before the clock: images are built here
    seen = launcher.inside(places)                 the paths the worker is told
    worker = launcher.start(places, spare)         after the clock has started
    launcher.record()                              for the manifest, once started
    worker.exceeded()                              a few times a second
    worker.stop(meanwhile); worker.close()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ddchallenge.errors import RequestError
from ddchallenge.generator import Submission
from ddchallenge.records import LauncherName, LaunchRecord, Limits

__all__ = [
    "ENDING_SECONDS",
    "GRACE_SECONDS",
    "KILL_SECONDS",
    "Launcher",
    "Places",
    "Worker",
    "check_cpus",
    "check_memory",
    "default_limits",
]

# How long a worker that was asked to end has for it; when nothing more can come, ENDING_SECONDS.
GRACE_SECONDS: Final = 1.0
ENDING_SECONDS: Final = 0.2
KILL_SECONDS: Final = 0.8  # the promise is two seconds, the polite one included

# Of this machine's memory, where nobody says how much a run may take.
MEMORY_SHARE: Final = 0.9


def default_limits() -> Limits:
    """What a run may take where nobody says otherwise; the numbers stand in :class:`Limits`.

    Memory is nine tenths of this machine's.
    """
    import psutil

    return Limits(memory_bytes=int(psutil.virtual_memory().total * MEMORY_SHARE))


def check_memory(limit_bytes: int) -> None:
    """Raise :class:`RequestError` where a run may take more memory than this machine has."""
    import psutil

    total = psutil.virtual_memory().total
    if limit_bytes > total:
        raise RequestError(
            f"A memory limit of {limit_bytes / (1 << 30):,.1f} GiB is above the "
            f"{total / (1 << 30):,.1f} GiB this machine has.\nName less, or leave it out."
        )


def check_cpus(limit: float | None) -> None:
    """Raise :class:`RequestError` where a run may use more processors than this machine has."""
    processors = os.cpu_count() or 1
    if limit is not None and not 0 < limit <= processors:
        raise RequestError(
            f"{limit:g} processors cannot be had: this machine has {processors}.\n"
            "Name less, or leave it out."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The folders of a run. ``submission`` and ``training_data`` are for reading only.

    ``working_dir`` is empty and the only place to write in. ``hidden`` are folders that must not
    be read, beside those a launcher hides anyway; ``training_data`` may lie in one of them.
    ``kept`` says that the supervisor takes files out of ``working_dir`` when all of the run is
    dead: then it must be that folder of this machine, not one in a container's own memory.
    ``seconds`` is the budget: whoever can end the run long after it without us is told.
    """

    submission: Path
    working_dir: Path
    training_data: Path | None
    hidden: tuple[Path, ...] = ()
    kept: bool = False
    seconds: float | None = None


class Worker(Protocol):
    """A running worker: ``requests`` to write, ``frames`` and ``output`` to read.

    All three are descriptors of this process, non-blocking. ``output`` carries whatever the worker
    and the submission print.
    """

    requests: int
    frames: int
    output: int

    def has_ended(self) -> bool:
        """Whether the worker itself is no more, whatever it has left behind."""

    def ending(self) -> str:
        """How the worker ended, for people, as in "ended with exit status 1".

        Waits :data:`ENDING_SECONDS` at most for it to be known.
        """

    def exceeded(self) -> str | None:
        """Which limit is exceeded and by what, for people, or None. Asked ten times a second.

        Takes a few milliseconds at most; measures more seldom than it is asked where it must.
        """

    def stop(self, meanwhile: Callable[[], None], *, grace: float = GRACE_SECONDS) -> set[str]:
        """Stop everything of the run: a polite signal, ``grace`` seconds, then kill.

        ``meanwhile`` is called while waiting, so that pipes can be drained. Returns what could not
        be stopped, for people: nothing, unless the kernel itself holds it. May be called again,
        and then takes no time.
        """

    def close(self) -> None:
        """Close our ends of the pipes and let go of whatever was held."""


class Launcher(Protocol):
    """One way of running a worker in a box. Holds its limits; starts one worker at a time."""

    name: LauncherName

    def prepare(
        self, submission: Submission, device: str, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Everything that may take long, before the clock starts; ``say`` is told what is done.

        ``device`` is the torch device the run asks for. Raises :class:`RequestError` or
        :class:`RunError` where this machine cannot do what is asked.
        """

    def inside(self, places: Places) -> Places:
        """The same places as the worker sees them, absolute."""

    def start(self, places: Places, spare: Callable[[], Collection[int]] = tuple) -> Worker:
        """Start ``python -m ddchallenge.sampling.worker``; returns as soon as it is on its way.

        Processes that exist already are not the run's, and neither are those that ``spare`` names
        later.
        """

    def record(self) -> LaunchRecord:
        """What was limited and cut off, exactly; of the last start, or of the next if none was."""
