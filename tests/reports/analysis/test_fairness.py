"""Whether the fight was fair, read from the record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from synthetic_study import Key, cell_id, planted

from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fairness import budgets, flags, rates
from fusion_workbench.reports.reading.records import Run, StudyRecord
from fusion_workbench.schema.names import Status
from fusion_workbench.schema.records import Cell

L5, L12, CONCAT, FUSER = ("deep_only", (), 5), ("deep_only", (), 12), ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12)
RATES = (0.0003, 0.001, 0.003)


def scores(mean: float, seed: int) -> np.ndarray:
    return np.asarray(mean + np.random.default_rng(seed).normal(0, 0.02, (5, 80)))


def searched(key: Key, lr: float) -> Run:
    return Run(f"s{cell_id(key)}{lr}", cell_id(key), "search", "search", Status.FINISHED, lr, 0, {}, {})


def study(tried: dict[Key, tuple[float, ...]], chosen: dict[Key, float] | None = None) -> StudyRecord:
    means = {L5: 0.5, L12: 0.2, CONCAT: 0.6, FUSER: 0.4}
    record = planted({key: {"read": scores(m, n)} for n, (key, m) in enumerate(means.items())})
    rate = {cell_id(key): lr for key, lr in (chosen or {}).items()}
    cells = tuple(replace(c, chosen_lr=rate.get(c.id, 0.001)) for c in record.cells)
    finals = tuple(replace(r, params={"epochs": "8", "batch_size": "64"}) for r in record.runs)
    runs = (*finals, *(searched(key, lr) for key, grid in tried.items() for lr in grid))
    return replace(record, cells=cells, searched={c.id: c for c in cells}, runs=runs)


def with_metrics(record: StudyRecord, key: Key, name: str, values: list[float]) -> StudyRecord:
    """``values`` by replicate."""
    left = iter(values)
    runs = [
        replace(r, metrics={**r.metrics, name: next(left)}) if (r.cell, r.phase) == (cell_id(key), "final") else r
        for r in record.runs
    ]
    return replace(record, runs=tuple(runs))


def cell(record: StudyRecord, key: Key) -> Cell:
    return record.cell(cell_id(key))


ALL = dict.fromkeys((L5, L12, CONCAT, FUSER), RATES)


def test_a_cell_that_trained_as_it_should_has_no_flag() -> None:
    record = with_metrics(study(ALL), CONCAT, "converged", [1.0] * 5)
    assert flags(record, cell(record, CONCAT)) == []
    assert not any(c.startswith("Mind") for c in answer(Analysis(record)).checks)


def test_a_learning_rate_at_the_edge() -> None:
    record = study(ALL, {CONCAT: 0.003, FUSER: 0.0003})
    assert flags(record, cell(record, CONCAT)) == ["took the highest learning rate that was tried"]
    assert flags(record, cell(record, FUSER)) == ["took the lowest learning rate that was tried"]
    one = study(dict.fromkeys(ALL, (0.001,)))
    assert flags(one, cell(one, CONCAT)) == []  # nothing was chosen
    two = study(dict.fromkeys(ALL, (0.001, 0.003)))
    assert flags(two, cell(two, CONCAT)) == []  # true of every cell, so said once
    assert "Of two rates each is at an end of what was tried; a third might do better." in budgets(two)
    assert not any("Of two rates" in sentence for sentence in budgets(record))


def test_a_falling_loss_and_shut_gates_are_told_on_the_first_screen() -> None:
    record = with_metrics(study(ALL), CONCAT, "converged", [1.0, 0.0, 1.0, 0.0, 1.0])
    record = with_metrics(record, FUSER, "gates_opened", [0.0, 1.0, 1.0, 1.0, 1.0])
    assert flags(record, cell(record, CONCAT)) == ["loss still falling in 2 of 5"]
    assert flags(record, cell(record, FUSER)) == ["gates stayed shut in 1 of 5"]
    said = answer(Analysis(record)).checks
    assert "Mind the training of concat [3,6]→12 (loss still falling in 2 of 5)." in said


def test_fresh_replicates_count_and_the_search_does_not() -> None:
    record = with_metrics(study(ALL), CONCAT, "converged", [1.0] * 5)
    again = Run("f", cell_id(CONCAT), "confirm", "c0", Status.FINISHED, 0.001, 0, {"converged": 0.0}, {})
    lost = replace(again, run_id="g", state="diverged")
    search = replace(searched(CONCAT, 0.001), metrics={"converged": 0.0})
    record = replace(record, runs=(*record.runs, again, lost, search))
    assert flags(record, cell(record, CONCAT)) == ["loss still falling in 1 of 6"]


def test_equal_budgets_are_said_to_be() -> None:
    assert budgets(study(ALL)) == [
        "Equal tuning: every cell, or one for each strategy, was tried at 0.0003, 0.001 and 0.003.",
        "Equal steps: 8 epochs of batches of 64 for all.",
    ]


def test_one_cell_stands_for_its_strategy() -> None:
    record = study({L5: RATES, CONCAT: RATES, FUSER: RATES})
    assert rates(record)[cell_id(L12)] == RATES
    assert budgets(record)[0].startswith("Equal tuning")


def test_unequal_tuning_and_steps_are_told() -> None:
    record = study(ALL | {FUSER: (0.001,)})
    assert budgets(record)[0] == (
        "Unequal tuning: learning rates 0.0003, 0.001 and 0.003 for 3 (layer 5 alone, layer 12 alone, "
        "concat [3,6]→12); 0.001 for 1 (mmfuser [3,6]→12)."
    )
    longer = replace(record.runs[0], params={"epochs": "16", "batch_size": "64"})
    assert "Unequal steps: 16 epochs at batch 64 and 8 epochs at batch 64." in budgets(
        replace(record, runs=(longer, *record.runs[1:]))
    )


def test_without_a_search_that_is_said() -> None:
    assert budgets(study({}))[0] == "No learning rate was searched: every cell took the one that the study names."
