"""Images of a run whose supervisor was killed: what its spool holds, and what that proves."""

from __future__ import annotations

import math
from bisect import bisect_right
from pathlib import Path
from typing import Final

from ddchallenge.augment import PLANS, get_plan
from ddchallenge.errors import RequestError, RunError
from ddchallenge.jsonio import DocumentError, from_json, read_json
from ddchallenge.records import (
    RUN_FILE,
    RUN_SCHEMA,
    DatasetSpec,
    PhaseSeconds,
    RunRecord,
    SamplingLog,
)
from ddchallenge.rules import TRACKS
from ddchallenge.sampling.batches import BatchLog
from ddchallenge.sampling.copies import CopyMaker
from ddchallenge.sampling.schedule import batch_seed
from ddchallenge.sampling.spool import Found, Spool
from ddchallenge.sampling.supervisor import Sampled

__all__ = ["read_run", "recover"]

MAX_RUN_BYTES: Final = 1 << 20
NUMBER_BYTES: Final = 64


def read_run(folder: Path) -> RunRecord:
    """What ``folder/run.json`` says of the run there.

    Raises :class:`RequestError` where there is none, or none this version can read.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        made = " Its bundle is there already." if (folder / "bundle").exists() else ""
        raise RequestError(
            f"There is nothing to recover in {folder}: it has no {RUN_FILE}.{made}\n"
            "A run leaves one, with spool.bin, when it is killed before its bundle is written."
        )
    try:
        document = read_json(path, MAX_RUN_BYTES)
        schema = document.get("schema") if isinstance(document, dict) else None
        if type(schema) is int and schema != RUN_SCHEMA:
            raise DocumentError(f"{path}: schema {schema}, this version reads {RUN_SCHEMA}")
        about = from_json(RunRecord, document, str(path))
    except DocumentError as error:
        raise RequestError(f"This run cannot be recovered: {error}") from None
    facts = {
        "augmentation is no plan": about.augmentation in PLANS,
        "rules_id is unknown": about.rules_id == TRACKS[about.track].id,
        "budget_seconds is not positive": about.budget_seconds > 0,
        "image_size is none": 0 < about.image_size <= 4096,
        "run_seed is negative": about.run_seed >= 0,
        "launch is missing": about.launch is not None,
    }
    for problem, holds in facts.items():
        if not holds:
            raise RequestError(f"This run cannot be recovered: {path}: {problem}")
    return about


def recover(folder: Path, spec: DatasetSpec) -> tuple[RunRecord, Sampled]:
    """The images of the run in ``folder`` that were whole when its supervisor was killed.

    Raises :class:`RequestError` for another dataset than ``spec``, for a run that is still going
    on, and where there is a bundle already or nothing to make one of; :class:`RunError` for more
    images than fit into memory.
    """
    about = read_run(folder)
    if (folder / "bundle").exists():
        raise RequestError(
            f"{folder / 'bundle'} is there already; nothing was touched.\n"
            "Move it away first to make it again of the spool."
        )
    if (spec.name, spec.image_size, spec.num_classes) != (
        about.dataset,
        about.image_size,
        about.num_classes,
    ):
        raise RequestError(
            f"The run in {folder} was for {about.dataset}, not for {spec.name}.\n"
            "Name its dataset with --dataset."
        )
    path = folder / "spool.bin"
    if not path.is_file():
        raise RequestError(f"There is nothing to recover in {folder}: it has no spool.bin.")
    spool = Spool(path, spec.image_size, exists=True)
    try:
        if not spool.ours:
            raise RequestError(
                f"The run in {folder} is still going on; nothing was touched.\n"
                "Wait for its end, or stop it with Ctrl-C: that keeps what came, too."
            )
        return about, _read(about, spec, spool)
    except BaseException:
        spool.close()
        raise


def _read(about: RunRecord, spec: DatasetSpec, spool: Spool) -> Sampled:
    past = _Past(about, spool)
    left = spool.find(past.admit)
    if not past.images:
        raise RequestError(
            f"There is nothing to recover in {spool.path.parent}: "
            "not one image had come when the run was killed."
        )
    # Beside its pixels an image has numbers, while they are put in order.
    _check_memory((past.images + past.copies.images) * (3 * spec.image_size**2 + NUMBER_BYTES))
    sampled = past.images
    dropped = past.copies.keep_whole_rounds(spec.num_classes) if sampled >= spec.num_classes else 0
    ranges = past.copies.ranges()
    data = spool.assemble(spec.num_classes, sum(end - first for first, end in ranges))
    notes = [f"the supervisor was killed; its spool held {sampled:,} sampled images"]
    if left:
        notes.append(f"an unfinished entry of {left:,} bytes was dropped")
    if dropped:
        notes.append(f"for balance, {dropped} images of an unfinished round go without copies")
    launch = about.launch
    if launch is None:  # pragma: no cover - read_run has looked
        raise RequestError("launch is missing")
    return Sampled(data, past.log("; ".join(notes), ranges), launch, spool)


def _check_memory(needed: int) -> None:
    import psutil

    free = psutil.virtual_memory().available
    if needed > free:
        raise RunError(
            f"The spool holds {needed / 1e9:,.1f} GB of images, {free / 1e9:,.1f} GB of memory are "
            "free.\nThe spool stays as it is; recover it on a larger machine."
        )


class _Past:
    """What the entries of a spool say happened; each must follow from those before it."""

    def __init__(self, about: RunRecord, spool: Spool) -> None:
        self._about = about
        self._plan = get_plan(about.augmentation)
        self._batches = BatchLog(about.budget_seconds)
        self.copies = CopyMaker(self._plan, about.run_seed, spool)
        self._index = 0
        self._last = 0.0
        # Starts and ends of the ranges that have copies, sorted: they never overlap.
        self._copied: list[int] = []
        self.images = 0

    def admit(self, found: Found) -> bool:
        """Whether an entry can be what the supervisor wrote next."""
        received = found.received_seconds
        if not math.isfinite(received) or not 0 <= received < self._about.budget_seconds:
            return False
        if found.copies:
            end = found.first + found.count
            if found.copies != self._plan.copies or end > self.images:
                return False
            if not self._take(found.first, end):
                return False
            self.copies.recall(found.first, found.count)
        else:
            seed = batch_seed(self._about.run_seed, self._index)
            if (found.first, found.seed) != (self.images, seed) or received < self._last:
                return False
            self._batches.add(self._index, seed, found.first, found.count, received)
            self._index += 1
            self.images += found.count
            self._last = received
        return True

    def _take(self, first: int, end: int) -> bool:
        """Note that a range has copies; False if some of it had already. Neighbours are joined."""
        edges = self._copied
        place = bisect_right(edges, first)
        if place % 2 or (place < len(edges) and edges[place] < end):
            return False
        joins_left = place > 0 and edges[place - 1] == first
        joins_right = place < len(edges) and edges[place] == end
        edges[place - joins_left : place + joins_right] = [first] * (not joins_left) + [end] * (
            not joins_right
        )
        return True

    def log(self, detail: str, ranges: tuple[tuple[int, int], ...]) -> SamplingLog:
        """The log of the run as far as the spool tells; its time is up to the last batch."""
        about = self._about
        return SamplingLog(
            rules_id=about.rules_id,
            budget_seconds=about.budget_seconds,
            elapsed_seconds=self._last,
            stop="interrupted",
            stop_detail=detail,
            run_seed=about.run_seed,
            device=about.device,
            max_images=about.max_images,
            augmentation=about.augmentation,
            images_sampled=self.images,
            images_augmented=self.copies.images,
            late_images=0,
            seconds=PhaseSeconds(sampling=self._last),
            augmentation_worker_seconds=0.0,
            augmented_ranges=ranges,
            batches=self._batches.lines(),
        )
