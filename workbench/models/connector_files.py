"""The connector files of LLaVA-1.5 and MMFuser: ``mm_projector.bin``, read and written.

A file of ``torch.save``: one flat state dict, in half precision as a rule. Under the prefix ``model.mm_projector.``
(read with any other, such as TinyLLaVA's ``_connector.``, or with none) it names the weights by their place in an
``nn.Sequential``::

    LLaVA, linear         weight, bias
    LLaVA-1.5             0.weight, 0.bias, 2.weight, 2.bias         linear, GELU, linear
    MMFuser, linear       0.gamma1, 0.cross_attn.…, 1.weight, 1.bias
    MMFuser               0.gamma1, 0.cross_attn.…, 1.weight, 1.bias, 3.weight, 3.bias

MMFuser's fuser is the first member of the sequence, under the names that :class:`modules.fusion.mmfuser.MMFuser` has
too. Neither of them normalises what it reads, so such weights belong to a ``Projector(…, normalise=False)``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.system.files import atomic_file, explain_writing
from fusion_workbench.system.tensors import broken_weights, check_finite, not_finite

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusion_workbench.modules.fusion import Fusion

Made = TypeVar("Made", bound="nn.Module")
WORD = "mm_projector"
PREFIX = f"model.{WORD}."
POINTS = 4  # of MMFuser's deformable attention: its code fixes it, and no file says it

_LINEAR = {"map.weight": "weight", "map.bias": "bias"}  # ours → published, behind the member of the sequence
_MLP = {"map.0.weight": "0.weight", "map.0.bias": "0.bias", "map.2.weight": "2.weight", "map.2.bias": "2.bias"}


@dataclass(frozen=True)
class FileLayout:
    """How one kind of file names its weights: ours → published for the projector, a prefix for the fuser."""

    kind: str  # of the projector
    fuser: str  # what its weights begin with; empty: it has none
    projector: Mapping[str, str]


LAYOUTS = (
    FileLayout("linear", "", _LINEAR),
    FileLayout("mlp2x_gelu", "", _MLP),
    FileLayout("linear", "0.", {"map.weight": "1.weight", "map.bias": "1.bias"}),
    FileLayout(
        "mlp2x_gelu",
        "0.",
        {"map.0.weight": "1.weight", "map.0.bias": "1.bias", "map.2.weight": "3.weight", "map.2.bias": "3.bias"},
    ),
)


@dataclass(frozen=True)
class PublishedConnector:
    """What such a file holds, under our names.

    Attributes:
        kind: of the projector, one of :data:`modules.projector.PROJECTORS`.
        fuser: state dict of :class:`modules.fusion.mmfuser.MMFuser`; empty for LLaVA's.
        projector: state dict of :class:`modules.projector.Projector`.
        prefix: what stood before the names in the file.
    """

    kind: str
    fuser: Mapping[str, Tensor]
    projector: Mapping[str, Tensor]
    prefix: str = PREFIX

    @property
    def in_dim(self) -> int:
        """Channels that the projector reads."""
        return int(self._weights[0].shape[1])

    @property
    def width(self) -> int:
        """Channels of a projected token: the language model's."""
        return int(self._weights[-1].shape[0])

    @property
    def _weights(self) -> list[Tensor]:
        return [value for name, value in sorted(self.projector.items()) if name.endswith("weight")]

    @property
    def strategy(self) -> str:
        return "mmfuser" if self.fuser else "deep_only"

    @property
    def heads(self) -> int:
        """Of the fuser's attention: its self-attention has a weight a head and point."""
        return int(self.fuser["self_attn.attention_weights.bias"].numel()) // POINTS

    @property
    def levels(self) -> int:
        """How many levels the fuser reads beside the query."""
        return int(self.fuser["cross_attn.attention_weights.bias"].numel()) // (POINTS * self.heads)

    @property
    def options(self) -> dict[str, Any]:
        """Of the strategy."""
        return {"heads": self.heads, "points": POINTS} if self.fuser else {}


