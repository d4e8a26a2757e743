"""DeepStack: a level for each of the first decoder blocks (Meng et al., arXiv 2406.04334).

::

    h_b[visual] ← h_b[visual] + P_i(F_i)       b = start + i · interval,   i = 0 … M − 1

h_b are the hidden states that enter decoder block b (from 0), ``visual`` the places of the image's tokens, F_i the
i-th level and P_i its projector; the input sequence holds P(F_L) of the query.

From the paper: the residual addition at the visual places before every ``interval``-th block from ``start`` on
(its listing of the forward pass), bottom to top, so that the sequence is no longer than without; ``start`` 1 and
``interval`` 1 are the defaults of the published code (MengLcool/DeepStack-VL), whose one projector serves all.

Not from the paper: what is stacked. There it is one layer's tokens of a high-resolution view, sampled apart into
groups as large as the low-resolution view. Here it is layers of one view, the form that Qwen3-VL gave the method:
outputs of encoder blocks 8, 16 and 24 (from 0), each through a projector of its own, added to the output of decoder
blocks 0, 1 and 2, which is the input of blocks 1, 2 and 3. Parameterless normalisation before every projector is ours,
as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion.base import Grid
from fusion_workbench.modules.language.injection import Injection, InjectionSetting, check_blocks, register_injection
from fusion_workbench.modules.language.visual import VisualInput


@dataclass(frozen=True)
class DeepStackOptions:
    """Where the levels are added, in which order, and by how many projectors they are read."""

    start: int = 1  # the first decoder block that is added to, counted from 0
    interval: int = 1
    order: Literal["shallow_first", "deep_first"] = "shallow_first"  # which level the first of the blocks is given
    projectors: Literal["own", "shared"] = "own"  # shared: one for all levels and the query, as in the published code


@register_injection(
    "deepstack",
    options=DeepStackOptions,
    title="levels stacked into the first decoder blocks",
    source="arXiv 2406.04334; of layers: Qwen3-VL",
)
class DeepStack(Injection):
    """The equation of the head of this file.

    Raises:
        WorkbenchError: ``start`` or ``interval`` is too small, or the decoder has too few blocks for the levels.
    """

    def __init__(self, setting: InjectionSetting, options: DeepStackOptions) -> None:
        super().__init__(setting, options)
        if options.start < 0 or options.interval < 1:
            raise WorkbenchError(
                f"deepstack: start={options.start}, interval={options.interval}; name 0 or more, 1 or more."
            )
        levels = len(setting.selection.levels)
        self._blocks = tuple(options.start + i * options.interval for i in range(levels))
        check_blocks("deepstack", self._blocks, setting, "Lower start or interval, or name fewer levels.")
        self.projector = self.new_projector()  # of the query
        own = options.projectors == "own"
        self.levels = nn.ModuleList(self.new_projector() for _ in range(levels if own else 0))

    def blocks(self) -> tuple[int, ...]:
        return self._blocks

    def forward(self, features: Tensor, grid: Grid) -> VisualInput:
        """``[M + 1, N, T, dim]`` → tokens and M additions, ``[N, T, width]`` each."""
        self.check(features, grid)
        projectors = list(self.levels) or [self.projector] * len(self._blocks)
        added = [project(level) for project, level in zip(projectors, features[:-1], strict=True)]
        if self.options.order == "deep_first":
            added.reverse()
        return VisualInput(self.projector(features[-1]), dict(zip(self._blocks, added, strict=True)))
