"""No weight is made at random, and none is NaN, in anything that is loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from cases import Kind, case
from safetensors.torch import load_file, save_file
from tiny_families import MEAN, STD, TINY, save_tiny
from tiny_models import build_model, save_language
from torch import Tensor

from fusion_workbench.config.study import study_from_yaml
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.folder import CONNECTOR, LANGUAGE, check_model_weights, read_model_config, save_model
from fusion_workbench.models.loaded import load_model
from fusion_workbench.models.weights import UPDATES
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.encoders.families import FAMILIES, Family, register_family
from fusion_workbench.modules.language.decoder import Decoder, LoraOptions
from fusion_workbench.study.prepare import prepare

WEIGHTS = "model.safetensors"
STUDY = """
name: whole
question: Is the language model whole?
encoder: {{name: {encoder}, image_size: 112, precision: float32}}
source: {{name: finescenes_questions, options: {{train: 8, val: 4, test: 4}}}}
tasks: [position]
strategies: [{{name: concat}}]
selections: [{{levels: [1, 2]}}]
training: {{batch_size: 4, projector: mlp2x_gelu}}
language_model: {{name: {language}, weights: float32, max_length: 512}}
"""
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def changed(folder: Path, to: Path, change: Change, file: str = WEIGHTS) -> Path:
    """A copy of a folder with other weights."""
    shutil.copytree(folder, to)
    save_file(change(load_file(to / file)), to / file, metadata={"format": "pt"})
    return to


def described(folder: Path, **changes: object) -> Path:
    """The same folder with another config."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def without(pattern: str) -> Change:
    return lambda weights: {name: value for name, value in weights.items() if not re.search(pattern, name)}


def with_value(name: str, value: float) -> Change:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        spoilt = weights[name].clone()
        spoilt.flatten()[-1] = value
        return weights | {name: spoilt}

    return change


def under(prefix: str) -> Change:
    return lambda weights: {f"{prefix}{name}": value for name, value in weights.items()}


def load(folder: Path) -> VisionEncoder:
    return VisionEncoder(str(folder), image_size=56, precision="float32")


def loaded(folder: Path) -> tuple[VisionEncoder | None, str]:
    try:
        return load(folder), ""
    except WorkbenchError as error:
        return None, str(error)


def refused(folder: Path, *words: str, loads: Callable[[Path], object] = load) -> None:
    """In one line that names the folder and holds each of ``words``."""
    with pytest.raises(WorkbenchError) as caught:
        loads(folder)
    said = str(caught.value)
    assert "\n" not in said
    for word in (str(folder), *words):
        assert word in said, said


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("clip_vision_model", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("llama"))


# --- an encoder's -----------------------------------------------------------------------------------------------


@case(
    Kind.WEIGHTS,
    "an encoder's weights stand under vision_tower.vision_tower., as cut out of a LLaVA checkpoint",
    "refused; names the folder, the first missing weight, and the prefix to take off",
    "thunlp/LLaVA-UHD#27",
    "PKU-YuanGroup/Chat-UniVi#64",
    "haotian-liu/LLaVA#382",
)
def test_a_tower_cut_out_of_a_larger_model(clip: Path, tmp_path: Path) -> None:
    renamed = changed(clip, tmp_path / "renamed", under("vision_tower.vision_tower."))
    prefix = "under the prefix 'vision_tower.vision_tower.'"
    refused(renamed, "lack embeddings.class_embedding", "55 of 55 are missing", prefix)
    # once the prefix is off, it is the encoder that it was cut from
    right = changed(
        renamed, tmp_path / "right", lambda w: {n.removeprefix("vision_tower." * 2): v for n, v in w.items()}
    )
    assert load(right).fingerprint == load(clip).fingerprint


@case(
    Kind.WEIGHTS,
    "the weights of one block, or of a block's mlp, are not in an encoder's file",
    "refused; names the first missing weight and how many",
    "huggingface/transformers#36845",
)
def test_a_block_that_is_not_there(clip: Path, tmp_path: Path) -> None:
    block = changed(clip, tmp_path / "block", without(r"layers\.1\."))
    refused(block, "lack encoder.layers.1.self_attn.", "16 of 55 are missing", "not whole")
    mlp = changed(clip, tmp_path / "mlp", without(r"layers\.2\.mlp\."))
    refused(mlp, "lack encoder.layers.2.mlp.fc1.weight", "4 of 55 are missing")
    one = changed(clip, tmp_path / "one", without(r"^pre_layrnorm\.bias$"))
    refused(one, "lack pre_layrnorm.bias, which")


@case(
    Kind.WEIGHTS,
    "an encoder's config.json names more blocks than its file has",
    "refused; says how many blocks either has",
)
def test_more_blocks_than_weights(clip: Path, tmp_path: Path) -> None:
    deeper = described(shutil.copytree(clip, tmp_path / "deeper"), num_hidden_layers=5)
    refused(deeper, "config.json says 5 blocks, and the weights hold 3")


