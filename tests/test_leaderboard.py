"""Results on disk, their ranking, and the marks they carry."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ddchallenge.datasets import get_dataset
from ddchallenge.errors import OutputError, RequestError
from ddchallenge.generator import read_submission
from ddchallenge.leaderboard import check_recordable, collect, read_result, write_result
from ddchallenge.marks import cost_the_rank, is_official, marks_of
from ddchallenge.records import (
    Accuracy,
    BundleSummary,
    Calibration,
    Difference,
    Environment,
    EquivalentBudget,
    Manifest,
    PhaseSeconds,
    ProtocolUse,
    Provenance,
    Rate,
    Reference,
    Result,
    SamplingLog,
    SamplingSummary,
    SeedRun,
    SubmissionIdentity,
)
from ddchallenge.report.tables import (
    accuracy_text,
    leaderboard_markdown,
    leaderboard_tables,
    per_class_text,
)
from ddchallenge.rules import PROTOCOLS

OFFICIAL = PROTOCOLS["eccv2024"]


def result(name: str, mean: float, **changes) -> Result:
    official = changes.pop("official", True)
    values = {
        "schema": 3,
        "track": "generative",
        "dataset": "digits",
        "submission": SubmissionIdentity(name=name, digest="0" * 64),
        "ranked": True,
        "protocol": ProtocolUse(
            id="eccv2024",
            network="ConvNetD3-W128",
            epochs=1000,
            official=official,
            numerics="exact",
            equivalence=None,
            device="cpu",
        ),
        "bundle": BundleSummary(digest="1" * 64, images=100, images_per_class=(10, 10)),
        "sampling": None,
        "runs": (
            SeedRun(
                seed=0,
                accuracy=mean,
                optimistic_best_accuracy=None,
                correct=1,
                test_images=2,
                final_loss=None,
                seconds=1.0,
            ),
        ),
        "accuracy": Accuracy(mean=mean, std=None, ci95=None, test_error=0.01),
        "chance": 0.1,
        "per_class": (mean,) * 10,
        "reference": None,
        "marks": (),
        "provenance": Provenance(
            version="0",
            commit=None,
            dirty=None,
            python="3",
            torch="2",
            platform="p",
            device="cpu",
            hardware="h",
            threads=2,
            training_images_per_class=None,
            training_digest=None,
            test_digest="2" * 64,
        ),
    }
    return Result(**(values | changes))


def test_a_result_comes_back_from_its_file(tmp_path):
    """What is written is what is read, field by field, with a reference and without."""
    path = tmp_path / "digits.eccv2024.json"
    written = result("a", 0.5, marks=("real images",))
    write_result(path, written)
    assert read_result(path) == written
    reference = Reference(
        training_digest="3" * 64,
        training_images_per_class=100,
        official_images_per_class=500,
        digests=("4" * 64,),
        runs=written.runs,
        accuracy=Accuracy(mean=0.5, std=0.1, ci95=(0.25, 0.75), test_error=0.01),
        difference=Difference(mean=-0.25, std=0.125, ci95=(-0.5, 0.125)),
    )
    written = replace(written, reference=reference)
    write_result(path, written)
    assert read_result(path) == written


def test_ranks_count_official_ranked_results_only(tmp_path):
    """Best first in each dataset and track; reference lines and unofficial runs have no rank."""
    rows = {
        "third": result("third", 0.5),
        "reference": result("reference", 0.95, ranked=False),
        "quick": result("quick", 0.99, official=False),
        "day-long": result("day-long", 0.97, marks=("unofficial: budget 86400 s of 600 s",)),
        "first": result("first", 0.9),
        "second": result("second", 0.8),
        "elsewhere": result("elsewhere", 0.2, dataset="cifar100"),
    }
    for name, row in rows.items():
        write_result(tmp_path / f"{name}.json", row)
    board = collect([], [tmp_path])
    assert [(row.rank, row.result.submission.name) for row in board.rows] == [
        (1, "elsewhere"),
        (None, "quick"),
        (None, "day-long"),
        (None, "reference"),
        (1, "first"),
        (2, "second"),
        (3, "third"),
    ]
    assert len(leaderboard_tables(board)) == 2


def sampled(hardware: str, equivalent: EquivalentBudget | None = None) -> SamplingSummary:
    return SamplingSummary(
        budget_seconds=600.0,
        elapsed_seconds=1.0,
        stop="images",
        stop_detail="",
        images_sampled=100,
        images_augmented=0,
        late_images=0,
        max_images=None,
        augmentation="none",
        run_seed=0,
        device="cpu",
        hardware=hardware,
        seconds=PhaseSeconds(),
        equivalent=equivalent,
    )


def test_hardware_is_ranked_apart_and_so_are_scaled_budgets(tmp_path):
    """Ranks are among one hardware, or among budgets scaled to one device by one table."""
    scaled = {
        table: EquivalentBudget(device="rtx4090", table=table, factor=2.0, budget_seconds=1200.0)
        for table in ("reference-devices-1", "reference-devices-2")
    }
    rows = {
        "small-best": sampled("small CPU"),
        "small-next": sampled("small CPU"),
        "large": sampled("large CPU"),
        "scaled-large": sampled("large CPU", scaled["reference-devices-1"]),
        "scaled-small": sampled("small CPU", scaled["reference-devices-1"]),
        "scaled-later": sampled("small CPU", scaled["reference-devices-2"]),
    }
    for number, (name, log) in enumerate(rows.items()):
        row = result(name, 0.9 - 0.1 * number, sampling=log)
        write_result(tmp_path / f"{name}.json", row)
    board = collect([], [tmp_path])
    assert {row.result.submission.name: row.rank for row in board.rows} == {
        "small-best": 1,
        "small-next": 2,
        "large": 1,
        "scaled-large": 1,
        "scaled-small": 2,
        "scaled-later": 1,
    }
    headings = [line for line in leaderboard_markdown(board).splitlines() if line.startswith("**")]
    assert headings == [
        "**digits · generative · eccv2024 · on large CPU**",
        "**digits · generative · eccv2024 · on small CPU**",
        "**digits · generative · eccv2024 · on the equivalent of rtx4090 (reference-devices-1)**",
        "**digits · generative · eccv2024 · on the equivalent of rtx4090 (reference-devices-2)**",
    ]
    assert [table.title for table in leaderboard_tables(board)] == [
        heading.strip("*") for heading in headings
    ]


def test_fast_numerics_are_said_and_keep_their_rank(tmp_path):
    """A word among the marks, in both forms of the table; exact numerics need none."""
    exact = result("exact", 0.5, marks=("real images",))
    use = replace(exact.protocol, numerics="fast", equivalence="fast numerics: within ±0.2 points")
    for row in (exact, result("fast", 0.6, protocol=use), result("bare", 0.4)):
        write_result(tmp_path / f"{row.submission.name}.json", row)
    board = collect([], [tmp_path])
    assert [(row.rank, row.result.submission.name) for row in board.rows] == [
        (1, "fast"),
        (2, "exact"),
        (3, "bare"),
    ]
    lines = leaderboard_markdown(board).splitlines()[4:7]
    assert [line.split("|")[-2].strip() for line in lines] == ["fast numerics", "real images", ""]


def test_the_table_fits_a_terminal(tmp_path):
    """Eighty columns hold every column, accuracies whole, each mark from a new line."""
    marks = ("unofficial: budget 60 s of 600 s", "100 of 500 training images a class")
    accuracy = Accuracy(mean=0.125, std=0.00678, ci95=(0.1, 0.2), test_error=0.01)
    row = result("some_submission", 0.125, accuracy=accuracy, marks=marks, dataset="tinyimagenet")
    write_result(tmp_path / "result.json", row)
    console = Console(width=80, file=io.StringIO())
    for table in leaderboard_tables(collect([], [tmp_path])):
        console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "│ 12.50 ± 0.68 │" in text
    assert "│ some_submission │" in text
    words = [line.split("│")[-2].strip() for line in text.splitlines() if line.startswith("│")]
    assert " ".join(words) == "; ".join(marks)


def test_a_result_of_the_schema_before_is_read(tmp_path):
    """It did not say how many images were asked for, but in its marks."""
    recorded = Path(__file__).parent.parent / "baselines/gaussian/results/digits.eccv2024.json"
    document = json.loads(recorded.read_text())
    document["schema"] = 2
    document["sampling"].pop("max_images", None)
    path = tmp_path / "old.json"
    for marks, most in (["real images"], None), (["at most 60 images", "real images"], 60):
        path.write_text(json.dumps(document | {"marks": marks}))
        read = read_result(path)
        assert (read.schema, read.sampling.max_images) == (3, most)
    document["sampling"] = "none"
    path.write_text(json.dumps(document))
    with pytest.raises(RequestError, match="sampling: expected an object"):
        read_result(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("accuracy"), "accuracy"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d["accuracy"].update(mean="high"), "accuracy.mean"),
        (
            lambda d: d.update(schema=4),
            "schema 4; this version reads 2 to 3.\nA later version wrote it",
        ),
        # A result of schema 1 has none of what came later; that is not what is wrong with it.
        (lambda d: [d.update(schema=1), d.pop("per_class")], "score the bundle again with `ddch"),
    ],
)
def test_a_file_that_is_no_result_is_left_out_and_named(tmp_path, change, message):
    """One bad file does not take the leaderboard down; the message says what is wrong in it."""
    write_result(tmp_path / "good.json", result("good", 0.5))
    document = json.loads((tmp_path / "good.json").read_text())
    change(document)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(document))
    board = collect([], [tmp_path])
    assert [row.result.submission.name for row in board.rows] == ["good"]
    assert len(board.problems) == 1
    assert str(bad) in board.problems[0]
    assert message in board.problems[0]
    with pytest.raises(RequestError):
        read_result(bad)


def test_a_copied_or_changed_submission_does_not_keep_its_result(tmp_path, make_submission):
    """A result counts for the submission of its name only, and is marked if that has changed."""
    entry = make_submission("class G: ...", name="mine")
    row = result("mine", 0.5, submission=entry.identity)
    write_result(entry.folder / "results" / "digits.eccv2024.json", row)
    assert [r.result for r in collect([entry]).rows] == [row]
    (entry.folder / "generate.py").write_text("class G: pass")
    (changed,) = collect([entry]).rows
    assert changed.result.marks == ("the submission has changed since",)
    copy = make_submission("class G: ...", name="copy")
    write_result(copy.folder / "results" / "digits.eccv2024.json", row)
    board = collect([copy])
    assert board.rows == ()
    assert "is a result of mine, not of copy" in board.problems[0]


def test_an_empty_results_folder_is_said(tmp_path):
    """--results of a folder without results says so; run folders in it are found."""
    assert "holds no result" in collect([], [tmp_path]).problems[0]
    write_result(tmp_path / "run" / "result.json", result("mine", 0.5))
    assert len(collect([], [tmp_path]).rows) == 1


def test_an_unofficial_result_never_replaces_an_official_one(tmp_path):
    """--record of a quick run is refused where a full one lies; the other way round is fine."""
    path = tmp_path / "digits.eccv2024.json"
    check_recordable(path, official=False)
    write_result(path, result("a", 0.5))
    check_recordable(path, official=True)
    with pytest.raises(OutputError, match="official result"):
        check_recordable(path, official=False)


def manifest(**changes) -> Manifest:
    log = SamplingLog(
        rules_id="eccv2024-generative-1",
        budget_seconds=600.0,
        elapsed_seconds=3.0,
        stop="images",
        stop_detail="",
        run_seed=0,
        device="cuda",
        max_images=None,
        augmentation="none",
        images_sampled=100,
        images_augmented=0,
        late_images=0,
        seconds=PhaseSeconds(),
        augmentation_worker_seconds=0.0,
        augmented_ranges=(),
        batches=(),
    )
    log = replace(log, **changes.pop("log", {}))
    values = {
        "schema": 2,
        "track": "generative",
        "dataset": "cifar100",
        "digest": "0" * 64,
        "dtype": "uint8",
        "images": 100,
        "images_per_class": (1, 1),
        "normalisation": "pixels",
        "submission": SubmissionIdentity(name="a", digest="0" * 64),
        "ranked": True,
        "contains_real_images": False,
        "training_images_per_class": 500,
        "training_digest": "0" * 64,
        "weights_digest": None,
        "origin": None,
        "sampling": log,
        "launch": None,
        "recovered": False,
        "environment": Environment(
            version="0",
            commit=None,
            dirty=None,
            python="3",
            torch="2",
            platform="p",
            device="cuda",
            hardware="NVIDIA GeForce RTX 4090",
        ),
    }
    return Manifest(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({}, None),
        ({"log": {"budget_seconds": 60.0}}, "unofficial: budget 60 s of 600 s"),
        ({"log": {"max_images": 50}}, "at most 50 images"),
        ({"log": {"stop": "crashed"}}, "stopped early: crashed"),
        ({"log": {"stop": "interrupted"}}, "unofficial: stopped early: interrupted"),
        ({"training_images_per_class": 100}, "100 of 500 training images a class"),
        ({"contains_real_images": True}, "real images"),
        ({"images_per_class": (0, 5)}, "classes without images"),
        ({"sampling": None}, "unofficial: imported, not sampled under a clock"),
        ({"normalisation": "none: values 0..1"}, "normalisation: none: values 0..1"),
    ],
)
def test_what_is_unusual_is_marked(changes, mark):
    """A run by the book has no mark; every departure has its own."""
    marks = marks_of(manifest(**changes), get_dataset("cifar100"), OFFICIAL, 1000, (0, 1, 2))
    assert marks == (() if mark is None else (mark,))


def test_other_hardware_epochs_and_seeds_are_marked():
    """So are a processor where the challenge had a graphics card, and a shortened protocol."""
    changed = manifest()
    changed = replace(changed, environment=replace(changed.environment, hardware="some CPU"))
    assert marks_of(changed, get_dataset("cifar100"), OFFICIAL, 2, (0, 1)) == (
        "unofficial: 2 of 1000 epochs",
        "unofficial: seeds 0,1",
        "not on an RTX 4090",
    )
    assert not is_official(OFFICIAL, 2, (0, 1, 2))
    assert not is_official(OFFICIAL, 1000, (0, 1))
    assert is_official(OFFICIAL, 1000, (0, 1, 2))


def test_a_scaled_budget_is_marked_once():
    """As calibrated and not as another budget; one of a busy machine has no rank."""
    rate = Rate(per_second=1e12, spread=0.01, repetitions=5)
    calibration = Calibration(
        workload="calibrate-1",
        measured_at="2026-01-01T00:00:00+00:00",
        matmul_bf16=rate,
        matmul_fp32=rate,
        convolution_bf16=rate,
        convolution_fp32=rate,
        copy=rate,
        host_to_device=None,
        tf32=False,
        threads=2,
        load_average=0.1,
        busy=(),
        environment=manifest().environment,
    )
    scaled = EquivalentBudget(
        device="rtx4090", table="reference-devices-1", factor=3.2, budget_seconds=1920.0
    )
    changes = {"log": {"budget_seconds": 1920.0}, "equivalent": scaled}

    def marks(calibration):
        made = manifest(**changes, calibration=calibration)
        return marks_of(made, get_dataset("cifar100"), OFFICIAL, 1000, (0, 1, 2))

    assert marks(calibration) == ("calibrated (rtx4090 × 3.2)",)
    assert not cost_the_rank(marks(calibration))
    busy = marks(replace(calibration, busy=("load average 9 on 2 processors",)))
    assert busy == (
        "calibrated (rtx4090 × 3.2)",
        "unofficial: calibrated while the machine was busy",
    )
    assert cost_the_rank(busy)


def test_numbers_as_people_read_them():
    """Per cent with two digits, the deviation where there is one, ranges where classes differ."""
    accuracy = Accuracy(mean=0.87404, std=0.00531, ci95=(0.86, 0.89), test_error=0.01)
    assert accuracy_text(accuracy) == "87.40 ± 0.53"
    assert accuracy_text(replace(accuracy, mean=1.0, std=None)) == "100.00"
    assert per_class_text((10, 10)) == "10"
    assert per_class_text((999, 1000)) == "999–1,000"


def test_the_readme_shows_the_recorded_results():
    """Every result in this repository is one, and the README's table is made of them."""
    root = Path(__file__).parent.parent
    configs = [*root.glob("baselines/*/*.toml"), *root.glob("submissions/*/*.toml")]
    board = collect(read_submission(config.parent) for config in configs)
    assert board.problems == ()
    assert {"gaussian", "real_subset"} <= {row.result.submission.name for row in board.rows}
    assert leaderboard_markdown(board) in (root / "README.md").read_text()
