"""The fusion strategies for people: what each costs, and whether one of their own keeps the contract."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.fusion import STRATEGIES, Fusion, StrategySpec, build
from fusion_workbench.modules.fusion.contract import Finding, check, class_of, name_of
from fusion_workbench.modules.fusion.matched import cost_of
from fusion_workbench.modules.meta import on_meta
from fusion_workbench.tools import injection_table

if TYPE_CHECKING:
    from rich.console import Console

BEGIN, END = "<!-- strategies: begin -->", "<!-- strategies: end -->"
COMMAND = "workbench strategies --markdown"


@dataclass(frozen=True)
class Setting:
    """Where costs are counted."""

    name: str
    dim: int
    grid: tuple[int, int]
    selection: Selection
    projector: str
    width: int


PAPER = Setting("CLIP-L/336 and LLaVA-1.5-7B", 1024, (24, 24), Selection((3, 8, 13, 18), 23), "mlp2x_gelu", 4096)
EMBEDDED = Setting("embedded encoder, 112 px", 384, (8, 8), Selection((3, 6, 9), 12), "linear", 384)

# Rows beside each strategy's defaults: options that change its cost.
VARIATIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "fpn": ({"output": "sum"},),
    "mmfuser": ({"self_attention": False}, {"attention": "global"}, {"attention": "linear_sra"}),
    "matched": ({"budget": "flops"},),
}


@dataclass(frozen=True)
class CostRow:
    """One line of the table; parameters and FLOPs an image of fuser and projector together, for each setting."""

    spec: StrategySpec[Fusion]
    options: Mapping[str, Any]
    identity: bool
    out_dim: str  # in units of dim
    tokens: int  # at the paper's setting
    costs: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        changed = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.spec.name} ({changed})" if changed else self.spec.name


def rows() -> list[CostRow]:
    """Every registered strategy and its costlier or cheaper forms, the plainest first; nothing is computed in full."""
    table = [_row(spec, options) for spec in STRATEGIES.values() for options in ({}, *VARIATIONS.get(spec.name, ()))]
    return sorted(table, key=lambda row: (row.costs[0], row.name))


def markdown() -> str:
    """Both tables of docs/strategies.md, between their markers; strategies of other packages are left out."""
    lines = [
        BEGIN,
        f"<!-- made by `{COMMAND}` -->",
        "",
        f"| strategy | what | paper | identity at the start | out_dim / dim | tokens of {_cells(PAPER)} "
        f"| {PAPER.name}: parameters, M | GFLOPs | {EMBEDDED.name}: parameters, M | GFLOPs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        if row.spec.cls.__module__.startswith("fusion_workbench.modules."):
            lines.append("| " + " | ".join((f"`{row.name}`", *_cells_of(row)[1:])) + " |")
    return "\n".join([*lines, END, ""]) + "\n" + injection_table.markdown()


def show(console: Console) -> None:
    """The same table in the terminal, with strategies of other packages."""
    from rich.table import Table

    table = Table(
        "strategy", "what", "paper", "identity\nat start", "out_dim\n/ dim", f"tokens of\n{_cells(PAPER)}",
        title="fusion strategies", title_justify="left",
    )  # fmt: skip
    for name in ("paper:\nM param.", "\nGFLOPs", "embedded:\nM param.", "\nGFLOPs"):
        table.add_column(name, justify="right")
    for row in rows():
        table.add_row(*_cells_of(row))
    console.print(table)
    for name, s in (("paper", PAPER), ("embedded", EMBEDDED)):
        console.print(
            f"{name}: {s.name}; dim {s.dim}, {s.grid[0]}×{s.grid[1]} tokens, {len(s.selection.levels)} levels and a "
            f"query, {s.projector} to {s.width}; fuser and projector together",
            highlight=False,
        )
    injection_table.show(console)
    console.print("hold one of your own against the contract: [bold]workbench check-strategy my_package:MyFusion[/]")


def check_strategy(console: Console, target: str, options: Mapping[str, Any] | None = None) -> bool:
    """Print which requirements ``target``, a name or ``my_package:MyFusion``, keeps; False where one is broken.

    Modules of the current directory are found, as by ``python -m``.

    Raises:
        WorkbenchError: the module does not import, what it names is not a registered Fusion, or options are wrong.
    """
    from rich.markup import escape
    from rich.table import Table

    with _current_directory():
        checked = _check(target, options)
    name, findings = checked.name, checked.findings
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark = "[green]kept[/]" if finding.kept else "[red]broken[/]"
        table.add_row(mark, escape(finding.name) + (f"\n[red]{escape(finding.detail)}[/]" if finding.detail else ""))
    console.print(f"[bold]{escape(name)}[/] ({escape(_where(checked.cls))})", highlight=False)
    console.print(table, highlight=False)
    broken = sum(not finding.kept for finding in findings)
    if broken:
        console.print(
            f"[red]{broken} of {len(findings)} requirements broken[/]: mend them before a study; docs/strategies.md "
            f"says what each method of {checked.base} owes."
        )
        return False
    console.print(
        f"all {len(findings)} requirements kept; use it in a study{checked.of}: "
        f"[bold]strategies: [{{name: {escape(name)}}}][/]",
        highlight=False,
    )
    if ":" in target and not checked.cls.__module__.startswith("fusion_workbench.modules."):
        console.print(
            "studies find it once its package is installed and names it in pyproject.toml:\n"
            f'  [project.entry-points."{checked.group}"]\n  {name} = "{target}"',
            markup=False,
            highlight=False,
        )
    return True


@dataclass(frozen=True)
class _Checked:
    name: str
    cls: type[nn.Module]
    base: str
    findings: Sequence[Finding]
    group: str  # of entry points
    of: str = ""  # which studies can have it


def _check(target: str, options: Mapping[str, Any] | None) -> _Checked:
    """The contract of fusion strategies, or of injections where ``target`` is one."""
    from fusion_workbench.modules.language.contract import check_injection
    from fusion_workbench.modules.language.injection import INJECTIONS, Injection, injection_of_class

    cls = class_of(target) if ":" in target else getattr(INJECTIONS.get(target), "cls", None)
    if cls is None or not issubclass(cls, Injection):
        name = name_of(target)
        return _Checked(name, STRATEGIES[name].cls, "Fusion", check(name, options), STRATEGIES.group)
    name = injection_of_class(cls).name
    return _Checked(name, cls, "Injection", check_injection(name, options), INJECTIONS.group, " of language models")


def _row(spec: StrategySpec[Fusion], options: Mapping[str, Any]) -> CostRow:
    fusers = [on_meta(build, spec.name, setting.selection, setting.dim, options) for setting in (PAPER, EMBEDDED)]
    costs = tuple(
        on_meta(cost_of, fuser, setting.projector, setting.width, setting.grid)
        for fuser, setting in zip(fusers, (PAPER, EMBEDDED), strict=True)
    )
    paper, embedded = (f"{fuser.out_dim / fuser.dim:g}" for fuser in fusers)
    out_dim = paper if paper == embedded else f"{paper} ({embedded})"  # more levels there, more channels
    return CostRow(spec, options, fusers[0].identity_at_start, out_dim, len(fusers[0].token_map(PAPER.grid)), costs)


def _cells_of(row: CostRow) -> tuple[str, ...]:
    costs = (text for parameters, flops in row.costs for text in (f"{parameters / 1e6:.4g}", f"{flops / 1e9:.4g}"))
    identity = "yes" if row.identity else "—"
    return row.name, row.spec.title, row.spec.source or "—", identity, row.out_dim, str(row.tokens), *costs


def _cells(setting: Setting) -> int:
    return setting.grid[0] * setting.grid[1]


def _where(cls: type[nn.Module]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@contextmanager
def _current_directory() -> Iterator[None]:
    """The console script does not look for modules where it is called; whoever names one expects it to."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
