"""The command line: parse, call, render. The only module that exits or prints."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
        Rules,
        ScoringProtocol,
        Track,
    )
    from ddchallenge.sampling.supervisor import SamplingOrder

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


_dataset = click.option(
    "--dataset", callback=_required, metavar="D", help="digits, cifar100 or tinyimagenet."
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
        "--epochs",
        type=click.IntRange(min=0),
        help="N makes N + 1 passes, as in the official script.  [default: 1000]",
    ),
    click.option("--seeds", type=_Seeds(), help="One network each.  [default: 0,1,2]"),
    click.option(
        "--reference", is_flag=True, help="Score as many random real images a class as well."
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
    submission: str | None,
    budget: float | None,
    max_images: int | None,
    augment: str | None,
    seed: int,
    images: Path | None,
    labels: Path | None,
    epochs: int | None,
    seeds: tuple[int, ...] | None,
    reference: bool,
    device: str,
    data_dir: Path | None,
    out: Path | None,
    record: bool,
    as_json: bool,
) -> None:
    """Go all the way: from a generator, or a tensor file, to a scored result."""
    from ddchallenge.datasets import get_dataset
    from ddchallenge.leaderboard import check_recordable, record_path
    from ddchallenge.rules import get_rules

    rules, spec = get_rules(track), get_dataset(dataset)
    judge = _Judge.of(epochs, seeds, device, reference)
    console = _console()
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
    scored = _score(console, bundle, test, training, judge, data_dir, findings)
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
    from ddchallenge.datasets import get_dataset
    from ddchallenge.jsonio import to_json
    from ddchallenge.rules import get_rules
    from ddchallenge.scoring import resolve_device

    spec = get_dataset(dataset)
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
    console = _console()
    bundle = _sample(console, order, data_dir, out)
    _show_audit(console, bundle, spec)
    if as_json:
        _print_json({"bundle": str(bundle.folder), "manifest": to_json(bundle.manifest)})
    _end_as_the_generator_did(bundle, out)


@commands.command()
@click.argument("bundle", type=_PATH)
@_scoring
@_device
@_data_dir
@_out
@click.option("--record", is_flag=True, help="Put the result beside the submission.")
@_json
def score(
    bundle: Path,
    epochs: int | None,
    seeds: tuple[int, ...] | None,
    reference: bool,
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
    from ddchallenge.datasets import get_dataset

    judge = _Judge.of(epochs, seeds, device, reference)
    console = _console()
    opened = _open_bundle(console, bundle)
    spec = get_dataset(opened.manifest.dataset)
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
    scored = _score(console, opened, test, training, judge, data_dir, findings)
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
    file: Path, dataset: str, labels: Path | None, track: str, out: Path, as_json: bool
) -> None:
    """Make a bundle of an official tensor file, FILE.pt."""
    from ddchallenge.datasets import get_dataset
    from ddchallenge.jsonio import to_json
    from ddchallenge.rules import get_rules

    spec = get_dataset(dataset)
    console = _console()
    bundle = _import(console, file, labels, spec, get_rules(track).track, out)
    _show_audit(console, bundle, spec)
    if as_json:
        _print_json({"bundle": str(bundle.folder), "manifest": to_json(bundle.manifest)})


@commands.command("export")
@click.argument("bundle", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder for the official {dataset}.pt.")
@_json
def export_command(bundle: Path, out: Path, as_json: bool) -> None:
    """Write a bundle as the official tensor file.

    Normalised, class-major, with an equal number of images a class: what the official evaluator
    reads.
    """
    from ddchallenge.datasets import get_dataset
    from ddchallenge.official import export_official

    console = _console()
    opened = _open_bundle(console, bundle)
    exported = export_official(opened, get_dataset(opened.manifest.dataset), out)
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
        wanted = get_dataset(dataset).name
        rows = tuple(row for row in board.rows if row.result.dataset == wanted)
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
    from ddchallenge.datasets import fetch, get_dataset
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.live import counting

    console = _console()
    with counting(console, name, "bytes") as display:
        fetched = fetch(
            get_dataset(name), data_dir, lambda p: display(p.done, p.total, what=p.activity)
        )
    if as_json:
        _print_json(to_json(fetched))
    else:
        _echo(fetched.message)


@data.command("verify")
@click.argument("name")
@_data_dir
@_json
def data_verify(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Check NAME to the last image."""
    from ddchallenge.datasets import get_dataset, verify
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.live import counting

    with counting(_console(), name, "images") as display:
        verified = verify(get_dataset(name), data_dir, lambda d, t: display(d, t, what="checking"))
    if as_json:
        _print_json(to_json(verified))
    else:
        _echo(str(verified))


# ---------------------------------------------------------------------------------- what they share


class _Judge:
    """How to score, settled before anything is started."""

    def __init__(
        self,
        protocol: ScoringProtocol,
        epochs: int,
        seeds: tuple[int, ...],
        device: str,
        reference: bool,
    ) -> None:
        from ddchallenge.marks import is_official

        self.protocol = protocol
        self.epochs = epochs
        self.seeds = seeds
        self.device = device
        self.reference = reference
        self.official = is_official(protocol, epochs, seeds)

    def options(self) -> str:
        """What of it has to be said on a command line."""
        said = ""
        if self.epochs != self.protocol.epochs:
            said += f" --epochs {self.epochs}"
        if self.seeds != self.protocol.seeds:
            said += f" --seeds {','.join(map(str, self.seeds))}"
        if self.reference:
            said += " --reference"
        return said

    @classmethod
    def of(
        cls, epochs: int | None, seeds: tuple[int, ...] | None, device: str, reference: bool
    ) -> _Judge:
        from ddchallenge.rules import DEFAULT_PROTOCOL, PROTOCOLS
        from ddchallenge.scoring import check_seeds, resolve_device

        protocol = PROTOCOLS[DEFAULT_PROTOCOL]
        seeds = protocol.seeds if seeds is None else seeds
        check_seeds(seeds)
        epochs = protocol.epochs if epochs is None else epochs
        return cls(protocol, epochs, seeds, resolve_device(device), reference)


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
    require_dataset(chosen, spec.name)
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


def _open_bundle(console: Console, path: Path) -> Bundle:
    from ddchallenge.bundle import read_bundle

    folder = path / "bundle" if (path / "bundle" / "manifest.json").is_file() else path
    with _waiting(console, "Checking the bundle"):
        return read_bundle(folder)


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
    data_dir: Path | None,
    findings: tuple[Finding, ...],
) -> Scored:
    from ddchallenge.pipeline import score_bundle
    from ddchallenge.report.live import ScoringDisplay

    try:
        with closing(ScoringDisplay(console, "scoring")) as display:
            return score_bundle(
                bundle,
                test,
                judge.protocol,
                epochs=judge.epochs,
                seeds=judge.seeds,
                device=judge.device,
                training=training,
                findings=findings,
                on_progress=display,
            )
    except KeyboardInterrupt:
        again = f"ddchallenge score {bundle.folder}{judge.options()}{_data_option(data_dir)}"
        raise RunError(f"Interrupted; the bundle is kept. To score it:\n  {again}") from None


def _data_option(data_dir: Path | None) -> str:
    return f" --data-dir {data_dir}" if data_dir else ""


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


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
