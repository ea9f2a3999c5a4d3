"""The augmentation of photographs and CutMix, against torchvision and plain loops."""

from __future__ import annotations

import math

import numpy as np
import photograph_oracle
import pytest
import torch
from photograph_oracle import LIGHT_VALUES, LIGHT_VECTORS, Plain
from torch.nn import functional
from torchvision.transforms import RandomResizedCrop

from ddchallenge.scoring.photographs import ROWS, augment, cutmix, draw

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "size"), [(40, 32), (12, 65), (3, 224)])
def test_every_image_is_what_torchvision_makes_of_it(n, size):
    """Crop, flip, the three changes of colour in their drawn order and the light, image by image;
    to 2e-4, for torchvision's grey has 0.2989 for the 0.299 of the published code."""
    plain = Plain(n, size, generator(5))
    images = 0.3 + 0.25 * torch.rand(n, 3, size, size, generator=generator(1))
    images[:, :, : size // 2] += 0.1
    numbers = draw(n, size, generator(5))
    found = augment((images - MEAN) / DEVIATION, numbers, MEAN, DEVIATION) * DEVIATION + MEAN

    assert len(set(plain.crops)) > 1
    assert len(set(plain.flips)) == 2
    assert n < 40 or len({tuple(order) for order in plain.orders}) == 6
    for i in range(n):
        torch.testing.assert_close(found[i], plain.apply(i, images[i]), rtol=0, atol=2e-4)


def test_numbers_come_from_the_given_generator_in_the_documented_order():
    """The plain loop and `draw` leave the generator in the same state, batch after batch, and the
    global one is left alone."""
    ours, theirs = generator(3), generator(3)
    before = torch.get_rng_state()
    for n, size in [(64, 224), (1, 16), (36, 64)]:
        numbers = draw(n, size, ours)
        plain = Plain(n, size, theirs)
        assert numbers.shape == (ROWS, n)
        assert numbers.dtype == torch.float32
        assert torch.equal(ours.get_state(), theirs.get_state())
        assert numbers[:4].T.int().tolist() == [list(crop) for crop in plain.crops]
        assert numbers[11].int().tolist() == plain.partners
    assert torch.equal(before, torch.get_rng_state())


def test_crops_are_as_torchvisions_are():
    """Area, aspect and place have the distribution of torchvision's RandomResizedCrop: means and
    deviations of 20000 crops each differ by less than five standard errors."""
    n, size = 20_000, 64
    ours = draw(n, size, generator())[:4].T.numpy()
    torch.manual_seed(0)
    image = torch.empty(3, size, size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.5, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]
    )

    def features(crops):
        top, left, height, width = crops.T
        return np.stack([height * width, height / width, top, left, top * left, height], axis=1)

    for a, b in zip(features(ours).T, features(theirs).T, strict=True):
        for moment in (lambda x: x, lambda x: (x - x.mean()) ** 2):
            x, y = moment(a), moment(b)
            error = math.hypot(x.std(), y.std()) / math.sqrt(n)
            assert abs(x.mean() - y.mean()) < 5 * error


def test_colours_are_changed_by_hand_worked_numbers():
    """One red and one white pixel; three quarters, worked out on paper: grey of red is 0.299, the
    mean grey 0.6495. Darker by 0.4; to the mean by 0.4; away from grey by 0.4, where white is grey
    and stays. And white made brighter by 0.4 is 1.4: nothing is clamped."""
    image = torch.ones(1, 3, 1, 2)
    image[0, 1:, 0, 0] = 0

    def coloured(own, grey, mean):
        numbers = torch.zeros(ROWS, 1)
        numbers[2:4] = 2
        numbers[5:8, 0] = torch.tensor([own, grey, mean])
        # The size is 2: a row of red and white, and one more of the same.
        out = augment(image.expand(1, 3, 2, 2).contiguous(), numbers, ZERO, ONE)
        return [round(value, 4) for value in out[0, :, 0].T.flatten().tolist()]

    assert coloured(0.6, 0, 0) == [0.6, 0, 0, 0.6, 0.6, 0.6]
    assert coloured(0.6, 0, 0.4) == [0.8598, 0.2598, 0.2598, 0.8598, 0.8598, 0.8598]
    assert coloured(1.4, -0.4, 0) == [1.2804, -0.1196, -0.1196, 1, 1, 1]
    assert coloured(1.4, 0, 0) == [1.4, 0, 0, 1.4, 1.4, 1.4]


