"""The audit finds what was planted, and nothing where nothing is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_data import SHAPES as SPEC

from ddchallenge.audit import audit
from ddchallenge.datasets.normalise import normalise
from ddchallenge.records import LabeledImages


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def found(images, labels=None):
    labels = np.arange(len(images)) % 3 if labels is None else np.array(labels)
    return {one.code: (one.level, one.text) for one in audit(LabeledImages(images, labels), SPEC)}


@pytest.mark.parametrize("count", [3000, 3001])
def test_sound_images_have_no_findings(count):
    """Different colour images, balanced to within one a class, in either dtype."""
    images = noise(count)
    assert found(images) == {}
    assert found(normalise(SPEC, images)) == {}


def test_classes_without_images_are_named():
    """A class that never occurs cannot be learnt; it is called by its readable name."""
    assert found(noise(4), [0, 2, 2, 0]) == {
        "empty-classes": ("warning", "1 of 3 classes have no image: square")
    }


def test_unbalanced_classes_are_mentioned():
    """More than one image of difference between classes is worth knowing."""
    assert found(noise(5), [0, 0, 0, 1, 2]) == {
        "unbalanced": ("info", "the classes are unbalanced: 1 to 3 images a class")
    }


@pytest.mark.parametrize("as_floats", [False, True])
def test_copies_are_counted_across_the_whole_bundle(as_floats):
    """Exact copies are found however far apart, and those under two labels are told apart."""
    images = noise(3000)
    images[2999] = images[2]  # both of class 2
    images[1500] = images[2]  # class 0
    images[2001::3] = images[0]  # all of class 0
    images = normalise(SPEC, images) if as_floats else images
    assert found(images) == {
        "copies": (
            "warning",
            "335 of 3,000 images are exact copies of another one, "
            "the first is image 2001, a copy of image 0",
        ),
        "contradictory-copies": (
            "warning",
            "1 different images stand under more than one label each, "
            "the first under circle and triangle",
        ),
    }


def test_a_few_copies_are_nothing():
    """One image in a hundred may come twice: pda5 itself leaves 2 in 1000 as they are."""
    images = noise(300)
    images[3:12:3] = images[0]
    assert found(images) == {}
    images[12] = images[0]
    assert set(found(images)) == {"copies"}


def test_test_images_are_recognised():
    """Images of the test set among the training images are an error, in the same form only."""
    images, test = noise(30), noise(9, seed=1)
    images[7] = test[3]
    labels = np.arange(30) % 3
    secret = LabeledImages(test, np.arange(9) % 3)
    (finding,) = audit(LabeledImages(images, labels), SPEC, secret)
    assert (finding.level, finding.code) == ("error", "test-images")
    assert finding.text.startswith("1 of 30 images are test images of shapes")
    assert audit(LabeledImages(noise(30), labels), SPEC, secret) == ()


def test_blank_images_are_found():
    """An image of one colour is blank, whatever the colour; one odd pixel saves it."""
    images = noise(3000)
    images[[5, 2500]] = np.array([1, 2, 3], np.uint8)[:, None, None]
    images[2500, 0] = 9
    images[7] = 50
    images[7, 1, 4, 4] = 51
    assert found(images) == {
        "blank": ("warning", "2 of 3,000 images are of one colour only, first image 5")
    }


def test_grey_images_of_a_colour_dataset_are_found():
    """Mostly equal channels are a mistake where the dataset is in colour, not where it is grey."""
    images = noise(30)[:, :1].repeat(3, axis=1)
    images[:10] = noise(10)
    assert found(images) == {
        "grey": ("warning", "20 of 30 images are grey, and shapes is in colour")
    }
    images[10:15] = noise(5, seed=1)
    assert found(images) == {}


def test_floats_made_uint8_without_scaling_are_an_error():
    """Values 0..1 cast to uint8 leave pixels of 0 and 1: the score would mean nothing."""
    images = (noise(30) > 127).astype(np.uint8)
    assert found(images)["dark"][0] == "error"
    images[0, 0, 0, 0] = 2
    assert "dark" not in found(images)


def test_class_folders_may_be_grey():
    """Whether class folders are in colour nobody has said, so grey ones are no mistake."""
    images = noise(30)
    images[:, 1:] = images[:, :1]
    data = LabeledImages(images, np.arange(30) % 3)
    assert audit(data, SPEC)
    assert audit(data, replace(SPEC, folder=Path("anywhere"))) == ()
