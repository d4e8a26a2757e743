"""Contract 6, whole variant-replicates: SIGKILL a study at random moments, then the same command."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import optuna
import pytest

STUDY = """
name: killed
question: Does it survive?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 32, val: 8, test: 8}}}}
strategies: [{{name: deep_only}}, {{name: concat}}, {{name: average}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: {replicates}
search: {{learning_rates: [0.001, 0.003]}}
training: {{epochs: 3, batch_size: 8, head_hidden: 16, bank_size: 2}}
tracking: {{uri: "{uri}"}}
"""


def command(file: Path, workspace: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "fusion_workbench.cli.main",
        "sweep",
        str(file),
        "--workspace",
        str(workspace),
        "--no-report",
    ]


def done_rows(workspace: Path) -> dict[tuple[str, str], str]:
    """(variant, replicate) → run id of what is committed."""
    rows: dict[tuple[str, str], str] = {}
    for path in workspace.glob("studies/*/ledger.db"):
        with sqlite3.connect(path) as db:
            query = "SELECT variant, replicate, run_id FROM entries WHERE state = 'done'"
            with suppress(sqlite3.OperationalError):  # killed before its tables were made
                rows |= {(variant, replicate): run for variant, replicate, run in db.execute(query)}
    return rows


@pytest.mark.parametrize(("kills", "replicates"), [(3, 3), pytest.param(12, 20, marks=pytest.mark.long)])
def test_kill_anywhere_then_the_same_command(
    kills: int, replicates: int, tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    """The study is long enough that no kill comes after its end."""
    from mlflow.tracking import MlflowClient

    file = tmp_path / "killed.yaml"
    file.write_text(STUDY.format(encoder=tiny_dinov2, uri=mlflow_uri, replicates=replicates))
    workspace = tmp_path / "workspace"
    draw = random.Random(kills)
    committed: dict[tuple[str, str], str] = {}
    for _ in range(kills):
        with subprocess.Popen(
            command(file, workspace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            before = len(committed)
            while process.poll() is None and len(done_rows(workspace)) <= before:
                time.sleep(0.05)  # until something new is committed: then anywhere after
            time.sleep(draw.random())
            os.killpg(process.pid, signal.SIGKILL)
        now = done_rows(workspace)
        assert committed.items() <= now.items(), "a committed variant-replicate was lost or trained again"
        committed = now
    assert committed

    last = subprocess.run(command(file, workspace), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    final = done_rows(workspace)
    assert committed.items() <= final.items()
    ended = Counter("fresh" if replicate.startswith("c") else replicate for _, replicate in final)
    with sqlite3.connect(next(workspace.glob("studies/*/ledger.db"))) as db:
        (told,) = db.execute("SELECT value FROM facts WHERE name = 'contenders'").fetchone()
    contenders = {entry["cell"] for entry in json.loads(told)}
    assert len(contenders) > 3  # picked once, whatever was killed meanwhile, controls and left-out layers among them
    assert {ended[str(r)] for r in range(replicates)} == {3}
    assert ended["fresh"] == 5 * len(contenders)

    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name("fusion-workbench")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert not [r for r in runs if r.info.status in ("RUNNING", "SCHEDULED")]
    parents = [r for r in runs if r.data.tags["workbench.kind"] == "study"]
    finished = {
        r.info.run_id
        for r in runs
        if r.data.tags["workbench.kind"] == "variant-replicate" and r.info.status == "FINISHED"
    }
    assert finished == set(final.values())
    assert Counter(p.info.status for p in parents)["FINISHED"] == 1
    (journal,) = workspace.glob("studies/*/optuna.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    (summary,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    assert Counter(t.state.name for t in trials) == {"COMPLETE": 3}
