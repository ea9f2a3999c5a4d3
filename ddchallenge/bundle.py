"""A bundle is a folder of ``images.safetensors``, ``manifest.json`` and ``samples.png``.

Nothing in it can execute. It is written whole or not at all, and read as if a stranger had made
it: sizes and shapes are checked before memory is taken, and the digest is computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ddchallenge.atomic import atomic_folder
from ddchallenge.augment import PLANS
from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import BundleError, RequestError, UnknownNameError
from ddchallenge.jsonio import DocumentError, from_json, read_json, to_json, write_json
from ddchallenge.records import (
    MANIFEST_SCHEMA,
    RUN_FILE,
    Bundle,
    DatasetSpec,
    LabeledImages,
    Manifest,
)
from ddchallenge.reference_devices import equivalent_budget
from ddchallenge.rules import TRACKS, get_rules

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

__all__ = [
    "IMAGES_FILE",
    "MANIFEST_FILE",
    "SAMPLES_FILE",
    "normalised_chunks",
    "read_bundle",
    "tensor_digest",
    "write_bundle",
]

IMAGES_FILE: Final = "images.safetensors"
MANIFEST_FILE: Final = "manifest.json"
SAMPLES_FILE: Final = "samples.png"

# A manifest has ten thousand lines of batches at most, about two megabytes.
_MAX_MANIFEST_BYTES: Final = 64 << 20
# Environment variables, and lines about what was cut off.
_MAX_LINES: Final = 1000
_CHUNK_BYTES: Final = 16 << 20
_DTYPES: Final = {"uint8": "U8", "float32": "F32", "int64": "I64"}


def normalised_chunks(spec: DatasetSpec, images: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """The images as the evaluator trains on them, little-endian float32, a few at a time.

    uint8 pixels are normalised with the dataset's statistics, float32 values are passed on.
    """
    import numpy as np

    for chunk in _chunks(images, bytes_an_item=4 * max(1, int(np.prod(images.shape[1:])))):
        values = normalise(spec, chunk) if images.dtype == np.uint8 else chunk
        yield np.ascontiguousarray(values, dtype="<f4")


def _chunks(array: NDArray[Any], bytes_an_item: int) -> Iterator[NDArray[Any]]:
    step = max(1, _CHUNK_BYTES // bytes_an_item)
    for start in range(0, len(array), step):
        yield array[start : start + step]


def tensor_digest(spec: DatasetSpec, data: LabeledImages) -> str:
    """Hex SHA-256 of what the evaluator trains on: shape, labels, normalised float32 images.

    The same for uint8 pixels and for the official float tensor made of them. Everything is little
    endian; the images go in chunks, so little memory is needed.
    """
    digest = hashlib.sha256(b"ddchallenge tensors 1\n")
    digest.update(struct.pack("<4Q", *data.images.shape))
    digest.update(data.labels.astype("<i8").tobytes())
    for chunk in normalised_chunks(spec, data.images):
        digest.update(chunk.data.cast("B"))
    return digest.hexdigest()


def write_bundle(
    folder: Path, data: LabeledImages, manifest: Manifest, samples: PIL.Image.Image
) -> Bundle:
    """Writes a bundle folder; it appears whole or not at all.

    Raises :class:`OutputError` if ``folder`` exists or cannot be written, :class:`StorageError` for
    a full or failing disk, :class:`BundleError` if the manifest disagrees with the tensors.
    """
    _check_counts(manifest, data)
    _check_track(manifest)
    _check_sampling(manifest)
    _check_launch(manifest)
    with atomic_folder(folder) as temporary:
        _write_tensors(temporary / IMAGES_FILE, {"images": data.images, "labels": data.labels})
        write_json(temporary / MANIFEST_FILE, to_json(manifest))
        samples.save(temporary / SAMPLES_FILE, format="PNG")
    return Bundle(folder, data, manifest)


def _write_tensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    # The format by hand: safetensors' own writer holds all bytes a second time, and reports a full
    # disk as an error of its own kind. Format: https://huggingface.co/docs/safetensors
    header: dict[str, Any] = {}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            for chunk in _chunks(array, bytes_an_item=max(1, array.nbytes // max(1, len(array)))):
                little = chunk.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
                file.write(little.data.cast("B"))


def read_bundle(folder: Path, spec: DatasetSpec | None = None) -> Bundle:
    """Reads and checks a bundle; ``spec`` is the dataset it must be for, else the one it names.

    Raises :class:`BundleError` for anything that is missing, damaged, too large, or disagrees, and
    :class:`RequestError` where it is whole but for another dataset than ``spec``, or for class
    folders without a ``spec`` to say where they are.
    """
    if (folder / RUN_FILE).is_file():
        raise BundleError(
            f"{folder} has a run that goes on, or was killed before its bundle was written.\n"
            f"`ddchallenge sample --recover {folder}` makes the bundle."
        )
    if not folder.is_dir():
        raise BundleError(
            f"There is no bundle at {folder}.\n"
            f"A bundle is a folder with {IMAGES_FILE} and {MANIFEST_FILE}."
        )
    if not any((folder / name).exists() for name in (MANIFEST_FILE, IMAGES_FILE)):
        raise BundleError(
            f"{folder} is no bundle: it has neither {MANIFEST_FILE} nor {IMAGES_FILE}.\n"
            "`ddchallenge sample` and `ddchallenge import` make bundles."
        )
    try:
        manifest = _read_manifest(folder / MANIFEST_FILE)
        spec = _dataset_of(manifest, spec)
        data = _read_tensors(folder / IMAGES_FILE, manifest, spec)
        _check_counts(manifest, data)
        _check_classes(manifest, data, spec)
        _check_track(manifest)
        _check_sampling(manifest)
        _check_budget(manifest)
        _check_launch(manifest)
        digest = tensor_digest(spec, data)
        if digest != manifest.digest:
            raise BundleError(
                f"the manifest's digest {manifest.digest[:16]!r}... is not that of the tensors, "
                f"{digest[:16]!r}..."
            )
    except BundleError as error:
        raise BundleError(
            f"The bundle {folder} cannot be used: {error}\n"
            "It was damaged or changed after it was written; take a fresh copy, or make it again."
        ) from None
    return Bundle(folder, data, manifest)


def _read_manifest(path: Path) -> Manifest:
    try:
        document = read_json(path, _MAX_MANIFEST_BYTES)
        schema = document.get("schema") if isinstance(document, dict) else None
        if type(schema) is int and schema != MANIFEST_SCHEMA:
            raise BundleError(
                f"its manifest is of schema {schema}, this version reads {MANIFEST_SCHEMA}"
            )
        return from_json(Manifest, document, path.name)
    except DocumentError as error:
        raise BundleError(str(error)) from None


def _dataset_of(manifest: Manifest, spec: DatasetSpec | None) -> DatasetSpec:
    if spec is None:
        from ddchallenge.datasets import get_dataset

        try:
            return get_dataset(manifest.dataset)
        except UnknownNameError as error:
            raise BundleError(str(error)) from None
    if manifest.dataset != spec.name:
        from ddchallenge.datasets.class_folders import why_not_the_same

        raise RequestError(
            f"Expected a bundle for {spec.name}, found one for {manifest.dataset}.\n"
            f"{why_not_the_same(manifest.dataset, spec)}"
        )
    return spec


def _read_tensors(path: Path, manifest: Manifest, spec: DatasetSpec) -> LabeledImages:
    from safetensors import SafetensorError, safe_open

    expected = {
        "images": (manifest.dtype, [manifest.images, 3, spec.image_size, spec.image_size]),
        "labels": ("int64", [manifest.images]),
    }
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path.name} is not a plain file")
        # safe_open maps the file and checks that its header accounts for every byte; no tensor is
        # in memory before get_tensor, and then no more than the file holds.
        with safe_open(path, framework="np") as file:
            if set(file.keys()) != set(expected):
                found = ", ".join(sorted(file.keys())[:5]) or "none"
                raise BundleError(f"{path.name}: expected tensors images and labels, found {found}")
            for name, (dtype, shape) in expected.items():
                lazy = file.get_slice(name)
                if (lazy.get_dtype(), lazy.get_shape()) != (_DTYPES[dtype], shape):
                    raise BundleError(
                        f"{path.name}: expected {name} {_DTYPES[dtype]} {shape}, "
                        f"found {lazy.get_dtype()} {lazy.get_shape()}"
                    )
            _check_memory(path)
            return LabeledImages(file.get_tensor("images"), file.get_tensor("labels"))
    except SafetensorError as error:
        raise BundleError(f"{path.name} is not a valid safetensors file ({error})") from None
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read ({error.strerror or error})") from None


def _check_memory(path: Path) -> None:
    # A file of a terabyte may be a hole with a header.
    import psutil

    needed, free = path.stat().st_size, psutil.virtual_memory().available
    if needed > free:
        raise BundleError(
            f"{path.name} needs {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} are free"
        )


def _check_counts(manifest: Manifest, data: LabeledImages) -> None:
    if not len(data):
        raise BundleError("it holds no images")
    if manifest.schema != MANIFEST_SCHEMA:
        raise BundleError(f"schema {manifest.schema} is not {MANIFEST_SCHEMA}")
    if (manifest.images, manifest.dtype) != (len(data), data.images.dtype.name):
        raise BundleError(
            f"the manifest says {manifest.images} {manifest.dtype} images, "
            f"the tensors are {len(data)} {data.images.dtype}"
        )
    if (manifest.dtype == "uint8") != (manifest.normalisation == "pixels"):
        raise BundleError(
            f"the manifest says {manifest.dtype} images with normalisation "
            f"{manifest.normalisation!r}"
        )


def _check_sampling(manifest: Manifest) -> None:
    """The log of a run must account for every image, and for no other."""
    log = manifest.sampling
    if log is None:
        return
    copies = PLANS[log.augmentation].copies if log.augmentation in PLANS else -1
    numbered = 0
    for line in log.batches:
        if line.first != numbered or line.count < 1 or line.batches < 1:
            raise BundleError(f"sampling.batches: the line of batch {line.index} does not follow")
        numbered += line.batches * line.count
    previous = 0
    for first, end in log.augmented_ranges:
        if not previous <= first < end <= log.images_sampled:
            raise BundleError(f"sampling.augmented_ranges: {first} to {end} cannot be")
        previous = end
    augmented = copies * sum(end - first for first, end in log.augmented_ranges)
    seconds = [getattr(log.seconds, name) for name in log.seconds.__dataclass_fields__]
    facts = {
        "augmentation is no plan": copies >= 0,
        # The images of a command came in one file and not in batches.
        "batches do not add up to images_sampled": numbered
        == (0 if manifest.by_command else log.images_sampled),
        "augmented_ranges do not add up to images_augmented": augmented == log.images_augmented,
        "images_sampled and images_augmented do not add up to images": manifest.images
        == log.images_sampled + log.images_augmented,
        "late_images is negative": log.late_images >= 0,
        "rules_id is unknown": log.rules_id == TRACKS[manifest.track].id,
        "budget_seconds is not positive": log.budget_seconds > 0,
        "seconds do not add up to elapsed_seconds": min(seconds) >= 0
        and math.isclose(sum(seconds), log.elapsed_seconds, rel_tol=1e-6, abs_tol=1e-6),
    }
    for problem, holds in facts.items():
        if not holds:
            raise BundleError(f"sampling: {problem}")


def _check_budget(manifest: Manifest) -> None:
    """A scaled budget must be the one its calibration and the table come to."""
    claimed, calibration, log = manifest.equivalent, manifest.calibration, manifest.sampling
    if claimed is None:
        return
    if calibration is None or log is None:
        raise BundleError("equivalent: there is no calibration, or no clock, to scale a budget by")
    if calibration.environment.hardware != manifest.environment.hardware:
        raise BundleError("equivalent: its calibration is of other hardware")
    try:
        found = equivalent_budget(
            claimed.device, calibration, get_rules(manifest.track), claimed.table
        )
    except RequestError as error:
        raise BundleError(f"equivalent: {error}") from None
    same = math.isclose(found.factor, claimed.factor, rel_tol=1e-9)
    if not same or not found.budget_seconds == claimed.budget_seconds == log.budget_seconds:
        raise BundleError(
            f"equivalent: its calibration comes to {found.budget_seconds:g} s, "
            f"it says {claimed.budget_seconds:g} s and sampled for {log.budget_seconds:g} s"
        )


def _check_launch(manifest: Manifest) -> None:
    """A box is described in a few lines, and only what was sampled ran in one."""
    launch = manifest.launch
    if manifest.sampling is None and (launch is not None or manifest.recovered):
        raise BundleError("launch: nothing was sampled, so nothing was launched or recovered")
    if launch is None:
        return
    if max(len(launch.environment), len(launch.sandbox)) > _MAX_LINES:
        raise BundleError(f"launch: more than {_MAX_LINES} lines")
    limits = launch.limits
    whole = (limits.memory_bytes, limits.processes, limits.open_files, limits.disk_bytes)
    if min(whole) < 1 or max(whole) >= 1 << 63 or (limits.cpus is not None and limits.cpus <= 0):
        raise BundleError("launch.limits: no machine has these")


def _check_track(manifest: Manifest) -> None:
    wanted = TRACKS[manifest.track].images_per_class
    if wanted is not None and manifest.images_per_class != (wanted, wanted):
        raise BundleError(
            f"the {manifest.track} track takes {wanted} images a class, "
            f"the manifest says {_range(manifest.images_per_class)}"
        )


def _check_classes(manifest: Manifest, data: LabeledImages, spec: DatasetSpec) -> None:
    highest = int(data.labels.max())
    if highest >= spec.num_classes:
        raise BundleError(
            f"label {highest} is none of the {spec.num_classes} classes of {spec.name}"
        )
    counts = data.images_per_class(spec.num_classes)
    if manifest.images_per_class != counts:
        raise BundleError(
            f"the manifest says {_range(manifest.images_per_class)} images a class, "
            f"the labels say {_range(counts)}"
        )


def _range(counts: tuple[int, int]) -> str:
    return f"{counts[0]} to {counts[1]}"
