"""LLaVA's own rules for ids and labels, told again in our words, for the tests to hold ours against.

The source: haotian-liu/LLaVA at c121f04, ``preprocess_multimodal``, ``preprocess_v1`` and ``preprocess_plain`` of
``llava/train/train.py``, ``tokenizer_image_token`` of ``llava/mm_utils.py``, the conversations ``v1`` and ``plain`` of
``llava/conversation.py``. It is for turns with one image at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

IGNORED, IMAGE_PLACE = -100, -200
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
Labelled = tuple[list[int], list[int]]

# User and assistant in turn.
CONVERSATIONS: Sequence[tuple[str, ...]] = (
    ("<image>\nWhat is in this picture?", "Two cats on a red chair."),
    ("What is in this picture?\n<image>", "Two cats on a red chair."),
    ("Is <image> this the old man?", "Yes."),
    ("<image>", "A street sign."),
    ("<image>\nHow many dogs?", "2", "And cats?", "12, or 13."),
    ("<image>\nHow many dogs?", "2", "And cats?", "12", "And trees?", "There are no trees near the river."),
    ("How many dogs?\n<image>", "2", "And cats?", "12", "And trees?", "none", "And houses?", "one"),
    ("What is a river?", "Water."),
    ("What is a river?", "Water.", "And a tree?", "Wood."),
    ("<image>\n这是什么？", "两只猫。"),
    ("<image>\n何が見えますか", "猫が二匹います。", "色は？", "赤"),
    ("<image>\nWhat is it? 🐱🐶", "It is 🐱, not 👩‍👩‍👧!"),
    ("What says 🛑?", "stop"),
    ("<image>\nRead 1234567890 and 3.14159.", "1234567890, 3.14159"),
    ("<image>\nWhere is it? [0.12, 0.5, 0.73, 1.0]", "[0.1, 0.25, 0.333, 0.75]"),
    ("<image>\nDescribe it\nin two lines.", "A house.\nA tree."),
    ("<image>\nOne.\n\nTwo.", "First\n\n\nthird"),
    ("<image>\n\tindented   words", "many   spaces"),
    ("<image>\nÀ quoi ça ressemble ? Größe?", "À une maison, naïve; Straße."),
    ("<image>\nA:\n(A) yes\n(B) no\nAnswer with the option's letter.", "A"),
    ("<image>\nAnswer the question using a single word or phrase. Is it?", "no", "Is it?", "yes", "Is it?", "no"),
    ("<image>\nحدد اللون", "أحمر"),
    ("<image>\nx = [i**2 for i in range(10)]", "def f(x):\n    return x_1 + 2"),
    ("<image>\n\\frac{1}{2}", "$\\alpha$"),
)
CAPTIONS: Sequence[str] = tuple(dict.fromkeys(words[1] for words in CONVERSATIONS))


def shown_first(text: str) -> str:
    """An image that a turn shows stands before its words, on a line of its own."""
    if "<image>" not in text:
        return text
    return f"<image>\n{text.replace('<image>', '').strip()}".strip()


def ids_with_images(text: str, tokenizer: Any) -> list[int]:
    """The texts between images are tokenised one by one, as texts of their own; the beginning token is kept once."""
    ids: list[int] = []
    for number, part in enumerate(text.split("<image>")):
        own: list[int] = tokenizer(part)["input_ids"]
        begins = own[:1] == [tokenizer.bos_token_id]
        ids += [IMAGE_PLACE, *own[begins:]] if number else own
    return ids


def v1(words: Sequence[str], tokenizer: Any) -> Labelled:
    """Ids and labels of the second stage: what follows ``ASSISTANT:`` up to the end token, that included, is taught.

    Tokens are counted as LLaVA counts them, round by round; where the counts do not come out nothing is taught.
    """
    rounds = [
        f"USER: {shown_first(asked)} ASSISTANT: {answer}" for asked, answer in zip(words[::2], words[1::2], strict=True)
    ]
    rounds[0] = f"{SYSTEM} {rounds[0]}"
    ids = ids_with_images("".join(f"{one}</s>" for one in rounds), tokenizer)
    labels = list(ids)
    labels[0] = IGNORED
    at = 1
    for number, one in enumerate(rounds):
        asked = one.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        begun = number > 0 and not tokenizer.legacy  # then no mark of a beginning follows the end token
        given = len(ids_with_images(asked, tokenizer)) - 2 - begun  # a beginning token and the last space are too many
        labels[at : at + given] = [IGNORED] * given
        at += len(ids_with_images(one, tokenizer)) - begun  # its beginning token stands for the end token
    labels[at:] = [IGNORED] * len(labels[at:])
    return (ids, labels) if at == len(ids) else (ids, [IGNORED] * len(ids))


def plain(caption: str, tokenizer: Any) -> Labelled:
    """Ids and labels of the first stage: the image, then the caption and a line break, which are taught."""
    ids = ids_with_images(f"<image>{caption}\n", tokenizer)
    given = len(ids_with_images("<image>", tokenizer))
    return ids, [IGNORED] * given + ids[given:]
