"""What a study writes down is what a report reads back, and the words of old studies stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from fusion_workbench.config.plan import FamilyConfig, PlanConfig, full_plan
from fusion_workbench.core.layers import Selection
from fusion_workbench.schema.language import LanguageModel
from fusion_workbench.schema.names import RunStatus, Status, Tag, closing_status
from fusion_workbench.schema.plan import Plan, TrackedPlan, plan_hash
from fusion_workbench.schema.records import Cell, Contender, Task, TrackedSource
from fusion_workbench.sweeps.space import Cell as SpaceCell

FUSED = SpaceCell("mmfuser", Selection((3, 6), 12), (("heads", 2), ("kind", "global")), "mine", ("middle concat",))
ALONE = SpaceCell("deep_only", Selection((), 12), baselines=("deepest layer", "single layer"))


def through_json(plain: Any) -> Any:
    return json.loads(json.dumps(plain))


@pytest.mark.parametrize("cell", [FUSED, ALONE])
def test_a_cell_is_read_as_it_was_written(cell: SpaceCell) -> None:
    tracked = cell.tracked(0.003)
    assert (tracked.id, tracked.label, tracked.selection) == (cell.id, cell.label, cell.selection)
    assert Cell.read(through_json(tracked.plain())) == tracked
    contender = Contender(tracked, ("winner",), (("read", "deepest layer"),), ("flops",), 3)
    assert Contender.read(through_json(contender.plain())) == contender


@pytest.mark.parametrize("cell", [FUSED, ALONE])
def test_a_run_s_params_tell_its_cell(cell: SpaceCell) -> None:
    tracked = cell.tracked(0.003)
    found = Cell.read_params(cell.id, {key: str(value) for key, value in tracked.params().items()}, 0.003)
    assert (found.id, found.strategy, found.selection, found.alias) == (
        *(cell.id, cell.strategy, cell.selection),
        cell.alias,
    )
    assert found.options == {key: str(value) for key, value in cell.options}
    assert found.chosen_lr == 0.003


def test_what_describes_no_cell_is_told_apart_from_what_lacks_something() -> None:
    plain = FUSED.tracked(0.1).plain()
    for key in ("cell", "strategy", "query"):
        with pytest.raises(KeyError, match=key):
            Cell.read({k: v for k, v in plain.items() if k != key})
    for nonsense in ("a word", 3, None, []):
        with pytest.raises((TypeError, AttributeError)):
            Cell.read(nonsense)  # type: ignore[arg-type]
    bare = Cell.read({"cell": "a", "strategy": "average", "query": "4", "later": "unknown"})
    assert bare == Cell("a", "average", (), 4, "average")


def test_tasks_sources_and_language_models_are_read_as_they_were_written() -> None:
    task = Task("seg", "iou", "maximize", 0.1, "segments", "share", 1.0, ("inter", "union"), 0.2)
    assert Task.read("seg", through_json(task.plain())) == task
    assert Task.read("seg", {"chance": "?", "ratio": ["one"], "unit": None}) == Task("seg")
    assert Task.read("seg", "nonsense") == Task("seg")
    each = {"train": ("a", "b"), "val": ()}
    source = TrackedSource(
        "crowns", "crowns/1", {"test": "ab"}, {"test": 3}, {"read": ("x",)}, each, {"val": 9}, "tree"
    )
    assert TrackedSource.read(through_json(source.plain())) == source
    assert TrackedSource.read({"groups": 3, "sizes": [], "fingerprints": {"test": None}}) == TrackedSource()
    model = LanguageModel("tiny", "main", 10, 8, 2, ("connector", "tune"), "cheap", False)
    stages = [{"name": "connector", "epochs": 1}, {"name": "tune", "epochs": 2}]
    assert LanguageModel.read(through_json(model.plain(stages, {"test": "ab"}, 16))) == model


def test_a_plan_is_read_as_it_was_written() -> None:
    config = PlanConfig(primary="read", families=[FamilyConfig(["read"], 0.7)], looks=[5, 10], confirm=[5])
    plain = full_plan(config, ["read", "digit"], 10)
    assert Plan.read(through_json(plain)).plain() == plain
    tracked = TrackedPlan(plain, plain, ("later",), 5, None)
    written = through_json(tracked.plain())
    assert written["hash"] == plan_hash(plain)
    assert TrackedPlan.read(written) == tracked
    assert TrackedPlan.read({"plan": None, "first": "?", "changes": {}, "stopped": "5"}) == TrackedPlan({}, {})


@pytest.mark.parametrize(
    ("run", "written", "parent", "status"),
    [
        ("FINISHED", "finished", "FINISHED", "finished"),
        ("FINISHED", "pruned", "FINISHED", "pruned"),  # nothing prunes today; studies that did are read
        ("FAILED", "diverged", "RUNNING", "diverged"),
        ("RUNNING", "", "RUNNING", "running"),
        ("SCHEDULED", "", "FINISHED", "killed"),
        ("RUNNING", "finished", "KILLED", "killed"),  # the commit was cut off before MLflow was told
        ("KILLED", "", "RUNNING", "killed"),
        ("FINISHED", "", "FINISHED", "failed"),
        ("FAILED", "of another version", "FINISHED", "failed"),
    ],
)
def test_a_status_is_read_in_one_way(run: str, written: str, parent: str, status: str) -> None:
    assert Status.read(run, written, parent) == status


def test_mlflow_is_told_what_became_of_a_run() -> None:
    told: Mapping[str | None, str] = {status: closing_status(status) for status in Status}
    assert {status for status, word in told.items() if word == "FINISHED"} == {"finished", "pruned"}
    assert RunStatus.of_error(KeyboardInterrupt()) == "KILLED"
    assert RunStatus.of_error(ValueError()) == "FAILED"


def test_tags_of_old_studies_stand() -> None:
    names = "kind study schema folder question command commit versions device plan numerics metrics"
    names += " study_id cell variant phase replicate outcome dependencies environment code error restored sha256"
    assert {str(tag) for tag in Tag} == {f"workbench.{name}" for name in names.split()} | {"mlflow.parentRunId"}
