"""Weighted average: one learned weight a layer, the same for every token.

ELMo's scalar mix (arXiv 1802.05365, eq. 1); the way SUPERB reads speech encoders (arXiv 2105.01051); the
"weighted average" row of MMFuser's Table I (arXiv 2410.11829).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Fusion, Grid, LayerNorm, normalise, register_strategy


@dataclass(frozen=True)
class WeightedOptions:
    """Whether each layer is normalised first (an option of ELMo too)."""

    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "weighted",
    options=WeightedOptions,
    uses_levels=True,
    title="learned weighted average",
    source="arXiv 1802.05365, eq. 1; arXiv 2105.01051",
)
class Weighted(Fusion):
    """``F = γ · Σ_l s_l · LN(F_l)`` with ``s = softmax(w)``; it begins as the average: ``w = 0, γ = 1``.

    γ is kept as its logarithm. The projector normalises what it reads, so behind it γ has next to no gradient, and a
    plain number that drifts through zero would turn the sign of every token.
    """

    def __init__(self, selection: Selection, dim: int, options: WeightedOptions) -> None:
        super().__init__(selection, dim, options)
        self.weight = nn.Parameter(torch.zeros(len(self.uses)))
        self.log_gamma = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, dim]``."""
        self.check(features, grid)
        scaled = self.log_gamma.exp() * self.weight.softmax(0)
        return (scaled.view(-1, 1, 1, 1) * normalise(features, self.options.layer_norm)).sum(0)

    @torch.no_grad()
    def diagnose(self, features: Tensor, grid: Grid) -> dict[str, float]:
        """``weight/layer_k``: the softmax weights, which sum to 1; ``scale``: γ."""
        shares = self.weight.float().softmax(0).tolist()
        weights = {f"weight/layer_{layer}": share for layer, share in zip(self.uses, shares, strict=True)}
        return weights | {"scale": float(self.log_gamma.exp())}
