"""A member of a probe bank: a variant in training, with everything that is its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.optim import Recipe, named_gates
from fusion_workbench.modules.probes.evaluation import Evaluation
from fusion_workbench.modules.probes.guard import MemberFailed, of_member
from fusion_workbench.modules.probes.probe import Probe, ProbeConfig, seeded_probe
from fusion_workbench.modules.tasks import Task


@dataclass(frozen=True)
class ProbeRunConfig:
    """One variant-replicate to train."""

    variant: str
    label: str
    probe: ProbeConfig
    recipe: Recipe
    init_seed: int
    dropout_seed: int


class ProbeRun:
    """A variant in training: its own module, optimizer, random state, history and status."""

    def __init__(self, config: ProbeRunConfig, tasks: Sequence[Task]) -> None:
        self.config = config
        self.probe: Probe = seeded_probe(config.probe, tasks, config.init_seed)
        self.probe.parts()  # what a strategy says of its parts is asked for now
        self.status: str | None = None  # None while it trains
        self.error = ""  # what it broke off with, and where
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

    def fail(self, failure: MemberFailed) -> None:
        """End it for good, also where it had come to the end of its training."""
        self.stop(failure.status)
        self.status, self.error = failure.status, failure.words

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
    def aside(self, device: torch.device) -> Iterator[None]:
        """As :meth:`own_randomness` where nothing is trained: what is drawn moves neither neighbours nor dropout."""
        kept = self.rng_state, self.cuda_rng_state
        with self.own_randomness(device):
            yield
        self.rng_state, self.cuda_rng_state = kept

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


class MemberNotBuilt(Exception):
    """The member ``number`` of those that were to be built failed, with ``failure``."""

    def __init__(self, number: int, failure: MemberFailed) -> None:
        super().__init__(failure.words)
        self.number, self.failure = number, failure


def build_member(number: int, config: ProbeRunConfig, tasks: Sequence[Task], layers: Sequence[int]) -> ProbeRun:
    """The member ``number`` of a bank that reads ``layers``. Raises MemberNotBuilt."""
    try:
        with of_member("while it was built"):
            built = ProbeRun(config, tasks)
            if strange := sorted({*built.probe.fuser.uses} - {*layers}):
                raise WorkbenchError(f"it reads layer {strange[0]}, which its selection does not name")
            return built
    except MemberFailed as failure:
        raise MemberNotBuilt(number, failure) from None
