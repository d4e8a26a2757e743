"""Gated average: every token weighs the layers for itself.

The softmax gate of a mixture of experts (arXiv 1701.06538, eq. 1 and 2) in which the experts are the layers as they
are. No paper on fusing layers has exactly this; it is ours, and the least that is more than
:mod:`modules.fusion.weighted`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Fusion, Grid, LayerNorm, normalise, register_strategy


@dataclass(frozen=True)
class GatedOptions:
    """Whether each layer is normalised first."""

    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "gated",
    options=GatedOptions,
    uses_levels=True,
    title="average gated by token",
    source="ours, after arXiv 1701.06538, eq. 1 and 2",
)
class Gated(Fusion):
    """``F(t) = Σ_l g_l(t) · x_l(t)`` with ``g(t) = softmax(W [x_1(t); …; x_L(t)] + b)`` and ``x_l = LN(F_l)``.

    W and b are zero at the start, so it begins as the average.
    """

    def __init__(self, selection: Selection, dim: int, options: GatedOptions) -> None:
        super().__init__(selection, dim, options)
        layers = len(self.uses)
        self.gate = nn.Linear(layers * dim, layers)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, dim]``."""
        self.check(features, grid)
        layers = normalise(features, self.options.layer_norm)
        return (self._shares(layers).unsqueeze(-1) * layers).sum(0)

    @torch.no_grad()
    def diagnose(self, features: Tensor, grid: Grid) -> dict[str, float]:
        """``weight/layer_k``: the mean gate, summing to 1; ``weight_spread/layer_k``: its deviation between tokens."""
        self.check(features, grid)
        shares = self._shares(normalise(features, self.options.layer_norm)).float().flatten(1)  # [M + 1, B·T]
        mean, spread = shares.mean(1).tolist(), shares.std(1, correction=0).tolist()
        weights = {f"weight/layer_{layer}": value for layer, value in zip(self.uses, mean, strict=True)}
        return weights | {f"weight_spread/layer_{layer}": v for layer, v in zip(self.uses, spread, strict=True)}

    def _shares(self, layers: Tensor) -> Tensor:
        """``[M + 1, B, T, dim] → [M + 1, B, T]``, a softmax over the layers."""
        logits: Tensor = self.gate(torch.cat(tuple(layers), dim=-1))
        return logits.softmax(-1).movedim(-1, 0)
