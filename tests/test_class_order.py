"""Labels in another order of the classes are noticed, whatever the order, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from ddchallenge.audit import audit
from ddchallenge.class_order import class_order
from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.datasets.normalise import normalise
from ddchallenge.records import LabeledImages

SPEC = get_dataset("digits")
PER_CLASS = 12
# Every class under another's label.
OTHER = np.array([3, 7, 0, 9, 1, 8, 2, 5, 6, 4])


@pytest.fixture(scope="module")
def test_images():
    return load_split(SPEC, "test").data


def real(order=None, per_class=PER_CLASS) -> LabeledImages:
    """Training images, class-major; class c of them is really ``order[c]``."""
    data = load_split(SPEC, "train").data
    order = np.arange(10) if order is None else order
    chosen = [np.flatnonzero(data.labels == c)[:per_class] for c in order]
    images = np.asarray(data.images)[np.concatenate(chosen)]
    return LabeledImages(images, np.repeat(np.arange(10), per_class))


def codes(data, test) -> set[str]:
    return {finding.code for finding in audit(data, SPEC, test)}


def test_the_right_order_is_not_remarked_on(test_images):
    """Real images under their own labels agree, and nothing is said."""
    data = real()
    assert class_order(data, test_images, 10).as_labelled > 0.6
    assert "class-order" not in codes(data, test_images)


@pytest.mark.parametrize("dtype", ["pixels", "normalised"])
def test_another_order_is_found_and_named(test_images, dtype):
    """The audit says which class the images of the first wrong label look like."""
    data = real(OTHER)
    if dtype == "normalised":
        data = LabeledImages(normalise(SPEC, data.images), data.labels)
    found = class_order(data, test_images, 10)
    assert found.wrong
    assert found.looks_like == tuple(OTHER)
    assert found.as_labelled < 0.3 < 0.6 < found.rearranged
    (finding,) = [f for f in audit(data, SPEC, test_images) if f.code == "class-order"]
    assert finding.level == "warning"
    assert f"labelled {found.surest} look most like {OTHER[found.surest]}" in finding.text
    assert "another order than 0, 1, 2, ..." in finding.text


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("copies", [0, 5])
def test_images_that_look_like_nothing_are_no_order(test_images, seed, copies):
    """Noise is in no order, also where each image is followed by its copies."""
    rng = np.random.default_rng(seed)
    sampled = rng.integers(0, 256, (10, PER_CLASS, 3, 8, 8), dtype=np.uint8)
    images = np.repeat(sampled, 1 + copies, axis=1).reshape(-1, 3, 8, 8)
    data = LabeledImages(images, np.repeat(np.arange(10), PER_CLASS * (1 + copies)))
    assert not class_order(data, test_images, 10).wrong


def test_too_few_images_say_nothing(test_images):
    """Below nine a class, or without a class, nothing can be said."""
    assert class_order(real(per_class=8), test_images, 10) is None
    data = real()
    some = data.labels != 4
    assert class_order(LabeledImages(data.images[some], data.labels[some]), test_images, 10) is None
