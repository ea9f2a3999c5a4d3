"""The ImageWoof protocol: schedule, training and tests, against PyTorch's own parts."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import numpy as np
import photograph_oracle
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from trainer import finish, train_network, training_of

from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import RequestError, UnknownNameError
from ddchallenge.records import DatasetSpec, LabeledImages
from ddchallenge.rules import PROTOCOLS, get_protocol
from ddchallenge.scoring import score
from ddchallenge.scoring.checkpoint import Checkpoints
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.fast import FastStepper
from ddchallenge.scoring.networks import NETWORKS, build_network, convnet
from ddchallenge.scoring.recipes import recipe_of
from ddchallenge.scoring.testing import confusion_matrix

PROTOCOL = PROTOCOLS["imagewoof"]
SIZE = 16
SPEC = DatasetSpec(
    name="dogs-16px-012345",
    class_ids=("a", "b", "c", "d"),
    class_names=("a", "b", "c", "d"),
    image_size=SIZE,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    training_images_per_class=10,
    test_images=40,
)


def images(n, seed=0, classes=4):
    """Smooth noise, each class around a grey of its own, none so near black or white that
    torchvision's clamping would come into it."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % classes
    noise = numbers.integers(0, 40, (n, 3, SIZE // 4, SIZE // 4), dtype=np.uint8)
    pixels = noise.repeat(4, 2).repeat(4, 3) + (60 + 10 * labels[:, None, None, None])
    return LabeledImages(pixels.astype(np.uint8), labels)


@pytest.fixture
def tiny(monkeypatch):
    """The protocol with a network of eight channels."""
    monkeypatch.setitem(NETWORKS, "tiny", partial(convnet, depth=2, width=8))
    return dataclasses.replace(PROTOCOL, network="tiny")


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("images_per_class", "epochs"),
    [(1, 3000), (2, 2000), (10, 2000), (11, 1500), (50, 1500), (51, 1000), (100, 1000),
     (200, 1000), (201, 500), (500, 500), (501, 300), (1300, 300)],
)  # fmt: skip
def test_epochs_go_by_images_a_class(images_per_class, epochs):
    """The numbers of the published code; one class more in the last round changes nothing, and a
    class without images counts with the others."""
    settled = PROTOCOL.for_images(10 * images_per_class, 10)
    assert (settled.epochs, settled.epochs_by_images) == (epochs, ())
    assert PROTOCOL.for_images(10 * images_per_class + 9, 10) == settled
    official = PROTOCOLS["eccv2024"]
    assert official.for_images(10 * images_per_class, 10) == official


def test_the_published_constants():
    """Rate, momentum, decay, batches, seeds and networks as Gu et al. have them."""
    assert (PROTOCOL.learning_rate, PROTOCOL.learning_rate_after_drop) == (0.01, 0.002)
    assert (PROTOCOL.momentum, PROTOCOL.weight_decay, PROTOCOL.batch_size) == (0.9, 5e-4, 64)
    assert PROTOCOL.seeds == (0, 1, 2)
    assert PROTOCOL.network == "ResNetAP-10"
    assert set(PROTOCOL.networks) == {"ConvNet-6", "ResNetAP-10", "ResNet-18"} < set(NETWORKS)


def test_every_network_is_a_protocol_of_its_own():
    """The id, which results are named after and ranked by, tells the networks apart."""
    ids = {name: get_protocol("imagewoof", name).id for name in PROTOCOL.networks}
    assert ids == {
        "ConvNet-6": "imagewoof-convnet-6",
        "ResNetAP-10": "imagewoof-resnetap-10",
        "ResNet-18": "imagewoof-resnet-18",
    }
    assert get_protocol("imagewoof") == get_protocol("imagewoof", "ResNetAP-10")
    assert get_protocol() == get_protocol("eccv2024", "ConvNetD3-W128") == PROTOCOLS["eccv2024"]


def test_wrong_names_list_the_choices():
    """No such protocol, no such network in it, and no choice of networks at all."""
    with pytest.raises(UnknownNameError, match="Did you mean 'imagewoof'"):
        get_protocol("image-woof")
    with pytest.raises(UnknownNameError, match="ConvNet-6, ResNet-18, ResNetAP-10"):
        get_protocol("imagewoof", "ConvNetD3-W128")
    with pytest.raises(RequestError, match=r"no choice\.\nLeave .* with --protocol imagewoof"):
        get_protocol("eccv2024", "ResNet-18")


# ---------------------------------------------------------------- the schedule


@pytest.mark.parametrize("epochs", [3000, 2000, 1500, 1000, 500, 300, 100, 7, 6, 5, 2, 1])
def test_the_rate_is_that_of_pytorchs_scheduler(epochs):
    """Pass for pass what MultiStepLR gives with the published milestones, also where they fall on
    one another."""
    recipe = recipe_of(PROTOCOL, epochs, SPEC)
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], PROTOCOL.learning_rate)
    milestones = [2 * epochs // 3, 5 * epochs // 6]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones, gamma=0.2)
    for index in range(epochs):
        assert recipe.learning_rate(index) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
        assert not recipe.restarts(index)
        sgd.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("epochs", "tests"), [(3000, 100), (2000, 100), (300, 100), (150, 150), (250, 125), (1, 1)]
)
def test_a_hundred_tests_the_last_after_the_last_pass(epochs, tests):
    """Every thirtieth of 3000 passes is tested, as published; never fewer than a hundred where
    there are so many passes."""
    recipe = recipe_of(PROTOCOL, epochs, SPEC)
    after = [index for index in range(epochs) if recipe.tests_after(index)]
    assert len(after) == tests
    assert after[-1] == epochs - 1
    assert not recipe_of(PROTOCOLS["eccv2024"], epochs, SPEC).tests_after(epochs)


