"""How long a step of MMFuser takes beside one of concat: ``python tests/benchmarks/bench_deformable.py``.

A step is forward and backward of the fuser and a linear projector to ``dim``, on frozen features; then deformable
attention alone, whose tokens do have gradients. The candidates take turns, and the minima are compared, so that other
work on the machine disturbs the ratios little; on the CPU with one thread the clock is the thread's own CPU time, which
others cannot take, and on CUDA every step is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion_workbench.bench.others.per_level import PerLevel, attention_by_level, away_from_the_start
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import build, deformable, deformable_backends
from fusion_workbench.modules.fusion.deformable import DeformableAttention, fold
from fusion_workbench.modules.fusion.mmfuser import MMFuser, MMFuserOptions

Run = Callable[[], None]
SHAPES = {  # batch, rows, columns, dim, levels
    "cpu": [(32, 8, 8, 384, 3), (32, 8, 8, 384, 4), (16, 16, 16, 384, 3), (2, 24, 24, 1024, 4)],
    "cuda": [(32, 8, 8, 384, 3), (16, 16, 16, 384, 3), (16, 24, 24, 1024, 4), (64, 24, 24, 1024, 4)],
    "tiny": [(2, 4, 4, 64, 2)],
}
WAYS: dict[
    str, dict[str, int]
] = {  # of the backward pass: what constants of fusion_workbench.modules.fusion.deformable are set to
    "as it is": {},
    "sparse": {"DENSE_UP_TO": 0, "DENSE_UP_TO_ON_GPU": 0},
    "dense": {"DENSE_UP_TO": 10**6, "DENSE_UP_TO_ON_GPU": 10**6, "DENSE_FROM_ON_GPU": 0}
    | {"CHUNK": 2**20, "CHUNK_ON_GPU": 2**20},
    "dense at once": {"DENSE_UP_TO": 10**6, "DENSE_UP_TO_ON_GPU": 10**6, "DENSE_FROM_ON_GPU": 0}
    | {"CHUNK": 2**30, "CHUNK_ON_GPU": 2**30},
}


def step(fuser: nn.Module, out_dim: int, features: Tensor, grid: tuple[int, int], bf16: bool) -> Run:
    model = nn.ModuleList([fuser, nn.Linear(out_dim, features.shape[-1])]).to(features.device)
    away_from_the_start(fuser)
    cotangent = torch.randn_like(features[0])

    def run() -> None:
        model.zero_grad()
        with torch.autocast(features.device.type, torch.bfloat16, enabled=bf16):
            out = model[1](fuser(features, grid))
        out.float().backward(cotangent)

    return run


def attention_step(
    attend: Callable[[DeformableAttention, Tensor, Tensor, tuple[int, int]], Tensor],
    features: Tensor,
    grid: tuple[int, int],
    bf16: bool,
) -> Run:
    dim = features.shape[-1]
    attention = DeformableAttention(dim, max(1, dim // 64), len(features) - 1, 4).to(features.device)
    away_from_the_start(attention)
    query = features[-1].clone().requires_grad_()
    tokens = features[:-1].transpose(0, 1).flatten(1, 2).clone().requires_grad_()
    cotangent = torch.randn_like(query)

    def run() -> None:
        attention.zero_grad()
        query.grad = tokens.grad = None
        with torch.autocast(features.device.type, torch.bfloat16, enabled=bf16):
            out = attend(attention, query, tokens, grid)
        out.float().backward(cotangent)

    return run


def by_deformops(attention: DeformableAttention, query: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The attention with ``deformops`` to read the maps, whether it is faster or not."""
    values = nn.functional.linear(tokens, *fold(attention.value_proj, None))
    read = deformable_backends.deformops(values, attention.sampling(query), attention.levels, grid)
    return attention.output_proj(read)  # type: ignore[no-any-return]


