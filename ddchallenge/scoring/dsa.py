"""The augmentation inside training: differentiable siamese augmentation, as the challenge uses it.

From Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021),
with the strengths and the random draws of the challenge's ``evaluate.py``: every batch gets one
family out of six, every image of it its own parameters. Draw for draw and bit for bit: which
generator a number comes from, the order of the draws and the order of the arithmetic are part of
the protocol.

Every family takes float32 N×3×S×S images and returns new ones of the same shape, on the same
device, contiguous. Zeros that come in from outside are the mean colour, because the images are
normalised. Imports torch; ``ddchallenge.scoring`` imports it only where a network is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FAMILIES", "augment", "color", "crop", "cutout", "flip", "rotate", "scale"]

BRIGHTNESS: Final = 1.0
SATURATION: Final = 2.0
CONTRAST: Final = 0.5
CROP: Final = 0.125  # largest shift, in image sides
CUTOUT: Final = 0.5  # side of the square, in image sides
FLIP: Final = 0.5  # probability
SCALE: Final = 1.2
ROTATE: Final = 15.0  # degrees


def color(images: Tensor) -> Tensor:
    """Brightness, saturation and contrast, each drawn uniformly for every image."""
    shape = (len(images), 1, 1, 1)

    brightness = torch.rand(shape, device=images.device)
    images = images + (brightness - 0.5) * BRIGHTNESS

    grey = images.mean(dim=1, keepdim=True)
    saturation = torch.rand(shape, device=images.device)
    images = (images - grey) * (saturation * SATURATION) + grey

    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = torch.rand(shape, device=images.device)
    return (images - mean) * (contrast + CONTRAST) + mean


def crop(images: Tensor) -> Tensor:
    """Shift every image by up to an eighth of its side, zeros coming in from outside."""
    n, channels, size, _ = images.shape
    reach = int(size * CROP + 0.5)
    shape = (n, 1, 1)
    down = torch.randint(-reach, reach + 1, shape, device=images.device)
    right = torch.randint(-reach, reach + 1, shape, device=images.device)

    side = size + 2 * reach
    padded = functional.pad(images, (reach, reach, reach, reach)).view(n, channels, side * side)
    places = torch.arange(size, device=images.device)
    rows = places[:, None] + (down + reach)
    columns = places + (right + reach)
    pixels = (rows * side + columns).view(n, 1, size * size).expand(-1, channels, -1)
    return padded.gather(2, pixels).view_as(images)


def cutout(images: Tensor) -> Tensor:
    """Set a square of half the side to zero, its centre anywhere in the image."""
    n, _, size, _ = images.shape
    side = int(size * CUTOUT + 0.5)
    limit = size + (1 - side % 2)
    shape = (n, 1, 1)
    top = torch.randint(0, limit, shape, device=images.device) - side // 2
    left = torch.randint(0, limit, shape, device=images.device) - side // 2

    # The evaluator clamps what reaches over the edge onto the edge itself, which the square covers
    # anyway: wherever its centre is, some of it lies inside.
    places = torch.arange(size, device=images.device)
    rows = (places >= top) & (places < top + side)
    columns = (places >= left) & (places < left + side)
    square = (rows.transpose(1, 2) & columns)[:, None]
    return images.masked_fill(square, 0.0)


def flip(images: Tensor) -> Tensor:
    """Mirror every image left to right with probability one half."""
    chosen = torch.rand((len(images), 1, 1, 1), device=images.device) < FLIP
    return torch.where(chosen, images.flip(3), images)


def scale(images: Tensor) -> Tensor:
    """Stretch every image by 1/1.2 to 1.2 in each direction; factors above one shrink it."""
    low = 1.0 / SCALE
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.rand(len(images)) * (SCALE - low) + low
    theta[:, 1, 1] = torch.rand(len(images)) * (SCALE - low) + low
    return _affine(images, theta)


def rotate(images: Tensor) -> Tensor:
    """Turn every image by up to 15 degrees either way."""
    # Divided by 180 before it is multiplied by pi: only so are the golden traces met to the bit.
    angle = (torch.rand(len(images)) - 0.5) * 2 * ROTATE / 180 * math.pi
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.cos(angle)
    theta[:, 0, 1] = torch.sin(-angle)
    theta[:, 1, 0] = torch.sin(angle)
    theta[:, 1, 1] = torch.cos(angle)
    return _affine(images, theta)


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    # The grid is made on the CPU wherever the images are, as the evaluator does.
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False).to(images.device)
    return functional.grid_sample(images, grid, align_corners=False)


# In the order the official strategy string names them: the draw is an index into this.
FAMILIES: Final[tuple[Callable[[Tensor], Tensor], ...]] = (
    color,
    crop,
    cutout,
    flip,
    scale,
    rotate,
)


def augment(images: Tensor) -> Tensor:
    """One batch through one family, drawn with the CPU generator; the images stay as they are."""
    family = int(torch.randint(0, len(FAMILIES), (1,)))
    return FAMILIES[family](images)
