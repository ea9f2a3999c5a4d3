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
from ddchallenge.scoring.runs import Experiment

PROTOCOL = PROTOCOLS["eccv2024"]
SPEC = get_dataset("digits")
CPU = torch.device("cpu")


def random_images(n):
    numbers = np.random.default_rng(5)
    images = numbers.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    return LabeledImages(images, np.arange(n, dtype=np.int64) % 10)


def test_time_is_steps_times_the_measured_step(monkeypatch):
    """By a clock that adds a second at every look: a step of 256 images takes one, a step of the
    44 that are left one, so three measured steps of 44, 256 and 44 images say 3/344 seconds an
    image; the test of 256 of 1000 images takes one. 41 passes over 300 images for three seeds,
    their tests, and the first step on top."""
    clock = itertools.count()
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))

    def step(training):
        training.batch = 1 - training.batch

    monkeypatch.setattr(module.Training, "step", step)
    found = estimate(
        Experiment(
            train=random_images(300),
            test=random_images(1000),
            spec=SPEC,
            protocol=PROTOCOL,
            recipe=recipe_of(PROTOCOL, 40, SPEC),
            seeds=[0, 1, 2],
            numerics="exact",
            device=CPU,
        )
    )

    assert (found.steps, found.first_step_seconds) == (82, 1)
    assert found.step_seconds == pytest.approx(3 / 344 * 150)
    assert found.test_seconds == pytest.approx(1000 / 256)
    assert found.seconds == pytest.approx(3 * (41 * 300 * 3 / 344 + 1000 / 256) + 1)


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
