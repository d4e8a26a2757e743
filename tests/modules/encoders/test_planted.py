"""The planted source and encoder: the signal is where it is said to be, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion_workbench.config.study import EncoderConfig
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.build import build_source
from fusion_workbench.modules.encoders.planted import PlantedEncoder
from fusion_workbench.study.encoder_store import load_encoder


def states(name: str, images: int = 900) -> tuple[torch.Tensor, np.ndarray]:
    source = build_source("planted", {"train": images})
    drawn = np.stack([source.image("train", index) for index in range(images)])
    encoder = load_encoder(EncoderConfig(name=name, image_size=8))
    return encoder.encode(drawn, range(encoder.depth + 1)), source.targets("train")["digit.label"]


def test_only_the_planted_layers_tell_classes_apart() -> None:
    """The variance between the means of halves of the class: of noise 3/900 and a bit, of a signal much more."""
    hidden, labels = states("planted:depth=5,dim=8,signal=1+3,strength=2")
    assert hidden.shape == (6, 900, 4, 8)
    pooled = hidden.mean(2).numpy()
    for layer in range(6):
        between = [
            np.var([pooled[layer, half == way].mean(0) for way in range(3)], axis=0).sum()
            for half in (labels // 3, labels % 3)
        ]
        assert (between[0] > 0.5) == (layer == 1)
        assert (between[1] > 0.5) == (layer == 3)


def test_states_depend_on_the_image_alone() -> None:
    source = build_source("planted", {})
    images = np.stack([source.image("test", index) for index in range(6)])
    encoder = PlantedEncoder("planted:")
    whole = encoder.encode(images, [0, 4])
    assert torch.equal(encoder.encode(images[2:4], [4])[0], whole[1, 2:4])
    assert not torch.equal(whole[:, 0], whole[:, 1])
    assert encoder.fingerprint != PlantedEncoder("planted:signal=0+1").fingerprint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("planted:signals=1+2", "Did you mean 'signal'"),
        ("planted:signal=1+9", "from 0 to the depth of 4"),
        ("planted:signal=one", "must be like 1+3"),
        ("planted:depth=deep", "must be like 4"),
    ],
)
def test_a_wrong_name_is_answered_in_a_line(name: str, said: str) -> None:
    with pytest.raises(WorkbenchError, match=said.replace("+", r"\+")) as caught:
        PlantedEncoder(name)
    assert "\n" not in str(caught.value)
