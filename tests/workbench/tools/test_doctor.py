"""The doctor: what it finds on machines that are well and on machines that are not."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from fusion_workbench.tools import doctor
from fusion_workbench.tools.doctor import Finding, examine, show


@pytest.fixture(autouse=True)
def assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SimpleNamespace]:
    """Embedded assets in the states that a test wants, instead of this machine's."""
    found: list[SimpleNamespace] = []
    module = ModuleType("fusion_workbench.assets.home")
    module.__dict__.update(home=lambda: tmp_path / "assets", status=lambda thorough=False: found)
    monkeypatch.setitem(sys.modules, "fusion_workbench.assets.home", module)
    monkeypatch.setattr("fusion_workbench.assets.home", module, raising=False)
    return found


def named(findings: list[Finding], name: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.name == name)
    return finding


def tracking(tmp_path: Path, uri: str | None) -> Finding:
    return doctor._tracking(uri, tmp_path)


def test_this_machine_can_run_the_tests(tmp_path: Path) -> None:
    findings = examine(tmp_path / "workspace")
    assert named(findings, "Python").state == "ok"
    for name in (*doctor.SHOWN, "workspace", "tracking", "assets home"):
        assert named(findings, name).state == "ok", named(findings, name)
    assert named(findings, "cores").what.endswith("usable") or "OMP_NUM_THREADS" in named(findings, "cores").what
    assert "GB" in named(findings, "memory").what
    assert not (tmp_path / "workspace").exists()  # looking changes nothing
    assert all(finding.remedy for finding in findings if finding.state != "ok")


@pytest.mark.parametrize("release", ["2.6.2", "2.6.3"])
@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_releases(monkeypatch: pytest.MonkeyPatch, name: str, release: str) -> None:
    monkeypatch.setattr("fusion_workbench.tools.doctor.version", lambda of: release if of == name else version(of))
    finding = named(list(doctor._packages()), name)
    assert finding.state == "bad"
    assert finding.what == f"{release} is a malicious release"
    assert "change every credential" in finding.remedy


@pytest.mark.parametrize(
    ("need", "state"),
    [
        ("torch>=2.11", "ok"),
        ("torch>=99", "bad"),
        ("no-such-package>=1", "bad"),
        ("torch", "ok"),
        ("torch<1", "bad"),
    ],
)
def test_versions(need: str, state: str) -> None:
    finding = doctor._package(Requirement(need))
    assert finding.state == state
    assert finding.remedy == ("" if state == "ok" else f"pip install '{need}'")


def test_not_installed_only_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", missing)
    findings = list(doctor._packages())
    assert named(findings, "packages").state == "warn"
    assert named(findings, "torch").state == "ok"


def test_extras_are_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ['no-such-package>=1; extra == "dev"', "typer>=0.1"])
    assert list(doctor._packages()) == []


@pytest.mark.parametrize("uri", ["file:./mlruns", "file:///tmp/mlruns", "./mlruns", "ftp://host/runs"])
def test_tracking_uris_that_mlflow_refuses(tmp_path: Path, uri: str) -> None:
    finding = tracking(tmp_path, uri)
    assert finding.state == "bad"
    assert uri in finding.what
    assert f"sqlite:///{tmp_path}" in finding.remedy


def test_tracking_databases(tmp_path: Path, mlflow_uri: str) -> None:
    assert tracking(tmp_path, mlflow_uri).state == "ok"
    assert tracking(tmp_path, f"sqlite:///{tmp_path}/deep/er/new.db").state == "ok"
    torn = tmp_path / "torn.db"
    torn.write_bytes(b"SQLite format 3\0" + os.urandom(4096))
    assert tracking(tmp_path, f"sqlite:///{torn}").state == "bad"
    text = tmp_path / "notes.txt"
    text.write_text("not a database at all " * 100)
    assert tracking(tmp_path, f"sqlite:///{text}").state == "bad"
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    assert "not MLflow's" in tracking(tmp_path, f"sqlite:///{other}").what
    assert tracking(tmp_path, f"sqlite:///{text}/below.db").state == "bad"


@pytest.fixture
def server() -> Iterator[str]:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_tracking_servers(tmp_path: Path, server: str) -> None:
    assert tracking(tmp_path, server).state == "ok"
    assert tracking(tmp_path, f"{server}/").state == "ok"
    silent = tracking(tmp_path, "http://127.0.0.1:9")
    assert silent.state == "bad"
    assert "does not answer" in silent.what


