"""What happened inside the fusers: how far gates opened, where attention went."""

from __future__ import annotations

from typing import Any

from reports.records import Cell, StudyRecord
from reports.svg import ACCENT, INK, MARKERS, PAPER, WIDTH, Figure, canvas, finish, short
from reports.wording import number

_MOST_ROWS = 40  # rows of a figure; the tables have all


def gates(record: StudyRecord) -> Figure | None:
    """How far each gate has opened, a dot a replicate."""
    names = sorted({key for run in record.runs for key in run.metrics if key.startswith("gate/")})
    from matplotlib.ticker import FuncFormatter, NullLocator

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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
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
        )


def attention(record: StudyRecord) -> Figure | None:
    """Where fusers that attend look: the share of each level."""
    prefix = "attention_share/layer_"
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
        )


def _gate(key: str) -> str:
    return key.removeprefix("gate/").removesuffix("_rms")
