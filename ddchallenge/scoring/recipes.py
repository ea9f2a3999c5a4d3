"""What a protocol does with a batch, and at which rate it learns: all that trainers share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ddchallenge.records import DatasetSpec, ScoringProtocol
from ddchallenge.scoring import dsa, photographs
from ddchallenge.scoring.draws import Draw, Generators

__all__ = ["Eccv2024", "Imagewoof", "Recipe", "epoch_order", "recipe_of"]


class Recipe(Protocol):
    """One protocol's training, apart from the network and the arithmetic.

    ``passes`` is how often the training set is gone through, ``batch_size`` how many images a step
    takes at most; a short last batch is kept. ``momentum`` and ``weight_decay`` are SGD's.
    ``tests`` is how often the network is tested, after the last pass included.
    """

    passes: int
    batch_size: int
    momentum: float
    weight_decay: float
    tests: int

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

    def tests_after(self, index: int) -> bool:
        """Whether the network is tested after this pass, to report the best test beside the last.

        The test after the last pass is made anyway.
        """
        ...


class Eccv2024:
    """The ECCV 2024 challenge's ``evaluate.py``; ``epochs`` is its ``Epoch``, one pass less."""

    tests = 1

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

    def tests_after(self, index: int) -> bool:
        """One test, at the end."""
        return False


class Imagewoof:
    """The evaluation of Gu et al. (CVPR 2024): photographs, CutMix on every batch, two drops.

    As many passes as ``epochs``. The code tests a hundred times, at equal distances, and reports
    the best test; here that stands beside the last.
    """

    def __init__(self, protocol: ScoringProtocol, epochs: int, spec: DatasetSpec) -> None:
        self.passes = epochs
        self.batch_size = protocol.batch_size
        self.momentum = protocol.momentum
        self.weight_decay = protocol.weight_decay
        self._rate = protocol.learning_rate
        self._factor = protocol.learning_rate_after_drop / protocol.learning_rate
        self._interval = max(1, epochs // 100)
        self.tests = -(-epochs // self._interval)
        self._spec = spec
        self._statistics: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def order(self, n: int, generators: Generators) -> Tensor:
        """Draws what ``DataLoader(shuffle=True)`` draws at the start of an epoch."""
        return epoch_order(n, generators.cpu)

    def draw(self, n: int, image_size: int, generators: Generators) -> Draw:
        """Crops, flips, colours, light and the rectangle, all from the CPU's generator."""
        return Draw(0, photographs.draw(n, image_size, generators.cpu))

    def augment(self, images: Tensor, labels: Tensor, drawn: Draw) -> tuple[Tensor, Tensor]:
        """Photographs with a part of another each, and the probabilities of both labels."""
        device = images.device
        if device not in self._statistics:
            mean, deviation = (
                torch.tensor(values, device=device).view(3, 1, 1)
                for values in (self._spec.mean, self._spec.std)
            )
            self._statistics[device] = mean, deviation
        numbers = drawn.numbers.to(device)
        images = photographs.augment(images, numbers, *self._statistics[device])
        return photographs.cutmix(images, labels, numbers, self._spec.num_classes)

    def learning_rate(self, index: int) -> float:
        """Lower by the same factor after two thirds and after five sixths of the passes."""
        drops = (index >= 2 * self.passes // 3) + (index >= 5 * self.passes // 6)
        return self._rate * self._factor**drops

    def restarts(self, index: int) -> bool:
        """One optimiser throughout."""
        return False

    def tests_after(self, index: int) -> bool:
        """A hundred times; after every pass where there are fewer; and after the last."""
        return (index + 1) % self._interval == 0 or index + 1 == self.passes


def recipe_of(protocol: ScoringProtocol, epochs: int, spec: DatasetSpec) -> Recipe:
    """The recipe a protocol of :mod:`ddchallenge.rules` names, for images of this dataset."""
    match protocol.recipe:
        case "eccv2024":
            return Eccv2024(protocol, epochs)
        case "imagewoof":
            return Imagewoof(protocol, epochs, spec)


def epoch_order(n: int, generator: torch.Generator) -> Tensor:
    """The order of ``n`` images in one epoch: int64 N, on the CPU.

    Draws what ``DataLoader(shuffle=True)`` draws at the start of an epoch: a base seed for workers
    there are none of, then the seed of the permutation's own generator.
    """
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
