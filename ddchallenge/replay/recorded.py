"""What a bundle says of the run that made it, as far as it can be asked for again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ddchallenge.augment import get_plan
from ddchallenge.bundle import IMAGES_FILE, MANIFEST_FILE
from ddchallenge.environment import describe_environment
from ddchallenge.errors import BundleError, RequestError
from ddchallenge.generator import Submission
from ddchallenge.records import Bundle, DatasetSpec, DatasetSplit, Environment, SamplingLog
from ddchallenge.sampling.schedule import BatchRequest, batch_seed, class_major
from ddchallenge.sampling.supervisor import MAX_FRAME_BYTES

if TYPE_CHECKING:
    pass

__all__ = [
    "FOREIGN_TOLERANCE",
    "Rows",
    "chance_to_catch",
    "choose_batches",
    "default_time_limit",
    "default_tolerance",
    "recorded_batches",
    "remarks",
]

# Grey values of 255, the mean over an image: what another device's rounding may come to.
FOREIGN_TOLERANCE: Final = 1.0
# A replay may take so many times what the recorded run took for as much, but no less than a minute.
PATIENCE: Final = 4.0
LEAST_SECONDS: Final = 60.0
MOST_SECONDS: Final = 86_400.0
# SeedSequence takes none below 0, and the wire 64 bits.
MAX_SEED: Final = 2**63 - 1


def recorded_batches(bundle: Bundle, spec: DatasetSpec) -> SamplingLog:
    """The log of a bundle whose batches can be asked for again.

    Raises :class:`RequestError` for a bundle that has none, :class:`BundleError` for a log no
    supervisor can have written: with seeds that were chosen, batches that fit into no frame, or
    labels the run did not ask for.
    """
    manifest, log = bundle.manifest, bundle.manifest.sampling
    if log is None:
        raise RequestError(
            f"{bundle.folder} was imported from {manifest.origin}, not sampled here: no batches "
            "are recorded.\nOnly what `ddchallenge sample` or `run` made can be generated again."
        )
    if not log.batches:
        raise RequestError(
            f"{bundle.folder} records no batches: {manifest.submission.name} handed its images "
            "over as one file.\nOnly a generator can be asked for a batch again."
        )
    if manifest.dtype != "uint8":
        raise _impossible(bundle, f"sampled images are uint8, these are {manifest.dtype}")
    if not 0 <= log.run_seed <= MAX_SEED:
        raise _impossible(bundle, f"the run seed {log.run_seed} is none of 0 to 2^63 - 1")
    index = 0
    most = MAX_FRAME_BYTES // (3 * spec.image_size**2)
    for line in log.batches:
        if line.index != index:
            raise _impossible(bundle, f"batch {line.index} stands where batch {index} must")
        if line.count > most:
            raise _impossible(bundle, f"batch {index} has {line.count} images, {most} fit a frame")
        seed = batch_seed(log.run_seed, index)
        if line.seed != seed:
            raise _impossible(
                bundle,
                f"batch {index} has the seed {line.seed}, run seed {log.run_seed} makes it {seed}",
            )
        index += line.batches
    Rows(bundle, log, spec.num_classes)
    return log


def _impossible(bundle: Bundle, what: str) -> BundleError:
    return BundleError(
        f"{bundle.folder / MANIFEST_FILE} is not what a supervisor writes: {what}.\n"
        "The bundle was changed after it was written, or made by other means."
    )


def choose_batches(log: SamplingLog, count: int | None, seed: int) -> tuple[BatchRequest, ...]:
    """A random sample of the recorded batches in their order, drawn by ``seed``; None for all."""
    import numpy as np

    ends = np.cumsum([line.batches for line in log.batches])
    total = int(ends[-1])
    chosen = np.arange(total)
    if count is not None and count < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, size=count, replace=False))
    requests = []
    for index in chosen.tolist():
        line = log.batches[int(np.searchsorted(ends, index, side="right"))]
        first = line.first + (index - line.index) * line.count
        requests.append(BatchRequest(index, first, line.count, batch_seed(log.run_seed, index)))
    return tuple(requests)


def chance_to_catch(recorded: int, checked: int, false: int) -> float:
    """The probability, 0..1, that a random sample of batches holds one of the ``false`` ones."""
    if checked > recorded - false:
        return 1.0
    missed = (math.log1p(-false / (recorded - i)) for i in range(checked))
    return -math.expm1(sum(missed))


def default_time_limit(log: SamplingLog, images: int) -> float:
    """Seconds in which a generator that is not hanging has made ``images`` again.

    Four times as long as the recorded run took for starting and for as many; a minute at least.
    """
    spent = log.seconds
    share = min(1.0, images / max(1, log.images_sampled))
    recorded = spent.start_up + spent.load + share * (spent.sampling + spent.idle)
    return min(MOST_SECONDS, LEAST_SECONDS + PATIENCE * recorded)


def default_tolerance(recorded: Environment, device: str) -> float:
    """0 where the run is repeated on what it ran on, as far as is known, else one grey value."""
    here = describe_environment(device)
    same = all(
        getattr(here, name) == getattr(recorded, name) for name in ("hardware", "torch", "python")
    )
    return 0.0 if same else FOREIGN_TOLERANCE


def remarks(
    bundle: Bundle, submission: Submission, training: DatasetSplit | None, device: str
) -> tuple[str, ...]:
    """What is not as it was when the bundle was made, a sentence each, and may explain much."""
    manifest = bundle.manifest
    said = []
    identity = submission.identity
    if identity != manifest.submission:
        was = manifest.submission
        said.append(
            f"This is not the submission the bundle names: {identity.name} {identity.digest[:16]}, "
            f"the bundle has {was.name} {was.digest[:16]}. It is compared all the same."
        )
    here = training.digest if training else None
    if here != manifest.training_digest:
        said.append(
            "The training images are not those of the recorded run: digest "
            f"{_short(here)}, the bundle has {_short(manifest.training_digest)}."
        )
    environment = describe_environment(device)
    for what in ("hardware", "torch", "python"):
        now, then = getattr(environment, what), getattr(manifest.environment, what)
        if now != then:
            said.append(f"Recorded with {what} {then}, repeated with {now}.")
    return tuple(said)


def _short(digest: str | None) -> str:
    return digest[:16] if digest else "none"


class Rows:
    """Which sampled image, and which copy of it, each row of a bundle is: int64 N.

    Raises :class:`BundleError` where labels are not those the run asked for.
    """

    def __init__(self, bundle: Bundle, log: SamplingLog, num_classes: int) -> None:
        import numpy as np

        rows_of = np.ones(log.images_sampled, dtype=np.int64)
        for first, end in log.augmented_ranges:
            rows_of[first:end] += get_plan(log.augmentation).copies
        number = np.repeat(np.arange(log.images_sampled), rows_of)
        copy = np.arange(len(number)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
        order = class_major(number, copy, num_classes)
        self.number, self.copy = number[order], copy[order]
        wrong = np.flatnonzero(bundle.data.labels != self.number % num_classes)
        if len(wrong):
            row = int(wrong[0])
            raise BundleError(
                f"{bundle.folder / IMAGES_FILE}: row {row} has label "
                f"{int(bundle.data.labels[row])}, but the run its manifest describes made "
                f"an image of class {int(self.number[row]) % num_classes} there.\n"
                "The bundle was changed after it was written, or made by other means."
            )
