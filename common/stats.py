"""95% intervals: Wilson for rates, bootstrap for means, paired differences and values that come in groups."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import scipy  # scipy.stats is loaded when it is first used

RESAMPLES = 1000


def wilson(hits: int, n: int) -> list[float]:
    """Wilson score interval of a rate, hits of n -> [low, high] (Wilson 1927)."""
    return list(scipy.stats.binomtest(int(hits), n).proportion_ci(method="wilson")) if n else [0.0, 1.0]


def mean_ci95(values: Sequence[float]) -> tuple[float, list[float]]:
    """values (N,) -> (mean, [low, high]), the normal approximation of the mean's interval."""
    x = np.asarray(values, dtype=np.float64)
    half = 1.96 * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else 0.0
    return float(x.mean()), [float(x.mean() - half), float(x.mean() + half)]


def _bootstrap(data: tuple, statistic, seed: int) -> list[float]:
    """Percentile interval of a statistic over resamples of the rows that all arrays of `data` share."""
    found = scipy.stats.bootstrap(
        data, statistic, n_resamples=RESAMPLES, paired=True, vectorized=True, method="percentile", rng=seed, batch=100
    )
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> dict:
    """values (N,) -> {"mean", "ci95"}."""
    x = np.asarray(values, dtype=np.float64)
    ci95 = _bootstrap((x,), np.mean, seed) if len(x) > 1 else [float(x.mean())] * 2
    return {"mean": float(x.mean()), "ci95": ci95}


def paired_difference(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> dict:
    """Mean of the differences between two systems on the same examples -> {"mean", "ci95"}."""
    return bootstrap_mean(np.subtract(values, baseline, dtype=np.float64), seed)


def bootstrap_ratio(above: Sequence[float], below: Sequence[float], seed: int = 0) -> dict:
    """Ratio of two sums over the same examples -> {"mean", "ci95"}."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)

    def ratio(a, b, axis=-1):
        return a.sum(axis) / np.maximum(b.sum(axis), 1e-9)

    ci95 = _bootstrap((above, below), ratio, seed) if len(above) > 1 else [float(ratio(above, below))] * 2
    return {"mean": float(ratio(above, below)), "ci95": ci95}


def clustered_mean(values: Sequence[float], groups: Sequence, seed: int = 0) -> dict:
    """Mean of values of which those of a group, an example, hang together: groups are resampled -> {"mean", "ci95"}."""
    sums = defaultdict(lambda: [0.0, 0])
    for value, group in zip(values, groups, strict=True):
        sums[group][0] += value
        sums[group][1] += 1
    return bootstrap_ratio(*zip(*sums.values(), strict=True), seed)


def signed(difference: dict, digits: int = 4) -> str:
    """{"mean", "ci95"} -> '+0.0123 (+0.0045 to +0.0201)'."""
    low, high = difference["ci95"]
    return f"{difference['mean']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
