"""Training and generation of a vision-language model against loops written by hand around the same transformers model.

Training is with the decoder frozen, and in full. The loop by hand does what a notebook does: image tokens between word
embeddings, logits of every position, cross-entropy, AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from fusion_workbench.assets import home as assets
from fusion_workbench.bench.bank import WARM, SameBatch, StepClock, trainer_of
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.turns import Ratio, Setting, in_turn, synchronise
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.modules.language.connector import ConnectorConfig, build_connector
from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.modules.language.generation import generate_ids
from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.optim import Recipe, make_optimizer

ASSET = "language-model"
RECIPE = Recipe.of(1e-3)
BY_HAND = "a loop by hand"


@dataclass(frozen=True)
class Shape:
    """A batch of conversations with an image each, all equally long: no side pads."""

    rows: int
    words: int  # before the image, after it, and in the answer: so many each
    grid: int  # image tokens are its square
    dim: int
    steps: int
    new: int  # tokens that are generated


SMALL = Shape(4, 20, 8, 384, 6, 32)
TINY = Shape(2, 3, 2, 8, 2, 4)


def tiny_decoder() -> Decoder:
    """A Llama of two blocks, built from its config, with a tokenizer of eight words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("<pad>", "<end>", "a", "b", "c", "d", "e", "f"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="a"
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(words), eos_token_id=1, pad_token_id=0, bos_token_id=None, **sizes)
    return Decoder(LlamaForCausalLM(config), fast, "float32", "tiny")


