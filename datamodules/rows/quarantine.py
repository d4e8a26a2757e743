"""Bad rows: left out, listed with file and line, counted, and too many to go on above a share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.rows.rows import BadRow
from fusion_workbench.system.files import write_file

LISTED = ".quarantine.jsonl"  # after the name of the file whose bad rows are listed


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that was left out, as a line of the list has it."""

    file: str
    line: int
    number: int  # of the row in the file, from 1
    reason: str  # its kind
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.reason}: {self.detail})"


@dataclass
class Quarantine:
    """The bad rows of one file.

    Args:
        file: whose rows they are.
        path: of the list.
    """

    file: str
    path: Path
    rows: list[Quarantined] = field(default_factory=list)
    seen: int = 0  # rows of the file, good ones included

    def add(self, line: int, number: int, bad: BadRow, file: str = "") -> None:
        """A bad row; ``file`` is the one it stands in, where there are several."""
        self.rows.append(Quarantined(file or self.file, line, number, bad.reason, bad.detail))

    @property
    def share(self) -> float:
        return len(self.rows) / max(1, self.seen)

    @property
    def reasons(self) -> dict[str, tuple[int, Quarantined]]:
        """Reason → how many rows, and the first of them; the most frequent reason first."""
        firsts = {row.reason: row for row in reversed(self.rows)}
        return {reason: (n, firsts[reason]) for reason, n in Counter(row.reason for row in self.rows).most_common()}

    def write(self) -> str:
        """Write the list, or take away an old one when no row is bad. Returns where it is, in words."""
        try:
            if not self.rows:
                self.path.unlink(missing_ok=True)
                return "no row is bad"
            write_file(self.path, "".join(json.dumps(asdict(row)) + "\n" for row in self.rows))
        except OSError as error:
            return f"the list {self.path} could not be written ({error.strerror}); name a folder in quarantine"
        return f"all are listed in {self.path}"

    def summary(self) -> str:
        """What was left out, in one line."""
        counts = ", ".join(f"{n:,} {reason}" for reason, (n, _) in self.reasons.items())
        return (
            f"{self.file}: {len(self.rows):,} of {self.seen:,} rows ({self.share:.2%}) cannot be used: {counts}; "
            f"the first is {self.rows[0]}"
        )

    def refuse_above(self, limit: float, where: str) -> None:
        """Raises WorkbenchError when more than the share ``limit`` is bad; ``where`` is what the list's place is."""
        if self.share > limit:
            raise WorkbenchError(
                f"{self.summary()}. That is more than bad_rows={limit:g} allows; {where}. Mend them, or raise bad_rows."
            )


def overlap(splits: Sequence[tuple[str, set[str]]]) -> str:
    """Which images stand in two splits, in a few words; empty: none."""
    overlaps = [
        f"{len(both):,} of {later} are in {earlier} too, such as {min(both)}"
        for i, (later, images) in enumerate(splits)
        for earlier, others in splits[:i]
        if (both := images & others)
    ]
    return "; ".join(overlaps)
