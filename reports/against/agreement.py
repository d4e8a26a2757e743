"""Rank agreement between a published table and the study's own cells. Ranks only: scales are never mixed.

Kendall's tau-b (Biometrika 33, 1945) between a published column and the study's means on one measure. Its p is exact:
the share of all orders of the rows that agree, or disagree, as much. Its interval resamples the study's replicates; the
published side is one training with no interval, so what other seeds would have published is not in it. Where two places
state a row's value differently, tau is told for each. A table of two rows has no order; its difference is told instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from fusion_workbench.reports.against.published import FEWEST_ROWS, Matched, Published, PublishedRow, match, tables
from fusion_workbench.reports.against.sources import READ, Stated
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.ranks import RESAMPLED, exact_p, tau_b
from fusion_workbench.reports.words.wording import pvalue
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class Agreement:
    """Between one published column and one measure of the study; the interval is nan below two replicates.

    Attributes:
        given: which values of the column, in words, where another place states one differently than the first.
    """

    metric: str
    measure: str
    given: str
    tau: float
    low: float
    high: float
    p: float
    rows: int
    replicates: int


@dataclass(frozen=True)
class PublishedComparison:
    """A published table compared with the study's own numbers; no agreements where it has but two rows."""

    matched: Matched
    agreements: tuple[Agreement, ...]


def compare_with_published(analysis: Analysis) -> tuple[PublishedComparison, ...]:
    """Every bundled table of which the study has at least three rows, or both rows of a difference."""
    record = analysis.record
    depth = record.encoder_info.get("depth")
    if not isinstance(depth, int):
        return ()
    scored = [c for c in record.cells if any((c.id, m.name) in analysis.means for m in analysis.measures)]
    out = []
    for table in tables():
        matched = match(table, scored, depth, record.language is not None)
        if matched is None:
            continue
        agreed = tuple(
            a
            for metric in table.metrics
            for given, published in _columns(matched, metric.name)
            for measure in analysis.measures
            if (a := _agree(analysis, matched, metric.name, given, metric.minimize, published, measure)) is not None
        )
        if agreed or len(matched.rows) < FEWEST_ROWS:
            out.append(PublishedComparison(matched, agreed))
    return tuple(out)


def _columns(matched: Matched, metric: str) -> list[tuple[str, tuple[float, ...]]]:
    """The column as the first places state it, then as others do, each with words for what is not the first's."""
    rows = [row for row, _ in matched.rows]
    return [
        (
            "; ".join(
                f"{row.name} at {value}, {_whose(row, metric, value)}"
                for row, value in zip(rows, values, strict=True)
                if value != row.stated_values(metric)[0]
            ),
            values,
        )
        for values in product(*(row.stated_values(metric) for row in rows))
    ]


def _whose(row: PublishedRow, metric: str, value: float) -> str:
    return next(stated.who for stated in row.stated if stated.values.get(metric) == value)


def _agree(
    analysis: Analysis,
    matched: Matched,
    metric: str,
    given: str,
    minimize: bool,
    values: tuple[float, ...],
    measure: Measure,
) -> Agreement | None:
    if len(values) < FEWEST_ROWS:
        return None
    published = np.asarray(values) * (-1 if minimize else 1)
    own = by_replicate(analysis, [cell for _, cell in matched.rows], measure)
    if own is None:
        return None
    tau = float(tau_b(published, own.mean(1)[None])[0])
    low, high = _interval(published, own)
    p = exact_p(published, own.mean(1))
    return Agreement(metric, measure.name, given, tau, low, high, p, len(own), own.shape[1])


def by_replicate(analysis: Analysis, cells: Sequence[Cell], measure: Measure) -> Floats | None:
    """``[cells, replicates]`` test means, more is better, of the replicates that all cells have."""
    scored = [analysis.example_scores(c.id, measure.name) for c in cells]
    present = [o for o in scored if o is not None and o.examples]
    if len(present) < len(cells):
        return None
    shared = [r for r in present[0].replicates if all(r in o.replicates for o in present)]
    if not shared:
        return None
    return np.stack([measure.sign * o.scores[[o.replicates.index(r) for r in shared]].mean(1) for o in present])


