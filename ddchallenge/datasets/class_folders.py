"""``folder:PATH``: any images in class folders, ``train/<class>/*`` and ``val/<class>/*``.

Where there is no ``val``, ``test`` is taken. The classes are the folders, by name; if they are
exactly the ten of ImageWoof, in the order of Gu et al. (CVPR 2024). Images of any size become
squares of one: the shorter side is resized to it, bilinear and antialiased, and the middle is cut
out. Mean and deviation are ImageNet's.

The data set is named after its folder, its image size and its classes, as in
``imagewoof-224px-5f2e11``, and never after where it lies: results go to other machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

from ddchallenge.datasets.files import reading
from ddchallenge.datasets.images import (
    SUFFIXES,
    ImageFile,
    ImageFolder,
    check_link,
    list_images,
    some,
    uniform_side,
)
from ddchallenge.datasets.reader import SPLITS, Split
from ddchallenge.errors import DataError, MissingDataError
from ddchallenge.jsonio import printable
from ddchallenge.records import DatasetSpec

__all__ = ["find", "is_class_folders_name", "open_class_folders", "why_not_the_same"]

# Of ImageNet evaluations, for images that are not all squares of one size.
DEFAULT_SIDE: Final = 224
LARGEST_SIDE: Final = 1024
# Of ImageNet.
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)

_LAYOUT: Final = "train/<class>/* and val/<class>/* (or test/<class>/*)"
_NAME: Final = re.compile(r"([a-z0-9_-]+)-([0-9]+)px-([0-9a-f]{6})")


def open_class_folders(path: Path, image_size: int | None = None) -> DatasetSpec:
    """The data set in ``path``, for :func:`ddchallenge.datasets.load_split`.

    ``image_size`` is the side of the squares; None for the one all images have, if they are
    squares of one size and no larger than 1024, else 224. To find that out takes a look at every
    image, until one differs.

    Raises :class:`MissingDataError` where there are no such folders, :class:`DataError` where
    their classes do not agree, a class has no image, or a link leads out of ``path``.
    """
    root = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolve() would follow links
    spec = DatasetSpec(
        name=root.name,
        class_ids=_classes(root),
        class_names=(),
        image_size=0,
        mean=MEAN,
        std=STD,
        training_images_per_class=0,
        test_images=0,
        folder=root,
    )
    files = {split: _list_files(spec, root, split) for split in SPLITS}
    if image_size is None:
        names = [file.name for split in SPLITS for file in files[split]]
        image_size = uniform_side(names, root)
        if image_size is None or image_size > LARGEST_SIDE:
            image_size = DEFAULT_SIDE
    known = _known_names()
    counts = Counter(file.label for file in files["train"])
    return replace(
        spec,
        name=_name(root, image_size, spec.class_ids),
        class_names=tuple(printable(known.get(name, name)) for name in spec.class_ids),
        image_size=image_size,
        training_images_per_class=min(counts.values()),
        test_images=len(files["test"]),
    )


def is_class_folders_name(name: str) -> bool:
    """Whether a data set of this name is one of class folders, wherever it may lie."""
    return _NAME.fullmatch(name) is not None


def why_not_the_same(wanted: str, spec: DatasetSpec) -> str:
    """What to do where data of the name ``wanted`` was expected, and ``spec`` is another."""
    names = _NAME.fullmatch(wanted), _NAME.fullmatch(spec.name)
    if names[0] is None or names[1] is None:
        return "Give the --dataset it was made for."
    folders, sizes, classes = zip(names[0].groups(), names[1].groups(), strict=True)
    if classes[0] != classes[1]:
        return f"The classes of {spec.folder} are others than those it was made for."
    if sizes[0] != sizes[1]:
        return f"Its images have {sizes[0]} pixels: give --image-size {sizes[0]}."
    return (
        f"The classes are the same. If the images are too, give {spec.folder} the name "
        f"{folders[0]}, or make a link of that name to it."
    )


def find(spec: DatasetSpec) -> ImageFolder:
    """The data set that :func:`open_class_folders` described; opens nothing."""
    if spec.folder is None:
        raise MissingDataError(
            f"Where {spec.name} lies is not known here.\nGive it as --dataset folder:PATH."
        )
    return ImageFolder(spec, spec.folder, "class folders", _list_files, any_size=True)


def _name(root: Path, image_size: int, class_ids: tuple[str, ...]) -> str:
    slug = re.sub(r"[^a-z0-9_]+", "-", root.name.lower())[:40].strip("-") or "images"
    classes = hashlib.sha256(json.dumps(class_ids).encode()).hexdigest()
    return f"{slug}-{image_size}px-{classes[:6]}"


def _known_names() -> dict[str, str]:
    """What people call the classes of ImageWoof and Tiny ImageNet, by WordNet id."""
    from ddchallenge.datasets import DATASETS

    tiny = DATASETS["tinyimagenet"]
    return dict(zip(tiny.class_ids, tiny.class_names, strict=True)) | _imagewoof()


def _imagewoof() -> dict[str, str]:
    """The ten classes of ImageWoof in the order of Gu et al., and their names."""
    table = Path(__file__).parent / "classes" / "imagewoof.txt"
    lines = table.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines)


def _classes(root: Path) -> tuple[str, ...]:
    """The classes in the order of their labels; raises unless both splits have the same."""
    if not root.is_dir():
        reason = "that is a file" if root.exists() else "there is no such folder"
        raise MissingDataError(f"No data set in {root}: {reason}.\nExpected {_LAYOUT} there.")
    below = {split: _folder(root, split) for split in SPLITS}
    found = {split: _folders_in(root, below[split]) for split in SPLITS}
    splits: tuple[tuple[Split, Split], ...] = (("train", "test"), ("test", "train"))
    for split, other in splits:
        alone = sorted(found[split] - found[other])
        if alone and found[other]:
            raise DataError(
                f"{root}: {below[split]}/ has {some(alone)}, {below[other]}/ has not.\n"
                "Every class must have a folder in both."
            )
        if len(found[split]) < 2:
            raise DataError(
                f"{root}: expected a folder for each of at least two classes in {below[split]}/, "
                f"found {len(found[split])}.\nThe layout is {_LAYOUT}."
            )
    imagewoof = tuple(_imagewoof())
    return imagewoof if found["train"] == set(imagewoof) else tuple(sorted(found["train"]))


def _folder(root: Path, split: Split) -> str:
    """What the folder of a split is called in ``root``."""
    candidates = ("train",) if split == "train" else ("val", "test")
    for name in candidates:
        if (root / name).is_dir():
            check_link(root / name, root)
            return name
    raise MissingDataError(
        f"No data set in {root}: it has no folder {' or '.join(candidates)}.\n"
        f"Expected {_LAYOUT} there."
    )


def _folders_in(root: Path, below: str) -> set[str]:
    names = set()
    with reading(root / below), os.scandir(root / below) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                if entry.is_symlink():
                    check_link(root / below / entry.name, root)
                names.add(entry.name)
    return names


def _list_files(spec: DatasetSpec, root: Path, split: Split) -> list[ImageFile]:
    """The images of a split, by label and then by file name."""
    below = _folder(root, split)
    files = []
    for label, name in enumerate(spec.class_ids):
        found = list_images(root, f"{below}/{name}", label, within=root)
        if not found:
            raise DataError(
                f"{root}: class {name!r} has no image in {below}/{name}/.\n"
                f"Images lie directly in it and end in {', '.join(SUFFIXES)}."
            )
        files += found
    return files
