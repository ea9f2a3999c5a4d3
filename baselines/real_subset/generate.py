"""Random real training images: the line that generated images are held against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddchallenge import GenerationTask


class RealSubset:
    """Hands back training images of the labels that are asked for."""

    def setup(self, task: GenerationTask) -> None:
        """Note where the images of each class lie."""
        self._data = task.load_training_data()
        labels = self._data.labels
        self._of_class = [np.flatnonzero(labels == c) for c in range(task.dataset.num_classes)]

    def generate(self, labels: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
        """Real images of these labels, no image twice in a batch while the class has others."""
        rng = np.random.default_rng(seed)
        chosen = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            places = np.flatnonzero(labels == label)
            pool = self._of_class[label]
            rounds = -(-len(places) // len(pool))
            shuffled = np.concatenate([rng.permutation(pool) for _ in range(rounds)])
            chosen[places] = shuffled[: len(places)]
        return np.asarray(self._data.images[chosen], dtype=np.uint8)
