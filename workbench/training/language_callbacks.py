"""What a training of a vision-language model tells while it runs: its loss curve, and metrics of single steps.

Both are Lightning callbacks. The curve is part of the run's record and of its checkpoints; metrics of steps go to the
trainer's loggers, and nothing is computed from them but whether the training has diverged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.schema.names import TRAIN_LOSS, Status, StepMetric
from fusion_workbench.study.record import peak_memory_mb

SECTIONS = 8  # rows of the loss curve per stage
LossRow = dict[str, float]


class Training(Protocol):
    """What is told of: :class:`~training.language_training.LanguageRun`, which says what each is."""

    model: VisionLanguageModel
    history: list[LossRow]
    status: str | None
    seconds: float
    before: float
    samples: int
    flops_seen: float
    tell: Callable[[int, LossRow], None]
    advance: Callable[[int], None]

    @property
    def tokens_per_image(self) -> int: ...

    @property
    def flops_per_position(self) -> int: ...

    def clock(self) -> float: ...

    def gates(self) -> LossRow: ...


class LossCurve(L.Callback):
    """The mean loss of each section of a stage; what was seen of it is kept in the checkpoints."""

    def __init__(self, run: Training) -> None:
        self.run = run
        self.steps = 1
        self._loss: Any = 0.0
        self._batches = 0

    def state_dict(self) -> dict[str, Any]:
        run = self.run
        return {
            "history": run.history,
            "loss": float(self._loss),
            "batches": self._batches,
            "seconds": run.before + run.seconds + run.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loss, self._batches = state["loss"], state["batches"]
        self.take_up(state)

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from what an earlier process had seen."""
        self.run.history = [dict(row) for row in state.get("history", [])]
        self.run.before = float(state.get("seconds", 0.0))
        for place, row in enumerate(self.run.history):
            self.run.tell(place, row)

    @property
    def state_key(self) -> str:
        return "_Recorder"  # its name in the checkpoints of 0.1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps = int(trainer.estimated_stepping_batches)
        self._seen = trainer.global_step
        self.run.advance(self._seen)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss = self._loss + of_batch(trainer, outputs)
        self._batches += 1
        self.run.samples += len(batch["index"])
        if trainer.global_step == self._seen:
            return  # a batch that is accumulated
        before, self._seen = self._seen, trainer.global_step
        self.run.advance(self._seen - before)
        if self._section(self._seen) > self._section(before) or self._seen == self.steps:
            self._close(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batches and self.run.status == Status.DIVERGED:
            self._close(trainer)

    def _section(self, step: int) -> int:
        return step * SECTIONS // self.steps

    def _close(self, trainer: L.Trainer) -> None:
        loss = of_all_processes(trainer, self._loss / max(1, self._batches), self.run.model.decoder.device)
        self._loss, self._batches = 0.0, 0
        row = {TRAIN_LOSS: loss, "lr": rate(trainer)} | self.run.gates()
        self.run.history.append(row)
        self.run.tell(len(self.run.history) - 1, row)


class StepMetrics(L.Callback):
    """Every few steps their mean loss, gradient norm, speed and memory; ends a training whose loss is no number.

    Nothing is read from the device in the steps between.

    Args:
        run: what trains.
        every: steps that are told as one; the last of a stage may be fewer.
        base: steps of the stages before.
    """

    def __init__(self, run: Training, every: int, base: int) -> None:
        self.run, self.every, self.base = run, every, base

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen = trainer.global_step
        self._last = int(trainer.estimated_stepping_batches)
        self._norm = math.nan
        self._begin()

    def _begin(self) -> None:
        self._loss: Any = 0.0
        self._words: Any = 0
        self._batches = self._images = 0
        self._since = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before the gradients are clipped; they are no longer scaled."""
        if self._closes(trainer.global_step + 1):
            self._norm = gradient_norm(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss = self._loss + of_batch(trainer, outputs)
        self._words = self._words + batch["attention_mask"].sum()
        self._images += batch["features"].shape[1]
        self._batches += 1
        if trainer.global_step == self._seen:
            return  # a batch that is accumulated
        self._seen = trainer.global_step
        if self._closes(self._seen):
            self._close(trainer)

    def _closes(self, step: int) -> bool:
        return step % self.every == 0 or step == self._last

    def _close(self, trainer: L.Trainer) -> None:
        loss = of_all_processes(trainer, self._loss / self._batches, self.run.model.decoder.device)
        # An image's place is a word of the mask already.
        positions = int(self._words) + self._images * (self.run.tokens_per_image - 1)
        seconds = time.perf_counter() - self._since
        self.run.flops_seen += positions * self.run.flops_per_position
        row = {
            StepMetric.LOSS: loss,
            StepMetric.LR: rate(trainer),
            StepMetric.GRADIENT_NORM: self._norm,
            StepMetric.POSITIONS: positions / seconds * trainer.world_size,
            StepMetric.MEMORY: peak_memory_mb(),
        }
        for logger in trainer.loggers:
            logger.log_metrics({str(name): value for name, value in row.items()}, step=self.base + self._seen)
        if not math.isfinite(loss):
            self.run.status = Status.DIVERGED
            trainer.should_stop = True
        self._begin()


class TellingLogger(Logger):
    """Lightning's logger of a run: metrics go where the study keeps them; params it has written down before."""

    def __init__(self, tell: Callable[[int, LossRow], None]) -> None:
        super().__init__()
        self._tell = tell

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._tell(step or 0, metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


def of_batch(trainer: L.Trainer, outputs: Any) -> Tensor:
    """The loss of a batch: Lightning hands it over as its share of a step that accumulates several."""
    loss: Tensor = outputs["loss"].detach() * trainer.accumulate_grad_batches
    return loss


def of_all_processes(trainer: L.Trainer, mean: Any, device: torch.device) -> float:
    """The mean over all processes: one that stopped alone would leave the others waiting for its gradients."""
    return float(trainer.strategy.reduce(torch.as_tensor(mean, device=device), reduce_op="mean"))


def rate(trainer: L.Trainer) -> float:
    """The learning rate of the first group."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def gradient_norm(model: nn.Module) -> float:
    """The 2-norm of all gradients together, of a sharded model too."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
