"""The report's drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion_workbench.core.text import slug
from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.figures.fusers import attention, gates, heads, opening
from fusion_workbench.reports.figures.layer_importance import layer_drawings
from fusion_workbench.reports.figures.svg import (
    ACCENT,
    CHARACTER,
    FONT,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    RULE,
    WIDTH,
    Figure,
    canvas,
    finish,
    line_labels,
    short,
)
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.units import SHARE, Unit
from fusion_workbench.reports.words.wording import count, listed
from fusion_workbench.schema.names import BASELINES, OBJECTIVE, SINGLE_LAYER, CostMetric
from fusion_workbench.schema.records import Cell

_CHANCE = " Chance: a guess that looks at no image, fitted to the training images."


def figures(analysis: Analysis, answer: Answer) -> list[Figure]:
    """All that the study has data for."""
    tasks = [m for m in analysis.measures if any(t.name == m.name for t in analysis.record.tasks)]
    made = [layer_curve(analysis, answer, m) for m in tasks]
    made += layer_drawings(analysis)
    made += [cost_figure(analysis, answer, m) for m in tasks]
    made += [draw(analysis.record) for draw in (gates, opening, attention, heads)]
    made += [training(analysis, answer)]
    return [figure for figure in made if figure is not None]


def distinct_slug(words: str) -> str:
    """As :func:`core.text.slug`, and different for different words."""
    plain = slug(words)
    return plain if plain == words else f"{plain}-{sum(map(ord, words)) % 9973}"


def layer_curve(analysis: Analysis, answer: Answer, measure: Measure) -> Figure | None:
    """Each layer alone, with intervals; every baseline, and the recommended cell, as a labelled line."""
    singles = sorted((c for c in analysis.record.cells if SINGLE_LAYER in c.baselines), key=lambda c: c.query)
    points = [(c.query, analysis.means[c.id, measure.name]) for c in singles if (c.id, measure.name) in analysis.means]
    if not points:
        return None
    unit = measure.unit
    with canvas(WIDTH, 3.7) as figure:
        axes = figure.add_axes((0.065, 0.13, 0.60, 0.83))  # narrower once the labels are known
        x = [layer for layer, _ in points]
        y = np.array([e.mean for _, e in points]) * unit.factor
        bars = np.array([e.half for _, e in points]) * unit.factor
        axes.errorbar(x, y, yerr=bars, color=ACCENT, marker="o", ms=5, elinewidth=1.1, zorder=3)
        lines: list[tuple[float, str, str]] = []
        data: list[list[object]] = [[str(layer), layer, *numbers(unit, e)] for layer, e in points]
        by_cell: dict[str, list[str]] = {}
        for name in BASELINES:
            if (found := analysis.baselines.get((measure.name, name))) is not None:
                by_cell.setdefault(found, []).append(name)
        for cell_id, names in by_cell.items():
            value = analysis.means[cell_id, measure.name].mean
            cell = analysis.record.cell(cell_id)
            what = f" ({cell.query})" if cell.single else ""
            axes.axhline(value * unit.factor, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            lines.append((value * unit.factor, f"{' = '.join(names)}{what}  {unit.score(value)}", INK))
            data.append([" = ".join(names), None, *numbers(unit, analysis.means[cell_id, measure.name])])
        if (
            answer.cell is not None
            and answer.cell.id not in by_cell
            and (answer.cell.id, measure.name) in analysis.means
        ):
            value = analysis.means[answer.cell.id, measure.name].mean
            axes.axhline(value * unit.factor, color=ACCENT, lw=1.4, zorder=1)
            words = f"recommended: {short(answer.cell.name)}  {unit.score(value)}"
            lines.append((value * unit.factor, words, ACCENT))
            data.append(["recommended", None, *numbers(unit, analysis.means[answer.cell.id, measure.name])])
        if measure.chance is not None:
            axes.axhline(measure.chance * unit.factor, color=MUTED, lw=0.9, ls=(0, (1, 2)), zorder=1)
            lines.append((measure.chance * unit.factor, f"chance  {unit.score(measure.chance)}", MUTED))
            data.append(["chance", None, round(measure.chance * unit.factor, 6), None, None])
        depth = int(analysis.record.encoder_info.get("depth") or max(x))
        axes.set_xlim(-0.4, depth + 0.4)
        axes.set_xticks(range(0, depth + 1, 1 if depth <= 16 else 2))
        axes.set_xlabel("layer (0: the embeddings)")
        axes.set_ylabel(_axis(measure))
        axes.set_ylim(*room([*(y - bars), *(y + bars), *(v for v, _, _ in lines)], unit))
        axes.grid(axis="y")
        widest = max((len(text) for _, text, _ in lines), default=0)
        axes.set_position((0.065, 0.13, min(0.60, 0.91 - CHARACTER * widest / (72 * WIDTH)), 0.83))
        line_labels(axes, lines)
        best = max(points, key=lambda p: measure.sign * p[1].mean)
        said = "; ".join(f"layer {layer}: {unit.score(e.mean)} {unit.half(e)}" for layer, e in points)
        return finish(
            figure,
            f"curve-{distinct_slug(measure.name)}",
            f"{measure.name}: every layer alone",
            f"Test {measure.shown} of single layers with 95 % intervals. Lines: the baselines"
            f"{' and the recommended cell' if answer.cell is not None else ''}. "
            "Equals signs join baselines that are the same cell; the best single layer was picked on validation."
            f"{_CHANCE if measure.chance is not None else ''}",
            f"{_axis(measure)}, by layer. {said}. Best at layer {best[0]}. "
            f"Lines: {listed([text for _, text, _ in lines])}.",
            csv_text(["point or line", "layer", *columns(unit)], data),
        )


def cost_figure(analysis: Analysis, answer: Answer, measure: Measure) -> Figure | None:
    """Score against FLOPs an image, the Pareto front marked."""
    points: list[tuple[float, Estimate, Cell]] = []
    for cell in analysis.record.cells:
        flops = analysis.record.mean_metric(cell.id, CostMetric.FLOPS)
        if flops and (cell.id, measure.name) in analysis.means:
            points.append((flops, analysis.means[cell.id, measure.name], cell))
    if not points:
        return None
    front = pareto([(x, measure.sign * e.mean) for x, e, _ in points])
    markers = _markers(analysis.record.cells)
    named = _worth_naming(analysis, answer, measure, [points[i][2].id for i in front])
    unit = measure.unit
    with canvas(WIDTH, 4.3) as figure:
        axes = figure.add_axes((0.065, 0.12, 0.915, 0.77))
        axes.set_xscale("log")
        low, high = min(x for x, _, _ in points), max(x for x, _, _ in points)
        wide = max(np.log10(high / low), 0.3)
        axes.set_xlim(low / 10 ** (0.06 * wide), high * 10 ** (0.34 * wide))
        edges = [v * unit.factor for _, e, _ in points for v in (e.low, e.high)]
        axes.set_ylim(*room(edges, unit))
        steps = sorted((points[i][0], points[i][1].mean * unit.factor) for i in front)
        axes.plot(*zip(*steps, strict=True), color=ACCENT, lw=1.1, drawstyle="steps-post", zorder=1)
        for i, (x, e, cell) in enumerate(points):
            colour, at = ACCENT if i in front else MUTED, e.mean * unit.factor
            if i in front or cell.id in named:
                axes.errorbar(x, at, yerr=e.half * unit.factor, color=colour, elinewidth=0.9, zorder=2)
            fill = ACCENT if i in front else PAPER
            axes.plot(x, at, markers[cell.strategy], color=colour, mfc=fill, ms=6.5, mew=1.1, zorder=3)
        name_points(
            axes,
            [
                (x, e.mean * unit.factor, short(c.label), i in front)
                for i, (x, e, c) in enumerate(points)
                if c.id in named
            ],
        )
        for k, (strategy, marker) in enumerate(markers.items()):  # a legend along the top, out of the data's way
            place = 0.065 + k * min(0.16, 0.9 / len(markers))
            axes.plot(
                [place], [0.945], marker, transform=figure.transFigure, color=MUTED, mfc=PAPER, ms=6.5, clip_on=False
            )
            figure.text(place + 0.013, 0.945, short(strategy, 18), va="center", color=MUTED)
        _count_axis(axes, low, high)
        axes.set_xlabel("FLOPs an image, fusion and projector, forward (log scale)")
        axes.set_ylabel(_axis(measure))
        axes.grid(axis="y")
        said = "; ".join(
            f"{points[i][2].label}: {unit.score(points[i][1].mean)} at {count(points[i][0])} FLOPs" for i in front
        )
        data = [
            [c.label, c.strategy, x, *numbers(unit, e), "yes" if i in front else "no"]
            for i, (x, e, c) in enumerate(points)
        ]
        return finish(
            figure,
            f"cost-{distinct_slug(measure.name)}",
            f"{measure.name}: score against cost",
            "Filled and joined: the Pareto front of the means, no cell cheaper and better. Neighbours on it may still "
            "be within the noise of each other. The encoder is the same for all and not counted.",
            f"{len(points)} cells by FLOPs an image and {_axis(measure)}. On the Pareto front: {said}.",
            csv_text(["cell", "strategy", "FLOPs an image", *columns(unit), "on the front"], data),
        )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) points that no other undercuts and outscores, the cheapest first."""
    out: list[int] = []
    best = -np.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            out.append(i)
            best = points[i][1]
    return out


