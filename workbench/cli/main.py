"""The command line. Only Typer is imported here; each command imports what it needs when it runs."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusion_workbench.cli import data as cli_data
from fusion_workbench.cli import inspect as cli_parts
from fusion_workbench.cli import models as cli_model
from fusion_workbench.cli import statistics as cli_others
from fusion_workbench.cli.endings import run
from fusion_workbench.cli.terminal import (
    DEFAULT_WORKSPACE,
    AcceptChange,
    Overrides,
    Quiet,
    StudyName,
    Uri,
    WithoutControls,
    Workspace,
    harmless,
    terminal,
)
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.text import folder_name
from fusion_workbench.study.tracking import existing_uri
from fusion_workbench.system.mlflow_uri import without_password

if TYPE_CHECKING:
    from rich.console import Console

    from fusion_workbench.config.study import StudyConfig
    from fusion_workbench.reports.render.paths import ReportPaths

app = typer.Typer(
    name="workbench",
    cls=WithoutControls,
    help="A referee for visual-layer fusion: which encoder layers to feed to the language model, fused how, and how "
    "sure that is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SMALL = (
    "source.options.train=96",
    "source.options.val=48",
    "source.options.test=48",
    "training.epochs=2",
    "search.learning_rates=[0.003]",
)


class FailOn(StrEnum):
    """What fails a report; see docs/report.md."""

    WORSE = "worse"
    RECOMMENDED = "recommended-worse"
    DIFFERENT = "different"
    UNKNOWN = "no-verdict"


def _version(value: bool) -> None:
    if value:
        from fusion_workbench.version import __version__

        typer.echo(f"workbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    try:
        Path.cwd()
    except OSError:
        raise WorkbenchError("the folder that this was started in is gone; change into another one (cd).") from None


@app.command()
def quickstart(
    overrides: Overrides = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    small: Annotated[
        bool, typer.Option("--small", help="A smoke run: few scenes, two epochs; its numbers mean nothing.")
    ] = False,
    accept_change: AcceptChange = False,
    quiet: Quiet = False,
) -> None:
    """Assets, a real ablation on real images, MLflow, the report: the whole way in some minutes."""
    from fusion_workbench.assets import home as assets
    from fusion_workbench.config.study import load_study
    from fusion_workbench.study.identity import as_begun

    typed = {word.partition("=")[0] for word in overrides or []}
    words = [*(word for word in SMALL if small and word.partition("=")[0] not in typed), *(overrides or [])]
    study = as_begun(lambda schema: load_study("quickstart", words, schema), workspace)
    assets.ensure("encoder", "photographs", "digits", "typefaces", progress=not quiet)
    _run(study, workspace, quiet, accept_change=accept_change)


@app.command()
def sweep(
    study: StudyName,
    overrides: Overrides = None,
    workspace: Workspace = DEFAULT_WORKSPACE,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be trained, and train nothing.")] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Train again what diverged, ran out of memory or broke off with an error."),
    ] = False,
    accept_change: AcceptChange = False,
    retrain_lost: Annotated[
        bool,
        typer.Option("--retrain-lost", help="Train again what was finished and is lost: its MLflow run and its files."),
    ] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    quiet: Quiet = False,
) -> None:
    """Run a study, or go on with it: what was finished is kept. Ends with its report."""
    from fusion_workbench.config.study import load_study
    from fusion_workbench.study.identity import as_begun

    words = shlex.join(map(without_password, [study, *(overrides or [])]))
    _run(
        as_begun(lambda schema: load_study(study, overrides or [], schema), workspace),
        workspace,
        quiet,
        plan=f"workbench sweep {words}" if plan else "",
        retry_failed=retry_failed,
        accept_change=accept_change,
        retrain_lost=retrain_lost,
        report=report,
    )


@app.command()
def train(
    strategy: Annotated[str, typer.Argument(help="Fusion strategy, such as mmfuser.")],
    overrides: Overrides = None,
    levels: Annotated[
        str, typer.Option("--levels", "-l", help="Shallow layers, comma-separated: 3,6,9 or 25%,50%.")
    ] = "",
    query: Annotated[str, typer.Option("--query", help="The deep layer; default: the deepest.")] = "",
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 3e-3,
    study: Annotated[
        str, typer.Option("--study", "-s", help="The study whose data and training it shares.")
    ] = "quickstart",
    workspace: Workspace = DEFAULT_WORKSPACE,
    accept_change: AcceptChange = False,
    quiet: Quiet = False,
) -> None:
    """Train one variant (by default one replicate) and track it, without a search."""
    from fusion_workbench.config.study import SelectionConfig, StrategyConfig, load_study
    from fusion_workbench.study.identity import as_begun

    def alone(schema: int) -> StudyConfig:
        base = load_study(study, [word for word in overrides or [] if word.startswith("schema=")], schema)
        configured = next((s for s in base.strategies if s.name == strategy), StrategyConfig(name=strategy))
        base.strategies = [StrategyConfig(name=strategy, options=configured.options)]
        base.selections = [SelectionConfig([x for x in levels.split(",") if x], query or None)]
        base.space, base.single_layers, base.baselines, base.replicates = None, [], False, 1
        base.plan.confirm = []
        base.search.learning_rates = [lr]
        base.question = f"What does {strategy} reach on its own?"
        base.name = f"train-{strategy}"
        return _overridden(base, overrides or [])

    _run(as_begun(alone, workspace), workspace, quiet, accept_change=accept_change, report=False)


@app.command()
def report(
    study: Annotated[
        str, typer.Argument(help="A study's name, its 16-digit id, or the path of its YAML file.", metavar="STUDY")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: WORKSPACE/reports/STUDY.")
    ] = None,
    uri: Uri = "",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "fusion-workbench",
    workspace: Workspace = DEFAULT_WORKSPACE,
    against: Annotated[
        str, typer.Option("--against", help="Say what changed since another study, or since an earlier report.json.")
    ] = "",
    against_uri: Annotated[
        str, typer.Option("--against-uri", help="MLflow that holds it; alone: the same study in that MLflow.")
    ] = "",
    probes: Annotated[
        str, typer.Option("--probes", help="Study of probes to hold a study of language models against.")
    ] = "",
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(
            "--fail-on", help="Exit with 1 when the recommended cell, or with --against any, is …; repeatable."
        ),
    ] = None,
) -> None:
    """Write the layer-selection report of a study (HTML, Markdown, JSON, CSV, LaTeX) from MLflow alone."""
    if FailOn.DIFFERENT in (fail_on or ()) and not (against or against_uri):
        raise WorkbenchError("--fail-on different compares two studies; name the other with --against.")
    name, other, cheap = _study_name(study), _study_name(against), _study_name(probes)
    out = out or workspace / "reports" / folder_name(name)
    tracking_uri = uri or existing_uri(workspace)
    paths = _write_report(terminal(), tracking_uri, name, out, experiment, other, against_uri, cheap)
    failed = [kind for kind in fail_on or () if kind in paths.failures]
    if failed:  # one line: what the first of them says
        typer.echo(harmless(f"failed on {', '.join(failed)}: {paths.failures[failed[0]]}"), err=True)
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            help="An MLflow run of a trained variant, a study (its recommended cell), or STUDY:CELL.", metavar="RUN"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; default: WORKSPACE/exports/NAME.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is there.")] = False,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Also log it to MLflow as a model of that run.")] = True,
    uri: Uri = "",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment.")] = "fusion-workbench",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Write a trained fuser and projector as a folder to load anywhere: safetensors, config, model card."""
    from fusion_workbench.models import export as exporting

    exported = exporting.export_run(
        uri or existing_uri(workspace), run, out, experiment, overwrite=overwrite, log=log, folder=workspace / "exports"
    )
    exporting.show(terminal(), exported)


