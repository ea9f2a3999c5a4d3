"""Does a result that was got again agree with the one that was recorded? Defined here alone.

It agrees where the 95 % interval of the difference of the two means holds zero. Where the images
are the same, to the last bit, that is Welch's t-interval over the accuracies of the seeds: one
honest repetition in twenty falls outside. With a single seed there is no deviation; then it is 1.96
binomial standard errors of the two accuracies on the test set.

Where the images are not the same (a faster machine makes more of them, another number of threads or
another processor rounds a few pixels otherwise) the seeds know nothing of what other images would
have done. No single result says how much that is; networks trained on other images err on other
test images, so the scale at hand is that of the test set. Its 1.96 standard errors are added to
Welch's interval, as independent errors add. That is wide where the test set is small.

No interval is less than one test image to either side, since accuracies come in such steps. Where
exact numerics trained on the same images with the same settings, versions, device and threads, no
chance is left, and identical accuracies are expected; it is said where they are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ddchallenge.errors import RequestError
from ddchallenge.jsonio import printable
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

    ``difference`` is the accuracy got again less the recorded one, ``interval`` its 95 % interval
    and ``seeds_interval`` what of it comes from the seeds alone, None for a single one.
    ``identical``: every seed recognised as many test images as before; ``identical_expected``:
    nothing is known that could have made a difference.
    """

    agrees: bool
    difference: float
    interval: Interval
    seeds_interval: Interval | None
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
    changes = _changes(recorded, again)
    same_images = recorded.bundle.digest == again.bundle.digest
    exact = recorded.protocol.numerics == again.protocol.numerics == "exact"
    values, others = ([run.accuracy for run in result.runs] for result in (again, recorded))
    seeds = welch_interval(values, others)
    difference = again.accuracy.mean - recorded.accuracy.mean
    half = _half_width(recorded, again, seeds, same_images=same_images)
    return Agreement(
        agrees=abs(difference) <= half,
        difference=difference,
        interval=(difference - half, difference + half),
        seeds_interval=seeds,
        same_images=same_images,
        identical=_counts(recorded) == _counts(again),
        identical_expected=same_images and exact and not any(c.what in _MATTER for c in changes),
        images_recorded=recorded.bundle.images,
        images_again=again.bundle.images,
        changes=changes,
    )


def _half_width(
    recorded: Result, again: Result, seeds: Interval | None, *, same_images: bool
) -> float:
    half = 0.0 if seeds is None else (seeds[1] - seeds[0]) / 2
    if seeds is None or not same_images:
        errors = (result.accuracy.test_error for result in (recorded, again))
        half = math.hypot(half, _NORMAL_95 * math.hypot(*errors))
    return max(half, 1 / recorded.runs[0].test_images) * (1 + 1e-9)  # one image is in it


def _counts(result: Result) -> list[tuple[int, int, int]]:
    return [(run.seed, run.correct, run.test_images) for run in result.runs]


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
        facts["launcher"] = sampling.launcher or "not named"
        facts["image"] = printable(sampling.image or "none")[:19]
        facts["sampling ended by"] = sampling.stop
    return facts
