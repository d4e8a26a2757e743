"""The answer: which strategy, layers and learning rate to use, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from reports.comparison import BASELINES, BEST_SINGLE, MIDDLE, Analysis, Comparison, holds_zero
from reports.records import FINISHED, RUNNING, Cell
from reports.statistics import Estimate
from reports.task_picks import TaskPick, task_picks, task_words
from reports.verdicts import BETTER, EQUIVALENT, NONE, SAME, WORSE
from reports.wording import correction_sentence, listed, plural
from workbench.analysis_plan import FEWEST


@dataclass(frozen=True)
class Cheaper:
    """The cheapest cell that validation cannot tell from the recommended one."""

    cell: Cell
    flops: float  # as a share of the recommended cell's
    validation: Estimate  # cheaper minus recommended, on the objective
    test: tuple[tuple[str, Estimate], ...]  # a measure each


@dataclass(frozen=True)
class Answer:
    """What stands on the first screen."""

    cell: Cell | None
    headline: str
    lead: str
    best_baseline: Cell | None
    settled: bool  # the recommended cell is better than the best baseline
    comparisons: tuple[Comparison, ...]
    cheaper: Cheaper | None
    cheaper_text: str
    snippet: str
    caveats: tuple[str, ...]
    weights_run: str
    tasks: tuple[TaskPick, ...] = ()
    task_text: str = ""

    @property
    def text(self) -> str:
        """The answer in one paragraph, for a terminal."""
        parts = [self.headline, self.lead, self.cheaper_text, *self.caveats]
        return " ".join(part for part in parts if part)


def answer(analysis: Analysis) -> Answer:
    """The recommended cell is the best on validation; test only judges it."""
    measure = analysis.objective.name
    ranked = analysis.ranked(measure)
    caveats = _caveats(analysis)
    if not ranked:
        return Answer(None, _nothing(analysis), "", None, False, (), None, "", "", caveats, "")
    cell = ranked[0]
    candidates = [analysis.baselines.get((measure, b)) for b in (BEST_SINGLE, MIDDLE)]
    best = next((c for c in ranked if c.id in candidates), None)
    head = best and next(
        (c for b in BASELINES if (c := analysis.comparisons.get((measure, b, cell.id))) and c.against == best.id), None
    )
    cheaper = _cheaper(analysis, cell)
    compared = tuple(
        c for m in analysis.measures for b in BASELINES if (c := analysis.comparisons.get((m.name, b, cell.id)))
    )
    runs = analysis.record.finals(cell.id)
    headline, lead = _words(analysis, cell, best, head or None, ranked)
    return Answer(
        cell=cell,
        headline=headline,
        lead=" ".join(filter(None, [lead, _losses(analysis, compared)])),
        best_baseline=best,
        settled=bool(head and head.verdict == BETTER),
        comparisons=compared,
        cheaper=cheaper,
        cheaper_text=_cheaper_words(analysis, cheaper, cell) if cheaper else _none_cheaper(analysis, cell),
        snippet=snippet(cell),
        caveats=caveats,
        weights_run=runs[0].run_id if runs else "",
        tasks=(picks := task_picks(analysis)),
        task_text=task_words(analysis, picks),
    )


def snippet(cell: Cell) -> str:
    """YAML to paste into a study file."""
    strategy: dict[str, object] = {"name": cell.strategy}
    if cell.options:
        strategy["options"] = dict(cell.options)
    plain: dict[str, object] = {
        "strategies": [strategy],
        "selections": [{"levels": list(cell.levels), "query": cell.query}],
    }
    text = "".join(
        yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=80)
        for key, value in plain.items()
    )
    if cell.chosen_lr is not None:
        text += f"search: {{learning_rates: [{cell.chosen_lr:g}]}}\n"
    return text


def _words(
    analysis: Analysis, cell: Cell, best: Cell | None, head: Comparison | None, ranked: list[Cell]
) -> tuple[str, str]:
    rate = f" at learning rate {cell.chosen_lr:g}" if cell.chosen_lr is not None else ""
    use = f"Use {cell.name}{rate}."
    over = _over(analysis)
    if best is None or head is None:
        return use, "It is the best on validation. The study holds no baseline that it could be judged by."
    if head.difference is None:
        hint = _hint(analysis, head)
        lead = _baseline_won(analysis, cell, ranked, over) + hint
        if analysis.means[cell.id, analysis.objective.name].replicates < FEWEST:
            return f"No verdict yet: {cell.name} is the best on validation{rate}.", lead
        if hint:
            return f"Use {cell.name}{rate}: nothing did better on validation.", lead
        return f"Nothing here beats the best baseline: use {cell.name}{rate}.", lead
    size = f"{analysis.objective.unit.size(head.difference)} on {over}"
    if head.verdict == BETTER:
        return use, f"On test it is better than the best baseline, {best.name}: {size}."
    hint = _hint(analysis, head)
    if head.verdict == EQUIVALENT:
        return (
            f"Nothing here beats the best baseline: {cell.name} and {best.name} are as good as each other.",
            f"Validation points to {cell.name}{rate}; on test it is equivalent to the best baseline, {best.name}, "
            f"within ± {_margin(analysis)}: {size}.{hint}",
        )
    if head.verdict == SAME:
        return (
            "Nothing here beats the best baseline beyond the noise.",
            f"Validation points to {cell.name}{rate}; on test it is not distinguishable from the best baseline, "
            f"{best.name}: {size}.{correction_sentence(head)}{hint}",
        )
    if head.verdict == WORSE:
        return (
            f"Nothing here is shown to beat the best baseline, {best.name}.",
            f"Validation points to {cell.name}{rate}, but on test it is worse: {size}.{hint}",
        )
    few = head.difference.replicates
    takes = f"a verdict takes {FEWEST}" if few < FEWEST else f"the plan reads verdicts at {_looks(analysis)}"
    return (
        f"No verdict yet: {cell.name} is the best on validation{rate}.",
        f"Against the best baseline, {best.name}, it makes {size} on test, "
        f"from {few} replicate{'s' if few != 1 else ''}; {takes}.",
    )


def _margin(analysis: Analysis) -> str:
    measure = analysis.objective
    margin = analysis.margin(measure) or 0.0
    return " ".join(filter(None, [measure.unit.score(margin), measure.unit.difference]))


def _looks(analysis: Analysis) -> str:
    return listed([str(n) for n in analysis.plan.looks])


def decided(analysis: Analysis, cell: Cell) -> bool:
    """Whether a cell has a firm verdict against every baseline on the primary measure."""
    found = [c for b in BASELINES if (c := analysis.comparisons.get((analysis.objective.name, b, cell.id)))]
    judged = [c for c in found if c.difference is not None]
    return bool(judged) and all(c.verdict in (BETTER, WORSE, EQUIVALENT) for c in judged)


def _baseline_won(analysis: Analysis, cell: Cell, ranked: list[Cell], over: str) -> str:
    """The recommended cell is a baseline: how the best of the others fares against it."""
    measure = analysis.objective.name
    others = [c for c in ranked if not c.single and c.id != cell.id]
    lead = "It is itself a baseline, and no fusion did better on validation."
    if not others:
        return lead
    found = next(
        (
            c
            for b in BASELINES
            if (c := analysis.comparisons.get((measure, b, others[0].id))) is not None and c.against == cell.id
        ),
        None,
    )
    if found is None or found.difference is None:
        return lead
    word = {
        NONE: "cannot be judged yet",
        SAME: "is not distinguishable from it",
        EQUIVALENT: "is equivalent to it",
    }.get(found.verdict, f"is {found.verdict} than it")
    size = analysis.objective.unit.size(found.difference)
    return f"{lead} The best other fusion there, {others[0].name}, {word} on test: {size} on {over}."


def _losses(analysis: Analysis, compared: Sequence[Comparison]) -> str:
    """Tasks on which a baseline does better: the best on average is not the best at everything."""
    parts = []
    for task in analysis.record.tasks:
        lost = {c.against: c for c in compared if c.measure == task.name and c.verdict == WORSE and c.difference}
        if lost and len(analysis.measures) > 1:
            unit = analysis.measure(task.name).unit
            names = [
                f"{analysis.record.cell(a).name} ({unit.effect(c.difference)})" for a, c in lost.items() if c.difference
            ]
            parts.append(f"on {task.name} it is worse than {listed(names)}")
    return f"Not for every task: {'; '.join(parts)}." if parts else ""


def _hint(analysis: Analysis, head: Comparison) -> str:
    """Cells that test, but not validation, puts above the best baseline."""
    above = [
        analysis.record.cell(c.cell).name
        for (m, b, _), c in analysis.comparisons.items()
        if (m, b) == (head.measure, head.baseline) and c.verdict == BETTER
    ]
    if not above:
        return ""
    names = ", ".join(above[:3]) + (f" and {len(above) - 3} more" if len(above) > 3 else "")
    which = "it" if len(above) == 1 else "them"
    return f" Test puts {names} above that baseline, but validation did not pick {which}: a hint, not a result."


def _cheaper(analysis: Analysis, cell: Cell) -> Cheaper | None:
    measure = analysis.objective.name
    flops = {
        c.id: f
        for c in analysis.eligible
        if (f := analysis.record.mean_metric(c.id, "cost/flops_per_image")) is not None
    }
    if cell.id not in flops:
        return None

    def price(c: Cell) -> tuple[float, int]:  # the same FLOPs with fewer layers to keep is cheaper too
        return flops[c.id], len(c.selection.layers)

    open_ = []
    for other in analysis.eligible:
        if other.id not in flops or not price(other) < price(cell):
            continue
        difference = analysis.difference(other.id, cell.id, measure, "val")
        if difference is not None and difference.replicates >= FEWEST and holds_zero(difference):
            value = analysis.validation.get((other.id, measure), float("-inf"))
            open_.append((price(other), -analysis.objective.sign * value, other.id, other, difference))
    if not open_:
        return None
    *_, other, difference = min(open_, key=lambda entry: entry[:3])
    test = [(m.name, analysis.difference(other.id, cell.id, m.name)) for m in analysis.measures]
    known = tuple((name, d) for name, d in test if d is not None)
    return Cheaper(other, flops[other.id] / flops[cell.id], difference, known)


def _cheaper_words(analysis: Analysis, cheaper: Cheaper, cell: Cell) -> str:
    test = dict(cheaper.test).get(analysis.objective.name)
    unit, judged = analysis.objective.unit, ""
    if test is not None:
        sign = analysis.objective.sign
        known = not holds_zero(test)
        word = "is not distinguishable" if not known else "is better" if sign * test.mean > 0 else "is worse"
        judged = f" On test it {word} ({unit.effect(test)})."
    share = cheaper.flops * 100
    fewer, more = len(cheaper.cell.selection.layers), len(cell.selection.layers)
    cost = (
        f"at {share:.0f} % of the FLOPs"
        if share < 99.5
        else f"with {fewer} layer{'s' * (fewer > 1)} to read instead of {more}"
    )
    return (
        f"As good on validation and cheaper: {cheaper.cell.name}, {cost}, is not distinguishable from {cell.name} "
        f"there ({unit.size(cheaper.validation)}).{judged}"
    )


def _none_cheaper(analysis: Analysis, cell: Cell) -> str:
    """Said only where cheaper cells were tried, with replicates enough to tell."""
    flops = {c.id: analysis.record.mean_metric(c.id, "cost/flops_per_image") for c in analysis.eligible}
    own = flops.get(cell.id)
    tried = own is not None and any(value is not None and value < own for value in flops.values())
    return "No cheaper cell is as good on validation." if tried and len(analysis.core) >= FEWEST else ""


def _over(analysis: Analysis) -> str:
    tasks = analysis.record.tasks
    if len(tasks) < 2:
        return tasks[0].name if tasks else "the objective"
    return f"the mean of {listed([t.name for t in tasks])}"


def _nothing(analysis: Analysis) -> str:
    counts = analysis.record.counts()
    if counts.get(FINISHED):
        return "No answer: the finished runs hold no validation objective."
    state = "is still running and has" if analysis.record.status == "RUNNING" else "has"
    return f"No answer yet: the study {state} no finished replicate."


def _blind(analysis: Analysis) -> list[str]:
    """Tasks on which no cell does better than a guess that looks at no image."""
    out = []
    for task in analysis.record.tasks:
        measure = analysis.measure(task.name)
        means = [measure.sign * e.mean for (_, name), e in analysis.means.items() if name == task.name]
        if measure.chance is not None and means and max(means) <= measure.sign * measure.chance:
            best, blind = (
                f"{measure.unit.score(v)} {measure.unit.symbol}".strip()
                for v in (measure.sign * max(means), measure.chance)
            )
            out.append(
                f"Nothing was learned of {task.name} that holds on test: the best cell has {best}, and a guess that "
                f"looks at no image {blind}; differences between cells there say little."
            )
    return out


def _caveats(analysis: Analysis) -> tuple[str, ...]:
    """What bounds everything that the report says."""
    record, out = analysis.record, []
    counts = record.counts()
    done, expected = counts.get(FINISHED, 0), record.expected
    if not record.expected:
        out.append(
            f"Incomplete: no replicate was started yet; the learning-rate search has {len(record.runs)} runs so far."
        )
    elif not record.complete:
        rest = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in counts.items() if state != FINISHED)
        state = {"RUNNING": "is still running", "KILLED": "was stopped", "FAILED": "broke off"}.get(
            record.status, "ended"
        )
        running = " Numbers will move." if record.status == "RUNNING" or counts.get(RUNNING) else ""
        out.append(
            f"Incomplete: the study {state} with {done} of {expected} variant-replicates"
            f"{f' ({rest})' if rest else ''}.{running}"
        )
    if analysis.conditional and analysis.means:
        number = len(record.groups)
        noun = plural(record.group_name, number)
        out.append(
            f"Conditional on {'this' if number == 1 else 'these'} {noun}: the test images come from {number} {noun}; "
            "nothing here speaks for other ones."
        )
    out.extend(_blind(analysis))
    few = min((e.replicates for e in analysis.means.values()), default=0)
    if 0 < few < FEWEST:
        out.append(f"Some cells have {few} replicate{'s' if few > 1 else ''}; a verdict takes {FEWEST}.")
    elif few and analysis.reached < analysis.plan.looks[0]:
        out.append(f"Verdicts are read at {_looks(analysis)} replicates, as planned; {analysis.reached} have ended.")
    out.extend(f"Departed from its plan: {change}." for change in record.departures)
    return tuple(out)
