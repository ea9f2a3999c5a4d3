"""Tables for the terminal, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddchallenge.datasets.inspection import Availability
from ddchallenge.doctor import Diagnosis, State
from ddchallenge.errors import RequestError
from ddchallenge.generator import ListedSubmission, Submission
from ddchallenge.leaderboard import Leaderboard, Row, group_of_tests, hardware_of
from ddchallenge.records import (
    STOPPED_BY,
    Accuracy,
    Calibration,
    Difference,
    Numerics,
    PhaseSeconds,
    Rate,
    Reference,
    Result,
    SeedRun,
)
from ddchallenge.reference_devices import CURRENT_TABLE, TABLES, equivalent_budget
from ddchallenge.report.live import duration
from ddchallenge.rules import TRACKS

if TYPE_CHECKING:
    from rich.table import Table

    from ddchallenge.scoring.estimate import Estimate

__all__ = [
    "accuracy_text",
    "availability_table",
    "calibration_table",
    "diagnosis_lines",
    "diagnosis_tables",
    "estimates_table",
    "leaderboard_markdown",
    "leaderboard_tables",
    "per_class_text",
    "protocol_text",
    "reference_lines",
    "result_table",
    "submissions",
]


_SHOWN_CLASSES: Final = 5


def accuracy_text(accuracy: Accuracy) -> str:
    """``87.40 ± 0.53`` in per cent; the deviation is left out for a single seed."""
    deviation = "" if accuracy.std is None else f" ± {100 * accuracy.std:.2f}"
    return f"{100 * accuracy.mean:.2f}{deviation}"


def protocol_text(result: Result) -> str:
    """``eccv2024, ConvNetD3-W128, exact numerics, 3 seeds``."""
    use, seeds = result.protocol, len(result.runs)
    counted = f"{seeds} seed{'s' if seeds != 1 else ''}"
    return f"{use.id}, {use.network}, {use.numerics} numerics, {counted}"


def estimates_table(estimates: Sequence[Estimate], chosen: Numerics) -> Table:
    """What a score would take in each numerics; ``chosen`` is what it would be made with."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("numerics", "time", "a step", "steps", "first step", "tests", "memory"):
        table.add_column(heading, justify="left" if heading == "numerics" else "right")
    for estimate in estimates:
        table.add_row(
            estimate.numerics + (" (default)" if estimate.numerics == chosen else ""),
            duration(estimate.seconds),
            f"{1e3 * estimate.step_seconds:,.1f} ms",
            f"{estimate.steps:,}",
            f"{estimate.first_step_seconds:.1f} s",
            duration(estimate.test_seconds),
            f"{estimate.memory_bytes / 2**20:,.0f} MiB",
        )
    return table


