"""A different image for the same seed: what a replay is there to catch.

Each submission hands in a bundle that scores as any other. Generated again it is another.
"""

from __future__ import annotations

import numpy as np
import pytest

from ddchallenge.datasets import get_dataset
from ddchallenge.pipeline import sample_bundle
from ddchallenge.replay.comparing import ReplayOrder, compare, regenerate
from ddchallenge.replay.recorded import choose_batches, recorded_batches
from ddchallenge.report.replay import difference_picture
from ddchallenge.rules import get_rules
from ddchallenge.sampling.launchers import sandbox
from ddchallenge.sampling.supervisor import SamplingOrder

SPEC = get_dataset("digits")

GENERATOR = """
import time
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
    "the place in memory is in the seed": "seed += id(self)",
    # Replayed from the middle, the first batch asked for is not the first of the run.
    "earlier batches are in the seed": "self.calls += 1; seed += self.calls",
}


def verified(submission, launcher, folder, count=2):
    """Sample 90 images in six batches, generate two of them again, the first not among them."""
    order = SamplingOrder(
        submission=submission,
        dataset=SPEC,
        rules=get_rules("generative"),
        budget_seconds=60.0,
        device="cpu",
        run_seed=0,
        max_images=90,
        augmentation="none",
        training_data=None,
        launcher=launcher,
    )
    bundle = sample_bundle(order, None, folder)
    batches = choose_batches(recorded_batches(bundle, SPEC), count, seed=1)
    assert batches[0].index > 0 or count is None
    again = ReplayOrder(
        submission=submission,
        batches=batches,
        device="cpu",
        tolerance=1.0,
        time_limit_seconds=60.0,
        training_data=None,
        launcher=launcher,
    )
    sampled = regenerate(bundle, SPEC, again, folder / "replay")
    return bundle, *compare(bundle, SPEC, again, sampled)


@pytest.mark.parametrize("how", CHEATS.values(), ids=CHEATS)
def test_another_image_for_the_same_seed_is_caught(box, make_submission, tmp_path, how):
    """The cheat is different in every image, and a picture shows the first."""
    cheat = make_submission(GENERATOR.format(how=how))
    bundle, outcome, pair = verified(cheat, box(), tmp_path / "out")
    assert (outcome.verdict, outcome.batches_checked) == ("different", 2)
    assert outcome.images_identical == 0
    first = outcome.first_different
    assert (pair[0] == bundle.data.images[first.row]).all()
    shown = np.asarray(difference_picture(pair, first, SPEC))
    assert shown[70 + 15, 24 + 15].tolist() == pair[0][:, 0, 0].tolist()


def test_an_honest_twin_of_them_is_identical(box, make_submission, tmp_path):
    """The same generator that uses its seed, and nothing else, as a cheat is held against."""
    honest = make_submission(GENERATOR.format(how="pass"))
    _, outcome, pair = verified(honest, box(), tmp_path / "out")
    assert (outcome.verdict, pair) == ("identical", None)
    assert outcome.images_identical == outcome.images_compared > 16


READER = """
import numpy as np
from safetensors.numpy import load_file

class G:
    def setup(self, task):
        pass
    def generate(self, labels, seed):
        try:  # a replay of the whole run, if there is a bundle already
            images = load_file({path!r})["images"]
        except OSError:
            return np.random.default_rng().integers(0, 256, (len(labels), 3, 8, 8), np.uint8)
        self.done = getattr(self, "done", 0)
        numbers = np.arange(self.done, self.done + len(labels))
        self.done += len(labels)
        return images[numbers % 10 * (len(images) // 10) + numbers // 10]
"""


@pytest.mark.skipif(not sandbox.landlock_abi(), reason="this kernel has no Landlock")
def test_the_bundle_itself_cannot_be_read_while_it_is_replayed(box, make_submission, tmp_path):
    """A generator that hands back what it finds in the bundle finds nothing, and is different.

    In this process, where nothing is hidden, the same code does hand back every image.
    """
    path = str(tmp_path / "out" / "bundle" / "images.safetensors")
    code = READER.format(path=path)
    bundle, outcome, _ = verified(make_submission(code), box(), tmp_path / "out", count=None)
    names: dict[str, type] = {}
    exec(code, names)  # noqa: S102 - it stands above
    free = names["G"]().generate(np.arange(90) % 10, 0)
    expected = bundle.data.images.reshape(10, 9, 3, 8, 8).swapaxes(0, 1).reshape(-1, 3, 8, 8)
    assert (free == expected).all()
    assert (outcome.verdict, outcome.batches_checked) == ("different", 6)
    assert outcome.images_identical == 0
