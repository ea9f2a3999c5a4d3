"""Tell somebody how scoring gets on, seldom enough not to slow it down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ddchallenge.records import ScoringStatus

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ProgressReporter"]

INTERVAL_SECONDS: Final = 0.2


class ProgressReporter:
    """Turns finished batches and passes into :class:`ScoringStatus` records, at most five a second.

    The losses are read, which waits for the device, only when a status is due.
    """

    def __init__(
        self,
        tell: Callable[[ScoringStatus], None],
        *,
        seeds: int,
        passes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._seeds = seeds
        self._passes = passes
        self._clock = clock
        self._began = clock()
        self._told = -math.inf
        self._seed = 0
        self._seeds_done = -1
        self._loss: float | None = None

    def seed_started(self, seed: int) -> None:
        """The run of this seed begins; the one before it, if any, is done."""
        self._seed = seed
        self._seeds_done += 1
        self._loss = None
        self._report(0)

    def batch_finished(self, index: int, batches: int, losses: Tensor) -> None:
        """Batches with these ``losses`` of the pass of this index, from 0, are done."""
        if self._due():
            self._loss = float(losses.mean())
            self._report(index, len(losses), batches)

    def pass_finished(self, index: int, losses: Tensor) -> None:
        """The pass of this index, from 0, is done; ``losses`` are its batches', on the device."""
        if self._due() or index + 1 == self._passes:
            self._loss = float(losses.mean())
            self._report(index + 1)

    def _due(self) -> bool:
        return self._clock() - self._told >= INTERVAL_SECONDS

    def _report(self, epoch: int, batch: int = 0, batches: int = 0) -> None:
        self._told = self._clock()
        elapsed = self._told - self._began
        done = self._seeds_done * self._passes + epoch + batch / max(batches, 1)
        left = self._seeds * self._passes - done
        self._tell(
            ScoringStatus(
                seed=self._seed,
                seeds_done=self._seeds_done,
                seeds=self._seeds,
                epoch=epoch,
                epochs=self._passes,
                batch=batch,
                batches=batches,
                loss=self._loss,
                elapsed_seconds=elapsed,
                remaining_seconds=elapsed / done * left if done else None,
            )
        )
