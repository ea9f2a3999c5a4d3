"""A command under the clock: a program that writes its images into a file by itself.

The same box and the same clock as a generator has, but nothing to ask for: when the command ends,
or the deadline comes, everything of the run is killed without grace, and what its file held at
that moment counts. A file that is touched between that moment and the death of the last process is
not taken. Its inode, size and times tell; what is written in the same few milliseconds as the last
write before, or through memory that is mapped, does not show in them, and killing takes no longer.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddchallenge.errors import OutputError, SamplingError
from ddchallenge.generator import Command
from ddchallenge.interrupts import noticed
from ddchallenge.jsonio import printable
from ddchallenge.records import (
    STOPPED_BY,
    GenerationTask,
    LaunchRecord,
    PhaseSeconds,
    SamplingLog,
    SamplingStatus,
    StopReason,
)
from ddchallenge.sampling.launchers import Places, Worker
from ddchallenge.sampling.output_log import OutputLog
from ddchallenge.sampling.removal import remove_folder
from ddchallenge.sampling.supervisor import TICK_SECONDS, SamplingOrder
from ddchallenge.sampling.taking import IMAGES_FILE, LABELS_FILE, Taker
from ddchallenge.sampling.wire import MAX_TEXT_BYTES, FrameReader, Header, Kind, WireError
from ddchallenge.sampling.worker import task_payload

__all__ = ["Handed", "run_command"]

# Frames a command's worker sends, in this order; a failure may come at any time.
_FRAMES: Final = {"start_up": Kind.HELLO, "load": Kind.READY, "sampling": Kind.DONE}
_ACTIVITIES: Final = {
    "start_up": "starting the worker",
    "load": "starting the command",
    "sampling": "the command is running",
    "stopping": "stopping",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What a command handed over: files that nobody can write to any more, not yet read.

    ``log`` knows of no images: they have not been counted.
    """

    images: Path
    labels: Path | None
    log: SamplingLog
    launch: LaunchRecord


