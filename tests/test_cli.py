"""The command line as its users meet it: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats

from ddchallenge.bundle import read_bundle
from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.leaderboard import read_result
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import fast

QUICK = ["--epochs", "1", "--seeds", "0,1", "--budget", "60s"]
RUN = ["run", "--track", "generative", "--dataset", "digits"]


def test_the_main_line_from_a_generator_to_a_row(ddchallenge, tmp_path, monkeypatch):
    """`run` writes bundle, result and log; the result is the documented JSON, and is ranked."""
    monkeypatch.chdir(tmp_path)
    assert ddchallenge("new", "mine").status == 0
    out = tmp_path / "out"
    ended = ddchallenge(
        "run", "--track", "generative", "--dataset", "digits", "--submission", "mine",
        *QUICK, "--out", out, "--record", "--json",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    assert document == json.loads((out / "result.json").read_text())
    assert set(document) >= {
        "schema", "track", "dataset", "submission", "protocol", "bundle", "sampling", "runs",
        "accuracy", "chance", "per_class", "reference", "marks", "provenance",
    }  # fmt: skip
    assert document["protocol"] == {
        "id": "eccv2024", "network": "ConvNetD3-W128", "epochs": 1, "official": False,
        "numerics": "exact", "equivalence": None, "device": "cpu",
    }  # fmt: skip
    assert document["bundle"]["images_per_class"] == [10, 10]
    assert document["sampling"]["stop"] == "images"
    accuracies = [run["accuracy"] for run in document["runs"]]
    assert document["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert document["accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))
    interval = stats.ttest_1samp(accuracies, 0).confidence_interval(0.95)
    assert document["accuracy"]["ci95"] == pytest.approx(np.clip(interval, 0, 1))
    mean = document["accuracy"]["mean"]
    assert document["accuracy"]["test_error"] == pytest.approx((mean * (1 - mean) / 500) ** 0.5)
    test_labels = load_split(get_dataset("digits"), "test").data.labels
    weights = np.bincount(test_labels) / 500
    assert np.dot(document["per_class"], weights) == pytest.approx(mean)
    assert document["reference"] is None

    written = {"bundle", "result.json", "confusion.png", "worker.log"}
    assert {p.name for p in out.iterdir()} == written
    tensors = load_file(out / "bundle" / "images.safetensors")
    assert tensors["images"].shape == (100, 3, 8, 8)
    assert tensors["images"].dtype == np.uint8
    assert tensors["labels"].tolist() == sorted(list(range(10)) * 10)
    assert (out / "bundle" / "samples.png").stat().st_size > 0

    recorded = tmp_path / "submissions" / "mine" / "results" / "digits.eccv2024.json"
    assert read_result(recorded) == read_result(out / "result.json")
    board = ddchallenge("leaderboard", "--json")
    rows = {row["submission"]["name"]: row for row in json.loads(board.out)}
    assert rows["mine"]["rank"] is None  # two passes are no official result
    assert "mine" in ddchallenge("leaderboard").out


def test_halves_give_what_the_whole_gives(ddchallenge, tmp_path):
    """`sample` then `score` is `run`: same digest, same accuracies."""
    common = ["--dataset", "digits", "--submission", "gaussian", "--max-images", "40"]
    whole = ddchallenge("run", "--track", "generative", *common, *QUICK, "--out", tmp_path / "a")
    assert whole.status == 0, whole.err
    assert ddchallenge("sample", *common, "--budget", "60s", "--out", tmp_path / "b").status == 0
    halves = ddchallenge("score", tmp_path / "b", *QUICK[:4])
    assert halves.status == 0, halves.err
    one, two = (read_result(tmp_path / name / "result.json") for name in "ab")
    assert one.bundle == two.bundle
    assert [r.accuracy for r in one.runs] == [r.accuracy for r in two.runs]
    assert one.bundle.images == 40


def test_a_bundle_is_held_against_real_images(ddchallenge, tmp_path):
    """`run --reference` scores real images under the same seeds, says so while it does, and puts
    the paired difference into text and JSON; `score --reference` says the same."""
    out = tmp_path / "out"
    ended = ddchallenge(*RUN, *QUICK, "--reference", "--max-images", "50", "--out", out)
    assert ended.status == 0, ended.err
    result = read_result(out / "result.json")
    reference = result.reference
    assert [run.seed for run in reference.runs] == [0, 1]
    pairs = [
        run.accuracy - real.accuracy for run, real in zip(result.runs, reference.runs, strict=True)
    ]
    assert reference.difference.mean == pytest.approx(np.mean(pairs))
    assert reference.training_digest == load_split(get_dataset("digits"), "train").digest
    assert "scoring: reference, seed 0 (1/2)" in ended.err
    assert "scoring: reference, seed 1 (2/2)" in ended.err
    side = "above" if reference.difference.mean > 0 else "below"
    assert f"points {side} random real images" in ended.out

    again = ddchallenge(
        "score", out, *QUICK[:4], "--reference", "--out", tmp_path / "again", "--json"
    )
    assert again.status == 0, again.err
    document = json.loads(again.out)["reference"]
    assert [run["accuracy"] for run in document["runs"]] == [r.accuracy for r in reference.runs]
    assert document["difference"]["ci95"] == list(reference.difference.ci95)
    assert document["digests"] == list(reference.digests)


def test_too_few_real_images_are_said_before_anything_is_trained(
    ddchallenge, tmp_path, monkeypatch
):
    """Status 2, the class, both numbers; the bundle stays and can be scored without."""
    out = tmp_path / "out"
    sampled = ddchallenge(
        "sample", "--dataset", "digits", "--max-images", "1400", "--out", out,
        "--submission", "gaussian",
    )  # fmt: skip
    assert sampled.status == 0, sampled.err
    monkeypatch.setattr("ddchallenge.pipeline.score", None)
    ended = ddchallenge("score", out, "--reference")
    assert ended.status == 2
    assert "--reference needs 140 real images of '0'" in " ".join(ended.err.split())
    assert {path.name for path in out.iterdir()} == {"bundle", "worker.log"}


def test_a_picture_that_cannot_be_written_costs_nothing_else(ddchallenge, tmp_path, monkeypatch):
    """Result and table are there, the failure is told, the status is 1: also where the drawing
    itself has an error."""
    out = tmp_path / "out"
    assert ddchallenge("sample", "--dataset", "digits", "--out", out).status == 0
    for name, error in (("a", OSError(28, "No space left on device")), ("b", ValueError("odd"))):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
        ended = ddchallenge("score", out, "--epochs", "0", "--seeds", "0", "--out", tmp_path / name)
        assert ended.status == 1
        assert "confusion.png" in ended.err or "ValueError: odd" in ended.err
        assert "submission" in ended.out
        assert read_result(tmp_path / name / "result.json").runs[0].seed == 0
        assert {path.name for path in (tmp_path / name).iterdir()} == {"result.json"}


def test_an_interrupted_reference_says_how_to_go_on(ddchallenge, tmp_path, monkeypatch):
    """Ctrl-C while real images are scored: the command that is printed asks for them again."""
    out = tmp_path / "out"
    assert ddchallenge("sample", "--dataset", "digits", "--out", out).status == 0

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddchallenge.pipeline.score_reference", interrupt)
    ended = ddchallenge("score", out, "--epochs", "0", "--seeds", "0,1", "--reference")
    assert ended.status == 1
    assert f"ddchallenge score {out / 'bundle'} --epochs 0 --seeds 0,1 --reference" in ended.err


def test_classes_without_images_are_scored_and_said(ddchallenge, tmp_path):
    """A bundle without eights and nines: the audit names them, the result is marked, and so is
    every table it stands on; their accuracies are part of the mean."""
    pixels, labels = tmp_path / "images.pt", tmp_path / "labels.pt"
    torch.save(torch.arange(40 * 3 * 64).reshape(40, 3, 8, 8).to(torch.uint8), pixels)
    torch.save(torch.arange(40) % 8, labels)
    command = ["import", pixels, "--labels", labels, "--dataset", "digits"]
    assert ddchallenge(*command, "--out", tmp_path / "B").status == 0
    ended = ddchallenge("score", tmp_path / "B", *QUICK[:4])
    assert ended.status == 0, ended.err
    assert "2 of 10 classes have no image: 8, 9" in ended.err
    assert "classes without images" in " ".join(ended.out.split())
    result = read_result(tmp_path / "B" / "result.json")
    assert "classes without images" in result.marks
    assert len(result.per_class) == 10
    board = ddchallenge("leaderboard", "--results", tmp_path)
    assert "classes without images" in board.out


def test_a_run_can_be_repeated_bit_for_bit(ddchallenge, tmp_path):
    """The same run seed gives the same images, another one others."""
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ended = ddchallenge(
            "sample", "--dataset", "digits", "--seed", str(seed), "--out", tmp_path / name
        )
        assert ended.status == 0, ended.err
        digests.append(read_bundle(tmp_path / name / "bundle").manifest.digest)
    assert digests[0] == digests[1] != digests[2]


def test_official_files_go_in_and_out_unchanged(ddchallenge, tmp_path):
    """import then export of an official tensor gives equal tensors and the same digest."""
    spec = get_dataset("digits")
    rng = np.random.default_rng(0)
    file = tmp_path / "mine.pt"
    tensor = torch.from_numpy(rng.standard_normal((100, 3, 8, 8), dtype=np.float32)).clip(-0.8, 1.8)
    torch.save(tensor, file)
    assert ddchallenge("import", file, "--dataset", "digits", "--out", tmp_path / "B").status == 0
    ended = ddchallenge("export", tmp_path / "B", "--out", tmp_path / "official", "--json")
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    again = torch.load(tmp_path / "official" / "digits.pt", weights_only=True)
    assert torch.equal(again, tensor)
    assert document["digest"] == read_bundle(tmp_path / "B").manifest.digest
    assert spec.num_classes * 10 == document["images"]


def test_the_fixed_ipc_track_takes_a_tensor(ddchallenge, tmp_path):
    """`run --track fixed-ipc --images` imports and scores; another number a class is refused."""
    rng = np.random.default_rng(0)
    for count in (100, 90):
        images = rng.standard_normal((count, 3, 8, 8), dtype=np.float32)
        torch.save(torch.from_numpy(images), tmp_path / f"images{count}.pt")
    command = ["run", "--track", "fixed-ipc", "--dataset", "digits", *QUICK[:4]]
    ended = ddchallenge(*command, "--images", tmp_path / "images100.pt", "--out", tmp_path / "a")
    assert ended.status == 0, ended.err
    result = read_result(tmp_path / "a" / "result.json")
    assert (result.track, result.sampling, result.submission.name) == (
        "fixed-ipc",
        None,
        "images100",
    )
    refused = ddchallenge(*command, "--images", tmp_path / "images90.pt", "--out", tmp_path / "b")
    assert refused.status == 2
    assert "exactly 10 images a class" in refused.err
    assert not (tmp_path / "b" / "bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--track", "generativ", "--dataset", "digits"], "Did you mean 'generative'?"),
        (["run", "--track", "generative", "--dataset", "cifar10"], "Did you mean 'cifar100'?"),
        ([*RUN, "--submission", "gausian"], "Did you mean 'gaussian'?"),
        ([*RUN, "--augment", "pda"], "Did you mean 'pda5'?"),
        ([*RUN, "--device", "gpu"], "No device is called 'gpu'"),
        ([*RUN, "--budget", "ten"], "no time such as 90s, 10m"),
        ([*RUN, "--budget", "0s"], "no time such as 90s, 10m"),
        ([*RUN, "--seeds", "0,0"], "different seeds"),
        ([*RUN, "--seeds", "a,b"], "no list of seeds"),
        ([*RUN, "--epochs", "-1"], "x>=0"),
        ([*RUN, "--max-images", "3", "--augment", "pda5"], "one image and its 4 copies"),
        ([*RUN, "--images", "x.pt"], "means nothing on the generative track"),
        (["run", "--track", "fixed-ipc", "--dataset", "digits"], "needs --images"),
        (["run", "--track", "generative"], "--dataset is missing. digits, cifar100"),
        (["score", "no-such-bundle"], "no-such-bundle"),
        (["import", "no-such.pt", "--dataset", "digits", "--out", "B"], "no-such.pt"),
        (["data", "verify", "digit"], "Did you mean 'digits'?"),
        (["leaderboard", "--results", "no-such-folder"], "no-such-folder is not a folder"),
        (["new", "Not A Name"], "no name for a submission"),
    ],
)
def test_a_wrong_request_ends_with_2_and_says_what_to_do(
    ddchallenge, tmp_path, monkeypatch, arguments, message
):
    """One readable message on stderr, no traceback, nothing on stdout, nothing written."""
    monkeypatch.chdir(tmp_path)
    ended = ddchallenge(*arguments)
    assert ended.status == 2
    assert message in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert list(tmp_path.rglob("*")) == []


def test_missing_data_names_the_place_and_the_command(ddchallenge, tmp_path):
    """What is expected where, and how to fetch it, before anything is started."""
    ended = ddchallenge(
        "run", "--track", "generative", "--dataset", "cifar100",
        "--data-dir", tmp_path / "nothing", "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.status == 2
    assert "ddchallenge data fetch cifar100" in ended.err
    assert str(tmp_path / "nothing") in ended.err


def test_an_error_is_json_too_when_json_was_asked_for(ddchallenge):
    """A machine that reads stdout finds one document whatever happens."""
    ended = ddchallenge(*RUN, "--submission", "gausian", "--json")
    assert ended.status == 2
    assert json.loads(ended.out)["exit_status"] == 2


def test_nothing_is_written_over_earlier_work(ddchallenge, tmp_path):
    """A second run into the same folder is refused and leaves the first as it was."""
    out = tmp_path / "out"
    command = ["sample", "--dataset", "digits", "--max-images", "10", "--out", out]
    assert ddchallenge(*command).status == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = ddchallenge(*command)
    assert refused.status == 2
    assert "is there already" in refused.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_generator_without_an_image_fails_with_1(ddchallenge, tmp_path, make_submission):
    """A failed run is told from a wrong request, and the worker's log is named."""
    make_submission("raise ValueError('no weights')", name="broken")
    ended = ddchallenge(
        "sample", "--dataset", "digits", "--out", tmp_path / "out",
        "--submission", tmp_path / "submissions" / "broken",
    )  # fmt: skip
    assert ended.status == 1
    assert "ValueError: no weights" in ended.err
    assert "worker.log" in ended.err


