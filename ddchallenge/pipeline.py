"""The main line: a submission to a bundle, a bundle to a result. Everything else serves this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddchallenge.audit import Finding
from ddchallenge.bundle import write_bundle
from ddchallenge.datasets import dataset_options
from ddchallenge.errors import DDChallengeError, RequestError, RunError, StorageError
from ddchallenge.interrupts import noticed
from ddchallenge.marks import UNOFFICIAL
from ddchallenge.official import ImportedImages, import_official
from ddchallenge.provenance import imported_manifest, result_of, sampled_manifest
from ddchallenge.records import (
    Bundle,
    DatasetSpec,
    DatasetSplit,
    Result,
    SamplingStatus,
    ScoringProtocol,
    ScoringStatus,
    Track,
)
from ddchallenge.report.contact_sheet import contact_sheet
from ddchallenge.rules import get_rules
from ddchallenge.sampling.supervisor import SamplingOrder, sample
from ddchallenge.scoring import score

__all__ = ["import_bundle", "sample_bundle", "score_bundle"]


def sample_bundle(
    order: SamplingOrder,
    training: DatasetSplit | None,
    out: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
) -> Bundle:
    """Run a generator under its budget and write ``out/bundle``; ``out/worker.log`` stays too.

    Raises what :func:`ddchallenge.sampling.supervisor.sample` raises, :class:`StorageError` if the
    bundle cannot be written (the images stay in ``out/spool.bin``), and :class:`RunError` after an
    interrupt, the bundle being written all the same.
    """
    identity = order.submission.identity  # as it is before it runs
    # Whoever interrupts the sampling wants to keep what came, so the bundle is always written.
    with noticed() as notice:
        sampled = sample(order, out, on_status)
        try:
            manifest = sampled_manifest(order, identity, training, sampled)
            sheet = contact_sheet(sampled.data, order.dataset)
            bundle = write_bundle(out / "bundle", sampled.data, manifest, sheet)
        except (OSError, DDChallengeError) as error:
            kept = f"All {len(sampled.data)} images are kept in {sampled.spool.path}"
            raise StorageError(f"{error}\n{kept}") from error
        finally:
            sampled.spool.close()
        sampled.spool.delete()
    if notice.requested:
        raise RunError(
            f"Interrupted; the {len(sampled.data):,} images that came are kept.\n"
            f"`ddchallenge score {out}{dataset_options(order.dataset)}` scores them."
        )
    return bundle


def import_bundle(
    file: Path, labels: Path | None, spec: DatasetSpec, track: Track, out: Path
) -> tuple[Bundle, ImportedImages]:
    """Make the bundle ``out`` of an official tensor file, its float values bit for bit.

    Raises :class:`BundleError` for a file that is not one, :class:`RequestError` where the track
    demands another number of images a class.
    """
    imported = import_official(file, spec, labels)
    wanted = get_rules(track).images_per_class
    found = imported.data.images_per_class(spec.num_classes)
    if wanted is not None and found != (wanted, wanted):
        raise RequestError(
            f"The {track} track takes exactly {wanted} images a class of {spec.name}, "
            f"{wanted * spec.num_classes} in all.\n"
            f"{file} holds {len(imported.data)}, from {found[0]} to {found[1]} a class."
        )
    manifest = imported_manifest(file, spec, track, imported)
    sheet = contact_sheet(imported.data, spec, normalisation=imported.normalisation)
    return write_bundle(out, imported.data, manifest, sheet), imported


def score_bundle(
    bundle: Bundle,
    test: DatasetSplit,
    protocol: ScoringProtocol,
    *,
    epochs: int,
    seeds: tuple[int, ...],
    device: str,
    findings: tuple[Finding, ...] = (),
    on_progress: Callable[[ScoringStatus], None] | None = None,
) -> Result:
    """Train and test the protocol's network on a bundle, once for each seed.

    ``findings`` of an audit that make the score worthless are marked on the result. Raises what
    :func:`ddchallenge.scoring.score` raises.
    """
    spec = test.spec
    outcomes = score(
        bundle.data,
        test.data,
        spec,
        protocol,
        epochs=epochs,
        seeds=seeds,
        device=device,
        on_progress=on_progress,
    )
    result = result_of(
        bundle, test, protocol, epochs, seeds, device, tuple(outcome.run for outcome in outcomes)
    )
    worthless = [f"{UNOFFICIAL}{found.code}" for found in findings if found.level == "error"]
    return replace(result, marks=(*result.marks, *worthless))