# ---------------------------------------------------------------- training


def plain_training(data, network, epochs, seed):
    """The published loop with PyTorch's DataLoader, SGD and scheduler, torchvision's functions on
    one image after the other, CutMix in place and a weighted sum of two losses."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    torch.manual_seed(seed)
    network = build_network(network, image_size=SIZE, num_classes=4)
    loader = DataLoader(
        TensorDataset(torch.tensor(data.images), torch.tensor(data.labels)),
        batch_size=64,
        shuffle=True,
    )
    sgd = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    milestones = [2 * epochs // 3, 5 * epochs // 6]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones, gamma=0.2)
    losses = []
    for _ in range(epochs):
        for pixels, labels in loader:
            plain = photograph_oracle.Plain(len(labels), SIZE, torch.default_generator)
            batch = torch.stack([plain.apply(i, x) for i, x in enumerate(pixels / 255)])
            mixed, own = photograph_oracle.cutmix((batch - mean) / deviation, labels, plain)
            logits = network(mixed)
            loss = own * functional.cross_entropy(logits, labels) + (
                1 - own
            ) * functional.cross_entropy(logits, labels[plain.partners])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses.append(loss.item())
        scheduler.step()
    return network, losses


def test_training_is_the_published_loop(tiny):
    """Twelve passes of two batches, the second of six images, through both drops: every loss and
    weight is that of the plain loop from the same seed, up to the rounding of the grey."""
    data = images(70)
    network, losses = train_network(data, SPEC, tiny, epochs=12, seed=3)
    plain, plain_losses = plain_training(data, "tiny", 12, 3)
    assert losses == pytest.approx(plain_losses, rel=2e-3)
    assert losses[-1] < losses[0]
    for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["ResNetAP-10", "ResNet-18"])
def test_the_networks_train(name):
    """The loss of a first step on images of 16 px is the plain loop's; ConvNet-6 needs 64 px."""
    protocol = get_protocol("imagewoof", name)
    data = images(8)
    _, losses = train_network(data, SPEC, protocol, epochs=1, seed=0)
    assert losses == pytest.approx(plain_training(data, name, 1, 0)[1], rel=2e-3)


