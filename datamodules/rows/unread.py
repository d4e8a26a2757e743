"""What stands in rows and is read by nobody: keys, pictures under other keys, other words for a picture."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from PIL import Image

from fusion_workbench.core.text import printable
from fusion_workbench.datamodules.conversations.base import IMAGE, USER, Turn
from fusion_workbench.datamodules.rows.row_images import ImageFolder
from fusion_workbench.datamodules.rows.rows import KEYS, BadRow

# Keys under which others keep what is to be seen or heard: images, img_path, imageFile, video, …
_PICTURE = re.compile(r"ima?ge?s?(?![a-z])|image|picture|photo|video|audio|(?:^|_)pics?(?:$|_)", re.IGNORECASE)
# Words that stand for a picture elsewhere: <image 1>, <image_2>, <|image|>, <ImageHere>, <IMAGE>, …
_ANOTHER = re.compile(r"<\|?image(?:[ _-]?(?:\d+|here|pad|placeholder|token|soft_token))?\|?>", re.IGNORECASE)
_MOVING = frozenset(".mp4 .avi .mkv .mov .webm .m4v .mpg .mpeg .flv .wmv .wav .mp3 .flac .ogg .m4a .aac".split())  # noqa: SIM905
_LONGEST = 1024  # characters of a name; what is longer is prose
_SHOWN = 8  # keys that a notice names


def is_of_pictures(key: str) -> bool:
    """Whether a key says that it holds what is to be seen or heard."""
    return _PICTURE.search(key) is not None


class UnreadKeys:
    """Keeps count, over the rows of one file, of what they hold and nobody reads.

    Args:
        name: of the file, for the notice.
        read: the keys that are read.
        folder: of the images; None: there is none on this disk.
        beside: another folder where a file that is named may lie: that of the rows.
        image_key: the key that is read as the image.
        strict: a row that shows its picture may not name another one either; else that is told, and no more.
    """

    def __init__(
        self,
        name: str,
        read: Collection[str],
        folder: ImageFolder | None,
        beside: Path | None,
        image_key: str = "image",
        strict: bool = True,
    ) -> None:
        self.name = name
        self.read = frozenset(read)
        self.image_key = image_key
        self.strict = strict
        self.keys: Counter[str] = Counter()  # key → rows that hold something under it
        self.words: Counter[str] = Counter()  # another word for a picture → rows
        self._folders = [] if folder is None else [folder]
        if beside is not None and beside.is_dir():
            self._folders.append(ImageFolder(beside))
        self._suffixes = frozenset(Image.registered_extensions()) | _MOVING

    def look(self, record: object, shown: Sequence[object]) -> None:
        """Count a row's unread keys.

        Args:
            record: an object of JSON; what is none is passed over.
            shown: the names of the row's images in the first folder; of one that is kept in the row itself, empty.

        Raises:
            BadRow: an unread key holds the name of a picture or film that exists; or any such name, where the row
                shows no picture and the key says that it is one.
        """
        if not isinstance(record, dict):
            return
        for key in record.keys() - self.read:
            value = record[key]
            if value is None or value == "" or value == [] or value == {}:
                continue
            self.keys[str(key)] += 1
            is_picture = is_of_pictures(str(key))
            for name in _names(value):
                suffix = os.path.splitext(name)[1].lower()
                is_media = suffix in self._suffixes
                if not (is_media or is_picture):
                    continue
                where = self._existing(name) if self.strict or not shown else ""
                if where in shown or not (where or (is_media and is_picture and not shown)):
                    continue
                if suffix in _MOVING:
                    raise BadRow("video or sound", f"'{key}' names {name!r}; only images are shown")
                raise BadRow(
                    "picture under another key",
                    f"'{key}' names {name!r}, which nobody reads; did you mean '{self.image_key}'?",
                )

    def look_at_turns(self, record: object, key: str = "conversations") -> None:
        """Count the keys of a row's turns that are not read, such as a weight."""
        listed = record.get(key) if isinstance(record, dict) else None
        for turn in listed if isinstance(listed, list) else ():
            if isinstance(turn, dict) and len(turn) > 2:
                own = next((keys for keys in KEYS if keys[0] in turn), ())
                self.keys.update(f"{key} of a turn" for key in turn if key not in own)

    def look_at_words(self, turns: Sequence[Turn]) -> None:
        """Count other words for a picture: they are read as they stand."""
        texts = [turn.text for turn in turns if turn.role == USER and "<" in turn.text]
        self.words.update({match for text in texts for match in _ANOTHER.findall(text) if match != IMAGE})

    def notice(self) -> str:
        """What nobody reads, in one line; empty: nothing."""
        first = sorted(self.keys.items(), key=lambda item: (not is_of_pictures(item[0]), -item[1], item[0]))
        parts = []
        if first:
            listed = ", ".join(f"{key!r} in {_rows(number)}" for key, number in first[:_SHOWN])
            more = f" and {len(first) - _SHOWN:,} more" if len(first) > _SHOWN else ""
            parts.append(f"keys that are not read: {listed}{more}")
        for word, number in self.words.most_common(_SHOWN):
            parts.append(f"{word!r} is read as words in {_rows(number)} (a picture is {IMAGE})")
        return printable(f"note: {self.name}: {'; '.join(parts)}") if parts else ""

    def _existing(self, name: str) -> str:
        """The name below the first folder of a file that exists, else its path; empty: there is none."""
        for number, folder in enumerate(self._folders):
            try:
                found = folder.find(name).name
            except BadRow:
                continue
            if number:
                found = os.path.join(folder.root, found)
                inside = self._folders[0].root.rstrip(os.sep) + os.sep
                return found[len(inside) :].replace(os.sep, "/") if found.startswith(inside) else found
            return found
        return name if os.path.isabs(name) and os.path.isfile(name) else ""


def _names(value: object) -> Iterator[str]:
    """What may be names of files in a value: words, a list of them, or ``{"path": …}``."""
    if isinstance(value, dict):
        value = [value.get("path"), value.get("url"), value.get("file_name")]
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            yield from _names(one)
        elif isinstance(one, str) and len(one) <= _LONGEST and "\0" not in one and one.strip():
            yield one


def _rows(number: int) -> str:
    return f"{number:,} row{'s' if number != 1 else ''}"
