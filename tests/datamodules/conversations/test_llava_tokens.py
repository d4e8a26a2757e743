"""Ids and labels of both of LLaVA's stages, with a SentencePiece tokenizer, against LLaVA's rules told again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llava_rules
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llava_rules import CAPTIONS, CONVERSATIONS, IGNORED, IMAGE_PLACE
from tiny_chat import CHATML, CHATML_TOKENS, by_bytes, by_words
from tiny_sentencepiece import by_sentencepiece

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.datamodules.conversations.base import IMAGE, Conversation, Turn
from fusion_workbench.datamodules.conversations.chat import Chat, Encoded
from fusion_workbench.datamodules.rows.rows import parse_row


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not legacy"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return by_sentencepiece(tmp_path_factory.mktemp("sentencepiece"), request.param)


def told(words: Sequence[str]) -> Conversation:
    """As a row of LLaVA's file is read."""
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(words)]
    shown = {"image": "a.png"} if any(IMAGE in text for text in words) else {}
    row = parse_row({"id": "a", "conversations": turns, **shown})
    return Conversation("a", row.turns, tuple(range(len(row.images))))


def as_llava(encoded: Encoded) -> llava_rules.Labelled:
    ids = [IMAGE_PLACE if i == IMAGE_ID else i for i in encoded.input_ids]
    return ids, [IGNORED if i == IGNORE else i for i in encoded.labels]


def test_the_tokenizer_tells_a_beginning_from_a_middle(tokenizer: Any) -> None:
    after = tokenizer("</s>USER", add_special_tokens=False)["input_ids"][1:]
    assert (after == tokenizer("USER", add_special_tokens=False)["input_ids"]) == tokenizer.legacy


@pytest.mark.parametrize("words", CONVERSATIONS)
def test_instructions_as_llava(words: tuple[str, ...], tokenizer: Any) -> None:
    chat = Chat(tokenizer, 500, 4, "vicuna_v1")
    encoded = chat.encode(told(words))
    ids, labels = llava_rules.v1(words, tokenizer)
    assert as_llava(encoded) == (ids, labels)
    assert sum(label != IGNORED for label in labels) > len(words) // 2  # the rules' own counts came out
    assert list(encoded.input_ids[: encoded.prompt]) == chat.prompt(told(words))


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_as_llava(caption: str, tokenizer: Any) -> None:
    """The words of the question are dropped."""
    chat = Chat(tokenizer, 500, 4, "vicuna_v1", form="plain")
    encoded = chat.encode(told(("Render a clear summary.\n<image>", caption)))
    assert as_llava(encoded) == llava_rules.plain(caption, tokenizer)
    assert encoded.prompt == 2
    assert chat.prompt(told((f"{IMAGE}\nwhat?", caption))) == [tokenizer.bos_token_id, IMAGE_ID]


def test_the_plain_form_is_for_captions(tokenizer: Any) -> None:
    chat = Chat(tokenizer, 500, 4, form="plain")
    for words, says in (
        (("what", "a"), "0 images and 2 turns"),
        (("<image>\nwhat", "a", "what", "a"), "1 images and 4 turns"),
    ):
        with pytest.raises(WorkbenchError, match=f"conversation 'a': template: plain is for one image .* {says}"):
            chat.encode(told(words))


def test_vicuna_v1_in_the_place_of_a_tokenizers_own_template() -> None:
    tokenizer = by_bytes(CHATML, "a chat between", **CHATML_TOKENS)
    chat = Chat(tokenizer, 500, 4, "vicuna_v1")
    encoded = chat.encode(told(("<image>\nwhat?", "a cat", "and?", "no")))
    texts = tokenizer.decode([i for i in encoded.input_ids if i >= 0])
    assert texts == (f"{llava_rules.SYSTEM} USER: \nwhat? ASSISTANT: a cat<|im_end|>USER: and? ASSISTANT: no<|im_end|>")
    assert tokenizer.decode([i for i in encoded.labels if i >= 0]) == " a cat<|im_end|> no<|im_end|>"
    with pytest.raises(WorkbenchError, match="has no end token, which system: vicuna_v1 ends answers with"):
        Chat(by_words(CHATML, "what,a"), 500, 4, "vicuna_v1")


def test_an_own_template_has_the_ids_that_transformers_gives(tmp_path: Path) -> None:
    """The template writes the beginning token itself, and what follows it is the middle of a text."""
    template = (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    )
    tokenizer = by_sentencepiece(tmp_path, legacy=False, template=template)
    conversation = Conversation("a", (Turn("user", "what"), Turn("assistant", "a")))
    messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert list(Chat(tokenizer, 500, 4, None).encode(conversation).input_ids) == ids


_SAID = st.text(alphabet="aé猫🐱7 \n.A", min_size=1, max_size=12).filter(str.strip).map(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(st.tuples(_SAID, _SAID), min_size=1, max_size=3), shown=st.booleans())
def test_whatever_is_said_as_llava(said: list[tuple[str, str]], shown: bool, tokenizer: Any) -> None:
    words = [words for pair in said for words in pair]
    words[0] = f"{IMAGE}\n{words[0]}" if shown else words[0]
    assert as_llava(Chat(tokenizer, 500, 4, "vicuna_v1").encode(told(words))) == llava_rules.v1(words, tokenizer)
