"""Backends of deformable attention: the published layout against this package's operator, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import published_attention
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules import cost
from fusion_workbench.modules.fusion import attention, build
from fusion_workbench.modules.fusion import deformable_backends as backends
from fusion_workbench.modules.fusion.deformable_backends import Resolution, Shape, in_published_layout, own, resolve

CUDA = torch.device("cuda", 0)
SHAPE = Shape(images=2, grid=(3, 4), levels=2, heads=2, points=4, channels=8)


def published(values: Tensor, sampling: Tensor, levels: int, grid: tuple[int, int]) -> Tensor:
    return in_published_layout(values, sampling, levels, grid, published_attention.attend)


@pytest.fixture(autouse=True)
def _nothing_tried_before() -> Iterator[None]:
    def forget() -> None:
        backends._tried.clear()
        backends._load.cache_clear()
        backends.unavailable.cache_clear()

    forget()
    yield
    forget()


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.5, 2.0, 20.0]),
)
def test_the_published_layout_gives_the_same_numbers_and_gradients(
    seed: int, images: int, grid: tuple[int, int], levels: int, heads: int, points: int, channels: int, reach: float
) -> None:
    values, sampling, cotangent = published_attention.inputs(seed, images, grid, levels, heads, points, channels, reach)
    results = []
    for operator in (own, published):
        inputs = [values.clone().requires_grad_(), sampling.clone().requires_grad_()]
        out = operator(*inputs, levels, grid)
        results.append([out.detach(), *torch.autograd.grad(out, inputs, cotangent)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_what_an_operator_is_given() -> None:
    """Shapes, types and the level table, and a sample on a cell's middle at (i + ½) / n."""
    given: list[Tensor] = []

    def attend(*arguments: Tensor) -> Tensor:
        given.extend(arguments)
        return arguments[0].new_zeros(2, 6, 8)

    values = torch.randn(2, 12, 8, dtype=torch.bfloat16)
    out = in_published_layout(values, torch.zeros(3, 4, 6, 12), 2, (2, 3), attend)
    assert out.dtype == torch.bfloat16
    value, shapes, starts, locations, weights = given
    assert value.shape == (2, 12, 4, 2)
    assert torch.equal(value.flatten(2), values)
    assert shapes.tolist() == [[2, 3], [2, 3]]
    assert starts.tolist() == [0, 6]
    assert locations.shape == (2, 6, 4, 2, 3, 2)
    assert locations.dtype == torch.float32
    expected = [[(column + 0.5) / 3, (row + 0.5) / 2] for row in range(2) for column in range(3)]
    torch.testing.assert_close(locations[1, :, 3, 1, 2], torch.tensor(expected))
    assert weights.shape == (2, 6, 4, 2, 3)
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(weights.float(), torch.full((2, 6, 4, 2, 3), 1 / 6), rtol=4e-3, atol=0)


def test_runaway_offsets_read_zero() -> None:
    values = torch.randn(1, 6, 4, dtype=torch.float64)
    sampling = torch.zeros(3, 2, 2, 6, dtype=torch.float64)
    sampling[0, :, 1] = torch.tensor([1e30, -1e30, float("inf"), -float("inf"), 1e9, -1e9])
    torch.testing.assert_close(published(values, sampling, 1, (2, 3)), own(values, sampling, 1, (2, 3)))
    torch.testing.assert_close(published(values, sampling, 1, (2, 3)), values / 2)


def test_the_level_table_of_inference_serves_training() -> None:
    values, sampling, _ = published_attention.inputs(0, 1, (2, 5), 2, 1, 1, 2)
    with torch.inference_mode():
        published(values, sampling, 2, (2, 5))
    kept: list[Tensor] = []

    def attend(*arguments: Tensor) -> Tensor:
        kept.extend(arguments[1:3])
        return published_attention.attend(*arguments)

    in_published_layout(values, sampling, 2, (2, 5), attend)
    assert not any(table.is_inference() for table in kept)


