"""Contract 5: every notation reads the same tensors, and prefix tokens come from the config, for each family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from modules.encoder import FAMILIES, VisionEncoder, resolve_precision
from workbench.errors import WorkbenchError
from workbench.layers import notations, parse_layer

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
CONFIGS = {
    "dinov2": ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 2}, 1),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {"mlp_ratio": 2, "num_register_tokens": 3},
        4,
    ),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel", {"intermediate_size": 64}, 1),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel", {"intermediate_size": 64}, 0),
    "vit": ("ViTConfig", "ViTModel", {"intermediate_size": 64}, 1),
}


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    config_class, model_class, extra, _ = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**SMALL, **extra)
    getattr(transformers, model_class)(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "BitImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
        )
    )
    return request.param, folder


def images(count: int = 2, size: int = 56) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_states_are_transformers_own_without_prefix(family: tuple[str, Path]) -> None:
    name, folder = family
    encoder = VisionEncoder(str(folder), image_size=56, precision="float32")
    prefix = CONFIGS[name][3]
    assert encoder.prefix_tokens == prefix
    assert encoder.grid() == (4, 4)
    pixels = encoder.normalise(images())
    expected = (torch.as_tensor(images()) / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.3])
    torch.testing.assert_close(pixels, expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        plain = encoder.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    every = encoder.encode(images(), range(4))
    assert every.shape == (4, 2, 16, 32)
    for layer in range(4):
        assert torch.equal(every[layer], plain[layer][:, prefix:])


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


def test_other_image_sizes_interpolate(family: tuple[str, Path]) -> None:
    encoder = VisionEncoder(str(family[1]), image_size=84, precision="float32")
    assert encoder.encode(images(size=84), [3]).shape == (1, 2, 36, 32)


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
    with pytest.raises(WorkbenchError, match="family 'bert', which is not known"):
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
