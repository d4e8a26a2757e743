"""What every fusion strategy has to keep, as a check that users run on their own::

from fusion_workbench.modules.fusion.contract import check

for finding in check("my_strategy"):
    print(finding)
"""

from __future__ import annotations

import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.cost import parameters
from fusion_workbench.modules.fusion.base import Fusion, Grid, build, spec_of, spec_of_class
from fusion_workbench.modules.projector import PROJECTORS

GRIDS: tuple[Grid, ...] = ((4, 4), (3, 5), (1, 7))  # square, rectangular, a sequence
DEPTH = 7  # blocks of the imagined encoder


M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound="Case[Any]")


@dataclass(frozen=True)
class Finding:
    """One requirement and whether it is kept; ``detail`` says what was seen where it is not."""

    name: str
    kept: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{'kept  ' if self.kept else 'BROKEN'} {self.name}{': ' + self.detail if self.detail else ''}"


def check(
    strategy: str,
    options: Mapping[str, Any] | None = None,
    *,
    dim: int = 32,
    levels: Sequence[int] = (1, 3, 4),
    seed: int = 0,
) -> list[Finding]:
    """Hold a registered strategy against the contract, in float32 on the CPU; takes a second or so.

    Args:
        strategy: its registered name.
        options: as in a study file.
        dim: channels of the layers; a multiple of what the strategy divides it by.
        levels: layers of an encoder of 7 blocks, below its deepest; ignored by strategies that read none.
        seed: of features and parameters.

    Returns:
        A finding for each requirement, kept or broken.

    Raises:
        WorkbenchError: the strategy is unknown, or its options are wrong.
    """
    selection = Selection(tuple(levels) if spec_of(strategy).uses_levels else (), DEPTH - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        case = _FusionCase(lambda: build(strategy, selection, dim, options), selection, dim)
        return hold_against(case, _REQUIREMENTS)


def hold_against(case: C, requirements: Sequence[Callable[[C], Iterator[str]]]) -> list[Finding]:
    """A finding for each requirement: kept where it has no complaint of ``case``. Its docstring says what it asks."""
    findings = []
    for requirement in requirements:
        try:
            complaints = list(requirement(case))
        except Exception as error:  # a strategy may fail in any way; the others are still worth knowing
            complaints = [f"{type(error).__name__}: {error}"]
        findings.append(Finding((requirement.__doc__ or "").strip(), not complaints, "; ".join(complaints)))
    return findings


def require(strategy: str, options: Mapping[str, Any] | None = None, **settings: Any) -> None:
    """As :func:`check`; raises AssertionError that lists what is broken."""
    broken = [str(finding) for finding in check(strategy, options, **settings) if not finding.kept]
    assert not broken, f"strategy '{strategy}' does not keep the contract of fusion strategies:\n" + "\n".join(broken)


def check_target(target: str, options: Mapping[str, Any] | None = None, **settings: Any) -> list[Finding]:
    """As :func:`check`, for a registered name or for ``my_package.my_module:MyFusion``.

    Raises:
        WorkbenchError: the module does not import, what it names is not a registered Fusion, or as :func:`check`.
    """
    return check(name_of(target), options, **settings)


def name_of(target: str) -> str:
    """The registered name of ``target``, a name or ``module:Class``. Raises WorkbenchError as :func:`check_target`."""
    if ":" not in target:
        return spec_of(target).name
    cls = class_of(target)
    if not issubclass(cls, Fusion):
        raise WorkbenchError(f"'{target}' is not a subclass of fusion_workbench.modules.fusion.Fusion but {cls!r}.")
    return spec_of_class(cls).name


def class_of(target: str) -> type[Any]:
    """The class that ``my_package.my_module:MyClass`` names, its module imported.

    Raises:
        WorkbenchError: the module does not import, or what is named is no class in it.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise WorkbenchError(f"'{target}' is not of the form my_package.my_module:MyFusion.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises when it is run
        raise WorkbenchError(f"the module of '{target}' does not import: {type(error).__name__}: {error}") from error
    target_object: Any = module
    for part in path.split("."):
        if not hasattr(target_object, part):
            raise WorkbenchError(
                f"'{target}': {target_object.__name__} has no '{part}'.{nearest(part, _strategies_in(module))}"
            )
        target_object = getattr(target_object, part)
    if not isinstance(target_object, type):
        raise WorkbenchError(
            f"'{target}' is not a subclass of fusion_workbench.modules.fusion.Fusion but {target_object!r}."
        )
    return target_object


def _strategies_in(module: Any) -> list[str]:
    """Names of the module's strategies and injections: what may have been meant."""
    classes = {name: member for name, member in vars(module).items() if isinstance(member, type)}
    return [k for k, v in classes.items() if issubclass(v, torch.nn.Module) and not inspect.isabstract(v)]


class Reader(Protocol):
    """A module that reads layers of an encoder."""

    uses: tuple[int, ...]


def select_used(hidden_states: Tensor, module: Reader) -> Tensor:
    """The layers that ``module`` reads, out of all: ``[depth + 1, B, T, dim] → [len(uses), B, T, dim]``."""
    return hidden_states[list(module.uses)]


class Case(ABC, Generic[M]):
    """What is held against a contract, a fusion strategy or an injection, over an imagined encoder.

    Attributes:
        fresh: makes the module at its initial parameters.
        selection: the layers that it may read.
        dim: channels of a layer.
        what: :meth:`output` in the words of the findings.
        tolerance: relative and absolute, of what is equal but for the order of sums.
    """

    what: ClassVar[str] = "output"
    tolerance: ClassVar[tuple[float, float]] = (1e-4, 1e-5)

    def __init__(self, fresh: Callable[[], M], selection: Selection, dim: int) -> None:
        self.fresh, self.selection, self.dim = fresh, selection, dim

    @abstractmethod
    def output(self, module: M, features: Tensor, grid: Grid) -> Tensor:
        """What the module is there to move."""

    def module(self) -> M:
        """At random parameters, as after some training."""
        module = self.fresh().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return module

    def stack(self, grid: Grid, batch: int = 2) -> Tensor:
        """Hidden states of every layer."""
        return torch.randn(DEPTH + 1, batch, grid[0] * grid[1], self.dim)


class _FusionCase(Case[Fusion]):
    def output(self, module: Fusion, features: Tensor, grid: Grid) -> Tensor:
        tokens: Tensor = module(features, grid)
        return tokens


# --- of both contracts ----------------------------------------------------------------------------------------------


def uses_layers(case: Case[Any]) -> Iterator[str]:
    """uses names layers of the selection, each once, the query last"""
    uses = case.fresh().uses
    if not set(uses) <= set(case.selection.layers):
        yield f"uses {uses} is not within the selection {case.selection.layers}"
    if len(set(uses)) != len(uses) or not uses or uses[-1] != case.selection.query:
        yield f"uses {uses} should hold each layer once and end with the query {case.selection.query}"


def layer_complaints(case: Case[Any]) -> Iterator[str]:
    """Layers that the module says it uses and that do not move its output, and others that do."""
    grid, module = GRIDS[1], case.module()
    stack, what = case.stack(grid), case.what
    with torch.no_grad():
        before = case.output(module, select_used(stack, module), grid)
        for layer in range(len(stack)):
            moved = stack.clone()
            moved[layer] += torch.randn_like(moved[layer])
            change = float((case.output(module, select_used(moved, module), grid) - before).abs().max())
            if layer in module.uses and not change > 1e-6:
                yield f"layer {layer} is used and does not move the {what} ({change:.1g})"
            if layer not in module.uses and change:
                yield f"layer {layer} is not used and moves the {what} by {change:.1g}"


def images_apart(case: Case[Any]) -> Iterator[str]:
    """an image's tokens do not depend on the others of its batch, nor do features change"""
    grid, module = GRIDS[1], case.module()
    features = select_used(case.stack(grid), module)
    kept = features.clone()
    with torch.no_grad():
        together, alone = case.output(module, features, grid), case.output(module, features[:, :1], grid)
    if not torch.equal(features, kept):
        yield "the features were changed in place"
    rtol, atol = case.tolerance
    if not torch.allclose(together[:1], alone, rtol=rtol, atol=atol):
        yield f"image 0 differs by {float((together[:1] - alone).abs().max()):.1g} with and without image 1"


def gradient_complaints(module: nn.Module) -> Iterator[str]:
    """Parameters of ``module`` that a backward pass left without a gradient, or with one that is not finite."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any()):
            yield f"{name} has no gradient"
        elif parameter.grad is not None and not parameter.grad.isfinite().all():
            yield f"{name} has a gradient that is not finite"


def cost_of_shapes(case: Case[Any]) -> Iterator[str]:
    """cost is a function of the shapes: FLOPs double with the batch, a second module has as many parameters"""
    one, two = case.fresh(), case.fresh()
    if parameters(one) != parameters(two):
        yield f"{parameters(one)} parameters, then {parameters(two)}"
    single, double = one.flops(GRIDS[0]), one.flops(GRIDS[0], batch=2)
    if double != 2 * single:
        yield f"{single} FLOPs for one image, {double} for two"


def round_trip(case: Case[Any]) -> Iterator[str]:
    """weights go through safetensors into a fresh module that computes the same"""
    grid, module, other = GRIDS[1], case.module(), case.fresh().eval()
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    features = select_used(case.stack(grid), module)
    with torch.no_grad():
        if not torch.equal(case.output(module, features, grid), case.output(other, features, grid)):
            yield "the loaded module computes something else"


def diagnosis(case: Case[Any]) -> Iterator[str]:
    """diagnose returns finite numbers by name"""
    module = case.module()
    for name, value in module.diagnose(select_used(case.stack(GRIDS[1]), module), GRIDS[1]).items():
        if not isinstance(name, str) or not isinstance(value, float) or not math.isfinite(value):
            yield f"{name} is {value!r}"


# --- of fusion strategies -------------------------------------------------------------------------------------------


def _shape(case: _FusionCase) -> Iterator[str]:
    """output is [batch, tokens, out_dim], and token_map gives each token a cell or -1, on any grid"""
    for grid in GRIDS:
        fuser = case.module()
        out = fuser(select_used(case.stack(grid), fuser), grid)
        places = fuser.token_map(grid)
        if out.shape != (2, len(places), fuser.out_dim):
            yield f"grid {grid}: output {tuple(out.shape)}, token_map {len(places)}, out_dim {fuser.out_dim}"
        if places.dtype != torch.int64 or places.min() < -1 or places.max() >= grid[0] * grid[1]:
            yield f"grid {grid}: token_map is {places.dtype} from {places.min()} to {places.max()}"


def _every_layer(case: _FusionCase) -> Iterator[str]:
    """every layer it says it uses moves the output, and no other can"""
    yield from layer_complaints(case)


def _identity(case: _FusionCase) -> Iterator[str]:
    """where identity_at_start is promised, a fresh module returns the query's tokens"""
    fuser = case.fresh()
    for grid in GRIDS if fuser.identity_at_start else ():
        features = select_used(case.stack(grid), fuser)
        if not torch.equal(fuser(features, grid), features[-1]):
            yield f"grid {grid}: a fresh module does not return the query's tokens"


def _gradients(case: _FusionCase) -> Iterator[str]:
    """at random parameters every parameter has a finite gradient, and gates are among them"""
    grid, fuser = GRIDS[1], case.module()
    out = fuser(select_used(case.stack(grid), fuser), grid)
    if out.requires_grad:
        (out * torch.randn_like(out)).sum().backward()
    yield from gradient_complaints(fuser)
    own = {id(parameter) for parameter in fuser.parameters()}
    if any(id(gate) not in own for gate in fuser.gates()):
        yield "gates() returns something that is not a parameter of the module"


def _autocast(case: _FusionCase) -> Iterator[str]:
    """runs under bfloat16 autocast, forward and backward, close to float32"""
    grid, fuser = GRIDS[1], case.module()
    features = select_used(case.stack(grid), fuser)
    exact = fuser(features, grid).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = fuser(features, grid)
    if out.requires_grad:
        out.float().square().mean().backward()
    error = float((out.detach().float() - exact).norm() / exact.norm())
    if not error < 0.05:
        yield f"relative error {error:.2g}"


def _projected(case: _FusionCase) -> Iterator[str]:
    """every projector takes the fused tokens to the width that is asked for, and passes gradients back"""
    grid, fuser, width = GRIDS[1], case.module(), 24
    features = select_used(case.stack(grid), fuser)
    for kind in PROJECTORS:
        projector = fuser.projector(kind, width, grid)
        out = projector(fuser(features, grid))
        if out.shape != (2, len(fuser.token_map(grid)), width) or not out.isfinite().all():
            yield f"{kind}: {tuple(out.shape)}, width {width} asked for"
        (out * torch.randn_like(out)).sum().backward()
        if any(parameter.grad is None or not parameter.grad.any() for parameter in projector.parameters()):
            yield f"{kind}: a parameter has no gradient"


_REQUIREMENTS = (
    uses_layers, _shape, _every_layer, images_apart, _identity, _gradients, cost_of_shapes, _autocast, _projected,
    round_trip, diagnosis,
)  # fmt: skip
