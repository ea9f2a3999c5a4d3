"""What several test modules share."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest

from ddchallenge.generator import Submission, read_submission
from ddchallenge.records import DatasetSpec

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@pytest.fixture
def tiny_spec() -> DatasetSpec:
    """Three classes of 8×8 images; no such data exists on disk."""
    return DatasetSpec(
        name="digits",
        class_ids=tuple("0123456789"),
        class_names=tuple("0123456789"),
        image_size=8,
        mean=(0.3, 0.3, 0.3),
        std=(0.4, 0.4, 0.4),
        training_images_per_class=126,
        test_images=500,
    )


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
