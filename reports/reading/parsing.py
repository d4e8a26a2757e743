"""What a study tracked, piece by piece, as the report's plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from fusion_workbench.config.limits import MOST_REPLICATES
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import MOST_LAYERS
from fusion_workbench.core.parse import parse_json, parse_yaml
from fusion_workbench.reports.reading.records import Run
from fusion_workbench.reports.statistics.example_scores import ExampleScores, natural_key
from fusion_workbench.reports.statistics.intervals import quotient_shares
from fusion_workbench.schema.checksums import of_metrics
from fusion_workbench.schema.dependencies import TrackedDependencies
from fusion_workbench.schema.names import Artifact, Phase, Status, Tag, fresh_replicate, statistic_column
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
        dependencies=str(tags.get(Tag.DEPENDENCIES, "")),
        environment=_words(tags.get(Tag.ENVIRONMENT, "")),
        code=_words(tags.get(Tag.CODE, "")),
        error=str(tags.get(Tag.ERROR, "")),
        altered=of_metrics(raw.data.metrics) != tags.get(Tag.METRICS, of_metrics(raw.data.metrics)),
    )


def altered_metrics(runs: Sequence[Run]) -> list[str]:
    """A note where MLflow's metrics of runs are not those that the study wrote there."""
    found = [run.run_id for run in runs if run.altered]
    if not found:
        return []
    of = f"run {found[0]}" if len(found) == 1 else f"{len(found)} runs, such as {found[0]},"
    return [
        f"The metrics of {of} in MLflow are not those that the study wrote there: numbers on validation, of cost and "
        "of training are others, or missing. workbench sweep, on the same study, writes them there again."
    ]


def _words(text: str) -> dict[str, str]:
    """A JSON object of words; empty for anything else."""
    try:
        plain = parse_json(text) if text else {}
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in plain.items()} if isinstance(plain, Mapping) else {}


def of_current_code(runs: Sequence[Run], tracked: TrackedDependencies | None) -> tuple[list[Run], list[str]]:
    """The runs of plug-ins' code as it is now, with those of no plug-in; and a note for each whose others are left out.

    Where the study does not say which code is current, it is that of the run that was started last.
    """
    current = {name: now for name, (_, now) in tracked.code.items()} if tracked else {}
    first = {name: then for name, (then, _) in tracked.code.items()} if tracked else {}
    for run in runs:  # oldest first
        for name, code in run.code.items():
            if not tracked or name not in tracked.code:
                current[name] = code
    kept: list[Run] = []
    left_out: dict[str, int] = {}
    for run in runs:
        names = run.code or {name: first[name] for name in _strategies(run) if name in first}
        old = [name for name, code in names.items() if current.get(name, code) != code]
        if old:
            left_out[old[0]] = left_out.get(old[0], 0) + 1
        else:
            kept.append(run)
    return kept, [
        f"The code of strategy '{name}' has changed since: {number} {'run' if number == 1 else 'runs'} of other code "
        f"{'is' if number == 1 else 'are'} left out."
        for name, number in left_out.items()
    ]


def _strategies(run: Run) -> tuple[str, ...]:
    """The strategy of a run, and of a control the one that it is matched to."""
    return run.params.get("strategy", ""), run.params.get("options.like", "")


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


def replicates_of(study_yaml: str, runs: Sequence[Run], stopped: Any, notes: list[str]) -> tuple[str, ...]:
    """Those that the study asks for, up to the look that it stopped at, and any that it has besides.

    A number that no study can ask for is as if none were written, and ``notes`` gets a sentence.
    """
    seen = {run.replicate for run in runs if run.phase == Phase.FINAL}
    try:
        plain = parse_yaml(study_yaml, Artifact.STUDY)
    except WorkbenchError:
        plain = {}
    asked = plain.get("replicates") if isinstance(plain, dict) else 0
    planned_number = asked if _is_count(asked) else 0
    if asked != planned_number and asked is not None:
        notes.append(f"{Artifact.STUDY} asks for a number of replicates that no study has; those that ran are shown.")
    planned_number = min(planned_number, stopped) if _is_count(stopped) else planned_number
    return tuple(sorted(seen | {str(number) for number in range(planned_number)}, key=natural_key))


def _is_count(value: Any) -> TypeGuard[int]:
    """Whether it is a number of replicates, of which names are made."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_REPLICATES


def encoder_info_of(plain: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    """``passport.json``; a depth that no encoder has is left out, and ``notes`` gets a sentence."""
    depth = plain.get("depth")
    deep = isinstance(depth, int) and not isinstance(depth, bool) and 0 < depth <= MOST_LAYERS
    if "depth" in plain and not deep:
        notes.append(f"The depth in {Artifact.ENCODER} is left out: no encoder has it.")
    return plain if deep else {key: value for key, value in plain.items() if key != "depth"}


def fresh_of(runs: Sequence[Run], planned: Sequence[int], stopped: Any) -> tuple[str, ...]:
    """The fresh replicates that the plan asks for, up to the look that they stopped at, and any that there are."""
    seen = {run.replicate for run in runs if run.phase == Phase.CONFIRM}
    planned_number = stopped if _is_count(stopped) else max(filter(_is_count, planned), default=0)
    return tuple(sorted(seen | {fresh_replicate(number) for number in range(planned_number)}, key=natural_key))
