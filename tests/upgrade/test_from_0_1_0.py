"""A workspace of 0.1.0 under today's code: it reports the same to the last digit, goes on, and trains nothing twice.

``tests/data/v0_1_0/make.py`` says what is in it. The product is called by its command line and its public functions
alone, so that these tests outlive a move of its modules.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from unpacking import differences, expected, unpack

from fusion_workbench import load_connector
from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.reading.query import read_study

VERSION = "v0_1_0"
STUDIES = ("layers", "earlier", "words")
EXPECTED = expected(VERSION)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace's folder for tests that change nothing in it."""
    return unpack(VERSION, tmp_path_factory.mktemp("kept"))


@pytest.fixture
def resumed(tmp_path: Path) -> Path:
    """One for a test that goes on with its studies."""
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    _artifact_repos_cache.clear()  # MLflow remembers where a run's artifacts are, and the same run has been elsewhere
    return unpack(VERSION, tmp_path / "resumed")


def run(folder: Path, *words: str) -> str:
    """A command line typed in ``folder``; what it printed."""
    with contextlib.chdir(folder):  # the studies name encoder and language model relative to it
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def report(folder: Path, *words: str) -> dict[str, Any]:
    """The ``report.json`` of a study."""
    run(folder, "report", *words, "--out", "reports")
    plain: dict[str, Any] = json.loads((folder / "reports" / "report.json").read_text(encoding="utf-8"))
    return plain


