"""A study of two cells that is trained in seconds, and the command line to run it by, for tests of whole workspaces."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

_TEXT = """
name: small
question: Is it kept?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 12}}}}
strategies: [{{name: concat}}, {{name: average}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.001, 0.003]}}
training: {{epochs: 2, batch_size: 8, head_hidden: 16, bank_size: 4}}
"""
ROWS = 6  # two cells at two rates on the search replicate, and one replicate of each
_EACH_TIME = {"started", "ended", "run", "experiment", "experiment_id", "tracking_uri", "command"}


def write_study(file: Path, encoder: Path) -> Path:
    """The study's YAML as ``file``."""
    file.write_text(_TEXT.format(encoder=encoder), encoding="utf-8")
    return file


def workbench(*words: str | Path) -> tuple[int, str]:
    """A command line's exit status, and what it said; a mistake of the user's as the line that it is told in."""
    from mlflow.tracking._tracking_service import utils

    from fusion_workbench.cli.main import app
    from fusion_workbench.core.errors import WorkbenchError

    utils._artifact_repos_cache.clear()  # MLflow's, of where runs lie: a command of a user's begins without
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, WorkbenchError):
        return 2, f"error: {result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def sweep(file: Path, workspace: Path, *words: str) -> str:
    """Run the study, or go on with it, to its end with a report; what the command line said."""
    status, said = workbench("sweep", file, *words, "-w", workspace, "-q")
    assert status == 0, said
    return said


def reported(workspace: Path) -> dict[str, Any]:
    """The study's ``report.json`` without ids and times."""
    plain = json.loads((workspace / "reports" / "small" / "report.json").read_text(encoding="utf-8"))
    plain["runs"].sort(key=lambda run: (run["cell"], run["phase"], run["replicate"], run["lr"]))
    return dict(_without(plain))


def ledger(workspace: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(variant, replicate) → MLflow run and result."""
    (path,) = workspace.glob("studies/*/ledger.db")
    database = sqlite3.connect(path)
    rows = database.execute("SELECT variant, replicate, run_id, result FROM entries WHERE state = 'done'").fetchall()
    database.close()
    return {(variant, replicate): (run, result) for variant, replicate, run, result in rows}


def results(workspace: Path) -> dict[tuple[str, str], str]:
    """What the ledger holds, whatever the runs are called."""
    return {key: result for key, (_, result) in ledger(workspace).items()}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder: time of its last change, and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _without(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _without(value) for key, value in plain.items() if key not in _EACH_TIME}
    return [_without(value) for value in plain] if isinstance(plain, list) else plain
