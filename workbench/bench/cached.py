"""A bank on the feature store against plain torch on features in memory: a loop a trial, and many heads on one pass.

All sides train and evaluate the same probes to the same numbers. The bank is a study's: Lightning, the store's mapped
files, a backward pass a member. What plain loops do not do is part of its price: members that fail alone, random states
of their own, rows of history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fusion_workbench.bench.bank import trainer_of
from fusion_workbench.bench.others.cached_loop import Cached, LoopProtocol, many_heads, one_by_one
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.studies import PART, grid_parts
from fusion_workbench.bench.turns import Ratio, Setting, in_turn, synchronise
from fusion_workbench.datamodules.datamodule import AblationDataModule
from fusion_workbench.datamodules.features import Features
from fusion_workbench.modules.probes.bank import FusionBank
from fusion_workbench.modules.probes.evaluation import Evaluation
from fusion_workbench.study.identity import seed_of
from fusion_workbench.study.jobs import Job
from fusion_workbench.study.prepare import Parts
from fusion_workbench.training.probes import EVAL_BATCH, member_of

RATES = (0.0003, 0.001, 0.003, 0.01)


class Trials:
    """The grid's strategies at several learning rates, as both sides train them.

    Args:
        setting: how it is measured.
        rates: learning rates; a trial of each strategy at each.

    Raises:
        WorkbenchError: as :func:`bench.studies.grid_parts`, or the features cannot be stored.
    """

    def __init__(self, setting: Setting, rates: Sequence[float] = RATES) -> None:
        self.setting = setting
        self.parts: Parts = grid_parts(setting, setting.scratch / "cached", PART)
        cells = self.parts.space.listed
        self.members = [
            member_of(self.parts, Job(self.parts.variant(cell, rate), "0")) for rate in rates for cell in cells
        ]
        training = self.parts.study.training
        layers = tuple(sorted({layer for cell in cells for layer in cell.selection.layers}))
        self.protocol = LoopProtocol(
            epochs=training.epochs,
            batch_size=training.batch_size,
            eval_batch_size=max(EVAL_BATCH, training.batch_size),
            order_seed=seed_of("order", "0"),
            grid=self.parts.encoder.grid(),
            layers=layers,
            device=setting.device,
        )
        store = self.parts.store
        assert store is not None
        store.build(layers, ("train", "val"), progress=False)
        self.found: dict[str, list[Evaluation]] = {}

    def split(self, split: str) -> Cached:
        """A split's features and targets, in the device's memory."""
        source = self.parts.source
        targets = {name: torch.from_numpy(values) for name, values in source.targets(split).items()}
        index = torch.arange(source.size(split))
        features = self.parts.features.split(split, self.protocol.layers).rows(index)
        return Cached(features, targets).to(self.setting.device)

    def data(self, features: Features) -> AblationDataModule:
        """The batches of a bank, of these features."""
        p = self.protocol
        return AblationDataModule(features, p.layers, p.batch_size, p.order_seed, p.eval_batch_size, num_workers=0)

    def bank(self, features: Features | None = None) -> float:
        """Seconds of a bank of all trials, evaluated every epoch; its features by default the store's."""
        bank = FusionBank(self.members, self.parts.tasks, self.protocol.layers, self.protocol.grid)
        trainer = trainer_of(self.setting.device, max_epochs=self.protocol.epochs, num_sanity_val_steps=0)
        start = time.perf_counter()
        trainer.fit(bank, self.data(features or self.parts.features))
        synchronise(self.setting.device)
        seconds = time.perf_counter() - start
        self.found["bank"] = [run.evaluations["val"] for run in bank.probe_runs]
        return seconds

    def loop(self, way: Callable[..., list[Evaluation]], name: str) -> Callable[[], float]:
        """A meter of one of the ways of :mod:`bench.others.cached_loop`; reading the features counts."""

        def turn() -> float:
            start = time.perf_counter()
            train, val = self.split("train"), self.split("val")
            self.found[name] = way(self.members, self.parts.tasks, train, val, self.protocol)
            synchronise(self.setting.device)
            return time.perf_counter() - start

        return turn

    def apart(self, name: str) -> list[float]:
        """By how much each metric of each trial is from the bank's."""
        pairs = zip(self.found[name], self.found["bank"], strict=True)
        return [theirs.metrics[key] - value for theirs, ours in pairs for key, value in ours.metrics.items()]


def measure(setting: Setting) -> Iterator[Figure]:
    """The bank in turn with both loops, and whether all found the same."""
    trials = Trials(setting, RATES[:1] if setting.tiny else RATES)
    ways = {"a plain torch loop a trial": one_by_one, "many heads on one pass": many_heads}
    meters = {name: trials.loop(way, name) for name, way in ways.items()} | {"bank": trials.bank}
    seconds = in_turn(meters, setting.repeats)
    facts: dict[str, Any] = {
        "trials": len(trials.members),
        "epochs": trials.protocol.epochs,
        "seconds": {who: Ratio.of(taken).median for who, taken in seconds.items()},
    }
    for name in ways:
        yield Figure(
            f"a bank of {len(trials.members)} on the feature store",
            f"{name}, features in memory",
            Kind.SPEED,
            Ratio.paired(seconds[name], seconds["bank"]),
            note="training and validation; loading the features into memory counts, encoding them does not",
            facts=facts,
        )
        yield Figure(
            "validation metrics of the same trials",
            name,
            Kind.EQUAL,
            Ratio.of(trials.apart(name)),
            note="theirs minus the bank's, median and range over trials and tasks, as shares",
        )
