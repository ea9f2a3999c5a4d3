"""What a bundle is held against: random real images, as many a class, scored in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ddchallenge.bundle import tensor_digest
from ddchallenge.errors import RequestError
from ddchallenge.records import (
    DatasetSplit,
    LabeledImages,
    Reference,
    ScoringStatus,
    SeedOutcome,
    SeedRun,
)
from ddchallenge.scoring.progress import part_of
from ddchallenge.scoring.statistics import accuracy_of, paired_difference

if TYPE_CHECKING:
    from ddchallenge.records import LabelArray

__all__ = ["Train", "check_enough", "real_images", "score_reference"]


def check_enough(labels: LabelArray, training: DatasetSplit) -> None:
    """Raise :class:`RequestError` where a class has fewer training images than ``labels`` want."""
    import numpy as np

    spec = training.spec
    needed = np.bincount(labels, minlength=spec.num_classes)[: spec.num_classes]
    there = np.bincount(training.data.labels, minlength=spec.num_classes)
    short = np.flatnonzero(needed > there)
    if not len(short):
        return
    first = int(short[0])
    more = ""
    if len(short) > 1:
        rest = f"{len(short) - 1} more class{'es have' if len(short) > 2 else ' has'}"
        more = f", and {rest} too few"
    official = training.official_images_per_class
    advice = "Score without --reference, or a smaller bundle."
    if needed.max() <= official:
        advice = f"Get all of its {official:,} a class, or score without --reference."
    raise RequestError(
        f"--reference needs {needed[first]:,} real images of {spec.class_names[first]!r}, as many "
        f"as the bundle has; the training set of {spec.name} here has {there[first]:,}{more}.\n"
        f"{advice}"
    )


def real_images(labels: LabelArray, training: DatasetSplit, seed: int) -> LabeledImages:
    """Real training images with exactly these ``labels``, one for one, none twice: uint8 N×3×S×S.

    Which ones depends on the training set, on ``labels`` and on ``seed``, and on nothing else:
    every training image gets a 64-bit number, in their order, from NumPy's PCG64 seeded with
    ``seed``, and those with the smallest numbers of their class are taken, smallest first. So the
    images of a smaller reference are among those of a larger one, and since the labels stand where
    the bundle's do, both are trained on the same classes batch by batch.

    ``labels`` are as :func:`check_enough` lets them through.
    """
    import numpy as np

    # The raw numbers: NumPy may change what it makes of them from one version to the next.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(training.data)), kind="stable")
    real_labels = training.data.labels[order]
    chosen = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        chosen[places] = order[real_labels == label][: len(places)]
    return LabeledImages(np.asarray(training.data.images[chosen], dtype=np.uint8), labels)


class Train(Protocol):
    """:func:`ddchallenge.scoring.score` as it is called for the bundle.

    ``digest`` is :func:`ddchallenge.bundle.tensor_digest` of the images.
    """

    def __call__(
        self,
        images: LabeledImages,
        digest: str,
        seeds: tuple[int, ...],
        on_progress: Callable[[ScoringStatus], None] | None,
    ) -> tuple[SeedOutcome, ...]:
        """An outcome for each seed."""
        ...


def score_reference(
    labels: LabelArray,
    runs: Sequence[SeedRun],
    training: DatasetSplit,
    train: Train,
    on_progress: Callable[[ScoringStatus], None] | None = None,
) -> Reference:
    """Score real images with a bundle's ``labels`` under the seeds of its ``runs``, and compare."""
    digests, real_runs = [], []
    for done, run in enumerate(runs):
        images = real_images(labels, training, run.seed)
        digest = tensor_digest(training.spec, images)
        told = part_of(
            on_progress,
            before=len(runs) + done,
            after=len(runs) - done - 1,
            subject="reference",
            seeds=len(runs),
            seeds_done=done,
        )
        (outcome,) = train(images, digest, (run.seed,), told)
        digests.append(digest)
        real_runs.append(outcome.run)
    return Reference(
        training_digest=training.digest,
        training_images_per_class=training.images_per_class,
        official_images_per_class=training.official_images_per_class,
        digests=tuple(digests),
        runs=tuple(real_runs),
        accuracy=accuracy_of(real_runs),
        difference=paired_difference(runs, real_runs),
    )