ZERO, ONE = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)


def test_three_steps_are_one():
    """Brightness, contrast and saturation after one another, in each of the six orders, are the
    one mixture that `draw` works out."""
    n = 200
    images = torch.rand(n, 3, 6, 6, dtype=torch.float64, generator=generator(1))
    numbers = draw(n, 6, generator(8)).double()
    plain = Plain(n, 6, generator(8))
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    for i, image in enumerate(images):
        grey = (image * weights).sum(0, keepdim=True)
        found = numbers[5, i] * image + numbers[6, i] * grey + numbers[7, i] * grey.mean()
        for kind in plain.orders[i]:
            grey = (image * weights).sum(0, keepdim=True)
            target = [torch.zeros(()), grey.mean(), grey][kind]
            image = image + plain.strengths[i][kind] * (target - image)
        torch.testing.assert_close(found, image, rtol=0, atol=1e-6)


def test_an_image_that_nothing_happens_to_stays_as_it_is():
    """The whole image, no flip, its own colours: within rounding; mirrored: exactly reversed."""
    images = torch.randn(2, 3, 20, 20)
    numbers = torch.zeros(ROWS, 2)
    numbers[2:4] = 20
    numbers[5] = 1
    numbers[4, 1] = 1
    found = augment(images, numbers, MEAN, DEVIATION)
    torch.testing.assert_close(found[0], images[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], images[1].flip(2), rtol=0, atol=1e-5)


def test_light_has_the_deviations_of_imagenets_colours():
    """A tenth of the published components: its covariance over 50000 images is theirs."""
    light = draw(50_000, 16, generator())[8:11].double()
    vectors, values = (torch.tensor(x, dtype=torch.float64) for x in (LIGHT_VECTORS, LIGHT_VALUES))
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(torch.cov(light), expected, rtol=0.03, atol=1e-6)


# ---------------------------------------------------------------- CutMix


@pytest.mark.parametrize("seed", range(12))
def test_cutmix_is_the_published_one(seed):
    """Images, and the loss: that of both labels weighted by their share of the area, which is the
    cross-entropy of the probabilities. Odd rectangles lose a row and a column, as published."""
    n, size, classes = 9, 21, 4
    images, labels = torch.randn(n, 3, size, size), torch.arange(n) % classes
    numbers, plain = draw(n, size, generator(seed)), Plain(n, size, generator(seed))
    mixed, targets = cutmix(images, labels, numbers, classes)
    expected, own = photograph_oracle.cutmix(images, labels, plain)

    assert torch.equal(mixed, expected)
    assert targets.shape == (n, classes)
    torch.testing.assert_close(targets.sum(1), torch.ones(n))
    logits = torch.randn(n, classes)
    published_loss = own * functional.cross_entropy(logits, labels) + (
        1 - own
    ) * functional.cross_entropy(logits, labels[plain.partners])
    torch.testing.assert_close(functional.cross_entropy(logits, targets), published_loss)


def test_every_batch_is_mixed_anew():
    """Shares of the rectangle over many batches: uniform before the edges cut off a part, so
    below one half on average, and never the same."""
    random = generator(2)
    shares = [float(draw(2, 64, random)[16, 0]) for _ in range(2000)]
    assert len(set(shares)) > 500
    assert min(shares) >= 0
    assert max(shares) < 1
    # Of a square of side s, s² uniform, with a uniform centre (s - s²/4)² lies inside on average.
    sides = (torch.rand(200_000, generator=random) ** 0.5).double()
    inside = ((sides - sides**2 / 4) ** 2).mean()
    assert abs(np.mean(shares) - float(inside)) < 0.02


def test_a_batch_of_one_is_its_own_partner():
    """The last batch of a pass may hold one image: it stays, and so does its label."""
    image, label = torch.randn(1, 3, 16, 16), torch.tensor([2])
    mixed, targets = cutmix(image, label, draw(1, 16, generator()), 3)
    assert torch.equal(mixed, image)
    assert targets.tolist() == [[0, 0, 1]]
