"""A sweep as it is usually written: a LightningModule and a Trainer a trial, images read from files and encoded anew in
every epoch, MLFlowLogger, Optuna's loop.

The trials are those of a probe bank: the same cells, initialisations, order of images, steps, schedule, clipping and
metrics. Only how they are run differs: one by one, with the encoder in the loop, and MMFuser level by level.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fusion_workbench.bench.others.cached_loop import read_plainly
from fusion_workbench.bench.others.per_level import PerLevel
from fusion_workbench.datamodules.order import EpochOrder
from fusion_workbench.datamodules.sources.base import Source
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.fusion.mmfuser import MMFuser
from fusion_workbench.modules.optim import make_optimizer
from fusion_workbench.modules.probes.bank import objective
from fusion_workbench.modules.probes.evaluation import Evaluation, SplitScores
from fusion_workbench.modules.probes.member import ProbeRunConfig
from fusion_workbench.modules.probes.probe import seeded_probe
from fusion_workbench.modules.tasks import Task
from fusion_workbench.training.probe_callbacks import quiet_lightning


def write_images(source: Source, folder: Path, splits: Sequence[str] = ("train", "val", "test")) -> None:
    """Every image of the source as ``folder/SPLIT/NUMBER.png``: without loss, so that the pixels are the store's."""
    for split in splits:
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(source.size(split)):
            Image.fromarray(source.image(split, number)).save(folder / split / f"{number:06}.png")


class ImageFiles(Dataset[dict[str, Tensor]]):
    """An image read from its file, with its targets: ``images`` uint8 ``[H, W, 3]``, ``index``, and the targets."""

    def __init__(self, source: Source, split: str, folder: Path) -> None:
        self.folder, self.size = folder / split, source.size(split)
        self.targets = {name: torch.from_numpy(values) for name, values in source.targets(split).items()}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        with Image.open(self.folder / f"{number:06}.png") as file:
            pixels = torch.from_numpy(np.array(file.convert("RGB")))
        targets = {name: values[number] for name, values in self.targets.items()}
        return {"images": pixels, "index": torch.tensor(number), **targets}


