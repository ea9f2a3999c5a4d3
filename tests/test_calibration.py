"""How fast a device is, what is kept of it, and the budgets that come of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddchallenge import calibration, environment, reference_devices
from ddchallenge.bundle import read_bundle
from ddchallenge.calibration import WORKLOAD, calibrate, keep, kept_calibration, parts
from ddchallenge.environment import describe_environment
from ddchallenge.errors import BundleError, RequestError, RunError, UnknownNameError
from ddchallenge.jsonio import to_json
from ddchallenge.leaderboard import read_result
from ddchallenge.records import Calibration, Rate
from ddchallenge.reference_devices import TABLES, equivalent_budget, factor_between
from ddchallenge.rules import TRACKS

RULES = TRACKS["generative"]
TABLE = TABLES["reference-devices-1"]
NAMES = ("matmul_bf16", "matmul_fp32", "convolution_bf16", "convolution_fp32", "copy")
SAMPLE = ["sample", "--dataset", "digits"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder that nothing was measured into."""
    monkeypatch.setenv("DDCHALLENGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch):
    """The same workload of a size that takes no time."""
    sizes = calibration.Sizes(matmul=4, images=1, side=2, copied=64, moved=0, calls=1)
    monkeypatch.setattr(calibration, "SIZES", {"cpu": sizes})
    return sizes


def slower_than_the_reference(matmul: float, convolution: float, copy: float, **changes):
    """A calibration of this CPU; each rate is the RTX 4090's through one of the numbers."""
    reference = TABLE["rtx4090"]
    rates = {
        "matmul_bf16": reference.matmul / matmul,
        "matmul_fp32": reference.matmul / matmul / 10,
        "convolution_bf16": reference.convolution / convolution / 10,
        "convolution_fp32": reference.convolution / convolution,
        "copy": reference.copy / copy,
    }
    values = {
        "workload": WORKLOAD,
        "measured_at": "2026-01-01T00:00:00+00:00",
        "host_to_device": None,
        "tf32": False,
        "threads": 2,
        "load_average": 0.0,
        "busy": (),
        "environment": describe_environment("cpu"),
        **{name: Rate(per_second=rate, spread=0.01, repetitions=5) for name, rate in rates.items()},
    }
    return Calibration(**(values | changes))


def ticking(*durations: float):
    """A clock whose readings are that far apart; the last distance for ever."""
    now, left = 0.0, list(durations)

    def clock() -> float:
        nonlocal now
        now += left.pop(0) if len(left) > 1 else left[0]
        return now

    return clock


# --------------------------------------------------------------------------------------- measuring


def test_the_work_of_each_part_is_what_pytorch_counts():
    """FLOP as PyTorch's own counter has them, and as counted by hand; a copy's bytes as moved."""
    found = {part.name: part for part in parts("cpu")}
    assert tuple(found) == NAMES
    for name in NAMES[:4]:
        with FlopCounterMode(display=False) as counter:
            found[name].make()()
        assert counter.get_total_flops() == found[name].work, name
    assert found["matmul_bf16"].work == 2 * 1024 * 1024 * 1024
    # Every value of 16 images of 128 channels and 32×32 takes 9·128 products and as many sums.
    assert found["convolution_fp32"].work == (16 * 128 * 32 * 32) * (9 * 128) * 2
    written = found["copy"].make()()
    assert found["copy"].work == 2 * written.nbytes == 2 * 2**28
    assert bool((written == 1).all())


def test_the_types_are_what_the_names_say():
    """bf16 parts compute in bfloat16, the others in float32, images with channels last."""
    for part in parts("cpu")[:4]:
        result = part.make()()
        wanted = torch.bfloat16 if part.name.endswith("bf16") else torch.float32
        assert result.dtype == wanted
        if part.name.startswith("conv"):
            assert result.is_contiguous(memory_format=torch.channels_last)
            assert result.shape == (16, 128, 32, 32)


def test_a_rate_is_work_by_the_median_time(tiny):
    """By a clock that says 1, 2, 3, 4 and 5 s: median 3 s, quartiles 2 and 4 s."""
    # It is read before, before and after each repetition, and after the fifth.
    readings = [1, 0, 4, 0, 2, 0, 5, 0, 1, 0, 3, 0]
    part = parts("cpu")[0]
    rate = calibration._measure(part, "cpu", ticking(*readings))
    assert rate == Rate(per_second=2 * 4**3 / 3, spread=2 / 3, repetitions=5)


def test_slow_machines_repeat_less_and_fast_ones_a_hundred_times(tiny):
    """A part ends with the first repetition beyond 8 s, but not before five."""

    def made(seconds: float) -> int:
        return calibrate("cpu", clock=ticking(seconds)).copy.repetitions

    # Two readings a repetition, from the fifth one more to look at the bound: five take 11, k
    # take 11 + 3·(k - 5). At a quarter of a second 12 repetitions take 8 s and 13 are beyond.
    assert made(0.25) == 13
    assert made(100.0) == 5
    assert made(0.001) == 100


def test_a_calibration_says_what_it_is_of(tiny, monkeypatch):
    """Every part is told, timed by the clock and recorded with the environment; threads go back."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.25, 9.0, 9.0))
    told = []
    before = torch.get_num_threads()
    unusual = calibration._usable_processors() + 1
    torch.set_num_threads(unusual)
    try:
        made = calibrate("cpu", told.append, clock=ticking(0.25))
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert tuple(told) == NAMES
    assert made.matmul_bf16 == made.matmul_fp32
    assert made.matmul_bf16 == Rate(per_second=4 * 2 * 4**3, spread=0.0, repetitions=13)
    assert made.convolution_bf16.per_second == 4 * 2 * 9 * 128**2 * 1 * 2**2
    assert made.copy.per_second == 4 * 2 * 64
    assert made.host_to_device is None
    assert made.environment == describe_environment("cpu")
    assert (made.workload, made.tf32, made.load_average) == ("calibrate-1", False, 0.25)
    assert made.threads == calibration._usable_processors()
    assert after == unusual


def test_a_busy_machine_is_said(tiny, monkeypatch):
    """A load beyond half the processors, repetitions that differ, processors that are withheld."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(calibration, "_usable_processors", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (4.01, 0.0, 0.0))
    readings = [1, 0, 4, 0, 2, 0, 5, 0, 1, 0, 3, 0]  # of the first part; the others take 3 s each
    made = calibrate("cpu", clock=ticking(*readings, 3))
    assert made.busy == (
        "load average 4.01 on 8 processors before it began",
        "only 2 of 8 processors could be used",
        "matmul_bf16 varied by 67% between the quartiles",
    )
    monkeypatch.setattr(calibration, "_usable_processors", lambda: 8)
    monkeypatch.setattr("os.getloadavg", lambda: (4.0, 9.0, 9.0))
    assert calibrate("cpu", clock=ticking(3)).busy == ()


def test_too_little_memory_is_a_failed_run(monkeypatch):
    """A tensor beyond the machine's memory is its own sentence; other errors are not hidden."""
    sizes = replace(calibration.SIZES["cpu"], matmul=2**24)
    monkeypatch.setattr(calibration, "SIZES", {"cpu": sizes})
    with pytest.raises(RunError, match=r"too little memory on cpu to measure matmul_bf16"):
        calibrate("cpu")
    monkeypatch.setattr(calibration, "SIZES", {"cpu": replace(sizes, matmul=-1)})
    with pytest.raises(RuntimeError, match="negative"):
        calibrate("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graphics_card_is_timed_by_its_own_events():
    """All six parts, rates above a CPU's, TF32 as it was afterwards."""
    before = torch.backends.cudnn.allow_tf32
    made = calibrate("cuda")
    assert made.host_to_device is not None
    assert made.matmul_bf16.per_second > 1e12
    assert torch.backends.cudnn.allow_tf32 == before


# ----------------------------------------------------------------------------------------- scaling


def test_the_budget_is_scaled_by_the_geometric_mean():
    """8, 1 and 27 times as slow: ∛216 = 6, 600 s become 3600; the faster type counts."""
    made = slower_than_the_reference(8, 1, 27)
    assert factor_between(TABLE["rtx4090"], made) == pytest.approx(6, rel=1e-12)
    scaled = equivalent_budget("rtx4090", made, RULES)
    assert (scaled.device, scaled.table) == ("rtx4090", "reference-devices-1")
    assert scaled.budget_seconds == 3600.0
    # Twice as fast in all three: half the budget, to the second.
    faster = slower_than_the_reference(0.5, 0.5, 0.5)
    assert equivalent_budget("rtx4090", faster, RULES).budget_seconds == 300.0
    odd = slower_than_the_reference(1.0011, 1.0011, 1.0011)  # 600.66 s
    assert equivalent_budget("rtx4090", odd, RULES).budget_seconds == 601.0


def test_the_figures_of_the_table():
    """What the data sheet says, 80 % of it, and that nothing was measured."""
    row = TABLE["rtx4090"]
    assert row.matmul == row.convolution == pytest.approx(132.16e12)
    assert row.copy == pytest.approx(806.4e9)
    assert "not measured" in row.source


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (145, r"600 s of an rtx4090 are 24\.2 h here \(× 145\), and a budget may be 1 s to 24 h"),
        (1e-3, r"600 s of an rtx4090 are 0\.6 s here \(× 0\.001\)"),
    ],
)
def test_budgets_have_bounds(ratio, message):
    """A machine too far from the reference is told how far."""
    with pytest.raises(RequestError, match=message):
        equivalent_budget("rtx4090", slower_than_the_reference(*[ratio] * 3), RULES)
    made = slower_than_the_reference(144, 144, 144)
    assert equivalent_budget("rtx4090", made, RULES).budget_seconds == 86_400.0


