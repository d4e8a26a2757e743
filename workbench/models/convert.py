"""``workbench convert``: model folders, stock LLaVA folders and published connector files into one another."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.core.layers import Selection
from fusion_workbench.core.tokens import IMAGE
from fusion_workbench.datamodules.transforms import CLIP_MEAN
from fusion_workbench.models.connector_files import (
    load_weights,
    read_connector_file,
    to_published,
    write_connector_file,
)
from fusion_workbench.models.files import check_sums
from fusion_workbench.models.folder import (
    STOCK,
    ModelInfo,
    images_of,
    load_parts,
    read_connector,
    read_model_config,
    save_model,
)
from fusion_workbench.models.weights import language_path
from fusion_workbench.system.files import atomic_folder, explain_writing, scratch_beside
from fusion_workbench.system.pretrained import load_pretrained
from fusion_workbench.system.pretrained_config import check_described, read_pretrained_config

if TYPE_CHECKING:
    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.language.connector import FusedConnector

_ELSEWHERE = "name another place with --out"
PAPER_DEPTH, PAPER_LEVELS = 24, (-22, -17, -12, -7)  # CLIP-L, and what MMFuser reads of it beside the query

# Stock processors take a message as a list of images and texts; the language model's own template takes words.
_FLATTEN = """\
{%- set flat = namespace(turns=[], words='') -%}
{%- if SYSTEM is not none and messages[0]['role'] != 'system' -%}
{%- set flat.turns = [{'role': 'system', 'content': SYSTEM}] -%}
{%- endif -%}
{%- for message in messages -%}
{%- set flat.words = '' -%}
{%- if message['content'] is string -%}{%- set flat.words = message['content'] -%}
{%- else -%}{%- for part in message['content'] -%}
{%- set flat.words = flat.words + ('<image>SPACE\\n' if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}{%- endif -%}
{%- set flat.turns = flat.turns + [{'role': message['role'], 'content': flat.words | trim}] -%}
{%- endfor -%}
{%- set messages = flat.turns -%}
"""


_FLATTENED = _FLATTEN.splitlines(keepends=True)[-1]  # the last line of it; the language model's template follows


def to_llava(folder: Path, out: Path, encoder: str | None = None, language: str | None = None) -> str:
    """A model folder as a stock LLaVA folder, with processor and tokenizer. Returns what was done.

    Raises:
        WorkbenchError: no such folder, or a model without a stock form (:mod:`models.stock_llava`).
    """
    from tokenizers import AddedToken

    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.models.stock_llava import to_stock
    from fusion_workbench.modules.language.connector import FusedConnector

    model, vision, config = load_parts(folder, "cpu", encoder, language)
    connector = model.connector
    if not isinstance(connector, FusedConnector):
        raise WorkbenchError(
            f"this model has no stock LLaVA form: {config['adapter']['strategy']} adds to hidden states inside the "
            "language model, and stock LLaVA does not."
        )
    images = images_of(config)
    if images["padding"] not in _SQUARES:
        raise WorkbenchError(
            "this model has no stock LLaVA form: its images are cropped before they are resized, as 0.1 did "
            f"({images['padding']}), and stock processors resize first."
        )
    tokenizer = model.decoder.tokenizer
    rows, columns = vision.grid()
    chat = Chat(
        tokenizer,
        config["chat"]["max_length"],
        rows * columns,
        config["chat"]["system"],
        images_apart=config["chat"].get("images_apart"),
    )
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    stock: Any = to_stock(
        vision, connector.fuser, connector.projector, model.decoder, tokenizer.convert_tokens_to_ids(IMAGE)
    )
    with explain_writing(out, _ELSEWHERE), atomic_folder(out) as made:
        stock.save_pretrained(made)
        _processor(vision, tokenizer, chat, images).save_pretrained(made)
    return f"written: {out}, for transformers.LlavaForConditionalGeneration.from_pretrained" + _other_border(
        vision, images
    )


def _other_border(encoder: VisionEncoder, images: Mapping[str, Any]) -> str:
    """What transformers does otherwise: it pads with the encoder's mean colour, whatever the training did."""
    theirs = [int(255 * value) for value in encoder.mean]
    if images["padding"] != "square" or list(images["background"]) == theirs:
        return ""
    return (
        f"; images that are not square differ at their borders: transformers pads with {theirs}, and this model was "
        f"trained with {list(images['background'])}"
    )


def from_llava(folder: Path, out: Path, system: str | None = None) -> str:
    """A stock LLaVA folder as a model folder. Returns what was done.

    Raises:
        WorkbenchError: no such folder, or a model that has no form here.
    """
    import torch
    from transformers import AutoTokenizer, LlavaForConditionalGeneration
    from transformers.image_processing_utils import BaseImageProcessor

    from fusion_workbench.models.stock_llava import from_stock
    from fusion_workbench.modules.encoders.encoder import VisionEncoder
    from fusion_workbench.modules.language.connector import ConnectorConfig, FusedConnector
    from fusion_workbench.modules.language.decoder import Decoder

    if not folder.is_dir():
        raise WorkbenchError(f"--from-llava: there is no folder {folder}.")
    config = read_pretrained_config(str(folder), None, f"--from-llava: {folder}", "cannot be read as a stock LLaVA")
    if config.model_type != "llava":
        raise WorkbenchError(
            f"--from-llava: {folder} is of the type '{config.model_type}', and only 'llava' has a form here."
        )
    check_described(folder, LlavaForConditionalGeneration, config, f"--from-llava: {folder}")
    stock = load_pretrained(LlavaForConditionalGeneration, str(folder), f"--from-llava: {folder}", dtype=torch.float32)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        processor, _ = BaseImageProcessor.get_image_processor_dict(folder)
    except (OSError, ValueError, KeyError) as error:
        first = first_line(error)
        raise WorkbenchError(f"--from-llava: {folder} cannot be read as a stock LLaVA: {first}") from None
    parts = from_stock(stock)
    with explain_writing(out, _ELSEWHERE), scratch_beside(out) as scratch:
        tower = scratch / "encoder"
        _saved_tower(parts.tower, processor, tower)
        encoder = VisionEncoder(str(tower), image_size=0, precision="float32")
        padding = _padding(processor, encoder.image_size, f"--from-llava: {folder}")
        decoder = Decoder(parts.language, tokenizer, "float32", str(folder))
        system = _drop_processor_template(tokenizer, system)
        selection = Selection(tuple(sorted(parts.fuser.selection.levels)), parts.fuser.selection.query)
        connector = ConnectorConfig(
            strategy=parts.strategy,
            selection=selection,
            dim=encoder.dim,
            width=decoder.width,
            depth=decoder.depth,
            options=parts.options,
            projector="mlp2x_gelu",
            grid=encoder.grid(),
            projector_norm=False,
        )
        info = ModelInfo(
            connector,
            str(folder),
            kept="own",
            system=system,
            images_apart=_images_apart(folder, tokenizer, system),
            padding=padding,
            background=[int(255 * value) for value in processor["image_mean"]],
            own_encoder=True,
            origin={"converted from": f"{STOCK}{folder}"},
        )
        _save(FusedConnector(parts.fuser, parts.projector), decoder, encoder, out, info)
    return f"written: {out}, the same model as {folder}"


def from_connector_file(
    file: Path,
    out: Path,
    encoder: str,
    language: str,
    levels: Sequence[str],
    query: str,
    system: str | None,
) -> str:
    """A published connector file as a model folder, with the encoder and language model that it joins.

    Raises:
        WorkbenchError: a file, encoder or language model that do not fit together; or levels that are not said.
    """
    from fusion_workbench.config.study import EncoderConfig
    from fusion_workbench.modules.language.connector import ConnectorConfig, FusedConnector, build_connector
    from fusion_workbench.modules.language.decoder import Decoder
    from fusion_workbench.study.encoder_store import load_encoder

    published = read_connector_file(file)
    vision = load_encoder(EncoderConfig(encoder, image_size=0, precision="float32"), progress=False)
    if published.in_dim % vision.dim or (published.fuser and published.in_dim != vision.dim):
        raise WorkbenchError(
            f"{file} reads tokens of {published.in_dim} channels, and those of {encoder} have {vision.dim}."
        )
    expected = published.levels if published.fuser else published.in_dim // vision.dim - 1
    chosen: Sequence[str | int] = levels
    if not levels and published.fuser and vision.depth == PAPER_DEPTH:
        chosen = PAPER_LEVELS
    if len(chosen) != expected:
        raise WorkbenchError(
            f"{file} reads {expected} levels beside the query, and {len(chosen)} are named; name them with --levels, "
            "the shallowest first."
        )
    decoder = Decoder.load(language_path(language), precision="float32")
    if published.width != decoder.width:
        raise WorkbenchError(
            f"{file} gives tokens of {published.width} channels, and {language} reads {decoder.width}; it was made for "
            "another language model."
        )
    system = _drop_processor_template(decoder.tokenizer, system)
    strategy, options = _strategy(published.strategy, expected, published.options)
    config = ConnectorConfig(
        strategy=strategy,
        selection=Selection.parse(list(chosen), query, vision.depth),
        dim=vision.dim,
        width=decoder.width,
        depth=decoder.depth,
        options=options,
        projector=published.kind,
        grid=vision.grid(),
        projector_norm=False,
    )
    connector = build_connector(config)
    assert isinstance(connector, FusedConnector)
    load_weights(connector.fuser, published.fuser, str(file))
    load_weights(connector.projector, published.projector, str(file))
    info = ModelInfo(
        config, language, system=system, background=CLIP_MEAN, origin={"converted from": f"connector file {file}"}
    )
    _save(connector, decoder, vision, out, info)
    return f"written: {out}, the connector of {file} between {encoder} and {language}"


def to_connector_file(folder: Path, out: Path) -> str:
    """The connector of a model folder as a published file. Raises WorkbenchError for one without such a form."""
    from fusion_workbench.modules.language.connector import FusedConnector

    config = read_model_config(folder)
    connector = read_connector(folder, config)
    if not isinstance(connector, FusedConnector):
        raise WorkbenchError("a strategy that adds to hidden states inside the language model has no connector file.")
    check_sums(folder, config)
    write_connector_file(out, to_published(connector.fuser, connector.projector))
    return f"written: {out}, the connector under its published names"


def _strategy(named: str, levels: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A projector that reads several layers side by side is that of a plain concatenation."""
    return ("concat", {"layer_norm": "none"}) if named == "deep_only" and levels else (named, options)


def _save(connector: FusedConnector, decoder: Any, encoder: VisionEncoder, out: Path, info: ModelInfo) -> None:
    from fusion_workbench.modules.language.vlm import VisionLanguageModel

    save_model(VisionLanguageModel(connector, decoder, encoder.grid()), out, encoder, info)


def _drop_processor_template(tokenizer: Any, system: str | None) -> str | None:
    """Let go of a chat template that is a processor's (it takes lists, not words), so that LLaVA's own form is used.

    Of one that :func:`to_llava` wrote the language model's own template stays. Returns the system's words: ``system``,
    or where that is None those that were written there.
    """
    from fusion_workbench.datamodules.conversations.base import ASSISTANT, USER, Conversation, Turn
    from fusion_workbench.datamodules.conversations.chat import Chat
    from fusion_workbench.datamodules.conversations.chat_template import V1

    head, written, own = str(tokenizer.chat_template or "").partition(_FLATTENED)
    begins, ends = _FLATTEN.split("SYSTEM")[:2]
    if written and head.startswith(begins):
        words = head.removeprefix(begins).split(ends)[0]
        tokenizer.chat_template = None if own.strip() == V1 else own
        return json.loads(words) if system is None and words != "none" else system
    try:
        Chat(tokenizer, 64, 1, system).prompt(Conversation("", (Turn(USER, "a"), Turn(ASSISTANT, "b"))))
    except WorkbenchError:
        tokenizer.chat_template = None
    return system


def _marks_beginnings(tokenizer: Any) -> bool:
    """Whether a text of its own begins with a mark that it has not after an image."""
    text = "\na"
    within = tokenizer(f"{IMAGE}{text}", add_special_tokens=False)["input_ids"][1:]
    return bool(within != tokenizer(text, add_special_tokens=False)["input_ids"])


def _images_apart(folder: Path, tokenizer: Any, system: str | None) -> bool | None:
    """How a stock model's own processor tokenises the texts on both sides of an image; None: it does not matter."""
    from transformers import LlavaProcessor

    from fusion_workbench.datamodules.conversations.base import ASSISTANT, USER, Conversation, Turn
    from fusion_workbench.datamodules.conversations.chat import Chat

    asked = Conversation("", (Turn(USER, f"{IMAGE}\na"), Turn(ASSISTANT, "b")), (0,))
    apart, within = (Chat(tokenizer, 64, 1, system, images_apart=each).prompt(asked) for each in (True, False))
    if apart == within:
        return None
    content = [{"type": "image"}, {"type": "text", "text": "a"}]
    try:
        processor: Any = LlavaProcessor.from_pretrained(folder)
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids = processor.tokenizer(text)["input_ids"]
    except (OSError, ValueError, KeyError, TypeError, ImportError):  # no processor, or one without a template
        return False
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return bool(ids == [image if i < 0 else i for i in apart])


def _saved_tower(tower: Any, processor: Mapping[str, Any], folder: Path) -> None:
    tower.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(processor), indent=1, default=str))


