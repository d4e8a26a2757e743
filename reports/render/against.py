"""What changed between two studies, in sentences, rows and plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fusion_workbench.reports.against.study import Against, CellChange, same
from fusion_workbench.reports.analysis.comparison import Analysis, includes_zero
from fusion_workbench.reports.render.tables import VerdictMark, mark_of
from fusion_workbench.reports.statistics.unpaired import BOTH, IMAGES, NOTHING
from fusion_workbench.reports.words.wording import listed, pvalue, when
from fusion_workbench.schema.names import Verdict
from fusion_workbench.schema.records import Cell

SHARED = {
    BOTH: "Paired by replicate and test image.",
    IMAGES: "The test images are the same and the replicates are not: paired by image alone.",
    NOTHING: "Nothing could be paired: two samples of their own, with wider intervals than a paired comparison's.",
}
_WITHOUT = "without a verdict"


def words(analysis: Analysis, against: Against) -> tuple[str, ...]:
    """What changed, in sentences."""
    before, out = against.before, []
    name = before.name if before.name != analysis.record.name else f"{before.name} as it was"
    if not against.rows:
        return (
            f"Nothing can be compared with {name} ({before.place}): no cell of both has numbers on the same measure.",
        )
    counts = tally(against.rows)
    total = len(against.rows)
    out.append(
        f"Against {name} ({when(before.ended)}): of {total} comparison{'s' * (total > 1)} "
        f"{listed([f'{n} {_WITHOUT if word == Verdict.NONE else word}' for word, n in counts.items()])}."
    )
    out.append(_recommendation(analysis, against))
    if against.lost:
        out.append(f"Without numbers now: {listed([c.label for c in against.lost])}.")
    out.extend(SHARED[kind] for kind in SHARED if any(r.difference.shares == kind for r in against.all))
    same_scores = sum(r.difference.identical for r in against.rows)
    if same_scores:
        out.append(f"Of {same_scores} comparison{'s' * (same_scores > 1)} every single score is the same.")
    if against.left_out:
        out.append(f"Not compared: {'; '.join(against.left_out)}.")
    return tuple(filter(None, out))


def _recommendation(analysis: Analysis, against: Against) -> str:
    now, before = against.now_cell, against.before.recommended
    if now is None or before is None:
        return "" if now is before else f"Only {'now' if now else 'before'} a cell is recommended."
    row = next((r for r in against.recommended if r.measure == against.primary), None)
    judged = f" On {row.measure} it {_word(row, now, before)}: {_size(analysis, row)}." if row else ""
    if against.changed:
        return f"Another cell is recommended: {now.name}, before {before.name}.{judged}"
    return f"The same cell is recommended: {now.name}.{judged}"


def _word(row: CellChange, now: Cell, before: Cell) -> str:
    was = "it was" if same(now, before) else f"{before.name} was"
    words: dict[str, str] = {
        Verdict.BETTER: f"is better than {was}",
        Verdict.WORSE: f"is worse than {was}",
        Verdict.EQUIVALENT: f"is as good as {was}",
        Verdict.SAME: f"is not distinguishable from what {was}",
        Verdict.NONE: "cannot be judged yet",
    }
    return words[row.verdict]


def _size(analysis: Analysis, row: CellChange) -> str:
    return analysis.measure(row.measure).unit.size(row.estimate)


def mark(analysis: Analysis, row: CellChange) -> VerdictMark:
    """As every verdict of the report is shown."""
    e = row.estimate
    alone = row.verdict == Verdict.SAME and not includes_zero(e)
    correction = f"p {pvalue(e.p)} alone, {pvalue(row.p)} corrected" if alone else ""
    return mark_of(row.verdict, e, row.p, analysis.measure(row.measure).unit, row.before.name, correction)


def tally(rows: Iterable[CellChange]) -> dict[str, int]:
    """How many of each verdict, in the order of the words."""
    found = [row.verdict for row in rows]
    return {
        word: n
        for word in (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT, Verdict.SAME, Verdict.NONE)
        if (n := found.count(word))
    }


def against_page(analysis: Analysis, against: Against | None) -> dict[str, Any]:
    """What the templates print; ``against`` is None where nothing is compared."""
    if against is None:
        return {"against": None, "against_words": ()}
    now, before = analysis.means, against.before.means
    tables = []
    for measure in analysis.measures:
        own = [r for r in against.all if r.measure == measure.name]
        rows = [
            {
                "cell": row.now if row.same_cell else None,
                "label": row.now.label if row.same_cell else f"recommended: {row.now.label}, before {row.before.label}",
                "now": measure.unit.score(now[row.now.id, row.measure].mean),
                "now_value": now[row.now.id, row.measure].mean,
                "before": measure.unit.score(before[row.before.id, row.measure].mean),
                "before_value": before[row.before.id, row.measure].mean,
                "mark": mark(analysis, row),
                "notes": "; ".join(row.notes),
                "shares": row.difference.shares,
            }
            for row in own
        ]
        if rows:
            tables.append({"measure": measure, "rows": rows})
    return {"against": against, "against_words": words(analysis, against), "against_tables": tables}


def against_json(against: Against | None) -> dict[str, Any] | None:
    """Plain values; None where nothing is compared."""
    if against is None:
        return None
    before = against.before
    return {
        "study": {"name": before.name, "id": before.study_id, "run": before.run, "ended": before.ended},
        "place": before.place,
        "recommended": {
            "now": against.now_cell.id if against.now_cell else None,
            "before": before.recommended.id if before.recommended else None,
            "changed": against.changed,
        },
        "comparisons": [
            {
                "measure": row.measure,
                "cell": row.now.id,
                "before": row.before.id,
                "difference": asdict(row.estimate),
                "p": row.p,
                "p_equivalent": row.p_equivalent,
                "verdict": row.verdict,
                "paired_by": row.difference.shares,
                "identical": row.difference.identical,
                "notes": list(row.notes),
            }
            for row in against.all
        ],
        "only_now": [c.id for c in against.only_now],
        "only_before": [c.id for c in against.only_before],
        "lost": [c.id for c in against.lost],
        "environment": [asdict(change) for change in against.environment],
        "left_out": list(against.left_out),
    }