def test_an_unwritable_folder_is_named_before_the_run(ddchallenge, tmp_path):
    """A file where the folder should be: refused with status 2, the file untouched."""
    (tmp_path / "file").write_text("mine")
    ended = ddchallenge("sample", "--dataset", "digits", "--out", tmp_path / "file" / "out")
    assert ended.status == 2
    assert "cannot be written" in ended.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is Linux's")
def test_a_folder_that_not_even_root_can_write_in_is_found_out_before_the_run(ddchallenge):
    """Permissions say yes, the file system says no: it is tried, not asked for."""
    ended = ddchallenge("sample", "--dataset", "digits", "--out", "/proc/out")
    assert ended.status == 2
    assert "/proc is no folder to write in" in ended.err


def test_a_stranger_s_words_move_no_cursor(ddchallenge, tmp_path, make_submission):
    """Escape sequences in a submission's settings are shown, not obeyed."""
    entry = make_submission("class G: pass", name="entry")
    toml = entry.folder / "submission.toml"
    toml.write_text(toml.read_text() + '[options]\n"\\u001b]0;mine\\u0007\\u001b[31mk" = {a = 1}\n')
    ended = ddchallenge("sample", "--dataset", "digits", "--submission", entry.folder)
    assert ended.status == 2
    assert "?]0;mine??[31mk is not" in ended.err
    assert "\x1b" not in ended.err.replace("\x1b[31m\x1b[1mError:\x1b[0m", "")


