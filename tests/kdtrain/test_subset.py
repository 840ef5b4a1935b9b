import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain.config import ConfigError
from kdtrain.subset import split

BALANCED = torch.arange(1000) % 10  # 100 images of each of 10 classes

labelings = st.lists(st.integers(0, 4), min_size=5, max_size=80).map(lambda ys: torch.tensor([*range(5), *ys] * 2))
fractions = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**64)


def per_class(labels, indices, classes):
    return torch.bincount(labels[indices], minlength=classes).tolist()


def test_without_fraction_and_validation_everything_is_trained_on():
    train, val = split(BALANCED, 1.0, 0, 0)
    assert train.tolist() == list(range(1000))
    assert val.tolist() == []
    assert train.dtype == val.dtype == torch.int64


def test_counts_of_a_balanced_set():
    train, val = split(BALANCED, 0.2, 200, 0)
    assert per_class(BALANCED, val, 10) == [20] * 10
    assert per_class(BALANCED, train, 10) == [16] * 10  # 20 % of the 80 left


def test_validation_size_is_exact_by_largest_remainder():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    # Shares of 7: 3.5, 2.1, 1.4; the seventh image goes to the largest remainder.
    assert per_class(labels, split(labels, 1.0, 7, 0).val, 3) == [4, 2, 1]
    # Shares of 5: 2.5, 1.5, 1.0; the tie goes to the lower class.
    assert per_class(labels, split(labels, 1.0, 5, 0).val, 3) == [3, 1, 1]


def test_each_class_keeps_an_image_however_small_the_fraction():
    assert per_class(BALANCED, split(BALANCED, 1e-6, 0, 0).train, 10) == [1] * 10


def test_labels_need_not_be_contiguous():
    labels = torch.tensor([3, 7] * 10)
    train, val = split(labels, 0.5, 4, 1)
    assert sorted(labels[val].tolist()) == [3, 3, 7, 7]
    assert sorted(labels[train].tolist()) == [3] * 4 + [7] * 4


def test_seeds_differ():
    assert not torch.equal(split(BALANCED, 0.2, 0, 0).train, split(BALANCED, 0.2, 0, 1).train)
    assert not torch.equal(split(BALANCED, 0.2, 100, 0).val, split(BALANCED, 0.2, 100, 1).val)


def test_the_draw_is_the_documented_one():
    # Class 1 of [0, 1, 1, 1, 1] at seed 5: the two smallest of the four raw numbers of counter (0, 0, 1, 1) stay.
    labels = torch.tensor([0, 1, 1, 1, 1])
    keys = np.random.Philox(key=5, counter=[0, 0, 1, 1]).random_raw(4)
    kept = [i for i, key in enumerate(keys, start=1) if key in sorted(keys)[:2]]
    assert split(labels, 0.5, 0, 5).train.tolist() == [0, *kept]


def test_every_image_is_drawn_equally_often():
    counts = torch.zeros(1000)
    for seed in range(200):
        counts[split(BALANCED, 0.2, 0, seed).train] += 1
    # Binomial(200, 0.2): mean 40, standard deviation 5.7.
    assert counts.mean() == 40
    assert 5 < counts.std() < 6.4
    assert counts.min() > 40 - 5 * 5.7
    assert counts.max() < 40 + 5 * 5.7


@settings(max_examples=60, deadline=None)
@given(labelings, fractions, st.integers(0, 5), seeds)
def test_split_is_disjoint_sorted_exact_and_repeatable(labels, fraction, val_size, seed):
    train, val = split(labels, fraction, val_size, seed)
    assert len(val) == val_size
    assert train.tolist() == sorted(set(train.tolist()))
    assert val.tolist() == sorted(set(val.tolist()))
    assert not set(train.tolist()) & set(val.tolist())
    held = torch.bincount(labels[val], minlength=5)
    left = torch.bincount(labels) - held
    assert per_class(labels, train, 5) == [max(1, round(fraction * n)) for n in left.tolist()]
    exact = torch.bincount(labels) * val_size / len(labels)
    assert torch.all((held - exact).abs() < 1)
    again = split(labels, fraction, val_size, seed)
    assert torch.equal(again.train, train)
    assert torch.equal(again.val, val)


@settings(max_examples=60, deadline=None)
@given(labelings, fractions, fractions, st.integers(0, 5), seeds)
def test_fractions_are_nested_and_share_the_validation_images(labels, one, other, val_size, seed):
    small, large = (split(labels, fraction, val_size, seed) for fraction in sorted((one, other)))
    assert set(small.train.tolist()) <= set(large.train.tolist())
    assert torch.equal(small.val, large.val)


def test_validation_images_come_from_those_that_a_small_fraction_leaves():
    train = split(BALANCED, 0.2, 0, 3).train
    # 20 % of the 90 left of each class: 18 of the 20 that are kept without a validation set.
    smaller, val = split(BALANCED, 0.2, 100, 3)
    assert set(smaller.tolist()) < set(train.tolist())
    assert not set(val.tolist()) & set(train.tolist())


def test_balanced_validation_sets_are_nested():
    small, large = split(BALANCED, 0.2, 100, 3), split(BALANCED, 0.2, 300, 3)
    assert set(small.val.tolist()) < set(large.val.tolist())


@pytest.mark.parametrize("val_size", [1000, 1001, 991])
def test_a_validation_set_that_takes_all_images_of_a_class_is_refused(val_size):
    message = f"data.val_size must leave an image of each class, but got {val_size} of 1000 images, which leaves class"
    with pytest.raises(ConfigError, match=message):
        split(BALANCED, 1.0, val_size, 0)


def test_the_error_names_the_class():
    labels = torch.tensor([0] * 9 + [1])
    with pytest.raises(ConfigError, match=r"which leaves class 1 none\."):
        split(labels, 1.0, 9, 0)
