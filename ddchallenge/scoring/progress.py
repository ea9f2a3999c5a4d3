"""Tell somebody how scoring gets on, seldom enough not to slow it down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ddchallenge.records import ScoringActivity, ScoringStatus

if TYPE_CHECKING:
    from ddchallenge.scoring.training import Training

__all__ = ["ProgressReporter", "part_of"]

INTERVAL_SECONDS: Final = 0.2


class ProgressReporter:
    """Turns the state of trainings into :class:`ScoringStatus` records, at most five a second.

    The losses are read, which waits for the device, only when a status is due. ``passes`` and
    ``steps`` are those of one seed's training; ``done`` seeds need none. Time left is by the rate
    of the steps made here: compilation and what an earlier run had done do not count.
    """

    def __init__(
        self,
        tell: Callable[[ScoringStatus], None],
        *,
        seeds: int,
        done: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._seeds = seeds
        self._done = done
        self._clock = clock
        self._began = clock()
        self._told = -math.inf
        self._steps_here = 0
        self._step_seconds = 0.0

    def stepped(self, trainings: Sequence[Training], seconds: float) -> None:
        """Each of these, which go on side by side, has made a step, together in ``seconds``."""
        self._steps_here += len(trainings)
        self._step_seconds += seconds
        if self._clock() - self._told >= INTERVAL_SECONDS:
            self.report(trainings, "training")

    def seed_done(self) -> None:
        """One more seed needs no training any more."""
        self._done += 1

    def report(self, trainings: Sequence[Training], activity: ScoringActivity) -> None:
        """Say now where these are and what is being done."""
        behind = min(trainings, key=lambda training: training.steps_done)
        loss = behind.mean_loss()
        self._told = self._clock()
        steps = behind.steps
        done = self._done * steps + sum(training.steps_done for training in trainings)
        left = self._seeds * steps - done
        rate = self._step_seconds / self._steps_here if self._steps_here else None
        self._tell(
            ScoringStatus(
                seed=behind.seed,
                seeds_done=self._done,
                seeds=self._seeds,
                epoch=behind.index,
                epochs=behind.recipe.passes,
                batch=behind.batch,
                batches=behind.batches,
                loss=loss,
                elapsed_seconds=self._told - self._began,
                remaining_seconds=None if rate is None else rate * left,
                fraction=done / (self._seeds * steps),
                activity=activity,
            )
        )


def part_of(
    tell: Callable[[ScoringStatus], None] | None, *, before: int, after: int, **changes: Any
) -> Callable[[ScoringStatus], None] | None:
    """Tells of work that is one of several parts of equal length, so many before and after it.

    The fraction done and the time left are of all parts; ``changes`` are made to every status.
    None where nobody is told.
    """
    if tell is None:
        return None
    length: float | None = None

    def told(status: ScoringStatus) -> None:
        nonlocal length
        left, fraction = status.remaining_seconds, status.fraction
        if left is not None and fraction < 1:
            length = left / (1 - fraction)
        tell(
            replace(
                status,
                fraction=(before + fraction) / (before + 1 + after),
                remaining_seconds=None if left is None else left + after * (length or 0.0),
                **changes,
            )
        )

    return told
