"""Every way out of a command: one line, the right exit status, true statuses in MLflow, and nothing lost."""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import Kind, case
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fusion_workbench.cli.endings import run
from fusion_workbench.cli.main import app
from fusion_workbench.core import stopping
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.probes.bank import FusionBank
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.study import prepare as preparing
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.tracking import Tracker
from fusion_workbench.system import outages
from fusion_workbench.system.outages import outage_of
from fusion_workbench.tools import ui

STUDY = """
name: ended
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 16, val: 4, test: 4}}}}
tasks: [digit]
strategies: [{{name: average}}, {{name: concat}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{epochs: 1, batch_size: 8, head_hidden: 16}}
tracking: {{uri: "{uri}"}}
"""
GOES_ON = "the same command goes on where it was."
Command = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _hears_ctrl_c() -> Iterator[None]:
    """Tests that were started in the background inherit from their shell that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def sweep(tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
          monkeypatch: pytest.MonkeyPatch) -> Command:  # fmt: skip
    """The command of one small study: its exit status, and what it wrote to standard error."""
    file = tmp_path / "ended.yaml"
    file.write_text(STUDY.format(encoder=tiny_dinov2, uri=mlflow_uri))

    def command(*more: str) -> tuple[int, str]:
        words = ["workbench", "sweep", str(file), "--workspace", str(tmp_path / "workspace"), "-q", *more]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(app)
        return int(end.value.code or 0), capsys.readouterr().err

    return command


def statuses(uri: str) -> Counter[str]:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        return Counter(status for (status,) in database.execute("SELECT status FROM runs"))


def rows(tmp_path: Path) -> Counter[str | None]:
    (ledger,) = (tmp_path / "workspace" / "studies").glob("*/ledger.db")
    opened = Ledger(ledger)
    found = Counter(entry.status for entry in opened.entries())
    opened.close()
    return found


def at(patch: pytest.MonkeyPatch, owner: Any, name: str, number: signal.Signals, times: int = 1, call: int = 1) -> None:
    """Send ourselves a signal, so often, at the ``call``-th call of a function, before it does anything."""
    plain, calls = getattr(owner, name), []

    def signalled(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return plain(*args, **options)

    patch.setattr(owner, name, signalled)


# --- stopped ----------------------------------------------------------------------------------------------------------


def _owners() -> dict[str, tuple[Any, str, int]]:
    """Moments of a study: the function during which it is stopped, and at which call of it."""
    from sqlalchemy.orm import Session

    from fusion_workbench.reports.render import report
    from fusion_workbench.sweeps.journal import _Backend

    return {
        "preparing": (preparing, "load_encoder", 1),
        "encoding": (VisionEncoder, "encode", 2),
        "storing": (FeatureStore, "build", 1),
        "telling Optuna": (_Backend, "append_logs", 2),
        "starting a run": (MlflowClient, "create_run", 2),
        "an open transaction of MLflow": (Session, "commit", 30),
        "training": (FusionBank, "_step", 3),
        "evaluating": (FusionBank, "_evaluate", 1),
        "logging metrics": (MlflowClient, "log_batch", 6),
        "logging files": (Tracker, "log_files", 5),
        "committing": (Ledger, "finish", 2),
        "closing a run": (MlflowClient, "set_terminated", 1),
        "writing the report": (report, "render", 1),
    }


MOMENTS = list(_owners())


@case(
    Kind.ENDINGS,
    "Ctrl-C at any moment: imports, encoding, training, an open transaction of MLflow, Optuna's journal, the report",
    "one line, exit status 130; the runs are KILLED in MLflow; the same command goes on and trains nothing twice",
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment(
    moment: str, sweep: Command, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, call = _owners()[moment]
    with monkeypatch.context() as patch:
        at(patch, owner, name, signal.SIGINT, call=call)
        assert sweep() == (130, f"stopped; {GOES_ON}\n")
    found = statuses(mlflow_uri)
    assert not found["RUNNING"], found
    assert not found["FAILED"], found
    assert sweep("--no-report")[0] == 0
    assert rows(tmp_path) == {"finished": 4}
    assert statuses(mlflow_uri)["FINISHED"] == 5


@case(
    Kind.ENDINGS,
    "SIGTERM and SIGHUP, as of a scheduler or a closed terminal",
    "as Ctrl-C: one line that names the signal, exit status 143 or 129, true statuses",
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals(
    number: signal.Signals, status: int, sweep: Command, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, FusionBank, "_step", number, call=2)
    was = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        assert sweep() == (status, f"stopped by {number.name}; {GOES_ON}\n")
    finally:
        signal.signal(number, was)
    assert statuses(mlflow_uri) == {"KILLED": 3}


@case(
    Kind.ENDINGS,
    "Ctrl-C twice, also while the runs are being closed",
    "as once: one line, exit status 130, the same command goes on",
)
@pytest.mark.parametrize("name", ["_step", "set_terminated"])
def test_ctrl_c_twice(
    name: str, sweep: Command, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at(patch, FusionBank, "_step", signal.SIGINT, times=1 if name == "set_terminated" else 2)
        if name == "set_terminated":
            at(patch, MlflowClient, "set_terminated", signal.SIGINT)
        assert sweep() == (130, f"stopped; {GOES_ON}\n")
    assert statuses(mlflow_uri) == {"KILLED": 3}
    assert sweep("--no-report")[0] == 0
    assert rows(tmp_path) == {"finished": 4}


IMPATIENT = """
import os, signal, sys
sys.argv = ["workbench", "studies"]
from fusion_workbench.core import stopping
from fusion_workbench.cli.endings import run
def app():
    with stopping.uninterrupted():
        for _ in range(4):
            os.kill(os.getpid(), signal.SIGINT)
        print("never")
