"""Post data augmentation: more images out of each generated one, inside the budget.

:func:`augment` is the plain function. :class:`AugmentationPool` does the same in a few processes
of its own while sampling goes on, and says when each piece was done.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from ddchallenge.errors import UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PLANS",
    "AugmentationPlan",
    "AugmentationPool",
    "AugmentedChunk",
    "augment",
    "get_plan",
    "image_seed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationPlan:
    """A way to make ``copies`` augmented copies of each image; the original is kept as well."""

    name: str
    copies: int
    description: str


PLANS: Final = {
    "none": AugmentationPlan(name="none", copies=0, description="the images as they were sampled"),
    "pda5": AugmentationPlan(
        name="pda5",
        copies=4,
        description="each image and four copies through the six transforms of Su et al. 2024: "
        "crop (a no-op at full size), flips, brightness and contrast, rotation, gamma",
    ),
}


def get_plan(name: str) -> AugmentationPlan:
    """The plan of that name; raises :class:`UnknownNameError`."""
    try:
        return PLANS[name]
    except KeyError:
        raise UnknownNameError("augmentation plan", name, PLANS) from None


def image_seed(run_seed: int, image_index: int) -> int:
    """The seed, 0..2^64-1, of all copies of the image sampled as number ``image_index``.

    NumPy's SeedSequence, so that neighbouring images and runs have unrelated seeds. Both numbers
    must be 0 or more.
    """
    import numpy as np

    # The leading 1 keeps these apart from the seeds of batches, which are spawned from (index,).
    sequence = np.random.SeedSequence(run_seed, spawn_key=(1, image_index))
    return int(sequence.generate_state(1, np.uint64)[0])


def augment(
    plan: AugmentationPlan, images: NDArray[np.uint8], seeds: Sequence[int]
) -> NDArray[np.uint8]:
    """The augmented copies of each image, without the original.

    Takes uint8 N×3×S×S pixels and one seed an image (see :func:`image_seed`); gives uint8
    N×copies×3×S×S. A copy depends on its image, the image's seed and its own number alone, not on
    the batch or the process. Raises :class:`ValueError` for other shapes or dtypes.
    """
    import numpy as np

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 N×3×S×S, found {images.dtype} {images.shape}")
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images, found {images.shape}")
    if len(seeds) != len(images):
        raise ValueError(f"expected {len(images)} seeds, found {len(seeds)}")
    if not plan.copies or not len(images):
        return np.empty((len(images), plan.copies, *images.shape[1:]), dtype=np.uint8)
    return _copies(_compose(images.shape[2]), plan.copies, images, seeds)


def _copies(
    compose: Any, copies: int, images: NDArray[np.uint8], seeds: Sequence[int]
) -> NDArray[np.uint8]:
    import numpy as np

    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    out = np.empty((len(images), copies, *pixels.shape[1:]), dtype=np.uint8)
    for image, seed, row in zip(pixels, seeds, out, strict=True):
        # One stream for all transforms and copies of an image. Compose.set_random_seed would give
        # every transform the same seed: the two flips would then always happen together, and
        # the angle would follow the brightness. It is also half as fast.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        for copy in row:
            copy[...] = compose(image=image)["image"]
    return np.ascontiguousarray(out.transpose(0, 1, 4, 2, 3))


def _compose(size: int) -> Any:
    """The six transforms for ``size``×``size`` pixels, H×W×3 uint8 in and out.

    Source: the published script of Su et al. 2024 (SDXL-Turbo, rank 3). It left most parameters to
    the library's defaults of the time; defaults have changed since (the border of Rotate is black
    now), so all are written out.
    """
    # Its import would otherwise ask a server for a newer version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A  # noqa: N812 - its documented short name
    import cv2

    return A.Compose(
        [
            # The script crops to the full size, so this changes nothing.
            A.RandomCrop(height=size, width=size, pad_if_needed=False, p=1.0),
            A.HorizontalFlip(p=0.8),
            A.VerticalFlip(p=0.8),
            A.RandomBrightnessContrast(
                brightness_limit=(-0.2, 0.2),
                contrast_limit=(-0.2, 0.2),
                brightness_by_max=True,
                ensure_safe_range=False,
                p=0.5,
            ),
            A.Rotate(
                limit=(-60, 60),
                interpolation=cv2.INTER_LINEAR,
                border_mode=cv2.BORDER_REFLECT_101,
                rotate_method="largest_box",
                crop_border=False,
                mask_interpolation=cv2.INTER_NEAREST,
                fill=0,
                fill_mask=0,
                p=0.8,
            ),
            A.RandomGamma(gamma_limit=(80, 120), p=0.5),
        ],
        p=1.0,
        is_check_shapes=False,
        strict=False,
    )


# A piece of work and its answer on the pipes of a pool process: this header, then raw pixels.
_REQUEST: Final = struct.Struct("<QII")  # number of the first image, images, side in pixels
_REPLY: Final = struct.Struct("<d")  # seconds computed

_STOP_SECONDS: Final = 0.2
# Path appended, so that our site-packages cannot get in front of the standard library.
_COMMAND: Final = (
    "import sys; sys.path.append(sys.argv[2]); from ddchallenge.augment import _serve; _serve()"
)


class AugmentedChunk(NamedTuple):
    """The copies of one submitted piece.

    ``images`` is uint8 N×copies×3×S×S, C-contiguous, of the sampled images from ``first`` on.
    ``done_at`` is :func:`time.monotonic` when the last byte was here, ``seconds`` what computing
    took in the pool process.
    """

    first: int
    images: NDArray[np.uint8]
    seconds: float
    done_at: float


class AugmentationPool:
    """A few processes that augment what they are given, started at once.

    ``processes`` defaults to one a usable core, four at most. The processes are in sessions of
    their own, so Ctrl-C and signals to our group pass them by, and end by themselves when we do,
    even when we are killed: their input closes. ``fileno`` is readable when something completed,
    so a pool can be registered in a selector.

    A process that dies hands its piece to the others; when the last has died, ``failure`` says why
    and nothing more completes.
    """

    def __init__(
        self, plan: AugmentationPlan, run_seed: int, *, processes: int | None = None
    ) -> None:
        count = processes or min(4, _usable_cores())
        self.failure: str | None = None
        self._plan = plan
        self._stopping = False
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[int, NDArray[np.uint8]] | None] = queue.SimpleQueue()
        self._done: list[AugmentedChunk] = []
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._processes = [_start(plan, run_seed) for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._attend, args=(process,), daemon=True)
            for process in self._processes
        ]
        self._alive = count
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`completed` has something; valid until stop."""
        return self._wake_read

    def pids(self) -> tuple[int, ...]:
        """The process ids of the pool, also of processes that have ended."""
        return tuple(process.popen.pid for process in self._processes)

    def submit(self, first: int, images: NDArray[np.uint8]) -> None:
        """Queues uint8 N×3×S×S images, the sampled images from number ``first`` on.

        They come back as one :class:`AugmentedChunk` and must not change until then. Pieces of a
        few dozen images keep every process busy and little in flight at the deadline.
        """
        self._jobs.put((first, images))

    def completed(self) -> list[AugmentedChunk]:
        """What was done since the last call, in the order it was done. Works after stop, too."""
        with self._lock:
            done, self._done = self._done, []
            with suppress(BlockingIOError):  # drained
                while not self._stopping and os.read(self._wake_read, 4096):
                    pass
        return done

    def stop(self) -> None:
        """Kills the processes, whatever they are doing, and returns within 0.3 seconds."""
        if self._stopping:
            return
        with self._lock:
            self._stopping = True
        until = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            process.popen.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for process, thread in zip(self._processes, self._threads, strict=True):
            try:
                process.popen.wait(timeout=max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:  # the kernel holds it; it is dead all the same
                continue
            thread.join(timeout=max(0.0, until - time.monotonic()))
            if not thread.is_alive():  # closing a pipe that a thread reads would block
                process.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _attend(self, process: _Process) -> None:
        """Feed one process, in a thread of ours, until the pool stops or the process dies."""
        while (job := self._jobs.get()) is not None and not self._stopping:
            try:
                chunk = self._exchange(process, *job)
            except (OSError, EOFError):
                self._lost(process, job)
                return
            with self._lock:
                if not self._stopping:
                    self._done.append(chunk)
                    self._wake()

    def _exchange(self, process: _Process, first: int, images: NDArray[np.uint8]) -> AugmentedChunk:
        import numpy as np

        process.requests.write(_REQUEST.pack(first, len(images), images.shape[-1]))
        process.requests.write(np.ascontiguousarray(images).data.cast("B"))
        process.requests.flush()
        out = np.empty((len(images), self._plan.copies, *images.shape[1:]), dtype=np.uint8)
        header = process.replies.read(_REPLY.size)
        if len(header) != _REPLY.size or process.replies.readinto(out.data.cast("B")) < out.nbytes:
            raise EOFError
        return AugmentedChunk(first, out, _REPLY.unpack(header)[0], time.monotonic())

    def _lost(self, process: _Process, job: tuple[int, NDArray[np.uint8]]) -> None:
        ending = process.ending()
        with self._lock:
            if self._stopping:
                return
            self._alive -= 1
            if self._alive:
                self._jobs.put(job)
                return
            self.failure = f"the augmentation processes ended ({ending})"
            self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full, so readable already
            os.write(self._wake_write, b"\0")


@dataclass(frozen=True, slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    requests: BinaryIO
    replies: BufferedReader
    log: BinaryIO  # what it prints

    def ending(self) -> str:
        try:
            status = str(self.popen.wait(timeout=_STOP_SECONDS))
        except subprocess.TimeoutExpired:
            status = "unknown"
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 4096))
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        return f"exit status {status}" + (f": {lines[-1]}" if lines else "")

    def close(self) -> None:
        for file in (self.requests, self.replies, self.log):
            with suppress(OSError):  # closing flushes, and nobody reads any more
                file.close()