# Which backend is taken, and why


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where ``deformops`` is installed."""
    monkeypatch.setattr(backends, "unavailable", lambda: None)


def loads(monkeypatch: pytest.MonkeyPatch, load: Callable[[], Any], times: Any = (1.0, 1.0)) -> list[int]:
    """As where it is imported by ``load`` and timed as ``times``, or raises them; counts the trials."""
    here(monkeypatch)
    trials: list[int] = []

    def trial(*_: Any) -> Any:
        trials.append(1)
        if isinstance(times, Exception):
            raise times
        return times

    monkeypatch.setattr(backends, "_load", load)
    monkeypatch.setattr(backends, "trial", trial)
    return trials


def test_the_cpu_takes_its_own_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    monkeypatch.setattr(backends, "_load", pytest.fail)
    monkeypatch.setattr(backends, "trial", pytest.fail)
    found = resolve(torch.device("cpu"), torch.float32, SHAPE)
    assert found == Resolution("own", "deformops runs on CUDA, and this is cpu")
    assert resolve(torch.device("meta"), torch.float32, SHAPE).backend == "own"


@pytest.mark.parametrize(
    ("system", "version", "words"),
    [
        ("Linux", "3.12.1", "not installed: pip install 'fusion-workbench[gpu]'"),
        ("Linux", "3.11.7", "needs Python 3.12 or 3.13, and this is 3.11.7"),
        ("Linux", "3.14.0rc1", "needs Python 3.12 or 3.13, and this is 3.14.0rc1"),
        ("Darwin", "3.12.1", "kernels for Linux, and this is Darwin"),
    ],
)
def test_why_it_is_not_here(system: str, version: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.python_version", lambda: version)
    monkeypatch.setattr("platform.python_version_tuple", lambda: tuple(version.split(".")))
    assert words in str(backends.unavailable())
    resolution = resolve(CUDA, torch.float32, SHAPE)
    assert resolution.backend == "own"
    assert words in resolution.reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_types_without_a_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = loads(monkeypatch, lambda: None)
    found = resolve(CUDA, dtype, SHAPE)
    assert found.backend == "own"
    assert found.reason == f"deformops has no kernel for {str(dtype).removeprefix('torch.')}"
    assert not trials


def test_the_switch_and_deterministic_algorithms_take_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loads(monkeypatch, lambda: None, (9.0, 1.0))
    assert resolve(CUDA, torch.float32, SHAPE).backend == "deformops"
    monkeypatch.setenv(backends.SWITCH, "own")
    assert resolve(CUDA, torch.float32, SHAPE) == Resolution("own", "WORKBENCH_DEFORMABLE=own")
    monkeypatch.delenv(backends.SWITCH)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "deterministic" in resolve(CUDA, torch.float32, SHAPE).reason


def test_while_operations_are_counted_it_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loads(monkeypatch, lambda: None, (9.0, 1.0))
    seen: list[Resolution] = []

    def function(x: Tensor) -> Tensor:
        seen.append(resolve(CUDA, torch.float32, SHAPE))
        return x

    cost.flops(function, torch.ones(1))
    assert seen[0].backend == "own"
    assert "counted" in seen[0].reason


def test_the_faster_is_taken_once_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = loads(monkeypatch, lambda: None, (5.0, 4.0))
    for _ in range(3):
        found = resolve(CUDA, torch.bfloat16, SHAPE)
        assert found == Resolution(
            "deformops", "faster: deformops 4.00 ms, own 5.00 ms, forward and backward", 5.0, 4.0
        )
    assert len(trials) == 1
    for changed in (SHAPE._replace(images=3), SHAPE._replace(grid=(4, 3)), SHAPE._replace(levels=1)):
        resolve(CUDA, torch.bfloat16, changed)
    resolve(CUDA, torch.float32, SHAPE)
    assert "4.00 ms, own 5.00 ms, forward" in resolve(CUDA, torch.bfloat16, SHAPE, training=False).reason
    assert len(trials) == 6


@pytest.mark.parametrize("theirs", [4.6, 5.0, 12.0])
def test_not_clearly_faster_is_not_taken(theirs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    loads(monkeypatch, lambda: None, (5.0, theirs))
    found = resolve(CUDA, torch.float32, SHAPE)
    assert found.backend == "own"
    assert found.reason.startswith(f"deformops is not faster by 10 %: deformops {theirs:.2f} ms, own 5.00 ms")
    assert (found.own_ms, found.deformops_ms) == (5.0, theirs)


def test_what_its_import_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("libtriton.so: wrong ELF class")

    trials = loads(monkeypatch, load)
    for _ in range(2):
        found = resolve(CUDA, torch.float32, SHAPE)
        assert found.reason == "deformops cannot be imported: ImportError: libtriton.so: wrong ELF class"
    assert not trials


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("gcc: not found")], ids=str)
def test_what_its_trial_raises_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = loads(monkeypatch, lambda: None, error)
    for _ in range(2):
        found = resolve(CUDA, torch.float32, SHAPE)
        assert found == Resolution("own", f"deformops failed when tried: {type(error).__name__}: {error}")
    assert len(trials) == 1
    assert backends.seconds_spent() > 0


@pytest.mark.parametrize("training", [True, False])
def test_a_trial_times_both_and_leaves_the_random_state(training: bool) -> None:
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        times = backends.trial(own, published, torch.device("cpu"), torch.float32, SHAPE, training)
    assert min(times) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trial_refuses_other_numbers() -> None:
    def transposed(values: Tensor, sampling: Tensor, levels: int, grid: tuple[int, int]) -> Tensor:
        return published(values, sampling[[1, 0, 2]], levels, grid)

    def without_a_gradient(values: Tensor, sampling: Tensor, levels: int, grid: tuple[int, int]) -> Tensor:
        return published(values, torch.cat((sampling[:2].detach(), sampling[2:])), levels, grid)

    def broken(values: Tensor, sampling: Tensor, levels: int, grid: tuple[int, int]) -> Tensor:
        return published(values * float("nan"), sampling, levels, grid)

    for wrong, words in ((transposed, "output"), (without_a_gradient, "gradient"), (broken, "output")):
        with pytest.raises(ArithmeticError, match=f"its {words} is"):
            backends.trial(own, wrong, torch.device("cpu"), torch.float32, SHAPE, training=True)


def test_a_fuser_takes_the_backend_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMFuser's block through the other backend, with every gradient."""
    fuser = build("mmfuser", Selection((1, 2, 3), 4), 32, {"heads": 4, "gate_init": 0.5}).double()
    with torch.no_grad():
        for parameter in fuser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    features = torch.randn(4, 2, 15, 32, dtype=torch.float64)
    expected = fuser(features, (3, 5))
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, list(fuser.parameters()), cotangent)
    asked: list[tuple[Shape, bool]] = []

    def resolved(device: torch.device, dtype: torch.dtype, shape: Shape, training: bool) -> Resolution:
        asked.append((shape, training))
        return Resolution("deformops", "a test")

    monkeypatch.setattr(backends, "resolve", resolved)
    monkeypatch.setattr(backends, "_load", lambda: published_attention.attend)
    monkeypatch.setattr(attention, "CHOICE_ON", ("cpu",))
    actual = fuser(features, (3, 5))
    torch.testing.assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual, list(fuser.parameters()), cotangent), gradients, strict=True):
        torch.testing.assert_close(a, e)
    assert asked == [(Shape(2, (3, 5), 3, 4, 4, 8), True), (Shape(2, (3, 5), 1, 4, 4, 8), True)]
