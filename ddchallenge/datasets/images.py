"""Image files in class folders: listing them, and decoding them on a few threads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddchallenge.datasets.files import check_regular, read_bounded, reading
from ddchallenge.datasets.reader import DecodedSplit, Split
from ddchallenge.errors import DataError
from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    from ddchallenge.records import LabelArray

__all__ = [
    "MAX_IMAGE_BYTES",
    "SUFFIXES",
    "ImageFile",
    "ImageFolder",
    "check_link",
    "decode_images",
    "is_image",
    "labels_of",
    "list_class_folders",
    "list_images",
    "some",
    "uniform_side",
]

MAX_IMAGE_BYTES = 1 << 20
"""No file of a 64-pixel image comes near this; what does is not read into memory."""

SUFFIXES: Final = (".png", ".jpg", ".jpeg")

# Photographs as cameras make them.
_MAX_PHOTO_BYTES: Final = 64 << 20
_MAX_PHOTO_PIXELS: Final = 80_000_000
# 1024 images of 64 pixels are 12 MB; larger ones come in smaller chunks.
_CHUNK: Final = 1024
_CHUNK_BYTES: Final = 32 << 20
_FORMATS: Final = ("PNG", "JPEG")
# Those that become RGB without a choice: an alpha channel or 16 bits would need one.
_MODES = {"1", "L", "P", "RGB", "CMYK"}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image: its path below the dataset's folder, its label, and when it was what size.

    Archives and copies set ``mtime_ns`` to what they like; ``ctime_ns`` is the file system's own.
    """

    name: str
    label: int
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder of image files: a :class:`~ddchallenge.datasets.reader.Reader`.

    ``list_files`` lists the files of a split in the order of the labels. Images of ``any_size``
    are resized and cropped to that of the dataset, others must have it.
    """

    spec: DatasetSpec
    path: Path
    form: str
    list_files: Callable[[DatasetSpec, Path, Split], list[ImageFile]]
    check: str = "names, numbers and sizes of the images"
    any_size: bool = False

    def stamps(self, split: Split) -> list[str]:
        """The place; name, size in bytes and times of change of every image.

        No checksum says what the images show, and another folder may have files of the same
        names, sizes and times.
        """
        return [
            os.path.realpath(self.path),
            *(
                f"{file.name} {file.label} {file.size} {file.mtime_ns} {file.ctime_ns}"
                for file in self.list_files(self.spec, self.path, split)
            ),
        ]

    def listed_labels(self, split: Split) -> LabelArray:
        """The labels, from the names of the folders."""
        return labels_of(self.list_files(self.spec, self.path, split))

    def decode(self, split: Split) -> DecodedSplit:
        """Decode every image file."""
        files = self.list_files(self.spec, self.path, split)
        names = [file.name for file in files]
        limit = _MAX_PHOTO_BYTES if self.any_size else MAX_IMAGE_BYTES
        return DecodedSplit(
            labels_of(files),
            decode_images(
                names,
                lambda name: read_bounded(self.path / name, limit),
                self.path,
                self.spec.image_size,
                any_size=self.any_size,
            ),
        )


def labels_of(files: Sequence[ImageFile]) -> LabelArray:
    """The labels as int64 N."""
    import numpy as np

    return np.fromiter((file.label for file in files), dtype=np.int64, count=len(files))


def is_image(name: str) -> bool:
    """Whether a file name is that of an image; hidden files never are."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def list_images(
    root: Path, folder: str, label: int, *, within: Path | None = None
) -> list[ImageFile]:
    """The images lying directly in ``root/folder``, by name.

    Raises :class:`DataError`, also for what is no file but has the name of an image, and for a
    link that leads out of ``within``, if that is given.
    """
    found = []
    with reading(root / folder), os.scandir(root / folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                if within is not None and entry.is_symlink():
                    check_link(Path(entry.path), within)
                status = entry.stat()
                check_regular(Path(entry.path), status)
                found.append(
                    ImageFile(
                        f"{folder}/{entry.name}",
                        label,
                        status.st_size,
                        status.st_mtime_ns,
                        status.st_ctime_ns,
                    )
                )
    found.sort(key=lambda file: file.name)
    return found


def check_link(path: Path, within: Path) -> None:
    """Raise :class:`DataError` where ``path`` is or goes through a link out of ``within``."""
    with reading(path):
        # Path.resolve answers a link in a circle with another error in each version of Python.
        target, inside = (Path(os.path.realpath(p, strict=True)) for p in (path, within))
    if not target.is_relative_to(inside):
        raise DataError(
            f"{path} is a link out of {within}, to {target}.\n"
            "Put the files themselves there, so that the data set is one folder."
        )


def uniform_side(names: Sequence[str], root: Path) -> int | None:
    """The side of the images ``root/name``, if all are squares of one size; else None.

    Reads headers only. Raises :class:`DataError` naming a file that is no image.
    """
    from PIL import Image

    side = None
    with _large_images():
        for name in names:
            path = root / name
            with _image_errors(f"{root}/{name}"), Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
            if width != height or side not in (None, width):
                return None
            side = width
    return side


def list_class_folders(
    spec: DatasetSpec, root: Path, split: str, inner: str = ""
) -> list[ImageFile]:
    """The images in ``root/split/<class>/inner``, class by class in the order of ``spec``.

    Raises :class:`DataError` naming a class folder that is missing or belongs to no class.
    """
    folder = root / split
    with reading(folder), os.scandir(folder) as entries:
        present = {
            entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
        }
    missing = [name for name in spec.class_ids if name not in present]
    unknown = sorted(present.difference(spec.class_ids))
    if missing:
        raise DataError(
            f"{folder} must have one folder for each of the {spec.num_classes} classes of "
            f"{spec.name}; {some(missing)} missing."
        )
    if unknown:
        raise DataError(f"{folder}: no class of {spec.name} is called {some(unknown)}.")
    return [
        file
        for label, name in enumerate(spec.class_ids)
        for file in list_images(root, "/".join(filter(None, (split, name, inner))), label)
    ]


def some(names: Sequence[str]) -> str:
    """The first three of several names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def decode_images(
    names: Sequence[str],
    read: Callable[[str], bytes],
    root: Path,
    side: int,
    *,
    any_size: bool = False,
) -> Iterator[NDArray[np.uint8]]:
    """Decode the files ``read`` gives, in order, as chunks of uint8 n×3×side×side.

    Images of ``any_size`` are resized and cropped; see :func:`_middle_square`. Raises
    :class:`DataError` naming the file that is no PNG or JPEG image of the size.
    """
    import numpy as np

    def decode(name: str, out: NDArray[np.uint8]) -> None:
        out[:] = _decode(read(name), f"{root}/{name}", side, any_size=any_size)

    step = max(1, min(_CHUNK, _CHUNK_BYTES // (3 * side * side)))
    # Pillow lets go of the interpreter lock while it decodes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), step):
            part = names[start : start + step]
            chunk = np.empty((len(part), 3, side, side), dtype=np.uint8)
            with _large_images():
                for _ in pool.map(decode, part, chunk):
                    pass
            yield chunk


def _decode(content: bytes, where: str, side: int, *, any_size: bool) -> NDArray[np.uint8]:
    """One image as uint8 3×side×side."""
    import numpy as np
    from PIL import Image

    with _image_errors(where), Image.open(BytesIO(content), formats=_FORMATS) as image:
        problem = _problem(image, side, any_size=any_size)
        if not problem:
            square = _middle_square(image.convert("RGB"), side)
            return np.asarray(square).transpose(2, 0, 1)
    raise DataError(f"{where}: {problem}.")


def _problem(image: PIL.Image.Image, side: int, *, any_size: bool) -> str:
    """Why an image cannot be taken, or nothing; its header says, nothing is decoded.

    Neither the image nor what it is resized to may be larger than any photograph.
    """
    width, height = image.size
    transparent = "transparency" in image.info
    if any_size:
        expected, fits = f"up to {_MAX_PHOTO_PIXELS:,}", width * height <= _MAX_PHOTO_PIXELS
    else:
        expected, fits = f"{side}×{side}", image.size == (side, side)
    if not fits or image.mode not in _MODES or transparent:
        return (
            f"expected {expected} pixels, grey or RGB, found {width}×{height} of mode "
            f"{image.mode}{' with transparency' if transparent else ''}"
        )
    short, long = sorted(image.size)
    if side * side * long > _MAX_PHOTO_PIXELS * short:
        return (
            f"the longer side may be up to {_MAX_PHOTO_PIXELS // side**2:,} times the shorter "
            f"one, which becomes {side} pixels; found {width}×{height}"
        )
    return ""


def _middle_square(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """The shorter side resized to ``side``, and the middle of the longer one.

    Sizes and offsets are rounded as torchvision's Resize and CenterCrop do.
    """
    from PIL import Image

    if image.size == (side, side):
        return image
    short, long = sorted(image.size)
    longer = int(side * long / short)
    wide = image.width > image.height
    image = image.resize((longer, side) if wide else (side, longer), Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


@contextmanager
def _large_images() -> Iterator[None]:
    """Without Pillow's warning of large images: those that are too large are refused here.

    Warnings are turned off for all threads at once, so not within those of the decoding.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@contextmanager
def _image_errors(where: str) -> Iterator[None]:
    """A stranger's bytes in a stranger's decoder: whatever it raises, the file is at fault."""
    from PIL import Image

    try:
        yield
    except Image.DecompressionBombError as error:
        raise DataError(f"{where} is larger than any photograph: {error}") from error
    except Exception as error:
        raise DataError(f"{where} is not a whole PNG or JPEG image: {error}.") from error
