"""What a trained network makes of the test images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ddchallenge.scoring.data import DeviceImages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["confusion_matrix"]


@torch.no_grad()
def confusion_matrix(network: nn.Module, test: DeviceImages, batch_size: int) -> NDArray[np.int64]:
    """How many test images of each class the network, in ``eval`` mode, takes for which.

    int64 C×C: true label down, label of the largest logit across. The network is in the mode it
    was in afterwards. float32, whatever it was trained with.
    """
    classes = test.spec.num_classes
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=test.device)
    training = network.training
    network.eval()
    for start in range(0, len(test), batch_size):
        images, labels = test.batch(slice(start, start + batch_size))
        counts += torch.bincount(
            labels * classes + network(images).argmax(1), minlength=classes * classes
        )
    network.train(training)
    matrix: NDArray[np.int64] = counts.view(classes, classes).cpu().numpy()
    return matrix
