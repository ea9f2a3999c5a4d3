from dataclasses import replace
from functools import partial

import oracle
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from ddchallenge.errors import RequestError, UnknownNameError
from ddchallenge.rules import get_protocol
from ddchallenge.scoring.networks import NETWORKS, build_network, check_network, convnet


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


# Of the first layers (a convolution without bias, a norm), by the size of the images.
STEM = {32: 3 * 64 * 9, 64: 3 * 64 * 9, 128: 3 * 64 * 9, 224: 3 * 64 * 49}
# Channels into and out of each of the four stages.
STAGES = [(64, 64), (64, 128), (128, 256), (256, 512)]


def resnet_parameters(blocks, image_size, num_classes):
    """Layer by layer: 9·in·out a convolution, 2·out a norm, in·out for a shortcut, no biases."""
    total = STEM[image_size] + 2 * 64
    for before, after in STAGES:
        total += 9 * before * after + 9 * after * after + 4 * after
        total += (before * after + 2 * after) * (before != after)
        total += (blocks - 1) * (2 * 9 * after * after + 4 * after)
    return total + 512 * num_classes + num_classes


def convnet_parameters(depth, features, num_classes):
    total = 3 * 128 * 9 + 128 + (depth - 1) * (128 * 128 * 9 + 128) + depth * 2 * 128
    return total + features * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "image_size", "derived", "parameters"),
    [
        ("ConvNetD3-W128", 32, convnet_parameters(3, 128 * 4 * 4, 10), 320_010),
        ("ConvNetD3-W128", 64, convnet_parameters(3, 128 * 8 * 8, 10), 381_450),
        ("ConvNetD3-W128", 128, convnet_parameters(3, 128 * 16 * 16, 10), 627_210),
        ("ConvNetD3-W128", 224, convnet_parameters(3, 128 * 28 * 28, 10), 1_303_050),
        ("ConvNet-6", 64, convnet_parameters(6, 128, 10), 744_330),
        ("ConvNet-6", 128, convnet_parameters(6, 128 * 2 * 2, 10), 748_170),
        ("ConvNet-6", 224, convnet_parameters(6, 128 * 3 * 3, 10), 754_570),
        ("ResNetAP-10", 32, resnet_parameters(1, 32, 10), 4_903_242),
        ("ResNetAP-10", 64, resnet_parameters(1, 64, 10), 4_903_242),
        ("ResNetAP-10", 128, resnet_parameters(1, 128, 10), 4_903_242),
        ("ResNetAP-10", 224, resnet_parameters(1, 224, 10), 4_910_922),
        ("ResNet-18", 32, resnet_parameters(2, 32, 10), 11_173_962),
        ("ResNet-18", 64, resnet_parameters(2, 64, 10), 11_173_962),
        ("ResNet-18", 128, resnet_parameters(2, 128, 10), 11_173_962),
        ("ResNet-18", 224, resnet_parameters(2, 224, 10), 11_181_642),
    ],
)
def test_every_network_has_the_parameters_counted_by_hand(name, image_size, derived, parameters):
    """Parameters by the formula of each layer and as a number, and one logit a class; every norm
    has one channel a group. ConvNet-6 has three places a side left of 224 px, one of 64."""
    network = build_network(name, image_size=image_size, num_classes=10)

    assert sum(p.numel() for p in network.parameters()) == derived == parameters
    assert network(torch.zeros(2, 3, image_size, image_size)).shape == (2, 10)
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert all(norm.num_groups == norm.num_channels and norm.affine for norm in norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("ConvNetD3-W128", 8), ("ConvNet-6", 64), ("ResNetAP-10", 16), ("ResNet-18", 16)],
)
def test_an_image_that_is_too_small_is_refused(name, smallest):
    """At its smallest size a network still tells two images apart; one pixel less and the message
    has the minimum and what was found."""
    network = build_network(name, image_size=smallest, num_classes=3)
    one, other = network(torch.randn(2, 3, smallest, smallest))
    assert (one - other).abs().max() > 1e-3

    with pytest.raises(RequestError, match=f"{name} .* at least {smallest} pixels, found"):
        build_network(name, image_size=smallest - 1, num_classes=3)


@pytest.mark.parametrize(
    ("protocol", "network", "image_size", "advice"),
    [
        ("imagewoof", "ConvNet-6", 32, "such images: --network ResNetAP-10 or ResNet-18."),
        ("imagewoof", "ResNetAP-10", 8, "No other network of the protocol takes such images."),
        ("eccv2024", None, 7, "No other network of the protocol takes such images."),
    ],
)
def test_only_networks_that_can_be_chosen_are_offered(protocol, network, image_size, advice):
    """What is offered for images that are too small is a choice of the same protocol and takes
    them: not ConvNetD3-W128, which takes the images but is no choice in imagewoof."""
    chosen = get_protocol(protocol, network)
    with pytest.raises(RequestError, match=f"at least .*, found {image_size}") as caught:
        check_network(chosen, image_size=image_size)
    assert str(caught.value).splitlines()[1].endswith(advice)
    for offered in NETWORKS:
        if f" {offered}" in advice:
            check_network(get_protocol(protocol, offered), image_size=image_size)


