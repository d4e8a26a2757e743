"""What the language model is given of its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from fusion_workbench.modules.fusion.base import Grid


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


class LanguageConnector(nn.Module, ABC):
    """Base of what joins an encoder to a language model.

    Attributes:
        uses: the layers that :meth:`forward` expects, in its order.
    """

    uses: tuple[int, ...]

    @abstractmethod
    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        """``features [len(uses), N, T, dim]`` with T the cells of ``grid``; N is at least 1."""

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters as ``fuser``, ``gates`` and ``projector``; each has its own learning rate."""
