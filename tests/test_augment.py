"""Post augmentation: pinned parameters, an independent reference, determinism, and the pool."""

import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import ddchallenge
from ddchallenge.augment import (
    PLANS,
    AugmentationPool,
    _compose,
    _copies,
    augment,
    get_plan,
    image_seed,
)
from ddchallenge.errors import UnknownNameError

PDA5 = PLANS["pda5"]


def smooth_images(count, size, seed=0):
    """Random images without sharp edges, so that interpolation errors stay small."""
    noise = np.random.default_rng(seed).random((count, 3, size, size))
    blurred = ndimage.gaussian_filter(noise, sigma=(0, 0, 2.5, 2.5), mode="mirror")
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low) * 255).round().astype(np.uint8)


class Recorder:
    """The real transforms, keeping the name and parameters of every one that was applied."""

    def __init__(self, size):
        self.compose = _compose(size)
        self.compose.save_applied_params = True
        self.applied = []

    def set_random_state(self, *state):
        self.compose.set_random_state(*state)

    def __call__(self, image):
        result = self.compose(image=image)
        self.applied.append(dict(result["applied_transforms"]))
        return result


def by_hand(image, applied):
    """What a copy should be, from the parameters drawn: numpy and scipy, H×W×3."""
    size = len(image)
    if "HorizontalFlip" in applied:
        image = image[:, ::-1]
    if "VerticalFlip" in applied:
        image = image[::-1]
    if drawn := applied.get("RandomBrightnessContrast"):
        image = np.clip(image * drawn["alpha"] + drawn["beta"], 0, 255)
    if drawn := applied.get("Rotate"):
        angle = math.atan2(drawn["matrix"][1, 0], drawn["matrix"][0, 0])
        sine, cosine = math.sin(angle), math.cos(angle)
        backwards = np.array([[cosine, -sine], [sine, cosine]])  # output (row, column) to input
        centre = np.full(2, (size - 1) / 2)
        image = np.stack(
            [
                ndimage.affine_transform(
                    channel.astype(float), backwards, centre - backwards @ centre,
                    order=1, mode="mirror",
                )
                for channel in np.moveaxis(image, 2, 0)
            ],
            axis=2,
        )  # fmt: skip
    if drawn := applied.get("RandomGamma"):
        image = 255 * (image / 255) ** drawn["gamma"]
    return image


def test_every_parameter_is_the_one_of_su_et_al():
    """The six transforms, in order, with every argument that reaches the pixels written out."""
    import cv2

    found = [
        (type(t).__name__, {**t.get_base_init_args(), **t.get_transform_init_args()})
        for t in _compose(64).transforms
    ]
    wanted = [
        ("RandomCrop", {"height": 64, "width": 64, "pad_if_needed": False, "p": 1.0}),
        ("HorizontalFlip", {"p": 0.8}),
        ("VerticalFlip", {"p": 0.8}),
        (
            "RandomBrightnessContrast",
            {
                "brightness_limit": (-0.2, 0.2),
                "contrast_limit": (-0.2, 0.2),
                "brightness_by_max": True,
                "ensure_safe_range": False,
                "p": 0.5,
            },
        ),
        (
            "Rotate",
            {
                "limit": (-60, 60),
                "interpolation": cv2.INTER_LINEAR,
                "border_mode": cv2.BORDER_REFLECT_101,
                "crop_border": False,
                "p": 0.8,
            },
        ),
        ("RandomGamma", {"gamma_limit": (80, 120), "p": 0.5}),
    ]
    assert [name for name, _ in found] == [name for name, _ in wanted]
    for (_, arguments), (_, expected) in zip(found, wanted, strict=True):
        assert {key: arguments[key] for key in expected} == expected


def test_copies_equal_a_reference_made_by_hand():
    """Each copy is, to the rounding of bilinear tables, what numpy and scipy make of its draws."""
    images = smooth_images(40, 24)
    seeds = range(1000, 1040)
    recorder = Recorder(24)
    copies = _copies(recorder, 4, images, seeds)
    np.testing.assert_array_equal(copies, augment(PDA5, images, seeds))
    seen = set()
    for number, applied in enumerate(recorder.applied):
        image, copy = divmod(number, 4)
        expected = by_hand(images[image].transpose(1, 2, 0), applied).transpose(2, 0, 1)
        difference = np.abs(copies[image, copy] - expected)
        assert difference.mean() < 1.5
        assert difference.max() < 8
        seen |= set(applied)
    assert len(seen) == 6  # every transform was among them


