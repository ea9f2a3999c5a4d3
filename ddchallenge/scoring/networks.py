"""The networks bundles are judged by, in one table.

==================  ============================================================================
``ConvNetD3-W128``  of the ECCV 2024 Dataset Distillation Challenge (``evaluate.py``), first used
                    for dataset condensation by Zhao et al. (ICLR 2021)
``ConvNet-6``       the same, six blocks deep: Gu et al. (CVPR 2024)
``ResNetAP-10``     a ResNet of four blocks that shrinks by average pooling where others use
                    strides: Kim et al. (ICML 2022), whose evaluation Gu et al. use
``ResNet-18``       He et al. (CVPR 2016), with the smaller first layers of Kim et al. for images
                    of 128 px and less
==================  ============================================================================

All have instance normalisation, written as group normalisation with one channel a group, with
affine parameters. Imports torch; ``ddchallenge.scoring`` imports it only where a network is made.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from ddchallenge.errors import RequestError, UnknownNameError
from ddchallenge.records import ScoringProtocol

__all__ = ["NETWORKS", "Builder", "build_network", "check_network", "convnet", "resnet"]

# Up to these sizes a ResNet keeps the resolution, halves it, in its first layer; above, quarters.
SMALL: Final = 64
MEDIUM: Final = 128
# Three halvings leave 2×2: instance normalisation makes a single place zero, whatever was there.
SMALLEST_RESNET_IMAGE: Final = 16


class Builder(Protocol):
    """Makes a network for float32 N×3×S×S images, giving N×``num_classes`` logits.

    It is made on the CPU, its random numbers drawn from PyTorch's CPU generator: how many are
    drawn, and which layer gets which, is part of what makes a score repeatable. Raises
    :class:`RequestError` where images of ``image_size`` pixels are too small for it.
    """

    def __call__(self, *, image_size: int, num_classes: int) -> nn.Sequential:
        """The network, untrained."""


def convnet(*, depth: int, width: int, image_size: int, num_classes: int) -> nn.Sequential:
    """A convolutional network for float32 N×3×S×S images, giving N×``num_classes`` logits.

    ``depth`` times: 3×3 convolution with bias, instance normalisation, ReLU, 2×2 average pooling
    that drops an odd last row and column. Then one linear layer. ``image_size`` is S, at least
    ``2**depth``; raises :class:`RequestError` below that.

    The layers are made in that order, on the CPU, with PyTorch's default initialisation.
    """
    _require(image_size, 2**depth)
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, kernel_size=3, padding=1),
            _norm(width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
        channels = width
    side = image_size // 2**depth
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, num_classes))


def resnet(
    *, blocks: tuple[int, int, int, int], pooled: bool, image_size: int, num_classes: int
) -> nn.Sequential:
    """A residual network for float32 N×3×S×S images, giving N×``num_classes`` logits.

    First layers by S, at least 16: up to 64 px a 3×3 convolution; up to 128 px the same and a
    halving; above it a 7×7 convolution and a quartering. Then four stages of ``blocks`` basic
    blocks with 64, 128, 256 and 512 channels, each but the first halving the resolution, the mean
    over all places and one linear layer.

    ``pooled`` shrinks by average pooling, after a convolution of stride 1 (and, in a block, after
    the ReLU). Without, the convolutions have the stride, and the first layers a maximum pooling.

    All is made on the CPU with PyTorch's default initialisation, in the order of the computation
    but for the shortcut of a block, which comes before the block. Then all convolutions, here in
    the order of the computation with a block's shortcut after it, are drawn again: normal
    with variance 2 / (kernel places × output channels).
    """
    _require(image_size, SMALLEST_RESNET_IMAGE)
    layers = _first_layers(image_size, pooled=pooled)
    before = 64
    for stage, count in enumerate(blocks):
        channels = 64 * 2**stage
        for number in range(count):
            halving = stage > 0 and number == 0
            layers.append(_Block(before, channels, halving=halving, pooled=pooled))
            before = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _first_layers(image_size: int, *, pooled: bool) -> list[nn.Module]:
    large = image_size > MEDIUM
    kernel, stride = (7, 1 if pooled else 2) if large else (3, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, kernel, stride=stride, padding=kernel // 2, bias=False),
        _norm(64),
        nn.ReLU(inplace=True),
    ]
    if image_size > SMALL:
        average = nn.AvgPool2d(4 if large else 2)
        layers.append(average if pooled else nn.MaxPool2d(3, stride=2, padding=1))
    return layers


class _Block(nn.Module):
    """Two 3×3 convolutions with their normalisation, and what came in added to what they make."""

    def __init__(self, before: int, channels: int, *, halving: bool, pooled: bool) -> None:
        super().__init__()
        stride = 2 if halving and not pooled else 1
        pool = [nn.AvgPool2d(2)] if halving and pooled else []
        shortcut: nn.Module = nn.Identity()
        if halving:
            shortcut = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride=stride, bias=False), *pool, _norm(channels)
            )
        self.main = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False),
            _norm(channels),
            nn.ReLU(inplace=True),
            *pool,
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels, channels)


def _require(image_size: int, smallest: int) -> None:
    if image_size < smallest:
        raise RequestError(f"it needs images of at least {smallest} pixels, found {image_size}.")


# Name in a ScoringProtocol, and how it is made.
NETWORKS: Final[dict[str, Builder]] = {
    "ConvNetD3-W128": partial(convnet, depth=3, width=128),
    "ConvNet-6": partial(convnet, depth=6, width=128),
    "ResNetAP-10": partial(resnet, blocks=(1, 1, 1, 1), pooled=True),
    "ResNet-18": partial(resnet, blocks=(2, 2, 2, 2), pooled=False),
}


def build_network(name: str, *, image_size: int, num_classes: int) -> nn.Sequential:
    """The network a protocol names, freshly initialised on the CPU; see :class:`Builder`.

    Raises :class:`UnknownNameError` where no network has that name, :class:`RequestError` where
    the images are too small for it.
    """
    try:
        builder = NETWORKS[name]
    except KeyError:
        raise UnknownNameError("network", name, NETWORKS) from None
    try:
        return builder(image_size=image_size, num_classes=num_classes)
    except RequestError as error:
        raise RequestError(f"The network {name} cannot be made: {error}") from None


def check_network(protocol: ScoringProtocol, *, image_size: int) -> None:
    """Raise what :func:`build_network` would raise for the network of ``protocol``.

    The message has the networks that could be chosen instead. Makes nothing and draws no random
    number.
    """
    try:
        _try(protocol.network, image_size)
    except UnknownNameError:
        raise
    except RequestError as error:
        others = [name for name in protocol.networks if _takes(name, image_size)]
        advice = (
            f"Give one that takes such images: --network {' or '.join(others)}."
            if others
            else "No other network of the protocol takes such images."
        )
        raise RequestError(f"{error}\n{advice}") from None


def _takes(name: str, image_size: int) -> bool:
    try:
        _try(name, image_size)
    except RequestError:
        return False
    return True


def _try(name: str, image_size: int) -> None:
    with torch.device("meta"):
        build_network(name, image_size=image_size, num_classes=1)
