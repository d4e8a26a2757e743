"""Contract 2: MMFuser is the published block, forward and every gradient, and loads its state dict."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from places import DATA
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import Fusion, build

GOLDEN = DATA / "golden"
RELATIVE = 1e-5
FLOOR = 1e-7  # for what is zero in exact arithmetic


@dataclass(frozen=True)
class Golden:
    tensors: dict[str, Tensor]
    facts: dict[str, int]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def grid(self) -> tuple[int, int]:
        return self.facts["grid"], self.facts["grid"]

    def fuser(self) -> Fusion:
        levels = tuple(range(self.facts["n_levels"]))
        options = {"heads": self.facts["n_heads"], "points": self.facts["n_points"]}
        return build("mmfuser", Selection(levels, len(levels)), self.facts["d_model"], options)


@pytest.fixture(params=["init", "random"])
def golden(request: pytest.FixtureRequest) -> Golden:
    path = GOLDEN / f"mmfuser_block_{request.param}.safetensors"
    with safe_open(path, "pt") as file:
        facts = {key: int(json.loads(value)) for key, value in file.metadata().items() if key != "norm_eps"}
    return Golden(load_file(path), facts)


def assert_equal(actual: Tensor | None, expected: Tensor, what: str) -> None:
    assert actual is not None, what
    assert actual.shape == expected.shape, what
    error = float((actual - expected).detach().norm())
    assert error <= RELATIVE * float(expected.norm()) + FLOOR, f"{what}: {error:.2g} of {float(expected.norm()):.2g}"


@pytest.mark.parametrize("frozen", [False, True], ids=["features with gradient", "features frozen"])
@pytest.mark.parametrize("dense_up_to", [0, 12, 10**6], ids=["sparse", "measured", "dense"])
def test_forward_and_every_gradient(
    golden: Golden, frozen: bool, dense_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion_workbench.modules.fusion.deformable.DENSE_UP_TO", dense_up_to)
    fuser = golden.fuser()
    fuser.load_state_dict(golden.part("param."))  # strict: the published names, all of them
    features = golden.tensors["features"].clone().requires_grad_(not frozen)
    output = fuser(features, golden.grid)
    assert_equal(output, golden.tensors["output"], "output")
    output.backward(golden.tensors["cotangent"])
    gradients = golden.part("grad.")
    expected_of_features = gradients.pop("features")
    if not frozen:
        assert_equal(features.grad, expected_of_features, "features")
    parameters = dict(fuser.named_parameters())
    assert parameters.keys() == gradients.keys()
    for name, expected in gradients.items():
        assert_equal(parameters[name].grad, expected, name)


def test_in_double_precision_the_golden_block_is_met_to_its_own_rounding() -> None:
    path = GOLDEN / "mmfuser_block_random.safetensors"
    golden = Golden(load_file(path), {"grid": 6, "n_levels": 4, "n_heads": 4, "n_points": 4, "d_model": 32})
    fuser = golden.fuser().double()
    fuser.load_state_dict(golden.part("param."))
    output = fuser(golden.tensors["features"].double(), golden.grid)
    torch.testing.assert_close(output.float(), golden.tensors["output"], rtol=1e-6, atol=1e-6)


def test_the_published_initialisation(golden: Golden) -> None:
    fresh = golden.fuser().state_dict()
    published = golden.part("param.")
    assert fresh.keys() == published.keys()
    if golden.facts["seed"] != 1:
        return  # only the other file is at its start
    for name, tensor in fresh.items():
        if name.endswith("_proj.weight"):  # drawn: Xavier's bound, and no smaller
            bound = (6 / (tensor.shape[0] + tensor.shape[1])) ** 0.5
            for drawn in (tensor, published[name]):
                assert 0.9 * bound < float(drawn.abs().max()) <= bound
        else:
            torch.testing.assert_close(tensor, published[name], rtol=1e-6, atol=1e-6, msg=name)


def test_at_the_start_only_the_outer_gate_learns(golden: Golden) -> None:
    fuser = golden.fuser()
    fuser(golden.tensors["features"], golden.grid).sum().backward()
    moved = {name for name, p in fuser.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"gamma1"}
    assert {id(gate) for gate in fuser.gates()} == {id(fuser.gamma1), id(fuser.gamma2)}


def test_diagnosis_of_the_golden_block(golden: Golden) -> None:
    fuser = golden.fuser()
    fuser.load_state_dict(golden.part("param."))
    found = fuser.diagnose(golden.tensors["features"], golden.grid)
    shares = [found[f"attention_share/layer_{level}"] for level in range(4)]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    inside = fuser.inspect(golden.tensors["features"], golden.grid)
    batch, tokens = golden.tensors["features"].shape[1:3]
    assert inside["attention"].shape == inside["offsets"].shape == (4, fuser.cross_attn.heads)
    assert inside["regions"].shape == (batch, tokens, 4)
    assert inside["regions"].mean((0, 1)).tolist() == pytest.approx(shares, abs=1e-5)
    assert float(inside["offsets"].square().mean().sqrt()) == pytest.approx(found["sampling_offset_rms_cells"])
    if golden.facts["seed"] == 1:
        assert shares == pytest.approx([0.25] * 4)
        # heads 0 to 3 look 1 to 4 cells to the right, down, left and up: the root of (1 + 4 + 9 + 16) / 4
        assert found["sampling_offset_rms_cells"] == pytest.approx(7.5**0.5, rel=1e-5)
