"""A whole vision-language model as a folder: written by a study or a conversion, loaded anywhere.

::

    config.json             everything needed to build the parts again, and the sha256 of all; see SCHEMA
    adapter.safetensors     fuser and projector, or what injects
    tokenizer/              of the language model, with its chat template
    language_model/         only where it was trained too: its weights, or those of LoRA in peft's format
    encoder/                only where the encoder has no name to be found by
    README.md               the model card

The encoder is held against its fingerprint, as that of a connector is; a language model that is only named, against a
fingerprint of its own. Everything is JSON and safetensors: no code is run, nothing unpickled.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.datamodules.transforms import CLIP_MEAN, PADDINGS
from fusion_workbench.models.cards import model_card
from fusion_workbench.models.connector_files import filled
from fusion_workbench.models.files import (
    CONFIG,
    check_layers,
    check_schema,
    check_sums,
    check_tensors,
    full_name,
    read_config,
    read_tensors,
    trained_encoder,
    write_config,
    write_tensors,
)
from fusion_workbench.models.weights import (
    UPDATES,
    base_weights,
    language_files,
    language_fingerprint,
    language_path,
    lora_options,
    read_lora,
    save_tokenizer,
    write_lora,
    write_weights,
)
from fusion_workbench.schema.model_config import CHAT, LORA, MODEL, check_config
from fusion_workbench.system.files import atomic_folder, explain_writing
from fusion_workbench.system.hardware import default_device
from fusion_workbench.version import __version__

if TYPE_CHECKING:
    import torch

    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.language.connector import ConnectorConfig, LanguageConnector
    from fusion_workbench.modules.language.decoder import Decoder
    from fusion_workbench.modules.language.vlm import VisionLanguageModel

SCHEMA = 2  # 2: images.padding crop is CLIP's; of 1, written by 0.1, it was another
KIND = "vision-language-model"
CONNECTOR = "adapter.safetensors"
STOCK = "stock LLaVA "  # begins the origin of a model that was converted from one
TOKENIZER, LANGUAGE, ENCODER = "tokenizer", "language_model", "encoder"

SavedWeights = Literal["named", "lora", "own"]


@dataclass(frozen=True)
class ModelInfo:
    """What describes a model beside its weights.

    Attributes:
        connector: as it was built.
        language: name of the language model: a folder, a hub name or ``assets:language-model``.
        revision: commit of a hub name.
        kept: what of the language model is written: ``named`` nothing, ``lora`` the low-rank updates, ``own`` all.
        system: the system prompt; see :class:`datamodules.conversations.chat.ChatTemplate`.
        max_length: positions of a training example.
        images_apart: see :class:`datamodules.conversations.chat.Chat`.
        padding: how an image becomes a square, one of :data:`datamodules.transforms.PADDINGS`.
        background: of a padded one, red, green, blue.
        own_encoder: the encoder's folder is copied into the model's; for one that is nowhere else.
        origin: study, run and the like, for the card; plain values.
        dtype: in which weights of ``own`` are written; None: as they are.
    """

    connector: ConnectorConfig
    language: str
    revision: str | None = None
    kept: SavedWeights = "named"
    system: str | None = ""
    max_length: int = 2048
    images_apart: bool | None = None
    padding: str = "square"
    background: Sequence[int] = CLIP_MEAN
    own_encoder: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None


def what_to_save(stages: Sequence[str]) -> SavedWeights:
    """What has to be written of a language model that went through ``stages`` (frozen, lora or full), in their order.

    One round of LoRA stays apart from the weights; anything after it would be added to merged ones.
    """
    trained = list(stages)
    while trained and trained[0] == "frozen":
        trained.pop(0)
    if not trained:
        return "named"
    return "lora" if set(trained) == {"lora"} else "own"


def save_model(model: VisionLanguageModel, folder: Path, encoder: VisionEncoder, info: ModelInfo) -> None:
    """Write the folder, whole or not at all; one that is there and of this kind is replaced.

    Raises:
        WorkbenchError: it cannot be written, or is there and something else.
    """
    if folder.exists() and not is_model_folder(folder):
        raise WorkbenchError(f"{folder} is there already and is no model folder, so it is not replaced; name another.")
    with explain_writing(folder, "name another folder"), atomic_folder(folder) as made:
        config = _write(model, made, encoder, info)
        write_config(made, config, model_card(config))
        for file in made.rglob("*.safetensors"):
            file.chmod(0o644)  # transformers too writes for its owner alone


def read_model_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises WorkbenchError."""
    if not folder.is_dir():
        raise WorkbenchError(f"there is no folder {folder}.")
    config = read_config(folder, "no model folder")
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise WorkbenchError(
            f"{folder} is no model folder: its config.json is not one of the workbench's language models. A connector "
            "is loaded by load_connector, a stock LLaVA becomes one by workbench convert --from-llava."
        )
    check_schema(folder, config, SCHEMA)
    check_config(config, MODEL, str(folder / CONFIG))
    if config["language"]["kept"] == "lora":
        check_config(config, LORA, str(folder / CONFIG))
    check_config({"chat": {"images_apart": None, **config["chat"]}}, CHAT, str(folder / CONFIG))  # 0.1.0 wrote none
    padding = images_of(config)["padding"]
    if padding not in PADDINGS:
        raise WorkbenchError(f"{folder / CONFIG}: images.padding is '{padding}'.{nearest(padding, PADDINGS)}")
    return config


