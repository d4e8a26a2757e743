"""The winner on trial: what fresh replicates say of what validation picked."""

from __future__ import annotations

import html
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_study import Key, cell_id, copy_database, planted, tiny, tried_again

from fusion_workbench.reports import ReportPaths, write_report
from fusion_workbench.reports.analysis.answer import Answer, answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fresh_replicates import (
    FreshReplicates,
    fresh_replicates_json,
    judge_fresh_replicates,
)
from fusion_workbench.reports.analysis.planning import planning
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.intervals import holm, noise
from fusion_workbench.schema.names import SAME_FLOPS, SAME_PARAMETERS, Baseline, Verdict
from fusion_workbench.schema.records import Contender

L5, L12, CONCAT, FUSER = ("deep_only", (), 5), ("deep_only", (), 12), ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12)
MATCHED: Any = ("matched", (3, 6), 12, "parameters")
MATCHED_FLOPS: Any = ("matched", (3, 6), 12, "flops")
WITHOUT_3, WITHOUT_6, WITHOUT_12 = ("concat", (6,), 12), ("concat", (3,), 12), ("concat", (3,), 6)
STANDS = {L12: [("read", Baseline.DEEPEST)], L5: [("read", Baseline.BEST_SINGLE)]}
FIRST = {L5: 0.5, L12: 0.2, CONCAT: 0.6, FUSER: 0.4}


