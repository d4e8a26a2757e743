"""MLflow → record: a real SQLite MLflow, studies in every state."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from synthetic_study import cell_id, copy_database, tiny

from fusion_workbench.config.plan import PlanConfig, full_plan
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.schema.plan import plan_hash
from fusion_workbench.system.mlflow_uri import without_password

L5, L12, CONCAT, FUSER = ("deep_only", (), 5), ("deep_only", (), 12), ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12)


@pytest.fixture
def uri(mlflow_template: Path, tmp_path: Path) -> str:
    return copy_database(mlflow_template, tmp_path)


def test_a_finished_study(small_uri: str) -> None:
    record = read_study(small_uri, "synthetic")
    assert (len(record.cells), record.replicates) == (11, tuple("01234"))
    assert record.counts() == {"finished": 55}
    assert record.complete
    assert [t.name for t in record.tasks] == ["read", "digit"]
    assert record.groups == ("astronaut", "chelsea", "coffee", "rocket")
    assert record.notes == ()
    example_scores = record.example_scores[cell_id(("concat", (3, 6, 9), 12)), "read", "test"]
    assert example_scores.scores.shape == (5, 80)
    assert example_scores.replicates == tuple("01234")
    run = record.finals(cell_id(("concat", (3, 6, 9), 12)))[0]
    assert example_scores.scores[0].mean() == pytest.approx(run.metrics["test/read/accuracy"])
    assert [step for step, _ in run.history["train/loss"]] == [0, 1, 2]
    assert {r.phase for r in record.runs} == {"search", "final"}


def test_by_id_and_by_experiment(small_uri: str) -> None:
    by_name = read_study(small_uri, "synthetic", "fusion-workbench")
    assert read_study(small_uri, by_name.study_id).run_id == by_name.run_id


def test_every_fate_is_listed(uri: str) -> None:
    fate = {(L5, 0): "diverged", (L12, 1): "out_of_memory", (CONCAT, 2): "running", (FUSER, 0): "missing"}
    fate |= {(FUSER, 1): "unreadable", (CONCAT, 0): "pruned"}
    tiny(fate=fate, status="RUNNING").write(uri)
    record = read_study(uri, "synthetic")
    expected = {"diverged", "out_of_memory", "running", "missing", "unreadable", "pruned"}
    assert record.counts() == {"finished": 6} | dict.fromkeys(expected, 1)
    assert not record.complete
    assert [r.replicate for r in record.finals(cell_id(L5))] == ["1", "2"]
    assert (cell_id(FUSER), "read", "test") in record.example_scores
    assert record.example_scores[cell_id(FUSER), "read", "test"].replicates == ("2",)
    assert any("cannot be read" in note for note in record.notes)


def test_a_child_left_running_by_a_kill_was_killed(uri: str) -> None:
    tiny(fate={(CONCAT, 2): "running"}, status="KILLED").write(uri)
    assert read_study(uri, "synthetic").counts() == {"finished": 11, "killed": 1}


def test_a_study_stopped_before_its_plan_was_written(uri: str) -> None:
    tiny(planned=False, status="KILLED", fate={(FUSER, r): "missing" for r in range(3)}).write(uri)
    record = read_study(uri, "synthetic")
    assert {c.label for c in record.cells} == {"deep_only 5", "deep_only 12", "concat [3,6]→12"}
    assert record.counts() == {"finished": 9}


def test_the_latest_study_of_a_name_counts(uri: str) -> None:
    tiny(replicates=1).write(uri)
    later = tiny(replicates=2).write(uri)
    assert read_study(uri, "synthetic").run_id == later


def test_a_retrained_replicate_counts_once(uri: str) -> None:
    from mlflow.tracking import MlflowClient

    parent = tiny(fate={(CONCAT, 0): "diverged"}).write(uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(parent).info.experiment_id
    for status in ("KILLED", "FAILED"):  # other attempts at what is finished
        tags = {
            "mlflow.parentRunId": parent,
            "workbench.cell": cell_id(L5),
            "workbench.phase": "final",
            "workbench.replicate": "0",
        }
        client.set_terminated(client.create_run(experiment, tags=tags).info.run_id, status)
    assert read_study(uri, "synthetic").counts() == {"finished": 11, "diverged": 1}


def test_a_study_that_is_not_there(small_uri: str) -> None:
    with pytest.raises(WorkbenchError, match=r"no study 'nope'.*There are: synthetic\."):
        read_study(small_uri, "nope")
    with pytest.raises(WorkbenchError, match=r"no experiment 'nope'.*fusion-workbench"):
        read_study(small_uri, "synthetic", "nope")


def test_an_empty_mlflow(uri: str) -> None:
    with pytest.raises(WorkbenchError, match="It holds none yet"):
        read_study(uri, "any")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    missing, text, other = tmp_path / "missing.db", tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("not a database, and long enough to look like one " * 40)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE runs (x)")
    for uri, words in [
        (f"sqlite:///{missing}", "there is no file"),
        (f"sqlite:///{text}", "no SQLite database"),
        (f"sqlite:///{other}", "not one of MLflow's"),
        (str(tmp_path), "is a folder"),
        (tmp_path.as_uri(), "is a folder"),
        ("nonsense://place", "cannot be opened"),
    ]:
        with pytest.raises(WorkbenchError, match=words):
            read_study(uri, "any")
    assert not missing.exists()  # reading makes no database


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(WorkbenchError, match="cannot be opened"):
        read_study("http://127.0.0.1:9", "any")


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://me:secret@host:5432/db") == "postgresql://me:…@host:5432/db"
    assert without_password("sqlite:///mlflow.db") == "sqlite:///mlflow.db"


def test_a_plan_that_was_lost_or_altered_is_told(uri: str) -> None:
    """Its hash was tracked before the first run: that is what the hash is for."""
    from mlflow.tracking import MlflowClient

    tiny().write(uri)
    run, client = read_study(uri, "synthetic").run_id, MlflowClient(tracking_uri=uri)
    plan = full_plan(PlanConfig(), ["read", "digit"], 3)
    client.set_tag(run, "workbench.plan", plan_hash(plan))
    (lost,) = read_study(uri, "synthetic").departures
    assert lost == f"plan.json, tracked with the hash {plan_hash(plan)}, is missing or cannot be read"
    looser = plan | {"level": 0.2}
    for first, changes, told in ((plan, [], 0), (plan, 5, 0), (plan, ["level"], 1), (looser, [], 1)):
        client.log_dict(run, {"plan": first, "first": first, "changes": changes}, "plan.json")
        assert len(read_study(uri, "synthetic").departures) == told
    assert "does not have the hash that was tracked" in read_study(uri, "synthetic").departures[0]
