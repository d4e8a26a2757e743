"""The probe bank: the variants of one replicate, trained side by side on one stream of batches.

Every probe run has its own probe, optimizer, schedule, random state and status. What happens to one (it diverges, runs
out of memory, or its strategy raises) leaves the others as they would have been, and a bank of one is the ordinary
Lightning run: a variant ends with the same weights whichever runs are beside it, bitwise on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion.deformable_backends import seconds_spent
from fusion_workbench.modules.optim import gate_rms, make_optimizer, named_gates
from fusion_workbench.modules.probes.evaluation import SplitScores
from fusion_workbench.modules.probes.guard import MemberFailed, is_out_of_memory, of_member, of_task
from fusion_workbench.modules.probes.member import ProbeRun, ProbeRunConfig, build_member
from fusion_workbench.modules.tasks import Task
from fusion_workbench.schema.names import LOSS, OBJECTIVE, TRAIN_LOSS, Status, on_validation, task_metric

__all__ = ["FusionBank", "Measured", "ProbeRun", "ProbeRunConfig", "loss_still_falling", "objective"]


class FusionBank(L.LightningModule):
    """K probes, one pass over the data.

    Args:
        configs: what to train; all read layers among ``layers``.
        tasks: read off the same fused tokens in every run.
        layers: the order of ``batch["features"]``'s first axis.
        grid: rows and columns of the tokens.

    Raises:
        MemberNotBuilt: a strategy raised while it was built.
    """

    def __init__(
        self, configs: Sequence[ProbeRunConfig], tasks: Sequence[Task], layers: Sequence[int], grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tasks = list(tasks)
        self.grid = grid
        self.probe_runs = [build_member(number, config, tasks, layers) for number, config in enumerate(configs)]
        self.probes = nn.ModuleList(probe_run.probe for probe_run in self.probe_runs)
        place = {layer: position for position, layer in enumerate(layers)}
        self._rows = [tuple(place[layer] for layer in probe_run.probe.fuser.uses) for probe_run in self.probe_runs]
        self._split_scores: list[SplitScores] = []
        self._layers = tuple(layers)
        self._sound: Tensor | None = None  # whether the features seen so far are finite numbers, a bool a layer

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
        where = f"epoch {self.current_epoch + 1}, step {batch_idx + 1}"
        for number, probe_run in enumerate(self.probe_runs):
            if not probe_run.running:
                continue
            with self._timed(probe_run), probe_run.own_randomness(self.device):
                failure = None
                try:
                    self._step(number, probe_run, features, batch, optimizers[number], where)
                except MemberFailed as error:
                    failure = error
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    failure = MemberFailed(Status.OUT_OF_MEMORY, str(error))
                if failure is not None:
                    self._fail(number, failure)
                    continue
            schedulers[number].step()
            probe_run.images += features.shape[1]

    def _step(
        self, number: int, probe_run: ProbeRun, features: Tensor, batch: dict[str, Tensor], optimizer: Any, where: str
    ) -> None:
        own = self._own(features, number)
        with of_member(where):
            logits = probe_run.probe(own, batch, self.grid)
            losses = []
            for task in self.tasks:
                with of_task(task, "its loss", logits[task.name]):
                    losses.append(task.loss(logits[task.name], batch))
            loss = torch.stack(losses).sum()
            self.manual_backward(loss)
            clip = probe_run.config.recipe.gradient_clip
            if clip:
                nn.utils.clip_grad_norm_(probe_run.probe.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        probe_run.add_loss(loss)

    def _fail(self, number: int, failure: MemberFailed) -> None:
        """A member that broke off, in training or evaluation: it alone ends."""
        probe_run, optimizers = self.probe_runs[number], _listed(self.optimizers())
        probe_run.fail(failure)
        for optimizer in optimizers[number : number + 1]:  # none any more when it is tested
            optimizer.optimizer.state.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
        tried = seconds_spent()
        begun.record()
        yield
        ended.record()
        probe_run.marks.append((begun, ended))
        probe_run.step_seconds -= seconds_spent() - tried  # a backend that is tried out is no cost of the step

    def on_train_epoch_end(self) -> None:
        """Runs after the epoch's validation: closes the epoch's row and stops the runs that diverged."""
        self._check_features("training")
        optimizers = _listed(self.optimizers())
        for number, probe_run in enumerate(self.probe_runs):
            probe_run.read_marks()
            if not probe_run.running:
                continue
            row = {TRAIN_LOSS: probe_run.take_loss(), "lr": optimizers[number].param_groups[-1]["lr"]}
            try:
                with of_member(f"the gates of epoch {self.current_epoch + 1}"):
                    gates = named_gates(probe_run.probe.fuser, probe_run.probe.fuser.gates())
                    row |= gate_rms(gates)
                    for name, gate in gates.items():
                        probe_run.gates[name].append(gate.detach().float().cpu().clone())
            except MemberFailed as failure:
                self._fail(number, failure)
                continue
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
        self._split_scores = [SplitScores(self.tasks, self.device) for _ in self.probe_runs]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._check_features("training or validation")
        self._close("val")

    def on_test_epoch_start(self) -> None:
        self._split_scores = [SplitScores(self.tasks, self.device) for _ in self.probe_runs]

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch)
        if batch_idx == 0:  # the same examples for every variant
            features = self._features(batch)
            for number, probe_run in enumerate(self.probe_runs):
                if probe_run.status in (None, Status.FINISHED):
                    own, fuser = self._own(features, number), probe_run.probe.fuser
                    try:
                        with probe_run.aside(self.device), of_member("its diagnosis on test"):
                            probe_run.diagnostics = fuser.diagnose(own, self.grid)
                            arrays = fuser.inspect(own, self.grid)
                            found = {key: value.float().cpu() for key, value in arrays.items() if key != "regions"}
                            probe_run.inside = found
                    except MemberFailed as failure:
                        self._fail(number, failure)

    def on_test_epoch_end(self) -> None:
        self._check_features("test")
        self._close("test")

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        features = self._features(batch)
        for number, probe_run in enumerate(self.probe_runs):
            if probe_run.status not in (None, Status.FINISHED):
                continue
            own = self._own(features, number)
            split = "test" if self.trainer.testing else f"validation, epoch {self.current_epoch + 1}"
            try:
                with probe_run.aside(self.device), of_member(f"evaluated on {split}"):
                    logits = probe_run.probe(own, batch, self.grid)
                    self._split_scores[number].add(logits, batch)
            except MemberFailed as failure:
                self._fail(number, failure)

    def _close(self, split: str) -> None:
        for number, (probe_run, gathered) in enumerate(zip(self.probe_runs, self._split_scores, strict=True)):
            if gathered.index and probe_run.status in (None, Status.FINISHED):
                try:
                    with of_member(f"its metrics on {split}"):
                        probe_run.evaluations[split] = gathered.close()
                except MemberFailed as failure:
                    self._fail(number, failure)
        self._split_scores = []

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        """``[layers, B, T, dim]`` in the dtype of the weights; converted once for all runs."""
        features = batch["features"].to(next(self.probes[0].parameters()).dtype)
        ends = torch.stack([torch.stack(layer.aminmax()) for layer in features.detach()])  # one at a time is fastest
        sound = torch.isfinite(ends).all(1)
        self._sound = sound if self._sound is None else self._sound & sound
        return features

    def _own(self, features: Tensor, number: int) -> Tensor:
        """The layers that a run reads, as a copy: what its strategy writes into them reaches nobody else."""
        return torch.stack([features[row] for row in self._rows[number]])

    def _check_features(self, images: str) -> None:
        """Raises WorkbenchError where features are no numbers: whoever learns from them diverges, through no fault of
        its own."""
        if self._sound is not None and not bool(self._sound.all()):
            layers = [layer for layer, sound in zip(self._layers, self._sound.tolist(), strict=True) if not sound]
            raise WorkbenchError(
                f"the features of layer {layers[0]} hold values that are not finite, on images of the {images} split: "
                "the encoder made them so, and nothing can be learned from them. workbench store list names the "
                "store; remove it, and mend the encoder or encode in encoder.precision=float32."
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
