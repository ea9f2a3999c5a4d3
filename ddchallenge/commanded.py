"""A command to a bundle: what it handed over is read as a stranger's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddchallenge.bundle import write_bundle
from ddchallenge.datasets import dataset_options
from ddchallenge.errors import BundleError, DDChallengeError, RunError, SamplingError, StorageError
from ddchallenge.interrupts import noticed
from ddchallenge.official import ImportedImages, import_official
from ddchallenge.provenance import run_record, sampled_manifest
from ddchallenge.records import STOPPED_BY, Bundle, DatasetSplit, RunRecord, SamplingStatus
from ddchallenge.report.contact_sheet import contact_sheet
from ddchallenge.sampling.command import Handed, run_command
from ddchallenge.sampling.supervisor import SamplingOrder

__all__ = ["command_bundle"]


def command_bundle(
    order: SamplingOrder,
    training: DatasetSplit | None,
    out: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Run a command under its budget and write ``out/bundle``; ``out/worker.log`` stays too.

    ``say`` is told what the file was recognised as, where that is unusual.

    Raises what :func:`ddchallenge.sampling.command.run_command` raises, :class:`SamplingError`
    where the file is not a whole official tensor file, :class:`StorageError` if the bundle cannot
    be written; the file stays in ``out`` then. Raises :class:`RunError` after an interrupt, the
    bundle being written all the same.
    """
    about = run_record(order, training)
    with noticed() as notice:
        handed = run_command(order, out, on_status, say)
        imported = _read(order, handed, out)
        for note in imported.notes:
            say(note)
        bundle = _keep(order, about, handed, imported, out)
    if notice.requested:
        raise RunError(
            f"Interrupted; the {len(imported.data):,} images that were there are kept.\n"
            f"`ddchallenge score {out}{dataset_options(order.dataset)}` scores them."
        )
    return bundle


def _read(order: SamplingOrder, handed: Handed, out: Path) -> ImportedImages:
    try:
        return import_official(handed.images, order.dataset, handed.labels)
    except BundleError as error:
        log = handed.log
        raise SamplingError(
            f"{order.submission.name} handed over no usable images. It was over after "
            f"{log.elapsed_seconds:.1f} s: {log.stop_detail or STOPPED_BY[log.stop]}.\n"
            f"{error}\nWhat it printed is in {out / 'worker.log'}"
        ) from None


def _keep(
    order: SamplingOrder, about: RunRecord, handed: Handed, imported: ImportedImages, out: Path
) -> Bundle:
    spec, data, command = order.dataset, imported.data, order.submission.command
    log = replace(handed.log, images_sampled=len(data))
    try:
        manifest = sampled_manifest(
            about,
            spec,
            data,
            log,
            handed.launch,
            normalisation=imported.normalisation,
            origin=command.on(spec).output if command else None,
        )
        sheet = contact_sheet(data, spec, normalisation=imported.normalisation)
        bundle = write_bundle(out / "bundle", data, manifest, sheet)
    except (OSError, DDChallengeError) as error:
        labels = f" --labels {handed.labels}" if handed.labels else ""
        raise StorageError(
            f"{error}\nAll {len(data)} images are kept in {handed.images}; "
            f"`ddchallenge import {handed.images}{labels}` reads it, as imported."
        ) from error
    handed.images.unlink()
    if handed.labels is not None:
        handed.labels.unlink()
    return bundle
