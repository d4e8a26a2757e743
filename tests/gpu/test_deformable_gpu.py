"""Deformable attention on CUDA against the CPU."""

from __future__ import annotations

import pytest
import torch

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import build, deformable

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 17), (24, 24)], ids=str)
@pytest.mark.parametrize("dense_up_to", [0, 10**6], ids=["sparse", "dense"])
@pytest.mark.parametrize("chunk", [1, 2**26], ids=["in pieces", "at once"])
def test_cuda_equals_cpu(grid: tuple[int, int], dense_up_to: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "DENSE_UP_TO", dense_up_to)
    monkeypatch.setattr(deformable, "DENSE_UP_TO_ON_GPU", dense_up_to)
    monkeypatch.setattr(deformable, "DENSE_FROM_ON_GPU", 0)
    monkeypatch.setattr(deformable, "CHUNK_ON_GPU", chunk)
    torch.manual_seed(0)
    fuser = build("mmfuser", Selection((1, 2, 3), 4), 128).double()
    with torch.no_grad():
        for parameter in fuser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    features = torch.randn(4, 2, grid[0] * grid[1], 128, dtype=torch.float64)
    expected = fuser(features, grid)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, list(fuser.parameters()), cotangent)
    fuser.cuda()
    actual = fuser(features.cuda(), grid)
    torch.testing.assert_close(actual.cpu(), expected)
    for a, e in zip(torch.autograd.grad(actual, list(fuser.parameters()), cotangent.cuda()), gradients, strict=True):
        torch.testing.assert_close(a.cpu(), e)


def test_bfloat16_autocast_is_near_float32() -> None:
    torch.manual_seed(0)
    fuser = build("mmfuser", Selection((1, 2, 3), 4), 384, {"gate_init": 0.5}).cuda()
    features = torch.randn(4, 8, 256, 384, device="cuda")
    exact = fuser(features, (16, 16))
    with torch.autocast("cuda", torch.bfloat16):
        near = fuser(features, (16, 16))
    near.float().square().mean().backward()
    assert float(((near - exact).norm() / exact.norm()).detach()) < 0.02
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fuser.parameters())
