"""Going on with a study: what an earlier run left half done in ledger and MLflow is put right, by the ledger."""

from __future__ import annotations

from fusion_workbench.schema.names import OPEN, LedgerState, RunStatus
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.tracking import Tracker


def reconcile(ledger: Ledger, tracker: Tracker, run_id: str, retry_failed: bool = False) -> int:
    """Close runs that MLflow still takes for open, and drop the rows that have to be trained again.

    Those are rows that an interruption left RUNNING and, with ``retry_failed``, those that did not train to their end.
    A row whose run MLflow has lost is no reason: :mod:`runner.restore` gave it one before.

    Args:
        ledger: the study's own record, which decides.
        tracker: MLflow.
        run_id: the study's parent run.
        retry_failed: train again what diverged or ran out of memory.

    Returns:
        How many rows are done and stay.
    """
    entries = ledger.entries()
    runs = tracker.children(run_id)
    owner = {entry.run_id: entry for entry in entries if entry.state == LedgerState.DONE}
    for child, status in runs.items():
        if status not in OPEN:
            continue
        entry = owner.get(child)
        if entry is None:
            tracker.close(child, RunStatus.KILLED)
        else:
            tracker.close_done(child, str(entry.status), entry.result)
    for entry in entries:
        again = retry_failed and entry.state == LedgerState.DONE and not entry.finished
        if entry.state == LedgerState.RUNNING or again:
            ledger.forget(entry.variant, entry.replicate)
    return sum(entry.state == LedgerState.DONE for entry in ledger.entries())
