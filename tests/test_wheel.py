"""The wheel is enough: baselines, class names, template and kernel travel in it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed"
)
def test_the_wheel_works_outside_the_checkout(tmp_path):
    """Built, unpacked and run elsewhere, it finds its baselines in itself and samples digits."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "ddchallenge" / "scoring" / "normpool.cpp").is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(site),
        "DDCHALLENGE_CACHE": str(tmp_path / "cache"),
    }

    def ddchallenge(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from ddchallenge.cli import main; main()", *arguments],
            cwd=elsewhere,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    rows = {row["name"]: row for row in json.loads(ddchallenge("submissions", "--json"))}
    assert Path(rows["gaussian"]["folder"]).is_relative_to(site)
    ddchallenge("new", "mine")
    for submission in ("gaussian", "mine"):
        document = json.loads(
            ddchallenge(
                "sample", "--dataset", "digits", "--submission", submission,
                "--out", submission, "--json",
            )
        )  # fmt: skip
        assert document["manifest"]["images"] == 100
        assert document["manifest"]["environment"]["commit"] is None
