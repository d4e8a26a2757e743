"""The report's tables as rows of plain values; the templates only lay them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusion_workbench.reports.analysis.comparison import Analysis, Comparison
from fusion_workbench.reports.analysis.fairness import flags
from fusion_workbench.reports.analysis.plain import correction
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.reading.records import STATES, StudyRecord
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.units import Unit
from fusion_workbench.reports.words.wording import SYMBOLS, count, number, pvalue
from fusion_workbench.schema.names import (
    BASELINES,
    CONVERGED,
    FALLING,
    GATES_OPENED,
    OBJECTIVE,
    TRAIN_LOSS,
    Artifact,
    Baseline,
    CostMetric,
    Phase,
    Status,
    Tag,
)
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class VerdictMark:
    """A verdict, to be read without colour."""

    verdict: str
    symbol: str
    effect: str  # with interval; empty for the baseline itself
    value: float  # the difference, to sort by
    p: str
    against: str
    correction: str = ""  # where the interval leaves out 0 and the corrected verdict does not


@dataclass(frozen=True)
class ScoreEntry:
    """One cell of a table: its score and its verdict."""

    cell: Cell
    mean: float
    score: str
    half: str
    low: str
    high: str
    replicates: int
    mark: VerdictMark | None
    recommended: bool
    complete: bool
    flags: str  # what to mind of its training; empty where it trained as it should


@dataclass(frozen=True)
class StrategyColumn:
    """A strategy, distinguished by those options that vary within the study."""

    strategy: str
    detail: str


@dataclass(frozen=True)
class SelectionRow:
    """A selection and its entries, a column each; None where the study has no such cell, or no numbers of it."""

    levels: str
    query: int
    entries: tuple[ScoreEntry | None, ...]


def mark(comparison: Comparison | None, analysis: Analysis) -> VerdictMark | None:
    """A comparison of two cells."""
    if comparison is None:
        return None
    unit, other = analysis.measure(comparison.measure).unit, analysis.record.cell(comparison.against)
    return mark_of(comparison.verdict, comparison.difference, comparison.p, unit, other.name, correction(comparison))


def mark_of(
    verdict: str, difference: Estimate | None, p: float, unit: Unit, against: str, correction: str = ""
) -> VerdictMark:
    """A verdict as every table prints it; ``difference`` None: the baseline itself, or nothing to judge by."""
    return VerdictMark(
        verdict=verdict,
        symbol=SYMBOLS[verdict],
        effect=unit.effect(difference) if difference else "",
        value=difference.mean if difference else 0.0,
        p=pvalue(p),
        against=against,
        correction=correction,
    )


def entry(
    analysis: Analysis, cell: Cell, measure: str, recommended: Cell | None, baseline: str = Baseline.BEST_SINGLE
) -> ScoreEntry | None:
    """A cell's score on one measure, judged against one baseline."""
    e: Estimate | None = analysis.means.get((cell.id, measure))
    if e is None:
        return None
    unit = analysis.measure(measure).unit
    return ScoreEntry(
        cell=cell,
        mean=e.mean,
        score=unit.score(e.mean),
        half=unit.half(e),
        low=unit.score(e.low),
        high=unit.score(e.high),
        replicates=e.replicates,
        mark=mark(analysis.comparisons.get((measure, baseline, cell.id)), analysis),
        recommended=recommended is not None and cell.id == recommended.id,
        complete=e.replicates == len(analysis.record.replicates),
        flags="; ".join(flags(analysis.record, cell)),
    )


def columns(cells: Sequence[Cell]) -> dict[StrategyColumn, list[Cell]]:
    """Strategies in the study's order; one that is tried with several options, or aliases, gets several columns."""
    by_strategy: dict[str, list[Cell]] = {}
    for cell in cells:
        by_strategy.setdefault(cell.strategy, []).append(cell)
    out: dict[StrategyColumn, list[Cell]] = {}
    for strategy, own in by_strategy.items():
        keys = sorted({key for cell in own for key in cell.options})
        varying = [key for key in keys if len({repr(cell.options.get(key)) for cell in own}) > 1]
        for cell in own:
            words = [f"{key} {cell.options.get(key)}" for key in varying] + ([cell.alias] if cell.alias else [])
            out.setdefault(StrategyColumn(strategy, ", ".join(words)), []).append(cell)
    return out


