"""Every strategy learns: three optimiser steps side by side in one bank, on every shape of grid."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch
from every_strategy import every_strategy
from quiet_trainer import trainer
from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.optim import Recipe
from fusion_workbench.modules.probes.bank import FusionBank, ProbeRun, ProbeRunConfig
from fusion_workbench.modules.probes.probe import ProbeConfig, seeded_probe
from fusion_workbench.modules.tasks import Digit, Read, Task
from fusion_workbench.schema.names import Status

LAYERS, DIM, STEPS = (1, 2, 4), 16, 4  # the first step of a warm-up has rate 0
TASKS: list[Task] = [Read(5), Digit(4)]
GRIDS = {"square": (4, 4), "rectangle": (3, 5), "sequence": (1, 7)}
CASES = list(every_strategy())


class Batches(L.LightningDataModule):
    """Fixed batches with the keys of the real ones, and as many of them for validation and test."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.batches = [self._batch(number, grid, draw) for number in range(STEPS)]

    @staticmethod
    def _batch(number: int, grid: tuple[int, int], draw: torch.Generator) -> dict[str, Tensor]:
        corner = torch.rand(4, 2, 2, generator=draw) * 0.6
        return {
            "features": torch.randn(len(LAYERS), 4, grid[0] * grid[1], DIM, generator=draw).bfloat16(),
            "index": torch.arange(4) + 4 * number,
            "read.label": torch.randint(5, (4, 2), generator=draw),
            "read.box": torch.cat([corner, corner + 0.3], -1),
            "read.valid": torch.ones(4, 2, dtype=torch.bool),
            "digit.label": torch.randint(4, (4,), generator=draw),
        }

    def _loader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None, shuffle=False)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = _loader


def config(name: str, options: dict[str, Any], grid: tuple[int, int]) -> ProbeRunConfig:
    probe = ProbeConfig(name, Selection(LAYERS[:-1], LAYERS[-1]), DIM, options, "mlp2x_gelu", 12, 8, grid)
    recipe = Recipe.of(1e-3, {"gates": 10.0}, warmup=0.05, gradient_clip=1.0)  # what moves is moved by a gradient
    return ProbeRunConfig(f"{name}{options}", name, probe, recipe, 0, 0)


@pytest.fixture(scope="module", params=GRIDS)
def trained(request: pytest.FixtureRequest) -> FusionBank:
    grid = GRIDS[request.param]
    bank = FusionBank([config(name, options, grid) for name, options in CASES], TASKS, LAYERS, grid)
    training, data = trainer(max_epochs=1), Batches(grid)
    training.fit(bank, data)
    training.test(bank, data, verbose=False)
    return bank


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name}{options or ''}" for name, options in CASES])
def test_a_few_steps_in_a_bank(number: int, trained: FusionBank) -> None:
    probe_run: ProbeRun = trained.probe_runs[number]
    assert probe_run.status == Status.FINISHED
    assert probe_run.images == 4 * STEPS
    assert math.isfinite(probe_run.history[0]["train/loss"])
    assert math.isfinite(probe_run.evaluations["test"].loss)
    assert all(math.isfinite(value) for value in probe_run.diagnostics.values())
    before = dict(seeded_probe(probe_run.config.probe, TASKS, probe_run.config.init_seed).named_parameters())
    after = dict(probe_run.probe.named_parameters())
    assert before.keys() == after.keys()
    still = [name for name, parameter in after.items() if torch.equal(parameter, before[name])]
    assert not still, f"{probe_run.config.variant}: {', '.join(still)} did not move"
