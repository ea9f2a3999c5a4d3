"""The race: one clock, one worker, and every image that arrives whole before the deadline.

The clock is monotonic and ours alone: it starts just before the worker process does and never
pauses. The harness drives: it asks for batches, keeps two requests in flight so that the device
never waits, and fits the last ones to the time that is left.
"""

from __future__ import annotations

import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddchallenge.augment import get_plan
from ddchallenge.errors import OutputError, SamplingError, StorageError
from ddchallenge.generator import Submission
from ddchallenge.interrupts import noticed
from ddchallenge.jsonio import printable, to_json, write_json
from ddchallenge.records import (
    RUN_FILE,
    Calibration,
    DatasetSpec,
    EquivalentBudget,
    GenerationTask,
    LabeledImages,
    LaunchRecord,
    PhaseSeconds,
    Rules,
    RunRecord,
    SamplingLog,
    SamplingStatus,
    StopReason,
)
from ddchallenge.sampling.batches import BatchLog
from ddchallenge.sampling.copies import CopyMaker
from ddchallenge.sampling.launchers import ENDING_SECONDS, Launcher, Places, Worker
from ddchallenge.sampling.launchers.process import ProcessLauncher
from ddchallenge.sampling.output_log import OutputLog
from ddchallenge.sampling.removal import remove_folder
from ddchallenge.sampling.schedule import BatchRequest, batch_seed, fitted_batch
from ddchallenge.sampling.spool import Spool
from ddchallenge.sampling.wire import (
    MAX_TEXT_BYTES,
    Frame,
    FrameReader,
    Header,
    Kind,
    WireError,
    pack_request,
)
from ddchallenge.sampling.worker import task_payload

if TYPE_CHECKING:
    from ddchallenge.augment import AugmentationPlan

__all__ = ["Sampled", "SamplingOrder", "sample"]

