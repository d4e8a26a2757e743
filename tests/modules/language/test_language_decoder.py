"""Any causal language model, frozen, with LoRA, or in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_language import DEPTH, FAMILIES, LORA, WIDTH, tiny_decoder
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.language.decoder import Decoder


def given(decoder: Decoder, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    embeds = torch.randn(2, 7, WIDTH, requires_grad=requires_grad)
    mask = torch.ones(2, 7, dtype=torch.bool)
    return embeds, mask, torch.arange(7).expand(2, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_parts_are_found(family: str) -> None:
    decoder = tiny_decoder(family)
    assert (decoder.width, decoder.depth, len(decoder.layers)) == (WIDTH, DEPTH, DEPTH)
    assert decoder.stop_ids == [1]
    decoder.ends = (2, 1)
    assert decoder.stop_ids == [1, 2], "those of the chat template too"
    assert decoder.pad_id == 0
    assert not decoder.trained()
    blocks = list(decoder.layers)
    decoder.add_lora(LORA)
    assert list(decoder.layers) == blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_only_where_they_are_asked_for(family: str) -> None:
    decoder = tiny_decoder(family)
    positions = torch.tensor([3, 0, 12])
    everywhere = decoder(*given(decoder))
    assert torch.allclose(decoder(*given(decoder), positions), everywhere.flatten(0, 1)[positions], atol=1e-6)
    assert decoder(*given(decoder)).shape == everywhere.shape  # the next call asks for all again


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_model_learns_and_merges(family: str) -> None:
    pytest.importorskip("peft")
    decoder = tiny_decoder(family)
    before = decoder(*given(decoder))
    names = set(decoder.state_dict())
    decoder.add_lora(replace(LORA, rank=2))
    assert torch.allclose(decoder(*given(decoder)), before, atol=1e-6)
    assert {id(p) for p in decoder.trained()} == {id(p) for p in decoder.lora_parameters()}
    linear = {"llama": 7, "qwen2": 7, "gpt2": 4}[family]
    assert len(decoder.trained()) == 2 * DEPTH * linear
    for parameter in decoder.trained():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tuned = decoder(*given(decoder))
    assert not torch.allclose(tuned, before, atol=1e-2)
    decoder.merge_lora()
    assert torch.allclose(decoder(*given(decoder)), tuned, atol=1e-4)
    assert set(decoder.state_dict()) == names
    assert not decoder.trained()


def test_lora_of_named_maps_alone() -> None:
    pytest.importorskip("peft")
    decoder = tiny_decoder()
    decoder.add_lora(replace(LORA, targets=("q_proj", "v_proj")))
    assert len(decoder.trained()) == 2 * DEPTH * 2
    with pytest.raises(WorkbenchError, match="merge them before"):
        decoder.add_lora(LORA)
    with pytest.raises(WorkbenchError, match=r"'query' is not in the language model's blocks: \['down_proj'"):
        tiny_decoder().add_lora(replace(LORA, targets=("query",)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trains", ["frozen", "full"])
def test_checkpointing_changes_no_gradient(family: str, trains: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        decoder = tiny_decoder(family)
        if trains == "full":
            decoder.train_fully()
        for module in decoder.modules():  # GPT-2's would make a difference when all of it is trained
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        ran: list[int] = []
        decoder.layers[1].mlp.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        if checkpointing:
            decoder.checkpoint_gradients()
        decoder.train()
        embeds, mask, places = given(decoder, requires_grad=True)
        decoder(embeds, mask, places).square().mean().backward()
        assert len(ran) == (2 if checkpointing else 1)  # run again in the backward pass
        assert embeds.grad is not None
        gradients.append([embeds.grad, *[p.grad for p in decoder.trained()]])
    for plain, again in zip(*gradients, strict=True):
        if plain is None:  # the table of words where it is not tied: the input is given as embeddings
            assert again is None
        else:
            assert torch.allclose(plain, again, atol=1e-6)


def test_frozen_has_no_dropout() -> None:
    decoder = tiny_decoder("gpt2")
    batch = given(decoder)
    decoder.train()
    assert torch.equal(decoder(*batch), decoder(*batch))
    decoder.train_fully()
    decoder.train()
    assert not torch.equal(decoder(*batch), decoder(*batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_stays_close_and_keeps_what_is_trained_in_float32(family: str) -> None:
    plain, half = tiny_decoder(family), tiny_decoder(family, precision="bf16")
    wanted, found = plain(*given(plain)), half(*given(half))
    assert half.model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    half.train_fully()
    assert {p.dtype for p in half.trained()} == {torch.float32}


def test_compiled_gives_the_same() -> None:
    decoder = tiny_decoder()
    positions = torch.tensor([3, 0, 12])
    everywhere, some = decoder(*given(decoder)), decoder(*given(decoder), positions)
    names = list(decoder.state_dict())
    decoder.compile(backend="eager")
    assert list(decoder.state_dict()) == names
    assert torch.allclose(decoder(*given(decoder)), everywhere, atol=1e-6)
    assert torch.allclose(decoder(*given(decoder), positions), some, atol=1e-6)
    assert torch.allclose(decoder(*given(decoder), positions + 1), everywhere.flatten(0, 1)[positions + 1], atol=1e-6)


def test_loads_a_folder(tmp_path: Path) -> None:
    decoder = tiny_decoder("llama")  # beside a Qwen2 transformers would read any tokenizer as Qwen2's
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    loaded = Decoder.load(str(tmp_path), precision="float32", attention="eager")
    assert torch.allclose(loaded(*given(loaded)), decoder(*given(decoder)), atol=1e-5)
    assert loaded.tokenizer.decode(loaded.tokenizer("Why, 7?")["input_ids"]) == "Why, 7?"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("held", [torch.float16, torch.bfloat16, torch.float32])
def test_what_computes_in_bf16_is_loaded_as_it_is_kept(family: str, held: torch.dtype, tmp_path: Path) -> None:
    """Weights, types and buffers are those of one that was read in float32 and then converted."""
    made = tiny_decoder(family)
    made.model.to(held).save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = Decoder.load(str(tmp_path), precision="bf16")
    whole = Decoder(Decoder.load(str(tmp_path), precision="float32").model, made.tokenizer, "bf16")
    wanted = {**dict(whole.model.named_parameters()), **dict(whole.model.named_buffers())}
    found = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == wanted[name].dtype, name
        assert torch.equal(value, wanted[name]), name
    assert {torch.bfloat16, torch.float32} == {p.dtype for p in loaded.model.parameters()}


def test_what_cannot_be_loaded_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"holds no config\.json"):
        Decoder.load(str(tmp_path))
    with pytest.raises(WorkbenchError, match="'nobody/nothing' could not be loaded") as caught:
        Decoder.load("nobody/nothing")
    assert "\n" not in str(caught.value)
