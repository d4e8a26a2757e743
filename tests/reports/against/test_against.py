"""What changed between two studies: cells, verdicts, recommendation, environment, and the gate for CI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from synthetic_study import Synthetic, cell_id, copy_database, planted, tiny, truth
from typer.testing import CliRunner

from fusion_workbench.cli.main import app
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports import write_report
from fusion_workbench.reports.against.fail_on import failures
from fusion_workbench.reports.against.sides import ComparedSource, find, of_analysis
from fusion_workbench.reports.against.study import Against, compare
from fusion_workbench.reports.analysis.answer import answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.render.against import words
from fusion_workbench.reports.render.json_csv import to_json
from fusion_workbench.reports.statistics.unpaired import BOTH, NOTHING
from fusion_workbench.schema.names import Verdict
from fusion_workbench.schema.records import TrackedSource

DEEP, FIVE, CONCAT, FUSER = ("deep_only", (), 12), ("deep_only", (), 5), ("concat", (3, 6), 12), ("mmfuser", (3, 6), 12)
PRINTS = TrackedSource(fingerprints={"test": "ab"})


def scores(mean: float, seed: int, replicates: int = 5, images: int = 120) -> np.ndarray:
    """``[R, N]``; the images' difficulty is the same for every seed."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(0).normal(0, 0.1, images)
    return mean + difficulty + rng.normal(0, 0.005, (replicates, 1)) + rng.normal(0, 0.03, (replicates, images))


def study(means: dict[tuple[str, tuple[int, ...], int], float], first: int = 0, **changes: Any) -> StudyRecord:
    drawn = {key: {"read": scores(mean, first + i)} for i, (key, mean) in enumerate(means.items())}
    return replace(planted(drawn), source=PRINTS, run_id=f"run {first}", **changes)


def held(now: StudyRecord, before: StudyRecord) -> tuple[Analysis, Against]:
    analysis, earlier = Analysis(now), Analysis(before)
    return analysis, compare(analysis, answer(analysis), of_analysis(earlier, answer(earlier)))


MEANS = {DEEP: 0.30, FIVE: 0.40, CONCAT: 0.50, FUSER: 0.45}


def verdicts(against: Against) -> dict[str, str]:
    return {row.now.strategy + str(row.now.query): row.verdict for row in against.rows}


def test_what_got_better_and_worse_is_told() -> None:
    analysis, against = held(study(MEANS), study(MEANS | {CONCAT: 0.55, DEEP: 0.25}, first=10))
    assert verdicts(against) == {
        "deep_only12": Verdict.BETTER,
        "deep_only5": Verdict.SAME,
        "concat12": Verdict.WORSE,
        "mmfuser12": Verdict.SAME,
    }
    assert not against.changed
    assert {row.difference.shares for row in against.rows} == {BOTH}
    said = " ".join(words(analysis, against))
    assert "of 4 comparisons 1 better, 1 worse and 2 not distinguishable" in said
    assert "The same cell is recommended: concat [3,6]→12. On read it is worse than it was: −5" in said


def test_equals_are_rarely_told_apart() -> None:
    """Both of one truth: at most one study in twenty may hold a false verdict."""
    false = 0
    for number in range(40):
        _, against = held(study(MEANS, first=100 * number), study(MEANS, first=100 * number + 50))
        false += any(row.verdict in (Verdict.BETTER, Verdict.WORSE) for row in against.all)
    assert false <= 6  # of 40 at 5 %: more has a chance below 1 %


def test_another_recommendation_is_held_against_the_old_one() -> None:
    analysis, against = held(study(MEANS | {CONCAT: 0.42}), study(MEANS, first=10))
    assert against.changed
    row = next(r for r in against.recommended)
    assert (row.now.strategy, row.before.strategy, row.verdict, row.same_cell) == (
        "mmfuser",
        "concat",
        Verdict.WORSE,
        False,
    )
    assert row in against.all
    assert row not in against.rows
    said = " ".join(words(analysis, against))
    assert "Another cell is recommended: mmfuser [3,6]→12, before concat [3,6]→12. On read it is worse than" in said


def test_one_and_the_same_study() -> None:
    analysis, against = held(study(MEANS), study(MEANS))
    assert all(row.difference.identical and row.verdict == Verdict.SAME for row in against.rows)
    assert "Of 4 comparisons every single score is the same." in words(analysis, against)
    assert not failures(analysis, answer(analysis), against)
    planned = replace(analysis.plan, margin=0.01)
    _, again = held(study(MEANS, plan=planned), study(MEANS))
    assert set(verdicts(again).values()) == {Verdict.EQUIVALENT}


