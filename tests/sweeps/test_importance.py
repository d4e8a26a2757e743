"""PED-ANOVA over cells: it finds the layer that matters, and says so when it cannot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fusion_workbench.sweeps.importance import FEWEST, ScoredCell, importance


def cells(value: dict[int, float], noise: float = 0.0, layers: int = 7) -> list[ScoredCell]:
    """Every pair of layers under query 9, by two strategies; worth the sum of their layers."""
    rng = np.random.default_rng(0)
    return [
        ScoredCell(
            frozenset({*pair, 9}), strategy, 9, sum(value.get(layer, 0.0) for layer in pair) + noise * rng.normal()
        )
        for pair in itertools.combinations(range(layers), 2)
        for strategy in ("concat", "average")
    ]


def test_the_layer_that_decides_is_first() -> None:
    found = importance(cells({4: 1.0}, noise=0.01))
    assert found.cells == 42
    assert found.top == 5
    assert max(found.layers, key=lambda n: found.layers[n]) == 4
    assert found.read_by_top[4] == 1.0
    assert found.read_by_all[4] == pytest.approx(6 / 21)
    assert sum(found.layers.values()) + (found.strategy or 0) == pytest.approx(1)
    assert 9 not in found.layers  # every cell reads it
    assert found.query is None
    assert found.reason == ""
    assert found == importance(cells({4: 1.0}, noise=0.01))


def test_a_layer_that_the_best_avoid_matters_too_and_is_told_apart() -> None:
    every = [
        ScoredCell(frozenset(kept), "concat", 9, -float(2 in kept) + 0.001 * i)
        for i, kept in enumerate(itertools.combinations(range(6), 4))
    ]
    found = importance(every)
    assert max(found.layers, key=lambda n: found.layers[n]) == 2
    assert found.read_by_top[2] < found.read_by_all[2]


def test_the_strategy_that_decides_is_told() -> None:
    found = importance([ScoredCell(c.layers, c.strategy, 9, float(c.strategy == "concat")) for c in cells({})])
    assert found.top == 21  # all that are tied at the top
    assert found.strategy is not None
    assert found.strategy > 0.9


def test_what_cannot_be_told_is_told() -> None:
    few = cells({4: 1.0})[: FEWEST - 1]
    assert importance(few).reason == "9 cells; it takes 10"
    assert importance(few).layers == {}
    assert importance([*few, ScoredCell(frozenset({1}), "concat", 9, float("nan"))]).cells == 9
    assert importance([]).cells == 0
    assert importance(cells({})).reason == "all cells have the same value"
    same = [ScoredCell(frozenset({1, 9}), "concat", 9, i / 10) for i in range(12)]
    assert importance(same).reason == "all cells read the same layers in the same way"
