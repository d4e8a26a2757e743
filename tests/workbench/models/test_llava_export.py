"""Stock LLaVA and ours give the same logits, whichever of them the weights come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import LORA, tiny_decoder, tiny_tokenizer
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection, parse_layer
from fusion_workbench.core.tokens import IMAGE_ID
from fusion_workbench.models.stock_llava import from_stock, to_stock
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.fusion import build
from fusion_workbench.modules.language.connector import FusedConnector
from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.projector import Projector

ATOL = 1e-4
WORDS = [5, 9, 14, 11]
IMAGE_TOKEN = 72  # one beyond the tiny tokenizer's vocabulary


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def stock_logits(stock: Any, pixels: Tensor, tokens: int, image_token: int) -> Tensor:
    ids = torch.tensor([[*WORDS[:2], *[image_token] * tokens, *WORDS[2:]]])
    with torch.no_grad():
        found: Tensor = stock(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, use_cache=False
        ).logits
    return found


def our_logits(encoder: VisionEncoder, model: VisionLanguageModel, pixels: Tensor) -> Tensor:
    ids = torch.tensor([[*WORDS[:2], IMAGE_ID, *WORDS[2:]]])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "features": encoder.hidden_states(pixels, model.connector.uses),
    }
    with torch.no_grad():
        return model(batch)[0]


def ours(
    folder: Path, strategy: str, refs: list[int], options: dict[str, Any], family: str = "llama", **projector: Any
) -> tuple[VisionEncoder, VisionLanguageModel]:
    torch.manual_seed(1)
    encoder = VisionEncoder(str(folder), image_size=0, precision="float32")
    layers = [parse_layer(ref, encoder.depth) for ref in refs]
    decoder = tiny_decoder(family)
    fuser = build(strategy, Selection(tuple(layers[:-1]), layers[-1]), encoder.dim, options)
    made = Projector("mlp2x_gelu", fuser.out_dim, decoder.width, **{"normalise": False, **projector})
    connector = FusedConnector(fuser, randomised(made))
    return encoder, VisionLanguageModel(connector, decoder, encoder.grid()).eval()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    folder = tmp_path_factory.mktemp("siglip")
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    SiglipVisionModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text((tiny_clip / "preprocessor_config.json").read_text())
    return folder


@pytest.mark.parametrize(
    ("family", "strategy", "refs", "options"),
    [
        ("llama", "deep_only", [-2], {}),
        ("llama", "concat", [0, -1, -2], {"layer_norm": "none"}),  # the query below a level
        ("qwen2", "concat", [1, 2, -1], {"layer_norm": "none"}),
    ],
    ids=["penultimate", "query in the middle", "three, another family"],
)
def test_ours_as_stock(tiny_clip: Path, strategy: str, refs: list[int], options: dict[str, Any], family: str) -> None:
    encoder, model = ours(tiny_clip, strategy, refs, options, family)
    stock: Any = to_stock(encoder, model.connector.fuser, model.connector.projector, model.decoder, IMAGE_TOKEN)
    assert stock.config.vision_feature_select_strategy == "default"
    layers = stock.config.vision_feature_layer
    assert [layers] if isinstance(layers, int) else layers == [ref if ref < 0 else ref - 4 for ref in refs]
    pixels = torch.randn(1, 3, 56, 56)
    wanted = our_logits(encoder, model, pixels)
    found = stock_logits(stock, pixels, 16, IMAGE_TOKEN)
    assert wanted.std() > 0.05
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, rtol=0, atol=ATOL)
    assert not torch.allclose(stock_logits(stock, pixels + 1, 16, IMAGE_TOKEN), found, atol=10 * ATOL)
    if found.shape[-1] > IMAGE_TOKEN:  # the appended word is never the likeliest
        assert (found[..., IMAGE_TOKEN] < found[..., :IMAGE_TOKEN].max(-1).values).all()


@pytest.mark.parametrize("kind", ["siglip", "tiny_dinov2"])
def test_other_encoders_as_stock(kind: str, request: pytest.FixtureRequest) -> None:
    encoder, model = ours(request.getfixturevalue(kind), "deep_only", [-2], {})
    stock: Any = to_stock(encoder, model.connector.fuser, model.connector.projector, model.decoder, IMAGE_TOKEN)
    assert stock.config.vision_feature_select_strategy == {"siglip": "full", "tiny_dinov2": "default"}[kind]
    pixels = torch.randn(1, 3, 56, 56)
    wanted = our_logits(encoder, model, pixels)
    found = stock_logits(stock, pixels, 16, IMAGE_TOKEN)
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, rtol=0, atol=ATOL)


def stock_llava(tiny_clip: Path, **settings: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(2)
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=80,
        tie_word_embeddings=settings.pop("tied", False),
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(**json.loads((tiny_clip / "config.json").read_text()))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, **settings)
    return randomised(LlavaForConditionalGeneration(config).eval())


@pytest.mark.parametrize(("layers", "tied"), [(-2, False), (3, True), ([-1, 0, -2], False), ([-1, -3], True)], ids=str)
def test_stock_as_ours(tiny_clip: Path, tmp_path: Path, layers: int | list[int], tied: bool) -> None:
    stock = stock_llava(tiny_clip, vision_feature_layer=layers, tied=tied)
    parts = from_stock(stock)
    parts.tower.save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / "preprocessor_config.json").write_text((tiny_clip / "preprocessor_config.json").read_text())
    encoder = VisionEncoder(str(tmp_path), image_size=0, precision="float32")
    decoder = Decoder(parts.language, tiny_tokenizer())
    model = VisionLanguageModel(FusedConnector(parts.fuser, parts.projector), decoder, encoder.grid()).eval()
    pixels = torch.randn(1, 3, 56, 56)
    wanted = stock_logits(stock, pixels, 16, IMAGE_TOKEN)
    torch.testing.assert_close(our_logits(encoder, model, pixels), wanted, rtol=0, atol=ATOL)

    again: Any = to_stock(encoder, parts.fuser, parts.projector, decoder, IMAGE_TOKEN)  # and back
    torch.testing.assert_close(stock_logits(again, pixels, 16, IMAGE_TOKEN), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"vision_feature_layer": [1, -3]}, "names a layer twice"),
        ({"vision_feature_select_strategy": "full"}, "'full' does not leave exactly the patches"),
        ({"multimodal_projector_bias": False}, "no biases"),
        ({"projector_hidden_act": "relu"}, "relu, not gelu"),
    ],
)
def test_a_stock_model_that_has_no_form_here_says_why(tiny_clip: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(WorkbenchError, match=says):
        from_stock(stock_llava(tiny_clip, **settings))


@pytest.mark.parametrize(
    ("strategy", "options", "projector", "says"),
    [
        ("mmfuser", {"heads": 2}, {}, "the strategy is MMFuser"),
        ("concat", {}, {}, "normalises each layer"),
        ("deep_only", {}, {"normalise": True}, "projector normalises"),
        ("deep_only", {}, {"hidden": 7}, "middle of a width of its own"),
    ],
)
def test_a_model_that_has_no_stock_form_says_why(
    tiny_clip: Path, strategy: str, options: dict[str, Any], projector: dict[str, Any], says: str
) -> None:
    encoder, model = ours(tiny_clip, strategy, [1, 2], options, **projector)
    with pytest.raises(WorkbenchError, match=says):
        to_stock(encoder, model.connector.fuser, model.connector.projector, model.decoder, IMAGE_TOKEN)


def test_other_image_sizes_and_one_linear_map_have_no_stock_form(tiny_clip: Path) -> None:
    encoder, model = ours(tiny_clip, "deep_only", [2], {})
    with pytest.raises(WorkbenchError, match="one linear map"):
        to_stock(
            encoder, model.connector.fuser, Projector("linear", 32, 32, normalise=False), model.decoder, IMAGE_TOKEN
        )
    larger = VisionEncoder(str(tiny_clip), image_size=84, precision="float32")
    with pytest.raises(WorkbenchError, match="56 px, and this one reads 84 px"):
        to_stock(larger, model.connector.fuser, model.connector.projector, model.decoder, IMAGE_TOKEN)


def test_gpt2_has_no_stock_form(tiny_clip: Path) -> None:
    encoder, model = ours(tiny_clip, "deep_only", [2], {}, "gpt2")
    with pytest.raises(WorkbenchError, match="embed_tokens, and GPT2LMHeadModel has none"):
        to_stock(encoder, model.connector.fuser, model.connector.projector, model.decoder, IMAGE_TOKEN)


def test_a_head_that_does_more_is_found(tiny_clip: Path) -> None:
    encoder, model = ours(tiny_clip, "deep_only", [2], {})
    head = model.decoder.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: torch.tanh(output))
    with pytest.raises(WorkbenchError, match="does more with its words"):
        to_stock(encoder, model.connector.fuser, model.connector.projector, model.decoder, IMAGE_TOKEN)


def test_lora_is_merged_into_the_stock_form(tiny_clip: Path) -> None:
    pytest.importorskip("peft")
    encoder, model = ours(tiny_clip, "deep_only", [2], {})
    model.decoder.add_lora(LORA)
    for parameter in model.decoder.lora_parameters():
        nn.init.normal_(parameter, std=0.2)
    stock = to_stock(encoder, model.connector.fuser, model.connector.projector, model.decoder, IMAGE_TOKEN)
    assert model.decoder.trains == "lora"
    pixels = torch.randn(1, 3, 56, 56)
    wanted = our_logits(encoder, model, pixels)
    found = stock_logits(stock, pixels, 16, IMAGE_TOKEN)
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, rtol=0, atol=ATOL)