def test_draws_are_independent_and_of_the_right_law():
    """Rates .8 .8 .5 .8 .5, flips independent of one another, parameters uniform and unrelated."""
    recorder = Recorder(8)
    seeds = [image_seed(3, index) for index in range(1000)]
    _copies(recorder, 4, smooth_images(1000, 8), seeds)
    drawn = recorder.applied
    names = ("HorizontalFlip", "VerticalFlip", "RandomBrightnessContrast", "Rotate", "RandomGamma")
    applied = np.array([[name in one for name in names] for one in drawn])
    # Four standard errors of a rate over 4000 draws are at most 0.032.
    np.testing.assert_allclose(applied.mean(axis=0), [0.8, 0.8, 0.5, 0.8, 0.5], atol=0.032)
    correlations = np.corrcoef(applied.T) - np.eye(5)
    assert np.abs(correlations).max() < 0.07

    both = [one for one in drawn if {"RandomBrightnessContrast", "RandomGamma"} <= set(one)]
    parameters = np.array(
        [
            (one["RandomBrightnessContrast"]["alpha"], one["RandomBrightnessContrast"]["beta"],
             one["RandomGamma"]["gamma"])
            for one in both
        ]
    )  # fmt: skip
    limits = np.array([(0.8, 1.2), (-51, 51), (0.8, 1.2)])
    assert (parameters >= limits[:, 0]).all()
    assert (parameters <= limits[:, 1]).all()
    uniform = (parameters - limits[:, 0]) / (limits[:, 1] - limits[:, 0])
    np.testing.assert_allclose(uniform.mean(axis=0), 0.5, atol=0.04)
    np.testing.assert_allclose(uniform.std(axis=0), 12**-0.5, atol=0.03)
    assert np.abs(np.corrcoef(uniform.T) - np.eye(3)).max() < 0.13
    angles = [
        math.degrees(math.atan2(one["Rotate"]["matrix"][1, 0], one["Rotate"]["matrix"][0, 0]))
        for one in drawn
        if "Rotate" in one
    ]
    assert -60 <= min(angles) < -59
    assert 59 < max(angles) <= 60


def test_a_copy_depends_on_its_image_and_seed_alone():
    """Any subset in any order gives the same copies, after other work, and seeds matter."""
    images = smooth_images(6, 16)
    seeds = [image_seed(0, index) for index in range(6)]
    together = augment(PDA5, images, seeds)
    order = [4, 1, 5]
    random.seed(1)  # the global generators play no part
    apart = augment(PDA5, images[order], [seeds[index] for index in order])
    np.testing.assert_array_equal(apart, together[order])
    assert together.shape == (6, 4, 3, 16, 16)
    assert together.flags.c_contiguous
    assert len({copy.tobytes() for copy in together.reshape(-1, 3 * 16 * 16)}) == 24
    assert (
        (augment(PDA5, images, [seed + 1 for seed in seeds]) != together).any(axis=(2, 3, 4)).all()
    )


def test_equal_channels_stay_equal():
    """Digits, shown as three equal channels, are still grey after augmentation."""
    images = smooth_images(20, 8)[:, :1].repeat(3, axis=1)
    copies = augment(PDA5, images, range(20))
    assert (copies == copies[:, :, :1]).all()


def test_image_seed_is_numpys_and_differs_everywhere():
    """Seeds are those of a spawned SeedSequence, apart for images, runs, and batch seeds."""
    child = np.random.SeedSequence(7).spawn(2)[1].spawn(5)[4]
    assert image_seed(7, 4) == int(child.generate_state(1, np.uint64)[0])
    seeds = {image_seed(run, index) for run in range(20) for index in range(100)}
    assert len(seeds) == 2000


def test_plan_none_makes_nothing():
    """The plan ``none`` has no copies, and an empty batch is an empty answer."""
    images = smooth_images(2, 8)
    assert augment(get_plan("none"), images, [1, 2]).shape == (2, 0, 3, 8, 8)
    assert augment(PDA5, images[:0], []).shape == (0, 4, 3, 8, 8)


def test_an_unknown_plan_lists_the_choices():
    """A wrong name names the plans there are and the closest one."""
    with pytest.raises(UnknownNameError, match=r"(?s)Did you mean 'pda5'.*none, pda5"):
        get_plan("pda")


@pytest.mark.parametrize(
    ("images", "seeds"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), [0, 1]),
        (np.zeros((2, 8, 8, 3), np.uint8), [0, 1]),
        (np.zeros((2, 3, 8, 9), np.uint8), [0, 1]),
        (np.zeros((2, 3, 8, 8), np.uint8), [0]),
    ],
)
def test_wrong_arrays_are_refused(images, seeds):
    """Floats, channels last, oblong images and too few seeds raise instead of guessing."""
    with pytest.raises(ValueError, match="expected"):
        augment(PDA5, images, seeds)


