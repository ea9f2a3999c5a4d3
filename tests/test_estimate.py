"""How long it will take is worked out from steps that were measured."""

import itertools

import numpy as np
import pytest
import torch

from ddchallenge.datasets import get_dataset
from ddchallenge.records import LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import estimate as module
from ddchallenge.scoring.estimate import estimate, peak_memory
from ddchallenge.scoring.recipes import recipe_of

PROTOCOL = PROTOCOLS["eccv2024"]
SPEC = get_dataset("digits")
CPU = torch.device("cpu")


def random_images(n):
    numbers = np.random.default_rng(5)
    images = numbers.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    return LabeledImages(images, np.arange(n, dtype=np.int64) % 10)


def test_time_is_steps_times_the_measured_step(monkeypatch):
    """By a clock that adds a second at every look: a step takes one, the test of a batch of 256
    of 1000 images one, so 41 passes of two batches for three seeds, and their tests, take
    3·(82 + 1000/256) seconds, and the first step on top."""
    clock = itertools.count()
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(module.Training, "step", lambda training: None)
    found = estimate(
        random_images(300),
        random_images(1000),
        SPEC,
        PROTOCOL,
        recipe_of(PROTOCOL, 40, SPEC),
        seeds=[0, 1, 2],
        numerics="exact",
        device=CPU,
    )

    assert (found.steps, found.step_seconds, found.first_step_seconds) == (82, 1, 1)
    assert found.test_seconds == pytest.approx(1000 / 256)
    assert found.seconds == pytest.approx(3 * (82 + 1000 / 256) + 1)


def test_memory_is_what_was_held_meanwhile():
    """200 MiB that are filled show in the peak; after the peak is forgotten they do not."""
    module._forget_peak(CPU)
    before = peak_memory(CPU)
    block = np.ones(200 << 20, dtype=np.uint8)
    with_block = peak_memory(CPU)
    del block
    module._forget_peak(CPU)

    assert with_block - before == pytest.approx(200 << 20, rel=0.05)
    assert peak_memory(CPU) < with_block - (150 << 20)
