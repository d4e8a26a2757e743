"""Fresh replicates of what validation picked: a small real study, trained, told and judged."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from fusion_workbench.config.study import StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fresh_replicates import FreshReplicates, judge_fresh_replicates
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.runner.experiment import Experiment, StudyResult
from fusion_workbench.schema.names import BASELINES, MATCHED_CONTROLS
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import prepare
from fusion_workbench.study.progress import Display

STUDY = """
name: confirmed
question: Does it hold on fresh seeds?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes, options: {{train: 24, val: 8, test: 12}}}}
strategies: [{{name: deep_only}}, {{name: concat}}, {{name: mmfuser, options: {{heads: 2}}}}]
selections: [{{levels: [1, 2]}}]
replicates: 2
search: {{learning_rates: [0.001, 0.003]}}
training: {{epochs: 2, batch_size: 8, head_hidden: 16, bank_size: 16}}
tracking: {{uri: "{uri}"}}
"""


def run(config: StudyConfig, workspace: Path) -> StudyResult:
    parts = prepare(config, workspace, progress=False)
    return Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()


def study(text: str, *overrides: str) -> StudyConfig:
    return study_from_yaml(text, "confirmed.yaml", list(overrides))


@pytest.fixture
def text(tiny_dinov2: Path, mlflow_uri: str) -> str:
    return STUDY.format(encoder=tiny_dinov2, uri=mlflow_uri)


def test_the_winner_is_trained_again_with_its_controls(text: str, tmp_path: Path) -> None:
    result = run(study(text), tmp_path)
    record = read_study(result.tracking_uri, "confirmed")
    assert Counter(r.phase for r in record.runs)["confirm"] == 5 * len(record.contenders)
    assert record.fresh_replicates == ("c0", "c1", "c2", "c3", "c4")
    assert record.replicates == ("0", "1")
    analysis = Analysis(record)
    found = judge_fresh_replicates(analysis)
    assert isinstance(found, FreshReplicates)
    assert found.replicates == 5
    assert found.winner == analysis.ranked("overall")[0]
    assert found.fusion is not None
    assert not found.fusion.single
    # the winner and every baseline, as they were picked; controls of the best fusion; it without each of its layers
    by_role = {c.cell.id: c for c in record.contenders}
    assert {key for c in record.contenders for key in c.stands_for} == set(analysis.baselines)
    assert all(by_role[analysis.baselines[key]].stands_for for key in analysis.baselines)
    assert {b for c in record.contenders for b in c.controls} == {"parameters", "flops"}
    without = {c.without: c.cell for c in record.contenders if c.without is not None}
    assert set(without) == {*found.fusion.levels, found.fusion.query}
    assert all(layer not in cell.selection.layers for layer, cell in without.items())
    # judged on fresh replicates alone
    for c in found.compared(found.fusion):
        assert c.difference is None or c.difference.replicates == 5
    assert {c.baseline for c in found.compared(found.fusion)} == {*BASELINES, *MATCHED_CONTROLS}
    assert {left.layer for left in found.left_out} == set(without)
    assert set(found.analysis.record.replicates) == set(record.fresh_replicates)
    assert record.plan is not None  # one level for all: half of it for the fresh replicates
    parts = [sum(f.share for f in part.families) for part in (record.plan.exploring(), record.plan.confirming())]
    assert parts == pytest.approx([0.5, 0.5])
    # the same learning rates were tried for what came in late
    tried = Counter(r.cell for r in record.runs if r.phase == "search")
    assert set(tried.values()) == {2}
    assert {c.cell.id for c in record.contenders} <= set(tried)

    again = run(study(text), tmp_path)
    assert again.trained == 0
    assert again.kept == result.trained


@pytest.mark.long  # two studies
def test_contenders_are_picked_once(text: str, tmp_path: Path) -> None:
    first = run(study(text), tmp_path)
    before = read_study(first.tracking_uri, "confirmed").contenders
    more = run(study(text, "replicates=3", "plan.confirm=[5,6]"), tmp_path)
    after = read_study(more.tracking_uri, "confirmed")
    assert [c.cell.id for c in after.contenders] == [c.cell.id for c in before]
    assert any("fresh replicates" in change for change in after.departures)
    assert len(after.fresh_replicates) in (5, 6)  # the first look may decide
    (path,) = tmp_path.glob("studies/*/ledger.db")
    ledger = Ledger(path)
    assert ledger.fact("confirmed") == len(after.fresh_replicates)
    ledger.close()


def test_where_nothing_finished_nothing_is_picked_for_good(text: str, tmp_path: Path) -> None:
    """Else a study that was mended and run again with --retry-failed would never have its fresh replicates."""
    run(study(text, "search.learning_rates=[1.0e+30]", "training.gradient_clip=0", "replicates=1"), tmp_path)
    (path,) = tmp_path.glob("studies/*/ledger.db")
    ledger = Ledger(path)
    assert ledger.fact("contenders") is None
    ledger.close()


def test_without_a_plan_for_it_nothing_is_trained_again(text: str, tmp_path: Path) -> None:
    result = run(study(text, "plan.confirm=[]"), tmp_path)
    record = read_study(result.tracking_uri, "confirmed")
    assert not record.contenders
    assert judge_fresh_replicates(Analysis(record)) is None
    assert record.plan is not None
    assert record.plan.exploring().families == record.plan.families  # the whole level is for the comparison of all


@pytest.mark.parametrize("override", ["plan.confirm=[3]", "plan.confirm=[6,5]", "plan.confirm_share=1.0"])
def test_a_plan_that_cannot_be_kept_is_refused(text: str, override: str) -> None:
    with pytest.raises(WorkbenchError, match="fresh replicates"):
        study(text, override)
