"""Adding to the hidden states of any transformers decoder, by hooks on its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError


@dataclass(frozen=True)
class _Pending:
    """What is to be added: packed tokens by block, and the token that stands at each position, -1 for none."""

    tokens: Mapping[int, Tensor]  # [V, width]
    slots: Tensor  # int64 [B, S]


class Injector:
    """Adds tokens at the visual positions of the hidden states that enter decoder blocks.

    The hooks stay on the blocks for good and do nothing while nothing is set, so one decoder serves strategies with and
    without injection. Adding is out of place, in the dtype of the hidden states, and differentiable in the tokens.

    What is set stays until the next :meth:`set` or :meth:`clear`. Under gradient checkpointing some decoders run the
    hooks again in the backward pass, so clear after it and not before. It works on the blocks themselves: peft may wrap
    what is inside them or the model around them.

    Args:
        blocks: the decoder's blocks, in order.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.depth = len(blocks)
        self._pending: _Pending | None = None
        self._handles = [
            block.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
            for number, block in enumerate(blocks)
        ]

    def set(self, values: Mapping[int, Tensor], visual: Tensor) -> None:
        """Hold what is added from now on.

        Args:
            values: ``{block: [N, T', width]}``, the images in the order in which they stand in the batch; or the same
                packed, ``[V, width]``, where truncation has left some out.
            visual: bool ``[B, S]``, true at the V positions of the images' tokens, row by row.

        Raises:
            WorkbenchError: a block that the decoder does not have, or tokens that are not as many as the positions.
        """
        count = int(visual.sum())
        for block, tokens in values.items():
            if not 0 <= block < self.depth:
                raise WorkbenchError(
                    f"injection at decoder block {block}: this language model has blocks 0 to {self.depth - 1}."
                )
            if tokens.ndim not in (2, 3) or tokens.shape[:-1].numel() != count:
                raise WorkbenchError(
                    f"injection at decoder block {block}: tokens {list(tokens.shape)} for {count} visual positions; "
                    "there should be [images, tokens, width] with a token for each position."
                )
        packed = {block: tokens.flatten(0, -2) for block, tokens in values.items()}
        numbers = (visual.flatten().cumsum(0) - 1).view_as(visual)
        self._pending = _Pending(packed, torch.where(visual, numbers, -1)) if packed else None

    def clear(self) -> None:
        """Let go of what is set; the decoder is then as it was without the injector."""
        self._pending = None

    def remove(self) -> None:
        """Take the hooks off the blocks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(
        self, number: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The hook of block ``number``; hidden states come first among its arguments or by their name."""
        held = self._pending
        if held is None or number not in held.tokens:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        slots = _window(held.slots, hidden, _past(number, args, kwargs))
        if slots is None:
            return None
        added = _add(hidden, slots, held.tokens[number])
        return ((added, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": added})


def _past(number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Positions that the cache of block ``number`` already holds; None without a cache."""
    for argument in (*args, *kwargs.values()):
        length: Callable[[int], int] | None = getattr(argument, "get_seq_length", None)
        if length is not None:
            return int(length(number))
    return None


def _window(slots: Tensor, hidden: Tensor, past: int | None) -> Tensor | None:
    """The slots of the positions that ``hidden`` holds, ``[B', S']``; None where there is nothing to add.

    With a cache a prefill has them all or, in chunks, by and by, and in a step of decoding all lie in the past.
    Without, ``hidden`` begins where they begin; decoding adds positions at the end.
    """
    batch, length = hidden.shape[:2]
    if past is None and length < slots.shape[1]:
        return None
    slots = slots[:, past or 0 :][:, :length]
    if not slots.shape[1]:
        return None
    if batch % len(slots):
        raise WorkbenchError(
            f"injection was set for {len(slots)} sequences and the language model is given {batch}; set or clear it "
            "before every batch."
        )
    # Beams and several answers to one question: generate repeats each sequence in place.
    return F.pad(slots.repeat_interleave(batch // len(slots), dim=0), (0, length - slots.shape[1]), value=-1)


def _add(hidden: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """``hidden [B, S, width]`` plus ``tokens [V, width]`` at their slots, as a new tensor.

    A row of zeros stands behind the tokens for the positions of no token: shapes do not depend on what the slots are,
    so nothing waits for the device, nothing is compiled anew, and a batch without images still has its gradients.
    """
    table = F.pad(tokens.to(hidden.device, hidden.dtype), (0, 0, 0, 1))
    slots = slots.to(hidden.device)
    return hidden + F.embedding(torch.where(slots < 0, len(tokens), slots), table)
