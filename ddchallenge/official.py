"""The challenge's own tensor files: ``{dataset}.pt`` in and out.

A bare float tensor N×3×S×S, normalised, in class-major order. It is a pickle in a zip, so it is
read as a stranger's file: nothing in it is executed, and nothing large is made before sizes agree.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ddchallenge.atomic import atomic_file
from ddchallenge.bundle import normalised_chunks, tensor_digest
from ddchallenge.errors import BundleError
from ddchallenge.records import Bundle, DatasetSpec, LabeledImages

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "OFFICIAL",
    "ImportedImages",
    "OfficialExport",
    "displayable",
    "export_official",
    "import_official",
]

_Statistics: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]

OFFICIAL: Final = "official"

# What else a float file may hold: value = (pixel / 255 - mean) / std. The statistics are those
# that circulate; the second CIFAR-10 line is what rank 2 of the challenge used for CIFAR-100.
_OTHERS: Final[dict[str, _Statistics]] = {
    "none: values 0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none: values 0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "none: values -1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10 statistics": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar10 statistics (std 0.247)": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100 statistics": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet statistics": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_UNKNOWN: Final = "unknown"

# Enough to tell one grid of 256 values from another, whatever the size of the file.
_SAMPLED_IMAGES: Final = 256
_MAX_PICKLE_BYTES: Final = 1 << 20

# What a tensor, or a list or dict of tensors, is rebuilt from. torch's own list is longer and has
# functions that take memory (bytearray) or make tensors without any (sparse, meta).
_HARMLESS: Final = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedImages:
    """What a tensor file held.

    ``normalisation`` is what the values were recognised as, ``"pixels"`` for uint8. ``notes`` say,
    for people, what was assumed or converted, and what is probably a mistake.
    """

    data: LabeledImages
    normalisation: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialExport:
    """A file written by :func:`export_official`.

    ``digest`` is :func:`ddchallenge.bundle.tensor_digest` of what is in it; ``dropped`` images of
    larger classes were left out so that every class has ``images_per_class``.
    """

    path: Path
    digest: str
    images: int
    images_per_class: int
    dropped: int


def import_official(
    file: Path, spec: DatasetSpec, labels_file: Path | None = None
) -> ImportedImages:
    """Reads an official tensor file.

    The images are a bare tensor N×3×S×S: float32, kept bit for bit and never normalised here;
    float16, bfloat16 or float64, converted to float32; or uint8 pixels. ``labels_file`` holds a
    bare integer tensor of N labels; without it the images are taken as class-major with an equal
    number a class.

    Raises :class:`BundleError` for anything else: another object, a wrong shape, NaN or infinite
    values, labels out of range, a file that is cut off or asks for code to be run.
    """
    import numpy as np
    import torch

    images = _load_tensor(file, "images")
    size = spec.image_size
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or not len(images):
        raise BundleError(
            f"Expected images of shape N×3×{size}×{size} for {spec.name}, "
            f"found {_describe(images)} in {file}."
        )
    notes: list[str] = []
    if images.dtype not in (torch.uint8, torch.float32):
        if not images.dtype.is_floating_point:
            raise BundleError(
                f"Expected float or uint8 images, found {_describe(images)} in {file}.\n"
                "Save pixels as torch.uint8, normalised values as torch.float32."
            )
        notes.append(f"The values were {_dtype(images)} and are now float32.")
    if labels_file is None:
        labels = _implied_labels(len(images), spec, file)
        notes.append(
            f"Labels were taken from the order: {len(images) // spec.num_classes} images of each "
            f"of {spec.num_classes} classes, class after class."
        )
    else:
        labels = _load_labels(labels_file, len(images), spec)
    if images.dtype == torch.uint8:
        data = LabeledImages(images.contiguous().numpy(), labels)
        return ImportedImages(data=data, normalisation="pixels", notes=tuple(notes))
    epsilon = torch.finfo(images.dtype).eps
    data = LabeledImages(images.to(torch.float32).contiguous().numpy(), labels)
    with np.errstate(over="ignore"):  # values near the end of float32 are strange, not fatal
        normalisation = _recognise(data.images, spec, epsilon)
    if normalisation != OFFICIAL:
        notes.append(_warning(normalisation, data.images, spec))
    return ImportedImages(data=data, normalisation=normalisation, notes=tuple(notes))


def export_official(bundle: Bundle, spec: DatasetSpec, out_dir: Path) -> OfficialExport:
    """Writes ``{dataset}.pt``: a bare float32 tensor, class-major, equally many images a class.

    uint8 pixels are normalised, float32 values are written unchanged. The images are the first of
    each class, in the order of the bundle.

    Raises :class:`BundleError` if a class has no image, :class:`OutputError` if the file exists or
    cannot be written, :class:`StorageError` for a full or failing disk.
    """
    import numpy as np
    import torch

    labels = bundle.data.labels
    fewest, _ = bundle.data.images_per_class(spec.num_classes)
    if not fewest:
        empty = np.flatnonzero(np.bincount(labels, minlength=spec.num_classes) == 0)
        raise BundleError(
            f"{len(empty)} of {spec.num_classes} classes have no image, the first is "
            f"{spec.class_names[int(empty[0])]}.\n"
            "An official file has the same number for every class, so it cannot be written."
        )
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(spec.num_classes))
    kept = order[(starts[:, None] + np.arange(fewest)).reshape(-1)]
    values = np.empty((len(kept), *bundle.data.images.shape[1:]), dtype=np.float32)
    done = 0
    for chosen in np.array_split(kept, max(1, len(kept) // 1024)):
        for chunk in normalised_chunks(spec, bundle.data.images[chosen]):
            values[done : done + len(chunk)] = chunk
            done += len(chunk)
    path = out_dir / f"{spec.name}.pt"
    with atomic_file(path, overwrite=False) as temporary, temporary.open("wb") as file:
        try:
            torch.save(torch.from_numpy(values), file)
        except RuntimeError as error:
            # torch hides what the system said behind a failure to finish its archive.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    return OfficialExport(
        path=path,
        digest=tensor_digest(spec, LabeledImages(values, labels[kept])),
        images=len(kept),
        images_per_class=fewest,
        dropped=len(labels) - len(kept),
    )


def displayable(images: NDArray[Any], spec: DatasetSpec, normalisation: str) -> NDArray[np.uint8]:
    """uint8 pixels to look at, of uint8 or float32 images N×3×S×S.

    Undoes the normalisation a file was recognised as. Values of an unknown one are taken as
    official if they reach no further than twice the official range, else stretched to 0..255.
    """
    import numpy as np

    if images.dtype == np.uint8:
        return images
    known = {OFFICIAL: (spec.mean, spec.std), **_OTHERS}
    mean, std = (_column(values) for values in known.get(normalisation, known[OFFICIAL]))
    pixels = images * std + mean
    if normalisation not in known and len(pixels):
        low, high = float(pixels.min()), float(pixels.max())
        if low < -0.5 or high > 1.5:
            span = (high - low) or 1.0
            pixels = pixels / span - low / span
    return (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------ reading


def _load_tensor(path: Path, what: str) -> torch.Tensor:
    """The bare tensor in a file, still mapped from it and known to be no larger."""
    import torch

    _check_archive(path, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own ways of storing things
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    # A damaged or hostile file can make torch fail in any way; none of them is our fault.
    except Exception as error:
        first_line = str(error).strip().split("\n", 1)[0][:200]
        if "weights_only" in first_line:  # torch goes on with advice nobody should follow
            first_line = "it holds more than plain tensors"
        raise BundleError(f"{path} is not a usable tensor file: {first_line}") from None
    if not isinstance(content, torch.Tensor):
        raise BundleError(
            f"Expected {path} to hold the {what} as one bare tensor, found {_describe(content)}.\n"
            "Save the tensor itself: torch.save(images, file)."
        )
    tensor = content.detach()
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise BundleError(f"Expected plain dense {what} in {path}, found {_describe(content)}.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BundleError(
            f"{path} claims {_describe(tensor)}, {tensor.numel() * tensor.element_size()} bytes, "
            f"but holds {tensor.untyped_storage().nbytes()} (an expanded tensor?).\n"
            "Save it with torch.save(images.contiguous(), file)."
        )
    return tensor


def _check_archive(path: Path, what: str) -> None:
    """Refuse what torch.save does not write, before torch sees it.

    No compressed entries, so that a small file cannot become a large one; a small pickle that asks
    for nothing but tensors, so that the message can name what else it asks for.
    """
    if not path.is_file():
        raise BundleError(f"There is no file {path}; expected a tensor file with the {what}.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            total = sum(entry.file_size for entry in entries)
            if packed or total > path.stat().st_size:
                raise BundleError(f"{path} is compressed; torch.save writes files that are not.")
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            names = {entry.filename for entry in entries}
            if len(pickles) != 1 or len(names) != len(entries):
                raise BundleError(f"{path} is a zip archive, but not one of torch.save.")
            if pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise BundleError(f"{path} holds far more than one tensor.")
            asked = _globals(archive.read(pickles[0]))
    # RuntimeError: entries that are said to be encrypted.
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError) as error:
        raise BundleError(
            f"{path} is not a whole file of torch.save ({error}).\n"
            "It may be cut off, or older than PyTorch 1.6: load it there and save it again."
        ) from None
    strange = sorted(name for name in asked if not _is_harmless(name))
    if strange:
        listed = ", ".join(name.replace(" ", ".")[:60] for name in strange[:3])
        raise BundleError(
            f"{path} asks for {listed}, which a file of plain tensors does not need.\n"
            "Nothing of it was executed. Save the bare tensor: torch.save(images, file)."
        )


def _globals(pickle: bytes) -> set[str]:
    """Every name a pickle would look up, as "module name". Reads it, does not run it."""
    names: set[str] = set()
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument))
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            names.add(opcode.name)
    return names


def _is_harmless(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    storage = module == "torch" and attribute.isalnum() and attribute.endswith("Storage")
    return storage or name in _HARMLESS


def _load_labels(path: Path, count: int, spec: DatasetSpec) -> NDArray[np.int64]:
    import numpy as np
    import torch

    labels = _load_tensor(path, "labels")
    integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not integer or tuple(labels.shape) != (count,):
        raise BundleError(
            f"Expected {count} integer labels, one for each image, "
            f"found {_describe(labels)} in {path}."
        )
    values: NDArray[np.int64] = labels.to(torch.int64).contiguous().numpy().copy()
    wrong = np.flatnonzero((values < 0) | (values >= spec.num_classes))
    if len(wrong):
        raise BundleError(
            f"Expected labels 0 to {spec.num_classes - 1} for {spec.name}, "
            f"found {values[wrong[0]]} for image {wrong[0]} in {path}."
        )
    return values


def _implied_labels(count: int, spec: DatasetSpec, file: Path) -> NDArray[np.int64]:
    import numpy as np

    if count % spec.num_classes:
        raise BundleError(
            f"{file} holds {count} images, which is not the same number for each of the "
            f"{spec.num_classes} classes of {spec.name}.\n"
            "Give the labels as a tensor file of their own: --labels FILE, or in submission.toml\n"
            'labels = "labels.pt" where a command writes the images.'
        )
    classes = np.arange(spec.num_classes, dtype=np.int64)
    return np.repeat(classes, count // spec.num_classes)


def _describe(found: object) -> str:
    import torch

    if isinstance(found, torch.Tensor):
        shape = "×".join(map(str, found.shape)) or "one value"
        kind = "" if found.layout is torch.strided else f"{found.layout} "
        return f"a {kind}{_dtype(found)} tensor of shape {shape}"
    if isinstance(found, dict):
        keys = ", ".join(repr(key)[:40] for key in list(found)[:5])
        return f"a dict with keys {keys}{', ...' if len(found) > 5 else ''}" if keys else "a dict"
    if isinstance(found, list | tuple):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------ normalisation


def _recognise(images: NDArray[Any], spec: DatasetSpec, epsilon: float) -> str:
    """What normalisation float32 images N×3×S×S have; ``epsilon`` is that of the file's dtype.

    Pixels of 8 bits leave a grid of 256 values a channel, which differs from one set of
    statistics to the next. Optimised images are on no grid; for them the range decides.
    """
    import numpy as np

    known = {OFFICIAL: (spec.mean, spec.std), **_OTHERS}
    some = images[:: max(1, len(images) // _SAMPLED_IMAGES)].astype(np.float64)
    for name, (mean, std) in known.items():
        pixels = (some * _column(std) + _column(mean)) * 255
        rounding = 255 * epsilon * float(np.abs(some * _column(std)).max()) + 1e-3
        if rounding > 0.2:
            continue  # the dtype is too coarse to show the grid
        off = np.abs(pixels - pixels.round().clip(0, 255)) > rounding
        if off.mean() < 1e-3:
            return name

    low, high = _range(images)
    lowest, highest = float(low.min()), float(high.max())
    if lowest >= 0 and highest <= 1:
        return "none: values 0..1"
    if lowest >= 0 and 8 < highest <= 255:
        return "none: values 0..255"
    if -1 <= lowest < -0.98 and 0.98 < highest <= 1:
        return "none: values -1..1"
    for name, (mean, std) in known.items():
        bottom, top = (0 - _column(mean)) / _column(std), (1 - _column(mean)) / _column(std)
        slack = 0.01 + 4 * epsilon
        inside = bool((low >= bottom - slack).all() and (high <= top + slack).all())
        reached = bool((low <= bottom + slack).all() and (high >= top - slack).all())
        # Other statistics only where every channel ends exactly at their black and white.
        if inside and (reached or name == OFFICIAL):
            return name
    return _UNKNOWN


def _warning(normalisation: str, images: NDArray[Any], spec: DatasetSpec) -> str:
    wanted = f"the evaluator expects mean {spec.mean}, std {spec.std}, and normalises nothing"
    if normalisation.startswith("none"):
        text = f"The images look unnormalised ({normalisation.removeprefix('none: ')}); {wanted}."
    elif normalisation == _UNKNOWN:
        low, high = (float(ends.flat[0]) for ends in _range(images.reshape(1, 1, -1)))
        text = (
            f"The values, {low:.3g} to {high:.3g}, are not normalised pixels of {spec.name}; "
            f"{wanted}. Optimised images may well be so."
        )
    else:
        text = f"The images look normalised with {normalisation}; {wanted}."
    return text + "\nThey are kept and scored exactly as they are."


def _range(images: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Minimum and maximum of each channel, shaped to broadcast over images."""
    axes = (0, *range(2, images.ndim))
    return images.min(axis=axes, keepdims=True)[0], images.max(axis=axes, keepdims=True)[0]


def _column(values: tuple[float, float, float]) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray(values, dtype=np.float32)[:, None, None]
