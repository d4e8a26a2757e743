"""Encoder info: one encoder's layers under every notation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.config.study import EncoderConfig
from fusion_workbench.core.layers import notations
from fusion_workbench.study.encoder_store import load_encoder
from fusion_workbench.system.pretrained_config import stored_weights

if TYPE_CHECKING:
    from rich.console import Console

EMBEDDED = "assets:encoder"


def show(console: Console, name: str, image_size: int, revision: str | None) -> None:
    """Print what is known of encoder ``name``. Raises WorkbenchError when it cannot be loaded."""
    from rich.table import Table
    from rich.text import Text

    from fusion_workbench.modules.encoders.description import height_width

    facts = _embedded(image_size) if name == EMBEDDED else None
    if facts is None:
        config = EncoderConfig(name=name, revision=revision, image_size=image_size, precision="float32")
        facts = load_encoder(config).encoder_info()
    depth, size = facts["depth"], facts["image_size"]
    norm = (
        "follows the last block: last_hidden_state = norm(hidden_states[-1])"
        if facts["final_norm"]
        else "none on the tokens: last_hidden_state = hidden_states[-1]"
    )
    head = Table.grid(padding=(0, 2))
    for key, value in {
        "family": facts["family"],
        "revision": facts["revision"] or "a folder: its fingerprint is kept instead",
        "parameters": f"{facts['parameters'] / 1e6:.2f} M",
        "depth": f"{facts['depth']} blocks, layers 0 to {facts['depth']}",
        "dim": str(facts["dim"]),
        "input": f"{' × '.join(map(str, height_width(size)))} px, patches of {facts['patch']} px",
        "grid": f"{facts['grid'][0]} × {facts['grid'][1]} = {facts['tokens']} patch tokens",
        "positions": facts["positions"],
        "prefix tokens": f"{facts['prefix_tokens']} (split off, never fused)",
        "final norm": norm,
    }.items():
        head.add_row(Text(key, "bold"), value)
    console.print(facts["encoder"], style="bold", highlight=False)
    console.print(head)
    columns = list(notations(0, depth))
    table = Table(*columns, "what it is")
    for layer in range(depth + 1):
        what = "embeddings" if layer == 0 else f"output of block {layer}"
        marks = {depth: " (deepest)", depth - 1: " (penultimate: LLaVA's −2)"}
        table.add_row(*notations(layer, depth).values(), what + marks.get(layer, ""))
    console.print(table)
    console.print(
        "any of these notations works in a study: [bold]selections: [{levels: [hs:3, 50%, -4]}][/]",
        highlight=False,
        markup=True,
    )


def _embedded(image_size: int) -> dict[str, Any] | None:
    """The embedded encoder from its config and the headers of its weights; None where these cannot be read.

    The files are held against their checksums and have the model's weights, all of them and no other, so that nothing
    would be found by loading it. Any other encoder is loaded, which is how a weight that is missing comes to light.
    """
    from fusion_workbench.assets import home as assets
    from fusion_workbench.modules.encoders.description import describe
    from fusion_workbench.modules.encoders.loading import read_config

    folder = assets.model_path(EMBEDDED, "encoder", "encoder.name")
    stored = stored_weights(Path(folder))
    if stored is None:
        return None
    described = describe(folder, read_config(folder, None), image_size, None)
    return described.info() | {"encoder": EMBEDDED, "parameters": stored[0]}


def families_markdown() -> str:
    """The table of families, as ``docs/encoders.md`` has it."""
    head = "| model type | class | prefix tokens | final norm | positions | such as |\n|---|---|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in _families(code="`"))


def show_families(console: Console) -> None:
    """Print the families of encoders that are known."""
    from rich.table import Table

    title = "families of encoders, by transformers' model_type"
    table = Table("model type", "class", "prefix", "final norm", "positions", "such as", title=title)
    for row in _families():
        table.add_row(*row)
    console.print(table)
    console.print("one encoder's layers: [bold]workbench layers NAME[/]", highlight=False, markup=True)


def _families(code: str = "") -> list[tuple[str, ...]]:
    """A row a family; model types that are read alike share one."""
    from fusion_workbench.modules.encoders.families import FAMILIES

    alike: dict[int, list[str]] = {}
    for model_type, family in FAMILIES.items():
        alike.setdefault(id(family), []).append(model_type)
    rows: list[tuple[str, ...]] = []
    for family in dict.fromkeys(FAMILIES.values()):
        types = ", ".join(f"{code}{name}{code}" for name in alike[id(family)])
        norm = "yes" if family.final_norm else "no"
        where = family.positions + ("; sound: no source yet" if family.audio else "")
        rows.append((types, f"{code}{family.model_class}{code}", family.prefix_words, norm, where, family.models))
    return rows
