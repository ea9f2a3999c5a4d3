import ctypes
import dataclasses
import math
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
import trainer
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import BundleError, RequestError, ScoringError, UnknownNameError
from ddchallenge.records import DatasetSpec, LabeledImages, SeedRun
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import recipes, resolve_device, runs, score
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.networks import NETWORKS, convnet
from ddchallenge.scoring.progress import ProgressReporter

PROTOCOL = PROTOCOLS["eccv2024"]
CPU = torch.device("cpu")


def spec_of(image_size, num_classes=10):
    names = tuple(f"class {i}" for i in range(num_classes))
    return DatasetSpec(
        name="test-set",
        class_ids=names,
        class_names=names,
        image_size=image_size,
        mean=(0.31, 0.32, 0.33),
        std=(0.27, 0.28, 0.29),
        training_images_per_class=100,
        test_images=100,
    )


SPEC = spec_of(8)


@pytest.fixture(scope="module")
def digits():
    """The 1797 real scans of scikit-learn as three equal channels."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return LabeledImages(np.repeat(pixels, 3, axis=1), labels.astype(np.int64))


def part(data, first, end):
    return LabeledImages(data.images[first:end], data.labels[first:end])


def random_images(n, size, num_classes):
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    return LabeledImages(images, np.arange(n, dtype=np.int64) % num_classes)


def tensors(data, spec):
    return torch.tensor(normalise(spec, data.images)), torch.tensor(data.labels)


@pytest.fixture
def tiny(monkeypatch):
    """The protocol with a network of two channels, for what is not about numbers."""
    monkeypatch.setitem(NETWORKS, "tiny", partial(convnet, depth=1, width=2))
    return dataclasses.replace(PROTOCOL, network="tiny")


@pytest.mark.parametrize(
    ("image_size", "n", "epochs", "seed"), [(8, 270, 7, 1), (32, 6, 11, 0), (8, 1, 2, 7)]
)
def test_training_is_bit_for_bit_the_oracle(digits, image_size, n, epochs, seed):
    """Every batch loss and every final weight equals what a DataLoader and plain loops give:
    several passes, more than one batch a pass with a short last one, through the new optimiser."""
    spec = spec_of(image_size)
    data = part(digits, 0, n) if image_size == 8 else random_images(n, image_size, 10)
    network, losses = trainer.train_network(data, spec, PROTOCOL, epochs=epochs, seed=seed)
    official, official_losses = oracle.train(*tensors(data, spec), 10, epochs, seed)

    assert len(losses) == (epochs + 1) * math.ceil(n / 256)
    assert losses == official_losses
    for mine, theirs in zip(network.parameters(), official.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_score_is_the_oracles_count(digits):
    """The accuracy of a run is the number of test images the oracle's network gets right, over
    their number; and a network trained on real digits knows more than chance."""
    train, test = part(digits, 0, 100), part(digits, 1200, 1797)
    (outcome,) = score(train, test, SPEC, PROTOCOL, epochs=60, seeds=[4], device="cpu")
    network, losses = oracle.train(*tensors(train, SPEC), 10, 60, 4)
    correct = oracle.correct(network, *tensors(test, SPEC))

    assert outcome.run == SeedRun(
        seed=4,
        accuracy=correct / 597,
        optimistic_best_accuracy=None,
        correct=correct,
        test_images=597,
        final_loss=losses[-1],
        seconds=outcome.run.seconds,
    )
    assert correct > 2 * 597 / 10
    assert outcome.run.seconds > 0


@pytest.mark.parametrize("n", [1, 5, 256, 600])
def test_an_epoch_draws_what_a_dataloader_draws(n):
    """Order of the images and state of the generator agree with a real DataLoader over several
    epochs, with random numbers drawn between the batches as augmentation does."""
    torch.manual_seed(9)
    official, states = [], []
    loader = DataLoader(range(n), batch_size=256, shuffle=True)
    for _ in range(3):
        for batch in loader:
            official.append(batch)
            states.append(torch.rand(len(batch)))
    torch.manual_seed(9)
    for _ in range(3):
        for batch in recipes.epoch_order(n, torch.default_generator).split(256):
            assert torch.equal(batch, official.pop(0))
            assert torch.equal(torch.rand(len(batch)), states.pop(0))
    assert not official


def test_1001_passes_of_which_502_at_the_high_rate(monkeypatch, tiny):
    """An Epoch of 1000 means 502 passes at 0.01 and 499 at 0.001, by two optimisers of which the
    second starts without momentum."""
    steps = Counter()

    class Spy(torch.optim.SGD):
        def step(self, *args, **kwargs):
            group = self.param_groups[0]
            if steps[group["lr"]] == 0:
                assert not self.state
            steps[group["lr"]] += 1
            assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "SGD", Spy)
    losses = trainer.train_network(random_images(2, 8, 2), SPEC, tiny, epochs=1000, seed=0)[1]

    assert list(steps.items()) == [(0.01, 502), (0.001, 499)]
    assert len(losses) == 1001


def test_uint8_batches_are_normalised_to_the_bit():
    """Looking levels up batch by batch gives what normalising everything beforehand gives, by
    index and by slice; float32 images come through as they are; labels stay with their images."""
    data = random_images(50, 8, 10)
    whole = normalise(SPEC, data.images)
    index = torch.tensor([7, 0, 49, 7])
    for given in (data, LabeledImages(whole, data.labels)):
        batches = DeviceImages(given, SPEC, CPU)
        for chosen in (index, slice(32, 64)):
            images, labels = batches.batch(chosen)
            assert images.dtype == torch.float32
            assert np.array_equal(images.numpy(), whole[chosen])
            assert np.array_equal(labels.numpy(), data.labels[chosen])


def test_float32_and_uint8_forms_of_a_set_score_alike(digits):
    """A bundle of normalised floats, read-only as a mapped file is, gets the very run its pixels
    get."""
    pixels, test = part(digits, 0, 60), part(digits, 1700, 1797)
    images = normalise(SPEC, pixels.images)
    images.flags.writeable = False
    floats = LabeledImages(images, pixels.labels)
    one, other = (
        score(train, test, SPEC, PROTOCOL, epochs=3, seeds=[0], device="cpu")[0].run
        for train in (pixels, floats)
    )

    assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)


def test_a_seed_gives_the_same_run_whatever_came_before(digits):
    """A run depends on its seed alone, not on the seeds before it or the caller's random state,
    which comes back as it was."""
    train, test = part(digits, 0, 60), part(digits, 1700, 1797)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    together = score(train, test, SPEC, PROTOCOL, epochs=3, seeds=[5, 6], device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(10)
    (alone,) = score(train, test, SPEC, PROTOCOL, epochs=3, seeds=[6], device="cpu")
    five, six = (outcome.run for outcome in together)

    assert (five.seed, six.seed) == (5, 6)
    assert dataclasses.replace(six, seconds=0) == dataclasses.replace(alone.run, seconds=0)
    assert five.final_loss != six.final_loss
    assert np.array_equal(together[1].confusion, alone.confusion)


def test_training_is_deterministic_and_the_callers_settings_come_back(monkeypatch, tiny):
    """While a network trains cuDNN may only use repeatable algorithms; afterwards, and where the
    run is broken off, it may do again what the caller allowed it."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", False)
    monkeypatch.setattr(cudnn, "benchmark", True)
    data = random_images(4, 8, 10)
    during = []

    def interrupt(status):
        during.append((cudnn.deterministic, cudnn.benchmark))
        if status.epochs == 3:
            raise KeyboardInterrupt

    for epochs in (0, 2):
        request = {"epochs": epochs, "seeds": [0], "device": "cpu", "on_progress": interrupt}
        with pytest.raises(KeyboardInterrupt) if epochs else nullcontext():
            score(data, data, SPEC, tiny, **request)
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    assert set(during) == {(True, False)}


