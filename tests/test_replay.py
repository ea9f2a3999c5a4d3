"""Bundles are generated again and compared: what agrees, what does not, and what cannot be asked.

Every bundle here was sampled by the supervisor from a real worker process.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import PIL.Image
import pytest

from ddchallenge.bundle import read_bundle, tensor_digest, write_bundle
from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.errors import RequestError, SamplingError
from ddchallenge.generator import find_submission
from ddchallenge.jsonio import read_json, write_json
from ddchallenge.pipeline import sample_bundle
from ddchallenge.records import Bundle, LabeledImages
from ddchallenge.replay.comparing import Replay, ReplayOrder, compare, regenerate
from ddchallenge.replay.recorded import (
    chance_to_catch,
    choose_batches,
    default_time_limit,
    default_tolerance,
    recorded_batches,
    remarks,
)
from ddchallenge.report.replay import difference_picture, replay_lines
from ddchallenge.rules import get_rules
from ddchallenge.sampling.schedule import batch_seed
from ddchallenge.sampling.supervisor import SamplingOrder

SPEC = get_dataset("digits")
PNG = PIL.Image.new("RGB", (8, 8))

# A different image for every seed and place in the batch.
HONEST = """
import numpy as np

class G:
    def setup(self, task):
        pass

    def generate(self, labels, seed):
        images = np.random.default_rng(seed).integers(20, 236, (len(labels), 3, 8, 8))
        return images.astype(np.uint8)
