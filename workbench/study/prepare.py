"""From a study's configuration to the parts that run it, with everything that can be wrong found before any work.

Four steps, each a function of its own: names → encoder → space → data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.history import defaults_before, newest
from fusion_workbench.config.study import StudyConfig
from fusion_workbench.core.errors import WorkbenchError, code_of
from fusion_workbench.study.cell_models import CellModels, ProbeModels
from fusion_workbench.study.encoder_store import features_of, load_encoder
from fusion_workbench.study.identity import check_place, folder_of, strategies_of, study_id, variant
from fusion_workbench.study.language_parts import LanguageParts, prepare_language

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.base import ConversationSource
    from fusion_workbench.datamodules.features import Features
    from fusion_workbench.datamodules.sources.base import Source
    from fusion_workbench.datamodules.store.store import FeatureStore
    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.tasks import Task
    from fusion_workbench.sweeps.space import Cell, Space, Variant


@dataclass
class Parts:
    """A study, ready to run.

    Attributes:
        features: of the study's source, from the store or live.
        models: what the cells become: probes, or multimodal language models.
        new_code: strategy → hash of its code, of plug-ins whose code has changed since the study was begun
            (:mod:`study.changes`).
    """

    study: StudyConfig
    study_id: str
    workspace: Path
    encoder: VisionEncoder
    space: Space
    features: Features
    models: CellModels
    new_code: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        return self.features.source

    @property
    def store(self) -> FeatureStore | None:
        """Where the study's features lie; None where every batch is encoded anew."""
        return self.features.store

    @property
    def stores(self) -> list[FeatureStore]:
        """The store of the study's source, and those of stages that have a source of their own."""
        every = [self.features, *self.models.stage_features.values()]
        return list({id(f.store): f.store for f in every if f.store is not None}.values())

    @property
    def tasks(self) -> list[Task]:
        """Of probes; none of a language model."""
        return self.models.tasks if isinstance(self.models, ProbeModels) else []

    @property
    def language(self) -> LanguageParts | None:
        """The language model; None where the cells are probes."""
        return self.models if isinstance(self.models, LanguageParts) else None

    @property
    def measured(self) -> Sequence[Task | AnswerTask]:
        """What probes predict or questions ask: the measures of the report."""
        return self.models.measured

    @property
    def width(self) -> int:
        """Channels of the tokens that leave a projector."""
        return self.models.width

    @property
    def conversations(self) -> ConversationSource:
        """The source of a study of language models."""
        from fusion_workbench.datamodules.conversations.base import ConversationSource

        assert isinstance(self.source, ConversationSource)
        return self.source

    @property
    def folder(self) -> Path:
        """The study's own folder: ledger, Optuna journal, resolved YAML."""
        return folder_of(self.workspace, self.study.name, self.study_id)

    def variant(self, cell: Cell, lr: float) -> Variant:
        """A cell at a learning rate; of a plug-in's changed code another variant than it was before."""
        changed = sorted(f"{name}:{self.new_code[name]}" for name in strategies_of(cell) if name in self.new_code)
        return variant(self.study, cell, lr, ",".join(changed))

    def layers_read(self, cell: Cell) -> tuple[int, ...]:
        """The layers that the cell's fuser reads; a control may name levels and read none."""
        from fusion_workbench.modules.meta import on_meta

        return on_meta(self.models.build, cell).uses


def prepare(study: StudyConfig, workspace: Path, progress: bool = True) -> Parts:
    """Build encoder, source, tasks, space and store of a study.

    Raises:
        WorkbenchError: anything in the study that cannot work: unknown names, layers out of range, options of the
            wrong type, an image size that the source does not make, a task without labels.
    """
    from fusion_workbench.modules.probes.guard import torch_as_it_was

    with torch_as_it_was():  # plug-ins are imported and built here
        traits = prepare_names(study)
        check_place(study, workspace)
        _writable(workspace)
        encoder = load_encoder(study.encoder, progress)
        space = prepare_space(study, encoder, traits)
        features, models = prepare_data(study, workspace, encoder, progress)
        check_builds(space, models)
    return Parts(study, study_id(study), workspace, encoder, space, features, models)


def prepare_names(study: StudyConfig) -> dict[str, Any]:
    """Hold strategies with their options, tasks and projector against what there is; nothing is built.

    Returns:
        What the planner knows of each strategy that the study may name, :class:`sweeps.space.Traits` by name.

    Raises:
        WorkbenchError: an unknown name or option, or a value of the wrong type.
    """
    from fusion_workbench.modules.fusion.base import STRATEGIES, spec_of
    from fusion_workbench.modules.projector import Projector

    traits = strategy_traits(study.language_model is not None, study.schema)
    for strategy in study.strategies:
        if strategy.name not in traits:
            if study.language_model is None:
                import fusion_workbench.modules.language  # noqa: F401  (the strategies that only a language model can have)

                spec_of(strategy.name)  # raises, and says where a language model is all that is missing
            raise STRATEGIES.unknown(strategy.name, traits)
        traits[strategy.name].canonical(strategy.options)
    if study.language_model is None:
        _check_tasks(study.tasks)
    Projector(study.training.projector, 1, 1)
    return traits


