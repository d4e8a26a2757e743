"""The published connector files, in and out."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from places import DATA
from safetensors.torch import load_file
from torch import Tensor, nn

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.layers import Selection
from fusion_workbench.models.connector_files import (
    load_weights,
    read_connector_file,
    to_published,
    write_connector_file,
)
from fusion_workbench.modules.fusion import build
from fusion_workbench.modules.projector import Projector

GOLDEN = DATA / "golden" / "mmfuser_block_random.safetensors"
LINEAR = {"weight": (8, 6), "bias": (8,)}
MLP = {"0.weight": (8, 6), "0.bias": (8,), "2.weight": (8, 8), "2.bias": (8,)}
PREFIXES = ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector.", ""]


def saved(path: Path, tensors: object) -> Path:
    torch.save(tensors, path)
    return path


def drawn(shapes: dict[str, tuple[int, ...]], prefix: str, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return {prefix + name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def golden_file(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file as MMFuser's training writes it: Sequential(block, linear, GELU, linear)."""
    params = {k.removeprefix("param."): v for k, v in load_file(GOLDEN).items() if k.startswith("param.")}
    tensors = {f"model.mm_projector.0.{name}": value for name, value in params.items()}
    tensors |= drawn(
        {"1.weight": (12, 32), "1.bias": (12,), "3.weight": (12, 12), "3.bias": (12,)},
        "model.mm_projector.",
        torch.float32,
    )
    return saved(folder / "mm_projector.bin", tensors), tensors


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("shapes", "kind"), [(LINEAR, "linear"), (MLP, "mlp2x_gelu")], ids=["linear", "mlp2x_gelu"])
def test_llava_s_file_goes_round_bitwise(
    shapes: dict[str, tuple[int, ...]], kind: str, dtype: torch.dtype, prefix: str, tmp_path: Path
) -> None:
    tensors = drawn(shapes, prefix, dtype)
    found = read_connector_file(saved(tmp_path / "in.bin", tensors))
    assert (found.kind, found.in_dim, found.width, found.strategy) == (kind, 6, 8, "deep_only")
    write_connector_file(tmp_path / "deeper" / "out.bin", found)
    again = torch.load(tmp_path / "deeper" / "out.bin", weights_only=True)
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], value), name


def test_a_loaded_projector_computes_what_llava_s_does(tmp_path: Path) -> None:
    tensors = drawn(MLP, "model.mm_projector.", torch.float32)
    theirs = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8))
    theirs.load_state_dict({name.removeprefix("model.mm_projector."): value for name, value in tensors.items()})
    found = read_connector_file(saved(tmp_path / "in.bin", tensors))
    ours = Projector(found.kind, found.in_dim, found.width, normalise=False)
    load_weights(ours, found.projector, "in.bin")
    tokens = 5 * torch.randn(2, 3, 6) + 1
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=0, atol=0)
    ours.normalise = True
    assert not torch.allclose(ours(tokens), theirs(tokens), atol=1e-2)
    torch.testing.assert_close(ours(tokens), theirs(F.layer_norm(tokens, (6,), eps=1e-6)))


def test_mmfuser_s_file_gives_the_published_block(tmp_path: Path) -> None:
    path, tensors = golden_file(tmp_path)
    found = read_connector_file(path)
    assert (found.strategy, found.heads, found.levels, found.in_dim, found.width) == ("mmfuser", 4, 4, 32, 12)
    fuser = build("mmfuser", Selection((0, 1, 2, 3), 4), 32, found.options)
    projector = Projector(found.kind, found.in_dim, found.width, normalise=False)
    load_weights(fuser, found.fuser, "the file")
    load_weights(projector, found.projector, "the file")
    golden = load_file(GOLDEN)
    fused = fuser(golden["features"], (6, 6))
    torch.testing.assert_close(fused, golden["output"], rtol=1e-5, atol=1e-5)

    write_connector_file(tmp_path / "out.bin", to_published(fuser, projector))
    again = torch.load(tmp_path / "out.bin", weights_only=True)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


