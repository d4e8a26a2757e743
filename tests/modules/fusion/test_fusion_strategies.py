"""What each strategy computes, against its equation written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.cost import parameters
from fusion_workbench.modules.fusion import STRATEGIES, Fusion, build
from fusion_workbench.modules.fusion.concat import Concat

SELECTION, DIM, GRID = Selection((1, 3), 6), 8, (2, 3)


def features(layers: int = 3, cells: int = 6, dim: int = DIM) -> Tensor:
    """Layers of very different norms, as encoders have them."""
    scale = 10.0 ** torch.arange(layers).view(-1, 1, 1, 1)
    return torch.randn(layers, 2, cells, dim, generator=torch.Generator().manual_seed(0)) * scale + scale


def hats(x: Tensor) -> Tensor:
    """Every token with mean 0 and variance 1."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def randomised(fuser: Fusion) -> Fusion:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in fuser.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return fuser


@pytest.mark.parametrize("layer_norm", ["per_layer", "none"])
def test_average_sum_and_concat(layer_norm: str) -> None:
    x = features()
    read = hats(x) if layer_norm == "per_layer" else x
    expected = {"average": sum(read) / 3, "sum": sum(read), "concat": torch.cat(tuple(read), -1)}
    for name, out in expected.items():
        fuser = build(name, SELECTION, DIM, {"layer_norm": layer_norm})
        assert isinstance(out, Tensor)
        torch.testing.assert_close(fuser(x, GRID), out)
        assert fuser.out_dim == out.shape[-1]
        assert parameters(fuser) == fuser.flops(GRID) == 0


