"""`reproduce`: get a row of the leaderboard again."""

from __future__ import annotations

import secrets
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from ddchallenge.cli.launch import LaunchOptions
from ddchallenge.cli.output import new_console, print_json, say
from ddchallenge.cli.parameters import (
    PATH,
    with_bundle_dataset,
    with_data_dir,
    with_json,
    with_launcher,
    with_out,
)
from ddchallenge.cli.steps import (
    free_folder,
    open_bundle,
    open_dataset,
    test_images,
    training_images,
)
from ddchallenge.cli.verify import BATCHES, replay_bundle
from ddchallenge.errors import RequestError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.generator import Submission
    from ddchallenge.records import Bundle, DatasetSpec, Result
    from ddchallenge.replay.comparing import Replay

__all__ = ["reproduce"]


@click.command()
@click.argument("result", type=PATH)
@click.option(
    "--replay",
    "bundle",
    type=PATH,
    metavar="BUNDLE",
    help="The bundle of the result: verified and scored again, instead of sampling anew.",
)
@click.option(
    "--batches", type=BATCHES, default=8, show_default=True, help="Of --replay: how many."
)
@click.option(
    "--repository", type=PATH, metavar="DIR", help="Where git has the commit.  [default: here]"
)
@click.option("--this-code", is_flag=True, help="Run the code that is here, whatever made it.")
@click.option("--submission", metavar="S", help="Its folder, where the commit does not hold it.")
@click.option("--device", help="cpu or cuda.  [default: those of the result]")
@with_bundle_dataset
@with_launcher
@with_data_dir
@with_out
@with_json
def reproduce(
    result: Path,
    bundle: Path | None,
    batches: int,
    repository: Path | None,
    this_code: bool,
    submission: str | None,
    device: str | None,
    dataset: str | None,
    image_size: int | None,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    **launch: Unpack[LaunchOptions],
) -> None:
    """Sample and score again what RESULT names, and say whether it agrees.

    The commit RESULT names is checked out into a temporary folder and run with its settings. Exit
    status 0 if it agrees within the interval, 1 if not.
    """
    from ddchallenge.leaderboard import read_result
    from ddchallenge.reproduce.again import run_code, scoring_arguments
    from ddchallenge.reproduce.agreement import check_record
    from ddchallenge.reproduce.checkout import code_at, code_here, named_commit, submission_at
    from ddchallenge.scoring import resolve_device

    console = new_console()
    if result.is_dir():
        result /= "result.json"
    recorded = read_result(result)
    check_record(recorded, str(result))
    if recorded.sampling is None and bundle is None:
        raise RequestError(
            f"{result} was scored on an imported tensor: nothing samples that again.\n"
            "Give its bundle with --replay; it is scored again."
        )
    to_score = scoring_arguments(recorded, resolve_device(device or recorded.protocol.device))
    spec, data = _dataset(console, recorded, dataset, image_size, data_dir)
    opened = None if bundle is None else _bundle_of(console, recorded, bundle, dataset, image_size)
    launch = _recorded_box(recorded, launch)
    out = free_folder(out, spec, f"reproduce-{recorded.submission.name}").absolute()
    commit = None if this_code else named_commit(recorded)
    replayed: Replay | None = None
    with code_at(commit, repository) if commit else nullcontext(code_here()) as code:
        chosen = submission_at(code, recorded, submission, commit) if recorded.sampling else None
        if chosen is not None and chosen.needs_training_data:
            training_images(console, spec, data_dir)
        test_images(console, spec, data_dir)  # all data is looked for before anything is run
        say(console, f"code: commit {commit[:12]}" if commit else f"code: {code}")
        if opened is None and chosen is not None:
            _sample(code, recorded, chosen, device, [*data, *_box(launch)], out, commit)
        elif opened is not None and chosen is not None:
            replayed = _replay(
                console, opened, spec, chosen, batches, device, data_dir, out, launch
            )
        images = out / "bundle" if opened is None else opened.folder.absolute()
        line = ["score", str(images), *data, *to_score, f"--out={out}"]
        run_code(code, line, recorded.provenance.threads, out / "result.json", commit)
    _finish(console, result, recorded, replayed, out, as_json)


def _sample(
    code: Path,
    recorded: Result,
    submission: Submission,
    device: str | None,
    more: list[str],
    out: Path,
    commit: str | None,
) -> None:
    """Sample with the code of a result, as it was sampled then, to ``out/bundle``."""
    from ddchallenge.reproduce.again import run_code, sampling_arguments
    from ddchallenge.scoring import resolve_device

    sampling = recorded.sampling
    if sampling is None:
        raise RequestError("The result was scored on an imported tensor; nothing was sampled.")
    said = sampling_arguments(
        sampling, submission.folder, resolve_device(device or sampling.device)
    )
    line = ["sample", *said, *more, f"--out={out}"]
    run_code(code, line, recorded.provenance.threads, out / "bundle", commit)


