"""The commands about the parts of a study, and about the machine: what it has, and how fast it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusion_workbench.cli.terminal import (
    DEFAULT_WORKSPACE,
    Overrides,
    Quiet,
    StudyName,
    Uri,
    Workspace,
    terminal,
)
from fusion_workbench.study.tracking import existing_uri

app = typer.Typer()
store_app = typer.Typer(help="The feature store: the encoder's outputs on disk.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@app.command()
def studies() -> None:
    """The studies that come with the workbench, and what each asks."""
    from rich.table import Table

    from fusion_workbench.config.study import bundled, load_study

    table = Table("study", "asks", "file", title="bundled studies", title_justify="left")
    for name, path in bundled().items():
        table.add_row(name, load_study(name).question, str(path))
    console = terminal()
    console.print(table)
    console.print("see what one would train: [bold]workbench sweep STUDY --plan[/]", highlight=False, markup=True)


@app.command()
def layers(
    encoder: Annotated[
        str, typer.Argument(help="assets:encoder, a transformers folder, or a Hugging Face name.")
    ] = "assets:encoder",
    image_size: Annotated[
        int, typer.Option("--image-size", min=0, max=16_384, help="Pixels of the square input; 0: the encoder's own.")
    ] = 0,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit of a Hugging Face name.")] = None,
    families: Annotated[bool, typer.Option("--families", help="Show the families of encoders that are known.")] = False,
) -> None:
    """The layers of an encoder: each in every notation, prefix tokens, grid, dim, final norm."""
    from fusion_workbench.tools.encoders import show, show_families

    if families:
        show_families(terminal())
        return
    show(terminal(), encoder, image_size, revision)


@app.command()
def strategies(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of docs/strategies.md.")] = False,
) -> None:
    """Every fusion strategy: its paper, parameters and FLOPs."""
    from fusion_workbench.tools import strategies as known

    if markdown:
        typer.echo(known.markdown(), nl=False)
    else:
        known.show(terminal())


@app.command("check-strategy")
def check_strategy(
    target: Annotated[str, typer.Argument(help="A strategy's name, or my_package:MyFusion.", metavar="STRATEGY")],
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of the strategy, such as points=8.", metavar="[KEY=VALUE]...")
    ] = None,
) -> None:
    """Hold a strategy of your own against the contract that every strategy keeps. Exits with 1 when it is broken."""
    from fusion_workbench.config.overrides import parse_values
    from fusion_workbench.tools.strategies import check_strategy as check

    if not check(terminal(), target, parse_values(options or [])):
        raise typer.Exit(1)


@app.command()
def assets(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all but the language model.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch again what is missing or altered.")] = False,
    check: Annotated[bool, typer.Option("--list", help="Read and show what is there, and fetch nothing.")] = False,
) -> None:
    """Fetch and convert the embedded encoder, photographs, digits and typefaces; once."""
    from fusion_workbench.assets import home as embedded

    console = terminal()
    if not check:
        embedded.ensure(*(names or embedded.DEFAULT), repair=repair, thorough=True)
    from rich.table import Table

    table = Table("asset", "state", "size", "what it is", "where", title="embedded assets", title_justify="left")
    for status in embedded.status(thorough=True):  # every byte is read: a rotten bit keeps size and time
        table.add_row(
            status.name,
            status.state,
            f"{status.bytes / 1e6:.1f} MB" if status.bytes else "—",
            status.what,
            str(status.path),
        )
    console.print(table)
    console.print(
        "next: [bold]workbench quickstart[/]" if not check else "fetch what is missing: [bold]workbench assets[/]",
        markup=True,
    )


@store_app.command("list")
def store_list(workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """What is stored: encoder, source, layers, images, bytes."""
    from fusion_workbench.tools.stores import show

    show(terminal(), workspace)


@store_app.command("build")
def store_build(
    study: StudyName, overrides: Overrides = None, workspace: Workspace = DEFAULT_WORKSPACE, quiet: Quiet = False
) -> None:
    """Encode what a study needs, ahead of running it."""
    from fusion_workbench.config.study import load_study
    from fusion_workbench.study.identity import as_begun
    from fusion_workbench.tools.stores import build

    begun = as_begun(lambda schema: load_study(study, overrides or [], schema), workspace)
    build(terminal(), begun, workspace, progress=not quiet)


@store_app.command("verify")
def store_verify(workspace: Workspace = DEFAULT_WORKSPACE) -> None:
    """Read every shard and compare it with its checksum. Exits with 1 when one is bad."""
    from fusion_workbench.tools.stores import verify

    if not verify(terminal(), workspace):
        raise typer.Exit(1)


@store_app.command("remove")
def store_remove(
    key: Annotated[str, typer.Argument(help="A key that `workbench store list` shows.")],
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Delete one store; a study that needs it encodes anew."""
    from fusion_workbench.tools.stores import remove

    remove(terminal(), workspace, key)


@app.command()
def ui(
    workspace: Workspace = DEFAULT_WORKSPACE,
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535)] = 5000,
    uri: Uri = "",
) -> None:
    """Open MLflow's pages on 127.0.0.1."""
    from fusion_workbench.tools.ui import serve

    raise typer.Exit(serve(terminal(), uri or existing_uri(workspace), port))


@app.command()
def doctor(workspace: Workspace = DEFAULT_WORKSPACE, uri: Uri = "") -> None:
    """Check versions, hardware, disk, permissions, assets and tracking; say what to fix."""
    from fusion_workbench.tools import doctor as doctor_

    findings = doctor_.examine(workspace, uri or None)
    doctor_.show(findings, terminal())
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command()
def bench(
    groups: Annotated[
        list[str] | None, typer.Argument(help="Groups to measure; default: all.", metavar="[GROUP]...")
    ] = None,
    known: Annotated[bool, typer.Option("--list", help="Name the groups, and measure nothing.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Smoke sizes: does it run? Its figures mean nothing.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    repeats: Annotated[int, typer.Option("--repeats", min=1, max=1000, help="Turns of each, after a warm-up.")] = 5,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for bench.json and bench.html.")] = Path(
        "workspace/bench"
    ),
) -> None:
    """Measure this machine and the workbench on it, in ratios to what others do and to the machine's limits."""
    from fusion_workbench.bench.run import list_groups, run

    if known:
        list_groups(terminal())
        return
    run(terminal(), groups or [], device, tiny, repeats, out)
