"""The probe bank: the variants of one replicate, trained side by side on one stream of batches.

Every probe run has its own probe, optimizer, schedule, random state and status. What happens to one (it diverges or
runs out of memory) leaves the others as they would have been, and a bank of one is the ordinary Lightning
run: a variant ends with the same weights whichever runs are beside it, bitwise on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from fusion_workbench.modules.optim import Recipe, gate_rms, make_optimizer, named_gates
from fusion_workbench.modules.probes.probe import Probe, ProbeConfig, seeded_probe
from fusion_workbench.modules.tasks import Task
from fusion_workbench.schema.names import LOSS, OBJECTIVE, TRAIN_LOSS, Status, on_validation, task_metric


@dataclass(frozen=True)
class ProbeRunConfig:
    """One variant-replicate to train."""

    variant: str
    label: str
    probe: ProbeConfig
    recipe: Recipe
    init_seed: int
    dropout_seed: int


@dataclass
class Evaluation:
    """Per-example scores of one split, in the order of the split."""

    index: Tensor  # [N]
    scores: dict[str, Tensor]  # task → [N]
    items: dict[str, Tensor]  # task → [N]
    statistics: dict[str, dict[str, Tensor]]  # task → what its metric needs beyond these → [N]
    metrics: dict[str, float]  # "read/accuracy" → value
    loss: float


class ProbeRun:
    """A variant in training: its own module, optimizer, random state, history and status."""

    def __init__(self, config: ProbeRunConfig, tasks: Sequence[Task]) -> None:
        self.config = config
        self.probe: Probe = seeded_probe(config.probe, tasks, config.init_seed)
        self.status: str | None = None  # None while it trains
        self.history: list[dict[str, float]] = []  # one dict per epoch
        self.evaluations: dict[str, Evaluation] = {}
        self.diagnostics: dict[str, float] = {}
        self.inside: dict[str, Tensor] = {}  # what the fuser does, as arrays: Fusion.inspect without its regions
        gates = named_gates(self.probe.fuser, self.probe.fuser.gates())
        self.gates: dict[str, list[Tensor]] = {name: [] for name in gates}  # one [dim] an epoch
        self.step_seconds = 0.0
        self.marks: list[tuple[Any, Any]] = []  # CUDA events around steps, not yet read: reading waits for the device
        self.images = 0
        generator = torch.Generator().manual_seed(config.dropout_seed)
        self.rng_state = generator.get_state()
        self.cuda_rng_state: Tensor | None = None  # drawn from the same seed at the first step on CUDA
        self._loss_sum: Tensor | float = 0.0
        self._steps = 0

    @property
    def running(self) -> bool:
        return self.status is None

    def stop(self, status: str) -> None:
        """End its training and clear its gradients; the bank clears the optimizer's state."""
        if self.running:
            self.status = status
            for parameter in self.probe.parameters():
                parameter.grad = None

    def add_loss(self, loss: Tensor) -> None:
        self._loss_sum = self._loss_sum + loss.detach()
        self._steps += 1

    def read_marks(self) -> None:
        """Add the time between the marks to ``step_seconds``. Waits for the device."""
        for begun, ended in self.marks:
            ended.synchronize()
            self.step_seconds += begun.elapsed_time(ended) / 1000
        self.marks = []

    def take_loss(self) -> float:
        """Mean training loss since the last call; nan when there was no step."""
        mean = float(self._loss_sum) / self._steps if self._steps else math.nan
        self._loss_sum, self._steps = 0.0, 0
        return mean

    @contextmanager
    def own_randomness(self, device: torch.device | None = None) -> Iterator[None]:
        """Dropout draws from the run's own state, on ``device`` too, so that neighbours cannot shift it."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self.rng_state)
        try:
            if device is not None and device.type == "cuda":
                with self._own_cuda_randomness(device):
                    yield
            else:
                yield
        finally:
            self.rng_state = torch.get_rng_state()
            torch.set_rng_state(outside)

    @contextmanager
    def _own_cuda_randomness(self, device: torch.device) -> Iterator[None]:
        outside = torch.cuda.get_rng_state(device)
        if self.cuda_rng_state is None:
            self.cuda_rng_state = torch.Generator(device).manual_seed(self.config.dropout_seed).get_state()
        torch.cuda.set_rng_state(self.cuda_rng_state, device)
        try:
            yield
        finally:
            self.cuda_rng_state = torch.cuda.get_rng_state(device)
            torch.cuda.set_rng_state(outside, device)


class FusionBank(L.LightningModule):
    """K probes, one pass over the data.

    Args:
        configs: what to train; all read layers among ``layers``.
        tasks: read off the same fused tokens in every run.
        layers: the order of ``batch["features"]``'s first axis.
        grid: rows and columns of the tokens.
    """

    def __init__(
        self, configs: Sequence[ProbeRunConfig], tasks: Sequence[Task], layers: Sequence[int], grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tasks = list(tasks)
        self.grid = grid
        self.probe_runs = [ProbeRun(config, tasks) for config in configs]
        self.probes = nn.ModuleList(probe_run.probe for probe_run in self.probe_runs)
        place = {layer: position for position, layer in enumerate(layers)}
        self._rows = [tuple(place[layer] for layer in probe_run.probe.fuser.uses) for probe_run in self.probe_runs]
        self._split_scores: list[_SplitScores] = []

    # --- training -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        pairs = [
            make_optimizer(probe_run.probe.parts(), probe_run.config.recipe, total) for probe_run in self.probe_runs
        ]
        return [optimizer for optimizer, _ in pairs], [scheduler for _, scheduler in pairs]

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed" and len(self.probe_runs) > 1:
            raise ValueError("a gradient scaler couples the members of a bank; 16-mixed takes a bank of one")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        features = self._features(batch)
        optimizers, schedulers = _listed(self.optimizers()), _listed(self.lr_schedulers())
        for number, probe_run in enumerate(self.probe_runs):
            if not probe_run.running:
                continue
            with self._timed(probe_run), probe_run.own_randomness(self.device):
                try:
                    self._step(number, probe_run, features, batch, optimizers[number])
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._stop(probe_run, optimizers[number], Status.OUT_OF_MEMORY)
                    continue
            schedulers[number].step()
            probe_run.images += features.shape[1]

    def _step(
        self, number: int, probe_run: ProbeRun, features: Tensor, batch: dict[str, Tensor], optimizer: Any
    ) -> None:
        logits = probe_run.probe(features[list(self._rows[number])], batch, self.grid)
        losses = [task.loss(logits[task.name], batch) for task in self.tasks]
        loss = torch.stack(losses).sum()
        self.manual_backward(loss)
        clip = probe_run.config.recipe.gradient_clip
        if clip:
            nn.utils.clip_grad_norm_(probe_run.probe.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        probe_run.add_loss(loss)

    def _stop(self, probe_run: ProbeRun, optimizer: Any, status: str) -> None:
        probe_run.stop(status)
        optimizer.optimizer.state.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _timed(self, probe_run: ProbeRun) -> Iterator[None]:
        """The run's own share of the clock: on CUDA the device's, which is still at work when a step is launched."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            yield
            probe_run.step_seconds += time.perf_counter() - start
            return
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begun.record()
        yield
        ended.record()
        probe_run.marks.append((begun, ended))

    def on_train_epoch_end(self) -> None:
        """Runs after the epoch's validation: closes the epoch's row and stops the runs that diverged."""
        optimizers = _listed(self.optimizers())
        for number, probe_run in enumerate(self.probe_runs):
            probe_run.read_marks()
            if not probe_run.running:
                continue
            row = {TRAIN_LOSS: probe_run.take_loss(), "lr": optimizers[number].param_groups[-1]["lr"]}
            gates = named_gates(probe_run.probe.fuser, probe_run.probe.fuser.gates())
            row |= gate_rms(gates)
            for name, gate in gates.items():
                probe_run.gates[name].append(gate.detach().float().cpu().clone())
            if "val" in probe_run.evaluations:
                last = probe_run.evaluations["val"]
                row |= {on_validation(key): value for key, value in last.metrics.items()} | {
                    on_validation(LOSS): last.loss
                }
                row[OBJECTIVE] = objective(last.metrics, self.tasks)
            probe_run.history.append(row)
            if not math.isfinite(row[TRAIN_LOSS]) or not math.isfinite(row.get(on_validation(LOSS), 0.0)):
                self._stop(probe_run, optimizers[number], Status.DIVERGED)
        if not any(probe_run.running for probe_run in self.probe_runs):
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        for probe_run in self.probe_runs:
            if probe_run.running and len(probe_run.history) >= (self.trainer.max_epochs or 0):
                probe_run.status = Status.FINISHED

    # --- evaluation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._split_scores = [_SplitScores(self.tasks, self.device) for _ in self.probe_runs]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._close("val")

    def on_test_epoch_start(self) -> None:
        self._split_scores = [_SplitScores(self.tasks, self.device) for _ in self.probe_runs]

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch)
        if batch_idx == 0:  # the same examples for every variant
            features = self._features(batch)
            for number, probe_run in enumerate(self.probe_runs):
                if probe_run.status in (None, Status.FINISHED):
                    own, fuser = features[list(self._rows[number])], probe_run.probe.fuser
                    probe_run.diagnostics = fuser.diagnose(own, self.grid)
                    arrays = fuser.inspect(own, self.grid)
                    probe_run.inside = {key: value.float().cpu() for key, value in arrays.items() if key != "regions"}

    def on_test_epoch_end(self) -> None:
        self._close("test")

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        features = self._features(batch)
        for number, probe_run in enumerate(self.probe_runs):
            if probe_run.status not in (None, Status.FINISHED):
                continue
            logits = probe_run.probe(features[list(self._rows[number])], batch, self.grid)
            self._split_scores[number].add(logits, batch)

    def _close(self, split: str) -> None:
        for probe_run, gathered in zip(self.probe_runs, self._split_scores, strict=True):
            if gathered.index:
                probe_run.evaluations[split] = gathered.close()
        self._split_scores = []

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        """``[layers, B, T, dim]`` in the dtype of the weights; converted once for all runs."""
        return batch["features"].to(next(self.probes[0].parameters()).dtype)


