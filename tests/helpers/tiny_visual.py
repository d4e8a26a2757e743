"""A tiny visual language model, and conversations as its batches: what training and answering need in a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tiny_language import tiny_decoder, tiny_tokenizer
from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.modules.language.connector import ConnectorConfig, seeded_connector
from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.modules.language.vlm import VisionLanguageModel
from fusion_workbench.modules.optim import MMFUSER_LLAVA, Recipe

DIM, GRID, LAYERS = 16, (2, 2), (1, 2, 3)
IMAGE = "<image>"


def features_of(number: int) -> Tensor:
    """Hidden states ``[layers, 1, cells, dim]`` of image ``number``: noise of its own."""
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randn(len(LAYERS), 1, GRID[0] * GRID[1], DIM, generator=generator)


class Chat:
    """Questions and answers as batches: the question, then the answer and its end."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()

    def ids(self, text: str) -> list[int]:
        pieces = [self.tokenizer(piece)["input_ids"] if piece else [] for piece in text.split(IMAGE)]
        return pieces[0] + [i for piece in pieces[1:] for i in (IMAGE_ID, *piece)]

    def batch(self, turns: Sequence[tuple[str, str]], first_image: int = 0) -> dict[str, Tensor]:
        """Of ``(question, answer)``; images are numbered through, from ``first_image``."""
        questions = [self.ids(question) for question, _ in turns]
        answers = [[*self.ids(answer), self.tokenizer.eos_token_id] for _, answer in turns]
        batch = self._padded([q + a for q, a in zip(questions, answers, strict=True)])
        labels = self._padded([[IGNORE] * len(q) + a for q, a in zip(questions, answers, strict=True)])
        batch["labels"] = torch.where(batch["attention_mask"], labels["input_ids"], IGNORE)
        return batch | {"features": self.features(batch["input_ids"], first_image)}

    def prompts(self, turns: Sequence[tuple[str, str]], first_image: int = 0) -> dict[str, Tensor]:
        """The questions alone."""
        batch = self._padded([self.ids(question) for question, _ in turns])
        return batch | {"features": self.features(batch["input_ids"], first_image)}

    def features(self, ids: Tensor, first: int) -> Tensor:
        number = int((ids == IMAGE_ID).sum())
        none = torch.zeros(len(LAYERS), 0, GRID[0] * GRID[1], DIM)
        return torch.cat([none, *(features_of(first + n) for n in range(number))], 1)

    def _padded(self, rows: list[list[int]]) -> dict[str, Tensor]:
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}


def tiny_model(
    strategy: str = "deep_only",
    *,
    family: str = "llama",
    seed: int = 0,
    recipe: Recipe = MMFUSER_LLAVA,
    decoder: Decoder | None = None,
) -> VisionLanguageModel:
    """Seeded connector and decoder; features as :class:`Chat` makes them."""
    decoder = decoder or tiny_decoder(family)
    config = ConnectorConfig(strategy, Selection((1, 2), 3), dim=DIM, width=decoder.width, depth=decoder.depth)
    return VisionLanguageModel(seeded_connector(config, seed), decoder, GRID, recipe, layers=LAYERS)


class Stateful:
    """Batches in a fixed order, that go on where they were."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.given = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        start, self.given = self.given % len(self.batches), self.given % len(self.batches)
        for batch in self.batches[start:]:
            self.given += 1
            yield batch
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]
