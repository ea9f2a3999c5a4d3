"""The six families of :mod:`ddchallenge.scoring.dsa` as one map, so that every batch is one graph.

Each of them is a case of: change the colours, sample the image along an affine map, set a square
to zero. What is drawn stays what it is there; a family leaves the other parts at "no change". The
results are those of the families up to the rounding of float32.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ddchallenge.scoring import dsa
from ddchallenge.scoring.draws import Draw

__all__ = ["NUMBERS", "apply_map", "map_of"]

# Columns: three of colour, six of the affine map, first and end row, first and end column.
NUMBERS: Final = 13
_NO_CHANGE: Final = (0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def map_of(drawn: Draw, n: int, size: int) -> Tensor:
    """The map of every image of a batch: float32 n×13 on the CPU.

    Raises :class:`ValueError` for a family that this module does not know.
    """
    maps = torch.tensor(_NO_CHANGE).repeat(n, 1)
    numbers = drawn.numbers.cpu()
    match dsa.FAMILIES[drawn.choice].name:
        case "color":
            brightness, saturation, contrast = numbers
            maps[:, 0] = (brightness - 0.5) * dsa.BRIGHTNESS
            maps[:, 1] = saturation * dsa.SATURATION
            maps[:, 2] = contrast + dsa.CONTRAST
        case "crop":
            down, right = numbers
            maps[:, 5] = right * 2 / size
            maps[:, 8] = down * 2 / size
        case "cutout":
            side = dsa.cutout_side(size)
            top, left = numbers - side // 2
            maps[:, 9], maps[:, 10], maps[:, 11], maps[:, 12] = top, top + side, left, left + side
        case "flip":
            maps[:, 3] = torch.where(numbers[0] < dsa.FLIP, -1.0, 1.0)
        case "scale":
            maps[:, 3:9] = dsa.scale_theta(numbers).view(n, 6)
        case "rotate":
            maps[:, 3:9] = dsa.rotate_theta(numbers).view(n, 6)
        case unknown:
            raise ValueError(f"the family {unknown!r} is none of the six that are one map")
    return maps


def apply_map(images: Tensor, maps: Tensor) -> Tensor:
    """Float32 n×3×S×S normalised images through their n×13 maps, as new ones of that form."""
    n, channels, size, _ = images.shape
    brightness, saturation, contrast = (maps[:, i].view(n, 1, 1, 1) for i in range(3))
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean

    theta = maps[:, 3:9].view(n, 2, 3)
    grid = functional.affine_grid(theta, [n, channels, size, size], align_corners=False)
    images = functional.grid_sample(images, grid, align_corners=False)

    places = torch.arange(size, device=images.device)
    top, bottom, left, right = (maps[:, i].view(n, 1) for i in range(9, 13))
    rows = (places >= top) & (places < bottom)
    columns = (places >= left) & (places < right)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
