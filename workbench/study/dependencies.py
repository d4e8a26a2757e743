"""Everything that a study's numbers depend on and its id does not tell, by name, each with a hash of its content.

The id of a study says what was asked for: the *name* of an encoder, of a folder of pictures, of a task. What stands
behind the name may be replaced. :func:`listed` is the whole list; a new kind of input belongs here, and nowhere else.
Hashes are taken of full contents: a rotten bit keeps a file's size and time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion_workbench.core.code import code_hash
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.conversations.base import ConversationSource
from fusion_workbench.datamodules.sources.base import SPLITS, Source
from fusion_workbench.system.model_files import content_hash, model_files, weight_files
from fusion_workbench.version import NUMERICS

if TYPE_CHECKING:
    from fusion_workbench.modules.encoders.families import Family
    from fusion_workbench.study.language_parts import LanguageParts
    from fusion_workbench.study.prepare import Parts

_CONFIGS = ("config.json", "generation_config.json")
# Whatever a tokenizer of transformers reads, with its chat template.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    *("chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class Dependency:
    """One thing that numbers depend on.

    Attributes:
        name: for the record, such as ``images.test``.
        what: in words, to be followed by "has changed".
        take: its fingerprint, by reading all of it. Raises WorkbenchError.
    """

    name: str
    what: str
    take: Callable[[], str]


def dependencies(parts: Parts) -> dict[str, str]:
    """Name → fingerprint of everything that the numbers of a study depend on besides what its id tells.

    Reads weights, images and words in full.

    Raises:
        WorkbenchError: something cannot be read, or is an embedded asset with other bytes than were made.
    """
    return {one.name: one.take() for one in listed(parts)}


def listed(parts: Parts) -> list[Dependency]:
    """Every dependency of a study; nothing is read yet."""
    return [*_encoder(parts), *_sources(parts), *_language_model(parts), *_numerics(), *_plugins(parts)]


def store_notes(parts: Parts, fingerprints: Mapping[str, str]) -> list[str]:
    """Hold every store that a study reads against the images as they are now.

    Returns:
        A line for each split whose features were of other images, and are given up.
    """
    every = {"": parts.features, **{f"stage.{name}.": own for name, own in parts.models.stage_features.items()}}
    return [
        f"feature store: the {split} split has other images than were encoded, and is encoded anew"
        for prefix, features in every.items()
        for split in SPLITS
        if features.store is not None
        and (content := fingerprints.get(f"{prefix}images.{split}"))
        and features.store.hold_against(split, content)
    ]


def of_features(parts: Parts) -> dict[str, str]:
    """:func:`dependencies` of what is stored alone: the encoder and the images. Raises as that."""
    return {one.name: one.take() for one in listed(parts) if re.search(r"(^|\.)images\.|^encoder\.", one.name)}


# --- encoder --------------------------------------------------------------------------------------------------------


def _encoder(parts: Parts) -> Iterator[Dependency]:
    encoder, name = parts.encoder, parts.study.encoder.name

    def weights() -> str:
        _check_asset(name)
        return encoder.weights_fingerprint

    yield Dependency("encoder.weights", f"the weights of encoder '{name}'", weights)
    yield Dependency(
        "encoder.config", f"config or preprocessing of encoder '{name}'", lambda: encoder.config_fingerprint
    )


# --- data -----------------------------------------------------------------------------------------------------------


def _sources(parts: Parts) -> Iterator[Dependency]:
    """The study's source in its three splits, and the training split of every source that a stage has of its own."""
    yield from _source(parts.source, parts.study.source.name, SPLITS, "", "")
    for stage, features in parts.models.stage_features.items():
        if features.source is not parts.source:
            yield from _source(
                features.source, features.source.name, ("train",), f"stage.{stage}.", f" of stage '{stage}'"
            )


def _source(source: Source, name: str, splits: tuple[str, ...], prefix: str, of: str) -> Iterator[Dependency]:
    for split in splits:
        where = f"the {split} split of source '{name}'{of}"
        yield Dependency(f"{prefix}images.{split}", f"the images in {where}", partial(source.content, split))
        yield Dependency(
            f"{prefix}targets.{split}",
            f"the targets or names in {where}",
            partial(targets_fingerprint, source, split),
        )
        if isinstance(source, ConversationSource):
            yield Dependency(
                f"{prefix}conversations.{split}",
                f"the conversations in {where}",
                partial(source.text_fingerprint, split),
            )