def _interval(published: Floats, own: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentiles of tau when replicates are drawn again with replacement, the same for all cells."""
    replicates = own.shape[1]
    if replicates < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).multinomial(replicates, [1 / replicates] * replicates, RESAMPLED)
    taus = tau_b(published, drawn @ own.T / replicates)
    low, high = np.quantile(taus, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def published_page(analysis: Analysis) -> dict[str, Any]:
    """What the templates print."""
    return {"published": [_shown(analysis, b) for b in compare_with_published(analysis)]}


def _shown(analysis: Analysis, comparison: PublishedComparison) -> dict[str, Any]:
    matched, table = comparison.matched, comparison.matched.table
    kept = [row for row, _ in matched.rows]
    measures = [
        m
        for m in analysis.measures
        if any(a.measure == m.name for a in comparison.agreements)
        or (not comparison.agreements and all((c.id, m.name) in analysis.means for _, c in matched.rows))
    ]
    return {
        "table": table,
        "where": _where(matched),
        "layers": _layers(matched),
        "scale": _scale(table),
        "rows": [
            {
                "row": row,
                "values": _values(table, row),
                "marks": _marks(table, row),
                "cell": cell,
                "own": [
                    {"score": m.unit.score(e.mean), "half": m.unit.half(e), "value": e.mean}
                    for m in measures
                    for e in [analysis.means[cell.id, m.name]]
                ],
            }
            for row, cell in matched.rows
        ],
        "beside": [
            {"row": row, "values": _values(table, row), "marks": _marks(table, row), "cell": None, "own": []}
            for row in table.rows
            if row.match is None
        ],
        "notes": [row for row in table.rows if row.note and (row.match is None or row in kept)],
        "difference": _difference(table, kept) if not comparison.agreements else [],
        "sources": [
            {"label": s.label, "url": s.url, "read": READ[str(s.read)], "thirdparty": s.read != "own"}
            for s in table.sources
        ],
        "missing": [row.name for row in table.rows if row.match is not None and row not in kept],
        "measures": measures,
        "agreements": [
            {
                "metric": metric.name,
                "given": given,
                "taus": [_tau(comparison, metric.name, given, m.name) for m in measures],
            }
            for metric in table.metrics
            for given, _ in _columns(matched, metric.name)
            if comparison.agreements
        ],
    }


def _values(table: Published, row: PublishedRow) -> list[list[dict[str, Any]]]:
    """For each column every value that is stated, the first first, with the numbers of the places that state it."""
    return [
        [
            {
                "value": value,
                "who": _whose(row, metric.name, value),
                "marks": [_number(table, s) for s in row.stated if s.values.get(metric.name) == value],
            }
            for value in row.stated_values(metric.name)
        ]
        for metric in table.metrics
    ]


def _marks(table: Published, row: PublishedRow) -> list[int]:
    return [_number(table, stated) for stated in row.stated]


def _number(table: Published, stated: Stated) -> int:
    """Of the place in the list of sources, from 1."""
    return table.sources.index(stated.source) + 1


def _difference(table: Published, rows: Sequence[PublishedRow]) -> list[list[str]]:
    """Second row minus first, for each column and each value that is stated, in the order of :func:`_values`."""
    first, second = rows
    return [
        [
            f"{round(b - a, 6):+.1f}".replace("-", "−")
            for a in first.stated_values(metric.name)
            for b in second.stated_values(metric.name)
        ]
        for metric in table.metrics
    ]


def _scale(table: Published) -> str:
    """What most of four columns or more are in, so that it is said once; empty where it would be said of few."""
    scales = [metric.scale for metric in table.metrics]
    most = max(scales, key=scales.count)
    return most if scales.count(most) > 3 else ""


def _where(matched: Matched) -> str:
    return f"on {matched.selection.label}" if matched.selection else "each row on its own layers"


def _layers(matched: Matched) -> str:
    if matched.exact:
        return "The cells read the paper's layers, by share of the depth."
    first = f", the first of {matched.alike} selections that have these rows" if matched.alike > 1 else ""
    return f"The strategies are the paper's, the layers are the study's own{first}."


def _tau(comparison: PublishedComparison, metric: str, given: str, measure: str) -> dict[str, Any]:
    a = next(a for a in comparison.agreements if (a.metric, a.given, a.measure) == (metric, given, measure))
    signed = [f"{x:+.2f}".replace("-", "−").replace("+0.00", "0.00") for x in (a.tau + 0.0, a.low, a.high)]
    return {
        "tau": signed[0],
        "interval": f"[{signed[1]}, {signed[2]}]" if np.isfinite(a.low) else "",
        "p": pvalue(a.p),
        "value": a.tau,
    }


def published_json(analysis: Analysis) -> list[dict[str, Any]]:
    """Plain values."""
    return [
        {
            "title": b.matched.table.title,
            "arxiv": b.matched.table.arxiv,
            "place": b.matched.table.place,
            "read": b.matched.table.read,
            "model": b.matched.table.model,
            "note": b.matched.table.note,
            "same_layers": b.matched.exact,
            "metrics": [asdict(m) for m in b.matched.table.metrics],
            "rows": [_plain(row) | {"cell": cell.id} for row, cell in b.matched.rows],
            "beside": [_plain(row) for row in b.matched.table.rows if row.match is None],
            "agreement": [asdict(a) for a in b.agreements],
        }
        for b in compare_with_published(analysis)
    ]


def _plain(row: PublishedRow) -> dict[str, Any]:
    columns = dict.fromkeys(name for stated in row.stated for name in stated.values)
    return {
        "name": row.name,
        "values": {name: row.stated_values(name)[0] for name in columns},
        "stated": [
            {
                "values": dict(s.values),
                "who": s.who,
                "source": s.source.label,
                "url": s.source.url,
                "read": s.source.read,
            }
            for s in row.stated
        ],
        "note": row.note,
    }
