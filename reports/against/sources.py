"""Where a published value stands: a line of a file in a public repository at a commit, or a table of a paper."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from fusion_workbench.core.errors import WorkbenchError

READ = {
    "own": "read in the paper or its repository",
    "third-party": "read in a third party's account of the paper, not in the paper itself",
}
PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")  # a table that is drawn has no lines


@dataclass
class Source:
    """Either the first four or the next two; of a picture the line is left out.

    Attributes:
        repository: ``owner/name`` on github.com.
        commit: 40 hex digits.
        paper: its number on arXiv.
        table: of the paper, as the paper calls it.
        read: a key of :data:`READ`: who read the values there.
    """

    repository: str | None = None
    commit: str | None = None
    file: str | None = None
    line: int | None = None
    paper: str | None = None
    table: str | None = None
    read: str | None = None

    @property
    def label(self) -> str:
        """Such as ``arXiv 2410.11829, Table I`` or ``haotian-liu/LLaVA docs/MODEL_ZOO.md:25 at c121f04``."""
        if self.paper:
            return f"arXiv {self.paper}, {self.table}"
        line = f":{self.line}" if self.line else ""
        return f"{self.repository} {self.file}{line} at {(self.commit or '')[:7]}"

    @property
    def url(self) -> str:
        if self.paper:
            return f"https://arxiv.org/abs/{self.paper}"
        line = f"#L{self.line}" if self.line else ""
        plain = "?plain=1" if line and str(self.file).endswith(".md") else ""  # without it GitHub shows no lines
        return f"https://github.com/{self.repository}/blob/{self.commit}/{self.file}{plain}{line}"

    def check(self, where: str) -> None:
        """Raises WorkbenchError, which begins with ``where``, for a source that names no place."""
        if self.read not in READ:
            raise WorkbenchError(f"{where}: read is '{self.read}'; it says who read the values: {', '.join(READ)}.")
        lacks = self._lacks()
        if lacks:
            raise WorkbenchError(
                f"{where}: the source lacks {lacks}; name a file of a public repository (repository, commit, file, "
                "line) or a table of a paper (paper, table)."
            )

    def _lacks(self) -> str | None:
        in_repository = (self.repository, self.commit, self.file, self.line)
        if self.paper or self.table:
            if any(in_repository):
                return "an either-or: it names a repository and a paper"
            if not re.fullmatch(r"\d{4}\.\d{4,5}", self.paper or ""):
                return "the paper's arXiv number, such as 2410.11829"
            return None if self.table else "the table of the paper"
        if not any(in_repository):
            return "everything"
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository or ""):
            return "the repository as owner/name"
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit or ""):
            return "the commit, 40 hex digits"
        if not self.file:
            return "the file"
        if PurePosixPath(self.file).suffix.lower() in PICTURES:
            return None if self.line is None else "a reason for its line: a picture has none"
        return None if self.line and self.line > 0 else "the line of the file"


@dataclass
class Stated:
    """Values of a row at one place, by column."""

    values: dict[str, float]
    source: Source = field(default_factory=Source)
    who: str = ""  # short, for where two places state different values: "as MMFuser prints it"
