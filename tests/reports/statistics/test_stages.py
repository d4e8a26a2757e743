"""Stages: a partition, the best one, and no more of them than needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_workbench.reports.statistics.stages import ALIKE, _segmentations, stages


def kernel(seed: int, n: int) -> np.ndarray:
    """A random similarity, 1 on the diagonal."""
    x = np.random.default_rng(seed).normal(size=(n, 3)).cumsum(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def value(matrix: np.ndarray, cuts: tuple[int, ...]) -> float:
    return sum(matrix[a:b, a:b].sum() / (b - a) for a, b in itertools.pairwise(cuts))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 8))
def test_no_other_cuts_are_better(seed: int, n: int) -> None:
    matrix = kernel(seed, n)
    found = _segmentations(matrix)
    assert len(found) == n
    for runs, cuts in enumerate(found, 1):
        every = [(0, *inner, n) for inner in itertools.combinations(range(1, n), runs - 1)]
        assert cuts in every
        assert value(matrix, cuts) == pytest.approx(max(value(matrix, c) for c in every))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 14), alike=st.floats(0.1, 1.0))
def test_stages_are_a_partition_of_layers_that_are_alike(seed: int, n: int, alike: float) -> None:
    matrix = kernel(seed, n)
    found = stages(matrix, alike)
    assert [layer for s in found for layer in range(s.start, s.end)] == list(range(n))
    for stage in found:
        block = matrix[stage.start : stage.end, stage.start : stage.end]
        pairs = block[np.triu_indices(len(block), 1)]
        assert stage.within == pytest.approx(pairs.mean() if len(pairs) else 1.0)
        assert stage.within >= alike


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_blocks_are_found(sizes: list[int], seed: int) -> None:
    """Layers .9 to 1 alike in a block and at most .4 between blocks."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).random((len(owner), len(owner)))
    noise = (noise + noise.T) / 2
    matrix = np.where(owner[:, None] == owner, 0.9 + 0.1 * noise, 0.4 * noise)
    edges = [0, *np.cumsum(sizes).tolist()]
    assert [(s.start, s.end) for s in stages(matrix)] == list(itertools.pairwise(edges))


def test_the_ends_of_the_scale() -> None:
    assert len(stages(np.ones((7, 7)))) == 1
    assert len(stages(np.eye(7))) == 7
    assert stages(np.zeros((0, 0))) == ()
    unknown = np.ones((3, 3))
    unknown[1, :] = unknown[:, 1] = np.nan
    assert [(s.start, s.end) for s in stages(unknown)] == [(0, 1), (1, 2), (2, 3)]
    assert np.isnan(unknown[1, 1])  # the caller's own is left alone
    assert 0 < ALIKE < 1
