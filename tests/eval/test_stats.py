"""Intervals: known values, coverage, clusters, determinism, degenerate data."""

import numpy as np
import pytest

from vlm.eval.measures.stats import cluster_sums, interval, mean_interval, ratio, replicates, wilson


def test_wilson_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson(10, 10)
    assert low == pytest.approx(0.7225, abs=1e-4) and high == pytest.approx(1.0)
    assert wilson(0, 10)[0] == 0.0 and wilson(0, 0) == (None, None)
    assert wilson(5, 10, level=0.99)[0] < wilson(5, 10)[0]


def test_cluster_sums_keep_order_of_appearance() -> None:
    assert cluster_sums(np.array([[1.0, 1], [2, 1], [4, 1]]), ["b", "a", "b"]).tolist() == [[5, 2], [2, 1]]


def test_the_bootstrap_is_seeded_and_has_the_right_spread() -> None:
    data = np.random.default_rng(1).random(400)
    sums = np.stack([data, np.ones_like(data)], axis=1)
    first, again, other = replicates(sums, ratio), replicates(sums, ratio), replicates(sums, ratio, seed=1)
    assert (first == again).all() and (first != other).any()
    assert first.std() == pytest.approx(data.std() / 20, rel=0.1) and first.mean() == pytest.approx(
        data.mean(), abs=0.005
    )
    low, high = interval(first)
    assert low < data.mean() < high and high - low == pytest.approx(4 * data.std() / 20, rel=0.15)


def test_questions_on_one_image_widen_the_interval() -> None:
    """Ten copies of forty answers are forty answers."""
    values = [float(i % 2) for i in range(40) for _ in range(10)]
    alone = mean_interval(values, list(range(400)))
    shared = mean_interval(values, [i // 10 for i in range(400)])
    assert shared[1] - shared[0] == pytest.approx(10**0.5 * (alone[1] - alone[0]), rel=0.15)


def test_all_right_is_no_certainty() -> None:
    low, high = mean_interval([1.0] * 20, [i // 2 for i in range(20)])
    assert (low, high) == pytest.approx(wilson(10, 10))
    assert mean_interval([], []) == (None, None)
    assert interval(np.array([np.nan, np.nan])) == (None, None)


def test_a_mean_of_fractions_is_bootstrapped() -> None:
    low, high = mean_interval([0.25, 0.5, 0.75] * 30, range(90))
    assert 0.4 < low < 0.5 < high < 0.6


def test_ratio_of_nothing_is_nan() -> None:
    assert np.isnan(ratio(np.array([0.0, 0.0])))
