"""Image tokens stand where the image words stood, and nothing else of a batch moves a row's loss."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import FAMILIES, WIDTH, tiny_decoder
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.modules.language.decoder import Decoder
from fusion_workbench.modules.language.splice import Spliced, splice

T = 3  # tokens per image
I = IMAGE_ID  # noqa: E741 — rows below read as they look


def batch(rows: list[list[int]], side: str = "right", extra: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of ``rows``, padded on ``side`` to the longest and ``extra`` more."""
    length = max(map(len, rows)) + extra
    ids, mask = torch.zeros(len(rows), length, dtype=torch.int64), torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[number, where], mask[number, where] = torch.tensor(row), True
    return ids, mask


def embed(ids: Tensor) -> Tensor:
    """Every word as its own number."""
    return ids.float().unsqueeze(-1).expand(-1, 2)


def images(number: int) -> Tensor:
    """Token t of image n is 1000 + 10 n + t."""
    return (1000 + 10 * torch.arange(number).unsqueeze(1) + torch.arange(T)).float().unsqueeze(-1).expand(-1, -1, 2)


def shown(spliced: Spliced) -> list[list[int]]:
    return [
        row[mask].int().tolist()
        for row, mask in zip(spliced.inputs_embeds[..., 0], spliced.attention_mask, strict=True)
    ]


def test_image_words_become_image_tokens() -> None:
    ids, mask = batch([[5, I, 6, I], [7, 8], [I, 9]])
    spliced = splice(ids, mask, ids.clone(), images(3), embed)
    assert shown(spliced) == [
        [5, 1000, 1001, 1002, 6, 1010, 1011, 1012],
        [7, 8],
        [1020, 1021, 1022, 9],
    ]
    assert spliced.labels.tolist() == [
        [5, -100, -100, -100, 6, -100, -100, -100],
        [7, 8, *[-100] * 6],
        [-100, -100, -100, 9, *[-100] * 4],
    ]
    assert spliced.position_ids[2].tolist()[:4] == [0, 1, 2, 3]
    assert spliced.pack(images(3))[:, 0].tolist() == [1000, 1001, 1002, 1010, 1011, 1012, 1020, 1021, 1022]


@pytest.mark.parametrize("given_side", ["left", "right"])
def test_left_fills_up_on_the_left(given_side: str) -> None:
    ids, mask = batch([[5, I], [7, 8]], given_side, extra=1)
    spliced = splice(ids, mask, None, images(1), embed, side="left")
    assert shown(spliced) == [[5, 1000, 1001, 1002], [7, 8]]
    assert spliced.attention_mask.tolist() == [[True] * 4, [False, False, True, True]]
    assert spliced.position_ids[1].tolist() == [0, 0, 0, 1]


def test_text_alone() -> None:
    ids, mask = batch([[7, 8], [9]])
    spliced = splice(ids, mask, ids, torch.zeros(0, 1, 2), embed)
    assert shown(spliced) == [[7, 8], [9]]
    assert not spliced.visual.any()


def test_wrong_numbers_are_said() -> None:
    ids, mask = batch([[5, I]])
    with pytest.raises(WorkbenchError, match="1 image words and 2 images"):
        splice(ids, mask, None, images(2), embed)


def test_gradients_reach_tokens_and_words() -> None:
    ids, mask = batch([[5, I, 6], [7, 8]])
    tokens = torch.randn(1, T, 4, requires_grad=True)
    table = torch.randn(10, 4, requires_grad=True)
    splice(ids, mask, None, tokens, lambda i: table[i]).inputs_embeds.sum().backward()
    assert tokens.grad is not None
    assert table.grad is not None
    assert torch.equal(tokens.grad, torch.ones_like(tokens))
    assert table.grad.sum(1).tolist() == [0, 0, 0, 0, 0, 4, 4, 4, 4, 0]


# --- a row's loss is its own -------------------------------------------------------------------------------------


@functools.cache
def decoder_of(family: str) -> Decoder:
    return tiny_decoder(family).eval()


def losses(family: str, rows: list[list[int]], side: str, given_side: str, extra: int, seeds: list[int]) -> Tensor:
    """Mean loss of each row over the tokens above 40, in float32."""
    decoder = decoder_of(family)
    ids, mask = batch(rows, given_side, extra)
    tokens = torch.stack([torch.randn(T, WIDTH, generator=torch.Generator().manual_seed(s)) for s in seeds] or [])
    labels = torch.where((ids > 40) & mask, ids, IGNORE)
    spliced: Any = splice(ids, mask, labels, tokens, decoder.embed, side=side)  # type: ignore[arg-type]
    at, wanted = spliced.positions()
    with torch.no_grad():
        logits = decoder(spliced.inputs_embeds, spliced.attention_mask, spliced.position_ids, at)
    each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    row = at // spliced.labels.shape[1]
    return torch.zeros(len(rows)).index_add(0, row, each) / torch.bincount(row, minlength=len(rows)).clamp_min(1)


word = st.integers(3, 60)
part = st.one_of(word, word, word, st.just(IMAGE_ID))
row_of = st.lists(part, min_size=1, max_size=10).map(lambda r: [5, *r, 50])


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(row_of, min_size=1, max_size=4), extra=st.integers(0, 3), data=st.data())
def test_a_row_s_loss_is_its_own(family: str, rows: list[list[int]], extra: int, data: st.DataObject) -> None:
    seeds = [[100 * n + k for k in range(row.count(IMAGE_ID))] for n, row in enumerate(rows)]
    alone = torch.cat([alone_loss(family, row, own) for row, own in zip(rows, seeds, strict=True)])
    order = data.draw(st.permutations(range(len(rows))))
    side, given_side = data.draw(st.sampled_from(["left", "right"])), data.draw(st.sampled_from(["left", "right"]))
    together = [seed for n in order for seed in seeds[n]]
    if together:
        found = losses(family, [rows[n] for n in order], side, given_side, extra, together)
        assert torch.allclose(found, alone[list(order)], rtol=0, atol=1e-5)


def alone_loss(family: str, row: list[int], seeds: list[int]) -> Tensor:
    """The row's loss in a batch of its own; without images by transformers alone, from ids."""
    if seeds:
        return losses(family, [row], "right", "right", 0, seeds)
    ids = torch.tensor([row])
    with torch.no_grad():
        logits = decoder_of(family).model(input_ids=ids).logits[0, :-1]
    wanted = torch.where(ids[0, 1:] > 40, ids[0, 1:], IGNORE)
    return torch.nn.functional.cross_entropy(logits, wanted).unsqueeze(0)
