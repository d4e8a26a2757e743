"""The answer: which strategy, layers and learning rate to use, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from fusion_workbench.reports.analysis.caveats import caveats, looks, nothing_to_recommend
from fusion_workbench.reports.analysis.cheaper import Cheaper, cheaper_words, find_cheaper, none_cheaper
from fusion_workbench.reports.analysis.comparison import Analysis, Comparison
from fusion_workbench.reports.analysis.fairness import flags
from fusion_workbench.reports.analysis.fresh_replicates import judge_fresh_replicates
from fusion_workbench.reports.analysis.image_dependence import blank_caveat, image_dependence_sentence
from fusion_workbench.reports.analysis.plain import correction_sentence
from fusion_workbench.reports.analysis.planning import what_it_would_take
from fusion_workbench.reports.analysis.retention import Retention, retention, retention_words
from fusion_workbench.reports.analysis.task_picks import TaskPick, task_picks, task_words
from fusion_workbench.reports.analysis.winners_curse import WinnersCurse, winners_curse
from fusion_workbench.reports.reading.ranking import Measure
from fusion_workbench.reports.statistics.intervals import Estimate
from fusion_workbench.reports.words.wording import listed
from fusion_workbench.schema.names import BASELINES, MATCHED_CONTROLS, MATCHED_STRATEGY, Baseline, Verdict
from fusion_workbench.schema.plan import FEWEST, FEWEST_EXAMPLES
from fusion_workbench.schema.records import Cell


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
    judged: Analysis  # where the comparisons are from: the fresh replicates, or, without any, the study's own
    tasks: tuple[TaskPick, ...] = ()
    task_text: str = ""
    winners_curse: WinnersCurse | None = None
    retention: Retention | None = None
    takes: str = ""  # what it would take to tell, where nothing is distinguishable
    checks: tuple[str, ...] = ()  # sentences: against matched controls, retention, winner's curse, training

    @property
    def text(self) -> str:
        """The answer in one paragraph, for a terminal."""
        parts = [self.headline, self.lead, self.takes, *self.checks, self.cheaper_text, *self.caveats]
        return " ".join(part for part in parts if part)


def answer(analysis: Analysis) -> Answer:
    """The recommended cell is the best on validation; test only judges it, on fresh replicates where there are any."""
    measure = analysis.objective.name
    ranked = analysis.ranked(measure)
    said = caveats(analysis)
    if not ranked:
        return Answer(None, nothing_to_recommend(analysis), "", None, False, (), None, "", "", said, "", analysis)
    fresh = judge_fresh_replicates(analysis)
    cell = (fresh.winner if fresh else None) or ranked[0]
    said += tuple(filter(None, [blank_caveat(analysis, cell)]))
    judged = fresh.analysis if fresh and _begun(fresh.analysis, cell) else analysis
    candidates = [judged.baselines.get((measure, b)) for b in (Baseline.BEST_SINGLE, Baseline.MIDDLE)]
    best = next((c for c in ranked if c.id in candidates), None)
    found = [c for b in BASELINES if (c := judged.comparisons.get((measure, b, cell.id)))]
    head = next((c for c in found if best and c.against == best.id), None)
    cheaper = find_cheaper(analysis, cell)
    compared = tuple(
        c
        for m in analysis.measures
        for b in BASELINES + MATCHED_CONTROLS
        if (c := judged.comparisons.get((m.name, b, cell.id)))
    )
    runs = analysis.record.finals(cell.id)
    headline, lead = _words(analysis, judged, cell, best, head, ranked)
    kept = retention(analysis, judged, cell)
    return Answer(
        cell=cell,
        headline=headline,
        lead=" ".join(filter(None, [lead, _losses(judged, compared)])),
        best_baseline=best,
        settled=bool(head and head.verdict == Verdict.BETTER),
        comparisons=compared,
        cheaper=cheaper,
        cheaper_text=cheaper_words(analysis, cheaper, cell) if cheaper else none_cheaper(analysis, cell),
        snippet=snippet(cell),
        caveats=said,
        weights_run=runs[0].run_id if runs else "",
        judged=judged,
        tasks=(picks := task_picks(analysis)),
        task_text=task_words(analysis, picks),
        winners_curse=(curse := winners_curse(analysis)),
        retention=kept,
        takes=what_it_would_take(analysis, judged) if head and head.verdict in (Verdict.SAME, Verdict.NONE) else "",
        checks=tuple(
            filter(
                None,
                [
                    _against_matched_controls(compared, judged, cell),
                    image_dependence_sentence(analysis, cell),
                    retention_words(kept, cell, margin_words(judged, kept.measure) if kept else ""),
                    _winners_curse_sentence(analysis, curse),
                    _flagged(analysis, cell, best),
                ],
            )
        ),
    )


def _begun(fresh: Analysis, cell: Cell) -> bool:
    """Whether fresh replicates have scores of the winner and of a baseline; until then the study's own judge."""
    measure = fresh.objective.name
    against = [c for b in BASELINES if (c := fresh.baselines.get((measure, b)))] or [cell.id]
    return (cell.id, measure) in fresh.means and any((c, measure) in fresh.means for c in against)


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
    analysis: Analysis,
    judged: Analysis,
    cell: Cell,
    best: Cell | None,
    head: Comparison | None,
    ranked: list[Cell],
) -> tuple[str, str]:
    """Headline and lead."""
    rate = f" at learning rate {cell.chosen_lr:g}" if cell.chosen_lr is not None else ""
    use = f"Use {cell.name}{rate}."
    over = _over(analysis)
    if best is None or head is None:
        return use, "It is the best on validation. The study holds no baseline that it could be judged by."
    if head.difference is None:
        hint = _hint(analysis, head)
        lead = _baseline_won(judged, cell, ranked, over) + hint
        known = judged.means.get((cell.id, analysis.objective.name))
        if known is None or known.replicates < FEWEST or known.examples < FEWEST_EXAMPLES:
            return f"No verdict yet: {cell.name} is the best on validation{rate}.", lead
        if hint:
            return f"Use {cell.name}{rate}: nothing did better on validation.", lead
        return f"Nothing here beats the best baseline: use {cell.name}{rate}.", lead
    size = f"{analysis.objective.unit.size(head.difference)} on {over}"
    on = "On test" if judged is analysis else f"On test, trained again on {_seeds(head.difference)},"
    if head.verdict == Verdict.BETTER:
        return use, f"{on} it is better than the best baseline, {best.name}: {size}."
    hint = _hint(analysis, head)
    points = f"Validation points to {cell.name}{rate}; {on[0].lower()}{on[1:]} it is"
    if head.verdict == Verdict.EQUIVALENT:
        return (
            f"Nothing here beats the best baseline: {cell.name} and {best.name} are as good as each other.",
            f"{points} equivalent to the best baseline, {best.name}, within ± "
            f"{margin_words(judged, analysis.objective)}: {size}.{hint}",
        )
    if head.verdict == Verdict.SAME:
        return (
            "Nothing here beats the best baseline beyond the noise.",
            f"{points} not distinguishable from the best baseline, {best.name}: {size}."
            f"{correction_sentence(head)}{hint}",
        )
    if head.verdict == Verdict.WORSE:
        return (
            f"Nothing here is shown to beat the best baseline, {best.name}.",
            f"{points} worse: {size}.{hint}",
        )
    few = head.difference.replicates
    takes = f"a verdict takes {FEWEST}" if few < FEWEST else f"the plan reads verdicts at {looks(judged)}"
    if head.difference.examples < FEWEST_EXAMPLES:
        takes = f"a verdict takes {FEWEST_EXAMPLES} test images"
    return (
        f"No verdict yet: {cell.name} is the best on validation{rate}.",
        f"Against the best baseline, {best.name}, it makes {size} on test, "
        f"from {few}{' fresh' * (judged is not analysis)} replicate{'s' * (few != 1)}; {takes}.",
    )


