"""What commands have in common: their data, the folder they write to, the audit."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ddchallenge.cli.output import say, waiting
from ddchallenge.errors import OutputError, RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.audit import Finding
    from ddchallenge.records import Bundle, DatasetSpec, DatasetSplit

__all__ = [
    "check_writable",
    "free_folder",
    "open_bundle",
    "open_dataset",
    "refuse_existing",
    "show_audit",
    "test_images",
    "training_images",
]


def open_dataset(console: Console, dataset: str, image_size: int | None) -> DatasetSpec:
    """The dataset of that name, or the class folders; see ``ddchallenge.datasets``."""
    from ddchallenge import datasets

    with waiting(console, f"Looking at {dataset}"):
        return datasets.open_dataset(dataset, image_size)


def open_bundle(
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
    spec = None if dataset is None else open_dataset(console, dataset, image_size)
    with waiting(console, "Checking the bundle"):
        bundle = read_bundle(folder, spec)
    return bundle, spec or get_dataset(bundle.manifest.dataset)


def test_images(console: Console, spec: DatasetSpec, data_dir: Path | None) -> DatasetSplit:
    """The images every score is taken on."""
    from ddchallenge.datasets import load_split

    with waiting(console, f"Loading the test images of {spec.name}"):
        return load_split(spec, "test", data_dir)


def training_images(console: Console, spec: DatasetSpec, data_dir: Path | None) -> DatasetSplit:
    """The real images, for a reference or for a generator that asks for them."""
    from ddchallenge.datasets import load_split

    with waiting(console, f"Loading the training images of {spec.name}"):
        return load_split(spec, "train", data_dir)


def show_audit(
    console: Console, bundle: Bundle, spec: DatasetSpec, test: DatasetSplit | None = None
) -> tuple[Finding, ...]:
    """Audit a bundle, say what was found, and return it."""
    from ddchallenge.audit import audit

    with waiting(console, "Auditing the bundle"):
        findings = audit(bundle.data, spec, test.data if test else None)
    for finding in findings:
        say(console, f"audit: {finding.text}", style="yellow")
    return findings


def free_folder(out: Path | None, spec: DatasetSpec, name: str) -> Path:
    """``out``, else a new folder below ``runs``; raises :class:`OutputError` if it is in use."""
    from ddchallenge.records import RUN_FILE

    if out is None:
        out = Path("runs") / f"{spec.name}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (out / RUN_FILE).exists():
        raise OutputError(
            f"{out} has a run that goes on, or was killed before its bundle was written.\n"
            f"`ddchallenge sample --recover {out}` makes the bundle; or give another --out."
        )
    files = ("result.json", "confusion.png", "spool.bin", "output.pt", "output-labels.pt")
    for held in ("bundle", "work", *files):
        refuse_existing(out / held)
    if (out / "worker.log").is_dir():
        refuse_existing(out / "worker.log")
    check_writable(out)
    return out


def check_writable(out: Path) -> None:
    """Before hours of work: is ``out`` a folder to write in, or can it be made?"""
    above = out
    try:
        above = next(folder for folder in (out, *out.absolute().parents) if os.path.lexists(folder))
        # Tried and not asked for: os.access knows no read-only mounts and lets root do anything.
        with tempfile.TemporaryFile(dir=above):
            pass
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise OutputError(f"{out} cannot be written: {above} is no folder to write in.") from None
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}.") from None


def refuse_existing(path: Path) -> None:
    """Raise :class:`OutputError` where there is something already."""
    if os.path.lexists(path):
        raise OutputError(
            f"{path} is there already, and nothing is written over it.\nGive another --out."
        )