def calibration_table(calibration: Calibration) -> Table:
    """What was measured of a device, and what its budgets come to."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    environment = calibration.environment
    table.add_row("device", escape(f"{environment.device}, {environment.hardware}"))
    table.add_row(
        "workload", f"{calibration.workload}, PyTorch {escape(environment.torch)}, TF32 off"
    )
    table.add_row("threads", str(calibration.threads))
    for name in ("matmul_bf16", "matmul_fp32", "convolution_bf16", "convolution_fp32"):
        table.add_row(name.replace("_", " "), _rate(getattr(calibration, name), "FLOP/s"))
    table.add_row("copy", _rate(calibration.copy, "B/s"))
    if calibration.host_to_device is not None:
        table.add_row("host to device", _rate(calibration.host_to_device, "B/s"))
    rules = TRACKS["generative"]
    for name, reference in TABLES[CURRENT_TABLE].items():
        try:
            scaled = equivalent_budget(name, calibration, rules)
            worth = f"{scaled.budget_seconds:,g} s for its {rules.budget_seconds:g} s "
            worth += f"(× {scaled.factor:.3g})"
        except RequestError as error:
            worth = str(error).partition("\n")[0]
        table.add_row(f"as an {name}", escape(worth))
        table.add_row("", f"[dim]{escape(reference.source)}[/]")
    return table


def _rate(rate: Rate, unit: str) -> str:
    return (
        f"{rate.per_second / 1e9:,.1f} G{unit}  "
        f"(quartiles {rate.spread:.1%} apart, {rate.repetitions} times)"
    )


def per_class_text(images_per_class: tuple[int, int]) -> str:
    """``10``, or ``9–10`` where classes differ."""
    least, most = images_per_class
    return f"{least:,}" if least == most else f"{least:,}–{most:,}"


def leaderboard_tables(board: Leaderboard) -> list[Table]:
    """One table for each dataset, track, protocol and hardware."""
    from rich.markup import escape
    from rich.table import Table

    tables = []
    for title, rows in groupby(board.rows, _heading):
        table = Table(title=escape(title), title_justify="left", title_style="bold")
        table.add_column("rank", justify="right")
        table.add_column("submission", no_wrap=True)
        for header in ("images\na class", "accuracy,\n%", "chance,\n%"):
            table.add_column(header, justify="right", no_wrap=True)
        table.add_column("marks", overflow="fold")
        for row in rows:
            *facts, marks = _cells(row)
            table.add_row(*map(escape, facts), escape(marks.replace("; ", ";\n")))
        tables.append(table)
    return tables


def leaderboard_markdown(board: Leaderboard) -> str:
    """The same as Markdown, for a README or a pull request."""
    lines = []
    for title, rows in groupby(board.rows, _heading):
        lines += [
            f"**{title}**",
            "",
            "| rank | submission | images a class | accuracy, % | chance, % | marks |",
            "|---:|---|---:|---:|---:|---|",
        ]
        lines += [
            f"| {' | '.join(cell.replace('|', '/') for cell in _cells(row))} |" for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _heading(row: Row) -> str:
    result = row.result
    tests = group_of_tests(result)
    which = f" (test images {tests})" if tests else ""
    hardware = hardware_of(result)
    where = f" · on {hardware}" if hardware else ""
    return f"{result.dataset}{which} · {result.track} · {result.protocol.id}{where}"


def _cells(row: Row) -> tuple[str, ...]:
    result = row.result
    return (
        str(row.rank) if row.rank else "–",
        result.submission.name,
        per_class_text(result.bundle.images_per_class),
        accuracy_text(result.accuracy),
        f"{result.chance:.1%}"[:-1],
        "; ".join((*_numerics(result), *result.marks)),
    )


def _numerics(result: Result) -> tuple[str, ...]:
    return ("fast numerics",) if result.protocol.numerics == "fast" else ()


def result_table(result: Result, class_names: Sequence[str]) -> Table:
    """A result, a line a fact. ``class_names[label]`` are the dataset's."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    bundle, accuracy = result.bundle, result.accuracy
    table.add_row("submission", f"{escape(result.submission.name)} on {escape(result.dataset)}")
    table.add_row(
        "accuracy",
        f"[bold]{accuracy_text(accuracy)} %[/]  ({_seeds(result.runs)}; "
        f"chance {result.chance:.1%})",
    )
    if accuracy.ci95 is not None:
        low, high = accuracy.ci95
        table.add_row("interval", f"{100 * low:.2f} to {100 * high:.2f} %  (95 %, over seeds)")
    table.add_row(
        "test set",
        f"± {100 * accuracy.test_error:.2f} points  (standard error of "
        f"{result.runs[0].test_images:,} images, at any seeds)",
    )
    best = [
        run.optimistic_best_accuracy
        for run in result.runs
        if run.optimistic_best_accuracy is not None
    ]
    if best:
        table.add_row(
            "best pass",
            f"{100 * sum(best) / len(best):.2f} %  (optimistic: the test set itself chose it)",
        )
    if result.reference is not None:
        for number, line in enumerate(reference_lines(result.reference)):
            table.add_row("" if number else "reference", line)
    table.add_row("classes", _classes(result.per_class, class_names))
    table.add_row("scored by", escape(protocol_text(result)))
    if result.protocol.equivalence:
        table.add_row("", escape(result.protocol.equivalence))
    table.add_row("images", f"{bundle.images:,}, {per_class_text(bundle.images_per_class)} a class")
    if result.sampling is not None:
        log = result.sampling
        phases = ", ".join(
            f"{name.replace('_', '-')} {getattr(log.seconds, name):.1f}"
            for name in _phases_known(result)
        )
        table.add_row(
            "sampling",
            f"{log.elapsed_seconds - log.seconds.stopping:.1f} s of {log.budget_seconds:g} s, "
            f"stopped by {STOPPED_BY[log.stop]} "
            f"({phases})",
        )
        if log.equivalent is not None:
            scaled = log.equivalent
            table.add_row(
                "budget", f"as on an {scaled.device}: × {scaled.factor:.3g} ({scaled.table})"
            )
    if result.marks:
        table.add_row("marks", f"[yellow]{escape('; '.join(result.marks))}[/]")
    return table