def _processor(encoder: VisionEncoder, tokenizer: Any, chat: Chat, images: Mapping[str, Any]) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = encoder.image_size
    assert isinstance(size, int)
    image_processor = LlavaImageProcessorPil(
        image_mean=encoder.mean, image_std=encoder.std, resample=3, **_SQUARES[images["padding"]](size)
    )
    system = chat.template.system
    words = json.dumps(system[0], ensure_ascii=False) if system else "none"
    # SentencePiece begins a text with the mark of a word's beginning; to the processor, what follows an image is none.
    space = " " if chat.images_apart and _marks_beginnings(tokenizer) else ""
    flatten = _FLATTEN.replace("SYSTEM", words).replace("SPACE", space)
    processor: Any = LlavaProcessor
    return processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=encoder.patch,
        vision_feature_select_strategy="default" if encoder.prefix_tokens else "full",
        num_additional_image_tokens=encoder.prefix_tokens,
        chat_template=flatten + chat.template.text,
        image_token=IMAGE,
    )


def _sides(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


# How stock processors make a square of an image, by how ours do.
_SQUARES: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "square": lambda size: {"do_pad": True, "size": _sides(size), "do_center_crop": False},
    "crop": lambda size: {"do_pad": False, "size": {"shortest_edge": size}, "crop_size": _sides(size)},
    "stretch": lambda size: {"do_pad": False, "size": _sides(size), "do_center_crop": False},
}


def _padding(processor: Mapping[str, Any], size: Any, where: str) -> str:
    """How a stock processor makes squares, by our name. What it does not say, it does as CLIP's.

    Raises:
        WorkbenchError: in none of our ways.
    """
    shortest = {"shortest_edge": size}
    resized, cropped = processor.get("size") or shortest, processor.get("do_center_crop", True)
    plain = processor.get("do_resize", True) and processor.get("resample", 3) == 3
    if plain and (not cropped or (processor.get("crop_size") or size) in (size, _sides(size))):
        if processor.get("do_pad") and resized in (size, shortest, _sides(size)):
            return "square"
        if not processor.get("do_pad") and resized == _sides(size):
            return "stretch"
        if not processor.get("do_pad") and resized in (size, shortest) and cropped:
            return "crop"
    keys = ("do_pad", "do_resize", "size", "resample", "do_center_crop", "crop_size")
    told = {key: processor[key] for key in keys if key in processor}
    raise WorkbenchError(
        f"{where}: its processor makes squares of {size} px in a way that has no form here: {told}; known are padded, "
        "resized and cropped, or stretched images, bicubic."
    )
