"""``workbench verdict`` and ``workbench power`` as a person meets them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    lines = ["method,seed,example,score"]
    for method, mean in (("base", 0.5), ("better", 0.6), ("lesser", 0.4)):
        for seed in range(5):
            scores = np.clip(mean + rng.normal(0, 0.01) + rng.normal(0, 0.05, 60), 0, 1)
            lines += [f"{method},{seed},{i},{score:.4f}" for i, score in enumerate(scores)]
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_verdict_with_its_files_and_a_status_for_machines(table: str, tmp_path: Path) -> None:
    done = run("verdict", table, "--out", str(tmp_path / "out"), "--fail-on", "worse")
    assert done.exit_code == 1
    assert "▲ better" in done.stdout
    assert "Of 2 comparisons 1 is better and 1 is worse." in done.stdout
    assert done.stderr == "worse: lesser (against base)\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"verdict.{e}" for e in ("html", "md", "json", "csv")}
    assert run("verdict", table, "--lower-is-better", "-b", "better", "--fail-on", "worse").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verdict"], "no files: name some"),
        (["verdict", "TABLE", "--fail-on", "better"], "only 'worse' is known"),
        (["verdict", "TABLE", "--baseline", "bass"], "Did you mean 'base'"),
        (["power"], "name a study as the pilot, or scores"),
        (["power", "x", "--scores", "TABLE"], "one of the two"),
        (["power", "--scores", "TABLE", "-d", "0"], "--difference 0: it is a difference in scores"),
    ],
)
def test_mistakes_are_said_in_one_line(table: str, words: list[str], said: str) -> None:
    done = run(*(table if word == "TABLE" else word for word in words))
    assert isinstance(done.exception, WorkbenchError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_mistake_ends_with_status_2_and_no_traceback(table: str) -> None:
    command = [sys.executable, "-m", "fusion_workbench.cli.main", "verdict", table, "-c", "score=points"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "there is no column 'points' for the score" in done.stderr
    assert done.stderr.count("\n") == 1


def test_power_from_scores(table: str) -> None:
    done = run("power", "--scores", table, "--difference", "0.01", "-d", "0.1")
    assert done.exit_code == 0, done.exception
    assert "the noisiest pair" in done.stdout
    assert "each comparison at 0.025 (the level over 2 comparisons)" in done.stdout


def test_power_of_systems_that_never_differ(tmp_path: Path) -> None:
    lines = [f"{system},{seed},{i},1" for system in "ab" for seed in range(5) for i in range(4)]
    path = tmp_path / "same.csv"
    path.write_text("\n".join(["system,seed,example,score", *lines]) + "\n")
    done = run("power", "--scores", str(path))
    assert done.exit_code == 0, done.exception
    assert "there is no noise to plan on" in done.stdout
    assert "power 0.8" not in done.stdout


def test_power_from_a_study(small_uri: str) -> None:
    done = run("power", "synthetic", "--uri", small_uri, "-d", "0.05")
    assert done.exit_code == 0, done.exception
    assert "winner and baselines (" in done.stdout
    assert "To tell a difference of 5.0 points from the best baseline" in done.stdout
    assert " here)" in done.stdout
    missing = run("power", "unknown", "--uri", small_uri)
    assert isinstance(missing.exception, WorkbenchError)
