"""What is compared with what, and the answer: planted truths, without MLflow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import MIDDLE, cell_id, planted

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.reports.analysis.answer import answer, snippet
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.words.units import CHANCE_NORMALISED
from fusion_workbench.schema.names import OVERALL, Baseline, Verdict
from fusion_workbench.schema.records import Cell, Task

L3, L5, L10, L11, L12 = (("deep_only", (), n) for n in (3, 5, 10, 11, 12))
CONCAT, FUSER, MIDDLE_KEY = ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12), ("concat", *MIDDLE)


def noise(mean: float, seed: int, replicates: int = 5, examples: int = 200, spread: float = 0.04) -> np.ndarray:
    """Crossed noise; examples' difficulty is shared by all cells, as in a real test set."""
    hard = np.random.default_rng(99).normal(0, 0.1, examples)
    rng = np.random.default_rng(seed)
    x = mean + hard + rng.normal(0, 0.002, (replicates, 1)) + rng.normal(0, spread, (replicates, examples))
    return np.asarray(x)


def one(means: dict, replicates: int = 5, task: str = "read") -> dict:
    return {key: {task: noise(mean, number, replicates)} for number, (key, mean) in enumerate(means.items())}


def test_a_planted_winner_is_found_and_better_than_every_baseline() -> None:
    record = planted(one({L3: 0.30, L5: 0.40, L11: 0.25, L12: 0.2, MIDDLE_KEY: 0.41, CONCAT: 0.5, FUSER: 0.35}))
    analysis = Analysis(record)
    found = answer(analysis)
    assert found.cell is not None
    assert found.cell.id == cell_id(CONCAT)
    assert found.settled
    assert "concat [3,6]→12 at learning rate 0.003" in found.headline
    assert found.best_baseline is not None
    assert found.best_baseline.id == cell_id(MIDDLE_KEY)
    for baseline in (Baseline.DEEPEST, Baseline.PENULTIMATE, Baseline.BEST_SINGLE, Baseline.MIDDLE):
        comparison = analysis.comparisons["read", baseline, cell_id(CONCAT)]
        assert comparison.verdict == Verdict.BETTER
        assert comparison.difference is not None
        assert comparison.difference.low > 0
    assert analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(FUSER)].verdict == Verdict.WORSE


def test_the_best_single_layer_is_picked_on_validation_and_judged_on_test() -> None:
    scores = one({L3: 0.45, L5: 0.40, L12: 0.2, CONCAT: 0.42})
    record = planted(scores, validation={L3: {"read": 0.30}, L5: {"read": 0.41}})
    analysis = Analysis(record)
    assert analysis.baselines["read", Baseline.BEST_SINGLE] == cell_id(L5)
    assert analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(L5)].verdict == Verdict.ITSELF
    assert analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(L3)].verdict == Verdict.BETTER


def test_a_recommendation_never_looks_at_test() -> None:
    record = planted(one({L5: 0.40, L12: 0.2, CONCAT: 0.6, FUSER: 0.42}), validation={FUSER: {"read": 0.7}})
    found = answer(Analysis(record))
    assert found.cell is not None
    assert found.cell.id == cell_id(FUSER)


def test_inside_the_noise_nothing_is_said_to_win() -> None:
    same = noise(0.4, 1)
    scores = {
        key: {"read": same + noise(0, n, spread=0.1) - noise(0, 0, spread=0)} for n, key in enumerate((L5, L12, CONCAT))
    }
    record = planted(scores, validation={CONCAT: {"read": 0.9}})
    found = answer(Analysis(record))
    assert not found.settled
    assert found.headline.startswith("Nothing here beats the best baseline")
    assert "not distinguishable" in found.lead
    assert "concat [3,6]→12 at learning rate 0.003" in found.lead


def test_a_baseline_that_wins_is_recommended_by_name() -> None:
    record = planted(one({L5: 0.5, L12: 0.2, CONCAT: 0.4}))
    found = answer(Analysis(record))
    assert found.headline == "Nothing here beats the best baseline: use layer 5 alone at learning rate 0.003."
    assert "concat [3,6]→12, is worse than it on test" in found.lead


def test_a_baseline_that_leads_on_one_seed_has_won_nothing() -> None:
    found = answer(Analysis(planted(one({L5: 0.5, L12: 0.2, CONCAT: 0.4}, replicates=1))))
    assert found.headline == "No verdict yet: layer 5 alone is the best on validation at learning rate 0.003."
    assert "cannot be judged yet" in found.lead


def test_worse_on_test_is_said() -> None:
    record = planted(one({L5: 0.5, L12: 0.2, CONCAT: 0.4}), validation={CONCAT: {"read": 0.9}})
    found = answer(Analysis(record))
    assert "it is worse" in found.lead
    assert not found.settled


