"""Tasks: what is read off the fused tokens. A head, a loss, an outcome for each example, a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from workbench.errors import WorkbenchError, nearest

Batch = Mapping[str, Tensor]


class Task(ABC):
    """One task. Tasks hold no parameters: :meth:`head` makes the module that does."""

    name: ClassVar[str]
    title: ClassVar[str]
    metric_name: ClassVar[str] = "accuracy"
    direction: ClassVar[str] = "maximize"

    def __init__(self, classes: int) -> None:
        self.classes = classes

    @property
    def chance(self) -> float:
        """The primary metric of guessing."""
        return 1 / self.classes

    @abstractmethod
    def head(self, width: int, hidden: int) -> nn.Module:
        """A module ``(tokens [B, T, width], batch, grid) → logits``."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""

    @abstractmethod
    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """For each example its score in [0, 1] (the mean over its items) and its number of items, both ``[B]``."""

    @abstractmethod
    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        """Add a batch to the primary metric."""

    def metric(self) -> Metric:
        """A fresh primary metric."""
        return MulticlassAccuracy(self.classes, average="micro")


TASKS: dict[str, type[Task]] = {}
T = TypeVar("T", bound=type[Task])


def register_task(name: str) -> Callable[[T], T]:
    """Class decorator: make a task known under ``name``."""

    def add(cls: T) -> T:
        cls.name = name
        TASKS[name] = cls
        return cls

    return add


def build_task(name: str, classes: Mapping[str, list[str]]) -> Task:
    """A task for a source with these classes. Raises WorkbenchError for an unknown task or one it has no labels for."""
    if name not in TASKS:
        raise WorkbenchError(f"unknown task '{name}'.{nearest(name, TASKS)}")
    if name not in classes:
        raise WorkbenchError(f"task '{name}' finds no labels in this source.{nearest(name, classes)}")
    return TASKS[name](len(classes[name]))


def box_weights(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each box lies in each token: ``[B, G, 4]`` xyxy in [0, 1] → ``[B, G, h·w]``, rows sum to 1."""
    rows, columns = grid
    x1, y1, x2, y2 = boxes.unbind(-1)

    def overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells, device=boxes.device, dtype=boxes.dtype)
        low, high = (low * cells).unsqueeze(-1), (high * cells).unsqueeze(-1)
        return (torch.minimum(high, edges + 1) - torch.maximum(low, edges)).clamp_min(0)

    area = overlap(y1, y2, rows).unsqueeze(-1) * overlap(x1, x2, columns).unsqueeze(-2)  # [B, G, h, w]
    flat = area.flatten(-2)
    return flat / flat.sum(-1, keepdim=True).clamp_min(1e-9)


class BoxReader(nn.Module):
    """Two layers on the mean of the tokens that a box covers, weighted by overlap: ``→ [B, G, classes]``."""

    def __init__(self, width: int, hidden: int, classes: int, boxes: str) -> None:
        super().__init__()
        self.boxes = boxes
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, classes)
        )

    def forward(self, tokens: Tensor, batch: Batch, grid: tuple[int, int]) -> Tensor:
        weights = box_weights(batch[self.boxes].float(), grid).to(tokens.dtype)
        logits: Tensor = self.layers(weights @ tokens[:, : weights.shape[-1]])  # a strategy may append tokens
        return logits


class AttentivePooling(nn.Module):
    """Learned queries pool the tokens, two layers classify: ``[B, T, width] → [B, classes]``.

    Each of ``queries`` learned vectors attends over all tokens (softmax of scaled dot products); what they gather is
    put side by side.
    """

    def __init__(self, width: int, hidden: int, classes: int, queries: int = 4) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.query = nn.Parameter(torch.randn(queries, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(queries * width, hidden), nn.GELU(), nn.Linear(hidden, classes))

    def forward(self, tokens: Tensor, batch: Batch, grid: tuple[int, int]) -> Tensor:
        attention = torch.softmax(tokens @ self.query.T * self.scale, dim=1)  # [B, T, queries]
        gathered = self.norm(attention.mT @ tokens)  # [B, queries, width]
        logits: Tensor = self.layers(gathered.flatten(1))
        return logits


@register_task("read")
class Read(Task):
    """Which of the glyph classes stands in each box: fine detail, read where it is."""

    title = "identity of each small printed glyph, read at its tokens"

    def head(self, width: int, hidden: int) -> nn.Module:
        return BoxReader(width, hidden, self.classes, boxes="read.box")

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        labels = batch["read.label"].masked_fill(~batch["read.valid"], -100)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)

    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        valid = batch["read.valid"]
        right = (logits.argmax(-1) == batch["read.label"]) & valid
        items = valid.sum(-1)
        return right.sum(-1) / items.clamp_min(1), items

    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        valid = batch["read.valid"]
        metric.update(logits.argmax(-1)[valid], batch["read.label"][valid])


@register_task("digit")
class Digit(Task):
    """Which digit is written in the image: a category, wherever it is."""

    title = "the handwritten digit, by attentive pooling over all tokens"

    def head(self, width: int, hidden: int) -> nn.Module:
        return AttentivePooling(width, hidden, self.classes)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits.float(), batch["digit.label"])

    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        right = logits.argmax(-1) == batch["digit.label"]
        return right.float(), torch.ones_like(batch["digit.label"])

    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        metric.update(logits.argmax(-1), batch["digit.label"])
