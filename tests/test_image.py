"""What a submission's image is made of, and what is refused before anything is built."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from racing import HONEST

from ddchallenge.errors import RequestError, RunError, SubmissionError
from ddchallenge.generator import read_submission
from ddchallenge.sampling.launchers import container, image
from ddchallenge.sampling.launchers.engine import Engine, find_engine, last_lines
from ddchallenge.sampling.launchers.image import (
    HARNESS_IMAGE,
    _recipe,
    harness_image,
    submission_image,
    write_layer,
)
from ddchallenge.sampling.launchers.requirements import pip_requirements

ROOT = Path(__file__).parents[1]
NAME = os.environ.get("DDCHALLENGE_IMAGE", HARNESS_IMAGE)
HASH = "--hash=sha256:" + "0123456789abcdef" * 4


def contents(folder: Path) -> list[tuple[str, Path]]:
    return [(p.relative_to(folder).as_posix(), p) for p in sorted(folder.rglob("*")) if p.is_file()]


# ------------------------------------------------------------------------------------- the layer


def test_a_layer_depends_on_names_and_contents_alone(tmp_path):
    """Other times, modes and order of making: the same bytes. Another name or content: not."""
    digests = []
    for number, names in enumerate((["a.py", "b/c.bin"], ["b/c.bin", "a.py"])):
        folder = tmp_path / str(number)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
            (folder / name).chmod(0o700 if number else 0o640)
            os.utime(folder / name, (number * 1e8, number * 1e8))
        digests.append(write_layer(tmp_path / f"{number}.tar", Path("/top"), contents(folder)))
    assert digests[0] == digests[1]
    (tmp_path / "1/a.py").write_text("another")
    assert write_layer(tmp_path / "x.tar", Path("/top"), contents(tmp_path / "1")) != digests[0]
    (tmp_path / "0/a.py").rename(tmp_path / "0/A.py")
    assert write_layer(tmp_path / "y.tar", Path("/top"), contents(tmp_path / "0")) != digests[0]


def test_a_layer_holds_its_folders_and_nobody_owns_it(tmp_path):
    """Every folder above is in it: else the engine makes it, with the time of day."""
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/x.py").write_text("x")
    write_layer(tmp_path / "layer.tar", Path("/a/b"), contents(tmp_path / "in"))
    with tarfile.open(tmp_path / "layer.tar") as archive:
        found = {entry.name: entry for entry in archive}
    assert list(found) == ["a", "a/b", "a/b/deep", "a/b/deep/x.py"]
    assert {(e.uid, e.gid, e.mtime, e.uname) for e in found.values()} == {(0, 0, 0, "")}
    assert [oct(entry.mode) for entry in found.values()] == ["0o755", "0o755", "0o755", "0o644"]


@pytest.mark.parametrize(
    "line",
    [
        "numpy",
        "numpy==2.1",
        "numpy>=2 " + HASH,
        "--index-url https://example.org/simple",
        "--extra-index-url=https://example.org/simple",
        "-r /etc/passwd",
        "-e .",
        "numpy @ https://example.org/numpy.whl " + HASH,
        "numpy==2.1 --hash=md5:0123",
        "numpy==2.1 " + HASH + " --global-option=x",
        "./numpy.whl " + HASH,
        "numpy==2.1 \\\n    --find-links=/tmp " + HASH,
        # What pip reads otherwise than it looks: it continues no comment, and knows codings.
        f"# pinned with hashes \\\n--no-binary :all:\nnumpy==2.1 {HASH}",
        f"# more \\\nevil @ http://127.0.0.1/evil-1.tar.gz {HASH}",
        f"numpy==2.1 \\\n # \\\n {HASH}",
        f"numpy==2.1 ; sys_platform == ' --no-binary x' {HASH}",
        f"numpy==2.1 ; --no-binary {HASH}",
        f"numpy[a, --no-binary]==2.1 {HASH}",
        f"numpy==2.1 ; sys_platform == '${{HOME}}' {HASH}",
    ],
)
def test_only_pinned_and_hashed_packages_are_installed(line):
    """A submission's lock can name no index, no file, no address and no option of pip."""
    with pytest.raises(SubmissionError, match=r"requirements.lock: every line must be"):
        pip_requirements(Path("requirements.lock"), f"# a comment\n{line}\n".encode())


