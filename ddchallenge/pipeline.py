"""The main line: a submission to a bundle, a bundle to a result. Everything else serves this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddchallenge.audit import Finding
from ddchallenge.bundle import write_bundle
from ddchallenge.commanded import command_bundle
from ddchallenge.datasets import dataset_options
from ddchallenge.environment import describe_environment
from ddchallenge.errors import DDChallengeError, RequestError, RunError, StorageError
from ddchallenge.interrupts import noticed
from ddchallenge.jsonio import to_json
from ddchallenge.marks import UNOFFICIAL
from ddchallenge.official import ImportedImages, import_official
from ddchallenge.provenance import imported_manifest, result_of, run_record, sampled_manifest
from ddchallenge.records import (
    Bundle,
    DatasetSpec,
    DatasetSplit,
    LabeledImages,
    Numerics,
    Result,
    RunRecord,
    SamplingStatus,
    ScoringProtocol,
    ScoringStatus,
    SeedOutcome,
    Track,
)
from ddchallenge.report.contact_sheet import contact_sheet
from ddchallenge.rules import get_rules
from ddchallenge.sampling.recover import recover
from ddchallenge.sampling.supervisor import Sampled, SamplingOrder, sample
from ddchallenge.scoring import score
from ddchallenge.scoring.equivalence import measured
from ddchallenge.scoring.places import kept_folder
from ddchallenge.scoring.progress import part_of
from ddchallenge.scoring.reference import check_enough, score_reference
from ddchallenge.scoring.statistics import total_confusion

if TYPE_CHECKING:
    from ddchallenge.records import CountArray
    from ddchallenge.scoring.checkpoint import Checkpoints

__all__ = [
    "Scored",
    "ScoringInterrupted",
    "import_bundle",
    "recover_bundle",
    "sample_bundle",
    "score_bundle",
]


class ScoringInterrupted(KeyboardInterrupt):
    """Scoring was interrupted; ``kept`` says whether what was trained is kept."""

    kept = True


@dataclass(frozen=True, slots=True)
class Scored:
    """A result, and the confusion behind it: int64 C×C test images, all seeds together.

    ``kept`` are the checkpoints it came from, to be forgotten once the result is safe.
    """

    result: Result
    confusion: CountArray
    kept: tuple[tuple[Checkpoints, int], ...]

    def forget(self) -> None:
        """Delete the checkpoints: the next score begins anew."""
        for checkpoints, seed in self.kept:
            checkpoints.forget(seed)


def sample_bundle(
    order: SamplingOrder,
    training: DatasetSplit | None,
    out: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Run a generator under its budget and write ``out/bundle``; ``out/worker.log`` stays too.

    Raises what :func:`ddchallenge.sampling.supervisor.sample` raises, :class:`StorageError` if the
    bundle cannot be written (the images stay in ``out/spool.bin``), and :class:`RunError` after an
    interrupt, the bundle being written all the same. For a command, what
    :func:`ddchallenge.commanded.command_bundle` raises.
    """
    if order.submission.command is not None:
        return command_bundle(order, training, out, on_status, say)
    about = run_record(order, training)
    # Whoever interrupts the sampling wants to keep what came, so the bundle is always written.
    with noticed() as notice:
        sampled = sample(order, out, on_status, about, say)
        bundle = _keep(about, order.dataset, sampled, out)
    if notice.requested:
        raise RunError(
            f"Interrupted; the {len(sampled.data):,} images that came are kept.\n"
            f"`ddchallenge score {out}{dataset_options(order.dataset)}` scores them."
        )
    return bundle


def recover_bundle(out: Path, spec: DatasetSpec) -> Bundle:
    """Write ``out/bundle`` of what a run holds whose supervisor was killed.

    Raises what :func:`ddchallenge.sampling.recover.recover` raises, and :class:`StorageError` if
    the bundle cannot be written, the spool staying as it is.
    """
    about, sampled = recover(out, spec)
    return _keep(about, spec, sampled, out, recovered=True)