def test_cells_of_one_study_only_and_lost_ones() -> None:
    now, before = study({DEEP: 0.3, FIVE: 0.4, CONCAT: 0.5}), study({DEEP: 0.3, FIVE: 0.4, FUSER: 0.45}, first=10)
    gone = {key: value for key, value in now.example_scores.items() if key[0] != cell_id(FIVE)}
    runs = tuple(replace(r, state="diverged") if r.cell == cell_id(FIVE) else r for r in now.runs)
    analysis, against = held(replace(now, example_scores=gone, runs=runs), before)
    assert [c.strategy for c in against.only_now] == ["concat"]
    assert [c.strategy for c in against.only_before] == ["mmfuser"]
    assert [c.query for c in against.lost] == [5]
    failed = failures(analysis, answer(analysis), against)
    assert "deep_only 5 has no numbers any more" in failed["worse"]
    assert "concat [3,6]→12 is recommended, before mmfuser [3,6]→12" in failed["different"]


def test_a_cell_whose_id_changed_is_found_by_its_name() -> None:
    before = study(MEANS, first=10)
    renamed = tuple(replace(c, id=f"old{c.id}", chosen_lr=0.001) for c in before.cells)
    before = replace(
        before,
        cells=renamed,
        searched={c.id: c for c in renamed},
        example_scores={(f"old{cell}", *rest): value for (cell, *rest), value in before.example_scores.items()},  # type: ignore[misc]
        runs=tuple(replace(r, cell=f"old{r.cell}") for r in before.runs),
    )
    _, against = held(study(MEANS), before)
    assert len(against.rows) == 4
    assert not against.changed
    assert against.rows[0].notes == ("learning rate 0.001 → 0.003", "matched by name: its full options differ")


def test_other_images_are_never_paired() -> None:
    before = replace(study(MEANS, first=10), source=TrackedSource(fingerprints={"test": "cd"}))
    _, against = held(study(MEANS), before)
    assert {row.difference.shares for row in against.rows} == {NOTHING}
    assert [(c.what, c.before, c.now) for c in against.environment] == [("source fingerprint, test", "cd", "ab")]


def test_a_measure_that_is_another_one_now_is_left_out() -> None:
    before = study(MEANS, first=10)
    before = replace(before, tasks=tuple(replace(t, metric="iou") for t in before.tasks))
    analysis, against = held(study(MEANS), before)
    assert against.rows == ()
    assert against.left_out == ("read: it was measured otherwise before",)
    assert set(failures(analysis, answer(analysis), against)) == {
        "worse",
        "recommended-worse",
        "different",
        "no-verdict",
    }


def test_few_replicates_have_no_verdict() -> None:
    few = {key: {"read": scores(mean, i, replicates=3)} for i, (key, mean) in enumerate(MEANS.items())}
    analysis, against = held(replace(planted(few), source=PRINTS), study(MEANS, first=10))
    assert set(verdicts(against).values()) == {Verdict.NONE}
    failed = failures(analysis, answer(analysis), against)
    assert set(failed) == {"no-verdict"}
    assert failed["no-verdict"].endswith("and 1 more")


