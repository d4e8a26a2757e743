"""Conversations as ids, token by token: where images stand, and what the model has to say itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import CHATML, CHATML_TOKENS, LLAMA2, LLAMA_TOKENS, THINKING, by_bytes, by_pieces, by_words
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.datamodules.conversations.base import Conversation, Turn
from fusion_workbench.datamodules.conversations.chat import Chat, Encoded

ASSET = Path("~/.cache/fusion-workbench/assets/language-model").expanduser()


def talk(*words: str, images: tuple[int, ...] = ()) -> Conversation:
    """User and assistant in turn."""
    turns = [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(words)]
    return Conversation("a", tuple(turns), images)


def spelt(chat: Chat, encoded: Encoded) -> list[tuple[str, bool]]:
    """Every token with whether loss is taken on it."""
    assert len(encoded.input_ids) == len(encoded.labels)
    for i, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (i, IGNORE)
    names = ["<image>" if i == IMAGE_ID else chat._tokenizer.convert_ids_to_tokens(i) for i in encoded.input_ids]
    return [(name, label != IGNORE) for name, label in zip(names, encoded.labels, strict=True)]


def marked(text: str) -> list[tuple[str, bool]]:
    """``a b +c``: tokens, those with a plus in the loss; ``·`` is a space and ``↵`` a line break."""
    tokens = [token.replace("·", " ").replace("↵", "\n") for token in text.split()]
    return [(token.removeprefix("+"), token.startswith("+")) for token in tokens]


def chatml(**changed: object) -> Chat:
    words = r"\n, ,system,user,assistant,be, nice,what, is, it,is,a, cat, no,no,<, <,|,>,im_end,image"
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
    """The space before an answer is in its first token, and the one before the end token is in the loss too."""
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
    assert chat._tokenizer.decode([i for i in encoded.labels[encoded.prompt :] if i != IGNORE]).strip().startswith("no")


# --- words are words ----------------------------------------------------------------------------------------


def test_control_tokens_typed_by_a_user_are_text() -> None:
    chat = chatml(system="")
    assert spelt(chat, chat.encode(talk("what <|im_end|>", "a<|im_end|> cat"))) == marked(
        "<|im_start|> system ↵ <|im_end|> ↵ <|im_start|> user ↵ what · < | im_end | > <|im_end|> ↵"
        " <|im_start|> assistant ↵ +a +< +| +im_end +| +> +·cat +<|im_end|> ↵"
    )


def test_an_image_typed_where_there_is_none_is_text() -> None:
    chat = chatml(system="")
    told = marked("what ·< image > <|im_end|> ↵ <|im_start|> assistant ↵ +·cat +< +image +> +<|im_end|> ↵")
    told[-6] = ("<unk>", True)  # no "cat" without a space in this vocabulary
    assert spelt(chat, chat.encode(talk("what <image>", "cat<image>")))[-len(told) :] == told
    assert chat.encode(talk("<image> what", "<image>", images=(0,))).images == 1
    for conversation in (talk("<image><image>what", "a", images=(0,)), talk("what", "a", images=(0,))):
        with pytest.raises(WorkbenchError, match=r"conversation 'a': \d times '<image>' for 1 images"):
            chat.encode(conversation)


_PARTS = ["<|im_end|>", "<|im_start|>", "\ue000", "\ue001", "<image>", "a", " ", "\n", "é", "7"]
_SAID = st.lists(st.sampled_from(_PARTS), max_size=6).map("".join)
_BYTES = Chat(by_bytes(CHATML, "a 7\n\n assistant", **CHATML_TOKENS), 100, 4, system="")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_SAID, _SAID), min_size=1, max_size=3))
def test_whatever_is_said(said: list[tuple[str, str]]) -> None:
    """Nothing is lost, nothing said is a control token, the answers are in the loss, and a prompt is as in training."""
    conversation = talk(*(words for pair in said for words in pair))
    encoded = _BYTES.encode(conversation)
    start, end = (_BYTES._tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert encoded.input_ids.count(start) == encoded.input_ids.count(end) == 1 + 2 * len(said)
    assert encoded.images == 0
    turns = [{"role": turn.role, "content": turn.text.strip()} for turn in conversation.turns]
    messages = [{"role": "system", "content": ""}, *turns]
    whole = _BYTES._tokenizer.apply_chat_template(messages, tokenize=False)
    assert _BYTES._tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False) == whole
    taught = [i for i in encoded.labels if i != IGNORE]
    answers = "".join(f"{answer.strip()}<|im_end|>" for _, answer in said)
    assert _BYTES._tokenizer.decode(taught, clean_up_tokenization_spaces=False) == answers
    assert list(encoded.input_ids[: encoded.prompt]) == _BYTES.prompt(conversation)


# --- any template -------------------------------------------------------------------------------------------


def test_the_last_answer_may_be_treated_differently() -> None:
    """Qwen 3's empty thought before the last answer is given, not in the loss, and is part of the prompt."""
    chat = Chat(by_bytes(THINKING, "assistant <think>\n\n</think>\n\n", **CHATML_TOKENS), 100, 4)
    conversation = talk("what", "a", "is it", "no")
    encoded = chat.encode(conversation)
    asked = chat._tokenizer.decode(encoded.input_ids[: encoded.prompt])
    assert asked.endswith("<|im_start|>user\nis it<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert asked.count("<think>") == 1
    assert chat._tokenizer.decode([i for i in encoded.labels if i != IGNORE]) == "a<|im_end|>no<|im_end|>"
    with pytest.raises(WorkbenchError, match="changes the words of this conversation"):
        chat.encode(talk("what", "<think>ah</think>a"))


def test_line_breaks_do_not_merge_across_the_border_of_an_answer() -> None:
    """GPT-2's tokenizer makes one token of two line breaks, unless a word follows: the prompt may not depend on it."""
    template = CHATML.replace("message['role'] + '\n'", "message['role'] + '\n\n'")
    chat = Chat(by_bytes(template, "x\n\n" * 9, **CHATML_TOKENS), 100, 4)
    ids = chat._tokenizer("assistant\n\n", add_special_tokens=False)["input_ids"]
    assert chat._tokenizer("assistant\n\na", add_special_tokens=False)["input_ids"][: len(ids)] != ids
    encoded = chat.encode(talk("what", "a"))
    assert list(encoded.input_ids[: encoded.prompt]) == chat.prompt(talk("what", "a"))
    assert chat.prompt(talk("what", "a"))[-len(ids) :] == ids


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (CHATML.replace("+ '<|im_end|>'", ""), "ends an answer with no special token"),
        (CHATML.replace("message['content'] +", "(message['content'] if loop.last else '') +"), "leaves out, repeats"),
        (CHATML.replace("message['content'] +", "message['content'] + message['content'] +"), "leaves out, repeats"),
        (CHATML.replace("message['content'] +", "message['content'] | capitalize +"), "changes the words"),
        (LLAMA2.replace("message['role'] == 'user'", "false"), "refuses turns of user, assistant: what is user"),
        ("{{ messages[0]['content'] +", "refuses turns"),
    ],
)
def test_templates_that_cannot_be_followed(template: str, told: str) -> None:
    with pytest.raises(WorkbenchError, match=told) as error:
        Chat(by_words(template, "what,a", **CHATML_TOKENS), 100, 4).encode(talk("what", "a"))
    assert "\n" not in str(error.value)


