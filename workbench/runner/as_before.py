"""A start that is refused leaves a study as it was: what it wrote down before it knew is put back."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fusion_workbench.schema.names import OPEN, Artifact, RunStatus, Tag
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.plan_log import write_plan
from fusion_workbench.study.tracking import Tracker


class AsBefore:
    """What a study says of itself before a start changes it.

    Args:
        folder: the study's own, before anything is written there.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / Artifact.STUDY
        self.study_yaml = self.file.read_text(encoding="utf-8") if self.file.is_file() else None
        self.plan: object = None
        self.tags: dict[Tag, str] = {}
        self.status = str(RunStatus.FAILED)

    def remember(self, ledger: Ledger, tracker: Tracker) -> None:
        """Read plan, tags and status, before they are replaced."""
        self.plan = ledger.fact("plan")
        with suppress(Exception):  # MLflow raises many kinds; without the run there is nothing to put back
            run = tracker.client.get_run(str(ledger.fact("run_id")))
            self.tags = {tag: run.data.tags[tag] for tag in Tag if tag in run.data.tags}
            self.status = str(run.info.status)

    def restore(self, ledger: Ledger, tracker: Tracker, run_id: str) -> None:
        """Put it back."""
        if self.study_yaml is not None:
            self.file.write_text(self.study_yaml, encoding="utf-8")
            tracker.log_files(run_id, {Artifact.STUDY: self.study_yaml})
        if self.plan is not None:
            ledger.remember("plan", self.plan)
            write_plan(ledger, tracker, run_id)
        tracker.set_tags(run_id, self.tags)
        tracker.close(run_id, RunStatus.KILLED if self.status in OPEN else RunStatus(self.status))
