"""Exact numerics: the official evaluator's arithmetic, operation for operation, in float32.

Source: the training loop of the ECCV 2024 Dataset Distillation Challenge's ``evaluate.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddchallenge.records import ScoringActivity
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.draws import Draw
from ddchallenge.scoring.recipes import Recipe

__all__ = ["ExactStepper"]


class ExactStepper:
    """A :class:`ddchallenge.scoring.training.Stepper` with ``torch.optim.SGD``, eager."""

    first_step: ScoringActivity = "training"
    notes: Sequence[str] = ()

    def __init__(self, network: nn.Module, train: DeviceImages, recipe: Recipe) -> None:
        self._network = network
        self._train = train
        self._recipe = recipe
        self._sgd = self._new_sgd(0.0)
        self._order = torch.empty(0, dtype=torch.int64)
        self._draws: Sequence[Draw] = ()

    def _new_sgd(self, rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(
            self._network.parameters(),
            lr=rate,
            momentum=self._recipe.momentum,
            weight_decay=self._recipe.weight_decay,
        )

    @property
    def rows(self) -> int:
        """A batch, in the official test too."""
        return self._recipe.batch_size

    def begin_pass(self, order: Tensor, draws: Sequence[Draw]) -> None:
        """Move the order to the device."""
        self._order = order.to(self._train.device)
        self._draws = draws

    def step(self, number: int) -> Tensor:
        """Forward, backward, update on one batch."""
        size = self._recipe.batch_size
        images, labels = self._train.batch(self._order[number * size : (number + 1) * size])
        images, targets = self._recipe.augment(images, labels, self._draws[number])
        loss = functional.cross_entropy(self._network(images), targets)
        self._sgd.zero_grad()
        torch.autograd.backward(loss)
        self._sgd.step()
        return loss.detach()

    def learn_at(self, rate: float, *, restart: bool) -> None:
        """Another rate, or a new optimiser at that rate."""
        if restart:
            self._sgd = self._new_sgd(rate)
        for group in self._sgd.param_groups:
            group["lr"] = rate

    @property
    def momenta(self) -> list[Tensor | None]:
        """SGD's momentum buffers."""
        return [
            self._sgd.state[parameter].get("momentum_buffer")
            for parameter in self._network.parameters()
        ]

    def restore_momenta(self, momenta: Sequence[Tensor | None]) -> None:
        """Put them back into SGD's state."""
        self._sgd = self._new_sgd(0.0)
        for parameter, momentum in zip(self._network.parameters(), momenta, strict=True):
            if momentum is not None:
                self._sgd.state[parameter]["momentum_buffer"] = momentum
