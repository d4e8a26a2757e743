"""How long a step of MMFuser takes beside one of concat: ``python tests/benchmarks/bench_deformable.py [threads]``.

A step is forward and backward of the fuser and a linear projector to ``dim``, on frozen features. The candidates take
turns, and the minima are compared, so that other work on the machine disturbs the ratios little; with one thread the
clock is the thread's own CPU time, which others cannot take.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "modules" / "fusion"))

from test_deformable import reference

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import build
from fusion_workbench.modules.fusion.mmfuser import MMFuser, MMFuserOptions

SHAPES = [  # batch, rows, columns, dim, levels
    (32, 8, 8, 384, 3),
    (32, 8, 8, 384, 4),
    (16, 16, 16, 384, 3),
    (2, 24, 24, 1024, 4),
]


class PerLevel(nn.Module):
    """The same block through ``grid_sample``, level by level: how published code runs without its CUDA extension."""

    def __init__(self, block: MMFuser) -> None:
        super().__init__()
        self.block: MMFuser = block

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        block = self.block
        tokens = block.feat_norm(features[:-1]).transpose(0, 1).flatten(1, 2)
        attended = reference(block.cross_attn, block.query_norm(features[-1]), tokens, grid)
        own = block.norm1(attended)
        attended = attended + block.gamma2 * reference(block.self_attn, own, own, grid)
        out: Tensor = features[-1] + block.gamma1 * attended
        return out


def step(fuser: nn.Module, out_dim: int, features: Tensor, grid: tuple[int, int]) -> Callable[[], None]:
    model = nn.ModuleList([fuser, nn.Linear(out_dim, features.shape[-1])])
    with torch.no_grad():
        for parameter in fuser.parameters():  # away from the start, where gradients are zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    cotangent = torch.randn(features.shape[1:])

    def run() -> None:
        model.zero_grad()
        model[1](fuser(features, grid)).backward(cotangent)

    return run


def main(threads: int = 2, rounds: int = 15) -> None:
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, {threads} thread(s); milliseconds a step, and as a multiple of concat")
    for batch, rows, columns, dim, levels in SHAPES:
        grid, selection = (rows, columns), Selection(tuple(range(levels)), levels)
        features = torch.randn(levels + 1, batch, rows * columns, dim)
        concat, fused = build("concat", selection, dim), build("mmfuser", selection, dim)
        candidates = {
            "concat": step(concat, concat.out_dim, features, grid),
            "mmfuser": step(fused, dim, features, grid),
            "mmfuser by grid_sample": step(PerLevel(MMFuser(selection, dim, MMFuserOptions())), dim, features, grid),
        }
        best = dict.fromkeys(candidates, float("inf"))
        for _ in range(rounds):
            for name, run in candidates.items():
                start = clock()
                run()
                best[name] = min(best[name], 1000 * (clock() - start))
        row = ", ".join(f"{name} {ms:.1f} ({ms / best['concat']:.2f}×)" for name, ms in best.items())
        print(f"batch {batch}, grid {rows}×{columns}, dim {dim}, {levels} levels + query: {row}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
