"""From a study's configuration to the parts that run it, with everything that can be wrong found before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.history import defaults_before, newest
from fusion_workbench.config.study import EncoderConfig, StudyConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.hardware import default_device
from fusion_workbench.study.identity import folder_of, study_id

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.base import ConversationSource
    from fusion_workbench.datamodules.sources.base import Source
    from fusion_workbench.datamodules.store.store import FeatureStore
    from fusion_workbench.modules.answers.task import AnswerTask
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.tasks import Task
    from fusion_workbench.study.language_parts import LanguageParts
    from fusion_workbench.sweeps.space import Space


@dataclass
class Parts:
    """A study, ready to run."""

    study: StudyConfig
    study_id: str
    workspace: Path
    encoder: VisionEncoder
    source: Source
    tasks: list[Task]  # of probes; none of a language model
    space: Space
    store: FeatureStore | None  # None: every batch is encoded anew
    language: LanguageParts | None = None  # None: the cells are probes

    @property
    def measured(self) -> Sequence[Task | AnswerTask]:
        """What is read off the tokens, or asked: the measures of the report."""
        return self.language.tasks if self.language else self.tasks

    @property
    def width(self) -> int:
        """Channels of the tokens that leave a projector."""
        return self.language.width if self.language else self.study.training.width or self.encoder.dim

    @property
    def stores(self) -> list[FeatureStore | None]:
        """The store of the study's source, and those of stages that have a source of their own."""
        return [self.store, *(self.language.stores.values() if self.language else ())]

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


def load_encoder(config: EncoderConfig, progress: bool = True) -> VisionEncoder:
    """The encoder that a config names. ``assets:encoder`` is fetched and converted on first use."""
    from fusion_workbench.assets import home as assets
    from fusion_workbench.modules.encoders.encoder import VisionEncoder

    name = config.name
    if name.startswith("planted:"):
        from fusion_workbench.modules.encoders.planted import PlantedEncoder

        return PlantedEncoder(name, image_size=config.image_size)
    if name.startswith("assets:"):
        piece = name.removeprefix("assets:")
        if piece != "encoder":
            raise WorkbenchError(f"encoder.name is '{name}'; the embedded encoder is 'assets:encoder'.")
        name = str(assets.ensure(piece, progress=progress)[piece])
    encoder = VisionEncoder(
        name,
        image_size=config.image_size,
        revision=config.revision,
        precision=config.precision,
        device=default_device(),
    )
    encoder.name = config.name
    return encoder


def prepare(study: StudyConfig, workspace: Path, progress: bool = True) -> Parts:
    """Build encoder, source, tasks, space and store of a study.

    Raises:
        WorkbenchError: anything in the study that cannot work: unknown names, layers out of range, options of the
            wrong type, an image size that the source does not make, a task without labels.
    """
    from fusion_workbench.datamodules.build import build_source
    from fusion_workbench.modules.encoders.encoder import both
    from fusion_workbench.modules.fusion.base import STRATEGIES, spec_of
    from fusion_workbench.modules.projector import Projector
    from fusion_workbench.modules.tasks import build_task
    from fusion_workbench.sweeps.space import build_space

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
    _writable(workspace)
    encoder = load_encoder(study.encoder, progress)
    space = build_space(study, encoder.depth, traits)
    source = build_source(study.source.name, study.source.options)
    made, read = both(source.image_size), both(encoder.image_size)
    if made != read:
        raise WorkbenchError(
            f"the source '{study.source.name}' makes images of {_pixels(made)} px and the encoder reads "
            f"{_pixels(read)} px; set encoder.image_size={_plain(made)}, or let the source make {_plain(read)} "
            "(source.options.size)."
        )
    if study.language_model is not None:
        return _with_language(study, workspace, encoder, source, space, progress)
    classes, targets = source.classes(), source.targets("train")
    tasks = [build_task(name, classes, targets) for name in study.tasks]
    if source.size("train") < study.training.batch_size:
        raise WorkbenchError(
            f"training.batch_size is {study.training.batch_size}, and the source has {source.size('train')} training "
            "examples; a batch must fit into them."
        )
    _check_builds(space, encoder.dim)
    store = store_of(study, workspace, encoder, source)
    return Parts(study, study_id(study), workspace, encoder, source, tasks, space, store)


def store_of(study: StudyConfig, workspace: Path, encoder: VisionEncoder, source: Source) -> FeatureStore | None:
    """The feature store of a source's images; None where every batch is encoded anew."""
    if study.training.live:
        return None
    from fusion_workbench.datamodules.store.store import FeatureStore

    return FeatureStore(workspace / "store", encoder, source)


def _with_language(
    study: StudyConfig, workspace: Path, encoder: VisionEncoder, source: Source, space: Space, progress: bool
) -> Parts:
    """The rest of :func:`prepare` for a study of language models."""
    from fusion_workbench.study.language_parts import check_adapters, prepare_language

    store = store_of(study, workspace, encoder, source)
    language = prepare_language(study, encoder, source, store, workspace, progress)
    check_adapters(study, space, encoder, language)
    return Parts(study, study_id(study), workspace, encoder, source, [], space, store, language)


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


def _check_builds(space: Space, dim: int) -> None:
    """Every listed cell's fuser is built once on no memory at all, so that wrong options are found now."""
    import torch

    from fusion_workbench.modules.fusion import build

    with torch.device("meta"):
        for cell in space.listed:
            build(cell.strategy, cell.selection, dim, dict(cell.options))


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
