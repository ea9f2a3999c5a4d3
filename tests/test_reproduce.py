"""Rows of the leaderboard are got again, out of a git history, by the code and settings they name.

The repository is a real one, made here: this package and a submission in two commits. Its result
was sampled and scored by the code of the first.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

import ddchallenge as package
from ddchallenge.cli.launch import LaunchOptions
from ddchallenge.cli.reproduce import _box, _recorded_box, reproduce
from ddchallenge.errors import RequestError, RunError
from ddchallenge.generator import read_submission
from ddchallenge.leaderboard import read_result, result_document, write_result
from ddchallenge.records import Accuracy, Result
from ddchallenge.report.reproduction import reproduction_lines
from ddchallenge.reproduce.again import run_code, scoring_arguments
from ddchallenge.reproduce.agreement import agreement
from ddchallenge.reproduce.checkout import code_at
from ddchallenge.scoring.statistics import accuracy_of, welch_interval

GENERATOR = """
import numpy as np

class G:
    def setup(self, task):
        pass

    def generate(self, labels, seed):
        images = np.random.default_rng(seed).integers(0, 60, (len(labels), 3, 8, 8))
        for image, label in zip(images, labels):
            image[:, label % 8] += 20 * (1 + label // 8)  # something to learn
        return images.astype(np.uint8)
"""
CONFIG = """
name = "entry"
authors = ["a test"]
entry_point = "generate:G"
datasets = ["digits"]
images_per_class = 10
"""


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    line = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


class History:
    """A repository whose first commit made ``result``, in ``out``; its second changed the entry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        self.out = folder / "out"
        self.entry = self.folder / "submissions" / "entry"
        self.entry.mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(package.__file__).parent, self.folder / "ddchallenge", ignore=ignored)
        (self.folder / ".gitignore").write_text("__pycache__/\n")
        (self.entry / "generate.py").write_text(GENERATOR)
        (self.entry / "submission.toml").write_text(CONFIG)
        git(self.folder, "init", "--quiet", "-b", "main")
        self.commit("first")
        run = ["run", "--track=generative", "--dataset=digits", f"--submission={self.entry}"]
        run += [
            "--device=cpu",
            "--numerics=exact",
            "--epochs=8",
            "--seeds=0,1,2",
            "--max-images=60",
        ]
        run_code(self.folder, [*run, f"--out={self.out}"], 1, self.out / "result.json")
        self.path = self.out / "result.json"
        self.result = read_result(self.path)
        (self.entry / "generate.py").write_text(GENERATOR.replace("20 *", "30 *"))
        self.commit("second")

    def commit(self, message: str) -> str:
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "--quiet", "-m", message)
        return git(self.folder, "rev-parse", "HEAD")

    def line(self, path: Path | None = None) -> list[str | Path]:
        return ["reproduce", path or self.path, "--repository", self.folder]


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> History:
    return History(tmp_path_factory.mktemp("history"))


def scored(result: Result, correct: list[int], **changes) -> Result:
    """The result as it would be with so many images recognised, of 500."""
    runs = tuple(
        replace(result.runs[0], seed=seed, correct=c, accuracy=c / 500, test_images=500)
        for seed, c in enumerate(correct)
    )
    return replace(result, runs=runs, accuracy=accuracy_of(runs), **changes)


def test_the_result_names_the_first_commit(history):
    """What the tests below stand on: a clean commit that is not the one checked out."""
    origin = history.result.provenance
    assert origin.commit == git(history.folder, "rev-parse", "HEAD~1")
    assert (origin.dirty, origin.threads) == (False, 1)
    assert history.result.sampling.max_images == 60
    assert read_submission(history.entry).identity != history.result.submission


