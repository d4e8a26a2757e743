"""MLflow → :class:`~reports.reading.records.StudyRecord`. The only file of the report that reads anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.parse import parse_json
from fusion_workbench.reports.reading.artifacts import Artifacts
from fusion_workbench.reports.reading.connect import children, connect, find_study
from fusion_workbench.reports.reading.language import ShownQuestions, read_answers, shown_questions
from fusion_workbench.reports.reading.layers import Inside, read_importance, read_inside, read_similarity
from fusion_workbench.reports.reading.outcomes import Disagreements, read_outcomes
from fusion_workbench.reports.reading.parsing import (
    altered_metrics,
    cell_of_run,
    encoder_info_of,
    fresh_of,
    of_current_code,
    replicates_of,
    run_of,
    scores_by_example,
    tasks_of,
)
from fusion_workbench.reports.reading.ranking import Ranking
from fusion_workbench.reports.reading.records import Run, StudyRecord, TokenMaps
from fusion_workbench.reports.reading.study_files import NONSENSE, StudyFiles
from fusion_workbench.reports.reading.token_maps import read_token_maps
from fusion_workbench.reports.statistics.example_scores import ExampleScores, natural_key
from fusion_workbench.schema.dependencies import TrackedDependencies
from fusion_workbench.schema.language import LanguageModel
from fusion_workbench.schema.names import (
    ATTENTION_SHARE,
    GATE,
    OBJECTIVE,
    TRAIN_LOSS,
    Artifact,
    Phase,
    Status,
    Tag,
    scores_file,
)
from fusion_workbench.schema.plan import Plan, TrackedPlan, plan_hash
from fusion_workbench.schema.records import Cell, Contender, Task, TrackedSource
from fusion_workbench.system.files import read_small
from fusion_workbench.system.mlflow_uri import without_password
from fusion_workbench.system.scratch import scratch_folder

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

_Entry = TypeVar("_Entry")

SPLITS = ("val", "test")
_HISTORIES = (TRAIN_LOSS, OBJECTIVE)  # those that the report draws: each costs a request a run
_MOST_INSIDES = 6  # cells whose fusers are looked into, the best on validation


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
    with scratch_folder("report") as folder:
        return _Reader(client, parent, folder).read(tracking_uri)


class _Reader:
    def __init__(self, client: MlflowClient, parent: MlflowRun, folder: Path) -> None:
        self.client = client
        self.parent = parent
        self.folder = folder
        self.notes: list[str] = []
        self.groups: set[str] = set()

    def read(self, uri: str) -> StudyRecord:
        info, tags = self.parent.info, {str(k): without_password(str(v)) for k, v in self.parent.data.tags.items()}
        raw = children(self.client, self.parent)
        self.artifacts = Artifacts(self.client, [self.parent, *raw], self.folder)
        self.own = StudyFiles(self.artifacts, str(info.run_id), self.notes)
        study_yaml = self.own.text(Artifact.STUDY)
        source = TrackedSource.read(self.own.json(Artifact.SOURCE, {}))
        cells = tuple(self._entries(Artifact.CELLS, self.own.json(Artifact.CELLS, []), Cell.read))
        dependencies = self.own.part(Artifact.DEPENDENCIES, TrackedDependencies.read)
        runs, of_other_code = of_current_code([run_of(r, str(info.status)) for r in raw], dependencies)
        self.notes += of_other_code
        if not cells:  # stopped before its plan was written down: what was started tells it
            cells = tuple({r.cell: cell_of_run(r) for r in runs if r.phase == Phase.FINAL}.values())
        contenders = tuple(self._entries(Artifact.CONTENDERS, self.own.list(Artifact.CONTENDERS), Contender.read))
        chosen = {c.cell.id: c.cell for c in contenders} | {cell.id: cell for cell in cells}
        searched = {r.cell: cell_of_run(r) for r in runs} | chosen
        kept = self._latest(runs, {cell.id: cell.chosen_lr for cell in chosen.values()})
        self.notes += altered_metrics(kept)
        known = self.own.json(Artifact.TASKS, {})
        language = self.own.part(Artifact.LANGUAGE_MODEL, LanguageModel.read)
        kept, scored = self._example_scores(
            kept, {task.name: task for task in tasks_of(known, {})}, source.sizes if language is None else {}
        )
        example_scores = scored[Phase.FINAL]
        tracked = TrackedPlan.read(self.own.object(Artifact.PLAN))
        plan = self._plan(tracked)
        record = StudyRecord(
            name=tags.get(Tag.STUDY, str(info.run_name)),
            study_id=tags.get(Tag.STUDY_ID, ""),
            run_id=str(info.run_id),
            experiment=str(self.client.get_experiment(info.experiment_id).name),
            experiment_id=str(info.experiment_id),
            tracking_uri=without_password(uri),
            status=str(info.status),
            question=tags.get(Tag.QUESTION, ""),
            started=int(info.start_time or 0),
            ended=int(info.end_time) if info.end_time else None,
            tags=tags,
            study_yaml=without_password(study_yaml),
            encoder_info=encoder_info_of(self.own.json(Artifact.ENCODER, {}), self.notes),
            source=source,
            tasks=tasks_of(known, example_scores),
            cells=cells,
            searched=searched,
            replicates=replicates_of(study_yaml, kept, tracked.stopped, self.notes),
            runs=tuple(self._with_history(run) for run in kept),
            example_scores=example_scores,
            groups=tuple(sorted(self.groups or source.groups.get("test", ()))),
            plan=plan,
            departures=self._departures(tracked),
            token_maps=self._token_maps(),
            contenders=contenders,
            fresh_example_scores=scored[Phase.CONFIRM],
            fresh_replicates=fresh_of(kept, plan.confirm if plan else (), tracked.confirmed),
            similarity=self.own.part(Artifact.SIMILARITY, read_similarity),
            importance=self.own.part(Artifact.IMPORTANCE, read_importance),
            language=language,
            unchecked=sum(not self.artifacts.has_sums(r.run_id) for r in kept if _has_scores(r)),
            dependencies=dependencies,
        )
        best = Ranking(record).ordered()
        record = replace(
            record, insides=self._insides(record, best), shown_questions=self._shown_questions(record, best)
        )
        return replace(record, notes=tuple(dict.fromkeys(self.notes)))

    def _entries(self, name: str, entries: Sequence[Any], read: Callable[[Any], _Entry]) -> Iterator[_Entry]:
        """Cells that a file describes; an entry that cannot be read is left out and reported in a note."""
        for number, entry in enumerate(entries, 1):
            try:
                yield read(entry)
            except KeyError as error:
                self.notes.append(f"Entry {number} of {name} is left out: it names no {error}.")
            except NONSENSE:
                self.notes.append(f"Entry {number} of {name} is left out: it describes no cell.")

    # --- runs ---------------------------------------------------------------------------------------------------

    def _latest(self, runs: Sequence[Run], chosen: Mapping[str, float | None]) -> list[Run]:
        """One run for each variant-replicate: a finished one before others, then the latest.

        A final run at a learning rate that the study has since given up counts for nothing.
        """
        best: dict[tuple[str, str, str, float | None], Run] = {}
        for run in runs:  # oldest first
            rate = chosen.get(run.cell)
            if run.phase != Phase.SEARCH and run.lr is not None and rate is not None and not np.isclose(run.lr, rate):
                self.notes.append("Runs at a learning rate that a later search replaced are left out.")
                continue
            key = (run.cell, run.phase, run.replicate, run.lr if run.phase == Phase.SEARCH else None)
            if key not in best or run.state == Status.FINISHED or best[key].state != Status.FINISHED:
                best[key] = run
        return sorted(best.values(), key=lambda r: (r.phase, natural_key(r.replicate), r.started))

    def _with_history(self, run: Run) -> Run:
        if run.phase != Phase.FINAL or run.state != Status.FINISHED:  # of fresh replicates no curve is drawn
            return run
        history = {}
        for key in _HISTORIES:
            if key in run.metrics:
                points = {int(m.step): float(m.value) for m in self.client.get_metric_history(run.run_id, key)}
                history[key] = tuple(sorted(points.items()))
        return Run(**{**run.__dict__, "history": history})

    # --- outcomes -----------------------------------------------------------------------------------------------

    def _example_scores(
        self, runs: Sequence[Run], tasks: Mapping[str, Task], sizes: Mapping[str, Any]
    ) -> tuple[list[Run], dict[str, dict[tuple[str, str, str], ExampleScores]]]:
        """Scores of the finished runs by phase; a run whose test outcomes cannot be read is no longer finished.

        Args:
            tasks: those that the study lists, by name.
            sizes: examples of a split, each of which has a row of every task; empty where that is not so.
        """
        frames: dict[tuple[str, str, str, str], dict[str, pd.Series[float]]] = defaultdict(dict)
        groups: dict[str, str] = {}
        disagreements = Disagreements()
        states = {run.run_id: run.state for run in runs}
        for run, split in ((run, split) for run in runs if _has_scores(run) for split in SPLITS):
            try:
                table, compared = self._outcomes(run, split, tasks, sizes.get(split))
            except WorkbenchError as error:
                self._unreadable(run, split, str(error), states)
                continue
            disagreements.add(run.run_id, split, compared, self.artifacts.has_sums(run.run_id))
            if split == "test":
                self.groups |= set(table["group"].astype(str).unique())
            # To objects first: walking an Arrow column string by string was a third of a large report's time.
            names, of = (table[c].astype(str).to_numpy(dtype=object) for c in ("example_id", "group"))
            groups.update(zip(names, of, strict=True))
            for task, part in table[table["items"] > 0].groupby("task"):
                scores = scores_by_example(
                    part.drop_duplicates("example_id").set_index("example_id"),
                    tasks[str(task)].ratio if str(task) in tasks else None,
                )
                frames[run.phase, run.cell, str(task), split][run.replicate] = scores.astype(float)
        wrong = disagreements.of_runs()
        for run in runs:
            for split in SPLITS:
                if said := wrong.get((run.run_id, split)):
                    self._unreadable(run, split, said, states)
                    for task in tasks:
                        frames.get((run.phase, run.cell, task, split), {}).pop(run.replicate, None)
        self.notes += disagreements.of_study()
        scored: dict[str, dict[tuple[str, str, str], ExampleScores]] = {Phase.FINAL: {}, Phase.CONFIRM: {}}
        for (phase, *key), by_replicate in frames.items():
            if by_replicate:
                scored[phase][key[0], key[1], key[2]] = self._align(by_replicate, groups)
        return [replace(run, state=states[run.run_id]) for run in runs], scored

    def _align(self, by_replicate: Mapping[str, pd.Series[float]], groups: Mapping[str, str]) -> ExampleScores:
        """Examples that every replicate scored, in one order."""
        import pandas as pd

        names = tuple(sorted(by_replicate, key=natural_key))
        table = pd.concat([by_replicate[name] for name in names], axis=1, join="outer")
        whole = table.dropna().sort_index()
        if len(whole) < len(table):
            self.notes.append("Examples that not every replicate scored are left out.")
        examples = tuple(map(str, whole.index))
        scores = np.ascontiguousarray(whole.to_numpy(dtype=float).T)
        return ExampleScores(names, examples, scores, tuple(groups[example] for example in examples))

    def _outcomes(
        self, run: Run, split: str, tasks: Mapping[str, Task], size: Any
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """As :func:`read_outcomes`, which also says what is raised."""
        path = self.artifacts.file(run.run_id, scores_file(split))
        if path is None:
            raise WorkbenchError("is missing")
        return read_outcomes(path, split, tasks, run.metrics, size if isinstance(size, int) else None)

    def _unreadable(self, run: Run, split: str, reason: str, states: dict[str, str]) -> None:
        """Without its scores on test a run is no longer finished; without those on validation its metrics stand."""
        if split == "test":
            states[run.run_id] = Status.UNREADABLE
        name = scores_file(split)
        if split == "test" or reason != "is missing" or self.artifacts.is_recorded(run.run_id, name):
            self.notes.append(f"{name} of run {run.run_id} {reason}.")

    # --- artifacts ----------------------------------------------------------------------------------------------

    def _plan(self, tracked: TrackedPlan) -> Plan | None:
        """The plan that stands; None where the study tracked none, or none that can be read."""
        try:
            return Plan.read(tracked.plan) if tracked.plan else None
        except NONSENSE:
            self.notes.append(f"{Artifact.PLAN} describes no plan; the default one is used.")
            return None

    def _departures(self, plan_file: TrackedPlan) -> tuple[str, ...]:
        """Changes of the plan, in words; also where it is not the one whose hash was tracked."""
        tracked = self.parent.data.tags.get(Tag.PLAN)
        departures = plan_file.changes
        if tracked and not self.own.object(Artifact.PLAN):
            departures += (f"{Artifact.PLAN}, tracked with the hash {tracked}, is missing or cannot be read",)
        elif tracked and plan_file.first and plan_hash(plan_file.first) != tracked:
            departures += (f"{Artifact.PLAN} does not have the hash that was tracked before the first run, {tracked}",)
        return departures

    def _insides(self, record: StudyRecord, best: Sequence[Cell]) -> dict[str, tuple[Inside, ...]]:
        """The insides of the fusers that have any, of the cells that are best on validation, replicate by replicate."""
        found: dict[str, tuple[Inside, ...]] = {}
        gated = [(cell.id, runs) for cell in best if (runs := [r for r in record.finals(cell.id) if _is_gated(r)])]
        for cell, runs in gated[:_MOST_INSIDES]:
            read = [inside for run in runs if (inside := self._inside(run)) is not None]
            if read:
                found[cell] = tuple(read)
        return found

    def _inside(self, run: Run) -> Inside | None:
        try:
            file = self.artifacts.file(run.run_id, Artifact.INSIDE)
        except WorkbenchError as error:
            self.notes.append(f"{Artifact.INSIDE} of run {run.run_id} is left out: it {error}.")
            return None
        try:
            return read_inside(file, run.replicate) if file else None
        except WorkbenchError as error:
            self.notes.append(f"{Artifact.INSIDE} of run {run.run_id} is left out: {error}.")
            return None

    def _shown_questions(self, record: StudyRecord, best: Sequence[Cell]) -> ShownQuestions | None:
        """Answers of each strategy's best cell on validation, of its first finished replicate."""
        first: dict[str, Run] = {}
        for cell in best if record.language else ():
            if runs := [run for run in record.finals(cell.id) if OBJECTIVE in run.metrics]:
                first.setdefault(cell.strategy, runs[0])  # runs are in order of replicates
        found = {}
        for run in first.values():
            try:
                file = self.artifacts.file(run.run_id, Artifact.ANSWERS)
            except WorkbenchError as error:
                self.notes.append(f"{Artifact.ANSWERS} of run {run.run_id} is left out: it {error}.")
                continue
            try:
                if file:
                    found[run.cell] = read_answers(file)
            except WorkbenchError as error:
                self.notes.append(f"{Artifact.ANSWERS} of run {run.run_id} is left out: {error}.")
        return shown_questions(found, {run.cell: run.replicate for run in first.values() if run.cell in found})

    def _token_maps(self) -> TokenMaps | None:
        """What the study's last step left to look at; None where there is nothing, or nothing that can be read."""
        file = self.own.file(Artifact.TOKEN_MAPS)
        if file is None:
            return None
        try:
            return read_token_maps(parse_json(read_small(file)), self.own.picture)
        except WorkbenchError as error:
            reason = str(error)
        except NONSENSE as error:
            reason = f"look.json lacks something or holds nonsense ({type(error).__name__}: {error})"
        self.notes.append(f"The look at test images is left out: {reason}.")
        return None


def _has_scores(run: Run) -> bool:
    return run.phase != Phase.SEARCH and run.state == Status.FINISHED


def _is_gated(run: Run) -> bool:
    """Whether the run's fuser tells of its insides."""
    return any(key.startswith((GATE, ATTENTION_SHARE)) for key in run.metrics)
