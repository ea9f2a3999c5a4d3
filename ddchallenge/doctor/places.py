"""Folders that are written to, and the data sets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ddchallenge.datasets import DATASETS, availability, cache_folder, data_folder, get_dataset
from ddchallenge.doctor.findings import GIB, Finding, Probe
from ddchallenge.jsonio import printable

__all__ = ["data_probes", "find_cache", "find_here"]

MIN_DISK_BYTES: Final = 1 * GIB


def _place(key: str, title: str, folder: Path, advice: str) -> Iterable[Finding]:
    """Whether files can be made in a folder, or it in the nearest one above; none is left there."""
    try:
        nearest = folder.expanduser().absolute()
        while not os.path.lexists(nearest) and nearest != nearest.parent:
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror})"
        yield Finding(key=key, title=title, text=printable(text), state="missing", advice=advice)
        return
    enough = free >= MIN_DISK_BYTES
    yield Finding(
        key=key, title=title, amount=free, state="ok" if enough else "missing",
        text=printable(f"{folder}, {free / GIB:.1f} GiB free"),
        advice=None if enough else f"Less than {MIN_DISK_BYTES // GIB} GiB: {advice[0].lower()}"
        f"{advice[1:]}, or free some",
    )  # fmt: skip


def find_cache() -> Iterable[Finding]:
    """Where decoded data sets, compiled steps and checkpoints go."""
    return _place("cache", "cache", cache_folder(), "Point DDCHALLENGE_CACHE at another folder")


def find_here() -> Iterable[Finding]:
    """Where runs go that name no other place."""
    return _place("here", "working folder", Path.cwd(), "Work in another folder")


def data_probes(data_dir: Path | None) -> list[Probe]:
    """One for each data set: it may lie on a disk that does not answer."""

    def probe(name: str) -> Probe:
        return Probe(f"data.{name}", name, lambda: _data(name, data_dir), 20)

    return [probe(name) for name in DATASETS]


def _data(name: str, data_dir: Path | None) -> Iterable[Finding]:
    found = availability(get_dataset(name), data_dir)
    key = f"data.{name}"
    if found.problem or found.train is None or found.test is None:
        # Of several lines the first says what, and the others what doctor says itself.
        text = found.problem.splitlines()[0] if found.problem else f"not in {data_folder(data_dir)}"
        yield Finding(
            key=key, title=name, text=printable(text), state="missing",
            advice=f"Get it with `ddchallenge data fetch {name}`, or set DDCHALLENGE_DATA",
        )  # fmt: skip
        return
    images = found.train.images + found.test.images
    text = printable(f"{images:,} images, {found.path or found.form}")
    yield Finding(key=key, title=name, text=text, amount=images)
