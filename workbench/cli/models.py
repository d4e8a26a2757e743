"""The commands about whole models: ``ask``, ``predict`` and ``convert``."""

from __future__ import annotations

import itertools
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusion_workbench.cli.terminal import DEFAULT_WORKSPACE, Quiet, Uri, Workspace, terminal
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.text import printable
from fusion_workbench.core.tokens import ANSWER_TOKENS, IMAGE, STREAM_TOKENS

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A model folder, an MLflow run of a study with a language model, a study, or STUDY:CELL.",
        metavar="RUN|FOLDER",
    ),
]
Experiment = Annotated[str, typer.Option("--experiment", help="MLflow experiment.")]
EncoderPlace = Annotated[
    str, typer.Option("--encoder", help="Where the encoder lies now, if it has moved.", show_default=False)
]
LanguagePlace = Annotated[
    str,
    typer.Option("--language-model", help="Where the language model lies now, if it has moved.", show_default=False),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, max=10_000_000, help="Of an answer.")]


class Form(StrEnum):
    """What a model is converted to."""

    LLAVA = "llava"
    PROJECTOR = "mm-projector"


@app.command()
def ask(
    question: Annotated[
        str, typer.Argument(help="What is asked, with <image> where each image stands; without, they stand before it.")
    ],
    model: Model,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="An image file; repeatable.", show_default=False)
    ] = None,
    max_new_tokens: MaxNewTokens = STREAM_TOKENS,
    encoder: EncoderPlace = "",
    language_model: LanguagePlace = "",
    uri: Uri = "",
    experiment: Experiment = "fusion-workbench",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Ask a trained model about images, or without any. Only the answer goes to standard output, as it comes."""
    images = image or []
    if not question.replace(IMAGE, "").strip():
        raise WorkbenchError("the question is empty; write what is to be answered.")
    for path in images:
        if not path.is_file():
            raise WorkbenchError(f"image {path} does not exist.")
    with _status().status("loading the model"):
        from fusion_workbench.models.loaded import load_model
        from fusion_workbench.models.locate import model_folder

        with model_folder(model, uri, workspace, experiment) as folder:
            loaded = load_model(folder, None, encoder or None, language_model or None)
        pieces = loaded.stream(images, question, max_new_tokens)
        first = next(pieces, "")
    for piece in itertools.chain([first], pieces):
        sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def predict(
    file: Annotated[
        Path,
        typer.Argument(
            help="Questions: LLaVA JSON or JSONL, or lines of {question_id, image, text}.", metavar="FILE.json|jsonl"
        ),
    ],
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSONL file of answers.")],
    images: Annotated[
        Path | None, typer.Option("--images", help="The folder that image paths are in.", show_default=False)
    ] = None,
    max_new_tokens: MaxNewTokens = ANSWER_TOKENS,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=1_000_000, help="Questions at once.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of answers if it is there.")] = False,
    encoder: EncoderPlace = "",
    language_model: LanguagePlace = "",
    uri: Uri = "",
    experiment: Experiment = "fusion-workbench",
    workspace: Workspace = DEFAULT_WORKSPACE,
    quiet: Quiet = False,
) -> None:
    """Answer a file of questions: {id, question, prediction, answers} a line. Resumes what was interrupted."""
    from fusion_workbench.models.predict import check_out, identity_of, read_questions
    from fusion_workbench.models.predict import predict as answered

    check_out(file, out, overwrite)
    console = _status()
    with console.status("reading the questions and loading the model"):
        questions = read_questions(file, images)
        from fusion_workbench.models.loaded import load_model
        from fusion_workbench.models.locate import model_folder

        with model_folder(model, uri, workspace, experiment) as folder:
            loaded = load_model(folder, None, encoder or None, language_model or None)
    identity = identity_of(loaded.config, file, max_new_tokens)
    before = answered(loaded, questions, out, identity, max_new_tokens, batch_size, console, not quiet)
    kept = f", {before} of them from before" if before else ""
    terminal().print(f"written: {out}, {len(questions)} answers{kept}", highlight=False, markup=False)


@app.command()
def convert(
    out: Annotated[Path, typer.Option("--out", "-o", help="What is written: a folder, or a file for mm-projector.")],
    model: Annotated[
        str,
        typer.Argument(
            help="Ours: a model folder, a run, a study or STUDY:CELL.", metavar="[MODEL]", show_default=False
        ),
    ] = "",
    to: Annotated[Form, typer.Option("--to", help="What ours becomes.")] = Form.LLAVA,
    from_llava: Annotated[
        Path | None,
        typer.Option("--from-llava", help="A folder of a stock LLaVA, to become ours.", show_default=False),
    ] = None,
    mm_projector: Annotated[
        Path | None,
        typer.Option(
            "--mm-projector",
            help="A published connector file, to become ours with --encoder and --language-model.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[str, typer.Option("--encoder", help="Folder or hub name.", show_default=False)] = "",
    language_model: Annotated[
        str, typer.Option("--language-model", help="Folder or hub name.", show_default=False)
    ] = "",
    levels: Annotated[
        str,
        typer.Option(
            "--levels", "-l", help="Of a connector file, comma-separated; default: as published.", show_default=False
        ),
    ] = "",
    query: Annotated[str, typer.Option("--query", help="Of a connector file: the deep layer.")] = "-2",
    system: Annotated[
        str | None,
        typer.Option("--system", help="The system's words; default: the template's own.", show_default=False),
    ] = None,
    uri: Uri = "",
    experiment: Experiment = "fusion-workbench",
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Between our model folders, stock LLaVA folders of transformers, and published connector files."""
    if sum(map(bool, (model, from_llava, mm_projector))) != 1:
        raise WorkbenchError("name one thing to convert: a model of ours, --from-llava FOLDER or --mm-projector FILE.")
    if out.exists():
        raise WorkbenchError(f"{out} is there already; name another place with --out.")
    with _status().status("converting"):
        from fusion_workbench.models import convert as converting
        from fusion_workbench.models.locate import model_folder

        if from_llava is not None:
            summary = converting.from_llava(from_llava, out, system)
        elif mm_projector is not None:
            if not encoder or not language_model:
                raise WorkbenchError(
                    "--mm-projector holds the connector alone; name what it joins with --encoder and --language-model."
                )
            summary = converting.from_connector_file(
                mm_projector, out, encoder, language_model, [x for x in levels.split(",") if x], query, system
            )
        else:
            with model_folder(model, uri, workspace, experiment) as folder:
                places = (encoder or None, language_model or None)
                summary = _CONVERT[to](folder, out, *places)
    terminal().print(summary, highlight=False, markup=False)


def _to_llava(folder: Path, out: Path, encoder: str | None, language: str | None) -> str:
    from fusion_workbench.models.convert import to_llava

    return to_llava(folder, out, encoder, language)


def _to_connector_file(folder: Path, out: Path, encoder: str | None, language: str | None) -> str:
    from fusion_workbench.models.convert import to_connector_file

    return to_connector_file(folder, out)


_CONVERT = {Form.LLAVA: _to_llava, Form.PROJECTOR: _to_connector_file}


def _status() -> Console:
    """Standard error, so that standard output holds the answer alone."""
    from fusion_workbench.system.console import error_console

    return error_console()
