"""Hugging Face ``datasets`` with columns of images and words: from the hub, or from a folder or file on this disk."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.core.text import printable
from fusion_workbench.datamodules.rows.hub_tables import open_splits, require_datasets
from fusion_workbench.datamodules.rows.quarantine import LISTED, Quarantine
from fusion_workbench.datamodules.rows.row_images import ImageFolder, check_image, check_shape, frames_notice
from fusion_workbench.datamodules.rows.rows import BadRow, parse_row
from fusion_workbench.datamodules.rows.source import LocatedRow, RowOptions, RowSource, print_notice
from fusion_workbench.datamodules.rows.tables import ArrowTable, Table
from fusion_workbench.datamodules.rows.unread import UnreadKeys, is_of_pictures
from fusion_workbench.datamodules.sources.base import SPLITS, register_source
from fusion_workbench.datamodules.transforms import Pixels, decode


@dataclass(frozen=True)
class HubOptions(RowOptions):
    """What ``source.options`` may say. A column that is named must be there; an empty name means none."""

    path: str = ""  # a name on the hub; a folder of save_to_disk, of parquet, JSON, CSV or images; a file
    config: str = ""
    revision: str = ""  # of the hub: a commit
    train: str = "train"  # names of the dataset's splits; empty: held out of train
    val: str = ""
    test: str = ""
    image: list[str] = field(default_factory=lambda: ["image"])  # columns; of images, of lists of them, of paths
    images: str = ""  # folder of a column of paths; empty: path
    conversations: str = ""  # column of turns; instead of question and answers
    question: str = "question"
    answers: str = "answers"  # a word, or a list of all right ones
    id: str = ""
    task: str = ""
    group: str = ""
    quarantine: str = ""  # folder for the lists of bad rows; empty: in the user's cache


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """The first place that holds an image: a file, or a row and column of a split."""

    path: str
    split: str = ""
    row: int = 0
    column: str = ""
    number: int = 0  # in a list of images


@register_source("hf_dataset")
class HubDataset(RowSource):
    """The source ``hf_dataset``; see docs/data.md.

    A sample is an image by its bytes: the same file in many rows is one. No code of a dataset is run. An image that is
    kept as a path is read only where it lies in the dataset's own folder.

    Raises:
        WorkbenchError: ``datasets`` is not installed; from the first use on: it cannot load the dataset, a split or a
            column is not there, and more bad rows in a split than ``bad_rows`` allows.
    """

    options = HubOptions
    version = "hf_dataset/1"

    def __init__(self, options: HubOptions, folders: Mapping[str, Path] | None = None) -> None:
        super().__init__(options)
        self.chosen = options
        if not options.path:
            raise WorkbenchError("source.options.path is empty; name a dataset of the hub, a folder or a file.")
        if not options.train:
            raise WorkbenchError("source.options.train is empty; name the dataset's split to train on.")
        if not options.image:
            raise WorkbenchError("source.options.image is empty; name the columns of images.")
        require_datasets()
        self._where: dict[str, ImageLocation] = {}
        self._tables: dict[str, ArrowTable] = {}  # that hold images themselves
        self._animated: list[str] = []

    def read(self) -> dict[str, list[LocatedRow]]:
        chosen = self.chosen
        tables = open_splits(chosen.path, chosen.config, chosen.revision, self._arrow)
        named = {split: name for split in SPLITS if (name := getattr(chosen, split))}
        for split, name in named.items():
            if name not in tables:
                raise WorkbenchError(
                    f"source.options.{split}: {chosen.path} has no split '{name}'.{nearest(name, tables)}"
                )
            if isinstance(table := tables[name], ArrowTable):
                self._check(table.columns())
                self._tables[split] = table
        return {split: self._read(split, tables[name]) for split, name in named.items()}

    def _arrow(self, table: Any) -> ArrowTable:
        """A split, of which those columns are read that are named, or that may name a picture which nobody reads."""
        texts = [name for name in table.column_names if getattr(table.features[name], "dtype", "") == "string"]
        return ArrowTable(table, [*self._columns, *filter(is_of_pictures, texts)])

    @property
    def _words(self) -> list[str]:
        """The columns of words."""
        chosen = self.chosen
        return [chosen.conversations] if chosen.conversations else [chosen.question, chosen.answers]

    @property
    def _columns(self) -> list[str]:
        """The columns that are read."""
        chosen = self.chosen
        return [*chosen.image, *self._words, *filter(None, [chosen.id, chosen.task, chosen.group])]

    def _check(self, there: Sequence[str]) -> None:
        for column in self._columns:
            if column not in there:
                raise WorkbenchError(f"{self.chosen.path} has no column '{column}'.{nearest(column, there)}")

    def _read(self, split: str, table: Table) -> list[LocatedRow]:
        name = f"{self.chosen.path}[{getattr(self.chosen, split)}]"
        quarantine = Quarantine(name, self._lists / f"{name.strip('./').replace('/', '--')}{LISTED}")
        here = Path(self.chosen.path)  # where it is on this disk
        folder, beside = (self._folder, here if here.is_dir() else here.parent) if here.exists() else (None, None)
        unread = UnreadKeys(name, self._columns, folder, beside, self.chosen.image[0], strict=False)
        good: list[LocatedRow] = []
        for record in table.records():
            quarantine.seen += 1
            at = record.number - 1
            origin = f"{record.file or name}:{record.line}"
            try:
                if isinstance(record.values, BadRow):
                    raise record.values
                keys = [self._key(split, at, *image, origin) for image in self._images(record.values)]
                unread.look(record.values, [self._where[key].path for key in keys])
                row = parse_row(self._row(record.values, keys), self.chosen.image_first)
                unread.look_at_turns(record.values, self.chosen.conversations)
                unread.look_at_words(row.turns)
            except BadRow as bad:
                quarantine.add(record.line, record.number, bad, record.file)
            else:
                good.append(LocatedRow(row, tuple(keys), origin))
        if table.columns() or not quarantine.rows:  # where no row could be read, that is the fault to tell
            self._check(table.columns())
        where = quarantine.write()
        for notice in (unread.notice(), frames_notice(name, self._animated), *self._of_arrow(name, table)):
            if notice:
                print_notice(notice)
        self._animated.clear()
        quarantine.refuse_above(self.chosen.bad_rows, where)
        if quarantine.rows:
            print_notice(f"{quarantine.summary()}; {where}")
        return good

    def _of_arrow(self, name: str, table: Table) -> Iterator[str]:
        """What a table of typed columns does not give as it was meant, a line each."""
        if not isinstance(table, ArrowTable):
            return
        if unseen := table.pictures():
            yield printable(
                f"note: {name}: columns of pictures, films or sounds that are not read: {', '.join(unseen)}"
            )
        for column in table.fractional([*self._words, *filter(None, [self.chosen.id, self.chosen.task])]):
            how = "the column is of fractional numbers, so 2 is read as '2.0'; keep words as text"
            yield printable(f"note: {name}: {column}: {how}")

    @property
    def _lists(self) -> Path:
        if self.chosen.quarantine:
            return Path(self.chosen.quarantine)
        return platformdirs.user_cache_path("fusion-workbench", appauthor=False) / "quarantine"

    def _row(self, record: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
        """A row of the dataset in LLaVA's format."""
        chosen = self.chosen
        named = {"id": chosen.id, "task": chosen.task, "group": chosen.group}
        row: dict[str, Any] = {key: record.get(column) for key, column in named.items() if column}
        row["image"] = keys
        if chosen.conversations:
            turns = record.get(chosen.conversations)
            return {**row, "conversations": _unpaired(turns) if isinstance(turns, list) else turns}
        answers = _answers(record.get(chosen.answers))
        question = {"from": "human", "value": record.get(chosen.question)}
        return {**row, "conversations": [question], "answers": answers}

    # --- images -------------------------------------------------------------------------------------------------

    def _images(self, record: Mapping[str, Any]) -> Iterator[tuple[str, int, object]]:
        """Column, number in it, and the image, of every image of a row."""
        for column in self.chosen.image:
            value = record.get(column)
            for number, image in enumerate(value if isinstance(value, list) else [value]):
                if image is not None:
                    yield column, number, image

    def _bytes(self, image: object) -> tuple[bytes, str]:
        """An image's bytes, and the file that they are from; empty: kept in the row."""
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, image)
        if isinstance(data, bytes):
            return data, ""
        if not isinstance(path, str):
            raise BadRow("image path", f"the image is of type {type(image).__name__}; it must be an image or a path")
        name = path
        try:
            if os.path.isabs(path):  # as datasets notes where it found a file
                name = os.path.relpath(os.path.realpath(path), self._folder.root)
            file = self._folder.find(name).name
            return Path(self._folder.root, file).read_bytes(), file
        except OSError as error:
            raise BadRow("undecodable image", f"{path!r} cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise BadRow("image path", f"{path!r} is not a name that a file can have") from None

    @functools.cached_property
    def _folder(self) -> ImageFolder:
        """What the path of an image must be below: the dataset's own folder, or where hub files are kept."""
        place = Path(self.chosen.images or self.chosen.path)
        if not self.chosen.images and not place.exists():
            place = Path(require_datasets().config.HF_CACHE_HOME)
        return ImageFolder(place if place.is_dir() else place.parent)

    def _key(self, split: str, row: int, column: str, number: int, image: object, origin: str) -> str:
        data, file = self._bytes(image)
        key = hashlib.sha256(data).hexdigest()
        if key not in self._where:
            facts = check_image(io.BytesIO(data), "the image")
            check_shape(facts, self.chosen.padding, "the image")
            if facts.animated:
                self._animated.append(origin)
            self._where[key] = ImageLocation(file, split, row, column, number)
        return key

    def picture(self, key: str) -> Pixels:
        where = self._where[key]
        try:
            data = self._kept(where)
        except BadRow as bad:
            raise WorkbenchError(f"{bad.detail}.") from None
        if hashlib.sha256(data).hexdigest() != key:
            raise WorkbenchError("the image is not the one that was there when the rows were read.")
        return decode(io.BytesIO(data), "the image")

    def _kept(self, where: ImageLocation) -> bytes:
        if where.path:
            return self._bytes(where.path)[0]
        value = self._tables[where.split].row(where.row)[where.column]
        return self._bytes(value[where.number] if isinstance(value, list) else value)[0]

    def stamp(self, key: str) -> str:
        return key


def _unpaired(turns: list[Any]) -> list[Any]:
    """Turns of which each holds the words of both sides, as in The Cauldron, one by one; others as they are."""
    out: list[Any] = []
    for turn in turns:
        if isinstance(turn, dict) and turn.keys() >= {"user", "assistant"}:
            out += [{"role": role, "content": turn[role]} for role in ("user", "assistant")]
        else:
            out.append(turn)
    return out


def _answers(answers: object) -> object:
    """One answer, a list of them, or of ``{"answer": …}`` as in VQAv2, as a list.

    Raises:
        BadRow: there is none.
    """
    if answers is None:
        raise BadRow("answers", "there is no answer in the row")
    listed = answers if isinstance(answers, list) else [answers]
    return [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in listed]
