"""What a study would take: a finished or running study as the pilot of its own continuation."""

from __future__ import annotations

from dataclasses import dataclass

from fusion_workbench.config.plan import PlanConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.reports.statistics.example_scores import codes
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.statistics.power import MOST, POWER, Pilot, needed, needed_examples, pilot, smallest
from fusion_workbench.reports.words.wording import plural
from fusion_workbench.schema.names import Baseline, CostMetric
from fusion_workbench.schema.plan import FEWEST
from fusion_workbench.schema.records import Cell


@dataclass(frozen=True)
class Design:
    """What a further replicate trains, and the level that one of its comparisons is judged at.

    Attributes:
        comparisons: in the family of the primary measure; ``alpha`` is Holm's first step, the plan's level times the
            family's share divided by them: what the largest of all differences has to pass.
        hours: of training on the machine that trained the pilot, a replicate; None: not tracked.
    """

    cells: int
    comparisons: int
    alpha: float
    hours: float | None


@dataclass(frozen=True)
class PlanningRow:
    """What it takes to tell one difference; None: no number does."""

    difference: float
    replicates: int | None  # of every cell, the test images as they are
    fresh: int | None  # of the winner and the baselines alone
    examples: int | None  # test images (or groups) at the replicates of the pilot, for the winner and the baselines


@dataclass(frozen=True)
class Planning:
    """A pilot's pair, its noise, and the two ways to go on.

    Attributes:
        cell, against: the recommended cell and the best baseline; where they are one, the next best fusion against it.
        whole: replicates of every cell, which look again at everything.
        fresh: replicates of the winner and the baselines, kept for them alone (the plan's ``confirm``).
        now: the smallest difference that the replicates at hand (five, where they are fewer: a verdict takes that many)
            tell with power .8, at the level of ``whole``.
    """

    measure: Measure
    cell: Cell
    against: Cell
    difference: Estimate
    pilot: Pilot
    whole: Design
    fresh: Design
    now: float
    noun: str  # what examples are called

    def row(self, difference: float) -> PlanningRow:
        p = self.pilot
        spread = p.seeds_var, p.sampling_var
        return PlanningRow(
            difference,
            needed(difference, *spread, p.examples, self.whole.alpha),
            needed(difference, *spread, p.examples, self.fresh.alpha),
            needed_examples(difference, p, max(p.replicates, FEWEST), self.fresh.alpha),
        )

    def sentence(self, difference: float) -> str:
        """What telling ``difference`` from the best baseline would take, on fresh replicates."""
        unit, p = self.measure.unit, self.pilot
        size = " ".join(filter(None, [unit.score(difference), unit.difference]))
        fresh = needed(difference, p.seeds_var, p.sampling_var, p.examples, self.fresh.alpha)
        whom = f"a difference of {size} from the best baseline, {self.against.name}, with power {_word(POWER)}"
        more = self.more_examples(difference)
        other = f"with {more[0]:,} {self.noun}" if more else ""
        if fresh is None:
            hidden = (
                f"No number of replicates tells {whom}: the choice of the {p.examples:,} {self.noun} alone hides it"
            )
            return f"{hidden}; {other} it would take about {self._replicates(more[1])}." if more else f"{hidden}."
        less = f", and {other} about {round_up(more[1]):,}" if more and 3 * more[1] <= fresh else ""
        return f"To tell {whom} it would take about {self._replicates(fresh)}{less}."

    def more_examples(self, difference: float) -> tuple[int, int] | None:
        """Test examples, twice as many as now or twice that and so on, and the replicates they take: the first that
        take no more than twice what they would if there were no end of them.
        """
        p = self.pilot
        at_best = needed(difference, p.seeds_at(MOST), p.sampling_var, MOST, self.fresh.alpha)
        examples = 2 * p.examples
        while at_best is not None and examples < MOST:
            found = needed(difference, p.seeds_at(examples), p.sampling_var, examples, self.fresh.alpha)
            if found is not None and found <= 2 * at_best:
                return examples, found
            examples *= 2
        return None

    def _replicates(self, number: int) -> str:
        number = round_up(number)
        return f"{number:,} fresh replicates of the winner and the baselines{cost(self.fresh.hours, number)}"