run(app)
"""
IMPORTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["workbench", "studies"]
from fusion_workbench.__main__ import main
main()
"""


def process(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=3600, **options
    )


@case(
    Kind.ENDINGS,
    "Ctrl-C for the third time, where something that is finished first hangs; Ctrl-C during the imports",
    "the process ends at once, with the same line and status",
)
@pytest.mark.parametrize("program", [IMPATIENT, IMPORTING])
def test_a_process_that_is_stopped_at_once(program: str) -> None:
    done = process("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"stopped; {GOES_ON}\n")


def test_a_stop_whose_exception_is_lost_comes_at_the_next_check() -> None:
    with stopping.listening():
        with pytest.raises(stopping.Stopped) as lost:
            os.kill(os.getpid(), signal.SIGTERM)
        assert not isinstance(lost.value, Exception | KeyboardInterrupt)  # which libraries catch
        with pytest.raises(stopping.Stopped):
            stopping.check()
    stopping.check()


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stopping.listening():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@case(Kind.ENDINGS, "Ctrl-C at workbench ui", "the server ends with it, exit status 0")
def test_ctrl_c_ends_the_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Server:
        ended = 0

        def __enter__(self) -> Server:
            return self

        def __exit__(self, *error: object) -> None: ...

        def wait(self) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return 1

        def terminate(self) -> None:
            Server.ended += 1

    from rich.console import Console

    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: Server())
    with pytest.raises(SystemExit) as end:
        run(lambda: ui.serve(Console(quiet=True), "sqlite:////tmp/none.db", 45_321))
    assert (end.value.code, capsys.readouterr().err) == (0, "")
    assert Server.ended == 1


