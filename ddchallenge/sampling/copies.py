"""Augmented copies of the images in the spool, made while sampling goes on."""

from __future__ import annotations

from collections import deque
from typing import Final

from ddchallenge.augment import AugmentationPlan, AugmentationPool
from ddchallenge.sampling.spool import Spool

__all__ = ["CopyMaker"]

# Images handed to the pool at a time, and how many such pieces may wait there.
CHUNK_IMAGES: Final = 32
WAITING_CHUNKS: Final = 6


class CopyMaker:
    """Feeds an augmentation pool from the spool, and the spool from the pool.

    ``images`` copies are in the spool; ``worker_seconds`` is what computing them took. Nothing
    happens under a plan without copies. The processes exist from :meth:`start` to :meth:`stop`.
    """

    def __init__(self, plan: AugmentationPlan, run_seed: int, spool: Spool) -> None:
        self._plan = plan
        self._run_seed = run_seed
        self._spool = spool
        self._pool: AugmentationPool | None = None
        self._backlog: deque[tuple[int, int, int]] = deque()  # first, count, spool entry
        self._waiting = 0  # pieces handed to the pool
        self._done: dict[int, int] = {}  # first image of a finished piece -> its length
        self.images = 0
        self.worker_seconds = 0.0

    def start(self) -> None:
        """Start the pool."""
        if self._plan.copies:
            self._pool = AugmentationPool(self._plan, self._run_seed)

    def stop(self) -> None:
        """Stop the pool, whatever it is doing; takes no longer than 0.3 seconds."""
        if self._pool is not None:
            self._pool.stop()

    @property
    def readable(self) -> AugmentationPool | None:
        """What a selector can wait for: readable when copies are done."""
        return self._pool

    @property
    def pending(self) -> bool:
        """Whether copies are still to be made."""
        return bool(self._waiting or self._backlog)

    def pids(self) -> tuple[int, ...]:
        """The pool's processes, which are ours and not the submission's."""
        return self._pool.pids() if self._pool is not None else ()

    def take(self, first: int, count: int) -> None:
        """Make copies of the sampled images from ``first`` on, the spool's last entry."""
        if self._pool is not None:
            self._backlog.append((first, count, len(self._spool) - 1))

    def collect(self, started: float, deadline: float) -> None:
        """Put into the spool what was done before the deadline, both on the monotonic clock.

        Raises :class:`StorageError` when the disk is full.
        """
        for chunk in self._pool.completed() if self._pool is not None else ():
            self._waiting -= 1
            self.worker_seconds += chunk.seconds
            if chunk.done_at >= deadline:
                continue
            self._spool.append(
                chunk.images.data.cast("B"),
                first=chunk.first,
                count=len(chunk.images),
                copies=self._plan.copies,
                received_seconds=chunk.done_at - started,
            )
            self._done[chunk.first] = len(chunk.images)
            self.images += len(chunk.images) * self._plan.copies

    def recall(self, first: int, count: int) -> None:
        """Note copies that an earlier process has put into the spool."""
        self._done[first] = count
        self.images += count * self._plan.copies

    def hand_out(self) -> None:
        """Give the pool more to do, as long as it has not much waiting."""
        while self._pool is not None and self._backlog and self._waiting < WAITING_CHUNKS:
            first, count, entry = self._backlog.popleft()
            some = min(count, CHUNK_IMAGES)
            self._pool.submit(first, self._spool.read(first, some, entry))
            self._waiting += 1
            if count > some:
                self._backlog.appendleft((first + some, count - some, entry))

    def failure(self) -> str | None:
        """Why copies that are still to be made will never be; asked once, it gives them up."""
        if self._pool is None or self._pool.failure is None or not self.pending:
            return None
        self._backlog.clear()
        self._waiting = 0
        return self._pool.failure

    def keep_whole_rounds(self, num_classes: int) -> int:
        """Give up copies that some classes have and others have not; returns of how many images.

        For a run that was cut: with the copies of whole rounds over the classes, the bundle is as
        balanced as what was sampled, to within one image a class.
        """
        before = sum(self._done.values())
        ranges = self.ranges()
        unbroken = ranges[0][1] if ranges and ranges[0][0] == 0 else 0
        end = unbroken - unbroken % num_classes
        self._done = {0: end} if end else {}
        self.images = end * self._plan.copies
        return before - end

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The sampled images that have their copies, sorted ``(first, end)``, neighbours joined."""
        ranges: list[tuple[int, int]] = []
        for first, length in sorted(self._done.items()):
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], first + length)
            else:
                ranges.append((first, first + length))
        return tuple(ranges)