def test_lists_are_printed(ddchallenge):
    """submissions and data list, for people and for machines."""
    assert "real_subset" in ddchallenge("submissions").out
    names = [row["name"] for row in json.loads(ddchallenge("submissions", "--json").out)]
    assert {"gaussian", "real_subset"} <= set(names)
    rows = {row["dataset"]: row for row in json.loads(ddchallenge("data", "list", "--json").out)}
    assert rows["digits"]["train"]["images"] == 1297
    assert rows["digits"]["test"]["images"] == 500
    assert "1297" in ddchallenge("data", "verify", "digits").out


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line as a shell runs it, with pipes; ``dd`` is our command."""
    binary = shlex.join([sys.executable, "-c", "from ddchallenge.cli import main; main()"])
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; dd() {{ {binary} "$@"; }}; {command}'],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_result_is_written_whatever_becomes_of_the_output(ddchallenge, tmp_path):
    """Nobody reads, the device is full, the terminal knows no ±: result.json is there."""
    out = tmp_path / "out"
    assert ddchallenge("sample", "--dataset", "digits", "--out", out).status == 0
    score = f"dd score {out} --epochs 0 --seeds 0,1 --out {tmp_path}"
    shell(f"{score}/a | true")
    shell(f"{score}/b --json > /dev/full")
    shell(f"{score}/c 2> /dev/full")
    done = shell(f"{score}/d", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    results = [read_result(tmp_path / name / "result.json") for name in "abcd"]
    assert len({result.accuracy for result in results}) == 1
    refused = shell("dd leaderboard --dataset nope --json > /dev/full")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_where_a_result_goes_is_settled_before_scoring(ddchallenge, tmp_path, monkeypatch):
    """A file, a link in a circle, an earlier result: refused with 2 before a network is made."""
    out = tmp_path / "out"
    assert ddchallenge("sample", "--dataset", "digits", "--out", out).status == 0
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for folder, name in (("done", "result.json"), ("drawn", "confusion.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("mine")

    def never(*_, **__):
        raise AssertionError("scoring was started")

    monkeypatch.setattr("ddchallenge.pipeline.score", never)
    for place in ("file", "file/in", "loop/in", "done", "drawn"):
        ended = ddchallenge("score", out, "--out", tmp_path / place)
        assert ended.status == 2, ended.err
        assert str(tmp_path / place) in ended.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_survives_the_loss_of_its_display(tmp_path):
    """stderr goes away in the middle of sampling: the bundle is made all the same."""
    done = shell(f"dd sample --dataset digits --out {tmp_path}/out 2>&1 | head -1")
    assert done.returncode == 0
    assert (tmp_path / "out" / "bundle" / "manifest.json").exists(), done.stdout


def test_sigterm_keeps_what_came(make_submission, tmp_path):
    """A scheduler's SIGTERM ends the run like Ctrl-C: bundle written, nothing left, status 1."""
    entry = make_submission(
        """
        import time
        import numpy as np
        class G:
            def setup(self, task): pass
            def generate(self, labels, seed):
                time.sleep(0.05)
                return np.zeros((len(labels), 3, 8, 8), np.uint8)
        """
    )
    out = tmp_path / "out"
    arguments = ["sample", "--dataset", "digits", "--submission", str(entry.folder)]
    arguments += ["--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from ddchallenge.cli import main; main()", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    spool = out / "spool.bin"
    while not (spool.exists() and spool.stat().st_size) and time.monotonic() < until:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Interrupted; the" in err
    assert read_bundle(out / "bundle").manifest.images >= 16
    assert not psutil.wait_procs(family, timeout=3)[1]
    assert not spool.exists()


def test_a_class_needs_room_for_an_image_and_its_copies(ddchallenge, tmp_path, make_submission):
    """images_per_class below one image and its copies is refused, not rounded to nothing."""
    entry = make_submission("class G: ...", images_per_class="3")
    command = ["sample", "--dataset", "digits", "--submission", entry.folder, "--augment", "pda5"]
    ended = ddchallenge(*command, "--out", tmp_path / "out")
    assert ended.status == 2
    assert "images_per_class = 3 is less than one image and its 4 copies" in ended.err


def test_a_run_that_turned_out_unofficial_is_not_recorded_over(
    ddchallenge, tmp_path, monkeypatch, make_submission
):
    """Meant by the rules, ended by a full disk: the official result recorded before stays."""
    monkeypatch.chdir(tmp_path)
    entry = make_submission(
        """
        import numpy as np
        class G:
            def setup(self, task): pass
            def generate(self, labels, seed):
                return np.full((len(labels), 3, 8, 8), seed % 256, np.uint8)
        """
    )
    quick = replace(PROTOCOLS["eccv2024"], epochs=0, seeds=(0,))
    monkeypatch.setitem(PROTOCOLS, "eccv2024", quick)
    command = [*RUN, "--submission", entry.folder, "--record", "--max-images", "100"]
    assert ddchallenge(*command, "--out", tmp_path / "a").status == 0
    recorded = entry.folder / "results" / "digits.eccv2024.json"
    before = recorded.read_bytes()

    real, calls = os.fstatvfs, []

    def shrinking(descriptor: int):
        calls.append(descriptor)
        full = list(real(descriptor))
        full[4] = full[4] if len(calls) < 3 else 0  # f_bavail
        return os.statvfs_result(full)

    monkeypatch.setattr(os, "fstatvfs", shrinking)
    ended = ddchallenge(*command, "--out", tmp_path / "b")
    assert ended.status == 1
    assert "holds an official result" in ended.err
    assert "stopped early: disk-full" in (tmp_path / "b" / "result.json").read_text()
    assert recorded.read_bytes() == before


def test_test_images_in_a_bundle_are_marked(ddchallenge, tmp_path):
    """Handing in the test set is seen by the audit, and costs the rank."""
    test = load_split(get_dataset("digits"), "test").data
    pixels, labels = tmp_path / "images.pt", tmp_path / "labels.pt"
    torch.save(torch.tensor(test.images), pixels)
    torch.save(torch.tensor(test.labels), labels)
    bundle = tmp_path / "B"
    assert (
        ddchallenge(
            "import", pixels, "--labels", labels, "--dataset", "digits", "--out", bundle
        ).status
        == 0
    )
    ended = ddchallenge("score", bundle, *QUICK[:4])
    assert ended.status == 0, ended.err
    assert "500 of 500 images are test images of digits" in ended.err
    assert "unofficial: test-images" in read_result(bundle / "result.json").marks


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "x" * 300],
        ["import", "x" * 300, "--dataset", "digits", "--out", "B"],
        [*RUN, "--submission", "x" * 300],
        [*RUN, "--out", "x" * 300],
        [*RUN, "--seeds", "1" * 5000],
        [*RUN, "--out", "loop/out"],
    ],
)
def test_odd_paths_and_numbers_are_wrong_requests(ddchallenge, tmp_path, monkeypatch, arguments):
    """Names too long, links in a circle, numbers without end: status 2 and a sentence."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    ended = ddchallenge(*arguments)
    assert ended.status == 2
    assert "harness itself" not in ended.err
    assert "Traceback" not in ended.err


def test_one_bad_result_does_not_take_the_leaderboard_down(ddchallenge, tmp_path):
    """Markup, escapes, half characters and deep nesting in a stranger's file are left out."""
    ended = ddchallenge(*RUN, *QUICK, "--max-images", "10", "--out", tmp_path / "good")
    assert ended.status == 0, ended.err
    good = json.loads((tmp_path / "good" / "result.json").read_text())
    for number, name in enumerate(["[/evil]", "\x1b[2J", "\ud800"]):
        bad = good | {"dataset": name}
        (tmp_path / f"bad{number}.json").write_text(json.dumps(bad))
    nested = json.dumps(good).replace('"gaussian"', "[" * 980 + "]" * 980)
    (tmp_path / "bad3.json").write_text(nested)
    ended = ddchallenge("leaderboard", "--results", tmp_path)
    assert ended.status == 0
    assert "10.0" in ended.out
    assert ended.err.count(f"left out: {tmp_path}") == 3
    assert "\x1b[2J" not in ended.out + ended.err
    assert ddchallenge("leaderboard", "--results", tmp_path, "--json").status == 0


