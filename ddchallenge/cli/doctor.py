"""`doctor`: what this machine can do."""

from __future__ import annotations

from pathlib import Path

import click

from ddchallenge.cli.output import echo, new_console, print_json, waiting
from ddchallenge.cli.parameters import with_data_dir, with_json

__all__ = ["doctor"]


@click.command()
@with_data_dir
@with_json
@click.pass_context
def doctor(context: click.Context, data_dir: Path | None, as_json: bool) -> None:
    """Say what this machine can do, and what is missing for which command.

    Exit status 0 where a run on digits can be done, else 1.
    """
    from ddchallenge.doctor import diagnose
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.tables import diagnosis_lines, diagnosis_tables

    with waiting(new_console(), "looking around"):
        diagnosis = diagnose(data_dir)
    output = new_console(err=False)
    if as_json:
        print_json(to_json(diagnosis))
    elif output.is_terminal:
        for table in diagnosis_tables(diagnosis):
            output.print(table)
            output.print()
    else:
        for line in diagnosis_lines(diagnosis):
            echo(line)
    context.exit(0 if diagnosis.able else 1)
