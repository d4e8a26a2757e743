"""Contract 3: a bank is as many solo runs, and what happens to one run leaves the others untouched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from quiet_trainer import trainer
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.optim import Recipe
from fusion_workbench.modules.probes.bank import FusionBank, ProbeRunConfig, loss_still_falling
from fusion_workbench.modules.probes.probe import ProbeConfig
from fusion_workbench.modules.tasks import Digit, Read, Task
from fusion_workbench.schema.names import Status

LAYERS, DIM, GRID = (0, 1, 2, 3), 16, (3, 4)
TASKS: list[Task] = [Read(5), Digit(4)]


class Batches(L.LightningDataModule):
    """A few fixed batches with the keys of the real ones."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.batches = [self._batch(i, draw) for i in range(count)]

    @staticmethod
    def _batch(number: int, draw: torch.Generator) -> dict[str, Tensor]:
        corner = torch.rand(6, 2, 2, generator=draw) * 0.6
        return {
            "features": torch.randn(len(LAYERS), 6, 12, DIM, generator=draw).bfloat16(),
            "index": torch.arange(6) + 6 * number,
            "read.label": torch.randint(5, (6, 2), generator=draw),
            "read.box": torch.cat([corner, corner + 0.3], -1),
            "read.valid": torch.ones(6, 2, dtype=torch.bool),
            "digit.label": torch.randint(4, (6,), generator=draw),
        }

    def _loader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None, shuffle=False)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = _loader


def probe_run(
    strategy: str, levels: tuple[int, ...] = (0, 2), query: int = 3, lr: float = 3e-3, seed: int = 1
) -> ProbeRunConfig:
    options = {"heads": 2} if strategy == "mmfuser" else {}
    probe = ProbeConfig(
        strategy, Selection(levels if strategy != "deep_only" else (), query), DIM, options, width=8, head_hidden=8
    )
    recipe = Recipe.of(lr, {"gates": 10.0}, weight_decay=0.01, warmup=0.05, gradient_clip=1.0)
    return ProbeRunConfig(f"{strategy}{levels}{seed}", strategy, probe, recipe, seed, seed)


ALL = [
    probe_run("deep_only"),
    probe_run("average"),
    probe_run("concat"),
    probe_run("mmfuser"),
    probe_run("concat", (1,), seed=2),
]


def fit(
    configs: list[ProbeRunConfig], epochs: int = 2, callback: L.Callback | None = None, **options: Any
) -> FusionBank:
    bank = FusionBank(configs, TASKS, LAYERS, GRID)
    trainer(max_epochs=epochs, callbacks=[callback] if callback else [], **options).fit(bank, Batches())
    return bank


def weights(bank: FusionBank, number: int) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in bank.probe_runs[number].probe.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_bank_equals_solo_bitwise(precision: str) -> None:
    together = fit(ALL, precision=precision)
    for number, config in enumerate(ALL):
        alone = fit([config], precision=precision)
        assert same(weights(together, number), weights(alone, 0)), config.label
        assert together.probe_runs[number].history == alone.probe_runs[0].history


def test_training_moves_every_part() -> None:
    bank = fit(ALL, epochs=3)
    fresh = FusionBank(ALL, TASKS, LAYERS, GRID)
    for number in range(len(ALL)):
        before, after = fresh.probe_runs[number].probe.parts(), bank.probe_runs[number].probe.parts()
        for part, parameters in after.items():
            moved = [not torch.equal(p, q) for p, q in zip(parameters, before[part], strict=True)]
            assert not parameters or any(moved), (ALL[number].label, part)
    assert all(m.status == Status.FINISHED for m in bank.probe_runs)
    assert bank.probe_runs[0].history[-1]["train/loss"] < bank.probe_runs[0].history[0]["train/loss"]


