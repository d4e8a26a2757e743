"""Every registered strategy with its projector against what the device can multiply, and MMFuser's block against
``grid_sample``.

The limit takes turns with them: it is the matrix product of :mod:`bench.ceilings`, in the precision that they run in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fusion_workbench.bench.ceilings import product
from fusion_workbench.bench.others.per_level import PerLevel, away_from_the_start
from fusion_workbench.bench.record import Figure, Kind
from fusion_workbench.bench.turns import Meter, Ratio, Setting, clock, in_turn
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules import cost
from fusion_workbench.modules.fusion import STRATEGIES, build
from fusion_workbench.modules.fusion.mmfuser import MMFuser, MMFuserOptions

Grid = tuple[int, int]
Shape = tuple[int, int, int, int]  # images, side of the grid, channels, levels

SMALL: Shape = (16, 8, 384, 3)  # the quickstart's
BLOCKS: dict[str, list[Shape]] = {
    "cpu": [SMALL, (16, 16, 384, 3), (2, 24, 1024, 4)],
    "cuda": [(32, 8, 384, 3), (16, 16, 384, 3), (16, 24, 1024, 4)],
}
TINY: Shape = (2, 4, 64, 2)
BACKWARD = (
    "forward + backward counts the forward FLOPs twice: the gradients of the weights, which is the least that any "
    "backward pass multiplies. The share is a lower bound."
)


def words(shape: Shape) -> str:
    """A shape as a page says it."""
    images, side, dim, levels = shape
    return f"{images} images, {side * side} tokens, dim {dim}, {levels} levels"


class Step:
    """A fuser with its projector to ``dim`` channels, on frozen features ``[layers, B, T, dim]``.

    Args:
        fuser: called as ``fuser(features, grid)``.
        projector: what follows it.
        bf16: under autocast.
    """

    def __init__(self, fuser: nn.Module, projector: nn.Module, features: Tensor, grid: Grid, bf16: bool) -> None:
        self.model = nn.ModuleList([fuser, projector]).to(features.device)
        away_from_the_start(self.model)
        self.features, self.grid, self.bf16 = features, grid, bf16
        with torch.no_grad():
            self.cotangent = torch.randn_like(self._out())

    def _out(self) -> Tensor:
        device = self.features.device.type
        with torch.autocast(device, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            out: Tensor = self.model[1](self.model[0](self.features, self.grid))
        return out.float()

    def forward(self) -> None:
        with torch.no_grad():
            self._out()

    def both(self) -> None:
        self.model.zero_grad()
        torch.autograd.backward(self._out(), self.cotangent)

    def flops(self) -> int:
        """Of the forward pass, in float32: autocast changes what they cost, not their number."""
        return cost.flops(lambda x: self.model[1](self.model[0](x, self.grid)), self.features)


def step_of(name: str, shape: Shape, device: str, bf16: bool) -> Step:
    """A registered strategy by its defaults; every strategy draws the same features.

    Raises:
        WorkbenchError: it cannot be built at this shape.
    """
    images, side, dim, levels = shape
    torch.manual_seed(0)
    fuser = build(name, Selection(tuple(range(levels)), levels), dim)
    features = torch.randn(len(fuser.uses), images, side * side, dim, device=device)
    return Step(fuser, fuser.projector("linear", dim, (side, side)), features, (side, side), bf16)


def measure(setting: Setting) -> Iterator[Figure]:
    """All strategies against the limit, then the block against ``grid_sample`` at three shapes."""
    device = setting.device
    shape = TINY if setting.tiny else BLOCKS[device][0]
    for bf16 in (False, True) if device == "cuda" else (False,):
        for name in sorted(STRATEGIES):
            yield from _against_the_limit(name, shape, setting, bf16)
    for shape in [TINY] if setting.tiny else BLOCKS[device]:
        for bf16 in (False, True) if device == "cuda" else (False,):
            yield from _against_grid_sample(shape, setting, bf16)


def _against_the_limit(name: str, shape: Shape, setting: Setting, bf16: bool) -> Iterator[Figure]:
    device = setting.device
    step = step_of(name, shape, device, bf16)
    work, multiplied = product(device, torch.bfloat16 if bf16 else torch.float32)
    meters: dict[str, Meter] = {
        "forward": clock(step.forward, device, setting.least),
        "forward + backward": clock(step.both, device, setting.least),
        "limit": clock(work, device, setting.least),
    }
    seconds, flops = in_turn(meters, setting.repeats), step.flops()
    for part, factor in (("forward", 1), ("forward + backward", 2)):
        share = Ratio.paired(seconds["limit"], seconds[part], factor * flops / multiplied)
        facts: dict[str, Any] = {
            "flops": factor * flops,
            "shape": list(shape),
            "seconds": Ratio.of(seconds[part]).median,
        }
        precision = "bf16 autocast" if bf16 else "float32"
        yield Figure(
            f"{name}, {part}, {precision}",
            f"matrix product, {precision}",
            Kind.LIMIT,
            share,
            note=words(shape) if part == "forward" else BACKWARD,
            facts=facts,
        )


def _against_grid_sample(shape: Shape, setting: Setting, bf16: bool) -> Iterator[Figure]:
    images, side, dim, levels = shape
    device, grid = setting.device, (side, side)
    torch.manual_seed(0)
    block = MMFuser(Selection(tuple(range(levels)), levels), dim, MMFuserOptions())
    features = torch.randn(levels + 1, images, side * side, dim, device=device)
    ours = Step(block, nn.Identity(), features, grid, bf16)
    theirs = Step(PerLevel(block), nn.Identity(), features, grid, bf16)
    parts: dict[str, Callable[[Step], Callable[[], None]]] = {
        "forward": lambda step: step.forward,
        "forward + backward": lambda step: step.both,
    }
    for part, method in parts.items():
        meters = {
            "ours": clock(method(ours), device, setting.least),
            "theirs": clock(method(theirs), device, setting.least),
        }
        seconds = in_turn(meters, setting.repeats)
        faster = Ratio.paired(seconds["theirs"], seconds["ours"])
        facts = {"shape": list(shape), "seconds": {name: Ratio.of(s).median for name, s in seconds.items()}}
        precision = "bf16 autocast" if bf16 else "float32"
        name = f"MMFuser {part}, d{dim}, {side * side} tokens, {levels} levels, {precision}"
        yield Figure(
            name,
            "grid_sample, level by level",
            Kind.SPEED,
            faster,
            note=f"the block alone, {words(shape)}",
            facts=facts,
        )