def test_a_result_is_got_again_from_its_commit(history, ddchallenge, tmp_path):
    """The old code and the old submission, out of a history that has gone on: identical."""
    before = git(history.folder, "status", "--porcelain"), git(history.folder, "worktree", "list")
    said = ddchallenge(*history.line(), "--out", tmp_path / "again", "--json")
    assert said.status == 0, said.err
    document = json.loads(said.out)
    found = document["agreement"]
    assert (found["agrees"], found["identical"], found["identical_expected"]) == (True,) * 3
    assert (found["changes"], found["same_images"], found["images_again"]) == ([], True, 60)
    again = read_result(tmp_path / "again" / "result.json")
    assert again.provenance.commit == history.result.provenance.commit
    assert again.submission == history.result.submission
    assert again.bundle.digest == history.result.bundle.digest
    assert json.loads((tmp_path / "again" / "reproduction.json").read_text()) == document
    assert "identical: every seed recognises as many test images as recorded" in said.err
    assert f"code: commit {again.provenance.commit[:12]}" in said.err
    assert "ddchallenge-code-" not in said.err  # a clone that is gone by now is not spoken of
    after = git(history.folder, "status", "--porcelain"), git(history.folder, "worktree", "list")
    assert before == after


def test_a_better_score_than_the_images_give_is_caught(history, ddchallenge, tmp_path):
    """A record with more recognised in every seed, its mean made to agree, is not got again.

    With --replay: the images are found to be the submission's, the accuracies not to be theirs.
    """
    correct = [min(500, run.correct + 150) for run in history.result.runs]
    write_result(tmp_path / "forged.json", scored(history.result, correct))
    replayed = ["--replay", history.out, "--batches", "all", "--out", tmp_path / "again"]
    said = ddchallenge(*history.line(tmp_path / "forged.json"), *replayed)
    assert said.status == 1
    assert "identical: 1 of 1 batches generated again, 60 images compared" in said.err
    assert "does not agree: -30.00 points" in said.err
    assert "the same by name: another processor of that name, or a record that was cha" in said.err
    document = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert document["replay"]["verdict"] == "identical"
    assert document["agreement"]["agrees"] is False
    assert document["agreement"]["same_images"] is True
    assert not (tmp_path / "again" / "bundle").exists()


def test_images_of_another_generator_are_caught_by_replay(history, ddchallenge, tmp_path):
    """A result that names the second commit, with images of the first, ends with a picture."""
    head = git(history.folder, "rev-parse", "HEAD")
    claimed = replace(
        history.result,
        submission=read_submission(history.entry).identity,
        provenance=replace(history.result.provenance, commit=head),
    )
    write_result(tmp_path / "claimed.json", claimed)
    replayed = ["--replay", history.out, "--out", tmp_path / "again"]
    said = ddchallenge(*history.line(tmp_path / "claimed.json"), *replayed)
    assert said.status == 1
    assert f"code: commit {head[:12]}" in said.err
    assert "different: 1 of 1 batches" in said.err
    assert (tmp_path / "again" / "difference.png").is_file()


def changed(result: Result, **changes) -> Result:
    return replace(result, provenance=replace(result.provenance, **changes))