@pytest.mark.parametrize(
    ("replicates", "word"), [(1, Verdict.NONE), (3, Verdict.NONE), (4, Verdict.NONE), (5, Verdict.BETTER)]
)
def test_few_replicates(replicates: int, word: str) -> None:
    analysis = Analysis(planted(one({L5: 0.3, L12: 0.2, CONCAT: 0.5}, replicates)))
    comparison = analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(CONCAT)]
    assert comparison.verdict == word
    found = answer(analysis)
    assert found.headline.startswith("No verdict yet") == (word == Verdict.NONE)
    assert any("a verdict takes 5" in c for c in found.caveats) == (word == Verdict.NONE)


def test_the_family_is_corrected_together() -> None:
    """A difference that alone would pass does not when two dozen cells are tried."""
    x = noise(0.4, 0)
    rng = np.random.default_rng(3)
    slight = x + 0.012 + rng.normal(0, 0.004, (5, 1)) + rng.normal(0, 0.05, x.shape)
    others = {("concat", (a,), 12): {"read": noise(0.4, 20 + a, spread=0.2)} for a in range(12)}
    few = Analysis(planted({L5: {"read": x}, L12: {"read": x - 0.2}, CONCAT: {"read": slight}}))
    many = Analysis(planted({L5: {"read": x}, L12: {"read": x - 0.2}, CONCAT: {"read": slight}, **others}))
    a, b = (s.comparisons["read", Baseline.BEST_SINGLE, cell_id(CONCAT)] for s in (few, many))
    assert a.difference is not None
    assert b.difference is not None
    assert a.difference.p == pytest.approx(b.difference.p)
    assert b.p > a.p
    assert (a.verdict, b.verdict) == (Verdict.BETTER, Verdict.SAME)


def test_each_task_has_its_own_best_layer_and_the_mean_one_of_its_own() -> None:
    scores = {
        L5: {"read": noise(0.5, 1), "digit": noise(0.2, 2)},
        L10: {"read": noise(0.2, 3), "digit": noise(0.6, 4)},
        L12: {"read": noise(0.1, 5), "digit": noise(0.5, 6)},
        CONCAT: {"read": noise(0.45, 7), "digit": noise(0.55, 8)},
    }
    analysis = Analysis(planted(scores))
    assert [m.name for m in analysis.measures] == ["read", "digit", OVERALL]
    assert analysis.baselines["read", Baseline.BEST_SINGLE] == cell_id(L5)
    assert analysis.baselines["digit", Baseline.BEST_SINGLE] == cell_id(L10)
    assert analysis.baselines[OVERALL, Baseline.BEST_SINGLE] == cell_id(L10)
    found = answer(analysis)
    assert found.settled
    assert "Not for every task: on read it is worse than layer 5 alone" in found.lead
    assert analysis.means[cell_id(CONCAT), OVERALL].mean == pytest.approx(
        (analysis.means[cell_id(CONCAT), "read"].mean + analysis.means[cell_id(CONCAT), "digit"].mean) / 2
    )


def test_less_can_be_better() -> None:
    record = planted(one({L5: 0.5, L12: 0.7, CONCAT: 0.3}, task="error"), directions={"error": "minimize"})
    analysis = Analysis(record)
    assert analysis.baselines["error", Baseline.BEST_SINGLE] == cell_id(L5)
    assert analysis.comparisons["error", Baseline.BEST_SINGLE, cell_id(CONCAT)].verdict == Verdict.BETTER
    assert answer(analysis).cell == record.cell(cell_id(CONCAT))


def test_as_good_and_cheaper() -> None:
    x = noise(0.5, 1)
    rng = np.random.default_rng(5)
    nearly = x + rng.normal(0, 0.01, (5, 1)) + rng.normal(0, 0.08, x.shape)
    record = planted(
        {L5: {"read": x - 0.1}, L12: {"read": x - 0.2}, CONCAT: {"read": nearly}, FUSER: {"read": x}},
        validation={FUSER: {"read": 0.503}, CONCAT: {"read": 0.5}},
        flops={L5: 1e6, L12: 1e6, CONCAT: 3e6, FUSER: 12e6},
    )
    found = answer(Analysis(record))
    assert found.cheaper is not None
    assert found.cheaper.cell.id == cell_id(CONCAT)  # layer 5 is cheaper still, and distinguishably worse
    assert "at 25 % of the FLOPs" in found.cheaper_text


def test_an_unfinished_study_compares_like_with_like() -> None:
    """A cell that lost a replicate is judged on those it has, and not recommended."""
    record = planted(one({L5: 0.4, L12: 0.2, CONCAT: 0.5, FUSER: 0.6}))
    lost = f"{cell_id(FUSER)}2"
    kept = {k: v for k, v in record.example_scores.items() if k[0] != cell_id(FUSER)}
    for split in ("val", "test"):
        o = record.example_scores[cell_id(FUSER), "read", split]
        rows = [0, 1, 3, 4]
        kept[cell_id(FUSER), "read", split] = replace(o, replicates=tuple("0134"), scores=o.scores[rows])
    runs = tuple(replace(r, state="diverged") if r.run_id == lost else r for r in record.runs)
    partial = replace(record, runs=runs, example_scores=kept)
    analysis = Analysis(partial)
    assert analysis.core == frozenset("01234")
    found = answer(analysis)
    assert found.cell is not None
    assert found.cell.id == cell_id(CONCAT)
    comparison = analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(FUSER)]
    assert comparison.difference is not None
    assert comparison.difference.replicates == 4
    assert comparison.verdict == Verdict.NONE
    assert any("19 of 20 variant-replicates (1 diverged)" in c for c in found.caveats)


