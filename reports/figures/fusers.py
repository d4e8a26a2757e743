"""What happened inside the fusers: how far gates opened and when, where attention went, how far it looked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from fusion_workbench.reports.figures.svg import (
    ACCENT,
    CHARACTER,
    FONT,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    WIDTH,
    Figure,
    canvas,
    finish,
    short,
)
from fusion_workbench.reports.reading.layers import Inside
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.example_scores import Floats
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.wording import number
from fusion_workbench.schema.names import ATTENTION_SHARE, GATE
from fusion_workbench.schema.records import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTILES = (5, 25, 50, 75, 95)  # of a gate's channels
_MOST_ROWS = 40  # rows of a figure; the tables have all
_MOST_EPOCHS = 200  # points of a curve
_RIBBONS = ((5, 95, 0.16), (25, 75, 0.3))  # percentiles of the channels, and how dark


def gates(record: StudyRecord) -> Figure | None:
    """How far each gate has opened, a dot a replicate."""
    names = sorted({key for run in record.runs for key in run.metrics if key.startswith(GATE)})
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    cells = [c for c in record.cells if any(key in r.metrics for r in record.finals(c.id) for key in names)][
        :_MOST_ROWS
    ]
    if not cells:
        return None
    rows = max(0.36 * len(cells), 0.3 * len(names))
    tall = rows + 0.55
    with canvas(WIDTH, tall) as figure:
        axes = figure.add_axes((0.27, 0.5 / tall, 0.56, rows / tall))
        for k, key in enumerate(names):
            filled = k % 2 == 0
            for row, cell in enumerate(cells):
                values = [max(r.metrics[key], 1e-5) for r in record.finals(cell.id) if key in r.metrics]
                offset = (k - (len(names) - 1) / 2) * 0.32
                look: dict[str, Any] = {"color": ACCENT, "mfc": ACCENT if filled else PAPER, "ms": 5, "mew": 1.1}
                axes.plot(values, [row + offset] * len(values), MARKERS[k // 2 % len(MARKERS)], lw=0, **look)
            height = 1 - (k + 0.5) * 0.25 / rows
            axes.plot([1.03], [height], MARKERS[k // 2 % len(MARKERS)], transform=axes.transAxes, clip_on=False, **look)
            axes.text(1.05, height, _gate(key), transform=axes.transAxes, va="center")
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        digits = next((d for d in (1, 2) if len({number(tick, d) for tick in ticks}) == len(ticks)), 3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, digits)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks(range(len(cells)), [short(c.label, 34) for c in cells])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_xlabel("root mean square of the gate at the end (log scale; it starts at 0)")
        said = "; ".join(
            f"{c.label}: "
            + ", ".join(f"{_gate(k)} {v:.3g}" for k in names if (v := record.mean_metric(c.id, k)) is not None)
            for c in cells
        )
        return finish(
            figure,
            "gates",
            "Gates at the end of training",
            "A dot a replicate. A gate near zero means that the fuser's output was hardly added: that cell measured "
            "the query layer, not the fusion.",
            f"Mean root mean square by cell. {said}.",
            csv_text(
                ["cell", "gate", "replicate", "root mean square"],
                [
                    [c.label, _gate(key), r.replicate, r.metrics[key]]
                    for c in cells
                    for key in names
                    for r in record.finals(c.id)
                    if key in r.metrics
                ],
            ),
        )


def attention(record: StudyRecord) -> Figure | None:
    """Where fusers that attend look: the share of each level."""
    prefix = ATTENTION_SHARE
    shares: list[tuple[Cell, dict[int, float]]] = []
    for cell in record.cells:
        names = {key for run in record.finals(cell.id) for key in run.metrics if key.startswith(prefix)}
        found = {
            int(n): record.mean_metric(cell.id, f"{prefix}{n}")
            for k in names
            if (n := k.removeprefix(prefix)).isdigit()
        }
        known = {layer: value for layer, value in found.items() if value is not None}
        if known:
            shares.append((cell, known))
    shares = shares[:_MOST_ROWS]
    if not shares:
        return None
    layers = sorted({layer for _, own in shares for layer in own})
    tall = 0.36 + 0.32 * len(shares)
    with canvas(WIDTH, tall) as figure:
        axes = figure.add_axes((0.27, 0.04 / tall, min(0.7, 0.075 * len(layers)), 0.32 * len(shares) / tall))
        for row, (_, own) in enumerate(shares):
            for layer, value in own.items():
                column = layers.index(layer)
                axes.barh(
                    row, 0.94, left=column - 0.47, height=0.88, color=ACCENT, alpha=min(0.65, 0.08 + 0.75 * value)
                )
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center")
        axes.set_xticks(range(len(layers)), [f"layer {n}" if len(layers) < 10 else str(n) for n in layers])
        axes.set_yticks(range(len(shares)), [short(c.label, 34) for c, _ in shares])
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.set_ylim(len(shares) - 0.5, -0.5)
        axes.tick_params(axis="both", length=0, labelcolor=INK)
        axes.tick_params(axis="x", labeltop=True, labelbottom=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        said = "; ".join(
            f"{c.label}: " + ", ".join(f"layer {n} {100 * v:.0f} %" for n, v in sorted(own.items()))
            for c, own in shares
        )
        return finish(
            figure,
            "attention",
            "Share of attention that each level gets",
            "Per cent, mean over replicates, tokens and heads. Empty: the cell does not read that layer.",
            f"{said}.",
            csv_text(
                ["cell", "layer", "share, %"],
                [[c.label, n, 100 * v] for c, own in shares for n, v in sorted(own.items())],
            ),
        )


def opening(record: StudyRecord) -> Figure | None:
    """Gates over training: how the sizes of their channels spread, a panel a cell and gate."""
    from matplotlib.ticker import MaxNLocator

    shown = [(cell, own) for cell, own in _with_insides(record) if any(i.gates for i in own)]
    names = sorted({name for _, own in shown for inside in own for name in inside.gates})
    if not names:
        return None
    wide, high, head = 0.86 / len(names), 1.15, 0.62
    tall = len(shown) * (high + head) + 0.45
    said = []
    with canvas(WIDTH, tall) as figure:
        tops = dict.fromkeys(names, 0.0)
        drawn: list[tuple[Axes, str]] = []
        for row, (cell, own) in enumerate(shown):
            bottom = tall - (row + 1) * (high + head)
            figure.text(0.005, (bottom + high + 0.36) / tall, short(cell.label, 60), color=INK, va="center")
            for column, name in enumerate(names):
                gates = [i.gates[name] for i in own if name in i.gates]
                if not gates:
                    continue
                axes = figure.add_axes((0.065 + column * (wide + 0.04), bottom / tall, wide - 0.06, high / tall))
                ends = _ribbons(axes, gates, cell.options.get("gate_init"))
                tops[name] = max(tops[name], ends[-1])
                drawn.append((axes, name))
                same = _same_channels(gates)
                words = name if same is None else f"{name} (seeds agree {same:.2f})".replace("-", "−")
                axes.set_title(words, loc="left", color=MUTED, pad=4)
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
                axes.yaxis.set_major_locator(MaxNLocator(3))
                axes.tick_params(axis="x", labelbottom=row == len(shown) - 1)
                if row == len(shown) - 1:
                    axes.set_xlabel("epoch")
                said.append(
                    f"{cell.label}, {name}: at the end 5 % of the channels below {ends[0]:.2g}, half below "
                    f"{ends[1]:.2g}, 95 % below {ends[2]:.2g}"
                    + ("" if same is None else f"; rank correlation of the channels between replicates {same:.2f}")
                )
        for axes, name in drawn:
            axes.set_ylim(0, 1.06 * max(tops[name], 1e-3))
            axes.grid(axis="y")
        return finish(
            figure,
            "opening",
            "Gates over training, by channel",
            "Size of a gate's channels at the end of each epoch: the line is the median channel, the bands hold the "
            "middle half and nine tenths of the channels of all replicates. One scale a gate. Seeds agree: the rank "
            "correlation of the channels' sizes between replicates at the end, 1 where all open the same channels.",
            ". ".join(said) + ".",
            csv_text(
                ["cell", "gate", "epoch", *(f"{q} % of channels below" for q in _QUANTILES)],
                [
                    [cell.label, name, epoch + 1, *np.percentile(np.abs(sizes), _QUANTILES).tolist()]
                    for cell, own in shown
                    for name in names
                    if (gates := [i.gates[name] for i in own if name in i.gates])
                    for epoch, sizes in enumerate(zip(*gates, strict=False))
                ],
            ),
        )


def heads(record: StudyRecord) -> Figure | None:
    """Attention and sampling offsets by level and head, of each cell's first replicate."""
    shown = [(cell, own[0]) for cell, own in _with_insides(record) if own[0].attention is not None]
    if not shown:
        return None
    most = max(i.attention.shape[1] for _, i in shown if i.attention is not None)
    far = max((float(i.offsets.max()) for _, i in shown if i.offsets is not None), default=0.0)
    side = min(0.36, 3.5 / most)  # inches of a square
    rows = [0.29 * len(i.levels) + 0.6 for _, i in shown]
    tall = sum(rows) + 0.1
    said = []
    with canvas(WIDTH, tall) as figure:
        top = tall - 0.05
        for (cell, inside), height in zip(shown, rows, strict=True):
            assert inside.attention is not None
            figure.text(0.005, (top - 0.12) / tall, short(cell.label, 70), color=INK, va="center")
            across = inside.attention.shape[1]
            for column, values in enumerate((inside.attention, inside.offsets)):
                if values is None:
                    continue
                place = (0.085 + 0.5 * column, (top - height + 0.12) / tall, side * across / WIDTH)
                axes = figure.add_axes((*place, 0.29 * len(values) / tall))
                _tiles(axes, values, 1.0 if column == 0 else far, 100 if column == 0 else 1, side)
                axes.set_yticks(range(len(values)), [f"layer {level}" for level in inside.levels])
                axes.set_title(("attention, % of each head", "offsets, cells")[column], loc="left", color=MUTED, pad=3)
            top -= height
            shares = "; ".join(
                f"layer {level} {_range(100 * row)} %"
                for level, row in zip(inside.levels, inside.attention, strict=True)
            )
            offsets = inside.offsets
            away = "" if offsets is None else ", offsets in cells " + "; ".join(
                f"layer {level} {_range(row, 1)}" for level, row in zip(inside.levels, offsets, strict=True)
            )  # fmt: skip
            said.append(f"{cell.label} (replicate {inside.replicate}): attention {shares}{away}")
        return finish(
            figure,
            "heads",
            "Attention and reach by level and head",
            "A column a head. Left: each level's share of the head's attention, mean over images and queries. Right, "
            "of deformable attention: root mean square distance of a head's samples from their own cell. Of the first "
            "replicate: heads of different seeds are not the same heads.",
            ". ".join(said) + ".",
            csv_text(
                ["cell", "replicate", "layer", "head", "attention, %", "offset, cells"],
                [
                    [cell.label, inside.replicate, level, head, 100 * float(share), _of(inside.offsets, row, head)]
                    for cell, inside in shown
                    if inside.attention is not None
                    for row, level in enumerate(inside.levels)
                    for head, share in enumerate(inside.attention[row])
                ],
            ),
        )


