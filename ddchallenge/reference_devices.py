"""The devices a budget can be made equivalent to: a versioned table, and the formula.

Nobody here had the challenge's RTX 4090, so its row is a data sheet's, times the share of it that
large kernels are assumed to reach. As everywhere, other numbers are a new version and never an
edit: bundles name the version their budget was computed with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ddchallenge.errors import RequestError, UnknownNameError
from ddchallenge.records import Calibration, EquivalentBudget, Rate, Rules

__all__ = [
    "CURRENT_TABLE",
    "TABLES",
    "ReferenceDevice",
    "equivalent_budget",
    "factor_between",
    "get_reference",
]

# As much as --budget takes.
MAX_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceDevice:
    """What the workload of :mod:`ddchallenge.calibration` is taken to reach on a device.

    ``matmul`` and ``convolution`` are of the faster of bfloat16 and float32, in FLOP/s; ``copy``
    is in bytes/s read and written. ``source`` says where the figures are from, and whether
    anything was measured.
    """

    matmul: float
    convolution: float
    copy: float
    source: str


# Of a data sheet's peak; an assumption, the same for all three figures, and not measured.
_ATTAINED: Final = 0.8

TABLES: Final = {
    "reference-devices-1": {
        "rtx4090": ReferenceDevice(
            # Dense bfloat16 with float32 accumulation; float32 without tensor cores is 82.6.
            matmul=_ATTAINED * 165.2e12,
            convolution=_ATTAINED * 165.2e12,
            copy=_ATTAINED * 1008e9,
            source="data sheet, not measured: NVIDIA Ada GPU Architecture whitepaper, GeForce "
            "RTX 4090: 165.2 TFLOP/s dense bf16, 1008 GB/s; 80 % of each assumed attainable",
        ),
    },
}
CURRENT_TABLE: Final = "reference-devices-1"


def get_reference(device: str, table: str = CURRENT_TABLE) -> ReferenceDevice:
    """A device of the table; raises :class:`UnknownNameError`, for the table's version as well."""
    if table not in TABLES:
        raise UnknownNameError("table of reference devices", table, TABLES)
    if device not in TABLES[table]:
        raise UnknownNameError("reference device", device, TABLES[table])
    return TABLES[table][device]


def factor_between(reference: ReferenceDevice, calibration: Calibration) -> float:
    """How many times as long this device takes as the reference: the geometric mean of three.

    What a generator is made of is not known, so products, convolutions and memory traffic count
    alike; and of ratios only the geometric mean is the same whichever device they are taken
    against (Fleming & Wallace, "How not to lie with statistics", CACM 1986). Of bfloat16 and
    float32 the faster counts, as a generator would choose it.

    Raises :class:`RequestError` where a rate is not positive.
    """
    here = (
        _faster(calibration.matmul_bf16, calibration.matmul_fp32),
        _faster(calibration.convolution_bf16, calibration.convolution_fp32),
        calibration.copy.per_second,
    )
    if min(here) <= 0:
        raise RequestError(
            "The calibration has a rate of zero or less.\nRun `ddchallenge calibrate` again."
        )
    there = (reference.matmul, reference.convolution, reference.copy)
    logs = [math.log(theirs) - math.log(ours) for theirs, ours in zip(there, here, strict=True)]
    return math.exp(sum(logs) / len(logs))


def _faster(*rates: Rate) -> float:
    return max(rate.per_second for rate in rates)


def equivalent_budget(
    device: str, calibration: Calibration, rules: Rules, table: str = CURRENT_TABLE
) -> EquivalentBudget:
    """The budget worth as much on the calibrated device as the rules' is on the reference.

    The whole budget is scaled, start-up and loading included, and rounded to a second.

    Raises :class:`UnknownNameError` for a device or a table that is not there, and
    :class:`RequestError` for rules without a budget and for one outside 1 s to 24 h.
    """
    if rules.budget_seconds is None:
        raise RequestError(f"The {rules.track} track has no budget to make equivalent.")
    factor = factor_between(get_reference(device, table), calibration)
    seconds = factor * rules.budget_seconds
    if not 1.0 <= seconds <= MAX_SECONDS:
        raise RequestError(
            f"{rules.budget_seconds:g} s of an {device} are {_readable(seconds)} here "
            f"(× {factor:.3g}), and a budget may be 1 s to 24 h.\n"
            "Leave --equivalent out, or use a machine that is nearer to it."
        )
    return EquivalentBudget(
        device=device, table=table, factor=factor, budget_seconds=float(round(seconds))
    )


def _readable(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:.3g} s"
