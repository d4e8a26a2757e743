"""``config.json`` of a transformers model, held against what it can say before anything is made of it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.parse import parse_json

CONFIG = "config.json"
MOST_BLOCKS = 10_000  # an order of magnitude above the deepest that anybody trained
_COUNTS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "patch_size", "image_size")


def read_pretrained_config(name: str, revision: str | None, what: str, unknown: str) -> Any:
    """The config of a folder or hub name.

    Args:
        what: the model in messages, such as ``encoder 'my/folder'``.
        unknown: what is said of a name that leads nowhere, such as ``cannot be had``.

    Raises:
        WorkbenchError: there is none, it is broken, it is timm's or an adapter's, or it names sizes that no model has.
    """
    from transformers import AutoConfig, PretrainedConfig

    folder = Path(name).is_dir()
    if folder:
        if (Path(name) / "adapter_config.json").is_file():
            raise WorkbenchError(an_adapter(what))
        plain = _plain(Path(name), what)
        _refuse_timm(plain, what)
        for part in (plain, plain.get("vision_config"), plain.get("text_config")):
            if isinstance(part, dict):
                _check_counts(part.get, what)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        if isinstance(error, ImportError) and "timm" in str(error).lower():
            raise WorkbenchError(_timm(what, "")) from None
        reason = first_line(error)
        raise WorkbenchError(f"{what}: its {CONFIG}: {reason}" if folder else f"{what} {unknown}: {reason}") from None
    for part in (config, getattr(config, "vision_config", None), getattr(config, "text_config", None)):
        if isinstance(part, PretrainedConfig):
            check_sizes(part, what)
    return config


def check_sizes(config: Any, what: str, needed: tuple[str, ...] = ()) -> None:
    """Raises WorkbenchError where a config counts something by what is no positive whole number, or holds NaN.

    Args:
        needed: names that must be there.
    """
    for key in needed:
        if getattr(config, key, None) is None:
            raise WorkbenchError(f"{what}: its {CONFIG} names no {key}.")
    _check_counts(lambda key: getattr(config, key, None), what)
    for key, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise WorkbenchError(f"{what}: its {CONFIG} says {key} {value}; it must be a number.")


def check_described(folder: Path, make: Callable[[Any], Any], config: Any, what: str) -> None:
    """Hold the size of the model that a config describes against its weights, before memory is taken for it.

    Args:
        make: the model from a config; called for shapes alone.

    Raises:
        WorkbenchError: the config makes no model, or one of more than twice the parameters that the files hold.
    """
    import torch

    stored = stored_weights(folder)
    if stored is None or getattr(config, "quantization_config", None) is not None:
        return
    numbers, tensors = stored
    if (blocks := getattr(config, "num_hidden_layers", 0)) > tensors:  # each has one at least
        raise WorkbenchError(f"{what}: its {CONFIG} says {blocks:,} blocks, and its weights hold {tensors} tensors.")
    try:
        with torch.device("meta"):
            described = sum(parameter.numel() for parameter in make(copy.deepcopy(config)).parameters())
    except Exception as error:  # an architecture may fail in any way
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise WorkbenchError(f"{what}: its {CONFIG} makes no model ({reason}).") from None
    if described > 2 * numbers:
        raise WorkbenchError(
            f"{what}: its {CONFIG} describes a model of {described:,} parameters, and its weights hold {numbers:,}; "
            "they are of different models."
        )


def an_adapter(what: str) -> str:
    """The error of a folder of peft, whose missing weights transformers does not tell."""
    return (
        f"{what} is the adapter of another model (adapter_config.json of peft); merge it into that model "
        "(merge_and_unload, save_pretrained) and name the merged folder."
    )


def _check_counts(get: Callable[[str], Any], what: str) -> None:
    for key in _COUNTS:
        value = get(key)
        sides = value if isinstance(value, list | tuple) else [value]
        if value is not None and not (sides and all(type(side) is int and side > 0 for side in sides)):
            raise WorkbenchError(f"{what}: its {CONFIG} says {key} {value!r}; it must be a whole number above 0.")
    if (blocks := get("num_hidden_layers")) is not None and blocks > MOST_BLOCKS:
        raise WorkbenchError(f"{what}: its {CONFIG} says {blocks:,} blocks; no model has more than {MOST_BLOCKS:,}.")


def _plain(folder: Path, what: str) -> Mapping[str, Any]:
    """``config.json`` as it stands."""
    path = folder / CONFIG
    if not path.is_file():
        raise WorkbenchError(f"{what}: the folder holds no {CONFIG}; it must be a transformers model folder.")
    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{what}: its {CONFIG} cannot be read as JSON ({first_line(error)}).") from None
    if not isinstance(plain, dict):
        raise WorkbenchError(
            f"{what}: its {CONFIG} holds {json.dumps(plain)[:20]}; it must hold names and their values."
        )
    return plain


def _refuse_timm(plain: Mapping[str, Any], what: str) -> None:
    kind = plain.get("model_type")
    if kind == "timm_wrapper" or (kind is None and "pretrained_cfg" in plain):
        raise WorkbenchError(_timm(what, str(plain.get("architecture", ""))))


def _timm(what: str, architecture: str) -> str:
    named = f" ('{architecture}')" if architecture else ""
    return (
        f"{what} is a checkpoint of timm{named}, which is not read, with timm installed or without: its hidden states "
        "have no family here. Name a checkpoint of the same model in transformers' own form; workbench layers "
        "--families lists what is read."
    )


def stored_weights(folder: Path) -> tuple[int, int] | None:
    """How many numbers and tensors the safetensors files of a folder hold, from their headers; None: cannot be told."""
    from safetensors import SafetensorError, safe_open

    numbers = tensors = 0
    try:
        files = set(folder.glob("*.safetensors"))
        for index in folder.glob("*.safetensors.index.json"):
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files |= {folder / shard for shard in shards.values()}
        for path in files:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118
                    numbers += math.prod(file.get_slice(key).get_shape())
                    tensors += 1
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None  # said when they are read
    return (numbers, tensors) if files else None
