"""From a study's configuration to the parts that run it, with everything that can be wrong found before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config import EncoderConfig, StudyConfig, study_id
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from datamodules.feature_store import FeatureStore
    from datamodules.sources import Source
    from modules.encoder import VisionEncoder
    from modules.tasks import Task
    from sweeps.space import Cell, Space, Variant


@dataclass
class Parts:
    """A study, ready to run."""

    study: StudyConfig
    study_id: str
    workspace: Path
    encoder: VisionEncoder
    source: Source
    tasks: list[Task]
    space: Space
    store: FeatureStore | None  # None: every batch is encoded anew

    @property
    def folder(self) -> Path:
        """The study's own folder: ledger, Optuna journal, resolved YAML."""
        return self.workspace / "studies" / f"{self.study.name}-{self.study_id}"


def load_encoder(config: EncoderConfig, progress: bool = True) -> VisionEncoder:
    """The encoder that a config names. ``assets:encoder`` is fetched and converted on first use."""
    from modules.encoder import VisionEncoder
    from workbench import assets

    name = config.name
    if name.startswith("planted:"):
        from modules.planted import PlantedEncoder

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
        device=_device(),
    )
    encoder.name = config.name
    return encoder


def prepare(study: StudyConfig, workspace: Path, progress: bool = True) -> Parts:
    """Build encoder, source, tasks, space and store of a study.

    Raises:
        WorkbenchError: anything in the study that cannot work: unknown names, layers out of range, options of the
            wrong type, an image size that the source does not make, a task without labels.
    """
    from datamodules.sources import build_source
    from modules.encoder import both
    from modules.projector import Projector
    from modules.tasks import TASKS, build_task
    from sweeps.space import build_space
    from workbench.errors import nearest

    traits = strategy_traits()
    for strategy in study.strategies:
        if strategy.name not in traits:
            raise WorkbenchError(f"unknown strategy '{strategy.name}'.{nearest(strategy.name, traits)}")
        traits[strategy.name].canonical(strategy.options)
    for task in study.tasks:
        if task not in TASKS:
            raise WorkbenchError(f"unknown task '{task}'.{nearest(task, TASKS)}")
    Projector(study.training.projector, 1, 1)
    _writable(workspace)
    encoder = load_encoder(study.encoder, progress)
    space = build_space(study, encoder.depth, traits)
    source = build_source(study.source.name, study.source.options)
    classes, targets = source.classes(), source.targets("train")
    tasks = [build_task(name, classes, targets) for name in study.tasks]
    made, read = both(source.image_size), both(encoder.image_size)
    if made != read:
        raise WorkbenchError(
            f"the source '{study.source.name}' makes images of {_pixels(made)} px and the encoder reads "
            f"{_pixels(read)} px; set encoder.image_size={_plain(made)}, or let the source make {_plain(read)} "
            "(source.options.size)."
        )
    if source.size("train") < study.training.batch_size:
        raise WorkbenchError(
            f"training.batch_size is {study.training.batch_size}, and the source has {source.size('train')} training "
            "examples; a batch must fit into them."
        )
    _check_builds(space, encoder.dim)
    store = None
    if not study.training.live:
        from datamodules.feature_store import FeatureStore

        store = FeatureStore(workspace / "store", encoder, source)
    return Parts(study, study_id(study), workspace, encoder, source, tasks, space, store)


def strategy_traits() -> dict[str, Any]:
    """What the planner knows of each registered strategy."""
    from modules.fusion import STRATEGIES, canonical_options
    from sweeps.space import Traits

    return {name: Traits(spec.uses_levels, partial(canonical_options, name)) for name, spec in STRATEGIES.items()}


def training_identity(study: StudyConfig) -> dict[str, Any]:
    """The training settings that move a variant's weights: all but where it runs and beside whom."""
    from workbench.config import to_dict

    plain: dict[str, Any] = dict(to_dict(study)["training"])
    for name in ("bank_size", "accelerator", "devices", "live"):
        plain.pop(name)
    plain["tasks"] = ",".join(study.tasks)
    return plain


def variant(study: StudyConfig, cell: Cell, lr: float) -> Variant:
    """A cell at a learning rate, under the study's training."""
    from sweeps.space import Variant

    return Variant(cell, lr, tuple(sorted(training_identity(study).items())))


def seed_of(*parts: str) -> int:
    """A 63-bit seed from words: the same on every machine."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big") >> 1


def _check_builds(space: Space, dim: int) -> None:
    """Every listed cell's fuser is built once on no memory at all, so that wrong options are found now."""
    import torch

    from modules.fusion import build

    with torch.device("meta"):
        for cell in space.listed:
            build(cell.strategy, cell.selection, dim, dict(cell.options))


def _writable(folder: Path) -> None:
    """Raises WorkbenchError when the workspace cannot be made or written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WorkbenchError(
            f"the workspace {folder} cannot be written ({error.strerror or error}); choose another with --workspace."
        ) from None


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _plain(size: tuple[int, int]) -> str:
    """As a study writes it."""
    return str(size[0]) if size[0] == size[1] else f"[{size[0]},{size[1]}]"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
