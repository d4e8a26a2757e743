"""Every strategy on every family of encoders: forward, backward, three steps side by side in one bank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from every_strategy import every_strategy
from quiet_trainer import trainer
from tiny_families import TINY, save_tiny
from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.optim import Recipe
from fusion_workbench.modules.probes.bank import FusionBank, ProbeRunConfig
from fusion_workbench.modules.probes.probe import ProbeConfig, seeded_probe
from fusion_workbench.modules.tasks import Digit, Read, Task
from fusion_workbench.schema.names import Status

LAYERS, STEPS, IMAGES = (1, 2, 3), 4, 4  # the first step of a warm-up has rate 0
TASKS: list[Task] = [Read(5), Digit(4)]


class Encoded(L.LightningDataModule):
    """Batches of noise through a real, tiny encoder, at a rectangular size."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.batches = [self._batch(number, encoder, draw) for number in range(STEPS)]

    @staticmethod
    def _batch(number: int, encoder: VisionEncoder, draw: torch.Generator) -> dict[str, Tensor]:
        images = np.random.RandomState(number).randint(0, 256, (IMAGES, 28, 42, 3), dtype=np.uint8)
        corner = torch.rand(IMAGES, 2, 2, generator=draw) * 0.6
        return {
            "features": encoder.encode(images, LAYERS).clone(),
            "index": torch.arange(IMAGES) + IMAGES * number,
            "read.label": torch.randint(5, (IMAGES, 2), generator=draw),
            "read.box": torch.cat([corner, corner + 0.3], -1),
            "read.valid": torch.ones(IMAGES, 2, dtype=torch.bool),
            "digit.label": torch.randint(4, (IMAGES,), generator=draw),
        }

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_strategy_learns_on_it(family: str, tmp_path: Path) -> None:
    encoder = VisionEncoder(str(save_tiny(family, tmp_path)), image_size=[28, 42], precision="float32")
    grid = encoder.grid()
    cases = list(every_strategy())
    probe_runs = [
        ProbeRunConfig(
            f"{name}{options}",
            name,
            ProbeConfig(name, Selection((1, 2), 3), encoder.dim, options, "linear", 0, 8, grid),
            Recipe.of(1e-3, {"gates": 10.0}, warmup=0.05, gradient_clip=1.0),  # what moves is moved by a gradient
            0,
            0,
        )
        for name, options in cases
    ]
    bank = FusionBank(probe_runs, TASKS, LAYERS, grid)
    trainer(max_epochs=1, default_root_dir=tmp_path).fit(bank, Encoded(encoder))
    for probe_run in bank.probe_runs:
        name = probe_run.config.variant
        assert probe_run.status == Status.FINISHED, name
        assert all(math.isfinite(value) for value in probe_run.history[-1].values()), name
        fresh = seeded_probe(probe_run.config.probe, TASKS, 0)
        pairs = zip(probe_run.probe.named_parameters(), fresh.parameters(), strict=True)
        still = [key for (key, trained), start in pairs if torch.equal(trained, start)]
        assert not still, f"{name}: {still} did not move"
