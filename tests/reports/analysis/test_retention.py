"""What fusing costs the task that the deepest layer does best: each finding by construction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import cell_id, planted, tried_again

from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fresh_replicates import judge_fresh_replicates
from fusion_workbench.reports.analysis.retention import (
    LOST,
    OPEN,
    RETAINED,
    UNJUDGED,
    own_task,
    retention,
    retention_json,
    retention_words,
)
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.schema.names import Baseline, Verdict
from fusion_workbench.schema.plan import ComparisonFamily, Plan

L3, L12, CONCAT = ("deep_only", (), 3), ("deep_only", (), 12), ("concat", (3, 6), 12)
PLAN = Plan("overall", (ComparisonFamily(("read", "digit", "overall"), 1.0),), 0.05, 0.01, (5,))


def scores(mean: float, seed: int, replicates: int = 5, spread: float = 0.02) -> np.ndarray:
    """``[R, N]``; the examples' difficulty is the same for every seed."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(0).normal(0, 0.1, 150)
    noise = rng.normal(0, spread / 10, (replicates, 1)) + rng.normal(0, spread, (replicates, 150))
    return np.asarray(mean + hard + noise)


def study(digit: float, spread: float = 0.02, replicates: int = 5) -> StudyRecord:
    """Digits are the deepest layer's own task, at .6; ``digit`` is what the recommended concat makes of them."""
    made = {
        L3: {"read": scores(0.5, 1, replicates), "digit": scores(0.2, 2, replicates)},
        L12: {"read": scores(0.1, 3, replicates), "digit": scores(0.6, 4, replicates)},
        CONCAT: {"read": scores(0.8, 5, replicates), "digit": scores(digit, 6, replicates, spread)},
    }
    return replace(planted(made), plan=PLAN)


@pytest.mark.parametrize(
    ("digit", "spread", "word"),
    [(0.6, 0.02, RETAINED), (0.63, 0.02, RETAINED), (0.5, 0.02, LOST), (0.588, 0.1, OPEN)],
)
def test_each_finding(digit: float, spread: float, word: str) -> None:
    analysis = Analysis(study(digit, spread))
    found = retention(analysis, analysis, analysis.record.cell(cell_id(CONCAT)))
    assert found is not None
    assert found.measure.name == "digit"
    assert found.against.id == cell_id(L12)
    assert found.word == word
    assert (found.p < 0.05) == (word == RETAINED)
    assert found.difference.mean == pytest.approx(digit - 0.6, abs=0.02)


def test_without_a_margin_or_replicates_it_is_not_judged() -> None:
    for record in (study(0.6, replicates=4), replace(study(0.6), plan=replace(PLAN, margin=None))):
        analysis = Analysis(record)
        found = retention(analysis, analysis, record.cell(cell_id(CONCAT)))
        assert found is not None
        assert found.word == UNJUDGED
        assert np.isnan(found.p)
        assert retention_json(found) is not None


def test_a_loss_is_told_even_without_a_margin() -> None:
    analysis = Analysis(replace(study(0.4), plan=replace(PLAN, margin=None)))
    found = retention(analysis, analysis, analysis.record.cell(cell_id(CONCAT)))
    assert found is not None
    assert found.word == LOST


def test_a_small_loss_that_is_shown_may_still_be_retained() -> None:
    """Worse, and by less than the margin: no worse than what was declared to be as good as none."""
    analysis = Analysis(replace(study(0.585), plan=replace(PLAN, margin=0.03)))
    found = retention(analysis, analysis, analysis.record.cell(cell_id(CONCAT)))
    assert found is not None
    assert analysis.comparisons["digit", Baseline.DEEPEST, cell_id(CONCAT)].verdict == Verdict.WORSE
    assert found.word == RETAINED


@pytest.mark.parametrize(("error", "word"), [(0.6, RETAINED), (0.7, LOST), (0.5, RETAINED)])
def test_where_less_is_better(error: float, word: str) -> None:
    """The deepest layer's error of .6 is the lowest of the single layers."""
    made = {
        L3: {"read": scores(0.5, 1), "digit": scores(0.9, 2)},
        L12: {"read": scores(0.1, 3), "digit": scores(0.6, 4)},
        CONCAT: {"read": scores(0.9, 5), "digit": scores(error, 6)},
    }
    record = planted(made, directions={"digit": "minimize"})
    tasks = tuple(
        replace(t, chance=2.0 if t.name == "digit" else 0.0, perfect=float(t.name == "read")) for t in record.tasks
    )
    analysis = Analysis(replace(record, plan=PLAN, tasks=tasks))
    own = own_task(analysis)
    assert own is not None
    assert own.name == "digit"
    found = retention(analysis, analysis, record.cell(cell_id(CONCAT)))
    assert found is not None
    assert found.word == word


def test_the_deepest_layer_itself_has_nothing_to_retain() -> None:
    analysis = Analysis(study(0.6))
    assert retention(analysis, analysis, analysis.record.cell(cell_id(L12))) is None
    assert retention_json(None) is None
    assert retention_words(None, analysis.record.cells[0], "") == ""
    without = Analysis(planted({L3: {"read": scores(0.5, 1)}, CONCAT: {"read": scores(0.6, 2)}}))
    assert own_task(without) is None


def test_fresh_replicates_judge_it_where_there_are_any() -> None:
    """At first the concat seems to keep the digits; fresh replicates show that it loses them."""
    fresh = {
        L3: {"read": scores(0.5, 11), "digit": scores(0.2, 12)},
        L12: {"read": scores(0.1, 13), "digit": scores(0.6, 14)},
        CONCAT: {"read": scores(0.8, 15), "digit": scores(0.5, 16)},
    }
    deepest = [(m, "deepest layer") for m in ("read", "digit", "overall")]
    single = [("read", "best single layer"), ("overall", "best single layer")]
    stands = {L12: [*deepest, ("digit", "best single layer")], L3: single}
    record = tried_again(study(0.62), fresh, CONCAT, CONCAT, stands)
    analysis = Analysis(record)
    trial = judge_fresh_replicates(analysis)
    assert trial is not None
    said = answer(analysis)
    assert said.retention is not None
    assert said.retention.word == LOST
    assert said.retention.difference.replicates == 5
    assert any(c.startswith("What the deepest layer does best, digit, is not retained: concat") for c in said.checks)
