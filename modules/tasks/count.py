"""Counting: how many objects the image holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.tasks.base import Batch, Targets, Task, register_task
from fusion_workbench.modules.tasks.heads import Grid, TokenReader

if TYPE_CHECKING:
    from torchmetrics import Metric


class DensityCounter(nn.Module):
    """Each token of the grid holds so much of an object, and their sum is the count: ``→ [B]``.

    The count is the integral of a density (Lempitsky and Zisserman, NIPS 2010, section 2), learned from counts alone.
    """

    START = -3.0  # softplus(-3) = 0.05 objects a token

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.density = TokenReader(width, hidden, self.START)

    def forward(self, tokens: Tensor, batch: Batch, grid: Grid) -> Tensor:
        return F.softplus(self.density(tokens, batch, grid)).sum((1, 2))


@register_task("count")
class Count(Task):
    """How many objects there are, judged by the mean absolute error.

    Raises:
        WorkbenchError: every training image holds the same number, so that there is nothing to learn.
    """

    title = "number of objects in the image"
    needs = ("count.number",)
    metric_name = "mae"
    direction = "minimize"
    unit = "count"
    perfect = 0.0

    def chance_baseline(self, targets: Targets, scored: Targets | None = None) -> float:
        """Of always saying the median."""
        numbers = targets["count.number"]
        if len(np.unique(numbers)) < 2:
            raise WorkbenchError(
                f"task 'count' has nothing to learn: every training image holds {numbers[0]:g} objects; let the source "
                "vary them (finescenes: source.options.fewest=2), or leave the task out."
            )
        return float(np.abs((scored or targets)["count.number"] - np.median(numbers)).mean())

    def head(self, width: int, hidden: int) -> nn.Module:
        return DensityCounter(width, hidden)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.smooth_l1_loss(logits.float(), batch["count.number"].float())

    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        error = (logits.float() - batch["count.number"]).abs()
        return error, torch.ones_like(batch["count.number"], dtype=torch.long)

    def statistics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The signed error: its sum shows whether a model counts too many or too few."""
        return {"error": logits.float() - batch["count.number"]}

    def metric(self) -> Metric:
        from torchmetrics.regression import MeanAbsoluteError

        return MeanAbsoluteError()

    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        metric.update(logits.float(), batch["count.number"].float())
