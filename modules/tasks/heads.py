"""Heads that several tasks share, and the geometry of boxes on a grid of tokens.

Boxes are ``x1, y1, x2, y2`` and points ``x, y``, all in [0, 1] of the image. A strategy may append tokens that stand
for no cell of the grid: heads that read places look at the grid's tokens alone, heads that pool look at all.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.modules.tasks.base import Batch
from fusion_workbench.modules.tasks.pooling import Unprojected, products, weighted_sums

Grid = tuple[int, int]

FINE = 4  # points per side of a cell at which the coverage by boxes is measured
QUERIES = 4  # of attentive pooling
HEADS = 4  # of the reader of points


def box_weights(boxes: Tensor, grid: Grid) -> Tensor:
    """How much of each box lies in each token: ``[B, G, 4]`` → ``[B, G, h·w]``, rows sum to 1."""
    rows, columns = grid
    x1, y1, x2, y2 = boxes.unbind(-1)

    def overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells, device=boxes.device, dtype=boxes.dtype)
        low, high = (low * cells).unsqueeze(-1), (high * cells).unsqueeze(-1)
        return (torch.minimum(high, edges + 1) - torch.maximum(low, edges)).clamp_min(0)

    area = overlap(y1, y2, rows).unsqueeze(-1) * overlap(x1, x2, columns).unsqueeze(-2)  # [B, G, h, w]
    flat = area.flatten(-2)
    return flat / flat.sum(-1, keepdim=True).clamp_min(1e-9)


def coverage(boxes: Tensor, valid: Tensor, grid: Grid) -> Tensor:
    """The share of each token's cell that lies in any box: ``[B, G, 4]``, ``[B, G]`` → ``[B, h, w]``.

    Measured at ``FINE × FINE`` points per cell.
    """
    rows, columns = grid[0] * FINE, grid[1] * FINE
    y = (torch.arange(rows, device=boxes.device) + 0.5) / rows
    x = (torch.arange(columns, device=boxes.device) + 0.5) / columns
    x1, y1, x2, y2 = boxes.unsqueeze(-2).unbind(-1)  # [B, G, 1] each
    down = (y >= y1) & (y < y2) & valid.unsqueeze(-1)  # [B, G, rows]
    across = (x >= x1) & (x < x2)  # [B, G, columns]
    inside = (down.unsqueeze(-1) & across.unsqueeze(-2)).any(1)  # [B, rows, columns]
    return F.avg_pool2d(inside.float().unsqueeze(1), FINE).squeeze(1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of paired boxes ``[…, 4]`` → ``[…]``; torchmetrics' own needs torchvision."""
    return _overlap(a, b)[0]


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of paired boxes (arXiv 1902.09630, algorithm 1): like IoU, with a gradient where boxes are apart."""
    iou, union = _overlap(a, b)
    hull = _area(torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1))
    return iou - (hull - union) / hull.clamp_min(1e-9)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    shared = _area(torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], -1))
    union = _area(a) + _area(b) - shared
    return shared / union.clamp_min(1e-9), union


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    """LayerNorm, then two linear maps with a GELU between."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class BoxReader(nn.Module):
    """Two layers on the mean of the tokens that a box covers, weighted by overlap: ``→ [B, G, classes]``."""

    def __init__(self, width: int, hidden: int, classes: int, boxes: str) -> None:
        super().__init__()
        self.boxes = boxes
        self.layers = two_layers(width, hidden, classes)

    def forward(self, tokens: Tensor | Unprojected, batch: Batch, grid: Grid) -> Tensor:
        weights = box_weights(batch[self.boxes].float(), grid)
        logits: Tensor = self.layers(weighted_sums(tokens, weights))
        return logits

    def sums(self, batch: Batch) -> int:
        """How many weighted sums of tokens it reads of an image."""
        return batch[self.boxes].shape[1]


