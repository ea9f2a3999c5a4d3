"""What seed runs say together, against SciPy's own tests, scikit-learn and numbers by hand."""

import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from scipy import stats
from sklearn.metrics import confusion_matrix as counted

from ddchallenge.datasets import get_dataset, load_split
from ddchallenge.datasets.normalise import normalise
from ddchallenge.records import Accuracy, LabeledImages, SeedOutcome, SeedRun
from ddchallenge.rules import PROTOCOLS
from ddchallenge.scoring import score
from ddchallenge.scoring.statistics import (
    accuracy_of,
    paired_difference,
    per_class_accuracies,
    t_interval,
    total_confusion,
)


def runs_of(*accuracies, test_images=1000):
    return [
        SeedRun(
            seed=seed,
            accuracy=accuracy,
            optimistic_best_accuracy=None,
            correct=round(accuracy * test_images),
            test_images=test_images,
            final_loss=1.0,
            seconds=1.0,
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def test_mean_and_sample_deviation():
    """0.2, 0.4, 0.9 have the mean 0.5 and, over n - 1, the deviation √0.13; one run has none."""
    accuracy = accuracy_of(runs_of(0.2, 0.4, 0.9))

    assert accuracy.mean == pytest.approx(0.5)
    assert accuracy.std == pytest.approx(math.sqrt(0.13))
    assert accuracy_of(runs_of(0.1, 0.1, 0.1)).std == 0
    with pytest.raises(ValueError, match="no runs"):
        accuracy_of([])


def test_one_seed_has_no_interval():
    """A single number says nothing of its spread; what the test set's size does is known still."""
    alone = accuracy_of(runs_of(0.25, test_images=300))
    assert alone == Accuracy(mean=0.25, std=None, ci95=None, test_error=pytest.approx(0.025))
    assert t_interval([0.25]) is None
    difference = paired_difference(runs_of(0.5), runs_of(0.75))
    assert (difference.mean, difference.std, difference.ci95) == (-0.25, None, None)


def test_the_interval_is_a_table_of_t_by_hand():
    """Three seeds at 0.46, 0.47, 0.51: 4.3027 (two degrees of freedom, 97.5 %) times √0.0007 over
    √3 to either side of 0.48; at 90 % it is 2.9200 times that."""
    root = math.sqrt(0.0007 / 3)
    accuracy = accuracy_of(runs_of(0.46, 0.47, 0.51))
    assert accuracy.ci95 == pytest.approx((0.48 - 4.302653 * root, 0.48 + 4.302653 * root))
    ninety = t_interval([0.46, 0.47, 0.51], confidence=0.9)
    assert ninety == pytest.approx((0.48 - 2.919986 * root, 0.48 + 2.919986 * root))


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_intervals_are_those_of_scipys_t_tests(n):
    """The mean's interval is the one-sample test's, that of a difference the paired test's."""
    numbers = np.random.default_rng(n)
    ours, theirs = (numbers.normal(0.5, 0.01, n).tolist() for _ in range(2))

    one_sample = stats.ttest_1samp(ours, 0).confidence_interval(0.95)
    assert accuracy_of(runs_of(*ours)).ci95 == pytest.approx(tuple(one_sample), rel=1e-9)
    difference = paired_difference(runs_of(*ours), runs_of(*theirs))
    paired = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert difference.ci95 == pytest.approx(tuple(paired), rel=1e-9)
    assert difference.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert difference.std == pytest.approx(np.std(np.subtract(ours, theirs), ddof=1))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of 4000 samples of three, 95 % hold the mean they were drawn around, give or take three
    standard errors of that share."""
    samples = np.random.default_rng(0).normal(0.3, 0.02, (4000, 3))
    held = sum(low <= 0.3 <= high for low, high in map(t_interval, samples.tolist()))
    assert held / 4000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_intervals_stay_where_accuracies_can_be():
    """Wide intervals are cut at 0 and 1, of differences at -1 and 1; equal seeds have width 0."""
    assert accuracy_of(runs_of(0.0, 1.0)).ci95 == (0.0, 1.0)
    assert accuracy_of(runs_of(0.99, 1.0)).ci95[1] == 1.0
    assert paired_difference(runs_of(0.0, 1.0), runs_of(1.0, 0.0)).ci95 == (-1.0, 1.0)
    assert accuracy_of(runs_of(0.25, 0.25, 0.25)).ci95 == (0.25, 0.25)


def test_pairing_takes_out_what_the_seeds_have_in_common():
    """Seeds that are good and bad for both alike leave a narrow interval around the difference."""
    difference = paired_difference(runs_of(0.1, 0.5, 0.9), runs_of(0.2, 0.6, 1.0))
    assert difference.mean == pytest.approx(-0.1)
    assert difference.std == pytest.approx(0, abs=1e-12)
    assert difference.ci95 == pytest.approx((-0.1, -0.1))


def test_only_runs_of_the_same_seeds_make_pairs():
    """Other seeds, another order or another number of them raise."""
    three = runs_of(0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match="seeds 0 and 2 make no pair"):
        paired_difference(three, three[::-1])
    with pytest.raises(ValueError, match="shorter"):
        paired_difference(three, three[:2])


@pytest.mark.parametrize(("n", "p"), [(500, 0.93), (10_000, 0.05)])
def test_the_test_sets_error_is_how_accuracies_on_other_test_sets_scatter(n, p):
    """One network that is right with probability p, asked 200 000 different test sets of n."""
    scatter = np.std(np.random.default_rng(1).binomial(n, p, 200_000) / n)
    found = accuracy_of(runs_of(p, test_images=n)).test_error
    assert found == pytest.approx(scatter, rel=0.01)
    # More seeds meet the same test images: it stays what it is.
    assert accuracy_of(runs_of(*[p] * 50, test_images=n)).test_error == pytest.approx(found)
    assert accuracy_of(runs_of(1.0)).test_error == 0


def outcome(confusion):
    return SeedOutcome(run=runs_of(0.5)[0], confusion=np.array(confusion))


def test_accuracy_a_class_is_the_mean_over_seeds():
    """Class 0: 3 of 4 and 1 of 4, so one half; class 1: 0 of 2 and 1 of 2."""
    seeds = [outcome([[3, 1], [2, 0]]), outcome([[1, 3], [1, 1]])]
    total = total_confusion(seeds)
    assert total.tolist() == [[4, 4], [3, 1]]
    assert total.dtype == np.int64
    assert per_class_accuracies(total) == (0.5, 0.25)
    assert seeds[0].confusion.tolist() == [[3, 1], [2, 0]]
    with pytest.raises(ValueError, match="class 1 has no test image"):
        per_class_accuracies(np.array([[2, 1], [0, 0]]))


@pytest.mark.parametrize("classes", [(*range(10),), (0, 3, 8)])
def test_the_confusion_is_what_scikit_learn_counts(classes):
    """The oracle's network on real digits, its answers counted by scikit-learn: the very matrix,
    also where the network was shown three classes of ten, and several test batches."""
    spec, protocol = get_dataset("digits"), PROTOCOLS["eccv2024"]
    train, test = (load_split(spec, name).data for name in ("train", "test"))
    labels = np.repeat(np.array(classes), 5)
    chosen = np.concatenate([np.flatnonzero(train.labels == label)[:5] for label in classes])
    train = LabeledImages(train.images[chosen], labels)
    (found,) = score(train, test, spec, protocol, epochs=20, seeds=[3], device="cpu")

    tensors = (torch.tensor(normalise(spec, data.images)) for data in (train, test))
    train_images, test_images = tensors
    network, _ = oracle.train(train_images, torch.tensor(labels), 10, 20, 3)
    with torch.no_grad():
        answers = network.eval()(test_images).argmax(1).numpy()
    expected = counted(test.labels, answers, labels=range(10))
    assert np.array_equal(found.confusion, expected)
    assert found.confusion.dtype == np.int64
    assert found.run.correct == expected.trace()
    assert set(np.flatnonzero(expected.sum(axis=0))) <= set(classes)


def test_a_network_that_sees_one_class_only_has_one_column():
    """Training on sevens alone, everything is a seven: chance, and said class by class."""
    spec, protocol = get_dataset("digits"), replace(PROTOCOLS["eccv2024"], seeds=(0,))
    data = load_split(spec, "train").data
    sevens = np.flatnonzero(data.labels == 7)[:10]
    train = LabeledImages(data.images[sevens], data.labels[sevens])
    test = load_split(spec, "test").data
    outcomes = score(train, test, spec, protocol, epochs=20, device="cpu")
    total = total_confusion(outcomes)
    assert total[:, 7].sum() == 500
    assert per_class_accuracies(total) == (0,) * 7 + (1,) + (0,) * 2