class _SplitScores:
    """Per-example scores of one run over one split, batch by batch."""

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        self.tasks = tasks
        self.metrics = {task.name: task.metric().to(device) for task in tasks}
        self.index: list[Tensor] = []
        self.scores: dict[str, list[Tensor]] = {task.name: [] for task in tasks}
        self.items: dict[str, list[Tensor]] = {task.name: [] for task in tasks}
        self.statistics: dict[str, list[dict[str, Tensor]]] = {task.name: [] for task in tasks}
        self.loss: Tensor | float = 0.0
        self.seen = 0

    def add(self, logits: Mapping[str, Tensor], batch: dict[str, Tensor]) -> None:
        count = len(batch["index"])
        self.index.append(batch["index"])
        self.seen += count
        for task in self.tasks:
            scores, items = task.scores(logits[task.name], batch)
            self.scores[task.name].append(scores)
            self.items[task.name].append(items)
            self.statistics[task.name].append(task.statistics(logits[task.name], batch))
            task.update(self.metrics[task.name], logits[task.name], batch)
            self.loss = self.loss + task.loss(logits[task.name], batch).detach() * count

    def close(self) -> Evaluation:
        return Evaluation(
            index=torch.cat(self.index).cpu(),
            scores={name: torch.cat(parts).float().cpu() for name, parts in self.scores.items()},
            items={name: torch.cat(parts).cpu() for name, parts in self.items.items()},
            statistics={
                name: {key: torch.cat([part[key] for part in parts]).float().cpu() for key in parts[0]}
                for name, parts in self.statistics.items()
            },
            metrics={
                f"{task.name}/{task.metric_name}": float(self.metrics[task.name].compute()) for task in self.tasks
            },
            loss=float(self.loss) / self.seen,
        )


