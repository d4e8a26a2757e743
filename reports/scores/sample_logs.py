"""The logs that lmms-eval and lm-eval write with ``--log_samples``: one JSON object a document.

lmms-eval: ``OUTPUT/MODEL/DATE_samples_TASK.jsonl``; lm-eval: ``OUTPUT/MODEL/samples_TASK_DATE.jsonl``. Beside what the
harness says of a document (``doc_id``, ``target``, ``filtered_resps``, hashes …) stands each metric under its name: a
number, or an object that holds one (``{"question_id": …, "category": …, "score": 1.0}``), or what only the harness can
turn into one from all documents together. Which is which says :mod:`reports.scores.score_keys`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.reports.scores.score_keys import Entry, Reading, readings
from fusion_workbench.reports.scores.score_names import number_of, score_in

_NAME = re.compile(
    r"(?:\d{8}_\d{6}_|\d{4}[\d\-T:.]*_)?samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT[\d\-:.]+)?\.(?:jsonl|json|ndjson)"
)
# What the harnesses write beside the metrics.
_FRAME = {"doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "filter", "metrics", "success"}
_FRAME |= {"doc_hash", "prompt_hash", "target_hash", "token_counts"}
_MARKS = ("filtered_resps", "resps", "doc_hash")
_SHOWN = 8  # keys of an object that a message names


class LogRow(NamedTuple):
    """The score of a document on one measure."""

    measure: str
    example: str
    group: str
    score: float
    line: int


@dataclass
class Log:
    """What a log holds.

    Attributes:
        notes: what had to be said of it.
        keys: where the score of a measure was found, in words; of one under ``score`` nothing is said.
        others: measures that were not asked for.
    """

    rows: list[LogRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def is_sample_name(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None


def is_sample_log(path: Path, first: Mapping[str, Any]) -> bool:
    """Whether a file is a harness's log and no table: by its name, or by what only a harness writes of a document."""
    return "doc_id" in first and (is_sample_name(path) or ("score" not in first and any(m in first for m in _MARKS)))


def task_of(path: Path) -> str:
    """The task that a log's name says, or the name."""
    found = _NAME.fullmatch(path.name)
    return found["task"] if found else path.stem


def read_log(
    path: Path,
    objects: Iterable[tuple[int, Mapping[str, Any]]],
    group: str = "",
    key: str = "",
    metrics: Sequence[str] = (),
    task: str = "",
) -> Log:
    """The score of every document on every metric that has one for each.

    Args:
        group: the key, of a metric's object or of the document, that says what a document is part of; empty: none.
        key: that of the score in the metrics' objects, or a metric; empty: known by its name.
        metrics: those asked for, by their whole name, task or metric; what cannot be read of others is left out.
        task: what the log is of; empty: its file's name says it.

    Raises:
        WorkbenchError: no metric has a number a document that is known as its score, a document lacks an id or the
            group, or a metric that has a score elsewhere has none here.
    """
    task = task or task_of(path)
    samples = list(objects)
    for line, sample in samples:
        if sample.get("doc_id") is None:
            raise WorkbenchError(f"{path}:{line}: the document has no doc_id.")
    log = Log()
    by_metric: dict[str, list[Entry]] = {}
    declared = {str(m) for _, sample in samples if isinstance(sample.get("metrics"), list) for m in sample["metrics"]}
    for line, sample in samples:
        for metric in _metrics(sample):
            by_metric.setdefault(metric, []).append(Entry(line, sample, sample[metric]))
    filters = {str(sample.get("filter", "none")) for _, sample in samples}
    found = readings(by_metric, key, declared)
    wanted = [m for m in by_metric if not metrics or any(w in (m, task) or _names(w, task, m) for w in metrics)]
    log.others += [f"{task}/{metric}" for metric in by_metric if metric not in wanted]
    for metric in wanted:
        reading = found[metric]
        if reading.key is None:
            if reading.why and (reading.tell or metrics):
                log.notes.append(f"{task}/{metric} is not judged: {reading.why}.")
            continue
        rows = [e for e in by_metric[metric] if e.counted]
        if len(rows) < len(by_metric[metric]):
            less = len(by_metric[metric]) - len(rows)
            log.notes.append(
                f"{task}/{metric}: {less} of {len(by_metric[metric])} documents are marked as not counted."
            )
        for entry in rows:
            score = _score(path, metric, entry, reading, rows)
            kind = str(entry.sample.get("filter", "none"))
            suffix = f",{kind}" if len(filters) > 1 else ""
            part = _group(entry, metric, group, f"{path}:{entry.line}") if group else ""
            measure = f"{task}/{metric}{suffix}"
            log.rows.append(LogRow(measure, str(entry.sample["doc_id"]), part, score, entry.line))
            if reading.first:
                log.keys[measure] = (
                    f"its '{reading.key}', as that of {reading.first}: its mean is judged, not what the harness works "
                    "out under this name"
                )
            elif reading.said:
                log.keys[measure] = f"its '{reading.key}'"
    if not log.rows and (not metrics or any(metric in wanted for metric in by_metric)):
        raise WorkbenchError(_nothing(path, by_metric, found, key))
    return log