def test_float_images_train_as_their_pixels_do(tiny):
    """An optimised tensor in normalised space is augmented in the colours it stands for."""
    data = images(12)
    floats = LabeledImages(normalise(SPEC, data.images), data.labels)
    _, from_pixels = train_network(data, SPEC, tiny, epochs=3, seed=0)
    _, from_floats = train_network(floats, SPEC, tiny, epochs=3, seed=0)
    assert from_floats == pytest.approx(from_pixels, rel=1e-6)


# ---------------------------------------------------------------- the score


def test_the_last_test_is_the_score_and_the_best_stands_beside_it(tiny):
    """Of a test after every pass the score is the last, whatever came before; the best is the
    highest of all, which a network tested pass by pass confirms."""
    train, test = images(24), images(40, seed=1)
    (outcome,) = score(train, test, SPEC, tiny, epochs=9, seeds=[5], device="cpu")

    training = training_of(train, SPEC, tiny, epochs=9, seed=5)
    device_test = DeviceImages(test, SPEC, torch.device("cpu"))
    accuracies = []
    while not training.done:
        training.step()
        accuracies.append(confusion_matrix(training.network, device_test, 64).trace() / 40)
    assert len(accuracies) == 9
    assert outcome.run.accuracy == accuracies[-1]
    assert outcome.run.optimistic_best_accuracy == max(accuracies)
    assert outcome.run.correct == outcome.confusion.trace()


def test_the_number_of_epochs_follows_the_images(tiny):
    """Left to the protocol, it is that of the images a class: here two, of a table of three."""
    short = dataclasses.replace(tiny, epochs=4, epochs_by_images=((1, 3), (2, 2)))
    told = []
    score(images(8), images(8), SPEC, short, seeds=[0], device="cpu", on_progress=told.append)
    assert {status.epochs for status in told} == {2}


def test_a_run_that_was_broken_off_ends_as_if_it_had_not(tiny, tmp_path):
    """Stopped between two tests, gone on with from its checkpoint: the same losses to the bit,
    and the best test of both parts."""
    train, test = images(70), images(40, seed=1)
    score_it = partial(score, train, test, SPEC, tiny, epochs=6, seeds=[2], device="cpu")
    (whole,) = score_it()

    checkpoints = Checkpoints(tmp_path, {"what": "a test"})
    training = training_of(train, SPEC, tiny, epochs=6, seed=2)
    for _ in range(7):
        training.step()
    training.best_accuracy = 0.99  # as if an earlier pass had been that good
    checkpoints.save_state(2, training.state())
    (again,) = score_it(checkpoints=checkpoints)
    assert again.run.optimistic_best_accuracy == 0.99
    assert again.run.final_loss == whole.run.final_loss
    np.testing.assert_array_equal(again.confusion, whole.confusion)


def test_the_same_seed_is_the_same_run_whatever_the_global_generator(tiny):
    """Every number comes from the run's own generator, and the caller's is left alone."""
    data = images(12)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    losses = finish(training_of(data, SPEC, tiny, epochs=2, seed=7))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert finish(training_of(data, SPEC, tiny, epochs=2, seed=7)) == losses
    assert finish(training_of(data, SPEC, tiny, epochs=2, seed=8)) != losses


def test_what_cannot_be_scored_is_said(tiny):
    """No epochs, images too small for the network, and fast numerics, which do not know it."""
    data = images(8)
    with pytest.raises(RequestError, match="Expected 1 epochs or more, found 0"):
        score(data, data, SPEC, tiny, epochs=0, device="cpu")
    with pytest.raises(RequestError, match=r"ConvNet-6 .* 64 pixels, found 16\.$"):
        score(data, data, SPEC, get_protocol("imagewoof", "ConvNet-6"), epochs=1, device="cpu")
    with pytest.raises(RequestError, match="eccv2024 only"):
        training_of(data, SPEC, tiny, epochs=1, seed=0, stepper=FastStepper)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def ddchallenge(ddchallenge, monkeypatch, tmp_path):
    """The same, with a cache of its own."""
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "cache"))
    return ddchallenge


