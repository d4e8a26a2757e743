"""FPN: a top-down pathway over the layers (Feature Pyramid Networks, arXiv 1612.03144, section 3).

The "FPN" row of MMFuser's Table I (arXiv 2410.11829). That paper does not say how a pyramid is built on layers of one
resolution, and its published code holds no FPN. The reading taken here, deepest layer first::

    P_L = lateral_L(LN(F_L))
    P_l = lateral_l(LN(F_l)) + P_{l+1}          lateral: a 1×1 map for each layer; nothing to upsample, one grid
    F   = smooth(P_1)                           3×3 convolution over the grid, of the finest map
    F   = Σ_l smooth_l(P_l)                     output: sum, a convolution for each map

There are no nonlinearities, as in FPN. A pyramid there has 256 channels because its heads are shared by all maps; here
one map is read, and the channels stay the encoder's unless ``channels`` says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Fusion, Grid, LayerNorm, normalise, register_strategy


@dataclass(frozen=True)
class FPNOptions:
    """The form of the pyramid; see the head of the file."""

    output: Literal["finest", "sum"] = "finest"
    channels: int | None = None  # None: as many as the layers have
    layer_norm: LayerNorm = "per_layer"


@register_strategy(
    "fpn",
    options=FPNOptions,
    uses_levels=True,
    title="feature pyramid",
    source="arXiv 1612.03144, section 3; arXiv 2410.11829, Table I",
)
class FPN(Fusion):
    """The pyramid above, from ``[M + 1, B, T, dim]`` to ``[B, T, channels]``.

    Raises:
        WorkbenchError: ``channels`` is below 1.
    """

    def __init__(self, selection: Selection, dim: int, options: FPNOptions) -> None:
        super().__init__(selection, dim, options)
        channels = dim if options.channels is None else options.channels
        if channels < 1:
            raise WorkbenchError(f"fpn: channels={channels}; the pyramid needs at least one.")
        self.out_dim = channels
        self.lateral = nn.ModuleList(nn.Linear(dim, channels) for _ in self.uses)
        smoothed = len(self.uses) if options.output == "sum" else 1
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(smoothed))
        for layer in (*self.lateral, *self.smooth):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[M + 1, B, T, dim] → [B, T, channels]``."""
        self.check(features, grid)
        laterals = [f(x) for f, x in zip(self.lateral, normalise(features, self.options.layer_norm), strict=True)]
        pyramid = [laterals.pop()]  # deepest first
        while laterals:
            pyramid.append(laterals.pop() + pyramid[-1])
        read = pyramid if self.options.output == "sum" else pyramid[-1:]
        maps = (smooth(p.mT.unflatten(2, grid)) for smooth, p in zip(self.smooth, read, strict=True))
        return torch.stack([m.flatten(2).mT for m in maps]).sum(0)