def _seeds(difference: Estimate) -> str:
    return f"{difference.replicates} fresh seed{'s' * (difference.replicates != 1)}"


def _against_matched_controls(compared: Sequence[Comparison], judged: Analysis, cell: Cell) -> str:
    """Whether it is the fusion, or its parameters and FLOPs: the controls of the same budget."""
    found = [
        c for c in compared if c.baseline in MATCHED_CONTROLS and c.measure == judged.objective.name and c.difference
    ]
    if not found:
        return ""
    unit = judged.objective.unit
    clear = (Verdict.BETTER, Verdict.WORSE)
    parts = [
        f"{c.verdict if c.verdict in clear else 'not told apart'} "
        f"{'than' if c.verdict in clear else 'from'} {c.baseline} ({unit.effect(c.difference)})"
        for c in found
        if c.difference
    ]
    return f"Is it the fusion or its size? {cell.name} is {listed(parts)}."


def _winners_curse_sentence(analysis: Analysis, curse: WinnersCurse | None) -> str:
    if curse is None:
        return ""
    unit = analysis.objective.unit
    share = dict(curse.winners).get(curse.winner.id, 0.0)
    return (
        f"Picking the best of {curse.candidates} makes its validation score look better than it is by about "
        f"{' '.join(filter(None, [unit.score(curse.optimism), unit.difference]))}; drawn anew, the same cell is "
        f"picked in {100 * share:.0f} % of cases."
    )


