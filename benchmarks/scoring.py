"""How fast is scoring? The official loop, exact and fast numerics, side by side in one run.

    python -m benchmarks.scoring [--device auto] [--images N] [--rounds 5]

Every contender is a process of its own that makes one pass over the same number of random images
when told to; they take turns, so a machine that slows down slows all of them. The official loop is
the challenge's: a shuffling DataLoader, augmentation, loss and accuracy read after every batch. On
CUDA, fast numerics trains three seeds side by side, and a pass is one of all three. The share is of
the bf16 matrix-product rate measured in the same rounds; arithmetic is counted by PyTorch's own
FlopCounterMode. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from ddchallenge.datasets import get_dataset
from ddchallenge.datasets.normalise import normalise
from ddchallenge.environment import describe_environment, thread_count
from ddchallenge.records import DatasetSpec, LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import dsa, resolve_device
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.draws import Generators
from ddchallenge.scoring.networks import build_network
from ddchallenge.scoring.recipes import recipe_of
from ddchallenge.scoring.runs import STEPPERS, training_context
from ddchallenge.scoring.training import Training

PROTOCOL = PROTOCOLS["eccv2024"]
DATASETS = ("cifar100", "tinyimagenet")
CONTENDERS = ("official loop", "exact", "fast")
MATRIX = 2048
MANY_EPOCHS = 100_000


def random_images(spec: DatasetSpec, n: int) -> LabeledImages:
    """``n`` images of noise, classes in turn."""
    numbers = np.random.default_rng(0)
    shape = (n, 3, spec.image_size, spec.image_size)
    images = numbers.integers(0, 256, shape, dtype=np.uint8)
    return LabeledImages(images, np.arange(n, dtype=np.int64) % spec.num_classes)


def official_pass(spec: DatasetSpec, data: LabeledImages, device: str) -> Callable[[], None]:
    """One epoch of the official script's loop."""
    torch.manual_seed(0)
    generators = Generators(0, torch.device(device))
    images = torch.tensor(normalise(spec, data.images)).to(device)
    labels = torch.tensor(data.labels).to(device)
    network = build_network(
        PROTOCOL.network, image_size=spec.image_size, num_classes=spec.num_classes
    ).to(device)
    sgd = torch.optim.SGD(
        network.parameters(),
        lr=PROTOCOL.learning_rate,
        momentum=PROTOCOL.momentum,
        weight_decay=PROTOCOL.weight_decay,
    )
    loader = DataLoader(TensorDataset(images, labels), batch_size=PROTOCOL.batch_size, shuffle=True)

    def one_pass() -> None:
        right = 0
        for batch, target in loader:
            drawn = dsa.draw(len(batch), spec.image_size, generators)
            output = network(dsa.augment(batch, drawn))
            loss = functional.cross_entropy(output, target)
            guessed = np.argmax(output.cpu().data.numpy(), axis=-1)
            right += int(np.equal(guessed, target.cpu().data.numpy()).sum())
            loss.item()
            sgd.zero_grad()
            torch.autograd.backward(loss)
            sgd.step()

    return one_pass


def our_pass(
    spec: DatasetSpec, data: LabeledImages, device: str, numerics: str, seeds: int
) -> Callable[[], None]:
    """One pass of ours, of all seeds."""
    recipe = recipe_of(PROTOCOL, MANY_EPOCHS, spec)
    train = DeviceImages(data, spec, torch.device(device))
    trainings = [
        Training(train, PROTOCOL, recipe, STEPPERS[numerics], seed=seed)  # type: ignore[index]
        for seed in range(seeds)
    ]

    def one_pass() -> None:
        for _ in range(trainings[0].batches):
            for training in trainings:
                training.step()
        for training in trainings:
            training.mean_loss()  # waits for the device

    return one_pass


def matrix_pass(device: str) -> Callable[[], None]:
    """A bf16 product of two square matrices."""
    left = torch.randn(MATRIX, MATRIX, device=device).bfloat16()
    right = torch.randn(MATRIX, MATRIX, device=device).bfloat16()

    def one_pass() -> None:
        product = left @ right
        float(product[0, 0])

    return one_pass


