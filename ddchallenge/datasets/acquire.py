"""Get a dataset into the data folder: see whether it is there, download, check, unpack."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from ddchallenge.datasets import inspection, locate
from ddchallenge.datasets.download import download
from ddchallenge.datasets.files import check_source, reading
from ddchallenge.datasets.reader import SPLITS, Reader
from ddchallenge.datasets.unpack import unpack_zip
from ddchallenge.errors import DataError, MissingDataError, OutputError
from ddchallenge.records import DatasetSpec

if TYPE_CHECKING:
    import httpx

Activity: TypeAlias = Literal["downloading", "unpacking"]

__all__ = ["Activity", "FetchProgress", "Fetched", "fetch"]


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a fetch is, in bytes."""

    activity: Activity
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch came to. ``path`` is where the dataset lies; ``message`` is for people."""

    path: Path
    downloaded: bool
    message: str


def fetch(
    spec: DatasetSpec,
    folder: Path,
    on_progress: Callable[[FetchProgress], None] | None = None,
    *,
    client: httpx.Client | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download ``spec`` into ``folder``; see :func:`ddchallenge.datasets.fetch`.

    CIFAR-100's archive stays packed: it is read as it is, and only after its checksum. Tiny
    ImageNet's zip is unpacked beside itself, since many tools expect the folder.
    """
    if not spec.sources:
        reader = locate.find(spec, folder)
        return Fetched(reader.path, False, f"{spec.name} is {reader.form}: nothing to download.")
    source = spec.sources[0]
    archive = folder / source.filename
    present = _present(spec, folder)
    if present and present.path != archive:
        if _complete(spec, present):
            return Fetched(
                present.path,
                False,
                f"{spec.name} is already there, complete: {present.path} ({present.form}).",
            )
        if _is_zip(archive):
            raise OutputError(
                f"{present.path} holds an incomplete copy of {spec.name}.\n"
                "Move it away or give another --data-dir, then fetch again."
            )

    def progress(activity: Activity) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            if on_progress:
                on_progress(FetchProgress(activity, done, total))

        return tell

    missing = not archive.exists()
    if missing:
        download(source, folder, progress("downloading"), client=client, sleep=sleep)
    with reading(archive), archive.open("rb") as file:
        check_source(source, file, archive)
        if _is_zip(archive):
            unpack_zip(file, archive, archive.with_suffix(""), progress("unpacking"))
    done = f"downloaded to {archive}" if missing else f"already there: {archive}"
    if _is_zip(archive):
        return Fetched(
            archive.with_suffix(""),
            missing,
            f"{spec.name} was {done}, its checksum is right, and it was unpacked to "
            f"{archive.with_suffix('')}.",
        )
    return Fetched(archive, missing, f"{spec.name} was {done}, its checksum is right.")


def _is_zip(archive: Path) -> bool:
    return archive.suffix == ".zip"


def _present(spec: DatasetSpec, folder: Path) -> Reader | None:
    try:
        return locate.find(spec, folder)
    except MissingDataError:
        return None


def _complete(spec: DatasetSpec, reader: Reader) -> bool:
    """Whether the official number of images of every class is there.

    By their names; or, where a file has to be read for that, by its checksum: a wrong one raises
    :class:`DataError`.
    """
    try:
        by_name = reader.listed_labels("test") is not None
        train, test = (inspection.survey(spec, reader, split) for split in SPLITS)
    except DataError:
        return False
    if not by_name:
        for split in SPLITS:
            reader.decode(split)
    return train.complete and test.complete
