"""What a study's numbers depend on besides its cells: versions, encoder, data, plan, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.parse import parse_json, parse_yaml
from fusion_workbench.reports.reading.records import StudyRecord
from fusion_workbench.schema.names import Tag

# Told by the cells, the question or the place themselves.
_REPORTED_ELSEWHERE = frozenset(
    {"name", "question", "strategies", "selections", "single_layers", "baselines", "space", "tracking"}
)
_REPORTED_ELSEWHERE |= {"plan"}  # by its hash
_REPORTED_ELSEWHERE |= {"schema"}  # by the settings that it gave


@dataclass(frozen=True)
class Change:
    """A value that differs; empty where one of the two has none."""

    what: str
    before: str
    now: str


def environment(record: StudyRecord) -> dict[str, str]:
    """Everything by name, as words. What was not tracked is left out."""
    tags, encoder_info, source, language = record.tags, record.encoder_info, record.source, record.language
    plain: dict[str, Any] = {
        "encoder": encoder_info.get("encoder"),
        "encoder revision": encoder_info.get("revision"),
        "encoder precision": encoder_info.get("precision"),
        "encoder fingerprint": encoder_info.get("fingerprint"),
        "language model": language and language.display_name,
        "source": source.version or source.name,
        **{f"source fingerprint, {split}": value for split, value in source.fingerprints.items()},
        **_dependencies(record),
        "plan hash": tags.get(Tag.PLAN),
        "commit": tags.get(Tag.COMMIT),
        "numerics": tags.get(Tag.NUMERICS),
        "trained on": tags.get(Tag.DEVICE),
        **{f"version of {name}": value for name, value in _mapping(tags.get(Tag.VERSIONS, "")).items()},
        **{f"setting {key}": value for key, value in _settings(record.study_yaml).items()},
    }
    return {what: str(value) for what, value in plain.items() if value not in (None, "")}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[Change, ...]:
    """In the order of ``now``, then what only ``before`` has."""
    names = dict.fromkeys([*now, *before])
    return tuple(Change(n, before.get(n, ""), now.get(n, "")) for n in names if before.get(n, "") != now.get(n, ""))


def _dependencies(record: StudyRecord) -> dict[str, str]:
    """Fingerprints by what they are of, but for those that are told above by other ones; the code of plug-ins."""
    tracked = record.dependencies
    if tracked is None:
        return {}
    told = {"numerics", *(f"images.{split}" for split in record.source.fingerprints)}
    prints = {f"fingerprint of {tracked.what.get(k, k)}": v for k, v in tracked.fingerprints.items() if k not in told}
    return prints | {f"code of strategy '{name}'": now for name, (_, now) in tracked.code.items()}


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        parsed = parse_json(text)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, Mapping) else {}


def _settings(text: str) -> dict[str, str]:
    """``training.epochs`` → ``8`` for every setting of study.yaml."""
    try:
        plain = parse_yaml(text, "") if text else {}
    except WorkbenchError:
        return {}
    out: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key))
        else:
            out[path] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    walk({k: v for k, v in plain.items() if k not in _REPORTED_ELSEWHERE} if isinstance(plain, Mapping) else {}, "")
    return out
