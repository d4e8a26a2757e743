"""The files of a transformers model, in a folder or on the hub, and a hash of all that is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.parse import parse_json
from fusion_workbench.system.checksums import sha256_of

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def model_files(model: str, revision: str | None, names: Sequence[str]) -> list[Path]:
    """Those of ``names`` that the model has, in its folder or, fetched where they are not yet, from the hub.

    Raises:
        WorkbenchError: it is no folder, and the hub does not give it.
    """
    if Path(model).is_dir():
        return [path for name in names if (path := Path(model) / name).is_file()]
    from transformers.utils.hub import cached_file

    try:
        found = [
            cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False) for name in names
        ]
    except OSError as error:
        raise WorkbenchError(f"the files of '{model}' cannot be had: {first_line(error)}") from None
    return [Path(path) for path in found if path]


def weight_files(model: str, revision: str | None) -> list[Path]:
    """The safetensors that transformers reads. Raises WorkbenchError for an index that cannot be read."""
    found = model_files(model, revision, [_WEIGHTS]) or model_files(model, revision, [_INDEX])
    if [path.name for path in found] == [_INDEX]:
        try:
            shards = sorted({str(shard) for shard in parse_json(found[0].read_bytes())["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WorkbenchError(f"{found[0]} cannot be read ({type(error).__name__}).") from None
        return model_files(model, revision, shards)
    return found or sorted(Path(model).glob("*.safetensors") if Path(model).is_dir() else ())


def content_hash(paths: Sequence[Path]) -> str:
    """sha256 over names and contents of files, every byte read. Raises WorkbenchError."""

    def line(path: Path) -> str:
        return f"{path.name} {sha256_of(path)}"

    try:
        with ThreadPoolExecutor(8, "hash") as pool:
            lines = list(pool.map(line, paths))
    except OSError as error:
        raise WorkbenchError(f"{error.filename} cannot be read ({error.strerror or error}).") from None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
