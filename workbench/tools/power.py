"""What ``workbench power`` prints: a pilot, a table of differences, a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.analysis.planning import (
    Planning,
    hours,
    planning,
    round_differences,
    round_up,
    smallest_effect_of_interest,
)
from fusion_workbench.reports.statistics.power import CONFIDENCE, POWER, Pilot, needed, needed_examples, pilot, smallest
from fusion_workbench.reports.words.units import Unit
from fusion_workbench.reports.words.wording import plural
from fusion_workbench.schema.plan import FEWEST, FEWEST_EXAMPLES

if TYPE_CHECKING:
    from rich.console import Console


def from_study(console: Console, uri: str, study: str, experiment: str, differences: Sequence[float]) -> None:
    """A study in MLflow as the pilot. Raises WorkbenchError where it is none."""
    from rich.table import Table

    from fusion_workbench.reports.analysis.comparison import Analysis
    from fusion_workbench.reports.reading.query import read_study

    analysis = Analysis(read_study(uri, study, experiment))
    found = planning(analysis)
    unit = found.measure.unit
    console.print(
        f"pilot: {analysis.record.name}, {found.cell.name} against the best baseline, {found.against.name}, on "
        f"{found.measure.name}: {unit.size(found.difference)}, {_extent(found.pilot, found.noun)}",
        highlight=False,
        markup=False,
    )
    _print_spread(console, found.pilot, unit)
    table = Table(
        _head("difference", unit.difference),
        f"every cell ({found.whole.cells})\nreplicates",
        f"winner and baselines ({found.fresh.cells})\nfresh replicates",
        f"{found.noun}\nat {max(found.pilot.replicates, FEWEST)} fresh replicates",
    )
    for d in _shown(differences, found.now):
        row = found.row(d)
        table.add_row(
            unit.score(d),
            _count(row.replicates, found.whole.hours, found.pilot.replicates),
            _count(row.fresh, found.fresh.hours),
            "–" if row.examples is None else f"{round_up(row.examples):,}",
        )
    console.print(table)
    console.print(_levels(found), highlight=False, markup=False)
    now = " ".join(filter(None, [unit.score(found.now), unit.difference]))
    console.print(
        f"{_at_hand(found.pilot)} tell {now} with power {POWER:g} among all {found.whole.comparisons} comparisons.",
        highlight=False,
        markup=False,
    )
    wanted = abs(differences[0]) if differences else smallest_effect_of_interest(analysis, found)
    console.print(found.sentence(wanted), highlight=False, markup=False, style="bold")


def from_scores(
    console: Console,
    files: Sequence[str],
    systems: Sequence[str],
    columns: Sequence[str],
    metrics: Sequence[str],
    baselines: Sequence[str],
    level: float,
    differences: Sequence[float],
) -> None:
    """Others' scores as the pilot: on each measure the noisiest pair is planned on. Raises WorkbenchError."""
    from rich.table import Table

    from fusion_workbench.reports.scores.judge import judge_scores, paired_differences
    from fusion_workbench.reports.scores.tables import read_scores

    scores = read_scores(files, systems, columns, metrics)
    judgement = judge_scores(scores, baselines, level)
    number = len(judgement.distinct)
    alpha = level / number
    for caveat in judgement.caveats:
        console.print(f"· {caveat}", highlight=False, markup=False)
    for measure in judgement.tables:
        unit, noisiest = measure.unit, None
        for c in (c for c in judgement.distinct if c.measure == measure.measure):
            paired = paired_differences(scores, c.measure, c.cell, c.baseline)
            known = None if paired is None else pilot(paired.scores, paired.groups or None)
            if known is not None and (noisiest is None or _variance(known) > _variance(noisiest[1])):
                noisiest = (c, known)
        on = f" on {measure.measure}" if measure.measure else ""
        if noisiest is None:
            why = "".join(f" {note}" for note in scores.notes)
            raise WorkbenchError(
                f"no pilot{on}: no two systems have two replicates in common, by name; one replicate tells nothing of "
                f"seeds.{why}"
            )
        c, p = noisiest
        if p.examples < FEWEST_EXAMPLES:
            noun = plural("example", p.examples)
            raise WorkbenchError(f"no pilot{on}: of {p.examples} {noun} nobody can tell what others would change.")
        spread = p.seeds_var, p.sampling_var
        noun = "groups" if p.grouped else "examples"
        console.print(
            f"pilot: {c.cell} against {c.baseline}{f' on {c.measure}' if c.measure else ''}, the noisiest pair: "
            f"{unit.size(c.difference) if c.difference else ''}, {_extent(p, noun)}",
            highlight=False,
            markup=False,
        )
        _print_spread(console, p, unit)
        replicates = max(p.replicates, FEWEST)
        now = smallest(*spread, replicates, p.examples, alpha)
        if not now > 0:
            console.print("They differ alike on every example and replicate: there is no noise to plan on.")
            continue
        table = Table(_head("difference", unit.difference), "replicates", f"{noun}\nat {replicates} replicates")
        for d in _shown(differences, now):
            more = needed_examples(d, p, replicates, alpha)
            table.add_row(
                unit.score(d),
                _count(needed(d, *spread, p.examples, alpha), None),
                "–" if more is None else f"{round_up(more):,}",
            )
        console.print(table)
        console.print(
            f"{_at_hand(p)} tell {' '.join(filter(None, [unit.score(now), unit.difference]))} with power {POWER:g}, "
            f"each comparison at {alpha:.2g} (the level over {number} comparison{'s' * (number > 1)}). –: no number "
            "does.",
            highlight=False,
            markup=False,
        )


