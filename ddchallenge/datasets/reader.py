"""What every form of a dataset can do: say what its files are, and decode a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from ddchallenge.errors import DataError
from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ddchallenge.records import LabelArray

__all__ = ["SPLITS", "DecodedSplit", "Reader", "Split", "check_labels"]

Split: TypeAlias = Literal["train", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "test")


@dataclass(frozen=True, slots=True)
class DecodedSplit:
    """A split on its way from the files to the cache.

    ``labels`` is int64 N. ``chunks`` yields the images once, in the order of the labels, as
    C-contiguous uint8 n×3×S×S arrays: in pieces, because the whole of a training set need not
    fit into memory. Taking a chunk may raise :class:`DataError`.
    """

    labels: LabelArray
    chunks: Iterator[NDArray[np.uint8]]


class Reader(Protocol):
    """A dataset found in one of its forms. Making one opens nothing."""

    @property
    def path(self) -> Path:
        """The folder or the archive."""

    @property
    def form(self) -> str:
        """What kind of thing lies there, in two or three words for a table."""

    @property
    def check(self) -> str:
        """How authentic :meth:`decode` makes sure that the files are, in a few words."""

    def stamps(self, split: Split) -> list[str]:
        """Lines that differ wherever the images of a split could: of its files, and of their place
        unless :meth:`decode` makes sure of what is in them.

        Raises :class:`DataError` where a listing shows already that the split is unusable.
        """

    def listed_labels(self, split: Split) -> LabelArray | None:
        """The labels, where names alone say them; None where a file would have to be opened."""

    def decode(self, split: Split) -> DecodedSplit:
        """The split, ordered by label and then by file name.

        Raises :class:`DataError` where the files are damaged or not the official ones.
        """


def check_labels(spec: DatasetSpec, split: Split, labels: LabelArray, path: Path) -> None:
    """Raise :class:`DataError` unless a split with these labels may be used.

    A test set must be complete. A training set may be smaller than the official one, but every
    class must have an image and none more than the official number.
    """
    import numpy as np

    counts = np.bincount(labels, minlength=spec.num_classes)
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    problem = None
    if not counts[smallest]:
        problem = f"class {spec.class_ids[smallest]!r} has no image"
    elif split == "test" and len(labels) != spec.test_images:
        problem = f"the test set must have all {spec.test_images} images, found {len(labels)}"
    # The test sets that are downloaded have the same number in every class.
    elif split == "test" and spec.sources and counts[smallest] != counts[largest]:
        problem = (
            f"every class must have {spec.test_images // spec.num_classes} test images, but "
            f"{spec.class_ids[smallest]!r} has {counts[smallest]} "
            f"and {spec.class_ids[largest]!r} has {counts[largest]}"
        )
    elif split == "train" and spec.sources and counts[largest] > spec.training_images_per_class:
        problem = (
            f"class {spec.class_ids[largest]!r} has {counts[largest]} training images, more than "
            f"the official {spec.training_images_per_class}"
        )
    if problem:
        advice = (
            f"\n`ddchallenge data fetch {spec.name} --data-dir DIR` downloads the official data."
            if spec.sources
            else ""
        )
        raise DataError(f"{path}: {problem}.{advice}")
