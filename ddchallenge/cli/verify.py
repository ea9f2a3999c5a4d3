"""`verify`: is a bundle what its generator makes?"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from ddchallenge.cli.launch import LaunchOptions, launcher_of
from ddchallenge.cli.output import new_console, print_json, say
from ddchallenge.cli.parameters import (
    PATH,
    TIME,
    required,
    with_bundle_dataset,
    with_data_dir,
    with_device,
    with_json,
    with_launcher,
)
from ddchallenge.cli.steps import check_writable, open_bundle, refuse_existing, training_images
from ddchallenge.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.generator import Submission
    from ddchallenge.records import Bundle, DatasetSpec
    from ddchallenge.replay.comparing import Replay

__all__ = ["BATCHES", "replay_bundle", "verify"]


class _Batches(click.ParamType):  # type: ignore[type-arg]
    name = "N|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """How many; 0 for all."""
        if value in ("all", 0):
            return 0
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
            self.fail(f"{value!r} is no number of batches such as 8, and not `all`", param, ctx)
        return int(text)


BATCHES = _Batches()


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--submission",
    callback=required,
    metavar="S",
    help="A name or a folder: what is said to have made it.",
)
@click.option(
    "--batches", type=BATCHES, default=8, show_default=True, help="How many to generate again."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    help="Of the choice of batches.  [default: another each time, so that nobody can foresee it]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=255),
    metavar="GREY",
    help="Mean absolute difference an image may have, 0 to 255.  "
    "[default: 0 on the hardware and versions of the recorded run, else 1]",
)
@click.option(
    "--time-limit", type=TIME, help="For the generator.  [default: four times the recorded time]"
)
@with_bundle_dataset
@with_launcher
@with_device
@with_data_dir
@click.option(
    "--out", type=PATH, metavar="PNG", help="The first pair that differs.  [difference.png]"
)
@with_json
def verify(
    bundle: Path,
    submission: str,
    batches: int,
    seed: int | None,
    tolerance: float | None,
    time_limit: float | None,
    dataset: str | None,
    image_size: int | None,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
    **launch: Unpack[LaunchOptions],
) -> None:
    """Generate batches of a bundle again and compare them image by image.

    BUNDLE is a bundle, or a folder with one called `bundle` in it; the picture goes beside it
    unless --out says where. Exit status 0 for images that are identical or within the tolerance,
    1 for others.
    """
    from ddchallenge.generator import find_submission
    from ddchallenge.jsonio import to_json
    from ddchallenge.scoring import resolve_device

    console = new_console()
    chosen, device = find_submission(submission), resolve_device(device)
    opened, spec = open_bundle(console, bundle, dataset, image_size)
    if out is not None:
        refuse_existing(out)
    out = out or opened.folder.parent / "difference.png"  # ours: the next verify replaces it
    if out.is_dir():
        refuse_existing(out)
    check_writable(out.parent)
    seed = secrets.randbits(32) if seed is None else seed
    outcome = replay_bundle(
        console,
        opened,
        spec,
        chosen,
        device=device,
        data_dir=data_dir,
        batches=batches,
        seed=seed,
        tolerance=tolerance,
        time_limit=time_limit,
        picture=out,
        launch=launch,
    )
    if as_json:
        print_json({"bundle": str(opened.folder), "seed": seed, **to_json(outcome)})
    if outcome.verdict in ("different", "unfinished"):
        raise RunError(_verdict(outcome, opened, chosen, out))


def _verdict(outcome: Replay, bundle: Bundle, submission: Submission, picture: Path) -> str:
    if outcome.verdict == "different":
        return (
            f"{bundle.folder} is not what {submission.name} makes here.\n"
            f"Look at {picture}; a generator must depend on labels and seed alone."
        )
    return (
        f"{submission.name} made {outcome.batches_checked} of the batches it was asked for, and "
        f"then: {outcome.unfinished}.\nThose agree; --time-limit gives it longer."
    )


def _keep_log(console: Console, folder: Path, *, failed: bool) -> None:
    """Remove the folder of a replay, but for what a generator that failed printed."""
    log = folder / "worker.log"
    if failed and log.is_file() and log.stat().st_size:
        for other in folder.iterdir():
            if other != log:
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink()
        say(console, f"What the generator printed is in {log}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def replay_bundle(
    console: Console,
    bundle: Bundle,
    spec: DatasetSpec,
    submission: Submission,
    *,
    device: str,
    data_dir: Path | None,
    batches: int,
    seed: int,
    tolerance: float | None,
    time_limit: float | None,
    picture: Path,
    launch: LaunchOptions,
) -> Replay:
    """Replay ``batches`` of a bundle, 0 for all, and say what came of it; see the options."""
    from ddchallenge.atomic import atomic_file
    from ddchallenge.generator import require_dataset
    from ddchallenge.replay.comparing import ReplayOrder, compare, regenerate
    from ddchallenge.replay.recorded import (
        choose_batches,
        default_time_limit,
        default_tolerance,
        recorded_batches,
        remarks,
    )
    from ddchallenge.report.live import SamplingDisplay, counting
    from ddchallenge.report.replay import difference_picture, replay_lines

    log = recorded_batches(bundle, spec)
    require_dataset(submission, spec)
    wanted = choose_batches(log, batches or None, seed)
    needed = submission.needs_training_data
    training = training_images(console, spec, data_dir) if needed else None
    for remark in remarks(bundle, submission, training, device):
        say(console, remark, style="yellow")
    if tolerance is None:
        tolerance = default_tolerance(bundle.manifest.environment, device)
    order = ReplayOrder(
        submission=submission,
        batches=wanted,
        device=device,
        tolerance=tolerance,
        time_limit_seconds=time_limit or default_time_limit(log, sum(b.count for b in wanted)),
        training_data=training.folder if training else None,
        launcher=launcher_of(launch, data_dir),
    )
    folder = Path(tempfile.mkdtemp(prefix="ddchallenge-verify-"))
    failed = True
    try:
        with closing(SamplingDisplay(console, "replay")) as display:
            sampled = regenerate(
                bundle,
                spec,
                order,
                folder,
                display,
                lambda line: say(console, line, style="yellow"),
            )
        with counting(console, "replay", "copies") as counter:
            outcome, pair = compare(
                bundle, spec, order, sampled, lambda d, t: counter(d, t, "comparing copies")
            )
        failed = outcome.verdict == "unfinished"
    finally:
        _keep_log(console, folder, failed=failed)
    for line in replay_lines(outcome, spec):
        say(console, line)
    if outcome.batches_checked != outcome.batches_recorded:
        say(console, f"batches chosen by --seed {seed}")
    if pair is not None and outcome.first_different is not None:
        with atomic_file(picture) as temporary:
            difference_picture(pair, outcome.first_different, spec).save(temporary, format="PNG")
        say(console, f"Side by side: {picture}")
    return outcome
