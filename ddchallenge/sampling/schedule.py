"""Which images a batch is made of, and how large the next batch should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["batch_seed", "fitted_batch", "round_robin"]

# A batch meant to end at the deadline would be late every other time.
SAFETY: Final = 0.9


def round_robin(first: int, count: int, num_classes: int) -> NDArray[np.int64]:
    """Int64 labels of the sampled images ``first`` to ``first + count - 1``: number modulo classes.

    A run cut anywhere is balanced to within one image a class.
    """
    import numpy as np

    return np.arange(first, first + count, dtype=np.int64) % num_classes


def batch_seed(run_seed: int, index: int) -> int:
    """The seed of a batch, 0..2^63-1, from the run seed and the batch index alone.

    NumPy's SeedSequence, so that neighbouring runs and batches have unrelated seeds.
    """
    import numpy as np

    state = np.random.SeedSequence(run_seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


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