def test_the_lock_of_the_harness_is_one_a_submission_could_have():
    """What uv writes, markers, comments and several hashes among it, is accepted."""
    data = (ROOT / "requirements.lock").read_bytes()
    lines = pip_requirements(Path("requirements.lock"), data).splitlines()
    assert len(lines) == data.count(b"==") - data.count(b" == ") > 50
    assert sum(line.count("--hash") for line in lines) == data.count(b"--hash")
    assert not [line for line in lines if "#" in line or line.endswith("\\")]
    assert "colorama==0.4.6 ; sys_platform == 'win32' --hash=sha256:" in "\n".join(lines)


@pytest.mark.parametrize(
    "data",
    [
        b"# coding: utf-7\n# x+AAo---index-url http://127.0.0.1/\n",
        b"# x\n # -*- coding=utf_16 -*-\n",
        b"\xef\xbb\xbfnumpy==2.1 " + HASH.encode(),
        "numpy==2.\u0661 ".encode() + HASH.encode(),
        b"# \x85--no-binary :all:\n",
        b"# a\r--no-binary :all:\n",
        b"# a\x0c--no-binary :all:\n",
    ],
)
def test_a_lock_in_another_coding_is_refused(data):
    """One in which pip could find more lines than we see."""
    with pytest.raises(SubmissionError):
        pip_requirements(Path("requirements.lock"), data)


def test_pip_is_given_what_was_understood_and_nothing_else():
    """One line each, without comments and blanks, in the order given."""
    text = "# coding: utf-8\r\n"
    text += f"b[x, y]==2  ;  python_version<'3' and (extra==\"a\") \\\r\n {HASH}  # c \\\r\n"
    text += f"# via +AAo---index-url\na==1!2+cpu \\\n\t{HASH} \\\n {HASH}\n  # via b\n"
    assert pip_requirements(Path("requirements.lock"), text.encode()) == (
        f"b[x,y]==2 ; python_version<'3' and (extra==\"a\") {HASH}\na==1!2+cpu {HASH} {HASH}\n"
    )


def test_pip_runs_without_root_and_root_runs_nothing_a_wheel_brings():
    """The recipe: wheels only, an id that nothing belongs to, then the system's own programs."""
    lines = _recipe("base", True).splitlines()
    assert lines[:2] == ["FROM base", "LABEL ddchallenge.submission=true"]
    (pip,) = (number for number, line in enumerate(lines) if "pip install" in line)
    assert "PIP_ONLY_BINARY=:all: " in lines[pip]
    assert "--only-binary :all: -r" in lines[pip]
    assert [line for line in lines[:pip] if line.startswith("USER")][-1] == "USER 10001:10001"
    later = [line for line in lines[pip + 1 :] if line.startswith("RUN")]
    assert later
    assert all(line.startswith("RUN PATH=/usr/sbin:/usr/bin:/sbin:/bin ") for line in later)


# ------------------------------------------------------------------------------------ the engine


