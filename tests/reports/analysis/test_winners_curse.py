"""How much of the winner's validation score is luck of the pick."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_study import cell_id, planted

from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.winners_curse import winners_curse, winners_curse_json
from fusion_workbench.reports.statistics.optimism import optimism

BEST_OF_20 = 1.867  # expected largest of twenty standard normal draws


def crossed(
    rng: np.random.Generator, means: np.ndarray, seeds: float, examples: float, rest: float, size: tuple[int, int]
) -> np.ndarray:
    """``[C, R, N]``: an example's difficulty, shared by all cells, and noise of each cell's own."""
    cells, (replicates, number) = len(means), size
    own = rng.normal(0, seeds, (cells, replicates, 1)) + rng.normal(0, examples, (cells, 1, number))
    shared = rng.normal(0, 0.3, (1, 1, number))
    return np.asarray(means[:, None, None] + shared + own + rng.normal(0, rest, (cells, replicates, number)))


def test_one_dominant_cell_owes_nothing_to_luck() -> None:
    rng = np.random.default_rng(1)
    found = [
        optimism(crossed(rng, np.r_[0.3, np.zeros(9)], 0.01, 0.05, 0.2, (5, 80)), draws=60, seed=seed)
        for seed in range(20)
    ]
    assert all(shares[0] == 1 for _, shares in found)
    gaps = np.array([gap for gap, _ in found])
    assert abs(gaps.mean()) < 0.005


@pytest.mark.parametrize(
    ("seeds", "examples", "rest", "size"),
    [(0.03, 0.0, 0.0, (5, 40)), (0.0, 0.2, 0.0, (5, 60)), (0.0, 0.0, 0.3, (5, 60)), (0.02, 0.1, 0.2, (5, 60))],
    ids=["seeds", "examples", "interaction", "all three"],
)
def test_of_equal_cells_it_is_the_luck_that_there_is(
    seeds: float, examples: float, rest: float, size: tuple[int, int]
) -> None:
    """The best of twenty equals is 1.867 standard errors better than it is; without the correction for the noise of a
    draw it would be said to be 1.4 (seeds, examples) or 1.9 times (interaction) as much.
    """
    rng = np.random.default_rng(2)
    drawn = [crossed(rng, np.zeros(20), seeds, examples, rest, size) for _ in range(60)]
    said = np.mean([optimism(x, draws=60, seed=number)[0] for number, x in enumerate(drawn)])
    error = np.sqrt(seeds**2 / size[0] + examples**2 / size[1] + rest**2 / (size[0] * size[1]))
    assert said == pytest.approx(BEST_OF_20 * error, rel=0.15)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), constant=st.floats(-5, 5), factor=st.floats(0.1, 10), grouped=st.booleans())
def test_a_constant_and_a_unit_change_nothing(seed: int, constant: float, factor: float, grouped: bool) -> None:
    x = crossed(np.random.default_rng(seed), np.zeros(4), 0.02, 0.1, 0.2, (4, 24))
    groups = np.arange(24) // 2 if grouped else None
    gap, shares = optimism(x, groups, draws=20)
    moved, same = optimism(factor * x + constant, groups, draws=20)
    assert moved == pytest.approx(factor * gap, abs=1e-9)
    assert shares == pytest.approx(same)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()


def test_groups_are_drawn_whole_where_they_were_sampled() -> None:
    """Luck of a group is shared by its examples: drawn one by one they would hide it."""
    rng = np.random.default_rng(3)
    whole, single = [], []
    for seed in range(30):
        by_group = rng.normal(0, 0.2, (20, 1, 12))
        x = np.repeat(by_group, 10, axis=2) + rng.normal(0, 0.01, (20, 5, 120))
        whole.append(optimism(x, np.arange(120) // 10, draws=40, seed=seed)[0])
        single.append(optimism(x, None, draws=40, seed=seed)[0])
    assert np.mean(whole) == pytest.approx(BEST_OF_20 * 0.2 / np.sqrt(12), rel=0.2)
    assert np.mean(single) < 0.5 * np.mean(whole)


L5, L12, CONCAT = ("deep_only", (), 5), ("deep_only", (), 12), ("concat", (3, 6), 12)


def scores(mean: float, seed: int, replicates: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(mean + rng.normal(0, 0.01, (replicates, 1)) + rng.normal(0, 0.1, (replicates, 100)))


def test_the_winner_and_its_rivals_are_named() -> None:
    close = {L5: {"read": scores(0.5, 1)}, L12: {"read": scores(0.2, 2)}, CONCAT: {"read": scores(0.505, 3)}}
    analysis = Analysis(planted(close))
    found = winners_curse(analysis)
    assert found is not None
    assert found.winner == analysis.ranked("read")[0]
    assert found.score == analysis.validation[found.winner.id, "read"]
    assert found.candidates == 3
    assert {cell for cell, _ in found.winners} == {cell_id(L5), cell_id(CONCAT)}
    assert sum(share for _, share in found.winners) == pytest.approx(1)
    assert found.optimism > 0
    said = " ".join(answer(analysis).checks)
    assert "Picking the best of 3 makes its validation score look better than it is by about" in said
    plain = winners_curse_json(found)
    assert plain is not None
    assert plain["winner"] == found.winner.id
    assert winners_curse_json(None) is None


def test_where_less_is_better_the_lowest_is_picked() -> None:
    errors = {L5: {"count": scores(1.5, 1)}, L12: {"count": scores(0.7, 2)}, CONCAT: {"count": scores(2.0, 3)}}
    found = winners_curse(Analysis(planted(errors, directions={"count": "minimize"})))
    assert found is not None
    assert found.winner.id == cell_id(L12)
    assert found.winners == ((cell_id(L12), 1.0),)
    assert found.optimism < 0.01


def test_of_one_cell_or_one_replicate_there_is_none() -> None:
    assert winners_curse(Analysis(planted({L5: {"read": scores(0.5, 1)}}))) is None
    single = {L5: {"read": scores(0.5, 1, 1)}, L12: {"read": scores(0.2, 2, 1)}}
    assert winners_curse(Analysis(planted(single))) is None
