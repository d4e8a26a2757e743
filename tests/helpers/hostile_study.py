"""A study whose every word from data or configuration tries to be something else: markup, a link, a formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from synthetic_study import planted

from fusion_workbench.reports.reading.language import CellAnswer, Question, ShownQuestions
from fusion_workbench.reports.reading.records import (
    Run,
    StudyRecord,
    TokenMapColumn,
    TokenMapExample,
    TokenMaps,
    TokenMapScore,
)
from fusion_workbench.schema.language import LanguageModel
from fusion_workbench.schema.records import Cell, Task, TrackedSource

SCRIPT = "<script>alert(1)</script>"
IMAGE = "\"'><img src=x onerror=alert(1)>"
SECTION = "]]></style></svg>--><svg onload=alert(1)>"
FORMULA = "=cmd|'/C calc'!A0"
TEMPLATE = "{{ 7 * 7 }} {% raw %} `code` [a](javascript:alert(1)) | piped"
BROKEN = "bell \x07, half a pair \ud800"  # neither may stand in XML, the second not even in UTF-8
ALL = (SCRIPT, IMAGE, SECTION, FORMULA, TEMPLATE, BROKEN)
_PIXEL = "data:image/png;base64,iVBORw0KGgo="


def hostile() -> StudyRecord:
    """Five replicates of three layers and two fusions on two tasks, all named to do harm."""
    read, digit = f"{SCRIPT} {FORMULA}", f"{IMAGE} {SECTION}"
    draw = np.random.default_rng(0)
    keys = [("deep_only", (), 5), ("deep_only", (), 11), ("deep_only", (), 12), ("concat", (3, 6), 12)]
    keys += [("concat", (3, 4, 5), 6)]
    scores = {key: {task: draw.uniform(size=(5, 24)) for task in (read, digit)} for key in keys}
    record = planted(scores)
    words = ["".join(ALL)] * 2 + [FORMULA, SCRIPT, f"{IMAGE}{TEMPLATE}"]
    renamed = {cell.id: f"{cell.id} {IMAGE}" for cell in record.cells}
    cells = tuple(
        replace(
            cell,
            id=renamed[cell.id],
            strategy=cell.strategy if cell.single else f"concat {word}",
            label=word,
            options={SCRIPT: IMAGE, FORMULA: SECTION},
            alias=word,
        )
        for cell, word in zip(record.cells, words, strict=True)
    )
    groups = tuple(f"{word} {n}" for n, word in enumerate(ALL))
    return replace(
        record,
        name=SCRIPT,
        study_id=IMAGE,
        experiment_id=IMAGE,
        tracking_uri="javascript://user:secret@host/%0aalert(1)",
        question=" ".join(ALL),
        tags={"workbench.command": IMAGE, "workbench.device": SCRIPT, "workbench.versions": f'{{"x": "{SCRIPT}"}}'},
        study_yaml=f"{SCRIPT}\n```\n{IMAGE}",
        encoder_info={"depth": 12, "encoder": SCRIPT, "fingerprint": IMAGE},
        source=TrackedSource(group_name=f"{SCRIPT} photo", version=IMAGE, classes={SCRIPT: ALL}),
        tasks=tuple(_task(task) for task in record.tasks),
        cells=cells,
        searched={cell.id: cell for cell in cells},
        runs=tuple(_run(run, renamed[run.cell], n) for n, run in enumerate(record.runs)),
        example_scores={
            (renamed[cell], task, split): replace(o, groups=tuple(groups[i % len(groups)] for i in range(24)))
            for (cell, task, split), o in record.example_scores.items()
        },
        groups=groups,
        departures=ALL,
        notes=ALL,
        token_maps=_token_maps(cells[3], read),
    )


def hostile_language() -> StudyRecord:
    """The same as a study of language models, whose name, stages, questions and answers mean harm too."""
    record = hostile()
    metrics = {f"control/{kind}/{task.name}": 0.4 for kind in ("blank", "shuffled") for task in record.tasks}
    answers = {
        cell.id: CellAnswer("".join(ALL), score) for cell, score in zip(record.cells[:2], (0.5, 1.0), strict=True)
    }
    questions = tuple(Question(word, word, word, (word, word), answers) for word in ALL)
    return replace(
        record,
        runs=tuple(replace(run, metrics={**run.metrics, **metrics}) for run in record.runs),
        language=LanguageModel("".join(ALL), SCRIPT, 5, 5, 5, ALL, SCRIPT),
        shown_questions=ShownQuestions(dict.fromkeys(answers, SCRIPT), questions),
    )


def _task(task: Task) -> Task:
    return replace(task, metric=SCRIPT, title=IMAGE, unit=SECTION)


def _run(run: Run, cell: str, number: int) -> Run:
    gates = {f"gate/{SCRIPT}_rms": 0.5, "attention_share/layer_3": 0.5, "gates_opened": 0.0, "converged": 0.0}
    history = {"val/objective": ((0, 0.1), (1, 0.2)), "train/loss": ((0, 2.0), (1, 1.0))}
    return replace(run, run_id=f"{number} {IMAGE}", cell=cell, metrics={**run.metrics, **gates}, history=history)


def _token_maps(cell: Cell, task: str) -> TokenMaps:
    example = TokenMapExample(SCRIPT, IMAGE, "hardest", task, _PIXEL, {task: TokenMapScore(0.5, (0.1,), (0.9,))})
    column = TokenMapColumn(None, False, cell.id, IMAGE, SCRIPT, (0.5, 0.2, 0.1), (_PIXEL,))
    return TokenMaps(None, cell.id, (column,), (example,))