def training(analysis: Analysis, answer: Answer) -> Figure | None:
    """Validation objective by epoch: every cell, the recommended one and the best baseline named."""
    curves: list[tuple[Cell, dict[int, float]]] = []
    for cell in analysis.record.cells:
        rows = [dict(r.history.get(OBJECTIVE, ())) for r in analysis.record.finals(cell.id)]
        epochs = set.intersection(*(set(row) for row in rows)) if rows else set()
        if len(epochs) > 1:
            curves.append((cell, {e: float(np.mean([row[e] for row in rows])) for e in sorted(epochs)}))
    if not curves:
        return None
    last, unit = _last_epoch(curves), analysis.objective.unit
    with canvas(WIDTH, 3.3) as figure:
        axes = figure.add_axes((0.065, 0.145, 0.66, 0.82))
        lines: list[tuple[float, str, str]] = []
        for cell, curve in curves:
            chosen = answer.cell is not None and cell.id == answer.cell.id
            base = answer.best_baseline is not None and cell.id == answer.best_baseline.id and not chosen
            colour, width = (ACCENT, 2.0) if chosen else (INK, 1.4) if base else (MUTED, 0.7)
            x = [e + 1 for e in curve if e <= last]
            y = [unit.factor * v for e, v in curve.items() if e <= last]
            axes.plot(x, y, color=colour, lw=width, alpha=1 if chosen or base else 0.55, zorder=3 if chosen else 2)
            if chosen or base:
                lines.append((y[-1], f"{short(cell.name)}{'' if chosen else ' (baseline)'}", colour))
        axes.margins(x=0.02)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit.after("validation objective"))
        axes.grid(axis="y")
        line_labels(axes, lines)
        ends = "; ".join(f"{c.label}: {unit.score(list(v.values())[-1])}" for c, v in curves)
        data = [[c.label, epoch + 1, round(unit.factor * v, 6)] for c, curve in curves for epoch, v in curve.items()]
        return finish(
            figure,
            "training",
            "Validation objective by epoch",
            "Mean over replicates, a line a cell. A line that still climbs at the end would have liked more steps.",
            f"{len(curves)} cells over {last + 1} epochs. At the end: {ends}.",
            csv_text(["cell", "epoch", unit.after("validation objective")], data),
        )


