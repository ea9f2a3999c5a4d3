"""The frozen records that flow between modules, in the order of the data flow.

Imports nothing heavy: numpy is loaded when a :class:`LabeledImages` is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ddchallenge.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    ImageArray: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
    LabelArray: TypeAlias = NDArray[np.int64]
    CountArray: TypeAlias = NDArray[np.int64]

__all__ = [
    "MANIFEST_SCHEMA",
    "RESULT_SCHEMA",
    "RUN_FILE",
    "RUN_SCHEMA",
    "STOPPED_BY",
    "Accuracy",
    "BatchRecord",
    "Bundle",
    "BundleSummary",
    "Calibration",
    "DatasetSpec",
    "DatasetSplit",
    "Difference",
    "Environment",
    "EquivalentBudget",
    "GenerationTask",
    "Interval",
    "LabeledImages",
    "LaunchRecord",
    "LauncherName",
    "Limits",
    "Manifest",
    "Numerics",
    "PhaseSeconds",
    "ProtocolUse",
    "Provenance",
    "Rate",
    "Reference",
    "Result",
    "Rules",
    "RunRecord",
    "SamplingLog",
    "SamplingStatus",
    "SamplingSummary",
    "ScoringActivity",
    "ScoringProtocol",
    "ScoringStatus",
    "SeedOutcome",
    "SeedRun",
    "Source",
    "StopReason",
    "SubmissionIdentity",
    "Track",
]

Track = Literal["generative", "fixed-ipc"]
OptionValue: TypeAlias = "str | int | float | bool | tuple[str | int | float | bool, ...]"

Numerics = Literal["exact", "fast"]
# The lower and the upper end of a confidence interval.
Interval: TypeAlias = tuple[float, float]

# Of the JSON forms of Manifest, Result and RunRecord; a change of one is a new number.
MANIFEST_SCHEMA: Final = 2
RESULT_SCHEMA: Final = 3
RUN_SCHEMA: Final = 1
RUN_FILE: Final = "run.json"  # in a run's folder, until there is a bundle

StopReason = Literal[
    "images",  # every image that was asked for has arrived
    "deadline",  # the budget was used up
    "crashed",  # the worker ended before the deadline
    "refused",  # the worker sent something the contract does not allow
    "limit",  # the run took more memory, processes or disk than it may
    "disk-full",  # the spool could not grow
    "interrupted",  # Ctrl-C
]
# After "stopped by".
STOPPED_BY: Final[Mapping[StopReason, str]] = MappingProxyType(
    {
        "images": "images",
        "deadline": "deadline",
        "crashed": "a crash",
        "refused": "a breach of the contract",
        "limit": "a limit",
        "disk-full": "a full disk",
        "interrupted": "Ctrl-C",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file a dataset can be downloaded as: ``sha256`` in hex, ``size`` in bytes."""

    url: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """What is fixed about a dataset, by the challenge or by whoever arranged its folders.

    ``class_ids[label]`` is the folder name of a class (a WordNet id in Tiny ImageNet), in the
    challenge's order; ``class_names[label]`` is what a person calls it. ``mean`` and ``std`` are
    of pixels scaled to 0..1, one per channel. ``image_size`` is the side in pixels.
    ``training_images_per_class`` is the official number; ``folder`` is where class folders lie,
    None for the datasets that are known by name. It goes into no file.
    """

    name: str
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    training_images_per_class: int
    test_images: int
    sources: tuple[Source, ...] = ()
    folder: Path | None = None

    @property
    def num_classes(self) -> int:
        """How many classes; labels run from 0 to one less."""
        return len(self.class_ids)

    @property
    def chance(self) -> float:
        """The accuracy of guessing, 0..1."""
        return 1 / self.num_classes


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Images and their labels: the one payload of the harness, validated when made.

    ``images`` is N×3×H×W with H = W: uint8 pixels 0..255, or float32 values in the normalised
    space the evaluator trains in. ``labels`` is int64, N, none negative.

    Raises :class:`BundleError` where shapes, dtypes or values are not these.
    """

    images: ImageArray
    labels: LabelArray

    def __post_init__(self) -> None:
        import numpy as np

        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise BundleError(f"Expected images of shape N×3×S×S, found {_shape(images.shape)}.")
        if images.dtype not in (np.uint8, np.float32):
            raise BundleError(f"Expected uint8 or float32 images, found {images.dtype}.")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise BundleError(
                f"Expected {images.shape[0]} int64 labels, "
                f"found {_shape(labels.shape)} of {labels.dtype}."
            )
        if len(labels) and int(labels.min()) < 0:
            raise BundleError(f"Expected labels from 0, found {int(labels.min())}.")
        if images.dtype == np.float32:
            for start in range(0, len(images), 4096):
                finite = np.isfinite(images[start : start + 4096]).reshape(-1, images[0].size)
                bad = np.flatnonzero(~finite.all(axis=1))
                if len(bad):
                    raise BundleError(
                        f"Image {start + int(bad[0])} holds NaN or infinite values; "
                        "every value must be finite."
                    )

    def __len__(self) -> int:
        return len(self.labels)

    def images_per_class(self, num_classes: int) -> tuple[int, int]:
        """The smallest and the largest number of images any of ``num_classes`` classes has."""
        import numpy as np

        counts = np.bincount(self.labels, minlength=num_classes)
        return int(counts.min()), int(counts.max())


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSplit:
    """A loaded split: memory-mapped tensors, their digest, and the cache folder they lie in.

    ``digest`` is the hex SHA-256 over the decoded tensors. ``images_per_class`` is the smallest
    number any class has here, ``official_images_per_class`` what the official split has.
    """

    spec: DatasetSpec
    split: Literal["train", "test"]
    data: LabeledImages
    digest: str
    folder: Path
    images_per_class: int
    official_images_per_class: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a track allows. ``images_per_class`` is the exact number, or None for as many as fit."""

    id: str
    track: Track
    budget_seconds: float | None
    clock_covers: str
    images_per_class: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringProtocol:
    """One way of training and testing.

    ``recipe`` names the training; see :mod:`ddchallenge.scoring.recipes` for what it makes of
    ``epochs`` and of the two learning rates. ``networks`` are those a score may be made with, the
    one in ``network`` among them; empty for that one alone. ``epochs_by_images`` are pairs of a
    number of images a class and the epochs for as many or fewer, ascending; ``epochs`` is for
    more. :func:`ddchallenge.rules.get_protocol` settles the one, :meth:`for_images` the other."""

    id: str
    network: str
    epochs: int
    seeds: tuple[int, ...]
    batch_size: int
    learning_rate: float
    learning_rate_after_drop: float
    momentum: float
    weight_decay: float
    recipe: Literal["eccv2024", "imagewoof"] = "eccv2024"
    networks: tuple[str, ...] = ()
    epochs_by_images: tuple[tuple[int, int], ...] = ()

    def for_images(self, images: int, classes: int) -> ScoringProtocol:
        """The protocol for that many training images in all: ``epochs`` is the number it has then.

        Images a class are counted on average and rounded down, so that a class more or less in
        the last round makes no difference.
        """
        each = images // classes
        for most, epochs in self.epochs_by_images:
            if each <= most:
                return replace(self, epochs=epochs, epochs_by_images=())
        return replace(self, epochs_by_images=())


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionIdentity:
    """Who made the images: a name, and the hex SHA-256 of the files that did."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationTask:
    """What a generator is told in ``setup``.

    ``device`` is a torch device string. ``training_data`` is a folder with the training images,
    or None unless submission.toml says ``needs_training_data = true``. ``working_dir`` is a
    folder to write in, empty but for ``tmp``, which TMPDIR names; it is deleted after the run.
    ``options`` is the ``[options]`` table of submission.toml.
    """

    dataset: DatasetSpec
    device: str
    run_seed: int
    training_data: Path | None
    working_dir: Path
    options: Mapping[str, OptionValue] = field(default_factory=lambda: MappingProxyType({}))

    def load_training_data(self) -> LabeledImages:
        """The training images, memory-mapped and read-only: uint8 N×3×H×W, int64 N.

        Raises :class:`RuntimeError` when the submission did not ask for training data.
        """
        import numpy as np

        if self.training_data is None:
            raise RuntimeError(
                "there is no training data: submission.toml must say needs_training_data = true"
            )
        return LabeledImages(
            np.load(self.training_data / "images.npy", mmap_mode="r", allow_pickle=False),
            np.load(self.training_data / "labels.npy", mmap_mode="r", allow_pickle=False),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """Batches of one size that arrived in time, shortly after one another.

    ``batches`` of them, ``count`` images each, the first with number ``index``. They hold the
    sampled images from ``first`` on; sampled image i has label ``i % classes``. ``seed`` is what
    the generator was given for the first of them; those of the others follow from the run seed
    and their numbers (:func:`ddchallenge.sampling.schedule.batch_seed`). ``received_seconds``,
    on the supervisor's clock, is when the last of them was there.
    """

    index: int
    batches: int
    seed: int
    first: int
    count: int
    received_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSeconds:
    """Where the wall clock went; the six add up to the elapsed time.

    ``start_up``: process start to the first sign of life. ``load``: imports and ``setup``.
    ``sampling``: the generator had work. ``augmentation``: only copies were being made.
    ``idle``: nobody worked. ``stopping``: from the decision to stop to the proof that no process
    of the run is left.
    """

    start_up: float = 0.0
    load: float = 0.0
    sampling: float = 0.0
    augmentation: float = 0.0
    idle: float = 0.0
    stopping: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingLog:
    """What happened under the clock. Seconds are the supervisor's, from just before the worker
    was started. ``stop_detail`` is empty or says more, for people. ``late_images`` arrived after
    the deadline and were dropped. ``augmentation_worker_seconds`` is the time the augmentation
    pool computed, mostly while sampling went on. ``augmented_ranges`` are the sampled images that
    have their copies, as ``(first, end)`` with ``end`` left out."""

    rules_id: str
    budget_seconds: float
    elapsed_seconds: float
    stop: StopReason
    stop_detail: str
    run_seed: int
    device: str
    max_images: int | None
    augmentation: str
    images_sampled: int
    images_augmented: int
    late_images: int
    seconds: PhaseSeconds
    augmentation_worker_seconds: float
    augmented_ranges: tuple[tuple[int, int], ...]
    batches: tuple[BatchRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingStatus:
    """What the live display shows while sampling.

    ``line`` is what a command printed last, None where a generator runs.
    """

    activity: str
    elapsed_seconds: float
    budget_seconds: float
    images_sampled: int
    images_augmented: int
    images_wanted: int | None
    images_per_second: float
    num_classes: int
    line: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What ran this. ``commit`` and ``dirty`` are None outside a git checkout."""

    version: str
    commit: str | None
    dirty: bool | None
    python: str
    torch: str
    platform: str
    device: str
    hardware: str


