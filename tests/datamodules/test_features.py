"""Features from the store and from the encoder: the same rows, one way to ask for them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_source import Counting, TinySource

from fusion_workbench.datamodules.features import Features, LiveFeatures, StoreFeatures
from fusion_workbench.datamodules.store.store import FeatureStore
from fusion_workbench.modules.encoders.encoder import VisionEncoder

LAYERS = (3, 1)


@pytest.fixture(scope="module")
def vision(tiny_dinov2: Path) -> VisionEncoder:
    return VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32")


@pytest.fixture(params=["store", "live"])
def features(request: pytest.FixtureRequest, vision: VisionEncoder, tmp_path: Path) -> Features:
    source, encoder = TinySource(), Counting(vision)
    if request.param == "live":
        return LiveFeatures(encoder, source)
    return StoreFeatures(FeatureStore(tmp_path, encoder, source, torch.float32, 8, Console(quiet=True)))


def test_rows_are_what_the_encoder_makes_of_the_images(features: Features, vision: VisionEncoder) -> None:
    rows = features.split("test", LAYERS).rows(torch.tensor([7, 2, 7]))
    expected = torch.cat([vision.encode(features.source.image("test", i)[None], LAYERS) for i in (7, 2, 7)], dim=1)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


def test_a_fetched_batch_is_completed_to_the_same_rows(features: Features) -> None:
    own, index = features.split("test", LAYERS), torch.tensor([4, 0])
    fetch = pickle.loads(pickle.dumps(own.fetch)) if features.store is None else own.fetch  # as a worker is given it
    batch = features.complete(fetch(index), LAYERS)
    assert set(batch) == {"features"}
    assert torch.equal(batch["features"], own.rows(index))


def test_no_images_have_no_features(features: Features) -> None:
    own, none = features.split("val", LAYERS), torch.tensor([], dtype=torch.int64)
    assert own.rows(none).shape == (2, 0, 16, 32)
    assert features.complete(own.fetch(none), LAYERS)["features"].shape == (2, 0, 16, 32)


def test_only_a_store_remembers(features: Features) -> None:
    encoder = features.encoder
    assert isinstance(encoder, Counting)
    for _ in range(2):
        features.split("val", LAYERS).rows(torch.tensor([1]))
    assert encoder.images == (2 if features.store is None else features.source.size("val"))
