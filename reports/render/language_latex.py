"""Tables of a study of language models for a paper: with and without the image, rank agreement with probes."""

from __future__ import annotations

from fusion_workbench.reports.against.probes import Probes, RankAgreement, trust_sentence
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.analysis.image_dependence import NoImageBaseline, image_dependence
from fusion_workbench.reports.render.latex import MARKS, interval, line, numeral, table
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.tex import escape
from fusion_workbench.reports.words.units import Unit
from fusion_workbench.reports.words.wording import pvalue, signed
from fusion_workbench.schema.names import NO_IMAGE_KINDS


def language_latex(analysis: Analysis, probes: Probes | None) -> str:
    """Both tables, behind those of :func:`reports.render.latex.latex`; empty for a study of probes."""
    parts = [t for t in (_image_dependence(analysis), _agreement(analysis, probes)) if t]
    return "".join(f"\n{part}\n" for part in parts)


def _image_dependence(analysis: Analysis) -> str:
    """Real, blank and shuffled images of every cell on what cells are picked by."""
    measure = analysis.objective
    found = [dependence for (_, name), dependence in image_dependence(analysis).items() if name == measure.name]
    if not found:
        return ""
    lines = [line(["", "real", *NO_IMAGE_KINDS]), r"\midrule"]
    for dependence in found:
        no_image_baselines = [dependence.no_image_baselines.get(kind) for kind in NO_IMAGE_KINDS]
        lines.append(
            line(
                [
                    escape(dependence.cell.label),
                    _score(measure.unit, dependence.real),
                    *(_no_image_baseline(measure.unit, c) for c in no_image_baselines),
                ]
            )
        )
    unit = f" ({escape(measure.unit.symbol)})" if measure.unit.symbol else ""
    caption = (
        f"Test score{unit} on {escape(measure.name)} with the image, with a blank one and with another example's, "
        "$\\pm$ half the width of the 95\\,\\% interval; of the controls over replicates alone."
    )
    notes = ["Marks: real images against the control, paired by replicate, corrected for all cells and both controls."]
    used = {c.verdict for dependence in found for c in dependence.no_image_baselines.values()}
    notes.append(", ".join(f"${MARKS[word]}$ {word}" for word in MARKS if word in used) + ".")
    if measure.chance is not None:
        notes.append(f"The best constant answer has {escape(measure.unit.score(measure.chance))}.")
    return table(analysis, "image", caption, "@{}lrll@{}", lines, notes)


def _score(unit: Unit, e: Estimate) -> str:
    half = rf"\,$\pm$\,{escape(unit.half(e).removeprefix('± '))}" if e.half == e.half else ""
    return f"{numeral(unit.score(e.mean))}{half}"


def _no_image_baseline(unit: Unit, c: NoImageBaseline | None) -> str:
    return r"\textendash{}" if c is None else f"{_score(unit, c.score)}$^{{{MARKS[c.verdict]}}}$"


def _agreement(analysis: Analysis, probes: Probes | None) -> str:
    """A measure a line: tau with its interval, p, and what following the probes loses."""
    if probes is None or not probes.pairs:
        return ""
    lines = [line(["", r"$\tau$", "95\\,\\% interval", "$p$", "cells", "lost by following"]), r"\midrule"]
    lines += [line(_pair(pair)) for pair in probes.pairs]
    caption = (
        f"Rank agreement (Kendall's $\\tau$) of this study's language models with the probes of {escape(probes.name)} "
        "over the same cells; the interval draws the replicates of both again, $p$ is exact."
    )
    notes = [escape(trust_sentence(probes.pairs[0]))]
    notes.append(
        "Lost by following: the language models' own pick minus the probes' pick on test, picked on validation."
    )
    return table(analysis, "probes", caption, "@{}lccccc@{}", lines, notes)


def _pair(pair: RankAgreement) -> list[str]:
    unit = pair.measure.unit
    bounds = [numeral(signed(x)) for x in (pair.low, pair.high)] if pair.low == pair.low else []
    lost = r"\textendash{}"
    if pair.regret is not None:
        lost = f"{numeral(unit.signed(pair.regret.mean))} {interval(unit.signed, pair.regret)}"
    elif pair.within:
        lost = "same pick"
    return [
        escape(pair.measure.name),
        numeral(signed(pair.tau)),
        f"{{[}}{', '.join(bounds)}{{]}}" if bounds else r"\textendash{}",
        escape(pvalue(pair.p)),
        str(len(pair.cells)),
        lost,
    ]
