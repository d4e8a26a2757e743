"""The plan of a study, tracked before its first run; every later change of it, told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fusion_workbench.config.plan import full_plan
from fusion_workbench.config.study import StudyConfig
from fusion_workbench.schema.names import SEARCH_REPLICATE, Artifact, Tag
from fusion_workbench.schema.plan import TrackedPlan, plan_hash
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.tracking import Tracker, to_json

_WORDS = {
    "primary": "primary measure",
    "looks": "replicates at which verdicts are read",
    "confirm": "fresh replicates at which the winner is judged",
    "confirm_share": "share of the level for the fresh replicates",
}


def register_plan(study: StudyConfig, ledger: Ledger, tracker: Tracker, run_id: str) -> dict[str, Any]:
    """Track the plan as ``plan.json`` and its hash as a tag; return it in full.

    The plan that stood before the first run stays in the ledger. Another one later is used, and its changes are written
    down with the number of replicates that could have been looked at by then.
    """
    plan = full_plan(study.plan, study.tasks, study.replicates)
    finished = sum(1 for entry in ledger.entries() if entry.finished and entry.replicate != SEARCH_REPLICATE)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    known: dict[str, Any] | None = ledger.fact("plan")
    if known is None:
        late = [f"{now}, after {finished} finished variant-replicates: a plan was tracked for the first time"]
        known = {"first": plan, "last": plan, "changes": late if finished else []}
    if known["last"] != plan:
        if finished:
            told = ", ".join(
                f"{_WORDS.get(key, key)} from {known['last'][key]} to {plan[key]}"
                for key in plan
                if known["last"][key] != plan[key]
            )
            known["changes"].append(f"{now}, after {finished} finished variant-replicates: {told}")
        else:
            known["first"] = plan
        known["last"] = plan
    ledger.remember("plan", known)
    tracker.set_tags(run_id, {Tag.PLAN: plan_hash(known["first"])})
    write_plan(ledger, tracker, run_id)
    return plan


def write_plan(ledger: Ledger, tracker: Tracker, run_id: str) -> None:
    """``plan.json`` as the ledger knows it."""
    known = ledger.fact("plan")
    tracked = TrackedPlan(
        plan=known["last"],
        first=known["first"],
        changes=tuple(known["changes"]),
        stopped=ledger.fact("stopped"),
        confirmed=ledger.fact("confirmed"),
    )
    tracker.log_files(run_id, {Artifact.PLAN: to_json(tracked.plain())})
