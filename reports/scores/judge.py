"""Others' systems judged as the report judges cells: intervals, one family, Holm, the five words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.reports.analysis.comparison import Comparison
from fusion_workbench.reports.analysis.plain import correction_sentence
from fusion_workbench.reports.scores.doubts import doubts, refuse_two_units
from fusion_workbench.reports.scores.tables import Scores
from fusion_workbench.reports.statistics.example_scores import ExampleScores, Floats, codes, natural_key
from fusion_workbench.reports.statistics.intervals import FEW_GROUPS, Estimate, estimate, holm
from fusion_workbench.reports.statistics.unpaired import BOTH, Difference, of_example_scores
from fusion_workbench.reports.statistics.verdicts import Judged, equivalence, verdict
from fusion_workbench.reports.words.units import MIXED, SHARE, Unit
from fusion_workbench.reports.words.wording import listed, plural
from fusion_workbench.schema.names import Verdict
from fusion_workbench.schema.plan import FEWEST, FEWEST_EXAMPLES


@dataclass(frozen=True)
class SystemRow:
    """A system on a measure: its mean, and a comparison with each baseline (None: no score in common)."""

    system: str
    mean: Estimate
    comparisons: tuple[Comparison | None, ...]


@dataclass(frozen=True)
class JudgementTable:
    measure: str  # empty: the files name none
    unit: Unit
    lines: tuple[SystemRow, ...]


@dataclass(frozen=True)
class Judgement:
    """What the files say.

    Attributes:
        level: the chance of any false better or worse in all tables together.
        margin: of equivalence, in scores; None: nothing is called equivalent.
        sign: +1 where more is better.
        headline: the answer in a sentence.
        caveats: what bounds it.
    """

    tables: tuple[JudgementTable, ...]
    baselines: tuple[str, ...]
    level: float
    margin: float | None
    sign: int
    headline: str
    caveats: tuple[str, ...]

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison of two different systems."""
        found = (c for table in self.tables for line in table.lines for c in line.comparisons)
        return tuple(c for c in found if c is not None and c.difference is not None)

    @property
    def distinct(self) -> tuple[Comparison, ...]:
        """The same, two baselines counted once: what was corrected for."""
        place = {name: number for number, name in enumerate(self.baselines)}
        return tuple(c for c in self.comparisons if place.get(c.cell, len(place)) > place[c.baseline])

    def worse(self) -> tuple[Comparison, ...]:
        return tuple(c for c in self.comparisons if c.verdict == Verdict.WORSE)


def judge_scores(
    scores: Scores,
    baselines: Sequence[str] = (),
    level: float = 0.05,
    margin: float | None = None,
    higher_is_better: bool = True,
    independent: bool = False,
) -> Judgement:
    """Every system against every baseline on every measure, in one family.

    Replicates are paired where their names agree: where those of one are all among the other's, or at least
    :data:`~config.plan.FEWEST` are common. Else the seeds of both count in full and the examples alone are
    paired (:mod:`reports.statistics.unpaired`).

    Args:
        baselines: systems; empty: the first.
        margin: a difference that is as good as none, in scores.
        independent: never pair replicates, whatever they are called.

    Raises:
        WorkbenchError: there is one system, no such baseline, a level or margin out of range, or a system that shares
            no example with any baseline, or scores of two units.
    """
    against = _baselines(scores, baselines)
    refuse_two_units(scores)
    if not 0 < level < 0.5:
        raise WorkbenchError(f"--level {level:g}: it is the chance of a false verdict, such as 0.05.")
    if margin is not None and not (margin > 0 and math.isfinite(margin)):
        raise WorkbenchError(f"--margin {margin:g}: it is a difference in scores that is as good as none, above 0.")
    wanted = [
        (measure, min(system, baseline), max(system, baseline))
        for measure in scores.measures
        for baseline in against
        for system in scores.systems
        if system != baseline and all((s, measure) in scores.example_scores for s in (system, baseline))
    ]
    if not wanted:
        raise WorkbenchError(f"no measure is scored for {listed(list(against))} and for another system too.")
    pairs = {key: _matched(scores, *key, independent) for key in dict.fromkeys(wanted)}
    judged = _judged(pairs, margin)
    sign = 1 if higher_is_better else -1
    tables = tuple(
        JudgementTable(
            measure,
            _unit(
                [
                    scores.example_scores[s, measure].scores
                    for s in scores.systems
                    if (s, measure) in scores.example_scores
                ]
            ),
            tuple(
                SystemRow(
                    system,
                    estimate(o.scores, codes(o.groups)),
                    tuple(_comparison(measure, system, b, pairs, judged, level, sign) for b in against),
                )
                for system in scores.systems
                if (o := scores.example_scores.get((system, measure))) is not None
            ),
        )
        for measure in scores.measures
    )
    found = Judgement(tables, against, level, margin, sign, "", ())
    caveats = (*_caveats(scores, pairs, independent), *doubts(scores, pairs, higher_is_better), *scores.notes)
    return Judgement(tables, against, level, margin, sign, _headline(found), caveats)