def child(contender: str, dataset: str, n: int, device: str, seeds: int) -> None:
    """Make a pass for every line on stdin and say how long it took; the peak memory at the end."""
    spec = get_dataset(dataset)
    if contender == "matrix":
        run = matrix_pass(device)
    elif contender == "official loop":
        run = official_pass(spec, random_images(spec, n), device)
    else:
        run = our_pass(spec, random_images(spec, n), device, contender, seeds)

    def serve() -> None:
        run()
        print("ready", flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            run()
            print(time.perf_counter() - began, flush=True)

    if contender in ("exact", "fast"):
        with training_context(torch.device(device), contender):  # type: ignore[arg-type]
            serve()
    else:
        serve()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    print(peak, flush=True)


class Contender:
    """A child process that makes passes."""

    def __init__(self, name: str, dataset: str, n: int, device: str, seeds: int) -> None:
        arguments = json.dumps([name, dataset, n, device, seeds])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scoring", "--child", arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []
        if self._line() != "ready":
            raise SystemExit(f"{name} did not start")

    def _line(self) -> str:
        if self.process.stdout is None:
            raise SystemExit("no pipe")
        return self.process.stdout.readline().strip()

    def run(self) -> None:
        """Have it make one pass."""
        if self.process.stdin is None:
            raise SystemExit("no pipe")
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(float(self._line()))

    def peak(self) -> int:
        """End it; its peak memory in bytes."""
        if self.process.stdin is None:
            raise SystemExit("no pipe")
        self.process.stdin.close()
        return int(self._line())


def operations(spec: DatasetSpec) -> float:
    """Arithmetic of one image's training step: forward and backward, FLOP."""
    network = build_network(
        PROTOCOL.network, image_size=spec.image_size, num_classes=spec.num_classes
    )
    images = torch.randn(2, 3, spec.image_size, spec.image_size)
    with FlopCounterMode(display=False) as counter:
        loss = functional.cross_entropy(network(images), torch.tensor([0, 1]))
        torch.autograd.backward(loss)
    return float(counter.get_total_flops()) / 2


def compare(dataset: str, n: int, device: str, rounds: int) -> None:
    """Measure and print the rows of one data set."""
    spec = get_dataset(dataset)
    seeds = {"fast": 3 if device.startswith("cuda") else 1}
    running = {
        name: Contender(name, dataset, n, device, seeds.get(name, 1))
        for name in ("matrix", *CONTENDERS)
    }
    for number in range(rounds):
        for contender in running.values():
            contender.run()
        print(f"{dataset}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    rate = 2 * MATRIX**3 / statistics.median(running["matrix"].seconds)
    running["matrix"].peak()
    official = running["official loop"].seconds
    work = operations(spec)
    print(
        f"{dataset}, {n:,} images of {spec.image_size} px, {rounds} rounds; "
        f"bf16 matrix product {rate / 1e9:,.0f} GFLOP/s"
    )
    for name in CONTENDERS:
        seconds = [value / seeds.get(name, 1) for value in running[name].seconds]
        ratios = [a / b for a, b in zip(official, seconds, strict=True)]
        each = statistics.median(seconds) / n
        print(
            f"  {name:14} {1e3 * each:7.3f} ms an image and epoch   "
            f"{statistics.median(ratios):5.2f} × ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"{work / each / rate:6.1%} of the product rate   "
            f"peak {running[name].peak() / 2**20:,.0f} MiB",
            flush=True,
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=DATASETS, action="append")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*json.loads(arguments.child))
        return
    device = resolve_device(arguments.device)
    environment = describe_environment(device)
    print(f"{environment.hardware}, {thread_count()} threads, PyTorch {environment.torch}")
    for dataset in arguments.only or DATASETS:
        compare(dataset, arguments.images, device, arguments.rounds)


if __name__ == "__main__":
    main()
