"""Class-conditional Gaussians in the PCA space of the training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from ddchallenge import GenerationTask

CHUNK = 2048


class Gaussian:
    """One Gaussian a class, mean and Ledoit-Wolf covariance, sampled and projected to pixels."""

    def setup(self, task: GenerationTask) -> None:
        """Fit the PCA on a random subset, the Gaussians on every training image."""
        data = task.load_training_data()
        size = task.dataset.image_size
        self._shape = (3, size, size)
        pixels = 3 * size * size

        rng = np.random.default_rng(task.run_seed)
        fitted = min(int(str(task.options["fit_images"])), len(data))
        chosen = np.sort(rng.choice(len(data), size=fitted, replace=False))
        components = min(int(str(task.options["components"])), fitted, pixels)
        pca = PCA(components, svd_solver="randomized", random_state=task.run_seed)
        pca.fit(data.images[chosen].reshape(fitted, pixels).astype(np.float32))
        # Whitened, so that the covariances are shrunk towards that of all images, and without the
        # directions in which the images do not differ.
        kept = pca.explained_variance_ > 1e-6 * pca.explained_variance_[0]
        scale = np.sqrt(pca.explained_variance_[kept])[:, None]
        components = len(scale)
        whitening = (pca.components_[kept] / scale).T.astype(np.float32)
        self._basis = (pca.components_[kept] * scale).astype(np.float32)
        self._pixel_mean = pca.mean_.astype(np.float32)

        # Chunks, so that a full training set is never in memory as floats.
        coordinates = np.concatenate(
            [
                (data.images[i : i + CHUNK].reshape(-1, pixels) - self._pixel_mean) @ whitening
                for i in range(0, len(data), CHUNK)
            ]
        )
        classes = task.dataset.num_classes
        self._means = np.empty((classes, components), dtype=np.float32)
        self._factors = np.empty((classes, components, components), dtype=np.float32)
        for label in range(classes):
            own = LedoitWolf().fit(coordinates[data.labels == label])
            self._means[label] = own.location_
            # A class whose images are all the same has no covariance for Cholesky to factor.
            jitter = 1e-6 * np.eye(components)
            self._factors[label] = np.linalg.cholesky(own.covariance_ + jitter)

    def generate(self, labels: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
        """Sample each label's Gaussian: uint8 N×3×H×W."""
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((len(labels), self._means.shape[1]), dtype=np.float32)
        points = self._means[labels] + np.einsum("nij,nj->ni", self._factors[labels], noise)
        pixels = (points @ self._basis + self._pixel_mean).round().clip(0, 255)
        images: NDArray[np.uint8] = pixels.astype(np.uint8).reshape(-1, *self._shape)
        return images
