"""What a protocol does with a batch, and at which rate it learns: all that trainers share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ddchallenge.records import ScoringProtocol
from ddchallenge.scoring import dsa
from ddchallenge.scoring.draws import Draw, Generators

__all__ = ["Eccv2024", "Recipe", "epoch_order", "recipe_of"]


class Recipe(Protocol):
    """One protocol's training, apart from the network and the arithmetic.

    ``passes`` is how often the training set is gone through, ``batch_size`` how many images a step
    takes at most; a short last batch is kept. ``momentum`` and ``weight_decay`` are SGD's.
    ``tests_every_pass`` asks for a test after every pass, the best of which is reported beside the
    last.
    """

    passes: int
    batch_size: int
    momentum: float
    weight_decay: float
    tests_every_pass: bool

    def order(self, n: int, generators: Generators) -> Tensor:
        """The order of ``n`` images in the coming pass: int64 N on the CPU."""
        ...

    def draw(self, n: int, image_size: int, generators: Generators) -> Draw:
        """The random numbers of the next batch, of ``n`` images."""
        ...

    def augment(self, images: Tensor, labels: Tensor, drawn: Draw) -> tuple[Tensor, Tensor]:
        """What the network is shown: images, and int64 N labels or float32 N×C probabilities."""
        ...

    def learning_rate(self, index: int) -> float:
        """In the pass of this index, from 0."""
        ...

    def restarts(self, index: int) -> bool:
        """Whether the pass of this index begins without momentum."""
        ...


class Eccv2024:
    """The ECCV 2024 challenge's ``evaluate.py``; ``epochs`` is its ``Epoch``, one pass less."""

    tests_every_pass = False

    def __init__(self, protocol: ScoringProtocol, epochs: int) -> None:
        self.passes = epochs + 1
        self.batch_size = protocol.batch_size
        self.momentum = protocol.momentum
        self.weight_decay = protocol.weight_decay
        self._rates = protocol.learning_rate, protocol.learning_rate_after_drop
        self._last_high = epochs // 2 + 1

    def order(self, n: int, generators: Generators) -> Tensor:
        """Draws what ``DataLoader(shuffle=True)`` draws at the start of an epoch."""
        return epoch_order(n, generators.cpu)

    def draw(self, n: int, image_size: int, generators: Generators) -> Draw:
        """One of the six families and its numbers."""
        return dsa.draw(n, image_size, generators)

    def augment(self, images: Tensor, labels: Tensor, drawn: Draw) -> tuple[Tensor, Tensor]:
        """The images through their family; the labels as they are."""
        return dsa.augment(images, drawn), labels

    def learning_rate(self, index: int) -> float:
        """The high rate up to and with the pass of index ``epochs // 2 + 1``."""
        return self._rates[index > self._last_high]

    def restarts(self, index: int) -> bool:
        """A new optimiser is made at the drop."""
        return index == self._last_high + 1


def recipe_of(protocol: ScoringProtocol, epochs: int) -> Recipe:
    """The recipe of a protocol from the table in :mod:`ddchallenge.rules`."""
    return Eccv2024(protocol, epochs)


def epoch_order(n: int, generator: torch.Generator) -> Tensor:
    """The order of ``n`` images in one epoch: int64 N, on the CPU.

    Draws what ``DataLoader(shuffle=True)`` draws at the start of an epoch: a base seed for workers
    there are none of, then the seed of the permutation's own generator.
    """
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