def _flagged(analysis: Analysis, cell: Cell, best: Cell | None) -> str:
    """Trainings that did not come to their end, of the two cells that the headline is about."""
    cells = [c for c in (cell, best) if c]
    parts = [f"{c.name} ({'; '.join(found)})" for c in cells if (found := flags(analysis.record, c))]
    return f"Mind the training of {' and of '.join(dict.fromkeys(parts))}." if parts else ""


def margin_words(analysis: Analysis, measure: Measure) -> str:
    """The margin of equivalence as people write it."""
    margin = analysis.margin(measure) or 0.0
    return " ".join(filter(None, [measure.unit.score(margin), measure.unit.difference]))


def decided(analysis: Analysis, cell: Cell) -> bool:
    """Whether a cell has a firm verdict against every baseline on the primary measure."""
    found = [c for b in BASELINES if (c := analysis.comparisons.get((analysis.objective.name, b, cell.id)))]
    judged = [c for c in found if c.difference is not None]
    return bool(judged) and all(c.verdict in (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT) for c in judged)


def _baseline_won(analysis: Analysis, cell: Cell, ranked: list[Cell], over: str) -> str:
    """The recommended cell is a baseline: how the best of the others fares against it."""
    measure = analysis.objective.name
    others = [c for c in ranked if not c.single and c.strategy != MATCHED_STRATEGY and c.id != cell.id]
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
    words: dict[str, str] = {
        Verdict.NONE: "cannot be judged yet",
        Verdict.SAME: "is not distinguishable from it",
        Verdict.EQUIVALENT: "is equivalent to it",
    }
    word = words.get(found.verdict, f"is {found.verdict} than it")
    size = analysis.objective.unit.size(found.difference)
    return f"{lead} The best other fusion there, {others[0].name}, {word} on test: {size} on {over}."


def _losses(analysis: Analysis, compared: Sequence[Comparison]) -> str:
    """Tasks on which a baseline does better: the best on average is not the best at everything."""
    parts = []
    for task in analysis.record.tasks:
        lost = {
            c.against: c for c in compared if c.measure == task.name and c.verdict == Verdict.WORSE and c.difference
        }
        if lost and len(analysis.measures) > 1:
            unit = analysis.measure(task.name).unit
            names = [
                f"{analysis.record.cell(a).name} ({unit.effect(c.difference)})" for a, c in lost.items() if c.difference
            ]
            parts.append(f"on {task.name} it is worse than {listed(names)}")
    return f"Not for every task: {'; '.join(parts)}." if parts else ""


def _hint(analysis: Analysis, head: Comparison) -> str:
    """Cells that test, but not validation, puts above the best baseline."""
    found = [
        c
        for (m, b, _), c in analysis.comparisons.items()
        if (m, b) == (head.measure, head.baseline) and c.verdict == Verdict.BETTER
    ]
    above = [analysis.record.cell(c.cell).name for c in found if c.cell != head.cell]
    if len(above) < len(found):  # only where fresh replicates judge it
        return " On the replicates that it was picked on it looked better: that did not hold."
    if not above:
        return ""
    names = ", ".join(above[:3]) + (f" and {len(above) - 3} more" if len(above) > 3 else "")
    which = "it" if len(above) == 1 else "them"
    return f" Test puts {names} above that baseline, but validation did not pick {which}: a hint, not a result."


def _over(analysis: Analysis) -> str:
    tasks = analysis.record.tasks
    if len(tasks) < 2:
        return tasks[0].name if tasks else "the objective"
    return f"the mean of {listed([t.name for t in tasks])}"
