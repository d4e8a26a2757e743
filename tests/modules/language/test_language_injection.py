"""Injections do something, at the decoder blocks they name and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import build
from fusion_workbench.modules.language import INJECTIONS
from fusion_workbench.modules.language.injection import (
    Injection,
    InjectionSetting,
    build_injection,
    canonical_injection,
    register_injection,
)
from fusion_workbench.modules.language.injector import Injector
from fusion_workbench.modules.language.visual import VisualInput

DIM, WIDTH, DEPTH, WORDS, GRID = 16, 32, 5, 40, (2, 3)
SELECTION = Selection((1, 3, 4), 6)
SETTING = InjectionSetting(SELECTION, DIM, WIDTH, DEPTH)
SHAPES = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 128,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPES, **LLAMA))


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPES, **LLAMA))


def gpt2() -> PreTrainedModel:
    shapes = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**SHAPES, **shapes))


DECODERS = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepstack": ("deepstack", {}),
    "deepstack, deepest first, one projector": ("deepstack", {"order": "deep_first", "projectors": "shared"}),
    "deepstack from the input on": ("deepstack", {"start": 0, "interval": 2}),
    "internal direct, spread": ("internal_direct", {}),
    "internal direct, by depth": ("internal_direct", {"encoder_depth": 6}),
    "internal direct, named blocks": ("internal_direct", {"blocks": "4, 0, 2"}),
}


def blocks_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    return model.transformer.h if isinstance(model, GPT2LMHeadModel) else model.model.layers


@dataclass
class Scene:
    """Two sequences with an image each, the images at different places, and a text of its own."""

    model: PreTrainedModel
    injector: Injector
    injection: Injection
    features: Tensor
    words: Tensor
    visual: Tensor
    mask: Tensor
    positions: Tensor

    @classmethod
    def of(cls, decoder: str, form: str, left: bool = True) -> Scene:
        """Every parameter and feature is a function of ``decoder`` and ``form`` alone; ``left`` pads on the left."""
        torch.manual_seed(0)
        model = DECODERS[decoder]().eval()
        name, options = FORMS[form]
        injection = build_injection(name, SETTING, options)
        features = torch.randn(len(injection.uses), 2, GRID[0] * GRID[1], DIM)
        words = torch.randint(2, WORDS, (2, 12))
        visual, mask = torch.zeros(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
        visual[0, :6] = True  # from the first position on, where a step of decoding would see it
        start = 3 if left else 1  # the second sequence has two words less
        visual[1, start : start + 6] = True
        mask[1, :2] = not left
        mask[1, -2:] = left
        words[1] = torch.cat((torch.zeros(2), torch.arange(5, 15)) if left else (torch.arange(5, 15), torch.zeros(2)))
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        return cls(model, Injector(blocks_of(model)), injection, features, words, visual, mask, positions)

    def visual_input(self, features: Tensor | None = None) -> VisualInput:
        found = self.injection(self.features if features is None else features, GRID)
        assert isinstance(found, VisualInput)
        return found

    def embeds(self, tokens: Tensor) -> Tensor:
        words = self.model.get_input_embeddings()(self.words)
        return words.masked_scatter(self.visual[..., None], tokens)

    def logits(self, given: VisualInput, **settings: Any) -> Tensor:
        self.injector.set(given.injected, self.visual)
        return self.forward(given.tokens, **settings)

    def forward(self, tokens: Tensor, **settings: Any) -> Tensor:
        logits = self.model(
            inputs_embeds=self.embeds(tokens),
            attention_mask=self.mask.long(),
            position_ids=self.positions,
            use_cache=False,
            **settings,
        ).logits
        return logits[self.mask]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_selected_layer_moves_the_logits(decoder: str, form: str) -> None:
    scene = Scene.of(decoder, form)
    assert scene.injection.uses == (1, 3, 4, 6)
    with torch.no_grad():
        before = scene.logits(scene.visual_input())
        for row, layer in enumerate(scene.injection.uses):
            moved = scene.features.clone()
            moved[row] += torch.randn_like(moved[row])
            change = float((scene.logits(scene.visual_input(moved)) - before).abs().max())
            assert change > 1e-4, f"layer {layer} moves the logits by {change:.1g}"
        assert torch.equal(scene.logits(scene.visual_input()), before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_each_named_block_is_given_its_level_and_no_other_block_anything(decoder: str, form: str) -> None:
    """Against hidden states recorded in front of the blocks, with a model built by hand as the reference."""
    scene = Scene.of(decoder, form)
    given = scene.visual_input()
    assert tuple(sorted(given.injected)) == scene.injection.blocks()
    entered: dict[int, Tensor] = {}
    left: dict[int, Tensor] = {}
    for number, block in enumerate(blocks_of(scene.model)):
        block.register_forward_pre_hook(lambda _, args, number=number: entered.update({number: args[0]}))
        block.register_forward_hook(
            lambda _, args, out, number=number: left.update({number: out if isinstance(out, Tensor) else out[0]})
        )
    with torch.no_grad():
        scene.logits(given)
        embeds = scene.embeds(given.tokens)
        if decoder == "gpt2":
            embeds = embeds + scene.model.transformer.wpe(scene.positions)
    for number in range(DEPTH):
        added = entered[number] - (left[number - 1] if number else embeds)
        expected = torch.zeros_like(added)
        if number in given.injected:
            expected[scene.visual] = given.injected[number].flatten(0, 1)
        torch.testing.assert_close(added, expected, atol=1e-4, rtol=1e-4)


def test_tokens_may_come_packed() -> None:
    scene = Scene.of("llama", "deepstack")
    given = scene.visual_input()
    with torch.no_grad():
        packed = {block: tokens.flatten(0, 1) for block, tokens in given.injected.items()}
        assert torch.equal(scene.logits(VisualInput(given.tokens, packed)), scene.logits(given))


@pytest.mark.parametrize("decoder", DECODERS)
def test_nothing_set_removed_or_zero_is_the_plain_decoder(decoder: str) -> None:
    scene = Scene.of(decoder, "deepstack")
    given = scene.visual_input()
    with torch.no_grad():
        injected = scene.logits(given)
        scene.injector.clear()
        plain = scene.forward(given.tokens)
        assert not torch.allclose(injected, plain)
        zeros = {block: torch.zeros_like(tokens) for block, tokens in given.injected.items()}
        assert torch.equal(scene.logits(VisualInput(given.tokens, zeros)), plain)
        assert torch.equal(scene.logits(VisualInput(given.tokens)), plain)
        scene.injector.set(given.injected, scene.visual)
        scene.injector.remove()
        assert torch.equal(scene.forward(given.tokens), plain)


@pytest.mark.parametrize("decoder", DECODERS)
def test_cached_generation_is_the_uncached(decoder: str) -> None:
    """Greedy, left-padded; the reference computes every step from the start, with the answer so far as words."""
    scene = Scene.of(decoder, "deepstack from the input on")
    given = scene.visual_input()
    settings = {"attention_mask": scene.mask.long(), "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        scene.injector.set(given.injected, scene.visual)
        cached = scene.model.generate(inputs_embeds=scene.embeds(given.tokens), use_cache=True, **settings)
        embeds, mask = scene.embeds(given.tokens), scene.mask
        for step in range(6):
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            logits = scene.model(
                inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=False
            ).logits[:, -1]
            assert torch.equal(logits.argmax(-1), cached[:, step])
            embeds = torch.cat((embeds, scene.model.get_input_embeddings()(cached[:, step])[:, None]), dim=1)
            mask = F.pad(mask, (0, 1), value=True)
        scene.injector.clear()
        plain = scene.model.generate(inputs_embeds=scene.embeds(given.tokens), use_cache=True, **settings)
    assert not torch.equal(cached, plain)


def test_a_prefill_in_chunks_is_given_the_same() -> None:
    scene = Scene.of("llama", "deepstack")
    given = scene.visual_input()
    with torch.no_grad():
        whole = scene.logits(given)
        embeds, cache, parts = scene.embeds(given.tokens), None, []
        for low in (0, 5, 10):
            step = slice(low, low + 5)
            out = scene.model(
                inputs_embeds=embeds[:, step],
                attention_mask=scene.mask[:, : low + 5].long(),
                position_ids=scene.positions[:, step],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1)[scene.mask], whole, atol=1e-4, rtol=1e-4)


def test_beams_are_given_the_tokens_of_their_sequence() -> None:
    """Beam search of both sequences together is that of each alone, scores and all."""
    scene = Scene.of("qwen2", "internal direct, spread")
    given = scene.visual_input()

    def searched(rows: slice) -> tuple[Tensor, Tensor]:
        scene.injector.set({block: tokens[rows] for block, tokens in given.injected.items()}, scene.visual[rows])
        found = scene.model.generate(
            inputs_embeds=embeds[rows],
            attention_mask=scene.mask[rows].long(),
            max_new_tokens=4,
            num_beams=2,  # odd numbers would put the second sequence where it is by chance
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        return found.sequences, found.sequences_scores

    with torch.no_grad():
        embeds = scene.embeds(given.tokens)
        words, scores = searched(slice(0, 2))
        for row in range(2):
            own_words, own_scores = searched(slice(row, row + 1))
            assert torch.equal(words[row], own_words[0])
            torch.testing.assert_close(scores[row], own_scores[0])


def gradients(scene: Scene) -> dict[str, Tensor]:
    scene.model.zero_grad()
    scene.injection.zero_grad()
    (scene.logits(scene.visual_input()).square().mean()).backward()
    scene.injector.clear()
    modules = (("decoder", scene.model), ("injection", scene.injection))
    return {
        f"{where}.{name}": parameter.grad.clone()
        for where, module in modules
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("decoder", DECODERS)
def test_gradient_checkpointing_changes_no_gradient(decoder: str, reentrant: bool) -> None:
    scene = Scene.of(decoder, "deepstack")
    for module in scene.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    scene.model.train()
    plain = gradients(scene)
    assert all(gradient.any() for name, gradient in plain.items() if name.startswith("injection."))
    scene.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    checkpointed = gradients(scene)
    assert checkpointed.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize("decoder", DECODERS)
def test_padding_side_changes_nothing(decoder: str) -> None:
    left, right = (Scene.of(decoder, "deepstack", left=side) for side in (True, False))
    for scene in (left, right):  # the same images and weights
        scene.model.load_state_dict(left.model.state_dict())
        scene.injection.load_state_dict(left.injection.state_dict())
        scene.features, scene.words[0] = left.features, left.words[0]
    with torch.no_grad():
        torch.testing.assert_close(
            left.logits(left.visual_input()), right.logits(right.visual_input()), atol=1e-4, rtol=1e-4
        )


def test_half_precision_keeps_the_dtype_of_the_hidden_states() -> None:
    scene = Scene.of("llama", "deepstack")
    given = scene.visual_input()
    exact = scene.logits(given).detach()
    scene.model.bfloat16()
    scene.injector.set(given.injected, scene.visual)
    out = scene.model(
        inputs_embeds=scene.embeds(given.tokens.bfloat16()),
        attention_mask=scene.mask.long(),
        position_ids=scene.positions,
    ).logits[scene.mask]
    assert out.dtype == torch.bfloat16
    assert float((out.detach().float() - exact).norm() / exact.norm()) < 0.1


def test_a_batch_without_images_has_gradients_of_zero() -> None:
    scene = Scene.of("llama", "deepstack")
    scene.visual[:] = False
    given = scene.visual_input(scene.features[:, :0])
    scene.logits(given).sum().backward()
    for name, parameter in scene.injection.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("decoder", DECODERS)
def test_inside_peft(decoder: str) -> None:
    peft = pytest.importorskip("peft")
    scene = Scene.of(decoder, "deepstack")
    given = scene.visual_input()
    with torch.no_grad():
        before = scene.logits(given)
        plain_embeds = scene.model.get_input_embeddings()
        targets = ["c_attn"] if decoder == "gpt2" else ["q_proj", "v_proj"]
        wrapped = peft.get_peft_model(scene.model, peft.LoraConfig(r=2, target_modules=targets, fan_in_fan_out=False))
        scene.model = wrapped.eval()
        assert scene.model.get_input_embeddings() is plain_embeds
        torch.testing.assert_close(scene.logits(given), before)  # LoRA starts as the identity


@pytest.mark.parametrize(
    "decoder", ["llama", pytest.param("qwen2", marks=pytest.mark.long), pytest.param("gpt2", marks=pytest.mark.long)]
)
def test_under_compile(decoder: str) -> None:
    scene = Scene.of(decoder, "deepstack")
    given, other = scene.visual_input(), scene.visual_input(scene.features.flip(1))
    with torch.no_grad():
        expected = [scene.logits(given), scene.logits(other)]
        scene.injector.clear()
        expected.append(scene.forward(given.tokens))
        torch._dynamo.reset()
        eager, scene.model.forward = scene.model.forward, torch.compile(scene.model.forward, backend="eager")
        torch.testing.assert_close(scene.logits(given), expected[0])
        torch.testing.assert_close(scene.logits(other), expected[1])
        scene.injector.clear()
        torch.testing.assert_close(scene.forward(given.tokens), expected[2])
        scene.model.forward = eager


@given(
    levels=st.sets(st.integers(0, 22), min_size=1, max_size=6),
    depth=st.integers(7, 40),
    start=st.integers(0, 3),
    interval=st.integers(1, 3),
    order=st.sampled_from(["shallow_first", "deep_first"]),
)
def test_where_levels_go(levels: set[int], depth: int, start: int, interval: int, order: str) -> None:
    """A block for each level, each once, ascending; of the decoder, or the error says that it is too shallow."""
    setting = InjectionSetting(Selection(tuple(sorted(levels)), 23), 4, 6, depth, "linear")
    spread = build_injection("internal_direct", setting)
    assert len(set(spread.blocks())) == len(levels)
    assert 1 <= min(spread.blocks()) <= max(spread.blocks()) < depth
    options = {"start": start, "interval": interval, "order": order}
    if start + (len(levels) - 1) * interval >= depth:
        with pytest.raises(WorkbenchError, match=f"this language model has {depth} blocks"):
            build_injection("deepstack", setting, options)
        return
    stacked = build_injection("deepstack", setting, options)
    assert stacked.blocks() == tuple(range(start, start + len(levels) * interval, interval))
    features = torch.randn(len(levels) + 1, 2, 3, 4)
    given = stacked(features, (1, 3))
    rows = range(len(levels)) if order == "shallow_first" else reversed(range(len(levels)))
    for block, row in zip(stacked.blocks(), rows, strict=True):
        torch.testing.assert_close(given.injected[block], stacked.levels[row](features[row]))  # type: ignore[index]


def test_the_papers_blocks() -> None:
    """Levels 3 and 18 of CLIP-L beside a decoder of 24 and one of 32: int(l · L / 24 − 1)."""
    for depth, blocks in ((24, (2, 17)), (32, (3, 23))):
        setting = InjectionSetting(Selection((3, 18), 23), 4, 6, depth)
        assert build_injection("internal_direct", setting, {"encoder_depth": 24}).blocks() == blocks


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("deepstack", {"start": 3}, "decoder blocks [3, 4, 5]; this language model has 5 blocks, 0 to 4. Lower start"),
        ("deepstack", {"interval": 0}, "interval=0"),
        ("deepstack", {"order": "deepfirst"}, "Did you mean 'deep_first'"),
        ("deepstack", {"begin": 1}, "has no option 'begin'"),
        ("internal_direct", {"blocks": "1, 2"}, "a block for each level"),
        ("internal_direct", {"blocks": "1, 2, 2"}, "no two levels"),
        ("internal_direct", {"blocks": "1, 2, 5"}, "0 to 4"),
        ("internal_direct", {"blocks": "one"}, "write the numbers"),
        ("internal_direct", {"blocks": "1, 2, 3", "encoder_depth": 6}, "name one of them"),
        ("internal_direct", {"encoder_depth": 3}, "names level 4"),
        ("deepstak", {}, "Did you mean 'deepstack'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(WorkbenchError) as caught:
        build_injection(name, SETTING, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_levels_are_needed() -> None:
    with pytest.raises(WorkbenchError, match="names none"):
        build_injection("deepstack", InjectionSetting(Selection((), 6), DIM, WIDTH, DEPTH))


def test_a_probe_cannot_have_one() -> None:
    for name in INJECTIONS:
        with pytest.raises(WorkbenchError, match="a probe cannot have it"):
            build(name, SELECTION, DIM)


def test_a_name_is_taken_once() -> None:
    for name in ("deepstack", "concat"):
        with pytest.raises(WorkbenchError, match="two strategies are called"):

            @register_injection(name, options=object)
            class Other(Injection):
                pass


def test_canonical_options_fill_in_defaults() -> None:
    full = {"start": 1, "interval": 1, "order": "shallow_first", "projectors": "own"}
    assert canonical_injection("deepstack", {"start": 1.0}) == full


def test_parts_hold_every_parameter_once() -> None:
    for name in INJECTIONS:
        injection = build_injection(name, SETTING)
        parts = injection.parts()
        assert list(parts) == ["fuser", "gates", "projector"]
        listed = [id(parameter) for part in parts.values() for parameter in part]
        assert sorted(listed) == sorted(id(parameter) for parameter in injection.parameters())


def test_costs_are_those_of_the_projectors() -> None:
    """Two linear maps per token for each of the four layers; FLOPs 2 per parameter of theirs but biases."""
    injection = build_injection("deepstack", SETTING)
    assert sum(parameter.numel() for parameter in injection.parameters()) == 4 * (DIM + 1 + WIDTH + 1) * WIDTH
    assert injection.flops(GRID, batch=3) == 3 * 6 * 4 * 2 * (DIM + WIDTH) * WIDTH


def test_diagnosis_names_blocks() -> None:
    injection = build_injection("deepstack", SETTING)
    found = injection.diagnose(torch.randn(4, 2, 6, DIM), GRID)
    assert list(found) == ["tokens_rms", *(f"injected_rms/block_{block}" for block in (1, 2, 3))]
    assert all(value > 0 for value in found.values())


def test_the_injector_refuses_what_does_not_fit() -> None:
    scene = Scene.of("llama", "deepstack")
    given = scene.visual_input()
    with pytest.raises(WorkbenchError, match="blocks 0 to 4"):
        scene.injector.set({5: given.injected[1]}, scene.visual)
    with pytest.raises(WorkbenchError, match="12 visual positions"):
        scene.injector.set({1: given.injected[1][:1]}, scene.visual)
    scene.injector.set({1: given.injected[1]}, scene.visual)
    with pytest.raises(WorkbenchError, match="set for 2 sequences and the language model is given 3"):
        scene.model(inputs_embeds=torch.zeros(3, 12, WIDTH))
