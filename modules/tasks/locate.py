"""Localisation: the box of the object at a point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.modules.tasks.base import Array, Batch, Targets, Task, register_task
from fusion_workbench.modules.tasks.heads import PointReader, box_iou, generalised_iou

if TYPE_CHECKING:
    from torchmetrics import Metric

_L1, _GIOU = 5.0, 2.0  # weights of the loss: DETR's (arXiv 2005.12872, appendix A.4)


@register_task("locate")
class Locate(Task):
    """Given a point inside an object, the object's box; judged by the mean IoU over boxes."""

    title = "box of the object at a given point"
    needs = ("locate.point", "locate.box", "locate.valid")
    metric_name = "iou"

    def chance_baseline(self, targets: Targets, scored: Targets | None = None) -> float:
        """Of the same box around every point: the median distance to each side."""
        point, box = self._known(targets)
        low, high = np.split(np.median(np.concatenate([point - box[:, :2], box[:, 2:] - point], 1), 0), 2)
        point, box = self._known(scored or targets)
        same = np.clip(np.concatenate([point - low, point + high], 1), 0, 1)
        return float(box_iou(torch.from_numpy(same), torch.from_numpy(box)).mean())

    def head(self, width: int, hidden: int) -> nn.Module:
        return PointReader(width, hidden, points="locate.point")

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        valid = batch["locate.valid"]
        predicted, true = logits.float(), batch["locate.box"]
        each = _L1 * F.l1_loss(predicted, true, reduction="none").sum(-1) + _GIOU * (
            1 - generalised_iou(predicted, true)
        )
        return (each * valid).sum() / valid.sum().clamp_min(1)

    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        valid = batch["locate.valid"]
        items = valid.sum(-1)
        iou = box_iou(logits.float(), batch["locate.box"]) * valid
        return iou.sum(-1) / items.clamp_min(1), items

    def metric(self) -> Metric:
        from torchmetrics import MeanMetric

        return MeanMetric()

    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        metric.update(box_iou(logits.float(), batch["locate.box"])[batch["locate.valid"]])

    def _known(self, targets: Targets) -> tuple[Array, Array]:
        """Points ``[N, 2]`` and boxes ``[N, 4]`` of all images, without the padding."""
        point, box, valid = (targets[name] for name in self.needs)
        return point[valid], box[valid]
