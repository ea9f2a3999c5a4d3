"""One seed's training, run to its end, for the tests that look into it."""

import torch

from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.exact import ExactStepper
from ddchallenge.scoring.recipes import recipe_of
from ddchallenge.scoring.training import Training

CPU = torch.device("cpu")


def training_of(data, spec, protocol, *, epochs, seed, stepper=ExactStepper):
    """A training at its beginning."""
    recipe = recipe_of(protocol, epochs, spec)
    return Training(DeviceImages(data, spec, CPU), protocol, recipe, stepper, seed=seed)


def finish(training):
    """Take every step that is left; the losses of the batches, in order."""
    losses = []
    while not training.done:
        training.step()
        last = training.losses if training.batch else training.last_losses
        losses.append(float(last[-1]))
    return losses


def train_network(data, spec, protocol, *, epochs, seed, stepper=ExactStepper):
    """The trained network and the loss of every batch."""
    training = training_of(data, spec, protocol, epochs=epochs, seed=seed, stepper=stepper)
    losses = finish(training)
    return training.network, losses
