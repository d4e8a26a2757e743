"""A whole study of language models, small and real: tiny encoder and decoder, real scenes, MLflow and ledger."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
from rich.console import Console

from fusion_workbench.config.study import StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.schema.names import StepMetric, is_own_metric
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display
from fusion_workbench.sweeps.planner import Planner

STUDY = """
name: tiny
question: Does it run?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes_questions, options: {{train: 16, val: 4, test: 6}}}}
tasks: [position, digit]
strategies: [{{name: deep_only}}, {{name: concat}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.001]}}
training: {{batch_size: 4, projector: mlp2x_gelu}}
language_model:
  name: {language}
  weights: float32
  max_length: 4096
  max_new_tokens: 3
  stages: [{{name: align, epochs: 2}}]
tracking: {{uri: "{uri}"}}
"""


@pytest.fixture
def text(tiny_dinov2: Path, tiny_language: Path, mlflow_uri: str) -> str:
    return STUDY.format(encoder=tiny_dinov2, language=tiny_language, uri=mlflow_uri)


def study(text: str, *overrides: str) -> StudyConfig:
    return study_from_yaml(text, "tiny.yaml", list(overrides))


def run(config: StudyConfig, workspace: Path, **options: Any) -> tuple[StudyResult, Parts]:
    parts = prepare(config, workspace, progress=False)
    return Experiment(parts, Display(Console(file=io.StringIO()), progress=False), **options).run(), parts


def children(result: StudyResult) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=result.tracking_uri)
    parent = client.get_run(result.run_id)
    wanted = f"tags.`mlflow.parentRunId` = '{result.run_id}'"
    return list(client.search_runs([parent.info.experiment_id], wanted, max_results=100))


def test_a_study_from_end_to_end(text: str, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    result, parts = run(study(text), tmp_path)
    assert (result.cells, result.trained, result.failed) == (2, 2, 0)
    for child in children(result):
        metrics = child.data.metrics
        assert child.info.status == "FINISHED"
        assert 0 <= metrics["test/position/exact_match"] <= 1
        assert {"control/blank/digit", "control/shuffled/position", "val/objective"} <= set(metrics)
        assert metrics["cost/samples_per_second"] > 0
        assert all(is_own_metric(name) for name in metrics.keys() - set(StepMetric))
        folder = Path(
            download_artifacts(run_id=child.info.run_id, tracking_uri=result.tracking_uri, dst_path=str(tmp_path / "a"))
        )
        outcomes = pd.read_parquet(folder / "outcomes/test.parquet")
        assert set(outcomes["task"]) == {"position", "digit"}
        assert len(outcomes) == 2 * 6
        assert outcomes.groupby("task")["score"].mean()["digit"] == pytest.approx(metrics["test/digit/exact_match"])
        words = pd.read_parquet(folder / "outcomes/answers.parquet")
        assert list(words["answers"][0]) == [parts.conversations.conversations("test")[0].references[0]] or len(words)
    assert not list((parts.folder / "checkpoints").glob("*/*.ckpt")), "checkpoints of committed jobs are removed"
    again, _ = run(study(text), tmp_path)
    assert (again.trained, again.kept) == (0, 2)

    ledger = Ledger(parts.folder / "ledger.db")
    record = ledger.fact("dependencies")
    record["fingerprints"]["conversations.test"] = "of another file"
    ledger.remember("dependencies", record)
    ledger.close()
    again, _ = run(study(text), tmp_path)
    assert (again.trained, again.kept) == (0, 2)
    with pytest.raises(WorkbenchError, match=r"the conversations in the test split of source 'finescenes_questions'"):
        run(study(text, "replicates=2"), tmp_path)


def test_diagnoses_of_connectors_are_logged_and_layers_of_injections_weighed(text: str, tmp_path: Path) -> None:
    strategies = "strategies=[{name: mmfuser, options: {heads: 2}}, {name: deepstack}]"
    said = io.StringIO()
    parts = prepare(study(text, strategies), tmp_path, progress=False)
    result = Experiment(parts, Display(Console(file=said), progress=False)).run()
    assert (result.trained, result.failed) == (2, 0)
    fused, injected = sorted(
        (child.data.metrics for child in children(result)), key=lambda m: "gate/gamma1_rms" not in m
    )
    assert fused["attention_share/layer_1"] + fused["attention_share/layer_2"] == pytest.approx(1)
    assert fused["sampling_offset_rms_cells"] > 0
    assert {"gate/gamma1_rms", "tokens_rms"} <= fused.keys()
    assert injected["tokens_rms"] > 0
    assert [value > 0 for name, value in injected.items() if name.startswith("injected_rms/block_")] == [True, True]
    assert all(is_own_metric(name) for name in (fused.keys() | injected.keys()) - set(StepMetric))
    assert "left out" not in said.getvalue()


def test_strategies_start_at_the_scale_of_words_on_the_study_s_own_images(text: str, tmp_path: Path) -> None:
    """With LLaVA's projector, which normalises nothing; with ``match_scale: false`` they stay as initialised."""
    from fusion_workbench.study.identity import variant
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.training.language_training import LanguageRun

    strategies = (
        "strategies=[{name: deep_only}, {name: concat}, {name: mmfuser, options: {heads: 2}}, {name: deepstack}]"
    )
    for matched in (True, False):
        config = study(
            text,
            strategies,
            "language_model.projector_norm=false",
            f"language_model.match_scale={str(matched).lower()}",
        )
        parts = prepare(config, tmp_path, progress=False)
        starts: dict[str, list[float]] = {"train": [], "val": []}
        for cell in parts.space.listed:
            run = LanguageRun(parts, Job(variant(config, cell, 1e-3), "0"), tmp_path / "run")
            assert bool(run.connector_config.output_rms) == matched
            words = run.model.decoder.embedding_rms()
            for split, ratios in starts.items():
                told = run.diagnose(split).items()
                ratios += [value / words for name, value in told if "rms" in name and "cells" not in name]
        assert all(len(ratios) == 4 + 2 for ratios in starts.values())
        apart = {split: max(abs(ratio - 1) for ratio in ratios) for split, ratios in starts.items()}
        if matched:  # on the images that it is measured on; four others may be a little louder
            assert apart["train"] < 1e-3
            assert apart["val"] < 0.3
        else:
            assert min(apart.values()) > 0.3


