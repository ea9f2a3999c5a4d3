"""Fast numerics against exact ones: the same training in other arithmetic."""

import dataclasses
import os
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import trainer

from ddchallenge.datasets import get_dataset
from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import RequestError
from ddchallenge.records import LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import fast, runs, score
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.exact import ExactStepper
from ddchallenge.scoring.fast import FastStepper, rows_at_a_time
from ddchallenge.scoring.networks import NETWORKS, convnet
from ddchallenge.scoring.recipes import recipe_of

PROTOCOL = PROTOCOLS["eccv2024"]
SPEC = get_dataset("digits")
CPU = torch.device("cpu")


def random_images(n, size=8, classes=10):
    numbers = np.random.default_rng(5)
    images = numbers.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    return LabeledImages(images, np.arange(n, dtype=np.int64) % classes)


@pytest.fixture
def tiny(monkeypatch):
    """A network of eight channels."""
    monkeypatch.setitem(NETWORKS, "tiny", partial(convnet, depth=2, width=8))
    return dataclasses.replace(PROTOCOL, network="tiny")


def uncompiled(network, train, recipe):
    return FastStepper(network, train, recipe, compiled=False)


@pytest.fixture
def in_float32(monkeypatch):
    """Fast numerics' way of going about it, without its rounding."""
    monkeypatch.setattr(fast, "arithmetic_of", lambda device: torch.float32)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("many", [1, 100], ids=["cut", "filled up"])
@pytest.mark.parametrize("n", [5, 64, 100, 270, 300])
@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_in_float32_every_loss_is_the_exact_one(tiny, n, form, many, monkeypatch):
    """Parts of a batch, images that fill one up, augmentation as one map, momentum that begins at
    zero, the restart: together they change nothing but the last bits, over passes before and after
    the drop of the rate, for batches shorter than a part, equal to it, and short last ones."""
    monkeypatch.setattr(fast, "MANY_PASSES", many)
    data = random_images(n)
    if form == "float32":
        data = LabeledImages(normalise(SPEC, data.images), data.labels)
    request = {"epochs": 7, "seed": 2}
    network, losses = trainer.train_network(data, SPEC, tiny, **request, stepper=uncompiled)
    exact, exact_losses = trainer.train_network(data, SPEC, tiny, **request)

    np.testing.assert_allclose(losses, exact_losses, rtol=2e-3)
    for mine, theirs in zip(network.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-2)


def test_the_compiled_step_follows_the_exact_one(tiny, tmp_path, monkeypatch):
    """Compiled, in the machine's own arithmetic: losses within a hundredth over eight passes. The
    weights stay float32."""
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path))
    data = random_images(300)
    request = {"epochs": 7, "seed": 2}
    network, losses = trainer.train_network(data, SPEC, tiny, **request, stepper=FastStepper)
    _, exact_losses = trainer.train_network(data, SPEC, tiny, **request)

    np.testing.assert_allclose(losses, exact_losses, rtol=1e-2)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_preparing_a_step_leaves_no_trace(tiny):
    """The trial that compiles is undone: weights and momentum are as before it."""
    training = trainer.training_of(random_images(40), SPEC, tiny, epochs=3, seed=0)
    recipe = recipe_of(tiny, 3, SPEC)
    train = DeviceImages(random_images(40), SPEC, CPU)
    stepper = uncompiled(training.network, train, recipe)
    before = [parameter.clone() for parameter in training.network.parameters()]
    stepper.begin_pass(
        recipe.order(40, training.generators), [recipe.draw(40, 8, training.generators)]
    )
    stepper.learn_at(0.1, restart=False)
    stepper._prepare(40)

    for parameter, kept in zip(training.network.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)
    assert not any(momentum.any() for momentum in stepper.momenta)


def test_a_compiler_that_fails_costs_speed_and_one_line(tiny, monkeypatch):
    """Compilation that raises, of the kernel and of the step: one note for all seeds, the run goes
    on uncompiled in float32 and ends with a score."""

    def no_compiler(*args):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin ...")

    def no_kernel():
        raise OSError("No such file or directory: 'g++'")

    monkeypatch.setattr(fast, "arithmetic_of", lambda device: torch.bfloat16)
    monkeypatch.setattr(fast, "build_kernel", no_kernel)
    monkeypatch.setattr(fast, "_compiled", lambda: no_compiler)
    monkeypatch.setattr(fast, "_broken", [])
    data = random_images(40)
    said = []
    outcomes = score(
        data,
        data,
        SPEC,
        tiny,
        epochs=2,
        seeds=[0, 1],
        device="cpu",
        numerics="fast",
        say=said.append,
    )

    assert [outcome.run.seed for outcome in outcomes] == [0, 1]
    line, again = said
    assert line == again  # score_bundle says it once
    assert "could not be compiled" in line
    assert "No working C++ compiler found" in line
    assert "float32" in line


