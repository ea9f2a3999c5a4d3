"""The augmentation inside training: differentiable siamese augmentation, as the challenge uses it.

From Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021),
with the strengths and the random draws of the challenge's ``evaluate.py``: every batch gets one
family out of six, every image of it its own parameters. Draw for draw and bit for bit: which
generator a number comes from, the order of the draws and the order of the arithmetic are part of
the protocol.

A family is two functions: one draws its numbers, float32 K×n on the device they were drawn on, the
other applies them to float32 N×3×S×S images and returns new ones of the same shape, on the same
device, contiguous. Zeros that come in from outside are the mean colour, because the images are
normalised. Imports torch; ``ddchallenge.scoring`` imports it only where a network is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ddchallenge.scoring.draws import Draw, Generators

__all__ = ["CUTOUT", "FAMILIES", "Family", "augment", "draw"]

BRIGHTNESS: Final = 1.0
SATURATION: Final = 2.0
CONTRAST: Final = 0.5
CROP: Final = 0.125  # largest shift, in image sides
CUTOUT: Final = 0.5  # side of the square, in image sides
FLIP: Final = 0.5  # probability
SCALE: Final = 1.2
ROTATE: Final = 15.0  # degrees


def _uniform(rows: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.stack(
        [torch.rand(n, generator=generator, device=generator.device) for _ in range(rows)]
    )


def _whole(low: int, high: int, n: int, generator: torch.Generator) -> Tensor:
    # Two rows of whole numbers, low to high - 1; float32 holds them exactly.
    return torch.stack(
        [
            torch.randint(low, high, (n,), generator=generator, device=generator.device)
            for _ in range(2)
        ]
    ).float()


def draw_color(n: int, size: int, generators: Generators) -> Tensor:
    """Brightness, saturation, contrast: 3×n, each 0..1, from the images' device."""
    return _uniform(3, n, generators.device)


def color(images: Tensor, numbers: Tensor) -> Tensor:
    """Brightness, saturation and contrast, each uniform around no change."""
    brightness, saturation, contrast = (row.view(-1, 1, 1, 1) for row in numbers.unbind())
    images = images + (brightness - 0.5) * BRIGHTNESS
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * SATURATION) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + CONTRAST) + mean


def draw_crop(n: int, size: int, generators: Generators) -> Tensor:
    """Rows down, columns right: 2×n whole pixels, from the images' device."""
    reach = crop_reach(size)
    return _whole(-reach, reach + 1, n, generators.device)


def crop_reach(size: int) -> int:
    """The largest shift of images of this side, in pixels."""
    return int(size * CROP + 0.5)


def crop(images: Tensor, numbers: Tensor) -> Tensor:
    """Shift every image by up to an eighth of its side, zeros coming in from outside."""
    n, channels, size, _ = images.shape
    reach = crop_reach(size)
    down, right = numbers.long().view(2, n, 1, 1)

    side = size + 2 * reach
    padded = functional.pad(images, (reach, reach, reach, reach)).view(n, channels, side * side)
    places = torch.arange(size, device=images.device)
    rows = places[:, None] + (down + reach)
    columns = places + (right + reach)
    pixels = (rows * side + columns).view(n, 1, size * size).expand(-1, channels, -1)
    return padded.gather(2, pixels).view_as(images)


def draw_cutout(n: int, size: int, generators: Generators) -> Tensor:
    """Row and column of the square's centre: 2×n whole pixels, from the images' device."""
    return _whole(0, size + (1 - cutout_side(size) % 2), n, generators.device)


def cutout_side(size: int) -> int:
    """The side of the square in images of this side, in pixels."""
    return int(size * CUTOUT + 0.5)


def cutout(images: Tensor, numbers: Tensor) -> Tensor:
    """Set a square of half the side to zero, its centre anywhere in the image."""
    n, _, size, _ = images.shape
    side = cutout_side(size)
    top, left = numbers.long().view(2, n, 1, 1) - side // 2

    # The evaluator clamps what reaches over the edge onto the edge itself, which the square covers
    # anyway: wherever its centre is, some of it lies inside.
    places = torch.arange(size, device=images.device)
    rows = (places >= top) & (places < top + side)
    columns = (places >= left) & (places < left + side)
    square = (rows.transpose(1, 2) & columns)[:, None]
    return images.masked_fill(square, 0.0)


def draw_flip(n: int, size: int, generators: Generators) -> Tensor:
    """Whether an image is mirrored: 1×n, 0..1, from the images' device."""
    return _uniform(1, n, generators.device)


def flip(images: Tensor, numbers: Tensor) -> Tensor:
    """Mirror every image left to right with probability one half."""
    return torch.where(numbers.view(-1, 1, 1, 1) < FLIP, images.flip(3), images)


def draw_scale(n: int, size: int, generators: Generators) -> Tensor:
    """Across and down: 2×n, 0..1, from the CPU."""
    return _uniform(2, n, generators.cpu)


def scale_theta(numbers: Tensor) -> Tensor:
    """The affine maps of :func:`scale`, float32 n×2×3."""
    low = 1.0 / SCALE
    across, down = numbers * (SCALE - low) + low
    theta = torch.zeros(len(across), 2, 3)
    theta[:, 0, 0] = across
    theta[:, 1, 1] = down
    return theta


def scale(images: Tensor, numbers: Tensor) -> Tensor:
    """Stretch every image by 1/1.2 to 1.2 in each direction; factors above one shrink it."""
    return _affine(images, scale_theta(numbers))


def draw_rotate(n: int, size: int, generators: Generators) -> Tensor:
    """The angle: 1×n, 0..1, from the CPU."""
    return _uniform(1, n, generators.cpu)


def rotate_theta(numbers: Tensor) -> Tensor:
    """The affine maps of :func:`rotate`, float32 n×2×3."""
    # Divided by 180 before it is multiplied by pi: only so are the golden traces met to the bit.
    angle = (numbers[0] - 0.5) * 2 * ROTATE / 180 * math.pi
    theta = torch.zeros(len(angle), 2, 3)
    theta[:, 0, 0] = torch.cos(angle)
    theta[:, 0, 1] = torch.sin(-angle)
    theta[:, 1, 0] = torch.sin(angle)
    theta[:, 1, 1] = torch.cos(angle)
    return theta


def rotate(images: Tensor, numbers: Tensor) -> Tensor:
    """Turn every image by up to 15 degrees either way."""
    return _affine(images, rotate_theta(numbers))


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    # The grid is made on the CPU wherever the images are, as the evaluator does.
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False).to(images.device)
    return functional.grid_sample(images, grid, align_corners=False)


class Family(NamedTuple):
    """``draw(n, image_size, generators)`` and ``apply(images, numbers)`` of one augmentation."""

    name: str
    draw: Callable[[int, int, Generators], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


# In the order the official strategy string names them: the draw is an index into this.
FAMILIES: Final = (
    Family("color", draw_color, color),
    Family("crop", draw_crop, crop),
    Family("cutout", draw_cutout, cutout),
    Family("flip", draw_flip, flip),
    Family("scale", draw_scale, scale),
    Family("rotate", draw_rotate, rotate),
)


def draw(n: int, size: int, generators: Generators) -> Draw:
    """The family of a batch of ``n`` images, from the CPU's generator, and its numbers."""
    family = int(torch.randint(0, len(FAMILIES), (1,), generator=generators.cpu))
    return Draw(family, FAMILIES[family].draw(n, size, generators))


def augment(images: Tensor, drawn: Draw) -> Tensor:
    """One batch through the family that was drawn for it; the images stay as they are."""
    return FAMILIES[drawn.choice].apply(images, drawn.numbers)
