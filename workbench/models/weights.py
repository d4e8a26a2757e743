"""The language model's side of a model folder: where it is, whether it is the one, and what LoRA added to it."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.models.files import read_tensors, write_tensors
from fusion_workbench.system.model_files import content_hash, weight_files
from fusion_workbench.system.tensors import check_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fusion_workbench.modules.language.decoder import Decoder

_SAMPLES = 64  # values of each tensor that a fingerprint reads
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")  # of its config
UPDATES = "adapter_model.safetensors"  # peft's name


def language_path(name: str) -> str:
    """Folder or hub name of a language model; ``assets:language-model`` is made on first use."""
    from fusion_workbench.assets import home as assets

    return assets.model_path(name, "language-model", "the language model", progress=False)


def language_fingerprint(decoder: Decoder) -> str:
    """sha256 over config, names, shapes and 64 values of each tensor, in bf16: the same whatever it is kept in.

    LoRA's own weights are left out, so it is that of the model that they are added to.
    """
    import torch

    sha = hashlib.sha256()
    facts = {k: v for k, v in decoder.config.to_dict().items() if k in _SHAPE}
    sha.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(base_weights(decoder).items()):
        flat = tensor.detach().flatten()
        count = min(_SAMPLES, len(flat))
        picked = flat[(torch.arange(count) * len(flat) // max(1, count)).to(flat.device)]
        sha.update(f"{name} {list(tensor.shape)}".encode())
        sha.update(picked.to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def language_files(name: str, revision: str | None) -> str:
    """sha256 over every byte of the weights of a language model that is named; empty where it has no files."""
    with suppress(WorkbenchError):
        if files := weight_files(name, revision):
            return content_hash(files)
    return ""


def write_weights(decoder: Decoder, folder: Path, dtype: torch.dtype | None = None) -> None:
    """The whole language model as transformers writes it, in ``dtype``; None: in the types that it has."""
    model = decoder.model
    if dtype is None:
        model.save_pretrained(folder)
        return
    copies: dict[int, Tensor] = {}  # tied weights stay one
    state = {name: copies.setdefault(value.data_ptr(), value.to(dtype)) for name, value in model.state_dict().items()}
    was, model.config.dtype = model.config.dtype, dtype
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.dtype = was


def write_lora(decoder: Decoder, folder: Path) -> None:
    """Low-rank updates as peft writes them: ``PeftModel.from_pretrained(language_model, folder)`` takes them up."""
    config = decoder.lora_config
    config.base_model_name_or_path = decoder.name
    config.save_pretrained(folder)
    write_tensors(folder / UPDATES, lora_weights(decoder))


def lora_weights(decoder: Decoder) -> dict[str, Tensor]:
    """The low-rank updates themselves, under the names that peft's files have."""
    from peft import get_peft_model_state_dict

    updates = get_peft_model_state_dict(decoder.model, adapter_name="default", save_embedding_layers=False)
    return {f"base_model.model.{name}": value for name, value in updates.items()}


def lora_options(decoder: Decoder) -> dict[str, Any]:
    """What :class:`modules.language.decoder.LoraOptions` is made of, from peft's own config."""
    config = decoder.lora_config
    targets = sorted({name.rpartition(".")[2] for name in config.target_modules})
    return {"rank": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout, "targets": targets}


def read_lora(decoder: Decoder, path: Path) -> None:
    """Fill the decoder's low-rank updates. Raises WorkbenchError for others than it has, and for what is no number."""
    weights = read_tensors(path)
    check_finite(weights, str(path))
    own = lora_weights(decoder)
    for name in sorted(own.keys() ^ weights.keys()):
        verb = "lacks" if name in own else "holds"
        raise WorkbenchError(f"{path} {verb} {name}: it is of another language model, or of other LoRA options.")
    for name, value in weights.items():
        target = own[name]
        if target.shape != value.shape:
            raise WorkbenchError(f"{path}: {name} has shape {list(value.shape)}; it should be {list(target.shape)}.")
        target.copy_(value)


def base_weights(decoder: Decoder) -> dict[str, Tensor]:
    """The state dict without LoRA, under the names that it has without."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in decoder.model.state_dict().items()
        if ".lora_" not in name
    }


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer with its ``legacy``, which transformers leaves out.

    Without, one of SentencePiece's would give other ids after every special token once it is read again.
    """
    tokenizer.save_pretrained(folder)
    legacy = getattr(tokenizer, "legacy", None)
    if isinstance(legacy, bool):
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | {"legacy": legacy}
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
