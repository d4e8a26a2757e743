"""Words as they stand in a file: numbers keep the characters they were written in, and no key stands twice."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from fusion_workbench.datamodules.rows.rows import BadRow, WrittenNumber


class WrittenDecoder:
    """JSON to values, one after the other; a fractional number is a :class:`.rows.WrittenNumber`."""

    def __init__(self) -> None:
        self._doubled: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._once, parse_float=WrittenNumber)

    def decode(self, text: str, at: int = 0) -> tuple[object | BadRow, int]:
        """The value that begins at ``at``, and where it ends. A key that stands twice in an object is a bad row.

        Raises:
            ValueError: no JSON.
            RecursionError: nested too deeply.
        """
        self._doubled.clear()
        value, end = self._decoder.raw_decode(text, at)
        if self._doubled:
            return BadRow("doubled key", f"the key {self._doubled[0]!r} stands twice; only one can be meant"), end
        return value, end

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self._doubled += (key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        return found
