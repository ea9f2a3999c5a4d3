"""Random real images beside a bundle: which they are, and what they are held against."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_data import SHAPES as SPEC

from ddchallenge.bundle import tensor_digest, write_bundle
from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.errors import RequestError
from ddchallenge.official import ImportedImages
from ddchallenge.pipeline import score_bundle
from ddchallenge.provenance import imported_manifest
from ddchallenge.records import (
    DatasetSplit,
    LabeledImages,
    ScoringStatus,
    SeedOutcome,
    SeedRun,
)
from ddchallenge.report.contact_sheet import contact_sheet
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import score
from ddchallenge.scoring.networks import NETWORKS, convnet
from ddchallenge.scoring.progress import part_of
from ddchallenge.scoring.reference import check_enough, real_images, score_reference


def training(counts=(10, 10, 10), official=10):
    """Image i has its own number i in every pixel."""
    labels = np.repeat(np.arange(3), counts)
    images = np.empty((len(labels), 3, 8, 8), np.uint8)
    images[:] = np.arange(len(labels))[:, None, None, None]
    return DatasetSplit(
        spec=SPEC,
        split="train",
        data=LabeledImages(images, labels),
        digest="d" * 64,
        folder=Path("nowhere"),
        images_per_class=min(counts),
        official_images_per_class=official,
    )


def numbers(data):
    return data.images[:, 0, 0, 0].tolist()


def test_every_image_is_a_real_one_of_its_label_and_none_comes_twice():
    """Labels stand where the bundle's stand, whatever their order and however unequal."""
    labels = np.array([2, 0, 0, 1, 2, 2, 0, 2, 2, 2])
    split = training()
    drawn = real_images(labels, split, seed=5)
    assert drawn.labels.tolist() == labels.tolist()
    assert split.data.labels[numbers(drawn)].tolist() == labels.tolist()
    assert len(set(numbers(drawn))) == len(labels)
    assert (drawn.images == drawn.images[:, :1, :1, :1]).all()
    assert drawn.images.dtype == np.uint8


def test_the_seed_says_which():
    """The same seed draws the same images everywhere and always: NumPy 1.26 drew these too."""
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    draws = {seed: numbers(real_images(labels, training(), seed)) for seed in (0, 1, 2**63 - 1)}
    assert draws == {
        0: [3, 2, 1, 11, 13, 15, 20, 21, 25],
        1: [9, 2, 4, 16, 18, 19, 28, 27, 21],
        2**63 - 1: [9, 0, 3, 15, 11, 16, 26, 20, 28],
    }


def test_a_smaller_reference_is_a_part_of_a_larger_one():
    """More images a class under the same seed are the same ones and some more."""
    drawn = [numbers(real_images(np.arange(3).repeat(n), training(), 7)) for n in range(1, 11)]
    for smaller, larger in pairwise(drawn):
        assert set(smaller) < set(larger)
    assert set(drawn[-1]) == set(range(30))


def test_every_image_is_as_likely_as_the_next():
    """3000 seeds draw each of ten images four times in ten, within four standard errors."""
    labels, split = np.zeros(4, np.int64), training()
    drawn = [number for seed in range(3000) for number in numbers(real_images(labels, split, seed))]
    counts = np.bincount(drawn, minlength=10)
    assert np.abs(counts - 1200).max() < 4 * np.sqrt(3000 * 0.4 * 0.6)
    firsts = np.bincount(drawn[::4], minlength=10)
    assert np.abs(firsts - 300).max() < 4 * np.sqrt(3000 * 0.1 * 0.9)


@pytest.mark.parametrize(
    ("labels", "counts", "message"),
    [
        ([1] * 5, (4, 4, 4), "5 real images of 'square', as many as the bundle has; the training "
         "set of shapes here has 4.\nGet all of its 10 a class, or score without --reference."),
        ([2] * 11 + [1] * 11, (10, 10, 10), "11 real images of 'square', as many as the bundle "
         "has; the training set of shapes here has 10, and 1 more class has too few.\n"
         "Score without --reference, or a smaller bundle."),
    ],
)  # fmt: skip
def test_too_few_real_images_are_named(labels, counts, message):
    """Which class, how many it takes, how many there are, and what to do."""
    with pytest.raises(RequestError) as error:
        check_enough(np.array(labels), training(counts))
    assert str(error.value) == f"--reference needs {message}"
    check_enough(np.array(labels[:4]), training(counts))


def run_of(seed, accuracy):
    return SeedRun(
        seed=seed,
        accuracy=accuracy,
        optimistic_best_accuracy=None,
        correct=round(accuracy * 100),
        test_images=100,
        final_loss=None,
        seconds=1.0,
    )


def status(fraction, left):
    return ScoringStatus(
        seed=9,
        seeds_done=0,
        seeds=1,
        epoch=2,
        epochs=5,
        batch=0,
        batches=0,
        loss=0.5,
        elapsed_seconds=7.0,
        remaining_seconds=left,
        fraction=fraction,
        activity="training",
    )


