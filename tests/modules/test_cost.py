"""Costs against counts by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.cost import flops, parameters
from fusion_workbench.modules.fusion import build

PAPER = Selection((3, 8, 13, 18), 23)


def mmfuser_parameters(d: int, heads: int, points: int, levels: int) -> int:
    """Linear maps with biases (looks: 3 numbers a sample), three LayerNorms, two gates."""

    def attention(maps: int) -> int:
        return (d + 1) * 3 * heads * maps * points + 2 * (d + 1) * d

    return attention(levels) + attention(1) + 3 * 2 * d + 2 * d


def mmfuser_macs(tokens: int, d: int, heads: int, points: int, levels: int) -> tuple[int, int]:
    """Of the linear maps, and of the sampling."""

    def linear(maps: int) -> int:
        return tokens * d * (3 * heads * maps * points + maps * d + d)

    def sampling(maps: int) -> int:
        return tokens * 4 * maps * points * d  # each head reads d / heads channels

    return linear(levels) + linear(1), sampling(levels) + sampling(1)


def test_the_paper_s_mmfuser() -> None:
    fuser = build("mmfuser", PAPER, 1024)
    assert parameters(fuser) == 5_190_592 == mmfuser_parameters(1024, 16, 4, 4)
    linear, sampling = mmfuser_macs(576, 1024, 16, 4, 4)
    assert fuser.flops((24, 24)) == 2 * (linear + sampling)
    assert round(linear / 1e9, 2) == 4.79  # the published figure leaves the sampling out
    assert round(sampling / 1e9, 2) == 0.05


@pytest.mark.parametrize(
    ("d", "heads", "points", "levels", "grid"), [(32, 4, 2, 1, (2, 3)), (48, 3, 4, 5, (6, 7)), (64, 1, 1, 2, (1, 9))]
)
def test_mmfuser_of_any_shape(d: int, heads: int, points: int, levels: int, grid: tuple[int, int]) -> None:
    fuser = build("mmfuser", Selection(tuple(range(levels)), levels), d, {"heads": heads, "points": points})
    assert parameters(fuser) == mmfuser_parameters(d, heads, points, levels)
    assert fuser.flops(grid, batch=3) == 3 * 2 * sum(mmfuser_macs(grid[0] * grid[1], d, heads, points, levels))


def test_the_count_does_not_depend_on_which_backward_is_prepared() -> None:
    fuser = build("mmfuser", PAPER, 64)
    features = torch.randn(5, 2, 6, 64)
    frozen = flops(lambda x: fuser(x, (2, 3)), features)
    assert frozen == flops(lambda x: fuser(x, (2, 3)), features.requires_grad_())


def test_linear_convolution_and_products() -> None:
    assert flops(nn.Linear(5, 7), torch.randn(2, 3, 5)) == 2 * 2 * 3 * 5 * 7
    assert flops(nn.Conv2d(3, 8, 2, stride=2), torch.randn(1, 3, 6, 6)) == 2 * 9 * 8 * 3 * 4
    assert flops(torch.bmm, torch.randn(4, 2, 3), torch.randn(4, 3, 5)) == 2 * 4 * 2 * 3 * 5
    assert flops(torch.add, torch.randn(9), torch.randn(9)) == 0


def test_attention_is_counted_whatever_kernel_would_run() -> None:
    q = torch.randn(2, 3, 10, 4)  # two products of 10 × 10 × 4 for each of 2 · 3 heads
    assert flops(F.scaled_dot_product_attention, q, q, q) == 2 * 2 * (2 * 3 * 10 * 10 * 4)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens, d = 5, 8
    assert flops(layer, torch.randn(1, tokens, d)) == 2 * tokens * (4 * d * d + 2 * tokens * d + 2 * d * 16)


def test_shared_parameters_count_once() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    assert parameters(nn.ModuleList([a, b])) == 9 + 3 + 3
    assert parameters(a.requires_grad_(False)) == 12
