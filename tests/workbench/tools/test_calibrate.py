"""``workbench calibrate``: trained studies of known truth, and what the command writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusion_workbench.cli.main import app
from fusion_workbench.reports.calibration.checks import FALSE_VERDICT, PLANTED, REAL_AA
from fusion_workbench.reports.calibration.table import load
from fusion_workbench.tools.planted_studies import PAIRS, aliased, aliased_study, named, planted_study


@pytest.fixture
def workspace(mlflow_template: Path, tmp_path: Path) -> Path:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


@pytest.mark.long  # trains 220 cells
def test_a_study_names_the_planted_layers(workspace: Path) -> None:
    moved: list[int] = []
    row = named(1, 4, workspace, moved.append)
    assert (row.check, row.count, row.total) == (PLANTED, 1, 1)
    assert moved == [1]


def test_every_planted_study_is_another() -> None:
    studies = [planted_study(pair, seed) for pair in PAIRS for seed in (0, 1)]
    assert len({study.encoder.name for study in studies}) == len(studies)
    aliases = [strategy.alias for strategy in aliased_study(3).strategies]
    assert len(set(aliases)) == len(aliases) > 4


@pytest.mark.long
def test_trained_aliases_are_judged_by_the_report(workspace: Path) -> None:
    row = aliased(1, 4, workspace, lambda _: None)
    assert (row.check, row.total) == (REAL_AA, 1)
    assert row.setting["comparisons"] == 15  # six aliases against three of them, itself left out


def test_the_command_writes_a_table_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion_workbench.tools.calibrate.SHORT", 60)
    result = CliRunner().invoke(app, ["calibrate", "--short", "-q", "--out", str(tmp_path / "out")])
    assert result.exit_code in (0, 1)  # sixty studies a row may miss a bar by chance
    found = load(tmp_path / "out" / "calibration.json")
    assert found["studies"] == 60
    assert {FALSE_VERDICT, "coverage", "false equivalence", "power"} == {r["check"] for r in found["rows"]}
    assert "| 5 replicates" in (tmp_path / "out" / "calibration.md").read_text()
    assert json.dumps(found["mixes"]["median"])


def test_no_pilot_of_that_name_is_said_before_any_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", "--short", "--pilot", "nothing", "-w", str(tmp_path)])
    assert result.exit_code != 0
    assert "holds no MLflow database" in str(result.exception)
