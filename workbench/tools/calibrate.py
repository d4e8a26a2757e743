"""``workbench calibrate``: simulated studies, and small trained ones, whose truth is known."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.study import provenance
from fusion_workbench.system.bars import progress_bar
from fusion_workbench.system.files import explain_writing, write_file
from fusion_workbench.system.scratch import scratch_folder
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

SHORT = 400


def run(
    console: Console,
    out: Path,
    studies: int,
    short: bool,
    planted: int,
    real_aa: int,
    pilot: tuple[str, str],
    seed: int,
    quiet: bool,
) -> dict[str, Any]:
    """Run every check, write ``calibration.json`` and ``calibration.md`` to ``out``, return what the former holds.

    Args:
        pilot: tracking URI and study whose variance ratios are simulated; empty words: the pilots of the package.

    Raises:
        WorkbenchError: the pilot cannot be read, or ``out`` cannot be written.
    """
    from fusion_workbench.reports.calibration.checks import checks
    from fusion_workbench.reports.calibration.pilots import pilot as read_pilot
    from fusion_workbench.reports.calibration.pilots import pilot_components, pilots
    from fusion_workbench.reports.calibration.table import document, markdown
    from fusion_workbench.reports.reading.query import read_study

    with explain_writing(out, "name a folder for the table with --out"):
        out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    sources = [read_pilot(read_study(*pilot))] if pilot[1] else list(pilots())
    chosen = [c for c in checks(pilot_components(sources)) if c.short or not short]
    studies = min(studies, SHORT) if short else studies
    rows = []
    with progress_bar(console, "simulated checks", len(chosen), shown=not quiet) as advance:
        for check in chosen:
            rows.append(check.row(studies, seed))
            advance(1)
    simulated = time.monotonic() - start
    if planted or real_aa:
        from fusion_workbench.tools.planted_studies import aliased, named

        with scratch_folder("calibrate") as scratch:
            with progress_bar(console, "studies of aliases", real_aa, shown=not quiet) as advance:
                rows += [aliased(real_aa, seed, scratch / "aliases", advance)] if real_aa else []
            with progress_bar(console, "planted studies", planted, shown=not quiet) as advance:
                rows += [named(planted, seed, scratch / "planted", advance)] if planted else []
    facts = {
        "command": provenance.command(),
        "version": __version__,
        "studies": studies,
        "seed": seed,
        "seconds": round(time.monotonic() - start),
        "seconds_simulating": round(simulated),
        "pilots": sources,
        "mixes": {name: mix.__dict__ for name, mix in pilot_components(sources).items()},
    }
    found = document(rows, facts)
    write(found, out / "calibration.json")
    write_file(out / "calibration.md", markdown(found))
    return found


def write(content: dict[str, Any], path: Path) -> None:
    """As JSON, a line a row."""
    facts = json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=1, ensure_ascii=False)
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in content["rows"])
    write_file(path, f'{facts[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')


def show(console: Console, found: dict[str, Any], out: Path) -> None:
    """Print the table."""
    from rich.table import Table

    from fusion_workbench.reports.calibration.table import terminal_rows

    table = Table("check", "study", "rate", "95 % Monte Carlo", "bar", "", title=f"{found['studies']} studies a row")
    for line in terminal_rows(found):
        table.add_row(*line)
    console.print(table)
    missed = sum(not r["passed"] for r in found["rows"])
    held = f"{missed} of {len(found['rows'])} miss their bar" if missed else f"all {len(found['rows'])} hold their bar"
    console.print(
        f"{held}; {found['seconds']} s; {out / 'calibration.json'}, {out / 'calibration.md'}", highlight=False
    )
