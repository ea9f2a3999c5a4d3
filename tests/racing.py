"""Runs submissions under a short budget and looks for what they leave behind."""

from __future__ import annotations

from pathlib import Path

import psutil

from ddchallenge.datasets import get_dataset
from ddchallenge.rules import get_rules
from ddchallenge.sampling.supervisor import Sampled, SamplingOrder, sample

SPEC = get_dataset("digits")

# Every image holds its label and its batch's seed, so that a test can tell where it came from.
HONEST = """
import numpy as np

class G:
    def setup(self, task):
        pass

    def generate(self, labels, seed):
        images = np.zeros((len(labels), 3, 8, 8), np.uint8)
        images[:, 0] = labels[:, None, None]
        images[:, 1] = seed % 251
        return images
"""


def order_for(submission, budget: float = 20.0, **changes) -> SamplingOrder:
    """An order on digits."""
    values = {
        "submission": submission,
        "dataset": SPEC,
        "rules": get_rules("generative"),
        "budget_seconds": budget,
        "device": "cpu",
        "run_seed": 5,
        "max_images": None,
        "augmentation": "none",
        "training_data": None,
    }
    return SamplingOrder(**(values | changes))


def race(submission, folder: Path, budget: float = 20.0, **changes) -> Sampled:
    """What a submission brings within its budget; its spool stays where it was."""
    on_status = changes.pop("on_status", None)
    sampled = sample(order_for(submission, budget, **changes), folder, on_status)
    sampled.spool.close()
    return sampled


def children() -> set[int]:
    """Everything below this process."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def living(name: str) -> set[int]:
    """The living processes of this machine that call themselves ``name`` (prctl, 15 bytes)."""
    found = set()
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] == name and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


class Sightings:
    """Notes the processes of that name while a run goes on: pass it as ``on_status``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: set[int] = set()

    def __call__(self, status: object) -> None:
        self.seen |= living(self.name)

    def none_left(self) -> bool:
        """Whether there were some, and all of them are gone."""
        assert self.seen, f"no process called {self.name} was ever there"
        return not self.seen & living(self.name) and not living(self.name)