# --- small things ---------------------------------------------------------------------------------------------------


def _last_epoch(curves: Sequence[tuple[Cell, Mapping[int, float]]]) -> int:
    return max(max(curve) for _, curve in curves)


def columns(unit: Unit) -> list[str]:
    return [unit.after("mean"), "low", "high"]


def numbers(unit: Unit, e: Estimate) -> list[float]:
    """Mean and 95 % interval in the unit that is drawn."""
    return [round(unit.factor * value, 6) for value in (e.mean, e.low, e.high)]


def _axis(measure: Measure) -> str:
    """What a score axis shows."""
    return measure.unit.after(f"{measure.name}: test {measure.shown}") + (", less is better" * measure.minimised)


def room(values: Sequence[float], unit: Unit) -> tuple[float, float]:
    known = [v for v in values if np.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if unit is SHARE:  # an interval may leave the scale; the axis need not
        low, high = max(low, 0.0), min(high, unit.factor)
    pad = 0.06 * max(high - low, 0.01 * unit.factor)
    return low - pad, high + pad


def _markers(cells: Sequence[Cell]) -> dict[str, str]:
    names = list(dict.fromkeys(c.strategy for c in cells))
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def _worth_naming(analysis: Analysis, answer: Answer, measure: Measure, front: Sequence[str]) -> set[str]:
    """The front, the recommended, the baselines, the best of each strategy: as many as can be read."""
    named = set(front) | {cell for (m, _), cell in analysis.baselines.items() if m == measure.name}
    if answer.cell is not None:
        named.add(answer.cell.id)
    for strategy in dict.fromkeys(c.strategy for c in analysis.record.cells):
        own = [c for c in analysis.record.cells if c.strategy == strategy and (c.id, measure.name) in analysis.means]
        if own:
            named.add(max(own, key=lambda c: measure.sign * analysis.means[c.id, measure.name].mean).id)
    return named


def name_points(axes: object, points: Sequence[tuple[float, float, str, bool]], above: bool = False) -> None:
    """Names beside points, moved up or down until none covers another; ``above``: clear of an interval."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    placed: list[tuple[float, float, float]] = []  # left, right, height in points of the page
    to_page = axes.transData
    scale = 72 / axes.figure.dpi
    for x, y, text, on_front in sorted(points, key=lambda p: -p[1]):
        left, height = (np.asarray(to_page.transform((x, y))) * scale).tolist()
        left += 8
        right = left + CHARACTER * len(text)
        start = height
        height += 8 if on_front or above else 0  # clear of the front's line, which runs on to the right
        while any(left < r and right > q and abs(height - h) < 1.25 * FONT for q, r, h in placed):
            height -= 1
        placed.append((left, right, height))
        colour = ACCENT if on_front else INK
        arrow = (
            {"arrowstyle": "-", "color": RULE, "lw": 0.7, "shrinkA": 0, "shrinkB": 3}
            if abs(start - height) > 9
            else None
        )
        axes.annotate(
            text,
            (x, y),
            xytext=(8, height - start),
            textcoords="offset points",
            color=colour,
            va="center",
            arrowprops=arrow,
        )


def _count_axis(axes: object, low: float, high: float) -> None:
    """1, 2 and 5 of each power of ten, written 20 M rather than 2·10⁷."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    assert isinstance(axes, Axes)
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 2)
    axes.xaxis.set_major_locator(FixedLocator([m * 10.0**p for p in powers for m in (1, 2, 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
