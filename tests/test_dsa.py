import math

import numpy as np
import oracle
import pytest
import torch

from ddchallenge.scoring import dsa
from ddchallenge.scoring.draws import Generators

NAMES = ["color", "crop", "cutout", "flip", "scale", "rotate"]


def global_generators():
    """PyTorch's own generator in both places, as on a CPU."""
    generators = Generators(0, torch.device("cpu"))
    generators.cpu = generators.device = torch.default_generator
    return generators


def apply(name, images, generators=None):
    """Draw for the images and apply."""
    family = dsa.FAMILIES[NAMES.index(name)]
    n, _, size, _ = images.shape
    return family.apply(images, family.draw(n, size, generators or global_generators()))


def images_of(n, size, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "size"), [(40, 8), (13, 32), (3, 64), (1, 8)])
def test_a_family_is_bit_for_bit_the_literal_one(name, n, size):
    """Vectorised, each family draws the same numbers and computes the same bits as a loop over
    images and pixels, leaves its input alone, and hands back contiguous memory."""
    images = images_of(n, size)
    before = images.clone()
    torch.manual_seed(11)
    ours = apply(name, images)
    state = torch.get_rng_state()
    torch.manual_seed(11)
    literal = oracle.FAMILIES[name](images)

    assert torch.equal(ours, literal)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(images, before)
    assert ours.is_contiguous()
    assert not torch.equal(ours, images) or n == 1


def test_the_families_stand_in_the_official_order():
    """The drawn index means what it means in color_crop_cutout_flip_scale_rotate."""
    assert [family.name for family in dsa.FAMILIES] == NAMES


def test_augment_draws_the_family_first_and_from_the_cpu():
    """Sixty batches in a row, family and parameters out of one stream, agree with the oracle to
    the bit, and every family comes up."""
    images = images_of(6, 8)
    torch.manual_seed(5)
    given = global_generators()
    ours = [dsa.augment(images, dsa.draw(6, 8, given)) for _ in range(60)]
    torch.manual_seed(5)
    official = [oracle.augment(images) for _ in range(60)]

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, official, strict=True))
    torch.manual_seed(5)
    drawn = set()
    for _ in range(60):
        family = int(torch.randint(0, 6, (1,)))
        drawn.add(family)
        oracle.FAMILIES[NAMES[family]](images)
    assert drawn == set(range(6))


@pytest.mark.parametrize(
    ("name", "drawn_on_the_cpu"),
    [("color", 0), ("crop", 0), ("cutout", 0), ("flip", 0), ("scale", 14), ("rotate", 7)],
)
def test_which_generator_a_family_draws_from(name, drawn_on_the_cpu):
    """With the images on another device, scale and rotate still draw from the CPU's generator (two
    numbers and one an image) and from nothing else, the others from the device's alone: a second
    generator stands in for a GPU's."""
    given = Generators(2, torch.device("cpu"))
    given.device = torch.Generator().manual_seed(3)
    apply(name, images_of(7, 8), given)
    cpu, device = torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)
    torch.rand(drawn_on_the_cpu, generator=cpu)

    assert torch.equal(given.cpu.get_state(), cpu.get_state())
    assert torch.equal(given.device.get_state(), device.get_state()) == (drawn_on_the_cpu > 0)


def bilinear(image, theta):
    """Sample one image (float64 3×S×S) where an affine map of the square [-1, 1]² says."""
    size = image.shape[1]
    padded = np.pad(image, ((0, 0), (size, size), (size, size)))
    out = np.empty_like(image)
    for row in range(size):
        for column in range(size):
            place = theta @ [(2 * column + 1) / size - 1, (2 * row + 1) / size - 1, 1]
            x, y = ((place + 1) * size - 1) / 2 + size
            left, top = math.floor(x), math.floor(y)
            a, b = x - left, y - top
            out[:, row, column] = (
                (1 - b) * (1 - a) * padded[:, top, left]
                + (1 - b) * a * padded[:, top, left + 1]
                + b * (1 - a) * padded[:, top + 1, left]
                + b * a * padded[:, top + 1, left + 1]
            )
    return out


@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_the_affine_families_sample_where_geometry_says(name):
    """Against bilinear sampling done by hand in float64, with zeros outside: neither affine_grid
    nor grid_sample is taken at its word."""
    images = images_of(6, 8)
    torch.manual_seed(4)
    ours = apply(name, images).double().numpy()
    torch.manual_seed(4)
    if name == "scale":
        sx, sy = (torch.rand(6).double().numpy() * (1.2 - 1 / 1.2) + 1 / 1.2 for _ in range(2))
        thetas = [np.array([[a, 0, 0], [0, b, 0]]) for a, b in zip(sx, sy, strict=True)]
    else:
        angles = (torch.rand(6).double().numpy() - 0.5) * math.radians(30)
        thetas = [
            np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0]])
            for t in angles
        ]
    for image, mine, theta in zip(images.double().numpy(), ours, thetas, strict=True):
        np.testing.assert_allclose(mine, bilinear(image, theta), atol=1e-5)


def test_a_factor_above_one_shrinks():
    """An all-ones image scaled by more than one in both directions has zeros at its border, one
    scaled by less has none."""
    images = torch.ones(64, 3, 16, 16)
    torch.manual_seed(0)
    scaled = apply("scale", images)
    torch.manual_seed(0)
    sx, sy = torch.rand(64), torch.rand(64)
    # u = 0.4545 is factor 1; keep clear of it.
    shrunk, grown = (sx > 0.6) & (sy > 0.6), (sx < 0.35) & (sy < 0.35)

    assert shrunk.any()
    assert (scaled[shrunk][:, :, 0] < 1).all()
    assert grown.any()
    assert (scaled[grown] > 0.999).all()


def test_a_cutout_is_a_square_of_half_the_side_or_what_fits():
    """Sides are at most half the image, at least a quarter at the border, and every centre from
    0 to the full side comes up."""
    torch.manual_seed(0)
    holes = apply("cutout", torch.ones(2000, 3, 8, 8))[:, 0] == 0
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)

    assert torch.equal(holes.sum((1, 2)), rows * columns)
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4}
    assert len(torch.unique(holes.any(2), dim=0)) == 9
