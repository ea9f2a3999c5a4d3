"""The command line: parse, call, render. The only module that exits or prints."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

import ddchallenge
from ddchallenge.errors import DDChallengeError, OutputError, RequestError, RunError
from ddchallenge.interrupts import as_interrupt

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.audit import Finding
    from ddchallenge.pipeline import Scored
    from ddchallenge.records import (
        Bundle,
        DatasetSpec,
        DatasetSplit,
        Numerics,
        Rules,
        ScoringProtocol,
        Track,
    )
    from ddchallenge.sampling.supervisor import SamplingOrder
    from ddchallenge.scoring.estimate import Estimate

__all__ = ["main"]

_INTERRUPTED = 130
_ODD_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EINVAL)
_printed_json: list[bool] = []  # --json promises one document, also when a later step fails


def main() -> None:
    """Entry point of ``ddchallenge``; exit status 0, 1 (a run failed) or 2 (a wrong request)."""
    as_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± gets a ?
    arguments = sys.argv[1:]
    _printed_json.clear()
    # People add --debug at the end of a line that failed.
    debug = "--debug" in arguments or bool(os.environ.get("DDCHALLENGE_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        commands.main(arguments, prog_name="ddchallenge", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError" and error.ctx:  # click 8.2 and later
            _echo(error.ctx.get_help(), err=True)
            sys.exit(2)
        _fail(error.format_message(), error.exit_code, _usage(error))
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, _usage(error))
    except (KeyboardInterrupt, click.Abort):
        _fail("Interrupted.", _INTERRUPTED)
    except DDChallengeError as error:
        if debug:
            raise
        _fail(str(error), error.exit_status)
    except OSError as error:
        if debug:
            raise
        if error.errno in _ODD_PATH:
            _fail(f"{str(error.filename)[:200]} is no usable path: {error.strerror}.", 2)
        _fail(f"{error.strerror or error}: {str(error.filename or '')[:200]}", 1)
    except Exception as error:
        if debug:
            raise
        _fail(
            f"An error of the harness itself: {type(error).__name__}: {error}\n"
            "Repeat the command with --debug and report what it prints.",
            1,
        )


def _fail(message: str, status: int, usage: str = "") -> None:
    if "--json" in sys.argv and not _printed_json:
        _print_json({"error": message, "exit_status": status})
    _echo(f"{usage}{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    sys.exit(status)


def _echo(text: str, *, err: bool = False) -> None:
    stream = cast("IO[str]", _Tolerant(sys.stderr if err else sys.stdout))
    click.echo(text, file=stream)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.get_usage()}\n" if context is not None else ""


# --------------------------------------------------------------------------- parameters of commands


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


_Decorator = Callable[[Callable[..., None]], Callable[..., None]]
_PATH = click.Path(path_type=Path)


def _required(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    # click would say that the option is missing, but not what could be given.
    if value is None:
        raise RequestError(f"--{param.name} is missing.\n{getattr(param, 'help', '')}")
    return value


_image_size = click.option(
    "--image-size",
    type=click.IntRange(min=8, max=1024),
    metavar="N",
    help="Of folder:PATH: pixels a side.  [default: as all images are, else 224]",
)
_data_dir = click.option(
    "--data-dir",
    type=_PATH,
    help="Where the data sets are; else DDCHALLENGE_DATA, else a cache folder.",
)
_device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, or cuda (cuda:1 and so on)."
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_out = click.option("--out", type=_PATH, help="Folder to write; must not hold results yet.")


def _together(*options: _Decorator) -> _Decorator:
    def apply(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


_dataset = _together(
    click.option(
        "--dataset",
        callback=_required,
        metavar="D",
        help="digits, cifar100, tinyimagenet, or folder:PATH with train/<class>/ and val/<class>/.",
    ),
    _image_size,
)
_dataset_of_bundle = _together(
    click.option("--dataset", metavar="D", help="Where the class folders lie, as folder:PATH."),
    _image_size,
)

_sampling = _together(
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
)
_scoring = _together(
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


# ------------------------------------------------------------------------------------- the commands


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ddchallenge.__version__, prog_name="ddchallenge")
@click.option(
    "--debug", is_flag=True, expose_value=False, help="Tracebacks for errors, anywhere on the line."
)
def commands() -> None:
    """Ten minutes of any image generator, scored as a training set.

    `ddchallenge run --track generative --dataset digits` does everything once.
    """


@commands.command()
@click.option(
    "--track",
    callback=_required,
    metavar="T",
    help="generative (a generator under a budget) or fixed-ipc (a tensor file).",
)
@_dataset
@_sampling
@click.option("--images", type=_PATH, help="The tensor file of the fixed-ipc track.")
@click.option("--labels", type=_PATH, help="Labels of --images; without: class-major order.")
@_scoring
@_device
@_data_dir
@_out
@click.option("--record", is_flag=True, help="Put the result beside the submission.")
@_json
def run(
    track: str,
    dataset: str,
    image_size: int | None,
    submission: str | None,
    budget: float | None,
    max_images: int | None,
    augment: str | None,
    seed: int,
    images: Path | None,
    labels: Path | None,
    protocol: str | None,
    network: str | None,
    epochs: int | None,
    seeds: tuple[int, ...] | None,
    numerics: str | None,
    reference: bool,
    no_resume: bool,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    record: bool,
    as_json: bool,
) -> None:
    """Go all the way: from a generator, or a tensor file, to a scored result."""
    from ddchallenge.leaderboard import check_recordable, record_path
    from ddchallenge.rules import get_rules

    console = _console()
    rules, spec = get_rules(track), _open_dataset(console, dataset, image_size)
    judge = _Judge.of(protocol, network, epochs, seeds, device, numerics, reference, not no_resume)
    judge.check_size(spec)
    order = recorded = None
    if rules.track == "generative":
        _refuse(track, {"--images": images, "--labels": labels})
        order = _order(rules, spec, submission, budget, max_images, augment, seed, judge.device)
        origin = order.submission.name
        if record:
            recorded = record_path(order.submission, spec.name, judge.protocol.id)
            _check_writable(recorded.parent)
            by_the_rules = judge.official and order.budget_seconds == rules.budget_seconds
            check_recordable(recorded, official=by_the_rules)
    else:
        _refuse(
            track,
            {
                "--submission": submission,
                "--budget": budget,
                "--augment": augment,
                "--max-images": max_images,
                "--record": record or None,
            },
        )
        if images is None:
            raise RequestError("The fixed-ipc track needs --images FILE.pt, the optimised tensor.")
        origin = images.stem
    out = _free_folder(out, spec, origin)
    # All data is looked for before the clock starts: ten minutes must not end in "not found".
    test = _test_images(console, spec, data_dir)
    training = _training_images(console, spec, data_dir) if reference else None
    if order is None:
        bundle = _import(console, cast("Path", images), labels, spec, rules.track, out / "bundle")
    else:
        bundle = _sample(console, order, data_dir, out)
    findings = _show_audit(console, bundle, spec, test)
    judge = judge.settled(bundle, spec)
    if training is not None:
        training = _enough(console, bundle, training)
    rest = _rest_of_line(device, data_dir, None, record, as_json)
    scored = _score(console, bundle, test, training, judge, rest, findings)
    _finish(console, scored, spec, out, recorded, as_json)
    _end_as_the_generator_did(bundle, out)


@commands.command()
@_dataset
@_sampling
@_device
@_data_dir
@_out
@_json
def sample(
    dataset: str,
    image_size: int | None,
    submission: str | None,
    budget: float | None,
    max_images: int | None,
    augment: str | None,
    seed: int,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run a generator under its budget, to a bundle: half of `run`."""
    from ddchallenge.jsonio import to_json
    from ddchallenge.rules import get_rules
    from ddchallenge.scoring import resolve_device

    console = _console()
    spec = _open_dataset(console, dataset, image_size)
    order = _order(
        get_rules("generative"),
        spec,
        submission,
        budget,
        max_images,
        augment,
        seed,
        resolve_device(device),
    )
    out = _free_folder(out, spec, order.submission.name)
    bundle = _sample(console, order, data_dir, out)
    _show_audit(console, bundle, spec)
    if as_json:
        _print_json({"bundle": str(bundle.folder), "manifest": to_json(bundle.manifest)})
    _end_as_the_generator_did(bundle, out)


