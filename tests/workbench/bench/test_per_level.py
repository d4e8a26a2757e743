"""MMFuser as it is published, without its extension, is ours."""

from __future__ import annotations

import pytest
import torch

from fusion_workbench.bench.others.per_level import PerLevel, away_from_the_start
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion.mmfuser import MMFuser, MMFuserOptions


@pytest.mark.parametrize(("levels", "grid"), [((0, 1), (4, 4)), ((0, 1, 3), (3, 5))])
def test_it_equals_ours_with_all_gradients(levels: tuple[int, ...], grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = MMFuser(Selection(levels, 4), 32, MMFuserOptions(heads=2))
    away_from_the_start(block)
    features = torch.randn(len(levels) + 1, 2, grid[0] * grid[1], 32)
    cotangent = torch.randn(2, grid[0] * grid[1], 32)
    found = []
    for fuser in (block, PerLevel(block)):
        block.zero_grad()
        out = fuser(features, grid)
        out.backward(cotangent)
        gradients = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
        found.append((out.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys() == dict(block.named_parameters()).keys()
    for name, gradient in our_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(their_gradients[name], gradient, rtol=1e-5, atol=1e-5 * max(1, scale), msg=name)
