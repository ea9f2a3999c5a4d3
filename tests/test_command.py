"""Submissions that are a command: an old script, unmodified, under the clock and in the box."""

from __future__ import annotations

import json
import sys
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from commanding import (
    COPIES,
    PER_CLASS,
    SAVES,
    SCRIPT,
    SPEC,
    make_command,
    order_for,
    real_images,
    tensor,
)
from rich.console import Console

from ddchallenge.bundle import read_bundle, tensor_digest
from ddchallenge.datasets import load_split
from ddchallenge.datasets.normalise import normalise
from ddchallenge.errors import BundleError, SamplingError, SubmissionError
from ddchallenge.generator import read_submission
from ddchallenge.pipeline import sample_bundle
from ddchallenge.records import LabeledImages
from ddchallenge.report.live import SamplingDisplay
from ddchallenge.sampling.launchers import sandbox
from ddchallenge.sampling.supervisor import SamplingOrder

LABELS = np.repeat(np.arange(10, dtype=np.int64), PER_CLASS)


def bundle_of(order: SamplingOrder, out: Path, **arguments):
    return sample_bundle(order, None, out, **arguments)


# ---------------------------------------------------------------------------------- what it brings


def test_an_unmodified_script_becomes_a_bundle(tmp_path):
    """Its class-major tensor arrives bit for bit, with the digest the pixels have."""
    entry = make_command(tmp_path, SCRIPT + SAVES)
    before = sorted(entry.folder.rglob("*"))
    said: list[str] = []
    bundle = bundle_of(order_for(entry), tmp_path / "out", say=said.append)
    pixels = real_images().reshape(-1, 3, 8, 8)
    assert (bundle.data.labels == LABELS).all()
    assert bundle.data.images.dtype == np.float32
    assert np.abs(bundle.data.images - normalise(SPEC, pixels)).max() < 1e-6
    assert said[-1].startswith("Labels were taken from the order: 3 images of each of 10 classes")

    manifest = read_bundle(tmp_path / "out" / "bundle").manifest
    assert (manifest.origin, manifest.by_command) == ("digits.pt", True)
    assert (manifest.dtype, manifest.normalisation) == ("float32", "official")
    assert manifest.submission == entry.identity
    assert manifest.digest == tensor_digest(SPEC, bundle.data)
    log = manifest.sampling
    assert (log.stop, log.images_sampled, log.batches) == ("images", 30, ())
    assert log.seconds.sampling > 0.1
    assert manifest.launch.launcher == "process"

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bundle", "worker.log"]
    assert (tmp_path / "out" / "worker.log").read_text() == "generated (30, 3, 8, 8)\n"
    assert sorted(entry.folder.rglob("*")) == before


def test_from_the_command_line_to_a_recorded_result(tmp_path, ddchallenge):
    """`run --record` scores it; the result says that it cannot be replayed, and is listed.

    Its classes are one off, as an entry of the old challenge had them by superclass: that is said.
    """
    entry = make_command(tmp_path / "submissions", COPIES, contains_real_images="true")
    moved = np.roll(real_images(12), 1, axis=0).reshape(-1, 3, 8, 8)
    torch.save(torch.from_numpy(normalise(SPEC, moved)), entry.folder / "ready.pt")
    options = ["--dataset", "digits", "--submission", entry.folder, "--out", tmp_path / "out"]
    scoring = ["--epochs", "1", "--seeds", "0", "--budget", "50s", "--record"]
    ended = ddchallenge("run", "--track", "generative", *options, *scoring, "--json")
    assert ended.status == 0, ended.err
    result = json.loads(ended.out)
    assert "a command: cannot be replayed" in result["marks"]
    assert result["sampling"]["images_sampled"] == 120
    assert "audit: the classes seem to be in another order than 0, 1, 2" in ended.err
    assert "the command is running" in ended.err
    assert "stopped by: images (the command has ended)" in ended.err
    recorded = list((entry.folder / "results").glob("digits.*.json"))
    assert len(recorded) == 1
    board = ddchallenge("leaderboard", "--results", entry.folder / "results", "--json")
    assert [row["submission"]["name"] for row in json.loads(board.out)][-1:] == ["entry"]


