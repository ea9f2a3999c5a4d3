"""How long a score will take and how much memory it needs, from a few of its own steps."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from ddchallenge.records import LabeledImages, Numerics
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.runs import STEPPERS, Experiment, side_by_side, training_context
from ddchallenge.scoring.testing import confusion_matrix
from ddchallenge.scoring.training import Training

__all__ = ["Estimate", "estimate", "peak_memory"]

# Enough for a median, or for a second of small steps.
STEPS: Final = 3
SECONDS: Final = 1.0
MOST_STEPS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """``seconds`` for all seeds together, tests included; ``step_seconds`` for a step of one seed.

    ``first_step_seconds`` is what the first step took here, compilation included.
    ``memory_bytes`` is the most the process held, or the device allocated, while it was measured.
    ``notes`` are lines for people.
    """

    numerics: Numerics
    seconds: float
    step_seconds: float
    steps: int
    first_step_seconds: float
    test_seconds: float
    memory_bytes: int
    notes: tuple[str, ...]


def estimate(experiment: Experiment) -> Estimate:
    """Train a few steps and test one batch; nothing is kept of it."""
    seeds, numerics, device = experiment.seeds, experiment.numerics, experiment.device
    protocol, recipe, test = experiment.protocol, experiment.recipe, experiment.test
    _forget_peak(device)
    together = len(seeds) if side_by_side(numerics, device) else 1
    with training_context(device, numerics):
        images = DeviceImages(experiment.train, experiment.spec, device)
        trainings = [
            Training(images, protocol, recipe, STEPPERS[numerics], seed=seed)
            for seed in seeds[:together]
        ]
        first = _round(trainings)[0]
        rounds = [_round(trainings) for _ in range(STEPS)]
        while sum(seconds for seconds, _ in rounds) < SECONDS and len(rounds) < MOST_STEPS:
            rounds.append(_round(trainings))
        rows = trainings[0].stepper.rows
        part = _first(test, recipe.batch_size)
        some = DeviceImages(part, experiment.spec, device)
        confusion_matrix(trainings[0].network, some, rows)
        began = time.monotonic()
        confusion_matrix(trainings[0].network, some, rows)
        test_seconds = (time.monotonic() - began) / len(part) * len(test)
    test_seconds *= recipe.tests
    # By the image: batches differ in size, the last of a pass may have a single one.
    each = sum(seconds for seconds, _ in rounds) / sum(images for _, images in rounds)
    steps = trainings[0].steps
    step = each * len(experiment.train) / trainings[0].batches
    return Estimate(
        numerics=numerics,
        seconds=len(seeds) * (step * steps + test_seconds) + first,
        step_seconds=step,
        steps=steps,
        first_step_seconds=first,
        test_seconds=test_seconds,
        memory_bytes=peak_memory(device),
        notes=tuple(trainings[0].stepper.notes),
    )


def _round(trainings: Sequence[Training]) -> tuple[float, int]:
    """A step of each: how long it took, and how many images were trained on."""
    images = sum(training.next_size for training in trainings)
    began = time.monotonic()
    for training in trainings:
        training.step()
    for training in trainings:
        training.mean_loss()  # waits for the device
    return time.monotonic() - began, images


def _first(test: LabeledImages, n: int) -> LabeledImages:
    return LabeledImages(test.images[:n], test.labels[:n])


_CLEAR_REFS: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident size
    except OSError:
        pass  # the peak is then that of the process so far


def peak_memory(device: torch.device) -> int:
    """The most memory held so far, in bytes: on CUDA what PyTorch allocated there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
