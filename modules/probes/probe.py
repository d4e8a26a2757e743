"""A probe: one fusion strategy, a projector, and a head for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import build
from fusion_workbench.modules.fusion.base import connector_parts
from fusion_workbench.modules.projector import Projector
from fusion_workbench.modules.tasks import Batch, Task
from fusion_workbench.modules.tasks.heads import sums_of
from fusion_workbench.modules.tasks.pooling import Unprojected


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that shapes a probe; plain values, so that it is saved beside the weights."""

    strategy: str
    selection: Selection
    dim: int
    options: Mapping[str, Any] = field(default_factory=dict)
    projector: str = "linear"
    width: int = 0
    head_hidden: int = 384
    grid: tuple[int, int] | None = None  # of the tokens; for a control that is matched in FLOPs


class Probe(nn.Module):
    """Fuser → projector → heads, on the same fused tokens.

    ``forward(features [layers, B, T, dim], batch, grid) → {task: logits}`` where ``features`` holds the layers of
    ``fuser.uses``, in that order.
    """

    def __init__(self, config: ProbeConfig, tasks: Sequence[Task]) -> None:
        super().__init__()
        width = config.width or config.dim
        self.config = config
        self.fuser = build(config.strategy, config.selection, config.dim, config.options)
        self.projector = self.fuser.projector(config.projector, width, config.grid)
        self.heads = nn.ModuleDict({task.name: task.head(width, config.head_hidden) for task in tasks})

    def tokens(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the heads read: ``[B, T, width]``."""
        tokens: Tensor = self.projector(self.fuser(features, grid))
        return tokens

    def forward(self, features: Tensor, batch: Batch, grid: tuple[int, int]) -> dict[str, Tensor]:
        fused = self.fuser(features, grid)
        tokens = self._unprojected(fused, batch)
        if tokens is None:
            tokens = self.projector(fused)
        return {name: head(tokens, batch, grid) for name, head in self.heads.items()}

    def _unprojected(self, fused: Tensor, batch: Batch) -> Unprojected | None:
        """The tokens ahead of a linear projector, where the heads read fewer sums of them than there are tokens."""
        projector = self.projector
        if not isinstance(fused, Tensor) or fused.ndim != 3:  # a strategy's fault, which the projector names
            return None
        if type(projector) is not Projector or type(projector.map) is not nn.Linear:
            return None
        if sum(sums_of(head, batch) for head in self.heads.values()) >= fused.shape[1]:
            return None
        return Unprojected(projector.normalised(fused), projector.map)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters by part; each part has its own learning rate."""
        return connector_parts(self.fuser, self.projector) | {"head": list(self.heads.parameters())}


def seeded_probe(config: ProbeConfig, tasks: Sequence[Task], seed: int) -> Probe:
    """A probe whose initialisation is a function of ``seed`` alone; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Probe(config, tasks)
