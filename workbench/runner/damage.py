"""What is damaged of a study's earlier runs, found at every start: rows of the ledger, and artifacts on this machine.

The artifacts of a finished row are held against the sha256 that the ledger has of them; outcomes are read in no time,
weights at about a gigabyte a second. A row with a damaged or missing one is trained again, the others are kept. Rows of
before 0.2 have no sha256, and artifacts that a server keeps are checked when they are read; ``variant.yaml`` is read by
nobody and moves no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.schema.checksums import from_tags, is_whole
from fusion_workbench.schema.names import Artifact, RunStatus, Status
from fusion_workbench.study.ledger import Ledger, LedgerEntry
from fusion_workbench.study.tracking import Tracker, to_json
from fusion_workbench.system.mlflow_database import artifact_folder

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from fusion_workbench.study.progress import Display

Row = tuple[LedgerEntry, str, Path]  # with the name of its MLflow run, and the folder of that run's artifacts

_SHOWN = 3  # runs that are named, of those that are trained again
# Artifacts of the parent run that say what the rows are trained on; the experiment writes them.
_DESCRIBED = (Artifact.ENCODER, Artifact.SOURCE, Artifact.TASKS, Artifact.LANGUAGE_MODEL)
# Those that are made once, and the fact in the ledger that says so.
_ONCE = {Artifact.SIMILARITY: "similarity", Artifact.IMPORTANCE: "importance", "look/": "look"}


@dataclass(frozen=True)
class Damage:
    """A finished row with an artifact that is not what was written."""

    entry: LedgerEntry
    name: str  # of its MLflow run
    path: str  # of the artifact
    missing: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.path} {'is missing' if self.missing else 'does not have its sha256'})"


def mend(ledger: Ledger, tracker: Tracker, run_id: str, display: Display) -> bool:
    """Drop what is damaged, so that this start trains or makes it again, and say so.

    Args:
        ledger: the study's own record.
        tracker: MLflow.
        run_id: the study's parent run.
        display: where it is said.

    Returns:
        Whether artifacts of the parent run are damaged, or not there yet, that say what the rows are trained on; the
        caller writes them.
    """
    if lost := ledger.drop_damaged():
        display.say(f"the ledger has {lost} damaged row{'s' if lost > 1 else ''}, which {_be(lost)} trained again")
    rows = _finished(ledger, tracker, run_id)
    size = sum(_size(folder / path) for entry, _, folder in rows for path in _weighty(entry))
    with display.step(f"checking {size / 1e9:.2f} GB of earlier results and weights"):
        found = damaged(rows)
    for one in found:
        # First in MLflow: a row that is still in the ledger is found again by whoever starts after a kill.
        tracker.close(str(one.entry.run_id), RunStatus.FAILED, Status.UNREADABLE)
        ledger.forget(one.entry.variant, one.entry.replicate)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        named = ", ".join(map(str, found[:_SHOWN]))
        display.say(f"damaged files; {len(found)} finished {_runs(found)} trained again: {named}{more}")
    parent = tracker.client.get_run(run_id)
    recorded = from_tags(parent.data.tags)
    wrong, made_again = _damaged_of_study(ledger, tracker, parent, recorded)
    for path in made_again:
        display.say(f"{path} of the study's run is damaged and is made again")
    return Artifact.SOURCE not in recorded or any(path in _DESCRIBED for path in wrong)


def damaged(rows: Sequence[Row]) -> list[Damage]:
    """The rows of which an artifact on this machine is not what was written, or is gone.

    Where none of the runs has its folder, they are out of reach, not damaged, and none is named.
    """
    if not any(folder.is_dir() for _, _, folder in rows):
        return []
    found = []
    for entry, name, folder in rows:
        for path, sha in _weighty(entry).items():
            if not is_whole(folder / path, sha):
                found.append(Damage(entry, name, path, not (folder / path).exists()))
                break
    return found


def _finished(ledger: Ledger, tracker: Tracker, run_id: str) -> list[Row]:
    """Finished rows whose run MLflow has, with its name and its folder on this machine."""
    runs = {str(run.info.run_id): run for run in tracker.child_runs(run_id)}
    found = []
    for entry in ledger.entries():
        run = runs.get(str(entry.run_id))
        if entry.finished and run is not None and (folder := _folder(tracker, run)) is not None:
            found.append((entry, str(run.info.run_name), folder))
    return found


def _weighty(entry: LedgerEntry) -> dict[str, str]:
    return {path: sha for path, sha in entry.files.items() if path != Artifact.VARIANT}


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _damaged_of_study(
    ledger: Ledger, tracker: Tracker, parent: MlflowRun, sums: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Damaged artifacts of the parent run, and those of them that no start writes again by itself: what has to happen
    for it is done."""
    folder = _folder(tracker, parent)
    if folder is None or not folder.is_dir():
        return [], []
    wrong = [path for path, sha in sorted(sums.items()) if not is_whole(folder / path, sha)]
    made_again = []
    for path in wrong:
        _make_way(folder / path, sums[path])
        fact = next((fact for start, fact in _ONCE.items() if path.startswith(start)), None)
        if fact is not None and ledger.fact(fact) is not None:
            ledger.remember(fact, None)
            made_again.append(path)
        elif path == Artifact.CONTENDERS and (entries := ledger.fact("contenders")) is not None:
            tracker.log_files(str(parent.info.run_id), {Artifact.CONTENDERS: to_json(entries)})
            made_again.append(path)
    return wrong, made_again


def _make_way(place: Path, sha: str) -> None:
    """Move a folder aside that is where a file should be; a file that was logged since lies in it."""
    if not place.is_dir():
        return
    aside = place.with_name(f"{place.name}.folder")
    place.rename(aside)
    if is_whole(aside / place.name, sha):
        (aside / place.name).rename(place)


def _folder(tracker: Tracker, run: MlflowRun) -> Path | None:
    """Where a run's artifacts are on this machine; None where a server keeps them."""
    return artifact_folder(tracker.uri, str(run.info.run_id), str(run.info.artifact_uri))


def _be(number: int) -> str:
    return "are" if number > 1 else "is"


def _runs(found: list[Damage]) -> str:
    return f"variant-replicate{'s' if len(found) > 1 else ''} {_be(len(found))}"