def prepare_space(study: StudyConfig, encoder: VisionEncoder, traits: Mapping[str, Any]) -> Space:
    """The study's cells, with layers as numbers of ``encoder``.

    Raises:
        WorkbenchError: a layer that the encoder does not have, or one that is named twice.
    """
    from fusion_workbench.sweeps.space import build_space

    return build_space(study, encoder.depth, traits)


def prepare_data(
    study: StudyConfig, workspace: Path, encoder: VisionEncoder, progress: bool = True
) -> tuple[Features, CellModels]:
    """The features of the study's source, and what is learned from them. Nothing is encoded yet.

    Raises:
        WorkbenchError: an unknown source or option, images of another size than ``encoder`` reads, a task without
            labels, a batch that is larger than the training split; of a language model as :func:`prepare_language`.
    """
    from fusion_workbench.datamodules.build import build_source
    from fusion_workbench.datamodules.order import check_batch
    from fusion_workbench.modules.tasks import build_task

    with code_of(f"source '{study.source.name}'"):
        source = build_source(study.source.name, study.source.options)
        _check_image_size(study.source.name, source, encoder)
        features = features_of(study, workspace, encoder, source)
    if study.language_model is not None:
        return features, prepare_language(study, encoder, features, workspace, progress)
    training, tasks = study.training, []
    with code_of(f"source '{study.source.name}'"):
        classes, targets, size = source.classes(), source.targets("train"), source.size("train")
    for name in study.tasks:
        with code_of(f"task '{name}', while it was built,"):
            tasks.append(build_task(name, classes, targets))
    check_batch(size, training.batch_size, training.devices)
    models = ProbeModels(tasks, encoder.dim, encoder.grid(), training.projector, training.width or encoder.dim)
    return features, models


def check_builds(space: Space, models: CellModels) -> None:
    """Every listed cell is built once on no memory at all, so that wrong options are found now.

    Raises:
        WorkbenchError: a cell that cannot be built.
    """
    from fusion_workbench.modules.meta import on_meta

    for cell in space.listed:
        with code_of(f"the strategy of {cell.label}, while it was built,"):
            on_meta(models.build, cell)


def _check_image_size(name: str, source: Source, encoder: VisionEncoder) -> None:
    from fusion_workbench.modules.encoders.description import height_width

    made, read = height_width(source.image_size), height_width(encoder.image_size)
    if made != read:
        raise WorkbenchError(
            f"the source '{name}' makes images of {_pixels(made)} px and the encoder reads "
            f"{_pixels(read)} px; set encoder.image_size={_plain(made)}, or let the source make {_plain(read)} "
            "(source.options.size)."
        )


def _check_tasks(names: Sequence[str]) -> None:
    from fusion_workbench.modules.tasks import TASKS

    for task in names:
        TASKS.find(task)


def strategy_traits(language: bool = False, schema: int | None = None) -> dict[str, Any]:
    """What the planner knows of each registered strategy; with a language model, of those that inject into it too.

    ``schema``: the version of the study file whose defaults the options have; None: the newest.
    """
    from fusion_workbench.modules.fusion import STRATEGIES, canonical_options
    from fusion_workbench.sweeps.space import Traits

    def traits_of(
        name: str, uses_levels: bool, canonical: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    ) -> Traits:
        before = defaults_before(schema or newest(), name)
        return Traits(uses_levels, lambda options: canonical(name, {**before, **options}))

    traits = {name: traits_of(name, spec.uses_levels, canonical_options) for name, spec in STRATEGIES.items()}
    if language:
        from fusion_workbench.modules.language.injection import INJECTIONS, canonical_injection

        for name, injection in INJECTIONS.items():
            traits[name] = traits_of(name, injection.uses_levels, canonical_injection)
    return traits


def _writable(folder: Path) -> None:
    """Raises WorkbenchError when the workspace cannot be made or written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # the workers of a study look at the same time
    except OSError as error:
        raise WorkbenchError(
            f"the workspace {folder} cannot be written ({error.strerror or error}); choose another with --workspace."
        ) from None


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _plain(size: tuple[int, int]) -> str:
    """As a study writes it."""
    return str(size[0]) if size[0] == size[1] else f"[{size[0]},{size[1]}]"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys, for MLflow's params."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{name}.")
        else:
            out[name] = value
    return out
