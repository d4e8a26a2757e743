"""The naive sweep trains what a bank trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quiet_trainer import trainer

from fusion_workbench.bench.naive import PartOfTheGrid
from fusion_workbench.bench.others.naive_sweep import NaiveTrial, _loader
from fusion_workbench.bench.turns import Setting
from fusion_workbench.datamodules.datamodule import AblationDataModule
from fusion_workbench.modules.probes.bank import FusionBank
from fusion_workbench.schema.names import TRAIN_LOSS


def test_losses_and_metrics_are_the_banks(tmp_path: Path) -> None:
    """On features rounded as the store rounds them: the same losses, so the same seeds, order, schedule, clipping."""
    part = PartOfTheGrid(Setting("cpu", True, 1, tmp_path), "32-true")
    part.protocol = type(part.protocol)(**{**vars(part.protocol), "workers": 0})
    parts, protocol = part.parts, part.protocol
    layers = sorted({layer for member in part.members for layer in member.probe.selection.layers})
    bank = FusionBank(part.members, parts.tasks, layers, parts.encoder.grid())
    data = AblationDataModule(
        parts.features, layers, protocol.batch_size, protocol.order_seed, eval_batch_size=protocol.eval_batch_size
    )
    trainer(max_epochs=protocol.epochs, use_distributed_sampler=False).fit(bank, data)
    assert {member.probe.strategy for member in part.members} == {"deep_only", "average", "concat", "mmfuser"}
    for member, run in zip(part.members, bank.probe_runs, strict=True):
        torch.manual_seed(member.dropout_seed)
        trial = NaiveTrial(member, parts.tasks, parts.encoder, as_stored=True)
        clipped = {"gradient_clip_val": protocol.gradient_clip, "use_distributed_sampler": False}
        trainer(max_epochs=protocol.epochs, **clipped).fit(
            trial, *(_loader(parts.source, split, part.images, protocol) for split in ("train", "val"))
        )
        steps = len(trial.losses) // protocol.epochs
        for epoch, row in enumerate(run.history):
            naive = float(torch.stack(trial.losses[epoch * steps : (epoch + 1) * steps]).mean())
            assert naive == pytest.approx(row[TRAIN_LOSS], rel=2e-3), member.label
        for name, value in run.evaluations["val"].metrics.items():
            assert trial.evaluations["val"].metrics[name] == pytest.approx(value, abs=0.03), (member.label, name)
