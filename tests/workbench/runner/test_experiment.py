"""A whole study, small and real: tiny encoder, real scenes, real MLflow, Optuna and ledger."""

from __future__ import annotations

import io
import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import safetensors.torch
from rich.console import Console

from fusion_workbench.config.study import StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.against.environment import environment
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.schema.names import Tag, Verdict
from fusion_workbench.study import changes, dependencies, jobs
from fusion_workbench.study.changes import NUMERICS_FACT
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display
from fusion_workbench.version import NUMERICS

STUDY = """
name: tiny
question: Does it run?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 12}}}}
strategies: [{{name: deep_only}}, {{name: concat}}, {{name: mmfuser, options: {{heads: 2}}}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.001, 0.003]}}
training: {{epochs: 2, batch_size: 8, head_hidden: 16, bank_size: 4}}
tracking: {{uri: "{uri}"}}
"""


@pytest.fixture
def text(tiny_dinov2: Path, mlflow_uri: str) -> str:
    return STUDY.format(encoder=tiny_dinov2, uri=mlflow_uri)


def study(text: str, *overrides: str) -> StudyConfig:
    return study_from_yaml(text, "tiny.yaml", list(overrides))


def run(config: StudyConfig, workspace: Path, **options: Any) -> tuple[StudyResult, Parts]:
    parts = prepare(config, workspace, progress=False)
    return Experiment(parts, Display(Console(file=io.StringIO()), progress=False), **options).run(), parts


def runs(result: StudyResult) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=result.tracking_uri)
    parent = client.get_run(result.run_id)
    return list(
        client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=1000
        )
    )


