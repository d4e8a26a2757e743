"""The plan of a study, registered before its first run, with every later change of it."""

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
    """Register the plan: ``plan.json`` and its hash as a tag. Returns it in full.

    The plan that stood before the first run stays in the ledger. Another one later is used, and its changes are written
    down with the number of replicates whose results could have been seen by then.
    """
    plan = full_plan(study.plan, study.tasks, study.replicates)
    finished = sum(1 for entry in ledger.entries() if entry.finished and entry.replicate != SEARCH_REPLICATE)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    tracked: dict[str, Any] | None = ledger.fact("plan")
    if tracked is None:
        late = [f"{now}, after {finished} finished variant-replicates: a plan was tracked for the first time"]
        tracked = {"first": plan, "last": plan, "changes": late if finished else []}
    if tracked["last"] != plan:
        if finished:
            changed = ", ".join(
                f"{_WORDS.get(key, key)} from {tracked['last'][key]} to {plan[key]}"
                for key in plan
                if tracked["last"][key] != plan[key]
            )
            tracked["changes"].append(f"{now}, after {finished} finished variant-replicates: {changed}")
        else:
            tracked["first"] = plan
        tracked["last"] = plan
    ledger.remember("plan", tracked)
    tracker.set_tags(run_id, {Tag.PLAN: plan_hash(tracked["first"])})
    write_plan(ledger, tracker, run_id)
    return plan


def write_plan(ledger: Ledger, tracker: Tracker, run_id: str) -> None:
    """``plan.json`` as the ledger holds it."""
    entry = ledger.fact("plan")
    tracked = TrackedPlan(
        plan=entry["last"],
        first=entry["first"],
        changes=tuple(entry["changes"]),
        stopped=ledger.fact("stopped"),
        confirmed=ledger.fact("confirmed"),
    )
    tracker.log_files(run_id, {Artifact.PLAN: to_json(tracked.plain())})