def _finish(
    console: Console,
    path: Path,
    recorded: Result,
    replayed: Replay | None,
    out: Path,
    as_json: bool,
) -> None:
    """Compare, say and write what came of it; raises :class:`RunError` where it does not agree."""
    from ddchallenge.jsonio import to_json, write_json
    from ddchallenge.leaderboard import read_result
    from ddchallenge.report.reproduction import reproduction_lines
    from ddchallenge.reproduce.agreement import agreement

    again = read_result(out / "result.json")
    found = agreement(recorded, again)
    for line in reproduction_lines(recorded, again, found):
        say(console, line)
    document = {
        "result": str(path),
        "agreement": to_json(found),
        "replay": to_json(replayed) if replayed else None,
    }
    write_json(out / "reproduction.json", document)
    say(console, f"All of it: {out}")
    if as_json:
        print_json(document)
    if replayed is not None and replayed.verdict in ("different", "unfinished"):
        raise RunError(f"The images are not shown to be what the submission makes: see {out}.")
    if not found.agrees:
        raise RunError(f"{path} could not be got again: {100 * found.difference:+.2f} points.")


def _dataset(
    console: Console,
    recorded: Result,
    dataset: str | None,
    image_size: int | None,
    data_dir: Path | None,
) -> tuple[DatasetSpec, list[str]]:
    """The dataset of a result, and how a command line is told of it and of its place."""
    from ddchallenge.datasets.class_folders import is_class_folders_name, why_not_the_same

    if dataset is None and is_class_folders_name(recorded.dataset):
        raise RequestError(
            f"The result is of class folders, {recorded.dataset}.\n"
            "Say where they lie with --dataset folder:PATH."
        )
    name = dataset or recorded.dataset
    spec = open_dataset(console, name, image_size)
    if spec.name != recorded.dataset:
        raise RequestError(
            f"The result is of {recorded.dataset}, --dataset is {spec.name}.\n"
            f"{why_not_the_same(recorded.dataset, spec)}"
        )
    said = [f"--dataset={name}"]
    if image_size is not None:
        said.append(f"--image-size={image_size}")
    if data_dir is not None:
        said.append(f"--data-dir={data_dir.absolute()}")
    return spec, said


def _recorded_box(recorded: Result, launch: LaunchOptions) -> LaunchOptions:
    """The launcher of the result, where none was asked for by name."""
    from click.core import ParameterSource

    asked = click.get_current_context().get_parameter_source("launcher")
    sampling = recorded.sampling
    if asked is not ParameterSource.DEFAULT or sampling is None or sampling.launcher is None:
        return launch
    return {**launch, "launcher": sampling.launcher}


def _box(launch: LaunchOptions) -> list[str]:
    """How a command line is told of a box; nothing for the default one, which has no options."""
    given = [(name, value) for name, value in launch.items() if value is not None]
    return [f"--{name}={value}" for name, value in given if value != "process"]


def _bundle_of(
    console: Console, recorded: Result, path: Path, dataset: str | None, image_size: int | None
) -> Bundle:
    """The bundle a result was scored on; raises :class:`RequestError` for another."""
    opened, _ = open_bundle(console, path, dataset, image_size)
    if opened.manifest.digest != recorded.bundle.digest:
        raise RequestError(
            f"{opened.folder} is not the bundle of this result: its digest is "
            f"{opened.manifest.digest[:16]}, the result names {recorded.bundle.digest[:16]}.\n"
            "Without --replay the images are sampled anew."
        )
    return opened


def _replay(
    console: Console,
    bundle: Bundle,
    spec: DatasetSpec,
    submission: Submission,
    batches: int,
    device: str | None,
    data_dir: Path | None,
    out: Path,
    launch: LaunchOptions,
) -> Replay:
    """Verify the bundle of a result with the submission that made it."""
    from ddchallenge.scoring import resolve_device

    log = bundle.manifest.sampling
    return replay_bundle(
        console,
        bundle,
        spec,
        submission,
        device=resolve_device(device or (log.device if log else "auto")),
        data_dir=data_dir,
        batches=batches,
        seed=secrets.randbits(32),
        tolerance=None,
        time_limit=None,
        picture=out / "difference.png",
        launch=launch,
    )
