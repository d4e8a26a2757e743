"""Segmentation at the grid's resolution: which tokens show the foreground."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.modules.tasks.base import Batch, Targets, Task, register_task
from fusion_workbench.modules.tasks.heads import TokenReader, coverage

if TYPE_CHECKING:
    from torchmetrics import Metric

FOREGROUND = 0.5  # share of a token's cell from which on it counts as foreground
_GUESSED = 32  # cells a side that the chance level is measured on


@register_task("segment")
class Segment(Task):
    """Foreground or background, for each token: learned from the share of its cell that boxes cover.

    The metric is the IoU of the foreground over all tokens of the split, which is not a mean over images: each image
    keeps its tokens in the intersection and in the union. Its score is its own IoU; 1 where nothing is there and
    nothing is found.
    """

    title = "foreground of each token"
    needs = ("segment.box", "segment.valid")
    metric_name = "iou"
    ratio = ("intersection", "union")

    def chance_baseline(self, targets: Targets, scored: Targets | None = None) -> float:
        """Of calling everything foreground: the foreground's share."""
        boxes, valid = (torch.from_numpy((scored or targets)[name]) for name in self.needs)
        return float((coverage(boxes, valid, (_GUESSED, _GUESSED)) >= FOREGROUND).float().mean())

    def head(self, width: int, hidden: int) -> nn.Module:
        return TokenReader(width, hidden)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.float(), self._share(logits, batch))

    def scores(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        parts = self.statistics(logits, batch)
        score = torch.where(parts["union"] > 0, parts["intersection"] / parts["union"].clamp_min(1), 1.0)
        return score, torch.ones(len(score), dtype=torch.long, device=score.device)

    def statistics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        predicted, true = logits > 0, self._share(logits, batch) >= FOREGROUND
        return {
            "intersection": (predicted & true).flatten(1).sum(1).float(),
            "union": (predicted | true).flatten(1).sum(1).float(),
        }

    def value(self, scores: Tensor, items: Tensor, statistics: Mapping[str, Tensor]) -> float:
        union = statistics["union"].double().sum()
        return float(statistics["intersection"].double().sum() / union) if union else 0.0

    def metric(self) -> Metric:
        from torchmetrics.classification import BinaryJaccardIndex

        return BinaryJaccardIndex()

    def update(self, metric: Metric, logits: Tensor, batch: Batch) -> None:
        metric.update(logits > 0, (self._share(logits, batch) >= FOREGROUND).long())

    @staticmethod
    def _share(logits: Tensor, batch: Batch) -> Tensor:
        grid = (logits.shape[1], logits.shape[2])
        return coverage(batch["segment.box"].float(), batch["segment.valid"], grid)