REFUSED = {
    "no commit": (lambda r: changed(r, commit=None, dirty=None), "names no commit"),
    "dirty": (lambda r: changed(r, dirty=True), "were not committed: nobody else has that code"),
    "no commit's name": (lambda r: changed(r, commit="--help"), "'--help' is no git commit"),
    "unknown": (lambda r: changed(r, commit="ab" * 20), "abababababab, which made this result, is"),
    "digest": (
        lambda r: replace(r, submission=replace(r.submission, digest="ab" * 32)),
        "is not the submission that made this result: its digest is",
    ),
    "gone": (
        lambda r: replace(r, submission=replace(r.submission, name="gone")),
        "The submission 'gone' is not in",
    ),
    "outside": (
        lambda r: replace(r, submission=replace(r.submission, name="../../etc")),
        "The submission '../../etc' is not in",
    ),
    "imported": (lambda r: replace(r, sampling=None), "was scored on an imported tensor"),
    "protocol": (
        lambda r: replace(r, protocol=replace(r.protocol, id="mine")),
        "was scored by 'mine' with 'ConvNetD3-W128'; this version knows eccv2024, imagewoof",
    ),
    "folders": (lambda r: replace(r, dataset="woof-64px-0a1b2c"), "with --dataset folder:PATH"),
    "no dataset": (lambda r: replace(r, dataset="cifar100"), "ddchallenge data fetch cifar100"),
    "no runs": (lambda r: replace(r, runs=()), "contradicts itself: its accuracy is not the mean"),
    "mean": (
        lambda r: replace(r, accuracy=Accuracy(mean=0.9, std=None, ci95=None, test_error=0.1)),
        "contradicts itself: its accuracy is not the mean",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_got_again_is_refused(history, ddchallenge, tmp_path, monkeypatch, name):
    """Each with status 2, in a sentence of its own, and before anything was made."""
    change, says = REFUSED[name]
    monkeypatch.setenv("DDCHALLENGE_DATA", str(tmp_path / "nothing"))
    write_result(tmp_path / "result.json", change(history.result))
    said = ddchallenge(*history.line(tmp_path / "result.json"), "--out", tmp_path / "again")
    assert said.status == 2, said.err
    assert says in said.err.replace("\n", " ")
    assert not (tmp_path / "again").exists()


def make_empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_files_and_options_that_fit_no_result_are_refused(history, ddchallenge, tmp_path):
    """Another schema, no result at all, another bundle, another dataset, no repository."""
    path = tmp_path / "result.json"

    def refused(*arguments):
        said = ddchallenge("reproduce", *arguments, "--out", tmp_path / "again")
        assert said.status == 2, said.err
        return said.err

    document = result_document(history.result)
    path.write_text(json.dumps(document | {"schema": 99}))
    assert "schema 99" in refused(path)
    path.write_text(json.dumps(document | {"schema": 1}))
    assert "An earlier version wrote it" in refused(path)
    path.write_text("[1, 2]")
    assert "expected an object, found a list" in refused(path)
    assert "There is no result at" in refused(tmp_path / "nowhere.json")
    assert f"There is no result at {tmp_path / 'none' / 'result.json'}" in refused(
        make_empty(tmp_path / "none")  # the folder of a run is that of its result
    )
    other = replace(history.result, bundle=replace(history.result.bundle, digest="ab" * 32))
    write_result(path, other)
    assert "is not the bundle of this result" in refused(path, "--replay", history.out)
    far = ["--dataset", "tinyimagenet"]
    assert "The result is of digits, --dataset is tinyimagenet" in refused(history.path, *far)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is in no git repository" in refused(history.path, "--repository", empty)


def test_code_that_is_not_in_the_history_is_not_run(history, tmp_path):
    """A commit that was fetched, but is no part of what is checked out, is a stranger's harness."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(history.folder), str(clone))
    git(clone, "checkout", "--quiet", "-b", "strange", "HEAD~1")
    (clone / "ddchallenge" / "__init__.py").write_text("raise SystemExit('run')\n")
    git(clone, "commit", "--quiet", "-a", "-m", "strange")
    strange = git(clone, "rev-parse", "HEAD")
    git(clone, "checkout", "--quiet", "main")
    with (
        pytest.raises(RequestError, match="no part of what is checked out"),
        code_at(strange, clone),
    ):
        pass
    git(clone, "rm", "--quiet", "-r", "ddchallenge")
    git(clone, "commit", "--quiet", "-m", "gone")
    gone = git(clone, "rev-parse", "HEAD")
    with pytest.raises(RequestError, match="holds no ddchallenge"), code_at(gone, clone):
        pass


def test_code_that_is_older_than_the_box_is_not_run(history, ddchallenge, tmp_path):
    """It would run a stranger's submission in the open; the box is looked for in the commit."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(history.folder), str(clone))
    box = clone / "ddchallenge" / "sampling" / "launchers" / "sandbox.py"
    text = box.read_text()
    git(clone, "rm", "--quiet", str(box))
    git(clone, "commit", "--quiet", "-m", "no box")
    old = git(clone, "rev-parse", "HEAD")
    for lies_there in (False, True):
        if lies_there:
            box.write_text(text)  # the checkout has it, the commit has not
        with pytest.raises(RequestError, match="older than the box"), code_at(old, clone):
            pass
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "-m", "box")
    write_result(tmp_path / "hostile.json", changed(history.result, commit=old))
    line = ["reproduce", tmp_path / "hostile.json", "--repository", clone]
    said = ddchallenge(*line, "--submission", history.entry, "--out", tmp_path / "again")
    assert said.status == 2
    assert "--this-code" in said.err
    assert not (tmp_path / "again" / "bundle").exists()


def test_the_recorded_launcher_is_taken(history):
    """A result names its box; it is taken unless another is asked for, and that is listed."""
    assert history.result.sampling.launcher == "process"
    assert history.result.sampling.image is None
    sampling = replace(history.result.sampling, launcher="container", image="sha256:" + "a" * 64)
    boxed = replace(history.result, sampling=sampling)
    here: LaunchOptions = {
        "launcher": "process",
        "engine": None,
        "memory": None,
        "disk": None,
        "processes": None,
        "cpus": None,
    }
    for asked, taken in (([], "container"), (["--launcher=process"], "process")):
        with reproduce.make_context("reproduce", ["result.json", *asked]):
            assert _recorded_box(boxed, here)["launcher"] == taken
    changes = {change.what: change for change in agreement(boxed, history.result).changes}
    assert (changes["launcher"].again, changes["launcher"].recorded) == ("process", "container")
    assert "image" in changes
    old = replace(sampling, launcher=None, image=None)
    with reproduce.make_context("reproduce", ["result.json"]):
        assert _recorded_box(replace(history.result, sampling=old), here) == here


@pytest.mark.usefixtures("terminal_signals")
def test_an_interrupt_reaches_the_code_that_runs(history, tmp_path):
    """Ctrl-C ends the child; what it had sampled is kept, and none of its processes are left."""
    slow = tmp_path / "slow"
    shutil.copytree(history.entry, slow)
    code = (slow / "generate.py").read_text()
    (slow / "generate.py").write_text(
        code.replace("images =", "import time; time.sleep(0.1); images =", 1)
    )
    config = (slow / "submission.toml").read_text().replace("images_per_class = 10", "")
    (slow / "submission.toml").write_text(config)
    out = tmp_path / "out"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while not (out / "spool.bin").is_file() or not (out / "spool.bin").stat().st_size:
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    line = ["sample", "--dataset=digits", f"--submission={slow}", "--device=cpu", f"--out={out}"]
    with pytest.raises(RunError, match="Interrupted; what was made is in"):
        run_code(history.folder, line, 1, out / "bundle")
    thread.join()
    manifest = json.loads((out / "bundle" / "manifest.json").read_text())
    assert manifest["sampling"]["stop"] == "interrupted"
    assert manifest["images"] > 0


def test_code_that_fails_is_quoted(history, tmp_path):
    """What went wrong over there stands in the message here."""
    line = ["sample", "--dataset=digits", "--submission=nobody"]
    with pytest.raises(RunError, match=r"`ddchallenge sample` of .* No submission is called"):
        run_code(history.folder, line, 1, tmp_path / "bundle")


def test_the_code_that_is_here_can_be_taken_instead(history, ddchallenge, tmp_path):
    """For a result nobody else has the code of: it runs, and that it is other code is listed."""
    write_result(tmp_path / "dirty.json", changed(history.result, dirty=True))
    entry = tmp_path / "entry"
    shutil.copytree(history.entry, entry)
    (entry / "generate.py").write_text(GENERATOR)
    here = ["--this-code", "--submission", entry, "--out", tmp_path / "again"]
    said = ddchallenge("reproduce", tmp_path / "dirty.json", *here, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)["agreement"]
    assert "code" in [change["what"] for change in found["changes"]]
    assert (found["agrees"], found["identical"]) == (True, True)


def test_a_box_is_passed_on_but_for_the_default():
    """Commits from before the launchers know no such option."""
    nothing = dict.fromkeys(("engine", "memory", "disk", "processes", "cpus"))
    assert _box({"launcher": "process"} | nothing) == []
    chosen = _box({"launcher": "container"} | nothing | {"engine": "podman", "memory": 1 << 30})
    assert chosen == ["--launcher=container", "--engine=podman", "--memory=1073741824"]


def test_agreement_is_welchs_interval_over_the_seeds(history):
    """As SciPy has it; the mean may lie anywhere within, and nowhere else."""
    recorded = scored(history.result, [400, 410, 405])
    for correct in ([401, 409, 404], [390, 380, 385], [430, 380, 450], [402, 404]):
        again = scored(history.result, correct)
        found = agreement(recorded, again)
        test = stats.ttest_ind([c / 500 for c in correct], [0.8, 0.82, 0.81], equal_var=False)
        low, high = test.confidence_interval(0.95)
        assert found.interval == pytest.approx((low, high))
        assert found.agrees == (test.pvalue >= 0.05)
    assert not agreement(recorded, scored(history.result, [390, 380, 385])).agrees
    assert welch_interval([0.5], [0.5, 0.6]) is None
    assert welch_interval([0.5, 0.5], [0.25, 0.25]) == (0.25, 0.25)


def test_other_images_are_allowed_for(history):
    """What the seeds cannot know is taken from the test set, and said apart.

    Met in earnest: gaussian on digits, a few pixels rounded otherwise by another processor.
    """
    recorded = scored(history.result, [466, 465, 464])
    again = scored(history.result, [461, 462, 462])
    assert not agreement(recorded, again).agrees
    others = replace(again, bundle=replace(again.bundle, digest="ab" * 32))
    found = agreement(recorded, others)
    seeds = stats.ttest_ind([0.922, 0.924, 0.924], [0.932, 0.93, 0.928], equal_var=False)
    low, high = seeds.confidence_interval(0.95)
    assert found.seeds_interval == pytest.approx((low, high))
    error = (0.93 * 0.07 / 500 + found_mean(again) / 500) ** 0.5
    half = ((high - low) ** 2 / 4 + (1.96 * error) ** 2) ** 0.5
    assert found.agrees
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * half)
    lines = reproduction_lines(recorded, others, found)
    assert "over seeds alone -1.08 to -0.26; the images are others" in lines[-1]
    assert not agreement(recorded, scored(others, [440, 441, 442])).agrees


