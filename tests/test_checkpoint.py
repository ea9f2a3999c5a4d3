"""A run that is broken off goes on, to the bit; what cannot be trusted is set aside."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
import trainer
from safetensors.torch import load, save

import ddchallenge
from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.records import LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import recipes, runs, score
from ddchallenge.scoring.checkpoint import Checkpoints
from ddchallenge.scoring.fast import FastStepper
from ddchallenge.scoring.networks import NETWORKS, convnet

PROTOCOL = PROTOCOLS["eccv2024"]
SPEC = get_dataset("digits")
KEY = {"bundle": "a" * 64, "numerics": "exact"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """300 training images, more than one batch, and the test images."""
    cache = tmp_path_factory.mktemp("cache")
    train, test = (load_split(SPEC, split, None, cache).data for split in ("train", "test"))
    chosen = np.arange(0, 1200, 4)
    return LabeledImages(train.images[chosen], train.labels[chosen]), test


def weights(training):
    return torch.cat([parameter.detach().flatten() for parameter in training.network.parameters()])


def eager_fast(network, train, recipe):
    return FastStepper(network, train, recipe, compiled=False)


@pytest.fixture
def tiny(monkeypatch):
    """The protocol with a network of eight channels."""
    monkeypatch.setitem(NETWORKS, "tiny", partial(convnet, depth=2, width=8))
    return dataclasses.replace(PROTOCOL, network="tiny")


@pytest.mark.parametrize("stepper", [None, eager_fast], ids=["exact", "fast"])
@pytest.mark.parametrize("steps", [1, 2, 7, 9, 10, 11, 13])
def test_a_run_goes_on_to_the_bit_from_any_batch(digits, tmp_path, tiny, steps, stepper):
    """Left inside a pass, between passes, and before, at and after the new optimiser, through a
    file: the rest of the run gives the weights of one that was never left."""
    request = {"epochs": 7, "seed": 3} | ({"stepper": stepper} if stepper else {})
    whole = trainer.training_of(digits[0], SPEC, tiny, **request)
    trainer.finish(whole)
    left = trainer.training_of(digits[0], SPEC, tiny, **request)
    for _ in range(steps):
        left.step()
    store = Checkpoints(tmp_path, KEY)
    store.save_state(3, left.state())
    again = trainer.training_of(digits[0], SPEC, tiny, **request)
    again.restore(store.load(3))

    assert (again.index, again.batch) == (left.index, left.batch) == divmod(steps, 2)
    assert len(trainer.finish(again)) == 16 - steps
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(again.last_losses, whole.last_losses)
    assert again.seconds >= left.seconds > 0


def few(digits):
    """A training set a pass of which takes milliseconds."""
    return LabeledImages(digits[0].images[:40], digits[0].labels[:40])


def run(digits, folder, said=None, **request):
    request = {"epochs": 5, "seeds": [0, 1], "device": "cpu"} | request
    store = Checkpoints(folder, KEY, (said if said is not None else []).append)
    say = said.append if said is not None else print
    return score(few(digits), digits[1], SPEC, PROTOCOL, checkpoints=store, say=say, **request)


def plain(outcomes):
    return [
        (dataclasses.replace(outcome.run, seconds=0), outcome.confusion.tolist())
        for outcome in outcomes
    ]


def test_finished_seeds_are_not_trained_again(digits, tmp_path, monkeypatch):
    """The second time, outcomes come from the files, equal to the first; only a new seed is
    trained."""
    first = run(digits, tmp_path)
    monkeypatch.setattr(runs.Training, "step", None)
    said = []
    again = run(digits, tmp_path, said)

    assert plain(again) == plain(first)
    assert [line.partition(":")[0] for line in said] == [
        "Seed 0 was trained and tested before",
        "Seed 1 was trained and tested before",
    ]
    with pytest.raises(TypeError):
        run(digits, tmp_path, seeds=[0, 2])


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.records import LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import recipes, runs, score
from ddchallenge.scoring.checkpoint import Checkpoints

runs.CHECKPOINT_SECONDS = 0.05
spec = get_dataset("digits")
train, test = (load_split(spec, split).data for split in ("train", "test"))
chosen = np.arange(0, 1200, 4)[:40]
train = LabeledImages(train.images[chosen], train.labels[chosen])
store = Checkpoints(Path(sys.argv[1]), {"bundle": "a" * 64, "numerics": "exact"}, print)
(outcome,) = score(train, test, spec, PROTOCOLS["eccv2024"], epochs=150, seeds=[0], device="cpu",
                   checkpoints=store, say=lambda line: print(line, flush=True))
print(outcome.run.correct, outcome.run.final_loss)
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(folder, process):
    while not list(folder.glob("*.safetensors")):
        assert process.poll() is None, "it ended before there was a checkpoint"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_killed_run_goes_on_and_ends_with_the_same_score(tmp_path, number, terminal_signals):
    """Killed as soon as there is a checkpoint, the same call goes on from it and ends with the
    score and the loss of a run nobody disturbed."""
    undisturbed = start(tmp_path / "undisturbed").communicate()[0].split()
    folder = tmp_path / "killed"
    killed = start(folder)
    wait_for_checkpoint(folder, killed)
    killed.send_signal(number)
    killed.communicate()
    again = start(folder).communicate()[0].splitlines()

    assert killed.returncode != 0
    assert again[0].startswith("Seed 0 goes on from its checkpoint, after ")
    assert again[-1].split() == undisturbed


def state_file(digits, folder):
    """A checkpoint in the middle of seed 0."""
    training = trainer.training_of(few(digits), SPEC, PROTOCOL, epochs=5, seed=0)
    training.step()
    store = Checkpoints(folder, KEY)
    store.save_state(0, training.state())
    return store.path(0)


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    return data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]


def empty(data):
    return b""


def huge_header(data):
    return (2**62).to_bytes(8, "little") + data[8:]


def with_header(change):
    def changed(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["ddchallenge"])
        change(header)
        return save(load(data), {"ddchallenge": json.dumps(header)})

    return changed


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "damaged"),
        (flipped, "do not match its digest"),
        (empty, "damaged"),
        (huge_header, "damaged"),
        (lambda data: save({"a": torch.zeros(3)}), "damaged"),
        (with_header(lambda header: header.update(format=7)), "its format is 7"),
        (with_header(lambda header: header.update(made_by={})), "do not match its digest"),
        (with_header(lambda header: header.update(digest="0")), "do not match its digest"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_seed_starts_again(
    digits, tmp_path, damage, says
):
    """Whatever was done to the file: one message naming the seed and where the file went, and the
    score of a run from the beginning."""
    path = state_file(digits, tmp_path / "c")
    path.write_bytes(damage(path.read_bytes()))
    said = []
    outcomes = run(digits, tmp_path / "c", said)

    assert plain(outcomes) == plain(run(digits, tmp_path / "clean"))
    (line,) = said
    assert "checkpoint of seed 0 cannot be used" in line
    assert says in line
    assert path.with_suffix(".set-aside").is_file()


def test_another_version_s_checkpoint_starts_again(digits, tmp_path, monkeypatch):
    """Made by another version of this package, of its scoring code, or of PyTorch: said, and set
    aside."""
    state_file(digits, tmp_path)
    monkeypatch.setattr("ddchallenge.scoring.checkpoint._made_by", lambda: {"torch": "9"})
    said = []

    assert Checkpoints(tmp_path, KEY, said.append).load(0) is None
    assert f"made by ddchallenge {ddchallenge.__version__}, code" in said[0]
    assert "this is torch 9" in said[0]


def test_other_threads_and_processors_have_checkpoints_of_their_own(digits, tmp_path, monkeypatch):
    """With them the bits would differ: nothing is found, and what there was stays for whoever
    comes back to it."""
    path = state_file(digits, tmp_path)
    said = []
    with monkeypatch.context() as other:
        other.setattr(torch, "get_num_threads", lambda: 77)
        assert Checkpoints(tmp_path, KEY, said.append).load(0) is None
    with monkeypatch.context() as other:
        other.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
        assert Checkpoints(tmp_path, KEY, said.append).load(0) is None

    assert path.is_file()
    assert not said
    assert isinstance(Checkpoints(tmp_path, KEY).load(0), dict)


@pytest.mark.parametrize("forge", ["dtype", "shape", "seed", "count"])
def test_an_outcome_that_does_not_add_up_is_not_taken(digits, tmp_path, forge):
    """Counts of another type or form, another seed's run, a number of correct images that the
    counts do not have: set aside, though the file is whole."""
    outcome = run(digits, tmp_path / "c", seeds=[0])[0]
    confusion = outcome.confusion.copy()
    if forge == "dtype":
        confusion = confusion.astype(np.float32)
    elif forge == "shape":
        confusion = confusion.ravel()
    elif forge == "count":
        confusion[0, 0] += 1
    store = Checkpoints(tmp_path / "c", KEY, (said := []).append)
    store.save_outcome(dataclasses.replace(outcome, confusion=confusion))
    if forge == "seed":
        store = Checkpoints(tmp_path / "c", KEY, said.append)
        forged = dataclasses.replace(outcome, run=dataclasses.replace(outcome.run, seed=5))
        real = store.path
        store.path = lambda seed: real(0)
        store.save_outcome(forged)
        store.path = real

    assert store.load(0) is None
    assert "cannot be used" in said[0]


def test_a_foreign_checkpoint_under_the_right_name_is_not_trusted(digits, tmp_path):
    """A file copied over from another bundle's training is refused, and so is one whose tensors
    are of another network."""
    path = state_file(digits, tmp_path)
    said = []
    other = Checkpoints(tmp_path, KEY | {"bundle": "b" * 64}, said.append)
    path.replace(other.path(0))
    assert other.load(0) is None
    assert "of another training" in said[0]

    store = Checkpoints(tmp_path, KEY, said.append)
    store.save_state(0, {"place": torch.tensor([1, 0, 0])})
    assert plain(run(digits, tmp_path, said)) == plain(run(digits, tmp_path / "clean"))
    assert "does not fit" in said[1]


def test_what_a_checkpoint_is_found_by(tmp_path):
    """Every part of the key and the seed make another file; the folder does not matter to it."""
    store = Checkpoints(tmp_path, KEY)
    names = {
        store.path(0).name,
        store.path(1).name,
        Checkpoints(tmp_path, KEY | {"bundle": "b" * 64}).path(0).name,
        Checkpoints(tmp_path, KEY | {"numerics": "fast"}).path(0).name,
    }
    assert len(names) == 4
    assert Checkpoints(tmp_path / "elsewhere", dict(reversed(KEY.items()))).path(0).name in names


def test_a_place_that_cannot_be_written_costs_the_checkpoints_only(digits, tmp_path):
    """A file where the folder should be: said once, and the score is what it is."""
    (tmp_path / "taken").write_text("")
    said = []
    outcomes = run(digits, tmp_path / "taken" / "c", said)

    assert plain(outcomes) == plain(run(digits, tmp_path / "clean"))
    assert len([line for line in said if line.startswith("No checkpoints are kept")]) == 1


def test_what_nobody_came_back_for_is_deleted(digits, tmp_path):
    """Files of last year go when a checkpoint is written, those of last week stay."""
    for name, days in (("old.safetensors", 365), ("new.set-aside", 7)):
        (tmp_path / name).write_text("")
        then = time.time() - days * 24 * 3600
        os.utime(tmp_path / name, (then, then))
    path = state_file(digits, tmp_path)

    assert {file.name for file in tmp_path.iterdir()} == {"new.set-aside", path.name}


def test_nothing_in_a_checkpoint_is_unpickled(digits, tmp_path):
    """It is a safetensors file that anybody can open, with a header of JSON."""
    path = state_file(digits, tmp_path)
    names = set(load(path.read_bytes()))

    assert {"place", "generator.cpu", "network.0.weight", "momentum.0"} <= names
    assert "pickle" not in path.read_bytes()[:4096].decode("latin-1")


def test_an_interrupt_in_a_test_on_the_way_costs_neither_the_pass_nor_the_test(
    digits, tmp_path, tiny, monkeypatch
):
    """A recipe that tests after every pass, interrupted inside the second test: that pass is kept,
    its test still due, and the run ends with the best and the last accuracy of one nobody
    disturbed."""
    monkeypatch.setattr(recipes.Eccv2024, "tests_after", lambda recipe, index: True)
    request = {"epochs": 5, "seeds": [0], "device": "cpu"}
    whole = score(few(digits), digits[1], SPEC, tiny, **request)
    plain_test, tests = runs.confusion_matrix, []

    def interrupted(*args):
        tests.append(args)
        if len(tests) == 2:
            raise KeyboardInterrupt
        return plain_test(*args)

    store = Checkpoints(tmp_path, KEY)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "confusion_matrix", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score(few(digits), digits[1], SPEC, tiny, checkpoints=store, **request)
    kept = store.load(0)
    assert kept["place"].tolist() == [2, 0, 1]
    again = score(few(digits), digits[1], SPEC, tiny, checkpoints=store, **request)

    assert plain(again) == plain(whole)
    assert again[0].run.optimistic_best_accuracy >= again[0].run.accuracy
