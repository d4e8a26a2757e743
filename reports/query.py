"""MLflow → :class:`~reports.records.StudyRecord`. The only file of the report that reads anything."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import yaml

from reports.connect import children, connect, find_study, shown
from reports.look import read_look
from reports.records import FINISHED, RUNNING, STATES, UNREADABLE, Cell, Look, Outcomes, Run, StudyRecord, Task
from workbench.errors import WorkbenchError
from workbench.layers import Selection

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

SPLITS = ("val", "test")
_HISTORIES = ("train/loss", "val/objective")  # those that the report draws: each costs a request a run
_COLUMNS = ["example_id", "group", "task", "score", "items"]


def read_study(tracking_uri: str, study: str, experiment: str | None = None) -> StudyRecord:
    """Read a study, whatever state it is in.

    Args:
        tracking_uri: MLflow database or server.
        study: name (the latest parent run of that name) or 16-digit id.
        experiment: where to look; None: everywhere.

    Raises:
        WorkbenchError: MLflow cannot be opened, or holds no such study.
    """
    client = connect(tracking_uri)
    parent = find_study(client, tracking_uri, study, experiment)
    with tempfile.TemporaryDirectory(prefix="workbench-report-") as folder:
        return _Reader(client, parent, Path(folder)).read(tracking_uri)


class _Reader:
    def __init__(self, client: MlflowClient, parent: MlflowRun, folder: Path) -> None:
        self.client = client
        self.parent = parent
        self.folder = folder
        self.notes: list[str] = []
        self.groups: set[str] = set()
        self.places: dict[str, str] = {str(parent.info.run_id): str(parent.info.artifact_uri)}

    def read(self, uri: str) -> StudyRecord:
        info, tags = self.parent.info, {str(k): str(v) for k, v in self.parent.data.tags.items()}
        study_yaml = self._text("study.yaml")
        source = self._json("source.json", {})
        raw = children(self.client, self.parent)
        self.places |= {str(r.info.run_id): str(r.info.artifact_uri) for r in raw}
        cells = tuple(self._cells(self._json("variants.json", [])))
        runs = [_run(r, str(info.status)) for r in raw]
        if not cells:  # stopped before its plan was written down: what was started tells it
            cells = tuple({r.cell: _cell_of(r) for r in runs if r.phase == "final"}.values())
        searched = {r.cell: _cell_of(r) for r in runs} | {cell.id: cell for cell in cells}
        kept = self._latest(runs, {cell.id: cell.chosen_lr for cell in cells})
        kept, outcomes = self._outcomes(kept)
        listed = source.get("groups", {}).get("test", []) if isinstance(source.get("groups"), Mapping) else []
        return StudyRecord(
            name=tags.get("workbench.study", str(info.run_name)),
            study_id=tags.get("workbench.study_id", ""),
            run_id=str(info.run_id),
            experiment=str(self.client.get_experiment(info.experiment_id).name),
            tracking_uri=shown(uri),
            status=str(info.status),
            question=tags.get("workbench.question", ""),
            started=int(info.start_time or 0),
            ended=int(info.end_time) if info.end_time else None,
            tags=tags,
            study_yaml=study_yaml,
            passport=self._json("passport.json", {}),
            source=source,
            tasks=self._tasks(outcomes),
            cells=cells,
            searched=searched,
            replicates=_replicates(study_yaml, kept),
            runs=tuple(self._with_history(run) for run in kept),
            outcomes=outcomes,
            groups=tuple(sorted(self.groups or map(str, listed))),
            look=self._look(),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _cells(self, plan: Sequence[Any]) -> Iterator[Cell]:
        """The planned cells; an entry that cannot be read is left out and told."""
        for number, entry in enumerate(plan, 1):
            try:
                yield _cell(entry)
            except KeyError as error:
                self.notes.append(f"Entry {number} of variants.json is left out: it names no {error}.")
            except (TypeError, ValueError, AttributeError):
                self.notes.append(f"Entry {number} of variants.json is left out: it describes no cell.")

    # --- runs ---------------------------------------------------------------------------------------------------

    def _latest(self, runs: Sequence[Run], chosen: Mapping[str, float | None]) -> list[Run]:
        """One run for each variant-replicate: a finished one before others, then the latest.

        A final run at a learning rate that the study has since given up counts for nothing.
        """
        best: dict[tuple[str, str, str, float | None], Run] = {}
        for run in runs:  # oldest first
            rate = chosen.get(run.cell)
            if run.phase == "final" and run.lr is not None and rate is not None and not np.isclose(run.lr, rate):
                self.notes.append("Runs at a learning rate that a later search replaced are left out.")
                continue
            key = (run.cell, run.phase, run.replicate, run.lr if run.phase == "search" else None)
            if key not in best or run.state == FINISHED or best[key].state != FINISHED:
                best[key] = run
        return sorted(best.values(), key=lambda r: (r.phase, _natural(r.replicate), r.started))

    def _with_history(self, run: Run) -> Run:
        if run.phase != "final" or run.state != FINISHED:
            return run
        history = {}
        for key in _HISTORIES:
            if key in run.metrics:
                points = {int(m.step): float(m.value) for m in self.client.get_metric_history(run.run_id, key)}
                history[key] = tuple(sorted(points.items()))
        return Run(**{**run.__dict__, "history": history})

    # --- outcomes -----------------------------------------------------------------------------------------------

    def _outcomes(self, runs: Sequence[Run]) -> tuple[list[Run], dict[tuple[str, str, str], Outcomes]]:
        """Scores of the finished final runs; a run whose test outcomes cannot be read is no longer finished."""
        frames: dict[tuple[str, str, str], dict[str, pd.Series[float]]] = defaultdict(dict)
        out: list[Run] = []
        for run in runs:
            state = run.state
            if run.phase == "final" and state == FINISHED:
                for split in SPLITS:
                    table = self._parquet(run.run_id, split)
                    if table is None:
                        state = UNREADABLE if split == "test" else state
                        continue
                    if split == "test":
                        self.groups |= set(table["group"].astype(str))
                    for task, part in table[table["items"] > 0].groupby("task"):
                        scores = part.drop_duplicates("example_id").set_index("example_id")["score"]
                        frames[run.cell, str(task), split][run.replicate] = scores.astype(float)
            out.append(Run(**{**run.__dict__, "state": state}))
        return out, {key: self._align(by_replicate) for key, by_replicate in frames.items()}

    def _align(self, by_replicate: Mapping[str, pd.Series[float]]) -> Outcomes:
        """Examples that every replicate scored, in one order."""
        import pandas as pd

        names = tuple(sorted(by_replicate, key=_natural))
        table = pd.concat([by_replicate[name] for name in names], axis=1, join="outer")
        whole = table.dropna().sort_index()
        if len(whole) < len(table):
            self.notes.append("Examples that not every replicate scored are left out.")
        return Outcomes(names, tuple(map(str, whole.index)), np.ascontiguousarray(whole.to_numpy(dtype=float).T))

    def _parquet(self, run_id: str, split: str) -> pd.DataFrame | None:
        import pandas as pd

        path = self._file(f"outcomes/{split}.parquet", run_id)
        if path is None:
            return None
        try:
            return pd.read_parquet(path, columns=_COLUMNS)
        except Exception as error:  # torn or foreign: pyarrow raises many kinds
            self.notes.append(f"outcomes/{split}.parquet of run {run_id} cannot be read ({type(error).__name__}).")
            return None

    # --- artifacts ----------------------------------------------------------------------------------------------

    def _file(self, path: str, run_id: str) -> Path | None:
        place = self.places.get(run_id, "")
        if place.startswith("file:"):  # on this machine: MLflow would copy it, forty times as slowly
            file = Path(url2pathname(urlsplit(place).path)) / path
            return file if file.is_file() else None
        target = self.folder / run_id
        target.mkdir(exist_ok=True)
        try:
            return Path(self.client.download_artifacts(run_id, path, str(target)))
        except Exception:  # every artifact store has its own way to say that there is none
            return None

    def _text(self, path: str) -> str:
        file = self._file(path, str(self.parent.info.run_id))
        if file is None:
            self.notes.append(f"The study has no {path}.")
            return ""
        return file.read_text(encoding="utf-8", errors="replace")

    def _json(self, path: str, default: Any) -> Any:
        text = self._text(path)
        try:
            value = json.loads(text) if text else default
        except json.JSONDecodeError:
            self.notes.append(f"{path} is not valid JSON.")
            return default
        return value if isinstance(value, type(default)) else default

    def _look(self) -> Look | None:
        """What the study's last step left to look at; None where there is nothing, or nothing that can be read."""
        run = str(self.parent.info.run_id)
        file = self._file("look/look.json", run)
        if file is None:
            return None
        try:
            return read_look(json.loads(file.read_bytes()), lambda name: self._file(f"look/{name}", run))
        except WorkbenchError as error:
            reason = str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"look.json lacks something or holds nonsense ({type(error).__name__}: {error})"
        self.notes.append(f"The look at test images is left out: {reason}.")
        return None

    def _tasks(self, outcomes: Mapping[tuple[str, str, str], Outcomes]) -> tuple[Task, ...]:
        known = self._json("tasks.json", {})
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
                    chance=_number(entry.get("chance")),
                    title=str(entry.get("title", "")),
                    unit=str(entry.get("unit") or "share"),
                    perfect=_number(entry.get("perfect")),
                    chance_test=_number(entry.get("chance_test")),
                )
            )
        return tuple(tasks)


