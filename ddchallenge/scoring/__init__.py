"""Score a training set: train networks on it, test them, say what came out.

The way of one seed: ``recipes`` (what a protocol does, with ``dsa``) and ``networks`` make a
``training``, whose steps are computed by ``exact`` or ``fast``; ``runs`` takes the seeds through
it, keeping a ``checkpoint``, to the test in ``testing``. Importing this package is cheap; PyTorch
is imported when a device is chosen or a network is trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ddchallenge.errors import BundleError, RequestError, ScoringError, UnknownNameError
from ddchallenge.records import (
    DatasetSpec,
    LabeledImages,
    Numerics,
    ScoringProtocol,
    ScoringStatus,
    SeedOutcome,
)

if TYPE_CHECKING:
    import torch

    from ddchallenge.scoring.checkpoint import Checkpoints

__all__ = [
    "check_epochs",
    "check_numerics",
    "check_seeds",
    "numerics_of",
    "resolve_device",
    "score",
]


def score(
    train: LabeledImages,
    test: LabeledImages,
    spec: DatasetSpec,
    protocol: ScoringProtocol,
    *,
    epochs: int | None = None,
    seeds: Sequence[int] | None = None,
    device: str,
    numerics: Numerics = "exact",
    checkpoints: Checkpoints | None = None,
    on_progress: Callable[[ScoringStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[SeedOutcome, ...]:
    """Train one network a seed on ``train`` and count what it takes ``test`` for.

    Args:
        train: the set that is judged; uint8 images are normalised with the dataset's mean and
            deviation, float32 ones are taken as they are.
        test: the dataset's test images, in either form.
        spec: the dataset: classes, image size, mean and deviation.
        protocol: network, optimiser and schedule.
        epochs: what the protocol's recipe makes of it; for ``eccv2024`` the ``Epoch`` of the
            official script, which makes one pass more. The protocol's number if None.
        seeds: one run each, in this order; the protocol's seeds if None.
        device: what :func:`resolve_device` takes.
        numerics: ``exact`` or ``fast``; see the modules of these names.
        checkpoints: what to go on from, and where to keep it; nothing is kept if None.
        on_progress: told at most about five times a second; see
            :class:`ddchallenge.scoring.progress.ProgressReporter`.
        say: told, in a line or two, what is unusual.

    Returns:
        The outcomes, in the order of the seeds. In exact numerics the same seed on the same device
        with the same number of threads gives the same, but for its seconds.

    Raises:
        RequestError: seeds or epochs that make no sense, a device that is not there, or a test
            set that does not belong to the dataset.
        BundleError: a training set that is empty or does not fit the dataset.
        ScoringError: the device ran out of memory.
    """
    protocol = protocol.for_images(len(train), spec.num_classes)
    epochs = protocol.epochs if epochs is None else epochs
    seeds = protocol.seeds if seeds is None else tuple(seeds)
    check_epochs(protocol, epochs)
    check_seeds(seeds)
    _check_images("training", train, spec, BundleError)
    _check_images("test", test, spec, RequestError)
    chosen = resolve_device(device)

    import torch

    from ddchallenge.scoring.recipes import recipe_of
    from ddchallenge.scoring.runs import Experiment, train_and_test

    try:
        experiment = Experiment(
            train=train,
            test=test,
            spec=spec,
            protocol=protocol,
            recipe=recipe_of(protocol, epochs, spec),
            seeds=seeds,
            numerics=numerics,
            device=torch.device(chosen),
        )
        return train_and_test(experiment, checkpoints=checkpoints, on_progress=on_progress, say=say)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error, torch.OutOfMemoryError):
            raise
        raise ScoringError(_out_of_memory(chosen, train, spec, str(error))) from error


def resolve_device(name: str) -> str:
    """A torch device string from ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` is CUDA where there is one, else the CPU. Raises :class:`UnknownNameError` for
    another name and :class:`RequestError` for a CUDA device that is not there.
    """
    if name == "cpu":
        return name
    kind, colon, index = name.partition(":")
    if name != "auto" and (kind != "cuda" or (colon and not index.isdecimal())):
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda"])

    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if found else "cpu"
    if int(index or 0) >= found:
        raise RequestError(
            f"The device {name!r} was asked for, but PyTorch finds {found} CUDA devices here.\n"
            "Use --device auto or --device cpu, or see what nvidia-smi and "
            "`python -m torch.utils.collect_env` say."
        )
    return name


def check_epochs(protocol: ScoringProtocol, epochs: int) -> None:
    """Raise :class:`RequestError` unless ``epochs`` make at least one pass."""
    fewest = 0 if protocol.recipe == "eccv2024" else 1
    if epochs < fewest:
        numbers = [epochs for _, epochs in protocol.epochs_by_images]
        fixed = f"{protocol.epochs}"
        raise RequestError(
            f"Expected {fewest} epochs or more, found {epochs}.\nThe protocol {protocol.id!r} has "
            f"{f'{fixed} to {max(numbers)}, by images a class' if numbers else fixed}."
        )


def numerics_of(protocol: ScoringProtocol) -> tuple[Numerics, ...]:
    """The numerics that know how the protocol trains."""
    return ("exact", "fast") if protocol.recipe == "eccv2024" else ("exact",)


def check_numerics(name: str, protocol: ScoringProtocol) -> Numerics:
    """The numerics of that name, as far as they know the protocol.

    Raises :class:`UnknownNameError` for another name, :class:`RequestError` where fast numerics do
    not know how the protocol trains.
    """
    if name == "exact":
        return "exact"
    if name != "fast":
        raise UnknownNameError("numerics", name, ["exact", "fast"])
    if "fast" not in numerics_of(protocol):
        raise RequestError(
            f"Fast numerics know the training of eccv2024, not that of {protocol.id}.\n"
            "Leave --numerics out, or use --numerics exact."
        )
    return "fast"


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise :class:`RequestError` unless there are seeds, all different, each 0 to 2^63 - 1."""
    if not seeds:
        raise RequestError("Expected at least one seed, found none.")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise RequestError(f"Expected seeds from 0 to 2^63 - 1, found {seed}.")
    if len(set(seeds)) < len(seeds):
        listing = ", ".join(map(str, seeds))
        raise RequestError(
            f"Expected different seeds, found {listing}.\n"
            "A repeated seed is the same run again and would make the deviation too small."
        )


def _check_images(
    what: str, data: LabeledImages, spec: DatasetSpec, error: type[RequestError]
) -> None:
    if not len(data):
        raise error(f"The {what} set holds no images.")
    size = data.images.shape[2]
    if size != spec.image_size:
        raise error(
            f"The {what} images are {size} pixels wide; {spec.name} has {spec.image_size}.\n"
            "Is this the right dataset?"
        )
    highest = int(data.labels.max())
    if highest >= spec.num_classes:
        raise error(
            f"The {what} set has a label {highest}; {spec.name} has the labels "
            f"0 to {spec.num_classes - 1}.\nIs this the right dataset?"
        )


def _is_out_of_memory(error: Exception, on_device: type[torch.OutOfMemoryError]) -> bool:
    # PyTorch has a class of its own for a full GPU, but none for a full main memory.
    return isinstance(error, (MemoryError, on_device)) or "allocate memory" in str(error)


def _out_of_memory(device: str, train: LabeledImages, spec: DatasetSpec, complaint: str) -> str:
    what = f"{len(train)} images of {spec.image_size}×{spec.image_size}"
    # The allocator's own words, the only place where it says how much it wanted.
    wanted = re.search(r"ried to allocate ([\d.]+ ?[KMGTi]*B|\d+ bytes)", complaint)
    if wanted:
        what += f"; {wanted[1]} more were wanted"
    if device == "cpu":
        return (
            f"The memory ran out while training on {what}.\n"
            "Close other programs, or score on a machine with more memory."
        )
    return (
        f"The memory of {device} ran out while training on {what}.\n"
        "See with nvidia-smi what else uses it, pick another (--device cuda:1), or use\n"
        "--numerics fast, which takes a batch in parts where it has to, or --device cpu."
    )