def ledger(folder: Path, study: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """(variant, replicate) → state, outcome, MLflow run, result, time of the last change."""
    (path,) = (folder / "workspace" / "studies").glob(f"{study}-*/ledger.db")
    database = sqlite3.connect(path)
    rows = database.execute(
        "SELECT variant, replicate, state, outcome, run_id, result, changed FROM entries"
    ).fetchall()
    database.close()
    return {(variant, replicate): tuple(rest) for variant, replicate, *rest in rows}


def files(folder: Path) -> dict[str, int]:
    """Every file of a folder with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def pictures() -> list[np.ndarray]:
    """The images that ``make.py`` gave to the exported connectors."""
    return [(np.arange(8 * 8 * 3, dtype=np.int64) * step % 251).astype(np.uint8).reshape(8, 8, 3) for step in (7, 13)]


def tokens(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = load_connector(folder, device="cpu")(pictures())
    return made


# --- what is reported -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_numbers_verdicts_and_ids_are_the_same(kept: Path, study: str) -> None:
    assert not differences(EXPECTED["reports"][study], report(kept, study))


def test_what_is_expected_holds_verdicts_of_several_kinds() -> None:
    """Or equal verdicts would prove little."""
    layers = EXPECTED["reports"]["layers"]
    assert {"better", "not distinguishable"} <= {c["verdict"] for c in layers["trial"]["comparisons"]}
    assert layers["answer"]["cell"]["levels"], "a fusion is recommended"
    assert (len(layers["study"]["replicates"]), len(layers["trial"]["fresh_replicates"])) == (5, 5)
    assert layers["look"]["featured"]
    assert layers["layers"]["similarity"]["matrix"]
    against = EXPECTED["layers against earlier"]["comparisons"]
    assert {"better", "not distinguishable"} <= {c["verdict"] for c in against}
    assert any(score["mean"] > 0 for cell in EXPECTED["reports"]["words"]["cells"] for score in cell["test"].values())


@pytest.mark.parametrize("study", STUDIES)
def test_per_example_scores_are_the_same(kept: Path, study: str) -> None:
    record = read_study(f"sqlite:///{kept}/workspace/mlflow.db", study)
    found = {}
    for phase, example_scores in (("final", record.example_scores), ("confirm", record.fresh_example_scores)):
        for (cell, task, split), one in example_scores.items():
            sha = hashlib.sha256("|".join([*one.replicates, *one.examples]).encode())
            sha.update(one.scores.astype("<f8").tobytes())
            found[f"{cell} {task} {split} {phase}"] = sha.hexdigest()
    assert found == EXPECTED["scores"][study]


def test_another_study_is_held_against_it_as_it_was(kept: Path) -> None:
    before, now = EXPECTED["layers against earlier"], report(kept, "layers", "--against", "earlier")
    assert not differences(before, now["against"])


# --- what was exported ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recommended", "mmfuser"])
def test_an_exported_connector_gives_its_tokens(kept: Path, name: str) -> None:
    made = tokens(kept / "workspace" / "exports" / name)
    torch.testing.assert_close(made, torch.tensor(EXPECTED["tokens"][name]), rtol=1e-4, atol=1e-5)


def test_the_recommended_cell_is_exported_again_with_the_same_tokens(kept: Path, tmp_path: Path) -> None:
    run(kept, "export", "layers", "--no-log", "--out", str(tmp_path / "again"))
    assert torch.equal(tokens(tmp_path / "again"), tokens(kept / "workspace" / "exports" / "recommended"))


def test_a_whole_model_answers_as_it_did_and_is_exported_again(kept: Path, tmp_path: Path) -> None:
    run(kept, "export", "words:concat [1]→3", "--out", str(tmp_path / "again"))
    for model in (kept / "workspace" / "exports" / "model", tmp_path / "again"):
        for letter, answer in zip(("first", "second"), EXPECTED["answers"], strict=True):
            words = ["--model", str(model), "--image", "picture.png", "--max-new-tokens", "1"]
            assert run(kept, "ask", f"The {letter} letter?", *words) == answer


def test_a_logged_model_is_logged_again(kept: Path) -> None:
    """MLflow kept 0.1.0's ``served.py``, which imports ``workbench.export``: docs/upgrading.md says what to do."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{kept}/workspace/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("fusion-workbench")
    assert experiment is not None
    (logged,) = client.search_logged_models([experiment.experiment_id])
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with pytest.raises(MlflowException, match="workbench"):
            mlflow.pyfunc.load_model(logged.model_uri)
        run(kept, "export", str(logged.source_run_id), "--out", str(kept / "logged-again"))
        again = client.search_logged_models([experiment.experiment_id])
        (fresh,) = [model for model in again if model.model_id != logged.model_id]
        made = mlflow.pyfunc.load_model(fresh.model_uri).predict(np.stack(pictures()))
    finally:
        mlflow.set_tracking_uri(before)
    assert np.array_equal(made, tokens(kept / "workspace" / "exports" / "recommended").numpy())


# --- what goes on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_it_goes_on_and_trains_nothing_twice(resumed: Path, study: str) -> None:
    """Ids of study and variants are computed anew from the study file: another one would train everything again."""
    before, stored = ledger(resumed, study), files(resumed / "workspace" / "store")
    assert sorted([*key, row[0], row[1], row[2]] for key, row in before.items()) == EXPECTED["ledgers"][study]
    run(resumed, "sweep", f"{study}.yaml", "--quiet", "--no-report")
    assert ledger(resumed, study) == before  # one folder still, and not a row changed
    assert files(resumed / "workspace" / "store") == stored
    told = differences(EXPECTED["reports"][study], report(resumed, study))
    assert [line for line in told if not line.startswith(".study.ended:")] == []


@pytest.mark.parametrize("study", ["layers", "words"])
def test_more_replicates_are_of_other_numerics_and_train_just_those_where_that_is_accepted(
    resumed: Path, study: str
) -> None:
    before, stored = ledger(resumed, study), files(resumed / "workspace" / "store")
    more = ("sweep", f"{study}.yaml", "replicates=6", "--quiet", "--no-report")
    with pytest.raises(WorkbenchError, match=r"the numerics of the workbench \(1 → 2\).*--accept-change"):
        run(resumed, *more)
    assert ledger(resumed, study) == before
    run(resumed, *more, "--accept-change")
    said = report(resumed, study)
    assert any("the numerics of the workbench (1 → 2)" in caveat for caveat in said["answer"]["caveats"])
    now = ledger(resumed, study)
    assert {key: now.get(key) for key in before} == before
    finals = {variant for variant, replicate in before if replicate == "0"}
    assert set(now) - set(before) == {(variant, "5") for variant in finals}
    assert {row[:2] for row in now.values()} == {("done", "finished")}
    assert files(resumed / "workspace" / "store") == stored
