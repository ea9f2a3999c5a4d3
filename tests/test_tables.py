"""What a terminal of eighty columns shows of a result."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from test_leaderboard import result
from test_statistics import runs_of

from ddchallenge.datasets import get_dataset
from ddchallenge.records import PhaseSeconds, Reference, SamplingSummary
from ddchallenge.report.tables import reference_lines, result_table
from ddchallenge.scoring.statistics import accuracy_of, paired_difference

DIGITS = get_dataset("digits").class_names


def shown(row, names=DIGITS):
    console = Console(width=80, file=io.StringIO())
    console.print(result_table(row, names))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    return lines


def scored(*accuracies, test_images=500, **changes):
    runs = tuple(runs_of(*accuracies, test_images=test_images))
    return result("mine", accuracies[0], runs=runs, accuracy=accuracy_of(runs), **changes)


def reference_of(row, *accuracies, there=500):
    runs = tuple(runs_of(*accuracies))
    return Reference(
        training_digest="0" * 64,
        training_images_per_class=there,
        official_images_per_class=500,
        digests=("1" * 64,) * len(runs),
        runs=runs,
        accuracy=accuracy_of(runs),
        difference=paired_difference(row.runs, runs),
    )


def test_a_result_says_what_it_is_worth():
    """Every number of the score with its unit, what it is about, and all of ten classes."""
    row = scored(
        0.932,
        0.93,
        0.928,
        per_class=(0.98, 0.9, 1.0, 0.85, 0.96, 0.91, 0.99, 0.97, 0.8, 0.94),
        marks=("real images", "unofficial: budget 60 s of 600 s"),
    )
    row = replace(row, reference=reference_of(row, 0.966, 0.972, 0.97))
    assert shown(row) == [
        "submission  mine on digits",
        "accuracy    93.00 ± 0.20 %  (seeds: 93.20, 93.00, 92.80; chance 10.0%)",
        "interval    92.50 to 93.50 %  (95 %, over seeds)",
        "test set    ± 1.14 points  (standard error of 500 images, at any seeds)",
        "reference   96.93 ± 0.31 %  (random real images; seeds: 96.60, 97.20, 97.00)",
        "            this bundle is 3.93 ± 0.46 points below random real images",
        "            95 % interval over seeds: 2.79 to 5.08 points below",
        "classes     2  100.0%    9   94.0%",
        "            6   99.0%    5   91.0%",
        "            0   98.0%    1   90.0%",
        "            7   97.0%    3   85.0%",
        "            4   96.0%    8   80.0%",
        "scored by   eccv2024, ConvNetD3-W128, exact numerics, 3 seeds",
        "images      100, 10 a class",
        "marks       real images; unofficial: budget 60 s of 600 s",
    ]


def test_one_seed_has_neither_deviation_nor_interval():
    """What cannot be known is not shown; the comparison is there all the same."""
    row = scored(0.5)
    row = replace(row, reference=reference_of(row, 0.25))
    lines = shown(row)
    assert lines[1:5] == [
        "accuracy    50.00 %  (seeds: 50.00; chance 10.0%)",
        "test set    ± 2.24 points  (standard error of 500 images, at any seeds)",
        "reference   25.00 %  (random real images; seeds: 25.00)",
        "            this bundle is 25.00 points above random real images",
    ]
    assert "exact numerics, 1 seed" in "\n".join(lines)
    assert not any("interval" in line or "nan" in line for line in lines)


def test_of_many_classes_the_best_and_the_worst_are_shown():
    """Five each, by name; long names are cut; where more are as bad as the worst shown, how many
    there are is said, for which of them are shown is chance."""
    names = get_dataset("tinyimagenet").class_names
    per_class = [0.1 + 0.001 * label for label in range(200)]
    row = scored(0.05, 0.06, test_images=10_000, per_class=tuple(per_class), chance=0.005)
    start = shown(row, names).index("classes     best                  worst")
    assert shown(row, names)[start + 1 : start + 6] == [
        "            acorn        29.9%    goldfish                   10.0%",
        "            seashore     29.8%    European fire salamander   10.1%",
        "            lakeside     29.7%    bullfrog                   10.2%",
        "            coral reef   29.6%    tailed frog                10.3%",
        "            cliff        29.5%    American alligator         10.4%",
    ]

    per_class[50:150] = [0.0] * 100
    row = replace(row, per_class=tuple(per_class))
    assert any(line.endswith("worst, 100 at 0.0%") for line in shown(row, names))
    shown(row, ["a class of a very long name " * 3] * 200)


@pytest.mark.parametrize("classes", [1, 2, 3, 9, 11])
def test_every_class_of_few_is_shown_once(classes):
    """Up to ten all of them; of eleven, ten different ones."""
    names = [f"class{label:02}" for label in range(classes)]
    text = "\n".join(shown(scored(0.5, per_class=(0.5,) * classes), names))
    assert sum(name in text for name in names) == min(classes, 10)
    assert all(text.count(name) <= 1 for name in names)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.5, 0.6, 0.4), (0.45, 0.61, 0.4), [
            "this bundle is 1.33 ± 3.21 points above random real images",
            "no difference shown: 95 % from 6.65 points below to 9.32 above",
        ]),
        ((0.5, 0.6), (0.5, 0.6), [
            "this bundle is level with random real images",
            "no difference shown: 95 % from 0.00 points below to 0.00 above",
        ]),
        ((0.5, 0.6, 0.7), (0.25, 0.34, 0.46), [
            "this bundle is 25.00 ± 1.00 points above random real images",
            "95 % interval over seeds: 22.52 to 27.48 points above",
        ]),
    ],
)  # fmt: skip
def test_the_comparison_is_put_into_words(ours, theirs, expected):
    """Above, below or level; an interval with zero in it is no difference."""
    row = scored(*ours)
    assert reference_lines(reference_of(row, *theirs))[1:] == expected


def test_a_reference_from_a_part_of_the_training_set_says_so():
    """A hundred of five hundred images a class to draw from: other draws would be more alike."""
    row = scored(0.5, 0.6)
    lines = reference_lines(reference_of(row, 0.5, 0.6, there=100))
    assert lines[-1] == "(drawn from 100 of 500 training images a class)"


def test_the_best_pass_is_called_optimistic():
    """Where a protocol tests after every pass, its best is there, and never as the score."""
    row = scored(0.5, 0.25)
    runs = tuple(replace(run, optimistic_best_accuracy=run.accuracy + 0.1) for run in row.runs)
    lines = shown(replace(row, runs=runs))
    assert "best pass   47.50 %  (optimistic: the test set itself chose it)" in lines
    assert lines[1].startswith("accuracy    37.50 ± 17.68 %")
    assert not any("best pass" in line for line in shown(row))


def test_fast_numerics_quote_their_equivalence():
    """The bound stands with the score it is about."""
    row = scored(0.5, 0.25)
    sentence = "fast numerics: within ±0.21 points of exact, 90 %, n = 20"
    use = replace(row.protocol, numerics="fast", equivalence=sentence)
    lines = shown(replace(row, protocol=use))
    place = lines.index("scored by   eccv2024, ConvNetD3-W128, fast numerics, 2 seeds")
    assert lines[place + 1] == f"            {sentence}"


def test_markup_in_names_stays_text():
    """Class folders and submissions may be called anything."""
    row = scored(0.5, dataset="[bold]x[/]", per_class=(0.5, 0.25))
    text = "\n".join(shown(row, ["[red]a[/red]", "[/b]"]))
    assert "mine on [bold]x[/]" in text
    assert "[red]a[/red]" in text
    assert "[/b]" in text


def test_a_recovered_run_shows_no_made_up_zeros():
    """What a killed supervisor spent on start-up nobody knows."""
    log = SamplingSummary(
        budget_seconds=600.0,
        elapsed_seconds=90.0,
        stop="interrupted",
        stop_detail="",
        max_images=None,
        images_sampled=100,
        images_augmented=0,
        late_images=0,
        augmentation="none",
        run_seed=0,
        device="cpu",
        hardware="a processor",
        seconds=PhaseSeconds(sampling=90.0),
    )
    honest = replace(scored(0.93), sampling=log)
    assert "start-up" in " ".join(shown(honest))
    lost = replace(honest, marks=("unofficial: recovered after the supervisor was killed",))
    text = " ".join(shown(lost))
    assert "start-up" not in text
    assert "(sampling " in text