def test_what_cannot_be_scaled():
    """Unknown devices and tables show the choices; no budget, or no rate, nothing to scale."""
    made = slower_than_the_reference(1, 1, 1)
    with pytest.raises(UnknownNameError, match=r"'rtx4080'. Did you mean 'rtx4090'\?\nChoices: rt"):
        equivalent_budget("rtx4080", made, RULES)
    with pytest.raises(UnknownNameError, match="No table of reference devices is called 'x'"):
        equivalent_budget("rtx4090", made, RULES, "x")
    with pytest.raises(RequestError, match="fixed-ipc track has no budget"):
        equivalent_budget("rtx4090", made, TRACKS["fixed-ipc"])
    still = replace(made, copy=replace(made.copy, per_second=0.0))
    with pytest.raises(RequestError, match="rate of zero"):
        equivalent_budget("rtx4090", still, RULES)


# ----------------------------------------------------------------------------------------- storing


def test_a_calibration_is_kept_for_its_device(cache):
    """What was kept is found again, field by field; the next one takes its place."""
    assert kept_calibration("cpu") is None
    first, second = (slower_than_the_reference(ratio, 1, 1) for ratio in (2, 3))
    path = keep(first)
    assert path.parent == cache / "calibration"
    assert kept_calibration("cpu") == first
    assert keep(second) == path
    assert kept_calibration("cpu") == second
    assert list(path.parent.iterdir()) == [path]


