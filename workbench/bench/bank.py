"""Probe banks against the same probes one by one, both as a study trains them: Lightning, copies to the device, AdamW.

Members are of four strategies in turn. The features are drawn, and lie in memory: what reading them costs is the group
``store``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.turns import Ratio, Setting, in_turn, synchronise
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.optim import Recipe
from fusion_workbench.modules.probes.bank import FusionBank, ProbeRunConfig
from fusion_workbench.modules.probes.probe import ProbeConfig
from fusion_workbench.modules.tasks import Digit, Read, Task
from fusion_workbench.training.probe_callbacks import quiet_lightning

TASKS: list[Task] = [Read(34), Digit(10)]
STRATEGIES = ("deep_only", "average", "concat", "mmfuser")
WARM = 3  # steps before the clock starts
SOLOS = 4  # of so many members at most the solo runs are measured: one of each strategy


@dataclass(frozen=True)
class Shape:
    """A batch of features ``[levels + 1, images, grid², dim]``, and how many steps are taken on it."""

    images: int
    grid: int
    dim: int
    levels: int
    steps: int


QUICKSTART = Shape(16, 8, 384, 3, 12)
TINY = Shape(2, 2, 8, 2, 2)


def batch_of(shape: Shape) -> dict[str, Tensor]:
    """Drawn features, in bf16 as the store keeps them, and targets of :data:`TASKS`."""
    draw = torch.Generator().manual_seed(0)
    corner = torch.rand(shape.images, 6, 2, generator=draw) * 0.8
    features = torch.randn(shape.levels + 1, shape.images, shape.grid**2, shape.dim, generator=draw)
    return {
        "features": features.bfloat16(),
        "read.label": torch.randint(34, (shape.images, 6), generator=draw),
        "read.box": torch.cat([corner, corner + 0.12], -1),
        "read.valid": torch.ones(shape.images, 6, dtype=torch.bool),
        "digit.label": torch.randint(10, (shape.images,), generator=draw),
    }


def member(number: int, shape: Shape) -> ProbeRunConfig:
    """The member of that number: the strategies in turn, each with a seed of its own."""
    name = STRATEGIES[number % len(STRATEGIES)]
    recipe = Recipe.of(1e-3, {"gates": 10.0}, weight_decay=0.01, warmup=0.05, gradient_clip=1.0)
    selection = Selection(() if name == "deep_only" else tuple(range(shape.levels)), shape.levels)
    config = ProbeConfig(name, selection, shape.dim, {"heads": 2} if name == "mmfuser" and shape.dim < 64 else {})
    return ProbeRunConfig(f"{name}-{number}", name, config, recipe, number, number)


@dataclass
class Trained:
    """Seconds of a bank's steps, and of these what its members took themselves."""

    seconds: float
    members: float


def train(members: Sequence[ProbeRunConfig], batch: dict[str, Tensor], shape: Shape, device: str) -> Trained:
    """A bank of these members on ``shape.steps`` steps, in float32, timed after :data:`WARM` others."""
    bank = FusionBank(members, TASKS, range(shape.levels + 1), (shape.grid, shape.grid))
    watch = StepClock(device)
    trainer_of(device, callbacks=[watch]).fit(bank, DataLoader(SameBatch(batch, shape.steps + WARM), batch_size=None))
    return Trained(watch.seconds, sum(run.step_seconds for run in bank.probe_runs) - watch.members_before)


def trainer_of(device: str, max_epochs: int = 1, **options: Any) -> L.Trainer:
    """Lightning's trainer, quiet, that keeps nothing; ``options`` are Lightning's."""
    quiet_lightning()
    return L.Trainer(
        max_epochs=max_epochs,
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def measure(setting: Setting) -> Iterator[Figure]:
    """Of each size a member's step in the bank against the step of a solo run, and the bank's own share."""
    shape = TINY if setting.tiny else QUICKSTART
    batch = batch_of(shape)
    for size in (1, 2, 4) if setting.tiny else (1, 4, 16, 64):
        members = [member(number, shape) for number in range(size)]
        shares: list[float] = []
        meters = {
            "solo": _solo(members[:SOLOS], batch, shape, setting.device),
            "bank": _banked(members, batch, shape, setting.device, shares),
        }
        seconds = in_turn(meters, setting.repeats)
        facts = {
            "members": size,
            "strategies": list(STRATEGIES[: min(size, len(STRATEGIES))]),
            "seconds_a_member_step": {name: Ratio.of(s).median for name, s in seconds.items()},
        }
        alone = f"solo runs of {SOLOS} of them, one of each strategy, extended to all" if size > SOLOS else "solo runs"
        faster = Ratio.paired(seconds["solo"], seconds["bank"])
        yield Figure(f"bank of {size}, a member's step", alone, Kind.SPEED, faster, facts=facts)
        yield Figure(
            f"bank of {size}, outside its members' steps",
            "the bank's steps",
            Kind.SHARE,
            Ratio.of(shares[1:]),
            note="loading, conversion, Lightning, random states; less is better",
            facts=facts,
        )


def _solo(
    members: Sequence[ProbeRunConfig], batch: dict[str, Tensor], shape: Shape, device: str
) -> Callable[[], float]:
    def turn() -> float:
        return sum(train([one], batch, shape, device).seconds for one in members) / len(members) / shape.steps

    return turn


def _banked(
    members: Sequence[ProbeRunConfig], batch: dict[str, Tensor], shape: Shape, device: str, shares: list[float]
) -> Callable[[], float]:
    def turn() -> float:
        trained = train(members, batch, shape, device)
        shares.append(1 - trained.members / trained.seconds)
        return trained.seconds / len(members) / shape.steps

    return turn


class SameBatch(Dataset[dict[str, Tensor]]):
    """One batch again and again."""

    def __init__(self, batch: dict[str, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.batch


class StepClock(L.Callback):
    """Seconds of the steps after the first :data:`WARM`, with their loading; CUDA is waited for at both ends.

    ``members_before``: of a bank, what its members took before that.
    """

    def __init__(self, device: str) -> None:
        self.device, self.start, self.seconds, self.members_before = device, 0.0, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM - 1:
            synchronise(self.device)
            if isinstance(pl_module, FusionBank):
                for run in pl_module.probe_runs:
                    run.read_marks()
                self.members_before = sum(run.step_seconds for run in pl_module.probe_runs)
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.start