def _keep(
    about: RunRecord, spec: DatasetSpec, sampled: Sampled, out: Path, *, recovered: bool = False
) -> Bundle:
    """Write the bundle, and discard the spool once that is done."""
    try:
        manifest = sampled_manifest(
            about, spec, sampled.data, sampled.log, sampled.launch, recovered=recovered
        )
        sheet = contact_sheet(sampled.data, spec)
        bundle = write_bundle(out / "bundle", sampled.data, manifest, sheet)
    except (OSError, DDChallengeError) as error:
        raise StorageError(
            f"{error}\nAll {len(sampled.data)} images are kept in {sampled.spool.path}; "
            f"`ddchallenge sample --recover {out}` tries again."
        ) from error
    finally:
        sampled.spool.close()
    sampled.discard()
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
    numerics: Numerics = "exact",
    training: DatasetSplit | None = None,
    findings: tuple[Finding, ...] = (),
    resume: bool = True,
    on_progress: Callable[[ScoringStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Scored:
    """Train and test the protocol's network on a bundle, once for each seed.

    Goes on from what a run that was broken off had done, unless told not to ``resume``. With
    ``training`` it is held against random real images: as many a class from that split, in the
    very same way, another subset for each seed. ``findings`` of an audit that make the score
    worthless are marked on the result.

    ``say`` is told what is unusual, each line once.

    Raises what :func:`ddchallenge.scoring.score` raises, and :class:`RequestError` where
    ``training`` has too few images of a class; both before anything is trained. Raises
    :class:`ScoringInterrupted` for an interrupt.
    """
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    if training is not None:
        check_enough(bundle.data.labels, training)

    def train(
        images: LabeledImages,
        digest: str,
        seeds: tuple[int, ...],
        on_progress: Callable[[ScoringStatus], None] | None,
    ) -> tuple[SeedOutcome, ...]:
        checkpoints = _checkpoints(digest, test, protocol, epochs, numerics, device, say_once)
        kept.extend((checkpoints, seed) for seed in seeds)
        if not resume:
            for seed in seeds:
                checkpoints.forget(seed)
        return score(
            images,
            test.data,
            test.spec,
            protocol,
            epochs=epochs,
            seeds=seeds,
            device=device,
            numerics=numerics,
            checkpoints=checkpoints,
            on_progress=on_progress,
            say=say_once,
        )

    kept: list[tuple[Checkpoints, int]] = []
    parts = 0 if training is None else 1
    told = part_of(on_progress, before=0, after=parts)
    reference = None
    try:
        outcomes = train(bundle.data, bundle.manifest.digest, seeds, told)
        if training is not None:
            runs = [outcome.run for outcome in outcomes]
            reference = score_reference(bundle.data.labels, runs, training, train, on_progress)
    except KeyboardInterrupt as interrupt:
        interrupted = ScoringInterrupted()
        interrupted.kept = not any(checkpoints.unwritable for checkpoints, _ in kept)
        raise interrupted from interrupt
    equivalence = measured(device, test.spec.name, protocol.id) if numerics == "fast" else None
    result = result_of(
        bundle,
        test,
        protocol,
        epochs,
        seeds,
        device,
        outcomes,
        numerics=numerics,
        equivalence=equivalence.sentence if equivalence else None,
        reference=reference,
    )
    worthless = [f"{UNOFFICIAL}{found.code}" for found in findings if found.level == "error"]
    if numerics == "fast" and (equivalence is None or not equivalence.established):
        worthless.append(f"{UNOFFICIAL}fast numerics not shown to score like exact ones here")
    result = replace(result, marks=(*result.marks, *worthless))
    return Scored(result, total_confusion(outcomes), tuple(kept))


def _checkpoints(
    digest: str,
    test: DatasetSplit,
    protocol: ScoringProtocol,
    epochs: int,
    numerics: Numerics,
    device: str,
    say: Callable[[str], None],
) -> Checkpoints:
    from ddchallenge.scoring.checkpoint import Checkpoints

    key = {
        "images": digest,
        "test": test.digest,
        "protocol": to_json(protocol),
        "epochs": epochs,
        "numerics": numerics,
        "device": device,
        "hardware": describe_environment(device).hardware,
    }
    return Checkpoints(kept_folder("checkpoints"), key, say)
