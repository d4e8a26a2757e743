r"""The report's tables for a paper: booktabs, captions, labels, notes. ``\usepackage{booktabs}`` is all they need.

``tables.tex`` holds a table a task (strategies by selections) and one of the recommended cell against the baselines;
``\input{tables}`` sets them all. Strategies are rows; of many selections, four stand beside each other and the next
four below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fusion_workbench.core.text import slug
from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis, Comparison
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.render import tables
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.tex import escape
from fusion_workbench.reports.words.wording import listed, plural
from fusion_workbench.schema.names import BASELINES, Baseline, Verdict
from fusion_workbench.schema.records import Cell
from fusion_workbench.version import __version__

PANEL = 4  # selections beside each other
LONG = 26  # letters of a name, above which it is set on several lines
MARKS: dict[str, str] = {
    Verdict.BETTER: r"\uparrow",
    Verdict.WORSE: r"\downarrow",
    Verdict.EQUIVALENT: "=",
    Verdict.SAME: r"\approx",
    Verdict.NONE: r"\circ",
    Verdict.ITSELF: r"\diamond",
}


def latex(analysis: Analysis, said: Answer) -> str:
    """The whole file. A study without numbers gives a file that sets nothing."""
    record = analysis.record
    tasks = [m for m in analysis.measures if any(t.name == m.name for t in record.tasks)]
    parts = [made for m in tasks if (made := _strategies(analysis, m, said.cell))]
    parts += [made for made in [_recommended(analysis, said)] if made]
    head = (
        f"% Study {_comment(record.name)}, written by fusion workbench {__version__}. Needs \\usepackage{{booktabs}}."
    )
    return "\n\n".join([head, *parts]) + "\n"


def _strategies(analysis: Analysis, measure: Measure, recommended: Cell | None) -> str:
    """Score ± half width of every strategy on every selection; empty where nothing has a score."""
    columns, rows = tables.grid(analysis, measure.name, recommended)
    if not rows:
        return ""
    shown: list[tables.ScoreEntry] = [e for row in rows for e in row.entries if e is not None]
    if not shown:
        return ""
    lines = []
    for start in range(0, len(rows), PANEL):
        panel = rows[start : start + PANEL]
        lines += [r"\addlinespace[1ex]\midrule"] if start else []
        lines.append(line(["layers", *(_wide(r.levels) for r in panel)]))
        lines.append(line(["query", *(_wide(str(r.query)) for r in panel)]))
        lines.append(r"\midrule")
        for number, column in enumerate(columns):
            entries = [row.entries[number] for row in panel]
            if any(entries):
                lines.append(line([_name(column), *(_entry(e) for e in entries)]))
    best = analysis.baselines.get((measure.name, Baseline.BEST_SINGLE))
    reference = f", {escape(analysis.record.cell(best).name)}" if best else ""
    unit = f" ({escape(measure.unit.symbol)})" if measure.unit.symbol else ""
    less = "; less is better" if measure.minimised else ""
    caption = (
        f"Test {escape(measure.shown)}{unit} on {escape(measure.name)} by strategy and layers, $\\pm$ half the width "
        f"of the 95\\,\\% interval over {_over(analysis, shown)}{less}."
    )
    notes = [_legend([e.mark.verdict for e in shown if e.mark], f"the best single layer{reference}")]
    notes += [r"\textbf{Bold}: recommended, picked on validation."] if any(e.recommended for e in shown) else []
    wide = min(PANEL, len(rows))
    return table(analysis, measure.name, caption, "@{}l" + r"r@{\,$\pm$\,}l" * wide + "@{}", lines, notes)


def _recommended(analysis: Analysis, said: Answer) -> str:
    """The recommended cell's score, and its difference to every baseline: a measure two lines."""
    cell = said.cell
    if cell is None:
        return ""
    found = {(c.measure, c.baseline): c for c in said.comparisons}
    known = [b for b in BASELINES if any(baseline == b for _, baseline in found)]
    measured = [(m, e) for m in analysis.measures if (e := analysis.means.get((cell.id, m.name))) is not None]
    if not known or not measured:
        return ""
    lines = [line(["", "score", *(escape(b) for b in known)]), r"\midrule"]
    for number, (measure, e) in enumerate(measured):
        unit, row = measure.unit, [found.get((measure.name, b)) for b in known]
        lines += [r"\addlinespace"] if number else []
        symbol = f" ({escape(unit.symbol)})" if unit.symbol else ""
        lines.append(
            line([escape(measure.name) + symbol, numeral(unit.score(e.mean)), *(_effect(measure, c) for c in row)])
        )
        lines.append(
            line(
                [
                    "",
                    interval(measure.unit.score, e),
                    *(interval(measure.unit.signed, c.difference if c else None) for c in row),
                ]
            )
        )
    differences = "points" if all(m.unit.difference == "points" for m, _ in measured) else "each measure's unit"
    caption = (
        f"{escape(cell.name)}, recommended on validation, against each baseline on test: difference in {differences} "
        "[95\\,\\% interval], paired by seed and image."
    )
    notes = [_legend([c.verdict for c in found.values()], "the baseline of the column")]
    notes.append("Intervals are not corrected for the number of comparisons; verdicts are.")
    return table(analysis, "recommended", caption, "@{}l" + "c" * (1 + len(known)) + "@{}", lines, notes)


