"""The report for machines: JSON and long-form CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from fusion_workbench.reports.against.agreement import published_json
from fusion_workbench.reports.against.environment import environment
from fusion_workbench.reports.against.probes import Probes
from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fairness import budgets
from fusion_workbench.reports.analysis.fresh_replicates import fresh_replicates_json, judge_fresh_replicates
from fusion_workbench.reports.analysis.plain import cell_json, comparison_json
from fusion_workbench.reports.analysis.retention import retention_json
from fusion_workbench.reports.analysis.winners_curse import winners_curse_json
from fusion_workbench.reports.figures.layer_importance import layers_json
from fusion_workbench.reports.render.language import language_json
from fusion_workbench.reports.render.saving import finite
from fusion_workbench.reports.render.tables import cost_columns, health
from fusion_workbench.reports.render.token_maps import token_maps_json
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.schema.names import BASELINES, COST, REPORT_SCHEMA, Status, Tag, on_validation, task_metric
from fusion_workbench.schema.records import Cell


def to_json(
    analysis: Analysis, answer: Answer, against: dict[str, Any] | None = None, probes: Probes | None = None
) -> dict[str, Any]:
    """Everything in the report as plain values, as report.schema.json has it; scores as fractions, never rounded.

    ``against``: what :func:`reports.render.against.against_json` says of another study; None: nothing is compared.
    ``probes``: the study of probes beside a study of language models.
    """
    record = analysis.record
    cheaper = answer.cheaper
    plain: dict[str, Any] = {
        "$schema": f"urn:fusion-workbench:report:{REPORT_SCHEMA}",
        "schema": REPORT_SCHEMA,
        "study": {
            "name": record.name,
            "id": record.study_id,
            "question": record.question,
            "status": record.status,
            "run": record.run_id,
            "experiment": record.experiment,
            "started": record.started,
            "ended": record.ended,
            "replicates": list(record.replicates),
            "test_groups": list(record.groups),
        },
        "answer": {
            "headline": answer.headline,
            "text": answer.text,
            "cell": cell_json(answer.cell),
            "best_baseline": cell_json(answer.best_baseline),
            "better_than_best_baseline": answer.settled,
            "comparisons": [comparison_json(c) for c in answer.comparisons],
            "by_task": [
                {
                    "measure": p.measure,
                    "cell": cell_json(p.cell),
                    "comparison": p.comparison and comparison_json(p.comparison),
                }
                for p in answer.tasks
            ],
            "as_good_and_cheaper": cheaper
            and {
                "cell": cell_json(cheaper.cell),
                "flops_share": cheaper.flops,
                "validation": asdict(cheaper.validation),
                "test": {measure: asdict(e) for measure, e in cheaper.test},
            },
            "config": answer.snippet,
            "caveats": list(answer.caveats),
            "conditional_on_test_groups": analysis.conditional_on_groups,
        },
        "plan": {
            **asdict(record.plan or analysis.plan),
            "tracked": record.plan is not None,
            "hash": record.tags.get(Tag.PLAN),
            "departures": list(record.departures),
        },
        "trial": {
            **fresh_replicates_json(judge_fresh_replicates(analysis)),
            "inflation": winners_curse_json(answer.winners_curse),
            "retention": retention_json(answer.retention),
            "checks": list(answer.checks),
            "what_it_would_take": answer.takes,
            "budgets": budgets(record),
        },
        "counts": {"expected": record.expected, **record.counts()},
        "tasks": [asdict(t) for t in record.tasks],
        "baselines": [
            {"measure": measure, "baseline": baseline, "cell": cell}
            for (measure, baseline), cell in analysis.baselines.items()
        ],
        "cells": [cell_json(c) | _numbers(analysis, c) for c in record.cells],
        "comparisons": [comparison_json(c) for c in analysis.comparisons.values()],
        "runs": [
            {"run": r.run_id, "cell": r.cell, "phase": r.phase, "replicate": r.replicate, "lr": r.lr, "state": r.state}
            for r in record.runs
        ],
        "health": [{"cell": row["cell"].id, "flags": row["flags"]} for row in health(record)],
        "notes": list(record.notes),
        "layers": layers_json(analysis),
        "look": token_maps_json(record.token_maps),
        "environment": environment(record),
        "published": published_json(analysis),
        "against": against,
        "language": language_json(analysis, probes),
    }
    found: dict[str, Any] = finite(plain)
    return found


def results_csv(analysis: Analysis) -> str:
    """Long form: one row a cell, task and replicate."""
    head = ["study", "cell", "strategy", "levels", "query", "options", "alias", "lr", "task", "metric"]
    return csv_text([*head, "replicate", "test", "validation", "examples", "run"], _results(analysis))


def intervals_csv(analysis: Analysis) -> str:
    """One row a cell and measure: the mean with its interval, and the difference to every baseline."""
    head = ["study", "cell", "strategy", "levels", "query", "measure"]
    head += ["mean", "low", "high", "se", "se_seeds", "replicates"]
    for baseline in BASELINES:
        name = baseline.replace(" ", "_")
        head += [f"{name}_{part}" for part in ("difference", "low", "high", "p", "p_equivalent", "verdict")]
    return csv_text(head, _intervals(analysis))


def _results(analysis: Analysis) -> Iterator[list[Any]]:
    record = analysis.record
    for cell in record.cells:
        for task in record.tasks:
            example_scores = analysis.example_scores(cell.id, task.name)
            if example_scores is None or not example_scores.examples:
                continue
            means = dict(zip(example_scores.replicates, example_scores.scores.mean(-1).tolist(), strict=True))
            for run in record.finals(cell.id):
                if run.replicate not in means:
                    continue
                validation = run.metrics.get(on_validation(task_metric(task.name, task.metric)), "")
                options = ";".join(f"{key}={value}" for key, value in cell.options.items())
                what = [record.name, cell.id, cell.strategy, _levels(cell), cell.query, options, cell.alias, run.lr]
                score = [task.name, task.metric, run.replicate, means[run.replicate], validation]
                yield [*what, *score, len(example_scores.examples), run.run_id]


def _intervals(analysis: Analysis) -> Iterator[list[Any]]:
    for cell in analysis.record.cells:
        for measure in analysis.measures:
            e = analysis.means.get((cell.id, measure.name))
            if e is None:
                continue
            row: list[Any] = [analysis.record.name, cell.id, cell.strategy, _levels(cell), cell.query, measure.name]
            row += [e.mean, e.low, e.high, e.se, e.se_seeds, e.replicates]
            for baseline in BASELINES:
                c = analysis.comparisons.get((measure.name, baseline, cell.id))
                if c is None:
                    row += [""] * 6
                elif c.difference is None:
                    row += ["", "", "", "", "", c.verdict]
                else:
                    d = c.difference
                    tests = ["" if math.isnan(p) else p for p in (c.p, c.p_equivalent)]
                    row += [d.mean, d.low, d.high, *tests, c.verdict]
            yield row


def _numbers(analysis: Analysis, cell: Cell) -> dict[str, Any]:
    record = analysis.record
    means: dict[str, Estimate] = {
        m.name: analysis.means[cell.id, m.name] for m in analysis.measures if (cell.id, m.name) in analysis.means
    }
    return {
        "finished": sum(record.state(cell.id, r) == Status.FINISHED for r in record.replicates),
        "states": {r: record.state(cell.id, r) for r in record.replicates},
        "test": {name: asdict(e) for name, e in means.items()},
        "validation": {m.name: analysis.validation.get((cell.id, m.name)) for m in analysis.measures},
        "cost": {c.metric.removeprefix(COST): record.mean_metric(cell.id, c.metric) for c in cost_columns(record)},
    }


def _levels(cell: Cell) -> str:
    return " ".join(map(str, cell.levels))
