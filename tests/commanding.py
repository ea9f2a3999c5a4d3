"""Submissions that are a script of the old challenge, for the tests of commands."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import numpy as np
import racing
import torch

from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.datasets.normalise import normalise
from ddchallenge.generator import Submission, read_submission
from ddchallenge.sampling.supervisor import SamplingOrder

SPEC = get_dataset("digits")
PER_CLASS = 3

# As an entrant would have written it: it knows of no harness, reads its weights from beside
# itself and its class names from the working folder, and saves what the evaluator reads.
SCRIPT = f"""
import os
import numpy as np
import torch
from sampler import sample

MEAN = torch.tensor({list(SPEC.mean)}).view(1, 3, 1, 1)
STD = torch.tensor({list(SPEC.std)}).view(1, 3, 1, 1)
here = os.path.dirname(os.path.abspath(__file__))
prior = np.load(os.path.join(here, "weights", "prior.npy"))
all_images = []
for number, name in enumerate(open("./classes.txt").read().split()):
    images = sample(prior, number).float() / 255.0
    all_images.append((images - MEAN) / STD)
tensor = torch.cat(all_images)
print("generated", tuple(tensor.shape))
"""
SAVES = 'torch.save(tensor, "digits.pt")\n'

# What counts for the clock and the box is not how the file came about: this one is there at once.
COPIES = """
import shutil
shutil.copy("ready.pt", "digits.pt")
"""

SAMPLER = """
import torch

def sample(prior, number):
    return torch.from_numpy(prior[number])
"""


def real_images(per_class: int = PER_CLASS) -> np.ndarray:
    """The first training images of every digit: uint8 10×per_class×3×8×8."""
    data = load_split(SPEC, "train").data
    return np.stack(
        [np.asarray(data.images)[np.flatnonzero(data.labels == c)[:per_class]] for c in range(10)]
    )


def tensor() -> torch.Tensor:
    """The same as the evaluator reads them: float32 30×3×8×8, normalised, class-major."""
    return torch.from_numpy(normalise(SPEC, real_images().reshape(-1, 3, 8, 8)))


def make_command(parent: Path, code: str, name: str = "entry", **settings: str) -> Submission:
    """A submission whose submit.py is ``code``; settings are raw TOML values."""
    folder = parent / name
    (folder / "weights").mkdir(parents=True)
    (folder / "submit.py").write_text(dedent(code))
    (folder / "sampler.py").write_text(SAMPLER)
    (folder / "classes.txt").write_text("\n".join(f"c{i}" for i in range(10)) + "\n")
    np.save(folder / "weights" / "prior.npy", real_images())
    torch.save(tensor(), folder / "ready.pt")
    values = {
        "name": f'"{name}"',
        "authors": '["a test"]',
        "command": '["python", "submit.py"]',
        "output": '"digits.pt"',
        "datasets": '["digits"]',
    } | settings
    (folder / "submission.toml").write_text(
        "".join(f"{key} = {value}\n" for key, value in values.items())
    )
    return read_submission(folder)


def order_for(submission: Submission, budget: float = 60.0, **changes) -> SamplingOrder:
    """An order to run it on digits."""
    return racing.order_for(submission, budget, **changes)