def planning(analysis: Analysis, judged: Analysis | None = None) -> Planning:
    """A study as a pilot.

    Args:
        analysis: of all cells.
        judged: of fresh replicates that hold the same pair, where there are any: they tell its noise then.

    Raises:
        WorkbenchError: it holds no pair of a cell and a baseline with two replicates in common.
    """
    name, measure = analysis.record.name, analysis.objective
    pair = _pair(analysis)
    if pair is None:
        raise WorkbenchError(f"{name} is no pilot yet: no cell and baseline have finished replicates in common.")
    cell, against = pair
    source = judged if judged and judged.paired(cell.id, against.id, measure.name) else analysis
    found = source.paired(cell.id, against.id, measure.name)
    noise = None if found is None else pilot(found.scores, codes(found.groups))
    difference = source.difference(cell.id, against.id, measure.name)
    if noise is None or difference is None:
        raise WorkbenchError(
            f"{name} is no pilot yet: {cell.name} and {against.name} have one replicate in common, which tells nothing "
            "of seeds; two are the least, five are better."
        )
    whole, fresh = _designs(analysis, cell)
    now = smallest(noise.seeds_var, noise.sampling_var, max(noise.replicates, FEWEST), noise.examples, whole.alpha)
    noun = f"test {plural(analysis.record.group_name, 2)}" if noise.grouped else "test images"
    return Planning(measure, cell, against, difference, noise, whole, fresh, now, noun)


def what_it_would_take(analysis: Analysis, judged: Analysis | None = None) -> str:
    """One sentence for a study in which nothing is distinguishable: what detecting the smallest difference that matters
    (the plan's margin, else one point) would take. Empty where the study is no pilot, or has fewer than five
    replicates: it has no verdicts yet, and knows too little of its seeds.
    """
    try:
        plan = planning(analysis, judged)
    except WorkbenchError:
        return ""
    return plan.sentence(smallest_effect_of_interest(analysis, plan)) if plan.pilot.replicates >= FEWEST else ""


def smallest_effect_of_interest(analysis: Analysis, plan: Planning) -> float:
    """The smallest effect size of interest: the plan's margin; without one, a point, or half of what shows now."""
    margin = analysis.margin(plan.measure)
    if margin is not None:
        return margin
    return 0.01 if plan.measure.unit.factor == 100 else plan.now / 2


def round_differences(now: float) -> list[float]:
    """Round differences (1, 2 or 5 times a power of ten) from a tenth of ``now``, the smallest that is detectable."""
    ladder = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
    return [d for d in ladder if now / 11 <= d <= 1.3 * now][-4:] or [now]


def hours(value: float | None) -> str:
    """``25 min``, ``2.1 h``, ``3.4 days``."""
    if value is None:
        return "?"
    if value < 1:
        return f"{max(round(60 * value), 1)} min"
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} days"


def cost(a_replicate: float | None, replicates: int) -> str:
    """`` (2.1 h here)``; empty where no time was tracked."""
    return "" if a_replicate is None else f" ({hours(a_replicate * replicates)} here)"


def round_up(number: int) -> int:
    """To two significant digits: a plan is no more exact than that."""
    step = int(10 ** max(len(str(number)) - 2, 0)) if number >= 100 else 1
    return -(-number // step) * step


def _pair(analysis: Analysis) -> tuple[Cell, Cell] | None:
    measure = analysis.objective.name
    ranked = analysis.ranked(measure)
    candidates = [analysis.baselines.get((measure, b)) for b in (Baseline.BEST_SINGLE, Baseline.MIDDLE)]
    best = next((c for c in ranked if c.id in candidates), None)
    others = [c for c in ranked if best is not None and c.id != best.id]
    if best is None or not others:
        return None
    if ranked[0].id != best.id:
        return ranked[0], best
    return next((c for c in others if not c.single), others[0]), best


def _designs(analysis: Analysis, winner: Cell) -> tuple[Design, Design]:
    plan, record = analysis.plan, analysis.record
    family = next((f for f in plan.families if plan.primary in f.measures), plan.families[0])
    pairs = {
        (c.measure, min(c.cell, c.against), max(c.cell, c.against))
        for c in analysis.comparisons.values()
        if c.measure in family.measures and c.difference is not None
    }
    held = {(m, cell) for (m, _), cell in analysis.baselines.items() if m in family.measures and cell != winner.id}
    # A plan that foresees fresh replicates keeps a part of its level for them; one that does not would be made anew.
    whole = record.plan or plan
    kept = whole.confirm_share or PlanConfig().confirm_share
    share = next((f.share for f in whole.families if plan.primary in f.measures), 1.0)
    every = [c.id for c in record.cells]
    chosen = sorted({winner.id, *analysis.baselines.values(), *(c.cell.id for c in record.contenders)})
    seen = plan.level * family.share * plan.spent()[-1]
    apart = plan.level * share * kept
    return (
        Design(len(every), len(pairs), seen / max(len(pairs), 1), _hours(record, every)),
        Design(len(chosen), len(held), apart / max(len(held), 1), _hours(record, chosen)),
    )


def _hours(record: StudyRecord, cells: list[str]) -> float | None:
    """Of one replicate of some cells, by the mean of their own finished replicates."""
    seconds = [record.mean_metric(cell, CostMetric.SECONDS) for cell in cells]
    measured = [s for s in seconds if s is not None]
    return sum(measured) / len(measured) * len(cells) / 3600 if measured else None


def _word(share: float) -> str:
    return f"{share:g}".removeprefix("0")
