"""The table of strategies that need a language model: where each adds to the decoder, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules import cost
from fusion_workbench.modules.fusion import build
from fusion_workbench.modules.fusion.matched import cost_of
from fusion_workbench.modules.language import INJECTIONS
from fusion_workbench.modules.language.injection import InjectionSetting, build_injection
from fusion_workbench.modules.meta import on_meta

if TYPE_CHECKING:
    from rich.console import Console

BEGIN, END = "<!-- injections: begin -->", "<!-- injections: end -->"


@dataclass(frozen=True)
class ModelPair:
    """An encoder and a language model between which costs are counted."""

    name: str
    grid: tuple[int, int]
    setting: InjectionSetting


PAPER = ModelPair(
    "CLIP-L/336 and LLaVA-1.5-7B", (24, 24), InjectionSetting(Selection((3, 8, 13, 18), 23), 1024, 4096, 32)
)
EMBEDDED = ModelPair("embedded pair, 112 px", (8, 8), InjectionSetting(Selection((3, 6, 9), 12), 384, 576, 30))
PAIRS = (PAPER, EMBEDDED)

# Rows beside each injection's defaults: options that change where it adds or what it costs.
VARIATIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "deepstack": ({"projectors": "shared"},),
    "internal_direct": ({"encoder_depth": 24},),
}
HEADINGS = (
    "strategy",
    "what",
    "paper",
    f"blocks of {PAPER.setting.depth} that are added to",
    f"{PAPER.name}: parameters, M",
    "GFLOPs",
    f"{EMBEDDED.name}: parameters, M",
    "GFLOPs",
)


@dataclass(frozen=True)
class InjectionCostRow:
    """One line; parameters and FLOPs an image of everything before the language model, for each pair."""

    name: str
    title: str
    source: str
    blocks: tuple[int, ...]
    costs: tuple[tuple[int, int], ...]
    ours: bool = field(default=True, compare=False)

    @property
    def cells(self) -> tuple[str, ...]:
        """As :data:`HEADINGS`."""
        costs = (text for parameters, flops in self.costs for text in (f"{parameters / 1e6:.4g}", f"{flops / 1e9:.4g}"))
        return self.name, self.title, self.source or "—", ", ".join(map(str, self.blocks)) or "—", *costs


def rows() -> list[InjectionCostRow]:
    """``deep_only`` to compare with, then every injection and its other forms; nothing is computed in full."""
    names = list(INJECTIONS)  # before: what plug-ins make when they are loaded is no matter of shapes alone
    table = [on_meta(_row, name, options) for name in names for options in ({}, *VARIATIONS.get(name, ()))]
    return [on_meta(_plain), *sorted(table, key=lambda row: (row.costs[0], row.name))]


def markdown() -> str:
    """The table of docs/strategies.md, between its markers; injections of other packages are left out."""
    lines = ["| " + " | ".join((f"`{row.name}`", *row.cells[1:])) + " |" for row in rows() if row.ours]
    heading = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    made = "<!-- made by `workbench strategies --markdown` -->"
    return "\n".join([BEGIN, made, "", *heading, *lines, END, ""])


def show(console: Console) -> None:
    """The same table in the terminal, with injections of other packages."""
    from rich.table import Table

    table = Table(*HEADINGS[:3], f"blocks of {PAPER.setting.depth}", title="they need a language model")
    table.title_justify = "left"
    for name in ("paper:\nM param.", "\nGFLOPs", "embedded:\nM param.", "\nGFLOPs"):
        table.add_column(name, justify="right")
    for row in rows():
        table.add_row(*row.cells)
    console.print(table)
    for name, pair in (("paper", PAPER), ("embedded", EMBEDDED)):
        s = pair.setting
        console.print(
            f"{name}: {pair.name}; {pair.grid[0]}×{pair.grid[1]} tokens of dim {s.dim}, {len(s.selection.levels)} "
            f"levels and a query, {s.projector} to {s.width}; a language model of {s.depth} blocks",
            highlight=False,
        )


def _row(name: str, options: Mapping[str, Any]) -> InjectionCostRow:
    spec = INJECTIONS[name]
    built = [build_injection(name, pair.setting, options) for pair in PAIRS]
    costs = tuple(
        (cost.parameters(injection), injection.flops(pair.grid)) for injection, pair in zip(built, PAIRS, strict=True)
    )
    changed = ", ".join(f"{key}={value}" for key, value in options.items())
    named = f"{name} ({changed})" if changed else name
    return InjectionCostRow(
        named,
        spec.title,
        spec.source,
        built[0].blocks(),
        costs,
        spec.cls.__module__.startswith("fusion_workbench.modules."),
    )


def _plain() -> InjectionCostRow:
    costs = []
    for pair in PAIRS:
        fuser = build("deep_only", pair.setting.selection, pair.setting.dim)
        costs.append(cost_of(fuser, pair.setting.projector, pair.setting.width, pair.grid))
    return InjectionCostRow("deep_only", "a single layer, nothing injected", "", (), tuple(costs))
