"""Conversations from rows: images as samples, each once however many rows show it, and splits that share none."""

from __future__ import annotations

import functools
import gc
import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.datamodules.conversations.base import Conversation, ConversationSource
from fusion_workbench.datamodules.rows.held_out import components, hold_out
from fusion_workbench.datamodules.rows.quarantine import overlap
from fusion_workbench.datamodules.rows.rows import ConversationRow
from fusion_workbench.datamodules.sources.base import SPLITS, Array
from fusion_workbench.datamodules.transforms import CLIP_MEAN, HASHED_PADDINGS, PADDINGS, Pixels, squared

if TYPE_CHECKING:
    import pandas as pd

_READERS = 8  # threads that read images: the time goes by waiting for the disk


@dataclass(frozen=True)
class RowOptions:
    """What every source of rows lets a study say. ``*_share`` count where a split has no rows of its own."""

    val_share: float = 0.05  # of the rows with images, held out of training
    test_share: float = 0.05
    most: int = 2000  # rows that a held-out split has at most
    size: int = 336  # pixels of the square that the encoder reads
    padding: str = "square"
    background: list[int] = field(default_factory=lambda: list(CLIP_MEAN))
    image_first: bool = True
    metric: str = "exact_match"
    bad_rows: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LocatedRow:
    """A good row: its words, the keys of its images, and where it stands."""

    row: ConversationRow
    keys: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class RowSplit:
    """One split, ready to be read: one sample per image, in the order in which the rows first show them."""

    images: tuple[str, ...]  # key of each sample
    groups: tuple[str, ...]  # of each sample
    shown_by: tuple[str, ...]  # origin of the first row that shows it
    conversations: tuple[Conversation, ...]
    metrics: Mapping[str, str]  # task → metric, as the rows name them


