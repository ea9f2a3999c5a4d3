"""What a bundle and a result say of where they come from, gathered at the end of each stage."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ddchallenge.bundle import tensor_digest
from ddchallenge.environment import describe_environment, thread_count
from ddchallenge.jsonio import printable
from ddchallenge.marks import is_official, marks_of
from ddchallenge.official import ImportedImages
from ddchallenge.records import (
    MANIFEST_SCHEMA,
    RESULT_SCHEMA,
    RUN_SCHEMA,
    Bundle,
    BundleSummary,
    DatasetSpec,
    DatasetSplit,
    LabeledImages,
    LaunchRecord,
    Manifest,
    Numerics,
    ProtocolUse,
    Provenance,
    Reference,
    Result,
    RunRecord,
    SamplingLog,
    SamplingSummary,
    ScoringProtocol,
    SeedOutcome,
    SubmissionIdentity,
    Track,
)
from ddchallenge.sampling.supervisor import SamplingOrder
from ddchallenge.scoring.statistics import accuracy_of, per_class_accuracies, total_confusion

__all__ = ["imported_manifest", "result_of", "run_record", "sampled_manifest"]


def run_record(order: SamplingOrder, training: DatasetSplit | None) -> RunRecord:
    """What is known of a run before it starts; ``training`` are the images it is given.

    The submission's identity is taken here, before anything of it can run.
    """
    return RunRecord(
        schema=RUN_SCHEMA,
        track=order.rules.track,
        dataset=order.dataset.name,
        image_size=order.dataset.image_size,
        num_classes=order.dataset.num_classes,
        submission=order.submission.identity,
        ranked=order.submission.ranked,
        contains_real_images=order.submission.contains_real_images,
        training_images_per_class=training.images_per_class if training else None,
        training_digest=training.digest if training else None,
        weights_digest=order.submission.weights_digest,
        rules_id=order.rules.id,
        budget_seconds=order.budget_seconds,
        run_seed=order.run_seed,
        device=order.device,
        max_images=order.max_images,
        augmentation=order.augmentation,
        launch=None,
        environment=describe_environment(order.device),
        calibration=order.calibration,
        equivalent=order.equivalent,
    )


def sampled_manifest(
    about: RunRecord,
    spec: DatasetSpec,
    data: LabeledImages,
    log: SamplingLog,
    launch: LaunchRecord,
    *,
    recovered: bool = False,
    normalisation: str = "pixels",
    origin: str | None = None,
) -> Manifest:
    """The manifest of what a run under the clock brought; the last two are about a command's."""
    return Manifest(
        schema=MANIFEST_SCHEMA,
        track=about.track,
        dataset=spec.name,
        digest=tensor_digest(spec, data),
        dtype="uint8" if data.images.dtype == "uint8" else "float32",
        images=len(data),
        images_per_class=data.images_per_class(spec.num_classes),
        normalisation=normalisation,
        submission=about.submission,
        ranked=about.ranked,
        contains_real_images=about.contains_real_images,
        training_images_per_class=about.training_images_per_class,
        training_digest=about.training_digest,
        weights_digest=about.weights_digest,
        origin=origin,
        sampling=log,
        launch=launch,
        recovered=recovered,
        environment=about.environment,
        calibration=about.calibration,
        equivalent=about.equivalent,
    )


def imported_manifest(
    file: Path, spec: DatasetSpec, track: Track, imported: ImportedImages
) -> Manifest:
    """The manifest of an official tensor file; the identity is its name and its SHA-256."""
    with file.open("rb") as opened:
        file_digest = hashlib.file_digest(opened, "sha256").hexdigest()
    data = imported.data
    return Manifest(
        schema=MANIFEST_SCHEMA,
        track=track,
        dataset=spec.name,
        digest=tensor_digest(spec, data),
        dtype="uint8" if data.images.dtype == "uint8" else "float32",
        images=len(data),
        images_per_class=data.images_per_class(spec.num_classes),
        normalisation=imported.normalisation,
        submission=SubmissionIdentity(name=printable(file.stem), digest=file_digest),
        ranked=True,
        contains_real_images=False,
        training_images_per_class=None,
        training_digest=None,
        weights_digest=None,
        origin=printable(file.name),
        sampling=None,
        launch=None,
        recovered=False,
        environment=describe_environment("cpu"),
    )


def result_of(
    bundle: Bundle,
    test: DatasetSplit,
    protocol: ScoringProtocol,
    epochs: int,
    seeds: tuple[int, ...],
    device: str,
    outcomes: tuple[SeedOutcome, ...],
    *,
    numerics: Numerics = "exact",
    equivalence: str | None = None,
    reference: Reference | None = None,
) -> Result:
    """The result of scoring a bundle, with everything it was got from.

    ``outcomes`` are one for each of ``seeds``, on all images of ``test``.
    """
    manifest = bundle.manifest
    runs = tuple(outcome.run for outcome in outcomes)
    environment = describe_environment(device)
    return Result(
        schema=RESULT_SCHEMA,
        track=manifest.track,
        dataset=manifest.dataset,
        submission=manifest.submission,
        ranked=manifest.ranked,
        protocol=ProtocolUse(
            id=protocol.id,
            network=protocol.network,
            epochs=epochs,
            official=is_official(protocol, epochs, seeds),
            numerics=numerics,
            equivalence=equivalence,
            device=device,
        ),
        bundle=BundleSummary(
            digest=manifest.digest,
            images=manifest.images,
            images_per_class=manifest.images_per_class,
        ),
        sampling=_summary(manifest),
        runs=runs,
        accuracy=accuracy_of(runs),
        chance=test.spec.chance,
        per_class=per_class_accuracies(total_confusion(outcomes)),
        reference=reference,
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


def _summary(manifest: Manifest) -> SamplingSummary | None:
    log, launch = manifest.sampling, manifest.launch
    if log is None:
        return None
    return SamplingSummary(
        budget_seconds=log.budget_seconds,
        elapsed_seconds=log.elapsed_seconds,
        stop=log.stop,
        stop_detail=log.stop_detail,
        max_images=log.max_images,
        images_sampled=log.images_sampled,
        images_augmented=log.images_augmented,
        late_images=log.late_images,
        augmentation=log.augmentation,
        run_seed=log.run_seed,
        device=log.device,
        hardware=manifest.environment.hardware,
        seconds=log.seconds,
        calibration=manifest.calibration,
        equivalent=manifest.equivalent,
        launcher=launch.launcher if launch else None,
        image=launch.image if launch else None,
    )