def test_seeds_are_paired_and_each_has_its_own_images():
    """A trainer of known accuracies: it is asked seed by seed, with that seed's images, and the
    difference is the bundle's accuracy minus that of the same seed."""
    asked = []

    def train(images, digest, seeds, on_progress):
        assert digest == tensor_digest(SPEC, images)
        asked.append((seeds, images))
        on_progress(status(0.25, 15.0))
        (seed,) = seeds
        run = run_of(seed, {9: 0.5, 4: 0.75}[seed])
        return (SeedOutcome(run=run, confusion=np.zeros((3, 3), np.int64)),)

    labels, split, told = np.array([0, 1, 2, 2]), training((8, 9, 10)), []
    own = [run_of(9, 0.25), run_of(4, 0.625)]
    found = score_reference(labels, own, split, train, told.append)

    assert [seeds for seeds, _ in asked] == [(9,), (4,)]
    for (seed,), images in asked:
        assert numbers(images) == numbers(real_images(labels, split, seed))
    assert found.digests == tuple(tensor_digest(SPEC, images) for _, images in asked)
    assert len(set(found.digests)) == 2
    assert [run.accuracy for run in found.runs] == [0.5, 0.75]
    assert found.accuracy.mean == 0.625
    assert found.difference.mean == -0.1875
    assert (found.training_digest, found.training_images_per_class) == ("d" * 64, 8)
    assert found.official_images_per_class == 10
    # 15 seconds of this seed and, while the first runs, 20 of the second; the bundle is done.
    assert [(s.subject, s.seeds_done, s.seeds, s.remaining_seconds) for s in told] == [
        ("reference", 0, 2, 35.0),
        ("reference", 1, 2, 15.0),
    ]
    assert [s.fraction for s in told] == [2.25 / 4, 3.25 / 4]


def test_progress_is_of_the_whole_work():
    """One part done and two of 20 seconds to come: nothing is guessed before anything was timed,
    and at a part's end its length is still known."""
    told = []
    tell = part_of(told.append, before=1, after=2)
    for fraction, left in ((0.0, None), (0.25, 15.0), (1.0, 0.0)):
        tell(status(fraction, left))
    assert told == [status(0.25, None), status(0.3125, 55.0), status(0.5, 40.0)]
    assert part_of(None, before=0, after=2) is None


@pytest.fixture
def quick(monkeypatch):
    """The protocol with a network of two channels and three passes."""
    monkeypatch.setitem(NETWORKS, "tiny", partial(convnet, depth=1, width=2))
    return replace(PROTOCOLS["eccv2024"], network="tiny", epochs=2)


def bundle_of(data, folder):
    spec = get_dataset("digits")
    file = folder / "images.pt"
    file.write_bytes(b"")
    imported = ImportedImages(data=data, normalisation="pixels", notes=())
    manifest = imported_manifest(file, spec, "generative", imported)
    return write_bundle(folder / "bundle", data, manifest, contact_sheet(data, spec))


def test_real_images_held_against_themselves_differ_by_nothing(quick, tmp_path):
    """A bundle of the very images that seed 4 draws: the same accuracy and the same loss, so the
    pool, the seed, the protocol and the order of the images are the same."""
    spec = get_dataset("digits")
    train, test = (load_split(spec, name) for name in ("train", "test"))
    labels = np.tile(np.arange(10), 7)
    bundle = bundle_of(real_images(labels, train, 4), tmp_path)
    told = []
    result = score_bundle(
        bundle,
        test,
        quick,
        epochs=2,
        seeds=(4,),
        device="cpu",
        training=train,
        on_progress=told.append,
    ).result

    (run,), (real,) = result.runs, result.reference.runs
    assert replace(run, seconds=0) == replace(real, seconds=0)
    assert result.reference.difference.mean == 0
    assert result.reference.difference.ci95 is None
    assert result.reference.digests == (bundle.manifest.digest,)
    # The same images were scored once already: nothing is trained a second time.
    assert {status.subject for status in told} == {"bundle"}


def test_a_reference_is_what_scoring_its_images_gives(quick, tmp_path):
    """Each seed's run is that of the images drawn for it, scored by themselves; the bundle's own
    runs are as they are without a reference."""
    spec = get_dataset("digits")
    train, test = (load_split(spec, name) for name in ("train", "test"))
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 10, 60))
    noise = LabeledImages(rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), labels)
    bundle = bundle_of(noise, tmp_path)
    options = {"epochs": 2, "seeds": (3, 1), "device": "cpu"}
    plain = score_bundle(bundle, test, quick, **options)
    scored = score_bundle(bundle, test, quick, training=train, **options)

    def timeless(runs):
        return [replace(run, seconds=0) for run in runs]

    assert plain.result.reference is None
    assert timeless(plain.result.runs) == timeless(scored.result.runs)
    assert np.array_equal(plain.confusion, scored.confusion)
    alone = [
        score(real_images(labels, train, seed), test.data, spec, quick, epochs=2, seeds=[seed],
              device="cpu")[0].run
        for seed in (3, 1)
    ]  # fmt: skip
    assert timeless(scored.result.reference.runs) == timeless(alone)


def test_nothing_is_trained_where_real_images_are_too_few(quick, tmp_path, monkeypatch):
    """Refused at once: the bundle's own score is not begun either."""
    monkeypatch.setattr("ddchallenge.pipeline.score", None)
    spec = get_dataset("digits")
    train, test = (load_split(spec, name) for name in ("train", "test"))
    labels = np.full(200, 3)
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 8, 8), dtype=np.uint8)
    bundle = bundle_of(LabeledImages(images, labels), tmp_path)
    with pytest.raises(RequestError, match="needs 200 real images of '3', as"):
        score_bundle(bundle, test, quick, epochs=2, seeds=(0,), device="cpu", training=train)