class RowSource(ConversationSource):
    """Rows of words about images, from wherever :meth:`read` takes them. They are read once, on first use.

    Raises:
        WorkbenchError: options that cannot be; from the first use on also what :meth:`read` finds, a split without
            conversations, and a task with two metrics.
    """

    group_name = "image"

    def __init__(self, options: RowOptions) -> None:
        self.rows = options
        _check(options)

    @abstractmethod
    def read(self) -> dict[str, list[LocatedRow]]:
        """The good rows of each split that has rows of its own; at least ``train``."""

    @abstractmethod
    def picture(self, key: str) -> Pixels:
        """An image as it is kept, uint8 ``[H, W, 3]``."""

    @abstractmethod
    def stamp(self, key: str) -> str:
        """What changes whenever the bytes of an image do."""

    def digest(self, key: str) -> str:
        """sha256 of an image as it is kept, read in full. Raises WorkbenchError."""
        return self.stamp(key)

    # --- what a study reads -------------------------------------------------------------------------------------

    @property
    def image_size(self) -> int:
        return self.rows.size

    def size(self, split: str) -> int:
        return len(self._split_of(split).images)

    def fingerprint(self, split: str) -> str:
        return self._hashed(map(self.stamp, self._split_of(split).images))

    def content(self, split: str) -> str:
        images = self._split_of(split).images
        with ThreadPoolExecutor(_READERS, "images") as pool:
            return self._hashed(pool.map(self.digest, images))

    def _hashed(self, images: Iterable[str]) -> str:
        """sha256 over how images are brought to size, and what stands for each."""
        padding = HASHED_PADDINGS.get(self.rows.padding, self.rows.padding)
        how = f"{self.version}|{self.rows.size}|{padding}|{self.rows.background}"
        sha = hashlib.sha256(how.encode())
        for image in images:
            sha.update(f"\n{image}".encode())
        return sha.hexdigest()

    def image(self, split: str, index: int) -> Array:
        """Image ``index``: uint8 ``[size, size, 3]``."""
        here = self._split_of(split)
        if not 0 <= index < len(here.images):
            raise IndexError(f"sample {index} of {len(here.images)} in '{split}'")
        try:
            pixels = self.picture(here.images[index])
            return squared(pixels, self.rows.size, self.rows.padding, self.rows.background)
        except WorkbenchError as error:
            raise WorkbenchError(f"{here.shown_by[index]}: {error}") from None

    def identity(self, split: str) -> pd.DataFrame:
        import pandas as pd

        here = self._split_of(split)
        return pd.DataFrame({"example_id": list(here.images), "group": list(here.groups)})

    def conversations(self, split: str) -> Sequence[Conversation]:
        return self._split_of(split).conversations

    def metrics(self) -> Mapping[str, str]:
        """Of every task of validation and test."""
        val, test = self._split_of("val").metrics, self._split_of("test").metrics
        for task in val.keys() & test.keys():
            if val[task] != test[task]:
                raise WorkbenchError(f"task '{task}' is judged by {val[task]} in val and by {test[task]} in test.")
        return {**val, **test}

    # --- splits -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def splits(self) -> dict[str, RowSplit]:
        """Those that hold anything."""
        with _no_garbage_collection():
            rows = self._held_out(self.read())
            made = {split: self._split(split, rows[split]) for split in SPLITS if rows.get(split)}
        shared = overlap([(split, set(made[split].images)) for split in made])
        if shared:
            print_notice(f"note: images in two splits, which makes {self.name}'s scores too good: {shared}")
        return made

    def _split_of(self, split: str) -> RowSplit:
        if split not in self.splits:
            raise WorkbenchError(
                f"{self.name}: the split '{split}' holds no conversation; name rows for it, or hold some out "
                f"(source.options.{split}_share)."
            )
        return self.splits[split]

    def _held_out(self, rows: dict[str, list[LocatedRow]]) -> dict[str, list[LocatedRow]]:
        train = rows["train"]
        shares = {"val": self.rows.val_share, "test": self.rows.test_share}
        shown = sum(bool(located.keys) for located in train)
        sizes = {
            split: min(self.rows.most, int(share * shown))
            for split, share in shares.items()
            if split not in rows and share > 0
        }
        if not sizes:
            return rows
        parts: dict[str, list[LocatedRow]] = {"train": [], **{split: [] for split in sizes}}
        for located, split in zip(train, hold_out(_groups(train), sizes, self.rows.seed), strict=True):
            parts[split].append(located)
        return {**rows, **parts}

    def _split(self, split: str, rows: Sequence[LocatedRow]) -> RowSplit:
        groups = _groups(rows)
        number: dict[str, int] = {}
        group_of: list[str] = []
        shown_by: list[str] = []
        metrics: dict[str, str] = {}
        used: dict[tuple[str, str], int] = {}
        conversations = []
        for at, (located, group) in enumerate(zip(rows, groups, strict=True), 1):
            row = located.row
            for key in located.keys:
                if key not in number:
                    number[key] = len(number)
                    group_of.append(group)
                    shown_by.append(located.origin)
            metric = row.metric or self.rows.metric
            if metrics.setdefault(row.task, metric) != metric:
                raise WorkbenchError(
                    f"{located.origin}: task '{row.task}' is judged by {metric} here and by {metrics[row.task]} "
                    "before; give one of them another task."
                )
            id_ = _unique(row.id or f"{split}-{at:06d}", row.task, used)
            images = tuple(number[key] for key in located.keys)
            conversation = Conversation(id_, row.turns, images, group or id_, row.task, row.answers, located.origin)
            conversations.append(conversation)
        return RowSplit(tuple(number), tuple(group_of), tuple(shown_by), tuple(conversations), metrics)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No garbage collection meanwhile: millions of small objects are made and kept, and it would visit each again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def print_notice(text: str) -> None:
    """A notice, on standard error."""
    from fusion_workbench.system.console import error_console

    error_console().print(text, highlight=False, soft_wrap=True, markup=False)


def _groups(rows: Sequence[LocatedRow]) -> list[str]:
    """A row's own group where it has one, else the smallest key of the images that hang together."""
    named = ["\0" + located.row.group if located.row.group else "" for located in rows]  # sorts before any key
    links = [(*filter(None, [name]), *located.keys) for name, located in zip(named, rows, strict=True)]
    return [group.removeprefix("\0") for group in components(links)]


def _unique(id_: str, task: str, used: dict[tuple[str, str], int]) -> str:
    """Published files repeat ids: the second of them becomes ``id#2``."""
    while (id_, task) in used:
        used[id_, task] += 1
        id_ = f"{id_}#{used[id_, task]}"
    used[id_, task] = 1
    return id_


def _check(options: RowOptions) -> None:
    where = "source.options"
    if options.padding not in PADDINGS:
        raise WorkbenchError(f"{where}.padding: unknown '{options.padding}'.{nearest(options.padding, PADDINGS)}")
    if options.size < 1:
        raise WorkbenchError(f"{where}.size is {options.size}; it is the side of the encoder's square in pixels.")
    colour = options.background
    if len(colour) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in colour):
        raise WorkbenchError(f"{where}.background is {colour}; it must be red, green and blue from 0 to 255.")
    for name in ("val_share", "test_share", "bad_rows"):
        if not 0 <= getattr(options, name) < 1:
            raise WorkbenchError(f"{where}.{name} is {getattr(options, name)}; it must be a share from 0 to below 1.")
    if options.most < 1:
        raise WorkbenchError(f"{where}.most is {options.most}; a held-out split has at least 1 row.")
