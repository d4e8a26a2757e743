"""What a path of the source ``hf_dataset`` holds: words, read as they stand, or what ``datasets`` alone can read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.rows.tables import WORDS, Table, WordTable

METADATA = ("metadata.csv", "metadata.jsonl")  # of a folder of images; metadata.parquet has types of its own
_OF_WORDS = ("csv", "json", "imagefolder")  # as a cache names the builders that it is from
_BUILDERS = {"Csv": False, "Json": False, "ImageFolder": True}  # that read words → by metadata alone


def require_datasets() -> Any:
    """The module ``datasets``.

    Raises:
        WorkbenchError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise WorkbenchError(
            "the source 'hf_dataset' needs datasets: pip install 'fusion-workbench[datasets]'"
        ) from None
    return datasets


def open_splits(place: str, config: str, revision: str, arrow: Callable[[Any], Table]) -> dict[str, Table]:
    """The splits of a dataset by name.

    Args:
        place: a name on the hub; a folder of ``save_to_disk``, of data files or of images; a file.
        config, revision: of the hub.
        arrow: makes a table of a ``datasets.Dataset``.

    Raises:
        WorkbenchError: ``datasets`` cannot load it, or would read words in a way of its own.
    """
    datasets, path = require_datasets(), Path(place)
    if path.suffix.lower() in WORDS and path.is_file():
        return {"train": WordTable([path])}
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            named: dict[str, Any] = {"path": place, "name": config or None, "revision": revision or None}
            if path.suffix == ".parquet" and path.is_file():
                named = {"path": "parquet", "data_files": str(path)}
            builder = datasets.load_dataset_builder(**named)
            words = words_of(builder, place)
            if words is not None:
                return words
            if (cache := _own_cache(builder)) is not None:
                builder = datasets.load_dataset_builder(**named, cache_dir=str(cache))
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise WorkbenchError(f"source.options.path: datasets cannot load '{place}': {why}") from None
    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    return {name: arrow(table) for name, table in splits.items()}


def words_of(builder: Any, place: str) -> dict[str, Table] | None:
    """The splits of a dataset whose files hold words; None of any other.

    Args:
        builder: of ``datasets``, which has found the files and read none.
        place: as the user named it.

    Raises:
        WorkbenchError: the files are out of reach, and only an earlier reading is kept.
    """
    kind = _kind(builder)
    if kind == "Cache" and builder.info.builder_name in _OF_WORDS:
        raise WorkbenchError(
            f"source.options.path: '{place}' cannot be reached, and what datasets kept of it lost how its words were "
            "written (007, NA, 2 among words); go online, or name a folder that holds its files."
        )
    if kind not in _BUILDERS:
        return None
    if getattr(builder.config, "field", None):
        raise WorkbenchError(
            f"source.options.path: '{place}' keeps its rows under the key '{builder.config.field}' of a JSON object; "
            "write them as a list of objects, or as JSON lines."
        )
    separator = str(getattr(builder.config, "sep", "") or "") if kind == "Csv" else ""
    splits: dict[str, Table] = {}
    for split, files in builder.config.data_files.items():
        local = _local([str(file) for file in files])
        if _BUILDERS[kind]:
            local = [file for file in local if file.name in METADATA]
            if not local:
                return None
        suffix = {"Csv": ".csv", "Json": ".json"}.get(kind, "")  # what was unpacked has none
        splits[str(split)] = WordTable(local, suffix, "" if separator == "," else separator, _BUILDERS[kind])
    return splits


def _kind(builder: Any) -> str:
    """Which of those builders it is, by name; it may be of a subclass made for one folder. Empty: another."""
    names = {c.__name__ for c in type(builder).__mro__ if c.__module__.startswith("datasets.packaged_modules.")}
    return next((name for name in (*_BUILDERS, "Cache") if name in names), "")


def _local(files: Sequence[str]) -> list[Path]:
    """Data files on this disk: fetched where they are elsewhere, unpacked where they are packed."""
    datasets = require_datasets()
    # What was unpacked before may be of another file that was here under the same name.
    download = datasets.DownloadConfig(force_extract=True)
    manager = datasets.DownloadManager(download_config=download)
    return [Path(file) for file in manager.iter_files(manager.download_and_extract(list(files)))]


def _own_cache(builder: Any) -> Path | None:
    """A cache for these very files on this disk; None where ``datasets`` tells them apart itself.

    It goes by name and time of modification in seconds of a file: one put in its place with the same time, as ``tar``
    and ``rsync`` do, would be read as the old one.
    """
    files = [Path(str(file)) for listed in (builder.config.data_files or {}).values() for file in listed]
    if not files or _kind(builder) == "ImageFolder" or not all(file.is_file() for file in files):
        return None
    facts = [(str(file), file.stat()) for file in files]
    told: list[Mapping[str, Any] | tuple[Any, ...]] = [
        (name, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino) for name, at in facts
    ]
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:32]
    return Path(require_datasets().config.HF_DATASETS_CACHE) / "fusion-workbench" / digest