class InOrder(Sampler[int]):
    """The order of training of a bank's replicate; Lightning tells it the epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self.order, self.epoch = EpochOrder(size, seed), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.of(self.epoch))


class NaiveTrial(L.LightningModule):
    """One probe, with the frozen encoder in the loop.

    Args:
        config: what is trained, from which seeds.
        tasks: read off the fused tokens.
        encoder: run whole on every batch, all its hidden states kept, in its own precision.
        as_stored: round features to bf16, as the feature store keeps them; for tests that ask for equal numbers.
    """

    def __init__(
        self, config: ProbeRunConfig, tasks: Sequence[Task], encoder: VisionEncoder, as_stored: bool = False
    ) -> None:
        super().__init__()
        self.config, self.tasks, self.as_stored = config, list(tasks), as_stored
        self.probe = seeded_probe(config.probe, tasks, config.init_seed)
        self.parts = self.probe.parts()
        self.layers: tuple[int, ...] = self.probe.fuser.uses
        if isinstance(self.probe.fuser, MMFuser):
            self.probe.fuser = PerLevel(self.probe.fuser)  # type: ignore[assignment]
        self._encoder = [encoder]  # in a list: it is neither trained nor saved
        self.losses: list[Tensor] = []
        self.evaluations: dict[str, Evaluation] = {}
        self._scores: SplitScores | None = None

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = make_optimizer(self.parts, self.config.recipe, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3] → [layers, B, tokens, dim]``."""
        encoder = self._encoder[0]
        pixels = encoder.normalise(images)
        inputs: dict[str, Any] = dict(encoder.family.inputs(pixels, encoder.patch))
        if encoder.family.interpolate:
            inputs["interpolate_pos_encoding"] = True
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=encoder.precision == "bf16"):
            states = encoder.model(**inputs, output_hidden_states=True).hidden_states
        chosen = torch.stack([states[layer][:, encoder.prefix_tokens :] for layer in self.layers]).float()
        return chosen.bfloat16().float() if self.as_stored else chosen

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = read_plainly(self.probe, self.features(batch["images"]), batch, self._encoder[0].grid())
        loss = torch.stack([task.loss(logits[task.name], batch) for task in self.tasks]).sum()
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.losses.append(loss.detach())
        return loss

    def on_validation_epoch_start(self) -> None:
        self._scores = SplitScores(self.tasks, self.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert self._scores is not None
        self._scores.add(
            read_plainly(self.probe, self.features(batch["images"]), batch, self._encoder[0].grid()), batch
        )

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._close("val")

    def on_test_epoch_end(self) -> None:
        self._close("test")

    def _close(self, split: str) -> None:
        assert self._scores is not None
        self.evaluations[split] = found = self._scores.close()
        self.log_dict({f"{split}/{name}": value for name, value in found.metrics.items()})


@dataclass
class Sweep:
    """What a naive sweep took and found.

    Attributes:
        seconds: of the whole loop.
        fit_seconds, test_seconds: of each trial, in the order in which Optuna asked for them.
        evaluations: variant → split → what its probe scored.
    """

    seconds: float = 0.0
    fit_seconds: list[float] = field(default_factory=list)
    test_seconds: list[float] = field(default_factory=list)
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """How every trial is trained and evaluated: as the bank's study says."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    order_seed: int
    accelerator: str
    precision: Any  # Lightning's name of it
    gradient_clip: float
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_sweep(
    members: Sequence[ProbeRunConfig],
    tasks: Sequence[Task],
    encoder: VisionEncoder,
    source: Source,
    images: Path,
    protocol: Protocol,
    tracking: Path,
) -> Sweep:
    """Train the members as trials of Optuna's loop, each by a Trainer of its own, with its epochs' metrics in MLflow.

    Args:
        images: what :func:`write_images` wrote of ``source``.
        tracking: MLflow's database, made when missing.
    """
    import optuna

    quiet_lightning()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    found = Sweep()

    def trial(asked: optuna.Trial) -> float:
        config = members[asked.suggest_categorical("member", list(range(len(members))))]
        torch.manual_seed(config.dropout_seed)
        module = NaiveTrial(config, tasks, encoder)
        trainer = L.Trainer(
            max_epochs=protocol.epochs,
            accelerator=protocol.accelerator,
            devices=1,
            precision=protocol.precision,
            gradient_clip_val=protocol.gradient_clip or None,
            logger=MLFlowLogger("naive", config.label, tracking_uri=f"sqlite:///{tracking}"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=tracking.parent,
        )
        start = time.perf_counter()
        trainer.fit(module, _loader(source, "train", images, protocol), _loader(source, "val", images, protocol))
        fitted = time.perf_counter()
        trainer.test(module, _loader(source, "test", images, protocol), verbose=False)
        found.fit_seconds.append(fitted - start)
        found.test_seconds.append(time.perf_counter() - fitted)
        found.evaluations[config.variant] = module.evaluations
        return objective(module.evaluations["val"].metrics, module.tasks)

    search = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.GridSampler({"member": list(range(len(members)))}, seed=0)
    )
    start = time.perf_counter()
    search.optimize(trial, n_trials=len(members))
    found.seconds = time.perf_counter() - start
    return found


def _loader(source: Source, split: str, folder: Path, protocol: Protocol) -> DataLoader[dict[str, Tensor]]:
    data, training = ImageFiles(source, split, folder), split == "train"
    return DataLoader(
        data,
        batch_size=protocol.batch_size if training else protocol.eval_batch_size,
        sampler=InOrder(len(data), protocol.order_seed) if training else None,
        drop_last=training,
        num_workers=protocol.workers,
        persistent_workers=protocol.workers > 0,
    )
