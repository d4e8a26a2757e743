"""Contract 5: every notation reads the same tensors, and prefix tokens come from the config, for each family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_families import MEAN, STD, TINY, save_tiny

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import notations, parse_layer
from fusion_workbench.modules.encoders.description import describe, height_width
from fusion_workbench.modules.encoders.encoder import VisionEncoder, resolve_precision
from fusion_workbench.modules.encoders.families import FAMILIES, Family, patch_sequence, read, register_family
from fusion_workbench.modules.encoders.loading import read_config


@pytest.fixture(scope="module", params=sorted(TINY))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_tiny(request.param, tmp_path_factory.mktemp(request.param))


def images(count: int = 2, size: int = 56) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_states_are_transformers_own_without_prefix(family: tuple[str, Path]) -> None:
    name, folder = family
    encoder = VisionEncoder(str(folder), image_size=56, precision="float32")
    prefix = TINY[name].prefix
    assert encoder.prefix_tokens == prefix
    assert encoder.grid() == (4, 4)
    pixels = encoder.normalise(images())
    expected = (torch.as_tensor(images()) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(pixels, expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        inputs = patch_sequence(pixels, 14) if name == "siglip2_vision_model" else {"pixel_values": pixels}
        plain = encoder.model(**inputs, output_hidden_states=True).hidden_states
    every = encoder.encode(images(), range(4))
    assert every.shape == (4, 2, 16, 32)
    for layer in range(4):
        assert torch.equal(every[layer], plain[layer][:, prefix:])


def test_the_config_tells_what_the_loaded_model_does(family: tuple[str, Path]) -> None:
    folder = str(family[1])
    told = describe(folder, read_config(folder, None), 84, None).info()
    known = VisionEncoder(folder, image_size=84, precision="float32").encoder_info()
    assert {key: known.pop(key) for key in told} == told
    assert set(known) == {"precision", "parameters", "fingerprint"}


def test_every_notation_reads_the_same_tensors(family: tuple[str, Path]) -> None:
    encoder = VisionEncoder(str(family[1]), image_size=56, precision="float32")
    for layer in range(encoder.depth + 1):
        wanted = encoder.encode(images(), [layer])
        for notation in notations(layer, encoder.depth).values():
            if notation != "—":
                assert torch.equal(encoder.encode(images(), [parse_layer(notation, encoder.depth)]), wanted), notation


def test_layers_come_in_the_order_asked(family: tuple[str, Path]) -> None:
    encoder = VisionEncoder(str(family[1]), image_size=56, precision="float32")
    swapped = encoder.encode(images(), [3, 1])
    assert torch.equal(swapped, encoder.encode(images(), [1, 3]).flip(0))


@pytest.mark.parametrize(("size", "grid"), [(84, (6, 6)), ([56, 84], (4, 6)), ([84, 28], (6, 2))])
def test_other_sizes_and_rectangles_interpolate(
    family: tuple[str, Path], size: int | list[int], grid: tuple[int, int]
) -> None:
    encoder = VisionEncoder(str(family[1]), image_size=size, precision="float32")
    height, width = height_width(encoder.image_size)
    assert encoder.grid() == grid
    picture = np.random.RandomState(0).randint(0, 256, (2, height, width, 3), dtype=np.uint8)
    states = encoder.encode(picture, [0, 3])
    assert states.shape == (2, 2, grid[0] * grid[1], 32)
    assert states.isfinite().all()
    encoder_info = encoder.encoder_info()
    assert (encoder_info["grid"], encoder_info["image_size"]) == (list(grid), size)


def test_rows_are_rows(family: tuple[str, Path]) -> None:
    """A change in one patch moves that patch's embedding, row by row, in a rectangle too."""
    encoder = VisionEncoder(str(family[1]), image_size=[28, 56], precision="float32")
    plain = np.zeros((1, 28, 56, 3), np.uint8)
    marked = plain.copy()
    marked[:, 14:28, 28:42] = 255  # row 1, column 2
    moved = (encoder.encode(marked, [0]) - encoder.encode(plain, [0])).abs().amax((0, 1, 3))
    assert int(moved.argmax()) == 1 * 4 + 2
    assert int((moved > 1e-4).sum()) == 1


