"""A split of conversations as token ids, made once and kept in the workspace."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_workbench.core.tokens import IGNORE, IMAGE_ID
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.files import atomic_file, explain_writing

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.base import Conversation, ConversationSource
    from fusion_workbench.datamodules.conversations.chat import Chat

RULES = 1  # of Chat.encode; another number tokenises everything anew
_DTYPES: Mapping[str, type[np.generic]] = {
    "ids": np.int32,
    "in_loss": np.bool_,
    "ends": np.int64,
    "images": np.int32,
}
Ints = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Tokenised:
    """Conversations as ids, side by side in flat arrays; five bytes a token. Nothing is cut yet.

    Attributes:
        ids: int32 ``[tokens]``, :data:`IMAGE_ID` where an image stands.
        in_loss: bool ``[tokens]``, where loss is taken.
        ends: int64 ``[conversations]``, where each ends.
        images: int32 ``[conversations]``, how many images each shows.
    """

    ids: Ints
    in_loss: Ints
    ends: Ints
    images: Ints

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, number: int) -> slice:
        """Where a conversation's tokens lie."""
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def fitted(self, max_length: int, tokens_per_image: int) -> Fitted:
        """What is kept of each in ``max_length`` positions, by the rules of :meth:`Chat.fit`."""
        tokens = np.diff(self.ends, prepend=0)
        lengths = tokens + self.images.astype(np.int64) * (tokens_per_image - 1)
        kept = tokens.copy()
        for number in np.flatnonzero((lengths > max_length) | (self.images * tokens_per_image >= max_length)):
            part = self.part(int(number))
            ends = np.where(self.ids[part] == IMAGE_ID, tokens_per_image, 1).cumsum()
            fits = int(np.searchsorted(ends, max_length, side="right"))
            full = self.images[number] * tokens_per_image >= max_length
            kept[number] = 0 if full or not self.in_loss[part][:fits].any() else fits
            lengths[number] = ends[kept[number] - 1] if kept[number] else 0
        return Fitted(kept, lengths, int(((kept > 0) & (kept < tokens)).sum()), int((kept == 0).sum()))


@dataclass(frozen=True)
class Fitted:
    """What of each conversation is trained on.

    Attributes:
        kept: int64 ``[conversations]``, how many of its tokens; 0: it is left out.
        lengths: int64 ``[conversations]``, of what is kept, in positions of the language model.
        cut: how many lose their end.
        left_out: how many are not trained on at all.
    """

    kept: Ints
    lengths: Ints
    cut: int
    left_out: int


def tokenise(conversations: Iterable[Conversation], chat: Chat) -> Tokenised:
    """Conversations as ids. Raises WorkbenchError as :meth:`Chat.encode`."""
    ids, in_loss, ends, images = array("i"), array("b"), array("q"), array("i")
    for encoded in chat.encode_all(conversations):
        ids.extend(encoded.input_ids)
        in_loss.extend(label != IGNORE for label in encoded.labels)
        ends.append(len(ids))
        images.append(encoded.images)
    made = {"ids": ids, "in_loss": in_loss, "ends": ends, "images": images}
    return Tokenised(**{name: np.array(values, _DTYPES[name]) for name, values in made.items()})


def tokenised_split(source: ConversationSource, split: str, chat: Chat, folder: Path | None = None) -> Tokenised:
    """A split as ids, read from ``folder`` where it lies there already, else made and left there.

    A file is known by the conversations, the tokenizer and the template, and holds the sha256 of what is in it: one
    that does not fit, or that is damaged, is made anew. Several processes wait for the first of them.

    Args:
        folder: None: nothing is kept.

    Raises:
        WorkbenchError: as :meth:`Chat.encode`; the folder cannot be written to.
    """
    if folder is None:
        return tokenise(source.conversations(split), chat)
    from filelock import FileLock

    name = sha256_of(json.dumps([RULES, source.text_fingerprint(split), chat.fingerprint()]))
    path = folder / f"{name[:32]}.safetensors"
    with explain_writing(path, "free the disk, or move the workspace"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            kept = _read(path, name)
            if kept is None:
                kept = tokenise(source.conversations(split), chat)
                _write(path, name, kept)
    return kept


def _write(path: Path, name: str, made: Tokenised) -> None:
    from safetensors.numpy import save_file

    arrays = {key: np.ascontiguousarray(getattr(made, key)) for key in _DTYPES}
    with atomic_file(path) as part:
        save_file(arrays, part, metadata={"fingerprint": name, "sha256": _sum(arrays), "rules": str(RULES)})


def _read(path: Path, name: str) -> Tokenised | None:
    """What a file holds; None where there is none, or where it is another's or damaged."""
    from safetensors import safe_open

    with suppress(Exception):  # whatever safetensors makes of a torn file
        with safe_open(path, "numpy") as file:
            told = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in _DTYPES}
        if (told.get("fingerprint"), told.get("sha256")) == (name, _sum(arrays)):
            return Tokenised(**arrays)
    return None


def _sum(arrays: Mapping[str, Ints]) -> str:
    sha = hashlib.sha256()
    for key in _DTYPES:
        sha.update(f"{key} {arrays[key].dtype} {arrays[key].shape}\n".encode())
        sha.update(np.ascontiguousarray(arrays[key]).data)
    return sha.hexdigest()