def test_a_part_that_does_not_fit_is_halved(tiny, monkeypatch):
    """The device refuses more than twenty images at once: parts are halved until they fit, and
    the losses are those of the whole."""
    _, expected = trainer.train_network(
        random_images(100), SPEC, tiny, epochs=2, seed=0, stepper=uncompiled
    )
    plain = fast._loss

    def small_device(network, pixels, *rest):
        if len(pixels) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(network, pixels, *rest)

    monkeypatch.setattr(fast, "_loss", small_device)
    _, losses = trainer.train_network(
        random_images(100), SPEC, tiny, epochs=2, seed=0, stepper=uncompiled
    )
    np.testing.assert_allclose(losses, expected, rtol=2e-2)


def test_seeds_side_by_side_are_the_seeds_alone(tiny, monkeypatch):
    """Taking turns, as on a GPU, every seed ends with exactly the weights it has alone, since each
    draws from generators of its own."""
    monkeypatch.setattr(fast, "_compiled", lambda: fast._loss)
    train, test = random_images(300), random_images(90)
    request = {"epochs": 3, "seeds": [4, 5, 6], "device": "cpu", "numerics": "fast"}
    alone = score(train, test, SPEC, tiny, **request)
    monkeypatch.setattr(runs, "side_by_side", lambda numerics, device: True)
    seen = []
    together = score(train, test, SPEC, tiny, **request, on_progress=seen.append)

    for one, other in zip(alone, together, strict=True):
        assert dataclasses.replace(one.run, seconds=0) == dataclasses.replace(other.run, seconds=0)
        assert np.array_equal(one.confusion, other.confusion)
    assert seen[-1].fraction == 1


def test_how_many_images_go_through_at_once():
    """Full parts on a CPU, one where a little more than one would do, whole batches on CUDA."""
    assert [rows_at_a_time(n, CPU) for n in (1, 64, 100, 128, 129, 256)] == [
        64,
        64,
        100,
        128,
        64,
        64,
    ]
    assert rows_at_a_time(256, torch.device("cuda")) == 256


def test_fast_numerics_refuse_what_they_do_not_know():
    """A recipe that is not the challenge's is refused with the way out."""
    with pytest.raises(RequestError, match="--numerics exact"):
        FastStepper(None, None, object())


def test_exact_and_fast_steppers_are_the_two_in_the_table():
    """What the command line offers is what there is."""
    assert set(runs.STEPPERS.items()) == {("exact", ExactStepper), ("fast", FastStepper)}


def test_a_graph_is_captured_after_the_trial_and_replayed_for_every_batch(tiny, monkeypatch):
    """With CUDA's graphs played by a stand-in that records what is run under it: one capture for
    each size of batch, replays for every step, and the weights of a run without graphs."""
    captured, replayed = [], []

    class Graph:
        def replay(self):
            replayed.append(self.size)
            self.run(self.size)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    plain = FastStepper._captured

    def as_on_cuda(stepper, size):
        with monkeypatch.context() as patch:
            patch.setattr(DeviceImages, "device", torch.device("cuda"))
            replay = plain(stepper, size)
        graph = replay.__self__
        graph.run, graph.size = stepper._run, size
        captured.append(size)
        return replay

    request = {"epochs": 2, "seed": 0, "stepper": uncompiled}
    without, _ = trainer.train_network(random_images(300), SPEC, tiny, **request)
    monkeypatch.setattr(FastStepper, "_captured", as_on_cuda)
    network, _ = trainer.train_network(random_images(300), SPEC, tiny, **request)

    assert (captured, replayed) == ([256, 44], [256, 44] * 3)
    for mine, theirs in zip(network.parameters(), without.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["with space", "a file"])
def test_a_folder_the_compiler_cannot_use_is_not_given_to_it(tmp_path, monkeypatch, name):
    """Inductor does not quote its paths and needs a folder to write in: otherwise PyTorch's own
    place is used; a folder that will do is made and named."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "put back afterwards")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    place = tmp_path / name.replace(" ", "-" if name == "a file" else " ")
    if name == "a file":
        place.mkdir()
        (place / "compiled").write_text("")
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(place))
    fast._compiled.__wrapped__()
    assert str(tmp_path) not in os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "good"))
    fast._compiled.__wrapped__()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "good" / "compiled")
