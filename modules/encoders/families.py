"""Families of encoders: what sets one apart from another, as rows of a table.

Nothing else in the workbench knows a family's name. A family that has no row is not assumed: :func:`explain_unknown`
runs its architecture once without weights and says which row it would need. Importing the table imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn


def whole_image(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """What most models take: the image."""
    return {"pixel_values": pixels}


def patch_sequence(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """What SigLIP 2 of native aspect takes: patches ``[B, h·w, patch²·3]``, a mask, and the grid of each image."""
    import torch

    images, _, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    cut = pixels.reshape(images, 3, rows, patch, columns, patch)
    return {
        "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).reshape(images, rows * columns, -1),
        "pixel_attention_mask": torch.ones(images, rows * columns, dtype=torch.long, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * images, device=pixels.device),
    }


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        model_class: in transformers; what ``from_pretrained`` is called on.
        blocks: where its list of blocks is, as a dotted path from the model.
        prefix_tokens: how many tokens stand before the patches, from the vision config (CLS, distillation, registers).
        prefix_words: the same in words, for the documents.
        final_norm: a norm follows the last block, so that last_hidden_state is not hidden_states[-1].
        positions: how it knows places, in words; every row here takes other sizes and rectangles.
        interpolate: another size than the trained one must be requested (``interpolate_pos_encoding``).
        inputs: from normalised pixels ``[B, 3, H, W]`` to the model's keyword arguments.
        tower: the part of ``model_class`` that is read; empty: all of it.
        sound: the tokens are a sequence in time, a grid of one row; the inputs are the model's own.
        models: examples of its names on the hub.
    """

    model_class: str
    blocks: str
    prefix_tokens: Callable[[Any], int] = lambda config: 1
    prefix_words: str = "1 (CLS)"
    final_norm: bool = True
    positions: str = "learned table, interpolated"
    interpolate: bool = True
    inputs: Callable[[Tensor, int], dict[str, Tensor]] = whole_image
    tower: str = ""
    audio: bool = False
    models: str = ""


_DINOV2 = "learned table, interpolated unasked"
_CLIP = Family("CLIPVisionModel", "encoder.layers", final_norm=False, models="openai/clip-vit-large-patch14-336")
_SIGLIP = Family(
    "SiglipVisionModel",
    "encoder.layers",
    prefix_tokens=lambda config: 0,
    prefix_words="none",
    models="google/siglip-so400m-patch14-384, google/siglip2-base-patch16-224",
)
_SIGLIP2 = Family(
    "Siglip2VisionModel",
    "encoder.layers",
    prefix_tokens=lambda config: 0,
    prefix_words="none",
    positions="learned table, resized to each image's own grid",
    interpolate=False,
    inputs=patch_sequence,
    models="google/siglip2-so400m-patch16-naflex",
)

_ROWS: dict[str, Family] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "metaclip_2_vision_model": Family(
        "MetaClip2VisionModel",
        "encoder.layers",
        final_norm=False,
        models="facebook/metaclip-2-worldwide-giant",
    ),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "dinov2": Family(
        "Dinov2Model", "encoder.layer", positions=_DINOV2, interpolate=False, models="facebook/dinov2-small"
    ),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel",
        "encoder.layer",
        prefix_tokens=lambda config: 1 + int(config.num_register_tokens),
        prefix_words="1 (CLS) and the registers",
        positions=_DINOV2,
        interpolate=False,
        models="facebook/dinov2-with-registers-base",
    ),
    "dinov3_vit": Family(
        "DINOv3ViTModel",
        "model.layer",
        prefix_tokens=lambda config: 1 + int(config.num_register_tokens),
        prefix_words="1 (CLS) and the registers",
        positions="rotary, no table",
        interpolate=False,
        models="facebook/dinov3-vits16-pretrain-lvd1689m",
    ),
    "vit": Family("ViTModel", "layers", models="google/vit-base-patch16-224"),
    "deit": Family(
        "DeiTModel",
        "layers",
        prefix_tokens=lambda config: 2,
        prefix_words="2 (CLS, distillation)",
        models="facebook/deit-base-distilled-patch16-224",
    ),
    "beit": Family(
        "BeitModel",
        "layers",
        final_norm=False,
        positions="relative bias in each block, interpolated",
        models="microsoft/beit-base-patch16-224",
    ),
    "data2vec-vision": Family(
        "Data2VecVisionModel",
        "encoder.layer",
        final_norm=False,
        positions="relative bias in each block, interpolated",
        models="facebook/data2vec-vision-base",
    ),
    "blip_2_vision_model": Family("Blip2VisionModel", "encoder.layers", models="the EVA-CLIP tower of BLIP-2"),
    "internvl_vision": Family(
        "InternVLVisionModel",
        "encoder.layer",
        final_norm=False,
        positions=_DINOV2,
        interpolate=False,
        models="InternViT, the tower of InternVL",
    ),
    "whisper": Family(
        "WhisperModel",
        "encoder.layers",
        prefix_tokens=lambda config: 0,
        prefix_words="none",
        final_norm=False,
        positions="sinusoids for 30 s",
        interpolate=False,
        tower="encoder",
        audio=True,
        models="openai/whisper-base",
    ),
    "wav2vec2": Family(
        "Wav2Vec2Model",
        "encoder.layers",
        prefix_tokens=lambda config: 0,
        prefix_words="none",
        final_norm=False,
        positions="convolutional",
        interpolate=False,
        audio=True,
        models="facebook/wav2vec2-base",
    ),
}


