"""The look at test images: chosen honestly, made from what was trained, and never in a study's way."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import build
from fusion_workbench.modules.maps import pca_rgb
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.ranking import Ranking
from fusion_workbench.reports.reading.records import Run, StudyRecord
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.runner.token_map_choice import ChosenCells, choose_cells, choose_examples, choose_layers
from fusion_workbench.runner.token_maps import TokenMapBuilder, log_token_maps
from fusion_workbench.schema.names import OBJECTIVE, Phase, Status
from fusion_workbench.schema.records import TrackedSource
from fusion_workbench.study.identity import variant
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.plan_log import register_plan
from fusion_workbench.study.prepare import Parts, prepare
from fusion_workbench.study.progress import Display
from fusion_workbench.study.tracking import Tracker
from fusion_workbench.sweeps.space import Cell, Variant

STUDY = """
name: looked
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 16, val: 8, test: 24}}}}
strategies: [{{name: deep_only}}, {{name: concat}}, {{name: mmfuser, options: {{heads: 2, gate_init: 0.5}}}}]
selections: [{{levels: [1, 2]}}]
baselines: false
replicates: 2
plan: {{confirm: []}}
search: {{learning_rates: [0.003]}}
training: {{epochs: 1, batch_size: 8, head_hidden: 16, bank_size: 4}}
tracking: {{uri: "{uri}"}}
"""


@dataclass(frozen=True)
class Done:
    """A finished study and what a look needs of it."""

    parts: Parts
    tracker: Tracker
    run_id: str
    variants: list[Variant]
    ledger: Ledger
    artifacts: Path  # of the parent run

    def look(self) -> TokenMapBuilder:
        return TokenMapBuilder(self.parts, self.tracker, self.run_id, self.variants, self.ledger)

    def log(self) -> tuple[bool, str]:
        said = io.StringIO()
        display = Display(Console(file=said, width=500), progress=False)
        return log_token_maps(
            self.parts, self.tracker, self.run_id, self.variants, self.ledger, display
        ), said.getvalue()


@pytest.fixture(scope="module")
def done(tiny_dinov2: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    workspace = tmp_path_factory.mktemp("looked")
    shutil.copy(mlflow_template, workspace / "mlflow.db")
    connection = sqlite3.connect(workspace / "mlflow.db")
    with connection:
        place = (workspace / "artifacts").as_uri()
        connection.execute("UPDATE experiments SET artifact_location = ? || '/' || experiment_id", [place])
    connection.close()
    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    study = study_from_yaml(STUDY.format(encoder=tiny_dinov2, uri=uri), "looked.yaml")
    parts = prepare(study, workspace, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    tracker = Tracker(uri, study.tracking.experiment, workspace / "mlartifacts")
    ledger = Ledger(parts.folder / "ledger.db")
    variants = [variant(study, cell, 0.003) for cell in parts.space.listed]
    root = Path(tracker.client.get_run(result.run_id).info.artifact_uri.removeprefix("file://"))
    yield Done(parts, tracker, result.run_id, variants, ledger, root)
    ledger.close()


def test_what_is_logged(done: Done) -> None:
    done.ledger.remember("look", None)
    assert done.log() == (True, "")
    look = json.loads((done.artifacts / "look" / "look.json").read_text(encoding="utf-8"))
    assert (look["schema"], look["split"], look["grid"]) == (1, "test", [8, 8])
    examples = look["examples"]
    assert len({e["example_id"] for e in examples}) == len(examples)
    kinds = Counter((e["why"]["kind"], e["why"]["task"]) for e in examples)
    assert kinds["random", ""] == 4
    assert kinds["hardest", "read"] == 3
    columns = [c.get("layer", c.get("label")) for c in look["columns"]]
    assert columns[:3] == [1, 2, 3]
    assert set(columns[3:]) == {"concat [1,2]→3", next(v.cell.label for v in done.variants if "mmf" in v.cell.label)}
    assert [c["query"] for c in look["columns"][:3]] == [False, False, True]
    for column in look["columns"]:
        with Image.open(done.artifacts / "look" / column["file"]) as strip:
            assert strip.size == (8, 8 * len(examples))
        assert 0 < sum(column["explained"]) <= 1
    for example in examples:
        with Image.open(done.artifacts / "look" / example["file"]) as picture:
            assert picture.size == (112, 112)
            shown = np.asarray(picture.convert("RGB")).astype(int)
        assert abs(shown - done.parts.source.image("test", example["index"])).mean() < 8  # lossy, but that image
    size = sum(file.stat().st_size for file in (done.artifacts / "look").iterdir())
    assert size < 600_000


def test_scores_are_those_that_were_tracked(done: Done) -> None:
    import pandas as pd

    look = json.loads(str(done.look().files()["look/look.json"]))
    by_cell = {v.cell.id: v for v in done.variants}
    for role, words in (("baseline", "before"), ("featured", "after")):
        for r in range(2):
            entry = done.ledger.find(by_cell[look[role]].id, str(r))
            assert entry is not None
            table = pd.read_parquet(done.artifacts.parents[1] / str(entry.run_id) / "artifacts/outcomes/test.parquet")
            known = table.set_index(["example_id", "task"])["score"]
            for example in look["examples"]:
                for task, scores in example["scores"].items():
                    assert scores[words][r] == pytest.approx(float(known[example["example_id"], task]))
    assert by_cell[look["baseline"]].cell.label == "deep_only 3"
    assert by_cell[look["featured"]].cell.selection.levels == (1, 2)


def test_the_map_after_fusion_is_the_trained_fuser_s(done: Done) -> None:
    import safetensors.torch

    files = done.look().files()
    look = json.loads(str(files["look/look.json"]))
    column = next(c for c in look["columns"] if c.get("label", "").startswith("mmfuser"))
    cell = next(v.cell for v in done.variants if v.cell.id == column["cell"])
    images = np.stack([done.parts.source.image("test", e["index"]) for e in look["examples"]])
    features = done.parts.encoder.encode(images, cell.selection.layers).float().cpu()
    fuser = build(cell.strategy, cell.selection, 32, dict(cell.options))
    weights = done.artifacts.parents[1] / column["run"] / "artifacts/fuser/model.safetensors"
    state = safetensors.torch.load_file(weights)
    fuser.load_state_dict({k.removeprefix("fuser."): v for k, v in state.items() if k.startswith("fuser.")})
    with torch.inference_mode():
        expected = pca_rgb(fuser(features.clone(), (8, 8))).colours
    found = files[f"look/{column['file']}"]
    assert isinstance(found, bytes)
    strip = np.asarray(Image.open(io.BytesIO(found))).astype(int)
    assert abs(strip.reshape(len(images), 64, 3) - expected.numpy()).max() <= 2


def test_regions_are_the_trained_fuser_s_attention(done: Done) -> None:
    import safetensors.torch

    files = done.look().files()
    look = json.loads(str(files["look/look.json"]))
    (regions,) = look["regions"]  # concat and deep_only draw on everything alike
    column = next(c for c in look["columns"] if c.get("cell") == regions["cell"])
    cell = next(v.cell for v in done.variants if v.cell.id == regions["cell"])
    assert [level["layer"] for level in regions["levels"]] == [1, 2]
    images = np.stack([done.parts.source.image("test", e["index"]) for e in look["examples"]])
    features = done.parts.encoder.encode(images, cell.selection.layers).float().cpu()
    fuser = build(cell.strategy, cell.selection, 32, dict(cell.options))
    state = safetensors.torch.load_file(done.artifacts.parents[1] / column["run"] / "artifacts/fuser/model.safetensors")
    fuser.load_state_dict({k.removeprefix("fuser."): v for k, v in state.items() if k.startswith("fuser.")})
    shares = fuser.inspect(features.clone(), (8, 8))["regions"]  # [B, T, M]
    for number, level in enumerate(regions["levels"]):
        found = files[f"look/{level['file']}"]
        assert isinstance(found, bytes)
        strip = np.asarray(Image.open(io.BytesIO(found))).reshape(len(images), 64)
        read = level["low"] + strip / 255 * (level["high"] - level["low"])
        expected = shares[..., number].clamp(level["low"], level["high"]).numpy()
        assert abs(read - expected).max() <= (level["high"] - level["low"]) / 255
        assert level["mean"] == pytest.approx(float(shares[..., number].mean()), abs=1e-5)


@pytest.mark.parametrize(("strategy", "layers", "cells"), [("deep_only", [3], 0), ("concat", [1, 2, 3], 1)])
def test_a_study_of_one_cell(done: Done, strategy: str, layers: list[int], cells: int) -> None:
    alone = [v for v in done.variants if v.cell.strategy == strategy]
    files = TokenMapBuilder(done.parts, done.tracker, done.run_id, alone, done.ledger).files()
    look = json.loads(str(files["look/look.json"]))
    assert [c["layer"] for c in look["columns"] if c["kind"] == "layer"] == layers
    assert sum(c["kind"] == "cell" for c in look["columns"]) == cells
    assert {e["why"]["kind"] for e in look["examples"]} == {"random", "hardest"}
    assert len(look["examples"]) == 4 + 2 * 3


def test_a_second_look_at_the_same_is_not_taken(done: Done) -> None:
    done.ledger.remember("look", None)
    assert done.log()[0]
    before = (done.artifacts / "look" / "look.json").stat().st_mtime_ns
    assert done.log() == (True, "")
    assert (done.artifacts / "look" / "look.json").stat().st_mtime_ns == before


def test_a_look_that_fails_is_told_and_ends_nothing(done: Done) -> None:
    look = json.loads(str(done.look().files()["look/look.json"]))
    run = look["columns"][-1]["run"]
    weights = done.artifacts.parents[1] / run / "artifacts/fuser/model.safetensors"
    content = weights.read_bytes()
    done.ledger.remember("look", None)
    try:
        weights.unlink()
        there, said = done.log()
        assert not there
        assert "the gallery of token maps is left out" in said
        assert f"MLflow run {run} has no artifact fuser/model.safetensors" in said
        assert said.count("\n") == 1
        weights.write_bytes(content[:-100])
        assert not done.log()[0]
    finally:
        weights.write_bytes(content)
    assert done.log() == (True, "")


def test_the_recommended_cell_is_featured(done: Done) -> None:
    """Whatever the plan's primary measure is: here the mean of the tasks and one task order the cells differently."""
    values = {"deep_only": (0.1, 0.1), "concat": (0.9, 0.2), "mmfuser": (0.3, 0.8)}
    record = read_study(done.tracker.uri, done.parts.study_id)
    for cell in record.cells:
        for run in record.finals(cell.id):
            for metric, value in zip((OBJECTIVE, "val/read/accuracy"), values[cell.strategy], strict=True):
                done.tracker.client.log_metric(run.run_id, metric, value, step=1000)
    done.ledger.remember("look", None)  # was of other metrics
    plan = done.parts.study.plan
    before = plan.primary
    try:
        for primary, strategy in (("overall", "concat"), ("read", "mmfuser"), ("", "concat")):
            plan.primary = primary
            register_plan(done.parts.study, done.ledger, done.tracker, done.run_id)
            assert done.log() == (True, "")
            look = json.loads((done.artifacts / "look" / "look.json").read_text(encoding="utf-8"))
            recommended = answer(Analysis(read_study(done.tracker.uri, done.parts.study_id))).cell
            assert recommended is not None
            assert (recommended.strategy, recommended.id) == (strategy, look["featured"])
            assert next(c["cell"] for c in look["columns"] if c["kind"] == "cell") == recommended.id
    finally:
        plan.primary = before