def run_command(
    order: SamplingOrder,
    folder: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Handed:
    """Run a submission's command under its budget; ``folder`` gets ``worker.log`` and its files.

    Returns within two seconds of the deadline whatever the command does. A command that failed or
    was stopped is none the worse for it if its files are whole.

    Raises :class:`OutputError` if ``folder`` cannot be written, :class:`SamplingError` where there
    is no file to take, and what the launcher raises where this machine cannot do what is asked.
    """
    if order.submission.command is None:
        raise ValueError(f"{order.submission.name} has no command")
    order.launcher.prepare(order.submission, order.device, say)
    command = order.submission.command.on(order.dataset)
    return _Run(order, command, folder, on_status or (lambda _: None)).run()


class _Run:
    def __init__(
        self,
        order: SamplingOrder,
        command: Command,
        folder: Path,
        on_status: Callable[[SamplingStatus], None],
    ) -> None:
        self.order = order
        self.command = command
        self.folder = folder
        self.on_status = on_status
        self.state = "start_up"
        self.phases = dict.fromkeys(PhaseSeconds.__dataclass_fields__, 0.0)
        self.ended: tuple[StopReason, str] | None = None
        self.unstoppable = ""

    def run(self) -> Handed:
        with self._working_folder() as work:
            self.log = OutputLog(self.folder / "worker.log")
            try:
                taker = Taker(work, self.command, self._most_bytes())
                try:
                    self._race(work, taker)
                    problem = self.unstoppable or taker.take(self.folder)
                finally:
                    taker.close()
            finally:
                self.log.close()
        if problem:
            raise SamplingError(self._nothing_came(problem))
        labels = self.folder / LABELS_FILE if self.command.labels else None
        return Handed(
            images=self.folder / IMAGES_FILE,
            labels=labels,
            log=self._sampling_log(),
            launch=self.order.launcher.record(),
        )

    def _most_bytes(self) -> int:
        # Half of the memory: half-precision values are twice as large once they are float32.
        limits = self.order.launcher.record().limits
        return min(limits.disk_bytes, limits.memory_bytes // 2)

    @contextmanager
    def _working_folder(self) -> Iterator[Path]:
        work = self.folder / "work"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            work.mkdir()
        except OSError as error:
            raise OutputError(f"{work} cannot be made: {error.strerror}.") from None
        try:
            yield work
        finally:
            remove_folder(work)

    # ------------------------------------------------------------------------------------- the race

    def _race(self, work: Path, taker: Taker) -> None:
        order, launcher = self.order, self.order.launcher
        hidden = order.dataset.folder
        places = Places(
            submission=order.submission.folder,
            working_dir=work,
            training_data=order.training_data,
            hidden=(hidden,) if hidden else (),
            kept=True,
            seconds=order.budget_seconds,
        )
        seen = launcher.inside(places)
        task = GenerationTask(
            dataset=order.dataset,
            device=order.device,
            run_seed=order.run_seed,
            training_data=seen.training_data,
            working_dir=seen.working_dir,
        )
        payload = task_payload(task, seen.submission, "", self.command)
        opening = Header(kind=Kind.TASK, payload_bytes=len(payload)).pack() + payload
        self.started = self.now = time.monotonic()
        self.deadline = self.started + order.budget_seconds
        with noticed() as self.notice:
            worker = launcher.start(places)
            try:
                self._loop(worker, bytearray(opening))
            finally:
                self._tick("stopping")
                taker.look()
                self._stop(worker)

    def _loop(self, worker: Worker, outbox: bytearray) -> None:
        reader = FrameReader(worker.frames, self._admit)
        with selectors.DefaultSelector() as selector:
            selector.register(worker.frames, selectors.EVENT_READ)
            selector.register(worker.output, selectors.EVENT_READ)
            while True:
                self._tick()
                if exceeded := worker.exceeded():
                    self._end("limit", exceeded)
                if self.notice.requested:
                    self._end("interrupted", "")
                if self.now >= self.deadline:
                    self._end("deadline", "" if self.state == "sampling" else "it had not started")
                if self.ended is not None:
                    return
                self._send(worker, outbox)
                self.on_status(self._status(_ACTIVITIES[self.state]))
                timeout = min(TICK_SECONDS, max(0.0, self.deadline - self.now))
                ended = worker.has_ended()  # asked before reading: what it sent last is read first
                ready = {key.fd for key, _ in selector.select(timeout)}
                if worker.output in ready and self.log.drain(worker.output) is None:
                    selector.unregister(worker.output)
                if worker.frames in ready:
                    self._receive(worker, reader)
                elif ended:
                    self._note_ending(worker)

    def _send(self, worker: Worker, outbox: bytearray) -> None:
        try:
            while outbox:
                del outbox[: os.write(worker.requests, outbox)]
        except BrokenPipeError:
            outbox.clear()  # the worker's end is seen on the frame pipe
        except BlockingIOError:
            pass

    def _admit(self, header: Header) -> None:
        if header.kind in (Kind.FAILED, Kind.VIOLATION) and header.payload_bytes <= MAX_TEXT_BYTES:
            return
        if header != Header(kind=_FRAMES[self.state]):
            raise WireError(f"expected {_FRAMES[self.state].name}, found {header.kind.name}")

    def _receive(self, worker: Worker, reader: FrameReader) -> None:
        try:
            while self.ended is None and (frame := reader.poll()) is not None:
                self._tick()
                if self.now >= self.deadline:
                    return  # the loop sees the deadline
                kind = frame.header.kind
                if kind is Kind.HELLO:
                    self._tick("load")
                elif kind is Kind.READY:
                    self._tick("sampling")
                elif kind is Kind.DONE:
                    self._end("images", "the command has ended")
                else:
                    text = printable(frame.payload.decode("utf-8", "replace"))
                    self._end("crashed" if kind is Kind.FAILED else "refused", text)
        except WireError as error:
            self._end("refused", f"the worker broke the frame protocol: {error}")
        if reader.closed:
            self._note_ending(worker)

    def _note_ending(self, worker: Worker) -> None:
        how = worker.ending()
        if exceeded := worker.exceeded():  # what takes too much is killed before we can ask
            self._end("limit", exceeded)
        self._end("crashed", f"the worker {how}")

    def _end(self, reason: StopReason, detail: str) -> None:
        """Note why the run ends; the first reason stays."""
        if self.ended is None:
            self.ended = (reason, detail)

    def _tick(self, state: str | None = None) -> None:
        """Read the clock, book the time since the last reading, and enter ``state``."""
        now = time.monotonic()
        self.phases[self.state] += now - self.now
        self.now = now
        self.state = state or self.state

    def _stop(self, worker: Worker) -> None:
        """Stop everything at once, and prove it: nobody must write to the file any more."""
        try:
            # There was no grace, so there is time for a second try, should an engine be slow.
            if worker.stop(lambda: self._drain(worker), grace=0.0) and (
                left := worker.stop(lambda: self._drain(worker), grace=0.0)
            ):
                self.unstoppable = f"cannot be killed: {', '.join(sorted(left))}"
            self.log.drain_rest(worker.output)
        finally:
            worker.close()
            self._tick()
            self.on_status(self._status("stopped"))

    def _drain(self, worker: Worker) -> None:
        self.log.drain(worker.output)

    # ------------------------------------------------------------------------------- what is said

    def _status(self, activity: str) -> SamplingStatus:
        return SamplingStatus(
            activity=activity,
            elapsed_seconds=self.now - self.started,
            budget_seconds=self.order.budget_seconds,
            images_sampled=0,
            images_augmented=0,
            images_wanted=None,
            images_per_second=0.0,
            num_classes=self.order.dataset.num_classes,
            line=self.log.last_line(),
        )

    def _nothing_came(self, problem: str) -> str:
        reason, detail = self.ended or ("crashed", "")
        said = self.log.last_line()
        text = (
            f"{self.order.submission.name} handed over no file of images: {problem}\n"
            f"It was over after {self.now - self.started:.1f} s: {detail or STOPPED_BY[reason]}."
        )
        if said:
            text += f"\nIt last said: {said}\nIts whole output is in {self.folder / 'worker.log'}"
        return text

    def _sampling_log(self) -> SamplingLog:
        reason, detail = self.ended or ("crashed", "")
        return SamplingLog(
            rules_id=self.order.rules.id,
            budget_seconds=self.order.budget_seconds,
            elapsed_seconds=self.now - self.started,
            stop=reason,
            stop_detail=detail,
            run_seed=self.order.run_seed,
            device=self.order.device,
            max_images=None,
            augmentation="none",
            images_sampled=0,
            images_augmented=0,
            late_images=0,
            seconds=PhaseSeconds(**self.phases),
            augmentation_worker_seconds=0.0,
            augmented_ranges=(),
            batches=(),
        )