@commands.command()
@click.argument("bundle", type=_PATH)
@_dataset_of_bundle
@_scoring
@click.option("--estimate", is_flag=True, help="Say how long it would take, and do nothing else.")
@_device
@_data_dir
@_out
@click.option("--record", is_flag=True, help="Put the result beside the submission.")
@_json
def score(
    bundle: Path,
    dataset: str | None,
    image_size: int | None,
    protocol: str | None,
    network: str | None,
    epochs: int | None,
    seeds: tuple[int, ...] | None,
    numerics: str | None,
    reference: bool,
    no_resume: bool,
    estimate: bool,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    record: bool,
    as_json: bool,
) -> None:
    """Train and test networks on a bundle: the rest of `run`.

    BUNDLE is a bundle, or a folder with one called `bundle` in it. result.json and confusion.png
    are written into --out, else into that folder.
    """
    judge = _Judge.of(protocol, network, epochs, seeds, device, numerics, reference, not no_resume)
    console = _console()
    opened, spec = _open_bundle(console, bundle, dataset, image_size)
    judge.check_size(spec)
    judge = judge.settled(opened, spec)
    if estimate:
        _show_estimates(console, opened, _test_images(console, spec, data_dir), judge, as_json)
        return
    asked_out = out
    if out is None:
        # `run` has its bundle in a folder of that name, beside the result.
        out = opened.folder.parent if opened.folder.name == "bundle" else opened.folder
    for held in ("result.json", "confusion.png"):
        _refuse_existing(out / held)
    _check_writable(out)
    recorded = _place_for(opened, spec, judge) if record else None
    test = _test_images(console, spec, data_dir)
    training = _training_images(console, spec, data_dir) if reference else None
    findings = _show_audit(console, opened, spec, test)
    rest = _rest_of_line(device, data_dir, asked_out, record, as_json)
    scored = _score(console, opened, test, training, judge, rest, findings)
    _finish(console, scored, spec, out, recorded, as_json)


