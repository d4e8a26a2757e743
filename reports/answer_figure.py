"""The one figure that shows the answer: the recommended cell minus every baseline, with intervals."""

from __future__ import annotations

from reports.answer import Answer
from reports.comparison import BASELINES, Analysis, Comparison
from reports.statistics import BETTER, WORSE
from reports.svg import ACCENT, INK, MUTED, PAPER, WIDTH, Figure, canvas, finish, short
from reports.wording import POINTS, effect

_ROW = 0.36  # inches


def answer_figure(analysis: Analysis, answer: Answer) -> Figure | None:
    """A panel a measure, a row a baseline; filled where the verdict tells the two apart."""
    rows = [b for b in BASELINES if any(c.baseline == b and c.difference for c in answer.comparisons)]
    if answer.cell is None or not rows:
        return None
    found = {(c.measure, c.baseline): c for c in answer.comparisons}
    measures = [m for m in analysis.measures if any((m.name, b) in found for b in rows)]
    left, right, gap = 0.165, 0.985, 0.022
    wide = (right - left - gap * (len(measures) - 1)) / len(measures)
    tall = _ROW * len(rows) + 0.15
    height = tall + 0.85
    edges = [v * POINTS for c in found.values() if (d := c.difference) for v in (d.low, d.high)]
    low, high = min(0.0, *edges), max(0.0, *edges)
    room = 0.06 * (high - low) or 1.0
    said: list[str] = []
    with canvas(WIDTH, height) as figure:
        for k, measure in enumerate(measures):
            axes = figure.add_axes((left + k * (wide + gap), 0.5 / height, wide, tall / height))
            axes.set_xlim(low - room, high + room)
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
                    axes.text(0, y, " the baseline itself", color=MUTED, va="center")
                    said.append(f"{measure.name}, {baseline}: the baseline itself")
                    continue
                colour = _colour(comparison)
                at = d.mean * POINTS
                axes.plot([d.low * POINTS, d.high * POINTS], [y, y], color=colour, lw=1.4, zorder=2)
                fill = colour if comparison.verdict in (BETTER, WORSE) else PAPER
                axes.plot(at, y, "o", color=colour, mfc=fill, ms=6.5, mew=1.2, zorder=3)
                said.append(f"{measure.name}, {baseline}: {comparison.verdict}, {effect(d)}")
        figure.text((left + right) / 2, 0.1 / height, "difference on test, points", color=MUTED, ha="center")
        return finish(
            figure,
            "verdict",
            f"{answer.cell.name} minus each baseline",
            "Test difference with its 95 % interval; right of 0 the recommended cell scores higher. Filled: the "
            "verdict tells the two apart after correction for the number of cells. Open: it does not (yet).",
            f"Differences in points with 95 % intervals. {'; '.join(said)}.",
        )


def _colour(comparison: Comparison) -> str:
    return {BETTER: ACCENT, WORSE: INK}.get(comparison.verdict, MUTED)
