"""A submission's image: the harness's, and on top what the submission brings.

The layers, each kept by the engine for as long as nothing below it changes::

    the harness image      Dockerfile: Python, the locked packages
    requirements.lock      the submission's own packages, if it has any
    harness                the code of the worker, as it is here and now
    submission             the submission's files

The last two are tar archives of our making: sorted, without times, owners or modes, so the same
files are the same layer whoever builds it, and when.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ddchallenge
from ddchallenge.environment import git_revision
from ddchallenge.errors import RequestError, RunError
from ddchallenge.generator import Submission, submission_files
from ddchallenge.jsonio import printable
from ddchallenge.sampling.launchers.engine import Engine, last_lines
from ddchallenge.sampling.launchers.requirements import REQUIREMENTS, pip_requirements

__all__ = ["HARNESS_IMAGE", "SUBMISSION", "USER", "Image", "harness_image", "submission_image"]

# What `make image` makes; DDCHALLENGE_IMAGE names another.
HARNESS_IMAGE: Final = "ddchallenge"
SUBMISSION_IMAGE: Final = "ddchallenge-submission"
SUBMISSION: Final = Path("/submission")
HARNESS: Final = Path("/harness")
# An id that nothing on the host belongs to.
USER: Final = "10001:10001"

# The test images of digits come with scikit-learn; a run may not have them.
DIGITS: Final = "*/sklearn/datasets/data/digits.csv.gz"
SAY_SECONDS: Final = 5.0
LAST_LINES: Final = 12
BUILD_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its id (``sha256:...``), and the digest of the submission's own layer."""

    id: str
    layer: str


def harness_image(engine: Engine, name: str) -> str:
    """The id of the harness image. Raises :class:`RequestError` that says how to build it."""
    if not re.fullmatch(r"[a-zA-Z0-9][\w./:@-]{0,255}", name):
        raise RequestError(f"DDCHALLENGE_IMAGE must be the name of an image, found {name!r}.")
    found = engine.read("image", "inspect", "--format", "{{.Id}}", name)
    if not found:
        raise RequestError(
            f"{engine.name} has no image {name!r}, which submissions' images are built on.\n"
            f"In a checkout of ddchallenge, `make image` builds it; "
            f"or `{engine.name} build -t {name} .`"
        )
    return _full(found)


