"""From pixels to what the official evaluator trains on, bit for bit the same everywhere.

The official data is ``(pixel / 255 - mean) / std`` in float32. There are only 256 pixel values a
channel, so the arithmetic is done once in a table and images are looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["normalise", "normalised_levels"]


def normalised_levels(spec: DatasetSpec) -> NDArray[np.float32]:
    """Float32 3×256: the value in normalised space of every pixel value of every channel."""
    import numpy as np

    pixels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None]
    levels: NDArray[np.float32] = (pixels - mean) / std
    return levels


def normalise(spec: DatasetSpec, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 N×3×H×W to float32 N×3×H×W with the dataset's mean and deviation."""
    import numpy as np

    levels = normalised_levels(spec)
    out = np.empty(images.shape, dtype=np.float32)
    for channel in range(3):
        np.take(levels[channel], images[:, channel], out=out[:, channel], mode="clip")
    return out
