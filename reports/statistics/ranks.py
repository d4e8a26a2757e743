"""Rank agreement: Kendall's tau-b (Biometrika 33, 1945) with its exact p value."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fusion_workbench.reports.statistics.example_scores import Floats

RESAMPLED = 2000  # draws of a percentile interval
_ENUMERATED = 8  # rows up to which every order is tried


def tau_b(x: Floats, y: Floats) -> Floats:
    """Kendall's tau-b of ``x`` ``[n]``, or ``[..., n]``, with each row of ``y`` ``[..., n]``; 0 where one is a tie."""
    i, j = np.triu_indices(x.shape[-1], 1)
    dx, dy = np.sign(x[..., i] - x[..., j]), np.sign(y[..., i] - y[..., j])
    norm = np.sqrt((dx**2).sum(-1) * (dy**2).sum(-1))
    return np.asarray(np.divide((dx * dy).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0), dtype=float)


def exact_p(x: Floats, y: Floats) -> float:
    """Two-sided: the share of all orders of ``y`` with a tau as far from 0; by scipy's rule above eight rows."""
    if len(y) > _ENUMERATED:
        return float(stats.kendalltau(x, y).pvalue)
    every = tau_b(x, y[_orders(len(y))])
    return float((np.abs(every) >= abs(float(tau_b(x, y[None])[0])) - 1e-12).mean())


@cache
def _orders(n: int) -> NDArray[np.int64]:
    return np.asarray(list(itertools.permutations(range(n))))
