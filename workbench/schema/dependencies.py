"""What a study's numbers depend on that its id does not tell, as it writes it down: ``dependencies.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

NOT_RECORDED = "not recorded before 0.2"  # of a study whose first rows were trained by 0.1


def combined(fingerprints: Mapping[str, str]) -> str:
    """12 hex digits over all fingerprints; the tag of every run that was trained under them."""
    return hashlib.sha256(json.dumps(dict(fingerprints), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Changed:
    """One dependency that changed: its name, what it is in words, its fingerprints before and after."""

    name: str
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what} ({self.before[:8] or 'none'} → {self.after[:8] or 'none'})"

    def plain(self) -> dict[str, str]:
        return {"name": self.name, "what": self.what, "before": self.before, "after": self.after}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Changed:
        return cls(*(str(plain[key]) for key in ("name", "what", "before", "after")))


@dataclass(frozen=True)
class AcceptedChange:
    """A change that a study went on with.

    Attributes:
        when: UTC.
        finished: variant-replicates that were done by then.
        before, after: :func:`combined` of the fingerprints.
        changed: empty where a later version of the workbench only fingerprints more.
    """

    when: str
    finished: int
    before: str
    after: str
    changed: tuple[Changed, ...]

    def plain(self) -> dict[str, Any]:
        return {
            "when": self.when,
            "finished": self.finished,
            "before": self.before,
            "after": self.after,
            "changed": [one.plain() for one in self.changed],
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> AcceptedChange:
        changed = tuple(Changed.read(one) for one in plain.get("changed") or ())
        return cls(str(plain["when"]), int(plain["finished"]), str(plain["before"]), str(plain["after"]), changed)


@dataclass(frozen=True)
class TrackedDependencies:
    """The content of ``dependencies.json``, and of the ledger's fact of that name.

    Attributes:
        fingerprints: name → fingerprint, under which its newest rows were trained.
        what: name → the dependency in words.
        recorded: :data:`NOT_RECORDED` where the first rows are older than the record; else empty.
        changes: those that were accepted, oldest first.
        code: strategy → hash of its code as the study was begun with it, and as it is now; empty for the workbench's
            own.
    """

    fingerprints: Mapping[str, str] = field(default_factory=dict)
    what: Mapping[str, str] = field(default_factory=dict)
    recorded: str = ""
    changes: tuple[AcceptedChange, ...] = ()
    code: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Of the runs that are trained under it."""
        return combined(self.fingerprints)

    def under(
        self, fingerprints: Mapping[str, str], what: Mapping[str, str], change: AcceptedChange | None
    ) -> TrackedDependencies:
        """The record with the fingerprints of the rows to come."""
        changes = (*self.changes, change) if change else self.changes
        return replace(self, fingerprints=dict(fingerprints), what=dict(what), changes=changes)

    def plain(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "fingerprints": dict(self.fingerprints),
            "what": dict(self.what),
            "recorded": self.recorded,
            "changes": [change.plain() for change in self.changes],
            "code": {name: list(pair) for name, pair in self.code.items()},
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> TrackedDependencies:
        """What the file describes. Raises as :mod:`schema.records`."""
        return cls(
            fingerprints={str(key): str(value) for key, value in dict(plain.get("fingerprints") or {}).items()},
            what={str(key): str(value) for key, value in dict(plain.get("what") or {}).items()},
            recorded=str(plain.get("recorded") or ""),
            changes=tuple(AcceptedChange.read(change) for change in plain.get("changes") or ()),
            code={str(k): (str(first), str(now)) for k, (first, now) in dict(plain.get("code") or {}).items()},
        )
