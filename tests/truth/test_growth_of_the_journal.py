"""Optuna's journal: small, replaceable, and telling the sampler what it always told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from cases import Kind, case

from fusion_workbench.config.study import SearchConfig, SelectionConfig, SpaceConfig, StrategyConfig, StudyConfig
from fusion_workbench.sweeps import planner as planners
from fusion_workbench.sweeps.planner import Planner
from fusion_workbench.sweeps.space import Cell, Traits, build_space

TRAITS = {
    "deep_only": Traits(uses_levels=False, canonical=dict),
    "average": Traits(uses_levels=True, canonical=dict),
    "concat": Traits(uses_levels=True, canonical=dict),
}
WHOLE: dict[str, Any] = {"space": SpaceConfig([2], list(range(1, 11)))}  # 45 selections, two strategies
SAMPLED: dict[str, Any] = {
    "selections": [SelectionConfig([3, 6, 9])],
    "space": SpaceConfig([2, 3]),
    "search": SearchConfig(budget=9, keep=3, sampler="tpe"),
}


def planner(journal: Path | None, search: SearchConfig | None = None, **keys: Any) -> Planner:
    strategies = [StrategyConfig("concat"), StrategyConfig("average")]
    study = StudyConfig(name="test", strategies=strategies, baselines=False, **keys)
    return Planner(build_space(study, 12, TRAITS), search or SearchConfig(budget=500), journal, "test")


def value(cell: Cell) -> float:
    return -sum(abs(layer - 6) for layer in cell.selection.layers) / 10


def drain(p: Planner, most: int = 4) -> list[str]:
    cells = []
    while asked := p.ask(most):
        for proposal in asked:
            cells.append(proposal.cell.id)
            p.tell(proposal.cell, value(proposal.cell))
    return cells


@case(
    Kind.GROWTH,
    "Optuna is told of some hundred cells after the last training",
    "one line of the journal for a cell, of a length that does not grow with their number; nothing waits for the disk",
)
def test_a_line_for_a_cell(tmp_path: Path) -> None:
    p = planner(tmp_path / "journal", **WHOLE)
    cells = p.finalists()
    assert len(cells) == 90
    for cell in cells:
        p.tell(cell, value(cell))
    lines = (tmp_path / "journal").read_bytes().splitlines()
    assert len(lines) == 1 + len(cells)
    assert max(map(len, lines[1:])) < 3000
    assert len(lines[1]) == pytest.approx(len(lines[-1]), abs=100)
    again = planner(tmp_path / "journal", **WHOLE)
    assert again.scored_cells() == p.scored_cells()
    assert not again.ask(1)


@case(
    Kind.GROWTH,
    "a study samples its cells, and its journal is kept without Optuna's own lock",
    "the same cells are proposed as by Optuna's own storages, whole or broken off",
)
@pytest.mark.parametrize("broken_off", [False, True])
def test_proposals_are_those_of_optunas_own_storages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_off: bool
) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def proposed(name: str) -> list[str]:
        before: list[str] = []
        if broken_off:
            first = planner(tmp_path / name, **SAMPLED)
            for proposal in first.ask(6)[:4]:
                first.tell(proposal.cell, value(proposal.cell))
                before.append(proposal.cell.id)
        return before + drain(planner(tmp_path / name, **SAMPLED))

    ours = proposed("ours")
    assert len(ours) == 20  # two listed cells, and nine of each strategy
    with monkeypatch.context() as patch:
        patch.setattr(planners, "open_journal", lambda path, study: (JournalStorage(JournalFileBackend(str(path))), ""))
        assert proposed("theirs") == ours


@case(
    Kind.KEPT,
    "the last line of Optuna's journal is torn, by a full disk or a kill",
    "cut; the study goes on",
)
@pytest.mark.parametrize("keys", [WHOLE, SAMPLED], ids=["whole", "sampled"])
def test_a_torn_last_line(tmp_path: Path, keys: dict[str, Any]) -> None:
    journal = tmp_path / "journal"
    first = planner(journal, **keys)
    for proposal in first.ask(5):
        first.tell(proposal.cell, value(proposal.cell))
    journal.write_bytes(journal.read_bytes()[:-20])
    again = planner(journal, **keys)
    assert not again.told
    drain(again)
    assert not planner(journal, **keys).ask(1)
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())


@case(
    Kind.KEPT,
    "Optuna's journal is garbled, another program's or another study's file, or a folder",
    "set aside under a name that is told; Optuna is told anew",
)
@pytest.mark.parametrize("how", ["middle", "end", "zeros", "foreign", "list", "other study", "folder"])
def test_a_journal_that_cannot_be_read(tmp_path: Path, how: str) -> None:
    journal = tmp_path / "journal"
    first = planner(journal, **WHOLE)
    drain(first)
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.unlink()
    if how == "folder":
        journal.mkdir()
    elif how == "other study":
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
        optuna.create_study(study_name="another", storage=storage)
    else:
        journal.write_bytes(
            {
                "middle": b"".join([*lines[:10], b'{"op_code": \n', *lines[11:]]),
                "end": content + b"\xff\xfe\n",
                "zeros": content[:500] + bytes(300) + content[800:],
                "foreign": b"a,b\n1,2\n",
                "list": b"[]\n",
            }[how]
        )
    again = planner(journal, **WHOLE)
    aside = tmp_path / "journal.unreadable"
    assert str(aside) in again.told
    assert aside.exists()
    assert sorted(drain(again)) == sorted(cell.id for cell in first.finalists())
    assert again.scored_cells() == first.scored_cells()


def test_a_study_whose_plug_ins_changed_keeps_its_journal(tmp_path: Path) -> None:
    """Its name in Optuna goes on after its id, so the former trials stay, and count for nothing."""
    drain(planner(tmp_path / "journal", **WHOLE))
    strategies = [StrategyConfig("concat"), StrategyConfig("average")]
    study = StudyConfig(name="test", strategies=strategies, baselines=False, **WHOLE)
    space = build_space(study, 12, TRAITS)
    again = Planner(space, SearchConfig(budget=500), tmp_path / "journal", "test-0123456789abcdef")
    assert not again.told
    assert not again.scored_cells()
    assert planner(tmp_path / "journal", **WHOLE).scored_cells()


@case(
    Kind.KEPT,
    "the journal of a study that samples its cells is lost",
    "told anew from the ledger: the same cells are the best, and no other ones are trained",
)
def test_a_lost_journal_of_a_sampled_space(tmp_path: Path) -> None:
    first = planner(tmp_path / "first", **SAMPLED)
    drain(first)
    again = planner(tmp_path / "again", **SAMPLED)
    for cell, number in first.scored_cells():
        again.recall(cell, number)
    assert not again.ask(1)
    assert {cell.id for cell in again.finalists()} == {cell.id for cell in first.finalists()}
    assert dict(again.scored_cells()) == dict(first.scored_cells())
    reopened = planner(tmp_path / "again", **SAMPLED)
    assert not reopened.ask(1)
    assert dict(reopened.scored_cells()) == dict(first.scored_cells())


@case(
    Kind.KEPT,
    "Optuna was interrupted while it gave its own lock back",
    "Optuna has no lock of its own: the study's keeps other processes out",
)
def test_no_lock_of_optunas_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.storages.journal import JournalFileSymlinkLock

    def refuse(self: JournalFileSymlinkLock) -> bool:
        raise AssertionError("a lock was taken")

    (tmp_path / "journal.lock").symlink_to(tmp_path / "journal")  # what a killed 0.1.0 left
    monkeypatch.setattr(JournalFileSymlinkLock, "acquire", refuse)
    drain(planner(tmp_path / "journal", **SAMPLED))
    assert not (tmp_path / "journal.lock").is_symlink()
