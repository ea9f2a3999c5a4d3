"""`calibrate`, and what --equivalent makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ddchallenge.cli.output import new_console, print_json, say, waiting
from ddchallenge.cli.parameters import with_device, with_json
from ddchallenge.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from ddchallenge.cli.parameters import SamplingOptions
    from ddchallenge.sampling.supervisor import SamplingOrder

__all__ = ["calibrate", "calibrated"]


@click.command()
@with_device
@with_json
def calibrate(device: str, as_json: bool) -> None:
    """Measure how fast this machine is, for `--equivalent`; takes under a minute."""
    from ddchallenge.calibration import calibrate as measure
    from ddchallenge.calibration import keep
    from ddchallenge.jsonio import to_json
    from ddchallenge.report.tables import calibration_table
    from ddchallenge.scoring import resolve_device

    console = new_console()
    device = resolve_device(device)
    with console.status("Loading PyTorch") as status:

        def on_part(name: str) -> None:
            status.update(f"Measuring {name} on {device}")
            if not console.is_terminal:
                say(console, f"Measuring {name} on {device}")

        measured = measure(device, on_part)
    with waiting(console, "Storing it"):
        path = keep(measured)
    if as_json:
        print_json({"path": str(path), "calibration": to_json(measured)})
    else:
        new_console(err=False).print(calibration_table(measured))
    for line in measured.busy:
        say(console, f"The machine was busy: {line}", style="yellow")
    if measured.busy:
        say(console, "A row made with this calibration gets no rank; measure again when quiet.")
    say(console, f"Stored: {path}")


def calibrated(console: Console, order: SamplingOrder, options: SamplingOptions) -> SamplingOrder:
    """The order with this device's calibration, if there is one, and the budget asked for by it.

    Raises :class:`RequestError` for --equivalent without a usable calibration, for an unknown
    device, and together with --budget: the rules' budget is what is scaled, not another.
    """
    from ddchallenge.calibration import kept_calibration
    from ddchallenge.reference_devices import equivalent_budget, get_reference

    device = options["equivalent"]
    if device is not None:
        get_reference(device)
    if device is not None and options["budget"] is not None:
        raise RequestError(
            "--equivalent scales the budget of the rules, and --budget gives another.\n"
            "Leave one of them out."
        )
    try:
        found = kept_calibration(order.device)
    except RequestError as error:
        if device is not None:
            raise
        say(console, f"The run carries no calibration. {error}", style="yellow")
        return order
    if device is None:
        return replace(order, calibration=found)
    if found is None:
        raise RequestError(
            f"--equivalent {device} needs to know how fast this machine is.\n"
            f"Run `ddchallenge calibrate --device {order.device}` first."
        )
    scaled = equivalent_budget(device, found, order.rules)
    say(
        console,
        f"{scaled.budget_seconds:g} s here are taken for {order.rules.budget_seconds:g} s of an "
        f"{device} (× {scaled.factor:.3g}, {scaled.table})",
    )
    return replace(
        order, budget_seconds=scaled.budget_seconds, calibration=found, equivalent=scaled
    )