@commands.command("import")
@click.argument("file", type=_PATH)
@_dataset
@click.option(
    "--labels", type=_PATH, help="A .pt file of N integer labels; without: class-major order."
)
@click.option("--track", default="generative", show_default=True, metavar="generative|fixed-ipc")
@click.option("--out", type=_PATH, required=True, help="The bundle to write; must not exist.")
@_json
def import_command(
    file: Path,
    dataset: str,
    image_size: int | None,
    labels: Path | None,
    track: str,
    out: Path,
    as_json: bool,
) -> None:
    """Make a bundle of an official tensor file, FILE.pt."""
    from ddchallenge.jsonio import to_json
    from ddchallenge.rules import get_rules

    console = _console()
    spec = _open_dataset(console, dataset, image_size)
    bundle = _import(console, file, labels, spec, get_rules(track).track, out)
    _show_audit(console, bundle, spec)
    if as_json:
        _print_json({"bundle": str(bundle.folder), "manifest": to_json(bundle.manifest)})


@commands.command("export")
@click.argument("bundle", type=_PATH)
@_dataset_of_bundle
@click.option("--out", type=_PATH, required=True, help="Folder for the official {dataset}.pt.")
@_json
def export_command(
    bundle: Path, dataset: str | None, image_size: int | None, out: Path, as_json: bool
) -> None:
    """Write a bundle as the official tensor file.

    Normalised, class-major, with an equal number of images a class: what the official evaluator
    reads.
    """
    from ddchallenge.official import export_official

    console = _console()
    opened, spec = _open_bundle(console, bundle, dataset, image_size)
    exported = export_official(opened, spec, out)
    if as_json:
        _print_json(
            {
                "file": str(exported.path),
                "images": exported.images,
                "dropped": exported.dropped,
                "digest": exported.digest,
            }
        )
    else:
        dropped = (
            f", {exported.dropped:,} dropped to make the classes equal" if exported.dropped else ""
        )
        console.print(
            f"{exported.path}: {exported.images:,} images{dropped}\ndigest {exported.digest}",
            highlight=False,
            markup=False,
        )