class TokenReader(nn.Module):
    """Two layers on each token of the grid: ``→ [B, h, w]``. ``start`` is the value that it begins around."""

    def __init__(self, width: int, hidden: int, start: float = 0.0) -> None:
        super().__init__()
        self.layers = two_layers(width, hidden, 1)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, start)

    def forward(self, tokens: Tensor, batch: Batch, grid: Grid) -> Tensor:
        logits: Tensor = self.layers(tokens[:, : grid[0] * grid[1]])
        return logits.view(-1, *grid)


class AttentivePooling(nn.Module):
    """Learned queries pool the tokens, two layers classify: ``[B, T, width] → [B, classes]``.

    Each of :data:`QUERIES` learned vectors attends over all tokens (softmax of scaled dot products); what they gather
    is put side by side.
    """

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.query = nn.Parameter(torch.randn(QUERIES, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(QUERIES * width, hidden), nn.GELU(), nn.Linear(hidden, classes))

    def forward(self, tokens: Tensor | Unprojected, batch: Batch, grid: Grid) -> Tensor:
        attention = torch.softmax(products(tokens, self.query) * self.scale, dim=1)  # [B, T, queries]
        gathered = self.norm(weighted_sums(tokens, attention.mT))  # [B, queries, width]
        logits: Tensor = self.layers(gathered.flatten(1))
        return logits

    def sums(self, batch: Batch) -> int:
        """How many weighted sums of tokens it reads of an image."""
        return len(self.query)


class PointReader(nn.Module):
    """From a point inside an object to the object's box: ``[B, G, 2]`` → ``[B, G, 4]``.

    The token at the point (bilinear between cells) asks the grid's tokens: scaled dot products plus a learned bias from
    the offset of each cell to the point. Two layers turn what it holds and what it gathered into the distances from the
    point to the four sides.
    """

    START = -2.0  # softplus(-2) = 0.13: boxes begin at a quarter of the image

    def __init__(self, width: int, hidden: int, points: str) -> None:
        super().__init__()
        self.points = points
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, HEADS * 16)
        self.key = nn.Linear(width, HEADS * 16)
        self.bias = nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, HEADS))
        self.layers = nn.Sequential(nn.Linear((1 + HEADS) * width, hidden), nn.GELU(), nn.Linear(hidden, 4))
        nn.init.constant_(self.layers[-1].bias, self.START)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, batch: Batch, grid: Grid) -> Tensor:
        rows, columns = grid
        cells = self.norm(tokens[:, : rows * columns])  # [B, T, width]
        points = batch[self.points].to(cells.dtype)  # [B, G, 2]
        maps = cells.mT.unflatten(2, grid)
        here = F.grid_sample(maps, (2 * points - 1).unsqueeze(1), align_corners=False, padding_mode="border")
        here = here.squeeze(2).mT  # [B, G, width]
        query = self.query(here).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # [B, heads, G, 16]
        key = self.key(cells).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        offsets = centres(grid, cells) - points.unsqueeze(2)  # [B, G, T, 2]
        scores = query @ key.mT / 4 + self.bias(offsets * max(grid)).permute(0, 3, 1, 2)  # [B, heads, G, T]
        gathered = scores.softmax(-1) @ cells.unsqueeze(1)  # [B, heads, G, width]
        sides = F.softplus(self.layers(torch.cat([here, gathered.transpose(1, 2).flatten(2)], -1)))
        return torch.cat([points - sides[..., :2], points + sides[..., 2:]], -1).clamp(0, 1)


def centres(grid: Grid, like: Tensor) -> Tensor:
    """The middle of each cell, row by row: ``[h·w, 2]``, x before y."""
    y = (torch.arange(grid[0], device=like.device, dtype=like.dtype) + 0.5) / grid[0]
    x = (torch.arange(grid[1], device=like.device, dtype=like.dtype) + 0.5) / grid[1]
    return torch.cartesian_prod(y, x).flip(-1).view(-1, 2)


def sums_of(head: nn.Module, batch: Batch) -> float:
    """How many weighted sums of tokens ``head`` reads of an image; infinite where it needs the tokens themselves.

    A subclass counts as a head of its own: what it adds may need the tokens.
    """
    return head.sums(batch) if type(head) in (BoxReader, AttentivePooling) else math.inf  # type: ignore[operator]
