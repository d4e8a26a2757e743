"""Who reads the maps of deformable attention on CUDA: this package's operator, or the package ``deformops``.

``deformops`` (https://pypi.org/project/deformops, MIT; 3.0.1 was read) has Triton kernels, forward and backward, for
float32, bfloat16 and float16; it is an extra (``pip install 'fusion-workbench[gpu]'``), for Python 3.12 and 3.13 on
Linux. They were made for 5,000 to 22,000 queries, MMFuser has 576: so where it is installed it is timed against this
package's operator, once for each shape in a process, and taken only where it is faster by :data:`MARGIN` and gives the
same numbers. :func:`resolve` says which and why. Nothing is timed or imported on the CPU.

Only its Triton kernels are called, never its CUDA kernels, which may want to be compiled. It reads values in their own
type with weights in that type too, at locations in float32, and adds the gradients of the values up in float32, in an
order that differs from run to run. In bfloat16 it returns the gradients of locations in bfloat16. It has no float64.

Letters in shapes: B images, Q queries, H heads, L levels, P points, N = L·Q tokens of all levels, C channels of a head.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fusion_workbench.core.errors import error_words
from fusion_workbench.modules.fusion.deformable import corners, gather

Grid = tuple[int, int]
Sampler = Callable[[Tensor, Tensor, int, Grid], Tensor]
"""``values [B, N, H·C], sampling [3, H, L·P, B·Q], L, grid → [B, Q, H·C]``, as :func:`own`."""
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Deformable attention in the published layout, see :func:`in_published_layout`."""

SWITCH = "WORKBENCH_DEFORMABLE"  # "own": never another backend
MARGIN = 1.1  # two timings of one operator differed by up to 10 % (docs/gpu.md)
WARM, ROUNDS = 3, 10  # the first compile the kernels
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}  # of norms; TF32 in the first


class Shape(NamedTuple):
    """What a call looks like, beside device and type."""

    images: int
    grid: Grid  # rows, columns
    levels: int
    heads: int
    points: int
    channels: int  # of a head


@dataclass(frozen=True)
class Resolution:
    """Which backend runs, and in words why not the other; milliseconds of both where they were timed."""

    backend: Literal["own", "deformops"]
    reason: str
    own_ms: float | None = None
    deformops_ms: float | None = None


_tried: dict[tuple[torch.device, torch.dtype, Shape, bool], Resolution] = {}
_spent = [0.0]


