"""Deformable attention in the published layout: Deformable DETR's PyTorch reference (arXiv 2010.04159, eq. 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """``value [B, N, H, C], shapes [L, 2], starts [L], locations [B, Q, H, L, P, 2], weights [B, Q, H, L, P]`` to
    ``[B, Q, H·C]``: torch's own bilinear sampling, a level at a time."""
    batch, _, heads, _ = value.shape
    queries = locations.shape[1]
    out = value.new_zeros(batch, heads, value.shape[-1], queries)
    for level, (rows, columns) in enumerate(shapes.tolist()):
        first = int(starts[level])
        maps = value[:, first : first + rows * columns].permute(0, 2, 3, 1).reshape(batch * heads, -1, rows, columns)
        where = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # [B·H, Q, P, 2]
        found = F.grid_sample(maps, where, mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out + torch.einsum("bhcqp,bqhp->bhcq", found.unflatten(0, (batch, heads)), weights[:, :, :, level])
    return out.permute(0, 3, 1, 2).flatten(2)


def inputs(
    seed: int,
    images: int,
    grid: tuple[int, int],
    levels: int,
    heads: int,
    points: int,
    channels: int,
    reach: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random ``values [B, N, H·C]``, ``sampling [3, H, L·P, B·Q]`` and a cotangent ``[B, Q, H·C]``, in float64.

    Offsets have a standard deviation of ``reach`` cells and keep 1/50 cell away from where a bilinear weight has a
    kink: there the derivative is one-sided, and rounding chooses the side.
    """
    draw = torch.Generator().manual_seed(seed)
    queries = grid[0] * grid[1]
    values = torch.randn(images, levels * queries, heads * channels, generator=draw, dtype=torch.float64)
    sampling = torch.randn(3, heads, levels * points, images * queries, generator=draw, dtype=torch.float64)
    offsets = sampling[:2] * reach
    sampling[:2] = offsets.floor() + (offsets - offsets.floor()).clamp(0.02, 0.98)
    cotangent = torch.randn(images, queries, heads * channels, generator=draw, dtype=torch.float64)
    return values, sampling, cotangent
