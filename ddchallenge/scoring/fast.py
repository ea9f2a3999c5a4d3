"""Fast numerics: the same protocol in distribution, with the machine's best.

Same initialisation, order, batches, augmentation draws and schedule as exact numerics on a CPU;
other arithmetic: uint8 images are normalised, augmented (:mod:`ddchallenge.scoring.fused`) and
trained on in one compiled step, channels last, in bfloat16 with float32 weights where the device
multiplies it faster. On a CPU, what lies between convolutions is a kernel of our own then
(:mod:`ddchallenge.scoring.normpool`). A batch goes through in equal parts whose gradients are
added: instance normalisation looks at one image at a time, so a part is as good as the whole. What
is left over is filled up with images of no weight, so that one compiled step serves every batch; in
a long run it gets a step of its own. On CUDA a step is a graph, and several runs go on side by side
on streams of their own.

Whether scores agree with exact numerics is measured: ``python -m benchmarks.equivalence``.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddchallenge.errors import RequestError
from ddchallenge.records import ScoringActivity
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.draws import Draw
from ddchallenge.scoring.fused import NUMBERS, apply_map, map_of
from ddchallenge.scoring.normpool import build_kernel, with_kernel
from ddchallenge.scoring.places import kept_folder
from ddchallenge.scoring.recipes import Eccv2024, Recipe

__all__ = ["FastStepper", "arithmetic_of", "rows_at_a_time"]

# Larger parts are no faster and need more memory, smaller ones are slower, the smallest by far.
CPU_ROWS: Final = 64
# From here on a few per cent of the time are more than it takes to compile another step.
MANY_PASSES: Final = 100

NOTEWORTHY_SECONDS: Final = 5.0

_compiled_shapes: Final[set[object]] = set()
# Why nothing can be compiled here, once that is known.
_broken: list[str] = []

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, torch.dtype], Tensor]


def arithmetic_of(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    features = torch.cpu.get_capabilities()
    fast = ("avx512_bf16", "amx_bf16", "amx_tile", "bf16")
    return torch.bfloat16 if any(features.get(name) for name in fast) else torch.float32


def rows_at_a_time(n: int, device: torch.device) -> int:
    """How many images a part has, where the largest batch has ``n``."""
    if device.type != "cpu":
        return n
    return CPU_ROWS if n > 2 * CPU_ROWS else max(n, CPU_ROWS)


def _loss(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    weights: Tensor,
    maps: Tensor,
    scale: Tensor,
    shift: Tensor,
    arithmetic: torch.dtype,
) -> Tensor:
    images = pixels.float() * scale + shift if pixels.dtype == torch.uint8 else pixels
    images = apply_map(images, maps)
    with torch.autocast(pixels.device.type, arithmetic, enabled=arithmetic != torch.float32):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weights).sum()


@functools.cache
def _compiled() -> Loss:
    folder = kept_folder("compiled").absolute()
    # The compiler's command line is not quoted; PyTorch's own default has no space in it.
    if not any(letter.isspace() for letter in str(folder)) and _is_made(folder):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    # It warns of a missing CUDA on machines that never had one.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import torch._dynamo

    # One entry for every shape of a set of images that this process scores.
    torch._dynamo.config.recompile_limit = 64
    compiled: Loss = torch.compile(_loss, fullgraph=True, dynamic=False)
    return compiled


def _is_made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


class FastStepper:
    """A :class:`ddchallenge.scoring.training.Stepper`; see the module."""

    def __init__(
        self, network: nn.Module, train: DeviceImages, recipe: Recipe, *, compiled: bool = True
    ) -> None:
        if not isinstance(recipe, Eccv2024):
            raise RequestError(
                "Fast numerics know the training of eccv2024 only.\nUse --numerics exact."
            )
        device, spec = train.device, train.spec
        self._notes: list[str] = []
        self._network = self._computed = network.to(memory_format=torch.channels_last)
        self._parameters = list(network.parameters())
        self._momenta = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._train = train
        self._recipe = recipe
        self._arithmetic = arithmetic_of(device)
        self._loss: Loss = _compiled() if compiled else _loss
        self._is_compiled = compiled
        if compiled and _broken:
            self._fall_back()
        elif device.type == "cpu" and self._arithmetic == torch.bfloat16:
            self._use_kernel()
        std = 255 * torch.tensor(spec.std)
        mean = 255 * torch.tensor(spec.mean)
        self._scale = (1 / std).view(3, 1, 1).to(device)
        self._shift = (-mean / std).view(3, 1, 1).to(device)

        largest = min(len(train), recipe.batch_size)
        self._rows = rows_at_a_time(largest, device)
        padded = -(-largest // self._rows) * self._rows
        self._sizes: list[int] = []
        self._pass: tuple[Tensor, ...] = ()
        # What a step reads and writes lies in the same place every time: a graph needs that.
        self._index = torch.zeros(padded, dtype=torch.int64, device=device)
        self._weights = torch.zeros(padded, device=device)
        self._maps = torch.zeros(padded, NUMBERS, device=device)
        self._rate = torch.zeros((), device=device)
        self._mean_loss = torch.zeros((), device=device)
        self._prepared: dict[int, Callable[[], None]] = {}
        shapes = tuple(tuple(parameter.shape) for parameter in self._parameters)
        self._shape = self._rows, spec.image_size, train.pixels.dtype, shapes

    def begin_pass(self, order: Tensor, draws: Sequence[Draw]) -> None:
        """Lay out the whole pass and move it to the device at once, so that no step waits."""
        parts = torch.split(order, self._recipe.batch_size)
        self._sizes = [len(part) for part in parts]
        shape = len(parts), len(self._index)
        # What a batch is filled up with is the first image, at no weight.
        index = torch.zeros(shape, dtype=torch.int64)
        weights = torch.zeros(shape)
        maps = torch.zeros(*shape, NUMBERS)
        for number, (part, drawn) in enumerate(zip(parts, draws, strict=True)):
            n = len(part)
            index[number, :n] = part
            weights[number, :n] = 1 / n
            maps[number, :n] = map_of(drawn, n, self._train.spec.image_size)
        self._pass = tuple(_sent(table, self._train.device) for table in (index, weights, maps))

    def step(self, number: int) -> Tensor:
        """Forward, backward, update on one batch."""
        for place, table in zip((self._index, self._weights, self._maps), self._pass, strict=True):
            place.copy_(table[number])
        size = self._sizes[number]
        if size not in self._prepared:
            self._prepared[size] = self._prepare(size)
        self._prepared[size]()
        return self._mean_loss

    def learn_at(self, rate: float, *, restart: bool) -> None:
        """Another rate; a restart empties the momentum buffers."""
        self._rate.fill_(rate)
        if restart:
            for momentum in self._momenta:
                momentum.zero_()

    @property
    def first_step(self) -> ScoringActivity:
        """Compiling, unless this process has compiled this step before."""
        return "training" if self._shape in _compiled_shapes else "compiling"

    @property
    def rows(self) -> int:
        """A part of a batch: as much memory as a step needs, and no more."""
        return self._rows

    @property
    def notes(self) -> Sequence[str]:
        """How long compilation took, or why it failed; empty where it was quick."""
        return self._notes

    @property
    def momenta(self) -> Sequence[Tensor | None]:
        """One buffer a parameter, zero before the first step."""
        return self._momenta

    def restore_momenta(self, momenta: Sequence[Tensor | None]) -> None:
        """Copy them into the buffers."""
        for mine, given in zip(self._momenta, momenta, strict=True):
            if given is None:
                mine.zero_()
            else:
                mine.copy_(given)

    def _parts(self, size: int) -> list[slice]:
        ends = list(range(self._rows, size, self._rows))
        fill = len(self._sizes) > 1 and self._recipe.passes < MANY_PASSES
        ends.append(-(-size // self._rows) * self._rows if fill else size)
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _run(self, size: int) -> None:
        sums: list[Tensor] = []
        losses = []
        for part in self._parts(size):
            index = self._index[part]
            loss = self._loss(
                self._computed,
                self._train.pixels[index],
                self._train.labels[index],
                self._weights[part],
                self._maps[part],
                self._scale,
                self._shift,
                self._arithmetic,
            )
            gradients = torch.autograd.grad(loss, self._parameters)
            losses.append(loss.detach())
            if not sums:
                sums = list(gradients)
            else:
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
        with torch.no_grad():
            for parameter, momentum, gradient in zip(
                self._parameters, self._momenta, sums, strict=True
            ):
                gradient.add_(parameter, alpha=self._recipe.weight_decay)
                momentum.mul_(self._recipe.momentum).add_(gradient)
                parameter.sub_(momentum * self._rate)
            self._mean_loss.copy_(torch.stack(losses).sum())

    def _prepare(self, size: int) -> Callable[[], None]:
        """Compile the step for batches of this size, on a trial that leaves no trace."""
        began = time.monotonic()
        state = [*self._parameters, *self._momenta]
        kept = [tensor.detach().clone() for tensor in state]
        while True:
            try:
                self._run(size)
                step = self._captured(size)
            except torch.OutOfMemoryError:
                if self._rows == 1:
                    raise
                self._rows = -(-self._rows // 2)
                self._prepared.clear()
                continue
            except Exception as error:
                if not self._is_compiled:
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
                _broken.append(reason)
                self._fall_back()
                continue
            break
        with torch.no_grad():
            for tensor, before in zip(state, kept, strict=True):
                tensor.copy_(before)
        _compiled_shapes.add(self._shape)
        seconds = time.monotonic() - began
        if self._is_compiled and seconds > NOTEWORTHY_SECONDS:
            self._notes.append(f"The step took {seconds:.0f} s to compile; next time it is there")
        return step

    def _captured(self, size: int) -> Callable[[], None]:
        if self._train.device.type != "cuda":
            return functools.partial(self._run, size)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run(size)
        return graph.replay

    def _use_kernel(self) -> None:
        try:
            build_kernel()
        except OSError as error:
            self._notes.append(
                "Warning: the fast step's own kernel could not be compiled and it runs slower, "
                f"without ({str(error)[:120]}). Is g++ installed?"
            )
        else:
            self._computed = with_kernel(self._network)

    def _fall_back(self) -> None:
        self._loss, self._is_compiled = _loss, False
        self._computed = self._network
        self._notes.clear()
        if self._train.device.type == "cpu":
            self._arithmetic = torch.float32  # eager bfloat16 is slower than float32 there
        self._notes.append(
            "Warning: the fast step could not be compiled and runs slower, uncompiled, in "
            f"{str(self._arithmetic).removeprefix('torch.')} ({_broken[0]}). Is g++ installed?"
        )


def _sent(table: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)
