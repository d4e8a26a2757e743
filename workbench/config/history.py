"""What each version of the study file changed, so that a study that was begun under an earlier one stays what it is.

A study is known by a hash over its resolved configuration. So that a later key, default or name does not move the hash
of a study that did not ask for it, every change of the schema is written down in :data:`VERSIONS`, and

* the hash is taken of what version 1 would have written (:func:`as_version_1`): a key that was added later is absent
  while it has its neutral value, a renamed key has its first name;
* a study that was begun under an earlier version keeps that version's defaults (:func:`defaults_before`);
* an old name goes on working (:mod:`config.aliases`).

Keys are written with dots; ``[]`` stands for every entry of a list, as in ``language_model.stages[].warmup``. No key
is ever removed: a file that names it must go on meaning what it meant.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KeyPath = tuple[str, ...]  # of a key: its parts; an entry of a list by its number, every entry by the empty string


@dataclass(frozen=True)
class Changes:
    """What a version changed against the one before it, in its own names."""

    renamed: Mapping[str, str] = field(default_factory=dict)  # new name → old name
    added: Mapping[str, Any] = field(default_factory=dict)  # key → the value that means "as before"
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # key → (default before, default since)
    redefined: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # key → word → today's word for the same
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)  # renamed key → {value before: value since}
    language: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # as `changed`, with a language_model alone


NONE = Changes()


@dataclass(frozen=True)
class Version:
    """One version: changes of the study file, and of the options of strategies by the strategy's name."""

    study: Changes = NONE
    strategies: Mapping[str, Changes] = field(default_factory=dict)


# How to write a change down (tests/workbench/study/test_identity.py tells when one is missing):
# - a key, or an option of a strategy, is new: add it to `added` of the newest version, with the value that means "as
#   before"; where its default is another one, add (as before, default) to `changed` as well;
# - a default is another one: add (before, since) to `changed` of a *new* version, unless the newest is unreleased;
# - a key has another name: add new → old to `renamed` of the newest version, and to `values` what its values are called
#   now, where they have other names too;
# - a word that a key may have means something else: add word → the new word for what it meant to `redefined`.
VERSIONS: dict[int, Version] = {
    1: Version(),  # workbench 0.1.0
    2: Version(  # workbench 0.2.0, under work
        study=Changes(
            renamed={"language_model.group_by": "language_model.group_by_length"},
            values={"language_model.group_by": {True: "length", False: "none"}},
            added={
                "language_model.stages[].template": "chat",
                "language_model.stages[].group_by": "",
                "language_model.match_scale": True,
                "language_model.log_every": 10,
                "language_model.keep_weights": "float32",
                "training.num_workers": None,
            },
            changed={"language_model.keep_weights": ("float32", "bf16")},
            redefined={
                "source.options.padding": {"crop": "crop_then_resize"},
                "language_model.stages[].source.options.padding": {"crop": "crop_then_resize"},
            },
            language={"training.gates_lr_scale": (100.0, 1.0)},
        ),
    ),
}


def newest() -> int:
    """The version that new studies are begun under."""
    return max(VERSIONS)


def changes_after(version: int, strategy: str = "") -> list[Changes]:
    """What the versions after ``version`` changed, oldest first: of the study file, or of a strategy's options."""
    later = [VERSIONS[number] for number in sorted(VERSIONS) if number > version]
    return [entry.strategies.get(strategy, NONE) if strategy else entry.study for entry in later]


def as_version_1(plain: Mapping[str, Any], strategy: str = "") -> dict[str, Any]:
    """What version 1 would have written for ``plain``, a configuration or a strategy's options: what is hashed.

    Later keys are absent while they are neutral, all keys have their first names, and a word that meant something else
    is not what it was. ``plain`` itself is left alone.
    """
    every = changes_after(0, strategy)
    if not any(changes.added or changes.renamed or changes.redefined for changes in every):  # mostly, of cells
        return dict(plain)
    first: dict[str, Any] = copy.deepcopy(dict(plain))
    for changes in reversed(every):
        for key, neutral in changes.added.items():
            for _, holder in list(places(first, path_of(key))):
                name = path_of(key)[-1]
                if name in holder and _alike(holder[name], neutral):
                    del holder[name]
        for key, words in changes.redefined.items():
            before = {word: f"{word} (redefined)" for word in words} | {now: word for word, now in words.items()}
            translate(first, path_of(key), before)
        for new, old in changes.renamed.items():
            translate(first, path_of(new), {since: before for before, since in changes.values.get(new, {}).items()})
            move(first, path_of(new), path_of(old))
    return first


