"""Per-example scores of a run: read, and held against the metrics that MLflow has of the same run.

The metrics were computed while the run was evaluated, by other code and into another place than the file of scores.
Where the two disagree one of them is wrong, and nobody can say which: the run does not count. Where they disagree in
every run of the study, nothing is damaged: the metric, of somebody's own task, is no mean over examples. That is told.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import on_test, on_validation, statistic_column, task_metric
from fusion_workbench.schema.records import Task

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {"example_id", "group", "task", "score", "items"}
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5  # scores are kept in float32, and torchmetrics adds up in it


def read_outcomes(
    path: Path, split: str, tasks: Mapping[str, Task], metrics: Mapping[str, float], examples: int | None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """A run's ``outcomes/<split>.parquet``, a row for each example and task, and what it says of the run's metrics.

    Args:
        tasks: those that the study lists; empty where it lists none.
        metrics: the last values that MLflow has of the run.
        examples: that each task has; None where it is not known.

    Returns:
        The table; and task → how its scores disagree with the run's metric, empty where they agree, of the tasks that
        tell.

    Raises:
        WorkbenchError: it cannot be read, or lacks rows; the message goes on from the file's name.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
        if lacking := sorted(_COLUMNS - {*table.columns}):
            raise KeyError(", ".join(lacking))
        table = table.astype({"score": float, "items": float})
        named = on_test if split == "test" else on_validation
        logged = {name: metrics.get(named(task_metric(name, task.metric))) for name, task in tasks.items()}
        parts = {str(task): part for task, part in table.groupby("task")}
        compared = {
            name: _disagreement(_value(parts[name], task), logged[name], named(task_metric(name, task.metric)))
            for name, task in tasks.items()
            if name in parts
        }
    except Exception as error:  # torn or foreign: pyarrow raises many kinds
        raise WorkbenchError(f"cannot be read ({type(error).__name__})") from None
    if foreign := sorted(parts.keys() - tasks.keys()) if tasks else []:
        raise WorkbenchError(f"holds scores of '{foreign[0]}', which is no task of the study")
    for name in tasks:
        if name not in parts and logged[name] is not None:
            raise WorkbenchError(f"holds no scores of '{name}', which the run has a metric of")
        if name in parts and examples is not None and len(parts[name]) != examples:
            raise WorkbenchError(f"holds scores of '{name}' for {len(parts[name]):,} of {examples:,} examples")
    return table, {name: said for name, said in compared.items() if said is not None}


class Disagreements:
    """Between scores and metrics, over all runs of a study."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (task, split) → run → said
        self._certain: set[str] = set()

    def add(self, run_id: str, split: str, found: Mapping[str, str], certain: bool) -> None:
        """What :func:`read_outcomes` says of a run. ``certain``: its file is known to be what was written."""
        for task, said in found.items():
            self._found[task, split][run_id] = said
        self._certain |= {run_id} if certain else set()

    def of_runs(self) -> dict[tuple[str, str], str]:
        """(run, split) → what is wrong, of the runs whose scores differ from their metrics where others' do not."""
        wrong: dict[tuple[str, str], str] = {}
        for (_, split), runs in self._found.items():
            if not self._is_everywhere(runs):
                wrong |= {(run, split): said for run, said in runs.items() if said}
        return wrong

    def of_study(self) -> list[str]:
        """In sentences, metrics that are not what the scores say in any run."""
        return [
            f"The metric of task '{task}' on {split} is not the mean of its examples' scores, nor the quotient that "
            "the task names: tables show the mean of the scores."
            for (task, split), runs in self._found.items()
            if self._is_everywhere(runs)
        ]

    def _is_everywhere(self, runs: Mapping[str, str]) -> bool:
        return all(runs.values()) and (len(runs) > 1 or runs.keys() <= self._certain)


def _disagreement(value: float | None, logged: float | None, metric: str) -> str | None:
    """Empty where they agree, None where one of them is not known."""
    if value is None or logged is None:
        return None
    return "" if _alike(value, logged) else f"gives {value:.6g} for the run's {metric}, which is {logged:.6g} in MLflow"


def _value(part: pd.DataFrame, task: Task) -> float | None:
    """The task's metric by the scores; None where they do not tell."""
    if task.ratio is not None:
        columns = [statistic_column(name) for name in task.ratio]
        if not {*columns} <= {*part.columns}:
            return None
        above, below = (float(part[column].astype(float).sum()) for column in columns)
        return above / below if below else None
    items = float(part["items"].sum())
    return float((part["score"] * part["items"]).sum()) / items if items else None


def _alike(value: float, logged: float) -> bool:
    return math.isclose(value, logged, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