def _of(values: Floats | None, row: int, column: int) -> float | None:
    return None if values is None else float(values[row, column])


def _with_insides(record: StudyRecord) -> list[tuple[Cell, tuple[Inside, ...]]]:
    return [(cell, record.insides[cell.id]) for cell in record.cells if cell.id in record.insides]


def _ribbons(axes: Axes, gates: Sequence[Floats], start: Any) -> tuple[float, float, float]:
    """Draws the spread of |γ| over channels and replicates; its 5th, 50th and 95th percentile at the end."""
    epochs = min(len(one) for one in gates)
    sizes = np.abs(np.concatenate([one[:epochs] for one in gates], axis=1))  # [epochs, channels · replicates]
    at = np.unique(np.linspace(0, epochs - 1, min(epochs, _MOST_EPOCHS)).round().astype(int))
    x, spread = at + 1, np.percentile(sizes[at], _QUANTILES, axis=1)
    if isinstance(start, int | float):
        x, spread = np.r_[0, x], np.c_[np.full(5, abs(start)), spread]
    by_percentile = dict(zip(_QUANTILES, spread, strict=True))
    for low, high, alpha in _RIBBONS:
        axes.fill_between(x, by_percentile[low], by_percentile[high], color=ACCENT, alpha=alpha, lw=0)
    axes.plot(x, by_percentile[50], color=ACCENT)
    axes.set_xlim(0 if x[0] == 0 else x[0] - 0.5, x[-1] + 0.02 * len(x))
    return float(spread[0, -1]), float(spread[2, -1]), float(spread[4, -1])


