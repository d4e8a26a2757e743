"""Similarity, importance, insides and regions in the report, and studies that logged none or nonsense."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import Synthetic, cell_id, copy_database, inside_file, planted, tiny
from test_report import Page
from test_token_maps_report import artifacts

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports import ReportPaths, write_report
from fusion_workbench.reports.figures.fusers import _same_channels, gates
from fusion_workbench.reports.figures.layer_importance import LeftOut, disagreement, importance_figure, importance_words
from fusion_workbench.reports.figures.similarity import similarity_figure, stage_words
from fusion_workbench.reports.reading.layers import Similarity, read_importance, read_inside, read_similarity
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.units import COUNT

MMFUSER = cell_id(("mmfuser", (3, 6), 12))
READ = Measure("read", "", "accuracy", 1, 0.1)
ERRORS = Measure("count", "", "mae", -1, None, COUNT)


@pytest.fixture(scope="module")
def seen(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportPaths, str, Path]:
    folder = tmp_path_factory.mktemp("layers")
    uri = copy_database(mlflow_template, folder)
    root = artifacts(uri, tiny(look=True, layers=True).write(uri))
    return write_report(uri, "synthetic", folder / "out"), uri, root


def test_the_page_shows_all_of_it(seen: tuple[ReportPaths, str, Path]) -> None:
    paths, _, _ = seen
    html = paths.html.read_text(encoding="utf-8")
    page = Page(html)
    for name in ("importance", "similarity", "gates", "opening", "attention", "heads"):
        assert f'<figure id="{name}">' in html
        assert (paths.html.parent / "figures" / f"{name}.svg").is_file()
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets} <= set(page.ids)
    assert all(re.fullmatch(r"data:image/(png|webp|gif);base64,[\w+/=]+", load) for load in page.loads)
    text = " ".join(page.words)
    assert "The layers fall into 2 stages: 0–4 and 5–12." in html
    assert "most of all, layer 5 (40 %), layer 0 (3 %) and layer 1 (3 %); the strategy 20 % and the query 4 %" in html
    assert "Over 26 cells (mean over replicates), what sets the best 5 apart" in text
    order = [html.index(f'<figure id="{n}">') for n in ("importance", "similarity", "gates", "opening", "heads")]
    assert order == sorted(order)
    numbers = [int(n) for n in re.findall(r"<b>Figure (\d+)\.", html)]
    assert numbers == list(range(1, len(numbers) + 1))
    drawn = html[html.index("where each level is drawn on</h3>") :]
    assert drawn.count('class="photo under"') == 2 * 5  # levels × (two at random, and one of each other kind)
    assert "mean 50.0 %" in drawn
    assert "25.0 to 75.0 %" in drawn
    assert "## What the layers do" in paths.markdown.read_text(encoding="utf-8")


def test_json_has_the_numbers(seen: tuple[ReportPaths, str, Path]) -> None:
    plain = json.loads(seen[0].json.read_text(encoding="utf-8"))
    layers = plain["layers"]
    assert layers["similarity"]["stages"][1] == {"first": 5, "last": 12, "within": pytest.approx(0.9)}
    assert layers["importance"]["layers"]["5"] == 0.4
    assert layers["left_out"] == []
    assert [level["layer"] for level in plain["look"]["regions"][0]["levels"]] == [3, 6]


def test_the_record_holds_every_replicate_of_the_fuser(seen: tuple[ReportPaths, str, Path]) -> None:
    record = read_study(seen[1], "synthetic")
    assert set(record.insides) == {MMFUSER}
    own = record.insides[MMFUSER]
    assert [i.replicate for i in own] == ["0", "1", "2"]
    assert own[0].levels == (3, 6)
    assert own[0].gates["gamma1"].shape == (2, 24)
    assert own[0].attention is not None
    assert np.allclose(own[0].attention.sum(0), 1, atol=1e-6)
    assert record.importance is not None
    assert record.importance.avoided == {12}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("similarity.json", b'{"schema": 2}', "similarity.json is left out: schema 2; this version reads 1."),
        ("similarity.json", b'{"schema": 1, "layers": [1, 2], "matrix": [[1]]}', "matrix is [1, 1] for 2 layers"),
        ("importance.json", b'{"schema": 1}', "importance.json is left out: KeyError"),
        ("importance.json", b"{", "importance.json is not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_left_out_and_told(
    name: str, content: bytes, words: str, seen: tuple[ReportPaths, str, Path]
) -> None:
    _, uri, root = seen
    before = (root / name).read_bytes()
    (root / name).write_bytes(content)
    record = read_study(uri, "synthetic")
    (root / name).write_bytes(before)
    assert getattr(record, name.removesuffix(".json")) is None
    (note,) = record.notes
    assert words in note


def test_a_torn_inside_is_told_and_the_others_stand(seen: tuple[ReportPaths, str, Path]) -> None:
    _, uri, _ = seen
    run = read_study(uri, "synthetic").finals(MMFUSER)[0].run_id
    file = artifacts(uri, run) / "inside.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-40])
    record = read_study(uri, "synthetic")
    file.write_bytes(before)
    assert [i.replicate for i in record.insides[MMFUSER]] == ["1", "2"]
    assert record.notes == (f"inside.safetensors of run {run} is left out: it cannot be read (SafetensorError).",)


def test_arrays_that_do_not_fit_their_levels_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save

    file = tmp_path / "inside.safetensors"
    file.write_bytes(save({"attention": np.ones((3, 2), np.float32)}, metadata={"levels": "1,2"}))
    with pytest.raises(WorkbenchError, match=r"attention is \[3, 2\] for 2 levels"):
        read_inside(file, "0")
    file.write_bytes(inside_file((1, 2), 4, 0))
    assert read_inside(file, "0").offsets is not None


def test_an_older_study_is_as_before(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path)
    Synthetic(**{**tiny().__dict__, "replicates": 1}).write(uri)
    paths = write_report(uri, "synthetic", tmp_path / "out")
    html = paths.html.read_text(encoding="utf-8")
    for absent in ("Which layers decide", "How alike", 'id="opening"', 'id="heads"'):
        assert absent not in html
    assert "What the layers do" not in paths.markdown.read_text(encoding="utf-8")
    assert read_study(uri, "synthetic").notes == ()


# --- retraining without a layer -------------------------------------------------------------------------------------


def estimate(mean: float, half: float) -> Estimate:
    low, high = mean - half, mean + half
    return Estimate(mean, low, high, low, high, half / 2, half / 2, 0.0, 0.5, 5, 100)


def lost(measure: str = "read", **by_layer: tuple[float, float]) -> list[LeftOut]:
    return [LeftOut(int(name[1:]), measure, estimate(*value)) for name, value in by_layer.items()]


@pytest.mark.parametrize(
    ("retrained", "avoided", "words"),
    [
        (lost(l3=(0.05, 0.01), l6=(0.01, 0.01)), (), "They agree: of the layers left out both put layer 3 first"),
        (lost(l3=(0.001, 0.01), l6=(0.05, 0.01)), (), "layer 3 first of the layers left out, and retraining shows no"),
        (lost(l3=(-0.05, 0.01), l6=(0.01, 0.02)), (), "retraining does better without it (it adds −5.0 [−6.0, −4.0]"),
        (lost(l3=(0.02, 0.01), l6=(0.05, 0.01)), (), "They disagree: PED-ANOVA puts layer 3 first"),
        (lost(l3=(0.02, 0.01), l6=(0.03, 0.02)), (), "They differ, within the intervals: PED-ANOVA puts layer 3"),
        (lost(l3=(0.02, 0.01), l6=(0.01, 0.01)), (3,), "layer 3 first because the best cells avoid it"),
        (lost(l9=(0.02, 0.01)), (), "^$"),
        ([], (), "^$"),
    ],
)
def test_a_disagreement_is_said(retrained: list[LeftOut], avoided: tuple[int, ...], words: str) -> None:
    said = disagreement({3: 0.5, 6: 0.2, 5: 0.9}, retrained, [READ], avoided=avoided)
    assert re.search(words if words == "^$" else re.escape(words), said)


def test_less_is_better_turns_the_contribution_round() -> None:
    """Full minus left out of an error: negative where the layer helps."""
    helps = lost("count", l3=(-0.5, 0.1), l6=(0.0, 0.1))
    said = disagreement({3: 0.5, 6: 0.2}, helps, [ERRORS])
    assert "both put layer 3 first (it adds +0.50 [+0.40, +0.60] on count)" in said
    assert "no clear loss" in disagreement({6: 0.5, 3: 0.2}, helps, [ERRORS])


def test_the_figure_has_what_there_is() -> None:
    retrained = lost(l3=(0.05, 0.01), l6=(0.01, 0.02)) + lost("count", l3=(-0.5, 0.1))
    both = importance_figure({3: 0.5, 6: 0.2}, retrained, [READ, ERRORS], avoided={6})
    assert both is not None
    assert "PED-ANOVA: layer 3 50 %, layer 6 20 %." in both.inline
    assert "Without it, read: layer 3 +5.0 [+4.0, +6.0] points; layer 6 +1.0 [−1.0, +3.0] points." in both.inline
    assert "Without it, count: layer 3 −0.50 [−0.60, −0.40]." in both.inline
    assert "Hollow" in both.caption
    assert "Points" in both.caption
    alone = importance_figure({}, retrained, [READ])
    assert alone is not None
    assert "PED-ANOVA" not in alone.inline
    bars = importance_figure({3: 1.0}, [], [READ])
    assert bars is not None
    assert "Points" not in bars.caption
    assert importance_figure({}, [], [READ]) is None


def test_too_few_cells_are_told() -> None:
    plain = {"schema": 1, "cells": 4, "top": 0, "layers": {}, "strategy": None, "query": None}
    found = read_importance(plain | {"read_by_top": {}, "read_by_all": {}, "reason": "4 cells; it takes 10"})
    assert importance_words(found) == "PED-ANOVA over the study's cells is left out: 4 cells; it takes 10."


# --- similarity -----------------------------------------------------------------------------------------------------


def test_forty_layers_stay_small_and_unknown_ones_are_drawn() -> None:
    n = 40
    matrix = np.exp(-np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / 8.0)
    matrix[7, :] = matrix[:, 7] = np.nan
    figure = similarity_figure(Similarity(tuple(range(n)), matrix, 10, 100, True))
    assert len(figure.inline) < 200_000
    small = read_similarity(
        {"schema": 1, "layers": [3, 12], "matrix": [[1, None], [None, 1]], "images": 1, "tokens": 4}
    )
    assert "Stages: 3 and 12." in similarity_figure(small).inline
    assert stage_words(small, None) == "The layers fall into 2 stages: 3 and 12."


def test_seeds_that_open_the_same_channels_agree() -> None:
    rng = np.random.default_rng(0)
    gates = rng.normal(size=(3, 50))
    assert _same_channels([gates, -2 * gates]) == pytest.approx(1)  # the size counts
    assert abs(_same_channels([gates, rng.normal(size=(3, 50))]) or 0) < 0.4
    assert _same_channels([gates]) is None
    assert _same_channels([gates, np.zeros((3, 50))]) is None


def test_ticks_of_gates_are_told_apart() -> None:
    """Over less than a decade one digit calls neighbours the same."""
    key = ("mmfuser", (3, 6), 12)
    record = planted({key: {"read": np.ones((6, 12))}})
    sizes = (0.53, 0.57, 0.64, 0.77, 0.81, 0.94)
    runs = [replace(r, metrics={"gate/gamma1_rms": size}) for r, size in zip(record.runs, sizes, strict=True)]
    figure = gates(replace(record, runs=tuple(runs)))
    assert figure is not None
    ticks = re.findall(r">(0\.\d+)</text>", figure.standalone)
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)
