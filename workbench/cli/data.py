"""The commands about conversations: ``workbench data export`` and ``workbench data check``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fusion_workbench.cli.terminal import Quiet, terminal

app = typer.Typer(
    help="Conversations about images: write them in LLaVA's format, check files of it.", no_args_is_help=True
)


class Split(StrEnum):
    """A split of a source."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@app.command("export")
def export(
    source: Annotated[str, typer.Argument(help="A source of conversations, such as finescenes_questions.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of the source, such as train=100 kinds=\\[read].", metavar="[KEY=VALUE]..."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: SOURCE.", show_default=False)
    ] = None,
    split: Annotated[
        list[Split] | None, typer.Option("--split", help="Only this split; repeatable.", show_default=False)
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A row a line, rather than one JSON array.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a source's conversations as LLaVA JSON and its images as PNG."""
    from fusion_workbench.config.overrides import parse_values
    from fusion_workbench.system.bars import progress_bar
    from fusion_workbench.tools.data import conversation_source
    from fusion_workbench.tools.data import export as write

    console = terminal()
    conversations = conversation_source(source, parse_values(options or []))
    splits = [str(one) for one in dict.fromkeys(split or list(Split))]
    with progress_bar(console, "images", sum(map(conversations.size, splits)), shown=not quiet, keep=False) as advance:
        written = write(conversations, splits, out or Path(source), jsonl, overwrite, advance)
    files = ", ".join(map(str, written.files.values()))
    summary = f"{written.conversations:,} conversations to {files}; {written.pictures:,} images to {written.images}"
    console.print(summary, highlight=False, markup=False)
    first = "" if written.image_first else " image_first=false"
    size = conversations.image_size if isinstance(conversations.image_size, int) else max(conversations.image_size)
    named = " ".join(f"{one}={path}" for one, path in written.files.items())
    console.print(f"read it back: llava with {named} images={written.images} size={size}{first}", markup=False)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A JSON or JSONL file of LLaVA's.", metavar="FILE")],
    images: Annotated[
        Path | None,
        typer.Option("--images", "-i", help="Folder of its images; default: where it lies.", show_default=False),
    ] = None,
    verify: Annotated[
        str, typer.Option("--verify", help="How closely images are checked: exists, header, pixels.")
    ] = "header",
    padding: Annotated[
        str,
        typer.Option(
            "--padding",
            help="How images become squares: square (padded; none longer than 20,000 px), crop (CLIP's), stretch.",
        ),
    ] = "square",
    bad_rows: Annotated[
        float, typer.Option("--bad-rows", min=0, max=1, help="Share of bad rows that is let pass.")
    ] = 0.01,
    quarantine: Annotated[
        Path | None,
        typer.Option("--quarantine", help="Folder for the list of bad rows; default: beside FILE.", show_default=False),
    ] = None,
) -> None:
    """Count what a file holds and list the rows that cannot be used. Exits with 1 when they are too many."""
    from fusion_workbench.tools.data import check as read

    if not read(terminal(), file, images or file.parent, verify, bad_rows, quarantine, padding=padding):
        raise typer.Exit(1)
