"""A whole visual language model as a folder: written by a study or a conversion, loaded anywhere.

::

    config.json             everything needed to build the parts again; see SCHEMA
    adapter.safetensors     fuser and projector, or what injects
    tokenizer/              of the language model, with its chat template
    language_model/         only where its words were taught something: its weights, or those of LoRA in peft's format
    encoder/                only where the encoder has no name to be found by
    README.md               the model card

The encoder is held against its fingerprint, as :func:`models.export.load_connector` does; a language model that is
only named, against a fingerprint of its own. Everything is JSON and safetensors: no code is run, nothing unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.hardware import default_device
from fusion_workbench.core.files import explain_writing, whole_folder
from fusion_workbench.models.connector_files import fill
from fusion_workbench.models.weights import (
    UPDATES,
    base_weights,
    language_fingerprint,
    language_path,
    lora_options,
    read_lora,
    read_tensors,
    write_lora,
)
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.language.adapter import AdapterConfig
    from fusion_workbench.modules.language.decoder import Decoder
    from fusion_workbench.modules.language.vlm import VisionLanguageModel

SCHEMA = 1
KIND = "vision-language-model"
CONFIG, CARD, ADAPTER = "config.json", "README.md", "adapter.safetensors"
TOKENIZER, LANGUAGE, ENCODER = "tokenizer", "language_model", "encoder"
BACKGROUND = (122, 116, 104)  # CLIP's mean colour, with which LLaVA-1.5 fills up a square

Kept = Literal["named", "lora", "own"]


@dataclass(frozen=True)
class Described:
    """What a model is beside its weights.

    Attributes:
        adapter: as it was built.
        language: name of the language model: a folder, a hub name or ``assets:language-model``.
        revision: commit of a hub name.
        kept: what of the language model is written: ``named`` nothing, ``lora`` the low-rank updates, ``own`` all.
        system: the system's words; see :class:`datamodules.conversations.chat.ChatTemplate`.
        max_length: positions of a training example.
        padding: how an image becomes a square, one of :data:`datamodules.transforms.PADDINGS`.
        background: of a padded one, red, green, blue.
        own_encoder: the encoder's folder is copied into the model's; for one that is nowhere else.
        origin: study, run and the like, for the card; plain values.
    """

    adapter: AdapterConfig
    language: str
    revision: str | None = None
    kept: Kept = "named"
    system: str | None = ""
    max_length: int = 2048
    padding: str = "square"
    background: Sequence[int] = BACKGROUND
    own_encoder: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)


def kept_of(stages: Sequence[str]) -> Kept:
    """What has to be written of a language model that went through ``stages`` (frozen, lora or full), in their order.

    One round of LoRA stays apart from the weights; anything after it would be added to merged ones.
    """
    trained = list(stages)
    while trained and trained[0] == "frozen":
        trained.pop(0)
    if not trained:
        return "named"
    return "lora" if set(trained) == {"lora"} else "own"


def save_model(model: VisionLanguageModel, folder: Path, encoder: VisionEncoder, described: Described) -> None:
    """Write the folder, whole or not at all; one that is there and of this kind is replaced.

    Raises:
        WorkbenchError: it cannot be written, or is there and something else.
    """
    from fusion_workbench.models.model_card import card

    if folder.exists() and not _is_model(folder):
        raise WorkbenchError(f"{folder} is there already and is no model folder, so it is not replaced; name another.")
    with explain_writing(folder, "name another folder"), whole_folder(folder) as made:
        config = _write(model, made, encoder, described)
        (made / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (made / CARD).write_text(card(config), encoding="utf-8")
        for file in made.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes for its owner alone


def read_model_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises WorkbenchError."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise WorkbenchError(f"there is no folder {folder}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{folder} is no model folder: its {CONFIG} cannot be read ({error}).") from None
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise WorkbenchError(
            f"{folder} is no model folder: its {CONFIG} is not one of the workbench's language models. A connector is "
            "loaded by load_connector, a stock LLaVA becomes one by workbench convert --from-llava."
        )
    if not isinstance(config.get("schema"), int) or config["schema"] > SCHEMA:
        raise WorkbenchError(
            f"{path} is of schema {config.get('schema')}, and this workbench ({__version__}) reads up to {SCHEMA}; "
            "update it."
        )
    return config


def adapter_config_of(config: Mapping[str, Any]) -> AdapterConfig:
    """The adapter of a model's ``config.json``."""
    from fusion_workbench.core.layers import Selection
    from fusion_workbench.modules.language.adapter import AdapterConfig

    plain = dict(config["adapter"])
    selection = Selection(tuple(plain.pop("levels")), plain.pop("query"))
    grid = plain.pop("grid")
    return AdapterConfig(selection=selection, grid=tuple(grid) if grid else None, **plain)


