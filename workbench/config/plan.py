"""The analysis plan: what will count as a result of a study, fixed before its first run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.schema.names import OVERALL
from fusion_workbench.schema.plan import FEWEST, ComparisonFamily, Plan


@dataclass
class FamilyConfig:
    """Measures (tasks, or ``overall``) whose comparisons are corrected together, at a share of the plan's level."""

    measures: list[str] = field(default_factory=list)
    share: float = 1.0


@dataclass
class PlanConfig:
    """What counts as a result. Its hash is registered before the first run; later changes are recorded."""

    primary: str = ""  # the measure that decides: a task or overall; empty: overall, or the only task
    families: list[FamilyConfig] = field(default_factory=list)  # empty: primary at 4/5 of the level, others at 1/5
    level: float = 0.05  # chance of any false better or worse in the whole study
    margin: float | None = 0.01  # of equivalence: in scores where they are shares, else as a share of chance to perfect
    looks: list[int] = field(default_factory=list)  # replicates after which verdicts are read; empty: all, once
    confirm: list[int] = field(default_factory=lambda: [5])  # looks at fresh replicates of winner and baselines
    confirm_share: float = 0.5  # of the level, for what is judged on fresh replicates; the rest is for all cells


def check_plan(plan: PlanConfig, tasks: Sequence[str], replicates: int, where: str) -> None:
    """Values that types cannot express. Raises WorkbenchError for the first that is wrong."""
    named = [measure for family in plan.families for measure in family.measures]
    names = measures(tasks)
    for name in filter(None, [plan.primary, *named]):
        if name not in names:
            raise WorkbenchError(f"{where}: plan names the measure '{name}'.{nearest(name, names)}")
    if not 0 < plan.level < 0.5:
        raise WorkbenchError(f"{where}: plan.level is {plan.level}; it is the chance of a false verdict, such as 0.05.")
    if plan.margin is not None and not 0 < plan.margin < 1:
        raise WorkbenchError(
            f"{where}: plan.margin is {plan.margin}; it is the difference that is as good as none, such as 0.01 for "
            "one point, or null."
        )
    if len(set(named)) < len(named) or any(not f.measures or not f.share > 0 for f in plan.families):
        raise WorkbenchError(
            f"{where}: every entry of plan.families needs measures and a share above 0, and no measure stands in two."
        )
    if sum(f.share for f in plan.families) > 1 + 1e-9:
        raise WorkbenchError(f"{where}: the shares of plan.families add up to more than 1, which is the whole level.")
    primary = plan.primary or names[-1]
    if named and primary not in named:
        raise WorkbenchError(f"{where}: plan.families leaves out the primary measure '{primary}'.")
    looks = plan.looks
    if looks and (looks != sorted(set(looks)) or looks[0] < FEWEST or looks[-1] != replicates):
        raise WorkbenchError(
            f"{where}: plan.looks is {looks}; it must rise from {FEWEST} or more to replicates ({replicates})."
        )
    confirm = plan.confirm
    if confirm and (confirm != sorted(set(confirm)) or confirm[0] < FEWEST):
        raise WorkbenchError(
            f"{where}: plan.confirm is {confirm}; it must rise from {FEWEST} or more fresh replicates; empty: nothing "
            "is trained again."
        )
    if not 0 < plan.confirm_share < 1:
        raise WorkbenchError(
            f"{where}: plan.confirm_share is {plan.confirm_share}; it is the part of the level that is kept for the "
            "fresh replicates, above 0 and below 1, such as 0.5."
        )


def measures(tasks: Sequence[str]) -> list[str]:
    """The tasks and, of several, their mean; what decides unless a plan says otherwise comes last."""
    return [*tasks, OVERALL] if len(tasks) > 1 else list(tasks)


def full_plan(plan: PlanConfig, tasks: Sequence[str], replicates: int) -> dict[str, Any]:
    """The plan with every default written out: plain dicts, lists and numbers."""
    names = measures(tasks)
    primary = plan.primary or names[-1]
    others = [m for m in names if m != primary]
    families = tuple(ComparisonFamily(tuple(f.measures), f.share) for f in plan.families) or (
        ComparisonFamily((primary,), 0.8 if others else 1.0),
        *([ComparisonFamily(tuple(others), 0.2)] if others else []),
    )
    return Plan(
        primary=primary,
        families=families,
        level=plan.level,
        margin=plan.margin,
        looks=tuple(plan.looks) or (replicates,),
        confirm=tuple(plan.confirm),
        confirm_share=plan.confirm_share if plan.confirm else 0.0,
    ).plain()
