"""A submission as one file: what goes in, what stays behind, and that it comes out the same."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from archives import archive, files_of, list_member, listing, member, members, package_of, packed

from ddchallenge import cli
from ddchallenge.errors import OutputError, PackageError, SubmissionError, UnknownNameError
from ddchallenge.generator import folder_digest, read_submission
from ddchallenge.packages import check_package, unpack, write_package
from ddchallenge.packages.privacy import SecretFinder
from ddchallenge.scaffold import new_submission

CODE = b"class G: ...\n"
CONFIG = b"""\
name = "entry"
authors = ["a test"]
entry_point = "generate:G"
datasets = ["digits"]
"""
FILES = {"generate.py": CODE, "submission.toml": CONFIG}
# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a Hugging Face token": "hf_" + 34 * "a",
    "a GitHub token": "ghp_" + 36 * "b",
    "an AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a password in an address": "https://me:" + "swordfish@example.org/simple",
}


@pytest.fixture
def entry(make_submission):
    return make_submission(CODE.decode())


def refusal(entry, target: Path, **options) -> str:
    with pytest.raises(SubmissionError) as caught:
        write_package(entry, target, **options)
    assert not target.exists()
    assert list(target.parent.glob(".*.tmp")) == []
    return str(caught.value)


def test_same_files_same_bytes(entry, tmp_path):
    """Another day, another folder, another umask, other modes and a result recorded since."""
    (entry.folder / "weights.safetensors").write_bytes(os.urandom(300_000))
    (entry.folder / "nets").mkdir()
    (entry.folder / "nets" / "unet.py").write_text("x = 1\n")
    first = packed(entry, tmp_path / "first.tar.gz").read_bytes()
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(entry.folder, copy)
    (copy / "results").mkdir()
    (copy / "results" / "digits.eccv2024.json").write_text("{}")
    for path in copy.rglob("*.py"):
        path.chmod(0o700)
        os.utime(path, (1, 1))
    before = os.umask(0o077)
    try:
        second = packed(read_submission(copy), tmp_path / "other" / "name.tgz").read_bytes()
    finally:
        os.umask(before)
    assert first == second
    assert first[4:8] == bytes(4)  # gzip's time
    assert not first[3] & 0b1000  # nor a name


def test_there_and_back(tmp_path):
    """What `new` makes comes out of its package as it was, under the digest manifests name."""
    folder = new_submission("mine", tmp_path)
    written = write_package(read_submission(folder), tmp_path / "mine.tar.gz")
    checked = check_package(written.path)
    assert checked.contents == written.contents
    assert checked.sha256 == written.sha256
    assert checked.submission.name == "mine"
    assert not (tmp_path / "out").exists()
    unpack(checked, tmp_path / "out")
    got = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert got == {path.name: path.read_bytes() for path in folder.iterdir()}
    identity = read_submission(tmp_path / "out").identity
    assert identity.digest == written.contents.digest == folder_digest(folder)
    assert written.folder_digest == written.contents.digest


def test_what_is_left_out_is_said(entry, tmp_path):
    """Off the list, recorded results, leftovers: behind, with the reason; named ones go in."""
    for name in ("notes.ipynb", "model.pt", "LICENSE-MIT", "settings.yaml", "README.md"):
        (entry.folder / name).write_text(name)
    for name in ("results", "__pycache__"):
        (entry.folder / name).mkdir()
    (entry.folder / "results" / "digits.eccv2024.json").write_text("{}")
    (entry.folder / "__pycache__" / "generate.cpython-311.pyc").write_bytes(b"x")
    written = write_package(entry, tmp_path / "e.tar.gz", allow=["model.pt"])
    assert set(files_of(written.path)) == {"package.json"} | {
        f"submission/{name}"
        for name in ("LICENSE-MIT", "README.md", "generate.py", "model.pt", "settings.yaml",
                     "submission.toml")
    }  # fmt: skip
    assert dict(written.left_out) == {
        "__pycache__/": "left behind by tools",
        "notes.ipynb": "not on the list; --allow notes.ipynb takes it",
        "results/digits.eccv2024.json": "a recorded result",
    }
    assert written.folder_digest != written.contents.digest  # for the notebook
    assert check_package(written.path).named == ("model.pt",)


@pytest.mark.parametrize(
    "name", [".env", "id_rsa", "server.pem", "credentials.json", ".netrc", "a/.npmrc", "token.txt"]
)
def test_files_called_like_secrets_are_refused(entry, tmp_path, name):
    path = entry.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    assert f"{name} is called like a file of secrets" in refusal(entry, tmp_path / "e.tar.gz")
    written = write_package(entry, tmp_path / "e.tar.gz", allow=[name])
    assert name in {file.path for file in written.contents.files}


@pytest.mark.parametrize("kind", SECRETS)
def test_contents_like_secrets_are_refused_and_not_repeated(entry, tmp_path, kind):
    (entry.folder / "notes.txt").write_text(f"one\ntwo\nkey = {SECRETS[kind]}\n")
    said = refusal(entry, tmp_path / "e.tar.gz")
    assert f"notes.txt seems to hold {kind} in line 3" in said
    assert SECRETS[kind] not in said
    packed(entry, tmp_path / "e.tar.gz", allow=["notes.txt"])


def test_a_secret_across_two_pieces_is_found_and_prose_is_not():
    finder = SecretFinder()
    for piece in (b"\n" * 70_000, b"x = 'hf_" + 10 * b"a", 24 * b"a" + b"'\n"):
        finder.update(piece)
    assert finder.found == "a Hugging Face token in line 70001"
    finder = SecretFinder()
    finder.update(
        b"task-sk-learn, hf_hub_download, AKIA, https://a:80/b@c, f'//{u}:{p}@{h}'\n" * 99
    )
    assert finder.found is None


def test_large_files_are_refused_unless_named(entry, tmp_path):
    (entry.folder / "big.safetensors").write_bytes(bytes(2000))
    said = refusal(entry, tmp_path / "e.tar.gz", max_file_bytes=1000)
    assert "big.safetensors has 2,000 bytes, more than the 1,000" in said
    assert "--allow big.safetensors" in said
    packed(entry, tmp_path / "named.tar.gz", max_file_bytes=1000, allow=["big.safetensors"])
    for number in range(11):
        (entry.folder / f"part{number}.txt").write_bytes(bytes(1000))
    said = refusal(entry, tmp_path / "e.tar.gz", max_file_bytes=1000, allow=["big.safetensors"])
    assert "together, more than 10,000" in said


def test_odd_files_are_refused_all_at_once(entry, tmp_path):
    """Pipes, control characters, names that are no UTF-8, hard links to elsewhere, case."""
    (tmp_path / "outside.txt").write_text("x")
    os.link(tmp_path / "outside.txt", entry.folder / "linked.txt")
    os.mkfifo(entry.folder / "pipe")
    (entry.folder / "red\x1b[31m.py").write_text("x")
    (entry.folder / os.fsdecode(b"\xff.py")).write_text("x")
    said = refusal(entry, tmp_path / "e.tar.gz")
    assert "linked.txt has another name outside the folder" in said
    assert "pipe is a device, pipe or socket" in said
    assert said.count("has characters in its name") == 2
    assert "\x1b" not in said
    said.encode()
    with pytest.raises(SubmissionError):  # only a hard link can be let in by name
        write_package(entry, tmp_path / "e.tar.gz", allow=["linked.txt", "pipe"])


def test_names_that_are_one_on_a_mac_are_refused(entry, tmp_path):
    (entry.folder / "Generate.py").write_text("x")
    assert "one file where case" in refusal(entry, tmp_path / "e.tar.gz")


def test_links_within_the_folder_are_two_files(entry, tmp_path):
    os.link(entry.folder / "generate.py", entry.folder / "again.py")
    files = files_of(packed(entry, tmp_path / "e.tar.gz"))
    assert files["submission/again.py"] == files["submission/generate.py"]


def test_a_name_to_allow_that_is_not_there(entry, tmp_path):
    with pytest.raises(UnknownNameError, match=r"Did you mean 'generate\.py'"):
        write_package(entry, tmp_path / "e.tar.gz", allow=["generat.py"])


def test_nothing_is_overwritten_and_nothing_written_inside(entry, tmp_path):
    target = tmp_path / "e.tar.gz"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_package(entry, target)
    assert target.read_text() == "mine"
    with pytest.raises(OutputError, match="lies in the submission"):
        write_package(entry, entry.folder / "e.tar.gz")


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "hostile.tar.gz"
    path.write_bytes(content)
    return path


def test_a_package_made_by_hand_as_it_should_be(tmp_path):
    """The helpers make good packages: what the tests below change is what is refused."""
    checked = check_package(written(tmp_path, package_of(FILES)))
    assert [file.path for file in checked.contents.files] == ["generate.py", "submission.toml"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 2, "harness": "9.9", "novelty": 1},
            "made in format 2 by ddchallenge 9.9; this is",
        ),
        ({"format": True}, "format: expected a whole number"),
        ({"novelty": 1}, "novelty is not known here"),
        ({"digest": 64 * "0"}, "the list was changed"),
        ({"submission": "../up"}, "is no name for a submission"),
        ({"submission": "other"}, "is called 'other', but its submission.toml says 'entry'"),
        ({"files": []}, "has no submission.toml"),
    ],
)
def test_lists_that_are_wrong(tmp_path, changes, message):
    with pytest.raises(PackageError, match=message.replace(".", r"\.")):
        check_package(written(tmp_path, package_of(FILES, **changes)))


@pytest.mark.parametrize("harness", ["0.1.0", "9.9"])
def test_another_harness_of_the_same_format(tmp_path, harness):
    """A setting of a later version: its own sentence, with both versions."""
    files = FILES | {"submission.toml": CONFIG + b'sampler = "new"\n'}
    with pytest.raises(PackageError, match="line 5: No setting is called 'sampler'") as caught:
        check_package(written(tmp_path, package_of(files, harness=harness)))
    assert ("packaged by ddchallenge 9.9; this is 0.1.0" in str(caught.value)) == (harness == "9.9")


@pytest.mark.parametrize("cut", [0, 1, 9, 30, 200, -1, -9])
def test_cut_packages(tmp_path, cut):
    whole = package_of(FILES)
    with pytest.raises(PackageError, match="too early"):
        check_package(written(tmp_path, whole[:cut]))


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(600), b"x", bytes(2000)])
def test_other_files(tmp_path, content):
    with pytest.raises(PackageError, match=r"no gzip file at all|too early"):
        check_package(written(tmp_path, content))
    with pytest.raises(PackageError, match="is no file"):
        check_package(tmp_path)


def test_a_package_of_another_program(tmp_path):
    with tarfile.open(tmp_path / "plain.tar.gz", "w:gz") as plain:
        plain.add(__file__, "entry/submission.toml")
    with pytest.raises(
        PackageError, match=r"does not begin with package\.json but with '[^']*PaxHeader"
    ):
        check_package(tmp_path / "plain.tar.gz")


def test_contents_that_are_not_those_listed(tmp_path):
    other = FILES | {"generate.py": CODE.swapcase()}
    content = archive(list_member(listing(FILES)), *members(other))
    with pytest.raises(PackageError, match=r"generate\.py is not the file that the list names"):
        check_package(written(tmp_path, content))
    with pytest.raises(PackageError, match="ends after 1 of 2 files"):
        check_package(written(tmp_path, archive(list_member(listing(FILES)), members(FILES)[0])))
    more = archive(list_member(listing(FILES)), *members(FILES), member("submission/x.py", b"x"))
    with pytest.raises(PackageError, match=r"'submission/x\.py' where its end should come"):
        check_package(written(tmp_path, more))


def test_unpacking_takes_a_new_folder_only(tmp_path):
    checked = check_package(written(tmp_path, package_of(FILES)))
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        unpack(checked, tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []
    written(tmp_path, package_of(FILES | {"more.py": b""}))
    with pytest.raises(PackageError):
        unpack(checked, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert list(tmp_path.glob(".new*")) == []


def test_the_commands(entry, tmp_path, monkeypatch, capfd):
    """package, check-package --extract, and what they print for machines and for people."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["ddchallenge", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    (entry.folder / "notes.ipynb").write_text("x")
    status, out, err = run("package", str(entry.folder))
    assert status == 0
    assert "left out: notes.ipynb" in err
    status, document, _ = run("check-package", "entry.tar.gz", "--extract", "out", "--json")
    assert status == 0
    found = json.loads(document)
    assert found["contents"]["digest"] in out
    assert found["sha256"] in out
    assert found["extracted"] == "out"
    assert run("check-package", "entry.tar.gz", "--extract", "out")[0] == 2
    status, document, err = run("check-package", "entry.tar.gz", "--max-size", "10", "--json")
    assert status == 2
    assert "say so with --max-size" in json.loads(document)["error"]
    status, _, err = run("package", str(entry.folder), "--max-size", "ten")
    assert (status, "is no size such as" in err) == (2, True)
