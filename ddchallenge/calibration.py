"""How fast a device is, by a workload that never changes; measured when asked, kept in the cache.

Another workload, in whatever detail, is a new :data:`WORKLOAD`: budgets are computed from it.

    matmul        ``torch.matmul`` of two n×n matrices: 2·n³ FLOP. bfloat16, and float32
    convolution   3×3, padding 1, 128 to 128 channels, channels last, N×128×S×S:
                  2·9·128·128·N·S² FLOP. bfloat16, and float32
    copy          a float32 tensor onto another, in the device's memory: read and written bytes
    host_to_device  CUDA alone: page-locked memory to the device: bytes moved once

float32 is float32: TF32 is off while it is measured, and cuDNN chooses among its algorithms as it
does by default. On a CPU all processors this process may use compute, whatever OMP_NUM_THREADS
says, since a budget is for the machine.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddchallenge.environment import describe_environment
from ddchallenge.errors import RequestError, RunError
from ddchallenge.jsonio import DocumentError, from_json, read_json, to_json, write_json
from ddchallenge.records import Calibration, Environment, Rate
from ddchallenge.scoring.places import kept_folder

if TYPE_CHECKING:
    import torch

__all__ = ["WORKLOAD", "calibrate", "keep", "kept_calibration"]

WORKLOAD: Final = "calibrate-1"
CHANNELS: Final = 128

WARM_UP: Final = 3
REPETITIONS: Final = 100
# A slow machine repeats less often, so that five parts take less than a minute.
FEWEST_REPETITIONS: Final = 5
SECONDS_A_PART: Final = 8.0

# From here on figures are said to be those of a busy machine.
BUSY_SPREAD: Final = 0.10
BUSY_LOAD_A_PROCESSOR: Final = 0.5

MAX_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Sizes:
    """``matmul`` is the side of the matrices, ``images`` and ``side`` are N and S of the
    convolution, ``copied`` and ``moved`` bytes; ``calls`` make one repetition."""

    matmul: int
    images: int
    side: int
    copied: int
    moved: int
    calls: int


SIZES: Final = {
    "cpu": Sizes(matmul=1024, images=16, side=32, copied=256 << 20, moved=0, calls=1),
    "cuda": Sizes(matmul=8192, images=256, side=64, copied=1 << 30, moved=256 << 20, calls=10),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the workload: ``make`` gives the call, which does ``work`` FLOP or bytes."""

    name: str
    work: float
    make: Callable[[], Callable[[], object]]


def parts(device: str) -> tuple[Part, ...]:
    """The workload for a torch device string; tensors are made when a part is."""
    import torch

    kind = device.partition(":")[0]
    sizes = SIZES[kind]
    made = [
        *(
            Part(f"matmul_{name}", 2.0 * sizes.matmul**3, _matmul(sizes, device, dtype))
            for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        ),
        *(
            Part(
                f"convolution_{name}",
                2.0 * 9 * CHANNELS**2 * sizes.images * sizes.side**2,
                _convolution(sizes, device, dtype),
            )
            for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        ),
        Part("copy", 2.0 * sizes.copied, _copy(sizes.copied, device, device)),
    ]
    if kind == "cuda":
        made.append(Part("host_to_device", float(sizes.moved), _copy(sizes.moved, "cpu", device)))
    return tuple(made)


def _matmul(sizes: Sizes, device: str, dtype: torch.dtype) -> Callable[[], Callable[[], object]]:
    def make() -> Callable[[], object]:
        import torch

        left, right = (_noise((sizes.matmul, sizes.matmul), device, dtype, seed) for seed in (0, 1))
        out = torch.empty_like(left)
        return lambda: torch.matmul(left, right, out=out)

    return make