def _same_channels(gates: Sequence[Floats]) -> float | None:
    """Mean rank correlation of |γ| at the end between replicates; None of one replicate, one channel or no spread."""
    ends = [np.abs(one[-1]) for one in gates]
    if len(ends) < 2 or any(np.ptp(end) == 0 or len(end) != len(ends[0]) or len(end) < 3 for end in ends):
        return None
    ranks = np.corrcoef([stats.rankdata(end) for end in ends])
    return float(np.mean([ranks[a, b] for a, b in combinations(range(len(ends)), 2)]))


def _tiles(axes: Axes, values: Floats, full: float, factor: float, side: float) -> None:
    """``[levels, heads]`` as squares of ACCENT, darkest at ``full``, with their numbers."""
    decimals = 0 if factor > 1 else 1
    longest = max(len(f"{factor * v:.{decimals}f}") for v in values.flat)
    size = min(FONT, FONT * 72 * side / (1.15 * CHARACTER * longest))
    for (row, column), value in np.ndenumerate(values):
        share = min(1.0, float(value) / full) if full > 0 else 0.0
        axes.barh(row, 0.94, left=column - 0.47, height=0.9, color=ACCENT, alpha=0.06 + 0.59 * share)
        axes.text(column, row, f"{factor * value:.{decimals}f}", ha="center", va="center", fontsize=size)
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xticks([])
    axes.tick_params(axis="both", length=0, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _range(values: Floats, decimals: int = 0) -> str:
    low, high = (f"{v:.{decimals}f}" for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _gate(key: str) -> str:
    return key.removeprefix(GATE).removesuffix("_rms")
