"""What the language model is given of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class VisualInput:
    """Tokens of N images for the input sequence, and what is added to them deeper in the decoder.

    Attributes:
        tokens: ``[N, T', width]``, placed where the image words stand.
        injected: ``{decoder block: [N, T', width]}``, added to the hidden states that enter the block, at the same
            places; blocks count from 0. Empty for strategies that fuse before the language model.
    """

    tokens: Tensor
    injected: Mapping[int, Tensor] = field(default_factory=dict)
