"""The command that holds the referee's own statistics to account."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusion_workbench.cli.terminal import DEFAULT_WORKSPACE, Quiet, Uri, Workspace, terminal
from fusion_workbench.study.tracking import existing_uri

app = typer.Typer()


@app.command()
def calibrate(
    studies: Annotated[int, typer.Option("--studies", min=20, help="Simulated studies a row of the table.")] = 4000,
    short: Annotated[bool, typer.Option("--short", help="A few rows of 400 studies: seconds, and wide.")] = False,
    planted: Annotated[
        int, typer.Option("--planted", min=0, help="Also run so many studies with a signal in known layers.")
    ] = 0,
    real_aa: Annotated[
        int, typer.Option("--real-aa", min=0, help="Also train so many studies of one strategy under four names.")
    ] = 0,
    pilot: Annotated[
        str, typer.Option("--pilot", help="Take the variance ratios of this study instead of the shipped ones.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for calibration.json and calibration.md.")] = Path(
        "workspace/calibration"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 4,
    uri: Uri = "",
    workspace: Workspace = DEFAULT_WORKSPACE,
    quiet: Quiet = False,
) -> None:
    """Hold intervals and verdicts against studies whose truth is known. Exits with 1 when a bar is missed."""
    from fusion_workbench.tools.calibrate import run, show

    console = terminal()
    place = (uri or existing_uri(workspace)) if pilot else ""
    result = run(console, out, studies, short, planted, real_aa, (place, pilot), seed, quiet)
    show(console, result, out)
    if not result["passed"]:
        raise typer.Exit(1)