def found_mean(result: Result) -> float:
    """p (1 - p), as the binomial variance has it."""
    mean = result.accuracy.mean
    return mean * (1 - mean)


def test_agreement_without_a_deviation(history):
    """Seeds that all agree may be one test image off; a single seed has the test set's error."""
    level = scored(history.result, [400, 400])
    assert agreement(level, scored(history.result, [401, 401])).agrees
    assert not agreement(level, scored(history.result, [402, 402])).agrees
    single = scored(history.result, [400])
    half = 1.96 * (2 * 0.8 * 0.2 / 500) ** 0.5
    assert agreement(single, single).interval == pytest.approx((-half, half))


def test_what_differs_is_listed_and_what_may_be_expected_said(history):
    """Other threads: other bits. Another machine: other images. Neither is called identical."""
    recorded = scored(history.result, [400, 410, 405])
    same = agreement(recorded, recorded)
    assert (same.identical, same.identical_expected, same.changes) == (True, True, ())
    threads = changed(scored(history.result, [400, 411, 405]), threads=7)
    found = agreement(recorded, threads)
    assert (found.agrees, found.identical, found.identical_expected) == (True, False, False)
    assert [(c.what, c.recorded, c.again) for c in found.changes] == [("threads", "1", "7")]
    assert "not identical, and not expected to be" in reproduction_lines(recorded, threads, found)
    # Python or the kernel may be another: nothing in the arithmetic hangs on them.
    assert agreement(recorded, changed(recorded, python="4")).identical_expected
    fast = replace(recorded, protocol=replace(recorded.protocol, numerics="fast"))
    assert not agreement(fast, fast).identical_expected
    fewer = replace(recorded, bundle=replace(recorded.bundle, digest="ab" * 32, images=40))
    found = agreement(recorded, fewer)
    assert (found.same_images, found.identical_expected) == (False, False)
    lines = " ".join(reproduction_lines(recorded, fewer, found))
    assert "40, recorded 60: the generator is slower on this machine" in lines


def test_every_protocol_is_named_as_it_was_chosen(history):
    """The id of a protocol with several networks holds the network; the options are two."""
    plain = scoring_arguments(history.result, "cpu")
    assert plain[0] == "--protocol=eccv2024"
    assert not any("--network" in argument for argument in plain)
    use = replace(history.result.protocol, id="imagewoof-resnet-18", network="ResNet-18")
    woof = scoring_arguments(replace(history.result, protocol=use), "cpu")
    assert woof[:2] == ["--protocol=imagewoof", "--network=ResNet-18"]