def fake_engine(folder: Path, name: str, stderr: str, status: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{stderr}' >&2\nexit {status}\n")
    (folder / name).chmod(0o755)


def test_no_engine_is_told(tmp_path, monkeypatch):
    """Neither of the two, and the one that was asked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="Neither podman nor docker is installed"):
        find_engine()
    with pytest.raises(RequestError, match="docker is not installed"):
        find_engine("docker")


@pytest.mark.parametrize(
    ("name", "stderr", "message"),
    [
        (
            "docker",
            "permission denied while trying to connect to the Docker daemon socket",
            "docker may not be used by this user: ask to be in the group docker",
        ),
        (
            "docker",
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.",
            "docker is installed, but its service is not running: start it",
        ),
        (
            "podman",
            "cannot set up namespace using newuidmap: exit status 1",
            "podman may not be used by this user: it needs lines for you in /etc/subuid",
        ),
        ("podman", "a disk\033[2J is broken", "podman does not work: a disk?"),
    ],
)
def test_an_engine_that_does_not_work_is_told(tmp_path, monkeypatch, name, stderr, message):
    """Its own sentence for each, with what to do."""
    fake_engine(tmp_path, name, stderr)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    with pytest.raises(RequestError) as problem:
        find_engine(name)
    assert message in str(problem.value)


def test_the_first_engine_that_works_is_taken(tmp_path, monkeypatch):
    """A podman that is broken does not stand in the way of a docker that is not."""
    fake_engine(tmp_path, "podman", "broken")
    (tmp_path / "docker").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo Docker version 27 || echo 27.1.1\n'
    )
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert find_engine() == Engine("docker", str(tmp_path / "docker"), "27.1.1")
    # What calls itself docker and is podman takes podman's options.
    (tmp_path / "docker").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo podman version 5.0 || echo 5.0.0\n'
    )
    assert find_engine().name == "podman"


def test_an_engine_that_was_asked_for_is_told_of_another(tmp_path, monkeypatch):
    """What was asked for, what is the matter, and what works instead."""
    (tmp_path / "podman").write_text("#!/bin/sh\necho 5.0.0 false\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for setup in (lambda: None, lambda: fake_engine(tmp_path, "docker", "Cannot connect")):
        setup()
        with pytest.raises(RequestError) as problem:
            find_engine("docker")
        first, last = str(problem.value).splitlines()
        assert first.startswith("docker was asked for and cannot be used here: docker is ")
        assert last == "podman works: name --engine podman, or leave --engine out."


def test_build_options_that_cannot_be_read_are_refused(make_submission, monkeypatch):
    """The message names the variable."""
    monkeypatch.setenv("DDCHALLENGE_BUILD_OPTIONS", "--network 'host")
    with pytest.raises(RequestError, match="DDCHALLENGE_BUILD_OPTIONS cannot be read"):
        container._build_options()


def test_an_image_of_another_commit_is_said(monkeypatch):
    """One line, and none where it is the same or nobody knows."""
    said = []
    monkeypatch.setattr(image, "git_revision", lambda folder: ("a" * 40, False))
    for revision in ("b" * 40, "a" * 40, "", "<no value>"):
        monkeypatch.setattr(Engine, "read", lambda self, *words, found=revision: found)
        image._compare_revision(Engine("podman", "podman", "5"), "ddchallenge", said.append)
    assert len(said) == 1
    assert "is of commit bbbbbbb, this code of aaaaaaa" in said[0]


def test_last_lines_are_safe_to_print():
    """Not blank, not longer than a line, nothing a terminal obeys."""
    assert last_lines("a\n\n" + "b" * 999 + "\n\n\033[31mc\n\n", 2) == "b" * 300 + "\n?[31mc"


# ------------------------------------------------------------------------------------- the image


def test_an_image_that_is_not_there_is_told(engine):
    """How to build it; and a name that could be an option is refused."""
    with pytest.raises(RequestError, match="`make image` builds it"):
        harness_image(engine, "ddchallenge-nobody-has-this")
    with pytest.raises(RequestError, match="must be the name of an image"):
        harness_image(engine, "--all")


def test_built_twice_a_submission_is_the_same_layer(make_submission, engine, monkeypatch):
    """Once more from nothing, with other times and modes: the layer's digest is the same."""
    monkeypatch.setattr(image, "git_revision", lambda folder: (None, None))
    submission = make_submission(HONEST)
    (submission.folder / "weights.bin").write_bytes(os.urandom(1000))
    said = []
    first = submission_image(engine, submission, NAME, say=said.append)
    assert said == [f"Building the image of entry with {engine.name}"]
    assert submission_image(engine, submission, NAME, say=said.append) == first
    assert len(said) == 1  # reused
    engine.ask("rmi", "--force", first.id.removeprefix("sha256:"))
    for path in submission.folder.iterdir():
        path.chmod(0o600)
        os.utime(path, (1e9, 1e9))
    second = submission_image(engine, submission, NAME, say=said.append)
    assert len(said) == 2
    assert second.layer == first.layer
    (submission.folder / "weights.bin").write_bytes(b"others")
    assert submission_image(engine, submission, NAME).layer != first.layer


def test_an_image_holds_the_submission_and_no_test_set(make_submission, engine):
    """Its files, ours to read and nobody's to write; no recorded results; no digits."""
    submission = make_submission(HONEST)
    (submission.folder / "results").mkdir()
    (submission.folder / "results/digits.eccv2024.json").write_text("{}")
    (submission.folder / "README.md").write_text("for people")
    image = submission_image(engine, submission, NAME)
    done = engine.ask(
        "run", "--rm", "--network=none", "--entrypoint=sh", image.id, "-c",
        "ls -lR /submission; id -u; find / -xdev -name 'digits.csv*'; "
        "find /submission /harness -writable; "
        "python -c 'import ddchallenge; print(ddchallenge.__file__)'",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("-")] == [
        "generate.py",
        "submission.toml",
    ]
    assert lines[-2:] == ["10001", "/harness/ddchallenge/__init__.py"]


def test_a_link_in_a_submission_is_refused(make_submission, engine, tmp_path):
    """It could lead anywhere on this machine."""
    submission = make_submission(HONEST)
    (submission.folder / "data").symlink_to("/etc")
    with pytest.raises(SubmissionError, match="is a symbolic link"):
        submission_image(engine, submission, NAME)


def test_a_failing_build_shows_its_last_lines_and_names_the_log(make_submission, engine, tmp_path):
    """A package nobody has, no network to look for it: what pip said last, and all of it."""
    submission = make_submission(HONEST)
    lock = submission.folder / "requirements.lock"
    lock.write_text(f"ddchallenge-nobody-has-this==1.0 {HASH}\n")
    with pytest.raises(RunError) as problem:
        submission_image(engine, submission, NAME, ("--network=none",))
    text = str(problem.value)
    assert "could not build the submission's image; its last lines:" in text
    assert "ddchallenge-nobody-has-this" in text
    assert "DDCHALLENGE_BUILD_OPTIONS" in text
    log = Path(re.search(r"All of them are in (\S+\.log)$", text, re.MULTILINE)[1])
    assert "pip install" in log.read_text()
    log.unlink()


def test_a_lock_of_its_own_is_a_layer_below(make_submission, engine, tmp_path):
    """A wheel made here, offered to pip as a folder of this machine, is in the image."""
    wheels = tmp_path / "wheels"
    name = make_wheel(wheels)
    digest = subprocess.run(
        ["sha256sum", wheels / name], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    submission = make_submission(HONEST)
    lock = submission.folder / "requirements.lock"
    lock.write_text(f"ddc-test-wheel==1.0 --hash=sha256:{digest}\n")
    (tmp_path / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    options = (
        "--network=none",
        f"--volume={wheels}:/wheels:ro",
        f"--volume={tmp_path}/pip.conf:/etc/pip.conf:ro",
    )
    if engine.name != "podman":
        pytest.skip("docker build takes no --volume")
    image = submission_image(engine, read_submission(submission.folder), NAME, options)
    done = engine.ask(
        "run", "--rm", "--network=none", "--entrypoint=python", image.id,
        "-c", "import ddc_test_wheel; print(ddc_test_wheel.WORD)",
    )  # fmt: skip
    assert done.stdout == "packed\n"
    lock.write_text(f"ddc-test-wheel==1.0 --hash=sha256:{digest[::-1]}\n")
    with pytest.raises(RunError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        submission_image(engine, read_submission(submission.folder), NAME, options)


def make_wheel(folder: Path) -> str:
    import zipfile

    folder.mkdir()
    name = "ddc_test_wheel-1.0-py3-none-any.whl"
    info = "ddc_test_wheel-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("ddc_test_wheel.py", 'WORD = "packed"\n')
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: ddc-test-wheel\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return name


def test_the_dockerfile_names_no_registry_and_pins_what_it_is_built_on():
    """Nothing in it or in the lock says where packages come from; the base has a version."""
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON=python:3\.11-slim-bookworm$", text, re.MULTILINE)
    assert "--require-hashes" in text
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", text)
