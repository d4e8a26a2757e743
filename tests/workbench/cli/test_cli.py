"""The command line as a person meets it: real processes, one clear line for a mistake, no traceback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    "quickstart", "sweep", "train", "report", "export", "verdict", "power", "calibrate",
    "studies", "layers", "strategies", "check-strategy", "assets", "ui", "doctor",
)  # fmt: skip
STUDY = """
name: cli
question: Does it run?
encoder: {{name: {encoder}, precision: float32}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 12}}}}
strategies: [{{name: deep_only}}, {{name: concat}}, {{name: mmfuser, options: {{heads: 2}}}}]
selections: [{{levels: [1, 2]}}]
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.003]}}
training: {{epochs: 2, batch_size: 8, head_hidden: 16}}
"""

# A strategy that says it reads its levels and forgets them.
OWN = """
from dataclasses import dataclass
from fusion_workbench.modules.fusion import Fusion, register_strategy

@dataclass(frozen=True)
class SloppyOptions:
    scale: float = 1.0

@register_strategy("sloppy", options=SloppyOptions, uses_levels=True)
class Sloppy(Fusion):
    def forward(self, features, grid):
        self.check(features, grid)
        return self.options.scale * features[-1]
"""


def run(*words: str, workspace: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "fusion_workbench.cli.main",
        *words,
        *(["--workspace", str(workspace)] if workspace else []),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env}, timeout=3600)


def said(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    assert result.returncode == 2, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_names_every_command_and_imports_nothing_slow() -> None:
    result = run("--help")
    for command in (*COMMANDS, "store", "data"):
        assert command in result.stdout
    slow = {"torch", "lightning", "mlflow", "transformers", "optuna", "pandas", "fusion_workbench.core.registry"}
    program = f"import sys, fusion_workbench.cli.main; print(sorted({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert len(result.stdout) > 200


def test_version() -> None:
    assert re.fullmatch(r"workbench \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_dinov2: Path, mlflow_template: Path) -> Path:
    """A workspace in which one small study was run by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "cli.yaml").write_text(STUDY.format(encoder=tiny_dinov2))
    result = run("sweep", str(folder / "cli.yaml"), workspace=folder)
    assert result.returncode == 0, result.stderr
    assert "next: workbench ui" in result.stdout
    return folder


def test_a_sweep_writes_its_report(workspace: Path) -> None:
    folder = workspace / "reports" / "cli"
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in folder.iterdir()}
    assert "Does it run?" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_report_is_written_again_from_mlflow_alone(workspace: Path, tmp_path: Path) -> None:
    result = run("report", "cli", "--out", str(tmp_path / "out"), workspace=workspace)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "report.html").is_file()


def test_store_lists_verifies_and_finds_damage(workspace: Path) -> None:
    assert "finescenes/1" in run("store", "list", workspace=workspace).stdout
    assert run("store", "verify", workspace=workspace).returncode == 0
    shard = next((workspace / "store").rglob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = run("store", "verify", workspace=workspace)
    shard.write_bytes(whole)
    assert result.returncode == 1
    assert shard.name in result.stdout


def test_train_tracks_one_variant(workspace: Path) -> None:
    study = str(workspace / "cli.yaml")
    result = run("train", "concat", "-l", "1,2", "--study", study, "training.epochs=1", workspace=workspace)
    assert result.returncode == 0, result.stderr
    assert "trained 1" in result.stdout


def test_a_trained_connector_is_exported(workspace: Path) -> None:
    result = run("export", "cli:concat [1,2]→3", "--no-log", workspace=workspace)
    assert result.returncode == 0, result.stderr
    folder = workspace / "exports" / "cli-concat-1-2-3"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "heads.safetensors",
        "config.json",
        "README.md",
    }
    assert f'load_connector("{folder}")' in result.stdout
    assert "give --overwrite" in said(run("export", "cli:concat [1,2]→3", "--no-log", workspace=workspace))


def test_a_strategy_of_ones_own_is_checked(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(OWN)
    command = [sys.executable, "-m", "fusion_workbench.cli.main", "check-strategy", "theirs:Sloppy"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=3600, check=False)
    assert result.returncode == 1, result.stderr
    assert "every layer it says it uses moves the output" in " ".join(result.stdout.split())
    assert "Traceback" not in result.stderr
    assert "nowhere" in said(run("check-strategy", "nowhere:Fusion"))


def test_plan_trains_nothing(workspace: Path, tmp_path: Path) -> None:
    result = run("sweep", str(workspace / "cli.yaml"), "--plan", workspace=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "deep_only" in result.stdout
    assert not (tmp_path / "studies").exists()


def test_plan_ends_with_the_command_that_runs_it(workspace: Path, tmp_path: Path) -> None:
    """The file that was named, not the study's name, with every override and the workspace."""
    file, there = str(workspace / "cli.yaml"), tmp_path / "a b"
    result = run("sweep", file, "replicates=7", "question=Which [/] of [3]?", "--plan", workspace=there)
    assert result.returncode == 0, result.stderr
    assert f"run it: workbench sweep {file} replicates=7 'question=Which [/] of [3]?' --workspace '{there}'" in (
        " ".join(result.stdout.split())
    )
    assert "Which [/] of [3]?" in result.stdout


def test_layers_prints_the_passport(tiny_dinov2: Path) -> None:
    result = run("layers", str(tiny_dinov2), "--image-size", "56")
    assert result.returncode == 0, result.stderr
    for word in ("hs:3", "block:3", "timm:2", "dc:4", "prefix tokens", "4 × 4", "final norm"):
        assert word in result.stdout


def test_doctor_reports(tmp_path: Path) -> None:
    result = run("doctor", workspace=tmp_path)
    assert result.returncode in (0, 1)
    assert "torch" in result.stdout


def test_ui_refuses_a_port_in_use(workspace: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use" in said(run("ui", "--port", str(port), workspace=workspace))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep", "quickstrat"), "Did you mean 'quickstart'"),
        (("sweep", "quickstart", "trainin.epochs=2"), "Did you mean 'training'"),
        (("sweep", "quickstart", "training.epochs=two"), "wrong type"),
        (("sweep", "quickstart", "tracking.uri=file:///tmp/mlruns"), "MLflow no longer takes"),
        (("sweep", "quickstart", "tracking.uri=ftp://x"), "MLflow knows no 'ftp'"),
        (("layers", "no/such-encoder"), "neither a transformers folder"),
        (("assets", "encodr"), "Did you mean 'encoder'"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str) -> None:
    assert message in said(run(*words))


def test_a_workspace_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in said(run("sweep", "quickstart", workspace=tmp_path / "file" / "workspace"))


def test_a_report_without_any_study(tmp_path: Path, workspace: Path) -> None:
    assert "run a study first" in said(run("report", "cli", workspace=tmp_path))
    assert "cli" in said(run("report", "clj", workspace=workspace))


def test_unreadable_yaml(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: [")
    assert "line 1" in said(run("sweep", str(tmp_path / "bad.yaml")))