@commands.command()
@_json
def submissions(as_json: bool) -> None:
    """List what can be run by name."""
    from ddchallenge.generator import list_submissions
    from ddchallenge.report import tables

    rows = list_submissions()
    if not as_json:
        _console(err=False).print(tables.submissions(rows))
        return
    _print_json(
        [
            {
                "name": row.name,
                "folder": str(row.folder),
                "problem": row.problem,
                "datasets": row.submission.datasets if row.submission else None,
                "ranked": row.submission.ranked if row.submission else None,
                "digest": row.submission.identity.digest if row.submission else None,
            }
            for row in rows
        ]
    )


@commands.command()
@click.argument("name")
@click.option(
    "--parent",
    type=_PATH,
    default=Path("submissions"),
    show_default=True,
    help="Folder it is made in.",
)
def new(name: str, parent: Path) -> None:
    """Make a working submission to edit, submissions/NAME."""
    from ddchallenge.generator import list_submissions
    from ddchallenge.scaffold import new_submission

    for row in list_submissions():
        if row.name == name:
            raise RequestError(f"There is a submission {name} already, in {row.folder}.")
    folder = new_submission(name, parent)
    _echo(
        f"{folder} is ready. Edit {folder / 'generate.py'}, then\n"
        f"  ddchallenge run --track generative --dataset digits --submission {folder}"
    )


@commands.command()
@click.option(
    "--results", "folders", type=_PATH, multiple=True, help="Another folder of result files."
)
@click.option("--dataset", metavar="D", help="Only this one.")
@click.option("--markdown", "as_markdown", is_flag=True, help="As Markdown, for a README.")
@_json
def leaderboard(
    folders: tuple[Path, ...], dataset: str | None, as_markdown: bool, as_json: bool
) -> None:
    """Rank the recorded results of all submissions."""
    from ddchallenge.datasets import get_dataset
    from ddchallenge.generator import list_submissions
    from ddchallenge.leaderboard import Leaderboard, collect, result_document
    from ddchallenge.report.tables import leaderboard_markdown, leaderboard_tables

    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"--results {folder} is not a folder.")
    board = collect((row.submission for row in list_submissions() if row.submission), folders)
    if dataset is not None:
        rows = tuple(row for row in board.rows if row.result.dataset == dataset)
        if not rows:
            get_dataset(dataset)  # which says what is wrong with the name
        board = Leaderboard(rows, board.problems)
    console = _console()
    for problem in board.problems:
        console.print(f"left out: {problem}", style="yellow", highlight=False, markup=False)
    if as_json:
        _print_json(
            [
                {"rank": row.rank, "path": str(row.path), **result_document(row.result)}
                for row in board.rows
            ]
        )
        return
    if as_markdown:
        _echo(leaderboard_markdown(board).rstrip("\n"))
        return
    output = _console(err=False)
    for table in leaderboard_tables(board):
        output.print(table)
    if not board.rows:
        console.print("No results yet. `ddchallenge run ... --record` makes one.")


@commands.group()
def data() -> None:
    """List, fetch and verify the data sets."""


@data.command("list")
@_data_dir
@_json
def data_list(data_dir: Path | None, as_json: bool) -> None:
    """Say which are here, and where they were looked for."""
    from ddchallenge.datasets import DATASETS, availability, data_folder
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.tables import availability_table

    found = [availability(spec, data_dir) for spec in DATASETS.values()]
    if as_json:
        _print_json([to_json(entry) for entry in found])
        return
    _console(err=False).print(availability_table(found))
    _say(_console(), f"Looked in {data_folder(data_dir)}")


