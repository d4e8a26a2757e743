"""Deformable attention against its definition, and its ways of computing against each other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusion_workbench.bench.others.per_level import attention_by_level as reference
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.modules.fusion import deformable
from fusion_workbench.modules.fusion.deformable import (
    DeformableAttention,
    compass,
    corners,
    fold,
    gather,
    project_and_gather,
)

GRIDS = [(4, 4), (3, 5), (1, 9), (9, 1), (1, 1)]


def random_attention(dim: int, heads: int, levels: int, points: int, dtype: torch.dtype) -> DeformableAttention:
    torch.manual_seed(1)
    attention = DeformableAttention(dim, heads, levels, points).to(dtype)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return attention


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dense_up_to", [0, 10**6], ids=["sparse", "dense"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen tokens", "tokens with gradient"])
@pytest.mark.parametrize("chunk", [1, 2**20], ids=["in pieces", "at once"])
def test_it_is_its_definition(
    grid: tuple[int, int], dense_up_to: int, frozen: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deformable, "DENSE_UP_TO", dense_up_to)
    monkeypatch.setattr(deformable, "CHUNK", chunk)
    monkeypatch.setattr(deformable, "_sampling_first_pays", lambda *_: True)
    attention = random_attention(12, 3, 2, 4, torch.float64)
    count = grid[0] * grid[1]
    query = torch.randn(2, count, 12, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 2 * count, 12, dtype=torch.float64, requires_grad=not frozen)
    inputs = [query, *attention.parameters(), *([] if frozen else [tokens])]
    actual, expected = attention(query, tokens, grid), reference(attention, query, tokens, grid)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(actual)
    for a, e in zip(
        torch.autograd.grad(actual, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(a, e)


def test_all_ways_agree_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = random_attention(64, 4, 3, 4, torch.float32)
    query, tokens = torch.randn(4, 42, 64), torch.randn(4, 3 * 42, 64)
    cotangent = torch.randn(4, 42, 64)
    gradients = []
    for dense_up_to in (0, 10**6):
        for sampling_first in (True, False):
            monkeypatch.setattr(deformable, "DENSE_UP_TO", dense_up_to)
            monkeypatch.setattr(deformable, "_sampling_first_pays", lambda *_, pays=sampling_first: pays)
            out = attention(query, tokens, (6, 7))
            gradients.append([out.detach(), *torch.autograd.grad(out, list(attention.parameters()), cotangent)])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert float((a - b).norm()) <= 1e-6 * float(a.norm())


@pytest.mark.parametrize("dense_up_to", [0, 10**6], ids=["sparse", "dense"])
def test_written_gradients_are_the_derivatives(dense_up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "DENSE_UP_TO", dense_up_to)
    torch.manual_seed(0)
    heads, levels, points, grid, batch = 2, 2, 2, (2, 3), 2
    sampling = (torch.randn(3, heads, levels * points, batch * 6, dtype=torch.float64) * 1.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: corners(x, levels, grid)[1], sampling)
    index, weight = (t.detach() for t in corners(sampling, levels, grid))
    weight.requires_grad_()
    values = torch.randn(batch, levels * 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: gather(v, index, w), (values, weight))
    tokens = torch.randn(batch, levels * 6, 4, dtype=torch.float64)
    matrix = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, b, w: project_and_gather(tokens, m, b, index, w), (matrix, bias, weight))


def test_a_sample_on_a_cell_reads_that_cell_and_outside_reads_zero() -> None:
    sampling = torch.zeros(
        3, 1, 5, 6
    )  # one level, five points, one image of 2 × 3 cells, the offsets alike in all cells
    sampling[0] = torch.tensor([0.0, 1.0, -1.0, 1e30, -math.inf]).view(1, 5, 1)
    index, weight = corners(sampling, 1, (2, 3))
    dense = torch.zeros(6, 6).scatter_add_(1, index[0].long(), weight[0])
    right, left = torch.eye(3).roll(1, 1).triu(1), torch.eye(3).roll(-1, 1).tril(-1)
    expected = torch.kron(torch.eye(2), (torch.eye(3) + right + left) / 5)
    torch.testing.assert_close(dense, expected)


def test_nan_stays_nan_and_never_reads_elsewhere() -> None:
    sampling = torch.full((3, 1, 4, 6), math.nan)
    index, weight = corners(sampling, 1, (2, 3))
    assert 0 <= int(index.min()) <= int(index.max()) < 6
    assert weight.isnan().all()


def test_folding_is_exact() -> None:
    linear, norm = nn.Linear(6, 4).double(), nn.LayerNorm(6, eps=1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(5, 6, dtype=torch.float64)
    plain = F.layer_norm(x, (6,), eps=1e-6)
    torch.testing.assert_close(F.linear(plain, *fold(linear, norm)), linear(norm(x)))
    assert fold(linear, None) == (linear.weight, linear.bias)


def test_the_compass() -> None:
    offsets = compass(8, 2, 3)  # [H, L, P, xy]
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for point in range(3):
        expected = (point + 1) * torch.tensor(directions, dtype=torch.float32)
        for level in range(2):
            torch.testing.assert_close(offsets[:, level, point], expected, atol=1e-5, rtol=0)
    assert float(compass(6, 1, 4)[..., 3, :].abs().amax()) == 4


def test_bfloat16_keeps_positions_exact_and_comes_back_as_bfloat16() -> None:
    attention = random_attention(32, 2, 2, 4, torch.float32)
    query, tokens = torch.randn(2, 12, 32), torch.randn(2, 24, 32)
    exact = attention(query, tokens, (3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(query, tokens, (3, 4))
        sampling = attention.sampling(query)
    assert sampling.dtype == torch.float32
    torch.testing.assert_close(sampling, attention.sampling(query))
    assert out.dtype == torch.bfloat16
    assert float((out - exact).norm() / exact.norm()) < 0.02
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in attention.parameters())
    pure = attention.bfloat16()(query.bfloat16(), tokens.bfloat16(), (3, 4))
    assert pure.dtype == torch.bfloat16
    assert float((pure - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("dense_up_to", [0, 10**6], ids=["sparse", "dense"])
@pytest.mark.parametrize("sampling_first", [True, False])
@pytest.mark.parametrize("half_tokens", [True, False])
def test_going_backward_inside_autocast(
    dense_up_to: int, sampling_first: bool, half_tokens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deformable, "DENSE_UP_TO", dense_up_to)
    monkeypatch.setattr(deformable, "_sampling_first_pays", lambda *_: sampling_first)
    attention = random_attention(32, 2, 2, 4, torch.float32)
    query, tokens, cotangent = torch.randn(2, 12, 32), torch.randn(2, 24, 32), torch.randn(2, 12, 32)
    parameters = list(attention.parameters())
    exact = torch.autograd.grad(attention(query, tokens, (3, 4)), parameters, cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(query, tokens.bfloat16() if half_tokens else tokens, (3, 4))
        near = torch.autograd.grad(out, parameters, cotangent.bfloat16())
    for a, e in zip(near, exact, strict=True):
        assert a.dtype == torch.float32
        assert float((a - e).norm()) < 0.05 * float(e.norm())


def test_without_gradients_nothing_is_kept() -> None:
    attention = random_attention(16, 2, 2, 2, torch.float32)
    query, tokens = torch.randn(2, 6, 16), torch.randn(2, 12, 16)
    with torch.inference_mode():
        out = attention(query, tokens, (2, 3))
    torch.testing.assert_close(out, attention(query, tokens, (2, 3)).detach())


@pytest.mark.parametrize(("heads", "levels", "points"), [(5, 1, 1), (0, 1, 1), (2, 0, 1), (2, 1, -1)])
def test_impossible_shapes_are_refused(heads: int, levels: int, points: int) -> None:
    with pytest.raises(WorkbenchError):
        DeformableAttention(16, heads, levels, points)
