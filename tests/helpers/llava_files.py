"""Small LLaVA files for the tests: real images on disk, rows that name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, width: int = 20, height: int = 12, seed: int = 0) -> Path:
    """A PNG or JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def row(image: str | list[str] | None, *words: str, **more: Any) -> dict[str, Any]:
    """``words`` of the user and the assistant in turn."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(words)]
    shown = {} if image is None else {"image": image}
    return {"id": f"id-{image}", **shown, "conversations": turns, **more}


def caption(image: str, **more: Any) -> dict[str, Any]:
    return row(image, "<image>\nWhat is this?", f"It is {image}.", **more)


def write(path: Path, rows: Sequence[Any]) -> Path:
    """JSON by the suffix, else JSON lines; a string is written as the line that it is."""
    if path.suffix == ".json":
        path.write_text(json.dumps(list(rows), indent=1), encoding="utf-8")
    else:
        lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
