"""Tables that papers published, as data with their provenance, and which of a study's cells each row is.

The files of ``reports/against/published/`` hold numbers as printed and say who read them. A row is matched to a cell by
its strategy and those options that the row names, on layers of the same relative depth: a level ``l`` of the paper's
encoder of depth ``D`` is level ``l · d / D``, rounded half up, in one of depth ``d``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.layers import Selection, parse_layer
from fusion_workbench.schema.records import Cell

FOLDER = Path(__file__).parent / "published"
FEWEST_ROWS = 3  # below it there is no order to agree with
READ = {
    "own": "read in the paper or its repository",
    "third-party": "read in a third party's account of the paper, not in the paper itself",
}


@dataclass
class PublishedMetric:
    """A column: its unit or range, as far as the reading says."""

    name: str
    scale: str
    minimize: bool = False


@dataclass
class Match:
    """Which cell a row is. ``levels`` replace the table's own; ``moved`` are as good (what a bundled study mirrors)."""

    strategy: str
    options: dict[str, Any] = field(default_factory=dict)  # those that must agree
    levels: list[int] | None = None
    moved: list[int] | None = None
    any_levels: bool = False


@dataclass
class PublishedRow:
    """A row of a table."""

    name: str
    values: dict[str, float]
    match: Match
    note: str = ""


@dataclass
class Published:
    """A table of a paper, from one training of each row (no interval was published with any of them).

    Attributes:
        read: a key of :data:`READ`: who read the numbers, and where.
        model: the language model's size and what else the reading says.
        depth: blocks of the encoder that the layers are counted in.
        levels: of hidden_states, for every row that names none of its own.
        query: in the notation of fusion_workbench.core.layers.
        elsewhere: whether the rows may also be ordered on other layers than the paper's.
    """

    title: str
    arxiv: str
    place: str
    read: str
    model: str
    depth: int
    metrics: list[PublishedMetric]
    rows: list[PublishedRow]
    levels: list[int] | None = None
    moved: list[int] | None = None
    query: str | None = None
    query_moved: str | None = None
    elsewhere: bool = False


@dataclass(frozen=True)
class Matched:
    """Rows of a table and the study's cells that they are.

    Attributes:
        selection: that the cells share; None where the rows differ in their layers.
        exact: whether they are the paper's layers, by relative depth.
        alike: selections of the study that have as many rows; this one is the first.
    """

    table: Published
    rows: tuple[tuple[PublishedRow, Cell], ...]
    selection: Selection | None
    exact: bool
    alike: int = 1


@cache
def tables() -> tuple[Published, ...]:
    """Every bundled table, by file name. Raises WorkbenchError for a file that is not one."""
    return tuple(load(path) for path in sorted(FOLDER.glob("*.yaml")))


def load(path: Path) -> Published:
    """A checked table.

    Raises:
        WorkbenchError: a key that is missing, unknown or of the wrong type, or a row that does not fit the columns.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Published), OmegaConf.load(path))
        table = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        raise WorkbenchError(f"{path}: {first_line(error)}") from None
    assert isinstance(table, Published)
    names = {metric.name for metric in table.metrics}
    if table.read not in READ:
        raise WorkbenchError(f"{path}: read is '{table.read}'; it says who read the numbers: {', '.join(READ)}.")
    for row in table.rows:
        if set(row.values) != names:
            raise WorkbenchError(f"{path}: row '{row.name}' has {sorted(row.values)}, the columns are {sorted(names)}.")
    return table


def match(table: Published, cells: Sequence[Cell], depth: int) -> Matched | None:
    """On the paper's layers where the study has three rows on them; None without three rows.

    If the table allows it, otherwise on the selection that has the most rows: of several the first of the study.
    """
    queries = [parse_layer(ref, depth) for ref in (table.query, table.query_moved) if ref is not None]
    tried = [_found(table, lambda row, q=q: _on_paper(table, row.match, cells, depth, q)) for q in queries]
    exact = max(tried, key=len, default=())
    if len(exact) >= FEWEST_ROWS:
        shared = {(c.levels, c.query) for row, c in exact if not c.single and not row.match.any_levels}
        return Matched(table, exact, Selection(*shared.pop()) if len(shared) == 1 else None, True)
    found = []
    selections = dict.fromkeys((c.levels, c.query) for c in cells if not c.single and table.elsewhere)
    for levels, query in selections:
        rows = _found(table, lambda row, at=(levels, query): _on(row.match, cells, {at[0]}, at[1]))
        if len(rows) >= FEWEST_ROWS and any(c.levels == levels for _, c in rows):
            found.append((rows, Selection(levels, query)))
    if not found:
        return None
    rows, selection = max(found, key=lambda f: len(f[0]))  # the first of them
    return Matched(table, rows, selection, False, sum(len(r) == len(rows) for r, _ in found))


def _found(table: Published, cell_of: Any) -> tuple[tuple[PublishedRow, Cell], ...]:
    return tuple((row, cell) for row in table.rows if (cell := cell_of(row)) is not None)


def _on_paper(table: Published, wanted: Match, cells: Sequence[Cell], depth: int, query: int) -> Cell | None:
    sets = [wanted.levels, wanted.moved] if wanted.levels else [table.levels, table.moved]
    levels = {tuple(int(level * depth / table.depth + 0.5) for level in found) for found in sets if found}
    return _on(wanted, cells, levels, query)


def _on(wanted: Match, cells: Iterable[Cell], levels: set[tuple[int, ...]], query: int) -> Cell | None:
    """The row's cell on one of these selections; of several the one with all other options at their defaults."""
    known = [
        c
        for c in cells
        if c.strategy == wanted.strategy
        and not c.alias
        and c.query == query
        and (c.single or wanted.any_levels or c.levels in levels)
        and _agree(wanted.options, c.options)
    ]
    plain = [c for c in known if c.label == f"{c.strategy} {c.selection.label}"]
    return next(iter(plain or known), None)


def _agree(wanted: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """As words: options that are read back from a run's params are text."""
    return all(key in options and str(options[key]) == str(value) for key, value in wanted.items())