def table(analysis: Analysis, name: str, caption: str, columns: str, lines: Sequence[str], notes: Sequence[str]) -> str:
    label = f"tab:{slug(analysis.record.name)}-{slug(name)}"
    out = [
        r"\begin{table}[tbp]",
        r"\centering\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{6pt}",
        rf"\caption{{{caption}}}",
        rf"\label{{{label}}}",
        r"\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip",
        rf"\parbox{{\linewidth}}{{\scriptsize {' '.join([*notes, *_bounds(analysis)])}}}",
        r"\end{table}",
    ]
    return "\n".join(out)


def _bounds(analysis: Analysis) -> Iterator[str]:
    """What bounds every number of the table."""
    record = analysis.record
    if analysis.conditional_on_groups:
        number = len(record.groups)
        yield f"Conditional on the {number} {escape(plural(record.group_name, number))} of the test images."
    if not record.complete:
        yield "The study is not complete."


def _legend(verdicts: Sequence[str], reference: str) -> str:
    """The marks that occur, in words."""
    words: dict[str, str] = {
        Verdict.SAME: "not distinguishable",
        Verdict.NONE: "no verdict yet",
        Verdict.ITSELF: "is that baseline",
    }
    used = [f"${MARKS[word]}$ {words.get(word, word)}" for word in MARKS if word in verdicts]
    return f"Against {reference}, corrected for all comparisons: {', '.join(used)}." if used else ""


def _over(analysis: Analysis, shown: Sequence[tables.ScoreEntry]) -> str:
    """``5 seeds and 1000 images``."""
    seeds = sorted({e.replicates for e in shown})
    spread = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    images = max((e.examples for e in analysis.means.values()), default=0)
    return listed([f"{spread} seed{'s' * (seeds[-1] > 1)}", f"{images} image{'s' * (images > 1)}"])


def _name(column: tables.StrategyColumn) -> str:
    detail = "query only" if column.strategy == "deep_only" else column.detail
    name = f"{column.strategy} ({detail})" if detail else column.strategy
    return escape(name) if len(name) <= LONG else rf"\parbox[t]{{3.4cm}}{{\raggedright {escape(name)}\strut}}"


def _entry(entry: tables.ScoreEntry | None) -> str:
    if entry is None:
        return _wide(r"\textendash{}", text=False)
    score, half = escape(entry.score), escape(entry.half.removeprefix("± "))
    if entry.recommended:
        score, half = rf"\textbf{{{score}}}", rf"\textbf{{{half}}}"
    return f"{score} & {half}{_mark(entry.mark.verdict) if entry.mark else ''}"


def _effect(measure: Measure, c: Comparison | None) -> str:
    if c is None:
        return r"\textendash{}"
    return (numeral(measure.unit.signed(c.difference.mean)) if c.difference else "") + _mark(c.verdict)


def interval(write: Callable[[float], str], e: Estimate | None) -> str:
    return rf"{{\scriptsize [{numeral(write(e.low))}, {numeral(write(e.high))}]}}" if e else ""


def _mark(verdict: str) -> str:
    return f"$^{{{MARKS[verdict]}}}$"


def numeral(text: str) -> str:
    return rf"\ensuremath{{{text.replace('−', '-')}}}" if text[:1] in "+−" else escape(text)


def _wide(content: str, text: bool = True) -> str:
    return rf"\multicolumn{{2}}{{c}}{{{escape(content) if text else content}}}"


def line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _comment(text: str) -> str:
    """On one line, in ASCII."""
    return " ".join(text.encode("ascii", "replace").decode().split())
