"""Probes on features that lie in memory, in plain torch: a loop a trial, and many heads on one pass.

The second is the idea of DINOv2's linear evaluation (arXiv 2304.07193): every head that is tried, at every learning
rate, trained on the same batches at once. Both train what a bank trains: the same seeds, batches, recipe and clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion_workbench.datamodules.order import EpochOrder
from fusion_workbench.modules.optim import make_optimizer
from fusion_workbench.modules.probes.evaluation import Evaluation, SplitScores
from fusion_workbench.modules.probes.member import ProbeRunConfig
from fusion_workbench.modules.probes.probe import Probe, seeded_probe
from fusion_workbench.modules.tasks import Task


@dataclass(frozen=True)
class Cached:
    """A split in memory.

    Attributes:
        features: ``[layers, N, T, dim]``.
        targets: of the N examples, by name.
    """

    features: Tensor
    targets: Mapping[str, Tensor]

    def batch(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features ``[layers, B, T, dim]`` in float32 and targets of the examples ``index``, int64 ``[B]``."""
        targets = {name: values[index] for name, values in self.targets.items()}
        return self.features[:, index].float(), {"index": index, **targets}

    def to(self, device: str) -> Cached:
        return Cached(self.features.to(device), {name: values.to(device) for name, values in self.targets.items()})


@dataclass(frozen=True)
class LoopProtocol:
    """How a trial is trained and evaluated; ``grid`` is rows and columns of the tokens."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    order_seed: int
    grid: tuple[int, int]
    layers: tuple[int, ...]
    device: str


def one_by_one(
    configs: Sequence[ProbeRunConfig], tasks: Sequence[Task], train: Cached, val: Cached, protocol: LoopProtocol
) -> list[Evaluation]:
    """Each trial in a loop of its own. Returns what each scored on validation after its last epoch."""
    return [many_heads([config], tasks, train, val, protocol)[0] for config in configs]


def many_heads(
    configs: Sequence[ProbeRunConfig], tasks: Sequence[Task], train: Cached, val: Cached, protocol: LoopProtocol
) -> list[Evaluation]:
    """All trials on one pass: a batch is read once, their losses are summed, and one backward pass serves them all."""
    probes = [seeded_probe(config.probe, tasks, config.init_seed).to(protocol.device) for config in configs]
    rows = [[protocol.layers.index(layer) for layer in probe.fuser.uses] for probe in probes]
    size = len(next(iter(train.targets.values())))
    steps = protocol.epochs * (size // protocol.batch_size)
    optimizers = [
        make_optimizer(probe.parts(), config.recipe, steps) for probe, config in zip(probes, configs, strict=True)
    ]
    torch.manual_seed(configs[0].dropout_seed)
    order, found = EpochOrder(size, protocol.order_seed), []
    for epoch in range(protocol.epochs):
        examples = torch.tensor(order.of(epoch), device=protocol.device)
        for index in torch.split(examples[: size - size % protocol.batch_size], protocol.batch_size):
            features, batch = train.batch(index)
            pairs = zip(probes, rows, strict=True)
            losses = [_loss(probe, features[own], batch, tasks, protocol) for probe, own in pairs]
            torch.autograd.backward(torch.stack(losses).sum())
            for probe, config, (optimizer, schedule) in zip(probes, configs, optimizers, strict=True):
                nn.utils.clip_grad_norm_(probe.parameters(), config.recipe.gradient_clip or math.inf)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
        found = _evaluate(probes, rows, tasks, val, protocol)
    return found


def read_plainly(
    probe: Probe, features: Tensor, batch: Mapping[str, Tensor], grid: tuple[int, int]
) -> dict[str, Tensor]:
    """A probe's logits with every token projected before any is read, as anybody would write it."""
    tokens = probe.tokens(features, grid)
    return {name: head(tokens, batch, grid) for name, head in probe.heads.items()}


def _loss(
    probe: Probe, features: Tensor, batch: dict[str, Tensor], tasks: Sequence[Task], protocol: LoopProtocol
) -> Tensor:
    logits = read_plainly(probe, features, batch, protocol.grid)
    return torch.stack([task.loss(logits[task.name], batch) for task in tasks]).sum()


@torch.no_grad()
def _evaluate(
    probes: Sequence[Probe], rows: Sequence[list[int]], tasks: Sequence[Task], val: Cached, protocol: LoopProtocol
) -> list[Evaluation]:
    scores = [SplitScores(tasks, torch.device(protocol.device)) for _ in probes]
    for probe in probes:
        probe.eval()
    size = len(next(iter(val.targets.values())))
    for index in torch.split(torch.arange(size, device=protocol.device), protocol.eval_batch_size):
        features, batch = val.batch(index)
        for probe, own, gathered in zip(probes, rows, scores, strict=True):
            gathered.add(read_plainly(probe, features[own], batch, protocol.grid), batch)
    for probe in probes:
        probe.train()
    return [gathered.close() for gathered in scores]
