"""The evaluation of a probe on one split: per-example scores, metrics, loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_workbench.modules.probes.guard import of_task
from fusion_workbench.modules.tasks import Task


@dataclass
class Evaluation:
    """Per-example scores of one split, in the order of the split."""

    index: Tensor  # [N]
    scores: dict[str, Tensor]  # task → [N]
    items: dict[str, Tensor]  # task → [N]
    statistics: dict[str, dict[str, Tensor]]  # task → what its metric needs beyond these → [N]
    metrics: dict[str, float]  # "read/accuracy" → value
    loss: float


class SplitScores:
    """Per-example scores of one run over one split, batch by batch."""

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        self.tasks = tasks
        self.metrics = {task.name: task.metric().to(device) for task in tasks}
        self.index: list[Tensor] = []
        self.scores: dict[str, list[Tensor]] = {task.name: [] for task in tasks}
        self.items: dict[str, list[Tensor]] = {task.name: [] for task in tasks}
        self.statistics: dict[str, list[dict[str, Tensor]]] = {task.name: [] for task in tasks}
        self.loss: Tensor | float = 0.0
        self.seen = 0

    def add(self, logits: Mapping[str, Tensor], batch: dict[str, Tensor]) -> None:
        count = len(batch["index"])
        self.index.append(batch["index"])
        self.seen += count
        for task in self.tasks:
            with of_task(task, "its scores", logits[task.name]):
                scores, items = task.scores(logits[task.name], batch)
                self.scores[task.name].append(scores)
                self.items[task.name].append(items)
                self.statistics[task.name].append(task.statistics(logits[task.name], batch))
                task.update(self.metrics[task.name], logits[task.name], batch)
                self.loss = self.loss + task.loss(logits[task.name], batch).detach() * count

    def close(self) -> Evaluation:
        return Evaluation(
            index=torch.cat(self.index).cpu(),
            scores={name: torch.cat(parts).float().cpu() for name, parts in self.scores.items()},
            items={name: torch.cat(parts).cpu() for name, parts in self.items.items()},
            statistics={
                name: {key: torch.cat([part[key] for part in parts]).float().cpu() for key in parts[0]}
                for name, parts in self.statistics.items()
            },
            metrics={
                f"{task.name}/{task.metric_name}": float(self.metrics[task.name].compute()) for task in self.tasks
            },
            loss=float(self.loss) / self.seen,
        )
