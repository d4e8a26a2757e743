"""The matched control: the deep layer alone, with a projector that costs what another strategy costs.

Is it the fusion, or the parameters? A fuser adds both. This control adds the parameters (or the FLOPs) without the
fusion: of the same selection it reads the query, and its projector is an MLP ``dim → h → width`` whose h is chosen so
that fuser and projector together have the budget of the strategy named by ``like``, as nearly as one hidden unit
allows::

    parameters(h) = h · (dim + width + 1) + width          FLOPs(h) = 2 · T · h · (dim + width)

Where the budget is the plain projector's own to within half a hidden unit (of ``like: average``, say), the control has
the plain projector: it is then ``deep_only``. Where the budget is smaller than the plain projector's, h is as small as
it must be, and 1 at the least. The comparison is of budgets, so a linear projector is replaced by an MLP too: the
stronger control of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.parse import parse_json
from fusion_workbench.modules import cost
from fusion_workbench.modules.fusion.base import Fusion, Grid, build, register_strategy
from fusion_workbench.modules.meta import on_meta
from fusion_workbench.modules.projector import Projector

GRID: Grid = (24, 24)  # where FLOPs are counted unless the grid is handed in


@dataclass(frozen=True)
class MatchedOptions:
    """Whose budget, and of what."""

    like: str = "mmfuser"
    like_options: str = ""  # that strategy's options, such as "attention=global, points=4"; default: its defaults
    budget: Literal["parameters", "flops"] = "parameters"


@register_strategy(
    "matched",
    options=MatchedOptions,
    uses_levels=True,
    title="deep layer, matched budget",
    source="ours: the control for budget",
)
class Matched(Fusion):
    """``F = F_L``, and a projector of another strategy's budget.

    The selection's levels are not read; they set the budget.

    Raises:
        WorkbenchError: ``like`` is unknown or a matched control itself, or its options are wrong at this selection.
    """

    identity_at_start = True

    def __init__(self, selection: Selection, dim: int, options: MatchedOptions) -> None:
        super().__init__(selection, dim, options)
        self.uses = (selection.query,)
        if options.like == "matched":
            raise WorkbenchError("matched: like=matched; name the strategy whose budget is to be met.")
        self.like_options = read_options(options.like_options)
        self._other()  # what is wrong with it is said now

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        """``[1, B, T, dim] → [B, T, dim]``."""
        self.check(features, grid)
        return features[0]

    def projector(self, kind: str, width: int, grid: Grid | None = None) -> nn.Module:
        """The MLP of the head of this file, or the plain projector where that has the budget.

        FLOPs are matched on ``grid``, 24×24 where none is given. That matters for a strategy whose cost a token depends
        on their number: attention over all tokens, or tokens appended.
        """
        flops, grid = self.options.budget == "flops", grid or GRID
        unit = 2 * grid[0] * grid[1] * (self.dim + width) if flops else self.dim + width + 1
        fixed = 0 if flops else width
        budget = on_meta(cost_of, self._other(), kind, width, grid)[flops]
        plain = on_meta(cost_of, self, kind, width, grid, on_meta(super().projector, kind, width))[flops]
        if 2 * abs(budget - plain) <= unit:
            return super().projector(kind, width)
        return Projector(kind, self.dim, width, hidden=max(1, round((budget - fixed) / unit)))

    def _other(self) -> Fusion:
        """The strategy whose budget is met, without memory: shapes are enough to count."""
        return on_meta(build, self.options.like, self.selection, self.dim, self.like_options)


def cost_of(fuser: Fusion, kind: str, width: int, grid: Grid, projector: nn.Module | None = None) -> tuple[int, int]:
    """Parameters, and FLOPs an image, of fuser and projector together (the fuser's own projector unless given)."""
    projector = projector or fuser.projector(kind, width, grid)
    like = next(projector.parameters())
    features = like.new_zeros(len(fuser.uses), 1, grid[0] * grid[1], fuser.dim)
    flops = cost.flops(lambda x: projector(fuser(x, grid)), features)
    return cost.parameters(fuser) + cost.parameters(projector), flops


def read_options(text: str) -> dict[str, Any]:
    """``"attention=global, points=4"`` as a mapping; values as in JSON, or words.

    Raises:
        WorkbenchError: a part that is not ``key=value``.
    """
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals:
            raise WorkbenchError(f"matched: like_options has '{part}'; write key=value, such as attention=global.")
        try:
            options[key] = parse_json(value)
        except ValueError:
            options[key] = value
    return options
