"""Where a harness's log keeps the score of each metric: the number itself, or one key of the metric's object."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusion_workbench.reports.scores.score_names import (
    known_keys,
    no_score,
    not_a_score,
    number_of,
    own_key,
    plain,
    score_in,
)


@dataclass(frozen=True)
class Entry:
    """What a document's line holds of a metric."""

    line: int
    sample: Mapping[str, Any]
    value: Any

    @property
    def counted(self) -> bool:
        """Whether the task counts the document: some write every document under every category, with a total of 0, and
        one that the judge failed on with a score of -1 that is not valid."""
        if not isinstance(self.value, Mapping):
            return True
        failed = self.value.get("valid") is False and number_of(self.value.get("score")) == -1
        return not failed and number_of(self.value.get("total")) != 0


@dataclass(frozen=True)
class Reading:
    """How a metric is read.

    Attributes:
        key: of its object; empty: the metric is a number itself; None: it has no score for each document.
        why: it has none, where there is more to say than that no key is known.
        tell: the reason is worth a note where other metrics are judged.
        said: the key is not plainly the score, so that people are told which was read.
        first: the metric before it that has the same object; empty: none.
    """

    key: str | None = None
    why: str = ""
    tell: bool = False
    said: bool = False
    first: str = ""


def readings(by_metric: Mapping[str, Sequence[Entry]], key: str, declared: Collection[str]) -> dict[str, Reading]:
    """How each metric is read.

    Args:
        key: that of the score, or a metric's name, as the user says; empty: known by its name.
        declared: what the harness itself calls metrics (lm-eval).
    """
    if key:
        return {metric: _asked(metric, entries, key) for metric, entries in by_metric.items()}
    own = {metric: own_key(metric, _numeric(entries)) for metric, entries in by_metric.items()}
    out = {}
    for metric, entries in by_metric.items():
        found = _known(metric, entries, own, by_metric, metric in declared)
        first = next((m for m in by_metric if m == metric or _same(by_metric[m], entries)), metric)
        out[metric] = replace(found, first="" if first == metric else first)
    return out


def _asked(metric: str, entries: Sequence[Entry], key: str) -> Reading:
    if metric == key and any(number_of(e.value) is not None for e in entries):
        return Reading("")
    return Reading(key) if key in _numeric(entries) else Reading()


def _known(
    metric: str,
    entries: Sequence[Entry],
    own: Mapping[str, str],
    by_metric: Mapping[str, Sequence[Entry]],
    declared: bool,
) -> Reading:
    if any(number_of(e.value) is not None for e in entries):
        named = declared or not no_score(metric)
        return Reading("") if named else Reading(why=f"by its name '{metric}' is no score")
    otherwise = not_a_score(metric)
    keys = _numeric(entries)
    if otherwise and any(plain(k) == "score" for k in keys):
        return Reading(why=f"the 'score' of {metric} is {otherwise}", tell=True)
    if own[metric]:
        return Reading(own[metric], said=plain(own[metric]) != "score")
    owners = [m for m in by_metric if own[m] and plain(own[m]) != "score" and _same(entries, by_metric[m])]
    if owners:  # one object under many names, of which some are in it: the rest is worked out from all documents
        return Reading(why=f"its object holds no '{metric}', and does hold {', '.join(own[m] for m in owners)}")
    every = list(dict.fromkeys(str(k) for e in entries if isinstance(e.value, Mapping) for k in e.value))
    known = _differing(known_keys(metric, every, keys), entries)
    if len(known) > 1:
        names = " or ".join(f"'{k}'" for k in known)
        return Reading(why=f"the score of {metric} could be {names}; say which with --column score=KEY", tell=True)
    return Reading(known[0], said=plain(known[0]) != "score") if known else Reading()


def _numeric(entries: Sequence[Entry]) -> list[str]:
    """Keys of a metric's objects that hold a number in some document."""
    found: dict[str, None] = {}
    for e in entries:
        if isinstance(e.value, Mapping):
            found.update((str(k), None) for k in e.value if k not in found and score_in(e.value, k) is not None)
    return list(found)


def _differing(keys: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    """Of the keys that say the same of every document, the first."""
    out: list[str] = []
    for key in keys:
        said = [score_in(e.value, key) for e in entries if isinstance(e.value, Mapping)]
        if not any(said == [score_in(e.value, k) for e in entries if isinstance(e.value, Mapping)] for k in out):
            out.append(key)
    return out


def _same(one: Sequence[Entry], other: Sequence[Entry]) -> bool:
    return one is not other and len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: Entry, other: Entry) -> bool:
    if not isinstance(one.value, Mapping):
        return False
    return json.dumps(one.value, sort_keys=True, default=str) == json.dumps(other.value, sort_keys=True, default=str)
