"""No name leaves the image folder, and what is no image is told before it is read."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llava_files import picture
from PIL import Image

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.datamodules.rows.row_images import VERIFY, ImageFolder
from fusion_workbench.datamodules.rows.rows import BadRow
from fusion_workbench.datamodules.transforms import PADDINGS, load_image, squared


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with an image, one in a folder below, and links that stay inside and that do not."""
    folder = tmp_path / "images"
    picture(folder / "a.png")
    picture(folder / "sub" / "b.png", seed=1)
    picture(tmp_path / "secret.png", seed=2)
    picture(tmp_path / "images-too" / "c.png", seed=3)
    (folder / "inside.png").symlink_to("sub/b.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "beside").symlink_to(tmp_path / "images-too")
    (folder / "round.png").symlink_to("round.png")
    (folder / "gone.png").symlink_to("nothing.png")
    (folder / "%2e%2e").mkdir()
    return folder


def test_what_lies_in_the_folder_is_found_by_one_name(images: Path) -> None:
    folder = ImageFolder(images)
    assert folder.find("a.png").name == "a.png"
    assert folder.find("a.png").size == (images / "a.png").stat().st_size
    for name in ("sub/b.png", "./sub/b.png", "sub//b.png", "sub/./b.png", "inside.png", "outside/images/sub/b.png"):
        assert folder.find(name) == folder.find("sub/b.png")
    assert folder.path("inside.png") == Path(os.path.realpath(images)) / "sub" / "b.png"


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("../secret.png", "image path", "through .."),
        ("sub/../a.png", "image path", "through .."),
        ("..", "image path", "through .."),
        ("..\\secret.png", "image path", "backslash"),
        ("sub\\b.png", "image path", "backslash"),
        ("/etc/passwd", "image path", "absolute"),
        ("C:/a.png", "image path", "absolute"),
        ("c:a.png", "image path", "absolute"),
        ("//server/a.png", "image path", "absolute"),
        ("http://host/a.png", "image path", "an address"),
        ("file:///etc/passwd", "image path", "an address"),
        ("a.png\0.jpg", "image path", "NUL"),
        ("a\ud800.png", "image path", "not a name"),
        ("out.png", "image path", "link out of"),
        ("outside/secret.png", "image path", "link out of"),
        ("beside/c.png", "image path", "link out of"),
        ("%2e%2e/secret.png", "missing image", "is not in"),
        ("..%2fsecret.png", "missing image", "is not in"),
        ("~/a.png", "missing image", "is not in"),
        ("round.png", "missing image", "is not in"),
        ("gone.png", "missing image", "is not in"),
        ("none.png", "missing image", "is not in"),
        ("a.png/b", "missing image", "is not in"),
        ("sub", "missing image", "is not a file"),
        (".", "missing image", "is not a file"),
        ("n" * 5000, "missing image", "is not in"),
    ],
)
def test_names_that_lead_elsewhere(images: Path, name: str, reason: str, detail: str) -> None:
    with pytest.raises(BadRow, match=detail) as caught:
        ImageFolder(images).find(name)
    assert caught.value.reason == reason


def test_a_pipe_is_not_opened(images: Path) -> None:
    os.mkfifo(images / "pipe.png")
    with pytest.raises(BadRow, match="is not a file"):
        ImageFolder(images).find("pipe.png")


def test_a_link_that_comes_later_is_seen_when_the_image_is_read(images: Path, tmp_path: Path) -> None:
    folder = ImageFolder(images)
    folder.find("a.png")
    (images / "a.png").unlink()
    (images / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadRow, match="link out of"):
        folder.path("a.png")


def test_the_folder_itself_may_be_a_link(images: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(images)
    assert ImageFolder(tmp_path / "linked").find("sub/b.png").name == "sub/b.png"
    with pytest.raises(WorkbenchError, match="does not exist"):
        ImageFolder(tmp_path / "none")


PIECES = st.sampled_from(
    (
        "a.png", "sub", "b.png", "..", ".", "/", "//", "\\", "inside.png", "out.png", "outside", "beside", "c.png",
        "secret.png", "images", "%2e%2e", "%2f", "\0", "~", "C:", " ", "round.png", "é", "\ud800", "://", "",
    )
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=6) | st.text(max_size=12).map(lambda text: [text]))
def test_whatever_the_name_it_is_a_file_inside_or_a_bad_row(images: Path, pieces: list[str]) -> None:
    folder = ImageFolder(images)
    for name in ("".join(pieces), "/".join(pieces)):
        try:
            found = folder.find(name)
        except BadRow:
            continue
        real = Path(os.path.realpath(images / name))
        assert real.is_file()
        assert real.is_relative_to(os.path.realpath(images))
        assert found.name == real.relative_to(os.path.realpath(images)).as_posix()