def targets_fingerprint(source: Source, split: str) -> str:
    """sha256 over the targets of a split, and the names and groups of its examples."""
    sha = hashlib.sha256()
    for name, values in sorted(source.targets(split).items()):
        values = np.ascontiguousarray(values)
        sha.update(f"{name} {values.dtype} {values.shape}".encode())
        sha.update(values.tobytes())
    named = source.identity(split)[["example_id", "group"]].astype(str)
    sha.update(json.dumps(named.to_numpy().tolist()).encode())
    return sha.hexdigest()


# --- language model -------------------------------------------------------------------------------------------------


def _language_model(parts: Parts) -> Iterator[Dependency]:
    language = parts.language
    if language is None:
        return
    name = language.config.name
    yield Dependency(
        "language_model.weights", f"the weights of language model '{name}'", lambda: _language_weights(language)
    )
    yield Dependency(
        "language_model.config", f"the config of language model '{name}'", lambda: _language_config(language)
    )
    yield Dependency(
        "language_model.tokenizer",
        f"tokenizer or chat template of language model '{name}'",
        lambda: content_hash(model_files(language.path, language.config.revision, _TOKENIZER)),
    )


def _language_weights(language: LanguageParts) -> str:
    _check_asset(language.config.name)
    files = weight_files(language.path, language.config.revision)
    if not files:
        raise WorkbenchError(f"language model '{language.config.name}' has no safetensors weights.")
    return content_hash(files)


def _language_config(language: LanguageParts) -> str:
    """Over what the files say, but for the version of transformers that wrote them."""
    sha = hashlib.sha256()
    for path in model_files(language.path, language.config.revision, _CONFIGS):
        try:
            plain = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise WorkbenchError(f"{path} cannot be read ({error}).") from None
        kept = {k: v for k, v in plain.items() if not k.startswith("_") and k != "transformers_version"}
        sha.update(f"{path.name} {json.dumps(kept, sort_keys=True)}".encode())
    return sha.hexdigest()


def _check_asset(name: str) -> None:
    """Raises WorkbenchError where ``name`` is an embedded model with other bytes than were made."""
    from fusion_workbench.assets import home as assets

    if name.startswith(assets.PREFIX):
        assets.ensure(name.removeprefix(assets.PREFIX), progress=False, thorough=True)


# --- code -----------------------------------------------------------------------------------------------------------


def _numerics() -> Iterator[Dependency]:
    yield Dependency("numerics", "the numerics of the workbench", lambda: str(NUMERICS))


def _plugins(parts: Parts) -> Iterator[Dependency]:
    """Code from outside the workbench that all cells share; a strategy's own belongs to its cells (:mod:`changes`)."""
    used: dict[tuple[str, str], Callable[[], str]] = {}

    def add(kind: str, name: str, take: Callable[[], str]) -> None:
        if take():
            used[kind, name] = take

    sources = {parts.study.source.name: type(parts.source)}
    sources |= {features.source.name: type(features.source) for features in parts.models.stage_features.values()}
    for name, cls in sources.items():
        add("source", name, partial(code_hash, cls))
    for task in parts.tasks:
        add("task", task.name, partial(code_hash, type(task)))
    for metric in {task.metric.name: task.metric for task in (parts.language.tasks if parts.language else ())}.values():
        add("metric", metric.name, partial(code_hash, type(metric)))
    if (family := getattr(parts.encoder, "family", None)) is not None:
        add("family", parts.encoder.family_name, lambda: family_hash(family))
    for (kind, name), take in used.items():
        yield Dependency(f"code.{kind}.{name}", f"the code of {kind} '{name}'", take)


def family_hash(family: Family) -> str:
    """Of an encoder family that is not the workbench's own: over its values, and the code of its functions."""
    from fusion_workbench.modules.encoders.families import is_built_in

    if is_built_in(family):
        return ""
    values: Mapping[str, Any] = {one.name: getattr(family, one.name) for one in fields(family)}
    plain = {name: code_hash(value) if callable(value) else repr(value) for name, value in values.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
