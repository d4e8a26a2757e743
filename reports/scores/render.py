"""A judgement of others' systems → HTML, Markdown, JSON, CSV in the report's look."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion_workbench.reports.analysis.comparison import Comparison
from fusion_workbench.reports.analysis.plain import correction
from fusion_workbench.reports.render.saving import finite, json_text, save_files
from fusion_workbench.reports.render.tables import VerdictMark, mark_of
from fusion_workbench.reports.render.templating import frame, template
from fusion_workbench.reports.scores.judge import Judgement, JudgementTable
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.units import Unit
from fusion_workbench.schema.plan import FEWEST

SCHEMA = 1


def write_judgement(found: Judgement, out: Path, files: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Write ``verdict.html``, ``.md``, ``.json`` and ``.csv`` into a folder, which is made when missing.

    Args:
        files: what was read, to be named in the page.

    Raises:
        WorkbenchError: ``out`` cannot be a folder that is written to.
    """
    context = _context(found, files)
    contents = {
        "verdict.html": template("scores.html.j2").render(context),
        "verdict.md": template("scores.md.j2").render(context),
        "verdict.json": json_text(to_json(found, files)),
        "verdict.csv": to_csv(found),
    }
    save_files(out, contents)
    return tuple(out / name for name in contents)


def mark(c: Comparison | None, unit: Unit) -> VerdictMark | None:
    """A comparison as the report's tables print it."""
    return mark_of(c.verdict, c.difference, c.p, unit, c.baseline, correction(c)) if c is not None else None


def rows(table: JudgementTable) -> list[dict[str, Any]]:
    """A system a row, as text and as the number to sort by."""
    return [
        {
            "system": line.system,
            "mean": table.unit.score(line.mean.mean),
            "low": table.unit.score(line.mean.low),
            "high": table.unit.score(line.mean.high),
            "value": line.mean.mean,
            "replicates": line.mean.replicates,
            "examples": line.mean.examples,
            "groups": line.mean.groups,
            "marks": [mark(c, table.unit) for c in line.comparisons],
        }
        for line in table.lines
    ]


def margin_words(found: Judgement) -> str:
    """The margin as people write it, in the unit of the tables; empty without one."""
    if found.margin is None:
        return ""
    sizes = {" ".join(filter(None, [t.unit.score(found.margin), t.unit.difference])) for t in found.tables}
    return " or ".join(sorted(sizes))


def to_json(found: Judgement, files: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything as plain values, unrounded; what is not a number is null."""
    return {
        "schema": SCHEMA,
        "headline": found.headline,
        "caveats": list(found.caveats),
        "files": list(files),
        "baselines": list(found.baselines),
        "level": found.level,
        "margin": found.margin,
        "direction": "maximize" if found.sign > 0 else "minimize",
        "means": [
            {"measure": t.measure, "system": line.system, **_estimate(line.mean)}
            for t in found.tables
            for line in t.lines
        ],
        "comparisons": [
            {
                "measure": c.measure,
                "system": c.cell,
                "baseline": c.baseline,
                "verdict": c.verdict,
                "p": finite(c.p),
                "p_equivalent": finite(c.p_equivalent),
                "difference": c.difference and _estimate(c.difference),
            }
            for c in found.comparisons
        ],
    }


def to_csv(found: Judgement) -> str:
    """One row a measure, system and baseline."""
    head = ["measure", "system", "baseline", "mean", "low", "high", "replicates", "examples"]
    head += ["difference", "difference_low", "difference_high", "p_uncorrected", "p", "p_equivalent", "verdict"]
    rows = []
    for table in found.tables:
        for line in table.lines:
            for c, baseline in zip(line.comparisons, found.baselines, strict=True):
                m, d = line.mean, c.difference if c else None
                what = [table.measure, line.system, baseline, m.mean, m.low, m.high, m.replicates, m.examples]
                size = [d.mean, d.low, d.high, d.p] if d else [None] * 4
                judged = [c.p, c.p_equivalent, c.verdict] if c and d else [None, None, c.verdict if c else None]
                rows.append([None if v != v else v for v in [*what, *size, *judged]])
    return csv_text(head, rows)


def _context(found: Judgement, files: tuple[str, ...]) -> dict[str, Any]:
    return {
        "found": found,
        "tables": [{"measure": t.measure, "unit": t.unit, "rows": rows(t)} for t in found.tables],
        "grouped": any(line.mean.groups for t in found.tables for line in t.lines),
        "margin": margin_words(found),
        "level": f"{found.level:g}".removeprefix("0"),
        "files": files,
        "fewest": FEWEST,
        **frame(),
    }


def _estimate(e: Estimate) -> dict[str, Any]:
    found: dict[str, Any] = finite(asdict(e))
    return found