def read_connector_file(path: Path) -> PublishedConnector:
    """The weights of a published connector, each with the dtype that it has in the file.

    Raises:
        WorkbenchError: no such file, one that holds more than tensors, names and shapes that are not those of a
            connector, or values that are no numbers.
    """
    tensors = _load(path)
    check_finite(tensors, str(path))
    prefix, own = _own(tensors, path)
    fused = any(name.startswith("0.") and name not in ("0.weight", "0.bias") for name in own)
    deep = any(name in own for name in (("3.weight", "3.bias") if fused else ("0.weight", "2.weight", "2.bias")))
    layout = next(x for x in LAYOUTS if bool(x.fuser) == fused and (x.kind == "mlp2x_gelu") == deep)
    fuser = {name.removeprefix("0."): own[name] for name in own if fused and name.startswith("0.")}
    expected = set(layout.projector.values())
    for name in own:
        if name not in expected and not (fused and name.startswith("0.")):
            raise WorkbenchError(
                f"{path} holds {prefix}{name}, which no {_layout_name(layout)} has: its projector is "
                f"{', '.join(sorted(expected))}."
            )
    for name in sorted(expected):
        if name not in own:
            raise WorkbenchError(f"{path} lacks {prefix}{name}, which a {_layout_name(layout)} has.")
    connector = PublishedConnector(
        layout.kind, fuser, {ours: own[theirs] for ours, theirs in layout.projector.items()}, prefix
    )
    _check_shapes(connector, layout, path)
    return connector


def write_connector_file(path: Path, connector: PublishedConnector) -> None:
    """Write what :func:`read_connector_file` reads: a flat dict of plain tensors, whole or not at all.

    Raises:
        WorkbenchError: the file cannot be written.
    """
    import torch

    layout = next(x for x in LAYOUTS if bool(x.fuser) == bool(connector.fuser) and x.kind == connector.kind)
    named = {f"{layout.fuser}{name}": value for name, value in connector.fuser.items()}
    named |= {theirs: connector.projector[ours] for ours, theirs in layout.projector.items()}
    plain = {f"{connector.prefix}{name}": value.detach().cpu().contiguous() for name, value in named.items()}
    told = explain_writing(path, "name another file", RuntimeError)  # as which torch reports a full disk
    with told, atomic_file(path) as part, part.open("wb") as file:
        torch.save(plain, file)


def to_published(fuser: Fusion, projector: nn.Module) -> PublishedConnector:
    """Trained modules in the published form.

    Raises:
        WorkbenchError: a fuser or projector that has no such form, with the reason.
    """
    from torch import nn

    from fusion_workbench.modules.fusion.mmfuser import MMFuser, MMFuserOptions
    from fusion_workbench.modules.projector import Projector

    if not isinstance(projector, Projector) or projector.normalise:
        raise WorkbenchError(
            "the projector normalises its input, which no published connector does, so that its weights would mean "
            "something else there; train with a projector that does not normalise."
        )
    kind = "linear" if isinstance(projector.map, nn.Linear) else "mlp2x_gelu"
    sizes = [layer.out_features for layer in projector.modules() if isinstance(layer, nn.Linear)]
    if len(set(sizes)) > 1:
        raise WorkbenchError("the projector's middle is of a width of its own, which no published connector has.")
    if isinstance(fuser, MMFuser):
        options: MMFuserOptions = fuser.options
        if options.attention != "deformable" or not options.self_attention or options.points != POINTS:
            raise WorkbenchError(
                f"the published MMFuser has deformable cross- and self-attention of {POINTS} points; this one has "
                f"attention={options.attention}, self_attention={options.self_attention}, points={options.points}."
            )
    elif next(fuser.parameters(), None) is not None:
        raise WorkbenchError(
            f"the strategy {type(fuser).__name__} has weights of its own and no published connector file; only MMFuser "
            "and strategies without weights have."
        )
    return PublishedConnector(kind, fuser.state_dict(), projector.state_dict())


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load ``weights`` into a module, all of them and none besides.

    Raises:
        WorkbenchError: the first name that is missing, too many, of another shape, or not finite, in one line.
    """
    check_weights(module, weights, what)
    module.load_state_dict(dict(weights))
    loaded = module.state_dict()  # in the module's own dtype, which may reach less far than the file's
    if broken := broken_weights(module, loaded):
        raise WorkbenchError(not_finite(what, broken[0], len(broken), len(loaded)))


def filled(make: Callable[[], Made], weights: Mapping[str, Tensor], what: str) -> Made:
    """A module with ``weights``, which are held against its shapes before memory is taken for it.

    Raises:
        WorkbenchError: as :func:`load_weights`, and what ``make`` raises.
    """
    from fusion_workbench.modules.meta import on_meta

    check_weights(on_meta(make), weights, what)
    module = make()
    load_weights(module, weights, what)
    return module


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Raises WorkbenchError for the first name that is missing, too many, or of another shape than the module's."""
    own = module.state_dict()
    for name in own:
        if name not in weights:
            raise WorkbenchError(f"{what} lacks {name}, which {type(module).__name__} has.")
    for name, value in weights.items():
        if name not in own:
            raise WorkbenchError(f"{what} holds {name}, which {type(module).__name__} does not have.")
        if value.shape != own[name].shape:
            raise WorkbenchError(
                f"{what}: {name} has shape {list(value.shape)}, and that of {type(module).__name__} is "
                f"{list(own[name].shape)}."
            )