def register_family(model_type: str, family: Family, *, replace: bool = False) -> Family:
    """Make a family of one's own known. A package does it by an entry point of the group
    ``fusion_workbench.families`` whose name is the model type and whose object is the :class:`Family`.

    Args:
        model_type: transformers' name of the architecture, ``model_type`` in its config.
        family: the row.
        replace: the row takes the place of the one that is known.

    Raises:
        WorkbenchError: another row is known under the name, and ``replace`` is not given.
    """
    row = f"Family('{family.model_class}', '{family.blocks}')"
    FAMILIES.add(model_type, family, row, replace)
    return family


FAMILIES: Registry[Family] = Registry(
    "encoder family",
    "encoder families",
    group="fusion_workbench.families",
    former_group="fusion_workbench.encoders",
    base=Family,
    decorator="register_family('a_model_type', …)",
    adopt=register_family,
)
"""By transformers' ``model_type``. Two-tower models are read at their vision tower."""

for _model_type, _family in _ROWS.items():
    register_family(_model_type, _family)


def is_built_in(family: Family) -> bool:
    """Whether a row is one of the workbench's own."""
    return any(family is row for row in _ROWS.values())


def family_of(config: Any, name: str) -> Family:
    """The row of a model's config.

    Raises:
        WorkbenchError: there is none; the message explains what the model looks like and the row that it needs.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise WorkbenchError(explain_unknown(config, name))
    return FAMILIES[kind]


def read(model: nn.Module, family: Family, inputs: Mapping[str, Any], layers: Sequence[int], prefix: int) -> Tensor:
    """Hidden states ``layers`` of a model, as transformers numbers them: ``[layers, B, tokens, dim]``.

    Blocks deeper than the deepest of ``layers`` do not run.

    Args:
        model: an instance of the family's class.
        inputs: the model's own keyword arguments, pixels or sound.
        prefix: how many tokens to drop in front.

    Raises:
        WorkbenchError: the model gave another number of hidden states than it has blocks: the row is wrong.
    """
    blocks = blocks_of(model, family)
    target = model.get_submodule(family.tower) if family.tower else model
    if max(layers) < len(blocks):
        states = _states_up_to(target, blocks, inputs, max(layers))
    else:  # transformers' own: of some models the last is normed, and only they know
        states = list(target(**inputs, output_hidden_states=True).hidden_states or ())
        if len(states) != len(blocks) + 1:
            raise WorkbenchError(
                f"{type(model).__name__} gave {len(states)} hidden states for {len(blocks)} blocks; embeddings and one "
                "for each block were expected. Its row in the table of families does not fit it."
            )
    import torch

    return torch.stack([states[layer][:, prefix:] for layer in layers])


def blocks_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """The list of blocks that a row names.

    Raises:
        WorkbenchError: the model has none there; the message names the lists that it has.
    """
    from torch import nn

    for path, kind in ((family.blocks, nn.ModuleList), (family.tower, nn.Module)):
        try:
            found = isinstance(model.get_submodule(path), kind)
        except AttributeError:
            found = False
        if not found:
            lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
            raise WorkbenchError(
                f"{type(model).__name__} has no {'list of blocks' if kind is nn.ModuleList else 'part'} '{path}'; its "
                f"lists of blocks: {', '.join(lists) or 'none'}."
            )
    blocks = model.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


class _StopForward(Exception):
    """The deepest layer that was requested is there."""


def _states_up_to(model: nn.Module, blocks: nn.ModuleList, inputs: Mapping[str, Any], deepest: int) -> list[Tensor]:
    """Hidden states 0 to ``deepest``, from a forward pass that ends there."""
    states: list[Tensor] = []

    def keep(state: Any) -> None:
        states.append(state[0] if isinstance(state, tuple) else state)
        if len(states) > deepest:
            raise _StopForward

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    def after(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(output)

    hooks = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after) for block in blocks[:deepest]]
    try:
        model(**inputs)
    except _StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return states


def explain_unknown(config: Any, name: str) -> str:
    """What a model of an unknown family looks like, found by running its architecture without weights."""
    kind = config.model_type
    problem = f"encoder '{name}' is of the family '{kind}', which is not known.{nearest(kind, FAMILIES)}"
    try:
        facts = _run_without_weights(getattr(config, "vision_config", config))
    except Exception as error:  # an architecture may fail in any way; then that is the answer
        return f"{problem} Run without weights, it fails as a vision encoder ({type(error).__name__}: {error})."
    row = (
        f"Family('{facts['class']}', '{facts['blocks']}', prefix_tokens=lambda config: {facts['prefix']}, "
        f"interpolate={facts['interpolate']})"
    )
    return (
        f"{problem} Run without weights, {facts['class']} gives {facts['states']} hidden states of {facts['tokens']} "
        f"tokens for {facts['cells']} patches, so {facts['prefix']} prefix tokens. If that is right, this makes it "
        f"known: register_family('{kind}', {row})."
    )


def _run_without_weights(config: Any) -> dict[str, Any]:
    import inspect

    import torch
    from torch import nn
    from transformers import AutoModel

    side, patch = square(config.image_size), square(config.patch_size)
    with torch.device("meta"), torch.no_grad():
        auto: Any = AutoModel
        model = auto.from_config(config, trust_remote_code=False).eval()
        output = model(pixel_values=torch.zeros(1, 3, side, side), output_hidden_states=True)
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    tokens, cells = int(output.hidden_states[-1].shape[1]), (side // patch) ** 2
    return {
        "class": type(model).__name__,
        "states": len(output.hidden_states),
        "tokens": tokens,
        "cells": cells,
        "prefix": tokens - cells,
        "blocks": lists[0],
        "interpolate": "interpolate_pos_encoding" in inspect.signature(model.forward).parameters,
    }


def square(value: Any) -> int:
    """A side from ``224`` or from ``[224, 224]``. Raises WorkbenchError for what is no square."""
    sides = value if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        raise WorkbenchError(f"its config.json says {list(sides)} where only squares are read.")
    return int(sides[0])
