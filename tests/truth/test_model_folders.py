"""Folders of models whose config cannot be right: one line, before memory is taken."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from cases import Kind, case
from rich.console import Console
from tiny_families import MEAN, save_tiny
from tiny_models import build_model, save_language
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.connector import CONFIG, WEIGHTS, load_connector
from fusion_workbench.models.connector_files import read_connector_file
from fusion_workbench.models.export import export_run
from fusion_workbench.models.folder import read_model_config, save_model
from fusion_workbench.models.loaded import load_model
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.runner.experiment import Experiment
from fusion_workbench.schema.names import Artifact, Tag
from fusion_workbench.study.prepare import prepare
from fusion_workbench.study.progress import Display

MISSING = object()
PREPROCESSOR = "preprocessor_config.json"


def load_encoder(folder: Path) -> VisionEncoder:
    return VisionEncoder(str(folder), image_size=0, precision="float32")


def refused(folder: Path, *words: str, loads: Callable[[Path], object] = load_encoder) -> None:
    with pytest.raises(WorkbenchError) as caught:
        loads(folder)
    said = str(caught.value)
    assert "\n" not in said
    for word in words:
        assert word in said, said


def spoil(file: Path, path: str, value: object) -> None:
    """Put a value, or nothing, at a dotted path of a JSON file."""
    content = json.loads(file.read_text())
    *tables, key = path.split(".")
    table = content
    for name in tables:
        table = table[name]
    if value is MISSING:
        del table[key]
    else:
        table[key] = value
    file.write_text(json.dumps(content))


# --- transformers' folders --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("clip_vision_model", tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "clip"))


@case(
    Kind.INPUT,
    "an encoder's config.json counts blocks, channels, patches or pixels by 0, a word, null, or by far too much",
    "refused with the key and the value, before memory is taken",
)
@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_hidden_layers", 0, "says num_hidden_layers 0; it must be a whole number above 0"),
        ("num_hidden_layers", "twelve", "says num_hidden_layers 'twelve'"),
        ("num_hidden_layers", 10**7, "says 10,000,000 blocks; no model has more than 10,000"),
        ("num_hidden_layers", 9_000, "says 9,000 blocks, and its weights hold 55 tensors"),
        ("patch_size", 0, "says patch_size 0"),
        ("patch_size", [14, 7], "patch_size: its config.json says [14, 7] where only squares are read"),
        ("hidden_size", None, "hidden_size"),
        ("hidden_size", 10**6, "describes a model of 12,001,021,000,192 parameters, and its weights hold 45,152"),
        ("intermediate_size", 10**9, "describes a model of 195,000,032,672 parameters"),
        ("num_attention_heads", 0, "says num_attention_heads 0"),
        ("image_size", "x", "says image_size 'x'"),
        ("image_size", [56, 28], "says [56, 28] where only squares are read; name encoder.image_size"),
        ("layer_norm_eps", float("nan"), "says layer_norm_eps nan"),
        ("hidden_act", "nothing", "makes no model (KeyError: 'nothing')"),
    ],
)
def test_numbers_that_no_encoder_has(key: str, value: object, says: str, clip: Path) -> None:
    spoil(clip / "config.json", key, value)
    refused(clip, str(clip), says)


@case(Kind.INPUT, "config.json of an encoder is cut, empty, a list, a word or nested 5,000 deep", "refused in one line")
@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"words"', "{}", "[" * 5_000])
def test_a_config_that_is_none(text: str, clip: Path) -> None:
    (clip / "config.json").write_text(text)
    refused(clip, str(clip), "config.json")


@case(
    Kind.INPUT,
    "preprocessor_config.json holds a list, words, one channel, NaN, or divides by an image_std of 0",
    "refused in one line: features would be of pixels at an unknown scale",
)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "holds no names with values"),
        ("words", "holds no names with values"),
        ({"image_mean": MEAN, "image_std": [0, 0, 0]}, "image_std [0.0, 0.0, 0.0]"),
        ({"image_mean": MEAN, "image_std": "0.5"}, "image_std is not a list of three"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "image_mean is not a list of three"),
        ({"image_mean": [0.5, 0.5, float("nan")], "image_std": MEAN}, "image_mean is not finite"),
        ({"image_mean": MEAN, "image_std": MEAN, "rescale_factor": 0}, "rescale_factor 0"),
        ({"image_mean": MEAN, "image_std": MEAN, "rescale_factor": "x"}, "could not convert"),
    ],
)
def test_a_scale_that_is_none(content: object, says: str, clip: Path) -> None:
    (clip / PREPROCESSOR).write_text(json.dumps(content))
    refused(clip, str(clip), PREPROCESSOR, says)


@case(
    Kind.INPUT,
    "encoder.name is a checkpoint of timm, such as a Perception Encoder",
    "refused; says that it is timm's, and what is read instead",
    "facebookresearch/perception_models#13",
    "huggingface/transformers#37878",
)
@pytest.mark.parametrize("kind", [{"model_type": "timm_wrapper"}, {}])
def test_a_checkpoint_of_timm(kind: dict[str, str], tmp_path: Path) -> None:
    architecture = {"architecture": "vit_pe_core_large_patch14_336", "pretrained_cfg": {"input_size": [3, 336, 336]}}
    (tmp_path / "config.json").write_text(json.dumps(kind | architecture))
    refused(tmp_path, "is a checkpoint of timm ('vit_pe_core_large_patch14_336')", "layers --families")


@case(
    Kind.INPUT,
    "config.json of a language model counts blocks or channels by 0, a word, or by far too much",
    "refused with the key and the value, before memory is taken",
)
def test_numbers_that_no_language_model_has(tmp_path: Path) -> None:
    folder = save_language(tmp_path / "llama")
    before = (folder / "config.json").read_text()
    for key, value, says in (
        ("num_hidden_layers", 0, "says num_hidden_layers 0"),
        ("num_hidden_layers", 10**7, "says 10,000,000 blocks"),
        ("hidden_size", "wide", "says hidden_size 'wide'"),
        ("vocab_size", 10**10, "and its weights hold 30,176"),
    ):
        (folder / "config.json").write_text(before)
        spoil(folder / "config.json", key, value)
        refused(folder, str(folder), says, loads=lambda path: Decoder.load(str(path), precision="float32"))


# --- connector files --------------------------------------------------------------------------------------------


def connector_file(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save(weights, path)
    return path


def published(prefix: str) -> dict[str, Tensor]:
    shapes = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (8, 8), "2.bias": (8,)}
    generator = torch.Generator().manual_seed(0)
    return {f"{prefix}{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@case(
    Kind.INPUT,
    "a connector file of TinyLLaVA, Prismatic or others: its weights under _connector., projector. or no prefix",
    "read, the same weights under any prefix",
)
@pytest.mark.parametrize(
    "prefix",
    ["", "_connector.", "connector._connector.", "projector.", "model.mm_projector.", "module.0.mm_projector."],
)
def test_any_prefix(prefix: str, tmp_path: Path) -> None:
    found = read_connector_file(connector_file(tmp_path / "in.bin", published(prefix)))
    assert (found.kind, found.prefix, found.in_dim, found.width) == ("mlp2x_gelu", prefix, 6, 8)
    assert torch.equal(found.projector["map.2.weight"], published("")["2.weight"])
    line = {f"{prefix}weight": torch.ones(8, 6), f"{prefix}bias": torch.ones(8)}
    found = read_connector_file(connector_file(tmp_path / "in.bin", line))
    assert (found.kind, found.prefix, found.in_dim, found.width) == ("linear", prefix, 6, 8)


@case(
    Kind.INPUT,
    "a connector file holds weights under two prefixes, half a connector, or values that are no numbers",
    "refused; names the prefixes, or the weight",
)
def test_connector_files_that_are_not_whole(tmp_path: Path) -> None:
    file = tmp_path / "in.bin"
    two = published("connector.") | published("projector.")
    connector_file(file, two)
    refused(file, "more than a connector (weights under 'connector.' and 'projector.')", loads=read_connector_file)
    half = {name: value for name, value in published("_connector.").items() if ".0." not in name}
    connector_file(file, half)
    refused(file, "lacks _connector.0.bias", loads=read_connector_file)
    connector_file(file, published("_connector.") | {"_connector.2.bias": torch.full((8,), torch.nan)})
    refused(file, "_connector.2.bias holds NaN or infinite values", loads=read_connector_file)


# --- the workbench's own ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """A finished study on a planted encoder: MLflow, the run of a cell, and the run's artifacts.

    Without checksums, as 0.1.0 wrote it: with them it is refused before anybody looks what is in the files.
    """
    from mlflow.tracking import MlflowClient

    from fusion_workbench.config.study import load_study

    few = ["source.options.train=32", "training.epochs=1", "replicates=1", "single_layers=[]", "plan.confirm=[]"]
    pair = ["space=null", "selections=[{levels: [1, 3]}]", "baselines=false"]
    folder = tmp_path_factory.mktemp("study")
    parts = prepare(load_study("planted", [*few, *pair]), folder, progress=False)
    result = Experiment(parts, Display(Console(file=io.StringIO()), progress=False)).run()
    client = MlflowClient(tracking_uri=result.tracking_uri)
    experiment = client.get_run(result.run_id).info.experiment_id
    run = client.search_runs([experiment], "tags.`workbench.phase` = 'final'")[0].info
    for tag in [tag for tag in client.get_run(run.run_id).data.tags if tag.startswith(Tag.SHA256)]:
        client.delete_tag(run.run_id, tag)
    return result.tracking_uri, run.run_id, Path(run.artifact_uri.removeprefix("file://"))


@case(
    Kind.INPUT,
    "fuser/config.json of a run without checksums is cut, {}, [], or lacks what a connector is built from",
    "workbench export refuses, naming the file, the run and the first value; no folder is left",
)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "lacks strategy, which is a name"),
        ("[]", "holds a list where names and their values should be"),
        ('{"strategy": 5}', "strategy is '5'; it must be a name"),
    ],
)
def test_an_export_of_a_damaged_config(text: str, says: str, study: tuple[str, str, Path], tmp_path: Path) -> None:
    uri, run, artifacts = study
    file = artifacts / Artifact.FUSER_CONFIG
    before = file.read_bytes()
    try:
        file.write_text(text)
        refused(tmp_path / "it", Artifact.FUSER_CONFIG, run, says, loads=lambda out: export_run(uri, run, out))
    finally:
        file.write_bytes(before)
    assert not list(tmp_path.iterdir())


@case(
    Kind.WEIGHTS,
    "weights that a run without checksums keeps are NaN, or not those of its fuser, projector and heads",
    "workbench export and load_connector refuse, naming the file and the first such weight",
)
def test_an_export_of_damaged_weights(study: tuple[str, str, Path], tmp_path: Path) -> None:
    uri, run, artifacts = study
    file = artifacts / Artifact.FUSER
    before = file.read_bytes()
    whole = safetensors.torch.load(before)
    exported = export_run(uri, run, tmp_path / "whole").folder
    load_connector(exported)
    head = next(name for name in whole if name.startswith("heads."))
    mapped = next(name for name in whole if name.startswith("projector."))
    some = {
        "holds NaN or infinite values": {name: torch.full_like(value, np.nan) for name, value in whole.items()},
        f"{head} holds NaN": whole | {head: torch.full_like(whole[head], np.inf)},
        f"projector lacks {mapped.removeprefix('projector.')}": {n: v for n, v in whole.items() if n != mapped},
        "it holds more.weight, which is neither": whole | {"more.weight": torch.ones(1)},
    }
    try:
        for says, weights in some.items():
            file.write_bytes(safetensors.torch.save(weights))
            refused(tmp_path / "it", run, says, loads=lambda out: export_run(uri, run, out))
            if "heads" not in says:
                own = {name: value for name, value in weights.items() if not name.startswith("heads.")}
                safetensors.torch.save_file(own, exported / WEIGHTS)
                refused(exported, str(exported), says, loads=load_connector)
    finally:
        file.write_bytes(before)


@case(
    Kind.INPUT,
    "config.json of an exported connector or of a model folder lacks its encoder, or holds words for numbers",
    "refused; names the file, the key and what it must be",
)
def test_own_folders(study: tuple[str, str, Path], whole: Path, tmp_path: Path) -> None:
    uri, run, _ = study
    exported = export_run(uri, run, tmp_path / "connector").folder
    model, encoder, info = build_model(whole, save_language(tmp_path / "llama"))
    save_model(model, tmp_path / "model", encoder, info)
    encoders: list[tuple[str, object, str]] = [
        ("encoder", MISSING, "lacks encoder, which is names and their values"),
        ("encoder", [], "encoder is '[]'; it must be names and their values"),
        ("encoder.image_size", "x", "encoder.image_size is 'x'; it must be a number of pixels, or height"),
        ("encoder.fingerprint", MISSING, "lacks encoder.fingerprint"),
        ("encoder.dim", -1, "encoder.dim is '-1'"),
    ]
    own: list[tuple[Path, Callable[[Path], Any], list[tuple[str, object, str]]]] = [
        (
            exported,
            load_connector,
            [
                ("width", 10**9, "does not fit"),
                ("levels", [99], "layer 99 is out of range"),
                ("options", None, "options"),
            ],
        ),
        (
            tmp_path / "model",
            lambda folder: load_model(folder, "cpu"),
            [
                ("adapter.width", 10**9, "adapter.safetensors: projector.map.0."),
                ("adapter.query", 99, "layer 99 is out of range"),
                ("language.kept", "some", "language.kept is 'some'; it must be named, lora or own"),
                ("chat.max_length", "long", "chat.max_length"),
                ("images.background", [1, 2], "images.background"),
                ("adapter", 5, "adapter is '5'"),
            ],
        ),
    ]
    for folder, loads, more in own:
        before = (folder / CONFIG).read_text()
        loads(folder)
        for path, value, says in (*encoders, *more):
            (folder / CONFIG).write_text(before)
            spoil(folder / CONFIG, path, value)
            refused(folder, str(folder), says, loads=loads)
        (folder / CONFIG).write_text(before)
    assert read_model_config(tmp_path / "model")["encoder"]["fingerprint"] == encoder.fingerprint