def read_encoder(folder: Path, config: Mapping[str, Any], name: str | None = None) -> VisionEncoder:
    """The encoder that a model was trained on.

    Args:
        name: where it lies now, if it has moved.

    Raises:
        WorkbenchError: it is not there, or another.
    """
    from fusion_workbench.config.study import EncoderConfig
    from fusion_workbench.study.encoder_store import load_encoder

    wanted = config["encoder"]
    place = name or _place(folder, wanted["encoder"])
    if wanted["revision"] is None and ":" not in place and not Path(place).is_dir():
        raise WorkbenchError(
            f"{folder} was trained on the encoder in the folder {place}, which is not here; say where it is with "
            "encoder=…, on the command line --encoder."
        )
    read = load_encoder(
        EncoderConfig(place, wanted["revision"], wanted["image_size"], precision=wanted["precision"]), progress=False
    )
    if read.fingerprint != wanted["fingerprint"]:
        raise WorkbenchError(
            f"{folder} was trained on another '{place}' (fingerprint {wanted['fingerprint'][:12]}, this one is "
            f"{read.fingerprint[:12]}): other weights, config or preprocessing, so its tokens would mean nothing."
        )
    return read


def read_decoder(folder: Path, config: Mapping[str, Any], device: str, name: str | None = None) -> Decoder:
    """The language model, with what it was taught.

    Raises:
        WorkbenchError: it is not there, or another; peft is missing for one with LoRA.
    """
    from transformers import AutoTokenizer

    from fusion_workbench.modules.language.decoder import Decoder, LoraOptions

    wanted = config["language"]
    own = wanted["kept"] == "own"
    place = str(folder / LANGUAGE) if own else language_path(name or wanted["name"])
    decoder = Decoder.load(
        place, None if own or name else wanted["revision"], precision=wanted["precision"], device=device
    )
    decoder.tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER, trust_remote_code=False)
    if not own and language_fingerprint(decoder) != wanted["fingerprint"]:
        raise WorkbenchError(
            f"{folder} was trained with another '{place}': its weights or config differ, so the answers would mean "
            "nothing."
        )
    if wanted["kept"] == "lora":
        lora = dict(wanted["lora"])
        decoder.add_lora(LoraOptions(**{**lora, "targets": tuple(lora["targets"])}))
        read_lora(decoder, folder / LANGUAGE / UPDATES)
    return decoder


def load_parts(
    folder: Path, device: str | None = None, encoder: str | None = None, language: str | None = None
) -> tuple[VisionLanguageModel, VisionEncoder, dict[str, Any]]:
    """Model, encoder and ``config.json`` of a folder. Raises WorkbenchError, as :func:`load_model` does."""
    from fusion_workbench.modules.language.adapter import build_adapter
    from fusion_workbench.modules.language.vlm import VisionLanguageModel

    config = read_model_config(folder)
    device = device or default_device()
    read = read_encoder(folder, config, encoder)
    adapter = build_adapter(adapter_config_of(config))
    fill(adapter, read_tensors(folder / ADAPTER), str(folder / ADAPTER))
    decoder = read_decoder(folder, config, device, language)
    model = VisionLanguageModel(adapter, decoder, read.grid())
    return model.to(device).eval(), read.to(device), config


def _write(model: VisionLanguageModel, made: Path, encoder: VisionEncoder, described: Described) -> dict[str, Any]:
    import safetensors.torch

    decoder = model.decoder
    weights = {name: value.detach().cpu().contiguous() for name, value in model.adapter.state_dict().items()}
    safetensors.torch.save_file(weights, made / ADAPTER, metadata={"format": "pt"})
    decoder.tokenizer.save_pretrained(made / TOKENIZER)
    language: dict[str, Any] = {
        "name": _full(described.language),
        "revision": described.revision,
        "kept": described.kept,
        "precision": decoder.precision,
        "model_type": decoder.config.model_type,
        "parameters": sum(value.numel() for value in base_weights(decoder).values()),
        "fingerprint": language_fingerprint(decoder),
    }
    if described.kept == "lora":
        (made / LANGUAGE).mkdir()
        write_lora(decoder, made / LANGUAGE)
        language["lora"] = lora_options(decoder)
    if described.kept == "own":
        decoder.model.save_pretrained(made / LANGUAGE)
        decoder.tokenizer.save_pretrained(made / LANGUAGE)
    if described.own_encoder:
        shutil.copytree(encoder.name, made / ENCODER)
    place = ENCODER if described.own_encoder else _full(encoder.name)
    adapter = described.adapter
    plain = {name: value for name, value in vars(adapter).items() if name not in ("selection", "options", "grid")}
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "workbench": __version__,
        "adapter": {
            **plain,
            "levels": list(adapter.selection.levels),
            "query": adapter.selection.query,
            "options": dict(adapter.options),
            "grid": list(adapter.grid) if adapter.grid else None,
        },
        "layers": list(model.adapter.uses),
        "encoder": {**encoder.passport(), "encoder": place},
        "language": language,
        "chat": {"system": described.system, "max_length": described.max_length},
        "images": {"padding": described.padding, "background": list(described.background)},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "origin": dict(described.origin),
    }


def _is_model(folder: Path) -> bool:
    try:
        read_model_config(folder)
    except WorkbenchError:
        return False
    return True


def _full(name: str) -> str:
    """A folder by its full path, so that it is found from elsewhere; other names as they are."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _place(folder: Path, name: str) -> str:
    """Where a part is: below the folder itself, or where its name says."""
    return str(folder / name) if name == ENCODER else name
