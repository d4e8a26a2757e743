"""Average: the mean of the layers, token by token (the "average" row of MMFuser's Table I)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from modules.fusion.base import Fusion, Grid, register_strategy


@dataclass(frozen=True)
class AverageOptions:
    """None."""


@register_strategy(
    "average",
    options=AverageOptions,
    uses_levels=True,
    title="average of the layers",
    source="arXiv 2410.11829, Table I",
)
class Average(Fusion):
    """``F = 1/(M + 1) · Σ_l LN(F_l)`` over the M levels and the query.

    LN has no parameters: without it the layer with the largest norm would be the average, and an affine part would be
    absorbed by the projector that follows.
    """

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, dim]``."""
        self.check(features, grid)
        return F.layer_norm(features, (self.dim,), eps=1e-6).mean(0)
