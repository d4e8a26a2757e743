"""What makes a study, a variant and a seed the same again: hashes of what was asked for, which no later version moves.

Hashed is what version 1 of the study file would have written (:mod:`config.history`), with the defaults of
the version that the study was begun under.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.history import VERSIONS, as_version_1, newest, option_defaults_moved
from fusion_workbench.config.language import NOT_IDENTITY as _NOT_OF_LANGUAGE
from fusion_workbench.config.study import StudyConfig, digest, to_dict
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.names import MATCHED_STRATEGY
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.system.mlflow_database import DATABASE, sqlite_uri

if TYPE_CHECKING:
    from fusion_workbench.sweeps.space import Cell, Variant

# What may change without making it another study: it moves no result of any variant-replicate.
_NOT_OF_STUDY = (
    *("name", "question", "schema", "replicates", "plan", "tracking"),
    *("training.bank_size", "training.num_workers", "encoder.batch_size"),
)
# Where a variant is trained, and beside whom, makes it no other.
_NOT_OF_VARIANT = ("bank_size", "accelerator", "devices", "live", "num_workers")
# Settings of the training of probes that a stage of a language model has its own of, or none.
_PROBES_ALONE = ("epochs", "width", "head_hidden", "head_lr_scale", "weight_decay", "warmup")
# Strategies that a study may train without naming them: baselines and controls.
_UNNAMED = ("concat", "deep_only", "matched")

LEDGER = "ledger.db"
_NAME_BYTES, _PATH_BYTES = 255, 4096  # of a name and of a path, on every file system that is common
_BENEATH = 300  # of the longest path beneath a study's folder, or a run's among the artifacts


def study_id(study: StudyConfig) -> str:
    """16 hex digits over everything in the config that can move a result; more replicates are the same study."""
    plain = to_dict(study)
    for key in _NOT_OF_STUDY:
        head, _, tail = key.partition(".")
        if tail:
            plain[head].pop(tail)
        else:
            plain.pop(head)
    for key in _NOT_OF_LANGUAGE if "language_model" in plain else ():
        plain["language_model"].pop(key)
    for strategy in plain["strategies"]:
        for part in ("options", "choices"):
            strategy[part] = as_version_1(strategy[part], strategy["name"])
    first = as_version_1(plain)
    names = sorted({*_UNNAMED, *(strategy.name for strategy in study.strategies)})
    moved = {name: defaults for name in names if (defaults := option_defaults_moved(study.schema, name))}
    return digest(first | ({"option_defaults": moved} if moved else {}))


def folder_of(workspace: Path, name: str, identity: str) -> Path:
    """A study's own folder: ledger, Optuna journal, resolved YAML."""
    return workspace / "studies" / f"{name}-{identity}"


def check_place(study: StudyConfig, workspace: Path) -> None:
    """Whether the study's files can have their names in ``workspace``, before there are any.

    Raises:
        WorkbenchError: a name is too long, or MLflow's database would lie elsewhere than its address says.
    """
    folder = folder_of(workspace.absolute(), study.name, study_id(study))
    name, path = len(os.fsencode(folder.name)), len(os.fsencode(folder))
    if name > _NAME_BYTES:
        raise WorkbenchError(
            f"the name '{study.name[:40]}…' is too long: the study's folder would have a name of {name} bytes, and "
            f"{_NAME_BYTES} are possible; give it a shorter one with name=…"
        )
    if path + _BENEATH > _PATH_BYTES or any(len(part) > _NAME_BYTES for part in map(os.fsencode, folder.parts)):
        raise WorkbenchError(
            f"the path of the workspace is too long ({len(os.fsencode(workspace.absolute()))} bytes: "
            f"{str(workspace)[:40]}…); choose another with --workspace."
        )
    if not study.tracking.uri:
        sqlite_uri(workspace / DATABASE)


def as_begun(make: Callable[[int], StudyConfig], workspace: Path) -> StudyConfig:
    """A study under the version of the schema that it was begun under in ``workspace``; a new one under the newest.

    Args:
        make: the study, with the defaults of a version for all that its user did not write.
        workspace: the folder whose ``studies`` are looked through.

    Raises:
        WorkbenchError: as ``make`` under the newest version, or a ledger that cannot be opened.
    """
    made: dict[int, StudyConfig] = {}
    for version in sorted(VERSIONS, reverse=True):
        try:
            study = make(version)
        except WorkbenchError:  # of an earlier version: then no study was begun under it
            if version == newest():
                raise
            continue
        made.setdefault(study.schema, study)  # one alone where the user names the version
    for study in made.values():
        check_place(study, workspace)
        ledger = folder_of(workspace, study.name, study_id(study)) / LEDGER
        if ledger.is_file():
            # Where versions differ in the plan alone, say, the ids are the same, and the ledger knows which it was.
            begun = made.get(_begun_under(ledger), study)
            return begun if study_id(begun) == study_id(study) else study
    return made[max(made)]


def _begun_under(path: Path) -> int:
    ledger = Ledger(path)
    try:
        return int(ledger.fact("schema") or 1)
    finally:
        ledger.close()


def remember_schema(study: StudyConfig, ledger: Ledger) -> None:
    """Keep with the study, once, the version that it was begun under; one that says nothing is of version 1."""
    if ledger.fact("schema") is None:
        ledger.remember("schema", 1 if ledger.fact("run_id") is not None else study.schema)


def variant(study: StudyConfig, cell: Cell, lr: float, code: str = "") -> Variant:
    """A cell at a learning rate, under the study's training; ``code``: see :class:`sweeps.space.Variant`."""
    from fusion_workbench.sweeps.space import Variant

    return Variant(cell, lr, tuple(sorted(training_identity(study).items())), code)


def strategies_of(cell: Cell) -> tuple[str, ...]:
    """The strategies whose code a cell runs: its own, and of a control the one that it is matched to."""
    like = dict(cell.options).get("like") if cell.strategy == MATCHED_STRATEGY else None
    return (cell.strategy, like) if isinstance(like, str) and like else (cell.strategy,)


def training_identity(study: StudyConfig) -> dict[str, Any]:
    """The training settings that move a variant's weights: all but where it runs and beside whom."""
    plain: dict[str, Any] = dict(to_dict(study)["training"])
    for name in _NOT_OF_VARIANT:
        plain.pop(name)
    plain["tasks"] = ",".join(study.tasks)
    if study.language_model is not None:
        for name in _PROBES_ALONE:
            plain.pop(name)
        plain["language_model"] = language_identity(study)
    return plain


def language_identity(study: StudyConfig) -> str:
    """16 hex digits over everything about the language model that moves a weight or an answer."""
    plain = {k: v for k, v in to_dict(study)["language_model"].items() if k not in _NOT_OF_LANGUAGE}
    return digest(as_version_1({"language_model": plain})["language_model"])


def seed_of(*parts: str) -> int:
    """A 63-bit seed from words: the same on every machine."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big") >> 1
