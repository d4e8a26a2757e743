"""Validation and test held out of training, so that no image is in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def components(links: Sequence[Sequence[str]]) -> list[str]:
    """The group of each row: rows with a name in common are in one group, and so on through every other row.

    Args:
        links: of each row, its names: images, document. A row without any is a group of its own.

    Returns the smallest name of each group, or ``""`` for a row without names.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in links:
        for name in names:
            parent.setdefault(name, name)
        for name in names[1:]:
            one, other = sorted((root(names[0]), root(name)))
            parent[other] = one
    return [root(names[0]) if names else "" for names in links]


def hold_out(groups: Sequence[str], rows: Mapping[str, int], seed: int) -> list[str]:
    """The split of each row: ``"train"``, or one of those to hold out.

    Groups are taken whole, in an order that depends on ``seed`` and their names alone, until a split holds as many
    rows as it should; a group that would take it above that is passed over. Where none is small enough, the smallest.
    Rows without a group (text alone) are trained on.

    Args:
        groups: the group of each row, from :func:`components`.
        rows: split → how many rows to hold out.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        if group:
            sizes[group] = sizes.get(group, 0) + 1
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}|{group}".encode()).digest())
    split_of: dict[str, str] = {}
    for split, size in rows.items():
        taken = 0
        for group in order:
            if group not in split_of and taken + sizes[group] <= size:
                split_of[group] = split
                taken += sizes[group]
        left = [group for group in order if group not in split_of]
        if not taken and left:
            split_of[min(left, key=sizes.__getitem__)] = split
    return [split_of.get(group, "train") for group in groups]
