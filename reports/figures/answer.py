"""The one figure that shows the answer: the recommended cell minus every baseline, with intervals."""

from __future__ import annotations

from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis, Comparison
from fusion_workbench.reports.figures.svg import ACCENT, INK, MUTED, PAPER, WIDTH, Figure, canvas, finish, short
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.units import Unit
from fusion_workbench.schema.names import BASELINES, MATCHED_CONTROLS, Verdict

_ROW = 0.36  # inches
_HEAD = ("difference", "low", "high", "unit", "verdict")


def answer_figure(analysis: Analysis, answer: Answer) -> Figure | None:
    """A panel a measure, a row a baseline; filled where the verdict tells the two apart."""
    rows = [
        b for b in BASELINES + MATCHED_CONTROLS if any(c.baseline == b and c.difference for c in answer.comparisons)
    ]
    if answer.cell is None or not rows:
        return None
    found = {(c.measure, c.baseline): c for c in answer.comparisons}
    measures = [m for m in analysis.measures if any((m.name, b) in found for b in rows)]
    left, right, gap = (0.235 if set(rows) & {*MATCHED_CONTROLS} else 0.165), 0.985, 0.022
    wide = (right - left - gap * (len(measures) - 1)) / len(measures)
    tall = _ROW * len(rows) + 0.15
    height = tall + 0.85
    units = {m.name: m.unit for m in measures}
    shared = len(set(units.values())) == 1  # then the panels have one scale
    said: list[str] = []
    with canvas(WIDTH, height) as figure:
        for k, measure in enumerate(measures):
            axes = figure.add_axes((left + k * (wide + gap), 0.5 / height, wide, tall / height))
            unit = measure.unit
            ends = _ends([c for c in found.values() if shared or c.measure == measure.name], unit)
            axes.set_xlim(*(reversed(ends) if measure.minimised else ends))
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.axvline(0, color=MUTED, lw=0.9, zorder=1)
            axes.grid(axis="x")
            axes.spines["left"].set_visible(False)
            axes.set_yticks(range(len(rows)), rows if k == 0 else [""] * len(rows), color=INK)
            axes.set_title(short(measure.name, 24), loc="left", color=INK)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
            for y, baseline in enumerate(rows):
                comparison = found.get((measure.name, baseline))
                if comparison is None:
                    continue
                d = comparison.difference
                if d is None:
                    side = "left" if abs(ends[1]) > abs(ends[0]) else "right"  # where there is more room
                    away = (6 if side == "left" else -6, 0)  # points, from the line at 0
                    axes.annotate(
                        "the baseline itself",
                        (0, y),
                        away,
                        textcoords="offset points",
                        color=MUTED,
                        va="center",
                        ha=side,
                    )
                    said.append(f"{measure.name}, {baseline}: the baseline itself")
                    continue
                colour = _colour(comparison)
                at = d.mean * unit.factor
                axes.plot([d.low * unit.factor, d.high * unit.factor], [y, y], color=colour, lw=1.4, zorder=2)
                fill = colour if comparison.verdict in (Verdict.BETTER, Verdict.WORSE) else PAPER
                axes.plot(at, y, "o", color=colour, mfc=fill, ms=6.5, mew=1.2, zorder=3)
                said.append(f"{measure.name}, {baseline}: {comparison.verdict}, {unit.effect(d)}")
        figure.text((left + right) / 2, 0.1 / height, _difference(measures), color=MUTED, ha="center")
        turned = " Where less is better the axis runs the other way." if any(m.minimised for m in measures) else ""
        return finish(
            figure,
            "verdict",
            f"{answer.cell.name} minus each baseline",
            f"Test difference with its 95 % interval; right of 0 the recommended cell is better.{turned} Filled: the "
            "verdict tells the two apart after correction for the number of comparisons. Open: it does not (yet).",
            f"{_difference(measures).capitalize()}, with 95 % intervals. {'; '.join(said)}.",
            csv_text(
                ["measure", "baseline", "cell of the baseline", *_HEAD],
                [_row(analysis, m, c) for m in measures for b in rows if (c := found.get((m.name, b)))],
            ),
        )


def _row(analysis: Analysis, measure: Measure, c: Comparison) -> list[object]:
    factor, d = measure.unit.factor, c.difference
    numbers = [round(factor * value, 6) for value in (d.mean, d.low, d.high)] if d else [None] * 3
    return [c.measure, c.baseline, analysis.record.cell(c.against).label, *numbers, measure.unit.difference, c.verdict]


def _ends(comparisons: list[Comparison], unit: Unit) -> tuple[float, float]:
    """Of an axis that holds these intervals and 0."""
    edges = [v * unit.factor for c in comparisons if (d := c.difference) for v in (d.low, d.high)]
    low, high = min(0.0, *edges), max(0.0, *edges)
    room = 0.06 * (high - low) or 0.01 * unit.factor
    return low - room, high + room


def _difference(measures: list[Measure]) -> str:
    words = {m.unit.difference for m in measures}
    return ", ".join(filter(None, ["difference on test", words.pop() if len(words) == 1 else ""]))


def _colour(comparison: Comparison) -> str:
    return ACCENT if comparison.verdict == Verdict.BETTER else INK if comparison.verdict == Verdict.WORSE else MUTED