def test_a_check_makes_no_network_and_draws_nothing():
    """Asking whether a size will do raises the same and leaves the generator as it was."""
    state = torch.get_rng_state()
    check_network(get_protocol("imagewoof", "ResNet-18"), image_size=64)
    with pytest.raises(RequestError, match="at least 64 pixels, found 32"):
        check_network(get_protocol("imagewoof", "ConvNet-6"), image_size=32)
    with pytest.raises(UnknownNameError, match=r"ConvNet-6(.|\n)*ResNetAP-10$"):
        check_network(replace(get_protocol(), network="ConvNet-7"), image_size=32)
    assert torch.equal(state, torch.get_rng_state())


def test_convnet_6_is_the_plain_network_six_times_deeper():
    """Against layers called one by one, and at 224 px, where 7 places are halved to 3."""
    torch.manual_seed(0)
    network = build_network("ConvNet-6", image_size=224, num_classes=10)
    x = images = torch.randn(2, 3, 224, 224)
    weights = iter(network.parameters())
    for _ in range(6):
        x = functional.conv2d(x, next(weights), next(weights), padding=1)
        x = functional.instance_norm(x, weight=next(weights), bias=next(weights))
        x = functional.avg_pool2d(x.relu(), 2)
    assert x.shape == (2, 128, 3, 3)
    expected = functional.linear(x.flatten(1), next(weights), next(weights))
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image_size", [32, 64, 128, 224])
def test_resnet_ap_10_is_the_plain_network(image_size):
    """Against the published sizes called one by one: 3×3 up to 128 px, then 7×7 and a pool of 4;
    in a block the pool comes after the first ReLU, in the shortcut before the norm."""
    torch.manual_seed(0)
    network = build_network("ResNetAP-10", image_size=image_size, num_classes=10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = iter(list(network.parameters()))

    def norm(x):
        return functional.instance_norm(x, weight=next(weights), bias=next(weights))

    def conv(x, padding):
        return functional.conv2d(x, next(weights), padding=padding)

    x = images = torch.randn(2, 3, image_size, image_size)
    large = image_size > 128
    x = norm(conv(x, 3 if large else 1)).relu()
    if image_size > 64:
        x = functional.avg_pool2d(x, 4 if large else 2)
    for stage in range(4):
        out = norm(conv(x, 1)).relu()
        out = functional.avg_pool2d(out, 2) if stage else out
        out = norm(conv(out, 1))
        shortcut = norm(functional.avg_pool2d(conv(x, 0), 2)) if stage else x
        x = (out + shortcut).relu()
    expected = functional.linear(x.mean((2, 3)), next(weights), next(weights))
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("image_size", [32, 64, 128, 224])
def test_resnet_18_is_torchvisions_with_another_norm(image_size):
    """With the same weights the same logits as torchvision's ResNet-18, whose first layers are
    replaced up to 128 px: a 3×3 convolution of stride 1, and up to 64 px no pooling."""
    torch.manual_seed(0)
    network = build_network("ResNet-18", image_size=image_size, num_classes=10)
    reference = torchvision.models.resnet18(
        num_classes=10, norm_layer=lambda channels: nn.GroupNorm(channels, channels)
    )
    if image_size <= 128:
        reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if image_size <= 64:
        reference.maxpool = nn.Identity()
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
            theirs.copy_(mine.add_(0.1 * torch.randn_like(mine)))
    images = torch.randn(2, 3, image_size, image_size)
    torch.testing.assert_close(network(images), reference(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "blocks"), [("ResNetAP-10", 1), ("ResNet-18", 2)])
def test_a_resnet_draws_its_weights_in_the_documented_order(name, blocks):
    """PyTorch's default for every layer, a shortcut before its block; then every convolution
    again, a shortcut after its block, normal with variance 2 over 9 (or 1) times its channels."""
    torch.manual_seed(5)
    network = build_network(name, image_size=32, num_classes=10)
    state = torch.get_rng_state()

    torch.manual_seed(5)
    conv = partial(nn.Conv2d, bias=False)
    again = [conv(3, 64, 3)]
    for before, after in STAGES:
        shortcut = [conv(before, after, 1)] if before != after else []
        again += [conv(before, after, 3), conv(after, after, 3), *shortcut]
        again += [conv(after, after, 3) for _ in range(2 * (blocks - 1))]
    last = nn.Linear(512, 10)
    for layer in again:
        places = layer.kernel_size[0] * layer.kernel_size[1]
        layer.weight.data.normal_(0, (2 / (places * layer.out_channels)) ** 0.5)

    assert torch.equal(state, torch.get_rng_state())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for mine, theirs in zip(convolutions, again, strict=True):
        assert torch.equal(mine.weight, theirs.weight)
    assert torch.equal(network[-1].weight, last.weight)
    assert torch.equal(network[-1].bias, last.bias)
    for norm in (m for m in network.modules() if isinstance(m, nn.GroupNorm)):
        assert norm.weight.unique().tolist() == [1]
        assert norm.bias.unique().tolist() == [0]