def grid(analysis: Analysis, measure: str, recommended: Cell | None) -> tuple[list[StrategyColumn], list[SelectionRow]]:
    """Selections by strategies.

    A strategy that reads the query alone shows, in each row, its cell at that row's query.
    """
    fused = [c for c in analysis.record.cells if not c.single]
    alone = [c for c in analysis.record.cells if c.single]
    selections = list(dict.fromkeys((c.levels, c.query) for c in fused))
    queries = {query for _, query in selections}
    by_column = columns([c for c in alone if c.query in queries]) | columns(fused)
    rows = []
    for levels, query in selections:
        found = [
            next((c for c in own if c.query == query and c.levels in (levels, ())), None) for own in by_column.values()
        ]
        entries = tuple(None if c is None else entry(analysis, c, measure, recommended) for c in found)
        rows.append(SelectionRow(f"[{', '.join(map(str, levels))}]", query, entries))
    return list(by_column), rows


def everything(analysis: Analysis, measure: Measure, recommended: Cell | None) -> list[dict[str, Any]]:
    """Every cell, best on validation first, against every baseline."""
    ranked = analysis.ranked(measure.name)
    rest = [c for c in analysis.record.cells if c not in ranked]
    rows = []
    for cell in [*ranked, *rest]:
        shown = entry(analysis, cell, measure.name, recommended)
        if shown is None:
            continue
        validation = analysis.validation.get((cell.id, measure.name))
        marks = [mark(analysis.comparisons.get((measure.name, b, cell.id)), analysis) for b in BASELINES]
        rows.append(
            {
                "entry": shown,
                "validation": None if validation is None else measure.unit.score(validation),
                "validation_value": validation,
                "marks": marks,
            }
        )
    return rows


def replicates(analysis: Analysis, measure: str) -> list[dict[str, Any]]:
    """Test scores of each replicate: what the spread between seeds looks like."""
    record, unit, rows = analysis.record, analysis.measure(measure).unit, []
    for cell in record.cells:
        example_scores = analysis.example_scores(cell.id, measure)
        means = (
            dict(zip(example_scores.replicates, example_scores.scores.mean(-1), strict=True)) if example_scores else {}
        )
        values = [
            {"score": unit.score(float(means[r])), "value": float(means[r])}
            if r in means
            else {"state": record.state(cell.id, r)}
            for r in record.replicates
        ]
        spread = max(means.values()) - min(means.values()) if len(means) > 1 else None
        rows.append({"cell": cell, "values": values, "spread": None if spread is None else unit.score(float(spread))})
    return rows


def search(analysis: Analysis) -> tuple[list[float], list[dict[str, Any]]]:
    """The learning-rate search: validation objective of each cell at each rate."""
    record, unit = analysis.record, analysis.objective.unit
    runs = [r for r in record.runs if r.phase == Phase.SEARCH and r.lr is not None]
    rates = sorted({r.lr for r in runs if r.lr is not None})
    chosen = {c.id: c.chosen_lr for c in record.cells}
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        cell = record.cell(run.cell)
        row = rows.setdefault(run.cell, {"cell": cell, "chosen": chosen.get(run.cell), "values": [None] * len(rates)})
        assert run.lr is not None
        value = run.metrics.get(OBJECTIVE) if run.state == Status.FINISHED else None
        row["values"][rates.index(run.lr)] = {
            "state": run.state,
            "score": None if value is None else unit.score(value),
            "chosen": row["chosen"] is not None and abs(row["chosen"] - run.lr) <= 1e-9 * run.lr,
        }
    return rates, list(rows.values())


@dataclass(frozen=True)
class Cost:
    """A column of the table of costs."""

    metric: str
    title: str
    written: Callable[[float | None], str] = number


COSTS = (
    Cost(CostMetric.PARAMETERS, "parameters", count),
    Cost(CostMetric.FLOPS, "FLOPs an image", count),
    Cost(CostMetric.FORWARD_MS, "ms an image, forward"),
    Cost(CostMetric.SECONDS, "seconds of training"),
    Cost(CostMetric.THROUGHPUT, "images a second"),
    Cost(CostMetric.PEAK_MEMORY, "peak memory, MB"),
)
_PARAMETERS = CostMetric.PARAMETERS  # of a part: with its name behind, after one of the two signs
_SHARES = {CostMetric.MFU: "MFU, %"}  # model FLOP utilisation, where the device's peak is known