@pytest.fixture
def dogs(tmp_path):
    """Class folders of four classes, 16 px."""
    root = tmp_path / "dogs"
    for part, seed in (("train", 0), ("val", 1)):
        data = images(16, seed)
        for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            folder = root / part / SPEC.class_ids[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    return root


def test_class_folders_are_scored_by_another_juror(
    ddchallenge, dogs, tmp_path, monkeypatch, make_submission
):
    """`run` and `score` with --protocol and --network: the result names both, has the last and
    the best accuracy of every seed, says what it left out of the protocol, and is recorded under
    a name of its own."""
    monkeypatch.chdir(tmp_path)
    entry = make_submission(
        """
        import numpy as np
        class G:
            def setup(self, task):
                self.data = task.load_training_data()
            def generate(self, labels, seed):
                first = [np.flatnonzero(self.data.labels == label)[0] for label in labels]
                return np.array(self.data.images[first])
        """,
        datasets='["folder"]',
        needs_training_data="true",
    )
    data, judge = ["--dataset", f"folder:{dogs}"], ["--protocol", "imagewoof", "--epochs", "2"]
    run = ["run", "--track", "generative", *data, "--submission", entry.folder, *judge]
    out = tmp_path / "out"
    status, _, err = ddchallenge(*run, "--max-images", "8", "--out", out, "--record")
    assert status == 0, err
    result = json.loads((out / "result.json").read_text())
    assert result["protocol"]["id"] == "imagewoof-resnetap-10"
    assert result["protocol"]["epochs"] == 2
    assert [run["seed"] for run in result["runs"]] == [0, 1, 2]
    assert all(run["optimistic_best_accuracy"] >= run["accuracy"] for run in result["runs"])
    assert "unofficial: 2 of 2000 epochs" in result["marks"]

    other = ["--network", "ResNet-18", "--seeds", "0", "--out", tmp_path / "other", "--record"]
    status, _, err = ddchallenge("score", out, *data, *judge, *other)
    assert status == 0, err
    assert [path.name for path in sorted((entry.folder / "results").iterdir())] == [
        f"{result['dataset']}.imagewoof-resnet-18.json",
        f"{result['dataset']}.imagewoof-resnetap-10.json",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "woof"], "No protocol is called 'woof'. Did you mean 'imagewoof'?"),
        (["--protocol", "imagewoof", "--network", "ResNet-8"], "Did you mean 'ResNet-18'?"),
        (["--network", "ResNet-18"], "choose with --protocol imagewoof"),
        (["--protocol", "imagewoof", "--epochs", "0"], "300 to 3000, by images a class"),
        (
            ["--protocol", "imagewoof", "--network", "ConvNet-6"],
            "at least 64 pixels, found 16. Give one that takes such images: --network ResNetAP-10 "
            "or ResNet-18.",
        ),
    ],
)
def test_a_wrong_juror_is_refused_before_anything_is_started(ddchallenge, dogs, options, message):
    """Status 2 and the choices, before the ten minutes of a run."""
    data = ["--dataset", f"folder:{dogs}", "--submission", "real_subset"]
    status, out, err = ddchallenge("run", "--track", "generative", *data, *options)
    assert (status, out) == (2, "")
    assert message in " ".join(err.split())


def test_an_interrupted_score_names_the_juror(ddchallenge, dogs, tmp_path, monkeypatch):
    """What to type again has protocol, network, epochs and folders."""
    data = ["--dataset", f"folder:{dogs}"]
    out = tmp_path / "o"
    assert ddchallenge("sample", *data, "--max-images", "4", "--out", out)[0] == 0

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddchallenge.pipeline.score", interrupt)
    judge = ["--protocol", "imagewoof", "--network", "ResNet-18", "--epochs", "7"]
    status, _, err = ddchallenge("score", out, *data, *judge)
    assert status == 1
    again = "--image-size 16 --protocol imagewoof --network ResNet-18 --epochs 7"
    assert again in " ".join(err.split())