class Measured(Protocol):
    """What the objective needs of a task, of probes or of questions."""

    @property
    def name(self) -> str: ...
    @property
    def metric_name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def direction(self) -> str: ...
    def chance_normalised(self, value: float, /) -> float: ...


def objective(metrics: Mapping[str, float], tasks: Sequence[Measured]) -> float:
    """One number to search by, more is better: the mean of the tasks' primary metrics.

    Metrics in one unit are averaged as they are. Where units differ (a share and an absolute error) each is first
    normalised by chance, 0 for chance and 1 for perfect, or the largest number would decide alone.
    """
    values = {task.name: metrics[task_metric(task.name, task.metric_name)] for task in tasks}
    if len({(task.unit, task.direction) for task in tasks}) > 1:
        return sum(task.chance_normalised(values[task.name]) for task in tasks) / len(tasks)
    sign = 1 if tasks[0].direction == "maximize" else -1
    return sign * sum(values.values()) / len(tasks)


def loss_still_falling(history: Sequence[Mapping[str, float]]) -> float:
    """Relative drop of the training loss over the last fifth of the epochs (at least one), per epoch.

    Under a schedule that decays to zero a converged run is near 0; 0.05 means that another epoch at the same pace
    would still take 5 % off the loss. nan for fewer than two epochs.
    """
    losses = [row[TRAIN_LOSS] for row in history]
    if len(losses) < 2:
        return math.nan
    span = max(1, round(len(losses) / 5))
    before, after = losses[-1 - span], losses[-1]
    return (before - after) / span / max(abs(before), 1e-12)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or, as torch says it there, on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
