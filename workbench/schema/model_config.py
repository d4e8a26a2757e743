"""What stands in ``config.json`` of an exported connector, of a whole model, and of the weights that a run keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fusion_workbench.core.errors import WorkbenchError


@dataclass(frozen=True)
class Kind:
    """What a value must be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]

    def or_none(self) -> Kind:
        return Kind(f"{self.words}, or null", lambda value: value is None or self.fits(value))


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _listed(value: Any, fits: Callable[[Any], bool], count: int | None = None) -> bool:
    return isinstance(value, list) and (count is None or len(value) == count) and all(map(fits, value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a name", lambda value: isinstance(value, str) and bool(value.strip()))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number above 0", lambda value: _whole(value, 1))
LAYER = Kind("a layer's number", lambda value: _whole(value, 0))
LAYERS = Kind("a list of layers' numbers", lambda value: _listed(value, lambda layer: _whole(layer, 0)))
NUMBER = Kind("a number of 0 or more", lambda value: _number(value) and value >= 0)
BYTES = Kind("three numbers from 0 to 255", lambda value: _listed(value, lambda v: _whole(v, 0) and v <= 255, 3))
PAIR = Kind("two whole numbers above 0", lambda value: _listed(value, lambda side: _whole(side, 1), 2))
SIZE = Kind("a number of pixels, or height and width", lambda value: COUNT.fits(value) or PAIR.fits(value))
TABLE = Kind("names and their values", lambda value: isinstance(value, dict))

_ENCODER = {
    "encoder": TABLE,
    "encoder.encoder": NAME,
    "encoder.revision": NAME.or_none(),
    "encoder.family": TEXT,
    "encoder.depth": COUNT,
    "encoder.image_size": SIZE,
    "encoder.grid": PAIR,
    "encoder.precision": NAME,
    "encoder.fingerprint": NAME,
}
_FUSER = {
    "strategy": NAME,
    "options": TABLE,
    "levels": LAYERS,
    "query": LAYER,
    "projector": NAME,
    "width": COUNT,
}
TRAINED: Mapping[str, Kind] = {**_FUSER, **_ENCODER, "dim": COUNT, "training": TABLE, "lr": NUMBER}
CONNECTOR: Mapping[str, Kind] = {**_FUSER, **_ENCODER, "encoder.dim": COUNT, "layers": LAYERS}
MODEL: Mapping[str, Kind] = {
    **_ENCODER,
    "encoder.dim": COUNT,
    "adapter": TABLE,
    **{f"adapter.{key}": kind for key, kind in _FUSER.items()},
    "adapter.dim": COUNT,
    "adapter.depth": COUNT,
    "adapter.grid": PAIR.or_none(),
    "adapter.projector_norm": FLAG,
    "adapter.output_rms": NUMBER,
    "layers": LAYERS,
    "language": TABLE,
    "language.name": NAME,
    "language.revision": NAME.or_none(),
    "language.kept": Kind("named, lora or own", lambda value: value in ("named", "lora", "own")),
    "language.precision": NAME,
    "language.fingerprint": NAME,
    "chat": TABLE,
    "chat.system": TEXT.or_none(),
    "chat.max_length": COUNT,
    "images": TABLE,
    "images.padding": NAME,
    "images.background": BYTES,
}
CHAT: Mapping[str, Kind] = {"chat.images_apart": FLAG.or_none()}
LORA: Mapping[str, Kind] = {
    "language.lora": TABLE,
    "language.lora.rank": COUNT,
    "language.lora.alpha": NUMBER,
    "language.lora.dropout": NUMBER,
    "language.lora.targets": Kind("a list of names", lambda value: _listed(value, NAME.fits)),
}


def check_config(config: Any, wanted: Mapping[str, Kind], where: str) -> None:
    """Hold a config against what must stand in it, before anything is made of it.

    Args:
        wanted: by dotted path, tables before what is in them.
        where: the file, for the message.

    Raises:
        WorkbenchError: the first value that is missing or no such.
    """
    if not isinstance(config, dict):
        raise WorkbenchError(f"{where} holds a {type(config).__name__} where names and their values should be.")
    for path, kind in wanted.items():
        *tables, key = path.split(".")
        table = config
        for name in tables:
            table = table[name]  # was held against TABLE before
        if key not in table:
            raise WorkbenchError(f"{where} lacks {path}, which is {kind.words}; it is cut or of something else.")
        if not kind.fits(table[key]):
            raise WorkbenchError(f"{where}: {path} is {str(table[key])[:40]!r}; it must be {kind.words}.")