def _load(path: Path) -> dict[str, Tensor]:
    import torch

    if not path.is_file():
        raise WorkbenchError(f"{path} is no file; a published connector is a file such as mm_projector.bin.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WorkbenchError(
            f"{path} is damaged or holds more than tensors, and what is not a plain tensor is never unpickled."
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        first = first_line(error)
        raise WorkbenchError(f"{path} cannot be read as a file of torch.save, it may be truncated: {first}") from None
    wrong = not isinstance(content, dict) or next(
        (str(key) for key, value in content.items() if not (isinstance(key, str) and _floats(value))), None
    )
    if wrong or not content:
        named = f" ({wrong})" if isinstance(wrong, str) else ""
        raise WorkbenchError(
            f"{path} is not a flat dict of named floating-point tensors{named}, so it is no connector."
        )
    return dict(content)


def _floats(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _own(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """The prefix of the names, and the weights without it."""
    first = next(iter(tensors))
    prefix = _prefix(first)
    for name in tensors:
        if _prefix(name) != prefix:
            found = " and ".join(f"'{each}'" for each in dict.fromkeys(map(_prefix, tensors)))
            raise WorkbenchError(
                f"{path} holds {name} beside {first}, so it is more than a connector (weights under {found}); cut it "
                f"down to the weights under one prefix, such as {PREFIX}"
            )
    return prefix, {name.removeprefix(prefix): value for name, value in tensors.items()}


def _prefix(name: str) -> str:
    """What stands before a weight's own name, which begins with its place in the sequence, or is ``weight``, ``bias``.

    ``model.mm_projector.0.weight`` of LLaVA, ``_connector.0.weight`` of TinyLLaVA, ``projector.0.weight`` of Prismatic.
    """
    before, word, _ = name.partition(f"{WORD}.")
    if word:
        return before + word
    parts = name.split(".")
    own = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return "".join(f"{part}." for part in parts[:own])


def _check_shapes(connector: PublishedConnector, layout: FileLayout, path: Path) -> None:
    """Every map's bias fits its weight, the second reads what the first gives, the fuser gives what it reads."""
    channels: int | None = int(connector.fuser["gamma1"].numel()) if "gamma1" in connector.fuser else None
    for ours, theirs in layout.projector.items():
        value = connector.projector[ours]
        if ours.endswith("weight"):
            if value.ndim != 2 or (channels is not None and value.shape[1] != channels):
                raise WorkbenchError(
                    f"{path}: {connector.prefix}{theirs} has shape {list(value.shape)}; it should be [width, "
                    f"{channels or 'channels'}]."
                )
            channels = int(value.shape[0])
        elif list(value.shape) != [channels]:
            raise WorkbenchError(
                f"{path}: {connector.prefix}{theirs} has shape {list(value.shape)}; beside its weight it should be "
                f"[{channels}]."
            )
    for name in ("gamma1", "self_attn.attention_weights.bias", "cross_attn.attention_weights.bias"):
        if connector.fuser and name not in connector.fuser:
            raise WorkbenchError(f"{path} lacks {connector.prefix}{layout.fuser}{name}, which MMFuser has.")


def _layout_name(layout: FileLayout) -> str:
    return f"{'MMFuser' if layout.fuser else 'LLaVA'} connector with a {layout.kind} projector"
