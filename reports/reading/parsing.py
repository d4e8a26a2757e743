"""What a study tracked, piece by piece, as the report's plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from fusion_workbench.core.layers import Selection
from fusion_workbench.reports.reading.records import (
    FINISHED,
    RUNNING,
    STATES,
    Cell,
    Contender,
    Family,
    Outcomes,
    Plan,
    Run,
    Task,
)
from fusion_workbench.reports.statistics.crossed import quotient_shares

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run as MlflowRun


def tasks_of(known: Mapping[str, Any], outcomes: Mapping[tuple[str, str, str], Outcomes]) -> tuple[Task, ...]:
    names = dict.fromkeys([*known, *(task for _, task, _ in outcomes)])
    tasks = []
    for name in names:
        entry = known.get(name)
        entry = entry if isinstance(entry, Mapping) else {}
        tasks.append(
            Task(
                name=str(name),
                metric=str(entry.get("metric", "accuracy")),
                direction=str(entry.get("direction", "maximize")),
                chance=number(entry.get("chance")),
                title=str(entry.get("title", "")),
                unit=str(entry.get("unit") or "share"),
                perfect=number(entry.get("perfect")),
                ratio=ratio_of(entry),
                chance_test=number(entry.get("chance_test")),
            )
        )
    return tuple(tasks)


def plan_of(tracked: Any) -> Plan | None:
    """None where nothing was tracked. Raises KeyError, TypeError, ValueError or AttributeError for what is no plan."""
    if not tracked:
        return None
    return Plan(
        primary=str(tracked["primary"]),
        families=tuple(Family(tuple(map(str, f["measures"])), float(f["share"])) for f in tracked["families"]),
        level=float(tracked["level"]),
        margin=None if tracked["margin"] is None else float(tracked["margin"]),
        looks=tuple(int(n) for n in tracked["looks"]),
        confirm=tuple(int(n) for n in tracked.get("confirm", ())),
        confirm_share=float(tracked.get("confirm_share", 0.0)),
    )


def run_of(raw: MlflowRun, parent_status: str) -> Run:
    tags, params = raw.data.tags, raw.data.params
    return Run(
        run_id=str(raw.info.run_id),
        cell=str(tags.get("workbench.cell", "")),
        phase=str(tags.get("workbench.phase", "final")),
        replicate=str(tags.get("workbench.replicate", "")),
        state=_state(str(raw.info.status), str(tags.get("workbench.outcome", "")), parent_status),
        lr=number(params.get("lr")),
        started=int(raw.info.start_time or 0),
        metrics={str(k): float(v) for k, v in raw.data.metrics.items()},
        params={str(k): str(v) for k, v in params.items()},
    )


def _state(status: str, outcome: str, parent_status: str) -> str:
    if status == "FINISHED" and outcome == "finished":
        return FINISHED
    if outcome in STATES and outcome != FINISHED:
        return outcome
    if status in ("RUNNING", "SCHEDULED"):
        return RUNNING if parent_status == "RUNNING" else "killed"
    return "killed" if status == "KILLED" else "failed"


def cell_of_entry(entry: Mapping[str, Any]) -> Cell:
    lr = entry.get("chosen_lr")
    return Cell(
        id=str(entry["cell"]),
        strategy=str(entry["strategy"]),
        levels=tuple(int(level) for level in entry.get("levels") or ()),
        query=int(entry["query"]),
        label=str(entry.get("label") or entry["strategy"]),
        options=dict(entry.get("options") or {}),
        alias=str(entry.get("alias") or ""),
        baselines=tuple(map(str, entry.get("baselines") or ())),
        chosen_lr=None if lr is None else float(lr),
    )


def contender_of(entry: Mapping[str, Any]) -> Contender:
    without = entry.get("without")
    return Contender(
        cell=cell_of_entry(entry),
        roles=tuple(map(str, entry.get("roles") or ())),
        stands_for=tuple((str(measure), str(name)) for measure, name in entry.get("stands_for") or ()),
        controls=tuple(map(str, entry.get("controls") or ())),
        without=None if without is None else int(without),
    )


def cell_of_run(run: Run) -> Cell:
    """A cell as its run's params tell it."""
    params = run.params
    levels = tuple(int(x) for x in params.get("levels", "").split(",") if x.strip())
    query, strategy = int(number(params.get("query")) or 0), params.get("strategy", "?")
    alias = params.get("alias", "")
    return Cell(
        id=run.cell,
        strategy=strategy,
        levels=levels,
        query=query,
        label=f"{strategy} {Selection(levels, query).label}" + (f" ({alias})" if alias else ""),
        options={k.removeprefix("options."): v for k, v in params.items() if k.startswith("options.")},
        alias=alias,
        baselines=("single layer",) if strategy == "deep_only" and not levels else (),
        chosen_lr=run.lr if run.phase != "search" else None,
    )


def ratio_of(entry: Any) -> tuple[str, str] | None:
    found = entry.get("ratio") if isinstance(entry, Mapping) else None
    return (str(found[0]), str(found[1])) if isinstance(found, list) and len(found) == 2 else None


def example_scores(table: pd.DataFrame, ratio: tuple[str, str] | None) -> pd.Series[float]:
    """Each example's score; of a quotient of sums, its share (:func:`reports.statistics.crossed.quotient_shares`)."""
    import pandas as pd

    if ratio is None or not {f"stat.{name}" for name in ratio} <= {*table.columns}:
        return table["score"]
    above, below = (table[f"stat.{name}"].astype(float) for name in ratio)
    if not below.sum() > 0:
        return table["score"]
    return pd.Series(quotient_shares(above, below), index=table.index)


def replicates_of(study_yaml: str, runs: Sequence[Run], stopped: Any) -> tuple[str, ...]:
    """Those that the study asks for, up to the look that it stopped at, and any that it has besides."""
    seen = {run.replicate for run in runs if run.phase == "final"}
    try:
        plain = yaml.safe_load(study_yaml) or {}
        asked = int(plain.get("replicates", 0)) if isinstance(plain, dict) else 0
    except (yaml.YAMLError, TypeError, ValueError):
        asked = 0
    asked = min(asked, stopped) if isinstance(stopped, int) else asked
    return tuple(sorted(seen | {str(number) for number in range(asked)}, key=natural))


def fresh_of(runs: Sequence[Run], planned: Sequence[int], stopped: Any) -> tuple[str, ...]:
    """The fresh replicates that the plan asks for, up to the look that they stopped at, and any that there are."""
    seen = {run.replicate for run in runs if run.phase == "confirm"}
    asked = stopped if isinstance(stopped, int) else max(planned, default=0)
    return tuple(sorted(seen | {f"c{number}" for number in range(asked)}, key=natural))


def natural(word: str) -> tuple[int, str, int]:
    """Sorts replicates: 2 before 10, c2 before c10, numbers before words."""
    if word.isdecimal():
        return (0, "", int(word))
    head, digits = word[:1], word[1:]
    return (1, head, int(digits)) if digits.isdecimal() else (2, word, 0)


def number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
