"""Asking and telling: enumeration, sampling, duplicates, and going on after a break."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from test_space import TRAITS

from fusion_workbench.config.study import SearchConfig, SelectionConfig, SpaceConfig, StrategyConfig, StudyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.sweeps.planner import Planner
from fusion_workbench.sweeps.space import Cell, build_space


def planner(journal: Path | None = None, search: SearchConfig | None = None, **keys: Any) -> Planner:
    study = StudyConfig(name="test", **({"strategies": [StrategyConfig(n) for n in TRAITS], "baselines": False} | keys))
    return Planner(build_space(study, 12, TRAITS), search or SearchConfig(), journal, "test")


LISTED: dict[str, Any] = {"selections": [SelectionConfig([3, 6, 9]), SelectionConfig([1, 2])]}
LARGE: dict[str, Any] = {"space": SpaceConfig([2, 3]), "search": SearchConfig(budget=9, keep=3, sampler="tpe")}


def value(cell: Cell) -> float:
    """A made-up objective: the middle is best."""
    return -sum(abs(layer - 6) for layer in cell.selection.layers) / 10


def drain(p: Planner, most: int = 4) -> list[Cell]:
    cells = []
    while asked := p.ask(most):
        for a in asked:
            cells.append(a.cell)
            p.tell(a.cell, value(a.cell))
    return cells


def test_a_listed_study_is_asked_whole_and_once() -> None:
    p = planner(**LISTED)
    cells = drain(p)
    assert p.exhaustive
    assert len(cells) == len({c.id for c in cells}) == 7
    assert {c.id for c in p.finalists()} == {c.id for c in cells}
    assert Counter(t.state for t in p.study.trials) == {TrialState.COMPLETE: 7}


def test_a_small_space_is_enumerated_whole() -> None:
    p = planner(space=SpaceConfig([2], [2, 4, 6, 8]), strategies=[StrategyConfig("concat")])
    assert p.exhaustive
    assert len(drain(p)) == 6


def test_a_large_space_gives_every_strategy_the_same_budget() -> None:
    p = planner(**LARGE)
    cells = drain(p)
    assert not p.exhaustive
    assert Counter(c.strategy for c in cells) == {"deep_only": 1, "average": 9, "concat": 9, "mmfuser": 9}
    assert len({c.id for c in cells}) == len(cells)
    assert Counter(c.strategy for c in p.finalists()) == {"deep_only": 1, "average": 3, "concat": 3, "mmfuser": 3}
    best = max((c for c in cells if c.strategy == "concat"), key=value)
    assert best.id in {c.id for c in p.finalists()}


def test_every_trial_ends_told() -> None:
    p = planner(**LARGE)
    drain(p)
    assert not [t for t in p.study.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]


def test_duplicates_are_answered_with_the_known_value() -> None:
    p = planner(
        strategies=[StrategyConfig("concat")],
        space=SpaceConfig([2], [4, 5, 6, 7]),
        search=SearchConfig(budget=50, sampler="tpe"),
    )
    cells = drain(p)
    assert len(cells) == len({c.id for c in cells}) == 6
    told = {p._decode(t.params).id: t.value for t in p.study.trials if t.state == TrialState.COMPLETE}  # type: ignore[union-attr]
    assert told == {c.id: value(c) for c in cells}


@pytest.mark.parametrize("keys", [LISTED, LARGE], ids=["listed", "sampled"])
def test_a_broken_off_study_goes_on(keys: dict[str, Any], tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    first = planner(journal, **keys)
    told = []
    for a in first.ask(4)[:3]:
        first.tell(a.cell, value(a.cell))
        told.append(a.cell.id)
    waiting = {a.cell.id for a in first.ask(4)}
    del first
    again = planner(journal, **keys)
    adopted = again.ask(len(waiting))
    assert {a.cell.id for a in adopted} == waiting
    rest = drain(again)
    assert not {c.id for c in rest} & set(told)
    whole = drain(planner(**keys))
    assert len(rest) + len(told) == len(whole)
    assert not [t for t in again.study.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]


def test_what_was_killed_between_ask_and_suggest_is_closed(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    first = planner(journal, **LARGE)
    first.study.enqueue_trial({"strategy": "concat"})
    first.study.ask()
    first.study.enqueue_trial({"strategy": "concat"})
    again = planner(journal, **LARGE)
    drain(again)
    assert not [t for t in again.study.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]


def test_a_failed_cell_is_told_and_not_asked_again() -> None:
    p = planner(**LISTED)
    first = p.ask(1)[0].cell
    p.tell(first, None)
    assert first.id not in {c.id for c in drain(p)}


def test_same_seed_same_proposals() -> None:
    assert [c.id for c in drain(planner(**LARGE))] == [c.id for c in drain(planner(**LARGE))]


def test_exhaustive_that_does_not_fit_is_refused() -> None:
    with pytest.raises(WorkbenchError, match=r"raise search\.budget"):
        planner(space=SpaceConfig([3]), search=SearchConfig(sampler="exhaustive"))
