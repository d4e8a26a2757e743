"""Encoder, fuser and projector as one module: its tokens, its shapes, and what of it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from every_strategy import every_strategy
from tiny_families import save_tiny
from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.connector import VisualConnector
from fusion_workbench.modules.encoders.encoder import VisionEncoder
from fusion_workbench.modules.probes.probe import Probe, ProbeConfig, seeded_probe

WIDTH, SIZE = 24, (28, 42)
GRID = (2, 3)
CASES = list(every_strategy())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VisionEncoder:
    folder = save_tiny("clip_vision_model", tmp_path_factory.mktemp("clip"))
    return VisionEncoder(str(folder), image_size=SIZE, precision="float32")


def connect(encoder: VisionEncoder, strategy: str, options: dict[str, Any]) -> tuple[VisualConnector, Probe]:
    """A connector that takes its pictures as they are, and the probe whose parts it holds."""
    config = ProbeConfig(strategy, Selection((1, 2), 3), encoder.dim, options, width=WIDTH, grid=GRID)
    probe = seeded_probe(config, [], 0)
    with torch.no_grad():
        for gate in probe.fuser.gates():
            gate.add_(0.1)  # one that is zero would hide the layers behind it
    return VisualConnector(encoder, probe.fuser, probe.projector, WIDTH, np.asarray).eval(), probe.eval()


def pictures() -> np.ndarray[Any, Any]:
    return np.random.RandomState(0).randint(0, 256, (2, *SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(("strategy", "options"), CASES, ids=[f"{name}{options}" for name, options in CASES])
def test_its_tokens_are_the_probes(encoder: VisionEncoder, strategy: str, options: dict[str, Any]) -> None:
    connector, probe = connect(encoder, strategy, options)
    assert connector.layers == probe.fuser.uses
    assert connector.grid == GRID
    features = encoder.encode(pictures(), connector.layers)
    with torch.no_grad():
        tokens = connector(pictures())
        assert torch.equal(tokens, probe.tokens(features, GRID))
        assert torch.equal(connector.from_pixels(encoder.normalise(pictures())), tokens)
        assert torch.equal(connector.from_features(features), tokens)
    assert tokens.shape == (2, len(connector.token_map), connector.width)
    assert connector.token_map.max() < GRID[0] * GRID[1]


def test_it_learns_and_its_encoder_does_not(encoder: VisionEncoder) -> None:
    connector, _ = connect(encoder, "mmfuser", {})
    frozen = {key: value.clone() for key, value in encoder.state_dict().items()}
    connector.train()
    assert not encoder.training, "dropout of a frozen encoder would make its tokens noise"
    learning = [p for p in connector.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {id(p) for m in (connector.fuser, connector.projector) for p in m.parameters()}
    optimizer = torch.optim.SGD(learning, lr=0.1)
    losses = []
    for _ in range(5):
        loss = connector(pictures()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, frozen[key]) for key, value in encoder.state_dict().items())


def test_a_fuser_that_stands_still_takes_no_gradient(encoder: VisionEncoder) -> None:
    connector, _ = connect(encoder, "mmfuser", {})
    connector.fuser.requires_grad_(False)
    connector(pictures()).sum().backward()
    assert all(p.grad is None for p in connector.fuser.parameters())
    assert all(p.grad is not None for p in connector.projector.parameters())


def test_its_own_hidden_states_may_be_learned_through(encoder: VisionEncoder) -> None:
    """Hidden states that an unfrozen encoder elsewhere made get their gradient."""
    connector, _ = connect(encoder, "concat", {})
    features: Tensor = torch.randn(3, 2, 6, encoder.dim, requires_grad=True)
    connector.from_features(features).square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().amax((1, 2, 3)).min() > 0


def test_it_computes_in_the_precision_of_its_weights(encoder: VisionEncoder) -> None:
    connector, _ = connect(encoder, "concat", {})
    with torch.no_grad():
        exact = connector(pictures())
        connector.fuser.bfloat16()
        connector.projector.bfloat16()
        rough = connector(pictures())
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