def images_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a model's images become squares, in the words of today: ``padding`` and ``background``.

    What 0.1 called crop is kept for what it trained, and not for stock models that it converted.
    """
    images: dict[str, Any] = dict(config["images"])
    stock = str((config.get("origin") or {}).get("converted from", "")).startswith(STOCK)
    if config["schema"] == 1 and images["padding"] == "crop" and not stock:
        images["padding"] = "crop_then_resize"
    return images


def is_model_folder(folder: Path) -> bool:
    """Whether :func:`read_model_config` would take it."""
    try:
        read_model_config(folder)
    except WorkbenchError:
        return False
    return True


def connector_config_of(config: Mapping[str, Any]) -> ConnectorConfig:
    """The connector of a model's ``config.json``."""
    from fusion_workbench.core.layers import Selection
    from fusion_workbench.modules.language.connector import ConnectorConfig

    plain = dict(config["adapter"])
    selection = Selection(tuple(plain.pop("levels")), plain.pop("query"))
    grid = plain.pop("grid")
    known = {field.name for field in fields(ConnectorConfig)}
    return ConnectorConfig(
        selection=selection,
        grid=tuple(grid) if grid else None,
        **{name: value for name, value in plain.items() if name in known},
    )


def read_connector(folder: Path, config: Mapping[str, Any]) -> LanguageConnector:
    """The connector of a model folder with its weights. Raises WorkbenchError."""
    from fusion_workbench.modules.language.connector import build_connector

    shape = replace(connector_config_of(config), output_rms=0.0)  # the scale at the start, which the weights are past
    return filled(lambda: build_connector(shape), read_tensors(folder / CONNECTOR), str(folder / CONNECTOR))


def check_model_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises WorkbenchError where a folder's weights are not those of its connector, or no numbers."""
    read_connector(folder, config)
    for path in sorted((folder / LANGUAGE).glob("*.safetensors")):
        check_tensors(path)