def _phases_known(result: Result) -> tuple[str, ...]:
    """A spool says when its images came; what a killed supervisor waited for before, nobody."""
    if any("recovered after" in mark for mark in result.marks):
        return ("sampling",)
    return tuple(PhaseSeconds.__dataclass_fields__)


def reference_lines(reference: Reference) -> list[str]:
    """What random real images scored, and how the bundle compares with them, in sentences."""
    difference = reference.difference
    lines = [
        f"{accuracy_text(reference.accuracy)} %  (random real images; {_seeds(reference.runs)})",
        f"this bundle is {_compared(difference)} random real images",
    ]
    if difference.ci95 is not None:
        lines.append(_interval(*difference.ci95))
    there, official = reference.training_images_per_class, reference.official_images_per_class
    if there < official:
        lines.append(f"(drawn from {there:,} of {official:,} training images a class)")
    return lines


def _compared(difference: Difference) -> str:
    points = 100 * difference.mean
    if abs(points) < 0.005:
        return "level with"
    deviation = "" if difference.std is None else f" ± {100 * difference.std:.2f}"
    return f"{abs(points):.2f}{deviation} points {'above' if points > 0 else 'below'}"


def _interval(low: float, high: float) -> str:
    low, high = 100 * low, 100 * high
    if low <= 0 <= high:
        return f"no difference shown: 95 % from {abs(low):.2f} points below to {high:.2f} above"
    nearer, farther = sorted((abs(low), abs(high)))
    side = "above" if low > 0 else "below"
    return f"95 % interval over seeds: {nearer:.2f} to {farther:.2f} points {side}"


def _seeds(runs: Sequence[SeedRun]) -> str:
    return "seeds: " + ", ".join(f"{100 * run.accuracy:.2f}" for run in runs)


