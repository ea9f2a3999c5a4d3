"""`import` and `export`: the official tensor files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddchallenge.cli.output import new_console, print_json, say, waiting
from ddchallenge.cli.parameters import PATH, with_bundle_dataset, with_dataset, with_json
from ddchallenge.cli.steps import open_bundle, open_dataset, show_audit

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.records import Bundle, DatasetSpec, Track

__all__ = ["export_command", "import_command", "import_tensors"]


@click.command("import")
@click.argument("file", type=PATH)
@with_dataset
@click.option(
    "--labels", type=PATH, help="A .pt file of N integer labels; without: class-major order."
)
@click.option("--track", default="generative", show_default=True, metavar="generative|fixed-ipc")
@click.option("--out", type=PATH, required=True, help="The bundle to write; must not exist.")
@with_json
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

    console = new_console()
    spec = open_dataset(console, dataset, image_size)
    bundle = import_tensors(console, file, labels, spec, get_rules(track).track, out)
    show_audit(console, bundle, spec)
    if as_json:
        print_json({"bundle": str(bundle.folder), "manifest": to_json(bundle.manifest)})


@click.command("export")
@click.argument("bundle", type=PATH)
@with_bundle_dataset
@click.option("--out", type=PATH, required=True, help="Folder for the official {dataset}.pt.")
@with_json
def export_command(
    bundle: Path, dataset: str | None, image_size: int | None, out: Path, as_json: bool
) -> None:
    """Write a bundle as the official tensor file.

    Normalised, class-major, with an equal number of images a class: what the official evaluator
    reads.
    """
    from ddchallenge.official import export_official

    console = new_console()
    opened, spec = open_bundle(console, bundle, dataset, image_size)
    exported = export_official(opened, spec, out)
    if as_json:
        print_json(
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


def import_tensors(
    console: Console, file: Path, labels: Path | None, spec: DatasetSpec, track: Track, out: Path
) -> Bundle:
    """Make the bundle ``out`` of a tensor file, and say what is to be said of it."""
    from ddchallenge.pipeline import import_bundle

    with waiting(console, f"Reading {file}"):
        bundle, imported = import_bundle(file, labels, spec, track, out)
    for note in imported.notes:
        say(console, note, style="yellow")
    say(console, f"Bundle: {bundle.folder} (look at {bundle.folder / 'samples.png'})")
    return bundle
