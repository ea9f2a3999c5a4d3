"""``cifar100``: the official python archive, packed or unpacked, or class folders of images.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the format
described at https://www.cs.toronto.edu/~kriz/cifar.html: a gzipped tar with the pickles ``train``,
``test`` and ``meta``, written by Python 2. A row of ``data`` is 1024 red, 1024 green and 1024 blue
pixels, row by row; ``fine_labels`` number the alphabetically ordered fine classes.

A pickle can run any program. The official ones are opened only after the checksum of the whole
archive (or of the unpacked file) has matched, and then by an unpickler that knows numpy arrays
and nothing else.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

from ddchallenge.datasets.files import check_source, read_bounded, reading
from ddchallenge.datasets.images import ImageFolder, list_class_folders
from ddchallenge.datasets.reader import DecodedSplit, Reader, Split
from ddchallenge.errors import DataError
from ddchallenge.records import DatasetSpec

__all__ = ["EXPECTED", "OFFICIAL_MD5", "CifarArchive", "CifarPickles", "find"]

_ARCHIVE = "cifar-100-python.tar.gz"
_UNPACKED = "cifar-100-python"
_CLASS_FOLDERS = "cifar-100"

EXPECTED = (
    f"{_ARCHIVE} (the official archive)",
    f"{_UNPACKED}/ (the same, unpacked)",
    f"{_CLASS_FOLDERS}/{{train,test}}/<class>/*.png",
)

OFFICIAL_MD5: Final[dict[str, str]] = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
"""Of the unpacked files; the same sums torchvision checks."""

# The largest, train, has 155 MB.
_MAX_MEMBER = 256 << 20


def find(spec: DatasetSpec, folder: Path) -> Reader | None:
    """CIFAR-100 in ``folder``, or ``folder`` itself if it is one of the two unpacked forms.

    Official files, which can be authenticated, come before class folders, which cannot.
    """
    for candidate in (folder / _UNPACKED, folder):
        if all((candidate / name).is_file() for name in OFFICIAL_MD5):
            return CifarPickles(spec, candidate)
    if (folder / _ARCHIVE).is_file():
        return CifarArchive(spec, folder / _ARCHIVE)
    splits = ("train", "test")
    if any((folder / _CLASS_FOLDERS / split).is_dir() for split in splits):
        return _class_folders(spec, folder / _CLASS_FOLDERS)
    if any((folder / split / name).is_dir() for split in splits for name in spec.class_ids):
        return _class_folders(spec, folder)
    return None


def _class_folders(spec: DatasetSpec, path: Path) -> ImageFolder:
    return ImageFolder(spec, path, "class folders", list_class_folders)


@dataclass(frozen=True, slots=True)
class CifarArchive:
    """The official archive: a :class:`~ddchallenge.datasets.reader.Reader`."""

    spec: DatasetSpec
    path: Path
    form: str = "official archive"
    check: str = "SHA-256 of the archive"

    def stamps(self, split: Split) -> list[str]:
        """Size in bytes and time of change of the archive."""
        del split
        return [_stamp(self.path)]

    def listed_labels(self, split: Split) -> None:
        """The archive would have to be read."""
        del split

    def decode(self, split: Split) -> DecodedSplit:
        """Check the archive's SHA-256, then read the split out of it."""
        with reading(self.path), self.path.open("rb") as file:
            check_source(self.spec.sources[0], file, self.path)
            try:
                with tarfile.open(fileobj=file, mode="r:gz") as archive:
                    content = {
                        name: _member(archive, f"{_UNPACKED}/{name}", self.path)
                        for name in ("meta", split)
                    }
            except (tarfile.TarError, EOFError, zlib.error) as error:
                raise DataError(f"{self.path} is no gzipped tar archive: {error}.") from error
        return _decode(self.spec, split, content.__getitem__, self.path)


@dataclass(frozen=True, slots=True)
class CifarPickles:
    """The unpacked official files: a :class:`~ddchallenge.datasets.reader.Reader`."""

    spec: DatasetSpec
    path: Path
    form: str = "official files, unpacked"
    check: str = "MD5 of every file"

    def stamps(self, split: Split) -> list[str]:
        """Size in bytes and time of change of the two files needed."""
        return [_stamp(self.path / name) for name in ("meta", split)]

    def listed_labels(self, split: Split) -> None:
        """The files would have to be read."""
        del split

    def decode(self, split: Split) -> DecodedSplit:
        """Check the MD5 of the files, then read the split."""

        def read(name: str) -> bytes:
            content = read_bounded(self.path / name, _MAX_MEMBER)
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found != OFFICIAL_MD5[name]:
                raise DataError(
                    f"{self.path / name} is damaged or is not the official file; it was not "
                    f"opened.\nExpected MD5 {OFFICIAL_MD5[name]}, found {found}."
                )
            return content

        return _decode(self.spec, split, read, self.path)


def _stamp(path: Path) -> str:
    with reading(path):
        status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"


def _member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    try:
        member = archive.getmember(name)
    except KeyError:
        raise DataError(f"{path} has no member {name}.") from None
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None or member.size > _MAX_MEMBER:
        raise DataError(f"{path}: {name} is no file of less than {_MAX_MEMBER >> 20} MiB.")
    with stream:
        return stream.read()


def _decode(
    spec: DatasetSpec, split: Split, read: Callable[[str], bytes], path: Path
) -> DecodedSplit:
    import numpy as np

    names = _unpickle(read("meta"), f"{path}: meta").get(b"fine_label_names")
    if names != [name.encode() for name in spec.class_ids]:
        raise DataError(f"{path}: meta does not list the {spec.num_classes} classes in order.")
    content = _unpickle(read(split), f"{path}: {split}")
    pixels, labels, files = (content.get(key) for key in (b"data", b"fine_labels", b"filenames"))
    side = spec.image_size
    if not (
        isinstance(labels, list)
        and isinstance(files, list)
        and isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.shape == (len(labels), 3 * side * side)
        and len(files) == len(labels)
        and all(type(label) is int and 0 <= label < spec.num_classes for label in labels)
        and all(isinstance(name, bytes) for name in files)
    ):
        raise DataError(f"{path}: {split} does not hold images, labels and names as described.")
    order = sorted(range(len(labels)), key=lambda i: (labels[i], files[i]))
    images = np.ascontiguousarray(pixels[order].reshape(-1, 3, side, side))
    return DecodedSplit(np.array(labels, dtype=np.int64)[order], iter([images]))


class _ArrayUnpickler(pickle.Unpickler):
    """Knows dicts, lists, numbers, strings and numpy arrays; every other global is refused."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        # Python 2 wrote these files: its strings are bytes.
        super().__init__(file, encoding="bytes")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        # numpy._core in numpy 2, numpy.core before; the function itself is asked of an array.
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        try:
            return allowed[module, name]
        except KeyError:
            raise DataError(
                f"{self._where} wants to load {module}.{name}, which image data has no need of; "
                "it was refused."
            ) from None


def _unpickle(content: bytes, where: str) -> dict[Any, Any]:
    try:
        found = _ArrayUnpickler(BytesIO(content), where).load()
    except DataError:
        raise
    # A broken pickle can raise nearly anything.
    except Exception as error:
        raise DataError(f"{where} is no pickle of the described format: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected a dict, found {type(found).__name__}.")
    return found
