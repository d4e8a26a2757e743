"""The four steps of preparing a study, each alone: names, encoder, space, data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_workbench.config.study import EncoderConfig, StudyConfig, study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.features import LiveFeatures, StoreFeatures
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.encoders.planted import PlantedEncoder
from fusion_workbench.study.cell_models import ProbeModels
from fusion_workbench.study.encoder_store import features_of, load_encoder
from fusion_workbench.study.language_parts import LanguageParts
from fusion_workbench.study.prepare import check_builds, prepare, prepare_data, prepare_names, prepare_space

PROBES = """
name: steps
encoder: {name: "planted:depth=4,dim=16", image_size: 8}
source: {name: planted, options: {train: 24, val: 6, test: 6}}
tasks: [digit]
strategies: [{name: deep_only}, {name: concat}]
selections: [{levels: [1], query: 3}]
baselines: false
training: {batch_size: 8}
"""
LANGUAGE = """
name: steps
encoder: {{name: "planted:depth=4,dim=16", image_size: 8}}
source: {{name: planted_questions, options: {{train: 24, val: 6, test: 6}}}}
tasks: [first]
strategies: [{{name: deep_only}}, {{name: deepstack}}]
selections: [{{levels: [1], query: 3}}]
baselines: false
training: {{batch_size: 8, projector: mlp2x_gelu}}
language_model: {{name: "{language}", stages: [{{name: align}}]}}
"""


def study(*overrides: str) -> StudyConfig:
    return study_from_yaml(PROBES, "steps.yaml", list(overrides))


@pytest.fixture
def worded(tiny_language: Path) -> Any:
    def make(*overrides: str) -> StudyConfig:
        return study_from_yaml(LANGUAGE.format(language=tiny_language), "steps.yaml", list(overrides))

    return make


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return PlantedEncoder("planted:depth=4,dim=16")


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_need_no_encoder_and_no_source() -> None:
    traits = prepare_names(study("encoder.name=nowhere/at-all", "source.name=nothing"))
    assert traits["concat"].uses_levels
    assert not traits["deep_only"].uses_levels
    assert "deepstack" not in traits


def test_names_of_a_language_model_are_more(worded: Any) -> None:
    assert {"concat", "deepstack"} <= set(prepare_names(worded()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategies[0].name=conkat", "unknown strategy 'conkat'. Did you mean 'concat'"),
        ("strategies[0].name=deepstack", "adds to the hidden states of a language model"),
        ("strategies[1].options.layer_norn=none", "Did you mean 'layer_norm'"),
        ("tasks=[classes]", "unknown task 'classes'"),
        ("training.projector=lineer", "Did you mean 'linear'"),
    ],
)
def test_names_that_are_none(override: str, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        prepare_names(study(override))


# --- encoder --------------------------------------------------------------------------------------------------------


def test_the_encoder_is_the_one_that_is_named(tiny_dinov2: Path) -> None:
    assert load_encoder(EncoderConfig("planted:depth=5", image_size=8)).depth == 5
    read = load_encoder(EncoderConfig(str(tiny_dinov2), image_size=112))
    assert (read.name, read.depth, read.image_size) == (str(tiny_dinov2), 3, 112)
    with pytest.raises(WorkbenchError, match="the embedded encoder is 'assets:encoder'"):
        load_encoder(EncoderConfig("assets:decoder"))


@pytest.mark.parametrize("live", [False, True])
def test_features_come_from_the_store_unless_they_are_live(encoder: VisionEncoder, tmp_path: Path, live: bool) -> None:
    from fusion_workbench.datamodules.build import build_source

    source = build_source("planted", {"train": 24, "val": 6, "test": 6})
    features = features_of(study(f"training.live={str(live).lower()}"), tmp_path, encoder, source)
    assert type(features) is (LiveFeatures if live else StoreFeatures)
    assert (features.store is None) == live
    assert (features.encoder, features.source) == (encoder, source)
    assert not list(tmp_path.iterdir()), "nothing is encoded yet"
    index = torch.tensor([5, 0])
    expected = encoder.encode(torch.stack([torch.from_numpy(source.image("val", i)) for i in (5, 0)]), [3, 1])
    rows = features.split("val", [3, 1]).rows(index)
    assert torch.equal(rows, expected.to(rows.dtype))


# --- space ----------------------------------------------------------------------------------------------------------


def test_the_space_is_of_the_encoder_s_layers(encoder: VisionEncoder) -> None:
    config = study()
    space = prepare_space(config, encoder, prepare_names(config))
    assert [(c.strategy, c.selection.levels, c.selection.query) for c in space.listed] == [
        ("deep_only", (), 3),
        ("concat", (1,), 3),
    ]
    shallow, wide = PlantedEncoder("planted:depth=2,signal=1+2"), study("selections=[{levels: [1], query: 3}]")
    with pytest.raises(WorkbenchError, match="out of range"):
        prepare_space(wide, shallow, prepare_names(wide))


# --- data -----------------------------------------------------------------------------------------------------------


def test_data_of_probes(encoder: VisionEncoder, tmp_path: Path) -> None:
    features, models = prepare_data(study("training.width=7"), tmp_path, encoder)
    assert isinstance(models, ProbeModels)
    assert [task.name for task in models.measured] == list(study().tasks)
    assert (models.width, models.dim, dict(models.stage_features)) == (7, 16, {})
    assert prepare_data(study(), tmp_path, encoder)[1].width == encoder.dim
    assert features.source.size("train") == 24
    assert not list(tmp_path.iterdir())


def test_data_of_a_language_model(encoder: VisionEncoder, worded: Any, tmp_path: Path) -> None:
    own = "source: {name: planted_questions, options: {train: 16, val: 6, test: 6}}"
    stages = f"language_model.stages=[{{name: align, {own}}}, {{name: tune}}]"
    features, models = prepare_data(worded(stages), tmp_path, encoder)
    assert isinstance(models, LanguageParts)
    assert [task.name for task in models.measured] == ["first"]
    assert models.width == 32
    assert models.features["tune"] is features
    assert models.features["align"].source.size("train") == 16
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source.name=plantet", "Did you mean 'planted'"),
        ("training.batch_size=25", "training.batch_size is 25, and there are 24 training examples; a batch must fit"),
        ("training.devices=4", "training.batch_size is 8 in each of 4 processes, and there are 24 training examples"),
    ],
)
def test_data_that_cannot_be_trained_on(encoder: VisionEncoder, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        prepare_data(study(override), tmp_path, encoder)


def test_data_of_another_size(tiny_dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="makes images of 8 × 8 px and the encoder reads 56 × 56 px"):
        prepare_data(study(), tmp_path, load_encoder(EncoderConfig(str(tiny_dinov2), image_size=56)))


def test_conversations_that_cannot_be_trained_on(encoder: VisionEncoder, worded: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="stage 'align': batch_size is 25, and there are 24 training examples"):
        prepare_data(worded("language_model.stages=[{name: align, batch_size: 25}]"), tmp_path, encoder)
    with pytest.raises(WorkbenchError, match="has no conversations"):
        prepare_data(worded("source.name=planted"), tmp_path, encoder)


# --- and every cell builds ------------------------------------------------------------------------------------------


def test_a_cell_that_does_not_build_is_found(encoder: VisionEncoder, tmp_path: Path) -> None:
    config = study("strategies[1]={name: mmfuser, options: {heads: 5}}")
    space = prepare_space(config, encoder, prepare_names(config))
    _, models = prepare_data(config, tmp_path, encoder)
    with pytest.raises(WorkbenchError, match="heads"):
        check_builds(space, models)


def test_layers_read_by_either_kind(worded: Any, tmp_path: Path) -> None:
    probes, language = prepare(study(), tmp_path, False), prepare(worded(), tmp_path, False)
    assert [probes.layers_read(cell) for cell in probes.space.listed] == [(3,), (1, 3)]
    assert [sorted(language.layers_read(cell)) for cell in language.space.listed] == [[3], [1, 3]]
    assert (probes.language, probes.tasks) == (None, list(probes.measured))
    assert (language.language, language.tasks) == (language.models, [])


def test_the_parts_of_language_models_import_no_prepare() -> None:
    code = (
        "import sys, fusion_workbench.study.language_parts; sys.exit('fusion_workbench.study.prepare' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
