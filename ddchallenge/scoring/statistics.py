"""What several seed runs say together, and what they don't.

Two things make an accuracy uncertain. Other seeds would train other networks: the deviation and
the t-interval tell how much that matters, and more seeds narrow the interval. Other test images
would have been other questions: every seed was asked the same ones, so no number of seeds helps,
and ``test_error`` stands apart. Where two sets of images were scored with the same seeds, the
differences seed by seed leave out what both have in common.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddchallenge.records import Accuracy, Difference, Interval, SeedOutcome, SeedRun

if TYPE_CHECKING:
    from ddchallenge.records import CountArray

__all__ = [
    "accuracy_of",
    "paired_difference",
    "per_class_accuracies",
    "t_interval",
    "total_confusion",
    "welch_interval",
]


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's interval for the mean of what ``values`` are a sample of; None for fewer than two.

    It supposes that the values scatter normally. With three of them it is 2.48 deviations wide to
    either side: wide because three are few, not because the values are.
    """
    if len(values) < 2:
        return None
    # scipy.stats would give the same quantile and take most of a second to import.
    from scipy.special import stdtrit

    mean = statistics.mean(values)
    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def welch_interval(
    values: Sequence[float], others: Sequence[float], confidence: float = 0.95
) -> Interval | None:
    """Welch's interval for the mean of ``values`` less that of ``others``, two samples apart.

    None where either has fewer than two. It supposes that both scatter normally, not that they do
    so equally; where neither scatters at all it is a point.
    """
    if min(len(values), len(others)) < 2:
        return None
    from scipy.special import stdtrit  # as above

    difference = statistics.mean(values) - statistics.mean(others)
    errors = [statistics.variance(sample) / len(sample) for sample in (values, others)]
    if not sum(errors):
        return difference, difference
    # Welch and Satterthwaite's degrees of freedom.
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(sample) - 1) for error, sample in zip(errors, (values, others), strict=True)
    )
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(sum(errors))
    return difference - half, difference + half


def accuracy_of(runs: Sequence[SeedRun]) -> Accuracy:
    """The accuracies of runs on one test set, together; see :class:`Accuracy` for what is what.

    Raises :class:`ValueError` where there are no runs.
    """
    if not runs:
        raise ValueError("the accuracy of no runs at all is not defined")
    accuracies = [run.accuracy for run in runs]
    mean = statistics.mean(accuracies)
    return Accuracy(
        mean=mean,
        std=_deviation(accuracies),
        ci95=_within(t_interval(accuracies), 0.0, 1.0),
        test_error=math.sqrt(mean * (1 - mean) / runs[0].test_images),
    )


def paired_difference(runs: Sequence[SeedRun], others: Sequence[SeedRun]) -> Difference:
    """By how much ``runs`` are better than ``others``, seed by seed.

    Raises :class:`ValueError` unless both are runs of the same seeds in the same order.
    """
    differences = []
    for run, other in zip(runs, others, strict=True):
        if run.seed != other.seed:
            raise ValueError(f"seeds {run.seed} and {other.seed} make no pair")
        differences.append(run.accuracy - other.accuracy)
    return Difference(
        mean=statistics.mean(differences),
        std=_deviation(differences),
        ci95=_within(t_interval(differences), -1.0, 1.0),
    )


def total_confusion(outcomes: Sequence[SeedOutcome]) -> CountArray:
    """The confusion of all seeds together: int64 C×C, true class down, predicted class across."""
    counts = outcomes[0].confusion.copy()
    for outcome in outcomes[1:]:
        counts += outcome.confusion
    return counts


def per_class_accuracies(confusion: CountArray) -> tuple[float, ...]:
    """The share of each class's test images that was recognised, 0..1, by label.

    Of :func:`total_confusion` that is the mean over the seeds, which all meet the same images.
    Raises :class:`ValueError` where a class has no test image.
    """
    images = confusion.sum(axis=1)
    if not images.all():
        raise ValueError(f"class {int(images.argmin())} has no test image")
    return tuple(float(share) for share in confusion.diagonal() / images)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _within(interval: Interval | None, low: float, high: float) -> Interval | None:
    if interval is None:
        return None
    return max(interval[0], low), min(interval[1], high)