@data.command("fetch")
@click.argument("name")
@_data_dir
@_json
def data_fetch(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Download NAME, check it, and unpack it."""
    from ddchallenge.datasets import fetch, open_dataset
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.live import counting

    console = _console()
    with counting(console, name, "bytes") as display:
        fetched = fetch(
            open_dataset(name), data_dir, lambda p: display(p.done, p.total, what=p.activity)
        )
    if as_json:
        _print_json(to_json(fetched))
    else:
        _echo(fetched.message)


@data.command("verify")
@click.argument("name")
@_image_size
@_data_dir
@_json
def data_verify(name: str, image_size: int | None, data_dir: Path | None, as_json: bool) -> None:
    """Check NAME, also folder:PATH, to the last image."""
    from ddchallenge.datasets import verify
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.live import counting

    console = _console()
    spec = _open_dataset(console, name, image_size)
    with counting(console, spec.name, "images") as display:
        verified = verify(spec, data_dir, lambda d, t: display(d, t, what="checking"))
    if as_json:
        _print_json(to_json(verified))
    else:
        _echo(str(verified))


# ---------------------------------------------------------------------------------- what they share


@dataclass(frozen=True)
class _Judge:
    """How to score, settled before anything is started; but for what goes by the bundle.

    ``name`` is the protocol's as it was asked for; ``asked_epochs`` and ``asked_numerics`` are
    None where it says nothing.
    """

    name: str
    protocol: ScoringProtocol
    asked_epochs: int | None
    seeds: tuple[int, ...]
    device: str
    asked_numerics: Numerics | None
    reference: bool
    resume: bool

    @classmethod
    def of(
        cls,
        protocol: str | None,
        network: str | None,
        epochs: int | None,
        seeds: tuple[int, ...] | None,
        device: str,
        numerics: str | None,
        reference: bool,
        resume: bool,
    ) -> _Judge:
        from ddchallenge.rules import DEFAULT_PROTOCOL, get_protocol
        from ddchallenge.scoring import check_epochs, check_numerics, check_seeds, resolve_device

        name = protocol or DEFAULT_PROTOCOL
        chosen = get_protocol(name, network)
        seeds = chosen.seeds if seeds is None else seeds
        check_seeds(seeds)
        if epochs is not None:
            check_epochs(chosen, epochs)
        asked = None if numerics is None else check_numerics(numerics, chosen)
        return cls(name, chosen, epochs, seeds, resolve_device(device), asked, reference, resume)

    @property
    def epochs(self) -> int:
        """As asked for, or the protocol's."""
        return self.protocol.epochs if self.asked_epochs is None else self.asked_epochs

    @property
    def official(self) -> bool:
        """Whether it is the whole protocol, as far as is known."""
        from ddchallenge.marks import is_official

        open_end = self.protocol.epochs_by_images and self.asked_epochs is not None
        return not open_end and is_official(self.protocol, self.epochs, self.seeds)

    def check_size(self, spec: DatasetSpec) -> None:
        """Raise :class:`RequestError` where the network cannot take images of this dataset."""
        from ddchallenge.scoring.networks import check_network

        check_network(self.protocol, image_size=spec.image_size)

    def settled(self, bundle: Bundle, spec: DatasetSpec) -> _Judge:
        """The judge of this bundle."""
        protocol = self.protocol.for_images(len(bundle.data), spec.num_classes)
        return replace(self, protocol=protocol)

    def numerics(self, spec: DatasetSpec) -> Numerics:
        """As asked for; else fast where that is established to score like exact."""
        from ddchallenge.scoring.equivalence import default_numerics

        return self.asked_numerics or default_numerics(self.device, spec.name, self.protocol.id)

    def options(self) -> str:
        """What of it has to be said on a command line."""
        from ddchallenge.rules import DEFAULT_PROTOCOL

        said = ""
        if self.name != DEFAULT_PROTOCOL:
            said += f" --protocol {self.name} --network {self.protocol.network}"
        if self.asked_epochs not in (None, self.protocol.epochs):
            said += f" --epochs {self.asked_epochs}"
        if self.seeds != self.protocol.seeds:
            said += f" --seeds {','.join(map(str, self.seeds))}"
        if self.asked_numerics:
            said += f" --numerics {self.asked_numerics}"
        if self.reference:
            said += " --reference"
        return said


def _order(
    rules: Rules,
    spec: DatasetSpec,
    submission: str | None,
    budget: float | None,
    max_images: int | None,
    augment: str | None,
    seed: int,
    device: str,
) -> SamplingOrder:
    from ddchallenge.augment import get_plan
    from ddchallenge.generator import DEFAULT_SUBMISSION, find_submission, require_dataset
    from ddchallenge.sampling.supervisor import SamplingOrder

    chosen = find_submission(submission or DEFAULT_SUBMISSION)
    require_dataset(chosen, spec)
    plan = get_plan(augment or chosen.augmentation)
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
        budget_seconds=budget or rules.budget_seconds or 0.0,
        device=device,
        run_seed=seed,
        max_images=max_images,
        augmentation=plan.name,
        training_data=None,
    )


