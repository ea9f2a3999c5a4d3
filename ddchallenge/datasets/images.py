"""Image files in class folders: listing them, and decoding them on a few threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ddchallenge.datasets.files import read_bounded, reading
from ddchallenge.datasets.reader import DecodedSplit, Split
from ddchallenge.errors import DataError
from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ddchallenge.records import LabelArray

__all__ = [
    "MAX_IMAGE_BYTES",
    "ImageFile",
    "ImageFolder",
    "decode_images",
    "is_image",
    "labels_of",
    "list_class_folders",
    "list_images",
]

MAX_IMAGE_BYTES = 1 << 20
"""No file of a 64-pixel image comes near this; what does is not read into memory."""

_SUFFIXES = (".png", ".jpg", ".jpeg")
# 1024 images of 64 pixels are 12 MB.
_CHUNK = 1024
# Those that become RGB without a choice: an alpha channel or 16 bits would need one.
_MODES = {"1", "L", "P", "RGB", "CMYK"}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image: its path below the dataset's folder, its label, and when it was what size."""

    name: str
    label: int
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder of image files: a :class:`~ddchallenge.datasets.reader.Reader`.

    ``list_files`` lists the files of a split in the order of the labels.
    """

    spec: DatasetSpec
    path: Path
    form: str
    list_files: Callable[[DatasetSpec, Path, Split], list[ImageFile]]
    check: str = "names, numbers and sizes of the images"

    def stamps(self, split: Split) -> list[str]:
        """Name, size in bytes and time of change of every image."""
        return [
            f"{file.name} {file.label} {file.size} {file.mtime_ns}"
            for file in self.list_files(self.spec, self.path, split)
        ]

    def listed_labels(self, split: Split) -> LabelArray:
        """The labels, from the names of the folders."""
        return labels_of(self.list_files(self.spec, self.path, split))

    def decode(self, split: Split) -> DecodedSplit:
        """Decode every image file."""
        files = self.list_files(self.spec, self.path, split)
        names = [file.name for file in files]
        return DecodedSplit(
            labels_of(files),
            decode_images(
                names,
                lambda name: read_bounded(self.path / name, MAX_IMAGE_BYTES),
                self.path,
                self.spec.image_size,
            ),
        )


def labels_of(files: Sequence[ImageFile]) -> LabelArray:
    """The labels as int64 N."""
    import numpy as np

    return np.fromiter((file.label for file in files), dtype=np.int64, count=len(files))


def is_image(name: str) -> bool:
    """Whether a file name is that of an image; hidden files never are."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def list_images(root: Path, folder: str, label: int) -> list[ImageFile]:
    """The images lying directly in ``root/folder``, by name; raises :class:`DataError`."""
    found = []
    with reading(root / folder), os.scandir(root / folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                status = entry.stat()
                found.append(
                    ImageFile(f"{folder}/{entry.name}", label, status.st_size, status.st_mtime_ns)
                )
    found.sort(key=lambda file: file.name)
    return found


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
            f"{spec.name}; {_some(missing)} missing."
        )
    if unknown:
        raise DataError(f"{folder}: no class of {spec.name} is called {_some(unknown)}.")
    return [
        file
        for label, name in enumerate(spec.class_ids)
        for file in list_images(root, "/".join(filter(None, (split, name, inner))), label)
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def decode_images(
    names: Sequence[str], read: Callable[[str], bytes], root: Path, side: int
) -> Iterator[NDArray[np.uint8]]:
    """Decode the files ``read`` gives, in order, as chunks of uint8 n×3×side×side.

    Raises :class:`DataError` naming the file that is no PNG or JPEG image of that size.
    """
    import numpy as np

    def decode(name: str, out: NDArray[np.uint8]) -> None:
        out[:] = _decode(read(name), f"{root}/{name}", side)

    # Pillow lets go of the interpreter lock while it decodes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), _CHUNK):
            part = names[start : start + _CHUNK]
            chunk = np.empty((len(part), 3, side, side), dtype=np.uint8)
            for _ in pool.map(decode, part, chunk):
                pass
            yield chunk


def _decode(content: bytes, where: str, side: int) -> NDArray[np.uint8]:
    """One image as uint8 3×side×side."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(BytesIO(content), formats=("PNG", "JPEG")) as image:
            # The header says these; nothing is decoded yet.
            size, mode, transparent = image.size, image.mode, "transparency" in image.info
            if size == (side, side) and mode in _MODES and not transparent:
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    # A stranger's bytes in a stranger's decoder: whatever it raises, the file is at fault.
    except Exception as error:
        raise DataError(f"{where} is not a whole PNG or JPEG image: {error}.") from error
    raise DataError(
        f"{where}: expected {side}×{side} pixels, grey or RGB, "
        f"found {size[0]}×{size[1]} of mode {mode}{' with transparency' if transparent else ''}."
    )