def _shown(differences: Sequence[float], now: float) -> list[float]:
    """The differences asked for; else round ones."""
    return [abs(d) for d in differences] or round_differences(now)


def _extent(p: Pilot, noun: str) -> str:
    return f"{p.replicates} replicates × {p.examples:,} {noun}"


def _print_spread(console: Console, p: Pilot, unit: Unit) -> None:
    """Standard deviations as the pilot has them and as they are planned on."""
    planned = [p.seeds_var**0.5, (p.sampling_var / p.examples) ** 0.5]
    measured = [p.measured[0] ** 0.5, (p.measured[1] / p.examples) ** 0.5]
    words = [f"{unit.score(u)} (measured {unit.score(m)})" for u, m in zip(planned, measured, strict=True)]
    console.print(
        f"planned on upper {100 * CONFIDENCE:g} % limits: standard deviation {words[0]} from replicate to replicate, "
        f"{words[1]} from the choice of examples{f', {unit.difference}' if unit.difference else ''}",
        highlight=False,
        markup=False,
    )


def _at_hand(p: Pilot) -> str:
    if p.replicates >= FEWEST:
        return f"The {p.replicates} replicates at hand"
    return (
        f"A pilot of {p.replicates} replicates knows little of its seeds, so these plans are large; {FEWEST} are "
        "better.\n"
        f"{FEWEST} replicates, the least for a verdict,"
    )


def _levels(found: Planning) -> str:
    return (
        f"Levels after correction: {found.whole.alpha:.2g} for each of the {found.whole.comparisons} comparisons of "
        f"every cell, {found.fresh.alpha:.2g} for each of the winner's {found.fresh.comparisons} on fresh replicates. "
        "–: no number does."
    )


def _count(replicates: int | None, a_replicate: float | None, have: int = 0) -> str:
    """``14 (2.1 h)``; of replicates that are there in part, ``14 (9 more, 20 h)``."""
    if replicates is None:
        return "–"
    more = max(replicates - have, 0)
    told = [f"{more} more"] if have and more else ["none more"] if have else []
    told += [hours(a_replicate * more)] if a_replicate is not None and more else []
    return f"{replicates} ({', '.join(told)})" if told else f"{replicates}"


def _head(words: str, unit: str) -> str:
    return f"{words}\n{unit}" if unit else words


def _variance(p: Pilot) -> float:
    return p.seeds_var / p.replicates + p.sampling_var / p.examples