@case(
    Kind.ENDINGS,
    "Ctrl-C within a library that answers with an error of its own (OmegaConf, torch, a strategy)",
    "it counts as the stop that it is: exit status 130, no cell is booked as failed",
)
@pytest.mark.parametrize("owner", ["options", "forward"])
def test_an_error_that_a_stop_became(
    owner: str, sweep: Command, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_workbench.modules.fusion.average import Average
    from fusion_workbench.study.prepare import Parts

    def broken(*args: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            raise AttributeError("'NoneType' object has no attribute 'flags'")

    with monkeypatch.context() as patch:
        patch.setattr(*((Parts, "variant") if owner == "options" else (Average, "forward")), broken)
        assert sweep() == (130, f"stopped; {GOES_ON}\n")
    assert set(statuses(mlflow_uri)) == {"KILLED"}
    assert sweep("--no-report")[0] == 0
    assert rows(tmp_path) == {"finished": 4}


# --- tracking that is away ------------------------------------------------------------------------------------------

GONE = (
    "API request to http://127.0.0.1:5999/api/2.0/mlflow/runs/log-batch failed with exception HTTPConnectionPool("
    "host='127.0.0.1', port=5999): Max retries exceeded with url: /api/2.0/mlflow/runs/log-batch (Caused by "
    "NewConnectionError('<urllib3.connection.HTTPConnection object at 0x7f>: Failed to establish a new connection: "
    "[Errno 111] Connection refused'))"
)


def away(
    patch: pytest.MonkeyPatch, error: Exception, names: tuple[str, ...], first: int = 3, last: int = 10**6
) -> None:
    """MLflow's client raises in its calls of these names, from the ``first`` to the ``last``."""
    for name in names:
        plain, calls = getattr(MlflowClient, name), []

        def call(*args: Any, plain: Any = plain, calls: list[int] = calls, **options: Any) -> Any:
            calls.append(1)
            if first <= len(calls) <= last:
                raise error
            return plain(*args, **options)

        patch.setattr(MlflowClient, name, call)


@case(
    Kind.ENDINGS,
    "the tracking server, PostgreSQL or a locked or full mlflow.db is gone while a study trains, and when it ends",
    "one line: what, where, and that nothing is lost; exit status 2; the same command goes on and mends the statuses",
)
@pytest.mark.parametrize(
    ("message", "said"),
    [
        (GONE, "connection refused"),
        ("(sqlite3.OperationalError) database is locked\n[SQL: INSERT INTO metrics]", "database is locked"),
        (
            "(psycopg2.OperationalError) server closed the connection unexpectedly\n\tThis",
            "server closed the connection",
        ),
        ("(sqlite3.OperationalError) database or disk is full\n[SQL: UPDATE runs]", "database or disk is full"),
    ],
)
def test_tracking_is_away(
    message: str, said: str, sweep: Command, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        away(patch, MlflowException(message), ("log_batch", "set_terminated", "set_tag"), first=4)
        status, err = sweep()
    assert status == 2
    assert re.fullmatch(
        rf"error: MLflow at sqlite:///\S+ failed: {said}[^;\n]*; nothing is lost: the same command goes on where it "
        r"was\.\n",
        err,
    ), err
    assert sweep("--no-report")[0] == 0
    assert rows(tmp_path) == {"finished": 4}
    found = statuses(mlflow_uri)
    assert found["FINISHED"] == 5
    assert not found["RUNNING"]


@case(Kind.ENDINGS, "mlflow.db is locked by another process for a while", "the study waits for it and goes on")
def test_a_locked_database_is_waited_for(sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away(monkeypatch, MlflowException("(sqlite3.OperationalError) database is locked"), ("log_batch",), 4, 5)
    assert sweep("--no-report") == (0, "")
    assert rows(tmp_path) == {"finished": 4}


@case(Kind.ENDINGS, "no tracking server at the start", "one short line, exit status 2")
def test_no_server_at_the_start(sweep: Command) -> None:
    uri = "http://me:s3cret@127.0.0.1:9"
    shown = "http://me:…@127.0.0.1:9"
    assert sweep(f"tracking.uri={uri}") == (2, f"error: tracking.uri '{shown}' cannot be opened: connection refused.\n")


@case(Kind.SECRETS, "a database with a password fails", "the line that tells of it has no password")
def test_an_outage_tells_no_password() -> None:
    uri = "postgresql+psycopg2://wb:s3cretPW@db/wb"
    error = MlflowException(f"(psycopg2.OperationalError) could not connect to {uri}\nmore")
    said = str(outage_of(error, uri))
    assert "s3cretPW" not in said
    assert "\n" not in said
    assert said.startswith("MLflow at postgresql+psycopg2://wb:…@db/wb failed: could not connect to postgresql")
    assert outages.outage_reason(MlflowException("x" * 5000)).endswith("…")


@case(
    Kind.ENDINGS,
    "the disk is full while files are logged, and the runs cannot be closed either",
    "one line that says so, exit status 2; the same command goes on",
)
def test_the_disk_is_full(sweep: Command, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "mlartifacts/model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", full)
        away(patch, MlflowException("(sqlite3.OperationalError) database or disk is full"), ("set_terminated",), 1)
        status, err = sweep()
    said = "the disk is full (mlartifacts/model.safetensors); free some space, then run the same command."
    assert (status, err) == (2, f"error: {said}\n")
    assert sweep("--no-report")[0] == 0
    assert rows(tmp_path) == {"finished": 4}
    assert not statuses(mlflow_uri)["RUNNING"]


# --- whatever else ----------------------------------------------------------------------------------------------------


@case(
    Kind.ENDINGS,
    "a fault of the workbench itself",
    "one line with type, message and place, and the file that keeps its traceback; exit status 70",
)
def test_a_fault_is_one_line(sweep: Command, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def broken(self: Experiment, planner: Any) -> None:
        raise IndexError("list index\nout of range")

    monkeypatch.setattr(Experiment, "_train_all", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    status, err = sweep()
    assert status == 70
    found = re.fullmatch(
        r"error: .*IndexError: list index \(test_endings.py, line \d+\); its traceback, for a report, is in (\S+)\.\n",
        err,
    )
    assert found, err
    kept = Path(found[1]).read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in kept
    assert "workbench sweep" in kept
    assert statuses(mlflow_uri) == {"FAILED": 1}
    monkeypatch.setenv("WORKBENCH_DEBUG", "1")
    status, err = sweep()
    assert status == 70
    assert "Traceback (most recent call last)" in err


@case(Kind.ENDINGS, "a plug-in calls sys.exit(0)", "an error that names it, exit status 2: not success in silence")
def test_an_exit_that_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {"__name__": "my_package.source"}
    exec(compile("import sys\ndef leave(): sys.exit(0)", "source.py", "exec"), space)
    with pytest.raises(SystemExit) as end:
        run(space["leave"])
    assert end.value.code == 2
    assert "ended the process by sys.exit(0)" in capsys.readouterr().err


@case(
    Kind.ENDINGS,
    "standard output is closed, full, or read by head, which has had enough",
    "no traceback: closed is ignored, full is one line with exit status 2, head ends it quietly",
)
@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        (">&-", 0, ""),
        ("> /dev/full", 2, "error: the disk is full (while writing); free some space, then run the same command.\n"),
        ("| true; exit ${PIPESTATUS[0]}", None, ""),
    ],
)
def test_standard_output(shell: str, status: int | None, said: str) -> None:
    command = f"{sys.executable} -m fusion_workbench studies {shell}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=3600)
    assert done.stderr == said
    assert done.returncode in ((status,) if status is not None else (0, 1))


@case(
    Kind.ENDINGS,
    "a real study is ended by SIGTERM",
    "exit status 143 and one line; its runs are KILLED, no process is left",
)
def test_sigterm_ends_a_real_process(tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path) -> None:
    file = tmp_path / "ended.yaml"
    file.write_text(STUDY.format(encoder=tiny_dinov2, uri=mlflow_uri))
    words = ["sweep", str(file), "training.epochs=100000", "--workspace", str(tmp_path / "workspace"), "-q"]
    command = [sys.executable, "-m", "fusion_workbench", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("encoded"):  # then it trains, without an end
                break
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=3600)
    assert (process.returncode, err) == (143, f"stopped by SIGTERM; {GOES_ON}\n")
    found = statuses(mlflow_uri)
    assert found["KILLED"] >= 1
    assert set(found) == {"KILLED"}
