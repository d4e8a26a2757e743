"""LLaVA's files: conversations as JSON or JSON lines, and a folder of the images that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.datamodules.rows.files import RowEntry, read_entries
from fusion_workbench.datamodules.rows.quarantine import LISTED, Quarantine
from fusion_workbench.datamodules.rows.row_images import VERIFY, ImageFile, ImageFolder, frames_notice, look_at
from fusion_workbench.datamodules.rows.rows import READ, BadRow, ConversationRow, parse_row
from fusion_workbench.datamodules.rows.source import LocatedRow, RowOptions, RowSource, print_notice
from fusion_workbench.datamodules.rows.unread import UnreadKeys
from fusion_workbench.datamodules.sources.base import SPLITS, register_source
from fusion_workbench.datamodules.transforms import Pixels, load_image
from fusion_workbench.system.checksums import sha256_of

_THREADS = 8  # that look at images: the time goes by waiting for the disk
_RUN = 64  # images that one of them takes at once


@dataclass(frozen=True)
class LlavaOptions(RowOptions):
    """What ``source.options`` may say; paths are files, relative to where the command is run."""

    train: str = ""
    val: str = ""  # empty: held out of train
    test: str = ""
    images: str = ""  # the folder; empty: where train lies
    verify: str = "header"
    quarantine: str = ""  # folder for the lists of bad rows; empty: beside each file


@register_source("llava")
class Llava(RowSource):
    """The source ``llava``; see docs/data.md.

    A sample is an image file, whatever names and links lead to it. A row that cannot be used is quarantined.

    Raises:
        WorkbenchError: no such file or folder; from the first use on: a file that is no JSON at all, and more bad rows
            in a file than ``bad_rows`` allows.
    """

    options = LlavaOptions
    version = "llava/1"

    def __init__(self, options: LlavaOptions, folders: Mapping[str, Path] | None = None) -> None:
        super().__init__(options)
        self.chosen = options
        if options.verify not in VERIFY:
            raise WorkbenchError(f"source.options.verify: unknown '{options.verify}'.{nearest(options.verify, VERIFY)}")
        self.files = {split: Path(name) for split in SPLITS if (name := getattr(options, split))}
        if "train" not in self.files:
            raise WorkbenchError("source.options.train is empty; name a JSON or JSONL file of conversations.")
        for split, file in self.files.items():
            if not file.is_file():
                raise WorkbenchError(f"source.options.{split}: there is no file {file}.")
        self.folder = ImageFolder(Path(options.images) if options.images else self.files["train"].parent)
        self._found: dict[str, ImageFile] = {}

    def read(self) -> dict[str, list[LocatedRow]]:
        place = Path(self.chosen.quarantine) if self.chosen.quarantine else None
        good: dict[str, list[LocatedRow]] = {}
        for split, file in self.files.items():
            chosen = self.chosen
            rows_read = read_file(file, self.folder, chosen.image_first, chosen.verify, place, chosen.padding)
            where = rows_read.quarantine.write()
            for notice in rows_read.notices:
                print_notice(notice)
            rows_read.quarantine.refuse_above(self.chosen.bad_rows, where)
            if rows_read.quarantine.rows:
                print_notice(f"{rows_read.quarantine.summary()}; {where}")
            good[split] = rows_read.rows
            self._found |= rows_read.images
        return good

    def picture(self, key: str) -> Pixels:
        try:
            pixels = load_image(self.folder.path(key))
            changed = self.folder.find(key).stamp != self.stamp(key)
        except BadRow as bad:
            raise WorkbenchError(f"{bad.detail}; it was when the rows were read.") from None
        except WorkbenchError as error:
            raise WorkbenchError(f"{error} source.options.verify=pixels leaves such rows out.") from None
        if changed:
            raise WorkbenchError(f"image {key} was written to after the rows were read; start again.")
        return pixels

    def stamp(self, key: str) -> str:
        return self._found[key].stamp

    def digest(self, key: str) -> str:
        try:
            return f"{key}|{sha256_of(self.folder.path(key))}"
        except BadRow as bad:
            raise WorkbenchError(f"{bad.detail}; it was when the rows were read.") from None
        except OSError as error:
            raise WorkbenchError(f"image {key} cannot be read: {error.strerror or error}.") from None


@dataclass(frozen=True)
class ReadRows:
    """A file of rows, read."""

    rows: list[LocatedRow]
    images: dict[str, ImageFile]  # key → file
    quarantine: Quarantine
    notices: tuple[str, ...] = ()  # what is not read, a line each


def read_file(
    file: Path, folder: ImageFolder, image_first: bool, verify: str, lists: Path | None, padding: str = "square"
) -> ReadRows:
    """Every good row of a LLaVA file, and the quarantine of the others. Looks at every image once, by ``verify``.

    Args:
        verify: ``exists``; ``header``: and begins and ends as an image does; ``pixels``: and is decoded.
        lists: folder of the quarantine's list; None: beside the file.
        padding: how an image becomes a square; one that is too long for it makes its row a bad one.

    Raises:
        WorkbenchError: the file cannot be read or is no JSON at all.
    """
    quarantine = Quarantine(str(file), (lists or file.parent) / f"{file.name}{LISTED}")
    unread = UnreadKeys(str(file), READ, folder, file.parent)
    images: dict[str, ImageFile] = {}
    read: list[tuple[RowEntry, ConversationRow, tuple[str, ...]]] = []
    for entry in read_entries(file):
        quarantine.seen += 1
        try:
            if isinstance(entry.value, BadRow):
                raise entry.value
            row = _parsed(entry.value, unread, image_first)
            files = [folder.find(name) for name in row.images]
            unread.look(entry.value, [image.name for image in files])
        except BadRow as bad:
            quarantine.add(entry.line, entry.number, bad)
            continue
        images |= {image.name: image for image in files}
        read.append((RowEntry(entry.line, entry.number, None), row, tuple(image.name for image in files)))
    if not quarantine.seen:
        raise WorkbenchError(f"{file} holds no rows.")
    bad_images, animated = _bad_images(folder, list(images), verify, padding)
    good: list[LocatedRow] = []
    for entry, row, keys in read:
        fault = next((bad_images[key] for key in keys if key in bad_images), None)
        if fault is None:
            good.append(LocatedRow(row, keys, f"{file}:{entry.line}"))
        else:
            quarantine.add(entry.line, entry.number, fault)
    quarantine.rows.sort(key=lambda row: row.number)
    return ReadRows(
        good, images, quarantine, tuple(filter(None, [unread.notice(), frames_notice(str(file), animated)]))
    )


def _parsed(value: object, unread: UnreadKeys, image_first: bool) -> ConversationRow:
    """A row, with what its turns hold besides; of a bad one rather that its picture stands under another key."""
    try:
        row = parse_row(value, image_first)
    except BadRow:
        if isinstance(value, dict):
            image = value.get("image")
            unread.look(value, image if isinstance(image, list) else [image] if image else [])
        raise
    unread.look_at_turns(value)
    unread.look_at_words(row.turns)
    return row


def _bad_images(
    folder: ImageFolder, names: list[str], verify: str, padding: str
) -> tuple[dict[str, BadRow], list[str]]:
    """The images that are not what their names say, or too long to be padded; and those of several frames."""

    def look(some: list[str]) -> tuple[dict[str, BadRow], list[str]]:
        faults: dict[str, BadRow] = {}
        animated: list[str] = []
        for name in some:
            try:
                facts = look_at(Path(folder.root, name), verify, padding)
            except BadRow as bad:
                faults[name] = bad
            else:
                animated += [name] if facts is not None and facts.animated else []
        return faults, animated

    runs = [names[start : start + _RUN] for start in range(0, len(names), _RUN)]
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = list(pool.map(look, runs))
    return {name: bad for faults, _ in looked for name, bad in faults.items()}, [n for _, some in looked for n in some]
