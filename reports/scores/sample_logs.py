"""The logs that lmms-eval and lm-eval write with ``--log_samples``: one JSON object a document.

lmms-eval: ``OUTPUT/MODEL/DATE_samples_TASK.jsonl``; lm-eval: ``OUTPUT/MODEL/samples_TASK_DATE.jsonl``. Beside what the
harness says of a document (``doc_id``, ``target``, ``filtered_resps``, hashes …) stands each metric under its name: a
number, or an object that holds one (``{"question_id": …, "category": …, "score": 1.0}``), or what only the harness can
turn into one from all documents together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.scores.columns import LARGEST

_NAME = re.compile(
    r"(?:\d{8}_\d{6}_|\d{4}[\d\-T:.]*_)?samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT[\d\-:.]+)?\.(?:jsonl|json|ndjson)"
)
# What the harnesses write beside the metrics.
_FRAME = {"doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "filter", "metrics", "success"}
_FRAME |= {"doc_hash", "prompt_hash", "target_hash", "token_counts"}
_MARKS = ("filtered_resps", "resps", "doc_hash")
_SCORES = ("score", "correct", "acc", "accuracy")  # where an object keeps its number


def is_sample_name(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None


def is_sample_log(path: Path, first: Mapping[str, Any]) -> bool:
    """Whether a file is a harness's log and no table: by its name, or by what only a harness writes of a document."""
    return "doc_id" in first and (is_sample_name(path) or ("score" not in first and any(m in first for m in _MARKS)))


def task_of(path: Path) -> str:
    """The task that a log's name says, or the name."""
    found = _NAME.fullmatch(path.name)
    return found["task"] if found else path.stem


def sample_rows(
    path: Path, objects: Iterable[tuple[int, Mapping[str, Any]]], group: str = ""
) -> Iterator[tuple[str, str, str, float, int]]:
    """Measure, document, group, score and line of every metric of every document.

    Args:
        group: the key, of a metric's object or of the document, that says what a document is part of; empty: none.

    Raises:
        WorkbenchError: no metric has a number a document, a document lacks an id or the group, or a metric that has
            numbers elsewhere has none here.
    """
    task, found = task_of(path), 0
    kinds: dict[str, bool] = {}  # whether a metric has numbers
    rows = list(objects)
    for _, sample in rows:
        for metric in _metrics(sample):
            kinds[metric] = kinds.get(metric, False) or _score(sample[metric]) is not None
    filters = {str(sample.get("filter", "none")) for _, sample in rows}
    for line, sample in rows:
        if sample.get("doc_id") is None:
            raise WorkbenchError(f"{path}:{line}: the document has no doc_id.")
        for metric in (m for m in _metrics(sample) if kinds[m]):
            score = _score(sample[metric])
            if score is None:
                raise WorkbenchError(f"{path}:{line}: '{metric}' holds no number, and does for other documents.")
            found += 1
            kind = str(sample.get("filter", "none"))
            suffix = f",{kind}" if len(filters) > 1 else ""
            part = _group(sample, metric, group, f"{path}:{line}") if group else ""
            yield f"{task}/{metric}{suffix}", str(sample["doc_id"]), part, score, line
    if not found:
        keys = ", ".join(kinds) or "none"
        raise WorkbenchError(
            f"{path}: no metric has a number for each document (metrics: {keys}); bring its scores as a table of "
            "system, example and score."
        )


def _metrics(sample: Mapping[str, Any]) -> list[str]:
    named = sample.get("metrics")
    if isinstance(named, list):  # lm-eval says which they are
        return [str(metric) for metric in named if metric in sample]
    return [key for key in sample if key not in _FRAME]


def _score(value: Any) -> float | None:
    """The number of a metric; None where it holds none, or several of which none is called a score."""
    if isinstance(value, Mapping):
        named = [value[key] for key in _SCORES if key in value]
        numbers = [v for key, v in value.items() if isinstance(v, (bool, int, float)) and "id" not in key.lower()]
        return _score((named or numbers)[0]) if named or len(numbers) == 1 else None
    if not isinstance(value, (bool, int, float)) or not abs(value) <= LARGEST:  # nor what is not a number
        return None
    return float(value)


def _group(sample: Mapping[str, Any], metric: str, key: str, where: str) -> str:
    for place in (sample[metric], sample, sample.get("doc")):
        if isinstance(place, Mapping) and place.get(key) is not None:
            return str(place[key])
    raise WorkbenchError(f"{where}: neither '{metric}' nor the document holds the group '{key}'.")