class _Dropping(nn.Module):
    """A projector with dropout, to draw from the random state in every step."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.inner(tokens))


def test_dropout_draws_from_the_members_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_workbench.modules.probes import probe

    plain = probe.Probe.__init__

    def with_dropout(self: probe.Probe, *args: Any) -> None:
        plain(self, *args)
        self.projector = _Dropping(self.projector)  # type: ignore[assignment]

    monkeypatch.setattr(probe.Probe, "__init__", with_dropout)
    together = fit(ALL)
    for number in (1, 4):
        assert same(weights(together, number), weights(fit([ALL[number]]), 0))


class _Stop(L.Callback):
    def __init__(self, number: int, status: str) -> None:
        self.number, self.status = number, status

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step > 4 and isinstance(pl_module, FusionBank):
            pl_module.probe_runs[self.number].stop(self.status)


def test_a_stopped_member_leaves_the_others_untouched() -> None:
    undisturbed = fit(ALL)
    bank = fit(ALL, callback=_Stop(2, Status.FAILED))
    assert bank.probe_runs[2].status == Status.FAILED
    for number in (0, 1, 3, 4):
        assert same(weights(bank, number), weights(undisturbed, number))


def test_a_diverged_member_is_taken_out_and_named() -> None:
    wild = [*ALL[:2], replace(ALL[2], recipe=Recipe.of(1e30, weight_decay=0.01, warmup=0.05)), *ALL[3:]]
    bank = fit(wild, epochs=3)
    undisturbed = fit(ALL, epochs=3)
    assert bank.probe_runs[2].status == Status.DIVERGED
    assert len(bank.probe_runs[2].history) < 3 or bank.probe_runs[2].status == Status.DIVERGED
    for number in (0, 1, 3, 4):
        assert bank.probe_runs[number].status == Status.FINISHED
        assert same(weights(bank, number), weights(undisturbed, number))


def test_a_member_out_of_memory_leaves_the_others_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = fit(ALL)
    plain = FusionBank._step
    calls = iter(range(1000))

    def starved(self: FusionBank, number: int, *args: Any) -> None:
        if number == 3 and next(calls) == 1:
            torch.empty(2**60)  # the allocator's own refusal
        plain(self, number, *args)

    monkeypatch.setattr(FusionBank, "_step", starved)
    bank = fit(ALL)
    assert bank.probe_runs[3].status == Status.OUT_OF_MEMORY
    for number in (0, 1, 2, 4):
        assert same(weights(bank, number), weights(undisturbed, number))


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FusionBank, *args: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(FusionBank, "_step", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        fit(ALL)


def test_16_mixed_takes_one_member() -> None:
    bank = FusionBank(ALL[:2], TASKS, LAYERS, GRID)

    class Trainer:
        precision = "16-mixed"

    bank._trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="bank of one"):
        bank.on_fit_start()


def test_outcomes_are_per_example_and_in_order() -> None:
    bank = fit(ALL[:2])
    evaluation = bank.probe_runs[0].evaluations["val"]
    assert evaluation.index.tolist() == list(range(18))
    assert evaluation.items["read"].tolist() == [2] * 18
    for task in TASKS:
        weighted = (evaluation.scores[task.name] * evaluation.items[task.name]).sum() / evaluation.items[
            task.name
        ].sum()
        assert float(weighted) == pytest.approx(evaluation.metrics[f"{task.name}/accuracy"], abs=1e-6)


def test_lightning_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    """Contract 8."""
    bank = FusionBank(ALL, TASKS, LAYERS, GRID)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(bank, Batches())
    trainer.save_checkpoint(tmp_path / "bank.ckpt")
    loaded = torch.load(tmp_path / "bank.ckpt", weights_only=True)
    fresh = FusionBank([replace(c, init_seed=99) for c in ALL], TASKS, LAYERS, GRID)
    fresh.load_state_dict(loaded["state_dict"])
    assert same(weights(fresh, 3), weights(bank, 3))


def test_loss_still_falling_is_per_epoch_and_relative() -> None:
    def rows(*losses: float) -> Iterator[dict[str, float]]:
        return ({"train/loss": loss} for loss in losses)

    assert loss_still_falling(list(rows(2.0, 1.0, 1.0))) == 0
    assert loss_still_falling(list(rows(2.0, 1.0))) == pytest.approx(0.5)
    ten = list(rows(*[5.0] * 8, 4.0, 3.0))
    assert loss_still_falling(ten) == pytest.approx((5.0 - 3.0) / 2 / 5.0)
    assert loss_still_falling(ten[:1]) != loss_still_falling(ten[:1])  # nan
