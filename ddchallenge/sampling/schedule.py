"""Which images a batch is made of, and how large the next batch should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BatchRequest", "batch_seed", "class_major", "fitted_batch", "round_robin"]

# A batch meant to end at the deadline would be late every other time.
SAFETY: Final = 0.9
SEED_STEP: Final = 0x9E3779B1  # 2^32 over the golden ratio: neighbours lie far apart


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a generator is asked for: batch ``index``, the sampled images from ``first`` on."""

    index: int
    first: int
    count: int
    seed: int


def round_robin(first: int, count: int, num_classes: int) -> NDArray[np.int64]:
    """Int64 labels of the sampled images ``first`` to ``first + count - 1``: number modulo classes.

    A run cut anywhere is balanced to within one image a class.
    """
    import numpy as np

    return np.arange(first, first + count, dtype=np.int64) % num_classes


def class_major(
    numbers: NDArray[np.int64], copies: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """The order a bundle has its images in: by label, then by sampled image, then by copy.

    ``numbers`` are those of the sampled images, ``copies`` 0 for the image itself and from 1 on
    for its augmented copies (Su et al.'s order); both int64 N. Returns positions in them, int64 N.
    """
    import numpy as np

    return np.lexsort((copies, numbers, numbers % num_classes)).astype(np.int64, copy=False)


def batch_seed(run_seed: int, index: int) -> int:
    """The seed of a batch, 0..2^32-1, from the run seed and the batch index alone.

    32 bits, since ``numpy.random.seed`` takes no more. Within a run no two batches share a seed:
    the step is odd, so the sum visits every number once.
    """
    import numpy as np

    start = int(np.random.SeedSequence(run_seed).generate_state(1)[0])
    return (start + index * SEED_STEP) % 2**32


def fitted_batch(
    batch_size: int, *, seconds_left: float, queued: int, images_per_second: float | None
) -> int:
    """How many images to ask for now, 0 for none.

    ``queued`` images were asked for and have not come. Before anything was timed
    (``images_per_second`` None) it is the full ``batch_size``. With nothing queued at least one
    image is asked for while there is time: trying costs nothing, since what is late is dropped.
    """
    if seconds_left <= 0:
        return 0
    if images_per_second is None:
        return batch_size
    room = int(SAFETY * images_per_second * seconds_left) - queued
    return min(batch_size, max(room, 0 if queued else 1))
