"""The main line: a submission to a bundle, a bundle to a result. Everything else serves this."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ddchallenge.bundle import tensor_digest, write_bundle
from ddchallenge.environment import describe_environment, thread_count
from ddchallenge.errors import OutputError, RequestError, StorageError
from ddchallenge.marks import is_official, marks_of
from ddchallenge.official import ImportedImages, import_official
from ddchallenge.records import (
    Bundle,
    BundleSummary,
    DatasetSpec,
    DatasetSplit,
    Manifest,
    ProtocolUse,
    Provenance,
    Result,
    SamplingStatus,
    SamplingSummary,
    ScoringProtocol,
    ScoringStatus,
    SeedRun,
    SubmissionIdentity,
    Track,
)
from ddchallenge.report.contact_sheet import contact_sheet
from ddchallenge.rules import get_rules
from ddchallenge.sampling.supervisor import Sampled, SamplingOrder, sample
from ddchallenge.scoring import mean_and_deviation, score

__all__ = ["import_bundle", "sample_bundle", "score_bundle"]


def sample_bundle(
    order: SamplingOrder,
    training: DatasetSplit | None,
    out: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
) -> Bundle:
    """Run a generator under its budget and write ``out/bundle``; ``out/worker.log`` stays too.

    Raises what :func:`ddchallenge.sampling.supervisor.sample` and
    :func:`ddchallenge.bundle.write_bundle` raise; if the bundle cannot be written, the images stay
    in ``out/spool.bin``.
    """
    identity = order.submission.identity  # as it is before it runs
    sampled = sample(order, out, on_status)
    try:
        manifest = _sampled_manifest(order, identity, training, sampled)
        sheet = contact_sheet(sampled.data, order.dataset)
        bundle = write_bundle(out / "bundle", sampled.data, manifest, sheet)
    except (OutputError, StorageError) as error:
        kept = f"\nAll {len(sampled.data)} images are kept in {sampled.spool.path}"
        raise type(error)(f"{error}{kept}") from error
    finally:
        sampled.spool.close()
    sampled.spool.delete()
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
    manifest = _imported_manifest(file, spec, track, imported)
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
    on_progress: Callable[[ScoringStatus], None] | None = None,
) -> Result:
    """Train and test the protocol's network on a bundle, once for each seed.

    Raises what :func:`ddchallenge.scoring.score` raises.
    """
    spec = test.spec
    runs = score(
        bundle.data,
        test.data,
        spec,
        protocol,
        epochs=epochs,
        seeds=seeds,
        device=device,
        on_progress=on_progress,
    )
    return _result(bundle, test, protocol, epochs, seeds, device, runs)


# ----------------------------------------------------------------------- what the stages are told


def _sampled_manifest(
    order: SamplingOrder,
    identity: SubmissionIdentity,
    training: DatasetSplit | None,
    sampled: Sampled,
) -> Manifest:
    spec = order.dataset
    return Manifest(
        schema=1,
        track=order.rules.track,
        dataset=spec.name,
        digest=tensor_digest(spec, sampled.data),
        dtype="uint8",
        images=len(sampled.data),
        images_per_class=sampled.data.images_per_class(spec.num_classes),
        normalisation="pixels",
        submission=identity,
        ranked=order.submission.ranked,
        contains_real_images=order.submission.contains_real_images,
        training_images_per_class=training.images_per_class if training else None,
        training_digest=training.digest if training else None,
        origin=None,
        sampling=sampled.log,
        environment=describe_environment(order.device),
    )


def _imported_manifest(
    file: Path, spec: DatasetSpec, track: Track, imported: ImportedImages
) -> Manifest:
    with file.open("rb") as opened:
        file_digest = hashlib.file_digest(opened, "sha256").hexdigest()
    data = imported.data
    return Manifest(
        schema=1,
        track=track,
        dataset=spec.name,
        digest=tensor_digest(spec, data),
        dtype="uint8" if data.images.dtype == "uint8" else "float32",
        images=len(data),
        images_per_class=data.images_per_class(spec.num_classes),
        normalisation=imported.normalisation,
        submission=SubmissionIdentity(name=file.stem, digest=file_digest),
        ranked=True,
        contains_real_images=False,
        training_images_per_class=None,
        training_digest=None,
        origin=file.name,
        sampling=None,
        environment=describe_environment("cpu"),
    )


def _result(
    bundle: Bundle,
    test: DatasetSplit,
    protocol: ScoringProtocol,
    epochs: int,
    seeds: tuple[int, ...],
    device: str,
    runs: tuple[SeedRun, ...],
) -> Result:
    manifest = bundle.manifest
    environment = describe_environment(device)
    log = manifest.sampling
    sampling = None
    if log is not None:
        sampling = SamplingSummary(
            budget_seconds=log.budget_seconds,
            elapsed_seconds=log.elapsed_seconds,
            stop=log.stop,
            images_sampled=log.images_sampled,
            images_augmented=log.images_augmented,
            late_images=log.late_images,
            augmentation=log.augmentation,
            run_seed=log.run_seed,
            device=log.device,
            hardware=manifest.environment.hardware,
            seconds=log.seconds,
        )
    return Result(
        schema=1,
        track=manifest.track,
        dataset=manifest.dataset,
        submission=manifest.submission,
        ranked=manifest.ranked,
        protocol=ProtocolUse(
            id=protocol.id,
            epochs=epochs,
            official=is_official(protocol, epochs, seeds),
            numerics="exact",
            device=device,
        ),
        bundle=BundleSummary(
            digest=manifest.digest,
            images=manifest.images,
            images_per_class=manifest.images_per_class,
        ),
        sampling=sampling,
        runs=runs,
        accuracy=mean_and_deviation(runs),
        chance=test.spec.chance,
        marks=marks_of(manifest, test.spec, protocol, epochs, seeds),
        provenance=Provenance(
            version=environment.version,
            commit=environment.commit,
            dirty=environment.dirty,
            python=environment.python,
            torch=environment.torch,
            platform=environment.platform,
            device=device,
            hardware=environment.hardware,
            threads=thread_count(),
            training_images_per_class=manifest.training_images_per_class,
            training_digest=manifest.training_digest,
            test_digest=test.digest,
        ),
    )
