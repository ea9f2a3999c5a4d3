"""``tinyimagenet``: the official layout, as a folder or still in the official zip.

Source: Stanford CS231n. ``train/<wnid>/images/*.JPEG``; ``val/images/*.JPEG`` with their WordNet
ids in ``val/val_annotations.txt`` (tab-separated: file, wnid, and a box that is not needed here).
The challenge tests on the validation set. Labels follow the sorted WordNet ids.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from ddchallenge.datasets.files import check_source, read_bounded, reading
from ddchallenge.datasets.images import (
    MAX_IMAGE_BYTES,
    ImageFile,
    ImageFolder,
    decode_images,
    is_image,
    labels_of,
    list_class_folders,
    list_images,
)
from ddchallenge.datasets.reader import DecodedSplit, Reader, Split
from ddchallenge.errors import DataError
from ddchallenge.records import DatasetSpec

__all__ = ["EXPECTED", "TinyImageNetZip", "find"]

_FOLDER = "tiny-imagenet-200"
_ZIP = "tiny-imagenet-200.zip"
_ANNOTATIONS = "val/val_annotations.txt"

EXPECTED = (f"{_FOLDER}/ (the official layout)", f"{_ZIP} (the official zip)")

# The official annotations have 0.3 MB.
_MAX_ANNOTATIONS = 16 << 20


def find(spec: DatasetSpec, folder: Path) -> Reader | None:
    """Tiny ImageNet in ``folder``, or ``folder`` itself if it has the official layout."""
    if any((folder / _FOLDER / split).is_dir() for split in ("train", "val")):
        return ImageFolder(spec, folder / _FOLDER, "official layout", _list_files)
    if (folder / _ZIP).is_file():
        return TinyImageNetZip(spec, folder / _ZIP)
    if (folder / _ANNOTATIONS).is_file() or any(
        (folder / "train" / wnid).is_dir() for wnid in spec.class_ids
    ):
        return ImageFolder(spec, folder, "official layout", _list_files)
    return None


def _list_files(spec: DatasetSpec, root: Path, split: Split) -> list[ImageFile]:
    if split == "train":
        return list_class_folders(spec, root, "train", "images")
    annotations = root / _ANNOTATIONS
    labels = _annotated_labels(spec, read_bounded(annotations, _MAX_ANNOTATIONS), annotations)
    return _by_label(list_images(root, "val/images", 0), labels, root)


def _annotated_labels(spec: DatasetSpec, annotations: bytes, where: Path) -> dict[str, int]:
    """File name to label; raises :class:`DataError` naming the line that is wrong."""
    numbers = {wnid: label for label, wnid in enumerate(spec.class_ids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(annotations.decode(errors="replace").splitlines(), 1):
        name, wnid = (*line.split("\t"), "")[:2]
        if name in labels:
            raise DataError(f"{where}, line {number}: {name!r} stands there twice.")
        if wnid not in numbers:
            raise DataError(
                f"{where}, line {number}: expected a file name, a tab and one of the "
                f"{spec.num_classes} WordNet ids of {spec.name}, found {line[:80]!r}."
            )
        labels[name] = numbers[wnid]
    return labels


def _by_label(files: list[ImageFile], labels: dict[str, int], root: Path) -> list[ImageFile]:
    """The validation images with their labels; raises unless they are exactly the annotated."""
    names = {_basename(file.name) for file in files}
    if names != labels.keys():
        missing, extra = sorted(labels.keys() - names), sorted(names - labels.keys())
        found = f"{missing[0]} is missing" if missing else f"{extra[0]} is in no line of it"
        raise DataError(
            f"{root}: val/images must hold the {len(labels)} images that {_ANNOTATIONS} names; "
            f"{found} ({len(missing)} missing, {len(extra)} unknown)."
        )
    labelled = [replace(file, label=labels[_basename(file.name)]) for file in files]
    # A stable sort: within a class the order stays that of the names.
    return sorted(labelled, key=lambda file: file.label)


def _basename(name: str) -> str:
    return name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class TinyImageNetZip:
    """The official zip, read without unpacking it: a
    :class:`~ddchallenge.datasets.reader.Reader`.
    """

    spec: DatasetSpec
    path: Path
    form: str = "official zip"
    check: str = "SHA-256 of the zip"

    def stamps(self, split: Split) -> list[str]:
        """Size in bytes and time of change of the zip."""
        del split
        with reading(self.path):
            status = self.path.stat()
        return [f"{self.path.name} {status.st_size} {status.st_mtime_ns}"]

    def listed_labels(self, split: Split) -> None:
        """The zip would have to be read."""
        del split

    def decode(self, split: Split) -> DecodedSplit:
        """Check the zip's SHA-256, then read the split's files out of it and decode them."""
        with reading(self.path), self.path.open("rb") as file:
            check_source(self.spec.sources[0], file, self.path)
            try:
                with ZipFile(file) as archive:
                    files = self._files(archive, split)
                    # As JPEGs a whole training set is 0.2 GB.
                    content = {file.name: self._read(archive, file.name) for file in files}
            except (BadZipFile, EOFError, zlib.error) as error:
                raise DataError(f"{self.path} is no zip archive: {error}.") from error
        names = [file.name for file in files]
        images = decode_images(names, content.__getitem__, self.path, self.spec.image_size)
        return DecodedSplit(labels_of(files), images)

    def _files(self, archive: ZipFile, split: Split) -> list[ImageFile]:
        """The images of a split as :func:`_list_files` lists them in a folder."""
        folders: dict[str, list[str]] = {}
        for name in sorted(archive.namelist()):
            folder, _, file = name.removeprefix(f"{_FOLDER}/").rpartition("/")
            if is_image(file):
                folders.setdefault(folder, []).append(f"{folder}/{file}")
        if split == "train":
            return [
                ImageFile(name, label)
                for label, wnid in enumerate(self.spec.class_ids)
                for name in folders.get(f"train/{wnid}/images", ())
            ]
        labels = _annotated_labels(
            self.spec, self._read(archive, _ANNOTATIONS, _MAX_ANNOTATIONS), self.path
        )
        files = [ImageFile(name, 0) for name in folders.get("val/images", ())]
        return _by_label(files, labels, self.path)

    def _read(self, archive: ZipFile, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        try:
            member = archive.getinfo(f"{_FOLDER}/{name}")
        except KeyError:
            raise DataError(f"{self.path} has no member {_FOLDER}/{name}.") from None
        if member.file_size > limit:
            raise DataError(f"{self.path}: {name} is larger than {limit} bytes.")
        return archive.read(member)