# --- the choice -----------------------------------------------------------------------------------------------------


def cell(strategy: str, levels: tuple[int, ...], query: int, *baselines: str) -> Cell:
    return Cell(strategy, Selection(levels, query), baselines=baselines)


def test_cells_are_chosen_on_validation() -> None:
    cells = [
        cell("deep_only", (), 5),
        cell("deep_only", (), 12, "deepest layer"),
        cell("concat", (3, 6), 12),
        cell("concat", (4, 5), 12),
        cell("mmfuser", (3, 6), 12),
        cell("average", (3, 6), 12),
        cell("matched", (3, 6), 12),  # names levels and reads none
    ]
    fusing = [False, False, True, True, True, True, False]
    nan = np.nan
    value = np.array([[0.9, 0.9], [0.1, 0.1], [0.3, 0.3], [0.4, 0.4], [0.5, 0.5], [0.99, nan], [0.8, 0.8]])
    chosen = chosen_of(cells, fusing, value)
    assert (chosen.baseline, chosen.featured, chosen.shown) == (1, 4, (4, 3))  # the average lacks a replicate
    assert choose_layers([cells[4], cells[3]]) == (3, 4, 5, 6, 12)
    alone = chosen_of(cells[:2], fusing[:2], value[:2])
    assert (alone.baseline, alone.featured, alone.shown) == (1, 0, ())
    none = chosen_of(cells, fusing, np.full((7, 2), nan))
    assert (none.baseline, none.featured, none.shown) == (None, None, ())


