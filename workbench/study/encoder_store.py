"""The encoder that a study names, and where the features that it makes of a source's images come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.config.study import EncoderConfig, StudyConfig
from fusion_workbench.system.hardware import default_device

if TYPE_CHECKING:
    from fusion_workbench.datamodules.features import Features
    from fusion_workbench.datamodules.sources.base import Source
    from fusion_workbench.modules.encoders.encoder import VisionEncoder


def load_encoder(config: EncoderConfig, progress: bool = True) -> VisionEncoder:
    """The encoder that a config names. ``assets:encoder`` is fetched and converted on first use."""
    from fusion_workbench.assets import home as assets
    from fusion_workbench.modules.encoders.encoder import VisionEncoder

    name = config.name
    if name.startswith("planted:"):
        from fusion_workbench.modules.encoders.planted import PlantedEncoder

        return PlantedEncoder(name, image_size=config.image_size)
    encoder = VisionEncoder(
        assets.model_path(name, "encoder", "encoder.name", progress),
        image_size=config.image_size,
        revision=config.revision,
        precision=config.precision,
        device=default_device(),
    )
    encoder.name = config.name
    return encoder


def features_of(study: StudyConfig, workspace: Path, encoder: VisionEncoder, source: Source) -> Features:
    """Features of a source's images: from the workspace's store, or anew for every batch with ``training.live``."""
    from fusion_workbench.datamodules.features import LiveFeatures, StoreFeatures

    if study.training.live:
        return LiveFeatures(encoder, source)
    from fusion_workbench.datamodules.store.store import FeatureStore

    return StoreFeatures(FeatureStore(workspace / "store", encoder, source))
