"""What ``workbench store`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.config.study import StudyConfig

if TYPE_CHECKING:
    from rich.console import Console


def show(console: Console, workspace: Path) -> None:
    """A row for each store."""
    from rich.table import Table

    from fusion_workbench.datamodules.store.listing import list_stores

    stores = list_stores(workspace / "store")
    if not stores:
        console.print(
            f"no features are stored in {workspace / 'store'}; a study makes them, or: workbench store build STUDY"
        )
        return
    table = Table("key", "encoder", "source", "images", "layers", "dtype", "size")
    for store in stores:
        layers = ",".join(map(str, store.layers))
        row = (
            store.key,
            store.encoder,
            f"{store.source} at {store.image_size} px",
            f"{store.images:,}",
            layers,
            store.dtype,
        )
        table.add_row(*row, f"{store.bytes / 1e6:,.0f} MB")
    console.print(table)


def build(console: Console, study: StudyConfig, workspace: Path, progress: bool) -> None:
    """Encode what ``study`` can read and the store lacks. Raises WorkbenchError as the study would."""
    from fusion_workbench.study.dependencies import of_features, store_notes
    from fusion_workbench.study.prepare import prepare
    from fusion_workbench.sweeps.planner import Planner

    parts = prepare(study, workspace, progress)
    if parts.store is None:
        console.print("training.live is true: this study encodes every batch anew and stores nothing")
        return
    for note in store_notes(parts, of_features(parts)):
        console.print(note, highlight=False)
    layers = Planner(parts.space, study.search, None, "plan").layers()
    stats = parts.store.build(layers, batch_size=study.encoder.batch_size, progress=progress)
    if stats.images:
        console.print(
            f"encoded {stats.images:,} images, layers {layers}, {stats.images / stats.seconds:.0f} images/s",
            highlight=False,
        )
    else:
        console.print(f"layers {layers} are already there", highlight=False)
    console.print(f"next: workbench sweep {study.name}", highlight=False)


def verify(console: Console, workspace: Path) -> bool:
    """Hash every shard anew; True when all are whole."""
    from fusion_workbench.datamodules.store.listing import list_stores, verify_store

    root = workspace / "store"
    bad = {store.key: verify_store(root, store.key) for store in list_stores(root)}
    for key, paths in bad.items():
        console.print(
            f"{key}: " + (f"{len(paths)} bad file{'s' if len(paths) > 1 else ''}" if paths else "whole"),
            highlight=False,
        )
        for path in paths:
            console.print(f"  {path}", highlight=False)
    if any(bad.values()):
        console.print("what is bad is encoded again by the next study that needs it, or: workbench store build STUDY")
    return not any(bad.values())


def remove(console: Console, workspace: Path, key: str) -> None:
    """Delete one store. Raises WorkbenchError when there is no such store."""
    from fusion_workbench.datamodules.store.listing import remove_store

    remove_store(workspace / "store", key)
    console.print(f"removed {key}", highlight=False)
