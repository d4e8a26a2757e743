"""Conversations as ids, token by token: where images stand, and what the model has to say itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chat import CHATML, CHATML_TOKENS, LLAMA2, LLAMA_TOKENS, by_pieces, by_words

from datamodules.chat import Chat, Encoded
from datamodules.conversations import Conversation, Turn
from workbench.tokens import IGNORE, IMAGE_ID

ASSET = Path("~/.cache/fusion-workbench/assets/language-model").expanduser()


def talk(*words: str, images: tuple[int, ...] = ()) -> Conversation:
    """User and assistant in turn."""
    turns = [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(words)]
    return Conversation("a", tuple(turns), images)


def spelt(chat: Chat, encoded: Encoded) -> list[tuple[str, bool]]:
    """Every token with whether it is taught."""
    assert len(encoded.input_ids) == len(encoded.labels)
    for i, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (i, IGNORE)
    names = ["<image>" if i == IMAGE_ID else chat._tokenizer.convert_ids_to_tokens(i) for i in encoded.input_ids]
    return [(name, label != IGNORE) for name, label in zip(names, encoded.labels, strict=True)]


def marked(text: str) -> list[tuple[str, bool]]:
    """``a b +c``: tokens, those with a plus taught; ``·`` is a space and ``↵`` a line break."""
    tokens = [token.replace("·", " ").replace("↵", "\n") for token in text.split()]
    return [(token.removeprefix("+"), token.startswith("+")) for token in tokens]


def chatml(**changed: object) -> Chat:
    words = r"\n, ,system,user,assistant,be, nice,what, is, it,is,a, cat, no,no,<,|,>,im_end,image"
    arguments = {"max_length": 100, "tokens_per_image": 4} | changed
    return Chat(by_words(CHATML, words, **CHATML_TOKENS), **arguments)  # type: ignore[arg-type]


def llama2(**changed: object) -> Chat:
    words = "▁,[INST],▁[/INST],▁what,▁is,▁it,▁a,▁cat,▁no,▁<<SYS>>,▁<</SYS>>,▁be,▁nice"
    arguments = {"max_length": 100, "tokens_per_image": 4} | changed
    return Chat(by_pieces(LLAMA2, words, **LLAMA_TOKENS), **arguments)  # type: ignore[arg-type]


def plain(**changed: object) -> Chat:
    words = "USER, USER,ASSISTANT, ASSISTANT,:, ,what, what, is, it, a, cat, no,be, nice,\\n"
    arguments = {"max_length": 100, "tokens_per_image": 4} | changed
    return Chat(by_words(None, words, eos_token="</s>"), **arguments)  # type: ignore[arg-type]


ASKED = ("<image>\nwhat is it", "a cat", "is it", "no")


def test_chatml_token_by_token() -> None:
    chat = chatml()
    encoded = chat.encode(talk("<image>\nwhat is it", "a cat", images=(3,)))
    assert spelt(chat, encoded) == marked(
        "<|im_start|> system ↵ be ·nice <|im_end|> ↵ <|im_start|> user ↵ <image> ↵ what ·is ·it <|im_end|> ↵"
        " <|im_start|> assistant ↵ +a +·cat +<|im_end|> ↵"
    )
    assert encoded.prompt == 20


def test_chatml_of_several_turns() -> None:
    chat = chatml(system="")
    assert spelt(chat, chat.encode(talk("what is it", "a cat", "what", "a", images=()))) == marked(
        "<|im_start|> system ↵ <|im_end|> ↵ <|im_start|> user ↵ what ·is ·it <|im_end|> ↵"
        " <|im_start|> assistant ↵ +a +·cat +<|im_end|> ↵ <|im_start|> user ↵ what <|im_end|> ↵"
        " <|im_start|> assistant ↵ +a +<|im_end|> ↵"
    )


def test_llama2_token_by_token() -> None:
    """The space before an answer is in its first token, and the one before the end token is said too."""
    chat = llama2()
    assert spelt(chat, chat.encode(talk("what is it", "a cat", "is it", "no"))) == marked(
        "<s> [INST] ▁what ▁is ▁it ▁[/INST] +▁a +▁cat +▁ +</s> <s> [INST] ▁is ▁it ▁[/INST] +▁no +▁ +</s>"
    )
    encoded = llama2(system="be nice").encode(talk("what", "a"))
    assert spelt(chat, encoded) == marked("<s> [INST] ▁<<SYS>> ▁be ▁nice ▁<</SYS>> ▁what ▁[/INST] +▁a +▁ +</s>")


def test_plain_token_by_token() -> None:
    chat = plain()
    encoded = chat.encode(talk("<image>\nwhat is it", "a cat", "what is it", "no", images=(0,)))
    assert spelt(chat, encoded) == marked(
        "USER : · <image> ↵ what ·is ·it ·ASSISTANT : +·a +·cat +</s> USER : ·what ·is ·it ·ASSISTANT : +·no +</s>"
    )
    assert spelt(chat, plain(system="be nice").encode(talk("what", "a"))) == marked(
        "be ·nice ·USER : ·what ·ASSISTANT : +·a +</s>"
    )


@pytest.mark.parametrize("chat", [chatml(), llama2(), plain()], ids=["chatml", "llama2", "plain"])
def test_a_prompt_is_what_the_template_would_ask_with(chat: Chat) -> None:
    conversation = talk("what is it", "a cat", "is it", "no")
    encoded = chat.encode(conversation)
    assert list(encoded.input_ids[: encoded.prompt]) == chat.prompt(conversation)
    assert chat.prompt(talk("what is it", "a cat", "is it")) == chat.prompt(conversation)
    tokenizer = chat._tokenizer
    if tokenizer.chat_template:
        messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns[:3]]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat.prompt(conversation) == ids
    assert encoded.labels[encoded.prompt] != IGNORE
    assert chat.decode([i for i in encoded.labels[encoded.prompt :] if i != IGNORE]) == "no"
