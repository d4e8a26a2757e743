"""Analysis → files: what the templates print, and where it is written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fusion_workbench.core.parse import parse_json
from fusion_workbench.reports.against.agreement import published_page
from fusion_workbench.reports.against.fail_on import failures
from fusion_workbench.reports.against.probes import Probes, compare_with_probes, find_probes
from fusion_workbench.reports.against.sides import ComparedSource, find
from fusion_workbench.reports.against.study import Against, compare
from fusion_workbench.reports.analysis.answer import Answer, answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fairness import budgets
from fusion_workbench.reports.calibration.table import calibration_rows
from fusion_workbench.reports.figures.answer import answer_figure
from fusion_workbench.reports.figures.language import language_figures
from fusion_workbench.reports.figures.layer_importance import layer_page
from fusion_workbench.reports.figures.scores import figures
from fusion_workbench.reports.figures.svg import Figure
from fusion_workbench.reports.reading.query import read_study
from fusion_workbench.reports.reading.records import STATES
from fusion_workbench.reports.render import tables
from fusion_workbench.reports.render.against import against_json, against_page
from fusion_workbench.reports.render.json_csv import intervals_csv, results_csv, to_json
from fusion_workbench.reports.render.language import language_page
from fusion_workbench.reports.render.language_latex import language_latex
from fusion_workbench.reports.render.latex import latex
from fusion_workbench.reports.render.links import UI, cell_runs, link, server
from fusion_workbench.reports.render.paths import ReportPaths
from fusion_workbench.reports.render.saving import json_text, save_files
from fusion_workbench.reports.render.templating import frame, template
from fusion_workbench.reports.render.token_maps import token_maps_page
from fusion_workbench.reports.words import wording
from fusion_workbench.reports.words.units import SHARE, Unit
from fusion_workbench.schema.names import BASELINES, MATCHED_CONTROLS, Baseline, Phase, Status, Tag, Verdict
from fusion_workbench.schema.plan import FEWEST


def write(
    tracking_uri: str,
    study: str,
    out: Path,
    experiment: str | None,
    against: ComparedSource | None = None,
    probes: str | None = None,
) -> ReportPaths:
    """See :func:`reports.write_report`."""
    record = read_study(tracking_uri, study, experiment)
    found = find_probes(tracking_uri, record, probes)
    other = find(against, tracking_uri, experiment, record) if against else None  # a wrong one is said before the work
    analysis = Analysis(record)
    said = answer(analysis)
    changed = compare(analysis, said, other) if other else None
    files = render(analysis, said, changed, compare_with_probes(analysis, found))
    save_files(out, files)
    return ReportPaths(
        html=out / "report.html",
        markdown=out / "report.md",
        json=out / "report.json",
        csv=out / "results.csv",
        intervals=out / "intervals.csv",
        figures=tuple(out / name for name in files if name.endswith(".svg")),
        answer=said.text,
        tex=out / "tables.tex",
        against=" ".join(against_page(analysis, changed)["against_words"]),
        failures=failures(analysis, said, changed),
    )


def render(
    analysis: Analysis, said: Answer, changed: Against | None = None, probes: Probes | None = None
) -> dict[str, str]:
    """Every file of the report by its path within the folder."""
    drawn = [f for f in [answer_figure(analysis, said)] if f]
    drawn += [*language_figures(analysis, said, probes), *figures(analysis, said)]
    context = page(analysis, said, drawn) | against_page(analysis, changed) | language_page(analysis, said, probes)
    values = to_json(analysis, said, against_json(changed), probes)
    return {
        "report.html": template("report.html.j2").render(context),
        "report.md": template("report.md.j2").render(context),
        "report.json": json_text(values),
        "results.csv": results_csv(analysis),
        "intervals.csv": intervals_csv(analysis),
        "tables.tex": latex(analysis, said) + language_latex(analysis, probes),
        **{f"figures/{figure.name}.svg": figure.standalone for figure in drawn},
        **{f"figures/{figure.name}.csv": figure.data for figure in drawn if figure.data},
    }


def page(analysis: Analysis, said: Answer, drawn: list[Figure]) -> dict[str, Any]:
    """Everything that the templates print."""
    record = analysis.record
    rates, searched = tables.search(analysis)
    tasks = [m for m in analysis.measures if any(t.name == m.name for t in record.tasks)]
    versions = _versions(record.tags.get(Tag.VERSIONS, ""))
    config_hash = hashlib.sha256(record.study_yaml.encode()).hexdigest() if record.study_yaml else ""
    return {
        "record": record,
        "analysis": analysis,
        "answer": said,
        "fresh": said.judged.reached if said.judged is not analysis else 0,
        "own_replicates": _own_replicates(analysis, said),
        "budgets": budgets(record),
        "measures": analysis.measures,
        "tasks": tasks,
        "baselines": BASELINES,
        "best_single": Baseline.BEST_SINGLE,
        "verdicts": _answer_rows(analysis, said),
        "grids": {m.name: tables.grid(analysis, m.name, said.cell) for m in tasks},
        "reference": {m.name: _reference(analysis, m.name) for m in analysis.measures},
        "everything": {m.name: tables.everything(analysis, m, said.cell) for m in analysis.measures},
        "replicate_rows": {m.name: tables.replicates(analysis, m.name) for m in tasks},
        "rates": rates,
        "searched": searched,
        "cost_heads": [column.title for column in tables.cost_columns(record)],
        "costs": tables.costs(record),
        "cell_runs": cell_runs(analysis),
        "mlflow_server": server(record.tracking_uri),
        "mlflow_ui": UI,
        "study_link": link(record, record.run_id),
        "health": tables.health(record),
        "counts": record.counts(),
        "states": STATES,
        "finished": Status.FINISHED,
        "search_counts": _search_counts(analysis),
        "provenance": tables.provenance(record, versions, config_hash),
        "figures": {figure.name: figure for figure in drawn},
        "probe_figures": [figure.name for figure in drawn if figure.name.startswith("probes-")],
        "layer_curves": [figure for figure in drawn if figure.name.startswith("curve-")],
        "figure_numbers": {figure.name: number for number, figure in enumerate(_in_order(drawn), 1)},
        "scores_in": _scores_in([m.unit for m in tasks]),
        "differences_in": "points" if all(m.unit is SHARE for m in analysis.measures) else "the unit of each column",
        "groups": wording.plural(record.group_name, len(record.groups)),
        "plural": wording.plural,
        **layer_page(analysis, said),
        "calibration": calibration_rows(said.judged),
        **token_maps_page(analysis),
        **published_page(analysis),
        "words": {
            "better": Verdict.BETTER,
            "worse": Verdict.WORSE,
            "same": Verdict.SAME,
            "none": Verdict.NONE,
            "itself": Verdict.ITSELF,
        },
        "fewest": FEWEST,
        "symbols": wording.SYMBOLS,
        "plan": record.plan or analysis.plan,
        "plan_hash": record.tags.get(Tag.PLAN, "?"),
        "level": f"{analysis.plan.level:g}".removeprefix("0"),
        "families": "; ".join(
            f"{wording.listed(list(f.measures))} {100 * f.share:g} %" for f in (record.plan or analysis.plan).families
        ),
        "margin": wording.listed([f"{size} {of}".strip() for size, of in _margins(analysis)]),
        **frame(),
    }


def _scores_in(units: list[Unit]) -> str:
    """What a sentence says of the numbers in a table of scores."""
    if all(unit is SHARE for unit in units):
        return "in per cent"
    return "shares in per cent, others as they are" if SHARE in units else "in the task's own unit"


def _own_replicates(analysis: Analysis, said: Answer) -> str:
    """What tables of all cells say where the recommended cell was judged on other replicates; starts with a space."""
    if said.judged is analysis:
        return ""
    own = wording.plural("replicate", len(analysis.record.replicates))
    return (
        f" On the study's own {len(analysis.record.replicates)} {own}; the {said.judged.reached} fresh ones, which "
        "judge the recommended cell above, have other scores."
    )


def _margins(analysis: Analysis) -> list[tuple[str, str]]:
    """Each margin as people write it, with the measures that it is of."""
    by_size: dict[str, list[str]] = {}
    for measure in analysis.measures:
        if (margin := analysis.margin(measure)) is not None:
            words = " ".join(filter(None, [measure.unit.score(margin), measure.unit.difference]))
            by_size.setdefault(words, []).append(measure.name)
    if len(by_size) == 1:
        return [(next(iter(by_size)), "")]
    return [(words, f"({', '.join(names)})") for words, names in by_size.items()]


def _answer_rows(analysis: Analysis, said: Answer) -> list[dict[str, Any]]:
    """The recommended cell against every baseline, a baseline a row."""
    if said.cell is None:
        return []
    rows = []
    for baseline in BASELINES + MATCHED_CONTROLS:
        marks = []
        for measure in analysis.measures:
            comparison = said.judged.comparisons.get((measure.name, baseline, said.cell.id))
            marks.append(tables.mark(comparison, said.judged))
        if any(marks):
            rows.append({"baseline": baseline, "marks": marks})
    return rows


def _reference(analysis: Analysis, measure: str) -> str:
    found = analysis.baselines.get((measure, Baseline.BEST_SINGLE))
    return analysis.record.cell(found).name if found else ""


def _search_counts(analysis: Analysis) -> dict[str, int]:
    tally: dict[str, int] = {}
    for run in analysis.record.runs:
        if run.phase == Phase.SEARCH:
            tally[run.state] = tally.get(run.state, 0) + 1
    return tally


def _in_order(drawn: list[Figure]) -> list[Figure]:
    """As the page shows them."""
    layers, fusers = ("curve", "importance", "similarity"), ("gates", "opening", "attention", "heads")
    kinds = ("verdict", "sight", "probes", *layers, "cost", *fusers, "training")
    return sorted(drawn, key=lambda f: kinds.index(f.name.split("-")[0]))


def _versions(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
