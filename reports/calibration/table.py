"""How the report's intervals and verdicts did on studies of known truth: the table, and what a study needs of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.parse import parse_json
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.calibration.checks import (
    COVERAGE,
    FALSE_EQUIVALENCE,
    FALSE_VERDICT,
    PLANTED,
    POWER,
    REAL_AA,
    CheckResult,
)
from fusion_workbench.reports.statistics.intervals import FEW_GROUPS
from fusion_workbench.system.files import read_small

TABLE = Path(__file__).with_name("calibration.json")
SCHEMA = 1
TITLES = {
    COVERAGE: "95 % intervals that hold the true difference",
    FALSE_EQUIVALENCE: "called equivalent at a true difference of exactly the margin",
    POWER: "called better at a true difference",
    FALSE_VERDICT: "studies of equals with any false better or worse",
    REAL_AA: "trained studies of aliases with any false better or worse",
    PLANTED: "trained studies that name the planted layers",
}


def document(rows: Sequence[CheckResult], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What ``calibration.json`` holds: ``facts`` of the run, then the rows."""
    return {"schema": SCHEMA, **facts, "passed": all(r.passed for r in rows), "rows": [r.plain() for r in rows]}


def markdown(table: Mapping[str, Any]) -> str:
    """The table for people. Coverage is folded: a line for replicates and clusters, with the range of its rows."""
    out: list[str] = []
    for check, title in TITLES.items():
        rows = [r for r in table["rows"] if r["check"] == check]
        if not rows:
            continue
        out += [
            f"### {title[0].upper()}{title[1:]}",
            "",
            "| study | rate | 95 % Monte Carlo | bar | |",
            "|---|---|---|---|---|",
        ]
        out += [f"| {' | '.join(line)} |" for line in (_folded(rows) if check == COVERAGE else map(_line, rows))]
        out.append("")
    return "\n".join(out)


def terminal_rows(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows for a terminal: check, study, rate, Monte-Carlo interval, bar, mark."""
    out: list[tuple[str, ...]] = []
    for check in TITLES:
        rows = [r for r in table["rows"] if r["check"] == check]
        out += [(check, *line) for line in (_folded(rows) if check == COVERAGE else map(_line, rows))]
    return out


def load(path: Path = TABLE) -> dict[str, Any]:
    """A table that was written.

    Raises:
        WorkbenchError: there is no file, it is none, or of another schema.
    """
    if not path.is_file():
        raise WorkbenchError(f"{path}: there is no such calibration table; workbench calibrate writes one.")
    try:
        table = parse_json(read_small(path))
        if table["schema"] == SCHEMA:
            return dict(table)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise WorkbenchError(f"{path} is no calibration table of schema {SCHEMA}; write one with workbench calibrate.")


@cache
def _shipped() -> dict[str, Any] | None:
    """The table that the package holds; None where its file is gone, which costs a report that section alone."""
    try:
        return load()
    except WorkbenchError:
        return None


def calibration_rows(analysis: Analysis, found: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What simulation says of studies like this one: of the nearest numbers of replicates and clusters simulated.

    Returns ``rows`` (each ``what``, ``rate``, ``low``, ``high``, ``bar``, and ``of``, what was simulated) and what the
    table is of; None for a study without replicates, or without a table.
    """
    replicates = len(analysis.core)
    if not replicates:
        return None
    table = _shipped() if found is None else found
    if table is None:
        return None
    groups = len(analysis.record.groups)
    sampled = groups >= FEW_GROUPS
    out = []
    for check in (COVERAGE, FALSE_VERDICT, FALSE_EQUIVALENCE, POWER, REAL_AA, PLANTED):
        rows = [r for r in table["rows"] if r["check"] == check]
        if check not in (REAL_AA, PLANTED):
            alike = [r for r in rows if r["setting"]["taken as"] == ("sampled" if sampled else "given")] or rows
            rows = _nearest(alike, "replicates", replicates)
            rows = _nearest(rows, "clusters", groups) if sampled else rows
        if rows:
            out.append(_summary(check, rows))
    return {"rows": out, "studies": table["studies"], "command": table["command"], "version": table["version"]}


def _nearest(rows: Sequence[Mapping[str, Any]], key: str, target: int) -> list[Mapping[str, Any]]:
    """Those whose setting is nearest; of two as near, the smaller, which is the harder."""
    values = sorted({r["setting"][key] for r in rows})
    chosen = min(values, key=lambda v: (abs(v - target), v), default=None)
    return [r for r in rows if r["setting"][key] == chosen]


def _summary(check: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row that did worst, and how many it is the worst of."""
    if check == POWER:
        worst = min(rows, key=lambda r: r["rate"] - (r["promised"] or 0))
    else:
        worst = (min if check in (COVERAGE, PLANTED) else max)(rows, key=lambda r: r["rate"])
    return {
        "what": TITLES[check],
        "rate": worst["rate"],
        "low": worst["low"],
        "high": worst["high"],
        "most": max(r["rate"] for r in rows) if check == COVERAGE and len(rows) > 1 else None,
        "count": worst["count"],
        "total": worst["total"],
        "bar": worst["bar"],
        "passed": all(r["passed"] for r in rows),
        "of": _study(worst["setting"]),
        "settings": len(rows),
    }


def _folded(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Coverage by replicates and clusters: the range over kinds of scores and mixes, and where it is widest."""
    by: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for r in rows:
        by.setdefault((r["setting"]["replicates"], r["setting"]["clusters"]), []).append(r)
    out: list[tuple[str, ...]] = []
    for (replicates, clusters), own in by.items():
        low, high = min(own, key=lambda r: r["rate"]), max(own, key=lambda r: r["rate"])
        what = f"{replicates} replicates, {clusters} clusters {own[0]['setting']['taken as']}; {len(own)} settings"
        rate = f"{_percent(low['rate'])} ({_kind(low)}) to {_percent(high['rate'])} ({_kind(high)})"
        mark = "✓" if all(r["passed"] for r in own) else "✗"
        out.append((what, rate, f"{_percent(low['low'])} to {_percent(high['high'])}", own[0]["bar"], mark))
    return out


def _line(r: Mapping[str, Any]) -> tuple[str, ...]:
    rate = f"{r['count']} of {r['total']} ({_percent(r['rate'])})"
    within = f"{_percent(r['low'])} to {_percent(r['high'])}"
    return (_study(r["setting"]), rate, within, r["bar"], "✓" if r["passed"] else "✗")


def _study(setting: Mapping[str, Any]) -> str:
    """A setting in words."""
    parts = []
    if "replicates" in setting:
        parts.append(f"{setting['replicates']} replicates")
    if "clusters" in setting:
        parts.append(f"{setting['clusters']} clusters {setting['taken as']}")
    if "scores" in setting:
        parts.append(f"{setting['scores']}, {setting['mix']} mix")
    parts += [f"looks {setting['looks']}"] if len(setting.get("looks", ())) > 1 else []
    parts += [str(setting[key]) for key in ("cells", "difference", "what") if key in setting]
    parts += [f"{n} comparison{'s' * (n > 1)}"] if (n := setting.get("comparisons")) else []
    return ", ".join(parts)


def _kind(r: Mapping[str, Any]) -> str:
    return f"{r['setting']['scores']}, {r['setting']['mix']} mix"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
