"""Reading: which class stands in each box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.modules.tasks.base import Batch, Task, register_task
from fusion_workbench.modules.tasks.heads import BoxReader

if TYPE_CHECKING:
    from torchmetrics import Metric


@register_task("read")
class Read(Task):
    """Which of the glyph classes stands in each box: fine detail, read where it is."""

    title = "identity of each small printed glyph, read at its tokens"
    needs = ("read.label", "read.box", "read.valid")

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

    def metric(self) -> Metric:
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.classes, average="micro")

    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        valid = batch["read.valid"]
        metric.update(logits.argmax(-1)[valid], batch["read.label"][valid])
