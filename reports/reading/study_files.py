"""The artifacts of a study's parent run, each read or told why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fusion_workbench.core.errors import WorkbenchError, reason
from fusion_workbench.core.parse import parse_json
from fusion_workbench.reports.reading.artifacts import Artifacts
from fusion_workbench.schema.names import Artifact, token_map_file
from fusion_workbench.system.files import read_small

# Numbers and verdicts depend on these. A study writes them all again at every start.
_NEEDED = {
    *(Artifact.STUDY, Artifact.SOURCE, Artifact.TASKS, Artifact.CELLS),
    *(Artifact.PLAN, Artifact.CONTENDERS, Artifact.LANGUAGE_MODEL, Artifact.DEPENDENCIES),
}
# What a reader raises for an artifact that means nothing; an infinite number is none of a layer.
NONSENSE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
_Read = TypeVar("_Read")


class StudyFiles:
    """Reads the artifacts of a parent run.

    Args:
        artifacts: of the study's runs.
        run_id: the parent run.
        notes: where it is told, in sentences, what is left out.
    """

    def __init__(self, artifacts: Artifacts, run_id: str, notes: list[str]) -> None:
        self._artifacts = artifacts
        self._run_id = run_id
        self._notes = notes

    def file(self, path: str) -> Path | None:
        """An artifact; None where there is none, or a damaged one that nothing depends on.

        Raises:
            WorkbenchError: it is damaged or lost, and numbers depend on it.
        """
        try:
            file = self._artifacts.file(self._run_id, path)
            if file is None and self._artifacts.is_recorded(self._run_id, path):
                raise WorkbenchError("is missing")
        except WorkbenchError as error:
            if path in _NEEDED:
                raise WorkbenchError(
                    f"{path} of the study's run {self._run_id} {error}; run the same workbench sweep again, which "
                    "writes it anew."
                ) from None
            self._notes.append(f"{path} is left out: it {error}.")
            return None
        return file

    def text(self, path: str) -> str:
        """A text that every study has; empty without it."""
        file = self.file(path)
        if file is None:
            self._notes.append(f"The study has no {path}.")
            return ""
        try:
            return read_small(file).decode("utf-8", "replace")
        except OSError as error:
            self._notes.append(f"{path} cannot be read: {reason(error)}.")
            return ""

    def json(self, path: str, default: Any) -> Any:
        """JSON of the type of ``default`` that every study has; ``default`` without it."""
        text = self.text(path)
        value = self._parsed(path, text) if text else default
        return self._of_kind(path, value, default)

    def object(self, path: str) -> Mapping[str, Any]:
        """A JSON object that older studies do not have; empty without it."""
        return dict(self._of_kind(path, self._found(path), {}))

    def list(self, path: str) -> list[Any]:
        """A JSON list that older studies do not have; empty without it."""
        return list(self._of_kind(path, self._found(path), []))

    def part(self, path: str, read: Callable[[Mapping[str, Any]], _Read]) -> _Read | None:
        """What ``read`` makes of a JSON file that older studies do not have; one it cannot read gets a note."""
        plain = self.object(path)
        try:
            return read(plain) if plain else None
        except (WorkbenchError, *NONSENSE) as error:
            why = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        self._notes.append(f"{path} is left out: {why}.")
        return None

    def picture(self, name: str) -> Path | None:
        """A picture beside ``look.json``. Raises WorkbenchError for a damaged one."""
        path = token_map_file(name)
        try:
            return self._artifacts.file(self._run_id, path)
        except WorkbenchError as error:
            raise WorkbenchError(f"{path} {error}") from None

    def _found(self, path: str) -> Any:
        file = self.file(path)
        try:
            return self._parsed(path, read_small(file)) if file else None
        except OSError as error:
            self._notes.append(f"{path} cannot be read: {reason(error)}.")
            return None

    def _parsed(self, path: str, content: str | bytes) -> Any:
        try:
            return parse_json(content)
        except ValueError:
            self._notes.append(f"{path} is not valid JSON.")
            return None

    def _of_kind(self, path: str, value: Any, default: Any) -> Any:
        """``value``, or ``default`` where it is of another type; None is of one that was told already."""
        if value is None or isinstance(value, type(default)):
            return default if value is None else value
        self._notes.append(f"{path} is left out: it holds no {'list' if isinstance(default, list) else 'mapping'}.")
        return default
