"""Names and places that cannot be are refused before any work; what can be opened at once is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cases import Kind, case
from small_study import workbench, write_study

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.text import folder_name
from fusion_workbench.system import scratch
from fusion_workbench.system.mlflow_database import sqlite_path, sqlite_uri


@pytest.fixture
def study(tiny_dinov2: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path / "small.yaml", tiny_dinov2)


def refused(said: str, *words: str) -> None:
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1
    for word in words:
        assert word in said


# --- paths ----------------------------------------------------------------------------------------------------------


@case(
    Kind.INPUT,
    "? or %20 in the path of the workspace",
    "refused before any work, in --plan too: MLflow would keep its database elsewhere",
    "mlflow/mlflow#4785",
    "mlflow/mlflow#4879",
)
@pytest.mark.parametrize("odd", ["a?b", "q?x=1", "pct%20", "x/%41"])
@pytest.mark.parametrize("flags", [[], ["--plan"]])
def test_question_marks_and_percent_signs(study: Path, tmp_path: Path, odd: str, flags: list[str]) -> None:
    status, said = workbench("sweep", study, "-w", tmp_path / odd, "-q", *flags)
    assert status == 2
    refused(said, str(tmp_path / odd), "--workspace")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"]
    refused(workbench("report", "small", "-w", tmp_path / odd)[1], "--workspace")


@case(
    Kind.INPUT,
    "spaces, umlauts, #, &, @, : or a lone % in the path of the workspace",
    "the database lies where it should",
)
@pytest.mark.parametrize("odd", ["a b", "wörk", "#1", "100%", "a&b@c:d", "ﬀ"])
def test_other_odd_paths(tmp_path: Path, odd: str) -> None:
    from sqlalchemy.engine import make_url

    path = tmp_path / odd / "mlflow.db"
    uri = sqlite_uri(path)
    assert make_url(uri).database == str(path)
    assert sqlite_path(uri) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:///b.db", "b.db"),
        ("sqlite+pysqlite:////a/b.db?timeout=3", "/a/b.db"),
        ("sqlite:////a%20b/c.db", "/a b/c.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://u@h:///d", None),
    ],
)
def test_the_file_of_a_uri(uri: str, path: str | None) -> None:
    assert sqlite_path(uri) == (Path(path) if path else None)


@case(
    Kind.INPUT,
    "a study's name of 300 letters, or of 130 that take two bytes each",
    "refused before any work, in --plan too; counts bytes",
)
@pytest.mark.parametrize("name", ["a" * 300, "ä" * 130])
@pytest.mark.parametrize("flags", [[], ["--plan"]])
def test_long_names(study: Path, tmp_path: Path, name: str, flags: list[str]) -> None:
    status, said = workbench("sweep", study, f"name={name}", "-w", tmp_path / "workspace", "-q", *flags)
    assert status == 2
    refused(said, "is too long", "name=")
    assert not (tmp_path / "workspace").exists()


@case(Kind.INPUT, "a path of the workspace that is too long, in one part or in all", "refused before any work")
@pytest.mark.parametrize("parts", [["w" * 300], ["w" * 200] * 22])
def test_long_workspaces(study: Path, tmp_path: Path, parts: list[str]) -> None:
    for words in (["sweep", study, "--plan"], ["sweep", study], ["report", "small"]):
        status, said = workbench(*words, "-w", tmp_path.joinpath(*parts))
        assert status == 2
        refused(said, "workspace")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"]


@case(
    Kind.INPUT,
    "a study in somebody's MLflow is named a/b, or ../x",
    "its report is one folder in the workspace's reports",
)
@pytest.mark.parametrize(
    ("name", "folder"),
    [("small", "small"), ("größe-2.1_b", "größe-2.1_b"), ("a/b", "a-b"), ("../x", "-x"), ("/etc/x", "-etc-x")],
)
def test_report_folders(name: str, folder: str) -> None:
    assert folder_name(name) == folder
    assert len(os.fsencode(folder_name("ä" * 300))) <= 255


@case(Kind.INPUT, "the current folder was removed", "refused in one line")
def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    status, said = workbench("studies")
    assert status == 2
    refused(said, "is gone", "cd")


# --- opened at once -------------------------------------------------------------------------------------------------

_OPEN = """
import sys
from pathlib import Path
from mlflow.tracking import MlflowClient
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.reading.connect import connect
from fusion_workbench.study.tracking import Tracker, default_uri
workspace = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[2] == "study":
    Tracker(default_uri(workspace), "fusion-workbench", workspace / "mlartifacts")
else:
    try:
        connect(default_uri(workspace))
    except WorkbenchError as error:
        assert "there is no file" in str(error), error
"""


@case(
    Kind.INPUT,
    "two studies and a report open one new workspace at the same time",
    "one makes MLflow's database, the others wait for it",
)
def test_a_new_workspace_opened_at_once(tmp_path: Path) -> None:
    kinds = ("study", "study", "report")
    command = [sys.executable, "-c", _OPEN, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for kind in kinds
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        error = process.communicate()[1]
        assert process.returncode == 0, error.decode()


@case(Kind.INPUT, "another process holds the lock on opening for minutes", "refused; names the lock")
def test_an_opening_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    from fusion_workbench.system import mlflow_database

    monkeypatch.setattr(mlflow_database, "_PATIENCE", 0)
    lock = FileLock(tmp_path / "mlflow.db.lock")
    with (
        lock,
        pytest.raises(WorkbenchError, match=r"mlflow\.db\.lock"),
        mlflow_database.opening(f"sqlite:///{tmp_path}/mlflow.db"),
    ):
        pass


# --- temporary folders ----------------------------------------------------------------------------------------------

_SCRATCH = """
import sys
from fusion_workbench.system.scratch import scratch_folder
with scratch_folder("files") as folder:
    (folder / "large").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.readline()
"""


@case(
    Kind.GROWTH,
    "a process is killed while it has a temporary folder",
    "the next one removes it; folders of living processes stay",
)
def test_temporary_folders_of_killed_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._sweep_once.cache_clear()
    processes = [
        subprocess.Popen([sys.executable, "-c", _SCRATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, alive = processes
    folders = [Path(process.stdout.readline().strip()) for process in processes if process.stdout is not None]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stranger = tmp_path / "workbench-notes"  # somebody's own: without our lock
    stranger.mkdir()
    assert folders[0].is_dir()
    with scratch.scratch_folder() as own:
        assert not folders[0].parent.exists()
        assert (folders[1] / "large").is_file()
        assert not list(own.iterdir())
    alive.communicate("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["workbench-notes"]
