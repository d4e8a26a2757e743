"""What conversations as ids and labels cost against plain tokenisation of the same text: CPU seconds of one thread.

TOKENIZERS_PARALLELISM=false python tests/benchmarks/bench_tokens.py [FOLDER of a tokenizer …]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from tiny_chat import CHATML, CHATML_TOKENS, by_bytes
from tiny_sentencepiece import WORDS, by_sentencepiece
from transformers import AutoTokenizer

from fusion_workbench.datamodules.conversations.base import Conversation, Turn
from fusion_workbench.datamodules.conversations.chat import Chat
from fusion_workbench.datamodules.conversations.tokenised import tokenise


def talks(rounds: int, count: int) -> list[Conversation]:
    """Rounds of a question of nine words and an answer of six."""
    words = WORDS.split()
    turns = []
    for number in range(count):
        said = [words[(number + place) % len(words) :][:9] for place in range(2 * rounds)]
        texts = [" ".join(text[: 6 if place % 2 else 9]) or "so" for place, text in enumerate(said)]
        texts[0] = f"<image>\n{texts[0]}"
        turns.append(tuple(Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)))
    return [Conversation(str(number), each, (0,)) for number, each in enumerate(turns)]


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main(folders: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizers = {
            "byte-level BPE": by_bytes(CHATML, WORDS, **CHATML_TOKENS),
            "SentencePiece": by_sentencepiece(Path(folder), legacy=False),
        } | {name: AutoTokenizer.from_pretrained(name) for name in folders}
    for name, tokenizer in tokenizers.items():
        chat = Chat(tokenizer, 2048, 576, None if tokenizer.chat_template else "vicuna_v1")
        for rounds, count in ((1, 4000), (3, 2000), (10, 600)):
            listed = talks(rounds, count)
            texts = ["".join(piece.text for piece in chat._pieces(one, one.turns, [])) for one in listed]
            plain = seconds(lambda texts=texts, chat=chat: chat._tokenizer(texts, add_special_tokens=False))
            once = seconds(lambda listed=listed, chat=chat: tokenise(listed, chat))
            before = seconds(lambda listed=listed, chat=chat: [chat.encode(one) for one in listed[:100]]) * count / 100
            print(
                f"{name}, {rounds} rounds: {count / once:,.0f} conversations a second, {once / plain:.1f} × plain "
                f"tokenisation ({before / plain:.1f} × border by border)"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
