"""What a study depends on, held against what its finished rows were trained under.

The fingerprints of :mod:`study.dependencies` are taken before anything is encoded or trained, and remembered with the
study. Where one has changed since, new rows would stand beside others that do not compare with them: that is refused,
or, with ``--accept-change``, done, written down and reported. A study that trains nothing is never refused.

The code of a plug-in's strategy is the business of its own cells: changed code makes other variants of them, which
are trained anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.code import code_hash
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.schema.dependencies import (
    NOT_RECORDED,
    AcceptedChange,
    Changed,
    TrackedDependencies,
    combined,
)
from fusion_workbench.schema.names import Artifact, LedgerState, Tag
from fusion_workbench.study.dependencies import dependencies, listed
from fusion_workbench.study.identity import strategies_of
from fusion_workbench.study.ledger import Ledger
from fusion_workbench.study.prepare import Parts
from fusion_workbench.study.provenance import environment
from fusion_workbench.study.tracking import Tracker, to_json
from fusion_workbench.system.scratch import scratch_folder
from fusion_workbench.version import NUMERICS

if TYPE_CHECKING:
    from fusion_workbench.study.progress import Display
    from fusion_workbench.sweeps.space import Cell

FACT = "dependencies"  # in the ledger
NUMERICS_FACT = "numerics"  # in the ledger, a list in the order of training; 0.1.0 did not record its own, which are 1
ENVIRONMENTS_FACT = "environments"  # in the ledger, what rows were trained with and on, each once
BUILT_IN = "built-in"  # in the place of the hash of a plug-in's code that the workbench's own has taken


class DependencyCheck:
    """The dependencies of one study that is being run.

    Args:
        parts: the prepared study.
        ledger: the study's own record.
        tracker: MLflow.
        run_id: the study's parent run.
        display: what is accepted is said there.
        accept: go on where a dependency has changed.
    """

    def __init__(
        self, parts: Parts, ledger: Ledger, tracker: Tracker, run_id: str, display: Display, accept: bool = False
    ) -> None:
        self.parts, self.ledger, self.tracker = parts, ledger, tracker
        self.run_id, self.display, self.accept = run_id, display, accept
        self.checked = False

    @cached_property
    def now(self) -> dict[str, str]:
        """The fingerprints of what is there now. Raises WorkbenchError."""
        return dependencies(self.parts)

    # --- when a study is opened -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Recognise the code of plug-ins, and take the fingerprints of a study that has rows and no record yet.

        Never refuses: nothing is trained so far. Raises WorkbenchError where the ledger cannot be written.
        """
        numerics = (self.ledger.fact(NUMERICS_FACT) or [1]) if self._rows else [NUMERICS]
        self._record_numerics(numerics)
        self._recognise_code()
        if self._rows and self._tracked is None:
            self._take_late()
        elif self._tracked is not None:
            self._write(self._tracked)

    def _take_late(self) -> None:
        """Of a study of before 0.2: what is there now counts as what there was, unless its record knows better."""
        try:
            before, _ = self._before()
            lost = [str(one) for one in self._changed(before) if one.name != "numerics"]
        except WorkbenchError as error:  # it may be that nothing is trained
            self.display.say(f"note: what study '{self.parts.study.name}' depends on could not be read: {error}")
            return
        if lost:
            self.display.say(
                f"note: since study '{self.parts.study.name}' was trained have changed: {', '.join(lost)}. Its rows "
                "stay as they are; new ones are refused."
            )
            return
        self._remember(TrackedDependencies(before, self._what, NOT_RECORDED, code=self._code))

    # --- before anything is encoded or trained ----------------------------------------------------------------------

    def check(self) -> None:
        """Hold what is there now against the record, and remember it; once.

        Raises:
            WorkbenchError: new rows would stand beside finished ones of other dependencies; what cannot be read.
        """
        if self.checked:
            return
        with self.display.step("reading what the study depends on"):
            now = self.now
            before, recorded = self._before() if self._rows else (now, "")
        tracked = self._tracked or TrackedDependencies(before, self._what, recorded)
        changed = self._changed(before)
        if changed and not self.accept:
            raise WorkbenchError(self._refusal(changed))
        change = None
        if before != now:
            when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            change = AcceptedChange(when, self._finished, combined(before), combined(now), tuple(changed))
        if changed:
            listed_changes = ", ".join(map(str, changed))
            self.display.say(f"accepted, and told in the report: changed since its earlier rows: {listed_changes}")
            shutil.rmtree(self._checkpoints, ignore_errors=True)  # half a training must not end under another half's
        code = self._tracked.code if self._tracked else self._code
        self._remember(replace(tracked.under(now, self._what, change), code=code))
        self.checked = True

    def _refusal(self, changed: list[Changed]) -> str:
        rows = self._finished
        those = f"its {rows} finished variant-replicates" if rows else "its interrupted trainings"
        return (
            f"study '{self.parts.study.name}': changed since {those} were trained: {', '.join(map(str, changed))}. New "
            "ones would not compare with them: restore what was there, begin a new study with another name=…, or go on "
            "with --accept-change, which the report tells."
        )

    def differs(self) -> bool:
        """Whether finished rows were trained under anything else than what is there now; never raises for a user."""
        try:
            return self._rows and bool(self._changed(self._before()[0]))
        except WorkbenchError:
            return True

    # --- of every row -----------------------------------------------------------------------------------------------

    def tags(self, cell: Cell) -> dict[Tag, str]:
        """What a run of ``cell`` that is trained now says of itself."""
        numerics = self.ledger.fact(NUMERICS_FACT) or []
        if NUMERICS not in numerics:
            self._record_numerics([*numerics, NUMERICS])
        environment = json.dumps(self._environment)
        if environment not in (known := self.ledger.fact(ENVIRONMENTS_FACT) or []):
            self.ledger.remember(ENVIRONMENTS_FACT, [*known, environment])
        tags = {Tag.DEPENDENCIES: combined(self.now), Tag.ENVIRONMENT: environment}
        code = {name: pair[1] for name in strategies_of(cell) if any(pair := self._code.get(name, ("", "")))}
        return tags | ({Tag.CODE: json.dumps(code)} if code else {})

    @cached_property
    def _environment(self) -> dict[str, str]:
        return environment(self.parts)

    # --- then and now -----------------------------------------------------------------------------------------------

    @cached_property
    def _what(self) -> dict[str, str]:
        return {one.name: one.what for one in listed(self.parts)}

    @property
    def _tracked(self) -> TrackedDependencies | None:
        plain = self.ledger.fact(FACT)
        try:
            tracked = TrackedDependencies.read(plain) if plain else None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise WorkbenchError(
                f"the study's ledger {self.ledger.path} holds a record of dependencies that is none."
            ) from None
        return tracked if tracked and tracked.fingerprints else None

    @property
    def _finished(self) -> int:
        return sum(entry.state == LedgerState.DONE for entry in self.ledger.entries())

    @property
    def _checkpoints(self) -> Path:
        return self.parts.folder / "checkpoints"

    @property
    def _rows(self) -> bool:
        """Whether there is anything that new rows would stand beside, half a training included."""
        return self._finished > 0 or any(path.is_file() for path in self._checkpoints.rglob("*"))

    def _changed(self, before: Mapping[str, str]) -> list[Changed]:
        """What is not what it was. What an earlier version did not fingerprint counts as unchanged, but for code."""
        was = self._tracked.what if self._tracked else {}
        names = [name for name in self.now if name in before or name.startswith("code.")]
        names += [name for name in before if name not in self.now]
        return [
            Changed(name, self._what.get(name) or was.get(name, name), before.get(name, ""), self.now.get(name, ""))
            for name in names
            if before.get(name, "") != self.now.get(name, "")
        ]

    def _before(self) -> tuple[dict[str, str], str]:
        """The fingerprints of the newest rows, and where they were not recorded, the words for that."""
        if self._tracked is not None:
            return dict(self._tracked.fingerprints), self._tracked.recorded
        # 0.1 kept fingerprints of encoder, images and words beside its numbers, each by a hash of another kind.
        before = self.now | {"numerics": str((self.ledger.fact(NUMERICS_FACT) or [1])[-1])}
        encoder, source = (self._artifact(name) for name in (Artifact.ENCODER, Artifact.SOURCE))
        if known := encoder.get("fingerprint"):
            precision = str(encoder.get("precision") or self.parts.encoder.precision)
            if self.parts.encoder.fingerprint_under(precision) != known:
                before["encoder.weights"] = str(known)
        pictures, words = source.get("fingerprints"), self.ledger.fact("words")
        for split, known in pictures.items() if isinstance(pictures, Mapping) else ():
            if self.parts.source.fingerprint(split) != known:
                before[f"images.{split}"] = str(known)
        for split, known in words.items() if isinstance(words, Mapping) else ():
            if self.now.get(f"conversations.{split}") != known:
                before[f"conversations.{split}"] = str(known)
        return before, NOT_RECORDED

    def _artifact(self, name: str) -> dict[str, Any]:
        """A JSON artifact of the parent run; empty where there is none that can be read."""
        try:
            with scratch_folder() as folder:
                plain = json.loads(
                    Path(self.tracker.client.download_artifacts(self.run_id, name, str(folder))).read_bytes()
                )
        except Exception:  # MLflow raises many kinds
            return {}
        return plain if isinstance(plain, dict) else {}

    # --- code of strategies -----------------------------------------------------------------------------------------

    @cached_property
    def _code(self) -> dict[str, tuple[str, str]]:
        """Strategy → hash of its code when the study was begun, and now; of plug-ins alone."""
        from fusion_workbench.modules.fusion import STRATEGIES

        first = self._tracked.code if self._tracked else {}
        pairs = {}
        for strategy in self.parts.study.strategies:
            registry: Mapping[str, Any] = STRATEGIES
            if strategy.name not in registry:
                from fusion_workbench.modules.language.injection import INJECTIONS

                registry = INJECTIONS
            now = code_hash(registry[strategy.name].cls)
            before = first.get(strategy.name, (now, now))[0]
            if now or before:
                pairs[strategy.name] = (before, now or BUILT_IN)
        return pairs

    def _recognise_code(self) -> None:
        changed = {name: now for name, (first, now) in self._code.items() if first != now}
        self.parts.new_code.update(changed)
        tracked = self._tracked
        if tracked is None or dict(tracked.code) == self._code:
            return
        self._remember(replace(tracked, code=self._code))
        for name in changed:
            self.display.say(
                f"the code of strategy '{name}' has changed since the study was begun: its cells are trained again, "
                "and rows of other code are left out of the report"
            )

    # --- writing down -----------------------------------------------------------------------------------------------

    def _record_numerics(self, numerics: list[int]) -> None:
        self.ledger.remember(NUMERICS_FACT, numerics)
        self.tracker.set_tags(self.run_id, {Tag.NUMERICS: ", ".join(map(str, numerics))})

    def _remember(self, tracked: TrackedDependencies) -> None:
        self.ledger.remember(FACT, tracked.plain())
        self._write(tracked)

    def _write(self, tracked: TrackedDependencies) -> None:
        self.tracker.log_files(self.run_id, {Artifact.DEPENDENCIES: to_json(tracked.plain())})
