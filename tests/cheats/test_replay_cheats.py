"""A different image for the same seed: what a replay is there to catch.

Each submission hands in a bundle that scores as any other. Generated again it is another.
"""

from __future__ import annotations

import PIL.Image
import pytest

from ddchallenge.bundle import read_bundle

GENERATOR = """
import os, time
import numpy as np

class G:
    calls = 0
    def setup(self, task):
        self.start = time.time_ns()
    def generate(self, labels, seed):
        {how}
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (len(labels), 3, 8, 8)).astype(np.uint8)
"""

CHEATS = {
    "the seed is not used": "seed = None",
    "the hour is in the seed": "seed += self.start % 2**31",
    "the process is in the seed": "seed += os.getpid()",
    # Replayed from the middle, the first batch asked for is not the first of the run.
    "earlier batches are in the seed": "self.calls += 1; seed += self.calls",
}


@pytest.mark.parametrize("how", CHEATS.values(), ids=CHEATS)
def test_another_image_for_the_same_seed_is_caught(ddchallenge, make_submission, tmp_path, how):
    """The honest twin is found identical; the cheat is different, and a picture shows it."""
    for name, line, status in (("honest", "pass", 0), ("cheat", how, 1)):
        submission = make_submission(GENERATOR.format(how=line), name=name)
        out = tmp_path / name
        sampling = ["--dataset", "digits", "--submission", submission.folder, "--out", out]
        assert ddchallenge("sample", *sampling, "--max-images", "90", "--device", "cpu").status == 0
        # Of six batches, with this seed not the first one.
        asked = ["--batches", "2", "--seed", "1", "--submission", submission.folder]
        said = ddchallenge("verify", out, *asked, "--device", "cpu")
        assert said.status == status, said.err
        picture = out / "difference.png"
        assert picture.is_file() == bool(status)
    assert "different: 2 of 6 batches" in said.err
    assert len(read_bundle(out / "bundle").data) == 90
    with PIL.Image.open(picture) as shown:
        assert shown.width > 3 * 240