# --- what is no image ---------------------------------------------------------------------------------------------


def told(path: Path, verify: str) -> str:
    try:
        VERIFY[verify](path)
    except BadRow as bad:
        return f"{bad.reason}: {bad.detail}"
    return ""


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_whole_images_pass_and_those_cut_off_do_not(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"a.{suffix}", 60, 40)
    assert [told(path, verify) for verify in VERIFY] == ["", "", ""]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert told(path, "exists") == ""
    assert "cut off or damaged" in told(path, "header")
    path.write_bytes(whole + b"\0" * 200)  # harmless: the end is decoded to see
    assert [told(path, verify) for verify in VERIFY] == ["", "", ""]


def test_other_files_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for content in (b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        path.write_bytes(content)
        assert told(path, "header")


def test_a_hole_in_the_middle_is_found_by_its_pixels(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 60, 40)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    assert told(path, "header") == ""
    assert "cut off or damaged" in told(path, "pixels")


def bomb(path: Path) -> Path:
    """A PNG of some hundred bytes that claims 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    size = (60_000).to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
    return path


def test_a_decompression_bomb_is_one_line(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.png")
    assert "claims more than 178,956,970 pixels" in told(path, "header")
    with pytest.raises(WorkbenchError, match=r"bomb\.png claims more than") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


# --- pixels -------------------------------------------------------------------------------------------------------

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    if mode == "I;16":
        Image.fromarray(GREY.astype(np.uint16) * 256 + 7).save(path)
    elif mode == "PA":
        path = tmp_path / "a.gif"
        Image.fromarray(GREY).convert("P").save(path, transparency=3)
    else:
        Image.fromarray(GREY).convert(mode).save(path)
    found = load_image(path)
    assert (found.shape, found.dtype) == ((3, 4, 3), np.uint8)
    wanted = Image.fromarray(GREY).convert("1").convert("RGB") if mode == "1" else Image.fromarray(GREY).convert("RGB")
    assert np.abs(found.astype(int) - np.asarray(wanted).astype(int)).max() <= 1


def test_16_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 256 + 255).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png"), np.repeat(GREY[:, :, None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0], upright[0, 5] = (255, 0, 0), (0, 255, 0)
    stored = {  # what a camera that is held so writes
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png"), upright)


def test_paddings() -> None:
    wide = np.full((10, 30, 3), 200, np.uint8)
    wide[:, 10:20] = 50
    square = squared(wide, 30, "square", [1, 2, 3])
    assert (square[:10] == [1, 2, 3]).all()
    assert (square[20:] == [1, 2, 3]).all()
    assert np.array_equal(square[10:20], wide)
    assert (squared(wide, 10, "crop", [0, 0, 0]) == 50).all()
    stretched = squared(wide, 30, "stretch", [0, 0, 0])
    assert (stretched[:, 15] == 50).all()
    assert (stretched[:, 3] == 200).all()


def test_a_strip_is_not_padded_to_a_square_that_fills_the_memory() -> None:
    with pytest.raises(WorkbenchError, match="too long to be padded"):
        squared(np.zeros((1, 200_000, 3), np.uint8), 8, "square", (0, 0, 0))


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_square_of_the_right_size_is_left_as_it_is(padding: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(squared(image, 16, padding, [9, 9, 9]), image)


def test_padding_is_llava_s_expand2square() -> None:
    tall = np.random.default_rng(0).integers(0, 256, (31, 12, 3), dtype=np.uint8)
    canvas = Image.new("RGB", (31, 31), (122, 116, 104))
    canvas.paste(Image.fromarray(tall), ((31 - 12) // 2, 0))
    wanted = np.asarray(canvas.resize((14, 14), Image.Resampling.BICUBIC))
    assert np.array_equal(squared(tall, 14, "square", [122, 116, 104]), wanted)
