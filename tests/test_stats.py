"""common/stats.py: intervals that cover what they should, pairs and groups taken as such."""

import numpy as np
import pytest

from common.stats import (
    bootstrap_mean,
    bootstrap_ratio,
    clustered_mean,
    mean_ci95,
    paired_difference,
    signed,
    wilson,
)


def width(found: dict) -> float:
    return found["ci95"][1] - found["ci95"][0]


@pytest.mark.parametrize(
    "hits, n, interval", ((0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0)))
)
def test_wilsons_interval_has_the_values_of_its_tables(hits, n, interval):
    assert wilson(hits, n) == pytest.approx(interval, abs=5e-5)


def test_nothing_measured_is_an_interval_of_everything():
    assert wilson(0, 0) == [0.0, 1.0]


def test_a_means_interval_is_the_normal_approximation():
    mean, (low, high) = mean_ci95([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and (low + high) / 2 == pytest.approx(2.5)
    assert high - low == pytest.approx(2 * 1.96 * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert mean_ci95([3.0]) == (3.0, [3.0, 3.0])


def test_a_bootstrapped_interval_covers_the_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.exponential(1.0, 80), seed)["ci95"] for seed in range(60)]
    covered = sum(low < 1.0 < high for low, high in intervals)
    assert 51 <= covered <= 60


def test_a_bootstrap_is_the_same_each_time_and_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = bootstrap_mean(values)
    assert found == bootstrap_mean(values) and found["mean"] == pytest.approx(values.mean())
    assert found["ci95"] == pytest.approx(mean_ci95(values)[1], abs=0.05)
    assert bootstrap_mean([2.0]) == {"mean": 2.0, "ci95": [2.0, 2.0]}


def test_a_difference_is_taken_example_by_example():
    """Two systems that fail on the same examples differ by less than their own intervals suggest."""
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 5, 300)
    better, baseline = difficulty + rng.normal(0.5, 0.1, 300), difficulty
    found = paired_difference(better, baseline)
    assert found["ci95"][0] > 0 and found["mean"] == pytest.approx(0.5, abs=0.05)
    assert width(found) < width(bootstrap_mean(better)) / 10


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    found = bootstrap_ratio([1, 0, 99], [1, 1, 99])
    assert found["mean"] == pytest.approx(100 / 101)
    low, high = found["ci95"]
    assert low <= found["mean"] <= high


def test_values_that_hang_together_count_as_one():
    """A hundred copies of ten values are ten values."""
    values = np.random.default_rng(3).normal(0, 1, 10)
    copies, groups = np.repeat(values, 100), np.repeat(np.arange(10), 100)
    found = clustered_mean(copies, groups)
    assert found["mean"] == pytest.approx(values.mean())
    assert width(found) > 5 * width(bootstrap_mean(copies))


def test_a_difference_is_written_with_its_sign_and_interval():
    assert signed({"mean": 0.01234, "ci95": [-0.5, 0.25]}) == "+0.0123 (-0.5000 to +0.2500)"
    assert signed({"mean": -1.0, "ci95": [-2.0, 0.0]}, 1) == "-1.0 (-2.0 to +0.0)"
