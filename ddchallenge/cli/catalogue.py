"""`submissions`, `new` and `leaderboard`: what there is to run, and how it ranks."""

from __future__ import annotations

from pathlib import Path

import click

from ddchallenge.cli.output import echo, new_console, print_json
from ddchallenge.cli.parameters import PATH, with_json
from ddchallenge.errors import RequestError

__all__ = ["leaderboard", "new", "submissions"]


@click.command()
@with_json
def submissions(as_json: bool) -> None:
    """List what can be run by name."""
    from ddchallenge.generator import list_submissions
    from ddchallenge.report import tables

    rows = list_submissions()
    if not as_json:
        new_console(err=False).print(tables.submissions(rows))
        return
    print_json(
        [
            {
                "name": row.name,
                "folder": str(row.folder),
                "problem": row.problem,
                "datasets": row.submission.datasets if row.submission else None,
                "command": bool(row.submission and row.submission.command),
                "ranked": row.submission.ranked if row.submission else None,
                "digest": row.submission.identity.digest if row.submission else None,
            }
            for row in rows
        ]
    )


@click.command()
@click.argument("name")
@click.option(
    "--parent",
    type=PATH,
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
    echo(
        f"{folder} is ready. Edit {folder / 'generate.py'}, then\n"
        f"  ddchallenge run --track generative --dataset digits --submission {folder}"
    )


@click.command()
@click.option(
    "--results", "folders", type=PATH, multiple=True, help="Another folder of result files."
)
@click.option("--dataset", metavar="D", help="Only this one.")
@click.option("--markdown", "as_markdown", is_flag=True, help="As Markdown, for a README.")
@with_json
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
    console = new_console()
    for problem in board.problems:
        console.print(f"left out: {problem}", style="yellow", highlight=False, markup=False)
    if as_json:
        print_json(
            [
                {"rank": row.rank, "path": str(row.path), **result_document(row.result)}
                for row in board.rows
            ]
        )
        return
    if as_markdown:
        echo(leaderboard_markdown(board).rstrip("\n"))
        return
    output = new_console(err=False)
    for table in leaderboard_tables(board):
        output.print(table)
    if not board.rows:
        console.print("No results yet. `ddchallenge run ... --record` makes one.")
