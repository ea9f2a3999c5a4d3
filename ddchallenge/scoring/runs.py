"""The seeds of a score, from their first step to their test; one after another or side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from ddchallenge.interrupts import noticed
from ddchallenge.records import (
    DatasetSpec,
    LabeledImages,
    Numerics,
    ScoringActivity,
    ScoringProtocol,
    ScoringStatus,
    SeedOutcome,
    SeedRun,
)
from ddchallenge.scoring.checkpoint import Checkpoints
from ddchallenge.scoring.data import DeviceImages
from ddchallenge.scoring.exact import ExactStepper
from ddchallenge.scoring.fast import FastStepper
from ddchallenge.scoring.memory import freed_memory_kept
from ddchallenge.scoring.progress import ProgressReporter
from ddchallenge.scoring.recipes import Recipe
from ddchallenge.scoring.testing import confusion_matrix
from ddchallenge.scoring.training import MakeStepper, Training

if TYPE_CHECKING:
    from ddchallenge.records import CountArray

__all__ = ["STEPPERS", "Experiment", "side_by_side", "train_and_test", "training_context"]

# A run that is killed loses half a minute of work, and the step it was in.
CHECKPOINT_SECONDS: Final = 30.0
# A longer test on the way is not begun before everything is kept.
SHORT_TEST_SECONDS: Final = 5.0

STEPPERS: Final[dict[Numerics, MakeStepper]] = {"exact": ExactStepper, "fast": FastStepper}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is trained, on which images, and how: a network a seed, all on one device."""

    train: LabeledImages
    test: LabeledImages
    spec: DatasetSpec
    protocol: ScoringProtocol
    recipe: Recipe
    seeds: Sequence[int]
    numerics: Numerics
    device: torch.device


