"""Conversations about images as LLaVA's files: any source written as such, and what is wrong with a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.text import printable
from fusion_workbench.system.files import write_file

if TYPE_CHECKING:
    from rich.console import Console

    from fusion_workbench.datamodules.conversations.base import Conversation, ConversationSource

IMAGES = "images"  # the folder, beside the JSON files
ROLES = {"user": "human", "assistant": "gpt"}  # LLaVA's words for them


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: dict[str, Path]  # split → JSON or JSONL
    images: Path
    conversations: int
    pictures: int
    image_first: bool  # whether every turn with one image begins with it, as the source `llava` reads by default


def conversation_source(name: str, options: Mapping[str, Any]) -> ConversationSource:
    """A source that has conversations.

    Raises:
        WorkbenchError: one that has none, and what ``build_source`` finds.
    """
    from fusion_workbench.datamodules.build import SOURCES, build_source
    from fusion_workbench.datamodules.conversations.base import ConversationSource

    source = build_source(name, options)
    if not isinstance(source, ConversationSource):
        names = ", ".join(sorted(n for n, cls in SOURCES.items() if issubclass(cls, ConversationSource)))
        raise WorkbenchError(f"the source '{name}' has no conversations; those that have: {names}.")
    return source


def export(
    source: ConversationSource,
    splits: Sequence[str],
    out: Path,
    jsonl: bool = False,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Exported:
    """Write ``splits`` of a source to ``out``: ``SPLIT.json`` and ``images/SPLIT/NUMBER.png``.

    The images are those that the encoder reads, so the source ``llava`` with the same ``size`` gives the same pixels.
    Images come first and each JSON file at once, so a file that is there is whole.

    Args:
        jsonl: a row a line, in ``SPLIT.jsonl``.
        overwrite: replace files that are there.
        advance: called with 1 after each image.

    Raises:
        WorkbenchError: a file or a split's folder of images is there already, or cannot be written.
    """
    suffix = "jsonl" if jsonl else "json"
    files = {split: out / f"{split}.{suffix}" for split in splits}
    folders = [(out / IMAGES / _name(split, 0)).parent for split in splits]
    there = next((path for path in [*files.values(), *folders] if path.exists()), None)
    if there is not None and not overwrite:
        raise WorkbenchError(f"{there} is there already; choose another --out, or replace it with --overwrite.")
    conversations_of = {split: source.conversations(split) for split in splits}
    metrics = source.metrics()
    try:
        for split in splits:
            _write_images(source, split, out / IMAGES, advance)
        for split, path in files.items():
            write_file(path, _text([_row(c, split, metrics) for c in conversations_of[split]], jsonl))
    except OSError as error:
        raise WorkbenchError(f"{error.filename or out} cannot be written: {error.strerror or error}.") from None
    every = [conversation for conversations in conversations_of.values() for conversation in conversations]
    pictures = sum(source.size(split) for split in splits)
    return Exported(files, out / IMAGES, len(every), pictures, all(_begins_with_its_image(c) for c in every))


def check(
    console: Console,
    file: Path,
    images: Path,
    verify: str,
    bad_rows: float,
    lists: Path | None,
    image_first: bool = True,
    padding: str = "square",
) -> bool:
    """Read a file as the source ``llava`` would, and print what it found. Returns whether it would be accepted.

    Args:
        verify: how closely images are looked at; a key of ``fusion_workbench.datamodules.rows.row_images.VERIFY``.
        bad_rows: the share of bad rows above which it would not be.
        lists: folder of the quarantine's list; None: beside the file.
        padding: how images become squares, as ``source.options.padding``.

    Raises:
        WorkbenchError: no such file or folder, no JSON at all, an unknown ``verify`` or ``padding``.
    """
    from rich.table import Table
    from rich.text import Text

    from fusion_workbench.datamodules.rows.llava import read_file
    from fusion_workbench.datamodules.rows.row_images import VERIFY, ImageFolder
    from fusion_workbench.datamodules.transforms import PADDINGS

    if verify not in VERIFY:
        raise WorkbenchError(f"--verify: unknown '{verify}'.{nearest(verify, VERIFY)}")
    if padding not in PADDINGS:
        raise WorkbenchError(f"--padding: unknown '{padding}'.{nearest(padding, PADDINGS)}")
    found = read_file(file, ImageFolder(images), image_first, verify, lists, padding)
    where = found.quarantine.write()
    rows, bad = [placed.row for placed in found.rows], found.quarantine
    facts = {
        "rows": bad.seen,
        "conversations": len(rows),
        "turns": sum(len(row.turns) for row in rows),
        "with one image": sum(len(row.images) == 1 for row in rows),
        "with several images": sum(len(row.images) > 1 for row in rows),
        "text alone": sum(not row.images for row in rows),
        "different images": len({key for placed in found.rows for key in placed.keys}),
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
    for notice in found.notices:
        console.print(notice, highlight=False, markup=False)
    if bad.share > bad_rows:
        told = f"{bad.share:.2%} of the rows are bad, more than bad_rows={bad_rows:g} allows"
        console.print(told, highlight=False, markup=False)
    return bad.share <= bad_rows


def _write_images(source: ConversationSource, split: str, folder: Path, advance: Callable[[int], None]) -> None:
    from PIL import Image

    for row in range(source.size(split)):
        path = folder / _name(split, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.image(split, row)).save(path)
        advance(1)


def _row(conversation: Conversation, split: str, metrics: Mapping[str, str]) -> dict[str, Any]:
    """A conversation as a row of LLaVA's, with the keys of a question where it is one."""
    names = [_name(split, row) for row in conversation.images]
    row: dict[str, Any] = {"id": conversation.id}
    if names:
        row["image"] = names[0] if len(names) == 1 else names
    row["conversations"] = [{"from": ROLES[turn.role], "value": turn.text} for turn in conversation.turns]
    if conversation.task != "answer":
        row["task"] = conversation.task
    if conversation.answers:
        row["answers"] = list(conversation.answers)
    if split != "train" and conversation.task in metrics:
        row["metric"] = metrics[conversation.task]
    if conversation.group:
        row["group"] = conversation.group
    return row


def _name(split: str, row: int) -> str:
    return f"{split}/{row:06d}.png"


def _text(rows: Sequence[Mapping[str, Any]], jsonl: bool) -> str:
    if jsonl:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def _begins_with_its_image(conversation: Conversation) -> bool:
    from fusion_workbench.datamodules.conversations.base import IMAGE

    shown = [turn.text for turn in conversation.turns if turn.text.count(IMAGE) == 1]
    return all(text == f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".rstrip() for text in shown)
