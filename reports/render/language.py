"""A study of language models on the page: with and without the image, answers, rank agreement with probes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from fusion_workbench.reports.against.probes import FEWEST_CELLS, Probes, RankAgreement, probes_json, trust_sentence
from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.image_dependence import (
    LEAST,
    LOOKS,
    NOT,
    SOME,
    UNKNOWN,
    ImageDependence,
    NoImageBaseline,
    image_dependence,
    image_dependence_json,
)
from fusion_workbench.reports.reading.language import ShownQuestions, plain_text
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.words.wording import SYMBOLS, count, pvalue, signed
from fusion_workbench.schema.language import LanguageModel
from fusion_workbench.schema.names import NO_IMAGE_KINDS, Verdict

_QUESTION, _ANSWER = 160, 80  # letters that are shown
_WORDS = {LOOKS: SYMBOLS[Verdict.BETTER], SOME: SYMBOLS[Verdict.SAME], NOT: SYMBOLS[Verdict.SAME]}


def language_page(analysis: Analysis, answer: Answer, probes: Probes | None) -> dict[str, Any]:
    """What the templates print; a study of probes has nothing of it."""
    record, found = analysis.record, image_dependence(analysis)
    return {
        "language": record.language,
        "language_words": _model(analysis),
        "sight": [
            _image_dependence(analysis, answer, found, m)
            for m in _order(analysis)
            if any(k[1] == m.name for k in found)
        ],
        "sight_least": LEAST,
        "asked": _shown_questions(analysis, record.shown_questions)
        if record.language and record.shown_questions
        else None,
        "probes": _probes(analysis, probes) if probes is not None else None,
    }


def language_json(analysis: Analysis, probes: Probes | None) -> dict[str, Any] | None:
    """Plain values; None for a study of probes."""
    model, shown_questions = analysis.record.language, analysis.record.shown_questions
    if model is None:
        return None
    return {
        "name": model.name,
        "revision": model.revision,
        "parameters": model.parameters,
        "width": model.width,
        "depth": model.depth,
        "stages": list(model.stages),
        "controls": image_dependence_json(analysis),
        "questions": _questions(shown_questions) if shown_questions else [],
        "probes": probes_json(probes),
    }


def _questions(shown_questions: ShownQuestions) -> list[dict[str, Any]]:
    return [
        {
            "example": q.example,
            "task": q.task,
            "question": q.question,
            "answers": list(q.answers),
            "said": [
                {
                    "cell": cell,
                    "replicate": shown_questions.replicates[cell],
                    "prediction": s.prediction,
                    "score": s.score,
                }
                for cell, s in q.answers_of.items()
            ],
        }
        for q in shown_questions.questions
    ]


def _model(analysis: Analysis) -> str:
    model = analysis.record.language
    if model is None:
        return ""
    size = f", {count(model.parameters)} parameters" if model.parameters else ""
    inside = f", {model.depth} blocks" if model.depth else ""
    wide = f" of width {model.width}" if model.depth and model.width else ""
    stages = f"; trained in {', then '.join(model.stages)}" if model.stages else ""
    return f"{model.name}{size}{inside}{wide}{stages}{_lengths(model)}"


def _lengths(model: LanguageModel) -> str:
    """What was cut or left out of each stage's conversations for its length; nothing where all fit."""
    told = [
        f"of the {count(total)} conversations of {stage} {count(cut)} were cut and {count(left_out)} left out"
        for stage, (total, cut, left_out) in zip(model.stages, model.lengths, strict=False)
        if cut or left_out
    ]
    return f"; for their length {'; '.join(told)}" if told else ""


def _order(analysis: Analysis) -> Sequence[Measure]:
    """What cells are picked by, then the others."""
    first = analysis.objective
    return [first, *(m for m in analysis.measures if m.name != first.name)]


def _image_dependence(analysis: Analysis, answer: Answer, found: Any, measure: Measure) -> dict[str, Any]:
    unit = measure.unit
    order = [c.id for c in analysis.ranked(measure.name)]
    cells = [*order, *(c.id for c in analysis.record.cells if c.id not in order)]
    return {
        "measure": measure,
        "guess": None if measure.chance is None else unit.score(measure.chance),
        "rows": [
            _dependence_row(dependence, answer)
            for cell in cells
            if (dependence := found.get((cell, measure.name))) is not None
        ],
    }


