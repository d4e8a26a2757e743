"""Deformable attention (Deformable DETR, arXiv 2010.04159, eq. 2 and 3) in plain PyTorch, for any device.

Every query looks at ``points`` places on each of ``levels`` feature maps, near its own cell, and takes a weighted mean
of what it finds there::

    DeformAttn(q, x) = Σ_heads W_o,h [ Σ_levels Σ_points A_hqlp · (W_v,h x_l)(p_q + Δp_hqlp) ]

The offsets Δp (in cells) and the weights A (before their softmax over levels × points) are linear in the query. Between
cells a map is read bilinearly, and outside it is zero. All levels share one grid: the layers of one vision transformer.

Letters in shapes: B images, Q queries, H heads, L levels, P points, T tokens of a level, N = L·T tokens of all levels,
K = 4·L·P corners that a query reads, D = H·C channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fusion_workbench.core.errors import WorkbenchError

Grid = tuple[int, int]

# A dense [Q, N] matrix of weights for each head is the fastest backward as long as N is not far above K; beyond, only
# the K places that were read are touched. Measured on two cores, C = 64: the two meet between 10 and 15.
DENSE_UP_TO = 12
# Elements of a temporary: several fit into the cache together, and malloc reuses their pages.
CHUNK = 2**20
# On a GPU products cost little and launches much: dense where there is enough to multiply, in few large pieces.
# Measured on an H200 (docs/gpu.md): at N = 36 K from B·Q·N = 5 million on; below 3 million launches are all the time.
DENSE_UP_TO_ON_GPU = 40
DENSE_FROM_ON_GPU = 2**22
CHUNK_ON_GPU = 2**26
# oneDNN's convolutions on a processor with AVX-512; with AVX2 alone their backward takes twice as long as the product.
CONVOLUTION_IS_FASTER = torch.backends.cpu.get_cpu_capability() == "AVX512"


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention; parameters under the names of the published implementation.

    Args:
        dim: channels D of queries, tokens and output.
        heads: H, a divisor of ``dim``.
        levels: L, how many maps each query reads.
        points: P, places on each map, for each head.

    Raises:
        WorkbenchError: ``heads`` does not divide ``dim``, or a number is not positive.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if min(heads, levels, points) < 1:
            raise WorkbenchError(
                f"deformable attention needs at least one head, level and point; got heads={heads}, levels={levels}, "
                f"points={points}."
            )
        if dim % heads:
            fit = [n for n in range(1, dim + 1) if dim % n == 0 and n <= 64]
            raise WorkbenchError(f"heads={heads} does not divide dim={dim}; these do: {', '.join(map(str, fit))}.")
        self.dim, self.heads, self.levels, self.points = dim, heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)  # rows (head, level, point, xy)
        self.attention_weights = nn.Linear(dim, heads * levels * points)  # rows (head, level, point)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Deformable DETR's start: head h looks 1 to P cells away in its own compass direction, evenly weighted."""
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(compass(self.heads, self.levels, self.points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        tokens: Tensor,
        grid: Grid,
        query_norm: nn.LayerNorm | None = None,
        token_norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """``query [B, Q, D], tokens [B, L·T, D] → [B, Q, D]``, where the queries are the cells of ``grid``.

        The norms, where given, are LayerNorms of which only the affine part is still to be applied (``query`` and
        ``tokens`` have mean 0 and variance 1); it is folded into the projections, which is exact and leaves frozen
        tokens without a gradient.
        """
        sampled = self.read(self.sampling(query, query_norm), tokens, grid, token_norm)
        return _linear(sampled, self.output_proj.weight, self.output_proj.bias)

    def read(self, sampling: Tensor, tokens: Tensor, grid: Grid, norm: nn.LayerNorm | None = None) -> Tensor:
        """``sampling [3, H, L·P, B·Q], tokens [B, N, D] → [B, Q, D]``: what the heads find, before their projection."""
        index, weight = corners(sampling, self.levels, grid)
        projection = fold(self.value_proj, norm)
        if tokens.requires_grad or not _sampling_first_pays(tokens, index):
            return gather(_linear(tokens, *projection), index, weight)
        return project_and_gather(tokens, *projection, index, weight)

    def sampling(self, query: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Where to look and how hard: offsets x, offsets y (in cells) and attention logits, ``[3, H, L·P, B·Q]``.

        In float32 under autocast too: bfloat16 would place a sample four cells away with an error of 1/64 cell.
        """
        # autocast knows no "meta" device, on which costs are counted
        with torch.autocast("cpu" if query.is_meta else query.device.type, enabled=False):
            offset_weight, offset_bias = fold(self.sampling_offsets, norm)
            attention_weight, attention_bias = fold(self.attention_weights, norm)
            weight = torch.cat((_x_before_y(offset_weight), attention_weight))
            bias = torch.cat((_x_before_y(offset_bias), attention_bias))
            exact = torch.promote_types(weight.dtype, torch.float32)
            out = torch.addmm(bias.to(exact).unsqueeze(1), weight.to(exact), query.to(exact).flatten(0, 1).T)
        return out.view(3, self.heads, self.levels * self.points, -1)


def compass(heads: int, levels: int, points: int) -> Tensor:
    """Deformable DETR's first offsets in cells, ``[H, L, P, 2]`` (x, y): point p lies p + 1 cells away.

    The direction of head h is at the angle 2πh/H, scaled so that its larger coordinate is 1.
    """
    angle = torch.arange(heads, dtype=torch.float32) * (2.0 * math.pi / heads)
    direction = torch.stack((angle.cos(), angle.sin()), -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    distance = torch.arange(1, points + 1, dtype=torch.float32)
    return direction.view(heads, 1, 1, 2) * distance.view(1, 1, points, 1).expand(heads, levels, points, 1)


def fold(linear: nn.Linear, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``linear ∘ affine``: ``W (g ⊙ x + b) + c = (W diag g) x + (W b + c)``."""
    if norm is None:
        return linear.weight, linear.bias
    return linear.weight * norm.weight, torch.addmv(linear.bias, linear.weight, norm.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` of ``[B, N, D]``; as a 1×1 convolution where oneDNN does that faster than the BLAS."""
    if x.device.type != "cpu" or x.dtype == torch.float64 or not CONVOLUTION_IS_FASTER:
        return F.linear(x, weight, bias)
    image = x.unsqueeze(2).permute(0, 3, 1, 2)  # [B, D, N, 1], channels last in memory
    return F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).squeeze(2)


def _x_before_y(rows: Tensor) -> Tensor:
    """Rows (head, level, point, xy) → (xy, head, level, point)."""
    return rows.view(-1, 2, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def corners(sampling: Tensor, levels: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """The four cells around every sampling point, and what each of them counts.

    ``[3, H, L·P, B·Q] → index (int32), weight [H, B·Q, K]``: the index is into the N tokens of all levels, K is ordered
    (row, column, level, point), and the weight is attention × bilinear weight, zero for a cell outside the grid.
    """
    index, weight = _Corners.apply(sampling, levels, grid)  # type: ignore[no-untyped-call]
    return index, weight


def gather(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``values [B, N, D], index, weight [H, B·Q, K] → [B, Q, D]``: for each head, the weighted sum of K values."""
    out: Tensor = _Gather.apply(values, index, weight)  # type: ignore[no-untyped-call]
    return out


def project_and_gather(tokens: Tensor, projection: Tensor, bias: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``gather(W x + b, index, weight)`` for tokens x ``[B, N, D]`` that get no gradient."""
    out: Tensor = _ProjectAndGather.apply(tokens, projection, bias, index, weight)  # type: ignore[no-untyped-call]
    return out


class _Corners(Function):
    """All arithmetic runs over the long last axis of the input; the K numbers of a query come together at the end.

    On the CPU short inner axes cost several times more.
    """

    @staticmethod
    def forward(ctx: Any, sampling: Tensor, levels: int, grid: Grid) -> tuple[Tensor, Tensor]:
        rows, columns = grid
        _, heads, samples, queries = sampling.shape
        share = sampling[2].softmax(1)
        # Cell centres are the integers. What lies a cell or more outside reads zero wherever it is; the clamp keeps
        # runaway offsets representable.
        position = sampling[:2] + _centres(grid, sampling)
        _clamp(position, -2.0, (columns, rows))
        low = position.floor()
        cell = torch.stack((low, low + 1), 1)  # [2 (x, y), 2 (low, high), H, L·P, B·Q]
        place = cell.clone()
        _clamp(place, 0.0, (columns - 1, rows - 1))
        inside = cell.sub_(place).abs_().neg_().add_(1).clamp_(min=0)  # 1 where the cell is a place on the grid
        beyond = position.sub_(low)
        near = torch.stack((1 - beyond, beyond), 1).mul_(inside)
        across, down = near[0], near[1] * share  # [2, H, L·P, B·Q] each
        start = torch.arange(0, levels * rows * columns, rows * columns, dtype=sampling.dtype, device=sampling.device)
        left, top = place[0], place[1].mul_(columns).add_(start.repeat_interleave(samples // levels).unsqueeze(-1))
        weight = sampling.new_empty(heads, 2, 2, samples, queries)
        index = torch.empty(weight.shape, dtype=torch.int32, device=sampling.device)
        for row in range(2):
            for column in range(2):
                torch.mul(down[row], across[column], out=weight[:, row, column])
                index[:, row, column] = top[row] + left[column]
        index.clamp_(0, levels * rows * columns - 1)  # a run that diverges has nan for a place
        ctx.save_for_backward(near, inside, share)
        index, weight = _swap(index.flatten(1, 3)), _swap(weight.flatten(1, 3))
        ctx.mark_non_differentiable(index)
        return index, weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Any, grad_weight: Tensor) -> tuple[Tensor, None, None]:
        near, inside, share = ctx.saved_tensors
        heads, samples, queries = share.shape
        grad = _swap(grad_weight).view(heads, 2, 2, samples, queries)
        across, down = near
        # What each column and each row of corners would gain from a unit of bilinear weight.
        columns = torch.addcmul(grad[:, 0] * down[0].unsqueeze(1), grad[:, 1], down[1].unsqueeze(1))
        rows = torch.addcmul(grad[:, :, 0] * across[0].unsqueeze(1), grad[:, :, 1], across[1].unsqueeze(1))
        out = share.new_empty(3, *share.shape)
        for axis, gain in enumerate((columns, rows)):
            torch.mul(gain[:, 1], inside[axis, 1], out=out[axis])
            out[axis].addcmul_(gain[:, 0], inside[axis, 0], value=-1)
        out[:2] *= share
        gain = torch.addcmul(rows[:, 0] * down[0], rows[:, 1], down[1]).mul_(share)
        torch.addcmul(gain, share, gain.sum(1, keepdim=True), value=-1, out=out[2])
        return out, None, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, index, weight)
        return _weighted_sum(values, index, weight).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        values, index, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype).contiguous()
        with torch.autocast(grad.device.type, enabled=False):  # a caller may go backward inside its own
            return _grad_values(grad, values, index, weight), None, _grad_weight(grad, values, index)


class _ProjectAndGather(Function):
    """Sampling is linear, so the gradient of W's rows for a head is ``gradᵀ · (sampled x)``.

    That is Q rows to multiply by instead of N = L·Q, and nothing is scattered back to the tokens.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, projection: Tensor, bias: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        values = _linear(tokens, projection, bias)
        ctx.save_for_backward(tokens, values, index, weight)
        return _weighted_sum(values, index, weight).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None, Tensor]:
        tokens, values, index, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype).contiguous()
        batch, queries, dim = grad.shape
        heads = len(index)
        by_head = grad.view(batch, queries, heads, -1)
        places, weights = (t.view(heads, batch, queries, -1) for t in (index, weight))
        grad_projection = grad.new_zeros(dim, dim)
        with torch.autocast(grad.device.type, enabled=False):
            for head, rows in enumerate(grad_projection.chunk(heads)):
                for part in _chunks(batch, queries * dim, grad):
                    read = (t[head : head + 1, part].flatten(1, 2) for t in (places, weights))
                    sampled = _weighted_sum(tokens[part], *read)  # [·, Q, D]: the whole tokens, as one head
                    rows.addmm_(by_head[part, :, head].flatten(0, 1).T, sampled.flatten(0, 1))
            grad_bias = (by_head * weights.sum(-1).permute(1, 2, 0).unsqueeze(-1)).sum((0, 1)).flatten()
            return None, grad_projection, grad_bias, None, _grad_weight(grad, values, index)


def _centres(grid: Grid, sampling: Tensor) -> Tensor:
    """x and y of every query's own cell, in cells: ``[2, 1, 1, B·Q]``."""
    rows, columns = grid
    y = torch.arange(rows, dtype=sampling.dtype, device=sampling.device).repeat_interleave(columns)
    x = torch.arange(columns, dtype=sampling.dtype, device=sampling.device).repeat(rows)
    return torch.stack((x, y)).repeat(1, sampling.shape[-1] // (rows * columns)).view(2, 1, 1, -1)


def _clamp(xy: Tensor, low: float, high: tuple[float, float]) -> None:
    """In place, x (the first half) and y each to its own bound."""
    for axis, bound in zip(xy, high, strict=True):
        axis.clamp_(low, bound)


def _swap(stack: Tensor) -> Tensor:
    """The last two axes of ``[H, ·, ·]``, in memory too; a matrix at a time, which torch does block by block."""
    out = stack.new_empty(stack.mT.shape)
    for target, source in zip(out, stack, strict=True):
        target.copy_(source.T)
    return out


def _rows(index: Tensor, values: Tensor) -> Tensor:
    """Where ``index [H, B·Q, K]`` reads in ``values [B, N, H·C]`` seen as a table ``[B·N·H, C]``."""
    heads, (batch, tokens, _) = len(index), values.shape
    table = torch.arange(0, batch * tokens * heads, tokens * heads, dtype=index.dtype, device=index.device)
    head = torch.arange(heads, dtype=index.dtype, device=index.device).view(heads, 1, 1, 1)
    out = torch.add(table.view(batch, 1, 1) + head, index.view(heads, batch, -1, index.shape[-1]), alpha=heads)
    return out.flatten(0, 2)


def _table(values: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    return values.detach().to(dtype).reshape(-1, values.shape[-1] // heads)


def _weighted_sum(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``values [B, N, D], index, weight [H, B·Q, K] → [B, Q, D]``; sums in the dtype of ``weight``."""
    heads = len(index)
    table = _table(values, heads, weight.dtype)
    summed = F.embedding_bag(_rows(index, values), table, per_sample_weights=weight.flatten(0, 1), mode="sum")
    summed = summed.view(heads, len(values), -1, table.shape[1]).permute(1, 2, 0, 3)
    return summed.flatten(2)


def _grad_weight(grad: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """``[H, B·Q, K]``: the inner product of each query's gradient ``[B, Q, D]`` with each value that it read."""
    (batch, queries, _), (heads, _, corners) = grad.shape, index.shape
    if not _dense(index, values):
        weight = grad.new_zeros(index.shape).flatten(0, 1).requires_grad_()
        with torch.enable_grad():  # embedding_bag has this gradient; it gives it only where the table has one too
            table = _table(values, heads, grad.dtype).requires_grad_()
            summed = F.embedding_bag(_rows(index, values), table, per_sample_weights=weight, mode="sum")
        by_head = grad.view(batch * queries, heads, -1).transpose(0, 1).flatten(0, 1)
        return torch.autograd.grad(summed, weight, by_head)[0].view(index.shape)
    out = grad.new_empty(heads, batch, queries, corners)
    by_head, values = (t.detach().to(grad.dtype).view(batch, -1, heads, t.shape[2] // heads) for t in (grad, values))
    for head in range(heads):
        places = index[head].view(batch, queries, corners)
        for part in _chunks(batch, queries * values.shape[1], grad):
            products = torch.bmm(by_head[part, :, head], values[part, :, head].mT)  # [·, Q, N]
            torch.gather(products, 2, places[part].long(), out=out[head, part])
    return out.view(index.shape)


def _grad_values(grad: Tensor, values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``[B, N, D]``: every value gets back, by its weights, the gradients of the queries that read it."""
    (batch, queries, _), (heads, _, corners) = grad.shape, index.shape
    tokens = values.shape[1]
    by_head = grad.view(batch, queries, heads, -1)
    if not _dense(index, values):  # the gather turned around: sort what was read, then sum over who read it
        read, order = _rows(index, values).flatten().sort(stable=True)
        first = torch.searchsorted(read, torch.arange(batch * tokens * heads, dtype=read.dtype, device=read.device))
        table = by_head.flatten(0, 1).transpose(0, 1).flatten(0, 1)  # [H·B·Q, C]
        reader = (order).div(corners, rounding_mode="floor")
        return F.embedding_bag(reader, table, first, per_sample_weights=weight.flatten()[order], mode="sum").view(
            values.shape
        )
    out = grad.new_empty(batch, tokens, heads, by_head.shape[-1])
    for head in range(heads):
        places, weights = (t[head].view(batch, queries, corners) for t in (index, weight))
        for part in _chunks(batch, queries * tokens, grad):
            dense = grad.new_zeros(len(places[part]), queries, tokens)
            dense.scatter_add_(2, places[part].long(), weights[part])
            out[part, :, head] = torch.bmm(dense.mT, by_head[part, :, head])
    return out.flatten(2)


def _dense(index: Tensor, values: Tensor) -> bool:
    (_, queries, corners), tokens = index.shape, values.shape[1]  # of all images, of one
    if values.device.type == "cpu":
        return tokens <= DENSE_UP_TO * corners
    return tokens <= DENSE_UP_TO_ON_GPU * corners and queries * tokens >= DENSE_FROM_ON_GPU


def _chunks(count: int, size: int, like: Tensor) -> list[slice]:
    """Slices of ``range(count)``, where each item needs ``size`` elements of scratch memory beside ``like``."""
    step = max(1, (CHUNK if like.device.type == "cpu" else CHUNK_ON_GPU) // size)
    return [slice(start, start + step) for start in range(0, count, step)]


def _sampling_first_pays(tokens: Tensor, index: Tensor) -> bool:
    """Whether K rows read and C multiplied by for each query cost less than C multiplied by for each token.

    Reading a row costs about twice a multiplication by one. On an accelerator matrix products are nearly free.
    """
    heads, queries, corners = index.shape
    batch, count, dim = tokens.shape
    channels = dim // heads
    return tokens.device.type == "cpu" and queries * (2 * corners + channels) <= batch * count * channels
