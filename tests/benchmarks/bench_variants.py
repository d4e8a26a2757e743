"""What a training step of each strategy costs against concat: `python tests/benchmarks/bench_variants.py`.

Whole variants as a study trains them (fuser, projector, heads, loss, backward, clipping, AdamW) on random features of
the embedded encoder's shape. The strategies take turns, and the ratios are of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.optim import Recipe, make_optimizer
from fusion_workbench.modules.probes.bank import Member, MemberConfig
from fusion_workbench.modules.probes.probe import ProbeConfig
from fusion_workbench.modules.tasks import Digit, Read, Task

TASKS: list[Task] = [Read(34), Digit(10)]


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


def step(member: Member, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], grid: int) -> float:
    start = time.perf_counter()
    features = batch["features"][: len(member.probe.fuser.uses)].float()
    logits = member.probe(features, batch, (grid, grid))
    torch.stack([task.loss(logits[task.name], batch) for task in TASKS]).sum().backward()
    nn.utils.clip_grad_norm_(member.probe.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    chosen = parser.parse_args()
    levels = tuple(range(chosen.levels))
    batch = batch_of(chosen.batch_size, chosen.levels + 1, chosen.grid, chosen.dim)
    trained = {}
    for name in ("deep_only", "average", "concat", "mmfuser"):
        selection = Selection(() if name == "deep_only" else levels, chosen.levels)
        recipe = Recipe.of(1e-3, {"gates": 10.0}, weight_decay=0.01, warmup=0.05, gradient_clip=1.0)
        member = Member(MemberConfig(name, name, ProbeConfig(name, selection, chosen.dim), recipe, 0, 0), TASKS)
        trained[name] = member, make_optimizer(member.probe.parts(), recipe, 1000)[0]
    times: dict[str, list[float]] = {name: [] for name in trained}
    for round_ in range(chosen.steps + 3):
        for name, (member, optimizer) in trained.items():
            seconds = step(member, optimizer, batch, chosen.grid)
            if round_ >= 3:
                times[name].append(seconds)
    concat = statistics.median(times["concat"])
    shape = f"batch {chosen.batch_size}, grid {chosen.grid}, dim {chosen.dim}, {chosen.levels} levels"
    print(f"{shape}, {torch.get_num_threads()} threads")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:10} {1000 * middle:7.1f} ms a step, {middle / concat:.2f} x concat")


if __name__ == "__main__":
    main()
