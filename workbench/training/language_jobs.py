"""Training vision-language models: one job at a time, evaluated once it is trained, and recorded as every job is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import NO_IMAGE_KINDS, OBJECTIVE, Phase, Status, on_validation
from fusion_workbench.study.jobs import Job, JobTrainer
from fusion_workbench.study.language_parts import stage_steps
from fusion_workbench.study.record import variant_file
from fusion_workbench.system.scratch import scratch_folder
from fusion_workbench.training import language_record
from fusion_workbench.training.language_record import child_files, child_params, final_metrics, length_params

if TYPE_CHECKING:
    from fusion_workbench.study.prepare import Parts


class _End(NamedTuple):
    """What :meth:`JobTrainer.commit` writes down."""

    status: str
    step: int
    metrics: Mapping[str, float]
    files: Mapping[str, str | bytes | Path]
    last: Mapping[str, float]
    error: str = ""


class LanguageTrainer(JobTrainer):
    """Jobs as :class:`training.language_training.LanguageRun`."""

    unit = "steps"
    _told = False  # what is cut and left out

    @classmethod
    def study_files(cls, parts: Parts) -> dict[str, str | bytes]:
        return language_record.study_files(parts)

    @property
    def units(self) -> int:
        assert self.parts.language is not None
        return sum(stage_steps(self.study, self.parts.language))

    def params(self, job: Job) -> dict[str, Any]:
        assert self.parts.language is not None
        return child_params(self.study, job.variant, job.replicate) | length_params(self.parts.language, job.variant)

    def train(self, jobs: Sequence[Job], phase: str) -> None:
        language = self.parts.language
        assert language is not None
        if not self._told:
            self._told = True
            for stage in language.config.stages:
                if words := language.lengths(stage).words():
                    self.display.say(f"{stage.name}: {words}")
        super().train(jobs, phase)

    def train_group(
        self, jobs: Sequence[Job], run_ids: Sequence[str], phase: str, advance: Callable[[int], None]
    ) -> None:
        from fusion_workbench.modules.probes.guard import MemberFailed, of_member
        from fusion_workbench.training.probe_callbacks import quiet_lightning

        quiet_lightning()
        (job,), (run_id,) = jobs, run_ids
        steps = 0

        def count(more: int) -> None:
            nonlocal steps
            steps += more
            advance(more)

        folder = self.parts.folder / "checkpoints" / f"{job.variant.id}-{job.replicate}"
        with scratch_folder() as scratch:
            try:
                # What the study's data, tracker and disk raise is none of the cell's.
                with of_member(lambda: f"after step {steps} of {self.units}", WorkbenchError, OSError):
                    end = self._train_one(job, run_id, phase, folder, count, scratch)
            except MemberFailed as failure:
                end = _End(failure.status, 0, {}, variant_file(job.variant), {}, failure.words)
            self.commit(job, run_id, *end)
        shutil.rmtree(folder, ignore_errors=True)  # the checkpoints of what is committed

    def _train_one(
        self, job: Job, run_id: str, phase: str, folder: Path, advance: Callable[[int], None], scratch: Path
    ) -> _End:
        """Train and evaluate a job; what is written down of it, whose larger files lie in ``scratch``."""
        from fusion_workbench.modules.probes.bank import objective
        from fusion_workbench.training.distributed import train_distributed
        from fusion_workbench.training.evaluation import Evaluator, SplitPredictions
        from fusion_workbench.training.language_callbacks import LossRow
        from fusion_workbench.training.language_training import LanguageRun

        language = self.parts.language
        assert language is not None

        def tell(number: int, row: LossRow) -> None:
            self.tracker.log_metrics(run_id, [(number, row)])

        if self.study.training.devices > 1:
            # It leaves its checkpoints for the run below to take up.
            result = train_distributed(self.parts, job, folder, tell, advance, tell)
            run = LanguageRun(self.parts, job, folder)
            if result.status == Status.FINISHED:
                run.train()
            run.status, run.history = result.status, result.history
            run.samples, run.seconds, run.before = result.samples, result.seconds, result.before
        else:
            run = LanguageRun(self.parts, job, folder, tell, advance, tell)
            run.train()
        assert run.status is not None  # training ended, or it raised
        run.to_device()
        answers: dict[str, SplitPredictions] = {}
        controls: dict[str, SplitPredictions] = {}
        last = dict(run.history[-1]) if run.history else {}
        if run.status == Status.FINISHED:
            evaluator = Evaluator(self.parts, run.model, run.layers)
            answers["val"] = evaluator.evaluate("val")
            values = answers["val"].metrics(language.tasks)
            last |= {on_validation(key): value for key, value in values.items()}
            last[OBJECTIVE] = objective(values, language.tasks)
            if phase != Phase.SEARCH:
                answers["test"] = evaluator.evaluate("test")
                if language.config.controls:
                    controls = {name: evaluator.evaluate("test", name) for name in NO_IMAGE_KINDS}
            tell(len(run.history), {key: value for key, value in last.items() if key.startswith(on_validation(""))})
        metrics = final_metrics(run, self.parts, answers, controls)
        files = child_files(run, self.parts, answers, phase, scratch)
        return _End(run.status, len(run.history), metrics, files, last)