"""


def sampled(submission, folder: Path, **changes) -> Bundle:
    """A bundle sampled from a worker process: 75 images in 5 batches, but for the changes."""
    training = load_split(SPEC, "train") if submission.needs_training_data else None
    values = {
        "submission": submission,
        "dataset": SPEC,
        "rules": get_rules("generative"),
        "budget_seconds": 60.0,
        "device": "cpu",
        "run_seed": 11,
        "max_images": 75,
        "augmentation": "none",
        "training_data": training.folder if training else None,
    } | changes
    return sample_bundle(SamplingOrder(**values), training, folder)


def check(bundle: Bundle, submission, tmp_path: Path, count=None, seed=0, **changes):
    """Replay a bundle, all of it unless told otherwise; the outcome and the first pair."""
    training = load_split(SPEC, "train") if submission.needs_training_data else None
    values = {
        "submission": submission,
        "batches": choose_batches(recorded_batches(bundle, SPEC), count, seed),
        "device": "cpu",
        "tolerance": 0.0,
        "time_limit_seconds": 60.0,
        "training_data": training.folder if training else None,
    } | changes
    order = ReplayOrder(**values)
    return compare(bundle, SPEC, order, regenerate(bundle, SPEC, order, tmp_path / "replay"))


def tampered(bundle: Bundle, folder: Path, change) -> Bundle:
    """The bundle a cheat would hand in: images changed, the digest made to agree."""
    images, labels = bundle.data.images.copy(), bundle.data.labels.copy()
    change(images, labels)
    data = LabeledImages(images, labels)
    manifest = replace(
        bundle.manifest,
        digest=tensor_digest(SPEC, data),
        images_per_class=data.images_per_class(SPEC.num_classes),
    )
    write_bundle(folder, data, manifest, PNG)
    return read_bundle(folder)


def with_log(bundle: Bundle, **changes) -> Bundle:
    log = replace(bundle.manifest.sampling, **changes)
    return Bundle(bundle.folder, bundle.data, replace(bundle.manifest, sampling=log))


@pytest.mark.parametrize(("name", "plan"), [("gaussian", "pda5"), ("real_subset", "none")])
def test_baselines_make_the_same_images_again(tmp_path, name, plan):
    """Real images of digits: every batch, and every copy, is identical to the last grey value."""
    submission = replace(find_submission(name), batch_size=13)
    bundle = sampled(submission, tmp_path / "out", max_images=300, augmentation=plan)
    outcome, pair = check(bundle, submission, tmp_path)
    assert (outcome.verdict, pair, outcome.first_different) == ("identical", None, None)
    assert outcome.images_compared == outcome.images_identical == (60 if plan == "pda5" else 300)
    assert outcome.copies_compared == outcome.copies_identical == (240 if plan == "pda5" else 0)
    assert outcome.batches_checked == outcome.batches_recorded == (5 if plan == "pda5" else 24)
    assert not (tmp_path / "replay" / "spool.bin").exists()
    assert remarks(bundle, submission, load_split(SPEC, "train"), "cpu") == ()


def test_a_sample_of_batches_is_asked_for_out_of_order(make_submission, tmp_path):
    """Two of five batches, not the first ones, are compared with the rows that are theirs."""
    submission = make_submission(HONEST)
    bundle = sampled(submission, tmp_path / "out")
    log = recorded_batches(bundle, SPEC)
    seed = next(s for s in range(99) if choose_batches(log, 2, s)[0].index == 2)
    batches = choose_batches(log, 2, seed)
    assert [b.seed for b in batches] == [batch_seed(11, b.index) for b in batches]
    outcome, _ = check(bundle, submission, tmp_path, 2, seed)
    assert (outcome.verdict, outcome.batches_checked) == ("identical", 2)
    assert outcome.images_compared == sum(b.count for b in batches)
    assert "2 of 5 batches" in replay_lines(outcome, SPEC)[0]
    assert "had 1 of the 5 batches been false" in replay_lines(outcome, SPEC)[-1]


def test_the_choice_of_batches_is_even_and_unfolds_lines(make_submission, tmp_path):
    """Lines of many batches are unfolded; each batch is as likely to be chosen as any other."""
    bundle = sampled(make_submission(HONEST, batch_size="2"), tmp_path / "out")
    log = bundle.manifest.sampling
    every = choose_batches(log, None, 0)
    assert len(log.batches) < len(every) == 38
    assert [(b.index, b.first, b.count) for b in every[:2]] == [(0, 0, 2), (1, 2, 2)]
    assert (every[-1].first, every[-1].count) == (74, 1)
    counts = np.zeros(38)
    for seed in range(400):
        chosen = [b.index for b in choose_batches(log, 4, seed)]
        assert chosen == sorted(set(chosen))
        counts[chosen] += 1
    assert counts.sum() == 1600
    assert abs(counts - mean(counts)).max() < 5 * np.sqrt(1600 / 38)


def test_a_false_batch_is_caught_as_often_as_is_said(make_submission, tmp_path):
    """The stated probability is that of the sample drawn: tried 500 times with 3 of 38 false."""
    bundle = sampled(make_submission(HONEST, batch_size="2"), tmp_path / "out")
    false = {0, 17, 37}
    caught = [
        bool(false & {b.index for b in choose_batches(bundle.manifest.sampling, 8, seed)})
        for seed in range(500)
    ]
    stated = chance_to_catch(38, 8, 3)
    assert stated == pytest.approx(1 - 30 * 29 * 28 / (38 * 37 * 36))
    assert mean(caught) == pytest.approx(stated, abs=0.07)
    assert chance_to_catch(5, 5, 1) == chance_to_catch(8, 6, 3) == 1.0


def test_one_changed_image_is_the_one_that_is_shown(make_submission, tmp_path):
    """A single foreign image is found, named, and drawn beside what it should be."""
    submission = make_submission(HONEST)

    def change(images, labels):
        images[40] = 255 - images[40]

    true = sampled(submission, tmp_path / "out")
    false = tampered(true, tmp_path / "false", change)
    outcome, pair = check(false, submission, tmp_path, tolerance=1.0)
    assert (outcome.verdict, outcome.images_identical) == ("different", 74)
    first = outcome.first_different
    assert (first.row, first.label, first.copy) == (40, int(true.data.labels[40]), 0)
    assert first.number % 10 == first.label
    assert first.batch == first.number // 16
    assert (pair[0] == false.data.images[40]).all()
    assert (pair[1] == true.data.images[40]).all()
    shown = np.abs(pair[0].astype(int) - pair[1])
    assert outcome.worst_difference == pytest.approx(shown.mean())
    picture = np.asarray(difference_picture(pair, first, SPEC))
    left = picture[70 : 70 + 240, 24 : 24 + 240]  # every pixel 30 by 30
    assert (left[15::30, 15::30] == pair[0].transpose(1, 2, 0)).all()
    right = picture[70 : 70 + 240, 24 + 2 * 256 : 24 + 2 * 256 + 240]
    assert right.max() == 255
    # Batches without it agree.
    every = choose_batches(false.manifest.sampling, None, 0)
    others = [batch for batch in every if batch.index != first.batch]
    assert check(false, submission, tmp_path / "b", batches=tuple(others))[0].verdict == "identical"


def test_a_grey_value_is_within_a_tolerance_that_is_stated(make_submission, tmp_path):
    """One of 192 values off by one is 1/192: above no tolerance, below that of another device."""
    submission = make_submission(HONEST)

    def change(images, labels):
        images[7, 1, 2, 3] += 1

    bundle = tampered(sampled(submission, tmp_path / "out"), tmp_path / "false", change)
    strict, _ = check(bundle, submission, tmp_path / "a")
    assert (strict.verdict, strict.first_different.row) == ("different", 7)
    tolerant, pair = check(bundle, submission, tmp_path / "b", tolerance=0.01)
    assert (tolerant.verdict, pair, tolerant.images_identical) == ("within tolerance", None, 74)
    assert tolerant.worst_difference == pytest.approx(1 / 192)
    assert tolerant.mean_difference == pytest.approx(1 / 192 / 75)
    assert "0.0052" in replay_lines(tolerant, SPEC)[1]
    assert default_tolerance(bundle.manifest.environment, "cpu") == 0.0
    elsewhere = replace(bundle.manifest.environment, hardware="NVIDIA GeForce RTX 4090")
    assert default_tolerance(elsewhere, "cpu") == 1.0


def test_copies_must_be_those_of_the_plan_whatever_the_tolerance(make_submission, tmp_path):
    """A copy that was retouched by one grey value is found; the images themselves agree."""
    submission = make_submission(HONEST)
    true = sampled(submission, tmp_path / "out", augmentation="pda5", max_images=150)

    def change(images, labels):
        images[8, 0, 0, 0] ^= 1  # row 5 is the second image of class 0, 8 its third copy

    outcome, pair = check(
        tampered(true, tmp_path / "false", change), submission, tmp_path, tolerance=9.0
    )
    assert (outcome.verdict, outcome.first_different.copy) == ("different", 3)
    assert (outcome.images_identical, outcome.copies_identical) == (30, 119)
    assert "copy 3 of image 10 (class 0)" in " ".join(replay_lines(outcome, SPEC))
    assert np.abs(pair[0].astype(int) - pair[1]).sum() == 1


def test_a_run_that_was_cut_is_replayed_as_far_as_it_went(make_submission, tmp_path):
    """Batches fitted to a deadline, a crash: what was recorded is what is asked for."""
    code = HONEST.replace("images =", "import time; time.sleep(0.05); images =", 1)
    slow = make_submission(code, name="slow")
    bundle = sampled(slow, tmp_path / "out", budget_seconds=2.0, max_images=None)
    assert bundle.manifest.sampling.stop == "deadline"
    outcome, _ = check(bundle, slow, tmp_path / "a", 3, 5)
    assert (outcome.verdict, outcome.batches_checked) == ("identical", 3)
    crash = HONEST.replace("images =", f"assert seed != {batch_seed(11, 3)}; images =", 1)
    broken = make_submission(crash, name="broken")
    bundle = sampled(broken, tmp_path / "crashed")
    assert (bundle.manifest.sampling.stop, len(bundle.data)) == ("crashed", 48)
    assert check(bundle, broken, tmp_path / "b")[0].verdict == "identical"


def test_a_generator_that_hangs_is_given_up(make_submission, tmp_path):
    """It is stopped at the limit; what it made before is compared, and the rest is not called good.

    One that makes nothing at all is an error that says so.
    """
    bundle = sampled(make_submission(HONEST), tmp_path / "out")
    pause = f"import time; time.sleep(600 * (seed == {batch_seed(11, 2)})); images ="
    hangs = make_submission(HONEST.replace("images =", pause, 1), name="hangs")
    outcome, pair = check(bundle, hangs, tmp_path / "a", time_limit_seconds=3.0)
    assert (outcome.verdict, outcome.batches_checked, pair) == ("unfinished", 2, None)
    assert outcome.images_identical == 32
    assert outcome.unfinished.startswith("deadline")
    assert outcome.elapsed_seconds < 3 + 2
    never = make_submission(HONEST.replace("pass", "import time; time.sleep(600)"), name="never")
    with pytest.raises(SamplingError, match=r"no image .deadline after 1.*imports and setup"):
        check(bundle, never, tmp_path / "b", time_limit_seconds=1.0)
    log = bundle.manifest.sampling
    assert 60 < default_time_limit(log, 32) <= default_time_limit(log, 75) < 120
    forged = replace(log, seconds=replace(log.seconds, load=1e300))
    assert default_time_limit(forged, 75) == 86_400


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.first_line(seed=7), "batch 0 has the seed 7, run seed 11 makes it"),
        (lambda b: b.first_line(index=1), "batch 1 stands where batch 0 must"),
        (lambda b: b.first_line(count=10**6), "batch 0 has 1000000 images, 349525 fit a frame"),
        (lambda b: with_log(b.bundle, run_seed=-1), "the run seed -1 is none of 0"),
        (lambda b: with_log(b.bundle, batches=()), "handed its images over as one file"),
        (lambda b: b.manifest(sampling=None, origin="x.pt"), "was imported from x.pt"),
        (lambda b: b.manifest(dtype="float32"), "sampled images are uint8, these are float32"),
        (lambda b: b.relabelled(), "row 3 has label 9, but the run its manifest describes made an"),
    ],
)
def test_what_no_supervisor_wrote_is_refused(make_submission, tmp_path, change, says):
    """Seeds that were chosen, labels that were changed, no batches: each in its own words."""

    class Changed:
        bundle = sampled(make_submission(HONEST), tmp_path / "out")

        def first_line(self, **changes):
            lines = self.bundle.manifest.sampling.batches
            return with_log(self.bundle, batches=(replace(lines[0], **changes), *lines[1:]))

        def manifest(self, **changes):
            manifest = replace(self.bundle.manifest, **changes)
            return Bundle(self.bundle.folder, self.bundle.data, manifest)

        def relabelled(self):
            def change(images, labels):
                labels[3] = 9

            return tampered(self.bundle, tmp_path / "relabelled", change)

    with pytest.raises(RequestError) as caught:
        recorded_batches(change(Changed()), SPEC)
    assert says in str(caught.value).replace("\n", " ")


def test_what_was_different_then_is_said(make_submission, tmp_path):
    """Another submission, training set or machine is named, and compared all the same."""
    bundle = sampled(make_submission(HONEST), tmp_path / "out")
    other = make_submission(HONEST, name="other")
    elsewhere = replace(bundle.manifest.environment, torch="1.0", hardware="abacus")
    manifest = replace(bundle.manifest, environment=elsewhere, training_digest="ab" * 32)
    changed = Bundle(bundle.folder, bundle.data, manifest)
    said = remarks(changed, other, None, "cpu")
    assert len(said) == 4
    assert f"other {other.identity.digest[:16]}, the bundle has entry" in said[0]
    assert "digest none, the bundle has abababab" in said[1]
    assert "Recorded with hardware abacus" in said[2]
    assert check(changed, other, tmp_path)[0].verdict == "identical"
    real = find_submission("real_subset")
    with pytest.raises(RequestError, match="needs training data to make its images again"):
        check(bundle, real, tmp_path, training_data=None)


def test_the_command_line_of_a_bundle_that_agrees(ddchallenge, make_submission, tmp_path):
    """`verify` says what was compared, as lines or as one document, and ends with 0."""
    submission = make_submission(HONEST)
    sampled(submission, tmp_path / "out", augmentation="pda5", max_images=250)
    line = ["verify", tmp_path / "out", "--submission", submission.folder, "--device", "cpu"]
    said = ddchallenge(*line, "--batches", "2", "--seed", "4")
    assert said.status == 0
    assert "identical: 2 of 4 batches generated again" in said.err
    assert "with a probability of 50 %" in said.err
    assert not (tmp_path / "out" / "difference.png").exists()
    said = ddchallenge(*line, "--batches", "all", "--json")
    document = json.loads(said.out)
    assert (said.status, document["verdict"], document["images_compared"]) == (0, "identical", 50)
    assert document["copies_identical"] == 200


def test_the_command_line_of_a_bundle_that_does_not(ddchallenge, make_submission, tmp_path):
    """The picture is written, the status is 1; what cannot be asked is 2 and says what to do."""
    submission = make_submission(HONEST)
    true = sampled(submission, tmp_path / "out")
    other = make_submission(HONEST.replace("(20, 236", "(20, 235"), name="other")
    line = ["verify", tmp_path / "out", "--device", "cpu", "--submission"]
    said = ddchallenge(*line, other.folder, "--json", "--batches", "all")
    assert (said.status, json.loads(said.out)["verdict"]) == (1, "different")
    assert "is not what other makes here" in said.err
    assert "This is not the submission the bundle names: other" in said.err
    with PIL.Image.open(tmp_path / "out" / "difference.png") as picture:
        assert picture.format == "PNG"
    (tmp_path / "out" / "difference.png").write_bytes(b"an older one")
    assert "with a probability" not in said.err
    again = ddchallenge(*line, other.folder)  # its own picture is replaced
    assert again.status == 1
    with PIL.Image.open(tmp_path / "out" / "difference.png") as picture:
        assert picture.format == "PNG"
    taken = ["--out", tmp_path / "out" / "difference.png"]  # one that was asked for is not
    assert "there already" in ddchallenge(*line, other.folder, *taken).err
    elsewhere = ["--out", tmp_path / "elsewhere.png"]
    assert ddchallenge(*line, other.folder, *elsewhere).status == 1
    assert (tmp_path / "elsewhere.png").is_file()

    def refused(*arguments):
        said = ddchallenge(*arguments, "--out", tmp_path / "none.png")
        assert said.status == 2
        return said.err

    assert "--submission is missing" in refused("verify", tmp_path / "out")
    assert "is no number of batches" in refused(*line, other.folder, "--batches", "0x")
    assert "No submission is called 'nobody'" in refused(*line, "nobody")
    assert "is made for cifar100" in refused(
        *line, make_submission(HONEST, name="far", datasets='["cifar100"]').folder
    )
    assert "Expected a bundle for cifar100" in refused(
        *line, submission.folder, "--dataset", "cifar100"
    )
    imported = replace(true.manifest, sampling=None, launch=None, origin="x.pt")
    write_bundle(tmp_path / "imported", true.data, imported, PNG)
    assert "was imported from x.pt" in refused(
        "verify", tmp_path / "imported", "--submission", submission.folder
    )


def test_a_recovered_bundle_is_as_good_as_its_batches(make_submission, tmp_path):
    """What was written to disk and read again is replayed from the file alone."""
    submission = make_submission(HONEST)
    bundle = sampled(submission, tmp_path / "out")
    path = bundle.folder / "manifest.json"
    document = read_json(path, 1 << 20)
    document["recovered"] = True
    document["sampling"]["stop"] = "interrupted"
    write_json(path, document)
    outcome, _ = check(read_bundle(bundle.folder), submission, tmp_path, 3)
    assert isinstance(outcome, Replay)
    assert outcome.verdict == "identical"


def test_training_data_that_is_not_here_is_named(ddchallenge, make_submission, tmp_path):
    """A generator that needs training images is not started without them."""
    code = HONEST.replace("pass", "task.load_training_data()")
    spec = get_dataset("cifar100")
    entry = make_submission(HONEST.replace("8, 8", "32, 32"), datasets='["cifar100"]', name="plain")
    sampled(entry, tmp_path / "out", dataset=spec)
    greedy = make_submission(code, datasets='["cifar100"]', needs_training_data="true")
    said = ddchallenge(
        *["verify", tmp_path / "out", "--submission", greedy.folder, "--device", "cpu"],
        *["--data-dir", tmp_path / "nothing"],
    )
    assert said.status == 2
    assert "ddchallenge data fetch cifar100" in said.err


def test_a_replay_leaves_only_a_log_that_is_worth_reading(
    ddchallenge, make_submission, tmp_path, monkeypatch
):
    """Nothing of one that printed nothing; what a failing generator printed stays, and is said."""
    true = make_submission(HONEST)
    sampled(true, tmp_path / "out")
    there = tmp_path / "temporary"
    there.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(there))
    line = ["verify", tmp_path / "out", "--device", "cpu", "--submission"]
    silent = make_submission("import os\nos._exit(3)\n", name="silent")
    loud = make_submission("import os\nprint('why', flush=True)\nos._exit(3)\n", name="loud")
    assert ddchallenge(*line, true.folder).status == 0
    assert ddchallenge(*line, silent.folder).status == 1
    assert not list(there.glob("ddchallenge-verify-*"))
    said = ddchallenge(*line, loud.folder)
    assert said.status == 1
    (folder,) = there.glob("ddchallenge-verify-*")
    assert [path.name for path in folder.iterdir()] == ["worker.log"]
    assert f"What the generator printed is in {folder / 'worker.log'}" in said.err
