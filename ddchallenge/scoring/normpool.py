"""Instance normalisation, ReLU and 2×2 average pooling in one, on a CPU in bfloat16.

``normpool.cpp`` reads memory fewer times than the code PyTorch's compiler generates for the three,
and takes about a third of its time. :func:`build_kernel` compiles it, once for a compiler and a
processor, and loads it; :func:`with_kernel` puts it into a network.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ddchallenge.scoring.places import kept_folder

__all__ = ["build_kernel", "norm_pool", "with_kernel"]

SOURCE: Final = Path(__file__).with_name("normpool.cpp")
FLAGS: Final = (
    "-std=c++17",
    "-O3",
    "-march=native",
    # These two change no result.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    # PyTorch has loaded the library that this needs, so both have the same threads.
    "-fopenmp",
    "-shared",
    "-fPIC",
)


@functools.cache
def build_kernel() -> ctypes.CDLL:
    """The compiled ``normpool.cpp``: found in the cache folder, or compiled within seconds.

    Raises :class:`OSError` where it cannot be compiled or loaded.
    """
    if sys.platform != "linux":
        raise OSError("it is made on Linux only")
    compiler = [*shlex.split(os.environ.get("CXX") or "g++"), *FLAGS]
    # The macros that are predefined tell compilers, their versions and processors apart.
    macros = _output([*compiler, "-dM", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256(SOURCE.read_bytes() + shlex.join(compiler).encode() + macros)
    name = f"norm-pool-{digest.hexdigest()[:32]}.so"
    folder = kept_folder("compiled") / "kernels"
    private = _is_private(folder)
    if private and (folder / name).exists():
        return _load(folder / name)
    with tempfile.TemporaryDirectory(dir=folder if private else None) as scratch:
        made = Path(scratch, name)
        _output([*compiler, str(SOURCE), "-o", str(made)])
        return _load(made.replace(folder / name) if private else made)


@torch.library.custom_op("ddchallenge::norm_pool", mutates_args=(), device_types="cpu")
def norm_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Average pooling of the ReLU of the instance normalisation of ``x``.

    ``x`` is bfloat16 N×C×H×W with even H and W, ``weight`` and ``bias`` are float32 of length C,
    ``eps`` is added to the variance. Returns bfloat16 N×C×H/2×W/2, channels last and rounded
    once, and the float32 N×C means and reciprocal standard deviations, through which no gradient
    goes. NaN stays NaN. Raises :class:`ValueError` for other tensors, :class:`OSError` where
    there is no kernel.
    """
    n, channels, height, width = x.shape
    parameters = {(weight.shape, weight.dtype), (bias.shape, bias.dtype)}
    if x.dtype != torch.bfloat16 or parameters != {((channels,), torch.float32)}:
        raise ValueError("x must be bfloat16, weight and bias one float32 a channel.")
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(f"height and width must be even, found {height}×{width}.")
    y, mean, rstd = _new(x, 2), weight.new_empty(n, channels), weight.new_empty(n, channels)
    inputs = [_channels_last(x), weight.contiguous(), bias.contiguous()]
    _call(build_kernel().norm_pool_forward, x, inputs, [ctypes.c_float(eps)], [y, mean, rstd])
    return y, mean, rstd


@norm_pool.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    shape = x.shape[:2]
    return _new(x, 2), weight.new_empty(shape), weight.new_empty(shape)


@torch.library.custom_op("ddchallenge::norm_pool_backward", mutates_args=(), device_types="cpu")
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _new(x, 1), torch.empty_like(mean), torch.empty_like(mean)
    inputs = [_channels_last(dy), _channels_last(x), weight.contiguous(), bias.contiguous()]
    inputs += [mean.contiguous(), rstd.contiguous()]
    _call(build_kernel().norm_pool_backward, x, inputs, [], [dx, dweight, dbias])
    return dx, dweight.sum(0), dbias.sum(0)


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _new(x, 1), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _gradients(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(dy, *ctx.saved_tensors), None)


norm_pool.register_autograd(_gradients, setup_context=_keep)


def with_kernel(network: nn.Module) -> nn.Module:
    """A sequence of layers with :func:`norm_pool` wherever three of them are what it computes.

    All parameters and other layers are those of ``network``, which is left as it is. Where an
    input is not the kernel's, the three layers are used. What is no sequence comes back as it is.
    """
    if not isinstance(network, nn.Sequential):
        return network
    layers, made = list(network), list[nn.Module]()
    while layers:
        three = nn.Sequential(*layers[:3])
        fits = _is_norm_pool(three)
        made.append(_NormPool(three) if fits else layers[0])
        del layers[: 3 if fits else 1]
    return nn.Sequential(*made)


class _NormPool(nn.Module):
    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        norm = self.layers[0]
        if x.dtype != torch.bfloat16 or x.shape[2] % 2 or x.shape[3] % 2:
            pooled: Tensor = self.layers(x)
        else:
            pooled, _, _ = norm_pool(x, norm.weight, norm.bias, norm.eps)
        return pooled


def _is_norm_pool(layers: nn.Sequential) -> bool:
    if [type(layer) for layer in layers] != [nn.GroupNorm, nn.ReLU, nn.AvgPool2d]:
        return False
    norm, _, pool = layers
    instance = norm.affine and norm.num_groups == norm.num_channels
    halving = pool.kernel_size == pool.stride == 2 and pool.padding == 0
    return bool(instance and halving and pool.divisor_override is None)


def _new(like: Tensor, shrink: int) -> Tensor:
    n, channels, height, width = like.shape
    shape = n, channels, height // shrink, width // shrink
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _call(
    function: Any, x: Tensor, inputs: list[Tensor], numbers: list[Any], outputs: list[Tensor]
) -> None:
    n, channels, height, width = map(ctypes.c_int64, x.shape)
    pointers = [[ctypes.c_void_p(each.data_ptr()) for each in some] for some in (inputs, outputs)]
    threads = torch.get_num_threads()
    function(n, height, width, channels, threads, *pointers[0], *numbers, *pointers[1])


def _load(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file.absolute()))
    library.norm_pool_forward.restype = library.norm_pool_backward.restype = None
    return library


def _is_private(folder: Path) -> bool:
    """Whether no other user can put a library there, for this one to load."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _output(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"{command[0]} failed"
        raise OSError(said.splitlines()[0])
    return done.stdout
