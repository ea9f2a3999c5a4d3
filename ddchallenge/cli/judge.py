"""How a bundle is to be scored, as the options say, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ddchallenge.cli.output import new_console, print_json, say, waiting
from ddchallenge.cli.parameters import ScoringOptions

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.records import Bundle, DatasetSpec, DatasetSplit, Numerics, ScoringProtocol
    from ddchallenge.scoring.estimate import Estimate

__all__ = ["Judge", "foretell", "show_estimates"]


@dataclass(frozen=True)
class Judge:
    """How to score, settled before anything is started; but for what goes by the bundle.

    ``name`` is the protocol's as it was asked for; ``asked_epochs`` and ``asked_numerics`` are
    None where it says nothing.
    """

    name: str
    protocol: ScoringProtocol
    asked_epochs: int | None
    seeds: tuple[int, ...]
    device: str
    asked_numerics: Numerics | None
    reference: bool
    resume: bool

    @classmethod
    def of(cls, device: str, options: ScoringOptions) -> Judge:
        """The judge the options ask for; raises :class:`RequestError` for what cannot be."""
        from ddchallenge.rules import DEFAULT_PROTOCOL, get_protocol
        from ddchallenge.scoring import check_epochs, check_numerics, check_seeds, resolve_device

        name = options["protocol"] or DEFAULT_PROTOCOL
        protocol = get_protocol(name, options["network"])
        seeds, epochs, numerics = options["seeds"], options["epochs"], options["numerics"]
        seeds = protocol.seeds if seeds is None else seeds
        check_seeds(seeds)
        if epochs is not None:
            check_epochs(protocol, epochs)
        return cls(
            name=name,
            protocol=protocol,
            asked_epochs=epochs,
            seeds=seeds,
            asked_numerics=None if numerics is None else check_numerics(numerics, protocol),
            device=resolve_device(device),
            reference=options["reference"],
            resume=not options["no_resume"],
        )

    @property
    def epochs(self) -> int:
        """As asked for, or the protocol's."""
        return self.protocol.epochs if self.asked_epochs is None else self.asked_epochs

    @property
    def official(self) -> bool:
        """Whether it is the whole protocol, as far as is known."""
        from ddchallenge.marks import is_official

        open_end = self.protocol.epochs_by_images and self.asked_epochs is not None
        return not open_end and is_official(self.protocol, self.epochs, self.seeds)

    def check_size(self, spec: DatasetSpec) -> None:
        """Raise :class:`RequestError` where the network cannot take images of this dataset."""
        from ddchallenge.scoring.networks import check_network

        check_network(self.protocol, image_size=spec.image_size)

    def settled(self, bundle: Bundle, spec: DatasetSpec) -> Judge:
        """The judge of this bundle."""
        protocol = self.protocol.for_images(len(bundle.data), spec.num_classes)
        return replace(self, protocol=protocol)

    def numerics(self, spec: DatasetSpec) -> Numerics:
        """As asked for; else fast where that is established to score like exact."""
        from ddchallenge.scoring.equivalence import default_numerics

        return self.asked_numerics or default_numerics(self.device, spec.name, self.protocol.id)

    def options(self) -> str:
        """What of it has to be said on a command line."""
        from ddchallenge.rules import DEFAULT_PROTOCOL

        said = ""
        if self.name != DEFAULT_PROTOCOL:
            said += f" --protocol {self.name} --network {self.protocol.network}"
        if self.asked_epochs not in (None, self.protocol.epochs):
            said += f" --epochs {self.asked_epochs}"
        if self.seeds != self.protocol.seeds:
            said += f" --seeds {','.join(map(str, self.seeds))}"
        if self.asked_numerics:
            said += f" --numerics {self.asked_numerics}"
        if self.reference:
            said += " --reference"
        return said


# Below this many pixels gone through, no machine takes an hour.
_HOURS_OF_PIXELS = 2**30
_HOUR = 3600.0


def foretell(console: Console, bundle: Bundle, test: DatasetSplit, judge: Judge) -> None:
    """Say beforehand of a run that takes over an hour how long it takes."""
    from ddchallenge.report.live import duration

    pixels = bundle.data.images[:, 0].size * (judge.epochs + 1)
    if judge.protocol.recipe != "eccv2024":  # larger networks, and up to a hundred tests
        pixels = 16 * pixels + min(judge.epochs, 100) * test.data.images[:, 0].size
    if pixels * len(judge.seeds) < _HOURS_OF_PIXELS:
        return
    with waiting(console, "Estimating how long this takes"):
        expected = _expected(bundle, test, judge, judge.numerics(test.spec))
    if expected.seconds > _HOUR:
        say(
            console,
            f"This will take about {duration(expected.seconds)} h with {expected.numerics} "
            f"numerics on {judge.device}. It can be interrupted and gone on with; "
            "--estimate compares.",
            style="yellow",
        )


def _expected(bundle: Bundle, test: DatasetSplit, judge: Judge, numerics: Numerics) -> Estimate:
    import torch

    from ddchallenge.scoring.estimate import estimate
    from ddchallenge.scoring.recipes import recipe_of
    from ddchallenge.scoring.runs import Experiment

    experiment = Experiment(
        train=bundle.data,
        test=test.data,
        spec=test.spec,
        protocol=judge.protocol,
        recipe=recipe_of(judge.protocol, judge.epochs, test.spec),
        seeds=judge.seeds,
        numerics=numerics,
        device=torch.device(judge.device),
    )
    expected = estimate(experiment)
    return replace(expected, seconds=expected.seconds * (2 if judge.reference else 1))


def show_estimates(
    console: Console, bundle: Bundle, test: DatasetSplit, judge: Judge, as_json: bool
) -> None:
    """Measure a few steps in all numerics the protocol has, and show what they come to."""
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.tables import estimates_table
    from ddchallenge.scoring import numerics_of

    chosen = judge.numerics(test.spec)
    estimates = []
    for numerics in numerics_of(judge.protocol):
        with waiting(console, f"Measuring a few steps, {numerics} numerics"):
            estimates.append(_expected(bundle, test, judge, numerics))
    if as_json:
        print_json([to_json(estimate) for estimate in estimates])
    else:
        new_console(err=False).print(estimates_table(estimates, chosen))
    for note in dict.fromkeys(note for estimate in estimates for note in estimate.notes):
        say(console, note, style="yellow")