def test_behind_a_projector_sum_and_average_are_one() -> None:
    x = features()
    total, mean = (build(name, SELECTION, DIM)(x, GRID) for name in ("sum", "average"))
    torch.testing.assert_close(F.layer_norm(total, (DIM,)), F.layer_norm(mean, (DIM,)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["weighted", "gated"])
def test_learned_averages_begin_as_the_average(name: str) -> None:
    x = features()
    torch.testing.assert_close(build(name, SELECTION, DIM)(x, GRID), build("average", SELECTION, DIM)(x, GRID))


def test_weighted_is_elmos_equation_and_reports_its_weights() -> None:
    fuser, x = build("weighted", SELECTION, DIM), features()
    with torch.no_grad():
        fuser.weight.copy_(torch.tensor([0.0, 1.0, 2.0]))
        fuser.log_gamma.fill_(0.5)
    exponentials = torch.tensor([0.0, 1.0, 2.0]).exp()
    shares = exponentials / exponentials.sum()
    expected = torch.tensor(0.5).exp() * sum(s * h for s, h in zip(shares, hats(x), strict=True))
    torch.testing.assert_close(fuser(x, GRID), expected)
    found = fuser.diagnose(x, GRID)
    assert [found[f"weight/layer_{k}"] for k in (1, 3, 6)] == pytest.approx(shares.tolist())
    assert found["scale"] == pytest.approx(1.6487, rel=1e-4)
    assert fuser.flops(GRID) == 0  # element by element, as the average


def test_gates_are_each_tokens_own() -> None:
    fuser, x = randomised(build("gated", SELECTION, DIM)), features()
    out, layers = fuser(x, GRID), hats(x)
    for image, cell in ((0, 0), (1, 4)):
        token = layers[:, image, cell]  # [3, dim]
        gate = (fuser.gate.weight @ token.flatten() + fuser.gate.bias).softmax(0)
        torch.testing.assert_close(out[image, cell], gate @ token)
    found = fuser.diagnose(x, GRID)
    assert sum(found[f"weight/layer_{k}"] for k in (1, 3, 6)) == pytest.approx(1)
    assert all(found[f"weight_spread/layer_{k}"] > 0.01 for k in (1, 3, 6))


# --- Dense Connector ------------------------------------------------------------------------------------------------


def test_sti_appends_the_published_pooling() -> None:
    """AvgPool1d(8, 8) over the flattened tokens: 576 of the query and 72 for each level."""
    x = features(cells=576)
    fuser = build("sti", SELECTION, DIM)
    out = fuser(x, (24, 24))
    pooled = torch.nn.AvgPool1d(8, 8)
    layers = hats(x)
    torch.testing.assert_close(out[:, :576], layers[2])
    torch.testing.assert_close(out[:, 576:], torch.cat([pooled(layers[k].mT).mT for k in (0, 1)], 1))
    assert out.shape[1] == 720
    assert fuser.token_map((24, 24)).tolist() == [*range(576), *([-1] * 144)]


@given(rows=st.integers(1, 5), columns=st.integers(1, 9), stride=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_sti_leaves_no_token_out(rows: int, columns: int, stride: int) -> None:
    cells = rows * columns
    x = features(cells=cells)
    out = build("sti", SELECTION, DIM, {"stride": stride, "layer_norm": "none"})(x, (rows, columns))
    runs = torch.arange(cells).split(stride)
    expected = torch.cat([x[2], *(torch.stack([x[k][:, run].mean(1) for run in runs], 1) for k in (0, 1))], 1)
    torch.testing.assert_close(out, expected)


def test_sci_is_concat() -> None:
    assert STRATEGIES["sci"].cls is STRATEGIES["concat"].cls is Concat
    assert STRATEGIES["sci"].options is STRATEGIES["concat"].options


@pytest.mark.parametrize(
    ("levels", "groups", "expected"),
    [
        (4, None, [(0, 2), (2, 4)]),
        (5, 2, [(0, 2), (2, 5)]),
        (5, 5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (3, 1, [(0, 3)]),
        (1, None, [(0, 1)]),
    ],
)
def test_dci_averages_adjacent_groups(levels: int, groups: int | None, expected: list[tuple[int, int]]) -> None:
    fuser = build("dci", Selection(tuple(range(levels)), 6), DIM, {"groups": groups})
    x = features(levels + 1)
    layers = hats(x)
    groups_of = [torch.stack(tuple(layers[low:high])).mean(0) for low, high in expected]
    torch.testing.assert_close(fuser(x, GRID), torch.cat([*groups_of, layers[-1]], -1))
    assert fuser.out_dim == DIM * (len(expected) + 1)


def test_dci_with_a_group_a_level_is_sci() -> None:
    x = features()
    torch.testing.assert_close(
        build("dci", SELECTION, DIM, {"groups": 2})(x, GRID), build("sci", SELECTION, DIM)(x, GRID)
    )


# --- FPN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(2, 3), (1, 6), (3, 2)], ids=str)
@pytest.mark.parametrize("output", ["finest", "sum"])
def test_fpn_is_the_reading_written_down(output: str, grid: tuple[int, int]) -> None:
    x = features()
    fuser = randomised(build("fpn", SELECTION, DIM, {"output": output, "channels": 4}))
    lateral = [f(h) for f, h in zip(fuser.lateral, hats(x), strict=True)]
    p6 = lateral[2]
    p3 = lateral[1] + p6
    p1 = lateral[0] + p3
    maps = [p6, p3, p1] if output == "sum" else [p1]

    def smooth(conv: torch.nn.Conv2d, tokens: Tensor) -> Tensor:
        """The 3×3 convolution as a sum over the nine neighbours."""
        image = F.pad(tokens.view(2, *grid, 4), (0, 0, 1, 1, 1, 1))
        total = conv.bias.expand(2, *grid, 4).clone()
        for dy in range(3):
            for dx in range(3):
                total += image[:, dy : dy + grid[0], dx : dx + grid[1]] @ conv.weight[:, :, dy, dx].T
        return total.flatten(1, 2)

    expected = sum(smooth(conv, p) for conv, p in zip(fuser.smooth, maps, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(fuser(x, grid), expected, rtol=1e-4, atol=1e-4)
    assert fuser.out_dim == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sti", {"stride": 0}, "stride=0; one token or more"),
        ("dci", {"groups": 3}, "groups=3, and the 2 levels make 1 to 2 groups"),
        ("dci", {"groups": 0}, "groups=0"),
        ("fpn", {"channels": 0}, "channels=0; the pyramid needs at least one"),
        ("fpn", {"output": "fine"}, r"option 'output' of strategy 'fpn' is 'fine'\. Did you mean 'finest'\?"),
        ("average", {"layer_norm": "per-layer"}, r"is 'per-layer'\. Did you mean 'per_layer'\?"),
        ("concat", {"layer_norm": None}, "is None; it takes 'per_layer' or 'none'"),
    ],
)
def test_wrong_options_are_one_clear_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message) as caught:
        build(name, SELECTION, DIM, options)
    assert "\n" not in str(caught.value)
