"""What a study logs of its layers: from the store as from the encoder, once, and never in a study's way."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from test_token_maps import Done, done

from fusion_workbench.datamodules.features import LiveFeatures
from fusion_workbench.modules.similarity import hsic
from fusion_workbench.reports.reading.layers import read_importance, read_similarity
from fusion_workbench.runner import layer_analysis as dissect
from fusion_workbench.runner.layer_analysis import log_layers, similarity
from fusion_workbench.study.progress import Display
from fusion_workbench.sweeps.planner import Planner

__all__ = ["done"]  # the fixture: a finished study of three strategies on a tiny encoder


def planner_of(done: Done) -> Planner:
    return Planner(done.parts.space, done.parts.study.search, None, "dissected")


def log(done: Done, planner: Planner) -> tuple[bool, str]:
    said = io.StringIO()
    display = Display(Console(file=said, width=500), progress=False)
    there = log_layers(done.parts, done.tracker, done.run_id, done.variants, planner, done.ledger, display)
    return there, said.getvalue()


def test_a_study_logs_both(done: Done) -> None:
    plain = json.loads((done.artifacts / "similarity.json").read_text(encoding="utf-8"))
    assert (plain["schema"], plain["split"], plain["images"]) == (1, "validation", 8)
    found = read_similarity(plain)
    assert found.layers == (1, 2, 3)
    assert found.tokens == 8 * 16
    assert np.allclose(found.matrix.diagonal(), 1)
    assert np.array_equal(found.matrix, found.matrix.T)
    assert found.matrix[0, 2] < found.matrix[0, 1] < 1
    importance = json.loads((done.artifacts / "importance.json").read_text(encoding="utf-8"))
    assert importance["values"] == "mean over replicates"
    assert read_importance(importance).reason == "3 cells; it takes 10"


def test_similarity_is_that_of_the_validation_tokens(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every token taken and one minibatch: the direct computation on the encoder's own hidden states."""
    monkeypatch.setattr(dissect, "_TOKENS", 64)
    images = np.stack([done.parts.source.image("val", i) for i in range(8)])
    states = done.parts.encoder.encode(images, [1, 2, 3]).cpu().flatten(1, 2)
    direct = hsic(torch.nn.functional.layer_norm(states, states.shape[-1:]))
    expected = direct / (direct.diagonal()[:, None] * direct.diagonal()).sqrt()
    live = similarity(replace(done.parts, features=LiveFeatures(done.parts.encoder, done.parts.source)), [1, 2, 3])
    assert live["tokens"] == 8 * 64
    assert np.allclose(live["matrix"], expected.numpy(), atol=1e-5)
    assert np.allclose(similarity(done.parts, [1, 2, 3])["matrix"], expected.numpy(), atol=0.01)  # bf16


def test_nothing_is_made_twice_and_a_change_is_seen(done: Done) -> None:
    planner = planner_of(done)
    for name in ("similarity", "importance"):
        done.ledger.remember(name, None)
    assert log(done, planner) == (True, "")
    times = {name: (done.artifacts / name).stat().st_mtime_ns for name in ("similarity.json", "importance.json")}
    assert log(done, planner) == (True, "")
    assert {name: (done.artifacts / name).stat().st_mtime_ns for name in times} == times
    done.parts.study.replicates, before = 1, done.parts.study.replicates
    assert log(done, planner) == (True, "")
    done.parts.study.replicates = before
    assert (done.artifacts / "similarity.json").stat().st_mtime_ns == times["similarity.json"]
    assert (done.artifacts / "importance.json").stat().st_mtime_ns > times["importance.json"]


def test_cells_that_were_only_searched_count_where_there_are_some(done: Done) -> None:
    planner = planner_of(done)
    cells = [v.cell for v in done.variants]
    for i, cell in enumerate(cells):
        planner.tell(cell, i / 10)
    values, of = dissect._values(done.parts, done.variants, planner, done.ledger)
    assert of == "mean over replicates"
    entries = [done.ledger.find(done.variants[0].id, str(r)) for r in range(2)]
    expected = np.mean([e.result["val/objective"] for e in entries if e is not None])
    assert {cell.id: value for cell, value in values}[cells[0].id] == pytest.approx(expected)
    values, of = dissect._values(done.parts, done.variants[:2], planner, done.ledger)
    assert of == "search replicate"
    assert [value for _, value in values] == [0.0, 0.1, 0.2]


def test_a_failure_is_told_and_ends_nothing(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such luck\nsecond line")

    done.ledger.remember("similarity", None)
    monkeypatch.setattr(dissect, "similarity", broken)
    there, said = log(done, planner_of(done))
    assert not there
    assert said == "the similarity of layers is left out of the report (RuntimeError): no such luck\n"
    monkeypatch.undo()
    assert log(done, planner_of(done)) == (True, "")