def test_what_a_command_finds(tmp_path):
    """The harness's interpreter, its own files in the working folder, the run in variables."""
    code = """
        import json, os, sys
        found = {
            "files": sorted(os.listdir(".")),
            "links": [os.path.realpath(name) for name in ("submit.py", "weights/prior.npy")],
            "python": sys.executable,
            "arguments": sys.argv[1:],
            "stdin": sys.stdin.read(),
            "told": {k: v for k, v in os.environ.items() if k.startswith("DDCHALLENGE_")},
            "images": len(__import__("numpy").load(
                os.environ["DDCHALLENGE_TRAINING_DATA"] + "/labels.npy")),
            "open": sorted(os.listdir("/proc/self/fd")),
        }
        open("weights/more.txt", "w").write("a folder of mine to write to")
        print(json.dumps(found))
    """
    entry = make_command(
        tmp_path,
        code,
        command='["python3", "submit.py", "--data={dataset}"]',
        output='"{dataset}.pt"',
        needs_training_data="true",
    )
    (entry.folder / "digits.pt").write_bytes(b"of an earlier run")
    training = load_split(SPEC, "train")
    order = order_for(entry, training_data=training.folder)
    with pytest.raises(SamplingError, match=r"there is no digits\.pt"):
        sample_bundle(order, training, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "worker.log").read_text())
    ours = {"classes.txt", "ready.pt", "sampler.py", "submission.toml", "submit.py", "weights"}
    assert set(found["files"]) - {"tmp"} == ours
    assert found["links"] == [
        str((entry.folder / name).resolve()) for name in ("submit.py", "weights/prior.npy")
    ]
    assert Path(found["python"]).resolve() == Path(sys.executable).resolve()
    assert found["arguments"] == ["--data=digits"]
    assert found["stdin"] == ""
    assert found["images"] == len(training.data)
    assert found["told"] == {
        "DDCHALLENGE_DATASET": "digits",
        "DDCHALLENGE_DEVICE": "cpu",
        "DDCHALLENGE_SEED": "5",
        "DDCHALLENGE_TRAINING_DATA": str(training.folder.resolve()),
    }
    assert len(found["open"]) == 4  # the three, and the folder that is listed


def test_labels_of_its_own(tmp_path):
    """A second tensor gives the label of each image, in whatever order."""
    code = 'import shutil; shutil.copy("ready.pt", "a.pt")\n'
    code += 'shutil.copy("its-labels.pt", "digits-labels.pt")\n'
    entry = make_command(tmp_path, code, output='"a.pt"', labels='"{dataset}-labels.pt"')
    torch.save(tensor().flip(0), entry.folder / "ready.pt")
    torch.save(
        torch.from_numpy(LABELS[::-1].copy()).to(torch.int32), entry.folder / "its-labels.pt"
    )
    bundle = bundle_of(order_for(entry), tmp_path / "out")
    assert (bundle.data.labels == LABELS[::-1]).all()
    assert (bundle.data.images == tensor().flip(0).numpy()).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bundle", "worker.log"]


def test_any_program_will_do(tmp_path):
    """A shell script of the submission, started by its relative name."""
    entry = make_command(tmp_path, "", command='["./run.sh", "ready.pt"]')
    script = entry.folder / "run.sh"
    script.write_text('#!/bin/sh\ncat "$1" > digits.pt\n')
    script.chmod(0o755)
    assert len(bundle_of(order_for(entry), tmp_path / "out").data) == 30


# ------------------------------------------------------------------------------- how it is stopped


def test_a_whole_file_counts_though_the_command_goes_on(tmp_path):
    """At the deadline it is killed at once, and what the file held is taken."""
    code = COPIES + "import time\nprint('saved')\ntime.sleep(600)\n"
    seen = []
    order = order_for(make_command(tmp_path, code), budget=5.0)
    bundle = bundle_of(order, tmp_path / "out", on_status=seen.append)
    log = bundle.manifest.sampling
    assert (log.stop, len(bundle.data)) == ("deadline", 30)
    assert 5.0 <= log.elapsed_seconds < 7.0
    assert seen[-2].activity == "the command is running"
    assert seen[-2].line == "saved"
    seconds = [getattr(log.seconds, name) for name in log.seconds.__dataclass_fields__]
    assert sum(seconds) == pytest.approx(log.elapsed_seconds)


