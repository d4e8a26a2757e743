"""What a file in LLaVA's format holds, and which of its rows cannot be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.text import printable

if TYPE_CHECKING:
    from rich.console import Console


def check(
    console: Console,
    file: Path,
    images: Path,
    verify: str,
    bad_rows: float,
    lists: Path | None,
    image_first: bool = True,
) -> bool:
    """Read a file as the source ``llava`` would, and print what it found. Returns whether it would be accepted.

    Args:
        verify: how closely images are checked; a key of ``fusion_workbench.datamodules.rows.image_folder.VERIFY``.
        bad_rows: the share of bad rows above which it would not be.
        lists: folder of the quarantine's list; None: beside the file.

    Raises:
        WorkbenchError: no such file or folder, no JSON at all, an unknown ``verify``.
    """
    from rich.table import Table
    from rich.text import Text

    from fusion_workbench.datamodules.rows.image_folder import VERIFY, ImageFolder
    from fusion_workbench.datamodules.rows.llava import read_file

    if verify not in VERIFY:
        raise WorkbenchError(f"--verify: unknown '{verify}'.{nearest(verify, VERIFY)}")
    result = read_file(file, ImageFolder(images), image_first, verify, lists)
    where = result.quarantine.write()
    rows, bad = [placed.row for placed in result.rows], result.quarantine
    facts = {
        "rows": bad.seen,
        "conversations": len(rows),
        "turns": sum(len(row.turns) for row in rows),
        "with one image": sum(len(row.images) == 1 for row in rows),
        "with several images": sum(len(row.images) > 1 for row in rows),
        "text alone": sum(not row.images for row in rows),
        "different images": len({key for placed in result.rows for key in placed.keys}),
        "bad rows": len(bad.rows),
    }
    table = Table(show_header=False, title=Text(printable(str(file))), title_justify="left")
    for name, number in facts.items():
        table.add_row(name, f"{number:,}")
    for task, number in sorted(Counter(row.task for row in rows).items()):
        table.add_row(Text(printable(f"task {task}")), f"{number:,}")
    console.print(table)
    for reason, (number, first) in bad.reasons.items():
        console.print(f"{number:,} {reason}: {first.file}:{first.line}: {first.detail}", highlight=False, markup=False)
    console.print(where, highlight=False, markup=False)
    if bad.share > bad_rows:
        told = f"{bad.share:.2%} of the rows are bad, more than bad_rows={bad_rows:g} allows"
        console.print(told, highlight=False, markup=False)
    return bad.share <= bad_rows