@case(
    Kind.WEIGHTS,
    "an encoder's file holds weights of another model altogether, or a single tensor",
    "refused; says that none of its names is there, and the first that is",
)
def test_another_model(clip: Path, tmp_path: Path) -> None:
    other = changed(clip, tmp_path / "other", lambda w: {f"x{n}.w": v for n, v in enumerate(w.values())})
    refused(other, "None of its 55 names is there; the first there is x0.w")
    single = changed(clip, tmp_path / "single", lambda _: {"x": torch.zeros(1)})
    refused(single, "says 3 blocks, and its weights hold 1 tensors")


@case(
    Kind.WEIGHTS,
    "an encoder's weights have other shapes than its config.json says, or biases that it says it has none of",
    "refused; names the first such weight and both shapes",
)
def test_weights_and_config_of_different_models(clip: Path, tmp_path: Path) -> None:
    wider = described(shutil.copytree(clip, tmp_path / "wider"), intermediate_size=100)
    refused(wider, "encoder.layers.0.mlp.fc1.weight as [64, 32]", "it is [100, 32]")
    dino = save_tiny("dinov2", tmp_path / "dino")
    refused(described(dino, qkv_bias=False), "bias", "has none there, so it would be left out")


@case(
    Kind.WEIGHTS,
    "a shard of an encoder's weights holds less than its index says",
    "refused; names the first missing weight",
)
def test_shards(clip: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(clip, tmp_path / "shards")
    (shards / WEIGHTS).unlink()
    transformers.CLIPVisionModel.from_pretrained(clip).save_pretrained(shards, max_shard_size="60KB")
    files = sorted(shards.glob("model-*.safetensors"))
    assert len(files) > 2
    assert load(shards).fingerprint == load(clip).fingerprint
    save_file(without(r"layers\.1\.mlp")(load_file(files[1])), files[1], metadata={"format": "pt"})
    refused(shards, "lack encoder.layers.1.mlp.fc1.")


@case(
    Kind.WEIGHTS,
    "any one weight is missing from a model of any family of encoders",
    "refused where a hidden state depends on it; else loaded, with the hidden states of the whole model",
)
@pytest.mark.parametrize("family", TINY)
def test_what_nobody_reads_may_be_missing(family: str, tmp_path: Path) -> None:
    whole = save_tiny(family, tmp_path / "whole")
    names = list(load_file(whole / WEIGHTS))
    images = np.random.RandomState(0).randint(0, 256, (1, 56, 56, 3), dtype=np.uint8)
    states = load(whole).encode(images, range(4))
    outside = [name for name in names if not re.search(r"\.[012]\.", name)]
    inside = next(name for name in names if re.search(r"\.1\.", name))
    read = 0
    for place, name in enumerate([*outside, inside]):
        part = changed(whole, tmp_path / str(place), without(f"^{re.escape(name)}$"))
        encoder, error = loaded(part)
        if encoder is None:
            assert re.search(r"its weights lack \S+, which would be made at random", error), (name, error)
            read += 1
            continue
        assert name != inside
        assert torch.equal(encoder.encode(images, range(4)), states), name
        assert load(part).fingerprint == encoder.fingerprint, name
    assert read > 2  # embeddings, and the block's


@case(
    Kind.WEIGHTS,
    "a checkpoint that was trained for another end has no pooler, as google/vit-base-patch16-224",
    "loaded; the folder has the same fingerprint each time, since nothing in it is random",
)
def test_the_same_folder_is_the_same_encoder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=56, patch_size=14, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    numbers = {"image_processor_type": "BitImageProcessor", "image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(numbers))
    assert not any("pooler" in name for name in load_file(tmp_path / WEIGHTS))
    assert load(tmp_path).fingerprint == load(tmp_path).fingerprint


@case(
    Kind.WEIGHTS,
    "a weight of an encoder is NaN or infinite, or too large for float32",
    "refused, and named, where a hidden state depends on it",
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_numbers_in_an_encoder(value: float, clip: Path, tmp_path: Path) -> None:
    name = "encoder.layers.2.mlp.fc1.bias"
    refused(changed(clip, tmp_path / "a", with_value(name, value)), f"{name} holds NaN or infinite values")
    # a norm behind the last block is CLIP's for its pooled token, which nobody reads here
    load(changed(clip, tmp_path / "b", with_value("post_layernorm.weight", value)))
    huge = changed(clip, tmp_path / "c", lambda w: w | {name: torch.full_like(w[name], 1e300, dtype=torch.float64)})
    refused(huge, f"{name} holds NaN or infinite values")


@case(
    Kind.WEIGHTS,
    "the row of a family of one's own names blocks, a part or a class that the model does not have",
    "refused; names the path, and the lists of blocks that the model has",
)
@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            Family("CLIPVisionModel", "encoder.block"),
            "no list of blocks 'encoder.block'; its lists of blocks: encoder.layers",
        ),
        (Family("CLIPVisionModel", "encoder"), "no list of blocks 'encoder'"),
        (Family("CLIPVisionModel", "encoder.layers", tower="nowhere"), "no part 'nowhere'"),
        (Family("CLIPVisionModels", "encoder.layers"), "names the class CLIPVisionModels, which transformers"),
        (Family("CLIPVisionModel", "encoder.layers", prefix_tokens=lambda config: config.none), "prefix_tokens"),
    ],
)
def test_a_row_that_does_not_fit(row: Family, says: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAMILIES, "_members", FAMILIES._members.copy())
    register_family("clip_vision_model", row, replace=True)
    refused(clip, says)


