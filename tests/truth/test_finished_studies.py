"""What was trained is trained: no other MLflow, no lost database and no moved folder throws a finished study away."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cases import Kind, case
from small_study import ROWS, contents, ledger, reported, results, sweep, workbench, write_study
from unpacking import differences, expected, unpack

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


@pytest.fixture(scope="module")
def finished(tiny_dinov2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study file, and a workspace in which the study is done. Tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_study(folder / "small.yaml", tiny_dinov2)
    sweep(file, folder / "workspace")
    return file, folder / "workspace"


@pytest.fixture
def study(finished: tuple[Path, Path]) -> Path:
    return finished[0]


@pytest.fixture
def workspace(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[1], tmp_path / "workspace"))


def client(workspace: Path) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")


def children(workspace: Path, experiment: str = "fusion-workbench") -> list[Any]:
    found = client(workspace).get_experiment_by_name(experiment)
    assert found is not None
    runs = client(workspace).search_runs([found.experiment_id], max_results=1000)
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def test_a_finished_study_holds_what_these_tests_are_about(workspace: Path) -> None:
    assert len(ledger(workspace)) == ROWS == len(children(workspace))
    assert reported(workspace)["runs"]


# --- another place in MLflow ----------------------------------------------------------------------------------------


@case(
    Kind.KEPT,
    "a finished study goes on under another tracking.experiment, and then under the first again",
    "its runs are written there again, curves included, and found again on the way back; nothing is trained",
)
def test_another_experiment(study: Path, workspace: Path) -> None:
    before, rows = reported(workspace), results(workspace)
    first = {run for run, _ in ledger(workspace).values()}
    said = sweep(study, workspace, "tracking.experiment=other")
    assert "trained 0, kept 6" in said
    assert "6 runs were not in experiment 'other'" in said
    assert "written there again" in said
    assert reported(workspace) == before
    assert results(workspace) == rows
    other = children(workspace, "other")
    assert len(other) == ROWS
    assert {run.info.status for run in other} == {"FINISHED"}
    assert {run.data.tags["workbench.restored"] for run in other} == first
    for run in other:
        old = client(workspace).get_run(run.data.tags["workbench.restored"])
        assert run.data.metrics == old.data.metrics
        assert run.data.params == old.data.params
        curves = [client(workspace).get_metric_history(r.info.run_id, "train/loss") for r in (run, old)]
        assert len(curves[0]) == 2, "an epoch each"
        assert len({tuple((point.step, point.value) for point in curve) for curve in curves}) == 1
    again = sweep(study, workspace)
    assert "trained 0, kept 6" in again
    assert "6 runs of before were found in experiment 'fusion-workbench'" in again
    assert {run for run, _ in ledger(workspace).values()} == first
    assert len(children(workspace)) == ROWS, "nothing is there twice"
    assert reported(workspace) == before


@case(
    Kind.KEPT,
    "a finished study goes on under another tracking.uri",
    "its runs are written there again; nothing is trained",
)
def test_another_database(study: Path, workspace: Path, tmp_path: Path) -> None:
    before, rows = reported(workspace), results(workspace)
    said = sweep(study, workspace, f"tracking.uri=sqlite:///{tmp_path}/elsewhere/mlflow.db")
    assert "trained 0, kept 6" in said
    assert "6 runs were not in experiment 'fusion-workbench' of MLflow at sqlite:///" in said
    assert (reported(workspace), results(workspace)) == (before, rows)
    assert "trained 0, kept 6" in sweep(study, workspace)
    assert (reported(workspace), results(workspace)) == (before, rows)


@case(
    Kind.KEPT,
    "mlflow.db of the workspace is gone, or an empty file",
    "a new one is filled from the ledger and the artifacts; nothing is trained, the report says the same",
)
@pytest.mark.parametrize("emptied", [False, True])
def test_a_lost_database(finished: tuple[Path, Path], study: Path, workspace: Path, emptied: bool) -> None:
    before, rows = reported(workspace), results(workspace)
    old = {run.info.run_id: run for run in children(finished[1])}  # MLflow would keep the copy's file open
    (workspace / "mlflow.db").unlink()
    if emptied:
        (workspace / "mlflow.db").touch()
    said = sweep(study, workspace)
    assert "trained 0, kept 6" in said
    assert "6 runs were not in experiment" in said
    assert (reported(workspace), results(workspace)) == (before, rows)
    for run in children(workspace):
        was = old[run.data.tags["workbench.restored"]]
        assert run.data.metrics == was.data.metrics
        assert run.data.params == was.data.params
        assert run.info.run_name == was.info.run_name
        kept = {key: value for key, value in was.data.tags.items() if key.startswith("workbench.")}
        assert kept.items() <= run.data.tags.items()


# --- deleted in MLflow ----------------------------------------------------------------------------------------------


@case(
    Kind.KEPT,
    "a run of a finished study was deleted in MLflow's pages",
    "restored, with a line; the same command does not train it again",
)
def test_a_deleted_run(study: Path, workspace: Path) -> None:
    before, rows = reported(workspace), ledger(workspace)
    client(workspace).delete_run(next(iter(rows.values()))[0])
    said = sweep(study, workspace)
    assert "1 run was deleted in MLflow; restored" in said
    assert "trained 0, kept 6" in said
    assert (reported(workspace), ledger(workspace)) == (before, rows)


@case(
    Kind.KEPT,
    "the experiment, or the study's parent run, was deleted in MLflow's pages",
    "restored, with a line; nothing is trained",
)
@pytest.mark.parametrize("what", ["experiment", "parent"])
def test_a_deleted_experiment(study: Path, workspace: Path, what: str) -> None:
    before, rows = reported(workspace), ledger(workspace)
    mlflow, child = client(workspace), children(workspace)[0]
    if what == "experiment":
        mlflow.delete_experiment(child.info.experiment_id)
    else:
        mlflow.delete_run(child.data.tags["mlflow.parentRunId"])
    said = sweep(study, workspace)
    assert "deleted in MLflow; it is restored" in said
    assert (reported(workspace), ledger(workspace)) == (before, rows)
    assert "trained 0, kept 6" in said


# --- lost for good --------------------------------------------------------------------------------------------------


@case(
    Kind.KEPT,
    "MLflow's database and the artifacts of finished runs are both gone",
    "refused, says how many and what to bring back; --retrain-lost trains just these again",
)
def test_nowhere_found(study: Path, workspace: Path) -> None:
    before, rows = results(workspace), ledger(workspace)
    (workspace / "mlflow.db").unlink()
    final = [run for (_, replicate), (run, _) in rows.items() if replicate == "0"]
    shutil.rmtree(workspace / "mlartifacts" / final[0])
    status, said = workbench("sweep", study, "-w", workspace, "-q")
    assert status == 2
    assert "1 of 6 finished variant-replicates are in no MLflow" in said
    assert "--retrain-lost" in said
    assert "\n" not in said.strip()
    assert ledger(workspace) == rows
    said = sweep(study, workspace, "--retrain-lost")
    assert "1 run is lost and trained again" in said
    assert "trained 1, kept 5" in said
    assert _trained(results(workspace)) == _trained(before)


def _trained(rows: dict[tuple[str, str], str]) -> dict[tuple[str, str], dict[str, float]]:
    """Metrics without what the machine took for them."""
    return {
        key: {name: value for name, value in json.loads(result).items() if not name.startswith("cost/")}
        for key, result in rows.items()
    }


@case(
    Kind.KEPT,
    "MLflow's database is gone, and scores among the artifacts are not what the ledger remembers",
    "refused: they are not written into a new one",
)
def test_damaged_artifacts_are_not_restored(study: Path, workspace: Path) -> None:
    from hashlib import sha256

    from fusion_workbench.study.ledger import Ledger

    (path,) = workspace.glob("studies/*/ledger.db")
    book = Ledger(path)
    entry = next(entry for entry in book.entries() if entry.replicate == "0")
    folder = workspace / "mlartifacts" / str(entry.run_id) / "artifacts"
    files = {p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.*")}
    book.finish(entry.variant, entry.replicate, str(entry.status), entry.result, files)
    book.close()
    scores = folder / "outcomes" / "test.parquet"
    content = bytearray(scores.read_bytes())
    content[100] ^= 1
    scores.write_bytes(content)
    (workspace / "mlflow.db").unlink()
    status, said = workbench("sweep", study, "-w", workspace, "-q")
    assert status == 2
    assert "are not, or not whole, in" in said


@case(
    Kind.KEPT,
    "killed while lost runs are being written again",
    "the next start goes on with what is missing; nothing is there twice, nothing is trained",
)
@pytest.mark.parametrize(("moment", "written"), [("files", 0), ("files", 2), ("move", 2)])
def test_killed_while_writing(
    study: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, moment: str, written: int
) -> None:
    from mlflow.tracking import MlflowClient

    from fusion_workbench.study.ledger import Ledger

    class Killed(BaseException):
        pass

    before, rows = reported(workspace), results(workspace)
    done: list[str] = []

    def kill() -> None:
        done.append(moment)
        if len(done) > written:
            raise Killed

    def log_artifacts(self: MlflowClient, run_id: str, *more: Any, **named: Any) -> None:
        if self.get_run(run_id).data.tags.get("workbench.restored"):
            kill()
        real_log(self, run_id, *more, **named)

    def move(self: Ledger, *arguments: str) -> None:
        kill()
        real_move(self, *arguments)

    real_log, real_move = MlflowClient.log_artifacts, Ledger.move
    (workspace / "mlflow.db").unlink()
    with monkeypatch.context() as patch:
        if moment == "files":
            patch.setattr(MlflowClient, "log_artifacts", log_artifacts)
        else:
            patch.setattr(Ledger, "move", move)
        with pytest.raises(Killed):
            workbench("sweep", study, "-w", workspace, "-q")
    assert results(workspace) == rows
    said = sweep(study, workspace)
    assert "trained 0, kept 6" in said
    assert (reported(workspace), results(workspace)) == (before, rows)
    runs = children(workspace)
    assert not [run for run in runs if run.info.status == "RUNNING"]
    assert sorted(run.info.run_id for run in runs if run.info.status == "FINISHED") == sorted(
        run for run, _ in ledger(workspace).values()
    )


@case(
    Kind.KEPT,
    "the journal of a study that samples its cells is damaged, and its sampler would propose other cells now",
    "set aside, with a line; the cells are read from the runs that the ledger knows, and nothing is trained",
)
def test_a_sampled_study_without_its_journal(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    from fusion_workbench.sweeps import planner

    workspace = tmp_path / "workspace"
    words = ["selections=[]", "space={count: [1]}", "strategies=[{name: concat}]", "--no-report"]
    words += ["search={learning_rates: [0.001, 0.003], sampler: random, budget: 2, keep: 1}"]
    assert "trained 5, kept 0" in sweep(study, workspace, *words)
    rows = ledger(workspace)
    (journal,) = workspace.glob("studies/*/optuna.journal")
    proposed = journal.read_text(encoding="utf-8")
    journal.write_text("what is this?\n", encoding="utf-8")
    monkeypatch.setattr(planner, "_sampler", lambda search: optuna.samplers.RandomSampler(seed=12345))
    said = sweep(study, workspace, *words)
    assert "Optuna's journal cannot be read" in said
    assert "trained 0, kept 5" in said
    assert ledger(workspace) == rows
    assert proposed.count('"state":1') >= 2
    assert journal.with_name("optuna.journal.unreadable").is_file()


# --- workspaces that move -------------------------------------------------------------------------------------------


@case(
    Kind.KEPT,
    "a workspace is moved or renamed, to a path with spaces, umlauts, # and %",
    "report, export and sweep find its artifacts; new ones go to the new place, and the old one does not come back",
)
def test_a_moved_workspace(study: Path, workspace: Path, tmp_path: Path) -> None:
    before, moved = reported(workspace), tmp_path / "wörk space #2 100%"
    workspace.rename(moved)
    assert workbench("report", "small", "-w", moved)[0] == 0
    assert reported(moved) == before
    assert workbench("export", "small", "-w", moved, "--no-log", "--out", tmp_path / "out")[0] == 0
    said = sweep(study, moved, "replicates=2")
    assert "the workspace was at" in said
    assert "trained 2, kept 6" in said
    assert not workspace.exists()
    assert {run.info.status for run in children(moved)} == {"FINISHED"}
    assert all(Path(str(moved / "mlartifacts" / run.info.run_id)).is_dir() for run in children(moved))
    with contextlib.closing(sqlite3.connect(moved / "mlflow.db")) as database:
        places = database.execute("SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM experiments")
        here = (moved / "mlartifacts").as_uri()
        assert {uri for (uri,) in places if not uri.startswith(here)} <= {_default(database)}
    assert "was at" not in sweep(study, moved, "replicates=2")


def _default(database: sqlite3.Connection) -> str:
    """The place of the experiment that MLflow makes by itself."""
    ((place,),) = database.execute("SELECT artifact_location FROM experiments WHERE name = 'Default'").fetchall()
    return str(place)


@case(
    Kind.KEPT,
    "a workspace is copied, and a study goes on in the copy",
    "nothing is written into the original, and both report as before",
)
def test_a_copied_workspace(study: Path, workspace: Path, tmp_path: Path) -> None:
    sweep(study, workspace)  # it now knows that it lies here
    before, original = reported(workspace), contents(workspace)
    copy = Path(shutil.copytree(workspace, tmp_path / "copy"))
    assert "trained 2, kept 6" in sweep(study, copy, "replicates=2")
    assert contents(workspace) == original
    assert workbench("report", "small", "-w", workspace)[0] == 0
    assert reported(workspace) == before


@case(
    Kind.KEPT,
    "one workspace is used in turn under two paths, as a container and its host do",
    "both find and write artifacts",
)
def test_two_paths_in_turn(study: Path, workspace: Path, tmp_path: Path) -> None:
    before, mounted = reported(workspace)["runs"], tmp_path / "mounted"
    for replicates, (here, there) in enumerate([(mounted, workspace), (workspace, mounted)], 2):
        there.rename(here)
        assert f"trained 2, kept {2 + 2 * replicates}" in sweep(study, here, f"replicates={replicates}")
        assert not there.exists()
        runs = reported(here)["runs"]
        assert [run["state"] for run in runs] == ["finished"] * (4 + 2 * replicates)
        assert not [run for run in before if run not in runs]


@case(
    Kind.KEPT,
    "a study runs in a workspace that is used under another path at the same time",
    "refused: artifacts of the running study would go astray",
)
def test_a_running_study_knows_another_path(study: Path, workspace: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    mounted = tmp_path / "mounted"
    workspace.rename(mounted)
    running = mounted / "studies" / "another-0123456789abcdef"
    running.mkdir()
    with FileLock(running / "lock"):
        status, said = workbench("sweep", study, "-w", mounted, "-q")
    assert status == 2
    assert f"the study in {running} is running and knows {mounted} under another path" in said


@case(
    Kind.KEPT,
    "the database of a moved workspace also holds runs of another program, in a place of their own",
    "their places stay as they are",
)
def test_other_programs_are_left_alone(study: Path, workspace: Path, tmp_path: Path) -> None:
    mlflow = client(workspace)
    place = (tmp_path / "theirs" / "mlartifacts").as_uri()
    theirs = mlflow.create_run(mlflow.create_experiment("theirs", artifact_location=place)).info.run_id
    mlflow.log_text(theirs, "theirs", "theirs.txt")
    workspace.rename(tmp_path / "moved")
    sweep(study, tmp_path / "moved")
    found = client(tmp_path / "moved").get_experiment_by_name("theirs")
    assert found is not None
    assert found.artifact_location == place
    assert client(tmp_path / "moved").get_run(theirs).info.artifact_uri == f"{place}/{theirs}/artifacts"


@case(
    Kind.KEPT,
    "a workspace of 0.1.0 is unpacked in another place, its paths as they were",
    "reports the same to the last digit, and goes on",
)
def test_an_earlier_workspace_unpacked_elsewhere(tmp_path: Path) -> None:
    folder = unpack("v0_1_0", tmp_path / "unpacked")
    database = sqlite3.connect(folder / "workspace" / "mlflow.db")  # as it was in the archive
    with database:
        for table, column in [("experiments", "artifact_location"), ("runs", "artifact_uri")]:
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                (str(folder.resolve()), expected("v0_1_0")["root"]),
            )
    database.close()
    with contextlib.chdir(folder):
        status, said = workbench("report", "layers", "--out", "reports")
        assert status == 0, said
        plain = json.loads((folder / "reports" / "report.json").read_text(encoding="utf-8"))
        assert not differences(expected("v0_1_0")["reports"]["layers"], plain)
        status, said = workbench("sweep", "layers.yaml", "-q", "--no-report")
        assert status == 0, said
    assert "the workspace was at" in said
    assert "trained 0" in said
    assert not Path(expected("v0_1_0")["root"]).exists()


@case(
    Kind.KEPT,
    "mlflow.db of a workspace of 0.1.0 is lost: replicates, fresh replicates, controls, language models",
    "a new one is filled; nothing is trained, and the report says the same to the last digit",
)
@pytest.mark.parametrize("name", ["layers", "words"])
def test_an_earlier_workspace_without_its_database(tmp_path: Path, name: str) -> None:
    folder = unpack("v0_1_0", tmp_path / "unpacked")
    (folder / "workspace" / "mlflow.db").unlink()
    with contextlib.chdir(folder):
        status, said = workbench("sweep", f"{name}.yaml", "-q", "--no-report")
        assert status == 0, said
        assert "trained 0" in said
        status, said = workbench("report", name, "--out", "reports")
        assert status == 0, said
    plain = json.loads((folder / "reports" / "report.json").read_text(encoding="utf-8"))
    told = differences(expected("v0_1_0")["reports"][name], plain)
    again = re.compile(r"\.(run|started|ended|versions|commit|command|device)\b")
    assert [line for line in told if not again.search(line.split(":")[0])] == []
