"""What a study of multimodal language models logged besides what a study of probes does, as plain values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.parse import parse_json

QUESTIONS = 8  # that are shown
_COLUMNS = ("example_id", "task", "question", "prediction", "answers")
QuestionKey = tuple[str, str, str]  # example, task, question


@dataclass(frozen=True)
class CellAnswer:
    """What one cell answered, and what its task's metric gives for it; None where that was not logged."""

    prediction: str
    score: float | None


@dataclass(frozen=True)
class Question:
    """A test question with every right answer and what cells answered."""

    example: str
    task: str
    question: str
    answers: tuple[str, ...]
    answers_of: Mapping[str, CellAnswer]  # by cell


@dataclass(frozen=True)
class ShownQuestions:
    """Test questions and the answers of each strategy's best cell on validation."""

    replicates: Mapping[str, str]  # cell → the replicate that answered, in the order of the columns
    questions: tuple[Question, ...]


def read_answers(path: Path) -> dict[QuestionKey, tuple[CellAnswer, tuple[str, ...]]]:
    """``outcomes/answers.parquet``: question → the prediction with its score, and all right answers.

    Raises:
        WorkbenchError: it cannot be read, or lacks a column.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except Exception as error:  # torn or foreign: pyarrow raises many kinds
        raise WorkbenchError(f"it cannot be read ({type(error).__name__})") from None
    if lacking := [name for name in _COLUMNS if name not in table.columns]:
        raise WorkbenchError(f"it lacks {', '.join(lacking)}")
    columns = [table[name].to_numpy(dtype=object) for name in _COLUMNS]
    scores = table["score"].to_numpy(dtype=object) if "score" in table.columns else [None] * len(table)
    return {
        (str(example), str(task), str(question)): (CellAnswer(_text(prediction), _score(score)), _answers(answers))
        for example, task, question, prediction, answers, score in zip(*columns, scores, strict=True)
    }


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _answers(value: Any) -> tuple[str, ...]:
    """A list, or a list written as JSON, or the one answer."""
    if isinstance(value, str):
        try:
            found = parse_json(value) if value.startswith("[") else value
        except ValueError:
            found = value
        return tuple(map(str, found)) if isinstance(found, list) else (value,)
    return tuple(map(str, value)) if isinstance(value, Iterable) else ()


def choose(keys: Iterable[QuestionKey], most: int = QUESTIONS) -> list[QuestionKey]:
    """Some of the questions, evenly over the tasks: drawn by their names' hashes, so always the same ones.

    Scores have no say, so that what is shown flatters no cell.
    """
    by_task: dict[str, list[QuestionKey]] = defaultdict(list)
    for key in sorted(set(keys), key=lambda k: (sha256("\n".join(k).encode("utf-8", "replace")).digest(), k)):
        by_task[key[1]].append(key)
    turns = [(turn, task, key) for task, own in by_task.items() for turn, key in enumerate(own)]
    return [key for _, _, key in sorted(turns)[:most]]


def shown_questions(
    found: Mapping[str, Mapping[QuestionKey, tuple[CellAnswer, tuple[str, ...]]]], replicates: Mapping[str, str]
) -> ShownQuestions | None:
    """What is shown of the cells' answers; None where they answered no question in common.

    Args:
        found: cell → question → answer and what is right, as :func:`read_answers` gives them.
        replicates: cell → the replicate that answered.
    """
    tables = list(found.values())
    shared: set[QuestionKey] = set(tables[0]).intersection(*tables[1:]) if tables else set()
    chosen = sorted(choose(shared), key=lambda key: (key[1], key[0], key[2]))
    if not chosen:
        return None
    questions = [
        Question(*key, tables[0][key][1], {cell: own[key][0] for cell, own in found.items()}) for key in chosen
    ]
    return ShownQuestions(replicates, tuple(questions))


def plain_text(text: str, most: int) -> str:
    """One line of what can be printed, cut to ``most`` characters; what a terminal or a page obeys is dropped."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
