"""Whole studies on CUDA in bf16, small and real: of probes, and of language models."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.reports import write_report
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display

pytestmark = pytest.mark.gpu

PROBES = """
name: probes
question: Does it run on a GPU?
encoder: {{name: {encoder}, image_size: 112}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 12}}}}
strategies: [{{name: deep_only}}, {{name: average}}, {{name: concat}}, {{name: mmfuser, options: {{heads: 2}}}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.001, 0.003]}}
training: {{epochs: 2, batch_size: 8, head_hidden: 16, bank_size: 4, precision: bf16-mixed}}
tracking: {{uri: "{uri}"}}
"""
LANGUAGE = """
name: language
question: Does a language model that sees run on a GPU?
encoder: {{name: "planted:depth=4,dim=16,signal=1+3,strength=8.0", image_size: 8}}
source: {{name: planted_questions, options: {{train: 32, val: 8, test: 8}}}}
tasks: [first, second]
strategies: [{{name: deep_only}}, {{name: mmfuser, options: {{heads: 2}}}}, {{name: deepstack}}]
selections: [{{levels: [1, 2], query: 3}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{batch_size: 8, projector: mlp2x_gelu}}
language_model:
  name: {language}
  max_new_tokens: 2
  stages: [{{name: align, epochs: 1}}, {{name: tune, language_model: lora, epochs: 1, lr_scale: 0.1}}]
tracking: {{uri: "{uri}"}}
"""


def run(text: str, workspace: Path) -> tuple[StudyResult, Parts]:
    parts = prepare(study_from_yaml(text, "gpu.yaml", []), workspace, progress=False)
    return Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run(), parts


def finals(result: StudyResult) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=result.tracking_uri)
    experiment = client.get_run(result.run_id).info.experiment_id
    wanted = f"tags.`mlflow.parentRunId` = '{result.run_id}' and tags.`workbench.phase` = 'final'"
    return list(client.search_runs([experiment], wanted, max_results=100))


@pytest.mark.parametrize("live", [False, True], ids=["stored", "live"])
def test_a_study_of_probes(live: bool, tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    text = PROBES.format(encoder=tiny_dinov2, uri=mlflow_uri).replace("bank_size: 4", f"bank_size: 4, live: {live}")
    result, parts = run(text, tmp_path)
    assert parts.encoder.device.type == "cuda"
    assert parts.encoder.precision == "bf16"
    assert (result.cells, result.failed) == (4, 0)
    assert len(finals(result)) == 8
    for child in finals(result):
        metrics = child.data.metrics
        assert child.info.status == "FINISHED"
        for name in ("cost/seconds", "cost/ms_per_image_forward", "cost/peak_memory_mb"):
            assert metrics[name] > 0
        assert math.isfinite(metrics["test/loss"])
        where = {"run_id": child.info.run_id, "tracking_uri": result.tracking_uri}
        outcomes = pd.read_parquet(download_artifacts(artifact_path="outcomes/test.parquet", **where))
        assert outcomes["score"].notna().all()
    assert run(text, tmp_path)[0].trained == 0
    assert Path(write_report(mlflow_uri, "probes", tmp_path / "report", "fusion-workbench").html).is_file()


def test_a_study_of_language_models(tiny_language: Path, mlflow_uri: str, tmp_path: Path) -> None:
    result, parts = run(LANGUAGE.format(language=tiny_language, uri=mlflow_uri), tmp_path)
    assert parts.language is not None
    assert parts.language.decoder().device.type == "cuda"
    assert parts.language.decoder().precision == "bf16"
    assert (result.cells, result.failed) == (3, 0)
    for child in finals(result):
        metrics = child.data.metrics
        assert child.info.status == "FINISHED"
        assert 0 <= metrics["test/first/exact_match"] <= 1
        assert metrics["cost/peak_memory_mb"] > 0
        assert metrics["cost/samples_per_second"] > 0
    assert run(LANGUAGE.format(language=tiny_language, uri=mlflow_uri), tmp_path)[0].trained == 0
    assert Path(write_report(mlflow_uri, "language", tmp_path / "report", "fusion-workbench").html).is_file()
