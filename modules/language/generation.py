"""Answers in words: batched, padded on the left, with the key-value cache of transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.modules.language.splice import Spliced

_END = None


def generate_ids(decoder: Decoder, spliced: Spliced, max_new_tokens: int, streamer: Any = None) -> Tensor:
    """The most likely next tokens, one after the other, int64 ``[B, at most max_new_tokens]``.

    Rows that have ended are padded with the pad id.

    Args:
        spliced: prompts, padded on the left.
        streamer: what is given each token as it comes (transformers' ``BaseStreamer``); for one prompt.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=decoder.stop_ids or None,
        pad_token_id=decoder.pad_id,
        use_cache=True,
    )
    training = decoder.training
    decoder.eval()
    try:
        with torch.no_grad(), decoder.autocast():
            ids: Tensor = decoder.model.generate(
                inputs_embeds=spliced.inputs_embeds,
                attention_mask=spliced.attention_mask.long(),
                generation_config=config,
                streamer=streamer,
            )
    finally:
        decoder.train(training)
    return ids


def decode(decoder: Decoder, ids: Tensor) -> list[str]:
    """The words of generated ids ``[B, S]``, each up to its end and without the spaces around it."""
    stops, texts = set(decoder.stop_ids), []
    for row in ids.tolist():
        end = next((at for at, token in enumerate(row) if token in stops), len(row))
        texts.append(str(decoder.tokenizer.decode(row[:end], skip_special_tokens=True)).strip())
    return texts


def generate(decoder: Decoder, spliced: Spliced, max_new_tokens: int) -> list[str]:
    """Greedy answers to the prompts of a batch."""
    return decode(decoder, generate_ids(decoder, spliced, max_new_tokens))


def stream(decoder: Decoder, spliced: Spliced, max_new_tokens: int) -> Iterator[str]:
    """Greedy answer to one prompt, in the pieces in which it comes; together they are :func:`generate`'s answer."""
    queue: Queue[list[int] | BaseException | None] = Queue()
    streamer = _QueueStreamer(queue)

    def run() -> None:
        try:
            generate_ids(decoder, spliced, max_new_tokens, streamer)
        except BaseException as error:  # is raised where it is read
            queue.put(error)
        queue.put(_END)

    thread = Thread(target=run, daemon=True)
    thread.start()
    ids: list[int] = []
    yielded = ""
    while (item := queue.get()) is not _END:
        if isinstance(item, BaseException):
            raise item
        ids += item
        text = decode(decoder, torch.tensor([ids]))[0]
        if text.startswith(yielded) and not text.endswith("�"):  # a letter may be half there
            if piece := text[len(yielded) :]:
                yield piece
            yielded = text
    thread.join()
    if ids and (tail := decode(decoder, torch.tensor([ids]))[0][len(yielded) :]):
        yield tail


class _QueueStreamer:
    """Puts each new token into a queue."""

    def __init__(self, queue: Queue[Any]) -> None:
        self.queue = queue

    def put(self, value: Tensor) -> None:
        if value.numel():  # the prompt, which is given as embeddings, comes as an empty tensor
            self.queue.put(value.flatten().tolist())

    def end(self) -> None:
        """The thread itself says when it has ended."""
