"""The augmentation of photographs that ImageNet subsets are evaluated with, and CutMix.

Of Kim et al. (ICML 2022) and, with the same code, Gu et al. (CVPR 2024). Every image gets its own
numbers: a random resized crop, a flip, brightness, contrast and saturation in random order, and
coloured light. Then CutMix (Yun et al., ICCV 2019): every batch gets one rectangle, in which every
image shows another one of the batch; it counts as that one by the share of its area.

All numbers are drawn and worked out on the CPU, ``ROWS`` for an image, so that applying them is a
few operations on whole batches, without a branch. Values are never clamped: brighter than white
stays so. Imports torch; ``ddchallenge.scoring`` imports it only where a network is trained.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ROWS", "augment", "cutmix", "draw"]

AREA: Final = (0.5, 1.0)  # of the crop, in areas of the image
ASPECT: Final = (3 / 4, 4 / 3)  # width by height
ATTEMPTS: Final = 10  # then the whole image
FLIP: Final = 0.5  # probability
JITTER: Final = 0.4  # largest strength of brightness, contrast and saturation
LIGHT: Final = 0.1  # deviation along each principal component
# Luma of ITU-R BT.601.
GREY: Final = (0.299, 0.587, 0.114)
# Of the colours of ImageNet's pixels (Krizhevsky et al., NeurIPS 2012): deviation along each
# principal component, and the components, one a column.
COMPONENT_DEVIATIONS: Final = (0.2175, 0.0188, 0.0045)
COMPONENTS: Final = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class _Rows(NamedTuple):
    """The numbers of n images, each float32 n; where nothing else is said, in pixels."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor  # 0 or 1
    own: Tensor  # The colour becomes own · itself + grey · its grey + mean · the mean grey,
    grey: Tensor
    mean: Tensor
    red: Tensor  # plus these
    green: Tensor
    blue: Tensor
    partner: Tensor  # index in the batch
    box_top: Tensor  # the same for all images, as are the rest
    box_bottom: Tensor
    box_left: Tensor
    box_right: Tensor
    partner_share: Tensor  # of the rectangle's area in the image's, 0..1


ROWS: Final = len(_Rows._fields)


def draw(n: int, size: int, generator: torch.Generator) -> Tensor:
    """The numbers of ``n`` images of ``size`` pixels: float32 ``ROWS``×n, on the CPU.

    Drawn from the CPU ``generator``, in this order: the areas of ten attempts at a crop, uniform
    (n×10); the logarithms of their aspects, uniform (n×10); of the first that fits, or else the
    whole image, the place by row and by column, uniform (n each); the flips, uniform (n); the
    order of brightness, contrast and saturation, as the ranks of uniform numbers (n×3); their
    strengths, uniform (n×3); the light, normal (n×3); the share of the batch's own images, uniform
    (1); its permutation; the rectangle's centre, by row and by column, whole numbers.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    crop = _crop(size, uniform(n, ATTEMPTS), uniform(n, ATTEMPTS), uniform(n), uniform(n))
    flipped = (uniform(n) < FLIP).double()
    colour = _colour(uniform(n, 3).argsort(1), JITTER * (2 * uniform(n, 3) - 1))
    light = torch.randn(n, 3, generator=generator, dtype=torch.float64) * LIGHT
    along = torch.tensor(COMPONENT_DEVIATIONS, dtype=torch.float64)
    light = light * along @ torch.tensor(COMPONENTS, dtype=torch.float64).T
    own_share = float(uniform(1))
    partner = torch.randperm(n, generator=generator).double()
    row, column = torch.randint(size, (2,), generator=generator).tolist()
    mix = torch.tensor(_box(size, own_share, row, column), dtype=torch.float64)
    rows = [*crop, flipped, *colour, *light.T, partner, *mix[:, None].expand(-1, n)]
    return torch.stack(rows).float()


def _crop(size: int, area: Tensor, aspect: Tensor, row: Tensor, column: Tensor) -> list[Tensor]:
    """Top, left, height and width, from uniform numbers."""
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * size**2
    low, high = map(math.log, ASPECT)
    aspect = torch.exp(low + (high - low) * aspect)
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.double().argmax(1, keepdim=True)  # the first of equals
    whole = ~fits.any(1)
    height, width = (
        lengths.gather(1, first).squeeze(1).masked_fill(whole, size) for lengths in (height, width)
    )
    top, left = (row * (size - height + 1)).floor(), (column * (size - width + 1)).floor()
    return [top, left, height, width]


def _colour(order: Tensor, strength: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three steps in one: what of an image, its grey and its mean grey make the last colour.

    Each step goes from the image so far towards black (0 in ``order``), the mean of its grey (1)
    or its grey (2), n×3, by the ``strength`` of that kind, below 0 away from it. Grey of grey is
    grey and has the same mean, so whatever comes is a mixture of the three.
    """
    own = torch.ones(len(order), dtype=torch.float64)
    grey, mean = torch.zeros_like(own), torch.zeros_like(own)
    for kind in order.T:
        by = strength.gather(1, kind[:, None]).squeeze(1)
        to_grey = by * (own + grey) * (kind == 2)
        to_mean = by * (mean * (kind == 2) + (own + grey + mean) * (kind == 1))
        own, grey, mean = (
            (1 - by) * own,
            (1 - by) * grey + to_grey,
            (1 - by) * mean + to_mean,
        )
    return own, grey, mean


