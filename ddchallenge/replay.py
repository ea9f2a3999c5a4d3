"""Is a bundle what its generator makes? Some of its recorded batches are generated again.

The very supervisor that samples asks for them, so a stranger's generator stays in its box. Images
are compared with the bundle's one by one, augmented copies with what :mod:`ddchallenge.augment`
makes of the bundle's own images. Other devices round differently, so images may differ within a
tolerance that is stated; copies must be identical.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ddchallenge.augment import augment, get_plan, image_seed
from ddchallenge.bundle import IMAGES_FILE, MANIFEST_FILE
from ddchallenge.environment import describe_environment
from ddchallenge.errors import BundleError, RequestError
from ddchallenge.generator import Submission, require_dataset
from ddchallenge.records import (
    Bundle,
    DatasetSpec,
    DatasetSplit,
    Environment,
    SamplingLog,
    SamplingStatus,
)
from ddchallenge.rules import get_rules
from ddchallenge.sampling.launchers import Launcher
from ddchallenge.sampling.launchers.process import ProcessLauncher
from ddchallenge.sampling.schedule import BatchRequest, batch_seed, class_major
from ddchallenge.sampling.supervisor import MAX_FRAME_BYTES, Sampled, SamplingOrder, sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pair: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8]]

__all__ = [
    "FOREIGN_TOLERANCE",
    "DifferentImage",
    "Replay",
    "ReplayOrder",
    "Verdict",
    "chance_to_catch",
    "choose_batches",
    "compare",
    "default_time_limit",
    "default_tolerance",
    "recorded_batches",
    "regenerate",
    "remarks",
]

Verdict = Literal["identical", "within tolerance", "different", "unfinished"]

# Grey values of 255, the mean over an image: what another device's rounding may come to.
FOREIGN_TOLERANCE: Final = 1.0
# A replay may take so many times what the recorded run took for as much, but no less than a minute.
PATIENCE: Final = 4.0
LEAST_SECONDS: Final = 60.0
MOST_SECONDS: Final = 86_400.0
# SeedSequence takes none below 0, and the wire 64 bits.
MAX_SEED: Final = 2**63 - 1
CHUNK_IMAGES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOrder:
    """What to generate again, and how closely it must agree.

    ``tolerance`` is the mean absolute difference, in grey values 0..255, an image may have;
    ``training_data`` the folder of decoded training images or None; ``launcher`` the box the
    generator runs in.
    """

    submission: Submission
    batches: tuple[BatchRequest, ...]
    device: str
    tolerance: float
    time_limit_seconds: float
    training_data: Path | None
    launcher: Launcher = field(default_factory=ProcessLauncher)


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferentImage:
    """Where a bundle differs: ``row`` of its tensors, sampled image ``number`` of ``batch``.

    ``copy`` is 0 for the image itself, else which of its augmented copies. ``difference`` is the
    mean absolute one, in grey values.
    """

    row: int
    number: int
    copy: int
    label: int
    batch: int
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of it. Differences are mean absolute ones of an image, in grey values 0..255.

    ``batches_recorded`` are in the manifest; all images of ``batches_checked`` were compared.
    ``unfinished`` says why batches that were asked for did not come, or is empty.
    """

    verdict: Verdict
    batches_recorded: int
    batches_checked: int
    images_compared: int
    images_identical: int
    copies_compared: int
    copies_identical: int
    tolerance: float
    worst_difference: float
    mean_difference: float
    elapsed_seconds: float
    unfinished: str
    first_different: DifferentImage | None


# ------------------------------------------------------------------------------ what was recorded


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
    _Rows(bundle, log, spec.num_classes)
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


# ------------------------------------------------------------------------------------- comparing


