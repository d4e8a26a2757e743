"""What a study cuts or leaves out for its length: told before, while and after it trains, and as it was told."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fusion_workbench.config.study import StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IMAGE_ID
from fusion_workbench.datamodules.conversations.base import Conversation, Turn
from fusion_workbench.datamodules.conversations.chat import Chat
from fusion_workbench.datamodules.conversations.tokenised import tokenise
from fusion_workbench.reports import write_report
from fusion_workbench.runner import dry_run
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.study.identity import variant
from fusion_workbench.study.jobs import Job
from fusion_workbench.study.language_parts import stage_steps
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display
from fusion_workbench.training.language_training import LanguageRun

STUDY = """
name: lengths
question: Does it say what it leaves out?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes_questions, options: {{train: 12, val: 2, test: 3}}}}
tasks: [position, digit]
strategies: [{{name: deep_only}}, {{name: sti}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 1
plan: {{confirm: []}}
search: {{learning_rates: [0.001]}}
training: {{batch_size: 3, projector: mlp2x_gelu}}
language_model:
  name: {language}
  weights: float32
  max_length: 4096
  max_new_tokens: 2
  controls: false
  stages: [{{name: align}}]
tracking: {{uri: "{uri}"}}
"""
GRID = 64  # tokens of 112 px
APPENDED = 2 * 8  # by sti, of two levels


@pytest.fixture
def text(tiny_dinov2: Path, tiny_language: Path, mlflow_uri: str) -> str:
    return STUDY.format(encoder=tiny_dinov2, language=tiny_language, uri=mlflow_uri)


def study(text: str, *overrides: str) -> StudyConfig:
    return study_from_yaml(text, "lengths.yaml", list(overrides))


def plan(parts: Parts) -> str:
    said = io.StringIO()
    dry_run.show_plan(Console(file=said, width=300), parts)
    return said.getvalue()


def test_what_is_told_is_what_is_trained(text: str, tmp_path: Path, mlflow_uri: str) -> None:
    whole = prepare(study(text), tmp_path, progress=False)
    assert whole.language is not None
    conversations = whole.conversations.conversations("train")
    every = [whole.language.chat.length(whole.language.chat.encode(one)) for one in conversations]
    assert "left out" not in plan(whole)
    room = sorted(every)[len(every) * 3 // 4]

    parts = prepare(study(text, f"language_model.max_length={room}"), tmp_path, progress=False)
    assert parts.language is not None
    assert parts.store is not None
    parts.store.build([1, 2, 3], batch_size=8, progress=False)
    (stage,), listed = parts.language.config.stages, parts.space.listed
    assert {parts.language.tokens_per_image(cell) for cell in listed} == {GRID, GRID + APPENDED}
    trained: dict[str, tuple[int, int]] = {}
    for cell in listed:
        steps: list[int] = []
        job = Job(variant(parts.study, cell, 1e-3), "0")
        run = LanguageRun(parts, job, tmp_path / cell.strategy, advance=steps.append)
        longest = 0
        for batch in run._data(stage).train_dataloader():
            longest = max(longest, run.model.spliced(batch).attention_mask.shape[1])
        assert longest <= room, "no row longer than max_length reaches the decoder"
        run.train()
        assert sum(steps) == stage_steps(parts.study, parts.language, cell)[0]
        lengths = parts.language.lengths(stage, cell)
        chat = parts.language.chat_of(stage, cell)
        fitted = [(one, kept) for one in conversations if (kept := chat.fit(chat.encode(one))) is not None]
        assert (lengths.total, lengths.left_out) == (len(every), len(every) - len(fitted))
        assert lengths.cut == sum(kept.input_ids != chat.encode(one).input_ids for one, kept in fitted)
        trained[cell.strategy] = (sum(steps), lengths.cut)
    assert 0 < trained["deep_only"][1] < trained["sti"][1]

    said = plan(parts)
    assert f"{trained['deep_only'][0]} steps of 3 conversations" in said
    assert f"align: of {len(every)} conversations" in said
    assert f"align, sti of {GRID + APPENDED} tokens an image: of {len(every)} conversations" in said
    assert f"{trained['sti'][1]} are cut to max_length" in said
    assert f"left out; {trained['sti'][0]} steps" in said

    log = io.StringIO()
    result = Experiment(parts, Display(Console(file=log, width=300), progress=False)).run()
    assert result.failed == 0
    assert f"align: of {len(every)} conversations" in log.getvalue()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_uri)
    parent = client.get_run(result.run_id)
    wanted = f"tags.`mlflow.parentRunId` = '{result.run_id}'"
    children = client.search_runs([parent.info.experiment_id], wanted)
    assert {child.data.params["align.cut"] for child in children} == {str(cut) for _, cut in trained.values()}
    page = write_report(mlflow_uri, "lengths", tmp_path / "report", "fusion-workbench")
    told = f"of the {len(every)} conversations of align"
    assert told in Path(page.html).read_text(encoding="utf-8")


def test_the_steps_are_of_what_is_left(text: str, tmp_path: Path) -> None:
    whole = prepare(study(text), tmp_path, progress=False)
    assert whole.language is not None
    chat, cell = whole.language.chat, whole.space.listed[0]
    conversations = whole.conversations.conversations("train")
    first = [next(n for n, i in enumerate(chat.encode(one).labels) if i >= 0) + GRID - 1 for one in conversations]
    room = sorted(first)[len(first) // 2]  # of half of them not one letter of an answer fits

    parts = prepare(study(text, f"language_model.max_length={room}"), tmp_path, progress=False)
    language = parts.language
    assert language is not None
    left_out = sum(place >= room for place in first)
    assert 0 < left_out < len(first) - 3
    (stage,) = language.config.stages
    assert (language.lengths(stage).left_out, language.lengths(stage).kept) == (left_out, len(first) - left_out)
    run = LanguageRun(parts, Job(variant(parts.study, cell, 1e-3), "0"), tmp_path / "run")
    assert stage_steps(parts.study, language, cell) == [len(run._data(stage).train_dataloader())]
    assert f"{left_out} left out" in plan(parts)


def test_a_plan_of_very_many_looks_at_some(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = prepare(study(text), tmp_path, progress=False)
    assert parts.language is not None
    total = len(parts.conversations.conversations("train"))
    tokens = tokenise(parts.conversations.conversations("train"), parts.language.chat)
    lengths = np.sort(tokens.fitted(4096, GRID).lengths)
    monkeypatch.setattr(dry_run, "_SAMPLE", total // 2)
    few = prepare(study(text, f"language_model.max_length={lengths[total // 3]}"), tmp_path, progress=False)
    said = plan(few)
    assert f"of {total // 2} conversations drawn from {total}" in said
    assert "about " in said
    assert not list((tmp_path / "tokens").glob("*.safetensors")), "a sample is not kept"


def test_a_stage_in_the_plain_form(text: str, tmp_path: Path) -> None:
    """The caption alone is taught; the questions of the study are asked in the chat's form all the same."""
    stages = "language_model.stages=[{name: align, template: plain}, {name: tune}]"
    parts = prepare(study(text, stages), tmp_path, progress=False)
    language = parts.language
    assert language is not None
    plain, chat = (language.chat_of(stage, parts.space.listed[0]) for stage in language.config.stages)
    asked = Conversation("a", (Turn("user", "<image>\nwhat?"), Turn("assistant", "a cat")), (0,))
    assert plain.prompt(asked) == [IMAGE_ID]
    assert chat.prompt(asked) == language.chat.prompt(asked)
    assert isinstance(plain, Chat)
    with pytest.raises(WorkbenchError, match=r"language_model.stages\[0\].template is 'plane'.* 'plain'"):
        study(text, "language_model.stages=[{name: align, template: plane}]")
