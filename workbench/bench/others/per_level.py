"""MMFuser through torch's ``grid_sample``, level by level: how published code runs where its CUDA extension is not
built. The same parameters, and the same numbers, as :class:`modules.fusion.mmfuser.MMFuser`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.modules.fusion.deformable import DeformableAttention
from fusion_workbench.modules.fusion.mmfuser import MMFuser

Grid = tuple[int, int]


def attention_by_level(attention: DeformableAttention, query: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
    """Deformable attention by its definition: ``query [B, Q, D], tokens [B, L·Q, D] → [B, Q, D]``.

    Source: Deformable DETR (arXiv 2010.04159), eq. 2 and 3, with torch's own bilinear sampling of images.
    """
    batch, queries, dim = query.shape
    heads, levels, points = attention.heads, attention.levels, attention.points
    rows, columns = grid
    offsets = attention.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
    weights = attention.attention_weights(query).view(batch, queries, heads, -1).softmax(-1)
    weights = weights.view(batch, queries, heads, levels, points)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x, y = x.flatten().to(query), y.flatten().to(query)
    own = torch.stack(((x + 0.5) / columns, (y + 0.5) / rows), -1)
    places = own.view(1, queries, 1, 1, 1, 2) + offsets / torch.tensor([columns, rows]).to(query)
    out = query.new_zeros(batch, queries, heads, dim // heads)
    for level, maps in enumerate(attention.value_proj(tokens).unflatten(1, (levels, -1)).unbind(1)):
        images = maps.view(batch, rows, columns, heads, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B·H, C, h, w]
        where = 2 * places[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # [B·H, Q, P, 2]
        found = F.grid_sample(images, where, mode="bilinear", padding_mode="zeros", align_corners=False)
        found = found.view(batch, heads, -1, queries, points)
        out += torch.einsum("bhcqp,bqhp->bqhc", found, weights[:, :, :, level])
    return attention.output_proj(out.flatten(2))  # type: ignore[no-any-return]


class PerLevel(nn.Module):
    """The block of an :class:`MMFuser` with both of its attentions by :func:`attention_by_level`.

    It shares the block's parameters: gradients of either are gradients of both. Called as a fuser is,
    ``(features [M + 1, B, T, dim], grid) → [B, T, dim]``.

    Raises:
        ValueError: the block has attention of another kind, or no self-attention.
    """

    def __init__(self, block: MMFuser) -> None:
        super().__init__()
        self.block: MMFuser = block
        if block.options.attention != "deformable" or not block.options.self_attention:
            raise ValueError("only the whole block with deformable attention is read level by level")

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        block = self.block
        assert isinstance(block.cross_attn, DeformableAttention)
        assert isinstance(block.self_attn, DeformableAttention)
        tokens = block.feat_norm(features[:-1]).transpose(0, 1).flatten(1, 2)
        attended = attention_by_level(block.cross_attn, block.query_norm(features[-1]), tokens, grid)
        own = block.norm1(attended)
        attended = attended + block.gamma2 * attention_by_level(block.self_attn, own, own, grid)
        out: Tensor = features[-1] + block.gamma1 * attended
        return out


@torch.no_grad()
def away_from_the_start(module: nn.Module) -> None:
    """Move every parameter a little, to where gates and offsets are learned and no gradient is zero."""
    for parameter in module.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