def test_without_template_and_end_token() -> None:
    with pytest.raises(WorkbenchError, match="neither a chat template nor an end token"):
        Chat(by_words(None, "what,a"), 100, 4)


def test_an_empty_system_turn_where_the_template_takes_none() -> None:
    strict = CHATML.replace(
        "{{ '<|im_start|>' + m", "{{ raise_exception('no') if message.role == 'system' }}{{ '<|im_start|>' + m"
    )
    tokenizer = by_bytes(strict, "a", **CHATML_TOKENS)
    assert Chat(tokenizer, 100, 4, system="").prompt(talk("a", "b")) == Chat(tokenizer, 100, 4).prompt(talk("a", "b"))
    with pytest.raises(WorkbenchError, match="refuses turns of system, user"):
        Chat(tokenizer, 100, 4, system="be nice").prompt(talk("a", "b"))


# --- length -------------------------------------------------------------------------------------------------


def test_what_is_too_long_is_cut_on_the_right() -> None:
    conversation = talk("<image>\nwhat is it", "a cat", "what is it", "no", images=(0,))
    chat = plain()
    whole = chat.encode(conversation)
    assert chat.length(whole) == len(whole.input_ids) + 3 == 25
    for room in range(1, 30):
        kept = plain(max_length=room).fit(whole)
        if room >= 25:
            assert kept is whole
        elif room < 14:  # USER : · image ↵ what is it ASSISTANT : take 13
            assert kept is None
        else:
            assert kept is not None
            assert kept.input_ids == whole.input_ids[: room - 3]
            assert kept.labels == whole.labels[: room - 3]
            assert chat.length(kept) == room


def test_an_image_is_never_cut() -> None:
    chat = plain(max_length=14)  # USER : ·what ·ASSISTANT : ·no </s> USER : · take 10, the image 4
    whole = chat.encode(talk("what", "no", "<image>", "no", images=(0,)))
    for room in range(6, 16):
        kept = plain(max_length=room).fit(whole)
        assert kept is not None
        assert kept.images == (room >= 14)
        assert len(kept.input_ids) == (room - 3 if kept.images else min(room, 10))
    images_alone = chat.encode(talk("what", "no", "<image>" * 4, "no", images=(0, 1, 2, 3)))
    assert chat.fit(images_alone) is None


# --- the embedded language model ----------------------------------------------------------------------------


@pytest.mark.skipif(not (ASSET / "tokenizer.json").exists(), reason="the embedded language model is not there")
def test_smollm2_token_by_token() -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(ASSET)
    chat = Chat(tokenizer, 100, 64, system="")
    encoded = chat.encode(talk("<image>\nWhich letter? <|im_end|>", "K 7", images=(0,)))
    names = [(name.replace("Ġ", " ").replace("Ċ", "\n"), taught) for name, taught in spelt(chat, encoded)]
    assert names == marked(
        "<|im_start|> system ↵ <|im_end|> ↵ <|im_start|> user ↵ <image> ↵ Which ·letter ? · < | im _ end | >"
        " <|im_end|> ↵ <|im_start|> ass istant ↵ +K +· +7 +<|im_end|> ↵"
    )
    assert chat.stop_ids == (2,)
    assert chat._tokenizer.decode([i for i in encoded.labels if i != IGNORE]) == "K 7<|im_end|>"
    default = chat._tokenizer.decode([i for i in Chat(tokenizer, 100, 64).prompt(talk("a", "b")) if i >= 0])
    assert "You are a helpful AI assistant named SmolLM" in default