def test_an_earlier_report_is_read_back(tmp_path: Path) -> None:
    before = Analysis(study(MEANS | {CONCAT: 0.60}, first=10))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(to_json(before, answer(before))))
    analysis = Analysis(study(MEANS))
    side = find(ComparedSource(str(path)), "sqlite:///none", None, analysis.record)
    assert side.means == before.means
    against = compare(analysis, answer(analysis), side)
    assert {row.difference.shares for row in against.rows} == {NOTHING}
    assert verdicts(against)["concat12"] == Verdict.WORSE
    paired = held(study(MEANS), before.record)[1]
    for apart, together in zip(against.rows, paired.rows, strict=True):
        assert apart.estimate.mean == pytest.approx(together.estimate.mean)
        assert apart.difference.noise.half() > together.difference.noise.half()
    assert "Nothing could be paired" in " ".join(words(analysis, against))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no report"),
        ("{", "cannot be read as a report"),
        ("[]", "is no report of schema"),
        ('{"schema": 1}', "its schema is 1"),
        ('{"schema": 2}', "does not keep to it"),
        ('{"schema": 2, "cells": [3], "tasks": [], "study": {}}', "does not keep to it"),
    ],
)
def test_a_file_that_is_no_report(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "earlier.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WorkbenchError, match=told) as raised:
        find(ComparedSource(str(path)), "sqlite:///none", None, study(MEANS))
    assert "\n" not in str(raised.value)


def test_the_gate_without_another_study() -> None:
    plain = study(MEANS)
    analysis = Analysis(plain)
    assert failures(analysis, answer(analysis), None) == {}
    turned = {key: {"read": 0.95 if key == CONCAT else 0.2} for key in MEANS}  # validation is wrong about it
    drawn = {key: {"read": scores(mean, i)} for i, (key, mean) in enumerate((MEANS | {CONCAT: 0.2}).items())}
    analysis = Analysis(planted(drawn, validation=turned))
    failed = failures(analysis, answer(analysis), None)
    assert set(failed) == {"worse", "recommended-worse"}
    assert failed["worse"].startswith("concat [3,6]→12 is worse than layer")
    few = {key: {"read": scores(mean, i, replicates=2)} for i, (key, mean) in enumerate(MEANS.items())}
    analysis = Analysis(planted(few))
    assert set(failures(analysis, answer(analysis), None)) == {"no-verdict"}
    empty = Analysis(replace(plain, cells=(), runs=(), example_scores={}))
    assert set(failures(empty, answer(empty), None)) == {"worse", "recommended-worse", "different", "no-verdict"}


# --- from end to end --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def before_uri(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small study as it was: four of its cells, and its concat was better."""

    def earlier(task: str, strategy: str, levels: Sequence[int], query: int) -> float:
        return truth(task, strategy, levels, query) + (0.08 if strategy == "concat" else 0.0)

    uri = copy_database(mlflow_template, tmp_path_factory.mktemp("before"))
    fewer = {
        "truth": earlier,
        "singles": (5, 12),
        "selections": (((3, 6, 9), 12),),
        "strategies": ("concat", "mmfuser"),
    }
    Synthetic(**(SMALL | fewer)).write(uri)  # type: ignore[arg-type]
    return uri


def test_page_markdown_and_json_say_it(small_uri: str, before_uri: str, tmp_path: Path) -> None:
    paths = write_report(small_uri, "synthetic", tmp_path, against_uri=before_uri)
    html, markdown = paths.html.read_text(encoding="utf-8"), paths.markdown.read_text(encoding="utf-8")
    assert 'id="against"' in html
    assert "What changed against synthetic" in markdown
    assert "Only now: deep_only 3, deep_only 10, " in markdown
    found = json.loads(paths.json.read_text(encoding="utf-8"))["against"]
    assert found["recommended"]["now"]
    assert len(found["only_now"]) == 7
    by_cell = {(c["measure"], c["cell"]): c for c in found["comparisons"] if c["cell"] == c["before"]}
    concat = by_cell["overall", cell_id(("concat", (3, 6, 9), 12))]
    assert concat["verdict"] == Verdict.WORSE
    assert concat["paired_by"] == "replicates and images"
    fuser = by_cell["overall", cell_id(("mmfuser", (3, 6, 9), 12))]
    assert fuser["identical"]
    alone = write_report(small_uri, "synthetic", tmp_path / "alone")
    assert 'id="against"' not in alone.html.read_text(encoding="utf-8")
    assert json.loads(alone.json.read_text(encoding="utf-8"))["against"] is None


def test_a_study_is_not_held_against_itself(small_uri: str, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="is the study of this report itself"):
        write_report(small_uri, "synthetic", tmp_path, against="synthetic")
    with pytest.raises(WorkbenchError, match="no study 'nobody'"):
        write_report(small_uri, "synthetic", tmp_path, against="nobody")


def test_the_command_line_fails_in_one_line(small_uri: str, before_uri: str, tmp_path: Path) -> None:
    plain = ["report", "synthetic", "--uri", small_uri, "--out", str(tmp_path)]
    failed = CliRunner().invoke(
        app, [*plain, "--against-uri", before_uri, "--fail-on", "worse", "--fail-on", "no-verdict"]
    )
    assert failed.exit_code == 1
    lines = failed.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("failed on worse: against synthetic: concat")
    assert (tmp_path / "report.html").is_file()  # it is there to be read
    earlier = ["--against", str(tmp_path / "report.json")]
    same = CliRunner().invoke(app, [*plain, *earlier, "--fail-on", "worse", "--fail-on", "different"])
    assert same.exit_code == 0, same.stderr
    nothing = CliRunner().invoke(app, [*plain, "--fail-on", "different"])
    assert isinstance(nothing.exception, WorkbenchError)
    assert "--against" in str(nothing.exception)


def test_everything_from_the_other_study_is_escaped(mlflow_template: Path, tmp_path: Path) -> None:
    uri = copy_database(mlflow_template, tmp_path / "evil")
    tiny(name="plain").write(uri)
    evil = "<script>alert(1)</script>"
    tiny(name=evil, replicates=2).write(uri)
    paths = write_report(uri, "plain", tmp_path / "out", against=evil)
    assert "alert(1)</script>" not in paths.html.read_text(encoding="utf-8")
    assert "<script" not in paths.markdown.read_text(encoding="utf-8")
