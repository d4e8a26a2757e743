"""What Lightning calls while a probe bank trains."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence

import lightning as L

from fusion_workbench.modules.probes.bank import FusionBank
from fusion_workbench.study.tracking import Tracker


class BankRecorder(L.Callback):
    """After each epoch: every member's row to its MLflow run, in one call each, and the progress bar forward."""

    def __init__(self, tracker: Tracker, run_ids: Sequence[str], advance: Callable[[int], None]) -> None:
        self.tracker = tracker
        self.run_ids = run_ids
        self.advance = advance
        self._sent = [0] * len(run_ids)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Callbacks run before the module's own hook: this epoch's row is sent at the next call, the last by on_fit_end.
        self._send(pl_module)
        assert isinstance(pl_module, FusionBank)
        self.advance(len(pl_module.probe_runs))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._send(pl_module)

    def _send(self, bank: L.LightningModule) -> None:
        assert isinstance(bank, FusionBank)
        for number, (probe_run, run_id) in enumerate(zip(bank.probe_runs, self.run_ids, strict=True)):
            rows = [
                (epoch, {key: value for key, value in row.items() if math.isfinite(value)})
                for epoch, row in enumerate(probe_run.history)
                if epoch >= self._sent[number]
            ]
            if rows:
                self.tracker.log_metrics(run_id, rows)
                self._sent[number] = len(probe_run.history)


def quiet_lightning() -> None:
    """Lightning announces the hardware at every fit, and advises workers that a memory map does not need."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # what is frozen
    warnings.filterwarnings("ignore", message=".*defined a `validation_step` but have no.*")
    warnings.filterwarnings("ignore", message=".*have no `validation_step`.*")
