"""Per-example scores of a run: read, and held against the metrics that MLflow has of the same run.

The metrics were computed while the run was evaluated, by other code and into another place than the file of scores.
Where the two disagree one of them is wrong, and nobody can say which: the run does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
) -> pd.DataFrame:
    """A run's ``outcomes/<split>.parquet``: a row for each example and task.

    Args:
        tasks: those that the study lists; empty where it lists none.
        metrics: the last values that MLflow has of the run.
        examples: that each task has; None where it is not known.

    Raises:
        WorkbenchError: it cannot be read, lacks rows, or its scores do not give the run's metrics; the message goes on
            from the file's name.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
        if lacking := sorted(_COLUMNS - {*table.columns}):
            raise KeyError(", ".join(lacking))
        table = table.astype({"score": float, "items": float})
        wrong = _wrong(table, on_test if split == "test" else on_validation, tasks, metrics, examples)
    except Exception as error:  # torn or foreign: pyarrow raises many kinds
        raise WorkbenchError(f"cannot be read ({type(error).__name__})") from None
    if wrong:
        raise WorkbenchError(wrong)
    return table


def _wrong(
    table: pd.DataFrame,
    named: Callable[[str], str],
    tasks: Mapping[str, Task],
    metrics: Mapping[str, float],
    examples: int | None,
) -> str | None:
    """What is wrong with scores that can be read, or None."""
    parts = {str(task): part for task, part in table.groupby("task")}
    if foreign := sorted(parts.keys() - tasks.keys()) if tasks else []:
        return f"holds scores of '{foreign[0]}', which is no task of the study"
    for name, task in tasks.items():
        metric = named(task_metric(name, task.metric))
        logged, part = metrics.get(metric), parts.get(name)
        if part is None:
            if logged is not None:
                return f"holds no scores of '{name}', and the run's {metric} is {logged:.6g}"
            continue
        if examples is not None and len(part) != examples:
            return f"holds scores of '{name}' for {len(part):,} of {examples:,} examples"
        value = _value(part, task)
        if logged is not None and value is not None and not _alike(value, logged):
            return f"does not give the run's {metric}: {value:.6g} of its scores, {logged:.6g} in MLflow"
    return None


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
