"""The network every bundle is judged by.

``ConvNetD3-W128`` of the ECCV 2024 Dataset Distillation Challenge (``evaluate.py``), first used
for dataset condensation by Zhao et al. (ICLR 2021). Imports torch; ``ddchallenge.scoring`` imports
it only where a network is trained.
"""

from __future__ import annotations

from typing import Final

from torch import nn

from ddchallenge.errors import UnknownNameError

__all__ = ["NETWORKS", "build_network", "convnet"]

# Name in a ScoringProtocol: (depth, width).
NETWORKS: Final = {"ConvNetD3-W128": (3, 128)}


def convnet(*, depth: int, width: int, image_size: int, num_classes: int) -> nn.Sequential:
    """A convolutional network for float32 N×3×S×S images, giving N×``num_classes`` logits.

    ``depth`` times: 3×3 convolution with bias, instance normalisation with affine parameters
    (group normalisation with one channel a group), ReLU, 2×2 average pooling. Then one linear
    layer. ``image_size`` is S, at least ``2**depth``.

    The layers are made in that order, on the CPU, with PyTorch's default initialisation: how many
    random numbers are drawn, and which layer gets which, is part of what makes a score repeatable.
    """
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, kernel_size=3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
        channels = width
    side = image_size // 2**depth
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, num_classes))


def build_network(name: str, *, image_size: int, num_classes: int) -> nn.Sequential:
    """The network a protocol names, freshly initialised on the CPU; see :func:`convnet`.

    Raises :class:`UnknownNameError` where no network has that name.
    """
    try:
        depth, width = NETWORKS[name]
    except KeyError:
        raise UnknownNameError("network", name, NETWORKS) from None
    return convnet(depth=depth, width=width, image_size=image_size, num_classes=num_classes)
