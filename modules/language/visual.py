"""What the language model is given of its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from fusion_workbench.modules.fusion.base import Grid
from fusion_workbench.schema.names import INJECTED_RMS, TOKENS_RMS


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

    def projectors(self) -> Iterator[nn.Module]:
        """Every module that maps to the channels of the language model, once: their outputs start at one scale."""
        yield from ()

    def diagnose(self, features: Tensor, grid: Grid) -> dict[str, float]:
        """Root mean square of the input tokens, and of what each decoder block is given, for the report."""
        given = self(features, grid)
        added = {f"{INJECTED_RMS}{block}": rms(tokens) for block, tokens in given.injected.items()}
        return {TOKENS_RMS: rms(given.tokens), **added}


def rms(tokens: Tensor) -> float:
    """Root mean square."""
    return float(tokens.detach().float().square().mean().sqrt())
