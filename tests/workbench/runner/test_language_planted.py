"""A frozen language model that can read, and a connector that is trained: it must read the planted layers, and only
while it is shown the image.

The language model is tiny and real: it is first taught, on text alone, to say which of a few letters before the
question is one of a, b, c ("first") or of x, y, z ("second"). Then it is frozen. What it answers about the images of
:mod:`datamodules.conversations.planted` can therefore only have come through the connector.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.datamodules.conversations.base import ASSISTANT, USER, Conversation, Turn
from fusion_workbench.datamodules.conversations.chat import Chat
from fusion_workbench.datamodules.conversations.planted import WORDS
from fusion_workbench.models.export import export_run
from fusion_workbench.models.loaded import load_model
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display

pytestmark = pytest.mark.long  # a language model is taught, and two connectors are trained, twice

STUDY = """
name: reads
question: Which layers does a frozen language model read?
encoder: {{name: "planted:depth=4,dim=16,signal=1+3,strength=8.0", image_size: 8}}
source: {{name: planted_questions, options: {{train: 640, val: 24, test: 90}}}}
tasks: [first, second]
strategies: [{{name: deep_only}}, {{name: concat}}]
selections: [{{levels: [1], query: 3}}]
single_layers: [2]
baselines: false
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.01]}}
training: {{batch_size: 16, projector: mlp2x_gelu}}
language_model:
  name: {language}
  weights: float32
  max_new_tokens: 2
  stages: [{{name: align, epochs: 6}}]
tracking: {{uri: "{uri}"}}
"""


def taught(folder: Path, tiny: Path) -> Path:
    """The tiny language model of the other tests, after it has learned to read letters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    chat = Chat(tokenizer, 512, 4, system="")
    draw = np.random.RandomState(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    lessons = [chat.encode(lesson(draw)) for _ in range(800)]
    for step in range(500):
        rows = [lessons[n] for n in draw.choice(len(lessons), 32, replace=False)]
        longest = max(len(row.input_ids) for row in rows)
        ids = torch.tensor([list(r.input_ids) + [0] * (longest - len(r.input_ids)) for r in rows])
        labels = torch.tensor([list(r.labels) + [-100] * (longest - len(r.labels)) for r in rows])
        mask = torch.tensor([[n < len(r.input_ids) for n in range(longest)] for r in rows]).long()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 60 and loss < 0.005:
            break
    assert loss < 0.05, "the tiny model did not learn to read letters"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lesson(draw: np.random.RandomState) -> Conversation:
    """Four letters, of which one is a first and one a second, and a question about either."""
    letters = [str(draw.choice(list(WORDS[kind]))) for kind in WORDS] + [str(draw.choice(list("klmn"))) for _ in "12"]
    shown = "".join(letters[n] for n in draw.permutation(4))
    number = int(draw.randint(2))
    kind = list(WORDS)[number]
    turns = (Turn(USER, f"{shown}\nThe {kind} letter?"), Turn(ASSISTANT, letters[number]))
    return Conversation("lesson", turns)


@pytest.fixture(scope="module")
def study(
    tiny_language: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StudyResult, Parts, str]:
    folder = tmp_path_factory.mktemp("planted")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        language = taught(folder / "language", tiny_language)
    parts = prepare(study_from_yaml(STUDY.format(language=language, uri=uri), "reads.yaml"), folder, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    assert result.failed == 0
    return result, parts, uri


def means(study: tuple[StudyResult, Parts, str]) -> dict[str, dict[str, float]]:
    """Mean over replicates of every metric, by the cell's layers."""
    from mlflow.tracking import MlflowClient

    result, _, uri = study
    client = MlflowClient(tracking_uri=uri)
    parent = client.get_run(result.run_id)
    found: dict[str, list[dict[str, float]]] = {}
    for run in client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=100
    ):
        params = run.data.params
        found.setdefault(f"{params['strategy']} {params['levels']}→{params['query']}", []).append(run.data.metrics)
    return {cell: {key: float(np.mean([run[key] for run in runs])) for key in runs[0]} for cell, runs in found.items()}


def test_it_reads_the_planted_layers_and_no_other(study: tuple[StudyResult, Parts, str]) -> None:
    found = means(study)
    both, second, noise = found["concat 1→3"], found["deep_only →3"], found["deep_only →2"]
    assert min(both["test/first/exact_match"], both["test/second/exact_match"]) > 0.6
    assert second["test/second/exact_match"] > 0.6
    assert second["test/first/exact_match"] < 0.55
    assert max(noise["test/first/exact_match"], noise["test/second/exact_match"]) < 0.55


def test_without_its_image_it_guesses(study: tuple[StudyResult, Parts, str]) -> None:
    both = means(study)["concat 1→3"]
    for control in ("blank", "shuffled"):
        for task in WORDS:
            assert both[f"control/{control}/{task}"] < 0.55


def test_what_is_exported_answers_as_it_did(study: tuple[StudyResult, Parts, str], tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    _, parts, uri = study
    exported = export_run(uri, "reads:concat [1]→3", tmp_path / "model")
    assert exported.layers == (1, 3)
    asked = parts.conversations.conversations("test")[:10]
    images = [[parts.source.image("test", question.images[0])] for question in asked]
    said = load_model(exported.folder, "cpu").answer(images, [q.question for q in asked], max_new_tokens=2)
    path = download_artifacts(
        run_id=exported.run_id, artifact_path="outcomes/answers.parquet", tracking_uri=uri, dst_path=str(tmp_path)
    )
    logged = pd.read_parquet(path)
    assert said == list(logged["prediction"][:10])


def test_the_report_says_so(study: tuple[StudyResult, Parts, str], tmp_path: Path) -> None:
    import json

    from fusion_workbench.reports import write_report

    result, _, uri = study
    paths = write_report(uri, result.study_id, tmp_path, "fusion-workbench")
    told = json.loads((Path(paths.html).parent / "report.json").read_text(encoding="utf-8"))
    assert "concat [1]→3" in paths.answer
    assert "looks at the image" in Path(paths.html).read_text(encoding="utf-8")
    assert told["language"]
