"""Labelled images on a device, handed out batch by batch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddchallenge.datasets.normalise import normalised_levels
from ddchallenge.records import DatasetSpec, LabeledImages

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DeviceImages"]


class DeviceImages:
    """Labelled images on a device; uint8 stays uint8 there, a quarter of the memory.

    ``pixels`` are N×3×S×S, uint8 or normalised float32, ``labels`` int64 N. On the CPU they are
    the arrays they were made of, nothing is copied.
    """

    def __init__(self, data: LabeledImages, spec: DatasetSpec, device: torch.device) -> None:
        self.spec = spec
        self.pixels = _tensor(data.images).to(device)
        self.labels = _tensor(data.labels).to(device)
        self._levels = torch.tensor(normalised_levels(spec).ravel(), device=device)
        self._first_level = torch.arange(0, 3 * 256, 256, device=device).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.pixels.device

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised float32 B×3×S×S images and int64 B labels, at an int64 index or a slice.

        Levels are looked up batch by batch: the same bits as
        :func:`ddchallenge.datasets.normalise.normalise`.
        """
        images = self.pixels[index]
        if images.dtype == torch.uint8:
            images = self._levels.take(images + self._first_level)
        return images, self.labels[index]


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # The arrays may be read-only maps of a file; nobody writes to these tensors.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
