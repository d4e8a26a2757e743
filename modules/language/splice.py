"""Image tokens put where the image words stand (LLaVA, arXiv 2304.08485, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import IGNORE, IMAGE_ID

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Spliced:
    """A batch as the decoder reads it; S is the length of its longest row.

    Attributes:
        inputs_embeds: ``[B, S, width]``, zero at padding.
        attention_mask: bool ``[B, S]``.
        position_ids: int64 ``[B, S]``, counted over what is not padding.
        labels: int64 ``[B, S]``; -100 at padding and image tokens.
        visual: bool ``[B, S]``, where image tokens stand.
        source: int64 ``[B, S]``, which of the ``N·T'`` image tokens stands there; -1: none.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    visual: Tensor
    source: Tensor

    def pack(self, values: Tensor) -> Tensor:
        """``[N, T', width] → [V, width]``: the values of the image tokens that stand in the batch, in its order."""
        return values.flatten(0, 1)[self.source[self.visual]]

    def positions(self) -> tuple[Tensor, Tensor]:
        """Where the next token is an answer's, int64 ``[P]`` into ``[B·S]``, and those tokens, int64 ``[P]``."""
        following = torch.full_like(self.labels, IGNORE)
        following[:, :-1] = self.labels[:, 1:]
        following = following.flatten()
        at = (following != IGNORE).nonzero().squeeze(1)
        return at, following[at]


def splice(
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor | None,
    tokens: Tensor,
    embed: Callable[[Tensor], Tensor],
    *,
    side: Side = "right",
) -> Spliced:
    """Replace every image word by the tokens of its image.

    Args:
        input_ids: int64 ``[B, L]``, with ``IMAGE_ID`` where an image stands; padded on either side.
        attention_mask: bool ``[B, L]``.
        labels: int64 ``[B, L]``, or None where nothing is learned.
        tokens: ``[N, T', width]``, the images in the order of their words, row by row; N may be 0.
        embed: word embeddings, ``int64 [P] → [P, width]``.
        side: where rows are padded: right in training, left in generation.

    Raises:
        WorkbenchError: there are more or fewer images than image words.
    """
    rows, columns = input_ids.shape
    number, per_image, width = tokens.shape
    there = attention_mask.bool()
    is_image = (input_ids == IMAGE_ID) & there
    if int(is_image.sum()) != number:
        raise WorkbenchError(f"the batch has {int(is_image.sum())} image words and {number} images.")

    spans = torch.where(is_image, per_image, 1) * there  # [B, L] tokens that a place takes
    starts = spans.cumsum(1) - spans
    lengths = spans.sum(1)
    length = int(lengths.max()) if rows else 0
    if side == "left":
        starts = starts + (length - lengths).unsqueeze(1)

    # Every place, as often as it has tokens, with the row and the column of each.
    place = there.flatten().nonzero().squeeze(1)
    span = spans.flatten()[place]
    first = (span.cumsum(0) - span).repeat_interleave(span)
    place = place.repeat_interleave(span)
    within = torch.arange(len(place), device=place.device) - first
    row, column = place // columns, starts.flatten()[place] + within

    image = is_image.flatten()[place]
    which = (is_image.flatten().cumsum(0) - 1)[place] * per_image + within
    ids = input_ids.flatten()[place]
    words = embed(ids[~image]).to(tokens.dtype)
    table = torch.cat([tokens.new_zeros(1, width), tokens.reshape(-1, width), words])
    text = (~image).cumsum(0) - 1 + number * per_image
    entry = torch.where(image, which, text) + 1

    lookup, source = _filled(input_ids, length, 0), _filled(input_ids, length, -1)
    lookup[row, column] = entry
    source[row, column] = torch.where(image, which, -1)
    mask = lookup > 0
    new_labels = _filled(input_ids, length, IGNORE)
    if labels is not None:
        new_labels[row, column] = torch.where(image, IGNORE, labels.flatten()[place])
    return Spliced(
        inputs_embeds=table[lookup],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        labels=new_labels,
        visual=source >= 0,
        source=source,
    )


def _filled(like: Tensor, length: int, value: int) -> Tensor:
    return torch.full((len(like), length), value, dtype=torch.int64, device=like.device)