def _run(raw: MlflowRun, parent_status: str) -> Run:
    tags, params = raw.data.tags, raw.data.params
    return Run(
        run_id=str(raw.info.run_id),
        cell=str(tags.get("workbench.cell", "")),
        phase=str(tags.get("workbench.phase", "final")),
        replicate=str(tags.get("workbench.replicate", "")),
        state=_state(str(raw.info.status), str(tags.get("workbench.outcome", "")), parent_status),
        lr=_number(params.get("lr")),
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


def _cell(entry: Mapping[str, Any]) -> Cell:
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


def _cell_of(run: Run) -> Cell:
    """A cell as its run's params tell it."""
    params = run.params
    levels = tuple(int(x) for x in params.get("levels", "").split(",") if x.strip())
    query, strategy = int(_number(params.get("query")) or 0), params.get("strategy", "?")
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
        chosen_lr=run.lr if run.phase == "final" else None,
    )


def _replicates(study_yaml: str, runs: Sequence[Run]) -> tuple[str, ...]:
    """Those that the study asks for, and any that it has besides."""
    seen = {run.replicate for run in runs if run.phase == "final"}
    try:
        plain = yaml.safe_load(study_yaml) or {}
        asked = int(plain.get("replicates", 0)) if isinstance(plain, dict) else 0
    except (yaml.YAMLError, TypeError, ValueError):
        asked = 0
    return tuple(sorted(seen | {str(number) for number in range(asked)}, key=_natural))


def _natural(word: str) -> tuple[int, str]:
    return (int(word), "") if word.isdigit() else (1 << 62, word)


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