def keep_meaning(plain: Any, version: int) -> None:
    """Say in today's words, in place, what a study file that was begun under ``version`` says in the words of then."""
    for changes in changes_after(version):
        for key, words in changes.redefined.items():
            translate(plain, path_of(key), words)


def translate(plain: Any, path: KeyPath, values: Mapping[Any, Any]) -> None:
    """Put another value in the place of each that ``values`` names, wherever the key is present."""
    for _, holder in list(places(plain, path)):
        if path[-1] in holder:
            holder[path[-1]] = translated(holder[path[-1]], values)


def translated(value: Any, values: Mapping[Any, Any]) -> Any:
    """What ``values`` has for ``value``, or itself."""
    return next((since for before, since in values.items() if _alike(before, value)), value)


def language_defaults(version: int) -> dict[str, Any]:
    """What ``version`` gives a study with a ``language_model`` section by default where one of probes has another."""
    known = [VERSIONS[number].study.language for number in sorted(VERSIONS) if number <= version]
    return {key: since for changes in known for key, (_, since) in changes.items()}


def defaults_before(version: int, strategy: str = "", language: bool = False) -> dict[str, Any]:
    """The defaults of ``version`` that are others today, by the names that keys have today.

    ``language``: of a study with a ``language_model`` section, whose own defaults are among them.
    """
    defaults: dict[str, Any] = {}
    for changes in changes_after(version, strategy):
        defaults = {_new_name(key, changes.renamed): value for key, value in defaults.items()}
        for key, (before, _) in {**changes.changed, **(changes.language if language else {})}.items():
            defaults.setdefault(key, before)
    return defaults


def option_defaults_moved(version: int, strategy: str) -> dict[str, Any]:
    """The defaults of a strategy's options that ``version`` has and version 1 had not, by their first names."""
    defaults: dict[str, Any] = {}
    for number in sorted(VERSIONS):
        changes = VERSIONS[number].strategies.get(strategy, NONE)
        defaults = {_new_name(key, changes.renamed): value for key, value in defaults.items()}
        if number <= version:
            defaults |= {key: since for key, (_, since) in changes.changed.items()}
    return as_version_1(defaults, strategy)


def _new_name(key: str, renamed: Mapping[str, str]) -> str:
    """What ``key`` is called after it, or a section above it, was renamed."""
    for new, old in renamed.items():
        if key == old or key.startswith((f"{old}.", f"{old}[")):
            return new + key.removeprefix(old)
    return key


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are hashed alike: 1 and true are not."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# --- keys and their places --------------------------------------------------------------------------------------


def path_of(key: str) -> KeyPath:
    """``stages[].warmup`` → ``("stages", "", "warmup")``, ``stages[0].warmup`` → ``("stages", "0", "warmup")``."""
    return tuple(key.replace("[", ".").replace("]", "").split("."))


def places(node: Any, path: KeyPath, above: KeyPath = ()) -> Iterator[tuple[KeyPath, MutableMapping[str, Any]]]:
    """Every place in ``node`` that ``path`` stands for, with the mapping that has, or could have, the key there."""
    head, rest = path[0], path[1:]
    if not head:
        if isinstance(node, Sequence) and not isinstance(node, str):
            for number, item in enumerate(node):
                yield from places(item, rest, (*above, str(number)))
    elif isinstance(node, MutableMapping):
        if not rest:
            yield (*above, head), node
        elif head in node:
            yield from places(node[head], rest, (*above, head))


def move(plain: Any, start: KeyPath, goal: KeyPath) -> bool:
    """Call a key otherwise wherever it is present; whether it was present at all.

    From one section into another (not out of lists), a missing section is made and an emptied one is dropped.
    """
    holders = [(place, holder) for place, holder in places(plain, start) if start[-1] in holder]
    for place, holder in holders:
        value = holder.pop(start[-1])
        if start[:-1] == goal[:-1]:
            holder[goal[-1]] = value
            continue
        _drop_empty(plain, place[:-1])
        node: Any = plain
        for part in goal[:-1]:
            node = node.setdefault(part, {})
        node[goal[-1]] = value
    return bool(holders)


def _drop_empty(plain: Any, section: KeyPath) -> None:
    for depth in range(len(section), 0, -1):
        ((_, holder),) = places(plain, section[:depth])
        if holder[section[depth - 1]]:
            return
        del holder[section[depth - 1]]
