"""The groups of benchmarks, and a run of them. Nothing heavy is imported before a group runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_workbench.core import stopping
from fusion_workbench.core.errors import WorkbenchError, nearest
from fusion_workbench.system.files import explain_writing

if TYPE_CHECKING:
    from rich.console import Console

    from fusion_workbench.bench.record import Figure, Record
    from fusion_workbench.bench.turns import Setting


@dataclass(frozen=True)
class Group:
    """A group of benchmarks: the module of its name, whose ``measure(setting)`` gives its figures one by one."""

    name: str
    title: str


GROUPS = {
    group.name: group
    for group in (
        Group("ceilings", "What this device can do at most: matrix products, memory, disk"),
        Group("naive", "A study against the sweep as it is usually written"),
        Group("cached", "Probe banks against plain torch on features in memory"),
        Group("encoder", "Encoding against a bare forward and the device's limit"),
        Group("store", "Reading the feature store against memory and disk"),
        Group("strategies", "Fusion strategies against the device's limits, and MMFuser against grid_sample"),
        Group("bank", "Probe banks against the same probes alone"),
        Group("language", "Language models against loops by hand and transformers' generate"),
        Group("startup", "Commands against the import of torch"),
        Group("growth", "How time and memory grow: exponents"),
    )
}


def check_groups(names: Sequence[str]) -> list[Group]:
    """The groups of these names, in the order in which they run; all where none is named.

    Raises:
        WorkbenchError: an unknown name.
    """
    for name in names:
        if name not in GROUPS:
            raise WorkbenchError(f"no group of benchmarks is called '{name}'.{nearest(name, GROUPS)}")
    return [group for name, group in GROUPS.items() if name in names or not names]


def check_device(device: str) -> str:
    """``auto`` to what there is.

    Raises:
        WorkbenchError: another word than auto, cpu or cuda, or CUDA where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise WorkbenchError(f"--device {device}: it is auto, cpu or cuda.")
    if device == "cpu":
        return device
    from fusion_workbench.system.hardware import default_device

    found = default_device()
    if device == "cuda" and found != "cuda":
        raise WorkbenchError("--device cuda: torch sees no CUDA here; take --device cpu.")
    return found


def run(
    console: Console,
    names: Sequence[str],
    device: str = "auto",
    tiny: bool = False,
    repeats: int = 5,
    out: Path = Path("workspace/bench"),
) -> Record:
    """Measure the groups, print each as it ends, and leave ``bench.json`` and ``bench.html`` in ``out``.

    Both are written as the figures come, so an interrupted run keeps what it has.

    Raises:
        WorkbenchError: an unknown group or device, or ``out`` cannot be written.
    """
    groups, device = check_groups(names), check_device(device)
    with explain_writing(out, "name a folder for the figures with --out"):
        out.mkdir(parents=True, exist_ok=True)
    from fusion_workbench.bench.page import write_page
    from fusion_workbench.bench.record import JSON, Record
    from fusion_workbench.bench.turns import Setting
    from fusion_workbench.system.files import scratch_beside

    stopping.say_afterwards(f"what was measured is in {out}, and the same command measures all of it anew")
    with scratch_beside(out / "scratch") as scratch:
        setting = Setting(device, tiny, repeats, scratch)
        record = Record(out, setting)
        try:
            for group in groups:
                record.begin(group.name, group.title)
                for figure in figures(group, setting):
                    record.add(figure)
                record.end()
                show(console, record)
        finally:
            page = write_page(record, out)
            console.print(f"written: {page}, {out / JSON}", highlight=False, markup=False)
    return record


def figures(group: Group, setting: Setting) -> Iterator[Figure]:
    """The group's figures; what a user could mend before it can be measured is told as not measured."""
    from fusion_workbench.bench.record import Figure

    try:
        yield from import_module(f"fusion_workbench.bench.{group.name}").measure(setting)
    except WorkbenchError as error:
        yield Figure(group.title, missing=str(error))


def show(console: Console, record: Record) -> None:
    """Print the last group of a record."""
    from rich.table import Table
    from rich.text import Text

    from fusion_workbench.bench.page import figure_words

    group = record.groups[-1]
    table = Table("what", "against", "figure", "range", title=f"{group.name}: {group.title} ({group.seconds:.0f} s)")
    table.title_justify = "left"
    for figure in group.figures:
        value, spread = figure_words(figure)
        table.add_row(Text(figure.name), Text(figure.against), Text(value), Text(spread))
    console.print(table)


def list_groups(console: Console) -> None:
    """Print the names of the groups, and what each measures."""
    from rich.table import Table

    table = Table("group", "measures", title="groups of benchmarks", title_justify="left")
    for group in GROUPS.values():
        table.add_row(group.name, group.title)
    console.print(table)
