"""Average and sum: the layers added, token by token (the "average" row of MMFuser's Table I, arXiv 2410.11829)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fusion_workbench.modules.fusion.base import Fusion, Grid, LayerNorm, normalise, register_strategy


@dataclass(frozen=True)
class AverageOptions:
    """Whether each layer is normalised first."""

    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "average",
    options=AverageOptions,
    uses_levels=True,
    title="average of the layers",
    source="arXiv 2410.11829, Table I",
)
class Average(Fusion):
    """``F = 1/(M + 1) · Σ_l LN(F_l)`` over the M levels and the query; LN has no parameters."""

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, dim]``."""
        self.check(features, grid)
        return normalise(features, self.options.layer_norm).mean(0)


@dataclass(frozen=True)
class SumOptions:
    """Whether each layer is normalised first."""

    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "sum",
    options=SumOptions,
    uses_levels=True,
    title="sum of the layers",
    source="the average without its divisor",
)
class Sum(Fusion):
    """``F = Σ_l LN(F_l)``.

    Behind a projector that normalises its input, as ours does, it is the average to within the norm's ε; the scale of
    the tokens tells only where something else reads them.
    """

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, dim]``."""
        self.check(features, grid)
        return normalise(features, self.options.layer_norm).sum(0)
