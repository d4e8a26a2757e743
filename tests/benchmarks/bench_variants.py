"""What a training step of each strategy costs against concat: `python tests/benchmarks/bench_variants.py`.

Whole variants as a study trains them (fuser, projector, heads, loss, backward, clipping, AdamW) on random features, by
default of the embedded encoder's shape. The strategies take turns, and the ratios are of the medians. With ``--bank``
then banks of so many members, as Lightning trains them: what one more member adds to a step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.optim import Recipe, make_optimizer
from fusion_workbench.modules.probes.bank import FusionBank, ProbeRun, ProbeRunConfig
from fusion_workbench.modules.probes.probe import ProbeConfig
from fusion_workbench.modules.tasks import Digit, Read, Task
from fusion_workbench.training.probe_callbacks import quiet_lightning

TASKS: list[Task] = [Read(34), Digit(10)]
STRATEGIES = ("deep_only", "average", "concat", "mmfuser")


def batch_of(size: int, layers: int, grid: int, dim: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    corner = torch.rand(size, 6, 2, generator=draw) * 0.8
    return {
        "features": torch.randn(layers, size, grid * grid, dim, generator=draw).bfloat16(),
        "read.label": torch.randint(34, (size, 6), generator=draw),
        "read.box": torch.cat([corner, corner + 0.12], -1),
        "read.valid": torch.ones(size, 6, dtype=torch.bool),
        "digit.label": torch.randint(10, (size,), generator=draw),
    }


def member_of(name: str, levels: int, dim: int, seed: int = 0) -> ProbeRunConfig:
    recipe = Recipe.of(1e-3, {"gates": 10.0}, weight_decay=0.01, warmup=0.05, gradient_clip=1.0)
    selection = Selection(() if name == "deep_only" else tuple(range(levels)), levels)
    return ProbeRunConfig(name, name, ProbeConfig(name, selection, dim), recipe, seed, seed)


def step(
    probe_run: ProbeRun, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], chosen: argparse.Namespace
) -> float:
    _wait(chosen.device)
    start = time.perf_counter()
    features = batch["features"][: len(probe_run.probe.fuser.uses)].float()
    with torch.autocast(chosen.device, torch.bfloat16) if chosen.bf16 else contextlib.nullcontext():
        logits = probe_run.probe(features, batch, (chosen.grid, chosen.grid))
        loss = torch.stack([task.loss(logits[task.name], batch) for task in TASKS]).sum()
    loss.backward()
    nn.utils.clip_grad_norm_(probe_run.probe.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _wait(chosen.device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Same(Dataset[dict[str, Tensor]]):
    """One batch again and again."""

    def __init__(self, batch: dict[str, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.batch


class Clock(L.Callback):
    """Seconds of the steps after the first three, waited for at both ends only."""

    def __init__(self, device: str) -> None:
        self.device, self.start, self.seconds, self.steps = device, 0.0, 0.0, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 3:
            _wait(self.device)
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _wait(self.device)
        self.seconds = time.perf_counter() - self.start


def bank_step(strategy: str, size: int, batch: dict[str, Tensor], chosen: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a step of a bank of ``size`` members that differ in their seeds, and of that the members' own."""
    quiet_lightning()
    probe_runs = [member_of(strategy, chosen.levels, chosen.dim, seed) for seed in range(size)]
    bank = FusionBank(probe_runs, TASKS, range(chosen.levels + 1), (chosen.grid, chosen.grid))
    clock = Clock(chosen.device)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator=chosen.device,
        devices=1,
        precision="bf16-mixed" if chosen.bf16 else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(bank, DataLoader(Same(batch, chosen.steps + 3), batch_size=None))
    own = sum(probe_run.step_seconds for probe_run in bank.probe_runs) / (chosen.steps + 3)
    return {"step": 1000 * clock.seconds / chosen.steps, "members": 1000 * own}


def results(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    stored = batch_of(chosen.batch_size, chosen.levels + 1, chosen.grid, chosen.dim)
    batch = {name: value.to(chosen.device) for name, value in stored.items()}
    trained = {}
    for name in STRATEGIES:
        probe_run = ProbeRun(member_of(name, chosen.levels, chosen.dim), TASKS)
        probe_run.probe.to(chosen.device)
        trained[name] = probe_run, make_optimizer(probe_run, 1000)[0]
    times: dict[str, list[float]] = {name: [] for name in trained}
    for round_ in range(chosen.steps + 3):
        for name, (probe_run, optimizer) in trained.items():
            seconds = step(probe_run, optimizer, batch, chosen)
            if round_ >= 3:
                times[name].append(seconds)
    concat = statistics.median(times["concat"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:10} {1000 * middle:7.2f} ms a step, {middle / concat:.2f} x concat", flush=True)
        yield {"strategy": name, "ms": 1000 * middle}
    for strategy in ("concat", "mmfuser") if chosen.bank else ():
        for size in chosen.bank:
            found = bank_step(strategy, size, stored, chosen)
            print(
                f"bank of {size:2} {strategy}: {found['step']:.2f} ms a step, members {found['probe_runs']:.2f}",
                flush=True,
            )
            yield {"strategy": strategy, "bank": size, "ms": found["step"], "members_ms": found["members"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--bank", type=int, nargs="*", default=[], help="sizes of banks, such as 1 16")
    parser.add_argument("--json", type=Path, help="append each result to this file, a line each")
    chosen = parser.parse_args()
    where = torch.cuda.get_device_name() if chosen.device == "cuda" else f"{torch.get_num_threads()} threads"
    precision = "bf16 autocast" if chosen.bf16 else "float32"
    shape = f"batch {chosen.batch_size}, grid {chosen.grid}, dim {chosen.dim}, {chosen.levels} levels"
    print(f"{shape}, {precision}, {where}")
    for found in results(chosen):
        if chosen.json:
            facts = {"benchmark": "variants", "where": where, "shape": shape, "precision": precision}
            with chosen.json.open("a") as file:
                file.write(json.dumps(facts | found) + "\n")


if __name__ == "__main__":
    main()
