"""Do the labels of a bundle fit its images, or are they in another order of the classes?

A tensor file has no labels: who numbers the classes otherwise than the evaluator (CIFAR-100 by
superclass, Tiny ImageNet by an unsorted list) hands in good images under wrong labels. Coarse mean
images of the classes are enough to see that, for any order: one part of the bundle says which real
class each of its classes looks like, and another part says whether that was chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ddchallenge.records import LabeledImages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ClassOrder", "class_order"]

# Parts are the first and the last third of each class, so that the copies of an image, which
# follow it, are not in both.
FEWEST_IMAGES: Final = 9
MOST_IMAGES: Final = 50  # of a class and part
SIDE: Final = 8  # of the coarse images, in pixels
SHUFFLES: Final = 300
# In standard deviations of what random orders give. Real images in the right order, three a part:
# 7 on digits, 14 on cifar100, 16 on tinyimagenet; in a wrong order between -2 and 2.
SURELY: Final = 5.0
HARDLY: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOrder:
    """How well class means agree with those of real images: mean correlations, -1..1.

    ``as_labelled`` is for the labels there are, ``rearranged`` for the best other assignment.
    ``looks_like[label]`` is the class whose images those under ``label`` look like; with few images
    only some of these are right, most probably that of ``surest``, the label that fits another
    class best. ``wrong`` says that the labels fit no better than chance, and the rearrangement
    surely does.
    """

    as_labelled: float
    rearranged: float
    looks_like: tuple[int, ...]
    surest: int
    wrong: bool


def class_order(data: LabeledImages, real: LabeledImages, num_classes: int) -> ClassOrder | None:
    """Compare the class means of ``data`` with those of ``real``, in any normalisation each.

    Needs nine images of every class of ``data`` and one of ``real``, both with images of the same
    size, 8 pixels or more; else None. A second for any number of images.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    fewest, _ = data.images_per_class(num_classes)
    known, _ = real.images_per_class(num_classes)
    side = data.images.shape[2]
    if fewest < FEWEST_IMAGES or not known or real.images.shape[2] != side or side < SIDE:
        return None
    places = [np.flatnonzero(data.labels == label) for label in range(num_classes)]
    parts = [
        [place[: min(len(place) // 3, MOST_IMAGES)] for place in places],
        [place[-min(len(place) // 3, MOST_IMAGES) :] for place in places],
    ]
    real_places = [np.flatnonzero(real.labels == c)[:MOST_IMAGES] for c in range(num_classes)]
    wanted = _class_means(real, real_places)
    fits = [_class_means(data, part) @ wanted.T for part in parts]
    guesses = [linear_sum_assignment(fit, maximize=True)[1] for fit in fits]
    everyone = np.arange(num_classes)
    both = (fits[0] + fits[1]) / 2
    as_labelled = float(both[everyone, everyone].mean())
    # Each guess is held against the part it was not made from.
    rearranged = float(
        (fits[1][everyone, guesses[0]].mean() + fits[0][everyone, guesses[1]].mean()) / 2
    )
    rng = np.random.default_rng(0)
    chance = np.array(
        [both[everyone, rng.permutation(num_classes)].mean() for _ in range(SHUFFLES)]
    )
    spread = float(chance.std()) or np.inf
    best = linear_sum_assignment(both, maximize=True)[1]
    return ClassOrder(
        as_labelled=as_labelled,
        rearranged=rearranged,
        looks_like=tuple(best.tolist()),
        surest=int(np.where(best != everyone, both[everyone, best], -1.0).argmax()),
        wrong=bool(
            as_labelled - chance.mean() < HARDLY * spread
            and rearranged - chance.mean() > SURELY * spread
        ),
    )


def _class_means(data: LabeledImages, places: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Unit vectors, one a class: its coarse mean image, standardised over the classes.

    So the normalisation of the images, which is affine in each channel, makes no difference.
    """
    import numpy as np

    means = np.stack([_coarse(data.images[place]).mean(axis=0) for place in places])
    means -= means.mean(axis=0)
    means /= np.maximum(means.std(axis=0), 1e-9)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.maximum(lengths, 1e-9), dtype=np.float64)


def _coarse(images: NDArray[Any]) -> NDArray[np.float64]:
    """Images as vectors of 3·8·8 means over squares; pixels left over at the edges do not count."""
    import numpy as np

    step = images.shape[2] // SIDE
    cut = images[:, :, : step * SIDE, : step * SIDE].astype(np.float64)
    squares = cut.reshape(len(images), 3, SIDE, step, SIDE, step).mean(axis=(3, 5))
    return np.asarray(squares.reshape(len(images), -1), dtype=np.float64)
