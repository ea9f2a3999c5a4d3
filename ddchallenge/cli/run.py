"""`run`: all the way, from a generator or a tensor file to a result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

import click

from ddchallenge.cli.judge import Judge
from ddchallenge.cli.output import new_console, say
from ddchallenge.cli.parameters import (
    PATH,
    SamplingOptions,
    ScoringOptions,
    required,
    with_data_dir,
    with_dataset,
    with_device,
    with_json,
    with_out,
    with_record,
    with_sampling,
    with_scoring,
)
from ddchallenge.cli.sample import end_as_the_generator_did, order_of, run_generator
from ddchallenge.cli.score import finish, rest_of_line, train_and_test
from ddchallenge.cli.steps import (
    check_writable,
    free_folder,
    open_dataset,
    show_audit,
    test_images,
    training_images,
)
from ddchallenge.cli.tensors import import_tensors
from ddchallenge.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.records import Bundle, DatasetSplit

__all__ = ["run"]


class _Options(SamplingOptions, ScoringOptions):
    pass


@click.command()
@click.option(
    "--track",
    callback=required,
    metavar="T",
    help="generative (a generator under a budget) or fixed-ipc (a tensor file).",
)
@with_dataset
@with_sampling
@click.option("--images", type=PATH, help="The tensor file of the fixed-ipc track.")
@click.option("--labels", type=PATH, help="Labels of --images; without: class-major order.")
@with_scoring
@with_device
@with_data_dir
@with_out
@with_record
@with_json
def run(
    track: str,
    dataset: str,
    image_size: int | None,
    images: Path | None,
    labels: Path | None,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    record: bool,
    as_json: bool,
    **options: Unpack[_Options],
) -> None:
    """Go all the way: from a generator, or a tensor file, to a scored result."""
    from ddchallenge.leaderboard import check_recordable, record_path
    from ddchallenge.rules import get_rules

    console = new_console()
    rules, spec = get_rules(track), open_dataset(console, dataset, image_size)
    judge = Judge.of(device, options)
    judge.check_size(spec)
    order = recorded = None
    if rules.track == "generative":
        _refuse(track, {"--images": images, "--labels": labels})
        order = order_of(rules, spec, judge.device, data_dir, options)
        origin = order.submission.name
        if record:
            recorded = record_path(order.submission, spec.name, judge.protocol.id)
            check_writable(recorded.parent)
            by_the_rules = judge.official and order.budget_seconds == rules.budget_seconds
            check_recordable(recorded, official=by_the_rules)
    else:
        _refuse(
            track,
            {
                "--submission": options["submission"],
                "--budget": options["budget"],
                "--augment": options["augment"],
                "--max-images": options["max_images"],
                "--engine": options["engine"],
                "--memory": options["memory"],
                "--disk": options["disk"],
                "--processes": options["processes"],
                "--cpus": options["cpus"],
                "--record": record or None,
            },
        )
        if images is None:
            raise RequestError("The fixed-ipc track needs --images FILE.pt, the optimised tensor.")
        origin = images.stem
    out = free_folder(out, spec, origin)
    # All data is looked for before the clock starts: ten minutes must not end in "not found".
    test = test_images(console, spec, data_dir)
    training = training_images(console, spec, data_dir) if judge.reference else None
    if order is None:
        bundle = import_tensors(
            console, cast("Path", images), labels, spec, rules.track, out / "bundle"
        )
    else:
        bundle = run_generator(console, order, data_dir, out)
    findings = show_audit(console, bundle, spec, test)
    judge = judge.settled(bundle, spec)
    if training is not None:
        training = _enough(console, bundle, training)
    rest = rest_of_line(device, data_dir, None, record, as_json)
    scored = train_and_test(console, bundle, test, training, judge, rest, findings)
    finish(console, scored, spec, out, recorded, as_json)
    end_as_the_generator_did(bundle, out)


def _refuse(track: str, given: dict[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise RequestError(f"{option} means nothing on the {track} track; leave it out.")


def _enough(console: Console, bundle: Bundle, training: DatasetSplit) -> DatasetSplit | None:
    """The training images, if there are enough for a reference; a sampled bundle is scored anyway.

    How many images a class a generator hands over is known afterwards only.
    """
    from ddchallenge.scoring.reference import check_enough

    try:
        check_enough(bundle.data.labels, training)
    except RequestError as error:
        say(console, f"The reference is left out. {error}", style="yellow")
        return None
    return training
