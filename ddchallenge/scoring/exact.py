"""The exact trainer: one network trained and tested, draw for draw like the official evaluator.

Source: the training loop of the ECCV 2024 Dataset Distillation Challenge's ``evaluate.py``. No
DataLoader: whole tensors lie on the device, and the random numbers a DataLoader would draw are
drawn here in its order. Nothing waits for the device between batches. Imports torch;
``ddchallenge.scoring`` imports it only where a network is trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddchallenge.datasets.normalise import normalised_levels
from ddchallenge.records import DatasetSpec, LabeledImages, ScoringProtocol, SeedRun
from ddchallenge.scoring.dsa import augment
from ddchallenge.scoring.memory import freed_memory_kept
from ddchallenge.scoring.networks import build_network

__all__ = ["DeviceImages", "count_correct", "epoch_order", "train_and_test", "train_network"]


class DeviceImages:
    """Labelled images on a device, handed out as batches of normalised float32.

    uint8 images stay uint8 there and are normalised batch by batch by looking their levels up:
    the same bits as :func:`ddchallenge.datasets.normalise.normalise` for a quarter of the memory.
    float32 images are taken as they are.
    """

    def __init__(self, data: LabeledImages, spec: DatasetSpec, device: torch.device) -> None:
        # torch.tensor copies: the arrays may be read-only maps of a file.
        self._images = torch.tensor(data.images, device=device)
        self._labels = torch.tensor(data.labels, device=device)
        self._levels = torch.tensor(normalised_levels(spec).ravel(), device=device)
        self._first_level = torch.arange(0, 3 * 256, 256, device=device).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self._images.device

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """float32 B×3×S×S images and int64 B labels at an int64 index on the device, or a slice."""
        images = self._images[index]
        if images.dtype == torch.uint8:
            images = self._levels.take(images + self._first_level)
        return images, self._labels[index]


def epoch_order(n: int) -> Tensor:
    """The order of ``n`` images in one epoch: int64 N, on the CPU.

    Draws from the CPU generator what ``DataLoader(shuffle=True)`` draws at the start of an epoch:
    a base seed for workers there are none of, then the seed of the permutation's own generator.
    """
    torch.empty((), dtype=torch.int64).random_()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def train_network(
    train: DeviceImages,
    spec: DatasetSpec,
    protocol: ScoringProtocol,
    *,
    epochs: int,
    seed: int,
    on_epoch: Callable[[int, Tensor], None] | None = None,
    on_batch: Callable[[int, int, Tensor], None] | None = None,
) -> tuple[nn.Module, Tensor]:
    """Train one network for ``epochs + 1`` passes on the device the images are on.

    After the pass of index ``epochs // 2 + 1`` a new optimiser is made at the lower learning
    rate, so the momentum starts again from nothing.

    ``on_epoch`` is told, after every pass, its index from 0 and the pass's batch losses, float32
    on the device; reading them waits for the device. ``on_batch`` is told, after every batch but
    the last of a pass, the pass's index, how many batches it has, and the losses of those done.
    Seeds PyTorch's generators with ``seed`` and leaves them where the training ended.

    Returns the network and the loss of every batch: float32 passes×batches on the device.
    """
    device = train.device
    torch.manual_seed(seed)
    network = build_network(
        protocol.network, image_size=spec.image_size, num_classes=spec.num_classes
    ).to(device)
    network.train()
    sgd = _sgd(network, protocol, protocol.learning_rate)

    batches = -(-len(train) // protocol.batch_size)
    losses = torch.empty(epochs + 1, batches, device=device)
    for epoch in range(epochs + 1):
        order = epoch_order(len(train)).to(device)
        for number in range(batches):
            first = number * protocol.batch_size
            images, labels = train.batch(order[first : first + protocol.batch_size])
            loss = functional.cross_entropy(network(augment(images)), labels)
            sgd.zero_grad()
            torch.autograd.backward(loss)
            sgd.step()
            losses[epoch, number] = loss.detach()
            if on_batch is not None and number + 1 < batches:
                on_batch(epoch, batches, losses[epoch, : number + 1])
        if epoch == epochs // 2 + 1:
            sgd = _sgd(network, protocol, protocol.learning_rate_after_drop)
        if on_epoch is not None:
            on_epoch(epoch, losses[epoch])
    return network, losses


def _sgd(network: nn.Module, protocol: ScoringProtocol, learning_rate: float) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(),
        lr=learning_rate,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
    )


@torch.no_grad()
def count_correct(network: nn.Module, test: DeviceImages, batch_size: int) -> int:
    """How many test images the network, in ``eval`` mode, gives its largest logit to."""
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=test.device)
    for start in range(0, len(test), batch_size):
        images, labels = test.batch(slice(start, start + batch_size))
        correct += (network(images).argmax(1) == labels).sum()
    return int(correct)


def train_and_test(
    train: LabeledImages,
    test: LabeledImages,
    spec: DatasetSpec,
    protocol: ScoringProtocol,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, Tensor], None] | None = None,
    on_batch: Callable[[int, int, Tensor], None] | None = None,
) -> SeedRun:
    """One seed run: train on ``train``, test once after the last pass on ``test``.

    The same seed on the same device with the same number of threads gives the same bits.
    ``on_epoch`` and ``on_batch`` as in :func:`train_network`. The caller's random state and
    settings are as before afterwards. Where training diverged, ``final_loss`` is None and the
    accuracy is what it is.
    """
    began = time.monotonic()
    with _own_random_state(device), _deterministic(), _memory(device):
        network, losses = train_network(
            DeviceImages(train, spec, device),
            spec,
            protocol,
            epochs=epochs,
            seed=seed,
            on_epoch=on_epoch,
            on_batch=on_batch,
        )
        correct = count_correct(network, DeviceImages(test, spec, device), protocol.batch_size)
    final_loss = float(losses[-1].mean())
    return SeedRun(
        seed=seed,
        accuracy=correct / len(test),
        correct=correct,
        test_images=len(test),
        final_loss=final_loss if math.isfinite(final_loss) else None,
        seconds=time.monotonic() - began,
    )


def _memory(device: torch.device) -> AbstractContextManager[None]:
    return freed_memory_kept() if device.type == "cpu" else nullcontext()


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Give PyTorch's generators, the CPU's and the device's, back as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let cuDNN choose no algorithm whose result differs from one run to the next."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
