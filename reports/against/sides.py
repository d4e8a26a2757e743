"""The two studies of a comparison, whether MLflow tells of them or an earlier report.json does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError, reason
from fusion_workbench.core.parse import parse_json
from fusion_workbench.reports.against.environment import environment
from fusion_workbench.reports.analysis.answer import Answer, answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.example_scores import ExampleScores
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.schema.names import REPORT_SCHEMA
from fusion_workbench.schema.records import Cell, Task
from fusion_workbench.system.files import read_small


@dataclass(frozen=True)
class ComparedSource:
    """Where to find the study to compare with: its name, its id or the path of its report.json.

    ``uri`` and ``experiment`` are those of MLflow; None: of the report itself.
    """

    study: str
    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True)
class Side:
    """One of the two, whether MLflow or a report told of it."""

    name: str
    study_id: str
    run: str
    ended: int | None
    place: str
    cells: tuple[Cell, ...]
    recommended: Cell | None
    kinds: Mapping[str, Any]  # measure → what must agree for its numbers to be comparable
    means: Mapping[tuple[str, str], Estimate]
    environment: Mapping[str, str]
    example_scores: Callable[[str, str], ExampleScores | None] | None = None  # None: only summary numbers

    @property
    def images(self) -> str:
        """Fingerprint of the test images; empty where it is not known."""
        return self.environment.get("source fingerprint, test", "")


def find(source: ComparedSource, uri: str, experiment: str | None, record: StudyRecord) -> Side:
    """Read what ``source`` names.

    Raises:
        WorkbenchError: there is no such study or file, the file is no report of this schema, or it is the study itself.
    """
    if source.study.endswith(".json") or Path(source.study).is_file():
        return _of_report(Path(source.study))
    elsewhere = source.uri is not None and source.uri != uri
    before = read_study(source.uri or uri, source.study, source.experiment if elsewhere else experiment)
    if before.run_id == record.run_id and not elsewhere:
        raise WorkbenchError(
            f"'{source.study}' is the study of this report itself; name another study, its state in another MLflow "
            "(--against-uri), or the path of an earlier report.json."
        )
    analysis = Analysis(before)
    return of_analysis(analysis, answer(analysis))


def of_analysis(analysis: Analysis, said: Answer) -> Side:
    record = analysis.record
    return Side(
        name=record.name,
        study_id=record.study_id,
        run=record.run_id,
        ended=record.ended or record.started,
        place=record.tracking_uri,
        cells=record.cells,
        recommended=said.cell,
        kinds=_kinds(record.tasks, [m.name for m in analysis.measures]),
        means=analysis.means,
        environment=environment(record),
        example_scores=analysis.example_scores,
    )


def _kinds(tasks: Iterable[Task], measures: Iterable[str]) -> dict[str, Any]:
    """Metric, unit and direction of a task; of the mean, those of all tasks."""
    each = {t.name: (t.metric, t.unit, t.direction, t.perfect) for t in tasks}
    whole = tuple(sorted(each.items(), key=lambda entry: entry[0]))
    return {m: each.get(m, whole) for m in measures}


def _of_report(path: Path) -> Side:
    """An earlier report.json: summary numbers alone."""
    try:
        plain = parse_json(read_small(path))
    except FileNotFoundError:
        raise WorkbenchError(
            f"there is no report {path}; --against takes a study or the path of a report.json."
        ) from None
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{path} cannot be read as a report ({reason(error)}); name a report.json.") from None
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != REPORT_SCHEMA:
        raise WorkbenchError(
            f"{path} is no report of schema {REPORT_SCHEMA} (its schema is {schema!r}); write it again with "
            "this version."
        )
    try:
        cells = {entry["cell"]: Cell.read(entry) for entry in plain["cells"]}
        means = {
            (entry["cell"], measure): _estimate(e) for entry in plain["cells"] for measure, e in entry["test"].items()
        }
        tasks = [Task.read(str(entry["name"]), entry) for entry in plain["tasks"]]
        measures = dict.fromkeys([*(t.name for t in tasks), *(measure for _, measure in means)])
        study = plain["study"]
        return Side(
            name=str(study["name"]),
            study_id=str(study["id"]),
            run=str(study["run"]),
            ended=study["ended"] or study["started"],
            place=str(path),
            cells=tuple(cells.values()),
            recommended=cells.get(plain["answer"]["cell"].get("cell", "")),
            kinds=_kinds(tasks, measures),
            means=means,
            environment=plain.get("environment", {}),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WorkbenchError(
            f"{path} says schema {REPORT_SCHEMA} and does not keep to it ({type(error).__name__}: {error}); "
            "write it again."
        ) from None


def _estimate(entry: Mapping[str, Any]) -> Estimate:
    names = [f.name for f in fields(Estimate) if f.name in entry]  # what a later version added is left aside
    known: dict[str, Any] = {name: math.nan if entry[name] is None else entry[name] for name in names}
    return Estimate(**known)
