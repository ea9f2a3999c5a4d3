"""The official evaluator once more, as plainly as it can be said: the oracle the scorer is held to.

Written from the facts of the protocol alone, with a real DataLoader, Python loops over images and
no thought of speed. Imports nothing of ddchallenge.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


def network(image_size, num_classes):
    side = image_size // 8
    return nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1),
        nn.GroupNorm(128, 128, affine=True),
        nn.ReLU(),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.GroupNorm(128, 128, affine=True),
        nn.ReLU(),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.GroupNorm(128, 128, affine=True),
        nn.ReLU(),
        nn.AvgPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(128 * side * side, num_classes),
    )


def color(images):
    changed = []
    brightness = torch.rand(len(images), 1, 1, 1)
    saturation = torch.rand(len(images), 1, 1, 1)
    contrast = torch.rand(len(images), 1, 1, 1)
    for i in range(len(images)):
        x = images[i : i + 1]
        x = x + (brightness[i] - 0.5) * 1.0
        channel_mean = x.mean(dim=1, keepdim=True)
        x = (x - channel_mean) * (2.0 * saturation[i]) + channel_mean
        image_mean = x.mean(dim=[1, 2, 3], keepdim=True)
        x = (x - image_mean) * (contrast[i] + 0.5) + image_mean
        changed.append(x)
    return torch.cat(changed)


def crop(images):
    n, _, size, _ = images.shape
    s = int(size * 0.125 + 0.5)
    down = torch.randint(-s, s + 1, [n, 1, 1]).flatten().tolist()
    right = torch.randint(-s, s + 1, [n, 1, 1]).flatten().tolist()
    shifted = torch.zeros_like(images)
    for i in range(n):
        for row in range(size):
            for column in range(size):
                from_row, from_column = row + down[i], column + right[i]
                if 0 <= from_row < size and 0 <= from_column < size:
                    shifted[i, :, row, column] = images[i, :, from_row, from_column]
    return shifted


def cutout(images):
    n, _, size, _ = images.shape
    side = int(size * 0.5 + 0.5)
    down = torch.randint(0, size + (1 - side % 2), [n, 1, 1]).flatten().tolist()
    right = torch.randint(0, size + (1 - side % 2), [n, 1, 1]).flatten().tolist()
    cut = images.clone()
    for i in range(n):
        for k in range(side):
            for m in range(side):
                row = min(max(k + down[i] - side // 2, 0), size - 1)
                column = min(max(m + right[i] - side // 2, 0), size - 1)
                cut[i, :, row, column] = 0
    return cut


def flip(images):
    drawn = torch.rand(len(images), 1, 1, 1).flatten().tolist()
    return torch.stack(
        [image.flip(-1) if u < 0.5 else image for u, image in zip(drawn, images, strict=True)]
    )


def scale(images):
    x = torch.rand(len(images))
    y = torch.rand(len(images))
    theta = []
    for i in range(len(images)):
        sx = x[i] * (1.2 - 1 / 1.2) + 1 / 1.2
        sy = y[i] * (1.2 - 1 / 1.2) + 1 / 1.2
        theta.append([[sx, 0, 0], [0, sy, 0]])
    grid = functional.affine_grid(torch.tensor(theta), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def rotate(images):
    drawn = torch.rand(len(images))
    theta = []
    for u in drawn:
        # 15 degrees; divided by 180 before it is multiplied by pi.
        angle = (u - 0.5) * 2 * 15 / 180 * math.pi
        theta.append(
            [
                [torch.cos(angle), torch.sin(-angle), 0],
                [torch.sin(angle), torch.cos(angle), 0],
            ]
        )
    grid = functional.affine_grid(torch.tensor(theta), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


FAMILIES = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def augment(images):
    family = list(FAMILIES)[torch.randint(0, 6, (1,)).item()]
    return FAMILIES[family](images)


def train(images, labels, num_classes, epochs, seed):
    """The trained network and the loss of every batch, from normalised float32 images."""
    torch.manual_seed(seed)
    net = network(images.shape[2], num_classes)
    net.train()
    loader = DataLoader(TensorDataset(images, labels), batch_size=256, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    losses = []
    for epoch in range(epochs + 1):
        for batch, target in loader:
            loss = functional.cross_entropy(net(augment(batch)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if epoch == epochs // 2 + 1:
            optimizer = torch.optim.SGD(
                net.parameters(), lr=0.001, momentum=0.9, weight_decay=0.0005
            )
    return net, losses


def correct(net, images, labels):
    net.eval()
    right = 0
    with torch.no_grad():
        for batch, target in DataLoader(TensorDataset(images, labels), batch_size=256):
            for scores, label in zip(net(batch), target, strict=True):
                right += scores.tolist().index(max(scores.tolist())) == label.item()
    return right
