"""The kernel between convolutions against the three layers it replaces."""

import dataclasses
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
import trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from ddchallenge.datasets import get_dataset
from ddchallenge.records import LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import fast, normpool
from ddchallenge.scoring.fast import FastStepper
from ddchallenge.scoring.networks import NETWORKS, convnet
from ddchallenge.scoring.normpool import build_kernel, norm_pool, with_kernel

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

EPS = 1e-5
PROTOCOL = PROTOCOLS["eccv2024"]
SPEC = get_dataset("digits")


@pytest.fixture(autouse=True, params=["native", "baseline"])
def build(request, monkeypatch):
    """The kernel for this processor, and for the least one its compiler knows."""
    build_kernel.cache_clear()
    if request.param == "baseline":
        flags = [flag for flag in normpool.FLAGS if flag != "-march=native"]
        monkeypatch.setattr(normpool, "FLAGS", flags)
    yield
    build_kernel.cache_clear()


def digits(n):
    """The first scans of scikit-learn as three equal channels."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images[:n] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return LabeledImages(np.repeat(pixels, 3, axis=1), labels[:n].astype(np.int64))


def tensors(n, channels, size, seed=0):
    """Images with a mean far from zero, both parameters, and the gradient that comes back."""
    numbers = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(n, channels, size, size, generator=numbers) + 5).bfloat16()
    weight, bias = torch.randn(2, channels, generator=numbers)
    gradient = torch.randn(n, channels, size // 2, size // 2, generator=numbers).bfloat16()
    return x.contiguous(memory_format=torch.channels_last), weight, bias, gradient


def ours(x, weight, bias, gradient):
    """What comes out, and the gradients of all three that went in."""
    leaves = [each.detach().clone().requires_grad_() for each in (x, weight, bias)]
    y, _, _ = norm_pool(*leaves, EPS)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


def theirs(x, weight, bias, gradient):
    """The same by PyTorch's layers, in float64."""
    leaves = [each.double().requires_grad_() for each in (x, weight, bias)]
    normal = functional.group_norm(leaves[0], x.shape[1], *leaves[1:], EPS)
    y = functional.avg_pool2d(normal.relu(), 2)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient.double())]


def away_from_zero(x, weight, bias, gradient):
    """``gradient``, but zero where it meets the step of the ReLU's, which side of it is chance."""
    normal = functional.group_norm(x.double(), x.shape[1], weight.double(), bias.double(), EPS)
    near = functional.max_pool2d((normal.abs() < 1e-4).double(), 2)
    return gradient * (near == 0)


@pytest.mark.parametrize("channels", [1, 17, 64, 128, 150])
@pytest.mark.parametrize("size", [2, 8, 32, 64])
def test_it_is_the_three_layers(channels, size):
    """Forward and backward. What is bfloat16 is off by its rounding, half of the last of 8 bits,
    and everything by float32's in sums of thousands of terms."""
    x, weight, bias, gradient = tensors(2, channels, size)
    gradient = away_from_zero(x, weight, bias, gradient)
    mine = ours(x, weight, bias, gradient)
    expected = theirs(x, weight, bias, gradient)

    assert [each.dtype for each in mine] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for got, wanted in zip(mine[:2], expected[:2], strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=2**-8 + 1e-5, atol=2e-5)
    for got, wanted in zip(mine[2:], expected[2:], strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=2e-3)


def test_any_layout_will_do():
    """Images and gradients in PyTorch's usual order give what channels last give."""
    x, *others, gradient = tensors(3, 20, 8)
    usual = ours(x.contiguous(), *others, gradient.contiguous())
    last = ours(x, *others, gradient.contiguous(memory_format=torch.channels_last))
    assert all(torch.equal(a, b) for a, b in zip(usual, last, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["first pixel", "another", "gradient"])
def test_what_is_no_number_spreads_as_far_as_in_pytorch(bad, place):
    """One in a channel of an image: NaN where PyTorch has NaN, and nowhere else."""
    x, weight, bias, gradient = tensors(2, 20, 8)
    bias = bias.abs() + 9  # the ReLU lets all of them through
    if place == "gradient":
        gradient[1, 18, 2, 1] = bad
    else:
        x[1, 18, 0 if place == "first pixel" else 5, 0] = bad
    mine = ours(x, weight, bias, gradient)
    expected = theirs(x, weight, bias, gradient)

    assert not all(each.isfinite().all() for each in mine)
    for got, wanted in zip(mine, expected, strict=True):
        assert torch.equal(got.isfinite(), wanted.isfinite())


def test_a_channel_of_one_colour_is_its_bias():
    """A variance of zero is no division by it."""
    x = torch.full((1, 3, 4, 4), 1e4, dtype=torch.bfloat16)
    y, mean, rstd = norm_pool(x, torch.ones(3), torch.tensor([1.0, 0.0, -1.0]), EPS)
    assert torch.equal(y.float(), torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand_as(y))
    assert torch.equal(mean, x[..., 0, 0].float())
    torch.testing.assert_close(rstd, torch.full((1, 3), EPS**-0.5))


def test_it_repeats_itself_bit_by_bit():
    """However many threads there are."""
    given = tensors(9, 150, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(ours(*given))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_pytorch_finds_the_operator_in_order():
    """PyTorch's own check: schema, gradient, shapes and strides said without computing."""
    x, weight, bias, _ = tensors(2, 5, 4)
    leaves = [each.requires_grad_() for each in (x, weight, bias)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(norm_pool, (*leaves, EPS), test_utils=tests)


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 4).bfloat16()], ids=["float32", "odd"]
)
def test_other_tensors_are_refused(x):
    """Before a pointer to them is given away."""
    with pytest.raises(ValueError, match="must be"):
        norm_pool(x, torch.ones(2), torch.ones(2), EPS)
    with pytest.raises(ValueError, match="must be"):
        norm_pool(x.bfloat16(), torch.ones(3), torch.ones(3), EPS)


