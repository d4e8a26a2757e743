"""Ours and stock LLaVA: the same model as ``transformers.LlavaForConditionalGeneration``, in both directions.

Stock LLaVA reads one layer of its encoder, or a list of layers side by side in the channels, and maps them by linear,
GELU, linear to the language model. That is ``deep_only``, and ``concat`` without norms, before a projector that does
not normalise. Nothing else has a stock form; :func:`to_stock` says why not. Weights are taken over as they are, so the
logits are the same up to rounding, which :func:`to_stock` checks on the model itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection, parse_layer
from fusion_workbench.models.connector_files import load_weights
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.encoders.families import family_of, whole_image
from fusion_workbench.modules.fusion import Fusion, build
from fusion_workbench.modules.fusion.concat import Concat
from fusion_workbench.modules.fusion.deep_only import DeepOnly
from fusion_workbench.modules.projector import Projector

if TYPE_CHECKING:
    from fusion_workbench.modules.language.decoder import Decoder

CHECKED = 1e-3  # largest difference of logits, as a share of their spread, that rounding explains
STRATEGY = {"default": 1, "full": 0}  # vision_feature_select_strategy → prefix tokens that it expects and cuts off


@dataclass(frozen=True)
class LlavaParts:
    """A stock LLaVA in our parts.

    Attributes:
        tower: the vision encoder, a transformers model.
        language: the causal language model, with its head.
        fuser: ``deep_only`` or ``concat``.
        projector: ``mlp2x_gelu``, without normalisation.
        options: of the strategy.
    """

    tower: nn.Module
    language: nn.Module
    strategy: str
    options: dict[str, Any]
    fuser: Fusion
    projector: Projector


def why_not_stock(fuser: Fusion, projector: nn.Module, encoder: VisionEncoder) -> str:
    """Why a connector has no stock form, as one line; empty where it has one."""
    norms = getattr(fuser.options, "layer_norm", "none") != "none"
    middle = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)]
    sizes = encoder.image_size, encoder.config.image_size
    reasons = (
        (
            not isinstance(fuser, DeepOnly | Concat),
            f"stock LLaVA reads a layer or several side by side, and the strategy is {type(fuser).__name__}",
        ),
        (norms, "its strategy normalises each layer, which stock LLaVA does not (layer_norm: none would do)"),
        (
            not isinstance(projector, Projector) or projector.normalise,
            "its projector normalises the tokens first, which stock LLaVA's does not",
        ),
        (len(middle) != 2, "its projector is one linear map, and stock LLaVA's is linear, GELU, linear"),
        (
            len({layer.out_features for layer in middle}) > 1,
            "its projector has a middle of a width of its own, and stock LLaVA's is as wide as the language model",
        ),
        (
            encoder.prefix_tokens not in STRATEGY.values() or encoder.family.inputs is not whole_image,
            f"stock LLaVA cuts off one prefix token or none, and '{encoder.family_name}' is read otherwise",
        ),
        (
            encoder.family.interpolate and sizes[0] != sizes[1],
            f"stock LLaVA reads images at the size that the encoder was trained at, {sizes[1]} px, and this one reads "
            f"{sizes[0]} px",
        ),
        (not isinstance(sizes[0], int), f"stock LLaVA reads squares, and the encoder reads {sizes[0]} px"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def to_stock(
    encoder: VisionEncoder, fuser: Fusion, projector: nn.Module, decoder: Decoder, image_token_id: int
) -> nn.Module:
    """The same model as ``LlavaForConditionalGeneration``, float32, on the CPU.

    Args:
        image_token_id: the word that stands for an image token. One beyond the vocabulary is appended to it, with the
            mean of all embeddings, so that it is never the likeliest word.

    Raises:
        WorkbenchError: the model has no stock form, with the reason; or the stock form does not compute the same.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    if reason := why_not_stock(fuser, projector, encoder):
        raise WorkbenchError(f"this model has no stock LLaVA form: {reason}.")
    text = _causal(decoder)
    if text.config.tie_word_embeddings and not hasattr(text.base_model, "embed_tokens"):
        raise WorkbenchError(
            f"this model has no stock LLaVA form: stock LLaVA ties its head to embeddings called embed_tokens, and "
            f"{type(text).__name__} has none of that name."
        )
    if text.get_output_embeddings().bias is not None:
        raise WorkbenchError(
            "this model has no stock LLaVA form: its language model's head has a bias, and stock LLaVA's has none."
        )
    cut = next(name for name, tokens in STRATEGY.items() if tokens == encoder.prefix_tokens)
    layers = [layer - encoder.depth - 1 for layer in fuser.uses]  # from the end, as LLaVA's own configs count
    rows, columns = encoder.grid()
    made: Any = LlavaConfig
    config = made(
        vision_config=copy.deepcopy(encoder.config),
        text_config=text.config,
        image_token_index=image_token_id,
        image_seq_length=rows * columns,
        vision_feature_layer=layers[0] if len(layers) == 1 else layers,
        vision_feature_select_strategy=cut,
        projector_hidden_act="gelu",
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    vocabulary = text.get_input_embeddings().weight.shape[0]
    config.text_config.vocab_size = max(vocabulary, image_token_id + 1)
    with torch.random.fork_rng(devices=[]):  # its initialisation is overwritten; the caller's random state is not
        stock: Any = LlavaForConditionalGeneration(config)
        stock.float()
    load_weights(stock.model.vision_tower, _cpu(encoder.model), "the encoder")
    load_weights(
        stock.model.language_model, _with_image_token(_cpu(text.base_model), vocabulary, config), "the language model"
    )
    for theirs, ours in (("linear_1", "map.0"), ("linear_2", "map.2")):
        linear = getattr(stock.model.multi_modal_projector, theirs)
        load_weights(linear, _part(_cpu(projector), ours), "the projector")
    head = _with_image_token(_cpu(text.get_output_embeddings()), vocabulary, config)
    stock.lm_head.weight = nn.Parameter(head["weight"].clone())
    stock.tie_weights()
    stock.generation_config = copy.deepcopy(text.generation_config)
    if decoder.ends:  # the chat template's end need not be the language model's own
        stock.generation_config.eos_token_id = decoder.stop_ids
    stock.eval().requires_grad_(False)
    _check(stock, text, vocabulary)
    checked: nn.Module = stock
    return checked


def from_stock(stock: nn.Module) -> LlavaParts:
    """The parts of a ``LlavaForConditionalGeneration``.

    Raises:
        WorkbenchError: it is set up in a way that ours have no form of, with the reason.
    """
    from transformers import AutoModelForCausalLM

    config: Any = stock.config
    vision = config.vision_config
    family = family_of(vision, "the stock model's vision tower")
    listed = config.vision_feature_layer
    refs = [listed] if isinstance(listed, int) else list(listed)
    layers = [parse_layer(ref, vision.num_hidden_layers) for ref in refs]
    prefix = family.prefix_tokens(vision)
    reasons = (
        (len(set(layers)) < len(layers), f"vision_feature_layer is {refs}, which names a layer twice"),
        (config.projector_hidden_act != "gelu", f"projector_hidden_act is {config.projector_hidden_act}, not gelu"),
        (not config.multimodal_projector_bias, "its projector has no biases"),
        (
            STRATEGY[config.vision_feature_select_strategy] != prefix,
            f"vision_feature_select_strategy '{config.vision_feature_select_strategy}' does not leave exactly the "
            f"patches of its encoder, which has {prefix} prefix tokens",
        ),
    )
    if reason := next((reason for applies, reason in reasons if applies), ""):
        raise WorkbenchError(f"this stock LLaVA has no form here: {reason}.")
    strategy, options = ("deep_only", {}) if len(layers) == 1 else ("concat", {"layer_norm": "none"})
    fuser = build(strategy, Selection(tuple(sorted(layers[:-1])), layers[-1]), vision.hidden_size, options)
    model: Any = stock
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    projector = Projector("mlp2x_gelu", fuser.out_dim, second.out_features, normalise=False)
    weights = {f"map.0.{name}": value for name, value in first.state_dict().items()}
    weights |= {f"map.2.{name}": value for name, value in second.state_dict().items()}
    weights["map.0.weight"] = _reordered(weights["map.0.weight"], layers, fuser.uses)
    load_weights(projector, weights, "the stock projector")
    auto: Any = AutoModelForCausalLM
    language = auto.from_config(config.text_config, trust_remote_code=False)
    load_weights(language.base_model, model.model.language_model.state_dict(), "the stock language model")
    language.get_output_embeddings().weight = nn.Parameter(model.lm_head.weight.detach().clone())
    language.tie_weights()
    language.generation_config = model.generation_config
    return LlavaParts(
        model.model.vision_tower, language.eval(), strategy, options, fuser, projector.to(first.weight.dtype)
    )


def _reordered(weight: Tensor, theirs: Sequence[int], ours: Sequence[int]) -> Tensor:
    """The columns of ``[width, layers·dim]`` put from the one order of layers into the other."""
    blocks = dict(zip(theirs, weight.chunk(len(theirs), dim=1), strict=True))
    return torch.cat([blocks[layer] for layer in ours], dim=1)


def _causal(decoder: Decoder) -> Any:
    """The decoder's model without LoRA, in float32; the decoder stays as it is."""
    if decoder.trains == "lora":
        merged = copy.deepcopy(decoder)
        merged.merge_lora()
        return merged.model.float()
    return decoder.model


def _cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().float() for name, value in module.state_dict().items()}


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _with_image_token(state: dict[str, Tensor], vocabulary: int, config: Any) -> dict[str, Tensor]:
    """Word embeddings with the rows that the image token adds: the mean of the others."""
    more = config.text_config.vocab_size - vocabulary
    if not more:
        return state

    def longer(value: Tensor) -> Tensor:
        return torch.cat([value, value.mean(0, keepdim=True).expand(more, -1)])

    words = [name for name, value in state.items() if value.ndim == 2 and value.shape[0] == vocabulary]
    return state | {name: longer(state[name]) for name in words}


@torch.no_grad()
def _check(stock: Any, text: Any, vocabulary: int) -> None:
    """A few words through both: a head that does more than a linear map, or scaled embeddings, would show."""
    device = text.get_input_embeddings().weight.device
    ids = torch.arange(8).unsqueeze(0) % vocabulary
    was = text.training
    expected = text.eval().float()(input_ids=ids.to(device)).logits.float().cpu()
    text.train(was)
    actual = stock(input_ids=ids).logits[..., :vocabulary]
    if not torch.allclose(actual, expected, rtol=0, atol=CHECKED * float(expected.std())):
        raise WorkbenchError(
            f"this model has no stock LLaVA form: {type(text).__name__} does more with its words than stock LLaVA, "
            "whose logits differ."
        )