def read_decoder(folder: Path, config: Mapping[str, Any], device: str, name: str | None = None) -> Decoder:
    """The language model, with its trained weights.

    Raises:
        WorkbenchError: it is not there, or another; peft is missing for one with LoRA.
    """
    from transformers import AutoTokenizer

    from fusion_workbench.modules.language.decoder import Decoder, LoraOptions

    language = config["language"]
    own = language["kept"] == "own"
    place = str(folder / LANGUAGE) if own else language_path(name or language["name"])
    decoder = Decoder.load(
        place, None if own or name else language["revision"], precision=language["precision"], device=device
    )
    decoder.tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER, trust_remote_code=False)
    if not own and language_fingerprint(decoder) != language["fingerprint"]:
        raise WorkbenchError(
            f"{folder} was trained with another '{place}': its weights or config differ, so the answers would mean "
            "nothing."
        )
    if not own and language.get("files"):
        revision = None if name else language["revision"]
        if language_files(place, revision) != language["files"]:
            warnings.warn(
                f"{folder}: the weight files of '{place}' are not byte for byte those that it was trained with. Some "
                "values of each tensor agree; where they were only saved anew, all is well, and damaged ones answer "
                "otherwise.",
                stacklevel=2,
            )
    if language["kept"] == "lora":
        lora = dict(language["lora"])
        decoder.add_lora(LoraOptions(**{**lora, "targets": tuple(lora["targets"])}))
        read_lora(decoder, folder / LANGUAGE / UPDATES)
    return decoder


def load_parts(
    folder: Path, device: str | None = None, encoder: str | None = None, language: str | None = None
) -> tuple[VisionLanguageModel, VisionEncoder, dict[str, Any]]:
    """Model, encoder and ``config.json`` of a folder. Raises WorkbenchError, as :func:`load_model` does."""
    from fusion_workbench.modules.language.vlm import VisionLanguageModel

    config = read_model_config(folder)
    device = device or default_device()
    own = str(folder / ENCODER) if config["encoder"]["encoder"] == ENCODER else None
    vision = trained_encoder(folder, config["encoder"], encoder or own)
    check_layers(folder, config["adapter"], vision.depth)
    connector = read_connector(folder, config)
    decoder = read_decoder(folder, config, device, language)
    for part, theirs in (("encoder", vision.dim), ("language model", decoder.width)):
        ours = config["adapter"]["dim" if part == "encoder" else "width"]
        if ours != theirs:
            raise WorkbenchError(f"{folder}: its connector is for {ours} channels of the {part}, which has {theirs}.")
    check_sums(folder, config)
    model = VisionLanguageModel(connector, decoder, vision.grid())
    return model.to(device).eval(), vision.to(device), config


def _write(model: VisionLanguageModel, made: Path, encoder: VisionEncoder, info: ModelInfo) -> dict[str, Any]:
    decoder = model.decoder
    write_tensors(made / CONNECTOR, model.connector.state_dict())
    save_tokenizer(decoder.tokenizer, made / TOKENIZER)
    language: dict[str, Any] = {
        "name": full_name(info.language),
        "revision": info.revision,
        "kept": info.kept,
        "precision": decoder.precision,
        "model_type": decoder.config.model_type,
        "parameters": sum(value.numel() for value in base_weights(decoder).values()),
        "fingerprint": language_fingerprint(decoder),
        "files": language_files(decoder.name, info.revision),
    }
    if info.kept == "lora":
        (made / LANGUAGE).mkdir()
        write_lora(decoder, made / LANGUAGE)
        language["lora"] = lora_options(decoder)
    if info.kept == "own":
        write_weights(decoder, made / LANGUAGE, info.dtype)
        save_tokenizer(decoder.tokenizer, made / LANGUAGE)
    if info.own_encoder:
        shutil.copytree(encoder.name, made / ENCODER)
    place = ENCODER if info.own_encoder else full_name(encoder.name)
    connector = info.connector
    plain = {name: value for name, value in vars(connector).items() if name not in ("selection", "options", "grid")}
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "workbench": __version__,
        "adapter": {
            **plain,
            "levels": list(connector.selection.levels),
            "query": connector.selection.query,
            "options": dict(connector.options),
            "grid": list(connector.grid) if connector.grid else None,
        },
        "layers": list(model.connector.uses),
        "encoder": {**encoder.encoder_info(), "encoder": place},
        "language": language,
        "chat": {"system": info.system, "max_length": info.max_length, "images_apart": info.images_apart},
        "images": {"padding": info.padding, "background": list(info.background)},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "origin": dict(info.origin),
    }