def test_it_takes_the_place_of_the_three_layers_and_no_others():
    """The challenge's network has three places for it; what pools otherwise, or normalises groups,
    has none. Parameters stay the network's; images of odd size or in float32 are computed by the
    layers."""
    network = convnet(depth=3, width=16, image_size=10, num_classes=10)
    made = with_kernel(network)
    kinds = [type(layer).__name__ for layer in made]
    assert kinds == ["Conv2d", "_NormPool"] * 3 + ["Flatten", "Linear"]
    assert all(a is b for a, b in zip(made.parameters(), network.parameters(), strict=True))
    images = torch.randn(2, 3, 10, 10)
    assert torch.equal(made(images), network(images))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(images), network(images), rtol=0.05, atol=0.05)

    norm, relu, pool = nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)
    for layers in (
        (nn.GroupNorm(2, 4), relu, pool),
        (nn.GroupNorm(4, 4, affine=False), relu, pool),
        (norm, nn.GELU(), pool),
        (norm, relu, nn.AvgPool2d(2, stride=1)),
        (norm, relu, nn.AvgPool2d(4)),
        (norm, relu, nn.AvgPool2d(2, padding=1)),
        (norm, relu),
    ):
        assert list(with_kernel(nn.Sequential(*layers))) == list(layers)
    assert with_kernel(pool) is pool


def test_training_with_it_ends_where_training_without_does(monkeypatch):
    """Digits in bfloat16: the first losses differ by rounding, the last by little more."""
    monkeypatch.setattr(fast, "arithmetic_of", lambda device: torch.bfloat16)
    monkeypatch.setitem(NETWORKS, "small", partial(convnet, depth=3, width=32))
    protocol = dataclasses.replace(PROTOCOL, network="small")
    train = digits(300)
    request = {"epochs": 20, "seed": 1, "stepper": partial(FastStepper, compiled=False)}
    _, with_it = trainer.train_network(train, SPEC, protocol, **request)
    _, again = trainer.train_network(train, SPEC, protocol, **request)
    monkeypatch.setattr(FastStepper, "_use_kernel", lambda self: None)
    _, without = trainer.train_network(train, SPEC, protocol, **request)

    assert with_it == again
    assert with_it != without
    np.testing.assert_allclose(with_it[:4], without[:4], rtol=1e-2)
    np.testing.assert_allclose(np.mean(with_it[-10:]), np.mean(without[-10:]), rtol=0.1)


def test_it_is_compiled_once_for_a_folder(monkeypatch, tmp_path):
    """The second process finds it; a folder that others may write in is not used."""
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path))
    commands = []
    plain = subprocess.run

    def counted(command, **options):
        commands.append(command)
        return plain(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    build_kernel()
    folder = tmp_path / "compiled" / "kernels"
    (found,) = folder.iterdir()
    assert (len(commands), found.suffix) == (2, ".so")
    build_kernel.cache_clear()
    build_kernel()
    assert len(commands) == 3  # asked about the processor only

    found.unlink()
    folder.chmod(0o777)
    build_kernel.cache_clear()
    build_kernel()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "g++ -no-such-option"])
def test_without_a_compiler_the_step_does_without(monkeypatch, tmp_path, compiler):
    """One line says so, and the losses are those without the kernel."""
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(fast, "arithmetic_of", lambda device: torch.bfloat16)
    training = trainer.training_of(
        digits(20), SPEC, PROTOCOL, epochs=1, seed=0, stepper=partial(FastStepper, compiled=False)
    )
    (note,) = training.stepper.notes
    assert "kernel could not be compiled" in note
    assert compiler.split()[-1] in note
    assert len(trainer.finish(training)) == 2