def test_a_failed_command_keeps_its_whole_file(tmp_path, ddchallenge):
    """The bundle is written and marked, and the exit status is that of a failed run."""
    entry = make_command(tmp_path, COPIES + "raise SystemExit(3)\n")
    where = ["--dataset", "digits", "--submission", entry.folder, "--out", tmp_path / "out"]
    ended = ddchallenge("sample", *where, "--budget", "60s")
    assert ended.status == 1
    assert "the command ended with exit status 3" in ended.err
    bundle = read_bundle(tmp_path / "out" / "bundle")
    assert (bundle.manifest.sampling.stop, len(bundle.data)) == ("crashed", 30)


def saved(content) -> bytes:
    file = BytesIO()
    torch.save(content, file)
    return file.getvalue()


WRONG = {
    "none": (None, "there is no digits.pt; it wrote tensor.pt"),
    "cut off": (saved(tensor())[:-100], "not a whole file of torch.save"),
    "empty": (b"", "not a whole file of torch.save"),
    "a dict": (saved({"images": tensor()}), "found a dict with keys 'images'"),
    "32 px": (saved(torch.zeros(30, 3, 32, 32)), "N×3×8×8 for digits"),
    "31 images": (saved(torch.zeros(31, 3, 8, 8)), "31 images, which is not"),
    "not finite": (saved(tensor() / 0), "NaN or infinite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_none_fails_the_run_with_its_reason(tmp_path, name):
    """The reason, what it said last, and where to look; a file that was there is kept."""
    content, reason = WRONG[name]
    code = COPIES if content is not None else COPIES.replace("digits", "tensor")
    entry = make_command(tmp_path, code + "print('step 1')\n")
    if content is not None:
        (entry.folder / "ready.pt").write_bytes(content)
    with pytest.raises(SamplingError) as failure:
        bundle_of(order_for(entry), tmp_path / "out")
    text = str(failure.value)
    assert reason in text
    assert str(tmp_path / "out" / "worker.log") in text
    assert not (tmp_path / "out" / "bundle").exists()
    assert not (tmp_path / "out" / "work").exists()
    assert (tmp_path / "out" / "output.pt").exists() == (content is not None)


def test_a_command_that_fails_says_how_and_what_it_said(tmp_path):
    """The exit status and the last line of the traceback."""
    entry = make_command(tmp_path, "raise ValueError('no weights')\n")
    with pytest.raises(SamplingError) as failure:
        bundle_of(order_for(entry), tmp_path / "out")
    assert "the command ended with exit status 1" in str(failure.value)
    assert "It last said: ValueError: no weights" in str(failure.value)


def test_a_command_that_cannot_be_started(tmp_path):
    """A program that is not there is named."""
    entry = make_command(tmp_path, "", command='["no-such-program"]')
    with pytest.raises(SamplingError, match="the command 'no-such-program' cannot be run"):
        bundle_of(order_for(entry), tmp_path / "out")


@pytest.mark.skipif(not sandbox.landlock_abi(), reason="this kernel has no Landlock")
def test_the_submission_cannot_be_written_through_its_links(tmp_path):
    """What the command finds in its folder are links to files that it may only read."""
    code = 'open("weights/prior.npy", "wb").write(b"other weights")\n'
    entry = make_command(tmp_path, code)
    before = entry.identity
    with pytest.raises(SamplingError, match="Permission denied"):
        bundle_of(order_for(entry), tmp_path / "out")
    assert entry.identity == before


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--max-images", "10"], "--max-images cannot be kept by entry"),
        (["--augment", "pda5"], "--augment pda5 is for generators"),
    ],
)
def test_options_a_command_cannot_keep_are_refused(tmp_path, ddchallenge, option, words):
    """How many images, and copies of them, are for the command to decide."""
    entry = make_command(tmp_path, SCRIPT + SAVES)
    where = ["--dataset", "digits", "--submission", entry.folder, "--out", tmp_path / "out"]
    ended = ddchallenge("sample", *where, *option)
    assert ended.status == 2
    assert words in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"command": '"python submit.py"'}, "line 3: command must be a list of texts"),
        ({"command": "[]"}, "line 3: command must be a list of texts"),
        ({"command": '["python", "a\\u0000"]'}, "line 3: command must be a list of texts"),
        ({"command": '["python", "other.py"]'}, "line 3: there is no other.py beside"),
        ({"output": '"../../x"'}, "line 4: output must be a plain file name"),
        ({"output": '"/tmp/x.pt"'}, "line 4: output must be a plain file name"),
        ({"output": '"a/../x.pt"'}, "line 4: output must be a plain file name"),
        ({"output": '".."'}, "line 4: output must be a plain file name"),
        ({"output": '"{name}.pt"'}, "line 4: output must be a plain file name"),
        ({"labels": '"../labels.pt"'}, "line 6: labels must be a plain file name"),
        ({"labels": '"digits.pt"'}, "line 6: labels must be another file than output"),
        ({"entry_point": '"submit:G"'}, "line 3: there is an entry_point too"),
        ({"augmentation": '"pda5"'}, "line 6: augmentation means nothing for a command"),
        ({"batch_size": "8"}, "line 6: batch_size means nothing for a command"),
        ({"images_per_class": "8"}, "line 6: images_per_class means nothing for a command"),
    ],
)
def test_a_wrong_setting_is_named_with_its_line(tmp_path, settings, words):
    """A command's settings are checked before anything is run."""
    with pytest.raises(SubmissionError) as failure:
        make_command(tmp_path, SCRIPT, **settings)
    assert words in str(failure.value)


