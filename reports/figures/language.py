"""Drawings of a study of language models: scores with and without the image, and rank agreement with probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fusion_workbench.reports.against.probes import Probes, RankAgreement
from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.image_dependence import LOOKS, ImageDependence, image_dependence
from fusion_workbench.reports.figures.scores import columns, distinct_slug, name_points, numbers, room
from fusion_workbench.reports.figures.svg import (
    ACCENT,
    CHARACTER,
    INK,
    MUTED,
    PAPER,
    WIDTH,
    Figure,
    canvas,
    finish,
    short,
)
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.wording import plural
from fusion_workbench.schema.names import NO_IMAGE_KINDS, NoImage
from fusion_workbench.schema.records import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MplFigure

_ROW = 0.42  # inches
_PANELS = 4  # beside each other
_MOST = 12  # cells that are drawn
_MARKS: dict[str, tuple[str, float]] = {
    NoImage.SHUFFLED: ("^", 0.17),
    NoImage.BLANK: ("s", 0.34),
}  # marker, place below the real score


def language_figures(analysis: Analysis, answer: Answer, probes: Probes | None) -> list[Figure]:
    """All that the study has data for; none of a study of probes."""
    made = [image_dependence_figure(analysis, answer)]
    if probes is not None and probes.analysis is not None:
        made += [probe_figure(analysis, probes.analysis, pair, answer) for pair in probes.pairs]
    return [figure for figure in made if figure is not None]


def image_dependence_figure(analysis: Analysis, answer: Answer) -> Figure | None:
    """A panel a measure, a row a cell: real, shuffled and blank images, and the best constant answer as a line."""
    found = image_dependence(analysis)
    measures = [m for m in analysis.measures if any(name == m.name for _, name in found)]
    measures = [m for m in measures if m == analysis.objective] + [m for m in measures if m != analysis.objective]
    cells = shown(analysis, answer, found)
    if not measures or not cells:
        return None
    wide, down = min(_PANELS, len(measures)), -(-len(measures) // _PANELS)
    left, right, gap = min(0.3, 0.03 + 0.0083 * max(len(short(c.label)) for c in cells)), 0.985, 0.022
    each = (right - left - gap * (wide - 1)) / wide
    tall = _ROW * len(cells) + 0.1
    height = down * (tall + 0.62) + 0.36
    with canvas(WIDTH, height) as figure:
        for k, measure in enumerate(measures):
            at = height - 0.36 - (k // _PANELS) * (tall + 0.62) - 0.26 - tall
            axes = figure.add_axes((left + (k % _PANELS) * (each + gap), at / height, each, tall / height))
            _dependence_panel(axes, measure, [found.get((c.id, measure.name)) for c in cells])
            names = [short(c.label) for c in cells] if k % _PANELS == 0 else [""] * len(cells)
            axes.set_yticks(range(len(cells)), names, color=INK)
            if answer.cell is not None and answer.cell in cells and k % _PANELS == 0:
                axes.get_yticklabels()[cells.index(answer.cell)].set_color(ACCENT)
        _legend(figure, left, 1 - 0.13 / height, any(m.chance is not None for m in measures))
        said = "; ".join(_described(found[c.id, m.name]) for m in measures for c in cells if (c.id, m.name) in found)
        left_out = len({cell for cell, _ in found}) - len(cells)
        rest = f" {left_out} more {plural('cell', left_out)} in the table and its CSV." if left_out else ""
        return finish(
            figure,
            "sight",
            "Test scores with the image, with another example's and with a blank one",
            "Means over replicates with 95 % intervals; those of the controls are over replicates alone. Filled: real "
            "images beat both controls after correction. Dotted: the best constant answer, which no image is needed "
            f"for.{rest}",
            f"By cell and measure. {said}.",
            csv_text(["measure", "cell", "images", "unit", "mean", "low", "high", "verdict"], _dependence_rows(found)),
        )


def shown(analysis: Analysis, answer: Answer, found: Mapping[tuple[str, str], ImageDependence]) -> list[Cell]:
    """The recommended cell, then the best on validation, as many as can be read."""
    ranked = analysis.ranked(analysis.objective.name)
    order = [*([answer.cell] if answer.cell else []), *ranked, *analysis.record.cells]
    known = {cell for cell, _ in found}
    return [analysis.record.cell(c) for c in dict.fromkeys(c.id for c in order) if c in known][:_MOST]


def _dependence_panel(axes: Axes, measure: Measure, rows: Sequence[ImageDependence | None]) -> None:
    unit, values = measure.unit, []
    if measure.chance is not None:
        axes.axvline(measure.chance * unit.factor, color=MUTED, lw=0.9, ls=(0, (1, 2)), zorder=1)
        values.append(measure.chance * unit.factor)
    for y, dependence in enumerate(rows):
        if dependence is None:
            continue
        fill = ACCENT if dependence.word == LOOKS else PAPER
        values += _dot(axes, measure, dependence.real, y - 0.17, "o", ACCENT, fill)
        for kind, no_image in dependence.no_image_baselines.items():
            marker, place = _MARKS[kind]
            values += _dot(axes, measure, no_image.score, y - 0.17 + place, marker, MUTED, PAPER)
    axes.set_xlim(*room(values, unit))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    less = ", less is better" if measure.minimised else ""
    axes.set_title(short(unit.after(measure.name) + less, 30), loc="left", color=INK)


def _dot(axes: Axes, measure: Measure, e: Estimate, y: float, marker: str, colour: str, fill: str) -> list[float]:
    """A mean with its interval, where it has one; returns what must be in sight."""
    low, mean, high = (measure.unit.factor * v for v in (e.low, e.mean, e.high))
    if low == low:  # no interval of one replicate's score
        axes.plot([low, high], [y, y], color=colour, lw=1.2 if marker == "o" else 0.8, zorder=2)
    size = 6 if marker == "o" else 4.6
    axes.plot(mean, y, marker, color=colour, mfc=fill, ms=size, mew=1.1, zorder=3)
    return [v for v in (low, mean, high) if v == v] if marker == "o" else [mean]


def _legend(figure: MplFigure, left: float, y: float, chance: bool) -> None:
    """Along the top."""
    axes, page = figure.axes[0], figure.transFigure
    marks = [("o", "real images", ACCENT, ACCENT), ("^", "shuffled", MUTED, PAPER), ("s", "blank", MUTED, PAPER)]
    x = left
    for marker, words, colour, fill in marks:
        axes.plot([x], [y], marker, transform=page, color=colour, mfc=fill, ms=5.5, mew=1.1, clip_on=False)
        figure.text(x + 0.011, y, words, va="center", color=MUTED)
        x += 0.04 + CHARACTER * len(words) / (72 * WIDTH)
    if chance:
        axes.plot([x, x + 0.028], [y, y], transform=page, color=MUTED, lw=0.9, ls=(0, (1, 2)), clip_on=False)
        figure.text(x + 0.036, y, "best constant answer", va="center", color=MUTED)


def _described(dependence: ImageDependence) -> str:
    unit = dependence.measure.unit
    parts = [f"{kind} {unit.score(c.score.mean)}" for kind, c in dependence.no_image_baselines.items()]
    cell = f"{dependence.measure.name}, {dependence.cell.label}"
    return f"{cell}: real {unit.score(dependence.real.mean)}, {', '.join(parts)}"


def _dependence_rows(found: Mapping[tuple[str, str], ImageDependence]) -> list[list[object]]:
    rows: list[list[object]] = []
    for dependence in found.values():
        unit, where = dependence.measure.unit, [dependence.measure.name, dependence.cell.label]
        rows.append([*where, "real", unit.symbol, *_plain(dependence.real, unit.factor), dependence.word])
        for kind in NO_IMAGE_KINDS:
            if (c := dependence.no_image_baselines.get(kind)) is not None:
                rows.append([*where, kind, unit.symbol, *_plain(c.score, unit.factor), c.verdict])
        if dependence.measure.chance is not None:
            chance_score = round(unit.factor * dependence.measure.chance, 6)
            rows.append([*where, "constant answer", unit.symbol, chance_score, None, None, None])
    return rows


def _plain(e: Estimate, factor: float) -> list[object]:
    return [round(factor * v, 6) if v == v else None for v in (e.mean, e.low, e.high)]


def probe_figure(analysis: Analysis, probes: Analysis, pair: RankAgreement, answer: Answer) -> Figure:
    """Every shared cell: the probes' score to the right, the language models' up, each with its interval."""
    mine, theirs = pair.measure, pair.probe
    points = [(c, probes.means[c.id, theirs.name], analysis.means[c.id, mine.name]) for c in pair.cells]
    with canvas(WIDTH, 4.4) as figure:
        axes = figure.add_axes((0.075, 0.125, 0.905, 0.845))
        xs = [theirs.unit.factor * v for _, x, _ in points for v in (x.low, x.high) if v == v]
        ys = [mine.unit.factor * v for _, _, y in points for v in (y.low, y.high) if v == v]
        low, high = room(xs or [theirs.unit.factor * x.mean for _, x, _ in points], theirs.unit)
        axes.set_xlim(low, high + 0.22 * (high - low))  # names stand to the right of their points
        axes.set_ylim(*room(ys or [mine.unit.factor * y.mean for _, _, y in points], mine.unit))
        for c, x, y in points:
            chosen = pair.pick is not None and c.id == pair.pick.id
            own = pair.best is not None and c.id == pair.best.id
            colour = ACCENT if chosen or own else MUTED
            at = (x.mean * theirs.unit.factor, y.mean * mine.unit.factor)
            half = (x.half * theirs.unit.factor, y.half * mine.unit.factor)
            axes.errorbar(*at, half[1], half[0], fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.4, zorder=1)
            axes.plot(*at, "o", color=colour, mfc=ACCENT if own else PAPER, ms=6.5, mew=1.2, zorder=3)
        name_points(
            axes,
            [
                (x.mean * theirs.unit.factor, y.mean * mine.unit.factor, short(c.label), _picked(pair, c))
                for c, x, y in points
            ],
            above=True,
        )
        axes.set_xlabel(theirs.unit.after(f"probes, {theirs.name}: test {theirs.shown}"))
        axes.set_ylabel(mine.unit.after(f"language models, {mine.name}"))
        said = "; ".join(f"{c.label}: {theirs.unit.score(x.mean)} and {mine.unit.score(y.mean)}" for c, x, y in points)
        heads = [f"{who} {column}" for who, m in (("probes", theirs), ("own", mine)) for column in columns(m.unit)]
        return finish(
            figure,
            f"probes-{distinct_slug(mine.name)}",
            f"{mine.name}: what probes foretold",
            "A dot a cell, both test scores with 95 % intervals. Blue: the pick of the probes' validation (open) and "
            "that of the language models' (filled).",
            f"Scores of probes and of language models. {said}.",
            csv_text(
                ["cell", *heads],
                [[c.label, *numbers(theirs.unit, x), *numbers(mine.unit, y)] for c, x, y in points],
            ),
        )


def _picked(pair: RankAgreement, cell: Cell) -> bool:
    return cell.id in {c.id for c in (pair.pick, pair.best) if c is not None}
