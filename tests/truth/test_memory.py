"""What a study holds while it trains one bank after another."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cases import Kind, case

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.probes.bank import FusionBank
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.study.jobs import Job
from fusion_workbench.study.prepare import prepare
from fusion_workbench.study.progress import Display
from fusion_workbench.training.language_jobs import LanguageTrainer
from fusion_workbench.training.probes import BankTrainer

PROBES = """
name: many
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 16, val: 4, test: 4}}}}
tasks: [digit]
strategies: [{{name: average}}, {{name: concat}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 3
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{epochs: 1, batch_size: 8, head_hidden: 16, bank_size: 1}}
tracking: {{uri: "{uri}"}}
"""
LANGUAGE = """
name: many
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes_questions, options: {{train: 8, val: 4, test: 4}}}}
tasks: [position]
strategies: [{{name: deep_only}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 3
plan: {{confirm: []}}
search: {{learning_rates: [0.001]}}
training: {{batch_size: 4}}
language_model:
  name: {language}
  weights: float32
  max_length: 4096
  max_new_tokens: 2
  controls: false
tracking: {{uri: "{uri}"}}
"""


@pytest.fixture
def no_luck() -> Iterator[None]:
    """Cycles go when they are collected, and not because the collector happened to run."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held_at_each_start(
    trainer: type[Any], kind: type[Any], text: str, workspace: Path, display: Display, patch: pytest.MonkeyPatch
) -> list[int]:
    """How many objects of ``kind`` there are whenever a group of jobs begins, and at the end."""
    plain, counts = trainer.train_group, []

    def count() -> None:
        counts.append(sum(type(found) is kind for found in gc.get_objects()))

    def counting(self: Any, jobs: Sequence[Job], *args: Any) -> None:
        count()
        plain(self, jobs, *args)

    patch.setattr(trainer, "train_group", counting)
    experiment = Experiment(prepare(study_from_yaml(text, "a"), workspace, progress=False), display)
    experiment.run()
    count()
    return counts


@pytest.fixture
def display() -> Display:
    import io

    from rich.console import Console

    return Display(Console(file=io.StringIO()), progress=False)


@case(
    Kind.GROWTH,
    "many banks are trained one after another",
    "no bank outlives its training: memory is that of one, however many there are",
)
@pytest.mark.usefixtures("no_luck")
def test_no_bank_outlives_its_training(
    tiny_dinov2: Path, mlflow_uri: str, tmp_path: Path, display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PROBES.format(encoder=tiny_dinov2, uri=mlflow_uri)
    assert held_at_each_start(BankTrainer, FusionBank, text, tmp_path, display, monkeypatch) == [0] * 7


@case(Kind.GROWTH, "many language models are trained one after another", "likewise")
@pytest.mark.usefixtures("no_luck")
def test_no_language_model_outlives_its_training(
    tiny_dinov2: Path,
    tiny_language: Path,
    mlflow_uri: str,
    tmp_path: Path,
    display: Display,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = LANGUAGE.format(encoder=tiny_dinov2, language=tiny_language, uri=mlflow_uri)
    counts = held_at_each_start(LanguageTrainer, VisionLanguageModel, text, tmp_path, display, monkeypatch)
    assert counts == [0] * 4