def test_other_hardware_is_kept_apart():
    """Two machines that share a cache folder do not overwrite each other's."""
    here = slower_than_the_reference(1, 1, 1)
    elsewhere = replace(here, environment=replace(here.environment, hardware="another CPU"))
    assert keep(elsewhere) != keep(here)
    assert kept_calibration("cpu") == here


def test_one_of_another_pytorch_or_workload_is_refused(monkeypatch):
    """Each says which it was made with, and what to do."""
    made = slower_than_the_reference(1, 1, 1)
    keep(made)
    with monkeypatch.context() as other:
        other.setattr(environment, "_torch_version", lambda: "99.1")
        with pytest.raises(RequestError, match=r"PyTorch \S+; this is 99\.1\.\nRun `ddchallenge c"):
            kept_calibration("cpu")
    monkeypatch.setattr(calibration, "WORKLOAD", "calibrate-2")
    with pytest.raises(RequestError, match="workload 'calibrate-1'; this version has 'calibrate-2"):
        kept_calibration("cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("copy"), "is damaged: .*copy is missing"),
        (lambda d: d["copy"].update(per_second="fast"), r"copy\.per_second: expected a number"),
        (lambda d: d["environment"].update(hardware="h"), "is of h, not of"),
        (lambda d: d.update(workload=3), "workload: expected printable text"),
        (None, "is damaged: .*not valid JSON"),
    ],
)
def test_a_damaged_calibration_says_so(change, message):
    """What is wrong in it is named, and what to do."""
    path = keep(slower_than_the_reference(2, 2, 2))
    document = json.loads(path.read_text())
    if change is not None:
        change(document)
    path.write_text(json.dumps(document)[: None if change else 100])
    with pytest.raises(RequestError, match=message) as caught:
        kept_calibration("cpu")
    assert "ddchallenge calibrate --device cpu" in str(caught.value)


