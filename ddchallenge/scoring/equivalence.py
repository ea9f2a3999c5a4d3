"""Whether fast numerics score like exact ones: what was measured, and where that makes it default.

The measurements are ``equivalence.json`` beside this file, written by
``python -m benchmarks.equivalence``: for one data set and kind of device, seeds trained both ways,
and two one-sided t-tests of the paired differences against the margin (Schuirmann 1987). They
establish equivalence where the 90 % interval of the mean difference lies within the margin.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddchallenge.jsonio import from_json, read_json
from ddchallenge.records import Interval, Numerics
from ddchallenge.scoring.statistics import t_interval

__all__ = ["FILE", "MARGIN", "Equivalence", "default_numerics", "measured", "of_differences"]

FILE: Final = Path(__file__).with_name("equivalence.json")
# In accuracy, 0..1: half a percentage point.
MARGIN: Final = 0.005
LEVEL: Final = 0.90
MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalence:
    """One measurement; accuracies and their differences (fast minus exact) are 0..1.

    ``interval90`` is the 90 % t-interval of the mean difference over ``seeds`` pairs, trained on
    ``images_per_class`` random real images a class for ``epochs`` (the official script's number)
    and tested on ``test_images``.
    """

    device: str
    dataset: str
    protocol: str
    epochs: int
    images_per_class: int
    test_images: int
    seeds: int
    exact_mean: float
    fast_mean: float
    difference: float
    interval90: Interval
    largest_difference: float
    commit: str | None
    torch: str
    hardware: str

    @property
    def bound(self) -> float:
        """The farthest the mean difference may be from zero, at 90 %: 0..1."""
        return max(abs(end) for end in self.interval90)

    @property
    def established(self) -> bool:
        """Whether both one-sided tests reject a difference of the margin."""
        return self.bound < MARGIN

    @property
    def sentence(self) -> str:
        """What is quoted with a score."""
        return (
            f"fast numerics: within ±{100 * self.bound:.2f} points of exact, 90 %, "
            f"n = {self.seeds} ({self.dataset}, {self.epochs} epochs, {self.device})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    measurements: tuple[Equivalence, ...]


def of_differences(differences: Sequence[float]) -> tuple[float, Interval]:
    """Mean and 90 % t-interval of paired differences.

    Raises :class:`ValueError` for fewer than two.
    """
    interval = t_interval(differences, LEVEL)
    if interval is None:
        raise ValueError("one difference says nothing about their spread")
    return statistics.mean(differences), interval


def measured(device: str, dataset: str, protocol: str) -> Equivalence | None:
    """The measurement for a torch device string's kind (cpu, cuda), or None."""
    kind = device.partition(":")[0]
    for entry in _measurements():
        if (entry.device, entry.dataset, entry.protocol) == (kind, dataset, protocol):
            return entry
    return None


def default_numerics(device: str, dataset: str, protocol: str) -> Numerics:
    """``fast`` where its equivalence has been established, else ``exact``."""
    found = measured(device, dataset, protocol)
    return "fast" if found is not None and found.established else "exact"


def _measurements() -> tuple[Equivalence, ...]:
    if not FILE.is_file():
        return ()
    return from_json(_Table, read_json(FILE, MAX_BYTES), FILE.name).measurements
