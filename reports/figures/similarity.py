"""How alike the layers are: CKA as a heat map, with the stages that it suggests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_workbench.reports.figures.svg import ACCENT, FONT, INK, RULE, WIDTH, Figure, canvas, finish
from fusion_workbench.reports.reading.layers import Similarity
from fusion_workbench.reports.statistics.stages import ALIKE, Stage, stages
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.wording import listed
from fusion_workbench.schema.records import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED = 16  # layers, up to which each square has its number
_STEPS = 24  # of the colour


def similarity_figure(similarity: Similarity) -> Figure:
    """CKA between all pairs of layers, the stages boxed."""
    n = len(similarity.layers)
    cell = min(0.42, 6.0 / n)
    found = stages(similarity.matrix)
    tall = cell * n + 0.42
    with canvas(WIDTH, tall) as figure:
        axes = figure.add_axes((0.06, 0.06 / tall, cell * n / WIDTH, cell * n / tall))
        _squares(axes, similarity.matrix)
        if n <= _NUMBERED:
            size = min(FONT, 72 * cell / 3.2)
            for row, column in np.ndindex(n, n):
                value = similarity.matrix[row, column]
                text = "–" if np.isnan(value) else "1" if row == column else f"{value:.2f}".replace("0.", ".", 1)
                axes.text(column, row, text, ha="center", va="center", fontsize=size)
        for stage in found:
            a, b = stage.start - 0.5, stage.end - 0.5
            axes.plot([a, b, b, a, a], [a, a, b, b, a], color=INK, lw=1.8, clip_on=False, solid_joinstyle="miter")
            words = _stage(stage, similarity.layers)
            axes.text(n - 0.05, (a + b) / 2, words, va="center", clip_on=False)
            axes.plot([n - 0.45, n - 0.2], [(a + b) / 2] * 2, color=RULE, lw=0.7, clip_on=False, zorder=0)
        step = 1 if n <= 26 else 2
        places, names = range(0, n, step), [str(layer) for layer in similarity.layers[::step]]
        axes.set_xticks(places, names)
        axes.set_yticks(places, names)
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(n - 0.5, -0.5)
        axes.tick_params(axis="both", length=0, labeltop=True, labelbottom=False)
        axes.set_ylabel("layer")
        for spine in axes.spines.values():
            spine.set_visible(False)
        return finish(
            figure,
            "similarity",
            "How alike the layers are",
            f"Linear CKA, 1 the same up to rotation and scale, 0 nothing in common; unbiased over minibatches of "
            f"{similarity.tokens:,} tokens from {similarity.images} validation images"
            f"{', each token normalised as a projector reads it' if similarity.normalised else ''}. Boxes: the fewest "
            f"stages of neighbouring layers that are at least {ALIKE:g} alike on average. Where similarity falls "
            "evenly with distance, a stage's border is a convenience.",
            _similar_words(similarity, found),
            csv_text(
                ["layer", *map(str, similarity.layers)],
                [[layer, *row] for layer, row in zip(similarity.layers, similarity.matrix.tolist(), strict=True)],
            ),
        )


def similarity_json(similarity: Similarity) -> dict[str, Any]:
    """Matrix and stages as plain values."""
    layers = similarity.layers
    return {
        "layers": list(layers),
        "matrix": similarity.matrix.tolist(),
        "images": similarity.images,
        "tokens": similarity.tokens,
        "stages": [
            {"first": layers[s.start], "last": layers[s.end - 1], "within": s.within} for s in stages(similarity.matrix)
        ],
    }


def _squares(axes: Axes, matrix: np.ndarray[Any, Any]) -> None:
    """The heat map as one path for each step of colour: small, however many layers."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    level = np.nan_to_num(np.clip(matrix, 0, 1) * _STEPS).round().astype(int)
    for step in range(1, _STEPS + 1):
        corners = [
            [
                (x - 0.48, y - 0.48),
                (x + 0.48, y - 0.48),
                (x + 0.48, y + 0.48),
                (x - 0.48, y + 0.48),
                (x - 0.48, y - 0.48),
            ]
            for y, x in np.argwhere(level == step)
        ]
        if corners:
            path = Path.make_compound_path(*(Path(c, closed=True) for c in corners))
            axes.add_patch(PathPatch(path, color=ACCENT, alpha=0.68 * (step / _STEPS) ** 1.5, lw=0))


def stage_words(similarity: Similarity, cell: Cell | None) -> str:
    """The stages as a sentence, and which of them the recommended cell reads."""
    found = stages(similarity.matrix)
    if not found:
        return ""
    layers = similarity.layers
    if len(found) == 1:
        said = f"All layers from {layers[0]} to {layers[-1]} form one stage."
    else:
        said = f"The layers fall into {len(found)} stages: {listed([_span(s, layers) for s in found])}."
    if cell is not None and len(found) > 1:
        read = [layers.index(layer) for layer in cell.selection.layers if layer in layers]
        held = [_span(s, layers) for s in found if any(s.start <= place < s.end for place in read)]
        if held:
            said += f" The recommended cell ({cell.name}) reads from {listed(held)}."
    return said


def _stage(stage: Stage, layers: Sequence[int]) -> str:
    alone = stage.end - stage.start == 1
    return (
        f"{_span(stage, layers)}" if alone else f"{_span(stage, layers)}: {stage.within:.2f} alike".replace("0.", ".")
    )


def _span(stage: Stage, layers: Sequence[int]) -> str:
    first, last = layers[stage.start], layers[stage.end - 1]
    return f"{first}" if first == last else f"{first}–{last}"


def _similar_words(similarity: Similarity, found: Sequence[Stage]) -> str:
    layers, matrix = similarity.layers, similarity.matrix
    if len(layers) < 2:
        return f"Layer {listed([str(layer) for layer in layers])} alone."
    near = [(float(matrix[i, i + 1]), i) for i in range(len(layers) - 1) if np.isfinite(matrix[i, i + 1])]
    said = [f"Stages: {listed([_stage(s, layers) for s in found])}."]
    said.append("Neighbours: " + ", ".join(f"{layers[i]} and {layers[i + 1]} {v:.2f}" for v, i in near) + ".")
    said.append(f"First and last, {layers[0]} and {layers[-1]}: {matrix[0, -1]:.2f}.")
    return " ".join(said)
