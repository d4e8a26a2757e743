"""MMFuser (arXiv 2410.11829, eq. 1–4): the deep layer asks, the shallow layers answer.

::

    F_ca = CA(LN_q(F_L), LN_f([F_1, …, F_M]))       deformable cross-attention; the query is the deep layer
    F_sa = F_ca + γ2 · SA(LN_1(F_ca))               deformable self-attention
    F    = F_L + γ1 · F_sa                          γ1 = γ2 = 0 at the start: the block begins as the identity

CA and SA are multi-scale deformable attention over the patch grid (:mod:`modules.fusion.deformable`), or, as in the
paper's Table VII, both of another kind (:mod:`modules.fusion.attention`); γ are vectors of one number a channel. As
long as γ1 is zero it alone has a gradient, so the gates want a learning rate of their own.

The paper's setting is dim 1024 with 16 heads, 4 points and the levels hidden_states[-22, -17, -12, -7] under the query
hidden_states[-2] of CLIP-L/336: 5,190,592 parameters. Parameters carry the names of the published state dict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.attention import ATTENTION
from fusion_workbench.modules.fusion.base import Fusion, Grid, register_strategy
from fusion_workbench.schema.names import ATTENTION_SHARE, OFFSET_RMS

EPS = 1e-6  # of every LayerNorm


@dataclass(frozen=True)
class MMFuserOptions:
    """Settings of the block; the defaults are the paper's."""

    heads: int | None = None  # None: one for every 64 channels
    points: int = 4  # places that a head of deformable attention looks at on each level
    gate_init: float = 0.0  # of γ1 and γ2
    self_attention: bool = True  # False: F_sa = F_ca (the paper's Table VIII)
    attention: Literal["deformable", "global", "linear_sra"] = "deformable"  # of both steps (the paper's Table VII)


@register_strategy(
    "mmfuser", options=MMFuserOptions, uses_levels=True, title="MMFuser", source="arXiv 2410.11829, eq. 1–4"
)
class MMFuser(Fusion):
    """The block above, from ``[M + 1, B, T, dim]`` to ``[B, T, dim]``.

    Raises:
        WorkbenchError: heads that do not divide ``dim``, fewer than one head or point, or points of another attention
            than the deformable.
    """

    def __init__(self, selection: Selection, dim: int, options: MMFuserOptions) -> None:
        super().__init__(selection, dim, options)
        self.identity_at_start = options.gate_init == 0
        heads = max(1, dim // 64) if options.heads is None else options.heads
        if options.attention != "deformable" and options.points != MMFuserOptions.points:
            raise WorkbenchError(
                f"mmfuser: points={options.points} is of deformable attention; attention={options.attention} has none."
            )
        attention = ATTENTION[options.attention]
        try:
            self.cross_attn = attention(dim, heads, len(selection.levels), options.points)
        except WorkbenchError as error:
            raise WorkbenchError(f"mmfuser: {error}") from None
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=EPS)
        self.gamma1 = nn.Parameter(torch.full((dim,), options.gate_init))
        if options.self_attention:
            self.norm1 = nn.LayerNorm(dim, eps=EPS)
            self.self_attn = attention(dim, heads, 1, options.points)
            self.gamma2 = nn.Parameter(torch.full((dim,), options.gate_init))

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``features [M + 1, B, T, dim]``, the query last, ``→ [B, T, dim]``."""
        self.check(features, grid)
        query, levels = self._normalised(features)
        attended = self.cross_attn(query, levels, grid, self.query_norm, self.feat_norm)  # F_ca
        if self.options.self_attention:
            own = F.layer_norm(attended, (self.dim,), eps=EPS)
            refined = self.self_attn(own, own, grid, self.norm1, self.norm1)
            attended = torch.addcmul(attended, self.gamma2, refined)  # F_sa
        return torch.addcmul(features[-1], self.gamma1, attended)

    def gates(self) -> Iterable[nn.Parameter]:
        return (self.gamma1, self.gamma2) if self.options.self_attention else (self.gamma1,)

    def diagnose(self, features: Tensor, grid: Grid) -> dict[str, float]:
        """How the cross-attention is shared out, and how far it looks.

        ``attention_share/layer_k``: mean over images, queries and heads; the shares of the levels sum to 1.
        ``sampling_offset_rms_cells``: root mean square distance of the samples from their cell, where deformable.
        """
        arrays = self.inspect(features, grid)
        shares = arrays["attention"].mean(1).tolist()
        named = {f"{ATTENTION_SHARE}{k}": s for k, s in zip(self.selection.levels, shares, strict=True)}
        if "offsets" in arrays:
            named[OFFSET_RMS] = float(arrays["offsets"].square().mean().sqrt())
        return named

    @torch.no_grad()
    def inspect(self, features: Tensor, grid: Grid) -> dict[str, Tensor]:
        """``attention [M, heads]``: each level's share of each head's attention, the mean over images and queries;
        ``offsets [M, heads]``: root mean square distance of the samples from their cell, in cells, where deformable;
        ``regions [B, T, M]``: each level's share of what a token draws on, the mean over heads.
        """
        self.check(features, grid)
        query, tokens = self._normalised(features)
        shares, offsets = self.cross_attn.describe(query, tokens, grid, self.query_norm, self.feat_norm)
        arrays = {"attention": shares.mean((0, 1)).T, "regions": shares.mean(2)}
        return arrays if offsets is None else arrays | {"offsets": offsets}

    def _normalised(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Query ``[B, T, dim]`` and levels ``[B, M·T, dim]`` with mean 0 and variance 1.

        The affine parts of LN_q and LN_f are left to the attention, which folds them into its projections.
        """
        hidden = F.layer_norm(features, (self.dim,), eps=EPS)
        return hidden[-1], hidden[:-1].transpose(0, 1).flatten(1, 2)