def _dependence_row(dependence: ImageDependence, answer: Answer) -> dict[str, Any]:
    unit = dependence.measure.unit
    return {
        "cell": dependence.cell,
        "recommended": answer.cell is not None and answer.cell.id == dependence.cell.id,
        "real": unit.score(dependence.real.mean),
        "half": unit.half(dependence.real),
        "value": dependence.real.mean,
        "controls": [
            _no_image_baseline(dependence, dependence.no_image_baselines.get(kind)) for kind in NO_IMAGE_KINDS
        ],
        "word": dependence.word,
        "symbol": _WORDS.get(dependence.word, SYMBOLS[UNKNOWN]),
        "kind": Verdict.BETTER if dependence.word == LOOKS else Verdict.WORSE if dependence.word == NOT else "",
    }


def _no_image_baseline(dependence: ImageDependence, c: NoImageBaseline | None) -> dict[str, Any] | None:
    if c is None:
        return None
    unit = dependence.measure.unit
    return {
        "score": unit.score(c.score.mean),
        "half": unit.half(c.score) if c.score.half == c.score.half else "",
        "value": c.score.mean,
        "gap": unit.effect(c.difference),
        "p": pvalue(c.p),
    }


def _shown_questions(analysis: Analysis, shown_questions: ShownQuestions) -> dict[str, Any]:
    cells = [analysis.record.cell(cell) for cell in shown_questions.replicates]
    return {
        "heads": [{"cell": c, "replicate": shown_questions.replicates[c.id]} for c in cells],
        "rows": [
            {
                "task": q.task,
                "example": plain_text(q.example, 40),
                "question": plain_text(q.question, _QUESTION),
                "answer": plain_text(" / ".join(q.answers), _ANSWER),
                "said": [_answer_entry(q.answers_of[c.id].prediction, q.answers_of[c.id].score) for c in cells],
            }
            for q in shown_questions.questions
        ],
    }


def _answer_entry(prediction: str, score: float | None) -> dict[str, str]:
    """``mark`` in words and sign: right, wrong or a part."""
    words = {1.0: ("✓", "right"), 0.0: ("✗", "wrong")}
    part = ("", "") if score is None else ("◐", f"scored {score:.2f}")
    mark, word = part if score is None else words.get(score, part)
    return {"text": plain_text(prediction, _ANSWER) or "(nothing)", "mark": mark, "word": word}


def _probes(analysis: Analysis, found: Probes) -> dict[str, Any]:
    names = analysis.record.tasks, found.analysis.record.tasks if found.analysis else ()
    mine, theirs = ({t.name for t in tasks} for tasks in names)
    return {
        "name": found.name,
        "reason": found.reason,
        "command": f"workbench sweep {shlex.quote(found.name)}" if found.reason and found.name else "",
        "said": trust_sentence(found.pairs[0]) if found.pairs else "",
        "rows": [_pair(pair) for pair in found.pairs],
        "cells": max((len(p.cells) for p in found.pairs), default=0),
        "other_tasks": sorted(mine ^ theirs) if found.pairs else [],
        "fewest": FEWEST_CELLS,
    }


def _pair(pair: RankAgreement) -> dict[str, Any]:
    unit = pair.measure.unit
    tau, low, high = (signed(x) for x in (pair.tau, pair.low, pair.high))
    known = pair.low == pair.low
    by = "" if pair.measure.name == pair.probe.name else f" by {pair.probe.name}"
    lost = "0" if pair.within and pair.regret is None else unit.effect(pair.regret) if pair.regret else ""
    return {
        "name": pair.measure.name + by,
        "cells": len(pair.cells),
        "tau": tau,
        "interval": f"[{low}, {high}]" if known else "",
        "value": pair.tau,
        "p": pvalue(pair.p),
        "pick": pair.pick,
        "best": pair.best,
        "same": pair.pick is not None and pair.best is not None and pair.pick.id == pair.best.id,
        "within": {True: "not told apart", False: "worse", None: ""}[pair.within],
        "regret": lost,
        "difference": unit.difference,
        "random": unit.signed(pair.random) if pair.random == pair.random else "",
        "agree": f"{100 * pair.same_pick:.0f} %" if known else "",
        "replicates": pair.replicates,
    }
