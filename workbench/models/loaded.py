"""A loaded vision-language model: images and a question in, text or likelihoods out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion_workbench.core.batching import by_length
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import ANSWER_TOKENS, IGNORE, IMAGE, IMAGE_ID, STREAM_TOKENS
from fusion_workbench.datamodules.conversations.base import ASSISTANT, USER, Conversation, Turn
from fusion_workbench.datamodules.conversations.batches import padded_prompts
from fusion_workbench.datamodules.conversations.chat import Chat
from fusion_workbench.datamodules.rows.rows import BadRow, place_images
from fusion_workbench.datamodules.transforms import pixels, squared
from fusion_workbench.models.folder import images_of, load_parts
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.language.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray[Any, np.dtype[np.uint8]]

ENCODED = 32  # images that go through the encoder at once


def load_model(
    folder: str | Path, device: str | None = None, encoder: str | None = None, language: str | None = None
) -> LoadedModel:
    """A folder of :func:`models.folder.save_model`.

    Args:
        device: where to; None: CUDA if there is one.
        encoder, language: where these lie now, if they have moved; held against their fingerprints all the same.

    Raises:
        WorkbenchError: not such a folder, one of a newer workbench, damaged weights, a strategy that is not installed,
            or another encoder or language model than it was trained on.
    """
    model, read, config = load_parts(Path(folder), device, encoder, language)
    return LoadedModel(model, read, config)


@dataclass(frozen=True)
class _Prompt:
    """A question as ids, with its images."""

    ids: list[int]
    images: Sequence[Picture]


class LoadedModel:
    """Answers questions about images.

    Attributes:
        model: connector and language model.
        encoder: frozen.
        config: of the folder.
    """

    def __init__(self, model: VisionLanguageModel, encoder: VisionEncoder, config: dict[str, Any]) -> None:
        self.model = model
        self.encoder = encoder
        self.config = config
        rows, columns = encoder.grid()
        chat = config["chat"]
        self.chat = Chat(
            model.decoder.tokenizer,
            chat["max_length"],
            rows * columns,
            chat["system"],
            images_apart=chat.get("images_apart"),  # of folders of 0.1.0 unsaid
        )
        model.decoder.ends = self.chat.stop_ids

    def answer(
        self,
        images: Sequence[Sequence[Picture]],
        questions: Sequence[str],
        max_new_tokens: int = ANSWER_TOKENS,
        batch_size: int = 16,
    ) -> list[str]:
        """Greedy answers.

        Args:
            images: those of each question; none: the question is text alone. Paths, PIL images or uint8 arrays
                ``[H, W, 3]``, made squares as in training.
            questions: with ``<image>`` where each image stands, or without: then they stand before the words.
            max_new_tokens: of an answer.
            batch_size: questions at once; moves no answer but by rounding.

        Raises:
            WorkbenchError: an image that cannot be read, an empty question, another number of ``<image>`` words than
                images.
        """
        prompts = [self._prompt(own, words) for own, words in zip(images, questions, strict=True)]
        ordered = [""] * len(prompts)
        for places in by_length(range(len(prompts)), lambda place: len(prompts[place].ids), batch_size):
            answers = self.model.generate(self._batch([prompts[place] for place in places]), max_new_tokens)
            for place, words in zip(places, answers, strict=True):
                ordered[place] = words
        return ordered

    def stream(self, images: Sequence[Picture], question: str, max_new_tokens: int = STREAM_TOKENS) -> Iterator[str]:
        """The greedy answer to one question in pieces, as they come. Raises WorkbenchError as :meth:`answer`."""
        yield from self.model.stream(self._batch([self._prompt(images, question)]), max_new_tokens)

    def log_likelihood(self, images: Sequence[Picture], question: str, continuation: str) -> tuple[float, bool]:
        """Natural logarithm of the probability that the answer begins with ``continuation``, and whether it is greedy.

        The sum over the tokens of the words alone; the end of the answer is not among them.

        Raises:
            WorkbenchError: as :meth:`answer`; an empty continuation.
        """
        return self.log_likelihoods([images], [question], [continuation])[0]

    @torch.inference_mode()
    def log_likelihoods(
        self,
        images: Sequence[Sequence[Picture]],
        questions: Sequence[str],
        continuations: Sequence[str],
        batch_size: int = 16,
    ) -> list[tuple[float, bool]]:
        """:meth:`log_likelihood` of many, in their order; ``batch_size`` at once, which moves none but by rounding."""
        asked = [self._answered(*one) for one in zip(images, questions, continuations, strict=True)]
        found = [(0.0, False)] * len(asked)
        for places in by_length(range(len(asked)), lambda place: len(asked[place][0].ids), batch_size):
            batch = self._batch([asked[place][0] for place in places])
            length = batch["input_ids"].shape[1]
            labels = [[IGNORE] * (length - len(own)) + own for own in (asked[place][1] for place in places)]
            batch["labels"] = torch.tensor(labels, device=self.model.decoder.device)
            spliced = self.model.spliced(batch)
            positions, targets = spliced.positions()
            logits = self.model.decoder(spliced.inputs_embeds, spliced.attention_mask, spliced.position_ids, positions)
            self.model.clear_injected()
            chosen = logits.log_softmax(-1)
            said, best = chosen.gather(1, targets.unsqueeze(1)).squeeze(1), chosen.argmax(-1) == targets
            rows = positions // spliced.labels.shape[1]
            for row, place in enumerate(places):
                found[place] = (float(said[rows == row].sum()), bool(best[rows == row].all()))
        return found

    # --- inside -------------------------------------------------------------------------------------------------

    def _conversation(self, images: Sequence[Picture], question: str, answer: str = "answer") -> Conversation:
        if not question.replace(IMAGE, "").strip():
            raise WorkbenchError("the question is empty; write what is to be answered.")
        turns: Sequence[Turn] = (Turn(USER, question), Turn(ASSISTANT, answer))
        if images:
            try:
                turns = place_images(turns, len(images), image_first=False)
            except BadRow as error:
                raise WorkbenchError(f"question {question[:40]!r}: {error.detail}.") from None
        return Conversation("question", tuple(turns), tuple(range(len(images))))

    def _prompt(self, images: Sequence[Picture], question: str) -> _Prompt:
        return _Prompt(self.chat.prompt(self._conversation(images, question)), images)

    def _answered(self, images: Sequence[Picture], question: str, continuation: str) -> tuple[_Prompt, list[int]]:
        """A question with the words of an answer, and as many labels."""
        if not continuation.strip():
            raise WorkbenchError("the continuation whose likelihood is asked is empty.")
        encoded = self.chat.encode(self._conversation(images, question, continuation))
        ids, labels = list(encoded.input_ids), list(encoded.labels)
        stops = set(self.chat.stop_ids)
        last = max(place for place, label in enumerate(labels) if label != IGNORE and label not in stops)
        return _Prompt(ids[: last + 1], images), labels[: last + 1]

    def _batch(self, prompts: Sequence[_Prompt]) -> dict[str, Tensor]:
        """Prompts padded on the left, and the features of their images."""
        padded = padded_prompts([torch.tensor(one.ids) for one in prompts], self.chat.pad_id)
        device = self.model.decoder.device
        pictures = [picture for one in prompts for picture in one.images]
        assert int((padded["input_ids"] == IMAGE_ID).sum()) == len(pictures)
        return {name: value.to(device) for name, value in padded.items()} | {"features": self._features(pictures)}

    def _features(self, pictures: Sequence[Picture]) -> Tensor:
        """``[layers, N, T, dim]``; N may be 0."""
        layers = self.model.connector.uses
        rows, columns = self.encoder.grid()
        features = [
            self.encoder.encode(
                np.stack([self._load_image(picture) for picture in pictures[at : at + ENCODED]]), layers
            )
            for at in range(0, len(pictures), ENCODED)
        ]
        empty = torch.empty(len(layers), 0, rows * columns, self.encoder.dim, device=self.encoder.device)
        return torch.cat([empty, *features], dim=1) if features else empty

    def _load_image(self, picture: Picture) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """An image as a square of the encoder's size."""
        array = pixels(picture)
        size, how = self.encoder.image_size, images_of(self.config)
        if not isinstance(size, int):
            raise WorkbenchError(f"the encoder reads {size} px, and only squares can be asked about.")
        try:
            return squared(array, size, how["padding"], how["background"])
        except WorkbenchError as error:
            shown = f"image {picture}" if isinstance(picture, str | Path) else "an image"
            raise WorkbenchError(f"{shown}: {error}") from None
