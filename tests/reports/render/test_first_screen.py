"""What the first screen owes the reader besides the recommended cell."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import MIDDLE, cell_id, planted

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports import write_report
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.plain import correction
from fusion_workbench.reports.calibration.table import load
from fusion_workbench.reports.figures.answer import answer_figure
from fusion_workbench.reports.render.report import render
from fusion_workbench.reports.render.tables import mark
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.schema.names import Baseline, Verdict
from fusion_workbench.schema.plan import ComparisonFamily, Plan
from fusion_workbench.schema.records import Contender

L3, L5, L12 = ("deep_only", (), 3), ("deep_only", (), 5), ("deep_only", (), 12)
FRESH = ("c0", "c1", "c2", "c3", "c4")
CONCAT, MIDDLE_CONCAT = ("concat", (3, 6), 12), ("concat", *MIDDLE)


def noise(mean: float, seed: int, spread: float = 0.05) -> Floats:
    """``[5, 120]`` scores around a mean."""
    rng = np.random.default_rng(seed)
    return np.asarray(mean + rng.normal(0, 0.004, (5, 1)) + rng.normal(0, spread, (5, 120)), dtype=float)


@pytest.fixture(scope="module")
def two_tasks() -> Analysis:
    """Layer 3 reads best, layer 5 is best at digits, concat is best on average."""
    return Analysis(
        planted(
            {
                L3: {"read": noise(0.60, 1), "digit": noise(0.20, 2)},
                L5: {"read": noise(0.20, 3), "digit": noise(0.70, 4)},
                L12: {"read": noise(0.10, 5), "digit": noise(0.30, 6)},
                CONCAT: {"read": noise(0.50, 7), "digit": noise(0.60, 8)},
            }
        )
    )


def test_every_task_has_its_own_pick(two_tasks: Analysis) -> None:
    said = answer(two_tasks)
    assert said.cell is not None
    assert said.cell.id == cell_id(CONCAT)
    assert {p.measure: p.cell.id for p in said.tasks} == {"read": cell_id(L3), "digit": cell_id(L5)}
    assert "layer 3 alone for read (the best single layer)" in said.task_text
    assert "layer 5 alone for digit" in said.task_text


def test_task_picks_are_validation_s(two_tasks: Analysis) -> None:
    """Validation prefers concat for reading; test, which does not, has no say and gives the verdict."""
    scores = {
        L3: {"read": noise(0.6, 1), "digit": noise(0.2, 2)},
        CONCAT: {"read": noise(0.5, 7), "digit": noise(0.6, 8)},
    }
    said = answer(Analysis(planted(scores, validation={CONCAT: {"read": 0.9, "digit": 0.6}})))
    assert "concat [3,6]→12 for read (worse than layer 3 alone on test: −" in said.task_text


def test_one_task_needs_no_second_answer() -> None:
    said = answer(Analysis(planted({L5: {"read": noise(0.5, 1)}, CONCAT: {"read": noise(0.6, 2)}})))
    assert (said.tasks, said.task_text) == ((), "")


def test_no_cheaper_cell_is_said(two_tasks: Analysis) -> None:
    assert answer(two_tasks).cheaper_text == "No cheaper cell is as good on validation."
    best_is_cheapest = Analysis(planted({L5: {"read": noise(0.7, 1)}, CONCAT: {"read": noise(0.5, 2)}}))
    assert answer(best_is_cheapest).cheaper_text == ""


def test_the_figure_says_what_it_shows(two_tasks: Analysis) -> None:
    drawn = answer_figure(two_tasks, answer(two_tasks))
    assert drawn is not None
    assert "read, best single layer: worse, −" in drawn.inline
    assert "overall, best single layer: better, +" in drawn.inline
    assert "middle concat" not in drawn.inline  # the study has none


def test_a_baseline_that_won_is_named_as_such() -> None:
    scores = {L5: {"read": noise(0.7, 1)}, L12: {"read": noise(0.1, 2)}, MIDDLE_CONCAT: {"read": noise(0.5, 3)}}
    analysis = Analysis(planted(scores))
    drawn = answer_figure(analysis, answer(analysis))
    assert drawn is not None
    assert "read, deepest layer: better" in drawn.inline


def test_an_interval_without_zero_explains_its_verdict() -> None:
    """Where only the correction stands between a difference and its verdict, the reader is told so."""
    x = noise(0.4, 0)
    others = {("concat", (a,), 12): {"read": noise(0.4, 20 + a, 0.2)} for a in range(12)}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        slight = x + 0.011 + rng.normal(0, 0.008, (5, 1)) + rng.normal(0, 0.05, x.shape)
        validation = {CONCAT: {"read": 0.9}}
        analysis = Analysis(planted({L5: {"read": x}, CONCAT: {"read": slight}, **others}, validation))
        found = analysis.comparisons["read", Baseline.BEST_SINGLE, cell_id(CONCAT)]
        assert found.difference is not None
        if found.verdict == Verdict.SAME and found.difference.p < 0.05:
            break
        assert correction(found) == ""
    else:
        pytest.fail("no such case among the seeds")
    shown = mark(found, analysis)
    assert shown is not None
    assert shown.correction.startswith("p .0")
    assert shown.correction.endswith("corrected")
    assert shown.correction in answer(analysis).lead
    assert found.verdict != Verdict.BETTER


def test_the_page_and_the_json_hold_them(small_uri: str, tmp_path: Path) -> None:
    paths = write_report(small_uri, "synthetic", tmp_path)
    html = paths.html.read_text(encoding="utf-8")
    assert html.index('id="verdict"') < html.index('id="strategies"')
    assert "Were one task all that matters" in html
    assert "Were one task all that matters" in paths.markdown.read_text(encoding="utf-8")
    by_task = json.loads(paths.json.read_text(encoding="utf-8"))["answer"]["by_task"]
    assert [entry["measure"] for entry in by_task] == ["read", "digit"]


def tried_again(analysis: Analysis) -> Analysis:
    """Every cell trained again, on five fresh replicates with other scores; concat is the winner."""
    record = analysis.record
    fresh = {key: replace(o, replicates=FRESH, scores=o.scores + 0.05) for key, o in record.example_scores.items()}
    runs = [replace(r, phase="confirm", replicate=f"c{r.replicate}") for r in record.runs]
    contenders = [Contender(c, ("winner",) if c.id == cell_id(CONCAT) else ()) for c in record.cells]
    halves = (ComparisonFamily(("overall",), 0.8), ComparisonFamily(("read", "digit"), 0.2))
    contenders[2] = replace(
        contenders[2], stands_for=tuple((m, Baseline.DEEPEST) for m in ("read", "digit", "overall"))
    )
    return Analysis(
        replace(
            record,
            plan=Plan("overall", halves, 0.05, 0.01, (5,), (5,), 0.5),
            runs=(*record.runs, *runs),
            contenders=tuple(contenders),
            fresh_example_scores=fresh,
            fresh_replicates=FRESH,
        )
    )


def test_tables_of_all_cells_say_that_fresh_replicates_have_other_scores(two_tasks: Analysis) -> None:
    """Else the recommended cell has two scores on one page, and nothing says why."""
    analysis = tried_again(two_tasks)
    files = render(analysis, answer(analysis))
    own = "On the study's own 5 replicates; the 5 fresh ones, which judge the recommended cell above, have other"
    assert unescape(files["report.html"]).count(own) == 2
    assert files["report.md"].count(own) == 2
    assert "on test, on 5 fresh replicates that had no part in picking it, in points" in files["report.md"]
    alone = render(two_tasks, answer(two_tasks))
    assert "own 5 replicates" not in alone["report.html"] + alone["report.md"]


def test_a_model_card_holds_the_fresh_evidence(two_tasks: Analysis) -> None:
    """Not the scores that the cell was picked on, which the report's first screen does not show either."""

    from fusion_workbench.models.cards import connector_card

    encoder = {"encoder": "e", "family": "f", "depth": 12, "grid": [8, 8], "image_size": 112, "fingerprint": "0" * 64}
    study = {"name": "s", "id": "0", "replicate": "0", "run": "r", "command": "c", "commit": "0"}
    config = {"strategy": "concat", "layers": [3, 6, 12], "projector": "linear", "width": 8, "training": {}}
    config |= {"encoder": encoder | {"revision": None}, "study": study}
    analysis = tried_again(two_tasks)
    said = answer(analysis)
    assert said.cell is not None
    fresh, own = (a.means[said.cell.id, "read"].mean for a in (said.judged, analysis))
    text = connector_card(analysis, said.cell, config)
    assert "Judged on 5 fresh replicates, which had no part in the picking:" in text
    assert f"| read (accuracy), % | {100 * fresh:.1f} [" in text
    assert f"{100 * own:.1f} [" not in text
    single = next(c for c in analysis.record.cells if c.id == cell_id(L3))  # judged on the study's own alone
    assert "fresh replicates, which had no part" not in connector_card(analysis, single, config)