def test_mmfuser_with_a_linear_projector(tmp_path: Path) -> None:
    fuser = build("mmfuser", Selection((1, 2), 3), 16, {"heads": 2})
    projector = Projector("linear", 16, 8, normalise=False)
    write_connector_file(tmp_path / "out.bin", to_published(fuser, projector))
    assert "model.mm_projector.1.weight" in torch.load(tmp_path / "out.bin", weights_only=True)
    found = read_connector_file(tmp_path / "out.bin")
    assert (found.kind, found.heads, found.levels) == ("linear", 2, 2)
    load_weights(projector, found.projector, "it")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.mm_projector.4.weight": torch.ones(8, 8)}, "holds model.mm_projector.4.weight"),
        ({"model.mm_projector.2.bias": None}, "lacks model.mm_projector.2.bias"),
        ({"model.mm_projector.0.bias": torch.ones(7)}, r"0.bias has shape \[7\]; .* \[8\]"),
        ({"model.mm_projector.2.weight": torch.ones(8, 9)}, r"2.weight has shape \[8, 9\]; .*\[width, 8\]"),
        ({"model.embed_tokens.weight": torch.ones(3, 8)}, "holds model.embed_tokens.weight"),
        ({"model.mm_projector.0.bias": torch.ones(8, dtype=torch.int64)}, "0.bias"),
        ({"model.mm_projector.0.bias": "words"}, "0.bias"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(change: dict[str, object], says: str, tmp_path: Path) -> None:
    tensors: dict[str, object] = {**drawn(MLP, "model.mm_projector."), **change}
    path = saved(tmp_path / "in.bin", {name: value for name, value in tensors.items() if value is not None})
    with pytest.raises(WorkbenchError, match=says) as error:
        read_connector_file(path)
    assert "\n" not in str(error.value)


class Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.place,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path, place = tmp_path / "in.bin", tmp_path / "unpickled"
    for content in (pickle.dumps(Evil(place)), b"", b"words", pickle.dumps([1, 2])):
        path.write_bytes(content)
        with pytest.raises(WorkbenchError, match=r"in\.bin"):
            read_connector_file(path)
    with pytest.raises(WorkbenchError, match=r"in\.bin"):
        read_connector_file(saved(path, {"model.mm_projector.weight": Evil(place)}))
    whole = saved(path, drawn(MLP, "")).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkbenchError, match=r"in\.bin"):
        read_connector_file(path)
    with pytest.raises(WorkbenchError, match="is no file"):
        read_connector_file(tmp_path / "none.bin")
    assert not place.exists()


def test_what_has_no_published_form_says_why() -> None:
    deep = build("deep_only", Selection((), 2), 16)
    with pytest.raises(WorkbenchError, match="normalises its input"):
        to_published(deep, Projector("linear", 16, 8))
    with pytest.raises(WorkbenchError, match="width of its own"):
        to_published(deep, Projector("linear", 16, 8, hidden=4, normalise=False))
    plain = Projector("linear", 16, 8, normalise=False)
    with pytest.raises(WorkbenchError, match=r"Weighted\w* has weights of its own"):
        to_published(build("weighted", Selection((1,), 2), 16), plain)
    with pytest.raises(WorkbenchError, match="attention=global"):
        to_published(build("mmfuser", Selection((1,), 2), 16, {"attention": "global"}), plain)


def test_filling_names_the_first_misfit() -> None:
    projector = Projector("linear", 4, 2)
    right = {name: value.clone() for name, value in projector.state_dict().items()}
    with pytest.raises(WorkbenchError, match=r"lacks map\.bias"):
        load_weights(projector, {"map.weight": right["map.weight"]}, "it")
    with pytest.raises(WorkbenchError, match=r"holds more\b"):
        load_weights(projector, right | {"more": torch.ones(1)}, "it")
    with pytest.raises(WorkbenchError, match=r"map\.weight has shape \[2, 5\].*\[2, 4\]"):
        load_weights(projector, right | {"map.weight": torch.ones(2, 5)}, "it")
