"""Versioned constants: what the tracks allow, and how a bundle is scored.

A change to any number here is a new id, never an edit: results name the id they were made under.
Source of the numbers: the ECCV 2024 Dataset Distillation Challenge and its ``evaluate.py``.
"""

from __future__ import annotations

from typing import Final

from ddchallenge.errors import UnknownNameError
from ddchallenge.records import Rules, ScoringProtocol

__all__ = ["DEFAULT_PROTOCOL", "PROTOCOLS", "TRACKS", "get_rules"]

TRACKS: Final = {
    "generative": Rules(
        id="eccv2024-generative-1",
        track="generative",
        budget_seconds=600.0,
        clock_covers="everything from just before the worker process is started: interpreter, "
        "imports, weights, sampling, post augmentation, handing over",
        images_per_class=None,
    ),
    "fixed-ipc": Rules(
        id="eccv2024-fixed-ipc-1",
        track="fixed-ipc",
        budget_seconds=None,
        clock_covers="nothing: the images were optimised beforehand",
        images_per_class=10,
    ),
}

PROTOCOLS: Final = {
    "eccv2024": ScoringProtocol(
        id="eccv2024",
        network="ConvNetD3-W128",
        epochs=1000,
        seeds=(0, 1, 2),
        batch_size=256,
        learning_rate=0.01,
        learning_rate_after_drop=0.001,
        momentum=0.9,
        weight_decay=5e-4,
    )
}
DEFAULT_PROTOCOL: Final = "eccv2024"


def get_rules(track: str) -> Rules:
    """The rules of a track; raises :class:`UnknownNameError`."""
    try:
        return TRACKS[track]
    except KeyError:
        raise UnknownNameError("track", track, TRACKS) from None
