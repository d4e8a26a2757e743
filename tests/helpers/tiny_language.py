"""Tiny causal language models of three families, built from their configs, and a tokenizer of single characters."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from fusion_workbench.modules.language.decoder import Decoder, LoraOptions

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!:\n"
SPECIAL = ("<pad>", "<end>", "<unk>")
WIDTH, DEPTH = 32, 3


def tiny_tokenizer() -> Any:
    """``<pad>`` 0, ``<end>`` 1 (ends an answer), ``<unk>`` 2, then one token per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )


def _vocabulary() -> dict[str, int]:
    return {"vocab_size": len(SPECIAL) + len(CHARACTERS), "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def _llama(width: int, depth: int) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            **_vocabulary(),
        )
    )


def _qwen2(width: int, depth: int) -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            **_vocabulary(),
        )
    )


def _gpt2(width: int, depth: int) -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=width, n_layer=depth, n_head=4, n_positions=512, **_vocabulary())
    )


BUILDERS = {"llama": _llama, "qwen2": _qwen2, "gpt2": _gpt2}
FAMILIES = tuple(BUILDERS)
LORA = LoraOptions(rank=16, alpha=32, dropout=0.0)


def tiny_decoder(
    family: str = "llama", seed: int = 0, width: int = WIDTH, depth: int = DEPTH, **options: Any
) -> Decoder:
    """A decoder with seeded weights; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BUILDERS[family](width, depth)
        for parameter in model.parameters():  # at the usual 0.02 every token looks alike
            parameter.data += 0.1 * torch.randn_like(parameter)
    return Decoder(model, tiny_tokenizer(), **options)
