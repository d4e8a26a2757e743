"""No fusion: one layer alone. What every fused variant has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Fusion, Grid, register_strategy


@dataclass(frozen=True)
class DeepOnlyOptions:
    """None."""


@register_strategy(
    "deep_only",
    options=DeepOnlyOptions,
    uses_levels=False,
    title="a single layer",
    source="LLaVA, arXiv 2304.08485, section 4.1: hidden_states[-2]",
)
class DeepOnly(Fusion):
    """``F = F_L``: the query's tokens, whatever levels the selection names."""

    identity_at_start = True

    def __init__(self, selection: Selection, dim: int, options: DeepOnlyOptions) -> None:
        super().__init__(selection, dim, options)
        self.uses = (selection.query,)

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[1, B, T, dim] → [B, T, dim]``."""
        self.check(features, grid)
        return features[0]
