"""The parts of a study whose cells are multimodal language models, with what can be wrong found before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.language import FROZEN, LORA, LanguageConfig, StageConfig
from fusion_workbench.config.study import StudyConfig
from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.study.cell_models import CellModels
from fusion_workbench.study.encoder_store import features_of
from fusion_workbench.system.hardware import default_device

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.base import ConversationSource
    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.datamodules.features import Features
    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.language.connector import ConnectorConfig, LanguageConnector
    from fusion_workbench.modules.language.decoder import Decoder
    from fusion_workbench.modules.optim import Recipe
    from fusion_workbench.modules.tasks import Task
    from fusion_workbench.sweeps.space import Cell

TOKENS = "tokens"  # folder of the workspace
TITLES = {"read": "reading", "count": "counting", "position": "position", "digit": "digit", "answer": "answers"}


@dataclass(frozen=True)
class StageLengths:
    """Of a stage's ``total`` conversations ``seen`` were looked at; ``cut`` of these lose their end to ``max_length``,
    and ``left_out`` are not trained on at all.
    """

    total: int
    seen: int
    cut: int
    left_out: int

    @property
    def kept(self) -> int:
        """How many are trained on; where only some were seen, about so many."""
        return round(self.total * (self.seen - self.left_out) / max(1, self.seen))

    def words(self) -> str:
        """In words; none where nothing is cut or left out."""
        if not (self.cut or self.left_out):
            return ""
        of = f"{self.seen:,} conversations" + (f" drawn from {self.total:,}" if self.seen < self.total else "")
        return f"of {of} {self.cut:,} are cut to max_length and {self.left_out:,} left out"


@dataclass
class LanguageParts(CellModels):
    """The language model of a study, and the data that it is trained and evaluated on.

    Attributes:
        path: folder or hub name of the language model.
        chat: conversations to tokens.
        width, depth, parameters: channels, blocks and parameters of the language model.
        tasks: the kinds of question.
        sources, features: of each stage by name; the study's own unless the stage has one.
        dim, grid: channels of the encoder, and rows and columns of its tokens.
        projector: its kind.
        tokens: folder of the conversations' ids.
    """

    config: LanguageConfig
    path: str
    chat: Chat
    width: int
    depth: int
    parameters: int
    tasks: list[AnswerTask]
    sources: dict[str, ConversationSource]
    features: dict[str, Features]
    dim: int
    grid: tuple[int, int]
    projector: str
    tokens: Path
    per_image: dict[Any, int] = field(default_factory=dict)  # asked before
    counted: dict[Any, StageLengths] = field(default_factory=dict)

    @property
    def measured(self) -> Sequence[Task | AnswerTask]:
        return self.tasks

    @property
    def stage_features(self) -> Mapping[str, Features]:
        return self.features

    def build(self, cell: Cell) -> LanguageConnector:
        from fusion_workbench.modules.language.connector import build_connector

        return build_connector(self.connector_config(cell))

    def connector_config(self, cell: Cell) -> ConnectorConfig:
        """What :func:`modules.language.connector.build_connector` makes of a cell."""
        from fusion_workbench.modules.language.connector import ConnectorConfig

        return ConnectorConfig(
            strategy=cell.strategy,
            selection=cell.selection,
            dim=self.dim,
            width=self.width,
            depth=self.depth,
            options=dict(cell.options),
            projector=self.projector,
            grid=self.grid,
            projector_norm=self.config.projector_norm,
        )

    def tokens_per_image(self, cell: Cell) -> int:
        """Tokens of an image in the decoder's input: those of the grid, and what the strategy appends to them."""
        import torch

        kind = (cell.strategy, len(cell.selection.levels), str(cell.options))
        if kind not in self.per_image:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                connector = self.build(cell)
                one = torch.zeros(len(connector.uses), 1, self.grid[0] * self.grid[1], self.dim)
                self.per_image[kind] = connector(one, self.grid).tokens.shape[1]
        return self.per_image[kind]

    def chat_of(self, stage: StageConfig, cell: Cell) -> Chat:
        """What makes the ids that a stage trains a cell on."""
        return self.chat.adapted(form=stage.template, tokens_per_image=self.tokens_per_image(cell))

    def lengths(self, stage: StageConfig, cell: Cell | None = None, sample: int = 0) -> StageLengths:
        """How many of a stage's conversations are trained on, and how many are cut or left out for their length.

        Args:
            cell: that is trained; None: one that gives a token for each cell of the grid.
            sample: look at so many where there are more, evenly spread; 0: at all, which are tokenised once and kept.
        """
        from fusion_workbench.datamodules.conversations.tokenised import tokenise, tokenised_split

        per_image = self.tokens_per_image(cell) if cell is not None else self.chat.tokens_per_image
        source, key = self.sources[stage.name], (stage.name, per_image, sample)
        if key not in self.counted:
            chat, conversations = self.chat.adapted(form=stage.template), source.conversations("train")
            total = len(conversations)
            if 0 < sample < total:
                tokens = tokenise((conversations[place * total // sample] for place in range(sample)), chat)
            else:
                tokens = tokenised_split(source, "train", chat, self.tokens)
            fitted = tokens.fitted(chat.max_length, per_image)
            self.counted[key] = StageLengths(total, len(tokens), fitted.cut, fitted.left_out)
        return self.counted[key]

    def decoder(self) -> Decoder:
        """The language model, frozen; loaded anew at every call, since training may change it."""
        from fusion_workbench.modules.language.decoder import Decoder

        decoder = Decoder.load(
            self.path,
            self.config.revision,
            attention=self.config.attention,
            precision=self.config.weights,
            device=default_device(),
        )
        decoder.ends = self.chat.stop_ids
        if self.config.gradient_checkpointing:
            decoder.checkpoint_gradients()
        if self.config.compile:
            decoder.compile()
        return decoder

    @cached_property
    def frozen(self) -> Decoder:
        """One that no stage trains, shared by all variants."""
        return self.decoder()

    @property
    def trains_language_model(self) -> bool:
        """Whether any stage changes the language model."""
        return any(stage.language_model != FROZEN for stage in self.config.stages)

    def questions(self, source: ConversationSource, split: str) -> list[int]:
        """Numbers of the conversations of ``split`` that are evaluated: those of the study's tasks.

        Of validation about as many as the limit, of each task its share and at least one, evenly spread over the
        task's own: sources list the kinds of question in turn, so an even spread over all could fall on one kind alone.
        """
        by_task: dict[str, list[int]] = {task.name: [] for task in self.tasks}
        for number, conversation in enumerate(source.conversations(split)):
            if conversation.task in by_task:
                by_task[conversation.task].append(number)
        total, limit = sum(map(len, by_task.values())), self.config.val_limit
        if split != "val" or not limit or limit >= total:
            return sorted(number for own in by_task.values() for number in own)
        return sorted(number for own in by_task.values() for number in _spread(own, len(own) * limit // total))


def prepare_language(
    study: StudyConfig, encoder: VisionEncoder, features: Features, workspace: Path, progress: bool
) -> LanguageParts:
    """Everything of the study's language model but its weights.

    Args:
        features: of the study's own source.

    Raises:
        WorkbenchError: no such language model, a source without conversations, a task without questions, an extra that
            is not installed.
    """
    from fusion_workbench.assets import home as assets
    from fusion_workbench.datamodules.build import build_source
    from fusion_workbench.datamodules.conversations.base import ConversationSource
    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.modules.language.decoder import read_language

    config, source = study.language_model, features.source
    assert config is not None
    if not isinstance(source, ConversationSource):
        raise WorkbenchError(
            f"source '{study.source.name}' has no conversations to train a language model on; use one that has, such "
            "as finescenes_questions, llava or hf_dataset."
        )
    if any(stage.language_model == LORA for stage in config.stages):
        _require_module("peft", "a stage with language_model: lora", "peft")
    path = assets.model_path(config.name, "language-model", "language_model.name", progress)
    what = f"language_model.name '{path}'"
    model, tokenizer = read_language(path, config.revision, what, "cannot be had")
    _check_weights(path, model, what)
    sources: dict[str, ConversationSource] = {}
    for stage in config.stages:
        own = source if stage.source is None else build_source(stage.source.name, stage.source.options)
        if not isinstance(own, ConversationSource):
            raise WorkbenchError(
                f"language_model.stages: '{stage.name}' is trained on '{stage.source and stage.source.name}', which "
                "has no conversations."
            )
        _check_stage_source(own, stage, study, encoder)
        sources[stage.name] = own
    by_stage = {
        name: features if own is source else features_of(study, workspace, encoder, own)
        for name, own in sources.items()
    }
    grid = encoder.grid()
    _check_length(config, grid[0] * grid[1], model.get_text_config())
    chat = Chat(tokenizer, config.max_length, tokens_per_image=grid[0] * grid[1], system=config.system)
    text = model.get_text_config()
    tasks = answer_tasks(study, source)
    return LanguageParts(
        config,
        path,
        chat,
        text.hidden_size,
        text.num_hidden_layers,
        _parameters(model),
        tasks,
        sources,
        by_stage,
        encoder.dim,
        grid,
        study.training.projector,
        workspace / TOKENS,
    )


def _spread(numbers: Sequence[int], limit: int) -> list[int]:
    """``wanted`` of ``numbers``, evenly spread; at least one of any."""
    count = min(max(1, limit), len(numbers))
    return [numbers[place * len(numbers) // count] for place in range(count)]


def _parameters(config: Any) -> int:
    """Of the language model, from its config alone."""
    from transformers import AutoModelForCausalLM

    from fusion_workbench.modules.meta import on_meta

    model: Any = on_meta(AutoModelForCausalLM.from_config, config, trust_remote_code=False)
    return sum(p.numel() for p in model.parameters())


def _check_weights(path: str, config: Any, what: str) -> None:
    """Raises WorkbenchError, before any work, where a folder's weights are not those that its config describes."""
    from transformers import AutoModelForCausalLM

    from fusion_workbench.system.pretrained import check_folder

    if Path(path).is_dir():
        auto: Any = AutoModelForCausalLM
        check_folder(auto, Path(path), config, what, auto.from_config)


def answer_tasks(study: StudyConfig, source: ConversationSource) -> list[AnswerTask]:
    """The study's kinds of question, each with its metric; the best constant answer is found on validation.

    Raises:
        WorkbenchError: a task that the source does not ask, or an unknown metric.
    """
    from fusion_workbench.modules.answers.metrics import find_metric
    from fusion_workbench.modules.answers.task import AnswerTask

    metrics, where = source.metrics(), f"source '{study.source.name}'"
    tasks = []
    for name in study.tasks:
        if study.tasks.count(name) > 1:
            raise WorkbenchError(f"tasks names '{name}' twice; name it once.")
        if name not in metrics:
            raise WorkbenchError(f"tasks: '{name}' is no kind of question of the {where}.{nearest(name, metrics)}")
        metric = find_metric(metrics[name], where)
        references = [c.references for c in source.conversations("val") if c.task == name]
        if not references or not any(c.task == name for c in source.conversations("test")):
            raise WorkbenchError(f"tasks: '{study.source.name}' has no '{name}' in its validation or its test split.")
        tasks.append(AnswerTask(name, metric, TITLES.get(name, name), references))
    return tasks


def count_parameters(connector: LanguageConnector) -> dict[str, int]:
    """Parameters by part: fuser (with its gates) and projector."""
    parts = {name: sum(p.numel() for p in own) for name, own in connector.parts().items()}
    return {"fuser": parts.get("fuser", 0) + parts.get("gates", 0), "projector": parts.get("projector", 0)}


def _check_stage_source(
    source: ConversationSource, stage: StageConfig, study: StudyConfig, encoder: VisionEncoder
) -> None:
    from fusion_workbench.datamodules.order import check_batch
    from fusion_workbench.modules.encoders.description import height_width

    if height_width(source.image_size) != height_width(encoder.image_size):
        raise WorkbenchError(
            f"stage '{stage.name}': its images are {height_width(source.image_size)} px and the encoder reads "
            f"{height_width(encoder.image_size)} px; set encoder.image_size, or the size in the source's options."
        )
    own = "batch_size" if stage.batch_size else "training.batch_size"
    check_batch(
        len(source.conversations("train")),
        stage.batch_size or study.training.batch_size,
        study.training.devices,
        setting=f"stage '{stage.name}': {own}",
    )


def _check_length(config: LanguageConfig, tokens: int, model: Any) -> None:
    """Raises WorkbenchError for a length that holds no image, or that the language model has no positions for."""
    if config.max_length <= tokens:
        raise WorkbenchError(
            f"language_model.max_length is {config.max_length}, and an image alone takes {tokens} tokens; it must hold "
            "an image and the words about it."
        )
    most = getattr(model, "max_position_embeddings", None)
    if most and config.max_length > most:
        raise WorkbenchError(
            f"language_model.max_length is {config.max_length}; '{config.name}' has positions for {most} tokens."
        )


def _require_module(module: str, what: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise WorkbenchError(f"{what} needs {module}: pip install 'fusion-workbench[{extra}]'.")


def stage_rates(study: StudyConfig, stage: StageConfig, lr: float) -> Mapping[str, float]:
    """Learning rate of each part in a stage: the variant's times the scales of stage and part."""
    base = lr * stage.lr_scale
    training = study.training
    return {
        "projector": base * stage.projector_lr_scale * training.projector_lr_scale,
        "fuser": base * stage.fuser_lr_scale * training.fuser_lr_scale,
        "gates": base * stage.gates_lr_scale * training.gates_lr_scale,
        "language": base * stage.language_lr_scale,
    }


def stage_recipe(study: StudyConfig, stage: StageConfig, lr: float) -> Recipe:
    """How a stage trains."""
    from fusion_workbench.modules.optim import Recipe

    return Recipe(
        stage_rates(study, stage, lr),
        weight_decay=stage.weight_decay,
        warmup=stage.warmup,
        gradient_clip=study.training.gradient_clip,
    )


def stage_steps(study: StudyConfig, language: LanguageParts, cell: Cell | None = None, sample: int = 0) -> list[int]:
    """Optimizer steps of each stage; ``cell`` and ``sample`` as in :meth:`LanguageParts.lengths`."""
    steps = []
    for stage in language.config.stages:
        size = language.lengths(stage, cell, sample).kept
        batches = size // ((stage.batch_size or study.training.batch_size) * study.training.devices)
        steps.append(stage.epochs * max(1, -(-batches // stage.accumulate)))
    return steps