def test_passwords_are_not_printed(tmp_path: Path) -> None:
    for uri in ("postgresql://me:sesame@host/runs", "http://me:sesame@127.0.0.1:9", "ftp://me:sesame@host"):
        finding = tracking(tmp_path, uri)
        assert "sesame" not in finding.what + finding.remedy
        assert "me:…@" in finding.what


def test_a_workspace_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for workspace in (tmp_path / "file", tmp_path / "file" / "below"):
        (finding,) = doctor._folder("workspace", workspace)
        assert finding.state == "bad"
        assert "--workspace" in finding.remedy


def test_a_workspace_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:  # as root, nothing is read-only for real
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (finding,) = doctor._folder("workspace", tmp_path)
    assert finding.state == "bad"
    assert "Permission denied" in finding.what


@pytest.mark.parametrize(("free", "state"), [(100e6, "bad"), (2e9, "warn"), (50e9, "ok")])
def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100e9, free=free))
    _, disk = doctor._folder("workspace", tmp_path)
    assert disk.state == state


def test_a_container_s_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpu.max": ["100000", "100000"], "memory.max": ["1000000000"], "memory.current": ["600000000"]}
    monkeypatch.setattr(doctor, "_cgroup", limits.__getitem__)
    assert doctor._cores().state == "warn"
    assert doctor._cores().what.startswith("1 of ")
    memory = doctor._memory()
    assert memory.state == "bad"
    assert memory.what == "0.4 GB of 1.0 GB free"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"avx2", "avx512_bf16"}, "avx512_bf16: bf16 autocast gains here"),
        ({"amx_bf16", "avx512_bf16"}, "amx_bf16 and avx512_bf16: bf16 autocast gains here"),
        ({"asimd", "bf16"}, "bf16: bf16 autocast gains here"),
        ({"avx2"}, "float32 is the faster precision here"),
        (None, "cannot be read here"),
    ],
)
def test_bf16_on_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: set[str] | None, words: str) -> None:
    monkeypatch.setattr(doctor, "cpu_flags", lambda: flags)
    assert words in doctor._cpu().what


def test_assets(assets: list[SimpleNamespace], tmp_path: Path) -> None:
    for name, state in [
        ("encoder", "ready"),
        ("digits", "altered"),
        ("typefaces", "missing"),
        ("language-model", "missing"),
    ]:
        assets.append(SimpleNamespace(name=name, state=state, path=tmp_path, bytes=1, what="a thing"))
    findings = list(doctor._assets())
    states = {finding.name: finding.state for finding in findings}
    assert [states[status.name] for status in assets] == ["ok", "bad", "warn", "ok"]
    assert named(findings, "digits").remedy == "workbench assets digits --repair"
    assert named(findings, "typefaces").remedy == "workbench assets"


def test_assets_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ModuleType("fusion_workbench.assets.home")
    monkeypatch.setattr("fusion_workbench.assets.home", broken, raising=False)
    (finding,) = doctor._assets()
    assert finding.state == "bad"
    assert "cannot be looked at" in finding.what


def test_the_table_and_its_remedies() -> None:
    out = StringIO()
    findings = [
        Finding("Python", "ok", "3.11 [v]"),
        Finding("disk", "warn", "1 GB", "free some " + "space " * 40),
    ]
    show(findings, Console(file=out, width=80))
    text = out.getvalue()
    assert "3.11 [v]" in text  # brackets are not markup
    assert findings[1].remedy in text  # in one piece, to be copied
    assert "all is well" not in text
    out.truncate(0)
    show(findings[:1], Console(file=out, width=80))
    assert "all is well" in out.getvalue()


@pytest.mark.parametrize("cuda", [True, False], ids=["cuda", "cpu"])
def test_the_backend_of_deformable_attention(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from fusion_workbench.modules.fusion import deformable_backends

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(deformable_backends, "unavailable", lambda: "deformops is not installed")
    findings = list(doctor._backend())
    assert len(findings) == cuda
    assert all(finding.state == "ok" and "not installed" in finding.what for finding in findings)
    monkeypatch.setattr(deformable_backends, "unavailable", lambda: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "version", lambda name: "3.0.1")
    (finding,) = doctor._backend()
    words = "the faster is taken" if cuda else "not used without CUDA"
    assert finding.what.startswith("deformops 3.0.1: ")
    assert finding.what.endswith(words)
