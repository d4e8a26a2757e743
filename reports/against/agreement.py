"""Rank agreement between a published table and the study's own cells. Ranks only: scales are never mixed.

Kendall's tau-b (Biometrika 33, 1945) between a published column and the study's means on one measure. Its p is exact:
the share of all orders of the rows that agree, or disagree, as much. Its interval resamples the study's replicates; the
published side is one training with no interval, so what other seeds would have published is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusion_workbench.reports.against.published import READ, Matched, match, tables
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.statistics.ranks import RESAMPLED, exact_p, tau_b
from fusion_workbench.reports.words.wording import pvalue
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class Agreement:
    """Between one published column and one measure of the study; the interval is nan below two replicates."""

    metric: str
    measure: str
    tau: float
    low: float
    high: float
    p: float
    rows: int
    replicates: int


@dataclass(frozen=True)
class PublishedComparison:
    """A published table compared with the study's own numbers."""

    matched: Matched
    agreements: tuple[Agreement, ...]


def compare_with_published(analysis: Analysis) -> tuple[PublishedComparison, ...]:
    """Every bundled table of which the study has at least three rows."""
    record = analysis.record
    depth = record.encoder_info.get("depth")
    if not isinstance(depth, int):
        return ()
    scored = [c for c in record.cells if any((c.id, m.name) in analysis.means for m in analysis.measures)]
    out = []
    for table in tables():
        matched = match(table, scored, depth)
        if matched is None:
            continue
        agreed = tuple(
            a
            for metric in table.metrics
            for measure in analysis.measures
            if (a := _agree(analysis, matched, metric.name, -1 if metric.minimize else 1, measure)) is not None
        )
        if agreed:
            out.append(PublishedComparison(matched, agreed))
    return tuple(out)


def _agree(analysis: Analysis, matched: Matched, metric: str, sign: int, measure: Measure) -> Agreement | None:
    published = sign * np.asarray([row.values[metric] for row, _ in matched.rows])
    own = by_replicate(analysis, [cell for _, cell in matched.rows], measure)
    if own is None:
        return None
    tau = float(tau_b(published, own.mean(1)[None])[0])
    low, high = _interval(published, own)
    return Agreement(metric, measure.name, tau, low, high, exact_p(published, own.mean(1)), len(own), own.shape[1])


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
    measures = [m for m in analysis.measures if any(a.measure == m.name for a in comparison.agreements)]
    return {
        "table": table,
        "read": READ[table.read],
        "where": _where(matched),
        "layers": _layers(matched),
        "rows": [
            {
                "row": row,
                "cell": cell,
                "own": [
                    {"score": m.unit.score(e.mean), "half": m.unit.half(e), "value": e.mean}
                    for m in measures
                    for e in [analysis.means[cell.id, m.name]]
                ],
            }
            for row, cell in matched.rows
        ],
        "missing": [row.name for row in table.rows if row not in [r for r, _ in matched.rows]],
        "measures": measures,
        "agreements": [
            {"metric": metric.name, "taus": [_tau(comparison, metric.name, m.name) for m in measures]}
            for metric in table.metrics
        ],
    }


def _where(matched: Matched) -> str:
    return f"on {matched.selection.label}" if matched.selection else "each row on its own layers"


def _layers(matched: Matched) -> str:
    if matched.exact:
        return "The cells read the paper's layers, by share of the depth."
    first = f", the first of {matched.alike} selections that have these rows" if matched.alike > 1 else ""
    return f"The strategies are the paper's, the layers are the study's own{first}."


def _tau(comparison: PublishedComparison, metric: str, measure: str) -> dict[str, Any]:
    a = next(a for a in comparison.agreements if (a.metric, a.measure) == (metric, measure))
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
            "same_layers": b.matched.exact,
            "metrics": [asdict(m) for m in b.matched.table.metrics],
            "rows": [
                {"name": row.name, "values": dict(row.values), "cell": cell.id, "note": row.note}
                for row, cell in b.matched.rows
            ],
            "agreement": [asdict(a) for a in b.agreements],
        }
        for b in compare_with_published(analysis)
    ]