PairKey = tuple[str, str, str]  # measure and two systems, in the order of their names


def _baselines(scores: Scores, named: Sequence[str]) -> tuple[str, ...]:
    if len(scores.systems) < 2:
        only = scores.systems[0] if scores.systems else "none"
        raise WorkbenchError(
            f"the files hold one system, {only}; a verdict takes two. Name more files, --column system=NAME, or "
            "--system NAME=PATTERN."
        )
    for name in named:
        if name not in scores.systems:
            raise WorkbenchError(f"--baseline {name}: there is no such system.{nearest(name, scores.systems)}")
    return tuple(dict.fromkeys(named)) or scores.systems[:1]


def _matched(scores: Scores, measure: str, one: str, other: str, independent: bool) -> Difference:
    """``one`` minus ``other``."""
    a, b = scores.example_scores[one, measure], scores.example_scores[other, measure]
    found = of_example_scores(a, b, independent)
    if found is None:
        on = f" on {measure}" if measure else ""
        raise WorkbenchError(
            f"{one} and {other} have no example in common{on}: such as '{a.examples[0]}' in the one and "
            f"'{b.examples[0]}' in the other."
        )
    return found


def paired_differences(scores: Scores, measure: str, one: str, other: str) -> ExampleScores | None:
    """``one`` minus ``other``, by replicate and example; None where no replicate's name is in both."""
    a, b = scores.example_scores[one, measure], scores.example_scores[other, measure]
    examples = tuple(sorted({*a.examples} & {*b.examples}, key=natural_key))
    common = tuple(r for r in a.replicates if r in b.replicates)
    if not common or not examples:
        return None
    group = dict(zip(a.examples, a.groups, strict=False))
    groups = tuple(group[e] for e in examples) if group else ()
    return ExampleScores(common, examples, a.cut(common, examples) - b.cut(common, examples), groups)


def _judged(pairs: dict[PairKey, Difference], margin: float | None) -> dict[PairKey, Judged]:
    """Holm over all pairs that have replicates and examples enough; equivalence is a family of its own, at the same
    level."""
    enough = {key: m for key, m in pairs.items() if m.replicates >= FEWEST and m.estimate.examples >= FEWEST_EXAMPLES}
    different = holm([float(m.noise.p()) for m in enough.values()])
    alike = holm([float(equivalence(m.noise, margin)) if margin is not None else np.nan for m in enough.values()])
    return {
        key: Judged(float(p), float(q), m.replicates)
        for (key, m), p, q in zip(enough.items(), different, alike, strict=True)
    }


def _comparison(
    measure: str,
    system: str,
    baseline: str,
    pairs: dict[PairKey, Difference],
    judged: dict[PairKey, Judged],
    level: float,
    sign: int,
) -> Comparison | None:
    nan = float("nan")
    if system == baseline:
        return Comparison(measure, baseline, baseline, system, None, nan, nan, Verdict.ITSELF)
    one, other = sorted((system, baseline))
    found = pairs.get((measure, one, other))
    if found is None:
        return None
    shown = found.estimate if system == one else _turned(found.estimate)
    j = judged.get((measure, one, other))
    word = verdict(shown.mean, j, level, sign)
    return Comparison(measure, baseline, baseline, system, shown, j.p if j else nan, j.p_equivalent if j else nan, word)


def _turned(e: Estimate) -> Estimate:
    """The difference the other way round."""
    return Estimate(
        **{**e.__dict__, "mean": -e.mean, "low": -e.high, "high": -e.low, "low90": -e.high90, "high90": -e.low90}
    )


def _unit(scores: Sequence[Floats]) -> Unit:
    """Per cent where every score lies between 0 and 1, else the number as it is."""
    return SHARE if all(s.min() >= 0 and s.max() <= 1 for s in scores) else MIXED


# --- in words -------------------------------------------------------------------------------------------------------