def test_a_study_from_end_to_end(text: str, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    result, parts = run(study(text), tmp_path)
    assert (result.cells, result.trained, result.kept, result.failed) == (3, 3 * 2 + 3 * 2, 0, 0)
    client = MlflowClient(tracking_uri=result.tracking_uri)
    parent = client.get_run(result.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["workbench.question"] == "Does it run?"
    assert parent.data.params["training.epochs"] == "2"
    children = runs(result)
    assert Counter(r.data.tags["workbench.phase"] for r in children) == {"search": 6, "final": 6}
    assert {r.info.status for r in children} == {"FINISHED"}
    searched = Counter(r.data.params["strategy"] for r in children if r.data.tags["workbench.phase"] == "search")
    assert searched == {"deep_only": 2, "concat": 2, "mmfuser": 2}  # a fair fight: the same rates for all

    def artifact(run_id: str, name: str) -> Path:
        return Path(download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=result.tracking_uri))

    cells = json.loads(artifact(result.run_id, "variants.json").read_text())
    assert {c["label"] for c in cells} == {"deep_only 3", "concat [1,2]→3", "mmfuser(heads=2) [1,2]→3"}
    passport = json.loads(artifact(result.run_id, "passport.json").read_text())
    assert (passport["depth"], passport["grid"], passport["prefix_tokens"]) == (3, [8, 8], 1)
    assert json.loads(artifact(result.run_id, "source.json").read_text())["sizes"] == {
        "train": 24,
        "val": 8,
        "test": 12,
    }
    assert study_from_yaml(artifact(result.run_id, "study.yaml").read_text(), "artifact") == parts.study

    fused = next(
        r for r in children if r.data.tags["workbench.phase"] == "final" and r.data.params["strategy"] == "mmfuser"
    )
    metrics = fused.data.metrics
    cost = ("parameters", "flops_per_image", "seconds", "samples_per_second", "peak_memory_mb", "ms_per_image_forward")
    inside = ("converged", "gates_opened", "gate/gamma1_rms", "attention_share/layer_1", "attention_share/layer_2")
    for name in ("test/read/accuracy", "test/digit/accuracy", *(f"cost/{c}" for c in cost), *inside):
        assert name in metrics, name
    assert metrics["attention_share/layer_1"] + metrics["attention_share/layer_2"] == pytest.approx(1, abs=1e-4)
    assert [m.step for m in client.get_metric_history(fused.info.run_id, "val/objective")] == [0, 1]
    outcomes = pd.read_parquet(artifact(fused.info.run_id, "outcomes/test.parquet"))
    assert list(outcomes.columns) == ["example_id", "group", "task", "score", "items"]
    assert Counter(outcomes["task"]) == {"read": 12, "digit": 12}
    read = outcomes[outcomes["task"] == "read"]
    assert (read["score"] * read["items"]).sum() / read["items"].sum() == pytest.approx(
        metrics["test/read/accuracy"], abs=1e-6
    )
    weights = safetensors.torch.load_file(artifact(fused.info.run_id, "fuser/model.safetensors"))
    assert any(key.startswith("fuser.cross_attn") for key in weights)
    assert any(key.startswith("projector.") for key in weights)
    assert json.loads(artifact(fused.info.run_id, "fuser/config.json").read_text())["levels"] == [1, 2]

    (journal,) = parts.folder.glob("optuna.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    (kept,) = optuna.load_study(study_name=result.study_id, storage=storage).trials[:1]
    assert kept.state == optuna.trial.TrialState.COMPLETE


def test_the_same_command_again_trains_nothing(text: str, tmp_path: Path) -> None:
    first, _ = run(study(text), tmp_path)
    again, _ = run(study(text), tmp_path)
    assert (again.run_id, again.trained, again.kept) == (first.run_id, 0, 12)
    assert len(runs(again)) == 12


def test_more_replicates_are_the_same_study(text: str, tmp_path: Path) -> None:
    first, _ = run(study(text, "search.learning_rates=[0.003]"), tmp_path)
    more, _ = run(study(text, "search.learning_rates=[0.003]", "replicates=3"), tmp_path)
    assert (first.trained, more.trained, more.kept) == (6, 3, 6)
    assert more.run_id == first.run_id


def test_a_study_that_goes_on_under_other_numerics_is_refused_or_says_so(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tags(result: StudyResult) -> list[str | None]:
        return [read(result).tags.get(Tag.NUMERICS), *sorted(r.data.tags.get(Tag.NUMERICS, "-") for r in runs(result))]

    quick = ("search.learning_rates=[0.01]",)
    told: list[str] = []
    monkeypatch.setattr(Display, "say", lambda self, words: told.append(words))
    config = study(text, *quick, "replicates=1")
    first, _ = run(config, tmp_path)
    ours = str(NUMERICS)
    assert tags(first) == [ours] * (1 + first.trained)
    assert environment(read(first))["numerics"] == ours
    again, _ = run(config, tmp_path)
    assert again.trained == 0
    assert not [words for words in told if "numerics" in words]
    for module in (changes, dependencies, jobs):  # a later version takes the study up
        monkeypatch.setattr(module, "NUMERICS", NUMERICS + 1)
    again, _ = run(config, tmp_path)
    assert again.trained == 0
    assert tags(again)[0] == ours  # nothing was mixed
    assert not [words for words in told if "numerics" in words]
    refused = rf"the numerics of the workbench \({NUMERICS} → {NUMERICS + 1}\).*--accept-change"
    with pytest.raises(WorkbenchError, match=refused):
        run(study(text, *quick, "replicates=2"), tmp_path)
    assert tags(first) == [ours] * (1 + first.trained)  # nothing was begun
    more, _ = run(study(text, *quick, "replicates=2"), tmp_path, accept_change=True)
    accepted = f"the numerics of the workbench ({NUMERICS} → {NUMERICS + 1})"
    assert [accepted in words for words in told if "numerics" in words] == [True]
    assert more.trained == first.trained
    assert tags(more) == [f"{NUMERICS}, {NUMERICS + 1}", *[ours] * more.trained, *[str(NUMERICS + 1)] * more.trained]
    assert environment(read(more))["numerics"] == f"{NUMERICS}, {NUMERICS + 1}"


def test_a_study_of_0_1_0_was_begun_under_numerics_1(text: str, tmp_path: Path) -> None:
    config = study(text, "search.learning_rates=[0.01]", "replicates=1")
    first, parts = run(config, tmp_path)
    for fact in (NUMERICS_FACT, changes.FACT):  # as 0.1.0 left it
        ledger = Ledger(parts.folder / "ledger.db")
        ledger.remember(fact, None)
        ledger.close()
    again, _ = run(config, tmp_path)
    ledger = Ledger(parts.folder / "ledger.db")
    assert (again.trained, ledger.fact(NUMERICS_FACT)) == (0, [1])
    assert ledger.fact(changes.FACT)["fingerprints"]["numerics"] == "1"
    assert read(first).tags[Tag.NUMERICS] == "1"
    ledger.close()


def read(result: StudyResult) -> StudyRecord:
    return read_study(result.tracking_uri, result.study_id)


def test_the_plan_is_tracked_and_leaving_it_is_told(text: str, tmp_path: Path) -> None:
    config = study(text, "search.learning_rates=[0.003]")
    first, _ = run(config, tmp_path)
    kept = read(first)
    assert kept.plan is not None
    assert (kept.plan.primary, kept.plan.looks, kept.plan.margin) == ("overall", (2,), 0.01)
    assert [(f.measures, f.share) for f in kept.plan.families] == [(("overall",), 0.8), (("read", "digit"), 0.2)]
    planned = kept.tags["workbench.plan"]
    assert len(planned) == 16
    assert kept.departures == ()
    run(config, tmp_path)
    assert read(first).departures == ()

    more, _ = run(study(text, "search.learning_rates=[0.003]", "replicates=3", "plan.margin=0.05"), tmp_path)
    left = read(more)
    assert more.run_id == first.run_id
    assert left.tags["workbench.plan"] == planned  # the one that stood first
    (told,) = left.departures
    assert "after 6 finished variant-replicates: margin from 0.01 to 0.05" in told
    assert "replicates at which verdicts are read from [2] to [3]" in told
    assert any(told in caveat for caveat in answer(Analysis(left)).caveats)


def test_a_plan_that_comes_after_the_runs_is_no_plan(text: str, tmp_path: Path) -> None:
    config = study(text, "search.learning_rates=[0.003]", "replicates=1")
    _, parts = run(config, tmp_path)
    with sqlite3.connect(parts.folder / "ledger.db") as db:  # a study from before there were plans
        db.execute("DELETE FROM facts WHERE name = 'plan'")
    again, _ = run(config, tmp_path)
    (told,) = read(again).departures
    assert "after 3 finished variant-replicates: a plan was tracked for the first time" in told


def test_a_plan_changed_before_anything_was_trained_is_the_plan(text: str, tmp_path: Path) -> None:
    parts = prepare(study(text, "search.learning_rates=[0.003]"), tmp_path, progress=False)
    parts.folder.mkdir(parents=True)
    ledger = Ledger(parts.folder / "ledger.db")
    other = {"primary": "read", "families": [], "level": 0.05, "margin": None, "looks": [2]}
    ledger.remember("plan", {"first": other, "last": other, "changes": []})
    ledger.close()
    result, _ = run(study(text, "search.learning_rates=[0.003]", "replicates=1"), tmp_path)
    assert read(result).departures == ()


def test_a_look_that_decides_ends_the_study(text: str, tmp_path: Path) -> None:
    """With a margin that holds everything, all is equivalent at the first look, and no more is trained."""
    plan = ["plan.looks=[5,7]", "replicates=7", "baselines=true", "tasks=[digit]", "training.epochs=1"]
    wide = study(text, "search.learning_rates=[0.003]", *plan, "plan.margin=0.99")
    result, _ = run(wide, tmp_path)
    record = read(result)
    assert record.replicates == tuple("01234")
    assert record.complete
    words = {c.verdict for c in Analysis(record).comparisons.values()}
    assert Verdict.EQUIVALENT in words
    assert words <= {Verdict.EQUIVALENT, Verdict.ITSELF, Verdict.BETTER, Verdict.WORSE}
    again, _ = run(wide, tmp_path)
    assert again.trained == 0
    narrow, _ = run(study(text, "search.learning_rates=[0.003]", *plan, "plan.margin=null"), tmp_path)
    assert read(narrow).replicates == tuple("0123456")  # chance against chance: nothing is decided


def test_bank_size_moves_no_result(text: str, tmp_path: Path) -> None:
    def results(size: int) -> dict[tuple[str, str], float]:
        _, parts = run(
            study(text, f"training.bank_size={size}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"),
            tmp_path / str(size),
        )
        return {
            (e.variant, e.replicate): e.result["test/loss"]
            for e in Ledger(parts.folder / "ledger.db").entries()
            if e.replicate != "search"
        }

    assert results(1) == results(6)


def test_a_rate_for_each_strategy(text: str, tmp_path: Path) -> None:
    result, _ = run(study(text, "search.scope=strategy", "single_layers=[0,1]"), tmp_path)
    phases = Counter((r.data.tags["workbench.phase"], r.data.params["strategy"]) for r in runs(result))
    assert phases == {("search", s): 2 for s in ("deep_only", "concat", "mmfuser")} | {
        ("final", "deep_only"): 6, ("final", "concat"): 2, ("final", "mmfuser"): 2}  # fmt: skip


def test_live_features_give_the_metrics_of_the_store(text: str, tmp_path: Path) -> None:
    def losses(live: bool) -> list[float]:
        config = study(text, "search.learning_rates=[0.003]", "replicates=1", f"training.live={str(live).lower()}")
        result, _ = run(config, tmp_path / str(live))
        return [r.data.metrics["test/loss"] for r in sorted(runs(result), key=lambda r: str(r.data.params["strategy"]))]

    for stored, live in zip(losses(False), losses(True), strict=True):
        assert stored == pytest.approx(live, rel=0.02)  # the store keeps bf16


def test_a_deleted_mlflow_run_is_restored(text: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    config = study(text, "search.learning_rates=[0.003]")
    first, _ = run(config, tmp_path)
    MlflowClient(tracking_uri=first.tracking_uri).delete_run(runs(first)[0].info.run_id)
    again, _ = run(config, tmp_path)
    assert (again.trained, again.kept) == (0, 6)
    assert len(runs(again)) == 6


def test_a_variant_that_diverges_is_failed_and_said(text: str, tmp_path: Path) -> None:
    config = study(text, "search.learning_rates=[1.0e+30]", "replicates=1", "training.gradient_clip=0")
    result, _ = run(config, tmp_path)
    assert result.failed >= 1
    failed = [r for r in runs(result) if r.info.status == "FAILED"]
    assert len(failed) == result.failed
    assert {r.data.tags["workbench.outcome"] for r in failed} == {"diverged"}
    kept, _ = run(config, tmp_path)
    assert kept.trained == 0
    again, _ = run(config, tmp_path, retry_failed=True)
    assert again.trained == result.failed


def test_an_error_leaves_no_run_running(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_workbench.modules.probes.bank import FusionBank

    def broken(self: FusionBank, *args: Any) -> None:
        raise RuntimeError("a bug")

    config = study(text, "search.learning_rates=[0.003]")
    with monkeypatch.context() as patch:
        patch.setattr(FusionBank, "_step", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            run(config, tmp_path)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=config.tracking.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "fusion-workbench"]
    assert {r.info.status for r in client.search_runs([experiment.experiment_id])} == {"FAILED"}
    result, _ = run(config, tmp_path)
    assert result.trained == 6


def test_two_processes_cannot_run_one_study(text: str, tmp_path: Path) -> None:
    from filelock import FileLock

    parts = prepare(study(text), tmp_path, progress=False)
    parts.folder.mkdir(parents=True)
    with FileLock(parts.folder / "lock"), pytest.raises(WorkbenchError, match="run by another process"):
        Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategies[0].name=conkat", "Did you mean 'concat'"),
        ("strategies[2].options.head=2", "Did you mean 'heads'"),
        ("strategies[2].options.heads=5", "heads"),
        ("tasks=[reed]", "Did you mean 'read'"),
        ("selections[0].levels=[1,4]", "out of range"),
        ("selections[0].levels=[1,hs:1]", "both layer 1"),
        ("source.name=finescene", "Did you mean 'finescenes'"),
        ("source.options.trian=3", "Did you mean 'train'"),
        ("encoder.image_size=56", "images of 112 × 112 px"),
        ("encoder.image_size=113", "multiple of 14"),
        ("encoder.name=nowhere/at-all", "neither a transformers folder"),
        ("training.projector=lineer", "Did you mean 'linear'"),
        ("training.batch_size=64", "training examples"),
    ],
)
def test_mistakes_are_found_before_any_work(text: str, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message) as caught:
        prepare(study(text, override), tmp_path, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "studies").exists()
