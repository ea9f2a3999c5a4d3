"""One seed's training, batch by batch: what every numerics and every protocol have in common.

No DataLoader: whole tensors lie on the device, and the random numbers of a pass are drawn when it
begins, in the order a DataLoader and the official loop would draw them. Nothing waits for the
device between batches. A run may be left after any batch and gone on with from its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from ddchallenge.records import ScoringActivity, ScoringProtocol
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.draws import Draw, Generators
from ddchallenge.scoring.networks import build_network
from ddchallenge.scoring.recipes import Recipe

__all__ = ["MakeStepper", "Stepper", "Training"]


class Stepper(Protocol):
    """The arithmetic of a step: forward, backward, update."""

    @property
    def first_step(self) -> ScoringActivity:
        """What the first step spends its time on."""
        ...

    @property
    def rows(self) -> int:
        """How many images are best put through the network at once."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Lines for people about what the first step found, there after it."""
        ...

    @property
    def momenta(self) -> Sequence[Tensor | None]:
        """The optimiser's momentum of every parameter, in order; None before the first step."""
        ...

    def begin_pass(self, order: Tensor, draws: Sequence[Draw]) -> None:
        """Take the int64 N order of a pass and the draws of its batches."""
        ...

    def step(self, number: int) -> Tensor:
        """Train on the pass's batch of this number; its mean loss, float32 on the device."""
        ...

    def learn_at(self, rate: float, *, restart: bool) -> None:
        """From now on at this rate; ``restart`` forgets the momentum."""
        ...

    def restore_momenta(self, momenta: Sequence[Tensor | None]) -> None:
        """Go on with these."""
        ...


MakeStepper = Callable[[nn.Module, DeviceImages, Recipe], Stepper]


class Training:
    """One network from its initialisation to its last pass.

    The network is initialised from ``seed`` on the CPU with PyTorch's global generator, whose
    state afterwards is where the run's own generators begin: as in the official script, where one
    generator serves both. The caller's random state is as before. ``losses`` are the batch losses
    of the current pass so far, ``last_losses`` those of the pass before it, None in the first.
    ``seconds`` is what the steps took, those before a restore included. ``test_due`` says that the
    recipe wants the network tested as it is now; whoever does so says it with :meth:`tested`.
    On CUDA everything happens on a stream of the run's own.
    """

    def __init__(
        self,
        train: DeviceImages,
        protocol: ScoringProtocol,
        recipe: Recipe,
        make_stepper: MakeStepper,
        *,
        seed: int,
    ) -> None:
        spec = train.spec
        self.seed = seed
        self.recipe = recipe
        self.generators = Generators(seed, train.device)
        self._stream = _stream_of(train.device)
        with torch.random.fork_rng(devices=[] if self._stream is None else [train.device]):
            torch.manual_seed(seed)
            network = build_network(
                protocol.network, image_size=spec.image_size, num_classes=spec.num_classes
            )
            self.generators.cpu.set_state(torch.get_rng_state())
        self.network = network.to(train.device).train()
        self.index = 0
        self.batch = 0
        self.batches = -(-len(train) // recipe.batch_size)
        self.seconds = 0.0
        self.best_accuracy: float | None = None
        self.test_due = False
        self.last_losses: Tensor | None = None
        self._losses = torch.zeros(self.batches, device=train.device)
        self._train = train
        self.stepper = make_stepper(self.network, train, recipe)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(train.device))
        with self.on_stream():
            self._begin_pass()

    @property
    def done(self) -> bool:
        """Whether every pass has been made."""
        return self.index == self.recipe.passes

    @property
    def losses(self) -> Tensor:
        """The batch losses of the current pass so far, float32 on the device."""
        return self._losses[: self.batch]

    @property
    def next_size(self) -> int:
        """How many images the next batch has; 0 where there is none."""
        size = self.recipe.batch_size
        return 0 if self.done else min(size, len(self._train) - self.batch * size)

    @property
    def steps_done(self) -> int:
        """Batches trained on since the beginning."""
        return self.index * self.batches + self.batch

    @property
    def steps(self) -> int:
        """Batches of the whole run."""
        return self.recipe.passes * self.batches

    def step(self) -> None:
        """Train on the next batch."""
        began = time.monotonic()
        with self.on_stream():
            self._losses[self.batch] = self.stepper.step(self.batch)
            self.batch += 1
            if self.batch == self.batches:
                self.last_losses = self._losses.clone()
                self.test_due = self.recipe.tests_after(self.index)
                self.index += 1
                self.batch = 0
                self._begin_pass()
        self.seconds += time.monotonic() - began

    def tested(self, accuracy: float) -> None:
        """The network as it is now has this accuracy on the test images, 0..1."""
        self.best_accuracy = max(self.best_accuracy or 0.0, accuracy)
        self.test_due = False

    def mean_loss(self) -> float | None:
        """Of the current pass so far, or of the one before it; waits for the device."""
        losses = self.losses if self.batch else self.last_losses
        if losses is None:
            return None
        with self.on_stream():
            return float(losses.mean())

    def on_stream(self) -> AbstractContextManager[object]:
        """Inside, CUDA work is queued behind this run's."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _begin_pass(self) -> None:
        if self.done:
            return
        self._drawn_from = self.generators.state()
        recipe, n = self.recipe, len(self._train)
        order = recipe.order(n, self.generators)
        sizes = [len(part) for part in torch.split(order, recipe.batch_size)]
        image_size = self._train.spec.image_size
        self.stepper.begin_pass(
            order, [recipe.draw(size, image_size, self.generators) for size in sizes]
        )
        self.stepper.learn_at(
            recipe.learning_rate(self.index),
            restart=self.index > 0 and self.batch == 0 and recipe.restarts(self.index),
        )

    def state(self) -> dict[str, Tensor]:
        """Everything a run of the same data, protocol, seed and numerics goes on from: copies."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for number, momentum in enumerate(self.stepper.momenta):
            if momentum is not None:
                state[f"momentum.{number}"] = momentum
        state |= self._drawn_from
        state["place"] = torch.tensor([self.index, self.batch, self.test_due])
        state["losses"] = self._losses
        state["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        if self.last_losses is not None:
            state["last_losses"] = self.last_losses
        if self.best_accuracy is not None:
            state["best_accuracy"] = torch.tensor(self.best_accuracy, dtype=torch.float64)
        with self.on_stream():
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`; raises :class:`KeyError` or another where it does not fit."""
        with self.on_stream():
            self._restore(state)

    def _restore(self, state: dict[str, Tensor]) -> None:
        prefix = "network."
        self.network.load_state_dict(
            {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        )
        device = self._train.device
        count = sum(1 for _ in self.network.parameters())
        momenta = [state.get(f"momentum.{number}") for number in range(count)]
        self.stepper.restore_momenta([m if m is None else m.to(device) for m in momenta])
        self.generators.restore(state)
        self.index, self.batch, due = state["place"].tolist()
        self.test_due = bool(due)
        self._losses.copy_(state["losses"])
        self.seconds = float(state["seconds"])
        self.last_losses = state["last_losses"].to(device) if "last_losses" in state else None
        self.best_accuracy = float(state["best_accuracy"]) if "best_accuracy" in state else None
        self._begin_pass()


def _stream_of(device: torch.device) -> torch.cuda.Stream | None:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
