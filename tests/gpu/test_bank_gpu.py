"""A bank on CUDA: members that leave each other alone, and the device's own clock."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from test_bank import ALL, GRID, LAYERS, TASKS, Batches, _Dropping, weights
from torch import nn

from fusion_workbench.modules.probes.bank import FusionBank, ProbeRunConfig
from fusion_workbench.schema.names import Status

pytestmark = pytest.mark.gpu


def fit(configs: list[ProbeRunConfig], precision: Any = "32-true") -> FusionBank:
    bank = FusionBank(configs, TASKS, LAYERS, GRID)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cuda",
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(bank, Batches())
    trainer.test(bank, Batches(), verbose=False)
    return bank


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_bank_is_near_its_members_alone(precision: str) -> None:
    together = fit(ALL, precision)
    for number, config in enumerate(ALL):
        alone = weights(fit([config], precision), 0)
        for name, value in weights(together, number).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)


def test_dropout_draws_from_the_members_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_workbench.modules.probes import probe

    plain = probe.Probe.__init__

    def with_dropout(self: probe.Probe, *args: Any) -> None:
        plain(self, *args)
        self.projector: nn.Module = _Dropping(self.projector)

    monkeypatch.setattr(probe.Probe, "__init__", with_dropout)
    together = fit(ALL)
    for number in (1, 4):
        alone = weights(fit([ALL[number]]), 0)
        for name, value in weights(together, number).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)


def test_what_is_kept_is_on_the_cpu_and_the_clock_is_the_devices() -> None:
    bank = fit(ALL)
    for member in bank.members:
        assert member.outcome == Status.FINISHED
        assert member.step_seconds > 0
        assert not member.marks
        for evaluation in member.evaluations.values():
            kept = [evaluation.index, *evaluation.scores.values(), *evaluation.items.values()]
            assert all(value.device.type == "cpu" for value in kept)
        assert all(value.device.type == "cpu" for value in member.inside.values())


def test_a_member_out_of_the_devices_memory_leaves_the_others_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = fit(ALL)
    plain = FusionBank._step
    calls = iter(range(1000))

    def starved(self: FusionBank, number: int, *args: Any) -> None:
        if number == 3 and next(calls) == 1:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        plain(self, number, *args)

    monkeypatch.setattr(FusionBank, "_step", starved)
    bank = fit(ALL)
    assert bank.members[3].outcome == Status.OUT_OF_MEMORY
    for number in (0, 1, 2, 4):
        calm = weights(undisturbed, number)
        for name, value in weights(bank, number).items():
            torch.testing.assert_close(value, calm[name], rtol=1e-3, atol=1e-4)
