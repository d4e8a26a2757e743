"""Images from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.transforms import fit, load_image


def test_reads_as_rgb(tmp_path: Path) -> None:
    Image.new("L", (5, 3), 7).save(tmp_path / "grey.png")
    image = load_image(tmp_path / "grey.png")
    assert image.shape == (3, 5, 3)
    assert (image == 7).all()


def test_fit_takes_the_centre() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255
    assert fit(image, 10).shape == (10, 10, 3)
    assert fit(image, 20).min() == 255


def test_fit_keeps_the_shape_that_is_asked_for() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30] = 255
    assert fit(image, (20, 40)).shape == (20, 40, 3)
    assert fit(image, (20, 40)).min() == 255
    assert fit(image.transpose(1, 0, 2), (40, 20)).min() == 255


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(WorkbenchError, match="is not an image"):
        load_image(tmp_path / "text.png")
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(WorkbenchError, match="cut off or damaged"):
        load_image(tmp_path / "torn.png")