def test_half_a_command_is_refused(make_submission, tmp_path):
    """output without a command, a command without output, and neither command nor entry point."""
    with pytest.raises(SubmissionError, match="output goes with a command"):
        make_submission("", output='"x.pt"')
    entry = make_command(tmp_path, SCRIPT)
    config = entry.folder / "submission.toml"
    lines = config.read_text().splitlines(keepends=True)
    for left_out, words in (
        (("output",), "a command needs output"),
        (("command", "output"), "'entry_point' is missing, and so is 'command'"),
    ):
        config.write_text("".join(line for line in lines if not line.startswith(left_out)))
        with pytest.raises(SubmissionError, match=words):
            read_submission(entry.folder)


def test_a_bundle_cannot_hide_that_a_command_made_it(tmp_path):
    """Without batches only a command's bundle adds up, and that says so."""
    entry = make_command(tmp_path, COPIES)
    bundle_of(order_for(entry), tmp_path / "out")
    path = tmp_path / "out" / "bundle" / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"origin": None}))
    with pytest.raises(BundleError, match="batches do not add up"):
        read_bundle(path.parent)


# ----------------------------------------------------------------------------------- what is shown


def test_the_display_quotes_what_was_printed_last(tmp_path):
    """Time left and the last line, whatever markup a stranger puts into it."""
    seen = []
    code = COPIES + "print('[bold]step[/] 1 [/nothing]')\n"
    order = order_for(make_command(tmp_path, code))
    bundle_of(order, tmp_path / "out", on_status=seen.append)
    for terminal in (True, False):
        stream = StringIO()
        console = Console(file=stream, force_terminal=terminal, width=150)
        display = SamplingDisplay(console, "sampling")
        display(seen[-1])
        display.close()
        assert 'left  stopped: "[bold]step[/] 1 [/nothing]"' in stream.getvalue()


def test_pixels_are_taken_as_they_are(tmp_path):
    """A uint8 tensor is as good: the bundle is one of pixels."""
    entry = make_command(tmp_path, COPIES)
    pixels = real_images().reshape(-1, 3, 8, 8)
    torch.save(torch.from_numpy(pixels), entry.folder / "ready.pt")
    bundle = bundle_of(order_for(entry), tmp_path / "out")
    assert (bundle.manifest.dtype, bundle.manifest.normalisation) == ("uint8", "pixels")
    assert (bundle.data.images == pixels).all()
    assert bundle.manifest.digest == tensor_digest(SPEC, LabeledImages(pixels, LABELS))