def cost_columns(record: StudyRecord) -> tuple[Cost, ...]:
    """What every study has, then what only some track: the parameters of each part and the share of the peak.

    A study of language models counts samples, which are conversations.
    """
    tracked = {name for run in record.runs if run.phase == Phase.FINAL for name in run.metrics}
    parts = sorted(name for name in tracked if name.startswith((f"{_PARAMETERS}_", f"{_PARAMETERS}/")))
    titles: dict[str, str] = {CostMetric.THROUGHPUT: "samples a second"} if record.language else {}
    return (
        *(replace(c, title=titles.get(c.metric, c.title)) for c in COSTS),
        *(Cost(name, f"parameters, {name[len(_PARAMETERS) + 1 :].replace('_', ' ')}", count) for name in parts),
        *(Cost(name, title, _per_cent) for name, title in _SHARES.items() if name in tracked),
    )


def _per_cent(share: float | None) -> str:
    return number(None if share is None else 100 * share)


def costs(record: StudyRecord) -> list[dict[str, Any]]:
    """Means over a cell's replicates, as numbers and as they are written."""
    columns, rows = cost_columns(record), []
    for cell in record.cells:
        values = [record.mean_metric(cell.id, column.metric) for column in columns]
        if any(value is not None for value in values):
            shown = [column.written(value) for column, value in zip(columns, values, strict=True)]
            rows.append({"cell": cell, "values": list(zip(values, shown, strict=True))})
    return rows


def health(record: StudyRecord) -> list[dict[str, Any]]:
    """How training went, a cell a row; ``flags`` say in words what a reader should mind."""
    rows = []
    for cell in record.cells:
        runs = record.finals(cell.id)
        lost = {
            s: n
            for s in STATES
            if s != Status.FINISHED and (n := sum(record.state(cell.id, r) == s for r in record.replicates))
        }
        converged = [r.metrics[CONVERGED] >= 0.5 for r in runs if CONVERGED in r.metrics]
        opened = [r.metrics[GATES_OPENED] >= 0.5 for r in runs if GATES_OPENED in r.metrics]
        broken = [f"{error}, replicate {', '.join(of)}" for error, of in record.errors(cell.id).items()]
        flagged = [f"{n} {state.replace('_', ' ')}" for state, n in lost.items()] + broken + flags(record, cell)
        rows.append(
            {
                "cell": cell,
                "finished": len(runs),
                "converged": f"{sum(converged)} of {len(converged)}" if converged else "",
                "falling": record.mean_metric(cell.id, FALLING),
                "loss": record.mean_metric(cell.id, TRAIN_LOSS),
                "opened": f"{sum(opened)} of {len(opened)}" if opened else "",
                "flags": flagged,
            }
        )
    return rows


def _dependencies(record: StudyRecord) -> str:
    """The fingerprints of all that the numbers depend on, in one word, and where they were taken late."""
    tracked = record.dependencies
    if tracked is None:
        return ""
    late = f" · {tracked.recorded}: taken when 0.2 first opened the study" if tracked.recorded else ""
    return f"{len(tracked.fingerprints)} fingerprints, together {tracked.tag} ({Artifact.DEPENDENCIES}){late}"


def provenance(record: StudyRecord, versions: Mapping[str, Any], config_hash: str) -> list[tuple[str, str]]:
    """What is needed to repeat the study."""
    tags, encoder_info, source = record.tags, record.encoder_info, record.source
    rows = [
        ("Command", tags.get(Tag.COMMAND, "")),
        ("Commit", tags.get(Tag.COMMIT, "")),
        ("Study id", record.study_id),
        ("study.yaml, sha256", config_hash),
        (
            "Encoder",
            " · ".join(str(encoder_info[k]) for k in ("encoder", "revision", "precision") if encoder_info.get(k)),
        ),
        ("Encoder fingerprint", str(encoder_info.get("fingerprint", ""))),
        (
            "Language model",
            record.language.display_name if record.language else "",
        ),
        ("Source", source.version or source.name),
        *((f"Source fingerprint, {split}", value) for split, value in source.fingerprints.items()),
        ("Dependencies", _dependencies(record)),
        ("Trained on", tags.get(Tag.DEVICE, "")),
        ("Numerics", tags.get(Tag.NUMERICS, "")),
        ("Checksums", f"{record.unchecked} runs of before 0.2 have none" if record.unchecked else ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("MLflow", f"{record.tracking_uri}, experiment {record.experiment}, run {record.run_id}"),
    ]
    return [(name, value) for name, value in rows if value]
