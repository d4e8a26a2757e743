"""Classification: which category the image holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.modules.tasks.base import Batch, Task, register_task
from fusion_workbench.modules.tasks.heads import AttentivePooling

if TYPE_CHECKING:
    from torchmetrics import Metric


@register_task("digit")
class Digit(Task):
    """Which digit is written in the image: a category, wherever it is."""

    title = "the handwritten digit, by attentive pooling over all tokens"
    needs = ("digit.label",)

    def head(self, width: int, hidden: int) -> nn.Module:
        return AttentivePooling(width, hidden, self.classes)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits.float(), batch["digit.label"])

    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        right = logits.argmax(-1) == batch["digit.label"]
        return right.float(), torch.ones_like(batch["digit.label"])

    def metric(self) -> Metric:
        from torchmetrics.classification import MulticlassAccuracy

        return MulticlassAccuracy(self.classes, average="micro")

    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        metric.update(logits.argmax(-1), batch["digit.label"])
