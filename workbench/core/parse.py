"""Text of others as plain values: YAML and JSON, without what either lets a file do beyond saying what it holds.

YAML 1.1, which PyYAML reads, and YAML 1.2 take some words differently. A word is a number, a truth value or nothing
here only where both agree: ``yes``, ``no``, ``on``, ``off``, ``012``, ``1_000``, ``1:30``, ``0o7``, ``1e-3`` and dates
stay the words that were written, and a key that takes a number reads it as people do (:func:`as_number`).
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from fusion_workbench.core.errors import WorkbenchError

_DEEPEST = 50  # levels of brackets or of indentation
_MOST_VALUES = 100_000  # once aliases are written out
_LONGEST_NUMBER = 40  # digits

_NUMBER = re.compile(r"[-+]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_TRUTH = dict.fromkeys(("yes", "on", "y"), "true") | dict.fromkeys(("no", "off", "n"), "false")
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {  # where YAML 1.1 and 1.2 agree
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+][0-9]+)?|[-+]?\.[0-9]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for whatever is none, also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text: mappings, lists, words, numbers, true, false, null.

    Args:
        text: one document.
        where: names it in messages.

    Raises:
        WorkbenchError: it is no YAML; a key stands twice; it is nested too deeply, holds itself or grows by its
            aliases; a number is too long; a word has control characters. The line is named where it is known.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise WorkbenchError(f"{where}:{place} {error.problem or error.context or 'not valid YAML'}.") from None
    except yaml.reader.ReaderError as error:
        raise WorkbenchError(f"{where}: not text that YAML takes: {_character(error)}.") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        raise WorkbenchError(f"{where}: not valid YAML.") from None
    except RecursionError:
        raise WorkbenchError(f"{where}: {_TOO_DEEP}.") from None
    if problem := _problem(value):
        raise WorkbenchError(f"{where}: {problem}.")
    return value


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that reads the same here, under YAML 1.1 and under YAML 1.2."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def as_number(word: str) -> int | float | None:
    """What a word is that YAML may have left one, as people read it: ``1e-3``, ``1_000``; None for no number."""
    if not _NUMBER.fullmatch(word) or len(word) > _LONGEST_NUMBER:
        return None
    return float(word) if set(word) & set(".eE") else int(word)


def truth_hint(value: Any) -> str:
    """What to write instead of ``yes`` and ``off`` where true or false is meant; starts with a space, or empty."""
    meant = _TRUTH.get(value.lower()) if isinstance(value, str) else None
    return f" Write {meant}." if meant else ""


# --- what a text may not do ---------------------------------------------------------------------------------------

_TOO_DEEP = f"nested more than {_DEEPEST} levels deep"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def _problem(value: Any) -> str:
    """What is wrong with parsed values as a whole, or nothing: they hold themselves, are too many, or not printable."""
    count = 0
    below: list[tuple[Any, int]] = [(value, 0)]
    while below:
        node, depth = below.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            return f"it holds itself, or grows beyond {_MOST_VALUES:,} values, by its aliases (*)"
        if isinstance(node, dict):
            below += [(inner, depth + 1) for pair in node.items() for inner in pair]
        elif isinstance(node, list):
            below += [(inner, depth + 1) for inner in node]
        elif not isinstance(node, str | int | float | None):
            return f"{node!r} is a {type(node).__name__}; quote it where a word is meant"
        elif isinstance(node, str) and (found := _CONTROL.search(node)):
            return f"{node[:60]!r} has the control character U+{ord(found[0]):04X}, which no name or value has"
    return ""


def _character(error: yaml.reader.ReaderError) -> str:
    code = error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or "\0")
    return f"character U+{code:04X} at position {error.position}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the limits above and each key once."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - as PyYAML declares it
    _depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > _DEEPEST + 1:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:  # before what << merges in, which may well stand here again
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                continue
            if key.value in lines:
                told = f"the key '{key.value}' stands twice, in line {lines[key.value]} too; keep one"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _integer(loader: yaml.SafeLoader, node: ScalarNode) -> int:
    if len(node.value) > _LONGEST_NUMBER:
        told = f"a number of {len(node.value):,} digits; quote it where a word is meant"
        raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
    return int(node.value, 0)


def _as_written(loader: yaml.SafeLoader, node: ScalarNode) -> str:
    return str(node.value)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes what either version of YAML, or we, would take for something else than a word."""


for _tag, (_pattern, _first) in _SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"{_PREFIX}{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(f"{_PREFIX}int", _integer)
_Loader.add_constructor(f"{_PREFIX}merge", _as_written)  # as a value; as a key it merges
