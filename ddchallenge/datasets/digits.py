"""``digits``: the 1797 scans that scikit-learn carries.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its test
part), 8×8 pixels of 0..16, each the number of inked pixels in a 4×4 block.

A pixel v becomes round(v·255/16), halves upwards, in three equal channels. The split is 1297
training and 500 test images and depends on nothing but the order of the scans: see
:func:`test_mask`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ddchallenge.datasets.reader import DecodedSplit, Split
from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ddchallenge.records import LabelArray

__all__ = ["EXPECTED", "Digits", "find", "test_mask"]

EXPECTED = ("scikit-learn",)


def find(spec: DatasetSpec, folder: Path) -> Digits:
    """The digits, which are always there, whatever the folder."""
    del folder
    return Digits(spec)


@dataclass(frozen=True, slots=True)
class Digits:
    """scikit-learn's digits: a :class:`~ddchallenge.datasets.reader.Reader`."""

    spec: DatasetSpec
    form: str = "part of scikit-learn"
    check: str = "number of scans"

    @property
    def path(self) -> Path:
        """The installed scikit-learn package."""
        from importlib.util import find_spec

        found = find_spec("sklearn")
        return Path(found.origin).parent if found and found.origin else Path("sklearn")

    def stamps(self, split: Split) -> list[str]:
        """The version of scikit-learn."""
        del split
        return [f"scikit-learn {version('scikit-learn')}"]

    def listed_labels(self, split: Split) -> LabelArray:
        """The labels; the scans are small enough to be read for that."""
        return self.decode(split).labels

    def decode(self, split: Split) -> DecodedSplit:
        """The scans of a split, by label and then in scikit-learn's order."""
        import numpy as np
        from sklearn.datasets import load_digits

        scans = load_digits()
        labels = scans.target.astype(np.int64)
        chosen = np.flatnonzero(test_mask(labels, self.spec.test_images) == (split == "test"))
        chosen = chosen[np.argsort(labels[chosen], kind="stable")]
        pixels = (scans.images[chosen].astype(np.int64) * 255 + 8) // 16
        images = np.repeat(pixels.astype(np.uint8)[:, None], 3, axis=1)
        return DecodedSplit(labels[chosen], iter([images]))


def test_mask(labels: LabelArray, test_images: int) -> NDArray[np.bool_]:
    """Which of N labelled images are for testing: bool N with ``test_images`` true.

    Stratified: each class gives its share of ``test_images``, rounded by the largest remainder
    (ties: the lower label). Within a class of n they are spread evenly over the order in which
    they are stored, at positions floor((2j + 1)·n / 2k) for j < k, so that the writers, who come
    one after the other, are in both splits. Whole numbers only, no random generator: the same
    everywhere and with every version of everything.
    """
    import numpy as np

    counts = np.bincount(labels)
    shares, remainders = np.divmod(counts * test_images, len(labels))
    order = np.argsort(-remainders, kind="stable")
    shares[order[: test_images - int(shares.sum())]] += 1
    mask = np.zeros(len(labels), dtype=np.bool_)
    for label, (n, k) in enumerate(zip(counts, shares, strict=True)):
        members = np.flatnonzero(labels == label)
        mask[members[(2 * np.arange(k) + 1) * n // (2 * k)]] = True
    return mask
