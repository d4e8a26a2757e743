"""Tables that papers published, as data with their provenance, and which of a study's cells each row is.

The files of ``reports/against/published/`` hold numbers as printed, each with the place where it stands. A row is
matched to a cell by its strategy and those options that the row names, on layers of the same relative depth: a level
``l`` of the paper's encoder of depth ``D`` is level ``l · d / D``, rounded half up, in one of depth ``d``. Where two
places state one thing differently, both are kept. A row that is no cell of any study stands beside the others and is in
no order.
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
from fusion_workbench.reports.against.sources import Source, Stated
from fusion_workbench.schema.records import Cell

FOLDER = Path(__file__).parent / "published"
FEWEST_ROWS = 3  # below it there is no order to agree with


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
    """A row of a table.

    Attributes:
        values: by column; all columns, together with ``also``, of a row that is a cell.
        source: where they stand.
        who: see :class:`Stated`.
        also: further places, of the same values, of others for the same thing, or of columns that the first lacks.
        match: None: no study's cell, kept beside the rows that are.
    """

    name: str
    values: dict[str, float]
    source: Source = field(default_factory=Source)
    who: str = ""
    also: list[Stated] = field(default_factory=list)
    match: Match | None = None
    note: str = ""

    @property
    def stated(self) -> tuple[Stated, ...]:
        """Every place, the first first."""
        return (Stated(self.values, self.source, self.who), *self.also)

    def stated_values(self, column: str) -> tuple[float, ...]:
        """What is stated of a column, each value once; none where nothing is."""
        return tuple(dict.fromkeys(s.values[column] for s in self.stated if column in s.values))


@dataclass
class Published:
    """A table of a paper, from one training of each row (no interval was published with any of them).

    Attributes:
        model: the language model's size and what else the reading says.
        depth: blocks of the encoder that the layers are counted in.
        levels: of hidden_states, for every row that names none of its own.
        query: in the notation of fusion_workbench.core.layers.
        elsewhere: whether the rows may also be ordered on other layers than the paper's.
        difference: a table of two rows, shown for their difference beside a study of language models.
        note: what a reader of the values has to know of how they came about.
    """

    title: str
    arxiv: str
    place: str
    model: str
    depth: int
    metrics: list[PublishedMetric]
    rows: list[PublishedRow]
    levels: list[int] | None = None
    moved: list[int] | None = None
    query: str | None = None
    query_moved: str | None = None
    elsewhere: bool = False
    difference: bool = False
    note: str = ""

    @property
    def read(self) -> str:
        """``own`` where we read the first place of every row, otherwise ``third-party``."""
        read = {stated.source.read for row in self.rows for stated in row.stated[:1]}
        return "own" if read == {"own"} else "third-party"

    @property
    def sources(self) -> tuple[Source, ...]:
        """Each place once, in the order of the rows."""
        found: list[Source] = []
        for stated in (stated for row in self.rows for stated in row.stated):
            if stated.source not in found:
                found.append(stated.source)
        return tuple(found)


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
    for row in table.rows:
        _check(row, [metric.name for metric in table.metrics], f"{path}: row '{row.name}'")
    return table


def _check(row: PublishedRow, columns: Sequence[str], where: str) -> None:
    for stated in row.stated:
        stated.source.check(where)
        strange = [name for name in stated.values if name not in columns]
        if strange or not stated.values:
            raise WorkbenchError(f"{where} has {strange or 'no values'}; the columns are {', '.join(columns)}.")
    lacks = [name for name in columns if not row.stated_values(name)]
    if lacks and row.match is not None:
        raise WorkbenchError(f"{where} has no value of {', '.join(lacks)}, and it is a cell of studies.")
    differ = [name for name in columns if len(row.stated_values(name)) > 1]
    if differ and not all(stated.who for stated in row.stated):
        raise WorkbenchError(f"{where} has two values of {', '.join(differ)}; `who` says, of each place, whose it is.")


def match(table: Published, cells: Sequence[Cell], depth: int, language: bool = False) -> Matched | None:
    """On the paper's layers where the study has three rows on them; None without three rows.

    If the table allows it, otherwise on the selection that has the most rows: of several the first of the study.
    Two rows are enough on the paper's layers for a table of a difference, beside a study of ``language`` models.
    """
    if table.difference and not language:
        return None
    fewest = 2 if table.difference else FEWEST_ROWS
    queries = [parse_layer(ref, depth) for ref in (table.query, table.query_moved) if ref is not None]
    tried = [_found(table, lambda wanted, q=q: _on_paper(table, wanted, cells, depth, q)) for q in queries]
    exact = max(tried, key=len, default=())
    if len(exact) >= fewest:
        shared = {(c.levels, c.query) for row, c in exact if not c.single and row.match and not row.match.any_levels}
        return Matched(table, exact, Selection(*shared.pop()) if len(shared) == 1 else None, True)
    found = []
    selections = dict.fromkeys((c.levels, c.query) for c in cells if not c.single and table.elsewhere)
    for levels, query in selections:
        rows = _found(table, lambda wanted, at=(levels, query): _on(wanted, cells, {at[0]}, at[1]))
        if len(rows) >= fewest and any(c.levels == levels for _, c in rows):
            found.append((rows, Selection(levels, query)))
    if not found:
        return None
    rows, selection = max(found, key=lambda f: len(f[0]))  # the first of them
    return Matched(table, rows, selection, False, sum(len(r) == len(rows) for r, _ in found))


def _found(table: Published, cell_of: Any) -> tuple[tuple[PublishedRow, Cell], ...]:
    rows = [row for row in table.rows if row.match is not None]
    return tuple((row, cell) for row in rows if (cell := cell_of(row.match)) is not None)


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
