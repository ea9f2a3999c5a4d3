"""What is there of a dataset: at a glance, or verified to the last image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddchallenge.datasets import locate
from ddchallenge.datasets.cache import SplitDigest
from ddchallenge.datasets.reader import SPLITS, Reader, Split, check_labels
from ddchallenge.errors import DataError, MissingDataError
from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    from ddchallenge.records import LabelArray

__all__ = ["Availability", "SplitFound", "Verification", "availability", "survey", "verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFound:
    """The images of a split. ``digest`` is that of ``DatasetSplit``, or None if not decoded."""

    split: Split
    images: int
    images_per_class: tuple[int, int]
    official_images_per_class: int
    digest: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every class has the official number."""
        return self.images_per_class[0] >= self.official_images_per_class

    def __str__(self) -> str:
        """As in "20000 images: 100 of 500 training images a class"."""
        low, high = self.images_per_class
        each = f"{low}" if low == high else f"{low} to {high}"
        of = "" if self.complete else f" of {self.official_images_per_class}"
        kind = "training" if self.split == "train" else "test"
        return f"{self.images} images: {each}{of} {kind} images a class"


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """What a glance at a dataset's folder shows.

    ``path`` and ``form`` are None where it is missing. ``train`` and ``test`` are None where they
    cannot be used; ``problem`` then says why, for people, and is empty otherwise. The numbers of
    images in an archive are the official ones: it was not opened.
    """

    dataset: str
    path: Path | None
    form: str | None
    train: SplitFound | None
    test: SplitFound | None
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What :func:`verify` found right. ``check`` says how authentic the files are known to be."""

    dataset: str
    path: Path
    form: str
    check: str
    train: SplitFound
    test: SplitFound

    def __str__(self) -> str:
        """Four lines for people."""
        return (
            f"{self.dataset}: {self.path} ({self.form})\n"
            f"  train  {self.train}\n  test   {self.test}\n"
            f"  checked: {self.check}; every image decodes"
        )


def survey(spec: DatasetSpec, reader: Reader, split: Split) -> SplitFound:
    """The images of a split by their names; raises :class:`DataError` if it cannot be used."""
    import numpy as np

    labels = reader.listed_labels(split)
    if labels is None:
        each = spec.training_images_per_class
        images = each * spec.num_classes if split == "train" else spec.test_images
        labels = np.arange(images, dtype=np.int64) % spec.num_classes
    check_labels(spec, split, labels, reader.path)
    return _found(spec, split, labels)


def availability(spec: DatasetSpec, folder: Path) -> Availability:
    """What is in ``folder``; see :func:`ddchallenge.datasets.availability`."""
    try:
        reader = locate.find(spec, folder)
    except MissingDataError as error:
        return Availability(
            dataset=spec.name, path=None, form=None, train=None, test=None, problem=str(error)
        )
    found: dict[Split, SplitFound] = {}
    problems = []
    for split in SPLITS:
        try:
            found[split] = survey(spec, reader, split)
        except DataError as error:
            problems.append(str(error))
    return Availability(
        dataset=spec.name,
        path=reader.path,
        form=reader.form,
        train=found.get("train"),
        test=found.get("test"),
        problem="\n".join(problems),
    )


def verify(
    spec: DatasetSpec, folder: Path, on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Decode everything; see :func:`ddchallenge.datasets.verify`."""
    reader = locate.find(spec, folder)
    total = sum(survey(spec, reader, split).images for split in SPLITS)
    done = 0
    found: dict[Split, SplitFound] = {}
    for split in SPLITS:
        decoded = reader.decode(split)
        check_labels(spec, split, decoded.labels, reader.path)
        digest = SplitDigest(spec, split, decoded.labels)
        for chunk in decoded.chunks:
            digest.update(chunk.data)
            done += len(chunk)
            if on_progress:
                on_progress(done, total)
        found[split] = _found(spec, split, decoded.labels, digest.hexdigest())
    return Verification(
        dataset=spec.name,
        path=reader.path,
        form=reader.form,
        check=reader.check,
        train=found["train"],
        test=found["test"],
    )


def _found(
    spec: DatasetSpec, split: Split, labels: LabelArray, digest: str | None = None
) -> SplitFound:
    import numpy as np

    counts = np.bincount(labels, minlength=spec.num_classes)
    low, high = int(counts.min()), int(counts.max())
    return SplitFound(
        split=split,
        images=len(labels),
        images_per_class=(low, high),
        # A test set that is accepted at all is complete.
        official_images_per_class=spec.training_images_per_class if split == "train" else low,
        digest=digest,
    )