def regenerate(
    bundle: Bundle,
    spec: DatasetSpec,
    order: ReplayOrder,
    folder: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Sampled:
    """Have the batches of ``order`` made again; ``folder`` gets ``worker.log``.

    ``order.batches`` come from :func:`choose_batches`. ``say`` is told what the launcher does. The
    generator cannot read the bundle.

    Raises :class:`RequestError` for a submission that is not for this dataset or needs training
    data it is not given, and what :func:`ddchallenge.sampling.supervisor.sample` raises:
    :class:`SamplingError` for a generator that makes nothing at all.
    """
    log = recorded_batches(bundle, spec)
    require_dataset(order.submission, spec)
    if order.submission.needs_training_data and order.training_data is None:
        raise RequestError(
            f"{order.submission.name} needs training data to make its images again; none is given."
        )
    sampled = sample(_sampling_order(bundle, spec, order, log), folder, on_status, say=say)
    sampled.spool.close()
    sampled.discard()
    return sampled


def compare(
    bundle: Bundle,
    spec: DatasetSpec,
    order: ReplayOrder,
    sampled: Sampled,
    on_copies: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Replay, Pair | None]:
    """Hold what was generated again against the bundle, image by image; then their copies.

    ``on_copies`` is told how many copies have been compared, and of how many. With the outcome
    comes the first image that differs, if any: the bundle's, and the one it should be, uint8 3×S×S
    each.
    """
    import numpy as np

    log = recorded_batches(bundle, spec)
    rows = _Rows(bundle, log, spec.num_classes)
    came = _that_came(order.batches, sampled.log.images_sampled)
    chosen = np.zeros(log.images_sampled, dtype=bool)
    for batch in came:
        chosen[batch.first : batch.first + batch.count] = True
    tally = _Tally(bundle, rows, came, order.tolerance)
    images = np.flatnonzero(chosen[rows.number] & (rows.copy == 0))
    made = np.asarray(sampled.data.images, dtype=np.uint8)
    for start in range(0, len(images), CHUNK_IMAGES):
        some = slice(start, start + CHUNK_IMAGES)
        tally.compare(images[some], made[some])
    _compare_copies(bundle, log, rows, chosen, tally, on_copies)

    finished = len(came) == len(order.batches)
    detail = f": {sampled.log.stop_detail}" if sampled.log.stop_detail else ""
    outcome = Replay(
        verdict=tally.verdict() if finished or tally.first else "unfinished",
        batches_recorded=sum(line.batches for line in log.batches),
        batches_checked=len(came),
        images_compared=tally.compared[0],
        images_identical=tally.identical[0],
        copies_compared=tally.compared[1],
        copies_identical=tally.identical[1],
        tolerance=order.tolerance,
        worst_difference=tally.worst,
        mean_difference=tally.total / max(1, tally.compared[0]),
        elapsed_seconds=sampled.log.elapsed_seconds,
        unfinished="" if finished else f"{sampled.log.stop}{detail}",
        first_different=tally.first,
    )
    return outcome, tally.pair


def _sampling_order(
    bundle: Bundle, spec: DatasetSpec, order: ReplayOrder, log: SamplingLog
) -> SamplingOrder:
    return SamplingOrder(
        submission=order.submission,
        dataset=spec,
        rules=get_rules(bundle.manifest.track),
        budget_seconds=order.time_limit_seconds,
        device=order.device,
        run_seed=log.run_seed,
        max_images=None,
        augmentation="none",  # copies are made of the bundle's own images, afterwards
        training_data=order.training_data,
        launcher=order.launcher,
        batches=order.batches,
        hidden=(bundle.folder,),  # it could hand back what it finds there
    )


def _that_came(batches: tuple[BatchRequest, ...], images: int) -> tuple[BatchRequest, ...]:
    """Batches come whole and in the order they were asked for."""
    came = 0
    while came < len(batches) and images >= batches[came].count:
        images -= batches[came].count
        came += 1
    return batches[:came]


class _Rows:
    """Which sampled image, and which copy of it, each row of a bundle is: int64 N."""

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


class _Tally:
    """Counts what agrees, of images ([0]) and of copies ([1]), and keeps the first that does not.

    First is first in the bundle; an image comes before the copies of any.
    """

    def __init__(
        self, bundle: Bundle, rows: _Rows, came: tuple[BatchRequest, ...], tolerance: float
    ) -> None:
        self._bundle = bundle
        self._rows = rows
        self._came = came
        self._tolerance = tolerance
        self.compared = [0, 0]
        self.identical = [0, 0]
        self.worst = 0.0
        self.total = 0.0  # of the differences of images
        self.first: DifferentImage | None = None
        self.pair: Pair | None = None

    def compare(
        self, rows: NDArray[np.int64], expected: NDArray[np.uint8], *, copies: bool = False
    ) -> None:
        """Hold these rows of the bundle against uint8 N×3×S×S."""
        import numpy as np

        found = self._bundle.data.images[rows]
        difference = np.abs(found.astype(np.int16) - expected).mean(axis=(1, 2, 3))
        self.compared[copies] += len(rows)
        self.identical[copies] += int((difference == 0).sum())
        self.worst = max(self.worst, float(difference.max(initial=0.0)))
        if not copies:
            self.total += float(difference.sum())
        wrong = np.flatnonzero(difference > (0.0 if copies else self._tolerance))
        if len(wrong) and self.first is None:
            at = int(wrong[0])
            self._keep(int(rows[at]), found[at], expected[at], float(difference[at]))

    def _keep(
        self, row: int, found: NDArray[np.uint8], expected: NDArray[np.uint8], difference: float
    ) -> None:
        number = int(self._rows.number[row])
        batch = next(b.index for b in self._came if b.first <= number < b.first + b.count)
        self.pair = found.copy(), expected.copy()
        self.first = DifferentImage(
            row=row,
            number=number,
            copy=int(self._rows.copy[row]),
            label=int(self._bundle.data.labels[row]),
            batch=batch,
            difference=difference,
        )

    def verdict(self) -> Verdict:
        if self.first is not None:
            return "different"
        return "identical" if self.compared == self.identical else "within tolerance"


def _compare_copies(
    bundle: Bundle,
    log: SamplingLog,
    rows: _Rows,
    chosen: NDArray[np.bool_],
    tally: _Tally,
    on_copies: Callable[[int, int], None],
) -> None:
    """Make the copies of the chosen images again, out of the bundle's own images."""
    import numpy as np

    plan = get_plan(log.augmentation)
    copies = np.flatnonzero(chosen[rows.number] & (rows.copy > 0))
    step = max(1, plan.copies) * CHUNK_IMAGES
    for start in range(0, len(copies), step):
        some = copies[start : start + step]  # whole images: their copies follow each other
        of = some[rows.copy[some] == 1] - 1  # the row before a first copy is the image itself
        seeds = [image_seed(log.run_seed, int(number)) for number in rows.number[of]]
        images = np.asarray(bundle.data.images[of], dtype=np.uint8)
        made = augment(plan, images, seeds).reshape(-1, *images.shape[1:])
        tally.compare(some, made, copies=True)
        on_copies(start + len(some), len(copies))