# --- a language model's -----------------------------------------------------------------------------------------


def load_language(folder: Path) -> Decoder:
    return Decoder.load(str(folder), precision="float32")


@case(
    Kind.WEIGHTS,
    "a language model lacks a block, stands under language_model., or has no head that it says is its own",
    "refused; names the folder, the first missing weight, and the prefix where there is one; tied heads are no loss",
    "haotian-liu/LLaVA#808",
    "haotian-liu/LLaVA#382",
)
def test_a_language_model_that_is_not_whole(language: Path, tmp_path: Path) -> None:
    assert "lm_head.weight" not in load_file(language / WEIGHTS)  # tied
    one, two = (load_language(language).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    partial = changed(language, tmp_path / "partial", without(r"layers\.1\."))
    refused(partial, "lack model.layers.1.self_attn.q_proj.weight", "9 of 30", loads=load_language)
    renamed = changed(language, tmp_path / "renamed", under("language_model."))
    refused(renamed, "lack model.embed_tokens.weight", "prefix 'language_model.'", loads=load_language)
    untied = described(shutil.copytree(language, tmp_path / "untied"), tie_word_embeddings=False)
    refused(untied, "lack lm_head.weight, which", loads=load_language)


@case(
    Kind.WEIGHTS,
    "a study names a language model whose weights are not whole",
    "refused before anything is encoded or trained, from names and shapes alone",
)
def test_a_study_refuses_it_before_any_work(language: Path, tiny_dinov2: Path, tmp_path: Path) -> None:
    partial = changed(language, tmp_path / "partial", without(r"layers\.1\.mlp"))
    study = study_from_yaml(STUDY.format(encoder=tiny_dinov2, language=partial), "tiny.yaml")
    refused(
        partial,
        "lack model.layers.1.mlp.gate_proj.weight",
        loads=lambda _: prepare(study, tmp_path / "workspace", progress=False),
    )


@case(Kind.WEIGHTS, "a weight of a language model is NaN or infinite", "refused, and named")
def test_no_numbers_in_a_language_model(language: Path, tmp_path: Path) -> None:
    for place, (name, value) in enumerate((("model.norm.weight", np.inf), ("model.embed_tokens.weight", np.nan))):
        spoilt = changed(language, tmp_path / str(place), with_value(name, value))
        refused(spoilt, f"{name} holds NaN or infinite values", loads=load_language)


# --- a whole model's --------------------------------------------------------------------------------------------


@case(
    Kind.WEIGHTS,
    "weights of a model folder are NaN, missing, or too many: its connector's, its LoRA's, its language model's",
    "refused; names the file and the first such weight",
)
@pytest.mark.parametrize("kept", ["lora", "own"])
def test_a_model_folder(kept: str, clip: Path, language: Path, tmp_path: Path) -> None:
    model, encoder, info = build_model(clip, language)
    if kept == "lora":
        model.decoder.add_lora(LoraOptions(rank=2, alpha=4, dropout=0.0))
    whole = tmp_path / "whole"
    save_model(model, whole, encoder, type(info)(**{**vars(info), "kept": kept}))
    file = f"{LANGUAGE}/{UPDATES if kept == 'lora' else WEIGHTS}"
    load_model(whole, "cpu")
    numbers = "holds NaN or infinite values"
    for place, (name, change, says) in enumerate(
        (
            (CONNECTOR, with_value("projector.map.0.weight", np.nan), numbers),
            (CONNECTOR, without(r"map\.2\.bias"), "lacks projector.map.2.bias"),
            (CONNECTOR, lambda w: w | {"more": torch.ones(1)}, "holds more"),
            (file, lambda w: {n: torch.full_like(v, np.nan) for n, v in w.items()}, numbers),
            (file, without(r"layers\.1\.self_attn\.q_proj"), "layers.1.self_attn.q_proj"),
        )
    ):
        spoilt = changed(whole, tmp_path / str(place), change, name)
        refused(spoilt, says, loads=lambda folder: load_model(folder, "cpu"))
        if name == CONNECTOR or says == numbers:  # an export copies such a folder
            refused(spoilt, says, loads=lambda folder: check_model_weights(folder, read_model_config(folder)))


@case(
    Kind.WEIGHTS,
    "language_model.name is a folder of LoRA updates beside a config.json",
    "refused; says to merge them into their model first",
)
def test_updates_alone_are_no_language_model(language: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = transformers.AutoModelForCausalLM.from_pretrained(language)
    adapter = shutil.copytree(language, tmp_path / "adapter")
    (adapter / WEIGHTS).unlink()
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(adapter)
    refused(adapter, "is the adapter of another model", loads=load_language)
