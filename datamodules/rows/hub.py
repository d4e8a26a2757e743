"""Hugging Face ``datasets`` with columns of images and words: from the hub, or from a folder or file on this disk."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.datamodules.rows.quarantine import LISTED, Quarantine
from fusion_workbench.datamodules.rows.row_images import ImageFolder, check_image
from fusion_workbench.datamodules.rows.rows import BadRow, parse_row
from fusion_workbench.datamodules.rows.source import LocatedRow, RowOptions, RowSource, print_notice
from fusion_workbench.datamodules.sources.base import SPLITS, register_source
from fusion_workbench.datamodules.transforms import Pixels, decode

FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}  # a file → the builder that reads it

_BATCH = 64  # rows read at once


@dataclass(frozen=True)
class HubOptions(RowOptions):
    """What ``source.options`` may say. A column that is named must be there; an empty name means none."""

    path: str = ""  # a name on the hub; a folder of save_to_disk, of parquet, JSON or images; a file
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
    """The first place in the dataset that holds an image."""

    split: str
    row: int
    column: str
    number: int  # in a list of images


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
        _datasets()
        self._where: dict[str, ImageLocation] = {}

    @functools.cached_property
    def tables(self) -> dict[str, Any]:
        """The split of ours → ``datasets.Dataset`` in Arrow's format."""
        chosen = self.chosen
        loaded = _load(chosen)
        named = {split: name for split in SPLITS if (name := getattr(chosen, split))}
        for split, name in named.items():
            if name not in loaded:
                raise WorkbenchError(
                    f"source.options.{split}: {chosen.path} has no split '{name}'.{nearest(name, loaded)}"
                )
        return {split: self._columns(loaded[name]) for split, name in named.items()}

    def _columns(self, table: Any) -> Any:
        chosen = self.chosen
        words = [chosen.conversations] if chosen.conversations else [chosen.question, chosen.answers]
        columns = [*chosen.image, *words, *filter(None, [chosen.id, chosen.task, chosen.group])]
        for column in columns:
            if column not in table.column_names:
                raise WorkbenchError(f"{chosen.path} has no column '{column}'.{nearest(column, table.column_names)}")
        # As Arrow, images are the bytes or the path that are kept: nothing is opened, or fetched, before we look at it.
        return table.select_columns(list(dict.fromkeys(columns))).with_format("arrow")

    def read(self) -> dict[str, list[LocatedRow]]:
        return {split: self._read(split, table) for split, table in self.tables.items()}

    def _read(self, split: str, table: Any) -> list[LocatedRow]:
        name = f"{self.chosen.path}[{getattr(self.chosen, split)}]"
        quarantine = Quarantine(name, self._lists / f"{name.strip('./').replace('/', '--')}{LISTED}", seen=len(table))
        good: list[LocatedRow] = []
        rows = (row for batch in table.iter(_BATCH) for row in batch.to_pylist())
        for at, record in enumerate(rows):
            try:
                keys = [self._key(ImageLocation(split, at, *place), data) for place, data in self._images(record)]
                row = parse_row(self._row(record, keys), self.chosen.image_first)
            except BadRow as bad:
                quarantine.add(at + 1, at + 1, bad)
            else:
                good.append(LocatedRow(row, tuple(keys), f"{name}:{at + 1}"))
        where = quarantine.write()
        quarantine.refuse_above(self.chosen.bad_rows, where)
        if quarantine.rows:
            print_notice(f"{quarantine.summary()}; {where}")
        return good

    @property
    def _lists(self) -> Path:
        if self.chosen.quarantine:
            return Path(self.chosen.quarantine)
        return platformdirs.user_cache_path("fusion-workbench", appauthor=False) / "quarantine"

    def _row(self, record: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
        """A row of the dataset in LLaVA's format."""
        chosen = self.chosen
        named = {"id": chosen.id, "task": chosen.task, "group": chosen.group}
        row = {key: record[column] for key, column in named.items() if column}
        row["image"] = keys
        if chosen.conversations:
            turns = record[chosen.conversations]
            return {**row, "conversations": _unpaired(turns) if isinstance(turns, list) else turns}
        answers = _answers(record[chosen.answers])
        question = {"from": "human", "value": record[chosen.question]}
        return {**row, "conversations": [question], "answers": answers}

    # --- images -------------------------------------------------------------------------------------------------

    def _images(self, record: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int], bytes]]:
        """Column and number in it → bytes, of every image of a row."""
        for column in self.chosen.image:
            value = record[column]
            for number, image in enumerate(value if isinstance(value, list) else [value]):
                if image is not None:
                    yield (column, number), self._bytes(image)

    def _bytes(self, image: object) -> bytes:
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, image)
        if isinstance(data, bytes):
            return data
        if not isinstance(path, str):
            raise BadRow("image path", f"the image is of type {type(image).__name__}; it must be an image or a path")
        name = path
        try:
            if os.path.isabs(path):  # as datasets notes where it found a file
                name = os.path.relpath(os.path.realpath(path), self._folder.root)
            return self._folder.path(name).read_bytes()
        except OSError as error:
            raise BadRow("undecodable image", f"{path!r} cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise BadRow("image path", f"{path!r} is not a name that a file can have") from None

    @functools.cached_property
    def _folder(self) -> ImageFolder:
        """What the path of an image must be below: the dataset's own folder, or where hub files are kept."""
        place = Path(self.chosen.images or self.chosen.path)
        if not self.chosen.images and not place.exists():
            place = Path(_datasets().config.HF_CACHE_HOME)
        return ImageFolder(place if place.is_dir() else place.parent)

    def _key(self, where: ImageLocation, data: bytes) -> str:
        key = hashlib.sha256(data).hexdigest()
        if key not in self._where:
            check_image(io.BytesIO(data), "the image")
            self._where[key] = where
        return key

    def picture(self, key: str) -> Pixels:
        where = self._where[key]
        (record,) = self.tables[where.split][where.row].to_pylist()
        try:
            data = next(data for place, data in self._images(record) if place == (where.column, where.number))
        except BadRow as bad:
            raise WorkbenchError(f"{bad.detail}.") from None
        if hashlib.sha256(data).hexdigest() != key:
            raise WorkbenchError("the image is not the one that was there when the rows were read.")
        return decode(io.BytesIO(data), "the image")

    def stamp(self, key: str) -> str:
        return key


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise WorkbenchError(
            "the source 'hf_dataset' needs datasets: pip install 'fusion-workbench[datasets]'"
        ) from None
    return datasets


def _load(chosen: HubOptions) -> Mapping[str, Any]:
    """The dataset's splits by name."""
    datasets, path = _datasets(), Path(chosen.path)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        elif path.suffix in FILES and path.is_file():
            loaded = datasets.load_dataset(FILES[path.suffix], data_files=str(path))
        else:
            loaded = datasets.load_dataset(chosen.path, chosen.config or None, revision=chosen.revision or None)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise WorkbenchError(f"source.options.path: datasets cannot load '{chosen.path}': {why}") from None
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


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
    """One answer, a list of them, or of ``{"answer": …}`` as in VQAv2, as a list."""
    listed = answers if isinstance(answers, list) else [answers]
    return [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in listed]