@contextmanager
def backward_by(way: str) -> Iterator[None]:
    """By this package's operator with the constants of a way; ``chosen``: by the backend that a study would take."""
    constants = WAYS.get(way, {})
    before = {name: getattr(deformable, name) for name in constants}
    vars(deformable).update(constants)
    os.environ[deformable_backends.SWITCH] = "auto" if way == "chosen" else "own"
    try:
        yield
    finally:
        vars(deformable).update(before)


def best_of(
    candidates: dict[str, tuple[str, Run]], rounds: int, clock: Callable[[], float], device: str
) -> dict[str, float]:
    """Milliseconds a step of each candidate, which is a way of going backward and what is run; the minimum."""
    best = dict.fromkeys(candidates, float("inf"))
    for round_ in range(rounds + 2):  # the first two warm up
        for name, (way, run) in candidates.items():
            with backward_by(way):
                _wait(device)
                start = clock()
                run()
                _wait(device)
                if round_ >= 2:
                    best[name] = min(best[name], 1000 * (clock() - start))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--tiny", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--json", type=Path, help="append each result to this file, a line each")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    clock = time.thread_time if chosen.device == "cpu" and chosen.threads == 1 else time.perf_counter
    where = torch.cuda.get_device_name() if chosen.device == "cuda" else f"{chosen.threads} thread(s)"
    precision = "bf16 autocast" if chosen.bf16 else "float32"
    print(f"torch {torch.__version__}, {where}, {precision}; milliseconds a step, and as a multiple of the first")
    for batch, rows, columns, dim, levels in SHAPES["tiny" if chosen.tiny else chosen.device]:
        grid, selection = (rows, columns), Selection(tuple(range(levels)), levels)
        torch.manual_seed(0)
        features = torch.randn(levels + 1, batch, rows * columns, dim, device=chosen.device)
        concat = build("concat", selection, dim)
        per_level = PerLevel(MMFuser(selection, dim, MMFuserOptions()))
        fused = step(build("mmfuser", selection, dim), dim, features, grid, chosen.bf16)
        whole = {
            "concat": ("as it is", step(concat, concat.out_dim, features, grid, chosen.bf16)),
            "grid_sample": ("as it is", step(per_level, dim, features, grid, chosen.bf16)),
            **{way: (way, fused) for way in WAYS},
        }
        ours = attention_step(DeformableAttention.__call__, features, grid, chosen.bf16)
        alone = {
            "grid_sample": ("as it is", attention_step(attention_by_level, features, grid, chosen.bf16)),
            **{way: (way, ours) for way in WAYS},
        }
        if chosen.device == "cuda" and deformable_backends.unavailable() is None:
            whole["chosen"] = ("chosen", fused)
            alone["deformops"] = ("as it is", attention_step(by_deformops, features, grid, chosen.bf16))
        shape = f"batch {batch}, grid {rows}×{columns}, dim {dim}, {levels} levels + query"
        kind = torch.bfloat16 if chosen.bf16 else torch.float32
        call = deformable_backends.Shape(batch, grid, levels, max(1, dim // 64), 4, min(64, dim))
        with backward_by("chosen"):
            taken = deformable_backends.resolve(features.device, kind, call)
        print(f"backend, {shape}: {taken.backend} ({taken.reason})")
        if chosen.json:
            with chosen.json.open("a") as file:
                file.write(json.dumps({"backend": taken.backend, "reason": taken.reason, "shape": shape}) + "\n")
        for what, candidates in (("step of MMFuser", whole), ("attention alone", alone)):
            best = best_of(candidates, chosen.rounds, clock, chosen.device)
            first = next(iter(best.values()))
            row = ", ".join(f"{name} {ms:.2f} ({ms / first:.2f}×)" for name, ms in best.items())
            print(f"{what}, {shape}: {row}", flush=True)
            if chosen.json:
                facts = {"what": what, "shape": shape, "precision": precision, "ms": best}
                with chosen.json.open("a") as file:
                    file.write(json.dumps({"benchmark": "deformable", "where": where} | facts) + "\n")


if __name__ == "__main__":
    main()