@pytest.fixture
def sampled(ddchallenge, tmp_path):
    """A folder with a small bundle of digits."""
    out = tmp_path / "sampled"
    assert ddchallenge("sample", "--dataset", "digits", "--out", out).status == 0
    return out


def test_an_estimate_trains_nothing_and_writes_nothing(ddchallenge, sampled, monkeypatch):
    """A row for each numerics, the default marked; as JSON seconds and bytes; no result."""
    monkeypatch.setattr(fast, "_compiled", lambda: fast._loss)
    before = sorted(sampled.rglob("*"))
    ended = ddchallenge("score", sampled, "--estimate")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == ["numerics", "exact", "fast"]
    assert "exact (default)" in ended.out
    exact, quick = json.loads(ddchallenge("score", sampled, "--estimate", "--json").out)
    assert (exact["numerics"], quick["numerics"]) == ("exact", "fast")
    assert exact["steps"] == 1001
    assert exact["seconds"] > exact["step_seconds"] * 3 * 1000
    assert exact["memory_bytes"] > 100 << 20
    assert sorted(sampled.rglob("*")) == before


def test_a_run_of_hours_says_so_before_it_starts(ddchallenge, sampled, monkeypatch):
    """A hundred million passes would take weeks: the time is said, then training begins, from
    which an interrupt comes back with the line to go on with."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddchallenge.pipeline.score", interrupted)
    ended = ddchallenge("score", sampled, "--epochs", "100000000", "--numerics", "exact")
    assert ended.status == 1
    assert "with exact numerics on cpu. It can be interrupted and gone on with" in ended.err
    again = f"ddchallenge score {sampled / 'bundle'} --epochs 100000000 --numerics exact\n"
    assert "what was trained. To go on:" in ended.err
    assert again in ended.err


def test_the_line_to_go_on_with_can_be_pasted(ddchallenge, sampled, tmp_path, monkeypatch):
    """Paths with spaces are quoted, and nothing is lost of what was asked for; where no checkpoint
    can be kept, nothing else is claimed."""
    odd = tmp_path / "with a space"
    sampled.rename(odd)

    def interrupted(*args, **kwargs):
        kwargs["checkpoints"].unwritable = True
        raise KeyboardInterrupt

    monkeypatch.setattr("ddchallenge.pipeline.score", interrupted)
    asked = ["--epochs", "2", "--seeds", "0", "--device", "cpu", "--out", odd / "o o", "--json"]
    ended = ddchallenge("score", odd, *asked, "--data-dir", tmp_path / "d d")
    message = json.loads(ended.out)["error"]
    assert message.startswith("Interrupted; the bundle is kept. To go on:\n")
    words = shlex.split(message.splitlines()[1])
    assert words[:3] == ["ddchallenge", "score", str(odd / "bundle")]
    assert words[3:] == [
        "--epochs", "2", "--seeds", "0", "--device", "cpu", "--data-dir", str(tmp_path / "d d"),
        "--out", str(odd / "o o"), "--json",
    ]  # fmt: skip


def test_too_few_real_images_cost_the_reference_and_not_the_run(ddchallenge, tmp_path):
    """How many images a generator makes is known when it has made them: then the bundle is scored
    all the same, and what is missing is said."""
    out = tmp_path / "out"
    ended = ddchallenge(*RUN, "--max-images", "3000", *QUICK, "--reference", "--out", out)
    assert ended.status == 0, ended.err
    assert "The reference is left out. --reference needs 300 real images" in ended.err
    assert json.loads((out / "result.json").read_text())["reference"] is None


def test_numerics_are_chosen_said_and_recorded(ddchallenge, sampled, monkeypatch):
    """--numerics fast, not measured on this device, says so in text and JSON; another word is
    refused with the choices, and imagewoof with what it knows."""
    monkeypatch.setattr(fast, "_compiled", lambda: fast._loss)
    quick = ["--epochs", "1", "--seeds", "0"]
    ended = ddchallenge("score", sampled, *quick, "--numerics", "fast")
    assert ended.status == 0, ended.err
    assert "unofficial: fast numerics not shown to score like exact ones here" in ended.out
    document = json.loads((sampled / "result.json").read_text())
    assert document["protocol"]["numerics"] == "fast"
    refused = ddchallenge("score", sampled, "--numerics", "FAST")
    assert refused.status == 2
    assert "exact, fast" in refused.err
    refused = ddchallenge("score", sampled, "--protocol", "imagewoof", "--numerics", "fast")
    assert refused.status == 2
    assert "--numerics exact" in refused.err


def test_a_score_that_was_written_begins_anew(ddchallenge, sampled, tmp_path):
    """Checkpoints go with the result: nothing is left of them, and a second score trains again."""
    kept = Path(os.environ["DDCHALLENGE_CACHE"]) / "checkpoints"
    quick = ["score", sampled, "--epochs", "1", "--seeds", "0,1"]
    assert ddchallenge(*quick, "--out", tmp_path / "one").status == 0
    assert not list(kept.glob("*.safetensors"))
    ended = ddchallenge(*quick, "--out", tmp_path / "two")
    assert "was trained and tested before" not in ended.err