LauncherName = Literal["process", "container"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What all processes of a run together may take; exceeding one ends the run.

    ``memory_bytes`` is private and shared memory, files that are mapped left out; ``processes``
    counts threads as well; ``open_files`` is for each process, ``disk_bytes`` for the working
    folder and for each file in it. ``cpus`` is a number of processors, None for all.
    """

    memory_bytes: int
    processes: int = 4096
    open_files: int = 4096
    disk_bytes: int = 16 << 30
    cpus: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """The box a worker ran in, exactly.

    ``engine`` is name and version of a container engine and ``image`` the digest of what it ran;
    both None for a plain process. ``environment`` names the variables the worker was given.
    ``landlock`` is the version of the kernel's Landlock interface that was in force, None where
    there was none. ``sandbox`` is what was cut off, a line each.
    """

    launcher: LauncherName
    engine: str | None
    image: str | None
    limits: Limits
    environment: tuple[str, ...]
    landlock: int | None
    sandbox: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is known of a run before it starts (``run.json``, beside the spool).

    With the spool it is enough for a bundle, should the supervisor not live to make one. ``launch``
    is None until the launcher is ready. The other fields are those of :class:`Manifest`,
    :class:`SamplingLog` and :class:`DatasetSpec`.
    """

    schema: int
    track: Track
    dataset: str
    image_size: int
    num_classes: int
    submission: SubmissionIdentity
    ranked: bool
    contains_real_images: bool
    training_images_per_class: int | None
    training_digest: str | None
    weights_digest: str | None
    rules_id: str
    budget_seconds: float
    run_seed: int
    device: str
    max_images: int | None
    augmentation: str
    launch: LaunchRecord | None
    environment: Environment
    calibration: Calibration | None = None
    equivalent: EquivalentBudget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How fast one part of the calibration went, in FLOP/s or bytes/s.

    ``per_second`` is of the median repetition; ``spread`` is the distance between the quartiles of
    the ``repetitions`` as a share of the median.
    """

    per_second: float
    spread: float
    repetitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How fast a device is, by a fixed workload (:mod:`ddchallenge.calibration`).

    Matrix products and convolutions in FLOP/s, a multiplication and an addition being two;
    ``copy`` in bytes/s read and written, ``host_to_device`` in bytes/s moved, None on a CPU.
    ``workload`` is the version of the workload. ``threads`` are the CPU threads it ran with,
    ``tf32`` whether float32 was allowed fewer bits (never, in this version). ``load_average`` is
    the machine's of the minute before, None where it has none. ``busy`` says, a line each, what
    speaks against the figures; empty for a quiet machine. ``measured_at`` is UTC, ISO 8601.
    """

    workload: str
    measured_at: str
    matmul_bf16: Rate
    matmul_fp32: Rate
    convolution_bf16: Rate
    convolution_fp32: Rate
    copy: Rate
    host_to_device: Rate | None
    tf32: bool
    threads: int
    load_average: float | None
    busy: tuple[str, ...]
    environment: Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivalentBudget:
    """A budget scaled to what the rules' budget is worth on a reference device.

    ``factor`` times the rules' budget, rounded to a second, is ``budget_seconds``. ``device`` is
    the name of the reference and ``table`` the version of its figures; see
    :mod:`ddchallenge.reference_devices`.
    """

    device: str
    table: str
    factor: float
    budget_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle says of itself (``manifest.json``).

    ``digest`` is :func:`ddchallenge.bundle.tensor_digest` of the tensors. ``normalisation`` is
    ``"pixels"`` for uint8 images, else what a float file was recognised as. ``sampling`` is None
    for an imported bundle. ``origin`` is the name of the file the images were in: one that was
    imported, or that a command wrote under the clock; None for those of a generator. ``ranked`` is
    false for reference lines. ``weights_digest`` is of the submission's weight files, None if it
    has none. ``launch`` is None where ``sampling`` is. ``recovered`` means that the supervisor did
    not live to the end: this is what its spool held. ``calibration`` is that of the device it was
    sampled on, where one was at hand; ``equivalent`` is there when the budget was scaled by it.
    """

    schema: int
    track: Track
    dataset: str
    digest: str
    dtype: Literal["uint8", "float32"]
    images: int
    images_per_class: tuple[int, int]
    normalisation: str
    submission: SubmissionIdentity
    ranked: bool
    contains_real_images: bool
    training_images_per_class: int | None
    training_digest: str | None
    weights_digest: str | None
    origin: str | None
    sampling: SamplingLog | None
    launch: LaunchRecord | None
    recovered: bool
    environment: Environment
    calibration: Calibration | None = None
    equivalent: EquivalentBudget | None = None

    @property
    def by_command(self) -> bool:
        """Whether a command wrote the images: there are no batches then that could be replayed."""
        return self.sampling is not None and self.origin is not None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A validated bundle on disk: its tensors and what it says of itself."""

    folder: Path
    data: LabeledImages
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRun:
    """One network trained and tested. ``accuracy`` is 0..1, ``correct`` counts test images.

    ``optimistic_best_accuracy`` is the highest of all tests, where the protocol tests on the way,
    else None. The test set itself chose it, so it is optimistic and never the score.
    ``final_loss`` is the mean training loss of the last epoch, None if it was not finite."""

    seed: int
    accuracy: float
    optimistic_best_accuracy: float | None
    correct: int
    test_images: int
    final_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedOutcome:
    """A seed run, and which classes its network took for which.

    ``confusion`` is int64 C×C: test images by true class (down) and predicted class (across)."""

    run: SeedRun
    confusion: CountArray


ScoringActivity = Literal["training", "compiling", "testing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringStatus:
    """What the progress display shows while scoring; ``epochs`` is the number of passes.

    ``epoch`` passes of this seed are done, and ``batch`` of ``batches`` of the next one; where
    several seeds go on side by side, this is the one that is furthest behind. ``fraction`` of all
    seeds' training is done, 0..1. ``loss`` is the mean training loss of the pass so far, or of the
    one before it; None before the first batch. ``remaining_seconds`` is for all that is left,
    None until a batch was timed. ``subject`` is what the networks are trained on: the bundle, or
    the real images it is held against."""

    seed: int
    seeds_done: int
    seeds: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float | None
    elapsed_seconds: float
    remaining_seconds: float | None
    fraction: float
    activity: ScoringActivity
    subject: Literal["bundle", "reference"] = "bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What the accuracies of several seed runs say together, 0..1.

    ``std`` is their sample deviation (n - 1) and ``ci95`` the 95 % t-interval of their mean, cut
    to 0..1: where the mean would lie after very many seeds, with this bundle and this test set.
    Both are None for a single run. ``test_error`` is about another test set, not other seeds: the
    binomial standard error √(mean·(1 - mean)/n) of an accuracy measured on n test images. More
    seeds don't make it smaller, since they meet the same images. It is exact for one network;
    several that err on different images vary less together, so it is an upper bound for these.
    Of a mean of exactly 0 or 1 it is 0 and says nothing."""

    mean: float
    std: float | None
    ci95: Interval | None
    test_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A bundle's accuracy minus another's, seed by seed, -1..1.

    ``std`` and ``ci95`` as in :class:`Accuracy`, of the seeds' differences; they too are about
    other seeds and not about another test set."""

    mean: float
    std: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Random real training images scored as the bundle was, as many a class as the bundle has.

    ``runs`` are in the order of the bundle's; each has a subset of its own, drawn from its seed by
    :func:`ddchallenge.scoring.reference.real_images`, and ``digests`` are these subsets' tensor
    digests. They were drawn from ``training_images_per_class`` of the
    ``official_images_per_class`` real images of the smallest class."""

    training_digest: str
    training_images_per_class: int
    official_images_per_class: int
    digests: tuple[str, ...]
    runs: tuple[SeedRun, ...]
    accuracy: Accuracy
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolUse:
    """How a bundle was scored. ``official`` means: the protocol's own epochs and seeds.

    ``equivalence`` says how far ``fast`` numerics may be from ``exact`` ones; None for these."""

    id: str
    network: str
    epochs: int
    official: bool
    numerics: Numerics
    equivalence: str | None
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSummary:
    """What was scored; ``images_per_class`` is the smallest and the largest number."""

    digest: str
    images: int
    images_per_class: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSummary:
    """A :class:`SamplingLog` without its batches, and how fast the device is that it ran on.

    ``calibration`` and ``equivalent`` are the manifest's; ``launcher`` and ``image`` those of its
    :class:`LaunchRecord`, None in results that are older than the fields."""

    budget_seconds: float
    elapsed_seconds: float
    stop: StopReason
    stop_detail: str
    max_images: int | None
    images_sampled: int
    images_augmented: int
    late_images: int
    augmentation: str
    run_seed: int
    device: str
    hardware: str
    seconds: PhaseSeconds
    calibration: Calibration | None = None
    equivalent: EquivalentBudget | None = None
    launcher: LauncherName | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a result comes from: the environment that scored it, and the digests of its data.

    ``device``, ``hardware`` and ``threads`` are those of scoring (another number of threads gives
    other last bits, and in the end another accuracy); ``training_images_per_class`` and
    ``training_digest`` are None when the generator was given no training images."""

    version: str
    commit: str | None
    dirty: bool | None
    python: str
    torch: str
    platform: str
    device: str
    hardware: str
    threads: int
    training_images_per_class: int | None
    training_digest: str | None
    test_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of the leaderboard; ``result.json`` is this record, field by field.

    ``per_class[label]`` is the accuracy on the test images of that class, 0..1, averaged over the
    seeds. ``reference`` is None unless it was asked for."""

    schema: int
    track: Track
    dataset: str
    submission: SubmissionIdentity
    ranked: bool
    protocol: ProtocolUse
    bundle: BundleSummary
    sampling: SamplingSummary | None
    runs: tuple[SeedRun, ...]
    accuracy: Accuracy
    chance: float
    per_class: tuple[float, ...]
    reference: Reference | None
    marks: tuple[str, ...]
    provenance: Provenance