def test_a_run_does_without_a_damaged_calibration(tmp_path, ddchallenge):
    """With --equivalent it is refused; without, the run goes on, says so and carries none."""
    keep(slower_than_the_reference(2, 2, 2)).write_text("{")
    asked = ddchallenge(*SAMPLE, "--equivalent", "rtx4090", "--out", tmp_path / "asked")
    assert asked.status == 2
    assert "The stored calibration is damaged" in asked.err
    assert not (tmp_path / "asked").exists()
    plain = ddchallenge(*SAMPLE, "--out", tmp_path / "plain", "--json")
    assert plain.status == 0
    assert "The run carries no calibration" in plain.err
    assert json.loads(plain.out)["manifest"]["calibration"] is None


# ------------------------------------------------------------------------------------ command line


def test_calibrate_measures_shows_and_stores(tiny, ddchallenge):
    """Progress goes to stderr, figures to stdout; the stored record is the shown one."""
    ended = ddchallenge("calibrate", "--device", "cpu", "--json")
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    stored = kept_calibration("cpu")
    assert stored is not None
    assert document == {"path": document["path"], "calibration": to_json(stored)}
    assert document["path"] in ended.err
    assert Counter(line for line in ended.err.splitlines() if line.startswith("Measuring")) == {
        f"Measuring {name} on cpu": 1 for name in NAMES
    }
    shown = ddchallenge("calibrate", "--device", "cpu")
    assert "calibrate-1" in shown.out
    assert "data sheet, not measured" in shown.out


def test_a_busy_machine_is_warned_of(tiny, ddchallenge, monkeypatch):
    """Loudly, and the record says so too."""
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    ended = ddchallenge("calibrate", "--device", "cpu")
    assert "The machine was busy: load average 1000" in ended.err
    assert "gets no rank" in ended.err
    stored = kept_calibration("cpu")
    assert stored is not None
    assert stored.busy[0].startswith("load average 1000")


def test_a_run_carries_what_was_measured_and_measures_nothing(ddchallenge, tmp_path, monkeypatch):
    """Nothing without a calibration, the stored one with; the budget is the rules' either way."""

    def refuse(*arguments, **options):
        raise AssertionError("measured inside a run")

    monkeypatch.setattr(calibration, "_measure", refuse)
    plain = ddchallenge(*SAMPLE, "--out", tmp_path / "plain", "--json")
    manifest = json.loads(plain.out)["manifest"]
    assert manifest["calibration"] is manifest["equivalent"] is None
    made = slower_than_the_reference(2, 2, 2)
    keep(made)
    carried = json.loads(ddchallenge(*SAMPLE, "--out", tmp_path / "b", "--json").out)["manifest"]
    assert carried["calibration"] == to_json(made)
    assert carried["equivalent"] is None
    assert carried["sampling"]["budget_seconds"] == 600.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--equivalent", "rtx4090"], "Run `ddchallenge calibrate --device cpu` first."),
        (["--equivalent", "rtx4080"], "No reference device is called 'rtx4080'"),
        (["--equivalent", "rtx4090", "--budget", "60s"], "Leave one of them out."),
    ],
)
def test_what_equivalent_refuses(ddchallenge, tmp_path, options, message):
    """No calibration, an unknown device, a budget of one's own: exit status 2, nothing written."""
    out = tmp_path / "out"
    ended = ddchallenge(*SAMPLE, "--device", "cpu", *options, "--out", out)
    assert ended.status == 2
    assert message in ended.err
    assert not out.exists()


def test_fixed_tensors_have_no_equivalent(ddchallenge, tmp_path):
    """The track without a clock refuses it as it does --budget."""
    line = ["run", "--track", "fixed-ipc", "--dataset", "digits", "--images", "x.pt"]
    ended = ddchallenge(*line, "--equivalent", "rtx4090")
    assert ended.status == 2
    assert "--equivalent means nothing on the fixed-ipc track" in ended.err