def chosen_of(cells: list[Cell], fusing: list[bool], value: np.ndarray) -> ChosenCells:
    """What is chosen where ``value [cells, replicates]`` is the validation objective, nan where none was trained."""
    tracked = tuple(cell.tracked(0.001) for cell in cells)
    runs = tuple(
        Run(f"{i}-{r}", cell.id, Phase.FINAL, str(r), Status.FINISHED, 0.001, 0, {OBJECTIVE: float(value[i, r])}, {})
        for i, cell in enumerate(tracked)
        for r in range(value.shape[1])
        if np.isfinite(value[i, r])
    )
    record = StudyRecord(
        *("a study", "id", "run", "experiment", "sqlite:///", "FINISHED", ""),
        *(0, None, {}, "", {}, TrackedSource(), (), tracked, {cell.id: cell for cell in tracked}),
        replicates=tuple(map(str, range(value.shape[1]))),
        runs=runs,
        example_scores={},
        groups=(),
    )
    ranked = [tracked.index(cell) for cell in Ranking(record).ranked()]
    return choose_cells(cells, fusing, np.isfinite(value).any(1).tolist(), ranked)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), examples=st.integers(1, 40), sign=st.sampled_from([1, -1]))
def test_examples_are_what_they_are_called(seed: int, examples: int, sign: int) -> None:
    rng = np.random.default_rng(seed)
    scores = {task: np.round(rng.random((3, 2, examples)), 1) for task in ("a", "b")}
    scores["a"][2, 1] = np.nan  # a replicate that was not trained
    scores["b"][..., : examples // 2] = np.nan  # nothing to read there
    chosen = choose_examples(scores, {"a": sign, "b": sign}, 0, 1, seed)
    assert len({e.index for e in chosen}) == len(chosen)
    assert [e.kind for e in chosen].count("random") == min(4, examples)
    taken = [e.index for e in chosen if e.kind == "random"]
    for task, values in scores.items():
        mean = sign * np.array([np.mean(v[np.isfinite(v)]) if np.isfinite(v).any() else np.nan for v in values.T])
        gain = sign * (values[1] - values[0]).mean(0)
        for kind, measure in (("hardest", mean), ("improved", -gain), ("worsened", gain)):
            own = [e.index for e in chosen if (e.kind, e.task) == (kind, task)]
            rest = [i for i in range(examples) if i not in [*taken, *own] and np.isfinite(measure[i])]
            assert all(measure[i] <= measure[j] + 1e-12 for i in own for j in rest)
            if kind != "hardest":
                assert all(measure[i] < 0 for i in own)
            taken += own
    assert chosen == choose_examples(scores, {"a": sign, "b": sign}, 0, 1, seed)


def test_without_a_baseline_nothing_is_called_improved() -> None:
    scores = {"a": np.random.default_rng(0).random((2, 2, 30))}
    for baseline, featured in ((None, 1), (0, None), (1, 1)):
        kinds = {e.kind for e in choose_examples(scores, {"a": 1}, baseline, featured, seed=0)}
        assert kinds == {"random", "hardest"}
