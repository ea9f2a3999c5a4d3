"""`score`: a bundle to a result."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from ddchallenge.cli.judge import Judge, foretell, show_estimates
from ddchallenge.cli.output import new_console, print_json, say, waiting
from ddchallenge.cli.parameters import (
    PATH,
    ScoringOptions,
    with_bundle_dataset,
    with_data_dir,
    with_device,
    with_json,
    with_out,
    with_record,
    with_scoring,
)
from ddchallenge.cli.steps import (
    check_writable,
    open_bundle,
    refuse_existing,
    show_audit,
    test_images,
    training_images,
)
from ddchallenge.errors import DDChallengeError, RequestError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.audit import Finding
    from ddchallenge.pipeline import Scored
    from ddchallenge.records import Bundle, DatasetSpec, DatasetSplit

__all__ = ["finish", "rest_of_line", "score", "train_and_test"]


@click.command()
@click.argument("bundle", type=PATH)
@with_bundle_dataset
@with_scoring
@click.option("--estimate", is_flag=True, help="Say how long it would take, and do nothing else.")
@with_device
@with_data_dir
@with_out
@with_record
@with_json
def score(
    bundle: Path,
    dataset: str | None,
    image_size: int | None,
    estimate: bool,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    record: bool,
    as_json: bool,
    **scoring: Unpack[ScoringOptions],
) -> None:
    """Train and test networks on a bundle: the rest of `run`.

    BUNDLE is a bundle, or a folder with one called `bundle` in it. result.json and confusion.png
    are written into --out, else into that folder.
    """
    judge = Judge.of(device, scoring)
    console = new_console()
    opened, spec = open_bundle(console, bundle, dataset, image_size)
    judge.check_size(spec)
    judge = judge.settled(opened, spec)
    if estimate:
        show_estimates(console, opened, test_images(console, spec, data_dir), judge, as_json)
        return
    asked_out = out
    if out is None:
        # `run` has its bundle in a folder of that name, beside the result.
        out = opened.folder.parent if opened.folder.name == "bundle" else opened.folder
    for held in ("result.json", "confusion.png"):
        refuse_existing(out / held)
    check_writable(out)
    recorded = _place_for(opened, spec, judge) if record else None
    test = test_images(console, spec, data_dir)
    training = training_images(console, spec, data_dir) if judge.reference else None
    findings = show_audit(console, opened, spec, test)
    rest = rest_of_line(device, data_dir, asked_out, record, as_json)
    scored = train_and_test(console, opened, test, training, judge, rest, findings)
    finish(console, scored, spec, out, recorded, as_json)


def train_and_test(
    console: Console,
    bundle: Bundle,
    test: DatasetSplit,
    training: DatasetSplit | None,
    judge: Judge,
    rest: str,
    findings: tuple[Finding, ...],
) -> Scored:
    """Score a bundle; an interrupt is a :class:`RunError` that says how to go on.

    ``rest`` is what :func:`rest_of_line` makes.
    """
    from ddchallenge.datasets import dataset_options
    from ddchallenge.pipeline import score_bundle
    from ddchallenge.report.live import ScoringDisplay

    try:
        foretell(console, bundle, test, judge)
        with closing(ScoringDisplay(console, "scoring")) as display:
            return score_bundle(
                bundle,
                test,
                judge.protocol,
                epochs=judge.epochs,
                seeds=judge.seeds,
                device=judge.device,
                numerics=judge.numerics(test.spec),
                training=training,
                findings=findings,
                resume=judge.resume,
                on_progress=display,
                say=lambda line: say(console, line, style="yellow"),
            )
    except KeyboardInterrupt as interrupt:
        trained = ", and what was trained" if getattr(interrupt, "kept", False) else ""
        raise RunError(
            f"Interrupted; the bundle is kept{trained}. To go on:\n"
            f"  ddchallenge score {shlex.quote(str(bundle.folder))}{dataset_options(test.spec)}"
            f"{judge.options()}{rest}"
        ) from None


def rest_of_line(
    device: str, data_dir: Path | None, out: Path | None, record: bool, as_json: bool
) -> str:
    """What else a command line that goes on has to say."""
    said = "" if device == "auto" else f" --device {device}"
    for option, path in (("--data-dir", data_dir), ("--out", out)):
        said += f" {option} {shlex.quote(str(path))}" if path else ""
    return said + (" --record" if record else "") + (" --json" if as_json else "")


def _place_for(bundle: Bundle, spec: DatasetSpec, judge: Judge) -> Path:
    """Where a bundle's result is recorded: beside the very submission that made it."""
    from ddchallenge.generator import find_submission
    from ddchallenge.leaderboard import check_recordable, record_path
    from ddchallenge.marks import cost_the_rank, marks_of

    made_by = bundle.manifest.submission
    submission = find_submission(made_by.name)
    if submission.identity.digest != made_by.digest:
        raise RequestError(
            f"--record: the submission {made_by.name} has changed since this bundle was made.\n"
            "Sample again, or score without --record."
        )
    place = record_path(submission, spec.name, judge.protocol.id)
    check_writable(place.parent)
    marks = marks_of(bundle.manifest, spec, judge.protocol, judge.epochs, judge.seeds)
    check_recordable(place, official=not cost_the_rank(marks))
    return place


def finish(
    console: Console,
    scored: Scored,
    spec: DatasetSpec,
    out: Path,
    recorded: Path | None,
    as_json: bool,
) -> None:
    """Write the result and show it, each even if the other fails: scoring took hours."""
    from ddchallenge.leaderboard import (
        check_recordable,
        counts_as_official,
        result_document,
        write_result,
    )
    from ddchallenge.report.confusion import write_confusion
    from ddchallenge.report.tables import result_table

    result = scored.result
    failures = []
    for path in [out / "result.json", *([recorded] if recorded else [])]:
        try:
            if path == recorded:  # the run may have turned out other than it was meant
                check_recordable(path, official=counts_as_official(result))
            write_result(path, result)
            say(console, f"Result: {path}")
        except DDChallengeError as error:
            failures.append(str(error))
    if as_json:
        print_json(result_document(result))
    else:
        new_console(err=False).print(result_table(result, spec.class_names))
    try:  # last: whatever a picture may come to grief over, the numbers are safe
        with waiting(console, "Drawing the confusion matrix"):
            write_confusion(out / "confusion.png", scored.confusion, result, spec)
        say(console, f"Confusion matrix: {out / 'confusion.png'}")
    except DDChallengeError as error:
        failures.append(str(error))
    if failures:
        raise RunError("\n".join(failures))
    scored.forget()
