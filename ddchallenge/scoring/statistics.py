"""What several seed runs say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ddchallenge.records import Accuracy, SeedRun

__all__ = ["mean_and_deviation"]


def mean_and_deviation(runs: Sequence[SeedRun]) -> Accuracy:
    """Mean and sample standard deviation (n - 1) of the runs' accuracies, 0..1.

    The deviation of a single run is None: one number says nothing about its spread. Raises
    :class:`ValueError` where there are no runs.
    """
    if not runs:
        raise ValueError("the accuracy of no runs at all is not defined")
    accuracies = [run.accuracy for run in runs]
    return Accuracy(
        mean=statistics.mean(accuracies),
        std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
    )
