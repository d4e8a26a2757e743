"""``--fail-on``: what makes a report fail a continuous-integration job, in one line each.

A gate that cannot be read does not pass: where nothing is recommended, or no cell has a partner, every kind fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusion_workbench.reports.against.study import Against, CellChange
from fusion_workbench.reports.analysis.answer import Answer
from fusion_workbench.reports.analysis.comparison import Analysis
from fusion_workbench.reports.words.wording import listed
from fusion_workbench.schema.names import Verdict

WORSE_NOW, RECOMMENDED, DIFFERENT, UNKNOWN = "worse", "recommended-worse", "different", "no-verdict"
_NAMED = 3  # cells that a line names


def failures(analysis: Analysis, answer: Answer, against: Against | None) -> Mapping[str, str]:
    """Kind → what failed, for those kinds that fail.

    Alone: ``worse`` and ``recommended-worse`` when the recommended cell is worse than the best baseline on the primary
    measure, ``no-verdict`` when there is no verdict on that. Against another study: ``worse`` when any cell of both is
    worse than it was on any measure, or has no numbers any more; ``recommended-worse`` when what is recommended now is
    worse than what was; ``different`` when any cell is better or worse, or is in one study only, or another one is
    recommended; ``no-verdict`` when any comparison has too few replicates to judge.
    """
    if answer.cell is None:
        return dict.fromkeys((WORSE_NOW, RECOMMENDED, DIFFERENT, UNKNOWN), answer.headline.rstrip("."))
    return _alone(analysis, answer) if against is None else _against(analysis, answer, against)


def _alone(analysis: Analysis, answer: Answer) -> dict[str, str]:
    assert answer.cell is not None
    primary, best = analysis.objective.name, answer.best_baseline
    if best is None:
        return {UNKNOWN: f"{answer.cell.name} has no baseline to be judged by"}
    if best.id == answer.cell.id:  # it cannot be worse than itself
        return {}
    head = next((c for c in answer.comparisons if (c.measure, c.against) == (primary, best.id)), None)
    if head is None or head.difference is None or head.verdict == Verdict.NONE:
        return {UNKNOWN: f"no verdict yet on {answer.cell.name} against {best.name}, the best baseline"}
    if head.verdict != Verdict.WORSE:
        return {}
    size = analysis.objective.unit.size(head.difference)
    line = f"{answer.cell.name} is worse than {best.name}, the best baseline, on {primary}: {size}"
    return {WORSE_NOW: line, RECOMMENDED: line}


def _against(analysis: Analysis, answer: Answer, against: Against) -> dict[str, str]:
    before = against.before.name
    if not against.rows:
        nothing = f"nothing can be compared with {before}: no cell of both has numbers on the same measure"
        return dict.fromkeys((WORSE_NOW, RECOMMENDED, DIFFERENT, UNKNOWN), nothing)
    lost = [f"{cell.label} has no numbers any more" for cell in against.lost]
    worse = [_change_sentence(analysis, row) for row in against.all if row.verdict == Verdict.WORSE]
    other = [_change_sentence(analysis, row) for row in against.all if row.verdict == Verdict.BETTER]
    own = [r for r in against.recommended if r.measure == against.primary]
    if against.changed:
        was = against.before.recommended
        other.append(
            f"{answer.cell.name if answer.cell else 'nothing'} is recommended, before {was.name if was else 'nothing'}"
        )
    other += [f"{c.label} is new" for c in against.only_now] + [f"{c.label} is gone" for c in against.only_before]
    unknown = [f"{r.now.label} on {r.measure} has no verdict" for r in against.all if r.verdict == Verdict.NONE]
    found = {
        WORSE_NOW: worse + lost,
        RECOMMENDED: [_change_sentence(analysis, r) for r in own if r.verdict == Verdict.WORSE]
        or ([] if own else ["what is recommended now cannot be held against what was"]),
        DIFFERENT: worse + lost + other,
        UNKNOWN: unknown + lost,
    }
    return {kind: f"against {before}: {_few(lines)}" for kind, lines in found.items() if lines}


def _change_sentence(analysis: Analysis, row: CellChange) -> str:
    size = analysis.measure(row.measure).unit.size(row.estimate)
    than = "it was" if row.same_cell else f"{row.before.label} was"
    return f"{row.now.label} is {row.verdict} than {than} on {row.measure} ({size})"


def _few(lines: Iterable[str]) -> str:
    shown = list(dict.fromkeys(lines))
    more = len(shown) - _NAMED
    return listed([*shown[:_NAMED], f"{more} more"] if more > 0 else shown)
