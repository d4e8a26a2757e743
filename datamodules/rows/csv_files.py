"""Comma-separated values as text: every cell is the characters that stand in it, and each row has its line."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.rows.files import RowEntry
from fusion_workbench.datamodules.rows.rows import BadRow

_SEPARATORS = (",", ";", "\t")  # by the first of which the head has most columns; Excel writes ; in much of Europe
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_table(path: Path, separator: str = "") -> tuple[list[str], Iterator[RowEntry]]:
    """The columns of a file, and its rows as mappings of the columns whose cells are not empty.

    Cells are text and nothing else: ``007``, ``1.0``, ``True``, ``NA``, ``null`` are what they are. Lines without any
    value are passed over; a row with more or fewer cells than there are columns is a bad row.

    Args:
        separator: of the cells; empty: a tab in ``.tsv``, else comma, semicolon or tab, whichever parts the head.

    Raises:
        WorkbenchError: the file cannot be read, is not UTF-8, has no head or a column twice; from the rows on also a
            quotation mark out of place.
    """
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole conversation
    try:
        with path.open("rb") as file:
            if file.read(2) in _UTF_16:
                raise WorkbenchError(f"{path} is UTF-16; save it as UTF-8 (in Excel: 'CSV UTF-8').")
        with path.open(encoding="utf-8-sig", newline="") as file:
            signs = [separator] if separator else ["\t"] if path.suffix.lower() == ".tsv" else list(_SEPARATORS)
            heads = {sign: _head(file, sign) for sign in signs}
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except csv.Error as error:
        raise WorkbenchError(f"{path}:1: {error}; a quotation mark inside a quoted cell is written twice.") from None
    sign = max(signs, key=lambda sign: len(heads[sign]))
    names = heads[sign]
    if not any(name.strip() for name in names):
        raise WorkbenchError(f"{path} has no head; its first line must name the columns.")
    doubled = next((name for number, name in enumerate(names) if name and name in names[:number]), None)
    if doubled is not None:
        raise WorkbenchError(f"{path}:1: the column '{doubled}' stands twice; rename or remove one.")
    return names, _rows(path, sign, names)


def _head(file: io.TextIOWrapper, sign: str) -> list[str]:
    file.seek(0)
    return next(csv.reader(file, delimiter=sign, strict=True), [])


def _rows(path: Path, sign: str, names: list[str]) -> Iterator[RowEntry]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=sign, strict=True)
        next(reader)
        line, number = reader.line_num + 1, 0
        try:
            for cells in reader:
                if any(cells):
                    number += 1
                    yield RowEntry(line, number, _row(names, cells))
                line = reader.line_num + 1
        except UnicodeDecodeError:
            raise _not_utf8(path) from None
        except csv.Error as error:
            told = "a quotation mark that opens a cell and does not close it" if "end of data" in str(error) else error
            raise WorkbenchError(
                f"{path}:{line}: {told}; a quotation mark inside a quoted cell is written twice."
            ) from None


def _row(names: list[str], cells: list[str]) -> dict[str, str] | BadRow:
    if len(cells) != len(names):
        return BadRow("columns", f"{len(cells)} cells where the head names {len(names)} columns")
    return {name: cell for name, cell in zip(names, cells, strict=True) if cell}


def _not_utf8(path: Path) -> WorkbenchError:
    """Which line it is; the decoder counts bytes of a buffer alone."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                return WorkbenchError(
                    f"{path}:{line} is not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8 "
                    "(in Excel: 'CSV UTF-8')."
                )
    return WorkbenchError(f"{path} is not UTF-8; save it so.")
