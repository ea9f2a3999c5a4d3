"""Does a result that was got again agree with the one that was recorded? Defined here alone.

It agrees where the 95 % interval of the difference of the two means holds zero: Welch's t-interval
over the accuracies of the seeds, and never less than one test image to either side, since
accuracies come in such steps. With a single seed there is no deviation; then the interval is 1.96
standard errors of the two test-set accuracies. One honest repetition in twenty falls outside.

The interval is about other training seeds. Where exact numerics trained on the same images with the
same settings, versions, device and threads, no chance is left, and identical accuracies are
expected; it is said where they are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ddchallenge.errors import RequestError
from ddchallenge.records import Interval, Result
from ddchallenge.scoring.statistics import accuracy_of, welch_interval

__all__ = ["Agreement", "Change", "agreement", "check_record"]

_NORMAL_95: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that is not as it was when the result was recorded."""

    what: str
    recorded: str
    again: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two results of the same submission compare; accuracies are 0..1.

    ``difference`` is the accuracy got again less the recorded one, ``interval`` its 95 % interval.
    ``identical``: every seed recognised as many test images as before; ``identical_expected``:
    nothing is known that could have made a difference.
    """

    agrees: bool
    difference: float
    interval: Interval
    same_images: bool
    identical: bool
    identical_expected: bool
    images_recorded: int
    images_again: int
    changes: tuple[Change, ...]


def check_record(result: Result, name: str) -> None:
    """Raise :class:`RequestError` for a record whose accuracies are not those of its counts."""
    runs = result.runs
    counted = all(
        0 <= run.correct <= run.test_images
        and run.test_images > 0
        and math.isclose(run.accuracy, run.correct / run.test_images, abs_tol=1e-9)
        for run in runs
    )
    mean = accuracy_of(runs).mean if runs and counted else math.nan
    if not math.isclose(mean, result.accuracy.mean, abs_tol=1e-9):
        raise RequestError(
            f"{name} contradicts itself: its accuracy is not the mean of correct / test_images "
            "of its runs.\nIt was changed after it was written; there is nothing to get again."
        )


def agreement(recorded: Result, again: Result) -> Agreement:
    """Compare a recorded result with one that was got again."""
    low, high = _interval(recorded, again)
    changes = _changes(recorded, again)
    same_images = recorded.bundle.digest == again.bundle.digest
    exact = recorded.protocol.numerics == again.protocol.numerics == "exact"
    return Agreement(
        agrees=low <= 0 <= high,
        difference=again.accuracy.mean - recorded.accuracy.mean,
        interval=(low, high),
        same_images=same_images,
        identical=_counts(recorded) == _counts(again),
        identical_expected=same_images and exact and not any(c.what in _MATTER for c in changes),
        images_recorded=recorded.bundle.images,
        images_again=again.bundle.images,
        changes=changes,
    )


def _counts(result: Result) -> list[tuple[int, int, int]]:
    return [(run.seed, run.correct, run.test_images) for run in result.runs]


def _interval(recorded: Result, again: Result) -> Interval:
    values, others = ([run.accuracy for run in result.runs] for result in (again, recorded))
    difference = again.accuracy.mean - recorded.accuracy.mean
    interval = welch_interval(values, others)
    if interval is None:
        errors = (result.accuracy.test_error for result in (recorded, again))
        half = _NORMAL_95 * math.hypot(*errors)
    else:
        half = (interval[1] - interval[0]) / 2
    half = max(half, 1 / recorded.runs[0].test_images) * (1 + 1e-9)  # one image is in it
    return difference - half, difference + half


# What accuracies in exact numerics hang on, beside the images.
_MATTER: Final = frozenset(
    {"protocol", "epochs", "seeds", "torch", "device", "hardware", "threads", "test images"}
)


def _changes(recorded: Result, again: Result) -> tuple[Change, ...]:
    facts = [_facts(recorded), _facts(again)]
    return tuple(
        Change(what=what, recorded=facts[0][what], again=facts[1][what])
        for what in facts[0]
        if facts[0][what] != facts[1][what]
    )


def _facts(result: Result) -> dict[str, str]:
    """All that is known of how a result came about, but for the images."""
    use, origin, sampling = result.protocol, result.provenance, result.sampling
    facts = {
        "submission": f"{result.submission.name} {result.submission.digest[:16]}",
        "code": (origin.commit or "no commit") + (" with changes" if origin.dirty else ""),
        "protocol": f"{use.id}, {use.network}, {use.numerics} numerics",
        "epochs": str(use.epochs),
        "seeds": ",".join(str(run.seed) for run in result.runs),
        "python": origin.python,
        "torch": origin.torch,
        "platform": origin.platform,
        "device": origin.device,
        "hardware": origin.hardware,
        "threads": str(origin.threads),
        "training images": (origin.training_digest or "none")[:16],
        "test images": origin.test_digest[:16],
    }
    if sampling is not None:
        facts["sampled on"] = f"{sampling.device}, {sampling.hardware}"
        facts["sampling ended by"] = sampling.stop
    return facts
