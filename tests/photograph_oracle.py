"""The published augmentation of photographs, written plainly: one image at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torchvision.transforms.v2 import functional as published

LIGHT_VALUES = [0.2175, 0.0188, 0.0045]
LIGHT_VECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]


class Plain:
    """The numbers of a batch drawn again in the documented order, used one image at a time."""

    def __init__(self, n, size, random):
        def uniform(*shape):
            return torch.rand(*shape, generator=random, dtype=torch.float64)

        areas, aspects = uniform(n, 10), uniform(n, 10)
        rows, columns = uniform(n), uniform(n)
        self.crops = [
            self.crop(size, *(values[i].tolist() for values in (areas, aspects, rows, columns)))
            for i in range(n)
        ]
        self.flips = [u < 0.5 for u in uniform(n).tolist()]
        self.orders = [np.argsort(ranks).tolist() for ranks in uniform(n, 3).numpy()]
        self.strengths = (0.8 * uniform(n, 3) - 0.4).tolist()
        normal = 0.1 * torch.randn(n, 3, generator=random, dtype=torch.float64)
        self.lights = normal.tolist()
        self.own_share = float(uniform(1))
        self.partners = torch.randperm(n, generator=random).tolist()
        self.centre = torch.randint(size, (2,), generator=random).tolist()

    @staticmethod
    def crop(size, areas, aspects, row, column):
        for area, aspect in zip(areas, aspects, strict=True):
            area = size * size * (0.5 + 0.5 * area)
            ratio = math.exp(math.log(3 / 4) + aspect * (math.log(4 / 3) - math.log(3 / 4)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= size and 0 < height <= size:
                return (
                    int(row * (size - height + 1)),
                    int(column * (size - width + 1)),
                    height,
                    width,
                )
        return 0, 0, size, size

    def apply(self, i, image):
        """One image 3×S×S with values 0..1, by torchvision, which clamps after every step."""
        top, left, height, width = self.crops[i]
        size = list(image.shape[1:])
        image = published.resized_crop(image, top, left, height, width, size, antialias=True)
        image = published.horizontal_flip(image) if self.flips[i] else image
        steps = [
            published.adjust_brightness, published.adjust_contrast, published.adjust_saturation,
        ]  # fmt: skip
        for kind in self.orders[i]:
            image = steps[kind](image, 1 - self.strengths[i][kind])
            assert 0 < image.min() < image.max() < 1  # so no value was clamped
        for channel in range(3):
            image[channel] += sum(
                LIGHT_VECTORS[channel][j] * LIGHT_VALUES[j] * self.lights[i][j] for j in range(3)
            )
        return image


def cutmix(images, labels, plain):
    """As published: one rectangle copied in place, and the weight of the own label."""
    size = images.shape[2]
    cut = int(size * np.sqrt(1.0 - plain.own_share))
    row, column = plain.centre
    top, bottom = np.clip([row - cut // 2, row + cut // 2], 0, size)
    left, right = np.clip([column - cut // 2, column + cut // 2], 0, size)
    mixed = images.clone()
    for i, partner in enumerate(plain.partners):
        mixed[i, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / size**2
