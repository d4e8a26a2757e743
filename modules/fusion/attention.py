"""The kinds of attention that MMFuser's Table VII compares (arXiv 2410.11829), each from a query to all levels.

============ ==========================================================================================================
deformable   the paper's own: a few places on each level, :mod:`modules.fusion.deformable`
global       every token of every level: softmax attention (arXiv 1706.03762, section 3.2)
linear_sra   linear spatial-reduction attention (PVTv2, arXiv 2106.13797): every level is averaged to 7 × 7
             places, then mapped, normalised and activated, and these few are attended to
============ ==========================================================================================================

Only deformable attention is in the published code; the other two are read from the papers that they come from. All take
the same arguments, so the block around them does not know which it holds.

Letters in shapes: B images, Q queries, L levels, T tokens of a level, N = L·T, H heads, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion import deformable_backends
from fusion_workbench.modules.fusion.deformable import DeformableAttention, fold

Grid = tuple[int, int]
CHOICE_ON = ("cuda",)  # devices on which deformable attention has a choice of backends
POOLED = 7  # places on a side, PVTv2's; a shorter side keeps its own length


class Deformable(DeformableAttention):
    """Deformable attention that also describes its sampling locations, and on CUDA reads by the faster backend
    (:mod:`modules.fusion.deformable_backends`)."""

    def read(self, sampling: Tensor, tokens: Tensor, grid: Grid, norm: nn.LayerNorm | None = None) -> Tensor:
        """``sampling [3, H, L·P, B·Q], tokens [B, N, D] → [B, Q, D]``, before the projection of the heads."""
        if tokens.device.type not in CHOICE_ON:
            return super().read(sampling, tokens, grid, norm)
        values = F.linear(tokens, *fold(self.value_proj, norm))
        return deformable_backends.sample(values, sampling, self.levels, grid)

    @torch.no_grad()
    def describe(
        self, query: Tensor, tokens: Tensor, grid: Grid, query_norm: nn.LayerNorm, token_norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor | None]:
        """Each level's share of a query's attention ``[B, Q, H, L]``; root mean square distance of the samples from
        their cell ``[L, H]``, in cells."""
        *offsets, logits = self.sampling(query, query_norm)  # [H, L·P, B·Q] each
        shares = logits.softmax(1).unflatten(1, (self.levels, -1)).sum(2)  # [H, L, B·Q]
        squares = (offsets[0] ** 2 + offsets[1] ** 2).unflatten(1, (self.levels, -1))
        return shares.permute(2, 0, 1).unflatten(0, query.shape[:2]), squares.mean((2, 3)).sqrt().T


class GlobalAttention(nn.Module):
    """``softmax(q kᵀ / √d) v`` over the tokens of all levels, by heads.

    The norms are LayerNorms of which only the affine part is still to be applied, as in
    :mod:`modules.fusion.deformable`. Keys have no bias, which would be the same for all of a query's keys and cancel.

    Raises:
        WorkbenchError: ``heads`` is not a divisor of ``dim``.
    """

    def __init__(self, dim: int, heads: int, levels: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            fit = [n for n in range(1, dim + 1) if dim % n == 0 and n <= 64]
            raise WorkbenchError(f"heads={heads} does not divide dim={dim}; these do: {', '.join(map(str, fit))}.")
        self.heads, self.levels = heads, levels
        self.query_proj = nn.Linear(dim, dim)
        self.key_proj = nn.Linear(dim, dim, bias=False)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        for projection in (self.query_proj, self.key_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
        for projection in (self.query_proj, self.value_proj, self.output_proj):
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, tokens: Tensor, grid: Grid, query_norm: nn.LayerNorm, token_norm: nn.LayerNorm
    ) -> Tensor:
        """``query [B, Q, D], tokens [B, L·T, D] → [B, Q, D]``."""
        keys, values = self._keys_values(tokens, grid, token_norm)
        queries = F.linear(query, *fold(self.query_proj, query_norm))
        heads = self._by_head
        attended = F.scaled_dot_product_attention(heads(queries), heads(keys), heads(values))
        out: Tensor = self.output_proj(attended.transpose(1, 2).flatten(2))
        return out

    @torch.no_grad()
    def describe(
        self, query: Tensor, tokens: Tensor, grid: Grid, query_norm: nn.LayerNorm, token_norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor | None]:
        """Each level's share of a query's attention ``[B, Q, H, L]``; an image at a time, for the ``[H, Q, N]``
        weights. There are no offsets."""
        keys, _ = self._keys_values(tokens, grid, token_norm)
        queries = self._by_head(F.linear(query, *fold(self.query_proj, query_norm)))
        shares = []
        for q, k in zip(queries, self._by_head(keys), strict=True):
            attention = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1)
            shares.append(attention.unflatten(-1, (self.levels, -1)).sum(-1).movedim(0, 1))  # [Q, H, L]
        return torch.stack(shares), None

    def _keys_values(self, tokens: Tensor, grid: Grid, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        weight = self.key_proj.weight
        return F.linear(tokens, weight * norm.weight), F.linear(tokens, *fold(self.value_proj, norm))

    def _by_head(self, x: Tensor) -> Tensor:
        """``[B, ·, D] → [B, H, ·, D / H]``."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class LinearSRA(GlobalAttention):
    """Global attention to ``GELU(LN(W · pool(x)))`` instead of x, with 49 places of each level.

    W is PVTv2's 1×1 convolution. Pooling and affine maps change places freely, so the affine part of the tokens' norm
    is folded into W.
    """

    def __init__(self, dim: int, heads: int, levels: int) -> None:
        super().__init__(dim, heads, levels)
        self.reduction = nn.Linear(dim, dim)
        self.reduction_norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.xavier_uniform_(self.reduction.weight)
        nn.init.zeros_(self.reduction.bias)

    def _keys_values(self, tokens: Tensor, grid: Grid, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        batch, dim = len(tokens), tokens.shape[-1]
        levels = tokens.reshape(batch * self.levels, *grid, dim).movedim(-1, 1)  # [B·L, D, rows, columns]
        pooled = F.adaptive_avg_pool2d(levels, (min(POOLED, grid[0]), min(POOLED, grid[1])))
        places = pooled.flatten(2).mT.reshape(batch, -1, dim)  # [B, L·49, D]
        reduced = F.gelu(self.reduction_norm(F.linear(places, *fold(self.reduction, norm))))
        return self.key_proj(reduced), self.value_proj(reduced)


Attention = Deformable | GlobalAttention  # LinearSRA is one of the latter

ATTENTION: dict[str, Callable[[int, int, int, int], Attention]] = {
    "deformable": Deformable,
    "global": lambda dim, heads, levels, points: GlobalAttention(dim, heads, levels),
    "linear_sra": lambda dim, heads, levels, points: LinearSRA(dim, heads, levels),
}
"""Each kind by its word: ``(dim, heads, levels, points) → module``."""
