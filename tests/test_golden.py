"""The official code's own numbers, on the challenge's own images.

The images are not in the repository: DDCHALLENGE_DATA names the folder that holds ``cifar-100``
(class folders) and ``tiny-imagenet-200`` (the official layout).
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import trainer
from PIL import Image

from ddchallenge.records import DatasetSpec, LabeledImages
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.memory import freed_memory_kept
from ddchallenge.scoring.testing import confusion_matrix

GOLDEN = json.loads((Path(__file__).parent / "golden" / "official_traces.json").read_text())


def read(files):
    """Labelled images from (file, label) pairs."""
    images = []
    for file, _ in files:
        with Image.open(file) as image:
            images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    return LabeledImages(np.stack(images), np.array([label for _, label in files], dtype=np.int64))


def spec_of(name, classes, image_size, mean, std, test_images):
    return DatasetSpec(
        name=name,
        class_ids=tuple(classes),
        class_names=tuple(classes),
        image_size=image_size,
        mean=mean,
        std=std,
        training_images_per_class=500,
        test_images=test_images,
    )


def cifar100(root, ipc):
    classes = sorted(folder.name for folder in (root / "train").iterdir())
    train, test = (
        [
            (file, label)
            for label, name in enumerate(classes)
            for file in sorted((root / split / name).iterdir())[:count]
        ]
        for split, count in (("train", ipc), ("test", 5))
    )
    mean, std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    return read(train), read(test), spec_of("cifar100", classes, 32, mean, std, len(test))


def tinyimagenet(root, ipc):
    classes = sorted((root / "wnids.txt").read_text().split())
    train = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / "train" / name / "images").iterdir())[:ipc]
    ]
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()[:1000]
    test = [
        (root / "val" / "images" / line.split("\t")[0], classes.index(line.split("\t")[1]))
        for line in lines
    ]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return read(train), read(test), spec_of("tinyimagenet", classes, 64, mean, std, len(test))


LOADERS = {
    "cifar100": ("cifar-100", cifar100),
    "tinyimagenet": ("tiny-imagenet-200", tinyimagenet),
}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(GOLDEN["threads"])
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("trace", GOLDEN["traces"], ids=lambda trace: trace["dataset"])
def test_training_follows_the_official_code(trace):
    """Every batch loss of the official run to 1e-4 relative, and its number of correct test images
    to two. Where the traces were made (AMD EPYC, torch 2.15, two threads) both are equal."""
    folder, load = LOADERS[trace["dataset"]]
    data = os.environ.get("DDCHALLENGE_DATA")
    if not data:
        pytest.skip("DDCHALLENGE_DATA is not set: the real images are needed")
    if not (Path(data) / folder / "train").is_dir():
        pytest.skip(f"DDCHALLENGE_DATA holds no {folder}/train")
    train, test, spec = load(Path(data) / folder, trace["ipc"])
    device = torch.device("cpu")

    with freed_memory_kept():
        network, losses = trainer.train_network(
            train,
            spec,
            PROTOCOLS["eccv2024"],
            epochs=trace["epochs_argument"],
            seed=trace["seed"],
        )
        correct = confusion_matrix(network, DeviceImages(test, spec, device), 256).trace()

    np.testing.assert_allclose(losses, trace["train_losses"], rtol=1e-4)
    assert len(test) == trace["test_images"]
    assert abs(correct - trace["correct"]) <= 2
