"""`data`: the data sets."""

from __future__ import annotations

from pathlib import Path

import click

from ddchallenge.cli.output import echo, new_console, print_json, say
from ddchallenge.cli.parameters import with_data_dir, with_image_size, with_json
from ddchallenge.cli.steps import open_dataset

__all__ = ["data"]


@click.group()
def data() -> None:
    """List, fetch and verify the data sets."""


@data.command("list")
@with_data_dir
@with_json
def data_list(data_dir: Path | None, as_json: bool) -> None:
    """Say which are here, and where they were looked for."""
    from ddchallenge.datasets import DATASETS, availability, data_folder
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.tables import availability_table

    found = [availability(spec, data_dir) for spec in DATASETS.values()]
    if as_json:
        print_json([to_json(entry) for entry in found])
        return
    new_console(err=False).print(availability_table(found))
    say(new_console(), f"Looked in {data_folder(data_dir)}")


@data.command("fetch")
@click.argument("name")
@with_data_dir
@with_json
def data_fetch(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Download NAME, check it, and unpack it."""
    from ddchallenge.datasets import fetch, open_dataset
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.live import counting

    console = new_console()
    with counting(console, name, "bytes") as display:
        fetched = fetch(
            open_dataset(name), data_dir, lambda p: display(p.done, p.total, what=p.activity)
        )
    if as_json:
        print_json(to_json(fetched))
    else:
        echo(fetched.message)


@data.command("verify")
@click.argument("name")
@with_image_size
@with_data_dir
@with_json
def data_verify(name: str, image_size: int | None, data_dir: Path | None, as_json: bool) -> None:
    """Check NAME, also folder:PATH, to the last image."""
    from ddchallenge.datasets import verify
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.live import counting

    console = new_console()
    spec = open_dataset(console, name, image_size)
    with counting(console, spec.name, "images") as display:
        verified = verify(spec, data_dir, lambda d, t: display(d, t, what="checking"))
    if as_json:
        print_json(to_json(verified))
    else:
        echo(str(verified))
