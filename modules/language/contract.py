"""What every injection has to keep, held against a small Llama of random weights that is built here.

The same as :mod:`modules.fusion.contract` does for strategies that stand alone, where *moves the output* means the
language model's logits::

from fusion_workbench.modules.language.contract import check_injection

for finding in check_injection("my_injection"):
    print(finding)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Grid
from fusion_workbench.modules.fusion.contract import (
    DEPTH,
    GRIDS,
    Finding,
    cost_complaints,
    gradient_complaints,
    hold_against,
)
from fusion_workbench.modules.language.injection import Injection, InjectionSetting, build_injection, injection_spec
from fusion_workbench.modules.language.injector import Injector
from fusion_workbench.modules.language.visual import VisualInput

WIDTH, BLOCKS = 32, 8  # of the language model
WORDS = 48


def check_injection(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    dim: int = 16,
    levels: Sequence[int] = (1, 3, 4),
    seed: int = 0,
) -> list[Finding]:
    """Hold a registered injection against the contract, in float32 on the CPU; takes some seconds.

    Args:
        name: its registered name.
        options: as in a study file; the language model has 8 blocks.
        dim: channels of the layers.
        levels: layers of an encoder of 7 blocks, below its deepest but one, the query; ignored by injections that read
            none.
        seed: of features and parameters.

    Returns:
        A finding for each requirement, kept or broken.

    Raises:
        WorkbenchError: the injection is unknown, or its options are wrong.
    """
    selection = Selection(tuple(levels) if injection_spec(name).uses_levels else (), DEPTH - 1)
    setting = InjectionSetting(selection, dim, WIDTH, BLOCKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        case = _Case(lambda: build_injection(name, setting, options), setting, _language_model())
        case.fresh()  # what is wrong with the options is said now
        return hold_against(case, _REQUIREMENTS)


def _language_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        initializer_range=0.3,  # at the usual 0.02 so small a model hardly reads what it is given
        max_position_embeddings=64,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.eval().requires_grad_(False)


class _Case:
    """An injection, and two conversations of an image with words around it."""

    def __init__(self, fresh: Callable[[], Injection], setting: InjectionSetting, language_model: nn.Module) -> None:
        self.fresh, self.setting, self.language_model = fresh, setting, language_model
        model: Any = language_model
        self.injector = Injector(model.model.layers)

    def injection(self) -> Injection:
        """At random parameters, as after some training."""
        injection = self.fresh().eval()
        with torch.no_grad():
            for parameter in injection.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return injection

    def stack(self, grid: Grid, images: int = 2) -> Tensor:
        """Hidden states of every layer of the encoder."""
        return torch.randn(DEPTH + 1, images, grid[0] * grid[1], self.setting.dim)

    def logits(self, given: VisualInput) -> Tensor:
        """``[N, words + T', vocabulary]``: a conversation an image, two words before it and three behind."""
        model: Any = self.language_model
        images, tokens = given.tokens.shape[:2]
        words = model.get_input_embeddings()(torch.arange(5).expand(images, 5))
        visual = torch.zeros(images, 5 + tokens, dtype=torch.bool)
        visual[:, 2 : 2 + tokens] = True
        self.injector.set(given.injected, visual)
        try:
            embeds = torch.cat((words[:, :2], given.tokens, words[:, 2:]), dim=1)
            logits: Tensor = model(inputs_embeds=embeds, use_cache=False).logits
        finally:
            self.injector.clear()
        return logits


def _uses(case: _Case) -> Iterator[str]:
    """uses names layers of the selection, each once, the query last"""
    uses, layers = case.fresh().uses, case.setting.selection.layers
    if not set(uses) <= set(layers) or len(set(uses)) != len(uses) or uses[-1:] != layers[-1:]:
        yield f"uses {uses}, and the selection is {layers}"


def _shape(case: _Case) -> Iterator[str]:
    """tokens and what each of blocks() is given are [images, tokens, width], on any grid and for no image"""
    for grid, images in (*((grid, 2) for grid in GRIDS), (GRIDS[0], 0)):
        injection = case.injection()
        given = injection(case.stack(grid, images)[list(injection.uses)], grid)
        if tuple(sorted(given.injected)) != injection.blocks() or not set(injection.blocks()) <= set(range(BLOCKS)):
            yield f"blocks() {injection.blocks()}, injected at {sorted(given.injected)} of {BLOCKS}"
        shapes = {tuple(tokens.shape) for tokens in (given.tokens, *given.injected.values())}
        if len(shapes) > 1 or given.tokens.shape[::2] != (images, WIDTH):
            yield f"grid {grid}, {images} images, width {WIDTH}: {sorted(shapes)}"


def _every_layer(case: _Case) -> Iterator[str]:
    """every layer it says it uses moves the logits, and no other can"""
    grid, injection = GRIDS[1], case.injection()
    stack, uses = case.stack(grid), list(injection.uses)
    with torch.no_grad():
        before = case.logits(injection(stack[uses], grid))
        for layer in range(len(stack)):
            moved = stack.clone()
            moved[layer] += torch.randn_like(moved[layer])
            change = float((case.logits(injection(moved[uses], grid)) - before).abs().max())
            if layer in uses and not change > 1e-6:
                yield f"layer {layer} is used and does not move the logits ({change:.1g})"
            if layer not in uses and change:
                yield f"layer {layer} is not used and moves the logits by {change:.1g}"


def _every_block(case: _Case) -> Iterator[str]:
    """what each block is given moves the logits"""
    grid, injection = GRIDS[1], case.injection()
    with torch.no_grad():
        given = injection(case.stack(grid)[list(injection.uses)], grid)
        before = case.logits(given)
        for block in given.injected:
            others = {key: value for key, value in given.injected.items() if key != block}
            change = float((case.logits(VisualInput(given.tokens, others)) - before).abs().max())
            if not change > 1e-6:
                yield f"without what block {block} is given the logits are the same ({change:.1g})"


def _images_apart(case: _Case) -> Iterator[str]:
    """an image's tokens do not depend on the others of its batch, nor do features change"""
    grid, injection = GRIDS[1], case.injection()
    features = case.stack(grid)[list(injection.uses)]
    kept = features.clone()
    with torch.no_grad():
        together, alone = case.logits(injection(features, grid)), case.logits(injection(features[:, :1], grid))
    if not torch.equal(features, kept):
        yield "the features were changed in place"
    if not torch.allclose(together[:1], alone, rtol=1e-3, atol=1e-4):
        yield f"image 0 differs by {float((together[:1] - alone).abs().max()):.1g} with and without image 1"


def _gradients(case: _Case) -> Iterator[str]:
    """at random parameters every parameter has a finite gradient, and parts() holds each of them once"""
    grid, injection = GRIDS[1], case.injection()
    logits = case.logits(injection(case.stack(grid)[list(injection.uses)], grid))
    torch.autograd.backward((logits * torch.randn_like(logits)).sum())
    yield from gradient_complaints(injection)
    parts = injection.parts()
    listed = [id(parameter) for part in parts.values() for parameter in part]
    if set(parts) != {"fuser", "gates", "projector"} or sorted(listed) != sorted(map(id, injection.parameters())):
        yield f"parts() has {list(parts)} with {len(listed)} of {len(list(injection.parameters()))} parameters"


def _cost(case: _Case) -> Iterator[str]:
    """cost is a function of the shapes: FLOPs double with the batch, a second module has as many parameters"""
    yield from cost_complaints(case.fresh(), case.fresh())


def _autocast(case: _Case) -> Iterator[str]:
    """runs under bfloat16 autocast, close to float32"""
    grid, injection = GRIDS[1], case.injection()
    features = case.stack(grid)[list(injection.uses)]
    with torch.no_grad():
        exact = injection(features, grid)
        with torch.autocast("cpu", torch.bfloat16):
            rough = injection(features, grid)
    for what, one in {"tokens": exact.tokens, **exact.injected}.items():
        other = rough.tokens if what == "tokens" else rough.injected[what]
        if not (error := float((other.float() - one).norm() / one.norm())) < 0.05:
            yield f"{what}: relative error {error:.2g}"


def _round_trip(case: _Case) -> Iterator[str]:
    """weights go through safetensors into a fresh module that computes the same"""
    grid, injection, other = GRIDS[1], case.injection(), case.fresh().eval()
    state = {key: value.contiguous() for key, value in injection.state_dict().items()}
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    features = case.stack(grid)[list(injection.uses)]
    with torch.no_grad():
        if not torch.equal(case.logits(injection(features, grid)), case.logits(other(features, grid))):
            yield "the loaded module computes something else"


def _diagnosis(case: _Case) -> Iterator[str]:
    """diagnose returns finite numbers by name"""
    injection = case.injection()
    for name, value in injection.diagnose(case.stack(GRIDS[1])[list(injection.uses)], GRIDS[1]).items():
        if not isinstance(name, str) or not isinstance(value, float) or not math.isfinite(value):
            yield f"{name} is {value!r}"


_REQUIREMENTS = (
    _uses, _shape, _every_layer, _every_block, _images_apart, _gradients, _cost, _autocast, _round_trip, _diagnosis,
)  # fmt: skip