def _box(size: int, own_share: float, row: int, column: int) -> tuple[float, ...]:
    """The rectangle's top, bottom, left and right, cut off at the edges, and its share."""
    half = int(size * math.sqrt(1 - own_share)) // 2
    top, bottom = max(row - half, 0), min(row + half, size)
    left, right = max(column - half, 0), min(column + half, size)
    return top, bottom, left, right, (bottom - top) * (right - left) / size**2


def augment(images: Tensor, numbers: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Crop, flip and colour float32 N×3×S×S images as ``numbers``, ``ROWS``×N, say.

    The images are normalised with ``mean`` and ``deviation``, float32 3×1×1 on their device, and
    so are those that are returned; colours are changed between 0 and 1.
    """
    rows = _Rows(*numbers)
    images = _cropped(images, rows) * deviation + mean
    red, green, blue = images.unbind(1)
    grey = (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]
    own, to_grey, to_mean = (part.view(-1, 1, 1, 1) for part in (rows.own, rows.grey, rows.mean))
    light = torch.stack([rows.red, rows.green, rows.blue], dim=1)[:, :, None, None]
    mean_grey = grey.mean(dim=(2, 3), keepdim=True)
    return (own * images + to_grey * grey + to_mean * mean_grey + light - mean) / deviation


def _cropped(images: Tensor, rows: _Rows) -> Tensor:
    """The crops enlarged to the whole size, bilinear, as if nothing lay around them."""
    size = images.shape[-1]
    places = torch.arange(size, device=images.device, dtype=images.dtype)
    mirrored = torch.where(rows.flipped[:, None] > 0, size - 1 - places, places)

    def source(place: Tensor, first: Tensor, length: Tensor) -> Tensor:
        """Where a place comes from, as grid_sample counts: -1 and 1 are the first and the last."""
        inside = (place + 0.5) * (length / size)[:, None] - 0.5
        inside = inside.clamp(min=0).minimum(length[:, None] - 1)
        return (first[:, None] + inside) * (2 / (size - 1)) - 1

    down = source(places, rows.top, rows.height)
    across = source(mirrored, rows.left, rows.width)
    shape = (len(images), size, size)
    grid = torch.stack([across[:, None].expand(shape), down[:, :, None].expand(shape)], dim=3)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=True
    )


def cutmix(
    images: Tensor, labels: Tensor, numbers: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Every image with the rectangle of its partner, and what it then counts as.

    Of float32 N×3×S×S images and int64 N labels makes such images and float32 N×``num_classes``
    probabilities: the share of its own label and that of its partner's, which may be the same.
    """
    rows = _Rows(*numbers)
    partner = rows.partner.long()
    places = torch.arange(images.shape[-1], device=images.device)
    inside_rows = (places >= rows.box_top[0]) & (places < rows.box_bottom[0])
    inside_columns = (places >= rows.box_left[0]) & (places < rows.box_right[0])
    mixed = torch.where(inside_rows[:, None] & inside_columns, images[partner], images)
    classes = torch.arange(num_classes, device=labels.device)
    own = (labels[:, None] == classes).to(images.dtype)
    return mixed, own.lerp(own[partner], rows.partner_share[:, None])