def _names(wanted: str, task: str, metric: str) -> bool:
    """Whether ``--metric`` means a metric: by ``task/metric``, with or without a filter behind it."""
    return wanted.partition(",")[0] in (metric, f"{task}/{metric}")


def _metrics(sample: Mapping[str, Any]) -> list[str]:
    named = sample.get("metrics")
    if isinstance(named, list):  # lm-eval says which they are
        return [str(metric) for metric in named if metric in sample]
    return [key for key in sample if key not in _FRAME]


def _score(path: Path, metric: str, entry: Entry, reading: Reading, rows: Sequence[Entry]) -> float:
    """Raises WorkbenchError where this document lacks what others have."""
    key = reading.key or ""
    value = entry.value
    score = score_in(value, key) if key and isinstance(value, Mapping) else number_of(value)
    if score is not None and bool(key) == isinstance(value, Mapping):
        return score
    where = f"{path}:{entry.line}: '{metric}'"
    way = "leave these documents out of every system's log, or choose other metrics with --metric"
    if not key or not isinstance(value, Mapping):
        raise WorkbenchError(f"{where} holds no number, and does for other documents; {way}.")
    have = sum(isinstance(e.value, Mapping) and score_in(e.value, key) is not None for e in rows)
    raise WorkbenchError(
        f"{where} holds no number under '{key}', and does for {have} of {len(rows)} documents; {way}, or name another "
        "key with --column score=KEY."
    )


def _nothing(path: Path, by_metric: Mapping[str, list[Entry]], found: Mapping[str, Reading], key: str) -> str:
    """Why nothing of a log is judged, with the keys that are there."""
    if key:
        keys = {
            str(k) for entries in by_metric.values() for e in entries if isinstance(e.value, Mapping) for k in e.value
        }
        return f"{path}: no metric holds a number under '{key}'.{nearest(key, keys | set(by_metric))}"
    by_keys: dict[str, list[str]] = {}
    for metric, entries in by_metric.items():
        by_keys.setdefault(_keys(entries), []).append(metric)
    there = "; ".join(f"{', '.join(metrics)}{keys}" for keys, metrics in by_keys.items()) or "none"
    why = "".join(f" {metric}: {r.why}." for metric, r in found.items() if r.why)
    return (
        f"{path}: no metric has a number for each document that is known as its score (there are: {there}).{why} If "
        "one is the score, name it with --column score=KEY; else bring them as a table of system, example and score."
    )


def _keys(entries: Sequence[Entry]) -> str:
    """`` (index, question, answer and 4 more)``, what holds numbers first; empty where there are no objects."""
    objects = [e.value for e in entries if isinstance(e.value, Mapping)]
    if not objects:
        return ""
    keys = list(dict.fromkeys(str(k) for value in objects for k in value))
    keys.sort(key=lambda k: not any(number_of(value.get(k)) is not None for value in objects))
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f" ({', '.join(keys[:_SHOWN])}{more})"


def _group(entry: Entry, metric: str, key: str, where: str) -> str:
    for place in (entry.value, entry.sample, entry.sample.get("doc")):
        if isinstance(place, Mapping) and place.get(key) is not None:
            return str(place[key])
    raise WorkbenchError(f"{where}: neither '{metric}' nor the document holds the group '{key}'.")
