"""sha256 of a run's artifacts and metrics, kept as tags of the run: what a reader holds files and numbers against.

One tag would soon be longer than MLflow takes, so there are as many as it needs: ``workbench.sha256``,
``workbench.sha256.1``, …, each a JSON object of paths. While a file is replaced its tag holds both sums, separated by a
space, so that whoever is killed in between leaves nothing that a reader would refuse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from fusion_workbench.schema.names import Tag, is_own_metric
from fusion_workbench.system.checksums import sha256_of

_INFINITE = 1e308  # MLflow's databases keep the largest float for it
_MOST = 4000  # characters of a tag; MLflow takes 5,000 to 8,000, by its version


def to_tags(sums: Mapping[str, str]) -> dict[str, str]:
    """Tags that hold the sums of a run, path → sha256 in hex."""
    pieces: list[dict[str, str]] = [{}]
    length = 0
    for path, sha in sorted(sums.items()):
        length += len(json.dumps({path: sha})) + 2
        if length > _MOST:
            pieces.append({})
            length = len(json.dumps({path: sha})) + 2
        pieces[-1][path] = sha
    named = (Tag.SHA256 + (f".{number}" if number else "") for number in range(len(pieces)))
    return {name: json.dumps(piece) for name, piece in zip(named, pieces, strict=True)}


def from_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The sums that a run's tags hold; empty of a run of before 0.2.

    A tag that cannot be read stands under its own name with a sum that nothing has, so that its run is not taken for
    one that never had any.
    """
    sums: dict[str, str] = {}
    for key, text in sorted(tags.items()):
        if not is_of_sums(key):
            continue
        try:
            sums |= {str(path): str(sha) for path, sha in json.loads(text).items()}
        except (ValueError, AttributeError, RecursionError):
            sums[key] = ""
    return sums


def is_of_sums(tag: str) -> bool:
    """Whether a tag is one of those that hold sums."""
    return tag == Tag.SHA256 or tag.startswith(f"{Tag.SHA256}.")


def fits(recorded: str, sha: str) -> bool:
    """Whether a file of ``sha`` is one that was recorded."""
    return sha in recorded.split()


def is_whole(file: Path, recorded: str) -> bool:
    """Whether a file can be read and is one that was recorded."""
    try:
        return fits(recorded, sha256_of(file))
    except OSError:
        return False


def of_metrics(metrics: Mapping[str, float]) -> str:
    """16 hex digits over the finite last values of the metrics that a study writes, to nine significant digits.

    What others add to a run, and what MLflow measures of the machine, does not count.

    Args:
        metrics: name → last value.
    """
    known = sorted((k, v) for k, v in metrics.items() if is_own_metric(k) and abs(v) < _INFINITE)
    return sha256("\n".join(f"{key}={value:.9g}" for key, value in known).encode()).hexdigest()[:16]
