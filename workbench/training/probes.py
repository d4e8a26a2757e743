"""Training probes: the variants of one replicate in probe banks, over one pass of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fusion_workbench.schema.names import Phase, Status
from fusion_workbench.study.identity import seed_of
from fusion_workbench.study.jobs import Job, JobTrainer
from fusion_workbench.study.record import variant_file
from fusion_workbench.training.probe_record import child_files, child_params, final_metrics

if TYPE_CHECKING:
    import torch

    from fusion_workbench.modules.probes.bank import FusionBank
    from fusion_workbench.modules.probes.member import ProbeRun, ProbeRunConfig
    from fusion_workbench.study.prepare import Parts

EVAL_BATCH = 64  # images of validation and test at a time; nothing depends on it


class BankTrainer(JobTrainer):
    """Jobs as members of :class:`modules.probes.bank.FusionBank`."""

    token_maps = True

    @property
    def together(self) -> int:
        return self.study.training.bank_size

    @property
    def units(self) -> int:
        return self.study.training.epochs

    def params(self, job: Job) -> dict[str, Any]:
        return child_params(self.study, job.variant, job.replicate)

    def train_group(
        self, jobs: Sequence[Job], run_ids: Sequence[str], phase: str, advance: Callable[[int], None]
    ) -> None:
        import lightning as L
        import torch

        from fusion_workbench.datamodules.datamodule import AblationDataModule
        from fusion_workbench.training.probe_callbacks import BankRecorder, quiet_lightning

        quiet_lightning()
        layers = sorted({layer for job in jobs for layer in job.variant.cell.selection.layers})
        bank, jobs, run_ids = self._bank(jobs, run_ids, layers)
        if bank is None:
            return
        data = AblationDataModule(
            self.parts.features,
            layers=tuple(layers),
            batch_size=self.study.training.batch_size,
            order_seed=seed_of("order", jobs[0].replicate),
            eval_batch_size=max(EVAL_BATCH, self.study.training.batch_size),
            num_workers=self.study.training.num_workers,
        )
        training = self.study.training
        trainer = L.Trainer(
            max_epochs=training.epochs,
            accelerator=training.accelerator,
            devices=training.devices,
            precision=training.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[BankRecorder(self.tracker, run_ids, advance)],
            default_root_dir=self.parts.folder,
        )
        if torch.cuda.is_available():  # else the most that any bank before this one took
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(bank, data)
        if phase != Phase.SEARCH:
            trainer.test(bank, data, verbose=False)
        for job, probe_run, run_id in zip(jobs, bank.probe_runs, run_ids, strict=True):
            metrics, files = self._results(job, probe_run, phase, trainer.strategy.root_device)
            last = probe_run.history[-1] if probe_run.history else {}
            status = probe_run.status or Status.FAILED  # Lightning ended before the last epoch, without an error
            self.commit(job, run_id, status, len(probe_run.history), metrics, files, last, probe_run.error)

    def _bank(
        self, jobs: Sequence[Job], run_ids: Sequence[str], layers: Sequence[int]
    ) -> tuple[FusionBank | None, list[Job], list[str]]:
        """A bank of the jobs that can be built, with these and their runs; the others have failed."""
        from fusion_workbench.modules.probes.bank import FusionBank
        from fusion_workbench.modules.probes.member import MemberNotBuilt

        left = list(zip(jobs, run_ids, strict=True))
        while left:
            try:
                members = [member_of(self.parts, job) for job, _ in left]
                bank = FusionBank(members, self.parts.tasks, layers, self.parts.encoder.grid())
            except MemberNotBuilt as error:
                job, run_id = left.pop(error.number)
                failure = error.failure
            else:
                return bank, [job for job, _ in left], [run_id for _, run_id in left]
            self.commit(job, run_id, failure.status, 0, {}, variant_file(job.variant), {}, failure.words)
        return None, [], []

    def _results(
        self, job: Job, probe_run: ProbeRun, phase: str, device: torch.device
    ) -> tuple[dict[str, float], dict[str, str | bytes]]:
        """Metrics and files of a member; its strategy is run once more for them, and may raise."""
        from fusion_workbench.modules.probes.guard import MemberFailed, of_member

        grid = self.parts.encoder.grid()
        try:
            with of_member("while its cost was measured"):
                metrics = final_metrics(probe_run, self.parts, grid, phase, device)
                return metrics, child_files(probe_run, self.parts, job.variant, phase)
        except MemberFailed as failure:
            probe_run.fail(failure)
        return {}, variant_file(job.variant)


def member_of(parts: Parts, job: Job) -> ProbeRunConfig:
    """The job as a member of a bank: what is built, at which rates, from which seeds."""
    from fusion_workbench.modules.optim import Recipe
    from fusion_workbench.modules.probes.member import ProbeRunConfig
    from fusion_workbench.modules.probes.probe import ProbeConfig

    training, cell = parts.study.training, job.variant.cell
    return ProbeRunConfig(
        variant=job.variant.id,
        label=cell.label,
        probe=ProbeConfig(
            strategy=cell.strategy,
            selection=cell.selection,
            dim=parts.encoder.dim,
            options=dict(cell.options),
            projector=training.projector,
            width=training.width,
            head_hidden=training.head_hidden,
            grid=parts.encoder.grid(),
        ),
        recipe=Recipe.of(
            job.variant.lr,
            {
                "fuser": training.fuser_lr_scale,
                "gates": training.gates_lr_scale,
                "projector": training.projector_lr_scale,
                "head": training.head_lr_scale,
            },
            weight_decay=training.weight_decay,
            warmup=training.warmup,
            gradient_clip=training.gradient_clip,
        ),
        init_seed=seed_of("init", job.replicate, job.variant.id),
        dropout_seed=seed_of("dropout", job.replicate, job.variant.id),
    )
