"""Do fast numerics score like exact ones? Trains many seeds both ways and tests for equivalence.

    python -m benchmarks.equivalence [--data-dir D] [--only digits] [--write]

Each seed draws its own random real training images, and is trained and tested both ways; the mean
of the paired differences gets a 90 % t-interval, which two one-sided tests hold against half a
percentage point. ``digits`` runs the full protocol; the larger sets as many epochs as two CPU cores
allow in an hour. Pairs are kept as they come (--keep): a run that is broken off goes on.
``--write`` puts the outcome where ``ddchallenge score`` quotes it from.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.environment import describe_environment
from ddchallenge.jsonio import read_json, to_json, write_json
from ddchallenge.records import DatasetSpec, LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import resolve_device, score
from ddchallenge.scoring.equivalence import FILE, MARGIN, MAX_BYTES, Equivalence, of_differences

PROTOCOL = PROTOCOLS["eccv2024"]


@dataclass(frozen=True)
class Plan:
    dataset: str
    epochs: int
    images_per_class: int
    seeds: int


PLANS = [
    Plan("digits", PROTOCOL.epochs, 10, 20),
    Plan("cifar100", 30, 5, 6),
    Plan("tinyimagenet", 15, 2, 5),
]


def random_images(
    train: LabeledImages, spec: DatasetSpec, images_per_class: int, seed: int
) -> LabeledImages:
    """That many training images of every class, drawn from the seed, class after class."""
    rng = np.random.default_rng([seed, 20_000])
    chosen = np.concatenate(
        [
            np.sort(rng.choice(np.flatnonzero(train.labels == label), images_per_class, False))
            for label in range(spec.num_classes)
        ]
    )
    return LabeledImages(train.images[chosen], train.labels[chosen])


def pairs_of(
    plan: Plan, device: str, data_dir: Path | None, keep: Path
) -> tuple[list[list[float]], int]:
    """(exact, fast) accuracies of every seed; those in the file ``keep`` are not trained again."""
    spec = get_dataset(plan.dataset)
    train = load_split(spec, "train", data_dir).data
    test = load_split(spec, "test", data_dir).data
    settings = [plan.dataset, plan.epochs, plan.images_per_class, device, torch.__version__]
    kept = {}
    if keep.is_file():
        for line in keep.read_text().splitlines():
            entry = json.loads(line)
            if entry["settings"] == settings:
                kept[entry["seed"]] = entry["accuracies"]
    for seed in range(plan.seeds):
        if seed not in kept:
            began = time.monotonic()
            images = random_images(train, spec, plan.images_per_class, seed)
            kept[seed] = [
                score(
                    images,
                    test,
                    spec,
                    PROTOCOL,
                    epochs=plan.epochs,
                    seeds=[seed],
                    device=device,
                    numerics=numerics,
                )[0].run.accuracy
                for numerics in ("exact", "fast")
            ]
            with keep.open("a") as file:
                entry = {"settings": settings, "seed": seed, "accuracies": kept[seed]}
                file.write(json.dumps(entry) + "\n")
            exact, fast = kept[seed]
            print(
                f"{plan.dataset} seed {seed}: exact {exact:.2%}, fast {fast:.2%} "
                f"({time.monotonic() - began:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return [kept[seed] for seed in range(plan.seeds)], len(test)


def measure(plan: Plan, device: str, data_dir: Path | None, keep: Path) -> Equivalence:
    pairs, test_images = pairs_of(plan, device, data_dir, keep)
    differences = [fast - exact for exact, fast in pairs]
    mean, interval = of_differences(differences)
    environment = describe_environment(device)
    return Equivalence(
        device=device.partition(":")[0],
        dataset=plan.dataset,
        protocol=PROTOCOL.id,
        epochs=plan.epochs,
        images_per_class=plan.images_per_class,
        test_images=test_images,
        seeds=len(pairs),
        exact_mean=float(np.mean([exact for exact, _ in pairs])),
        fast_mean=float(np.mean([fast for _, fast in pairs])),
        difference=mean,
        interval90=interval,
        largest_difference=max(map(abs, differences)),
        commit=environment.commit,
        torch=environment.torch,
        hardware=environment.hardware,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=[plan.dataset for plan in PLANS], action="append")
    parser.add_argument("--seeds", type=int, help="instead of the plan's number")
    parser.add_argument("--keep", type=Path, default=Path("equivalence-pairs.jsonl"))
    parser.add_argument("--write", action="store_true", help=f"update {FILE.name}")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    entries = []
    for plan in PLANS:
        if arguments.only and plan.dataset not in arguments.only:
            continue
        if arguments.seeds:
            plan = Plan(plan.dataset, plan.epochs, plan.images_per_class, arguments.seeds)
        entry = measure(plan, device, arguments.data_dir, arguments.keep)
        entries.append(entry)
        low, high = entry.interval90
        print(
            f"{entry.dataset}, {entry.epochs} epochs, {entry.images_per_class} images a class, "
            f"n = {entry.seeds}: exact {entry.exact_mean:.2%}, fast {entry.fast_mean:.2%}; "
            f"difference {100 * entry.difference:+.3f} points, "
            f"90 % [{100 * low:+.3f}, {100 * high:+.3f}], "
            f"largest of a pair {100 * entry.largest_difference:.2f}: "
            + ("equivalent" if entry.established else "NOT shown equivalent")
            + f" within ±{100 * MARGIN:g}"
        )
    if arguments.write:
        new = {(entry.device, entry.dataset): to_json(entry) for entry in entries}
        old = read_json(FILE, MAX_BYTES)["measurements"] if FILE.is_file() else []
        kept = [entry for entry in old if (entry["device"], entry["dataset"]) not in new]
        write_json(FILE, {"measurements": kept + list(new.values())})


if __name__ == "__main__":
    main()