def scores(mean: float, seed: int, replicates: int = 5, spread: float = 0.03) -> dict[str, np.ndarray]:
    """One task, ``[R, N]``; the examples' difficulty is the same for every seed."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(0).normal(0, 0.1, 120)
    own = rng.normal(0, spread / 10, (replicates, 1)) + rng.normal(0, spread, (replicates, 120))
    return {"read": np.asarray(mean + hard + own)}


def study(
    fresh: dict[Any, float],
    first: dict[Key, float] | None = None,
    replicates: int = 5,
    trained: int = 5,
    directions: dict[str, str] | None = None,
    winner: Key = CONCAT,
    **more: Any,
) -> StudyRecord:
    made = {key: scores(mean, n, replicates) for n, (key, mean) in enumerate((first or FIRST).items())}
    again = {key: scores(mean, 100 + n, trained) for n, (key, mean) in enumerate(fresh.items())}
    record = planted(made, directions=directions)
    return tried_again(record, again, winner, CONCAT, **({"stands_for": STANDS} | more))


def judged(record: StudyRecord) -> tuple[Analysis, FreshReplicates, Answer]:
    analysis = Analysis(record)
    trial = judge_fresh_replicates(analysis)
    assert trial is not None
    return analysis, trial, answer(analysis)


# --- verdicts ---------------------------------------------------------------------------------------------------


def test_luck_of_the_first_replicates_does_not_reach_the_verdict() -> None:
    """They show the concat ten points ahead, on validation and on test; fresh ones show that there is nothing."""
    analysis, trial, said = judged(study({L5: 0.5, L12: 0.2, CONCAT: 0.5}))
    assert analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(CONCAT)].verdict == Verdict.BETTER
    (found,) = [c for c in said.comparisons if c.baseline == Baseline.BEST_SINGLE]
    assert found == trial.analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(CONCAT)]
    assert found.verdict != Verdict.BETTER
    assert found.difference is not None
    assert (found.difference.replicates, found.difference.mean) == (5, pytest.approx(0, abs=0.01))
    assert not said.settled
    assert said.headline.startswith("Nothing here beats the best baseline")
    assert "on test, trained again on 5 fresh seeds, it is" in said.lead
    assert "On the replicates that it was picked on it looked better: that did not hold." in said.lead
    assert "validation did not pick it" not in said.lead  # it did


def test_a_winner_that_holds_is_said_to() -> None:
    _, _, said = judged(study({L5: 0.5, L12: 0.2, CONCAT: 0.6}))
    assert said.settled
    assert said.headline == "Use concat [3,6]→12 at learning rate 0.003."
    assert said.lead.startswith(
        "On test, trained again on 5 fresh seeds, it is better than the best baseline, layer 5 alone: +9.8 ["
    )


def test_the_level_is_shared_between_both_parts() -> None:
    """Half of the level for the fresh replicates, Holm within; the other half for comparing all cells."""
    fresh = {L5: 0.5, L12: 0.2, CONCAT: 0.503}
    first = FIRST | {CONCAT: 0.503}
    record = study(fresh, first)
    analysis, trial, _ = judged(record)
    for part, example_scores, pairs in (
        (trial.analysis, record.fresh_example_scores, [(CONCAT, L5), (CONCAT, L12)]),
        (analysis, record.example_scores, [(a, b) for a in first for b in (L5, L12) if a not in (b, L12)]),
    ):
        raw = [
            float(
                noise(
                    example_scores[cell_id(a), "read", "test"].scores
                    - example_scores[cell_id(b), "read", "test"].scores
                ).p()
            )
            for a, b in pairs
        ]
        corrected = dict(zip(pairs, holm(raw) / 0.5, strict=True))
        found = part.comparisons["read", Baseline.BEST_SINGLE, cell_id(CONCAT)]
        assert found.p == pytest.approx(min(corrected[CONCAT, L5], 1.0))


def test_below_five_fresh_replicates_there_is_no_verdict() -> None:
    record = study({L5: 0.5, L12: 0.2, CONCAT: 0.6}, trained=3)
    _, trial, said = judged(replace(record, plan=record.plan and replace(record.plan, confirm=(5,))))
    assert {c.verdict for c in trial.compared(record.cell(cell_id(CONCAT))) if c.difference} == {Verdict.NONE}
    assert said.headline.startswith("No verdict yet: concat")
    assert "from 3 fresh replicates; a verdict takes 5" in said.lead


def test_a_plan_that_keeps_nothing_for_them_is_judged_without_them() -> None:
    record = study({L5: 0.5, L12: 0.2, CONCAT: 0.5})
    assert record.plan is not None
    analysis = Analysis(replace(record, plan=replace(record.plan, confirm=(), confirm_share=0.0)))
    assert judge_fresh_replicates(analysis) is None
    said = answer(analysis)
    assert said.settled
    assert "fresh" not in said.lead


# --- controls and left-out layers -------------------------------------------------------------------------------


EVERYTHING = {L5: 0.5, L12: 0.2, CONCAT: 0.6, MATCHED: 0.55, MATCHED_FLOPS: 0.62, WITHOUT_3: 0.5, WITHOUT_6: 0.65}
PARTS = {"controls": {MATCHED: ("parameters",), MATCHED_FLOPS: ("flops",)}, "without": {WITHOUT_3: 3, WITHOUT_6: 6}}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_controls_and_contributions_have_the_right_sign(direction: str) -> None:
    """Of an error the same numbers mean the opposite; differences keep the sign of the numbers."""
    less = direction == "minimize"
    first = FIRST if not less else FIRST | {CONCAT: 0.1}  # so that the concat is the best on validation
    record = study(EVERYTHING, first, directions={"read": direction}, **PARTS)
    _, trial, said = judged(record)
    assert said.cell is not None
    assert said.cell.id == cell_id(CONCAT)
    found = {c.baseline: c for c in trial.compared(said.cell)}
    assert set(found) == {Baseline.DEEPEST, Baseline.BEST_SINGLE, SAME_PARAMETERS, SAME_FLOPS}
    assert found[SAME_PARAMETERS].verdict == (Verdict.WORSE if less else Verdict.BETTER)
    assert found[SAME_FLOPS].verdict == (Verdict.BETTER if less else Verdict.WORSE)
    assert [c.difference and c.difference.mean for b, c in found.items() if b in (SAME_PARAMETERS, SAME_FLOPS)] == [
        pytest.approx(0.05, abs=0.01),
        pytest.approx(-0.02, abs=0.01),
    ]
    worth = {left.layer: left.contribution.mean for left in trial.left_out}
    assert worth == {3: pytest.approx(0.1, abs=0.01), 6: pytest.approx(-0.05, abs=0.01)}
    (check,) = [c for c in said.checks if c.startswith("Is it the fusion or its size?")]
    words = ("worse", "better") if less else ("better", "worse")
    assert f"is {words[0]} than {SAME_PARAMETERS} (+4.9 [" in check
    assert f"{words[1]} than {SAME_FLOPS} (−2.1 [" in check


def test_a_control_is_no_baseline_and_no_rival() -> None:
    """The control that does best of all is named in its check, and takes part in no pick."""
    _, trial, said = judged(study(EVERYTHING | {MATCHED: 0.9}, **PARTS))
    assert said.best_baseline is not None
    assert said.best_baseline.id == cell_id(L5)
    assert said.settled
    assert cell_id(MATCHED) not in {c.cell for c in trial.analysis.comparisons.values()}


def test_a_single_layer_that_wins_has_no_controls() -> None:
    record = study(EVERYTHING, FIRST | {CONCAT: 0.45}, winner=L5, **PARTS)
    _, trial, said = judged(record)
    assert not any("fusion or its size" in c for c in said.checks)
    assert "The best other fusion there, concat [3,6]→12, is better than it on test" in said.lead
    assert trial.fusion is not None
    assert {c.baseline for c in trial.compared(trial.fusion)} >= {SAME_PARAMETERS, SAME_FLOPS}


# --- what is said -----------------------------------------------------------------------------------------------


def test_nothing_told_apart_says_what_it_would_take() -> None:
    """Also where three replicates, enough to pick on, are too few for a verdict: the fresh ones are the pilot."""
    equal = {L5: 0.5, L12: 0.2, CONCAT: 0.502}
    record = study(equal, FIRST | {CONCAT: 0.51}, replicates=3)
    assert record.plan is not None
    record = replace(record, plan=replace(record.plan, margin=0.0005))
    analysis, trial, said = judged(record)
    (found,) = [c for c in said.comparisons if c.baseline == Baseline.BEST_SINGLE]
    assert found.verdict == Verdict.SAME
    assert said.takes.startswith("To tell a difference of 0.1 points") or "No number of replicates" in said.takes
    pilot = planning(analysis, trial.analysis)
    assert pilot.pilot.replicates == 5
    assert pilot.difference.mean == pytest.approx(0.002, abs=0.01)
    # half of the level is for the fresh replicates, shared by the winner's two comparisons
    assert pilot.fresh.alpha == pytest.approx(0.05 * 0.5 / 2)
    assert pilot.whole.alpha == pytest.approx(0.05 * 0.5 / pilot.whole.comparisons)


def test_caveats_of_fresh_replicates() -> None:
    record = study({L5: 0.5, L12: 0.2, CONCAT: 0.6}, replicates=3)
    said = answer(Analysis(record)).caveats
    assert any(
        c.startswith("All cells are compared on 3 replicates, which gives intervals and no verdicts") for c in said
    )
    lost = tuple(
        replace(r, state="running") if (r.cell, r.replicate) == (cell_id(L12), "c4") else r for r in record.runs
    )
    said = answer(Analysis(replace(record, runs=lost))).caveats
    assert "The fresh replicates are incomplete: 4 of 5 have ended for every contender." in said
    later = study({L5: 0.5, L12: 0.2, CONCAT: 0.6}, FIRST | {FUSER: 0.9})
    said = answer(Analysis(later)).caveats
    assert any(
        c.startswith("Validation would now pick mmfuser [3,6]→12; the fresh replicates are of concat") for c in said
    )


# --- a tracked study --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uri(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    made = copy_database(mlflow_template, tmp_path_factory.mktemp("trial"))
    tiny(name="tried", confirm=(5,), luck={FUSER: 0.3}, examples=60).write(made)
    return made


@pytest.fixture(scope="module")
def paths(uri: str, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return write_report(uri, "tried", tmp_path_factory.mktemp("report"))


def test_a_tracked_study_is_read_as_it_was_written(uri: str) -> None:
    record = read_study(uri, "tried")
    assert record.fresh_replicates == tuple(f"c{n}" for n in range(5))
    trial = judge_fresh_replicates(Analysis(record))
    assert trial is not None
    assert trial.winner is not None
    assert trial.winner.id == cell_id(FUSER)  # lucky
    assert {left.layer for left in trial.left_out} == {3, 6, 12}
    plain = fresh_replicates_json(trial)
    assert plain["ended"] == 5
    assert {f.name for f in fields(Contender)} - {"cell"} <= {*plain["contenders"][0]}


def test_the_first_screen_says_that_replicates_are_fresh(paths: ReportPaths) -> None:
    page = html.unescape(paths.html.read_text(encoding="utf-8"))
    screen = page[page.index('class="answer"') : page.index('id="strategies"')]
    assert "trained again on 5 fresh seeds" in screen
    assert "on 5 fresh replicates that had no part in picking it" in screen
    assert SAME_PARAMETERS in screen
    assert "All cells are compared on 3 replicates" in screen
    assert "Equal tuning" in page
    assert "Of each, 50 % is kept for what is judged on fresh replicates" in page
    markdown = paths.markdown.read_text(encoding="utf-8")
    assert "trained again on 5 fresh seeds" in markdown
    found = json.loads(paths.json.read_text(encoding="utf-8"))
    assert {c["difference"]["replicates"] for c in found["answer"]["comparisons"] if c["difference"]} == {5}
