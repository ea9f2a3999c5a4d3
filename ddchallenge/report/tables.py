"""Tables for the terminal, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ddchallenge.datasets.inspection import Availability
from ddchallenge.generator import ListedSubmission
from ddchallenge.leaderboard import Leaderboard, Row
from ddchallenge.records import Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "accuracy_text",
    "availability_table",
    "leaderboard_markdown",
    "leaderboard_tables",
    "per_class_text",
    "result_table",
    "submissions",
]


def accuracy_text(result: Result) -> str:
    """``87.40 ± 0.53`` in per cent; the deviation is left out for a single seed."""
    mean, std = result.accuracy.mean, result.accuracy.std
    return f"{mean:.2%}"[:-1] + ("" if std is None else f" ± {std:.2%}"[:-1])


def per_class_text(images_per_class: tuple[int, int]) -> str:
    """``10``, or ``9–10`` where classes differ."""
    least, most = images_per_class
    return f"{least:,}" if least == most else f"{least:,}–{most:,}"


def leaderboard_tables(board: Leaderboard) -> list[Table]:
    """One table for each dataset, track and protocol."""
    from rich.markup import escape
    from rich.table import Table

    tables = []
    for title, rows in groupby(board.rows, _heading):
        table = Table(title=escape(title), title_justify="left", title_style="bold")
        table.add_column("rank", justify="right")
        table.add_column("submission", no_wrap=True)
        table.add_column("images a class", justify="right")
        table.add_column("accuracy, %", justify="right")
        table.add_column("chance, %", justify="right")
        table.add_column("marks", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, _cells(row)))
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
    return f"{result.dataset} · {result.track} · {result.protocol.id}"


def _cells(row: Row) -> tuple[str, ...]:
    result = row.result
    return (
        str(row.rank) if row.rank else "–",
        result.submission.name,
        per_class_text(result.bundle.images_per_class),
        accuracy_text(result),
        f"{result.chance:.1%}"[:-1],
        "; ".join(result.marks),
    )


def result_table(result: Result) -> Table:
    """A result, a line a fact."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    bundle = result.bundle
    seeds = ", ".join(f"{run.accuracy:.2%}"[:-1] for run in result.runs)
    table.add_row("submission", f"{escape(result.submission.name)} on {result.dataset}")
    table.add_row(
        "accuracy",
        f"[bold]{accuracy_text(result)} %[/]  (seeds: {seeds}; chance {result.chance:.1%})",
    )
    table.add_row("images", f"{bundle.images:,}, {per_class_text(bundle.images_per_class)} a class")
    if result.sampling is not None:
        log = result.sampling
        phases = ", ".join(
            f"{name.replace('_', '-')} {getattr(log.seconds, name):.1f}"
            for name in log.seconds.__dataclass_fields__
        )
        table.add_row(
            "sampling",
            f"{log.elapsed_seconds:.1f} s of {log.budget_seconds:g} s, stopped by {log.stop} "
            f"({phases})",
        )
    if result.marks:
        table.add_row("marks", f"[yellow]{escape('; '.join(result.marks))}[/]")
    return table


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
        ]
        table.add_row(
            escape(entry.name),
            ", ".join(entry.datasets),
            f"{entry.images_per_class:,}" if entry.images_per_class else "as many as fit",
            entry.augmentation,
            ", ".join(notes),
            _short(row.folder),
        )
    return table


def _short(path: Path) -> str:
    from rich.markup import escape

    try:
        return escape(str(path.relative_to(Path.cwd())))
    except ValueError:
        return escape(str(path))
