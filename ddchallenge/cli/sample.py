"""`sample`: a generator to a bundle."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from ddchallenge.cli.output import new_console, print_json, say
from ddchallenge.cli.parameters import (
    SamplingOptions,
    with_data_dir,
    with_dataset,
    with_device,
    with_json,
    with_out,
    with_sampling,
)
from ddchallenge.cli.steps import free_folder, open_dataset, show_audit, training_images
from ddchallenge.errors import RequestError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.records import Bundle, DatasetSpec, DatasetSplit, Rules
    from ddchallenge.sampling.supervisor import SamplingOrder

__all__ = ["end_as_the_generator_did", "order_of", "run_generator", "sample"]


@click.command()
@with_dataset
@with_sampling
@with_device
@with_data_dir
@with_out
@with_json
def sample(
    dataset: str,
    image_size: int | None,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    **sampling: Unpack[SamplingOptions],
) -> None:
    """Run a generator under its budget, to a bundle: half of `run`."""
    from ddchallenge.jsonio import to_json
    from ddchallenge.rules import get_rules
    from ddchallenge.scoring import resolve_device

    console = new_console()
    spec = open_dataset(console, dataset, image_size)
    order = order_of(get_rules("generative"), spec, resolve_device(device), sampling)
    out = free_folder(out, spec, order.submission.name)
    bundle = run_generator(console, order, data_dir, out)
    show_audit(console, bundle, spec)
    if as_json:
        print_json({"bundle": str(bundle.folder), "manifest": to_json(bundle.manifest)})
    end_as_the_generator_did(bundle, out)


def order_of(
    rules: Rules,
    spec: DatasetSpec,
    device: str,
    options: SamplingOptions,
) -> SamplingOrder:
    """What the options ask a generator for; raises :class:`RequestError` for what cannot be."""
    from ddchallenge.augment import get_plan
    from ddchallenge.generator import DEFAULT_SUBMISSION, find_submission, require_dataset
    from ddchallenge.sampling.supervisor import SamplingOrder

    chosen = find_submission(options["submission"] or DEFAULT_SUBMISSION)
    require_dataset(chosen, spec)
    plan = get_plan(options["augment"] or chosen.augmentation)
    max_images = options["max_images"]
    if chosen.command is not None:
        _refuse_for_commands(chosen.name, plan.name, max_images)
    limit = "--max-images", max_images
    if max_images is None:
        limit = "images_per_class =", chosen.images_per_class
    if limit[1] is not None and limit[1] < 1 + plan.copies:
        raise RequestError(
            f"{limit[0]} {limit[1]} is less than one image and its {plan.copies} copies "
            f"({plan.name})."
        )
    return SamplingOrder(
        submission=chosen,
        dataset=spec,
        rules=rules,
        budget_seconds=options["budget"] or rules.budget_seconds or 0.0,
        device=device,
        run_seed=options["seed"],
        max_images=max_images,
        augmentation=plan.name,
        training_data=None,
    )


def _refuse_for_commands(name: str, plan: str, max_images: int | None) -> None:
    if max_images is not None:
        raise RequestError(
            f"--max-images cannot be kept by {name}: its command itself decides how many images "
            "it makes.\nLeave it out."
        )
    if plan != "none":
        raise RequestError(
            f"--augment {plan} is for generators; the command of {name} hands over its images as "
            "they are to be trained on.\nLeave it out."
        )


def run_generator(
    console: Console, order: SamplingOrder, data_dir: Path | None, out: Path
) -> Bundle:
    """Sample to ``out/bundle``, and say what came of it."""
    from ddchallenge.pipeline import sample_bundle
    from ddchallenge.report.live import SamplingDisplay

    training: DatasetSplit | None = None
    if order.submission.needs_training_data:
        training = training_images(console, order.dataset, data_dir)
        order = replace(order, training_data=training.folder)
    with closing(SamplingDisplay(console, "sampling")) as display:
        bundle = sample_bundle(
            order, training, out, display, lambda line: say(console, line, style="yellow")
        )
    log = bundle.manifest.sampling
    if log is not None:
        say(
            console,
            f"{bundle.manifest.images:,} images in {log.elapsed_seconds:.1f} s of "
            f"{log.budget_seconds:g} s, stopped by: {log.stop}"
            + (f" ({log.stop_detail})" if log.stop_detail else "")
            + (f"; {log.late_images:,} came too late" if log.late_images else ""),
        )
        if log.stop in ("crashed", "refused", "limit"):
            say(console, f"What it printed is in {out / 'worker.log'}")
    say(console, f"Bundle: {bundle.folder} (look at {bundle.folder / 'samples.png'})")
    return bundle


def end_as_the_generator_did(bundle: Bundle, out: Path) -> None:
    """A generator that failed is a failed run, whatever could be kept and scored of it."""
    log = bundle.manifest.sampling
    if log is not None and log.stop in ("crashed", "refused", "limit", "disk-full"):
        raise RunError(
            f"The run {log.stop}: {log.stop_detail}\n"
            f"The {bundle.manifest.images:,} images it handed over before that are kept in {out}."
        )
