"""Images by name below one folder, which no name may leave."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.rows.rows import BadRow
from fusion_workbench.datamodules.transforms import decode, load_image

# What no name may be, and what is wrong with it. Names are taken as they are: %2e is three characters.
_FAULTS: tuple[tuple[Callable[[str], object], str], ...] = (
    (lambda name: "\0" in name, "holds a NUL"),
    (lambda name: "\\" in name, "holds a backslash; folders are parted by /"),
    (lambda name: "://" in name, "is an address; images are read from the folder alone"),
    (
        lambda name: name.startswith("/") or re.match("[A-Za-z]:", name),
        "is absolute; it must be relative to the folder",
    ),
    (lambda name: ".." in name.split("/"), "leaves its folder through .."),
)
# How a whole file of a format ends, within its last bytes. Where it does not, it is decoded to see.
_ENDS: Mapping[str, bytes] = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_LAST = 64  # bytes


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file: its name below the folder, links resolved, and what changes whenever its bytes do."""

    name: str
    size: int  # bytes
    modified: int  # nanoseconds

    @property
    def stamp(self) -> str:
        return f"{self.name}|{self.size}|{self.modified}"


class ImageFolder:
    """A folder of images.

    Raises:
        WorkbenchError: no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise WorkbenchError(f"the image folder {root} does not exist.")
        self.shown = root
        self.root = os.path.realpath(root)
        self._within = self.root.rstrip(os.sep) + os.sep
        self._folders: dict[str, str] = {}  # as named → real path, resolved once

    def find(self, name: str) -> ImageFile:
        """The file that ``name`` means. A link may point elsewhere in the folder, and never out of it.

        Raises:
            BadRow: a name that leaves the folder or could, or no regular file there.
        """
        for is_wrong, what in _FAULTS:
            if is_wrong(name):
                raise BadRow("image path", f"{name!r} {what}")
        try:
            where, facts = self._resolved(name)
        except ValueError:  # half a character
            raise BadRow("image path", f"{name!r} is not a name that a file can have") from None
        except OSError:
            raise BadRow("missing image", f"{name!r} is not in {self.shown}") from None
        if not stat.S_ISREG(facts.st_mode):
            raise BadRow("missing image", f"{name!r} in {self.shown} is not a file")
        return ImageFile(where[len(self._within) :].replace(os.sep, "/"), facts.st_size, facts.st_mtime_ns)

    def _resolved(self, name: str) -> tuple[str, os.stat_result]:
        folder, base = os.path.split(os.path.join(self.root, name))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        where = os.path.join(self._folders[folder], base)
        facts = os.lstat(where)
        if stat.S_ISLNK(facts.st_mode):
            where = os.path.realpath(where)
            facts = os.stat(where)
        if not (where + os.sep).startswith(self._within):
            raise BadRow("image path", f"{name!r} is a link out of {self.shown}; copy its images there")
        return where, facts

    def path(self, name: str) -> Path:
        """Where the file is now; the name is looked at anew, for a link may have been put in its place."""
        return Path(self.root, self.find(name).name)


def exists(path: Path) -> None:
    """All is well: the file was found."""


def has_header(path: Path) -> None:
    """A look at both ends of a file; see :func:`check_image`.

    Raises:
        BadRow: it is no image, is truncated, or is too large to be one in earnest.
    """
    try:
        with path.open("rb") as file:
            check_image(file, f"image {path}")
    except OSError as error:
        raise BadRow("undecodable image", f"image {path} cannot be read: {error.strerror or error}") from None


def check_image(file: IO[bytes], name: str) -> None:
    """An image by its first bytes, and not truncated by its last ones; decoded where these leave doubt.

    Raises:
        BadRow: it is no image, is truncated, or is too large to be one in earnest.
    """
    try:
        with Image.open(file) as image:
            end = _ENDS.get(image.format or "", b"")
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _LAST))
            if end in file.read():
                return
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError):
        pass  # decoding says what it is
    try:
        file.seek(0)
        decode(file, name)
    except WorkbenchError as error:
        raise BadRow("undecodable image", str(error).rstrip(".")) from None


def has_pixels(path: Path) -> None:
    """Decode the whole file.

    Raises:
        BadRow: it cannot be decoded.
    """
    try:
        load_image(path)
    except WorkbenchError as error:
        raise BadRow("undecodable image", str(error).rstrip(".")) from None


VERIFY: Mapping[str, Callable[[Path], None]] = {"exists": exists, "header": has_header, "pixels": has_pixels}