def test_deeper_blocks_do_not_run_and_nothing_else_changes(family: tuple[str, Path]) -> None:
    encoder = VisionEncoder(str(family[1]), image_size=56, precision="float32")
    ran: list[int] = []
    blocks = encoder.model.get_submodule(encoder.family.blocks)
    for number, block in enumerate(blocks, 1):  # type: ignore[arg-type]
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    every = encoder.encode(images(), range(4))
    assert ran == [1, 2, 3]
    for deepest, expected in ((0, [1]), (1, [1]), (2, [1, 2]), (3, [1, 2, 3])):
        ran.clear()
        assert torch.equal(encoder.encode(images(), [deepest]), every[[deepest]])
        assert ran == expected, "hooks come before ours, so block 1 is seen even where it is not run"
    assert torch.equal(encoder.encode(images(), range(4)), every), "all blocks are there again"


def test_frozen_and_in_eval_mode(tiny_dinov2: Path) -> None:
    encoder = VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32")
    encoder.train()
    assert not encoder.training
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_fingerprint_follows_weights_size_and_precision(tiny_dinov2: Path, tiny_clip: Path) -> None:
    def fingerprint(folder: Path, **options: object) -> str:
        return VisionEncoder(str(folder), **{"image_size": 56, "precision": "float32", **options}).fingerprint  # type: ignore[arg-type]

    assert fingerprint(tiny_dinov2) == fingerprint(tiny_dinov2)
    others = {
        fingerprint(tiny_dinov2, image_size=84),
        fingerprint(tiny_dinov2, precision="bf16"),
        fingerprint(tiny_clip),
    }
    assert len(others | {fingerprint(tiny_dinov2)}) == 4


def test_bf16_autocast_stays_near_float32(tiny_dinov2: Path) -> None:
    exact = VisionEncoder(str(tiny_dinov2), image_size=56, precision="float32").encode(images(), [3]).float()
    half = VisionEncoder(str(tiny_dinov2), image_size=56, precision="bf16").encode(images(), [3]).float()
    assert 0 < float((half - exact).norm() / exact.norm()) < 0.02


def test_precision_is_what_was_asked_for() -> None:
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("auto", "cpu") in ("float32", "bf16")


