"""Concat: the layers side by side in the channels, for the projector to mix.

The "concat" row of MMFuser's Table I (arXiv 2410.11829) and, over single layers, the sparse channel integration of
Dense Connector (:mod:`modules.fusion.dense_connector` registers this class as ``sci`` too): no module of its own, a
wider projector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Fusion, Grid, LayerNorm, normalise, register_strategy


@dataclass(frozen=True)
class ConcatOptions:
    """Whether each layer is normalised first."""

    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "concat",
    options=ConcatOptions,
    uses_levels=True,
    title="channel concatenation",
    source="arXiv 2410.11829, Table I",
)
class Concat(Fusion):
    """``F = [LN(F_1); …; LN(F_M); LN(F_L)]`` along the channels; LN has no parameters."""

    def __init__(self, selection: Selection, dim: int, options: ConcatOptions) -> None:
        super().__init__(selection, dim, options)
        self.out_dim = dim * len(self.uses)

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, (M + 1)·dim]``."""
        self.check(features, grid)
        return torch.cat(tuple(normalise(features, self.options.layer_norm)), dim=-1)
