"""The fusion strategies for people: what each costs, and whether one of their own keeps the contract."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fusion_workbench.core.layers import Selection
from fusion_workbench.modules.cost import parameters
from fusion_workbench.modules.fusion import STRATEGIES, Fusion, StrategySpec, build
from fusion_workbench.modules.fusion.contract import Finding, check, class_of, name_of
from fusion_workbench.modules.fusion.matched import cost_of
from fusion_workbench.modules.language import INJECTIONS
from fusion_workbench.modules.language.injection import InjectionSetting, build_injection
from fusion_workbench.modules.meta import on_meta

if TYPE_CHECKING:
    from rich.console import Console

MARKERS = ("<!-- {}: begin -->", "<!-- {}: end -->")
COMMAND = "workbench strategies --markdown"
OURS = "fusion_workbench.modules."


@dataclass(frozen=True)
class Setting:
    """Where costs are counted: an encoder, and what reads the projected tokens."""

    name: str
    dim: int
    grid: tuple[int, int]
    selection: Selection
    projector: str
    width: int
    depth: int = 0  # blocks of the language model

    @property
    def injection(self) -> InjectionSetting:
        return InjectionSetting(self.selection, self.dim, self.width, self.depth, self.projector)

    @property
    def tokens(self) -> int:
        """Of the encoder, an image."""
        return self.grid[0] * self.grid[1]


PAPER = Setting("CLIP-L/336 and LLaVA-1.5-7B", 1024, (24, 24), Selection((3, 8, 13, 18), 23), "mlp2x_gelu", 4096, 32)
EMBEDDED = Setting("embedded encoder, 112 px", 384, (8, 8), Selection((3, 6, 9), 12), "linear", 384)
EMBEDDED_PAIR = Setting("embedded pair, 112 px", 384, (8, 8), Selection((3, 6, 9), 12), "mlp2x_gelu", 576, 30)

# Rows beside each strategy's defaults: options that change where it adds or what it costs.
VARIATIONS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "fpn": ({"output": "sum"},),
    "mmfuser": ({"self_attention": False}, {"attention": "global"}, {"attention": "linear_sra"}),
    "matched": ({"budget": "flops"},),
    "deepstack": ({"projectors": "shared"},),
    "internal_direct": ({"encoder_depth": 24},),
}


@dataclass(frozen=True)
class CostRow:
    """One line of a table.

    Attributes:
        strategy, options: what the line is of.
        title, source: in words, and its paper.
        cells: of the columns that its table alone has.
        costs: for each setting, parameters and FLOPs an image of everything between the encoder and what reads it.
        ours: it is of this package.
    """

    strategy: str
    options: Mapping[str, Any]
    title: str
    source: str
    cells: tuple[str, ...]
    costs: tuple[tuple[int, int], ...]
    ours: bool = True

    @property
    def name(self) -> str:
        changed = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.strategy} ({changed})" if changed else self.strategy

    @property
    def line(self) -> tuple[str, ...]:
        """Every cell."""
        costs = (text for parameters, flops in self.costs for text in (f"{parameters / 1e6:.4g}", f"{flops / 1e9:.4g}"))
        return self.name, self.title, self.source or "—", *self.cells, *costs


@dataclass(frozen=True)
class CostTable:
    """A table of one kind of strategy.

    Attributes:
        mark: in the comments around the table of docs/strategies.md.
        title: in the terminal.
        columns: its own, in the documentation and, broken into lines, in the terminal.
        settings: the paper's and that of the embedded parts.
        rows: all that is registered and its costlier or cheaper forms, the plainest first; nothing is computed in full.
        caption: says what is counted in a setting.
    """

    mark: str
    title: str
    columns: tuple[tuple[str, str], ...]
    settings: tuple[Setting, Setting]
    rows: Callable[[], list[CostRow]]
    caption: Callable[[Setting], str]

    def markdown(self) -> str:
        """Between its markers; what other packages brought is left out."""
        begin, end = (marker.format(self.mark) for marker in MARKERS)
        headings = ["strategy", "what", "paper", *(long for long, _ in self.columns)]
        headings += [text for setting in self.settings for text in (f"{setting.name}: parameters, M", "GFLOPs")]
        lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        lines += ["| " + " | ".join((f"`{row.name}`", *row.line[1:])) + " |" for row in self.rows() if row.ours]
        return "\n".join([begin, f"<!-- made by `{COMMAND}` -->", "", *lines, end, ""])

    def show(self, console: Console) -> None:
        """The same in the terminal, with those of other packages."""
        from rich.table import Table

        table = Table("strategy", "what", "paper", *(short for _, short in self.columns))
        table.title, table.title_justify = self.title, "left"
        for name in ("paper:\nM param.", "\nGFLOPs", "embedded:\nM param.", "\nGFLOPs"):
            table.add_column(name, justify="right")
        for row in self.rows():
            table.add_row(*row.line)
        console.print(table)
        for name, s in zip(("paper", "embedded"), self.settings, strict=True):
            console.print(f"{name}: {s.name}; {self.caption(s)}", highlight=False)


def rows() -> list[CostRow]:
    """Of the fusion strategies."""
    found = [_row(spec, options) for spec in STRATEGIES.values() for options in ({}, *VARIATIONS.get(spec.name, ()))]
    return sorted(found, key=lambda row: (row.costs[0], row.name))


def _row(spec: StrategySpec[Fusion], options: Mapping[str, Any]) -> CostRow:
    settings = FUSED.settings
    fusers = [on_meta(build, spec.name, setting.selection, setting.dim, options) for setting in settings]
    costs = tuple(
        on_meta(cost_of, fuser, setting.projector, setting.width, setting.grid)
        for fuser, setting in zip(fusers, settings, strict=True)
    )
    paper, embedded = (f"{fuser.out_dim / fuser.dim:g}" for fuser in fusers)
    out_dim = paper if paper == embedded else f"{paper} ({embedded})"  # more levels there, more channels
    identity = "yes" if fusers[0].identity_at_start else "—"
    cells = (identity, out_dim, str(len(fusers[0].token_map(PAPER.grid))))
    return CostRow(spec.name, options, spec.title, spec.source, cells, costs, spec.cls.__module__.startswith(OURS))


def injection_rows() -> list[CostRow]:
    """``deep_only`` to compare with, then the injections."""
    names = list(INJECTIONS)  # before: what plug-ins make when they are loaded is no matter of shapes alone
    found = [on_meta(_injection_row, name, options) for name in names for options in ({}, *VARIATIONS.get(name, ()))]
    return [on_meta(_nothing_injected), *sorted(found, key=lambda row: (row.costs[0], row.name))]


def _injection_row(name: str, options: Mapping[str, Any]) -> CostRow:
    spec, settings = INJECTIONS[name], INJECTED.settings
    built = [build_injection(name, setting.injection, options) for setting in settings]
    costs = tuple((parameters(one), one.flops(setting.grid)) for one, setting in zip(built, settings, strict=True))
    blocks = (", ".join(map(str, built[0].blocks())) or "—",)
    return CostRow(name, options, spec.title, spec.source, blocks, costs, spec.cls.__module__.startswith(OURS))


def _nothing_injected() -> CostRow:
    costs = []
    for setting in INJECTED.settings:
        fuser = build("deep_only", setting.selection, setting.dim)
        costs.append(cost_of(fuser, setting.projector, setting.width, setting.grid))
    return CostRow("deep_only", {}, "a single layer, nothing injected", "", ("—",), tuple(costs))


FUSED = CostTable(
    "strategies",
    "fusion strategies",
    (
        ("identity at the start", "identity\nat start"),
        ("out_dim / dim", "out_dim\n/ dim"),
        (f"tokens of {PAPER.tokens}", f"tokens of\n{PAPER.tokens}"),
    ),
    (PAPER, EMBEDDED),
    rows,
    lambda s: (
        f"dim {s.dim}, {s.grid[0]}×{s.grid[1]} tokens, {len(s.selection.levels)} levels and a query, {s.projector} to "
        f"{s.width}; fuser and projector together"
    ),
)
INJECTED = CostTable(
    "injections",
    "they need a language model",
    ((f"blocks of {PAPER.depth} that are added to", f"blocks of {PAPER.depth}"),),
    (PAPER, EMBEDDED_PAIR),
    injection_rows,
    lambda s: (
        f"{s.grid[0]}×{s.grid[1]} tokens of dim {s.dim}, {len(s.selection.levels)} levels and a query, {s.projector} "
        f"to {s.width}; a language model of {s.depth} blocks"
    ),
)


def markdown() -> str:
    """Both tables of docs/strategies.md."""
    return FUSED.markdown() + "\n" + INJECTED.markdown()


def show(console: Console) -> None:
    """Both tables in the terminal."""
    FUSED.show(console)
    INJECTED.show(console)
    console.print(
        "hold one of your own against the contract: [bold]workbench check-strategy my_package:MyFusion[/]", markup=True
    )


def check_strategy(console: Console, target: str, options: Mapping[str, Any] | None = None) -> bool:
    """Print which requirements ``target``, a name or ``my_package:MyFusion``, keeps; False where one is broken.

    Modules of the current directory are found, as by ``python -m``.

    Raises:
        WorkbenchError: the module does not import, what it names is not a registered Fusion, or options are wrong.
    """
    from rich.table import Table
    from rich.text import Text

    with _current_directory():
        checked = _check(target, options)
    name, findings = checked.name, checked.findings
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark = Text("kept", "green") if finding.kept else Text("broken", "red")
        detail = [("\n" + finding.detail, "red")] if finding.detail else []
        table.add_row(mark, Text.assemble(finding.name, *detail))
    console.print(Text.assemble((name, "bold"), f" ({_where(checked.cls)})"))
    console.print(table, highlight=False)
    broken = sum(not finding.kept for finding in findings)
    if broken:
        console.print(
            Text.assemble(
                (f"{broken} of {len(findings)} requirements broken", "red"),
                ": mend them before a study; docs/strategies.md says what each method of ",
                f"{checked.base} owes.",
            )
        )
        return False
    console.print(
        Text.assemble(
            f"all {len(findings)} requirements kept; use it in a study{checked.of}: ",
            (f"strategies: [{{name: {name}}}]", "bold"),
        )
    )
    if ":" in target and not checked.cls.__module__.startswith(OURS):
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
    from fusion_workbench.modules.language.injection import Injection, injection_of_class

    cls = class_of(target) if ":" in target else getattr(INJECTIONS.get(target), "cls", None)
    if cls is None or not issubclass(cls, Injection):
        name = name_of(target)
        return _Checked(name, STRATEGIES[name].cls, "Fusion", check(name, options), STRATEGIES.group)
    name = injection_of_class(cls).name
    return _Checked(name, cls, "Injection", check_injection(name, options), INJECTIONS.group, " of language models")


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