@pytest.mark.parametrize(("groups", "conditional_on_groups"), [(4, True), (9, True), (10, False)])
def test_few_photographs(groups: int, conditional_on_groups: bool) -> None:
    record = planted(one({L5: 0.4, L12: 0.2}), groups=[f"photo {i}" for i in range(groups)])
    analysis = Analysis(record)
    assert analysis.conditional_on_groups == conditional_on_groups
    assert any(f"come from {groups} photographs" in c for c in answer(analysis).caveats) == conditional_on_groups


def test_aliases_of_one_strategy_are_not_distinguished() -> None:
    """A/A: of many comparisons of the same thing hardly any may come out as a difference."""
    false = 0
    for study in range(40):
        cells = {("concat", (n,), 12): {"read": noise(0.4, 1000 * study + n)} for n in range(6)}
        analysis = Analysis(planted({L5: {"read": noise(0.4, 1000 * study + 50)}, **cells}))
        words = [c.verdict for (_, b, _), c in analysis.comparisons.items() if b == Baseline.BEST_SINGLE]
        false += any(word in (Verdict.BETTER, Verdict.WORSE) for word in words)
    assert false <= 5  # 40 × 5 % = 2 expected; 6 or more has a chance of .014


def test_the_snippet_is_a_study() -> None:
    cell = Cell("x", "mmfuser", (3, 6, 9), 12, "mmfuser", options={"heads": 0, "points": 8}, chosen_lr=0.003)
    study = study_from_yaml(snippet(cell), "snippet")
    assert study.strategies[0].name == "mmfuser"
    assert study.strategies[0].options == {"heads": 0, "points": 8}
    assert (study.selections[0].levels, study.selections[0].query) == ([3, 6, 9], 12)
    assert study.search.learning_rates == [0.003]
    alone = study_from_yaml(snippet(Cell("x", "deep_only", (), 5, "deep_only 5", chosen_lr=1e-5)), "snippet")
    assert (alone.selections[0].levels, alone.selections[0].query) == ([], 5)
    assert alone.search.learning_rates == [1e-5]


def test_tasks_of_different_units_meet_as_gains_over_chance() -> None:
    """An error of one object and an IoU: each counts as its share of the way from chance to perfect."""
    scores = {
        L12: {"count": noise(1.5, 1), "segment": noise(0.40, 2)},
        CONCAT: {"count": noise(1.0, 3), "segment": noise(0.55, 4)},
    }
    record = planted(scores, directions={"count": "minimize"})
    tasks = (
        Task("count", "mae", "minimize", chance=2.0, unit="count", perfect=0.0),
        Task("segment", "iou", chance=0.25, perfect=1.0),
    )
    analysis = Analysis(replace(record, tasks=tasks))
    assert analysis.objective.unit is CHANCE_NORMALISED
    assert analysis.objective.chance == 0
    overall = analysis.means[cell_id(CONCAT), OVERALL].mean
    expected = np.mean([(2.0 - scores[CONCAT]["count"].mean()) / 2, (scores[CONCAT]["segment"].mean() - 0.25) / 0.75])
    assert overall == pytest.approx(float(expected))
    assert analysis.comparisons[OVERALL, Baseline.DEEPEST, cell_id(CONCAT)].verdict == Verdict.BETTER


def test_a_guess_that_looks_at_no_image_is_scored_on_test_and_named_where_nothing_does_better() -> None:
    scores = {
        L12: {"count": noise(1.5, 1), "segment": noise(0.40, 2)},
        CONCAT: {"count": noise(1.0, 3), "segment": noise(0.55, 4)},
    }
    record = planted(scores, directions={"count": "minimize"})
    count = Task("count", "mae", "minimize", chance=2.0, unit="count", perfect=0.0, chance_test=0.9)
    segment = Task("segment", "iou", chance=0.25, perfect=1.0, chance_test=0.3)
    analysis = Analysis(replace(record, tasks=(count, segment)))
    assert [m.chance for m in analysis.measures] == pytest.approx([0.9, 0.3, (1.1 / 2 + 0.05 / 0.75) / 2])
    said = [c for c in answer(analysis).caveats if c.startswith("Nothing was learned of")]
    assert len(said) == 1
    assert said[0].startswith("Nothing was learned of count that holds on test: the best cell has 1.0")
    assert "looks at no image 0.90;" in said[0]
    blind = Analysis(replace(record, tasks=(replace(count, chance_test=1.1), replace(segment, chance_test=0.6))))
    assert any(
        "segment that holds on test: the best cell has 54." in c and " %, and a" in c for c in answer(blind).caveats
    )
    learned = Analysis(replace(record, tasks=(replace(count, chance_test=1.1), segment)))
    assert not [c for c in answer(learned).caveats if c.startswith("Nothing was learned")]
