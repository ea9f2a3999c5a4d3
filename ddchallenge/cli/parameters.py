"""The types of parameters, and the options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import click

from ddchallenge.cli.launch import LaunchOptions, launch_options
from ddchallenge.errors import RequestError

__all__ = [
    "PATH",
    "SamplingOptions",
    "ScoringOptions",
    "required",
    "with_bundle_dataset",
    "with_data_dir",
    "with_dataset",
    "with_device",
    "with_image_size",
    "with_json",
    "with_out",
    "with_record",
    "with_sampling",
    "with_scoring",
]

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]
PATH = click.Path(path_type=Path)


class _Budget(click.ParamType):  # type: ignore[type-arg]  # not subscriptable before 8.5
    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", str(value))
        seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"] if match else 0
        if not 0 < seconds <= 86_400:
            self.fail(f"{value!r} is no time such as 90s, 10m or 1h (at most 24h)", param, ctx)
        return seconds


class _Seeds(click.ParamType):  # type: ignore[type-arg]
    name = "seeds"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"\s*\d{1,19}\s*(,\s*\d{1,19}\s*)*", str(value)):
            self.fail(f"{value!r} is no list of seeds such as 0,1,2", param, ctx)
        return tuple(int(part) for part in str(value).split(","))


def required(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """A callback for options that must be given; raises :class:`RequestError` with their help.

    click would say that the option is missing, but not what could be given.
    """
    if value is None:
        raise RequestError(f"--{param.name} is missing.\n{getattr(param, 'help', '')}")
    return value


def _together(*options: _Decorator) -> _Decorator:
    def apply(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


with_image_size = click.option(
    "--image-size",
    type=click.IntRange(min=8, max=1024),
    metavar="N",
    help="Of folder:PATH: pixels a side.  [default: as all images are, else 224]",
)
with_data_dir = click.option(
    "--data-dir",
    type=PATH,
    help="Where the data sets are; else DDCHALLENGE_DATA, else a cache folder.",
)
with_device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, or cuda (cuda:1 and so on)."
)
with_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
with_out = click.option("--out", type=PATH, help="Folder to write; must not hold results yet.")
with_record = click.option("--record", is_flag=True, help="Put the result beside the submission.")

with_dataset = _together(
    click.option(
        "--dataset",
        callback=required,
        metavar="D",
        help="digits, cifar100, tinyimagenet, or folder:PATH with train/<class>/ and val/<class>/.",
    ),
    with_image_size,
)
with_bundle_dataset = _together(
    click.option("--dataset", metavar="D", help="Where the class folders lie, as folder:PATH."),
    with_image_size,
)

with_sampling = _together(
    click.option(
        "--submission", metavar="S", help="A name or a folder; see `ddchallenge submissions`."
    ),
    click.option(
        "--budget", type=_Budget(), help="Wall clock, such as 90s or 10m.  [default: 600s]"
    ),
    click.option(
        "--max-images", type=click.IntRange(min=1), help="Images in the bundle, copies included."
    ),
    click.option(
        "--augment",
        metavar="PLAN",
        help="Post augmentation: none or pda5.  [default: the submission's]",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0, max=2**63 - 1),
        default=0,
        show_default=True,
        help="Seed of the run.",
    ),
    *launch_options,
)

with_scoring = _together(
    click.option(
        "--protocol", metavar="P", help="How to train: eccv2024 or imagewoof.  [default: eccv2024]"
    ),
    click.option(
        "--network", metavar="N", help="Of imagewoof: ConvNet-6, ResNetAP-10 (default), ResNet-18."
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=0),
        help="eccv2024 makes one pass more, as the official script.  [default: the protocol's]",
    ),
    click.option("--seeds", type=_Seeds(), help="One network each.  [default: 0,1,2]"),
    click.option(
        "--numerics",
        metavar="exact|fast",
        help="The official arithmetic to the bit, or the machine's best.  "
        "[default: fast where it was shown to score alike]",
    ),
    click.option(
        "--reference", is_flag=True, help="Score as many random real images a class as well."
    ),
    click.option(
        "--no-resume", is_flag=True, help="Begin anew, whatever a broken-off run had trained."
    ),
)


class SamplingOptions(LaunchOptions):
    """What a command below :data:`with_sampling` is given; None where nothing was said."""

    submission: str | None
    budget: float | None
    max_images: int | None
    augment: str | None
    seed: int


class ScoringOptions(TypedDict):
    """What a command below :data:`with_scoring` is given; None where nothing was said."""

    protocol: str | None
    network: str | None
    epochs: int | None
    seeds: tuple[int, ...] | None
    numerics: str | None
    reference: bool
    no_resume: bool
