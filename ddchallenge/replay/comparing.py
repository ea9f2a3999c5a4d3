"""Have batches made again, and hold them against the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ddchallenge.augment import augment, get_plan, image_seed
from ddchallenge.errors import RequestError
from ddchallenge.generator import Submission, require_dataset
from ddchallenge.records import Bundle, DatasetSpec, SamplingLog, SamplingStatus
from ddchallenge.replay.recorded import Rows, recorded_batches
from ddchallenge.rules import get_rules
from ddchallenge.sampling.launchers import Launcher
from ddchallenge.sampling.launchers.process import ProcessLauncher
from ddchallenge.sampling.schedule import BatchRequest
from ddchallenge.sampling.supervisor import Sampled, SamplingOrder, sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pair: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8]]

__all__ = ["DifferentImage", "Replay", "ReplayOrder", "Verdict", "compare", "regenerate"]

Verdict = Literal["identical", "within tolerance", "different", "unfinished"]

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


def regenerate(
    bundle: Bundle,
    spec: DatasetSpec,
    order: ReplayOrder,
    folder: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Sampled:
    """Have the batches of ``order`` made again; ``folder`` gets ``worker.log``.

    ``order.batches`` come from :func:`ddchallenge.replay.recorded.choose_batches`. ``say`` is told
    what the launcher does. The generator cannot read the bundle.

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
    rows = Rows(bundle, log, spec.num_classes)
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


class _Tally:
    """Counts what agrees, of images ([0]) and of copies ([1]), and keeps the first that does not.

    First is first in the bundle; an image comes before the copies of any.
    """

    def __init__(
        self, bundle: Bundle, rows: Rows, came: tuple[BatchRequest, ...], tolerance: float
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
    rows: Rows,
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
