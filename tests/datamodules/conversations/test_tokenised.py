"""Conversations tokenised once: the ids that each text alone has, in a file that is read by whoever comes next."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import CHATML, CHATML_TOKENS, LLAMA2, THINKING, by_bytes
from tiny_sentencepiece import by_sentencepiece
from tiny_talk import TalkSource, tiny_chat

from fusion_workbench.datamodules.conversations.base import Conversation, Turn
from fusion_workbench.datamodules.conversations.chat import Chat
from fusion_workbench.datamodules.conversations.tokenised import tokenise, tokenised_split

_TEXT = "a 7\n\n assistant <think>\n\n</think>\n\n USER: ASSISTANT: cat" + "x\n\n" * 9
_BREAKS = CHATML.replace("message['role'] + '\n'", "message['role'] + '\n\n'")  # merges with what an answer begins with
CHATS = (
    "chatml",
    "breaks",
    "thinking",
    "v1",
    "within",
    "plain",
    *(f"{kind} {legacy}" for kind in ("v1", "llama2") for legacy in (True, False)),
)


@cache
def chat_of(name: str) -> Chat:
    import tempfile

    kind, _, legacy = name.partition(" ")
    if legacy:
        with tempfile.TemporaryDirectory() as folder:
            template = LLAMA2 if kind == "llama2" else None
            tokenizer = by_sentencepiece(Path(folder), legacy == "True", template)
        return Chat(tokenizer, 100, 4, "vicuna_v1" if kind == "v1" else None)
    template = {"breaks": _BREAKS, "thinking": THINKING}.get(kind, CHATML)
    tokenizer = by_bytes(template, _TEXT, **CHATML_TOKENS)
    if kind == "plain":
        return Chat(tokenizer, 100, 4, form="plain")
    return Chat(
        tokenizer, 100, 4, "vicuna_v1" if kind in ("v1", "within") else None, images_apart=kind != "within" and None
    )


_PARTS = [
    "<|im_end|>",
    "</s>",
    "\ue000",
    "<image>",
    "a",
    "A",
    " ",
    "\n",
    "\n\n",
    "é",
    "猫",
    "🐱",
    "7",
    "USER:",
    ".",
    "  ",
]
_SAID = st.lists(st.sampled_from(_PARTS), max_size=6).map("".join)


@given(
    name=st.sampled_from(CHATS),
    several=st.lists(st.tuples(st.lists(st.tuples(_SAID, _SAID), min_size=1, max_size=4), st.booleans()), max_size=4),
)
def test_tokenised_once_is_as_tokenised_border_by_border(
    name: str, several: list[tuple[list[tuple[str, str]], bool]]
) -> None:
    chat = chat_of(name)
    conversations = []
    for said, shown in several:
        said = said[:1] if name == "plain" else said
        shown = shown or name == "plain"
        turns = [
            Turn(role, text.replace("<image>", "") if shown else text)
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        if shown:
            turns[0] = Turn("user", f"<image>\n{turns[0].text}")
        conversations.append(Conversation("a", tuple(turns), (0,) * shown))
    assert list(chat.encode_all(conversations)) == [chat.encode(one) for one in conversations]


@pytest.mark.parametrize("name", CHATS)
def test_few_texts_are_tokenised_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rounds: each text once, and of what is before a border the stretch since the last special token."""
    chat = chat_of(name)
    rounds = 1 if name == "plain" else 10
    words = (
        "<image>\nwhat is it",
        "a cat",
        *itertools.chain.from_iterable((f"and {n}?", f"no {n}") for n in range(1, rounds)),
    )
    conversation = Conversation(
        "a", tuple(Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(words)), (0,)
    )
    expected = chat.encode(conversation)
    letters = 0
    tokenizer = type(chat._tokenizer)
    plain = tokenizer.__call__

    def counted(self: Any, text: Any, *rest: Any, **options: Any) -> Any:
        nonlocal letters
        letters += sum(map(len, [text] if isinstance(text, str) else text))
        return plain(self, text, *rest, **options)

    monkeypatch.setattr(tokenizer, "__call__", counted)
    assert list(chat.encode_all([conversation])) == [expected]
    once = sum(len(piece.text) for piece in chat._pieces(conversation, conversation.turns, []))
    if name not in ("breaks", "thinking"):  # there line breaks before an answer have other ids than within the whole
        assert letters <= 2 * once


@pytest.mark.parametrize(("max_length", "tokens_per_image"), itertools.product((1, 20, 58, 70, 10_000), (1, 16, 22)))
def test_what_is_kept_of_each(max_length: int, tokens_per_image: int) -> None:
    chat = tiny_chat(max_length).adapted(tokens_per_image=tokens_per_image)
    conversations = TalkSource().conversations("train")
    tokens = tokenise(conversations, chat)
    fitted = tokens.fitted(max_length, tokens_per_image)
    encoded = [chat.encode(one) for one in conversations]
    each = [chat.fit(one) for one in encoded]
    for number, (whole, kept) in enumerate(zip(encoded, each, strict=True)):
        assert tokens.ids[tokens.part(number)].tolist() == list(whole.input_ids)
        assert fitted.kept[number] == (0 if kept is None else len(kept.input_ids))
        assert fitted.lengths[number] == (0 if kept is None else chat.length(kept))
    assert fitted.left_out == each.count(None)
    assert fitted.cut == sum(kept is not None and kept is not one for one, kept in zip(encoded, each, strict=True))
    assert fitted.lengths.max() <= max_length


def test_whoever_comes_next_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, chat = TalkSource(), tiny_chat()
    first = tokenised_split(source, "train", chat, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")

    def same(other: Any) -> bool:
        return all(np.array_equal(getattr(first, name), getattr(other, name)) for name in vars(first))

    assert same(tokenise(source.conversations("train"), chat))
    with monkeypatch.context() as patch:
        patch.setattr(Chat, "encode_all", _refuse)
        assert same(tokenised_split(source, "train", tiny_chat(max_length=9), tmp_path))  # cut later
        with pytest.raises(AssertionError, match="tokenised"):
            tokenised_split(source, "val", chat, tmp_path)
        with pytest.raises(AssertionError, match="tokenised"):
            tokenised_split(source, "train", tiny_chat(system="be brief"), tmp_path)

    good = file.read_bytes()
    for damaged in (good[: len(good) // 2], good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], b"", b"{}" * 50):
        file.write_bytes(damaged)
        assert same(tokenised_split(source, "train", chat, tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(Chat, "encode_all", _refuse)
            assert same(tokenised_split(source, "train", chat, tmp_path)), "it was written anew"
    assert not list(tmp_path.glob("*.part"))


def _refuse(chat: Chat, conversations: Any) -> Iterator[Any]:
    raise AssertionError("tokenised")
