"""Two one-sided tests, and what follows from them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ddchallenge.jsonio import to_json, write_json
from ddchallenge.scoring import equivalence
from ddchallenge.scoring.equivalence import Equivalence, default_numerics, measured, of_differences

ENTRY = Equivalence(
    device="cpu",
    dataset="digits",
    protocol="eccv2024",
    epochs=1000,
    images_per_class=10,
    test_images=500,
    seeds=20,
    exact_mean=0.95,
    fast_mean=0.951,
    difference=0.001,
    interval90=(-0.001, 0.003),
    largest_difference=0.01,
    commit=None,
    torch="2",
    hardware="a test",
)


@pytest.mark.parametrize("shift", [-0.01, -0.004, 0.0, 0.002, 0.01])
def test_the_interval_decides_as_two_one_sided_tests_do(shift):
    """Against SciPy's one-sided t-tests at 5 % on either side of the margin: equivalence is
    established exactly where both reject."""
    for spread in (0.001, 0.004, 0.01):
        differences = np.random.default_rng(3).normal(shift, spread, 12)
        mean, interval = of_differences(differences.tolist())
        entry = dataclasses.replace(ENTRY, difference=mean, interval90=interval)
        above = stats.ttest_1samp(differences, -equivalence.MARGIN, alternative="greater").pvalue
        below = stats.ttest_1samp(differences, equivalence.MARGIN, alternative="less").pvalue

        assert entry.established == (max(above, below) < 0.05)
        assert mean == pytest.approx(differences.mean())


def test_one_pair_is_no_measurement():
    """The spread of a single difference is unknown."""
    with pytest.raises(ValueError, match="spread"):
        of_differences([0.001])


def test_what_is_quoted():
    """The bound is the end of the interval that is farther from zero, in points."""
    assert ENTRY.sentence == (
        "fast numerics: within ±0.30 points of exact, 90 %, n = 20 (digits, 1000 epochs, cpu)"
    )


def test_fast_is_the_default_where_it_was_established_and_nowhere_else(tmp_path, monkeypatch):
    """Another device, data set or protocol, an interval that reaches the margin, and no file at
    all: exact."""
    monkeypatch.setattr(equivalence, "FILE", tmp_path / "equivalence.json")
    assert default_numerics("cpu", "digits", "eccv2024") == "exact"
    wide = dataclasses.replace(ENTRY, dataset="cifar100", interval90=(-0.002, 0.005))
    write_json(equivalence.FILE, {"measurements": [to_json(ENTRY), to_json(wide)]})

    assert default_numerics("cpu", "digits", "eccv2024") == "fast"
    assert default_numerics("cuda:0", "digits", "eccv2024") == "exact"
    assert default_numerics("cpu", "digits", "imagewoof-resnet-18") == "exact"
    assert default_numerics("cpu", "cifar100", "eccv2024") == "exact"
    assert default_numerics("cpu", "tinyimagenet", "eccv2024") == "exact"
    assert measured("cpu", "digits", "eccv2024") == ENTRY


def test_the_measurements_that_are_shipped(monkeypatch):
    """The file beside the code reads; what the README's table says of each data set is in it, and
    each of them was established."""
    root = Path(equivalence.__file__).parents[2]
    monkeypatch.setattr(
        equivalence, "FILE", Path(equivalence.__file__).with_name("equivalence.json")
    )
    rows = [line.split("|") for line in (root / "README.md").read_text().splitlines()]
    for dataset in ("digits", "cifar100", "tinyimagenet"):
        found = measured("cpu", dataset, "eccv2024")
        assert found.established
        low, high = (f"{100 * end:+.2f}".replace("-", "−") for end in found.interval90)
        (row,) = [row for row in rows if len(row) > 6 and row[1].strip().startswith(dataset + ",")]
        assert [cell.strip() for cell in row[2:6]] == [
            str(found.seeds),
            f"{100 * found.exact_mean:.2f}",
            f"{100 * found.fast_mean:.2f}",
            f"{low} to {high}",
        ]