def submission_image(
    engine: Engine,
    submission: Submission,
    harness: str,
    options: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Image:
    """The image of a submission on the ``harness`` image of that name, reused where it is there.

    ``options`` are further ones of ``engine build``, where packages are installed. Raises
    :class:`SubmissionError` for a ``requirements.lock`` without hashes, :class:`RunError` when
    building fails; its message has the last lines, and names the file with all of them.
    """
    base = harness_image(engine, harness)
    _compare_revision(engine, harness, say)
    with tempfile.TemporaryDirectory(prefix="ddchallenge-image-") as name:
        context = Path(name)
        parts = {
            "harness": write_layer(context / "harness.tar", HARNESS, _harness_files()),
            "submission": write_layer(
                context / "submission.tar",
                SUBMISSION,
                ((name.as_posix(), path) for name, path in submission_files(submission.folder)),
            ),
        }
        requirements = submission.folder / REQUIREMENTS
        locked = requirements.is_file()
        if locked:
            lines = pip_requirements(requirements, requirements.read_bytes())
            (context / REQUIREMENTS).write_text(lines, encoding="ascii")
        recipe = _recipe(harness, locked)
        content = hashlib.sha256(json.dumps([base, recipe, parts]).encode()).hexdigest()
        tag = f"{SUBMISSION_IMAGE}:{content[:40]}"
        if image := _inspect(engine, tag):
            return image
        (context / "Dockerfile").write_text(recipe, encoding="utf-8")
        packages = " and installing its packages" if locked else ""
        say(f"Building the image of {submission.name} with {engine.name}{packages}")
        # Only pip needs the network, and only where there is something for it to fetch.
        _build(engine, context, tag, options if locked else ("--network", "none"), say)
    if image := _inspect(engine, tag):
        return image
    raise RunError(f"{engine.name} has built {tag} and does not know it. Is its storage full?")


def _compare_revision(engine: Engine, harness: str, say: Callable[[str], None]) -> None:
    """Say so where the harness image and this code are of different commits."""
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    built = engine.read("image", "inspect", "--format", label, harness) or ""
    here, _ = git_revision(Path(ddchallenge.__file__).resolve().parent)
    if here and re.fullmatch(r"[0-9a-f]{40,64}", built) and built != here:
        say(
            f"The image {harness!r} is of commit {built[:7]}, this code of {here[:7]}: "
            "its packages may be other ones (`make image` builds it anew). "
            "The worker's code is this one's."
        )


def _recipe(harness: str, locked: bool) -> str:
    """The Dockerfile; nothing a stranger wrote stands in it."""
    # Copied, not mounted: an engine may not notice that what is mounted has changed. The user who
    # installs owns the folders of the environment, not the files: those would be copied, all 6 GB.
    # (Not `pip --target`: it would install again whatever of the lock is there already.)
    install = (
        f"COPY {REQUIREMENTS} /{REQUIREMENTS}\n"
        "RUN find \"$(python -c 'import sys; print(sys.prefix)')\" -xdev -type d "
        f"-exec chown {USER} {{}} +\n"
        f"USER {USER}\n"
        "RUN PIP_ONLY_BINARY=:all: pip install --no-cache-dir --no-deps --require-hashes "
        f"--only-binary :all: -r /{REQUIREMENTS}\n"
        "USER 0:0\n"
    )
    # A wheel may bring programs of any name: from there on root runs the system's.
    return (
        f"FROM {harness}\n"
        # First, so that what a failed build leaves has it too.
        "LABEL ddchallenge.submission=true\n"
        "USER 0:0\n"
        f"{install * locked}"
        f"RUN PATH=/usr/sbin:/usr/bin:/sbin:/bin find / -xdev -path '{DIGITS}' -delete\n"
        "ADD harness.tar /\n"
        f"ENV PYTHONPATH={HARNESS}\n"
        f"USER {USER}\n"
        "WORKDIR /\n"
        'ENTRYPOINT ["python", "-P", "-m", "ddchallenge.sampling.worker"]\n'
        "CMD []\n"
        "ADD submission.tar /\n"
    )


# --------------------------------------------------------------------------------------- layers


def write_layer(tar: Path, top: Path, files: Iterable[tuple[str, Path]]) -> str:
    """Write ``(relative, where)`` files below the absolute folder ``top`` into a tar archive.

    Returns its hex SHA-256, which depends on nothing but names and contents.
    """
    known: set[str] = set()
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for relative, path in files:
            inside = top / relative
            for folder in reversed(inside.parents[:-1]):
                if str(folder) not in known:
                    known.add(str(folder))
                    archive.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
            entry = _entry(inside, tarfile.REGTYPE, 0o644)
            with path.open("rb") as file:
                entry.size = path.stat().st_size
                archive.addfile(entry, file)
    with tar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: Path, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(str(path).lstrip("/"))
    entry.type, entry.mode, entry.mtime = kind, mode, 0
    return entry


def _harness_files() -> Iterator[tuple[str, Path]]:
    """The package that is running, without the baselines a wheel has inside."""
    package = Path(ddchallenge.__file__).resolve().parent
    for path in sorted(package.rglob("*")):
        parts = path.relative_to(package).parts
        if path.is_file() and parts[0] != "baselines" and "__pycache__" not in parts:
            yield "/".join(("ddchallenge", *parts)), path


# -------------------------------------------------------------------------------------- building


def _build(
    engine: Engine,
    context: Path,
    tag: str,
    options: tuple[str, ...],
    say: Callable[[str], None],
) -> None:
    pull = "--pull=never" if engine.name == "podman" else "--pull=false"
    command = engine.command("build", pull, *options, "--tag", tag, str(context))
    with tempfile.NamedTemporaryFile(
        "w+", prefix="ddchallenge-build-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as build:
            began = said = time.monotonic()
            try:
                for line in build.stdout or ():
                    log.write(line)
                    now = time.monotonic()
                    if line.strip() and now - said >= SAY_SECONDS:
                        say(f"{now - began:4.0f} s  {printable(line.strip()[:100])}")
                        said = now
                    if now - began > BUILD_SECONDS:
                        build.terminate()
            except BaseException:
                build.terminate()
                raise
        if build.returncode == 0:
            Path(log.name).unlink()
            return
        log.flush()
        log.seek(0)
        advice = (
            "\nIf pip could not reach its index: options of the build, such as `--network host` or "
            "a `--volume` with your pip.conf, go into DDCHALLENGE_BUILD_OPTIONS (see the README)."
        )
        raise RunError(
            f"{engine.name} could not build the submission's image; its last lines:\n"
            f"{last_lines(log.read(), LAST_LINES)}\n"
            f"All of them are in {log.name}{advice * (context / REQUIREMENTS).is_file()}"
        )


def _inspect(engine: Engine, tag: str) -> Image | None:
    found = engine.read(
        "image", "inspect", "--format", "{{.Id}} {{json .RootFS.Layers}}", tag
    )  # fmt: skip
    if not found:
        return None
    identity, _, layers = found.partition(" ")
    return Image(id=_full(identity), layer=str(json.loads(layers)[-1]))


def _full(identity: str) -> str:
    """Docker writes ``sha256:`` before an id, podman does not."""
    return identity if identity.startswith("sha256:") else f"sha256:{identity}"
