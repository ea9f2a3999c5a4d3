"""Where a training run's random numbers come from, and what one batch was given of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Draw", "Generators"]


class Draw(NamedTuple):
    """What was drawn for one batch: which of a recipe's choices, and float32 K×n numbers."""

    choice: int
    numbers: Tensor


class Generators:
    """The generators of one run: the CPU's, and the one of the device the images lie on.

    On the CPU they are one and the same. Nothing else draws from them, so several runs can go on
    side by side, each with the numbers it would have alone.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.cpu = torch.Generator().manual_seed(seed)
        self.device = (
            self.cpu
            if device.type in ("cpu", "meta")
            else torch.Generator(device).manual_seed(seed)
        )

    def state(self) -> dict[str, Tensor]:
        """uint8 vectors; :meth:`restore` takes them."""
        state = {"generator.cpu": self.cpu.get_state()}
        if self.device is not self.cpu:
            state["generator.device"] = self.device.get_state()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        self.cpu.set_state(state["generator.cpu"])
        if self.device is not self.cpu:
            self.device.set_state(state["generator.device"])