def test_errors_are_one_clear_line(tmp_path: Path, tiny_dinov2: Path) -> None:
    with pytest.raises(WorkbenchError, match="neither a transformers folder nor a model"):
        VisionEncoder(str(tmp_path / "nowhere"), image_size=56)
    with pytest.raises(WorkbenchError, match=r"holds no config\.json"):
        VisionEncoder(str(tmp_path), image_size=56)
    with pytest.raises(WorkbenchError, match="multiple of 14, such as 56"):
        VisionEncoder(str(tiny_dinov2), image_size=60)
    bert = tmp_path / "bert"
    transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    ).save_pretrained(bert)
    with pytest.raises(WorkbenchError, match=r"family 'bert', which is not known.*fails as a vision encoder"):
        VisionEncoder(str(bert), image_size=56)
    torn = tmp_path / "torn"
    torn.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (torn / name).write_bytes((tiny_dinov2 / name).read_bytes())
    (torn / "model.safetensors").write_bytes((tiny_dinov2 / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(WorkbenchError, match="could not be loaded from safetensors"):
        VisionEncoder(str(torn), image_size=56)


def test_the_table_names_classes_that_exist() -> None:
    for row in FAMILIES.values():
        assert hasattr(transformers, row.model_class)


def test_every_row_is_held_here() -> None:
    """By a tiny model of its class, vision or sound."""
    held = {row.model for row in TINY.values()} | {"WhisperModel", "Wav2Vec2Model"}
    assert {row.model_class for row in FAMILIES.values()} == held


def test_an_unknown_family_is_probed_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.ViTMSNConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=56, patch_size=14
    )
    transformers.ViTMSNModel(config).save_pretrained(tmp_path)
    numbers = {"image_processor_type": "BitImageProcessor", "image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(numbers))
    with pytest.raises(WorkbenchError) as caught:
        VisionEncoder(str(tmp_path), image_size=56)
    said = str(caught.value)
    assert "\n" not in said
    assert "ViTMSNModel gives 4 hidden states of 17 tokens for 16 patches, so 1 prefix tokens" in said
    row = said[said.index("Family('") : said.rindex(")")]
    monkeypatch.setattr(FAMILIES, "_members", FAMILIES._members.copy())
    register_family("vit_msn", eval(row, {"Family": Family}))  # what the message says to paste
    assert VisionEncoder(str(tmp_path), image_size=84).encode(images(size=84), [3]).shape == (1, 2, 36, 32)


def test_sound_is_read_as_a_grid_of_one_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    tokens = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    depth = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "num_mel_bins": 8, "max_source_positions": 20}
    whisper = transformers.WhisperModel(transformers.WhisperConfig(**depth, **heads, **tokens)).eval()
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0}
    wav2vec = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**size, **convolutions, **places)).eval()
    cases = [
        (whisper, "whisper", {"input_features": torch.randn(2, 8, 40)}, whisper.encoder),
        (wav2vec, "wav2vec2", {"input_values": torch.randn(2, 400)}, wav2vec),
    ]
    for model, name, inputs, tower in cases:
        with torch.inference_mode():
            plain = tower(**inputs, output_hidden_states=True).hidden_states
            for layers in ([0], [1, 2], [3, 0]):
                found = read(model, FAMILIES[name], inputs, layers, prefix=0)
                assert torch.equal(found, torch.stack([plain[layer] for layer in layers])), (name, layers)
    whisper.save_pretrained(tmp_path)
    with pytest.raises(WorkbenchError, match=r"moments of sound.*no source of sound yet"):
        VisionEncoder(str(tmp_path), image_size=56)


@pytest.mark.parametrize(
    ("facts", "scale", "shift"),
    [
        ({}, [1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]),
        ({"do_normalize": False}, [1 / 255] * 3, [0.0] * 3),
        ({"do_normalize": False, "do_rescale": False}, [1.0] * 3, [0.0] * 3),
        (
            {"rescale_factor": 1 / 127.5},
            [1 / (127.5 * s) for s in STD],
            [-m / s for m, s in zip(MEAN, STD, strict=True)],
        ),
    ],
)
def test_preprocessing_is_the_models_own(
    tmp_path: Path, facts: dict[str, object], scale: list[float], shift: list[float]
) -> None:
    encoder = VisionEncoder(str(save_tiny("vit", tmp_path, **facts)), image_size=56, precision="float32")
    expected = torch.as_tensor(images()).float() * torch.tensor(scale) + torch.tensor(shift)
    torch.testing.assert_close(encoder.normalise(images()), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-4)


def test_a_hub_name_is_resolved_to_its_commit(tmp_path: Path) -> None:
    """In the cache's own layout, offline, in a process that reads no other cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--someone--tiny"
    save_tiny("dinov2", home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    program = (
        "from fusion_workbench.modules.encoders.encoder import VisionEncoder\n"
        "free = VisionEncoder('someone/tiny', image_size=56)\n"
        f"fixed = VisionEncoder('someone/tiny', image_size=56, revision='{commit}')\n"
        "print(free.encoder_info()['revision'], free.pinned, fixed.encoder_info()['revision'], fixed.pinned)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert result.stdout.split() == [commit, "False", commit, "True"]
