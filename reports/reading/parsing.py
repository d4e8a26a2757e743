"""What a study tracked, piece by piece, as the report's plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from fusion_workbench.reports.reading.records import Run
from fusion_workbench.reports.statistics.example_scores import ExampleScores, natural_key
from fusion_workbench.reports.statistics.intervals import quotient_shares
from fusion_workbench.schema.names import Phase, Status, Tag, fresh_replicate, statistic_column
from fusion_workbench.schema.records import Cell, Task, number

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run as MlflowRun


def tasks_of(
    listed: Mapping[str, Any], example_scores: Mapping[tuple[str, str, str], ExampleScores]
) -> tuple[Task, ...]:
    """The tasks that the study lists, then any that there are scores of."""
    names = dict.fromkeys([*listed, *(task for _, task, _ in example_scores)])
    return tuple(Task.read(str(name), listed.get(name)) for name in names)


def run_of(raw: MlflowRun, parent_status: str) -> Run:
    tags, params = raw.data.tags, raw.data.params
    return Run(
        run_id=str(raw.info.run_id),
        cell=str(tags.get(Tag.CELL, "")),
        phase=str(tags.get(Tag.PHASE, Phase.FINAL)),
        replicate=str(tags.get(Tag.REPLICATE, "")),
        state=Status.read(str(raw.info.status), str(tags.get(Tag.STATUS, "")), parent_status),
        lr=number(params.get("lr")),
        started=int(raw.info.start_time or 0),
        metrics={str(k): float(v) for k, v in raw.data.metrics.items()},
        params={str(k): str(v) for k, v in params.items()},
        error=str(tags.get(Tag.ERROR, "")),
    )


def cell_of_run(run: Run) -> Cell:
    """A cell as its run's params tell it."""
    return Cell.read_params(run.cell, run.params, run.lr if run.phase != Phase.SEARCH else None)


def scores_by_example(table: pd.DataFrame, ratio: tuple[str, str] | None) -> pd.Series[float]:
    """Each example's score; of a quotient of sums, its share (:func:`reports.statistics.intervals.quotient_shares`)."""
    import pandas as pd

    if ratio is None or not {statistic_column(name) for name in ratio} <= {*table.columns}:
        return table["score"]
    above, below = (table[statistic_column(name)].astype(float) for name in ratio)
    if not below.sum() > 0:
        return table["score"]
    return pd.Series(quotient_shares(above, below), index=table.index)


def replicates_of(study_yaml: str, runs: Sequence[Run], stopped: Any) -> tuple[str, ...]:
    """Those that the study asks for, up to the look that it stopped at, and any that it has besides."""
    seen = {run.replicate for run in runs if run.phase == Phase.FINAL}
    try:
        plain = yaml.safe_load(study_yaml) or {}
        planned_number = int(plain.get("replicates", 0)) if isinstance(plain, dict) else 0
    except (yaml.YAMLError, TypeError, ValueError):
        planned_number = 0
    planned_number = min(planned_number, stopped) if isinstance(stopped, int) else planned_number
    return tuple(sorted(seen | {str(number) for number in range(planned_number)}, key=natural_key))


def fresh_of(runs: Sequence[Run], planned: Sequence[int], stopped: Any) -> tuple[str, ...]:
    """The fresh replicates that the plan asks for, up to the look that they stopped at, and any that there are."""
    seen = {run.replicate for run in runs if run.phase == Phase.CONFIRM}
    planned_number = stopped if isinstance(stopped, int) else max(planned, default=0)
    return tuple(sorted(seen | {fresh_replicate(number) for number in range(planned_number)}, key=natural_key))