def test_a_scaled_run_is_marked_and_recorded_apart(
    ddchallenge, tmp_path, monkeypatch, make_submission
):
    """From the option to the row: budget, factor, mark, file name and group; never over 600 s."""
    entry = make_submission(
        """
        import numpy as np

        class G:
            def setup(self, task): pass
            def generate(self, labels, seed):
                return np.full((len(labels), 3, 8, 8), 9, np.uint8)
        """,
        images_per_class="1",
    )
    keep(slower_than_the_reference(1.5, 1.5, 1.5))
    line = ["run", "--track", "generative", "--dataset", "digits", "--submission", entry.folder]
    line += ["--epochs", "1", "--seeds", "0", "--device", "cpu", "--record"]
    plain = ddchallenge(*line, "--out", tmp_path / "plain")
    assert plain.status == 0, plain.err
    ended = ddchallenge(*line, "--out", tmp_path / "out", "--equivalent", "rtx4090", "--json")
    assert ended.status == 0, ended.err
    assert "900 s here are taken for 600 s of an rtx4090 (× 1.5, reference-devices-1)" in ended.err
    document = json.loads(ended.out)
    assert document["sampling"]["budget_seconds"] == 900.0
    assert document["sampling"]["equivalent"]["factor"] == pytest.approx(1.5)
    assert document["sampling"]["calibration"]["workload"] == "calibrate-1"
    assert "calibrated (rtx4090 × 1.5)" in document["marks"]
    assert not [mark for mark in document["marks"] if "budget" in mark or "busy" in mark]
    recorded = sorted((entry.folder / "results").iterdir())
    assert [path.name for path in recorded] == [
        "digits.eccv2024.json",
        "digits.eccv2024.rtx4090.json",
    ]
    assert read_result(recorded[0]).sampling.budget_seconds == 600.0
    board = ddchallenge("leaderboard", "--results", entry.folder / "results", "--markdown").out
    headings = [text for text in board.splitlines() if text.startswith("**digits")]
    hardware = describe_environment("cpu").hardware
    assert f"**digits · generative · eccv2024 · on {hardware}**" in headings
    assert (
        "**digits · generative · eccv2024 · on the equivalent of rtx4090 (reference-devices-1)**"
        in headings
    )
    again = ddchallenge("score", tmp_path / "out", "--out", tmp_path / "again", *line[7:11])
    assert "× 1.5" in again.out


FORGED = [
    (
        lambda d: d["sampling"].update(budget_seconds=9000.0),
        "comes to 900 s, it says 900 s and",
    ),
    (lambda d: d["equivalent"].update(budget_seconds=9000.0), "it says 9000 s"),
    (lambda d: d["equivalent"].update(factor=3.0), "comes to 900 s"),
    (lambda d: d["equivalent"].update(table="mine"), "No table of reference devices"),
    (lambda d: d["equivalent"].update(device="mine"), "No reference device is called 'mine'"),
    (lambda d: d["calibration"]["copy"].update(per_second=-1.0), "a rate of zero or less"),
    (lambda d: d["calibration"]["copy"].update(per_second=1e9), r"comes to \d+ s, it says 900"),
    (lambda d: d["calibration"]["environment"].update(hardware="h"), "is of other hardware"),
    (lambda d: d.update(calibration=None), "there is no calibration"),
]


def test_a_bundle_cannot_claim_a_budget_its_calibration_does_not_give(ddchallenge, tmp_path):
    """Factor and budget are computed again from the rates; whatever disagrees is named."""
    keep(slower_than_the_reference(1.5, 1.5, 1.5))
    out = tmp_path / "out"
    assert ddchallenge(*SAMPLE, "--equivalent", "rtx4090", "--out", out).status == 0
    equivalent = read_bundle(out / "bundle").manifest.equivalent
    assert equivalent is not None
    assert equivalent.budget_seconds == 900.0
    path = out / "bundle" / "manifest.json"
    written = path.read_text()
    for change, message in FORGED:
        document = json.loads(written)
        change(document)
        path.write_text(json.dumps(document))
        with pytest.raises(BundleError, match=message):
            read_bundle(out / "bundle")


def test_a_version_of_the_table_stays_as_it_is(monkeypatch):
    """A bundle is checked by the version it names, whatever is current."""
    made = slower_than_the_reference(2, 2, 2)
    later = {"rtx4090": replace(TABLE["rtx4090"], copy=1.0)}
    monkeypatch.setitem(reference_devices.TABLES, "reference-devices-2", later)
    old = equivalent_budget("rtx4090", made, RULES, "reference-devices-1")
    assert old.budget_seconds == 1200.0
    with pytest.raises(RequestError, match="a budget may be"):
        equivalent_budget("rtx4090", made, RULES, "reference-devices-2")
