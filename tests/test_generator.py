"""submission.toml, and how submissions are found."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from ddchallenge import generator
from ddchallenge.errors import SubmissionError, UnknownNameError
from ddchallenge.generator import (
    find_submission,
    folder_digest,
    list_submissions,
    read_submission,
)
from ddchallenge.scaffold import new_submission

GOOD = """\
name = "good"
authors = ["A", "B"]
entry_point = "generate:G"
datasets = ["digits"]
batch_size = 8

[options]
steps = 10
sizes = [1, 2]
"""


def write(folder: Path, text: str = GOOD) -> Path:
    folder.mkdir(parents=True)
    (folder / "submission.toml").write_text(text)
    (folder / "generate.py").write_text("class G: ...\n")
    return folder


def test_settings_are_read_with_their_defaults(tmp_path):
    """What the file says is there, and what it leaves out has the documented default."""
    entry = read_submission(write(tmp_path / "good"))
    assert (entry.name, entry.authors, entry.batch_size) == ("good", ("A", "B"), 8)
    assert (entry.augmentation, entry.images_per_class, entry.ranked) == ("none", None, True)
    assert dict(entry.options) == {"steps": 10, "sizes": (1, 2)}
    with pytest.raises(TypeError):
        entry.options["steps"] = 5  # type: ignore[index]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("batch_size = 8", 'batch_size = "many"', 5, "batch_size must be a whole number"),
        ("batch_size = 8", "batch_size = 0", 5, "from 1 to 65536, found 0"),
        ("batch_size = 8", "batch_size = true", 5, "found True"),
        ("batch_size = 8", "batchsize = 8", 5, "Did you mean 'batch_size'?"),
        ("batch_size = 8", 'augmentation = "pda9"', 5, "one of none, pda5"),
        ('["digits"]', '["digit"]', 4, "digits, cifar100, tinyimagenet"),
        ('"generate:G"', '"generate"', 3, '"module:Class"'),
        ('"generate:G"', '"../evil:G"', 3, '"module:Class"'),
        ('"generate:G"', '"other:G"', 3, "there is no other.py"),
        ('name = "good"', 'name = "Good One"', 1, "a name of small letters"),
        ("steps = 10", "steps = {a = 1}", 7, "steps is not"),
    ],
)
def test_a_wrong_setting_is_shown_with_its_line(tmp_path, old, new, line, message):
    """The error names the file, the line, what was expected and what was found."""
    folder = write(tmp_path / "good", GOOD.replace(old, new))
    with pytest.raises(SubmissionError) as caught:
        read_submission(folder)
    assert f"submission.toml, line {line}: " in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_setting_and_broken_toml_are_named(tmp_path):
    """A required setting that is not there, and a syntax error with its own line."""
    with pytest.raises(SubmissionError, match="'authors' is missing"):
        read_submission(write(tmp_path / "a", GOOD.replace('authors = ["A", "B"]', "")))
    with pytest.raises(SubmissionError, match="line 2"):
        read_submission(write(tmp_path / "b", GOOD.replace("authors = [", "authors = ]")))
    with pytest.raises(SubmissionError, match="holds no submission"):
        read_submission(tmp_path)


def test_the_digest_covers_code_but_not_results(tmp_path):
    """Results, caches and dot files may change; a byte of code or a file name may not."""
    folder = write(tmp_path / "good")
    first = folder_digest(folder)
    for extra in ("results/digits.json", "__pycache__/generate.pyc", ".git/HEAD", "README.md"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("x")
    assert folder_digest(folder) == first
    for weights in ("results/weights.pt", ".weights.pt"):
        before = folder_digest(folder)
        (folder / weights).write_text("x")
        assert folder_digest(folder) != before
    first = folder_digest(folder)
    (folder / "generate.py").write_text("class G: ....\n")
    changed = folder_digest(folder)
    assert changed != first
    (folder / "generate.py").rename(folder / "generat.py")
    assert folder_digest(folder) not in (first, changed)


def test_a_symbolic_link_is_refused(tmp_path):
    """A link could name any file of the machine."""
    folder = write(tmp_path / "good")
    (folder / "weights.bin").symlink_to("/etc/hostname")
    with pytest.raises(SubmissionError, match="symbolic link"):
        folder_digest(folder)


def test_submissions_are_found_by_path_name_and_entry_point(tmp_path, monkeypatch):
    """All three ways lead to the same kind of thing; the baselines are always there."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "submissions" / "good")
    write(tmp_path / "site" / "plugin" / "inner", GOOD.replace('"good"', '"plugged"'))
    # Importing this package would fail: finding a submission must not execute it.
    (tmp_path / "site" / "plugin" / "__init__.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    registered = [EntryPoint("plugged", "plugin.inner", generator.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(generator, "entry_points", lambda group: registered)
    assert find_submission("good").name == "good"
    assert find_submission(str(tmp_path / "submissions" / "good")).name == "good"
    assert find_submission("plugged").folder == tmp_path / "site" / "plugin" / "inner"
    assert {"gaussian", "real_subset", "good", "plugged"} <= {r.name for r in list_submissions()}


def test_unknown_and_ambiguous_names(tmp_path, monkeypatch):
    """A typing error gets a suggestion, a name that two folders have gets both paths."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="Did you mean 'gaussian'"):
        find_submission("gausian")
    write(tmp_path / "submissions" / "gaussian", GOOD.replace('"good"', '"gaussian"'))
    with pytest.raises(SubmissionError, match="2 submissions are called 'gaussian'"):
        find_submission("gaussian")


def test_baselines_of_another_clone_shadow_the_installed_ones(tmp_path, monkeypatch):
    """A folder with baselines of its own runs its own; nothing is ambiguous."""
    monkeypatch.chdir(tmp_path)
    own = write(tmp_path / "baselines" / "gaussian", GOOD.replace('"good"', '"gaussian"'))
    assert find_submission("gaussian").folder == own
    assert [row.name for row in list_submissions()].count("gaussian") == 1


def test_a_broken_submission_does_not_hide_the_others(tmp_path, monkeypatch):
    """Listing goes on, and says what is wrong with the broken one."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "submissions" / "broken", "name = 3\n")
    linked = write(tmp_path / "submissions" / "linked", GOOD.replace('"good"', '"linked"'))
    (linked / "weights.bin").symlink_to("/etc/hostname")
    rows = {row.name: row for row in list_submissions()}
    assert "line 1" in (rows["broken"].problem or "")
    assert "symbolic link" in (rows["linked"].problem or "")
    assert rows["gaussian"].submission is not None


@pytest.mark.parametrize("name", ["mine", "my-second_try", "2fast"])
def test_a_new_submission_is_valid_as_it_is(tmp_path, name):
    """The template passes the validation of its own harness and defines what it names."""
    folder = new_submission(name, tmp_path)
    entry = read_submission(folder)
    assert entry.name == name
    code = (folder / "generate.py").read_text()
    compile(code, "generate.py", "exec")
    assert f"class {entry.entry_point.partition(':')[2]}:" in code
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "generate.py",
        "submission.toml",
    ]


def test_weights_have_a_digest_of_their_own(make_submission):
    """It is None without any, follows their content, and is not moved by code."""
    submission = make_submission("class G: ...")
    assert submission.weights_digest is None
    (submission.folder / "model").mkdir()
    weights = submission.folder / "model" / "unet.safetensors"
    weights.write_bytes(b"1")
    first, identity = submission.weights_digest, submission.identity
    (submission.folder / "generate.py").write_text("class G: pass\n")
    assert submission.weights_digest == first
    assert submission.identity != identity
    weights.write_bytes(b"2")
    assert submission.weights_digest not in (None, first)


def test_a_pipe_is_no_submission(tmp_path):
    """It is refused at once: opening it would wait for a writer."""
    os.mkfifo(tmp_path / "submission.toml")
    with pytest.raises(SubmissionError, match="no plain file"):
        read_submission(tmp_path)


def test_files_too_large_to_hash_are_refused(tmp_path):
    """Neither a file of holes nor more than the bound is read."""
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(SubmissionError, match="a file of holes"):
        folder_digest(tmp_path)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(65 << 30)
    with pytest.raises(SubmissionError, match="more than 64 GiB"):
        folder_digest(tmp_path)