def _classes(accuracies: Sequence[float], names: Sequence[str]) -> Table:
    """Two columns of classes and their accuracies: all of few, else the best and the worst."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for _ in range(2):
        grid.add_column(max_width=24, no_wrap=True, overflow="ellipsis")
        grid.add_column(min_width=7, justify="right", no_wrap=True)
        grid.add_column(min_width=2)
    ranked = sorted(range(len(accuracies)), key=lambda label: -accuracies[label])
    if len(ranked) <= 2 * _SHOWN_CLASSES:
        half = -(-len(ranked) // 2)
        left, right = ranked[:half], ranked[half:]
    else:
        left, right = ranked[:_SHOWN_CLASSES], ranked[-_SHOWN_CLASSES:]
        right.sort(key=lambda label: accuracies[label])
        last = accuracies[right[-1]]
        alike = sum(accuracy == last for accuracy in accuracies)
        # Where dozens of classes are at zero, which five are shown is chance.
        more = alike > sum(accuracies[label] == last for label in right)
        worst = f"worst, {alike} at {last:.1%}" if more else "worst"
        grid.add_row("[dim]best[/]", "", "", f"[dim]{worst}[/]")
    for pair in zip_longest(left, right):
        cells = []
        for label in pair:
            if label is not None:
                cells += [escape(names[label]), f"{accuracies[label]:.1%}", ""]
        grid.add_row(*cells)
    return grid


def availability_table(found: Iterable[Availability]) -> Table:
    """Which datasets are here, in which form and with how many images."""
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("dataset", no_wrap=True)
    for column in ("training images", "test images", "where"):
        table.add_column(column, overflow="fold")
    for entry in found:
        if entry.path is None and entry.form is None:
            hint = f"[yellow]not found: `ddchallenge data fetch {entry.dataset}`[/]"
            table.add_row(entry.dataset, "–", "–", hint)
            continue
        where = f"{escape(str(entry.path or ''))} ({escape(entry.form or '')})"
        if entry.problem:
            where += f"\n[yellow]{escape(entry.problem)}[/]"
        train, test = (str(split) if split else "–" for split in (entry.train, entry.test))
        table.add_row(entry.dataset, train, test, where)
    return table


_STATES: Final[dict[State, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "missing": ("missing", "yellow"),
    "unknown": ("unknown", "red"),
}


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """What a machine has, and which commands that is enough for."""
    from rich.markup import escape
    from rich.table import Table

    has = Table(box=None, pad_edge=False, show_header=False)
    has.add_column(no_wrap=True)
    has.add_column(no_wrap=True)
    has.add_column(overflow="fold")
    for found in diagnosis.findings:
        word, style = _STATES[found.state]
        has.add_row(escape(found.title), f"[{style}]{word}[/]", escape(found.text))
    can = Table(box=None, pad_edge=False, show_header=False)
    can.add_column(no_wrap=True)
    can.add_column(no_wrap=True)
    can.add_column(overflow="fold")
    for command in diagnosis.commands:
        word = "[green]yes[/]" if command.ready else "[yellow]no[/]"
        can.add_row(escape(command.command), word, escape(command.why or ""))
    return [has, can]


def diagnosis_lines(diagnosis: Diagnosis) -> list[str]:
    """The same as plain lines: a log has no columns."""
    return [
        *(f"{_STATES[f.state][0]}: {f.title}: {f.text}" for f in diagnosis.findings),
        *(f"{'yes' if c.ready else 'no'}: {c.command}{f': {c.why}' if c.why else ''}"
          for c in diagnosis.commands),
    ]  # fmt: skip


def submissions(rows: Iterable[ListedSubmission]) -> Table:
    """Everything that can be run by name."""
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("name", no_wrap=True)
    for column in ("datasets", "images a class", "augmentation", "notes", "folder"):
        table.add_column(column, overflow="fold")
    for row in rows:
        entry = row.submission
        if entry is None:
            problem = f"[red]{escape(row.problem or '')}[/]"
            table.add_row(f"[red]{escape(row.name)}[/]", "", "", "", problem, _short(row.folder))
            continue
        notes = [
            *(["reference, not ranked"] if not entry.ranked else []),
            *(["needs training data"] if entry.needs_training_data else []),
            *(["a command"] if entry.command else []),
        ]
        table.add_row(
            escape(entry.name),
            ", ".join(entry.datasets),
            _wanted(entry),
            entry.augmentation,
            ", ".join(notes),
            _short(row.folder),
        )
    return table


def _wanted(entry: Submission) -> str:
    if entry.command is not None:
        return "as it decides"
    return f"{entry.images_per_class:,}" if entry.images_per_class else "as many as fit"


def _short(path: Path) -> str:
    from rich.markup import escape

    try:
        return escape(str(path.relative_to(Path.cwd())))
    except ValueError:
        return escape(str(path))
