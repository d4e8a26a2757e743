"""Which layers decide: PED-ANOVA over the study's cells, beside what is lost without a layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.fresh_replicates import LeftOut, judge_fresh_replicates
from fusion_workbench.reports.figures.similarity import similarity_figure, similarity_json, stage_words
from fusion_workbench.reports.figures.svg import ACCENT, MUTED, PAPER, WIDTH, Figure, canvas, finish
from fusion_workbench.reports.reading.layers import Importance
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.csv_text import csv_text
from fusion_workbench.reports.words.wording import listed
from fusion_workbench.schema.names import OVERALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED = 16  # layers, up to which each bar has its number

_BARS = (
    "Bars: the layer's share of what sets the best cells apart from all (PED-ANOVA). Hollow: the best read it less "
    "often than all do, so it matters by its absence."
)
_POINTS = (
    "Points: what the layer adds to the best fusion, the full one minus the same retrained without it, with 95 % "
    "intervals; above the line the layer helps, and a filled point's interval says so."
)


def left_out(analysis: Analysis) -> tuple[LeftOut, ...]:
    """Retraining without one layer at a time; none where the study did not."""
    found = judge_fresh_replicates(analysis)
    return found.left_out if found else ()


def layer_drawings(analysis: Analysis) -> list[Figure | None]:
    """The figures of the layers beyond their curves."""
    record = analysis.record
    found = record.importance
    shares, avoided = (found.layers, found.avoided) if found else ({}, frozenset[int]())
    return [
        importance_figure(shares, left_out(analysis), analysis.measures, avoided=avoided),
        similarity_figure(record.similarity) if record.similarity else None,
    ]


def layer_page(analysis: Analysis, answer: Answer) -> dict[str, Any]:
    """What the templates say of the layers, in words."""
    record = analysis.record
    lost = left_out(analysis)
    found = record.importance
    shares, avoided = (found.layers, found.avoided) if found else ({}, frozenset[int]())
    said = [importance_words(found)] if found else []
    fresh = judge_fresh_replicates(analysis)
    if lost and fresh is not None and fresh.fusion is not None:
        many = f"{fresh.replicates} fresh replicates"
        said.append(
            f"Points: {fresh.fusion.name}, the best fusion, trained again without each of its layers on {many}."
        )
        said.append(disagreement(shares, lost, analysis.measures, avoided=avoided))
    return {
        "importance_said": " ".join(filter(None, said)),
        "stages_said": stage_words(record.similarity, answer.cell) if record.similarity else "",
    }


def layers_json(analysis: Analysis) -> dict[str, Any]:
    """The same as plain values."""
    record = analysis.record
    return {
        "similarity": record.similarity and similarity_json(record.similarity),
        "importance": record.importance and asdict(record.importance),
        "left_out": [asdict(one) for one in left_out(analysis)],
    }


# --- importance -----------------------------------------------------------------------------------------------------


def importance_figure(
    ped_anova: Mapping[int, float],
    left_out: Sequence[LeftOut],
    measures: Sequence[Measure],
    *,
    avoided: Collection[int] = (),
) -> Figure | None:
    """PED-ANOVA's share of each layer as bars, above what each layer adds to the best fusion, a panel a measure.

    Args:
        ped_anova: layer → share; empty where there is none.
        left_out: in any order; empty where nothing was retrained.
        measures: their units and directions; those that ``left_out`` does not name are left out.
        avoided: layers that the best cells read less often than all cells do; their bars are hollow.
    """
    from matplotlib.ticker import MaxNLocator

    panels = [m for m in measures if any(one.measure == m.name for one in left_out)]
    layers = sorted({*ped_anova, *(one.layer for one in left_out)})
    if not layers:
        return None
    heights = ([1.7] if ped_anova else []) + [1.25] * len(panels)
    tall = sum(heights) + 0.22 * len(heights) + 0.35
    with canvas(WIDTH, tall) as figure:
        top = tall - 0.1
        for number, height in enumerate(heights):
            axes = figure.add_axes((0.085, (top - height) / tall, 0.895, height / tall))
            top -= height + 0.22
            axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
            axes.set_xticks(range(layers[0], layers[-1] + 1, 1 if layers[-1] <= 24 else 2))
            axes.tick_params(axis="x", labelbottom=number == len(heights) - 1)
            if ped_anova and number == 0:
                _bars(axes, ped_anova, avoided)
            else:
                _contributions(axes, panels[number - bool(ped_anova)], left_out)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_xlabel("layer")
        said = []
        if ped_anova:
            ranked = sorted(ped_anova, key=lambda n: -ped_anova[n])
            said.append("PED-ANOVA: " + ", ".join(f"layer {n} {100 * ped_anova[n]:.0f} %" for n in ranked) + ".")
        said += [f"Without it, {m.name}: " + "; ".join(_effects(m, left_out)) + "." for m in panels]
        return finish(
            figure,
            "importance",
            "Which layers decide",
            " ".join([_BARS] * bool(ped_anova) + [_POINTS] * bool(panels)),
            " ".join(said),
            csv_text(
                ["what", "layer", "value", "low", "high"],
                [
                    *(["PED-ANOVA share", layer, share, None, None] for layer, share in ped_anova.items()),
                    *(
                        [f"{one.measure}: whole minus without", one.layer, e.mean, e.low, e.high]
                        for one in left_out
                        for e in (one.contribution,)
                    ),
                ],
            ),
        )


def _bars(axes: Axes, ped_anova: Mapping[int, float], avoided: Collection[int]) -> None:
    for layer, share in ped_anova.items():
        hollow = layer in avoided
        axes.bar(layer, 100 * share, 0.62, color=PAPER if hollow else ACCENT, edgecolor=ACCENT, lw=1.1)
        if len(ped_anova) <= _NUMBERED:
            axes.annotate(f"{100 * share:.0f}", (layer, 100 * share), (0, 3), textcoords="offset points", ha="center")
    axes.set_ylim(0, 118 * max(0.01, *ped_anova.values()))
    axes.set_ylabel("share, %")


def _contributions(axes: Axes, measure: Measure, left_out: Sequence[LeftOut]) -> None:
    factor = measure.sign * measure.unit.factor
    axes.axhline(0, color=MUTED, lw=0.9)
    for one in left_out:
        if one.measure == measure.name:
            e = one.contribution
            clear = _signed_contribution(one, measure)[0] > 0
            axes.errorbar(one.layer, factor * e.mean, yerr=abs(factor) * e.half, color=ACCENT, elinewidth=1.2)
            axes.plot(one.layer, factor * e.mean, "o", color=ACCENT, mfc=ACCENT if clear else PAPER, ms=6, mew=1.2)
    axes.margins(y=0.15)
    axes.grid(axis="y")
    axes.set_ylabel("\n".join(filter(None, [measure.name, measure.unit.difference])))


def _effects(measure: Measure, left_out: Sequence[LeftOut]) -> Iterator[str]:
    for one in sorted(left_out, key=lambda o: o.layer):
        if one.measure == measure.name:
            yield f"layer {one.layer} {measure.unit.size(one.contribution)}"


def _signed_contribution(one: LeftOut, measure: Measure) -> tuple[float, float, float]:
    """Low, mean and high of what the layer adds, more is better."""
    e, sign = one.contribution, measure.sign
    return min(sign * e.low, sign * e.high), sign * e.mean, max(sign * e.low, sign * e.high)


def importance_words(found: Importance) -> str:
    """What PED-ANOVA says, on how many cells it rests, and what it cannot say."""
    if not found.layers:
        return f"PED-ANOVA over the study's cells is left out: {found.reason or 'the cells read the same layers'}."
    ranked = sorted(found.layers, key=lambda n: (-found.layers[n], n))[:3]
    rest = [
        f"{word} {100 * share:.0f} %"
        for word, share in (("the strategy", found.strategy), ("the query", found.query))
        if share is not None
    ]
    named = [
        f"layer {n} ({100 * found.layers[n]:.0f} %{', by its absence' if n in found.avoided else ''})" for n in ranked
    ]
    return (
        f"Over {found.cells} cells ({found.values or 'validation'}), what sets the best {found.top} apart is, most of "
        f"all, {listed(named)}{'; ' + listed(rest) if rest else ''}. That describes the cells tried, without an "
        f"interval{'; of so few it is a hint' if found.cells < 30 else ''}."
    )


def disagreement(
    ped_anova: Mapping[int, float],
    left_out: Sequence[LeftOut],
    measures: Sequence[Measure],
    *,
    avoided: Collection[int] = (),
) -> str:
    """One sentence on whether PED-ANOVA and retraining put the same layer first; empty where one of them is missing.

    Only layers that were left out once can be compared, on the last of ``measures`` (the mean of several tasks).
    """
    measure = next((m for m in reversed(measures) if any(o.measure == m.name for o in left_out)), None)
    if measure is None:
        return ""
    known = {o.layer: o for o in left_out if o.measure == measure.name}
    shared = [n for n in known if n in ped_anova]
    if not shared:
        return ""
    first = max(shared, key=lambda n: (ped_anova[n], -n))
    best = max(shared, key=lambda n: (_signed_contribution(known[n], measure)[1], -n))

    def effect(layer: int) -> str:
        e = known[layer].contribution
        low, mean, high = _signed_contribution(known[layer], measure)
        flipped = Estimate(**{**e.__dict__, "mean": mean, "low": low, "high": high})
        return f"{measure.unit.size(flipped)} on {_called(measure)}"

    low, _, high = _signed_contribution(known[first], measure)
    if first in avoided:
        return (
            f"Of the layers left out, PED-ANOVA puts layer {first} first because the best cells avoid it; retraining "
            f"finds that it adds {effect(first)}."
        )
    if high < 0:
        return (
            f"They disagree: PED-ANOVA puts layer {first} first of the layers left out, and retraining does better "
            f"without it (it adds {effect(first)})."
        )
    if low <= 0:
        return (
            f"They disagree: PED-ANOVA puts layer {first} first of the layers left out, and retraining shows no clear "
            f"loss without it (it adds {effect(first)})."
        )
    if best != first:
        apart = _signed_contribution(known[best], measure)[0] > high
        how = "They disagree" if apart else "They differ, within the intervals"
        return (
            f"{how}: PED-ANOVA puts layer {first} first of the layers left out (it adds {effect(first)}), retraining "
            f"layer {best} ({effect(best)})."
        )
    return f"They agree: of the layers left out both put layer {first} first (it adds {effect(first)})."


def _called(measure: Measure) -> str:
    return "the mean of the tasks" if measure.name == OVERALL else measure.name