def _start(plan: AugmentationPlan, run_seed: int) -> _Process:
    package_home = str(Path(__file__).resolve().parent.parent)
    # The pool is the parallelism; threads inside a process would only get in each other's way.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
    # Both pipes apart from the standard streams: what any library prints must not get between the
    # pixels, not even while Python starts.
    requests_read, requests_write = os.pipe()
    replies_read, replies_write = os.pipe()
    settings = json.dumps([plan.name, run_seed, requests_read, replies_write])
    try:
        popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, settings, package_home],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **single},
            pass_fds=(requests_read, replies_write),
            start_new_session=True,
        )
    finally:
        os.close(requests_read)
        os.close(replies_write)
    return _Process(popen, os.fdopen(requests_write, "wb"), os.fdopen(replies_read, "rb"), log)


def _serve() -> None:
    """The main loop of a pool process: pieces of images in, their copies out, until the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, run_seed, requests_read, replies_write = json.loads(sys.argv[1])
    requests, replies = os.fdopen(requests_read, "rb"), os.fdopen(replies_write, "wb")
    plan = get_plan(name)

    # albumentations takes torch where it finds it, for a conversion we do not use: without it the
    # process starts in 0.6 s and 100 MB instead of 1.7 s and 580 MB.
    sys.modules["torch"] = None  # type: ignore[assignment]
    compose = _compose(1)
    del sys.modules["torch"]
    import cv2
    import numpy as np

    cv2.setNumThreads(0)
    size = 1
    while header := requests.read(_REQUEST.size):
        first, count, side = _REQUEST.unpack(header)
        images = np.empty((count, 3, side, side), dtype=np.uint8)
        if requests.readinto(images.data.cast("B")) != images.nbytes:
            return
        started = time.perf_counter()
        if side != size:
            compose, size = _compose(side), side
        seeds = [image_seed(run_seed, first + i) for i in range(count)]
        copies = _copies(compose, plan.copies, images, seeds)
        try:
            replies.write(_REPLY.pack(time.perf_counter() - started))
            replies.write(copies.data.cast("B"))
            replies.flush()
        except BrokenPipeError:
            os._exit(1)  # the supervisor is gone; nobody is left to tell


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
