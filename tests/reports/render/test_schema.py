"""report.json keeps to report.schema.json, whatever became of the study."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from synthetic_study import copy_database, tiny

import fusion_workbench.reports as reports
from fusion_workbench.reports import write_report
from fusion_workbench.reports.render.json_csv import REPORT_SCHEMA as SCHEMA

CONCAT, FUSER = ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12)
STATES = ["running", "diverged", "out_of_memory", "pruned", "failed", "killed", "unreadable", "missing"]
STUDIES = {
    "whole": {"strategies": ("average", "concat", "mmfuser")},
    "running": {"status": "RUNNING", "fate": {(CONCAT, 1): "running", (FUSER, 0): "diverged"}},
    "every state": {
        "replicates": 8,
        "singles": (12,),
        "strategies": ("mmfuser",),
        "fate": {(FUSER, i): state for i, state in enumerate(STATES)},
    },
    "begun": {"status": "RUNNING", "singles": (), "selections": (), "planned": False},
    "one replicate": {"replicates": 1},
    "counts": {"errors": ("read",), "look": True},
    "confirmed": {"confirm": (5, 6), "fresh": 5, "errors": ("digit",)},
    "fresh ones running": {"confirm": (5,), "fresh": 2, "status": "RUNNING"},
    "single layers": {"selections": (), "singles": (5, 12)},
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    path = Path(reports.__file__).parent / "render" / "report.schema.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.fixture(scope="module")
def uri(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    made = copy_database(mlflow_template, tmp_path_factory.mktemp("schema"))
    for name, changes in STUDIES.items():
        tiny(**({"name": name, "singles": (12,), "replicates": 2, "examples": 12} | changes)).write(made)
    return made


def test_the_number_is_the_schema_s(schema: dict[str, Any]) -> None:
    assert schema["$id"].endswith(f":{SCHEMA}")
    assert schema["properties"]["schema"]["const"] == SCHEMA


@pytest.mark.parametrize("name", STUDIES)
def test_reports_keep_to_it(name: str, uri: str, schema: dict[str, Any], tmp_path: Path) -> None:
    paths = write_report(uri, name, tmp_path)
    jsonschema.validate(json.loads(paths.json.read_text(encoding="utf-8")), schema, jsonschema.Draft202012Validator)


def test_the_trial_is_in_it(uri: str, tmp_path: Path) -> None:
    plain = json.loads(write_report(uri, "confirmed", tmp_path).json.read_text(encoding="utf-8"))
    trial = plain["trial"]
    assert (trial["fresh_replicates"], trial["ended"]) == ([f"c{n}" for n in range(5)], 5)
    assert trial["winner"] == plain["answer"]["cell"]["cell"]
    assert {word for c in trial["contenders"] for word in c["roles"]} == {"winner", "fusion"}
    assert {b for c in trial["contenders"] for b in c["controls"]} == {"parameters", "flops"}
    assert {c["cell"] for c in trial["comparisons"]} == {trial["winner"], trial["fusion"]}
    assert {left["layer"] for left in trial["left_out"]} == {3, 6, 12}
    assert trial["checks"]
    assert trial["budgets"]
    assert (plain["plan"]["confirm"], plain["plan"]["confirm_share"]) == ([5, 6], 0.5)
    assert sum(f["share"] for f in plain["plan"]["families"]) == pytest.approx(1)  # as planned, not the part for all


def test_so_does_a_comparison_and_what_does_not_is_found(uri: str, schema: dict[str, Any], tmp_path: Path) -> None:
    paths = write_report(uri, "whole", tmp_path, against="counts")
    plain = json.loads(paths.json.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(plain)
    assert plain["against"]["comparisons"]
    assert plain["published"]
    later = plain | {"a key that comes later": 1}
    assert validator.is_valid(later)
    wrong: list[tuple[list[Any], Any]] = [
        (["schema"], 1),
        (["comparisons", 0, "verdict"], "good"),
        (["cells", 0, "levels"], "3,6"),
        (["cells", 0, "states", "0"], "lost"),
        (["against", "comparisons", 0, "paired_by"], "luck"),
        (["published", 0, "read"], "guessed"),
        (["trial", "inflation", "candidates"], 1),
        (["trial", "winner"], 1),
        (["published", 0, "agreement", 0, "tau"], 1.5),
    ]
    for path, value in wrong:
        broken = copy.deepcopy(plain)
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        assert not validator.is_valid(broken), path
    assert set(schema["required"]) == {*schema["properties"]} <= {*plain}
    assert not validator.is_valid({key: value for key, value in plain.items() if key != "plan"})
