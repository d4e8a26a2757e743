"""sha256 of what is written, so that it can be held against it when it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(content: str | bytes | Path) -> str:
    """In hex, of text as UTF-8, of bytes, or of a file's. Raises OSError."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode("utf-8") if isinstance(content, str) else content).hexdigest()
