"""The commands about the statistics themselves: ``verdict`` on results from elsewhere, ``power``, ``calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusion_workbench.cli.terminal import DEFAULT_WORKSPACE, Quiet, Uri, Workspace, harmless, terminal
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.text import printable
from fusion_workbench.study.tracking import existing_uri

if TYPE_CHECKING:
    from rich.console import Console

    from fusion_workbench.reports.scores.judge import Judgement

app = typer.Typer()

Files = Annotated[
    list[str] | None,
    typer.Argument(
        help="Tables (CSV, TSV, Parquet, JSON lines; a row per example), sample logs of lmms-eval or lm-eval, folders.",
        metavar="[FILE]...",
        show_default=False,
    ),
]
Systems = Annotated[
    list[str] | None,
    typer.Option("--system", "-s", help="NAME=PATTERN or NAME@REPLICATE=PATTERN: whose a file is.", show_default=False),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        "-c",
        help="ROLE=COLUMN, with the roles system, example, score, replicate, group, measure; of sample logs score=KEY "
        "and group=KEY.",
        show_default=False,
    ),
]
Metrics = Annotated[
    list[str] | None, typer.Option("--metric", "-m", help="Only these measures, tasks or metrics.", show_default=False)
]
Independent = Annotated[
    bool, typer.Option("--independent", help="Never pair replicates, whatever they are called; examples stay paired.")
]


@app.command()
def verdict(
    files: Files = None,
    system: Systems = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", "-b", help="System to compare with; default: the first.", show_default=False),
    ] = None,
    column: Columns = None,
    metric: Metrics = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", help="A difference in scores that is as good as none, set beforehand.", show_default=False
        ),
    ] = None,
    level: Annotated[float, typer.Option("--level", help="Chance of any false better or worse.")] = 0.05,
    higher: Annotated[bool, typer.Option("--higher-is-better/--lower-is-better", help="What a good score is.")] = True,
    independent: Independent = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for verdict.html, .md, .json and .csv.", show_default=False),
    ] = None,
    fail_on: Annotated[
        str, typer.Option("--fail-on", help="'worse': exit with 1 where any system is worse.", show_default=False)
    ] = "",
) -> None:
    """Judge anybody's per-example scores as the report judges cells: better, worse, equivalent, or none of these."""
    if fail_on not in ("", "worse"):
        raise WorkbenchError(f"--fail-on {fail_on}: only 'worse' is known.")
    from fusion_workbench.reports.scores.judge import judge_scores
    from fusion_workbench.reports.scores.tables import read_scores

    scores = read_scores(files or [], system or [], column or [], metric or [])
    judgement = judge_scores(scores, baseline or [], level, margin, higher, independent)
    console = terminal()
    _show(console, judgement)
    if out is not None:
        from fusion_workbench.reports.scores.render import write_judgement

        named = tuple(printable(name) for name in (*(files or []), *(system or [])))
        written = write_judgement(judgement, out, named)
        console.print(f"written: {printable(str(written[0]))}", highlight=False, markup=False)
    if fail_on and judgement.worse():
        worse = ", ".join(sorted({f"{c.cell} (against {c.baseline})" for c in judgement.worse()}))
        typer.echo(harmless(f"worse: {worse}"), err=True)
        raise typer.Exit(1)


def _show(console: Console, judgement: Judgement) -> None:
    """A table a measure, the headline, the caveats."""
    from rich.table import Table
    from rich.text import Text

    from fusion_workbench.reports.scores.render import rows

    for t in judgement.tables:
        about = " ".join(filter(None, [t.measure or "scores", f"({t.unit.symbol})" if t.unit.symbol else ""]))
        table = Table("system", "mean [95 %]", title=Text(about), title_justify="left")
        for name in judgement.baselines:
            table.add_column(Text(f"against {name}"))
        table.add_column("replicates", justify="right")
        table.add_column("examples", justify="right")
        grouped = any(line.mean.groups for line in t.lines)  # what was drawn: intervals count these
        if grouped:
            table.add_column("groups", justify="right")
        for row in rows(t):
            marks = [
                Text("\n".join(filter(None, [f"{m.symbol} {m.verdict}", m.effect, m.correction])) if m else "–")
                for m in row["marks"]
            ]
            mean = Text(f"{row['mean']} [{row['low']}, {row['high']}]")
            counts = [row["replicates"], row["examples"], *([row["groups"]] if grouped else [])]
            table.add_row(Text(row["system"]), mean, *marks, *map(str, counts))
        console.print(table)
    console.print(judgement.headline, highlight=False, markup=False, style="bold")
    for caveat in judgement.caveats:
        console.print(f"· {caveat}", highlight=False, markup=False)


@app.command()
def power(
    study: Annotated[
        str | None,
        typer.Argument(help="The pilot: a study in MLflow, its 16-digit id, or its YAML file.", show_default=False),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--scores", help="Instead of a study: a file that `workbench verdict` reads.", show_default=False),
    ] = None,
    difference: Annotated[
        list[float] | None,
        typer.Option("--difference", "-d", help="In scores: 0.01 is one point of a share.", show_default=False),
    ] = None,
    system: Systems = None,
    baseline: Annotated[
        list[str] | None, typer.Option("--baseline", "-b", help="Of --scores.", show_default=False)
    ] = None,
    column: Columns = None,
    metric: Metrics = None,
    level: Annotated[float, typer.Option("--level", help="Of --scores; a study has its plan's.")] = 0.05,
    uri: Uri = "",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "fusion-workbench",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Replicates, test examples and hours that it takes to tell a difference with power .8, from a pilot."""
    wrong = next((d for d in difference or [] if not 0 < abs(d) < float("inf")), None)
    if wrong is not None:
        raise WorkbenchError(f"--difference {wrong:g}: it is a difference in scores, such as 0.01 for one point.")
    if (study is None) == (not scores and not system):
        raise WorkbenchError("name a study as the pilot, or scores with --scores FILE (one of the two).")
    from fusion_workbench.tools import power as planned

    if study is None:
        planned.from_scores(
            terminal(), scores or [], system or [], column or [], metric or [], baseline or [], level, difference or []
        )
        return
    from fusion_workbench.config.study import load_study

    name = load_study(study).name if study.endswith((".yaml", ".yml")) else study
    planned.from_study(terminal(), uri or existing_uri(workspace), name, experiment, difference or [])


@app.command()
def calibrate(
    studies: Annotated[
        int, typer.Option("--studies", min=20, max=10_000_000, help="Simulated studies a row of the table.")
    ] = 4000,
    short: Annotated[bool, typer.Option("--short", help="A few rows of 400 studies: seconds, and wide.")] = False,
    planted: Annotated[
        int,
        typer.Option("--planted", min=0, max=10_000, help="Also run so many studies with a signal in known layers."),
    ] = 0,
    real_aa: Annotated[
        int,
        typer.Option(
            "--real-aa", min=0, max=10_000, help="Also train so many studies of one strategy under four names."
        ),
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
    found = run(console, out, studies, short, planted, real_aa, (place, pilot), seed, quiet)
    show(console, found, out)
    if not found["passed"]:
        raise typer.Exit(1)