def train_and_test(
    experiment: Experiment,
    *,
    checkpoints: Checkpoints | None = None,
    on_progress: Callable[[ScoringStatus], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[SeedOutcome, ...]:
    """Train the networks of an experiment, test each once it is trained.

    Goes on from what ``checkpoints`` has. ``say`` is told, in lines for people, what is unusual.
    The caller's random state and settings are as before afterwards. Where training diverged,
    ``final_loss`` is None and the accuracy is what it is.
    """
    seeds, numerics, device = experiment.seeds, experiment.numerics, experiment.device
    with training_context(device, numerics):
        scoring = _Scoring(
            DeviceImages(experiment.train, experiment.spec, device),
            DeviceImages(experiment.test, experiment.spec, device),
            partial(
                Training,
                protocol=experiment.protocol,
                recipe=experiment.recipe,
                make_stepper=STEPPERS[numerics],
            ),
            seeds,
            checkpoints,
            on_progress,
            say,
        )
        if side_by_side(numerics, device):
            scoring.go(seeds)
        else:
            for seed in seeds:
                scoring.go([seed])
    return tuple(scoring.outcomes[seed] for seed in seeds)


def side_by_side(numerics: Numerics, device: torch.device) -> bool:
    """Whether the seeds are trained at once: it fills a GPU that one small network leaves idle."""
    return numerics == "fast" and device.type == "cuda"


class _Scoring:
    """What the seeds of one score share."""

    def __init__(
        self,
        train: DeviceImages,
        test: DeviceImages,
        begin: Callable[..., Training],
        seeds: Sequence[int],
        checkpoints: Checkpoints | None,
        on_progress: Callable[[ScoringStatus], None] | None,
        say: Callable[[str], None],
    ) -> None:
        self.outcomes: dict[int, SeedOutcome] = {}
        self._train = train
        self._test = test
        self._begin = begin
        self._checkpoints = checkpoints
        self._say = say
        self._kept: dict[int, dict[str, torch.Tensor]] = {}
        self._saved = time.monotonic()
        self._test_seconds = math.inf  # until one was timed
        for seed in seeds:
            found = checkpoints.load(seed) if checkpoints else None
            if isinstance(found, SeedOutcome):
                self.outcomes[seed] = found
                say(f"Seed {seed} was trained and tested before: {found.run.accuracy:.2%}")
            elif found is not None:
                self._kept[seed] = found
        self._reporter = (
            ProgressReporter(on_progress, seeds=len(seeds), done=len(self.outcomes))
            if on_progress
            else None
        )

    def go(self, seeds: Sequence[int]) -> None:
        """Train these seeds side by side, then test them."""
        trainings = [self._training(seed) for seed in seeds if seed not in self.outcomes]
        going = [training for training in trainings if not training.done]
        self._test_due(trainings)
        # The first steps may compile for a while: there an interrupt is obeyed at once.
        for training in going:
            self._report(going, training.stepper.first_step)
            training.step()
            for note in training.stepper.notes:
                self._say(note)
        while True:
            self._test_due(trainings)
            if not (going := [training for training in going if not training.done]):
                break
            with noticed() as notice:
                began = time.monotonic()
                for training in going:
                    training.step()
                seconds = time.monotonic() - began
                if self._reporter:
                    self._reporter.stepped(going, seconds)
                if notice.requested or time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                    self._save(trainings)
            if notice.requested:
                raise KeyboardInterrupt
        for training in trainings:
            self._finish(training)

    def _test_due(self, trainings: Sequence[Training]) -> None:
        """Test those that are to be tested on the way; the last test is :meth:`_finish`'s."""
        due = [training for training in trainings if training.test_due and not training.done]
        if not due:
            return
        if self._test_seconds > SHORT_TEST_SECONDS:
            self._save(trainings)
        try:
            for training in due:
                self._report([training], "testing")
                began = time.monotonic()
                correct = int(self._confusion(training).trace())
                self._test_seconds = time.monotonic() - began
                training.tested(correct / len(self._test))
        except KeyboardInterrupt:
            self._save(trainings)
            raise

    def _training(self, seed: int) -> Training:
        training = self._begin(self._train, seed=seed)
        kept = self._kept.pop(seed, None)
        if kept is None or self._checkpoints is None:
            return training
        try:
            training.restore(kept)
        except (KeyError, ValueError, RuntimeError) as error:
            self._checkpoints.set_aside(seed, f"it does not fit: {type(error).__name__}")
            return self._begin(self._train, seed=seed)
        passes = f"{training.index:,} of {training.recipe.passes:,} passes"
        self._say(f"Seed {seed} goes on from its checkpoint, after {passes}")
        return training

    def _confusion(self, training: Training) -> CountArray:
        with training.on_stream():
            return confusion_matrix(training.network, self._test, training.stepper.rows)

    def _save(self, trainings: Sequence[Training]) -> None:
        if self._checkpoints:
            for training in trainings:
                self._checkpoints.save_state(training.seed, training.state())
        self._saved = time.monotonic()

    def _finish(self, training: Training) -> None:
        # A test of many images takes minutes, the training may have taken hours.
        self._save([training])
        self._report([training], "testing")
        confusion = self._confusion(training)
        correct = int(confusion.trace())
        if training.test_due or training.best_accuracy is not None:
            training.tested(correct / len(self._test))
        losses = training.last_losses
        final_loss = math.nan if losses is None else float(losses.mean())
        outcome = SeedOutcome(
            run=SeedRun(
                seed=training.seed,
                accuracy=correct / len(self._test),
                optimistic_best_accuracy=training.best_accuracy,
                correct=correct,
                test_images=len(self._test),
                final_loss=final_loss if math.isfinite(final_loss) else None,
                seconds=training.seconds,
            ),
            confusion=confusion,
        )
        if self._checkpoints:
            self._checkpoints.save_outcome(outcome)
        self.outcomes[training.seed] = outcome
        if self._reporter:
            self._reporter.seed_done()

    def _report(self, trainings: Sequence[Training], activity: ScoringActivity) -> None:
        if self._reporter and trainings:
            self._reporter.report(trainings, activity)


@contextmanager
def training_context(device: torch.device, numerics: Numerics) -> Iterator[None]:
    """What PyTorch and the C library are set to while networks train; as before afterwards."""
    with _memory(device), _deterministic() if numerics == "exact" else nullcontext():
        yield


def _memory(device: torch.device) -> AbstractContextManager[None]:
    return freed_memory_kept() if device.type == "cpu" else nullcontext()


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let cuDNN choose no algorithm whose result differs from one run to the next."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
