"""What several test modules share."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from ddchallenge import cli
from ddchallenge.errors import RequestError
from ddchallenge.generator import Submission, read_submission
from ddchallenge.sampling.launchers import image
from ddchallenge.sampling.launchers.engine import Engine, find_engine
from ddchallenge.sampling.launchers.image import HARNESS_IMAGE, harness_image
from ddchallenge.scoring import equivalence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Decoded data sets and compiled steps are shared by the tests, and gone after them.
CACHE = Path(tempfile.mkdtemp(prefix="ddchallenge-tests-"))
os.environ["DDCHALLENGE_CACHE"] = str(CACHE)
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _nothing_scored_before(monkeypatch):
    """No test goes on from another's checkpoints, or compiles unless it asks for fast numerics."""
    shutil.rmtree(CACHE / "checkpoints", ignore_errors=True)
    monkeypatch.setattr(equivalence, "FILE", CACHE / "no-equivalence.json")


@pytest.fixture
def terminal_signals():
    """Signals as a shell's foreground has them: nohup and background jobs ignore some."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Ended(NamedTuple):
    """How a command ended: status, and what it wrote to both streams."""

    status: int
    out: str
    err: str


@pytest.fixture
def ddchallenge(monkeypatch, capfd):
    """Runs a command line in this process."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr("sys.argv", ["ddchallenge", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capfd.readouterr())

    return run


def _need_engine() -> str | None:
    """Why nothing can be run in containers here; None where it can."""
    try:
        harness_image(find_engine(), os.environ.get("DDCHALLENGE_IMAGE", HARNESS_IMAGE))
    except RequestError as problem:
        # Who names the image, as .ci/run does, wants these tests run.
        return None if "DDCHALLENGE_IMAGE" in os.environ else str(problem)
    return None


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The container engine; submissions' images that were built with it are gone afterwards."""
    if problem := _need_engine():
        pytest.skip(f"no containers: {problem}")
    built: list[str] = []
    build = image._build

    def noted(engine, context, tag, *more):
        built.append(tag)
        build(engine, context, tag, *more)

    found = find_engine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "_build", noted)
        yield found
    if built:
        found.ask("rmi", "--force", *built)


class SubmissionMaker:
    """Writes submission folders below a temporary one."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent

    def __call__(self, code: str, name: str = "entry", **settings: str) -> Submission:
        """A submission whose generate.py is ``code``; settings are raw TOML values."""
        folder = self.parent / name
        folder.mkdir(parents=True)
        (folder / "generate.py").write_text(dedent(code))
        values = {
            "name": f'"{name}"',
            "authors": '["a test"]',
            "entry_point": '"generate:G"',
            "datasets": '["digits"]',
            "batch_size": "16",
        } | settings
        lines = [f"{key} = {value}" for key, value in values.items() if key != "options"]
        if "options" in values:
            lines += ["[options]", values["options"]]
        (folder / "submission.toml").write_text("\n".join(lines) + "\n")
        return read_submission(folder)


@pytest.fixture
def make_submission(tmp_path: Path) -> SubmissionMaker:
    """Makes submissions out of code; see :class:`SubmissionMaker`."""
    return SubmissionMaker(tmp_path / "submissions")
