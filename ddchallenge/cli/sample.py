"""`sample`: a generator to a bundle."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

import click
from click.core import ParameterSource

from ddchallenge.cli.calibrate import calibrated
from ddchallenge.cli.launch import launcher_of
from ddchallenge.cli.output import new_console, print_json, say, waiting
from ddchallenge.cli.parameters import (
    PATH,
    SamplingOptions,
    with_data_dir,
    with_device,
    with_image_size,
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


_FAILED: Final = {
    "crashed": "The run crashed",
    "refused": "The run was refused",
    "limit": "The run took more than it may",
    "disk-full": "The disk filled up",
}


@click.command()
@click.option(
    "--dataset",
    metavar="D",
    help="digits, cifar100, tinyimagenet, or folder:PATH with train/<class>/ and val/<class>/.",
)
@with_image_size
@with_sampling
@with_device
@with_data_dir
@with_out
@with_json
@click.option(
    "--recover",
    type=PATH,
    metavar="DIR",
    help="Make the bundle of a run that was killed, of all it had received. "
    "Goes with --dataset for class folders, else alone.",
)
def sample(
    dataset: str | None,
    image_size: int | None,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    recover: Path | None,
    **sampling: Unpack[SamplingOptions],
) -> None:
    """Run a generator under its budget, to a bundle: half of `run`."""
    from ddchallenge.jsonio import to_json
    from ddchallenge.rules import get_rules
    from ddchallenge.scoring import resolve_device

    console = new_console()
    if recover is not None:
        _only(click.get_current_context(), "recover", "dataset", "image_size", "as_json")
        bundle = _recovered(console, recover, dataset, image_size)
    else:
        if dataset is None:
            raise RequestError(
                "--dataset is missing.\ndigits, cifar100, tinyimagenet, or folder:PATH."
            )
        spec = open_dataset(console, dataset, image_size)
        rules = get_rules("generative")
        order = order_of(rules, spec, resolve_device(device), data_dir, sampling)
        order = calibrated(console, order, sampling)
        out = free_folder(out, spec, order.submission.name)
        bundle = run_generator(console, order, data_dir, out)
        show_audit(console, bundle, spec)
    if as_json:
        print_json({"bundle": str(bundle.folder), "manifest": to_json(bundle.manifest)})
    if recover is None:
        end_as_the_generator_did(bundle, bundle.folder.parent)


def _only(context: click.Context, *names: str) -> None:
    """Refuse every option that was given on the command line and is none of these."""
    for name in context.params:
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in names:
            option = "--" + name.replace("_", "-")
            raise RequestError(
                f"{option} means nothing with --recover: that run is over; leave it out."
            )


def _recovered(
    console: Console, folder: Path, dataset: str | None, image_size: int | None
) -> Bundle:
    from ddchallenge.pipeline import recover_bundle
    from ddchallenge.sampling.recover import read_run

    name = dataset or read_run(folder).dataset
    try:
        spec = open_dataset(console, name, image_size)
    except RequestError:
        if dataset is not None:
            raise
        raise RequestError(
            f"The run in {folder} was for the class folders {name}.\n"
            "Say where they lie with --dataset folder:PATH."
        ) from None
    with waiting(console, "Reading the spool"):
        bundle = recover_bundle(folder, spec)
    log = bundle.manifest.sampling
    show_audit(console, bundle, spec)
    say(console, f"{bundle.manifest.images:,} images recovered" + (
        f": {log.stop_detail}" if log is not None else ""
    ))  # fmt: skip
    say(console, f"Bundle: {bundle.folder} (look at {bundle.folder / 'samples.png'})")
    return bundle


def order_of(
    rules: Rules,
    spec: DatasetSpec,
    device: str,
    data_dir: Path | None,
    options: SamplingOptions,
) -> SamplingOrder:
    """What the options ask a generator for; raises :class:`RequestError` for what cannot be.

    The generator cannot read ``data_dir``.
    """
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
        launcher=launcher_of(options, data_dir),
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
    from ddchallenge.records import STOPPED_BY
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
            f"{bundle.manifest.images:,} images in "
            f"{log.elapsed_seconds - log.seconds.stopping:.1f} s of "
            f"{log.budget_seconds:g} s, stopped by: {STOPPED_BY[log.stop]}"
            + (f" ({log.stop_detail})" if log.stop_detail else "")
            + (f"; {log.seconds.stopping:.1f} s to stop" if log.seconds.stopping >= 0.5 else "")
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
            f"{_FAILED[log.stop]}: {log.stop_detail}\n"
            f"The {bundle.manifest.images:,} images it handed over before that are kept in {out}."
        )