def sample(values: Tensor, sampling: Tensor, levels: int, grid: Grid) -> Tensor:
    """``values [B, N, H·C], sampling [3, H, L·P, B·Q] → [B, Q, H·C]`` by the backend that :func:`resolve` names."""
    _, heads, samples, _ = sampling.shape
    shape = Shape(len(values), grid, levels, heads, samples // levels, values.shape[-1] // heads)
    training = torch.is_grad_enabled() and (values.requires_grad or sampling.requires_grad)
    if resolve(values.device, values.dtype, shape, training).backend == "own":
        return own(values, sampling, levels, grid)
    return deformops(values, sampling, levels, grid)


def resolve(device: torch.device, dtype: torch.dtype, shape: Shape, training: bool = True) -> Resolution:
    """The backend of a call whose values have this device, type and shape.

    Args:
        training: the backward pass is run, and timed, too.
    """
    if (reason := _ruled_out(device, dtype)) is not None:
        return Resolution("own", reason)
    if str(device) == "cuda":  # without a number: the current one
        device = torch.device(device.type, torch.cuda.current_device() if torch.cuda.is_available() else 0)
    key = (device, dtype, shape, training)
    if key not in _tried:
        start = time.perf_counter()
        _tried[key] = _decide(device, dtype, shape, training)
        _spent[0] += time.perf_counter() - start
    return _tried[key]


def seconds_spent() -> float:
    """How long this process has tried out backends so far, which is no part of any training step."""
    return _spent[0]


@lru_cache(maxsize=1)
def unavailable() -> str | None:
    """Why ``deformops`` cannot be imported, in words; None where it can be looked for. Imports nothing."""
    if find_spec("deformops") is not None:
        return None
    if platform.system() != "Linux":
        return f"deformops has kernels for Linux, and this is {platform.system()}"
    if platform.python_version_tuple()[:2] not in (("3", "12"), ("3", "13")):
        return f"deformops needs Python 3.12 or 3.13, and this is {platform.python_version()}"
    return "deformops is not installed: pip install 'fusion-workbench[gpu]'"


def own(values: Tensor, sampling: Tensor, levels: int, grid: Grid) -> Tensor:
    """This package's operator: ``values [B, N, H·C], sampling [3, H, L·P, B·Q] → [B, Q, H·C]``."""
    return gather(values, *corners(sampling, levels, grid))


def deformops(values: Tensor, sampling: Tensor, levels: int, grid: Grid) -> Tensor:
    """The same by ``deformops``. Raises whatever its import or its kernels raise."""
    return in_published_layout(values, sampling, levels, grid, _load())


def in_published_layout(values: Tensor, sampling: Tensor, levels: int, grid: Grid, attend: Attend) -> Tensor:
    """What :func:`own` computes, by an operator with the arguments of Deformable DETR's.

    Args:
        values: ``[B, N, H·C]``, projected tokens.
        sampling: ``[3, H, L·P, B·Q]``: offsets x and y in cells from the query's own, and attention logits.
        levels: L, all of them of the one grid.
        grid: rows and columns; the queries are its cells, Q = rows · columns.
        attend: ``(value [B, N, H, C], spatial_shapes [L, 2] (rows, columns), level_start_index [L], sampling_locations
            [B, Q, H, L, P, 2] (x, y; the map spans 0 to 1), attention_weights [B, Q, H, L, P]) → [B, Q, H·C]``. The
            middle of cell i of n is at (i + ½) / n, and outside the map is zero.

    The softmax is taken here, in the type of ``sampling``; its result is rounded to the type of ``values``.
    """
    _, heads, _, queries = sampling.shape
    rows, columns = grid
    share = sampling[2].softmax(1)
    y = torch.arange(rows, dtype=sampling.dtype, device=sampling.device).repeat_interleave(columns)
    x = torch.arange(columns, dtype=sampling.dtype, device=sampling.device).repeat(rows)
    images = queries // (rows * columns)
    # all that lies a cell or more outside reads zero wherever it is; a runaway offset must stay an integer
    across = (sampling[0] + x.repeat(images)).clamp(-2, columns).add(0.5).div(columns)
    down = (sampling[1] + y.repeat(images)).clamp(-2, rows).add(0.5).div(rows)
    xy, weights = (
        torch.unflatten(torch.unflatten(t, -1, (images, -1)), -3, (levels, -1))  # [·, H, L, P, B, Q]
        for t in (torch.stack((across, down)), share)
    )
    shapes, starts = _level_table(sampling.device, levels, grid)
    out = attend(
        torch.unflatten(values, -1, (heads, -1)),
        shapes,
        starts,
        xy.permute(4, 5, 1, 2, 3, 0),
        weights.permute(3, 4, 0, 1, 2).to(values.dtype),
    )
    return out.to(values.dtype)


@lru_cache(maxsize=64)
def _level_table(device: torch.device, levels: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """``[L, 2]`` rows and columns of each level, ``[L]`` where it starts among the tokens."""
    rows, columns = grid
    with torch.inference_mode(False):  # kept for later calls, some of which go backward
        shapes = torch.tensor([[rows, columns]] * levels, dtype=torch.int32, device=device)
        starts = torch.arange(levels, dtype=torch.int32, device=device) * (rows * columns)
    return shapes, starts


@lru_cache(maxsize=1)
def _load() -> Attend:
    registry = import_module("deformops.registry")
    msda, triton = registry.msda, registry.Backend.TRITON

    def attend(values: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = msda(values, shapes, starts, locations, weights, method="linear", backend=triton, fp32acc=True)
        return out

    return attend


def _ruled_out(device: torch.device, dtype: torch.dtype) -> str | None:
    """What speaks against ``deformops`` before anything is timed."""
    if device.type != "cuda":
        return f"deformops runs on CUDA, and this is {device.type}"
    if os.environ.get(SWITCH) == "own":
        return f"{SWITCH}=own"
    if dtype not in TOLERANCE:
        return f"deformops has no kernel for {str(dtype).removeprefix('torch.')}"
    if (reason := unavailable()) is not None:
        return reason
    if torch.are_deterministic_algorithms_enabled():
        return "deformops adds gradients up in any order, and deterministic algorithms are asked for"
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return "operations are being traced or counted"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def _decide(device: torch.device, dtype: torch.dtype, shape: Shape, training: bool) -> Resolution:
    try:
        _load()
    except Exception as error:
        return Resolution("own", f"deformops cannot be imported: {error_words(error)}")
    try:
        ours, theirs = trial(own, deformops, device, dtype, shape, training)
    except Exception as error:
        return Resolution("own", f"deformops failed when tried: {error_words(error)}")
    words = f"deformops {theirs:.2f} ms, own {ours:.2f} ms" + (", forward and backward" if training else ", forward")
    if theirs * MARGIN <= ours:
        return Resolution("deformops", f"faster: {words}", ours, theirs)
    return Resolution("own", f"deformops is not faster by {100 * MARGIN - 100:.0f} %: {words}", ours, theirs)


def trial(
    ours: Sampler, theirs: Sampler, device: torch.device, dtype: torch.dtype, shape: Shape, training: bool
) -> tuple[float, float]:
    """Milliseconds of each, the best of ten taken in turn, on random values and samples of this shape.

    The random state of torch, its autocast and its hooks are left as they are.

    Raises:
        ArithmeticError: the two do not give the same numbers.
    """
    images, (rows, columns), levels, heads, points, channels = shape
    queries, dim = rows * columns, heads * channels
    draw = torch.Generator(device).manual_seed(0)
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(training),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        values = torch.randn(images, levels * queries, dim, generator=draw, device=device).to(dtype)
        exact = torch.promote_types(dtype, torch.float32)  # as DeformableAttention.sampling gives it
        sampling = torch.randn(3, heads, levels * points, images * queries, generator=draw, device=device).to(exact)
        cotangent = torch.randn(images, queries, dim, generator=draw, device=device).to(dtype)
        inputs = [tensor.requires_grad_(training) for tensor in (values, sampling)]

        def run(sampler: Sampler) -> list[Tensor]:
            out = sampler(values, sampling, levels, (rows, columns))
            return [out.detach(), *(torch.autograd.grad(out, inputs, cotangent) if training else ())]

        for kind, expected, actual in zip(("output", "gradient", "gradient"), run(ours), run(theirs), strict=False):
            error = float((actual.double() - expected.double()).norm() / expected.double().norm())
            if not error <= TOLERANCE.get(dtype, 1e-6):
                raise ArithmeticError(f"its {kind} is {100 * error:.1f} % away from this package's")
        best = [float("inf"), float("inf")]
        for round_ in range(WARM + ROUNDS):
            for number, sampler in enumerate((ours, theirs)):
                _wait(device)
                start = time.perf_counter()
                run(sampler)
                _wait(device)
                if round_ >= WARM:
                    best[number] = min(best[number], 1000 * (time.perf_counter() - start))
    return best[0], best[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
