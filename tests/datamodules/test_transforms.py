"""Images from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.transforms import CLIP_MEAN, fit, load_image, squared


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


def _odd_pictures(folder: Path) -> list[Path]:
    """25 files: strips, one pixel high or wide, larger and smaller than 56 px, grey, palette, transparent."""
    draw = np.random.RandomState(0)
    shapes = [
        *((1, 1), (1, 7), (7, 1), (1, 900), (900, 1), (2, 2_000), (2_000, 3), (17, 33), (33, 17), (55, 57), (57, 55)),
        *((56, 56), (56, 300), (300, 56), (112, 56), (427, 640), (640, 427), (601, 599), (40, 64)),
    ]
    made = [Image.fromarray(draw.randint(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    for mode, shape in (("L", (90, 61)), ("L", (30, 31)), ("P", (61, 90)), ("RGBA", (75, 200)), ("RGBA", (13, 9))):
        four = Image.fromarray(draw.randint(0, 256, (*shape, 4), dtype=np.uint8), "RGBA")
        made.append(four if mode == "RGBA" else four.convert("RGB").convert(mode))
    made.append(Image.fromarray(draw.randint(0, 2, (64, 200), dtype=np.uint8) * 255).convert("1"))
    paths = [folder / f"{number:02}.png" for number in range(len(made))]
    for path, image in zip(paths, made, strict=True):
        image.save(path)
    return paths


def test_crop_is_clip_s_preprocessing(tiny_clip: Path, tmp_path: Path) -> None:
    """What the encoder reads, against transformers' own processor of the same folder."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from fusion_workbench.modules.encoders.encoder import VisionEncoder

    processor: Any = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    encoder = VisionEncoder(str(tiny_clip), image_size=0, precision="float32")
    paths = _odd_pictures(tmp_path)
    assert len(paths) == 25
    differing = 0
    for path in paths:
        image = load_image(path)
        with Image.open(path) as opened:
            shown = (
                opened.convert("RGB") if opened.mode == "RGBA" else opened
            )  # as LLaVA; alone it would be laid on white
            wanted = processor(shown, return_tensors="np")["pixel_values"]
        found = encoder.normalise(squared(image, 56, "crop", CLIP_MEAN)[None]).numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5, err_msg=f"{path.name}: {image.shape}")
        differing += not np.array_equal(
            squared(image, 56, "crop_then_resize", CLIP_MEAN), squared(image, 56, "crop", [])
        )
    assert differing > 15  # which is why that of 0.1 has a name of its own


def test_too_narrow_a_strip_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(
        WorkbenchError, match=r"1 × 200,000 px is too narrow to be resized and cropped \(at most 3,000 : 1"
    ):
        squared(np.zeros((1, 200_000, 3), np.uint8), 336, "crop", CLIP_MEAN)
    assert squared(np.zeros((3_000, 1, 3), np.uint8), 8, "crop", CLIP_MEAN).shape == (8, 8, 3)
