"""A small SentencePiece tokenizer made as Llama's was: BPE, bytes for what is unknown, a mark where a word begins."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

WORDS = (
    "a the chat between curious user and an artificial intelligence assistant gives helpful detailed polite answers "
    "to questions what is in this picture how many dogs are there two cats on red chair small house near tree river "
    "yes no it shows where which colour street sign says stop old man with hat reading book under lamp of"
)


@cache
def _model() -> bytes:
    """Trained on words drawn at random; ``USER`` stands within words, so that ``▁USER`` is no piece of its own."""
    import sentencepiece

    draw = random.Random(0)
    words = WORDS.split()
    lines = [" ".join(draw.choices(words, k=9)) + ". (USER: or (ASSISTANT: A, 1." for _ in range(400)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return out.getvalue()


def by_sentencepiece(folder: Path, legacy: bool, template: str | None = None) -> Any:
    """The tokenizer as transformers reads it from a folder with ``tokenizer.model``, as Vicuna's."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_model())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 2048,
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)