app.add_typer(cli_data.app, name="data")
app.add_typer(cli_model.app)
app.add_typer(cli_others.app)
app.add_typer(cli_parts.app)


# --- shared by commands -----------------------------------------------------------------------------------------


def _overridden(study: StudyConfig, overrides: list[str]) -> StudyConfig:
    from fusion_workbench.config.study import study_from_yaml, to_dict
    from fusion_workbench.core.parse import dump_yaml

    return study_from_yaml(dump_yaml(to_dict(study)), "train", overrides, study.name)


def _run(
    study: StudyConfig,
    workspace: Path,
    quiet: bool,
    plan: str = "",
    retry_failed: bool = False,
    accept_change: bool = False,
    retrain_lost: bool = False,
    report: bool = True,
) -> None:
    """``plan``: the command that would run it; named, nothing is trained."""
    from fusion_workbench.system.mlflow_uri import check_uri

    if study.tracking.uri:
        check_uri(study.tracking.uri)
    console = terminal()
    from fusion_workbench.study.progress import Display

    display = Display(console, progress=not quiet)
    with display.step("loading torch, lightning and the encoder"):
        from fusion_workbench.runner.dry_run import show_plan
        from fusion_workbench.study.prepare import prepare

        parts = prepare(study, workspace, progress=not quiet)
    show_plan(console, parts)
    where = f" --workspace {shlex.quote(str(workspace))}" if workspace != DEFAULT_WORKSPACE else ""
    if plan:
        console.print(f"run it: {plan}{where}", highlight=False, markup=False)
        return
    from fusion_workbench.runner.experiment import Experiment

    result = Experiment(parts, display, retry_failed, accept_change, retrain_lost).run()
    failed = f", {result.failed} did not finish (see the report)" if result.failed else ""
    console.print(f"trained {result.trained}, kept {result.kept} from before{failed}", highlight=False)
    if report:
        _write_report(
            console, result.tracking_uri, result.run_id, workspace / "reports" / study.name, study.tracking.experiment
        )
    console.print(f"next: workbench ui{where} shows every run in MLflow", highlight=False, markup=False)


def _study_name(word: str) -> str:
    """A study's name, its id, or the name in its YAML file."""
    from fusion_workbench.config.study import load_study

    return load_study(word).name if word.endswith((".yaml", ".yml")) else word


def _write_report(
    console: Console,
    uri: str,
    study: str,
    out: Path,
    experiment: str,
    against: str = "",
    against_uri: str = "",
    probes: str = "",
) -> ReportPaths:
    from fusion_workbench.reports import write_report

    with console.status("writing the report") if console.is_terminal else nullcontext():
        paths = write_report(uri, study, out, experiment, against or None, against_uri or None, probes or None)
    for paragraph in filter(None, [paths.answer, paths.against]):
        console.print(paragraph, highlight=False, markup=False)
    console.print(f"report: {paths.html}", highlight=False, markup=False)
    return paths


def main() -> None:
    """The console script; see :func:`cli.endings.run`."""
    run(app)


if __name__ == "__main__":
    main()