def _refuse(track: str, given: dict[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise RequestError(f"{option} means nothing on the {track} track; leave it out.")


def _free_folder(out: Path | None, spec: DatasetSpec, name: str) -> Path:
    if out is None:
        out = Path("runs") / f"{spec.name}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for held in ("bundle", "result.json", "confusion.png", "spool.bin", "work"):
        _refuse_existing(out / held)
    if (out / "worker.log").is_dir():
        _refuse_existing(out / "worker.log")
    _check_writable(out)
    return out


def _check_writable(out: Path) -> None:
    """Before hours of work: is ``out`` a folder to write in, or can it be made?"""
    try:
        above = next(folder for folder in (out, *out.absolute().parents) if os.path.lexists(folder))
        writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}.") from None
    if not writable:
        raise OutputError(f"{out} cannot be written: {above} is no folder to write in.")


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise OutputError(
            f"{path} is there already, and nothing is written over it.\nGive another --out."
        )


class _Tolerant:
    """A text stream; once nobody reads it (`| head`) or it is full, what is written is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable[[], int | None]) -> int:
        try:
            return do() or 0
        except OSError:
            # What Python still holds goes there too, or it would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _console(*, err: bool = True) -> Console:
    from rich.console import Console

    console = Console(file=cast("IO[str]", _Tolerant(sys.stderr if err else sys.stdout)))
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge to wrap at
    return console


def _print_json(document: object) -> None:
    _echo(json.dumps(document, indent=1, allow_nan=False))
    _printed_json.append(True)


@contextmanager
def _waiting(console: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal for what takes seconds; silence elsewhere."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        yield


def _sample(console: Console, order: SamplingOrder, data_dir: Path | None, out: Path) -> Bundle:
    from dataclasses import replace

    from ddchallenge.pipeline import sample_bundle
    from ddchallenge.report.live import SamplingDisplay

    training: DatasetSplit | None = None
    if order.submission.needs_training_data:
        training = _training_images(console, order.dataset, data_dir)
        order = replace(order, training_data=training.folder)
    with closing(SamplingDisplay(console, "sampling")) as display:
        bundle = sample_bundle(order, training, out, display)
    log = bundle.manifest.sampling
    if log is not None:
        _say(
            console,
            f"{bundle.manifest.images:,} images in {log.elapsed_seconds:.1f} s of "
            f"{log.budget_seconds:g} s, stopped by: {log.stop}"
            + (f" ({log.stop_detail})" if log.stop_detail else "")
            + (f"; {log.late_images:,} came too late" if log.late_images else ""),
        )
        if log.stop in ("crashed", "refused"):
            _say(console, f"What it printed is in {out / 'worker.log'}")
    _say(console, f"Bundle: {bundle.folder} (look at {bundle.folder / 'samples.png'})")
    return bundle


def _import(
    console: Console, file: Path, labels: Path | None, spec: DatasetSpec, track: Track, out: Path
) -> Bundle:
    from ddchallenge.pipeline import import_bundle

    with _waiting(console, f"Reading {file}"):
        bundle, imported = import_bundle(file, labels, spec, track, out)
    for note in imported.notes:
        _say(console, note, style="yellow")
    _say(console, f"Bundle: {bundle.folder} (look at {bundle.folder / 'samples.png'})")
    return bundle


def _open_dataset(console: Console, dataset: str, image_size: int | None) -> DatasetSpec:
    from ddchallenge.datasets import open_dataset

    with _waiting(console, f"Looking at {dataset}"):
        return open_dataset(dataset, image_size)


def _open_bundle(
    console: Console, path: Path, dataset: str | None, image_size: int | None
) -> tuple[Bundle, DatasetSpec]:
    """A bundle and its dataset: that of the manifest, or the class folders it was made for."""
    from ddchallenge.bundle import read_bundle
    from ddchallenge.datasets import get_dataset

    folder = path / "bundle" if (path / "bundle" / "manifest.json").is_file() else path
    if dataset is None and image_size is not None:
        raise RequestError(
            "--image-size goes with --dataset folder:PATH; add it or leave both out."
        )
    spec = None if dataset is None else _open_dataset(console, dataset, image_size)
    with _waiting(console, "Checking the bundle"):
        bundle = read_bundle(folder, spec)
    return bundle, spec or get_dataset(bundle.manifest.dataset)


def _test_images(console: Console, spec: DatasetSpec, data_dir: Path | None) -> DatasetSplit:
    from ddchallenge.datasets import load_split

    with _waiting(console, f"Loading the test images of {spec.name}"):
        return load_split(spec, "test", data_dir)


def _training_images(console: Console, spec: DatasetSpec, data_dir: Path | None) -> DatasetSplit:
    from ddchallenge.datasets import load_split

    with _waiting(console, f"Loading the training images of {spec.name}"):
        return load_split(spec, "train", data_dir)


def _score(
    console: Console,
    bundle: Bundle,
    test: DatasetSplit,
    training: DatasetSplit | None,
    judge: _Judge,
    rest_of_line: str,
    findings: tuple[Finding, ...],
) -> Scored:
    from ddchallenge.datasets import dataset_options
    from ddchallenge.pipeline import score_bundle
    from ddchallenge.report.live import ScoringDisplay

    try:
        _foretell(console, bundle, test, judge)
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
                say=lambda line: _say(console, line, style="yellow"),
            )
    except KeyboardInterrupt as interrupt:
        trained = ", and what was trained" if getattr(interrupt, "kept", False) else ""
        raise RunError(
            f"Interrupted; the bundle is kept{trained}. To go on:\n"
            f"  ddchallenge score {shlex.quote(str(bundle.folder))}{dataset_options(test.spec)}"
            f"{judge.options()}{rest_of_line}"
        ) from None


# Below this many pixels gone through, no machine takes an hour.
_HOURS_OF_PIXELS = 2**30
_HOUR = 3600.0


def _foretell(console: Console, bundle: Bundle, test: DatasetSplit, judge: _Judge) -> None:
    """Say beforehand of a run that takes over an hour how long it takes."""
    from ddchallenge.report.live import duration

    pixels = bundle.data.images[:, 0].size * (judge.epochs + 1)
    if judge.protocol.recipe != "eccv2024":  # larger networks, and up to a hundred tests
        pixels = 16 * pixels + min(judge.epochs, 100) * test.data.images[:, 0].size
    if pixels * len(judge.seeds) < _HOURS_OF_PIXELS:
        return
    with _waiting(console, "Estimating how long this takes"):
        expected = _expected(bundle, test, judge, judge.numerics(test.spec))
    if expected.seconds > _HOUR:
        _say(
            console,
            f"This will take about {duration(expected.seconds)} h with {expected.numerics} "
            f"numerics on {judge.device}. It can be interrupted and gone on with; "
            "--estimate compares.",
            style="yellow",
        )


def _expected(bundle: Bundle, test: DatasetSplit, judge: _Judge, numerics: Numerics) -> Estimate:
    import torch

    from ddchallenge.scoring.estimate import estimate
    from ddchallenge.scoring.recipes import recipe_of

    expected = estimate(
        bundle.data,
        test.data,
        test.spec,
        judge.protocol,
        recipe_of(judge.protocol, judge.epochs, test.spec),
        seeds=judge.seeds,
        numerics=numerics,
        device=torch.device(judge.device),
    )
    return replace(expected, seconds=expected.seconds * (2 if judge.reference else 1))


def _show_estimates(
    console: Console, bundle: Bundle, test: DatasetSplit, judge: _Judge, as_json: bool
) -> None:
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.tables import estimates_table
    from ddchallenge.scoring import numerics_of

    chosen = judge.numerics(test.spec)
    estimates = []
    for numerics in numerics_of(judge.protocol):
        with _waiting(console, f"Measuring a few steps, {numerics} numerics"):
            estimates.append(_expected(bundle, test, judge, numerics))
    if as_json:
        _print_json([to_json(estimate) for estimate in estimates])
    else:
        _console(err=False).print(estimates_table(estimates, chosen))
    for note in dict.fromkeys(note for estimate in estimates for note in estimate.notes):
        _say(console, note, style="yellow")


def _rest_of_line(
    device: str, data_dir: Path | None, out: Path | None, record: bool, as_json: bool
) -> str:
    """What else a command line that goes on has to say."""
    said = "" if device == "auto" else f" --device {device}"
    for option, path in (("--data-dir", data_dir), ("--out", out)):
        said += f" {option} {shlex.quote(str(path))}" if path else ""
    return said + (" --record" if record else "") + (" --json" if as_json else "")


def _enough(console: Console, bundle: Bundle, training: DatasetSplit) -> DatasetSplit | None:
    """The training images, if there are enough for a reference; a sampled bundle is scored anyway.

    How many images a class a generator hands over is known afterwards only.
    """
    from ddchallenge.scoring.reference import check_enough

    try:
        check_enough(bundle.data.labels, training)
    except RequestError as error:
        _say(console, f"The reference is left out. {error}", style="yellow")
        return None
    return training


def _end_as_the_generator_did(bundle: Bundle, out: Path) -> None:
    """A generator that failed is a failed run, whatever could be kept and scored of it."""
    log = bundle.manifest.sampling
    if log is not None and log.stop in ("crashed", "refused", "disk-full"):
        raise RunError(
            f"The run {log.stop}: {log.stop_detail}\n"
            f"The {bundle.manifest.images:,} images it handed over before that are kept in {out}."
        )


def _place_for(bundle: Bundle, spec: DatasetSpec, judge: _Judge) -> Path:
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
    _check_writable(place.parent)
    marks = marks_of(bundle.manifest, spec, judge.protocol, judge.epochs, judge.seeds)
    check_recordable(place, official=not cost_the_rank(marks))
    return place


def _show_audit(
    console: Console, bundle: Bundle, spec: DatasetSpec, test: DatasetSplit | None = None
) -> tuple[Finding, ...]:
    from ddchallenge.audit import audit

    with _waiting(console, "Auditing the bundle"):
        findings = audit(bundle.data, spec, test.data if test else None)
    for finding in findings:
        _say(console, f"audit: {finding.text}", style="yellow")
    return findings


def _finish(
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
            _say(console, f"Result: {path}")
        except DDChallengeError as error:
            failures.append(str(error))
    if as_json:
        _print_json(result_document(result))
    else:
        _console(err=False).print(result_table(result, spec.class_names))
    try:  # last: whatever a picture may come to grief over, the numbers are safe
        with _waiting(console, "Drawing the confusion matrix"):
            write_confusion(out / "confusion.png", scored.confusion, result, spec)
        _say(console, f"Confusion matrix: {out / 'confusion.png'}")
    except DDChallengeError as error:
        failures.append(str(error))
    if failures:
        raise RunError("\n".join(failures))
    scored.forget()


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
