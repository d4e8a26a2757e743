"""Rows from a JSON or JSONL file, each with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.rows.rows import BadRow
from fusion_workbench.datamodules.rows.written import WrittenDecoder

_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class RowEntry:
    """A row of a file: its line and its number, both from 1, and the parsed JSON, or why it is none."""

    line: int
    number: int
    value: object | BadRow


def read_entries(path: Path) -> Iterator[RowEntry]:
    """The rows of a file: a JSON array, or JSON lines, told apart by the first character.

    A line of JSONL that is not JSON is a bad row. An array that breaks off is no file at all: what follows is lost.
    Fractional numbers keep the characters they were written in; see :class:`.rows.WrittenNumber`.

    Raises:
        WorkbenchError: the file is missing, not UTF-8 (an array), or not a whole JSON array.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe that nobody writes to would be waited for
            raise WorkbenchError(f"{path} is no file; name a file of JSON or JSON lines.")
        with path.open("rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read: {error.strerror or error}.") from None
    return _array(path) if head.startswith(b"[") else _lines(path)


def _lines(path: Path) -> Iterator[RowEntry]:
    number, decoder = 0, WrittenDecoder()
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if raw.strip():
                number += 1
                whole = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
                yield RowEntry(line, number, _parsed(whole, decoder))


def _parsed(raw: bytes, decoder: WrittenDecoder) -> object | BadRow:
    try:
        text = raw.decode()
        value, end = decoder.decode(text, _skip(text, 0))
        if _skip(text, end) != len(text):
            return BadRow("not JSON", "something follows the value")
    except UnicodeDecodeError:
        return BadRow("not UTF-8", "the line holds bytes that are not UTF-8")
    except ValueError as error:
        return BadRow("not JSON", f"{getattr(error, 'msg', error)}")
    except RecursionError:
        return BadRow("not JSON", "nested too deeply")
    return value


def _array(path: Path) -> Iterator[RowEntry]:
    """Element by element, so that each has a line and no more than one is held twice."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WorkbenchError(f"{path} is not UTF-8 at byte {error.start:,}; a JSON file must be.") from None
    decoder = WrittenDecoder()
    at = _skip(text, text.index("[") + 1)
    line, counted, number = 1, 0, 0
    while not text.startswith("]", at):
        line, counted, number = line + text.count("\n", counted, at), at, number + 1
        try:
            value, end = decoder.decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _broken(path, line, number, getattr(error, "msg", "nested too deeply")) from None
        yield RowEntry(line, number, value)
        at = _skip(text, end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            raise _broken(path, line + text.count("\n", counted, at), number, "no comma or closing bracket after it")
    after = _skip(text, at + 1)
    if after != len(text):
        raise _broken(path, 1 + text.count("\n", 0, after), number, "something follows the closing bracket")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches nothing at all, too
    return match.end()


def _broken(path: Path, line: int, number: int, why: str) -> WorkbenchError:
    return WorkbenchError(
        f"{path}:{line}: the JSON array breaks at element {number} ({why}); mend it, or write a row a line (JSONL)."
    )
