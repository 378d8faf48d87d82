"""Intervals against what theory says of them: normal theory for many items, coverage, and the spread between
seeds."""

import numpy as np
import pytest

from megatron_bar.report.bootstrap import mean_interval, overall_interval, ratio_interval


def test_one_seed_is_the_normal_interval_of_the_mean():
    items = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = mean_interval([items])
    half = 1.96 * items.std() / 20
    assert found.mean == pytest.approx(items.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_items_that_agree_have_an_interval_of_no_width():
    found = overall_interval([{"a": [1.0] * 5, "b": [0.0] * 3}])
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_seeds_that_differ_widen_it():
    """Within each seed all items agree, so all of the width is between seeds: between the least and the
    largest mean."""
    found = mean_interval([[0.0] * 50, [0.5] * 50, [1.0] * 50])
    assert found.mean == 0.5
    assert found.low <= 1 / 6 and found.high >= 5 / 6


def test_it_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        found = mean_interval([(rng.random(60) < 0.3).astype(float)], seed=trial)
        inside += found.low <= 0.3 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_overall_is_the_mean_of_the_tests_whatever_their_sizes():
    found = overall_interval([{"a": [1.0] * 10, "b": [0.0] * 1000}, {"a": [0.0] * 10, "b": [0.0] * 1000}])
    assert found.mean == 0.25


def test_a_ratio_of_the_same_scores_is_one():
    seeds = [{"a": [1.0, 0.0, 1.0], "b": [1.0]}, {"a": [0.0, 0.0, 1.0], "b": [1.0]}]
    found = ratio_interval(seeds, seeds)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_a_ratio_is_paired_by_item():
    """By the delta method: the variance of the mean of (top - ratio * bottom), over the bottom's mean
    squared."""
    rng = np.random.default_rng(2)
    bottom = (rng.random(500) < 0.8).astype(float)
    top = bottom * (rng.random(500) < 0.9)
    found, ratio = ratio_interval([{"": top}], [{"": bottom}]), top.mean() / bottom.mean()
    assert found.mean == pytest.approx(ratio)
    half = 1.96 * (top - ratio * bottom).std() / bottom.mean() / 500**0.5
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_seeds_whose_ratios_differ_widen_it():
    found = ratio_interval([{"": [0.5] * 9}, {"": [1.0] * 9}], [{"": [1.0] * 9}] * 2)
    assert found.mean == 0.75 and found.low <= 0.51 and found.high >= 0.99
