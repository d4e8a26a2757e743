"""The plan of a study as it is tracked: what counts as a result, and what became of it since."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

FEWEST = 5  # replicates for a verdict
FEWEST_EXAMPLES = 3  # test examples for one: fewer do not tell what others would change


@dataclass(frozen=True)
class ComparisonFamily:
    """Measures whose comparisons are corrected together, at ``share`` of the study's level."""

    measures: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class Plan:
    """What was to count as a result, fixed before the first run.

    Attributes:
        primary: the measure that the recommended cell is picked by.
        families: what is corrected together; their shares add up to at most 1.
        level: the chance of any false better or worse in the whole study.
        margin: a difference within it is as good as none, in scores where they are shares, else as a share of the way
            from chance to perfect. None: nothing is called equivalent.
        looks: numbers of replicates after which verdicts are read. The level is spent in proportion, so that looking
            and then adding replicates stays honest; the last look is the planned end.
        confirm: the same for the fresh replicates on which the winner is judged; empty: there are none.
        confirm_share: of the level, what is kept for the fresh replicates; the rest is for comparing all cells.
    """

    primary: str
    families: tuple[ComparisonFamily, ...]
    level: float
    margin: float | None
    looks: tuple[int, ...]
    confirm: tuple[int, ...] = ()
    confirm_share: float = 0.0

    def exploring(self) -> Plan:
        """The part of the plan that compares all cells on the study's own replicates."""
        return self._part(1 - self.confirm_share, self.looks)

    def confirming(self) -> Plan:
        """The part that judges the winner on fresh replicates."""
        return self._part(self.confirm_share, self.confirm)

    def _part(self, share: float, looks: tuple[int, ...]) -> Plan:
        families = tuple(ComparisonFamily(f.measures, f.share * share) for f in self.families)
        return replace(self, families=families, looks=looks, confirm=(), confirm_share=0.0)

    def spent(self) -> tuple[float, ...]:
        """The share of the level at each look: in proportion to the replicates that it adds."""
        return tuple((b - a) / self.looks[-1] for a, b in zip((0, *self.looks), self.looks, strict=False))

    def plain(self) -> dict[str, Any]:
        """In full, for JSON. :func:`plan_hash` is over this."""
        return {
            "primary": self.primary,
            "families": [{"measures": list(f.measures), "share": f.share} for f in self.families],
            "level": self.level,
            "margin": self.margin,
            "looks": list(self.looks),
            "confirm": list(self.confirm),
            "confirm_share": self.confirm_share,
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Plan:
        """The plan that plain values describe.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: they describe none.
        """
        read = cls(
            primary=str(plain["primary"]),
            families=tuple(
                ComparisonFamily(tuple(map(str, f["measures"])), float(f["share"])) for f in plain["families"]
            ),
            level=float(plain["level"]),
            margin=None if plain["margin"] is None else float(plain["margin"]),
            looks=tuple(int(n) for n in plain["looks"]),
            confirm=tuple(int(n) for n in plain.get("confirm", ())),
            confirm_share=float(plain.get("confirm_share", 0.0)),
        )
        shares = (read.confirm_share, *(family.share for family in read.families))
        margin = 1.0 if read.margin is None else read.margin
        if not (0 < read.level < 1 and 0 < margin < math.inf and all(0 <= share <= 1 for share in shares)):
            raise ValueError("its level, margin or shares are none")
        rising = all(before < after for looks in (read.looks, read.confirm) for before, after in pairwise((0, *looks)))
        if not read.looks or not rising:
            raise ValueError("its looks do not rise")
        return read


@dataclass(frozen=True)
class TrackedPlan:
    """``plan.json``: the plan that stands, the first one, and what happened since. All values as they were written.

    Attributes:
        plan: that stands; empty where none was tracked.
        first: that stood before the first run.
        changes: in words, from the first to the one that stands.
        stopped: the look at which the study's replicates ended early; None where they did not.
        confirmed: fresh replicates that were trained; None where none were.
    """

    plan: Mapping[str, Any]
    first: Mapping[str, Any]
    changes: tuple[str, ...] = ()
    stopped: int | None = None
    confirmed: int | None = None

    def plain(self) -> dict[str, Any]:
        """The content of ``plan.json``."""
        return {
            "hash": plan_hash(self.first),
            "plan": self.plan,
            "first": self.first,
            "changes": list(self.changes),
            "stopped": self.stopped,
            "confirmed": self.confirmed,
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> TrackedPlan:
        """What the file holds; a part that holds nonsense is as if it were not there."""
        plan, first, changes = plain.get("plan"), plain.get("first"), plain.get("changes")
        stopped, confirmed = plain.get("stopped"), plain.get("confirmed")
        return cls(
            plan=plan or {},
            first=first if isinstance(first, Mapping) else {},
            changes=tuple(map(str, changes)) if isinstance(changes, list) else (),
            stopped=stopped if isinstance(stopped, int) else None,
            confirmed=confirmed if isinstance(confirmed, int) else None,
        )


def plan_hash(plan: Mapping[str, Any]) -> str:
    """16 hex digits over a plan in full."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