def test_the_protocol_says_epochs_and_seeds_by_default(tiny):
    """Without epochs and seeds a score is what the protocol fixes."""
    protocol = dataclasses.replace(tiny, epochs=4, seeds=(3, 1))
    seen = []
    data = random_images(4, 8, 10)
    outcomes = score(data, data, SPEC, protocol, device="cpu", on_progress=seen.append)

    assert [outcome.run.seed for outcome in outcomes] == [3, 1]
    assert seen[-1].epochs == 5


def test_training_that_diverges_is_still_a_result(digits):
    """With an absurd learning rate the loss is no longer a number; the run ends all the same and
    says so, with the accuracy the network has."""
    wild = dataclasses.replace(PROTOCOL, learning_rate=1e30, learning_rate_after_drop=1e30)
    train, test = part(digits, 0, 20), part(digits, 100, 150)
    (outcome,) = score(train, test, SPEC, wild, epochs=4, seeds=[0], device="cpu")
    run = outcome.run

    assert run.final_loss is None
    assert run.accuracy == run.correct / 50
    assert run.accuracy <= 0.3


def test_the_last_loss_is_the_mean_over_the_batches_of_the_last_pass(digits):
    """With two batches a pass, ``final_loss`` is their mean and not the last one's."""
    train = part(digits, 0, 300)
    (outcome,) = score(train, train, SPEC, PROTOCOL, epochs=1, seeds=[0], device="cpu")
    _, losses = oracle.train(*tensors(train, SPEC), 10, 1, 0)

    assert outcome.run.final_loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"epochs": -1}, RequestError, "0 epochs or more, found -1"),
        ({"seeds": []}, RequestError, "at least one seed"),
        ({"seeds": [1, -2]}, RequestError, "found -2"),
        ({"seeds": [2**63]}, RequestError, "found 9223372036854775808"),
        ({"seeds": [1, 2, 1]}, RequestError, "different seeds, found 1, 2, 1"),
        ({"device": "gpu"}, UnknownNameError, "'gpu'"),
        ({"train": random_images(0, 8, 10)}, BundleError, "training set holds no images"),
        ({"test": random_images(0, 8, 10)}, RequestError, "test set holds no images"),
        ({"train": random_images(4, 32, 10)}, BundleError, "32 pixels wide; test-set has 8"),
        ({"test": random_images(4, 16, 10)}, RequestError, "16 pixels wide; test-set has 8"),
        ({"train": random_images(20, 8, 11)}, BundleError, "label 10; test-set has the labels"),
        ({"test": random_images(20, 8, 12)}, RequestError, "label 11; test-set has the labels"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_trained(
    monkeypatch, changes, error, says
):
    """Wrong epochs, seeds, devices and sets are named with what was expected; nothing is begun."""
    monkeypatch.setattr(runs, "train_and_test", None)
    data = random_images(20, 8, 10)
    request = {"train": data, "test": data, "seeds": [0], "epochs": 1, "device": "cpu"} | changes

    with pytest.raises(error, match=says):
        score(spec=SPEC, protocol=PROTOCOL, **request)


def test_devices(monkeypatch):
    """auto takes CUDA where there is one; a CUDA device that is not there is refused with advice;
    a device of another name lists the choices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda") == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(RequestError, match="'cuda:2' was asked for, but PyTorch finds 2"):
        resolve_device("cuda:2")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cpu") == "cpu"
    for name in ("cuda", "cuda:0"):
        with pytest.raises(RequestError, match="finds 0 CUDA devices"):
            resolve_device(name)
    for name in ("cuda:", "cuda:x", "cpu:0", "mps"):
        with pytest.raises(UnknownNameError, match="auto, cpu, cuda"):
            resolve_device(name)


def full_main_memory():
    torch.empty(2**58, dtype=torch.uint8)  # PyTorch's own complaint: more than can be addressed


def full_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize(
    ("fill", "wanted"), [(full_main_memory, f"{2**58} bytes"), (full_gpu, "20.00 MiB")]
)
def test_memory_running_out_is_an_error_with_advice(monkeypatch, fill, wanted):
    """The allocator's complaint becomes a ScoringError that says what was being trained on and
    how much more was wanted."""
    monkeypatch.setattr(runs, "train_and_test", lambda *args, **kwargs: fill())
    data = random_images(20, 8, 10)

    with pytest.raises(ScoringError, match=f"20 images of 8×8; {wanted} more were wanted"):
        score(data, data, SPEC, PROTOCOL, epochs=1, device="cpu")


def test_other_failures_are_not_taken_for_full_memory(monkeypatch):
    """A programming error in training comes through as itself."""

    def broken(*args, **kwargs):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(runs, "train_and_test", broken)
    data = random_images(20, 8, 10)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        score(data, data, SPEC, PROTOCOL, epochs=1, device="cpu")


def test_progress_counts_seeds_and_passes(digits):
    """The display learns of each seed's start and last pass; losses are those of the passes, time
    left falls to nothing, and what it is told never goes backwards."""
    train = part(digits, 0, 40)
    seen = []
    score(
        train, train, SPEC, PROTOCOL, epochs=2, seeds=[7, 8], device="cpu", on_progress=seen.append
    )
    told = {(status.seed, status.seeds_done, status.epoch): status for status in seen}
    _, losses = oracle.train(*tensors(train, SPEC), 10, 2, 8)

    assert {(7, 0, 0), (7, 0, 3), (8, 1, 0), (8, 1, 3)} <= told.keys()
    assert {(status.seeds, status.epochs) for status in seen} == {(2, 3)}
    assert told[8, 1, 3].loss == losses[-1]
    assert told[8, 1, 3].activity == "testing"
    assert (told[8, 1, 3].remaining_seconds, told[8, 1, 3].fraction) == (0, 1)
    assert told[7, 0, 0].remaining_seconds is None
    assert told[7, 0, 0].loss is None
    places = [(status.seeds_done, status.epoch, status.elapsed_seconds) for status in seen]
    assert places == sorted(places)


class Stood:
    """A training that stands somewhere; it counts how often its losses are waited for."""

    def __init__(self, seed, steps_done, batches, passes):
        self.seed = seed
        self.steps_done = steps_done
        self.batches = batches
        self.steps = passes * batches
        self.recipe = SimpleNamespace(passes=passes)
        self.read = 0

    index = property(lambda self: self.steps_done // self.batches)
    batch = property(lambda self: self.steps_done % self.batches)

    def mean_loss(self):
        self.read += 1
        return 2.5


def test_progress_is_told_and_read_five_times_a_second_at_most():
    """A thousand steps of a hundredth of a second are fifty reports and as many waits for the
    device; time left is by what the steps took, not by the minute of compilation before them."""
    now = [100.0]
    seen = []
    reporter = ProgressReporter(seen.append, seeds=2, done=0, clock=lambda: now[0])
    training = Stood(0, 1, 1, 1001)
    now[0] += 60
    for _ in range(1000):
        now[0] += 0.01
        training.steps_done += 1
        reporter.stepped([training], 0.01)

    assert 45 <= training.read <= 51
    assert len(seen) == training.read
    assert seen[-1].epoch > 970
    assert seen[-1].elapsed_seconds == pytest.approx(70, abs=0.3)
    assert seen[-1].remaining_seconds == pytest.approx(10, abs=0.3)
    assert seen[-1].loss == 2.5


def test_progress_moves_inside_a_long_pass():
    """A pass of a minute a batch shows its batches, and time left before it has ended; what an
    earlier run had done counts as done, but not for the rate."""
    now = [0.0]
    seen = []
    reporter = ProgressReporter(seen.append, seeds=3, done=1, clock=lambda: now[0])
    training = Stood(5, 4, 4, 2)
    for _ in range(3):
        now[0] += 60
        training.steps_done += 1
        reporter.stepped([training], 60)
    assert [(s.seeds_done, s.epoch, s.batch, s.batches, s.remaining_seconds) for s in seen] == [
        (1, 1, 1, 4, pytest.approx(11 * 60)),
        (1, 1, 2, 4, pytest.approx(10 * 60)),
        (1, 1, 3, 4, pytest.approx(9 * 60)),
    ]
    assert seen[-1].fraction == pytest.approx(15 / 24)


def test_progress_of_seeds_side_by_side_is_that_of_the_last():
    """Three at once: what is shown is the one furthest behind, what is done is all of them."""
    seen = []
    reporter = ProgressReporter(seen.append, seeds=3, done=0)
    reporter.report([Stood(7, 6, 4, 2), Stood(8, 5, 4, 2), Stood(9, 6, 4, 2)], "training")

    assert (seen[0].seed, seen[0].epoch, seen[0].batch) == (8, 1, 1)
    assert seen[0].fraction == pytest.approx(17 / 24)


def test_time_left_of_seeds_side_by_side_is_by_their_rounds():
    """Three steps in three seconds, seven of twenty-four left: seven seconds."""
    seen = []
    now = [10.0]
    reporter = ProgressReporter(seen.append, seeds=3, done=0, clock=lambda: now[0])
    reporter.stepped([Stood(7, 6, 4, 2), Stood(8, 5, 4, 2), Stood(9, 6, 4, 2)], 3.0)

    assert seen[0].remaining_seconds == pytest.approx(7)


MEMORY_PROGRAM = """
import resource
from pathlib import Path
from ddchallenge.scoring.memory import freed_memory_kept

BLOCK = 2**26
pages = BLOCK // resource.getpagesize()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) / pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * BLOCK
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages

before = resident()
with freed_memory_kept():
    kept = faults()
    held = resident() - before
print(kept, held, resident() - before, faults())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="only glibc has mallopt",
)
def test_freed_memory_is_kept_while_training_and_given_back_after():
    """Twenty blocks of 64 MiB, one after another, cost one block's page faults where freed memory
    is kept, twenty blocks' afterwards; the process holds the block meanwhile and no longer."""
    found = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, check=True
    )
    kept, held, held_after, not_kept = map(float, found.stdout.split())

    assert kept == pytest.approx(1, abs=0.1)
    assert held == pytest.approx(1, abs=0.1)
    assert held_after == pytest.approx(0, abs=0.1)
    assert not_kept > 10


def test_importing_the_package_is_cheap():
    """``ddchallenge --help`` imports this package: PyTorch and NumPy must not come with it."""
    program = (
        "import sys, ddchallenge.scoring; print({'torch', 'numpy', 'sklearn'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (found.stdout.strip(), found.returncode) == ("set()", 0), found.stderr
