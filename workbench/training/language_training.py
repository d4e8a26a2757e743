"""One variant-replicate of a vision-language model: trained stage by stage, resumable at any step.

While it trains its state lies in a folder of its own: ``STAGE.ckpt`` is the latest of a stage that is under way,
``STAGE.done.ckpt`` what the stage ended with. An interrupted run goes on from the latest of them, in the middle of
an epoch if need be, with the order of the data, the schedule and dropout where they were.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fusion_workbench.config.language import FROZEN, FULL, LORA, StageConfig
from fusion_workbench.datamodules.datamodule import AblationDataModule
from fusion_workbench.modules.language.connector import match_scale, seeded_connector
from fusion_workbench.modules.language.decoder import LoraOptions
from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.optim import gate_rms, named_gates
from fusion_workbench.modules.probes.guard import is_out_of_memory
from fusion_workbench.schema.names import Status
from fusion_workbench.study.identity import seed_of
from fusion_workbench.study.language_parts import stage_recipe, stage_steps
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.record import peak_memory_mb
from fusion_workbench.training.language_callbacks import LossCurve, LossRow, StepMetrics, TellingLogger

if TYPE_CHECKING:
    from fusion_workbench.modules.language.decoder import Decoder
    from fusion_workbench.study.jobs import Job

_MEASURED, _DIAGNOSED = 16, 32  # images of which the scale at the start is measured, and the trained connector told


class LanguageRun:
    """A job, from a fresh connector to a trained model.

    Args:
        parts: the prepared study.
        job: what is trained.
        folder: of its checkpoints.
        tell: called with (number of the row, row) as the loss curve grows.
        advance: called with the number of steps done.
        log: called with (step of all stages together, metrics of a step).

    Attributes:
        model: the vision-language model.
        history: rows of the loss curve, :data:`~training.language_callbacks.SECTIONS` per stage.
        status: finished, diverged or out_of_memory; None while it trains.
        seconds, samples, flops_seen: of training, in this process; FLOPs as :attr:`flops_per_position`.
        before: seconds of training that earlier processes put into the checkpoints that are taken up.
        peak_memory_mb: of training in this process, on CUDA of this run alone; nan where it trained nothing.
    """

    def __init__(
        self,
        parts: Parts,
        job: Job,
        folder: Path,
        tell: Callable[[int, LossRow], None] = lambda number, row: None,
        advance: Callable[[int], None] = lambda steps: None,
        log: Callable[[int, LossRow], None] = lambda step, row: None,
    ) -> None:
        assert parts.language is not None
        self.parts, self.job, self.folder = parts, job, folder
        self.language = parts.language
        self.study = parts.study
        self.tell, self.advance, self.log = tell, advance, log
        self.history: list[LossRow] = []
        self.status: str | None = None
        self.seconds = self.before = 0.0
        self.peak_memory_mb = math.nan
        self._started: float | None = None
        self.samples = 0
        self.flops_seen = 0.0
        self.model = self._build()
        self.device = self.model.decoder.device

    @property
    def layers(self) -> tuple[int, ...]:
        """What the first axis of the features holds."""
        return tuple(sorted(set(self.model.connector.uses)))

    @property
    def tokens_per_image(self) -> int:
        """That the language model is given."""
        return self.language.tokens_per_image(self.job.variant.cell)

    @property
    def flops_per_position(self) -> int:
        """Model FLOPs in a training step: 2 a parameter forward, 2 backward to the activations, and 2 to the weights
        where all of them train (arXiv 2204.02311, appendix B, without the attention's own).
        """
        return (6 if self.model.decoder.trains == FULL else 4) * self.language.parameters

    def train(self) -> None:
        """All stages that are not done yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stages = self.language.config.stages
        if torch.cuda.is_available():  # else the most that any run before this one took
            torch.cuda.reset_peak_memory_stats()
        counts = stage_steps(self.study, self.language, self.job.variant.cell)
        for place, (stage, steps) in enumerate(zip(stages, counts, strict=True)):
            if self.model.device_mesh is not None:
                self._rebuild(stages[:place])
            self._arrange(stage)
            done = self.folder / f"{stage.name}.done.ckpt"
            if not (done.exists() and self._restore(done)):
                self._train_stage(stage, base=sum(counts[:place]))
                if self.status is not None:
                    return
            else:
                self.advance(steps)
        self.status = Status.FINISHED

    def to_device(self) -> None:
        """Move the model back to the device it was built on: Lightning leaves what it has trained on the CPU."""
        self.model.to(self.device)

    def clock(self) -> float:
        """Seconds since the training that is under way began."""
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def gates(self) -> LossRow:
        """Root mean square of each gate by its name in the connector: how far it has opened."""
        connector = self.model.connector
        gates = named_gates(connector, connector.parts()["gates"])
        return gate_rms({name.removeprefix("fuser."): gate for name, gate in gates.items()})

    # --- building -----------------------------------------------------------------------------------------------

    def _build(self) -> VisionLanguageModel:
        cell, encoder = self.job.variant.cell, self.parts.encoder
        language = self.language
        decoder = language.decoder() if language.trains_language_model or self._shards else language.frozen
        config = language.connector_config(cell)
        connector = seeded_connector(config, seed_of("init", self.job.replicate, self.job.variant.id))
        layers = tuple(sorted(set(connector.uses)))
        model = VisionLanguageModel(connector.to(decoder.device), decoder, encoder.grid(), layers=layers)
        if language.config.match_scale:
            # A fresh projector speaks louder than any word that a frozen model has read.
            config = replace(config, output_rms=decoder.embedding_rms())
            first = language.features[language.config.stages[0].name]
            shown = _draw(first.source.size("train"), seed_of("scale", self.job.replicate))
            features = model.read(first.split("train", layers).rows(shown))
            match_scale(model.connector, features, encoder.grid(), config.output_rms)
        self.connector_config = config
        return model

    def diagnose(self, split: str) -> LossRow:
        """What the connector does with the first images of ``split``, as named numbers."""
        features = self.parts.features.split(split, self.layers)
        shown = torch.arange(min(_DIAGNOSED, self.parts.source.size(split)))
        with torch.no_grad():
            connector = self.model.connector.eval()
            return connector.diagnose(self.model.read(features.rows(shown)), self.model.grid)

    @property
    def _shards(self) -> bool:
        return self.language.config.parallel == "fsdp" and self.study.training.devices > 1

    def _rebuild(self, done: Sequence[StageConfig]) -> None:
        """An unsharded model instead of a sharded one, whose parameters another stage could not rearrange."""
        del self.model
        gc.collect()  # module and trainer know each other
        self.model = self._build()
        for stage in done:
            self._arrange(stage)
            self._load(self.folder / f"{stage.name}.done.ckpt")

    def _arrange(self, stage: StageConfig) -> None:
        """What trains in a stage, and how fast."""
        _ARRANGE[stage.language_model](self, self.model.decoder)
        self.model.connector.requires_grad_(stage.connector)
        self.model.ended = False
        self.model.recipe = stage_recipe(self.study, stage, self.job.variant.lr)

    def _freeze(self, decoder: Decoder) -> None:
        if decoder.trains == LORA:
            decoder.merge_lora()
        decoder.freeze()

    def _lora(self, decoder: Decoder) -> None:
        if decoder.trains != LORA:
            lora = self.language.config.lora
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of("lora", self.job.replicate, self.job.variant.id))
                decoder.add_lora(LoraOptions(lora.rank, lora.alpha, lora.dropout, tuple(lora.targets)))

    def _full(self, decoder: Decoder) -> None:
        if decoder.trains == LORA:
            decoder.merge_lora()
        decoder.train_fully()

    # --- a stage ------------------------------------------------------------------------------------------------

    def _train_stage(self, stage: StageConfig, base: int) -> None:
        training, config = self.study.training, self.language.config
        latest = self.folder / f"{stage.name}.ckpt"
        callbacks: list[L.Callback] = [LossCurve(self), StepMetrics(self, config.log_every, base)]
        if config.checkpoint_every:
            callbacks.append(
                ModelCheckpoint(
                    dirpath=self.folder,
                    filename=stage.name,
                    every_n_train_steps=config.checkpoint_every,
                    save_top_k=1,
                    enable_version_counter=False,
                )
            )
        trainer = L.Trainer(
            max_epochs=stage.epochs,
            accelerator=training.accelerator,
            devices=training.devices,
            strategy=_PARALLEL[config.parallel](training.devices),
            use_distributed_sampler=False,  # the data module gives every process its share
            precision=training.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=stage.accumulate,
            gradient_clip_val=self.model.recipe.gradient_clip or None,
            logger=TellingLogger(self.log),
            enable_checkpointing=bool(config.checkpoint_every),
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=callbacks,
            default_root_dir=self.folder,
        )
        resume = str(latest) if latest.exists() and _readable(latest) else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("dropout", self.job.replicate, self.job.variant.id, stage.name))
            self.model.train()  # Lightning leaves the mode as it finds it; a frozen decoder stays in eval mode
            self._started = time.perf_counter()
            try:
                trainer.fit(self.model, self._data(stage), ckpt_path=resume, weights_only=True)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.status = Status.OUT_OF_MEMORY
                return
            finally:
                self.seconds += self.clock()
                self._started = None
                self.peak_memory_mb = peak_memory_mb()
        if self.status is None:
            self.model.ended = True
            trainer.save_checkpoint(self.folder / f"{stage.name}.done.ckpt", weights_only=False)
            latest.unlink(missing_ok=True)

    def _data(self, stage: StageConfig) -> AblationDataModule:
        return AblationDataModule(
            self.language.features[stage.name],
            layers=self.layers,
            batch_size=stage.batch_size or self.study.training.batch_size,
            order_seed=seed_of("order", self.job.replicate, stage.name),
            num_workers=self.study.training.num_workers,
            chat=self.language.chat_of(stage, self.job.variant.cell),
            tokens=self.language.tokens,
            group_by=stage.group_by or self.language.config.group_by,
            accumulate=stage.accumulate,
        )

    def _restore(self, path: Path) -> bool:
        """Take up what a stage ended with; False where the file is torn."""
        if not _readable(path):
            return False
        checkpoint = self._load(path)
        curve = LossCurve(self)
        curve.take_up(checkpoint["callbacks"].get(curve.state_key, {}))
        return True

    def _load(self, path: Path) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.check_names(checkpoint["state_dict"])  # what it lacks would stay as it was initialised
        self.model.load_state_dict(checkpoint["state_dict"], strict=False)  # what is frozen is not in it
        return checkpoint


_ARRANGE: dict[str, Callable[[LanguageRun, Decoder], None]] = {
    FROZEN: LanguageRun._freeze,
    LORA: LanguageRun._lora,
    FULL: LanguageRun._full,
}


def _draw(size: int, seed: int) -> torch.Tensor:
    """Numbers of a few of ``size`` images, the same for every strategy."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:_MEASURED]


def _sharded(devices: int) -> Any:
    from lightning.pytorch.strategies import ModelParallelStrategy

    if devices == 1:
        return "auto"
    return ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False)


_PARALLEL: dict[str, Callable[[int], Any]] = {
    "auto": lambda devices: "ddp" if devices > 1 else "auto",
    "ddp": lambda devices: "ddp" if devices > 1 else "auto",
    "fsdp": _sharded,
}


def _readable(path: Path) -> bool:
    """Whether a checkpoint is whole; one that a kill tore, or in which a bit has rotted, is removed."""
    try:
        with ZipFile(path) as archive:  # torch.save writes a CRC of every tensor, which torch.load does not read
            whole = archive.testzip() is None
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # zip, pickle and struct errors, by where it was torn
        whole = False
    if not whole:
        path.unlink(missing_ok=True)
    return whole
