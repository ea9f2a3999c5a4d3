"""What is unusual about a result, in a few words each. Unofficial is said loudly.

A mark stands on every table the result stands on. None means nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ddchallenge.records import DatasetSpec, Manifest, ScoringProtocol
from ddchallenge.rules import get_rules

__all__ = ["UNOFFICIAL", "cost_the_rank", "is_official", "marks_of"]

# How the marks begin that cost a result its rank.
UNOFFICIAL: Final = "unofficial: "

# Stated by the challenge; "digits" has no stated hardware.
OFFICIAL_HARDWARE: Final = {"cifar100": "RTX 4090", "tinyimagenet": "RTX 4090"}


def cost_the_rank(marks: Iterable[str]) -> bool:
    """Whether one of the marks says that the rules were not kept."""
    return any(mark.startswith(UNOFFICIAL) for mark in marks)


def is_official(protocol: ScoringProtocol, epochs: int, seeds: tuple[int, ...]) -> bool:
    """Whether a score follows the protocol in full."""
    return epochs == protocol.epochs and seeds == protocol.seeds


def marks_of(
    manifest: Manifest,
    spec: DatasetSpec,
    protocol: ScoringProtocol,
    epochs: int,
    seeds: tuple[int, ...],
) -> tuple[str, ...]:
    """Every mark a score of this bundle carries."""
    return (
        *_scoring_marks(protocol, epochs, seeds),
        *_sampling_marks(manifest, spec),
        *_content_marks(manifest, spec),
    )


def _scoring_marks(
    protocol: ScoringProtocol, epochs: int, seeds: tuple[int, ...]
) -> tuple[str, ...]:
    marks = []
    if epochs != protocol.epochs:
        marks.append(f"{UNOFFICIAL}{epochs} of {protocol.epochs} epochs")
    if seeds != protocol.seeds:
        marks.append(f"{UNOFFICIAL}seeds {','.join(map(str, seeds))}")
    return tuple(marks)


def _sampling_marks(manifest: Manifest, spec: DatasetSpec) -> tuple[str, ...]:
    marks = []
    log = manifest.sampling
    if log is None:
        if manifest.track == "generative":
            marks.append(UNOFFICIAL + "imported, not sampled under a clock")
        return tuple(marks)
    budget = get_rules(manifest.track).budget_seconds
    equivalent = manifest.equivalent
    if equivalent is not None:  # that the log has this very budget is checked with the bundle
        marks.append(f"calibrated ({equivalent.device} × {equivalent.factor:.3g})")
        if manifest.calibration is not None and manifest.calibration.busy:
            marks.append(f"{UNOFFICIAL}calibrated while the machine was busy")
    elif budget is not None and log.budget_seconds != budget:
        marks.append(f"{UNOFFICIAL}budget {log.budget_seconds:g} s of {budget:g} s")
    hardware = OFFICIAL_HARDWARE.get(spec.name)
    if hardware and hardware not in manifest.environment.hardware:
        marks.append(f"not on an {hardware}")
    if manifest.recovered:
        # What the supervisor would have seen until the deadline, nobody knows.
        marks.append(f"{UNOFFICIAL}recovered after the supervisor was killed")
    elif log.stop in ("interrupted", "disk-full"):
        marks.append(f"{UNOFFICIAL}stopped early: {log.stop}")
    elif log.stop in ("crashed", "refused", "limit"):
        marks.append(f"stopped early: {log.stop}")
    if manifest.by_command:
        marks.append("a command: cannot be replayed")
    if log.max_images is not None:
        marks.append(f"at most {log.max_images} images")
    return tuple(marks)


def _content_marks(manifest: Manifest, spec: DatasetSpec) -> tuple[str, ...]:
    marks = []
    had = manifest.training_images_per_class
    if had is not None and had < spec.training_images_per_class:
        marks.append(f"{had} of {spec.training_images_per_class} training images a class")
    if manifest.contains_real_images:
        marks.append("real images")
    if not manifest.images_per_class[0]:
        marks.append("classes without images")
    if manifest.normalisation not in ("pixels", "official"):
        marks.append(f"normalisation: {manifest.normalisation}")
    return tuple(marks)