WORK_FOLDER: Final = "work"
IN_FLIGHT: Final = 2
TICK_SECONDS: Final = 0.1
RATE_BATCHES: Final = 8
# A frame that is being read when the deadline comes must not take long; 5461 images of 64 px.
MAX_FRAME_BYTES: Final = 64 << 20
# Beside the task; thousands of requests are smaller than this.
MAX_UNREAD_BYTES: Final = 64 << 10
# However fast frames come, display and augmentation get their turn.
FRAMES_AT_A_TIME: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOrder:
    """What to run: a submission on a dataset for ``budget_seconds``.

    ``max_images`` bounds the bundle, copies included; None leaves that to the submission.
    ``training_data`` is the folder of decoded training images or None. ``augmentation`` is the
    name of a plan. ``launcher`` is the box it runs in. ``batches`` are those to ask for, in that
    order, where a recorded run is to be generated again; None lets the harness drive. ``hidden``
    are folders the submission must not read, beside those that are always hidden. ``calibration``
    and ``equivalent`` are only carried, to the manifest.
    """

    submission: Submission
    dataset: DatasetSpec
    rules: Rules
    budget_seconds: float
    device: str
    run_seed: int
    max_images: int | None
    augmentation: str
    training_data: Path | None
    launcher: Launcher = field(default_factory=ProcessLauncher)
    calibration: Calibration | None = None
    equivalent: EquivalentBudget | None = None
    batches: tuple[BatchRequest, ...] | None = None
    hidden: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a run brought: the images, class-major, the log, and the spool they still lie in."""

    data: LabeledImages
    log: SamplingLog
    launch: LaunchRecord
    spool: Spool

    def discard(self) -> None:
        """Delete the spool and what lies beside it: the images are safe elsewhere."""
        folder = self.spool.path.parent
        self.spool.delete()
        (folder / RUN_FILE).unlink(missing_ok=True)
        remove_folder(folder / WORK_FOLDER)  # there if it was recovered


def sample(
    order: SamplingOrder,
    folder: Path,
    on_status: Callable[[SamplingStatus], None] | None = None,
    about: RunRecord | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Sampled:
    """Run a submission under its budget; ``folder`` gets ``worker.log`` and the spool.

    Returns within two seconds of the deadline whatever the submission does, with every image that
    was received before it. The caller discards the spool once the images are safe. With ``about``,
    which goes into ``run.json``, they can be recovered though the supervisor is killed. ``say`` is
    told what the launcher does before the clock starts.

    Raises :class:`OutputError` if ``folder`` cannot be written, :class:`SamplingError` if not one
    image came, and what the launcher raises where this machine cannot do what is asked.
    """
    order.launcher.prepare(order.submission, order.device, say)
    return _Race(order, folder, on_status or (lambda _: None), about).run()


class _Race:
    def __init__(
        self,
        order: SamplingOrder,
        folder: Path,
        on_status: Callable[[SamplingStatus], None],
        about: RunRecord | None,
    ) -> None:
        self.order = order
        self.folder = folder
        self.on_status = on_status
        self.about = about
        self.plan: AugmentationPlan = get_plan(order.augmentation)
        self.images_wanted = self._images_to_sample()
        image_bytes = 3 * order.dataset.image_size**2
        self.batch_size = min(order.submission.batch_size, MAX_FRAME_BYTES // image_bytes)

        self.worker: Worker | None = None
        self.outbox = bytearray()  # of the request pipe
        self.most_unread = MAX_UNREAD_BYTES
        self.reader: FrameReader | None = None
        self.requests: deque[BatchRequest] = deque()
        self.batches = BatchLog(order.budget_seconds)
        self.arrivals: deque[tuple[float, int]] = deque(maxlen=RATE_BATCHES)
        self.batches_asked = 0
        self.next_first = 0
        self.images_sampled = 0
        self.images_late = 0
        self.state = "start_up"
        self.phases = dict.fromkeys(PhaseSeconds.__dataclass_fields__, 0.0)
        self.ended: tuple[StopReason, str] | None = None

    def _images_to_sample(self) -> int | None:
        """How many to ask for: with their copies they are what the user or the entrant wants."""
        if self.order.batches is not None:
            return sum(batch.count for batch in self.order.batches)
        per_image = 1 + self.plan.copies
        if self.order.max_images is not None:
            return max(1, self.order.max_images // per_image)
        per_class = self.order.submission.images_per_class
        if per_class is None:
            return None
        return max(1, per_class // per_image) * self.order.dataset.num_classes

    # ------------------------------------------------------------------------------ the main line

    def run(self) -> Sampled:
        working_dir = self.folder / WORK_FOLDER
        ours = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            working_dir.mkdir()
        except OSError as error:
            raise OutputError(f"{working_dir} cannot be made: {error.strerror}.") from None
        with ExitStack() as stack:
            stack.callback(self._tidy, working_dir, ours)
            log = OutputLog(self.folder / "worker.log")
            stack.callback(log.close)
            if self.about is not None:
                about = replace(self.about, launch=self.order.launcher.record())
                write_json(self.folder / RUN_FILE, to_json(about))
            spool = Spool(self.folder / "spool.bin", self.order.dataset.image_size)
            try:
                self.copies = CopyMaker(self.plan, self.order.run_seed, spool)
                self._race(working_dir, log, spool)
                if not self.batches:
                    raise SamplingError(self._nothing_came(log))
                data = spool.assemble(self.order.dataset.num_classes, self._balance_copies())
            except BaseException:
                spool.close()
                if not self.batches:
                    spool.delete()
                raise
        return Sampled(data, self._log(), self.order.launcher.record(), spool)

    def _balance_copies(self) -> int | None:
        """Where the copies end that are kept: whole rounds over the classes, once there is one."""
        classes = self.order.dataset.num_classes
        if self.images_sampled < classes:
            return None
        dropped = self.copies.keep_whole_rounds(classes)
        if dropped:
            reason, detail = self.ended or ("crashed", "")
            text = f"for balance, {dropped} images of an unfinished round go without copies"
            self.ended = (reason, _joined(detail, text))
        return sum(end - first for first, end in self.copies.ranges())

    def _tidy(self, working_dir: Path, ours: bool) -> None:
        """Remove the working folder, and after a run that left nothing all that we made."""
        remove_folder(working_dir)
        log = self.folder / "worker.log"
        if not self.batches:
            (self.folder / RUN_FILE).unlink(missing_ok=True)
        if not self.batches and log.is_file() and not log.stat().st_size:
            log.unlink()
            if ours and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _race(self, working_dir: Path, log: OutputLog, spool: Spool) -> None:
        submission, launcher = self.order.submission, self.order.launcher
        test_images = self.order.dataset.folder
        places = Places(
            submission=submission.folder,
            working_dir=working_dir,
            training_data=self.order.training_data,
            hidden=(*self.order.hidden, *([test_images] if test_images else [])),
            seconds=self.order.budget_seconds,
        )
        seen = launcher.inside(places)
        task = GenerationTask(
            dataset=self.order.dataset,
            device=self.order.device,
            run_seed=self.order.run_seed,
            training_data=seen.training_data,
            working_dir=seen.working_dir,
            options=submission.options,
        )
        opening = task_payload(task, seen.submission, submission.entry_point)
        self.most_unread += len(opening)
        self.started = self.now = time.monotonic()
        self.deadline = self.started + self.order.budget_seconds
        # Ctrl-C is acted upon between two frames, and not at all while we are stopping.
        with noticed() as self.notice:
            try:
                self.worker = launcher.start(places, spare=self.copies.pids)
                self.copies.start()
                self._send(Header(kind=Kind.TASK, payload_bytes=len(opening)), opening)
                with selectors.DefaultSelector() as selector:
                    selector.register(self.worker.frames, selectors.EVENT_READ)
                    selector.register(self.worker.output, selectors.EVENT_READ)
                    if self.copies.readable is not None:
                        selector.register(self.copies.readable, selectors.EVENT_READ)
                    self._loop(selector, self.worker, log, spool)
            finally:
                self._tick("stopping")
                self._stop(log)

    def _loop(
        self,
        selector: selectors.BaseSelector,
        worker: Worker,
        log: OutputLog,
        spool: Spool,
    ) -> None:
        self.reader = reader = FrameReader(worker.frames, self._admit)
        while True:
            self._tick()
            self._make_copies()
            if exceeded := worker.exceeded():
                self._end("limit", exceeded)
            self._ask()
            self._flush()
            if self._finished():
                return
            self._report()
            timeout = min(TICK_SECONDS, max(0.0, self.deadline - self.now))
            ended = worker.has_ended()  # asked before reading: what it sent last is read first
            ready = {key.fd for key, _ in selector.select(timeout)}
            if worker.output in ready and log.drain(worker.output) is None:
                selector.unregister(worker.output)
            if worker.frames in ready:
                more = self._receive(worker, reader, log, spool)
            else:
                # A child it left behind may hold the pipe open for as long as it likes.
                more = not (ended and worker.frames in selector.get_map())
                if not more:
                    self._note_ending(worker, log)
            if not more and worker.frames in selector.get_map():
                # Nothing more will come: stop what is left of the run, keep what it gave.
                selector.unregister(worker.frames)
                self.requests.clear()
                self._tick("stopping")
                worker.stop(lambda: None, grace=ENDING_SECONDS)
                self._tick("sampling")

    def _make_copies(self) -> None:
        try:
            self.copies.collect(self.started, self.deadline)
        except StorageError as error:
            self._end("disk-full", str(error))
        self.copies.hand_out()
        if failure := self.copies.failure():
            self._end("crashed", failure)

    def _finished(self) -> bool:
        done = not self.copies.pending and (self.ended is not None or self._all_sampled())
        if done:
            self._end("images", "")
        elif self.notice.requested:
            self._end("interrupted", "")
        elif self.now >= self.deadline:
            self._end("deadline", self._unfinished())
        elif self.ended is None or self.ended[0] not in ("disk-full", "limit"):
            return False
        return True

    def _end(self, reason: StopReason, detail: str) -> None:
        """Note why the run ends; the first reason stays."""
        if self.ended is None:
            self.ended = (reason, detail)

    def _all_sampled(self) -> bool:
        return self.images_wanted is not None and self.images_sampled >= self.images_wanted

    def _unfinished(self) -> str:
        if self.state == "start_up":
            return "the worker had not started"
        if self.state == "load":
            return "imports and setup had not returned"
        return "" if self.batches else "the first batch had not come"

    # ------------------------------------------------------------------------------------ the clock

    def _tick(self, state: str | None = None) -> None:
        """Read the clock, book the time since the last reading, and enter ``state``."""
        now = time.monotonic()
        self.phases[self._phase()] += now - self.now
        self.now = now
        if state is not None:
            self.state = state

    def _phase(self) -> str:
        if self.state != "sampling":
            return self.state
        if self.requests:
            return "sampling"
        return "augmentation" if self.copies.pending else "idle"

    def _rate(self) -> float | None:
        """Images a second over the last batches; None before one has arrived."""
        if len(self.arrivals) < 2:
            return None
        images = sum(count for _, count in list(self.arrivals)[1:])
        return images / max(self.arrivals[-1][0] - self.arrivals[0][0], 1e-9)

    # ------------------------------------------------------------------------------------- requests

    def _send(self, header: Header, payload: bytes) -> None:
        self.outbox += header.pack() + payload
        self._flush()

    def _flush(self) -> None:
        """Write what the request pipe takes; a worker that never reads must not block us."""
        try:
            while self.outbox and self.worker is not None:
                del self.outbox[: os.write(self.worker.requests, self.outbox)]
        except BrokenPipeError:
            self.outbox.clear()  # the worker's end is seen on the frame pipe
        except BlockingIOError:
            # Two small requests fit into any pipe: their answers came without their being read.
            if len(self.outbox) > self.most_unread:
                self._end("refused", "the worker does not read its requests")
                self.requests.clear()

    def _ask(self) -> None:
        while self.state == "sampling" and self.ended is None and len(self.requests) < IN_FLIGHT:
            request = self._next_request()
            if request is None:
                return
            self._tick()
            self.requests.append(request)
            self._send(*pack_request(request.index, request.first, request.count, request.seed))
            self.batches_asked += 1
            self.next_first += request.count

    def _next_request(self) -> BatchRequest | None:
        """The recorded batch that is due, or a new one that fits into the time; None for none."""
        asked, recorded = self.batches_asked, self.order.batches
        if recorded is not None:
            return recorded[asked] if asked < len(recorded) else None
        count = fitted_batch(
            self.batch_size,
            seconds_left=self.deadline - self.now,
            queued=sum(request.count for request in self.requests),
            images_per_second=self._rate(),
        )
        if self.images_wanted is not None:
            count = min(count, self.images_wanted - self.next_first)
        if count <= 0:
            return None
        seed = batch_seed(self.order.run_seed, asked)
        return BatchRequest(asked, self.next_first, count, seed)

    # --------------------------------------------------------------------------------------- frames

    def _admit(self, header: Header) -> None:
        """Refuse every frame that is not the one that must come now, before taking memory."""
        if header.kind in (Kind.FAILED, Kind.VIOLATION) and header.payload_bytes <= MAX_TEXT_BYTES:
            return
        expected: Header | None = None
        if self.state == "start_up":
            expected = Header(kind=Kind.HELLO)
        elif self.state == "load":
            expected = Header(kind=Kind.READY)
        elif self.requests:
            size = self.order.dataset.image_size
            request = self.requests[0]
            expected = Header(
                kind=Kind.IMAGES,
                channels=3,
                index=request.index,
                count=request.count,
                height=size,
                width=size,
                payload_bytes=request.count * 3 * size * size,
            )
        if header != expected:
            wanted = _say(expected) if expected else "no frame"
            raise WireError(f"expected {wanted}, found {_say(header)}")

    def _receive(self, worker: Worker, reader: FrameReader, log: OutputLog, spool: Spool) -> bool:
        """Take the frames that are whole; False when no more will come."""
        try:
            for _ in range(FRAMES_AT_A_TIME):
                frame = reader.poll()
                if frame is None:
                    break
                self._tick()
                if self.now >= self.deadline:
                    self._count_late(frame)
                    return True  # the loop sees the deadline
                self._take(frame, spool)
                self._ask()
                if self.ended is not None:
                    return False
        except WireError as error:
            if not self._all_sampled():
                self._end("refused", f"the worker broke the frame protocol: {error}")
            return False
        except StorageError as error:
            self._end("disk-full", str(error))
            return False
        if reader.closed:
            self._note_ending(worker, log)
            return False
        return True

    def _note_ending(self, worker: Worker, log: OutputLog) -> None:
        if self._all_sampled():
            return  # it has done its work
        if exceeded := worker.exceeded():
            self._end("limit", exceeded)
            return
        log.drain_rest(worker.output)
        last = log.last_line()
        detail = f"the worker {worker.ending()}" + (f"; it last said: {last}" * bool(last))
        self._end("crashed", detail)

    def _take(self, frame: Frame, spool: Spool) -> None:
        kind = frame.header.kind
        if kind in (Kind.FAILED, Kind.VIOLATION):
            text = printable(frame.payload.decode("utf-8", "replace"))
            self._end("crashed" if kind is Kind.FAILED else "refused", text)
        elif kind is Kind.HELLO:
            self.state = "load"
        elif kind is Kind.READY:
            self.state = "sampling"
            self.arrivals.append((self.now, 0))
        else:
            request = self.requests[0]
            received = self.now - self.started
            spool.append(
                frame.payload,
                first=request.first,
                count=request.count,
                seed=request.seed,
                received_seconds=received,
            )
            self.requests.popleft()
            self.arrivals.append((self.now, request.count))
            self.images_sampled += request.count
            self.batches.add(request.index, request.seed, request.first, request.count, received)
            self.copies.take(request.first, request.count)

    def _count_late(self, frame: Frame) -> None:
        if frame.header.kind is Kind.IMAGES and self.requests:
            self.images_late += frame.header.count
            self.requests.popleft()

    # ------------------------------------------------------------------------------------- stopping

    def _stop(self, log: OutputLog) -> None:
        """Stop everything, prove it, and count what came too late meanwhile."""
        worker, reader = self.worker, self.reader
        if worker is None:
            return

        def drain() -> None:
            log.drain(worker.output)
            if reader is not None and (
                self.ended is None or self.ended[0] in ("deadline", "interrupted")
            ):
                try:
                    for _ in range(FRAMES_AT_A_TIME):
                        if (frame := reader.poll()) is None:
                            break
                        self._count_late(frame)
                except WireError:
                    pass  # a cut frame is what stopping makes of it

        try:
            if left := worker.stop(drain):
                reason, detail = self.ended or ("crashed", "")
                text = f"cannot be killed: {', '.join(sorted(left))}"
                self.ended = (reason, _joined(detail, text))
            log.drain_rest(worker.output)
        finally:
            self.copies.stop()
            worker.close()
            self._tick()
            self.on_status(self._status("stopped"))

    def _nothing_came(self, log: OutputLog) -> str:
        reason, detail = self.ended or ("crashed", "")
        seconds = self.now - self.started
        last = log.last_line()
        said = f"\nIt last said: {last}" if last and last not in detail else ""
        if last:
            said += f"\nIts whole output is in {self.folder / 'worker.log'}"
        return (
            f"{self.order.submission.name} handed over no image ({reason} after {seconds:.1f} s"
            f"{': ' + detail if detail else ''}).{said}"
        )

    def _log(self) -> SamplingLog:
        reason, detail = self.ended or ("crashed", "")
        return SamplingLog(
            rules_id=self.order.rules.id,
            budget_seconds=self.order.budget_seconds,
            elapsed_seconds=self.now - self.started,
            stop=reason,
            stop_detail=detail,
            run_seed=self.order.run_seed,
            device=self.order.device,
            max_images=self.order.max_images,
            augmentation=self.plan.name,
            images_sampled=self.images_sampled,
            images_augmented=self.copies.images,
            late_images=self.images_late,
            seconds=PhaseSeconds(**self.phases),
            augmentation_worker_seconds=self.copies.worker_seconds,
            augmented_ranges=self.copies.ranges(),
            batches=self.batches.lines(),
        )

    # -------------------------------------------------------------------------------------- display

    def _report(self) -> None:
        self.on_status(self._status(self._activity()))

    def _activity(self) -> str:
        phase = self._phase()
        if phase == "sampling" and self.images_sampled == 0:
            return "waiting for the first batch"
        return {
            "start_up": "starting the worker",
            "load": "imports and setup",
            "sampling": "sampling",
            "augmentation": "augmenting",
            "idle": "waiting for the deadline",
            "stopping": "stopping",
        }[phase]

    def _status(self, activity: str) -> SamplingStatus:
        return SamplingStatus(
            activity=activity,
            elapsed_seconds=self.now - self.started,
            budget_seconds=self.order.budget_seconds,
            images_sampled=self.images_sampled,
            images_augmented=self.copies.images,
            images_wanted=(
                self.images_wanted * (1 + self.plan.copies) if self.images_wanted else None
            ),
            images_per_second=self._rate() or 0.0,
            num_classes=self.order.dataset.num_classes,
        )


def _joined(detail: str, text: str) -> str:
    return f"{detail}; {text}" if detail else text


def _say(header: Header) -> str:
    text = f"a {header.kind.name} frame"
    if header.kind is Kind.IMAGES:
        text += (
            f" with batch {header.index}: {header.count}×{header.channels}×"
            f"{header.height}×{header.width}"
        )
    return f"{text} of {header.payload_bytes} bytes"
