"""``workbench predict``: a file of questions to a file of answers, resumable, written whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fusion_workbench.core.batching import by_length
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.conversations.base import USER
from fusion_workbench.datamodules.rows.files import read_entries
from fusion_workbench.datamodules.rows.row_images import ImageFolder, has_header
from fusion_workbench.datamodules.rows.rows import READ, ROLES, BadRow, parse_row
from fusion_workbench.datamodules.rows.source import print_notice
from fusion_workbench.datamodules.rows.unread import UnreadKeys
from fusion_workbench.system.bars import progress_bar
from fusion_workbench.system.files import explain_writing, write_file

if TYPE_CHECKING:
    from fusion_workbench.models.loaded import LoadedModel

_ASKED = ("question", "text")  # where files of questions keep the words, if they hold no conversations
_READ_TOO = frozenset((*_ASKED, "answer"))  # keys that such a file may have besides those of a row
_UNKNOWN = "?"  # stands for an answer that a file does not give


@dataclass(frozen=True)
class QuestionRow:
    """A row to predict.

    Attributes:
        id: the row's own, or its number.
        words: of the user, with ``<image>`` where an image stands.
        images: files.
        answers: right ones; empty where the file gives none.
    """

    id: str
    words: str
    images: tuple[Path, ...]
    answers: tuple[str, ...]


def read_questions(file: Path, folder: Path | None) -> list[QuestionRow]:
    """The questions of a LLaVA file (JSON or JSONL), or of lines of ``{"question_id", "image", "text"}``.

    Of a conversation the first words are asked.

    Raises:
        WorkbenchError: the first row that cannot be asked, with its line.
    """
    images = ImageFolder(folder) if folder is not None else None
    unread = UnreadKeys(str(file), READ | _READ_TOO, images, file.parent)
    questions = []
    for entry in read_entries(file):
        try:
            questions.append(_question(entry.value, entry.number, images))
            unread.look(entry.value, _shown(entry.value))
        except BadRow as error:
            raise WorkbenchError(f"{file}:{entry.line}: {error}.") from None
    if not questions:
        raise WorkbenchError(f"{file} holds no questions.")
    if notice := unread.notice():
        print_notice(notice)
    return questions


def predict(
    model: LoadedModel,
    questions: Sequence[QuestionRow],
    out: Path,
    identity: str,
    max_new_tokens: int,
    batch_size: int,
    console: Console,
    shown: bool,
) -> int:
    """Answer what is not answered yet; returns how many were there from before.

    Answers are kept in ``OUT.part`` as they come, and become OUT when all are there.

    Args:
        identity: of model, questions and settings: answers of another are not mixed with these.

    Raises:
        WorkbenchError: ``OUT.part`` is of something else, an image cannot be read, or OUT cannot be written.
    """
    part = out.with_name(f"{out.name}.part")
    done = _kept(part, identity)
    before = len(done)
    left = [n for n in range(len(questions)) if n not in done]
    with explain_writing(out, "name another file"):
        out.parent.mkdir(parents=True, exist_ok=True)
        bar = progress_bar(console, "answers", len(questions), shown=shown, done=before)
        with part.open("a", encoding="utf-8") as file, bar as advance:
            if not before:
                file.truncate(0)
                file.write(json.dumps({"identity": identity}) + "\n")
            for numbers in by_length(left, lambda n: len(questions[n].words), batch_size):
                batch = [questions[n] for n in numbers]
                predictions = model.answer(
                    [q.images for q in batch], [q.words for q in batch], max_new_tokens, batch_size
                )
                for n, words in zip(numbers, predictions, strict=True):
                    done[n] = words
                    file.write(json.dumps({"number": n, "prediction": words}) + "\n")
                file.flush()
                advance(len(batch))
        write_file(out, "".join(_line(q, done[n]) for n, q in enumerate(questions)))
        part.unlink()
    return before


def check_out(file: Path, out: Path, overwrite: bool) -> None:
    """Raises WorkbenchError, before any work, where the answers must not or cannot become ``out``."""
    if out.is_dir():
        raise WorkbenchError(f"--out {out} is a folder; name a file for the answers.")
    if out.exists() and file.exists() and out.samefile(file):
        raise WorkbenchError(f"--out {out} is the file of questions itself; name another for the answers.")
    if out.exists() and not overwrite:
        raise WorkbenchError(f"{out} is there already; give --overwrite to replace it, or another file with --out.")


def identity_of(model: Mapping[str, Any], file: Path, max_new_tokens: int) -> str:
    """Of a model's ``config.json``, the questions and the settings."""
    sha = hashlib.sha256(json.dumps([model, max_new_tokens], sort_keys=True, default=str).encode())
    sha.update(file.read_bytes())
    return sha.hexdigest()


def _question(entry: object, number: int, images: ImageFolder | None) -> QuestionRow:
    if isinstance(entry, BadRow):
        raise entry
    question, answered = _as_conversation(entry)
    row = parse_row(question, image_first=False)
    first = next(turn.text for turn in row.turns if turn.role == USER)
    if row.images and images is None:
        raise BadRow("image", "the row shows an image, so name its folder with --images")
    paths = tuple(images.path(name) for name in row.images) if images is not None else ()
    for path in paths:
        has_header(path)
    reply = row.turns[1].text
    answers = row.answers or (reply,) if answered else ()
    return QuestionRow(row.id or str(number), first, paths, answers)


def _as_conversation(entry: object) -> tuple[object, bool]:
    """A row as one that :func:`datamodules.rows.rows.parse_row` reads, and whether it says what is right."""
    if not isinstance(entry, dict):
        return entry, True
    row = dict(entry)
    words = next((row[key] for key in _ASKED if isinstance(row.get(key), str)), None)
    if "conversations" not in row and words is not None:
        row["conversations"] = [{"from": "human", "value": words}]
        if row.get("answer") is not None and "answers" not in row:
            row["answers"] = [row["answer"]]
    turns = row.get("conversations")
    if row.get("answers") or not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return row, True
    role = turns[-1].get("from", turns[-1].get("role"))
    if isinstance(role, str) and ROLES.get(role) == USER:
        return row | {"answers": [_UNKNOWN]}, False
    return row, True


def _shown(entry: object) -> list[object]:
    """The images that a row names."""
    image = entry.get("image") if isinstance(entry, dict) else None
    return image if isinstance(image, list) else [image] if image else []


def _kept(part: Path, identity: str) -> dict[int, str]:
    """The answers of an earlier try; a torn last line is dropped."""
    if not part.exists():
        return {}
    try:
        content = part.read_bytes()
    except OSError as error:
        raise WorkbenchError(f"{part} cannot be read: {error.strerror or error}; name another --out.") from None
    head = (json.dumps({"identity": identity}) + "\n").encode()
    if head.startswith(content):  # interrupted before its first answer
        return {}
    if not content.startswith(head):
        raise WorkbenchError(
            f"{part} holds answers of another model, question file or setting; remove it, or name another --out."
        )
    kept: dict[int, str] = {}
    complete = len(head)
    for line in content[complete:].splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            answer = json.loads(line)
            kept[answer["number"]] = answer["prediction"]
        except (ValueError, KeyError, TypeError):
            break
        complete += len(line)
    os.truncate(part, complete)
    return kept


def _line(question: QuestionRow, prediction: str) -> str:
    row: dict[str, Any] = {"id": question.id, "question": question.words, "prediction": prediction}
    if question.answers:
        row["answers"] = list(question.answers)
    return json.dumps(row, ensure_ascii=False) + "\n"
