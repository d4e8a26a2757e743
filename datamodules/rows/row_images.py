"""Images by name below one folder, which no name may leave."""

from __future__ import annotations

import os
import re
import stat
import struct
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.text import printable
from fusion_workbench.datamodules.rows.rows import BadRow
from fusion_workbench.datamodules.transforms import decode, load_image, too_long

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
_FRAMES = ("GIF", "PNG", "TIFF", "WEBP")  # whose further frames are pictures too; those of JPEG (MPO) help the first
_RANGES = ("I", "F")  # modes of greys that may fit neither 8 bits nor 16: decoded to see
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file: its name below the folder, links resolved, and what changes whenever its bytes do."""

    name: str
    size: int  # bytes
    modified: int  # nanoseconds

    @property
    def stamp(self) -> str:
        return f"{self.name}|{self.size}|{self.modified}"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the head of an image file says."""

    width: int  # pixels, before it is turned upright
    height: int
    animated: bool = False  # it holds more frames than the one that is read


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
        self._listings: dict[str, dict[str, str]] = {}  # folder → its names, small and composed → as they are

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
            raise BadRow("missing image", f"{name!r} is not in {self.shown}{self._near(name)}") from None
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

    def _near(self, name: str) -> str:
        """Whether the file is there but for capitals or how its accents are written, in words; else empty."""
        found: list[str] = []
        for part in name.split("/"):
            folder = os.path.join(self.root, *found)
            if folder not in self._listings:
                with suppress(OSError):
                    self._listings[folder] = {_folded(one): one for one in os.listdir(folder)}
            actual = self._listings.get(folder, {}).get(_folded(part))
            if actual is None:
                return ""
            found.append(actual)
        near = "/".join(found)
        try:
            self._resolved(near)
        except (OSError, ValueError, BadRow):
            return ""
        same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", name)
        return "; a file of this name is, its accents written otherwise (NFC, NFD)" if same else f"; {near!r} is"

    def path(self, name: str) -> Path:
        """Where the file is now; the name is looked at anew, for a link may have been put in its place."""
        return Path(self.root, self.find(name).name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def exists(path: Path) -> None:
    """All is well: the file was found."""


def has_header(path: Path) -> ImageFacts:
    """A look at both ends of a file; see :func:`check_image`.

    Raises:
        BadRow: it is no image, is truncated, or is too large to be one in earnest.
    """
    try:
        with path.open("rb") as file:
            return check_image(file, f"image {path}")
    except OSError as error:
        raise BadRow("undecodable image", f"image {path} cannot be read: {error.strerror or error}") from None


def check_image(file: IO[bytes], name: str) -> ImageFacts:
    """An image by its first bytes, and not truncated by its last ones; decoded where these leave doubt.

    Raises:
        BadRow: it is no image, is truncated, or is too large to be one in earnest.
    """
    facts = None
    try:
        with Image.open(file) as image:
            facts = _facts(image)
            end = _ENDS.get(image.format or "", b"")
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _LAST))
            if end in file.read() and image.mode not in _RANGES:
                return facts
    except _UNREADABLE:
        pass  # decoding says what it is
    try:
        file.seek(0)
        height, width = decode(file, name).shape[:2]
    except WorkbenchError as error:
        raise BadRow("undecodable image", str(error).rstrip(".")) from None
    return facts or ImageFacts(width, height)


def has_pixels(path: Path) -> ImageFacts | None:
    """Decode the whole file.

    Raises:
        BadRow: it cannot be decoded.
    """
    try:
        load_image(path)
    except WorkbenchError as error:
        raise BadRow("undecodable image", str(error).rstrip(".")) from None
    return _head(path)


VERIFY: Mapping[str, Callable[[Path], ImageFacts | None]] = {
    "exists": exists,
    "header": has_header,
    "pixels": has_pixels,
}


def look_at(path: Path, verify: str, padding: str) -> ImageFacts | None:
    """An image file as closely as ``verify`` says, and whether it can become a square, which its head tells.

    Raises:
        BadRow: it is not what its name says, or too long for ``padding``.
    """
    facts = VERIFY[verify](path)
    if facts is None and padding in ("square", "crop"):
        facts = _head(path)
    if facts is not None:
        check_shape(facts, padding, f"image {path}")
    return facts


def check_shape(facts: ImageFacts, padding: str, name: str) -> None:
    """Raises BadRow for an image that is too long for ``padding``."""
    if fault := too_long(facts.height, facts.width, padding):
        raise BadRow("long image", f"{name}: {fault}")


def frames_notice(name: str, images: Sequence[str]) -> str:
    """That images of a file of rows hold several frames, in one line; empty: none does."""
    if not images:
        return ""
    told = f"{len(images):,} images hold several frames, of which the first is read, such as {images[0]}"
    return printable(f"note: {name}: {told}")


def _head(path: Path) -> ImageFacts | None:
    """What the head says; None where Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return _facts(image)
    except _UNREADABLE:
        return None


def _facts(image: Image.Image) -> ImageFacts:
    animated = image.format in _FRAMES and bool(getattr(image, "is_animated", False))
    return ImageFacts(*image.size, animated)
