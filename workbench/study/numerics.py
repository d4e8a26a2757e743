"""Under which numerics a study's rows were trained: recorded with the study, and a mixture is reported."""

from __future__ import annotations

from fusion_workbench.schema.names import LedgerState, Tag
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.tracking import Tracker
from fusion_workbench.version import NUMERICS

FACT = "numerics"  # in the ledger, a list in the order of training


def open_numerics(ledger: Ledger, tracker: Tracker, run_id: str) -> str:
    """Record the numerics of a study that is opened, after its ledger was reconciled.

    Returns:
        One line where the study holds rows of other numerics than ours, else nothing.
    """
    rows = any(entry.state == LedgerState.DONE for entry in ledger.entries())
    recorded = (ledger.fact(FACT) or [1]) if rows else [NUMERICS]  # 0.1.0 did not record its own, which are 1
    _record(recorded, ledger, tracker, run_id)
    if recorded == [NUMERICS]:
        return ""
    return (
        f"begun under numerics {recorded[0]} of the workbench; new variant-replicates are trained under {NUMERICS}, "
        "and their numbers do not compare exactly"
    )


def add_numerics(ledger: Ledger, tracker: Tracker, run_id: str) -> None:
    """Record that rows are trained under ours."""
    recorded = ledger.fact(FACT) or []
    if NUMERICS not in recorded:
        _record([*recorded, NUMERICS], ledger, tracker, run_id)


def _record(numerics: list[int], ledger: Ledger, tracker: Tracker, run_id: str) -> None:
    ledger.remember(FACT, numerics)
    tracker.set_tags(run_id, {Tag.NUMERICS: ", ".join(map(str, numerics))})