def _headline(found: Judgement) -> str:
    comparisons = found.distinct
    units = {table.measure: table.unit for table in found.tables}
    if len(comparisons) == 1:
        c = comparisons[0]
        assert c.difference is not None
        size = f"{units[c.measure].size(c.difference)}{f' on {c.measure}' if c.measure else ''}"
        words: dict[str, str] = {
            Verdict.NONE: f"No verdict: {c.cell} against {c.baseline} makes",
            Verdict.SAME: f"{c.cell} is not distinguishable from {c.baseline}:",
            Verdict.EQUIVALENT: f"{c.cell} is equivalent to {c.baseline}:",
        }
        said = words.get(c.verdict, f"{c.cell} is {c.verdict} than {c.baseline}:")
        return f"{said} {size}.{correction_sentence(c)}"
    number = {
        word: sum(c.verdict == word for c in comparisons)
        for word in (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT, Verdict.SAME, Verdict.NONE)
    }
    if number[Verdict.NONE] == len(comparisons):
        return f"No verdict on any of {len(comparisons)} comparisons: intervals only."
    if len(comparisons) in number.values():
        return f"All {len(comparisons)} comparisons are {next(w for w, n in number.items() if n)}."
    counts = [f"{n} {'is' if n == 1 else 'are'} {word}" for word, n in number.items() if n and word != Verdict.NONE]
    counts += (
        [f"{number[Verdict.NONE]} {'has' if number[Verdict.NONE] == 1 else 'have'} no verdict"]
        if number[Verdict.NONE]
        else []
    )
    return f"Of {len(comparisons)} comparisons {listed(counts)}."


def _caveats(scores: Scores, pairs: dict[PairKey, Difference], independent: bool) -> list[str]:
    out: list[str] = []
    few = {m.used for m in pairs.values() if m.replicates < FEWEST}
    single = sorted({s for (s, _), o in scores.example_scores.items() if len(o.replicates) == 1})
    if single:
        have = f"{listed(single)} {'has' if len(single) == 1 else 'have'} one replicate"
        left = (
            "their intervals are over examples alone and leave seeds out: they say what other examples would change, "
            "not what training again would."
        )
        out.append(f"{have}: {left if len(single) > 1 else left.replace('their', 'its', 1)}")
    if few:
        out.append(f"A verdict takes {FEWEST} replicates of both systems; with fewer there are intervals only.")
    apart = [f"{one} and {other}" for (_, one, other), m in pairs.items() if m.shares != BOTH]
    if apart:
        named = list(dict.fromkeys(apart))
        shown = listed(named[:3]) if len(named) < 4 else f"{', '.join(named[:3])} and {len(named) - 3} more pairs"
        why = "as asked for" if independent else "they share too few"
        out.append(f"Paired by example and not by replicate ({why}): {shown}. The seeds of both count in full.")
    for (measure, one, other), m in pairs.items():
        if m.dropped:
            on = f" on {measure}" if measure else ""
            out.append(f"{one} and {other}{on}: {m.dropped} examples that only one of them has are left out.")
    for measure in scores.measures:
        judged_on = {m.estimate.examples for (of, *_), m in pairs.items() if of == measure}
        if judged_on and min(judged_on) < FEWEST_EXAMPLES:
            out.append(few_examples(min(judged_on), f" on {measure}" if measure else ""))
        without = [s for s in scores.systems if (s, measure) not in scores.example_scores]
        if without:
            rest = [f"{len(without) - 5} more"] if len(without) > 5 else []
            out.append(
                f"{measure or 'One measure'} is not scored for {listed(without[:5] + rest)}: not compared there."
            )
        groups = {g for (_, m), o in scores.example_scores.items() if m == measure for g in o.groups}
        if 0 < len(groups) < FEW_GROUPS:
            on = f" on {measure}" if measure else ""
            noun = plural("group", len(groups))
            these = "this" if len(groups) == 1 else "these"
            out.append(
                f"Conditional on {these} {noun}{on}: the examples come from {len(groups)} {noun}; nothing here speaks "
                "for others."
            )
    return out


def few_examples(number: int, on: str = "") -> str:
    """What one or two examples cannot say."""
    these = "this example" if number == 1 else f"these {number} examples"
    return (
        f"Conditional on {these}{on}: from {number} nobody can tell what other examples would change, so there is no "
        f"verdict (it takes {FEWEST_EXAMPLES}) and intervals leave it out."
    )