# ------------------------------------------------------------------------------------------- pool


def alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gather(pool, chunks, seconds=30):
    got = []
    until = time.monotonic() + seconds
    while len(got) < chunks and time.monotonic() < until and pool.failure is None:
        got += pool.completed()
        time.sleep(0.005)
    return got


def test_pool_gives_what_augment_gives_and_survives_a_lost_process():
    """Chunks equal the plain function's; Ctrl-C passes by; a killed process costs nothing; when
    the last is killed the pool says so."""
    images = smooth_images(120, 16)
    pool = AugmentationPool(PDA5, 5, processes=2)
    try:
        before = time.monotonic()
        for first in range(0, 120, 10):
            pool.submit(100 + first, images[first : first + 10])
        assert not [pid for pid in pool.pids() if os.getpgid(pid) == os.getpgid(0)]
        chunks = gather(pool, 3)
        for pid in pool.pids():
            os.kill(pid, signal.SIGINT)
        os.kill(pool.pids()[0], signal.SIGKILL)
        chunks += gather(pool, 12 - len(chunks))
        assert sorted(chunk.first for chunk in chunks) == list(range(100, 220, 10))
        for chunk in chunks:
            seeds = [image_seed(5, chunk.first + i) for i in range(10)]
            start = chunk.first - 100
            np.testing.assert_array_equal(
                chunk.images, augment(PDA5, images[start : start + 10], seeds)
            )
            assert chunk.images.flags.c_contiguous
            assert 0 < chunk.seconds < chunk.done_at - before
        assert [c.done_at for c in chunks] == sorted(c.done_at for c in chunks)

        assert alive(pool.pids()[1])
        os.kill(pool.pids()[1], signal.SIGKILL)
        pool.submit(0, images[:1])
        gather(pool, 1)
        assert pool.failure == "the augmentation processes ended (exit status -9)"
    finally:
        pool.stop()


def test_pool_stops_at_once_with_work_pending():
    """Stopping in the middle of much work takes under 0.3 s and leaves no process."""
    import select

    pool = AugmentationPool(PDA5, 0, processes=2)
    for first in range(0, 4000, 50):
        pool.submit(first, smooth_images(1, 64).repeat(50, axis=0))
    assert select.select([pool], [], [], 30)[0]  # wakes a selector when something is done
    pids = pool.pids()
    assert all(map(alive, pids))
    started = time.monotonic()
    pool.stop()
    assert time.monotonic() - started < 0.3
    assert not any(map(alive, pids))
    pool.stop()  # a second time does nothing
    done = pool.completed()
    assert done
    assert all(chunk.done_at < started for chunk in done)


def test_pool_dies_with_its_killed_parent():
    """SIGKILL to the parent, busy or not, ends the processes of the pool."""
    script = """
        import sys, time
        import numpy as np
        from ddchallenge.augment import AugmentationPool, get_plan
        pool = AugmentationPool(get_plan("pda5"), 0, processes=2)
        images = np.zeros((50, 3, 64, 64), np.uint8)
        for first in range(0, 100_000, 50):
            pool.submit(first, images)
        while not pool.completed():
            time.sleep(0.01)
        print(*pool.pids(), flush=True)
        time.sleep(60)
    """
    home = str(Path(ddchallenge.__file__).parent.parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": home},
    )
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    until = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(alive, pids))


def test_pool_says_why_it_cannot_start(tmp_path, monkeypatch):
    """A library that cannot be imported is named in ``failure``; prints do no harm."""
    (tmp_path / "sitecustomize.py").write_text("print('noise on stdout')")
    (tmp_path / "albumentations.py").write_text("raise ImportError('no such thing here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = AugmentationPool(PDA5, 0, processes=1)
    try:
        pool.submit(0, smooth_images(1, 8))
        assert gather(pool, 1) == []
        assert "no such thing here" in pool.failure
        (tmp_path / "albumentations.py").unlink()
    finally:
        pool.stop()
    pool = AugmentationPool(PDA5, 0, processes=1)
    try:
        pool.submit(0, smooth_images(1, 8))
        (chunk,) = gather(pool, 1)
        np.testing.assert_array_equal(
            chunk.images, augment(PDA5, smooth_images(1, 8), [image_seed(0, 0)])
        )
    finally:
        pool.stop()