def _convolution(
    sizes: Sizes, device: str, dtype: torch.dtype
) -> Callable[[], Callable[[], object]]:
    def make() -> Callable[[], object]:
        import torch

        images = _noise((sizes.images, CHANNELS, sizes.side, sizes.side), device, dtype, 0)
        images = images.contiguous(memory_format=torch.channels_last)
        weights = _noise((CHANNELS, CHANNELS, 3, 3), device, dtype, 1)
        weights = weights.contiguous(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(images, weights, padding=1)

    return make


def _copy(count: int, source: str, target: str) -> Callable[[], Callable[[], object]]:
    def make() -> Callable[[], object]:
        import torch

        locked = source != target
        read = torch.ones(count // 4, device=source, pin_memory=locked)
        written = torch.zeros(count // 4, device=target)
        return lambda: written.copy_(read, non_blocking=locked)

    return make


def _noise(shape: tuple[int, ...], device: str, dtype: torch.dtype, seed: int) -> torch.Tensor:
    # Of zeros a graphics card makes products faster, on less power.
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def calibrate(
    device: str,
    on_part: Callable[[str], None] = lambda name: None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure a device, ``cpu`` or ``cuda[:n]``; ``on_part`` is told what is measured now.

    Takes under a minute and up to 4 GiB of the device's memory (0.6 GiB of a CPU's). On CUDA the
    device's own events are the clock, and ``clock`` only bounds how long it goes on.

    Raises :class:`RunError` where there is too little memory.
    """
    import torch

    load = _load_average()
    rates: dict[str, Rate] = {}
    with torch.inference_mode(), _all_processors(device) as threads, _without_tf32():
        for part in parts(device):
            on_part(part.name)
            try:
                rates[part.name] = _measure(part, device, clock)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                raise RunError(
                    f"There is too little memory on {device} to measure {part.name}.\n"
                    "End what else uses it, and calibrate again."
                ) from error
    return Calibration(
        workload=WORKLOAD,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host_to_device=rates.pop("host_to_device", None),
        tf32=False,
        threads=threads,
        load_average=load,
        busy=_busy(rates, load),
        environment=describe_environment(device),
        **rates,
    )


def _is_memory(error: BaseException) -> bool:
    # On a CPU it is a RuntimeError like any other.
    import torch

    said = ("out of memory", "not enough memory", "allocate memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in said)


def _measure(part: Part, device: str, clock: Callable[[], float]) -> Rate:
    kind = device.partition(":")[0]
    calls = SIZES[kind].calls
    call = part.make()
    for _ in range(WARM_UP * calls):
        call()
    seconds_of = _cuda_seconds if kind == "cuda" else _seconds
    seconds: list[float] = []
    started = clock()
    while len(seconds) < REPETITIONS:
        seconds.append(seconds_of(call, calls, device, clock) / calls)
        if len(seconds) >= FEWEST_REPETITIONS and clock() - started > SECONDS_A_PART:
            break
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Rate(
        per_second=part.work / median, spread=(high - low) / median, repetitions=len(seconds)
    )


def _seconds(
    call: Callable[[], object], calls: int, device: str, clock: Callable[[], float]
) -> float:
    before = clock()
    for _ in range(calls):
        call()
    return clock() - before


def _cuda_seconds(
    call: Callable[[], object], calls: int, device: str, clock: Callable[[], float]
) -> float:
    import torch

    with torch.cuda.device(device):
        first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        first.record()
        for _ in range(calls):
            call()
        last.record()
        torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


@contextmanager
def _all_processors(device: str) -> Iterator[int]:
    """As many threads as processors, for as long; yields their number."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(_usable_processors())
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_tf32() -> Iterator[None]:
    import torch

    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.backends.cudnn.allow_tf32 = convolutions


def _usable_processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _busy(rates: dict[str, Rate], load: float | None) -> tuple[str, ...]:
    processors = os.cpu_count() or 1
    lines = []
    if load is not None and load > BUSY_LOAD_A_PROCESSOR * processors:
        lines.append(f"load average {load:g} on {processors} processors before it began")
    if _usable_processors() < processors:
        lines.append(f"only {_usable_processors()} of {processors} processors could be used")
    lines += [
        f"{name} varied by {rate.spread:.0%} between the quartiles"
        for name, rate in rates.items()
        if rate.spread > BUSY_SPREAD
    ]
    return tuple(lines)


def keep(calibration: Calibration) -> Path:
    """Store a calibration atomically in the user's cache folder, over an older one of its kind.

    Raises :class:`OutputError` or :class:`StorageError`.
    """
    path = _folder() / _name(calibration.environment, calibration.workload)
    write_json(path, to_json(calibration))
    return path


def kept_calibration(device: str) -> Calibration | None:
    """The stored calibration of this device, hardware and PyTorch; None if it was never measured.

    Raises :class:`RequestError` where there is one that cannot be used: damaged, of another
    version of the workload, or made with another PyTorch.
    """
    here = describe_environment(device)
    path = _folder() / _name(here, WORKLOAD)
    if os.path.lexists(path):
        return _read(path, here)
    for other in sorted(_folder().glob(f"{_stem(here)}.*.json")):
        _read(other, here)  # which says in what it differs
    return None


def _read(path: Path, here: Environment) -> Calibration:
    again = f"Run `ddchallenge calibrate --device {here.device}` to measure again."
    try:
        document = read_json(path, MAX_BYTES)
        # Of another version, other fields may be right.
        workload = document.get("workload") if isinstance(document, dict) else None
        if isinstance(workload, str) and workload != WORKLOAD:
            raise RequestError(
                f"This device was calibrated with the workload {workload[:40]!r}; "
                f"this version has {WORKLOAD!r}.\n{again}"
            )
        found = from_json(Calibration, document, str(path))
    except DocumentError as error:
        raise RequestError(f"The stored calibration is damaged: {error}\n{again}") from None
    there = found.environment
    if there.torch != here.torch:
        raise RequestError(
            f"This device was calibrated with PyTorch {there.torch}; this is {here.torch}.\n{again}"
        )
    if there.hardware != here.hardware or _kind(there) != _kind(here):
        raise RequestError(
            f"The stored calibration {path} is of {there.hardware}, not of {here.hardware}.\n"
            f"{again}"
        )
    return found


def _folder() -> Path:
    return kept_folder("calibration")


def _kind(environment: Environment) -> str:
    return environment.device.partition(":")[0]


def _stem(environment: Environment) -> str:
    """Of the file name: kind of device, and eight hex digits of its hardware's name."""
    named = hashlib.sha256(environment.hardware.encode()).hexdigest()[:8]
    return f"{_kind(environment)}-{named}"


def _name(environment: Environment, workload: str) -> str:
    versions = hashlib.sha256(f"{workload} {environment.torch}".encode()).hexdigest()[:8]
    return f"{_stem(environment)}.{versions}.json"
