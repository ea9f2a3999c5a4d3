import oracle
import pytest
import torch

from ddchallenge.errors import UnknownNameError
from ddchallenge.scoring.convnet import build_network, convnet


def build(image_size, num_classes):
    return build_network("ConvNetD3-W128", image_size=image_size, num_classes=num_classes)


@pytest.mark.parametrize(
    ("image_size", "num_classes", "features", "parameters"),
    [(8, 10, 128, 300_810), (32, 100, 2048, 504_420), (64, 200, 8192, 1_938_120)],
)
def test_sizes_are_the_official_ones(image_size, num_classes, features, parameters):
    """Linear(2048→100) at 32 px and Linear(8192→200) at 64 px, and not a parameter more: worked
    out by hand as 3584 + 2·147584 for the convolutions, 768 for the norms, and the linear layer."""
    network = build(image_size, num_classes)

    assert sum(p.numel() for p in network.parameters()) == parameters
    assert parameters == 3584 + 2 * 147_584 + 768 + features * num_classes + num_classes
    assert network(torch.zeros(2, 3, image_size, image_size)).shape == (2, num_classes)


@pytest.mark.parametrize(("image_size", "num_classes"), [(8, 10), (32, 100), (64, 200)])
def test_the_same_seed_gives_the_official_initialisation(image_size, num_classes):
    """The layers draw their weights in the official order, so weights and outputs agree to the
    bit with the plainly written network, and the generator is left where that one leaves it."""
    torch.manual_seed(3)
    ours = build(image_size, num_classes)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    official = oracle.network(image_size, num_classes)

    assert torch.equal(state, torch.get_rng_state())
    for mine, theirs in zip(ours.parameters(), official.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    images = torch.randn(5, 3, image_size, image_size)
    assert torch.equal(ours(images), official(images))


def test_an_unknown_network_lists_the_choices():
    """A protocol that names a network nobody knows is told the names there are."""
    with pytest.raises(UnknownNameError, match="ConvNetD3-W128"):
        build_network("ConvNetD3-W12", image_size=32, num_classes=10)


def test_depth_and_width_are_what_was_asked_for():
    """Two blocks of 16 channels on 12 px leave 3×3 places, so the linear layer sees 144."""
    network = convnet(depth=2, width=16, image_size=12, num_classes=4)

    assert network[-1].in_features == 144
    assert network(torch.zeros(1, 3, 12, 12)).shape == (1, 4)
