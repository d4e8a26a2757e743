"""The part of a study that makes its cells multimodal language models instead of probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fusion_workbench.core.errors import WorkbenchError, nearest

FROZEN, LORA, FULL = "frozen", "lora", "full"
TRAINS = (FROZEN, LORA, FULL)
TEMPLATES = ("chat", "plain")
ATTENTION = ("sdpa", "eager", "flash_attention_2")
PARALLEL = ("auto", "ddp", "fsdp")
GROUPS = ("none", "length", "modality_length")
WEIGHTS = ("auto", "float32", "bf16")
KEPT = ("bf16", "float32", "none")


@dataclass
class StageSourceConfig:
    """Conversations of a stage of its own, such as captions; only their training split is read."""

    name: str = "???"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class StageConfig:
    """One stage of training. The rate of a part is the variant's × ``lr_scale`` × the part's."""

    name: str = "train"
    source: StageSourceConfig | None = None  # null: the study's
    template: str = "chat"  # chat; plain: the image, then its caption, as LLaVA's first stage
    language_model: str = FROZEN  # frozen, lora or full
    connector: bool = True  # whether fuser and projector train
    epochs: int = 1
    batch_size: int = 0  # 0: training.batch_size
    accumulate: int = 1  # batches a step
    lr_scale: float = 1.0
    fuser_lr_scale: float = 1.0
    gates_lr_scale: float = 1.0
    projector_lr_scale: float = 1.0
    language_lr_scale: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.03  # share of the stage's steps
    group_by: str = ""  # as language_model.group_by, of this stage alone; empty: the same


@dataclass
class LoraSettings:
    """Low-rank adaptation (arXiv 2106.09685) of the language model, by peft."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: list[str] = field(default_factory=list)  # empty: every linear map of the blocks


@dataclass
class LanguageConfig:
    """The language model behind the connector, how it is trained and how it is evaluated."""

    name: str = "assets:language-model"  # assets:language-model, a folder, or a Hugging Face name
    revision: str | None = None  # commit of a Hugging Face name
    system: str | None = ""  # the system's words; null: those of the model's own template; vicuna_v1: LLaVA-1.5's
    attention: str = "sdpa"  # or eager, flash_attention_2
    weights: str = "auto"  # of a frozen model: auto is bf16 where the hardware gains from it
    projector_norm: bool = True  # tokens normalised before the projector; LLaVA's own has none
    match_scale: bool = True  # tokens start as large as words; LLaVA leaves them as they are initialised
    max_length: int = 2048  # text and image tokens
    stages: list[StageConfig] = field(default_factory=lambda: [StageConfig()])
    lora: LoraSettings = field(default_factory=LoraSettings)
    gradient_checkpointing: bool = False
    compile: bool = False
    group_by: str = "length"  # what a batch's conversations have in common: none, length, modality_length
    parallel: str = "auto"  # ddp or fsdp where training.devices is above 1
    checkpoint_every: int = 200  # steps; an interrupted run goes on from there; 0: from its start
    keep_weights: str = "bf16"  # how those of a model trained in full are kept: bf16, float32, none
    log_every: int = 10  # steps; loss, gradient norm, speed and memory, and whether the loss is a number
    max_new_tokens: int = 16
    eval_batch_size: int = 32
    val_limit: int = 0  # questions of the validation split that are evaluated; 0: all
    controls: bool = True  # the test questions once more on blank and on shuffled images
    probes: str = ""  # a study of probes over the same cells, for the report to compare with


# What moves no weight and no answer.
NOT_IDENTITY = (
    "probes",
    "checkpoint_every",
    "keep_weights",
    "log_every",
    "eval_batch_size",
    "parallel",
    "compile",
    "gradient_checkpointing",
)


def check_language(config: LanguageConfig, where: str) -> None:
    """What types cannot express, but for numbers (:mod:`config.limits`). Raises WorkbenchError for the first wrong."""

    def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
        if value not in allowed:
            raise WorkbenchError(f"{where}: language_model.{key} is '{value}'.{nearest(value, allowed)}")

    one_of("attention", config.attention, ATTENTION)
    one_of("weights", config.weights, WEIGHTS)
    one_of("parallel", config.parallel, PARALLEL)
    one_of("keep_weights", config.keep_weights, KEPT)
    one_of("group_by", config.group_by, GROUPS)
    if not 0 <= config.lora.dropout < 1:
        raise WorkbenchError(f"{where}: language_model.lora.dropout is {config.lora.dropout}; it is a share below 1.")
    if not config.stages:
        raise WorkbenchError(f"{where}: language_model.stages is empty; name at least one, such as - name: align.")
    seen: set[str] = set()
    for number, stage in enumerate(config.stages):
        _check_stage(stage, f"stages[{number}]", one_of, where)
        if stage.name in seen:
            raise WorkbenchError(f"{where}: language_model.stages has two of the name '{stage.name}'; rename one.")
        seen.add(stage.name)


def _check_stage(stage: StageConfig, key: str, one_of: Any, where: str) -> None:
    one_of(f"{key}.language_model", stage.language_model, TRAINS)
    one_of(f"{key}.template", stage.template, TEMPLATES)
    if stage.group_by:
        one_of(f"{key}.group_by", stage.group_by, GROUPS)
    if stage.warmup >= 1:
        raise WorkbenchError(
            f"{where}: language_model.{key}.warmup is {stage.warmup}; it is a share of the steps, below 1."
        )
    if stage.language_model == FROZEN and not stage.connector:
        raise WorkbenchError(
            f"{where}: language_model.{key} trains nothing; set connector: true, or language_model: lora."
        )
