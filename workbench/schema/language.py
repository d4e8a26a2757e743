"""The language model that all cells of a study share: ``language_model.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LanguageModel:
    """The language model that all cells of a study share.

    Attributes:
        parameters: of the language model alone; None where it was not logged, likewise width and depth.
        stages: of the training, in order, by name.
        lengths: of each stage how many conversations there are, are cut and are left out for their length; none where
            that was not logged.
        probes: the study of probes of the same cells; empty where the study names none.
        controls: whether the no-image baselines were evaluated too: blank and shuffled images.
    """

    name: str
    revision: str = ""
    parameters: int | None = None
    width: int | None = None
    depth: int | None = None
    stages: tuple[str, ...] = ()
    probes: str = ""
    controls: bool = True
    lengths: tuple[tuple[int, int, int], ...] = ()

    @property
    def display_name(self) -> str:
        """With its revision, where it has one."""
        return " · ".join(filter(None, [self.name, self.revision]))

    def plain(
        self, stages: Sequence[Mapping[str, Any]], fingerprints: Mapping[str, str], max_new_tokens: int
    ) -> dict[str, Any]:
        """The content of ``language_model.json``, with what no reader needs.

        Args:
            stages: each by its ``name``, with its settings.
            fingerprints: of each split's conversations.
            max_new_tokens: of an answer, at most.
        """
        return {
            "name": self.name,
            "revision": self.revision or None,
            "width": self.width,
            "depth": self.depth,
            "parameters": self.parameters,
            "stages": [dict(stage) for stage in stages],
            "words": dict(fingerprints),
            "max_new_tokens": max_new_tokens,
            "controls": self.controls,
            "probes": self.probes,
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> LanguageModel:
        """The language model that the file describes.

        Raises:
            KeyError, TypeError, ValueError: it describes none.
        """
        stages = plain.get("stages") or ()
        if not isinstance(stages, list | tuple):
            raise TypeError("stages is no list")
        return cls(
            name=str(plain["name"]),
            revision=str(plain.get("revision") or ""),
            parameters=_whole(plain.get("parameters")),
            width=_whole(plain.get("width")),
            depth=_whole(plain.get("depth")),
            stages=tuple(_stage(stage, number) for number, stage in enumerate(stages, 1)),
            lengths=_lengths(stages),
            probes=str(plain.get("probes") or ""),
            controls=bool(plain.get("controls", True)),
        )


def _stage(stage: Any, number: int) -> str:
    return str(stage.get("name") or f"stage {number}") if isinstance(stage, Mapping) else str(stage)


def _lengths(stages: Sequence[Any]) -> tuple[tuple[int, int, int], ...]:
    keys = ("conversations", "cut", "left_out")
    if not all(isinstance(stage, Mapping) and all(isinstance(stage.get(key), int) for key in keys) for stage in stages):
        return ()
    return tuple((stage["conversations"], stage["cut"], stage["left_out"]) for stage in stages)


def _whole(value: Any) -> int | None:
    return int(value) if value is not None and math.isfinite(float(value)) else None