class Subject:
    """A model and a batch that both sides train on.

    Args:
        decoder: the language model; its weights are trained where ``full``.
        shape: of the batch.
        device: where it is trained.
        full: train the decoder too; else it is frozen.
    """

    def __init__(self, decoder: Decoder, shape: Shape, device: str, full: bool = False) -> None:
        self.shape, self.device, grid = shape, device, (shape.grid, shape.grid)
        decoder.train_fully() if full else decoder.freeze()
        torch.manual_seed(0)
        selection = Selection((0, 1), 2)
        config = ConnectorConfig("concat", selection, shape.dim, decoder.width, decoder.depth, grid=grid)
        self.model = VisionLanguageModel(build_connector(config), decoder, grid, RECIPE).to(device)
        draw, vocabulary = torch.Generator().manual_seed(0), decoder.config.vocab_size
        ids = torch.randint(2, vocabulary, (shape.rows, 3 * shape.words + 1), generator=draw)
        ids[:, shape.words] = IMAGE_ID
        labels = torch.full_like(ids, IGNORE)
        labels[:, -shape.words :] = ids[:, -shape.words :]
        features = torch.randn(3, shape.rows, shape.grid**2, shape.dim, generator=draw)
        self.batch = {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": torch.ones_like(ids, dtype=torch.bool),
            "features": features,
        }

    @property
    def positions(self) -> int:
        """Positions of the decoder in a batch, image tokens counted."""
        return self.shape.rows * (3 * self.shape.words + self.shape.grid**2)

    def by_hand(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss, as it is usually written."""
        decoder, at = self.model.decoder, self.shape.words
        images = self.model.connector(batch["features"], self.model.grid).tokens
        ids, labels = batch["input_ids"], batch["labels"]
        before, after = decoder.embed(ids[:, :at]), decoder.embed(ids[:, at + 1 :])
        embedded = torch.cat([before, images.to(before.dtype), after], 1)
        unread = torch.full(images.shape[:2], IGNORE, device=ids.device)
        targets = torch.cat([labels[:, :at], unread, labels[:, at + 1 :]], 1)
        with decoder.autocast():
            logits = decoder.model(inputs_embeds=embedded, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=IGNORE)

    def loop(self) -> float:
        """Seconds of a step of the loop by hand."""
        steps = self.shape.steps + WARM
        optimizer, schedule = make_optimizer(self.model.parts(), RECIPE, steps)
        start = 0.0
        for step in range(steps):
            if step == WARM:
                synchronise(self.device)
                start = time.perf_counter()
            loss = self.by_hand({name: values.to(self.device) for name, values in self.batch.items()})
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        synchronise(self.device)
        return (time.perf_counter() - start) / self.shape.steps

    def lightning(self) -> float:
        """Seconds of a step of ours."""
        watch = StepClock(self.device)
        batches = DataLoader(SameBatch(self.batch, self.shape.steps + WARM), batch_size=None)
        trainer_of(self.device, callbacks=[watch]).fit(self.model, batches)
        self.model.to(self.device)  # Lightning takes it off a GPU when it has ended
        return watch.seconds / self.shape.steps

    def generators(self) -> dict[str, Callable[[], float]]:
        """Meters of seconds a generated token and row: ours, and transformers' on as many words as ours has places."""
        decoder, new = self.model.decoder, self.shape.new
        words = ("input_ids", "attention_mask", "labels")
        prompt = {name: self.batch[name][:, : -self.shape.words].to(self.device) for name in words}
        prompt["features"] = self.batch["features"].to(self.device)
        places = prompt["input_ids"].shape[1] - 1 + self.shape.grid**2
        draw = torch.Generator().manual_seed(1)
        other = torch.randint(2, decoder.config.vocab_size, (self.shape.rows, places), generator=draw).to(self.device)

        def ours() -> float:
            start = time.perf_counter()
            with torch.no_grad():
                ids = generate_ids(decoder, self.model.spliced(prompt, side="left"), new)
            self.model.clear_injected()
            synchronise(self.device)
            return (time.perf_counter() - start) / ids.numel()

        def plain() -> float:
            start = time.perf_counter()
            with torch.no_grad(), decoder.autocast():
                ids: Tensor = decoder.model.generate(
                    other,
                    attention_mask=torch.ones_like(other),
                    max_new_tokens=new,
                    do_sample=False,
                    pad_token_id=decoder.pad_id,
                )[:, places:]
            synchronise(self.device)
            return (time.perf_counter() - start) / ids.numel()

        return {"ours": ours, "plain": plain}


def measure(setting: Setting) -> Iterator[Figure]:
    """The embedded language model where it is there; with ``--tiny`` one built from a config."""
    if setting.tiny:
        decoder, name, shape = tiny_decoder(), "a tiny Llama", TINY
    else:
        ready = next((status for status in assets.status() if status.name == ASSET and status.state == "ready"), None)
        if ready is None:
            missing = "the embedded language model is not here: workbench assets language-model"
            for what, against in (("training", BY_HAND), ("generation", "transformers' generate")):
                yield Figure(what, against, missing=missing)
            return
        decoder, name, shape = Decoder.load(str(ready.path), device=setting.device), ASSET, SMALL
    for full in (False, True):
        subject = Subject(decoder, shape, setting.device, full)
        seconds = in_turn({"ours": subject.lightning, "loop": subject.loop}, setting.repeats)
        yield Figure(
            f"training {name}, {'in full' if full else 'frozen, its connector alone'}",
            BY_HAND,
            Kind.SPEED,
            Ratio.paired(seconds["loop"], seconds["ours"]),
            note=f"{subject.positions} positions a step, {decoder.precision}; ours takes logits of answers alone",
            facts=_rates(seconds, subject.positions),
        )
        if not full:
            seconds = in_turn(subject.generators(), setting.repeats)
            yield Figure(
                f"generation, {name}",
                "transformers' generate on words alone",
                Kind.SPEED,
                Ratio.paired(seconds["plain"], seconds["ours"]),
                note=f"{shape.rows} rows, {shape.new} tokens each at most, {decoder.precision}; a token each",
                facts=_rates(seconds, 1),
            )


def _rates(seconds: Mapping[str, list[float]], count: int) -> dict[str, Any]:
    return {"tokens_a_second": {who: count / Ratio.of(taken).median for who, taken in seconds.items()}}
