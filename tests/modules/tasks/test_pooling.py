"""Projecting what a head has summed gives what summing projected tokens gives: logits, and every gradient."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.probes.probe import Probe, ProbeConfig
from fusion_workbench.modules.projector import Projector
from fusion_workbench.modules.tasks import Digit, Read, Segment, Task
from fusion_workbench.modules.tasks.heads import AttentivePooling, BoxReader, sums_of
from fusion_workbench.modules.tasks.pooling import Unprojected, products, weighted_sums

GRID = (4, 6)


def probe_of(projector: str = "linear", tasks: Sequence[Task] = (Read(5), Digit(4))) -> Probe:
    torch.manual_seed(0)
    return Probe(ProbeConfig("concat", Selection((1, 2), 4), 16, projector=projector, width=12, head_hidden=8), tasks)


def batch_of(images: int = 3, boxes: int = 2) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    corner = torch.rand(images, boxes, 2, generator=draw) * 0.6
    return {"read.box": torch.cat([corner, corner + 0.3], -1)}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 3),
    count=st.integers(1, 9),
    spare=st.integers(0, 3),
    rows=st.integers(1, 4),
    bias=st.booleans(),
)
def test_sums_and_products_equal_those_of_projected_tokens(
    seed: int, images: int, count: int, spare: int, rows: int, bias: bool
) -> None:
    torch.manual_seed(seed)
    tokens = torch.randn(images, count + spare, 7, dtype=torch.float64, requires_grad=True)
    linear = nn.Linear(7, 5, bias=bias, dtype=torch.float64)
    weights = torch.rand(images, rows, count, dtype=torch.float64, requires_grad=True)  # rows need not sum to 1
    vectors = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    leaves = [tokens, weights, vectors, *linear.parameters()]
    found = []
    for read in (linear(tokens), Unprojected(tokens, linear)):
        results = weighted_sums(read, weights), products(read, vectors)
        found.append([*results, *torch.autograd.grad(sum(r.square().sum() for r in results), leaves)])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("as_double", [True, False], ids=["float64", "float32"])
def test_a_probe_gives_the_logits_and_gradients_of_projecting_every_token(as_double: bool) -> None:
    probe, batch = probe_of(), batch_of()
    features = torch.randn(3, 3, 24, 16)
    if as_double:
        probe, features = probe.double(), features.double()
        batch = {key: values.double() for key, values in batch.items()}
    fused = probe.fuser(features, GRID)
    assert probe._unprojected(fused, batch) is not None
    tokens = probe.tokens(features, GRID)
    plain = {name: head(tokens, batch, GRID) for name, head in probe.heads.items()}
    ours = probe(features, batch, GRID)
    bar = 1e-6 if as_double else 1e-4  # box_weights are computed in float32
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=bar, atol=bar)
    gradients = [
        torch.autograd.grad(sum(v.square().sum() for v in logits.values()), list(probe.parameters()))
        for logits in (plain, ours)
    ]
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=bar, atol=bar)


class Own(AttentivePooling):
    """A head of a plug-in, which may do with the tokens what it likes."""


@pytest.mark.parametrize(
    ("probe", "boxes"),
    [
        (probe_of("mlp2x_gelu"), 2),
        (
            probe_of(
                tasks=[
                    Read(5),
                    Segment(
                        0,
                        {
                            "segment.box": torch.rand(2, 1, 4).numpy(),
                            "segment.valid": torch.ones(2, 1, dtype=torch.bool).numpy(),
                        },
                    ),
                ]
            ),
            2,
        ),
        (probe_of(), 20),
    ],
    ids=["a projector that is not linear", "a head that needs the tokens", "more sums than tokens"],
)
def test_every_token_is_projected_where_a_head_may_need_it(probe: Probe, boxes: int) -> None:
    assert probe._unprojected(torch.randn(3, 24, probe.fuser.out_dim), batch_of(boxes=boxes)) is None


def test_a_head_or_projector_of_a_subclass_gets_the_tokens() -> None:
    class Other(Projector):
        pass

    assert sums_of(BoxReader(8, 4, 3, "read.box"), batch_of()) == 2
    assert sums_of(AttentivePooling(8, 4, 3), {}) == 4
    assert sums_of(Own(8, 4, 3), {}) == float("inf")
    probe = probe_of()
    probe.projector = Other("linear", probe.fuser.out_dim, 12)
    assert probe._unprojected(torch.randn(3, 24, probe.fuser.out_dim), batch_of()) is None


@pytest.mark.parametrize(
    "fused", [None, torch.zeros(3), torch.zeros(3, 24, 2, 24)], ids=["None", "one axis", "four axes"]
)
def test_what_is_no_tokens_is_left_to_the_projector_to_refuse(fused: Tensor | None) -> None:
    assert probe_of()._unprojected(fused, batch_of()) is None  # type: ignore[arg-type]