def test_the_report_of_language_models(text: str, tmp_path: Path) -> None:
    from fusion_workbench.reports import write_report

    result, _ = run(study(text), tmp_path)
    paths = write_report(result.tracking_uri, "tiny", tmp_path / "report", "fusion-workbench")
    page = Path(paths.html).read_text(encoding="utf-8")
    assert "blank" in page
    assert "concat" in page


def test_a_run_that_was_cut_off_goes_on_where_it_was(text: str, tmp_path: Path) -> None:
    """The weights are those of a run that was left alone, bit for bit, in the middle of an epoch and of the stages."""
    from fusion_workbench.study.identity import variant
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.training.language_training import LanguageRun

    stages = "language_model.stages=[{name: align, epochs: 2}, {name: tune, language_model: full, lr_scale: 0.1}]"
    config = study(text, stages, "language_model.checkpoint_every=1")
    parts = prepare(config, tmp_path, progress=False)
    assert parts.store is not None
    parts.store.build([1, 2, 3], batch_size=8, progress=False)
    job = Job(variant(config, parts.space.listed[1], 1e-3), "0")
    whole = LanguageRun(parts, job, tmp_path / "whole")
    whole.train()

    for stop in (3, 6, 9):

        class Cut(Exception):
            pass

        done = 0

        def count(steps: int, stop: int = stop) -> None:
            nonlocal done
            done += steps
            if done >= stop:
                raise Cut

        folder = tmp_path / f"cut{stop}"
        with pytest.raises(Cut):
            LanguageRun(parts, job, folder, advance=count).train()
        resumed = LanguageRun(parts, job, folder)
        resumed.train()
        assert resumed.samples < whole.samples
        assert resumed.before > 0, "the time of what was taken up counts"
        wanted = whole.model.state_dict()
        for name, value in resumed.model.state_dict().items():
            assert torch.equal(value, wanted[name]), f"{name} after a stop at step {stop}"
        assert resumed.history == whole.history


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("source.name=finescenes", "no conversations"),
        ("tasks=[positon]", "Did you mean 'position'"),
        ("language_model.name=/nowhere/at-all", "cannot be had"),
        ("language_model.stages=[{name: a, connector: false}]", "trains nothing"),
        ("language_model.stages=[{name: a}, {name: a}]", "two of the name 'a'"),
        ("language_model.max_length=20", "max_length"),
        ("training.width=64", "leave it at 0"),
        ("training.batch_size=64", "a batch must fit"),
        ("tasks=[position, position]", "names 'position' twice"),
        ("language_model.lora.alpha=0", "lora.alpha is 0"),
        ("training.epochs=4", "set epochs of each of language_model.stages"),
        ("training.head_hidden=64", "no heads"),
        ("strategies=[{name: deepstak}]", "Did you mean 'deepstack'"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(text: str, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(WorkbenchError) as error:
        prepare(study(text, override), tmp_path, progress=False)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_one_key_switches_the_strategy(text: str, tmp_path: Path) -> None:
    """Also to one that injects into the decoder."""
    result, parts = run(study(text, "strategies=[{name: deepstack}]", "language_model.stages=[{name: a}]"), tmp_path)
    assert (result.trained, result.failed) == (1, 0)
    ledger = Ledger(parts.folder / "ledger.db")
    assert all(entry.finished for entry in ledger.entries())


def test_an_injection_has_no_control_and_is_tried_without_each_layer(text: str, tmp_path: Path) -> None:
    from fusion_workbench.runner.confirm import Confirmer
    from fusion_workbench.study.jobs import JobTrainer

    said = io.StringIO()
    parts = prepare(study(text, "strategies=[{name: deepstack}]"), tmp_path, progress=False)
    (cell,) = parts.space.listed

    class Silent:
        display = Display(Console(file=said, width=200), progress=False)

    confirmer = Confirmer(parts, cast(JobTrainer, Silent()), [cell], {cell.id: 1e-3})
    assert list(confirmer._controls(cell)) == []
    assert "injects into the decoder" in said.getvalue()
    without = list(confirmer._without(cell))
    assert [c.without for c in without] == list(cell.selection.layers)
    assert {c.cell.strategy for c in without} == {"deepstack"}


@pytest.mark.long
def test_an_injection_is_confirmed_on_fresh_replicates(text: str, tmp_path: Path) -> None:
    overrides = ("strategies=[{name: deepstack}]", "language_model.stages=[{name: a}]", "plan.confirm=[5]")
    result, parts = run(study(text, *overrides), tmp_path)
    entries = [e for e in Ledger(parts.folder / "ledger.db").entries() if e.replicate.startswith("c")]
    assert len(entries) == 5 * (1 + 3), "itself, and without each of three layers"
    assert all(entry.finished for entry in entries)
    assert result.failed == 0


def test_a_limit_of_validation_asks_every_task(text: str, tmp_path: Path) -> None:
    """Though the source lists the kinds of question in turn, and the limit divides their number."""
    parts = prepare(study(text, "language_model.val_limit=4"), tmp_path, progress=False)
    assert parts.language is not None
    listed = parts.conversations.conversations("val")
    asked = parts.language.questions(parts.conversations, "val")
    assert sorted(listed[n].task for n in asked) == ["digit", "digit", "position", "position"]
    assert len({listed[n].id for n in asked}) == 2
    assert len(parts.language.questions(parts.conversations, "test")) == 2 * 6


def test_of_a_stages_own_source_the_training_split_alone_is_encoded(text: str, tmp_path: Path) -> None:
    own = "source: {name: finescenes_questions, options: {train: 16, val: 4, test: 6, seed: 1}}"
    config = study(text, f"language_model.stages=[{{name: captions, {own}}}, {{name: tune}}]")
    parts = prepare(config, tmp_path, progress=False)
    assert parts.language is not None

    class Planned:
        def layers(self) -> list[int]:
            return [3]

    experiment = Experiment(parts, Display(Console(file=io.StringIO()), progress=False))
    experiment._build_store(cast(Planner, Planned()))
    store, whole = parts.language.features["captions"].store, parts.store
    assert store is not None
    assert whole is not None
    assert not store.plan([3], ["train"]).passes
    assert store.plan([3], ["val", "test"]).passes
    assert not whole.plan([3]).passes


def test_an_answer_ends_where_the_template_ends_it(text: str, tiny_language: Path, tmp_path: Path) -> None:
    """Also where that is not the tokenizer's own end, as in many base models."""
    from transformers import AutoTokenizer

    folder = tmp_path / "language"
    shutil.copytree(tiny_language, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<unk>' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    parts = prepare(study(text, f"language_model.name={folder}"), tmp_path, progress=False)
    assert parts.language is not None
    assert parts.language.chat.template.end() == "<unk>"
    assert parts.language.decoder().stop_ids == [1, 2]


def test_accumulated_batches_do_not_lower_the_loss_that_is_shown(text: str, tmp_path: Path) -> None:
    from fusion_workbench.study.identity import variant
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.training.language_training import LanguageRun

    losses = []
    for accumulate in (1, 2):
        config = study(text, f"language_model.stages=[{{name: align, accumulate: {accumulate}}}]")
        parts = prepare(config, tmp_path, progress=False)
        assert parts.store is not None
        parts.store.build([1, 2, 3], batch_size=8, progress=False)
        cell = parts.space.listed[0]
        # the same start, and steps too small to move it
        job = Job(variant(study(text), cell, 1e-12), "0")
        made = LanguageRun(parts, job, tmp_path / f"run{accumulate}")
        made.train()
        losses.append(sum(row["train/loss"] for row in made.history) / len(made.history))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_teach_what_one_would(text: str, tmp_path: Path, parallel: str) -> None:
    """Two processes with half of each batch end with the weights of one with the whole."""
    from fusion_workbench.study.identity import variant
    from fusion_workbench.study.jobs import Job
    from fusion_workbench.training.distributed import train_distributed
    from fusion_workbench.training.language_training import LanguageRun

    def run_of(devices: int, batch: int) -> LanguageRun:
        config = study(
            text,
            f"training.devices={devices}",
            f"training.batch_size={batch}",
            "training.accelerator=cpu",
            f"language_model.parallel={parallel if devices > 1 else 'auto'}",
            "language_model.stages=[{name: align}, {name: tune, language_model: full, lr_scale: 0.1}]",
            # Answers of one length: a step follows the mean of the processes' means.
            "source.options.kinds=[digit]",
            "tasks=[digit]",
        )
        parts = prepare(config, tmp_path, progress=False)
        assert parts.store is not None
        parts.store.build([1, 2, 3], batch_size=8, progress=False)
        # the same job by name, so that it starts from the same weights and order
        job = Job(variant(study(text), parts.space.listed[1], 1e-3), "0")
        run = LanguageRun(parts, job, tmp_path / f"run{devices}")
        if devices > 1:
            train_distributed(
                parts, job, run.folder, lambda number, row: None, lambda steps: None, lambda step, row: None
            )
        run.train()
        return run

    one, two = run_of(1, 4), run_of(2, 2)
    assert two.samples == 0, "the workers trained, and their checkpoints were taken up"
    wanted = one.model.state_dict()
    for name, value in two.model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.long
def test_two_processes_stop_together_when_the_loss_is_no_number(text: str, tmp_path: Path) -> None:
    """And the study does not go on alone with what they left."""
    config = study(text, "training.devices=2", "training.batch_size=2", "training.accelerator=cpu")
    config.search.learning_rates = [1e30]
    result, parts = run(config, tmp_path)
    assert (result.trained, result.failed) == (2, 2)
    assert {entry.status for entry in Ledger(parts.folder / "ledger.db").entries()} == {"diverged"}
