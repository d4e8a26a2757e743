"""What every injection has to keep, held against a small Llama of random weights that is built here.

The same as :mod:`modules.fusion.contract` does for strategies that stand alone, where *moves the output* means the
language model's logits::

from fusion_workbench.modules.language.contract import check_injection

for finding in check_injection("my_injection"):
    print(finding)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.base import Grid
from fusion_workbench.modules.fusion.contract import (
    DEPTH,
    GRIDS,
    Case,
    Finding,
    cost_of_shapes,
    diagnosis,
    gradient_complaints,
    hold_against,
    images_apart,
    layer_complaints,
    round_trip,
    select_used,
    uses_layers,
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


class _Case(Case[Injection]):
    """An injection, and two conversations of an image with words around it."""

    what = "logits"
    tolerance = (1e-3, 1e-4)

    def __init__(self, fresh: Callable[[], Injection], setting: InjectionSetting, language_model: nn.Module) -> None:
        super().__init__(fresh, setting.selection, setting.dim)
        self.language_model = language_model
        model: Any = language_model
        self.injector = Injector(model.model.layers)

    def output(self, module: Injection, features: Tensor, grid: Grid) -> Tensor:
        return self.logits(module(features, grid))

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


def _shape(case: _Case) -> Iterator[str]:
    """tokens and what each of blocks() is given are [images, tokens, width], on any grid and for no image"""
    for grid, images in (*((grid, 2) for grid in GRIDS), (GRIDS[0], 0)):
        injection = case.module()
        given = injection(select_used(case.stack(grid, images), injection), grid)
        if tuple(sorted(given.injected)) != injection.blocks() or not set(injection.blocks()) <= set(range(BLOCKS)):
            yield f"blocks() {injection.blocks()}, injected at {sorted(given.injected)} of {BLOCKS}"
        shapes = {tuple(tokens.shape) for tokens in (given.tokens, *given.injected.values())}
        if len(shapes) > 1 or given.tokens.shape[::2] != (images, WIDTH):
            yield f"grid {grid}, {images} images, width {WIDTH}: {sorted(shapes)}"


def _every_layer(case: _Case) -> Iterator[str]:
    """every layer it says it uses moves the logits, and no other can"""
    yield from layer_complaints(case)


def _every_block(case: _Case) -> Iterator[str]:
    """what each block is given moves the logits"""
    grid, injection = GRIDS[1], case.module()
    with torch.no_grad():
        given = injection(select_used(case.stack(grid), injection), grid)
        before = case.logits(given)
        for block in given.injected:
            others = {key: value for key, value in given.injected.items() if key != block}
            change = float((case.logits(VisualInput(given.tokens, others)) - before).abs().max())
            if not change > 1e-6:
                yield f"without what block {block} is given the logits are the same ({change:.1g})"


def _gradients(case: _Case) -> Iterator[str]:
    """at random parameters every parameter has a finite gradient, and parts() holds each of them once"""
    grid, injection = GRIDS[1], case.module()
    logits = case.logits(injection(select_used(case.stack(grid), injection), grid))
    torch.autograd.backward((logits * torch.randn_like(logits)).sum())
    yield from gradient_complaints(injection)
    parts = injection.parts()
    listed = [id(parameter) for part in parts.values() for parameter in part]
    if set(parts) != {"fuser", "gates", "projector"} or sorted(listed) != sorted(map(id, injection.parameters())):
        yield f"parts() has {list(parts)} with {len(listed)} of {len(list(injection.parameters()))} parameters"


def _autocast(case: _Case) -> Iterator[str]:
    """runs under bfloat16 autocast, close to float32"""
    grid, injection = GRIDS[1], case.module()
    features = select_used(case.stack(grid), injection)
    with torch.no_grad():
        exact = injection(features, grid)
        with torch.autocast("cpu", torch.bfloat16):
            rough = injection(features, grid)
    for what, one in {"tokens": exact.tokens, **exact.injected}.items():
        other = rough.tokens if what == "tokens" else rough.injected[what]
        if not (error := float((other.float() - one).norm() / one.norm())) < 0.05:
            yield f"{what}: relative error {error:.2g}"


_REQUIREMENTS = (
    uses_layers, _shape, _every_layer, _every_block, images_apart, _gradients, cost_of_shapes, _autocast, round_trip,
    diagnosis,
)  # fmt: skip