def test_lost_contenders_are_told(two_tasks: Analysis) -> None:
    analysis = Analysis(replace(tried_again(two_tasks).record, contenders=()))
    said = answer(analysis)
    assert said.judged is analysis
    assert any("contenders.json, which says what they are of, is missing" in c for c in said.caveats)


def test_until_a_fresh_replicate_has_ended_the_studys_own_judge(two_tasks: Analysis) -> None:
    """Killed in the middle of them, a study still has its baselines."""
    record = tried_again(two_tasks).record
    runs = tuple(replace(r, state="running") if r.phase == "confirm" else r for r in record.runs)
    analysis = Analysis(replace(record, runs=runs, fresh_example_scores={}))
    said = answer(analysis)
    assert said.judged is analysis
    assert said.best_baseline is not None
    assert "holds no baseline" not in said.lead
    assert any("fresh replicates are incomplete: 0 of 5" in c for c in said.caveats)


def test_caveats_are_paragraphs_of_one_quotation(two_tasks: Analysis) -> None:
    said = replace(answer(two_tasks), caveats=("The first.", "The second."))
    assert "\n> The first.\n>\n> The second.\n" in render(two_tasks, said)["report.md"]


def test_a_report_without_a_calibration_table(two_tasks: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    said = answer(two_tasks)
    assert 'href="#calibration"' in render(two_tasks, said)["report.html"]
    monkeypatch.setattr("fusion_workbench.reports.calibration.table._shipped", lambda: None)
    html = render(two_tasks, said)["report.html"]
    assert "calibration" not in re.findall(r'href="#([^"]+)"', html)
    with pytest.raises(WorkbenchError, match="there is no such calibration table"):
        load(Path("nowhere.json"))


def test_a_folder_that_may_not_be_written(small_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(WorkbenchError, match=r"cannot be written to .*Permission denied; name a folder"):
        write_report(small_uri, "synthetic", tmp_path / "out")


def test_a_full_disk_stays_a_full_disk(small_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line has its own words for it."""

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(small_uri, "synthetic", tmp_path / "out")
