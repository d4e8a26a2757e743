"""Validation and test held out of training, so that no image is in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def components(links: Sequence[Sequence[str]]) -> list[str]:
    """The group of each row: rows with a name in common are in one group, and so on through every other row.

    Args:
        links: of each row, its names: images, document. A row without any is a group of its own.

    Returns the smallest name of each group, or ``""`` for a row without names.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = sorted({name for row in links for name in row})
    if not names:
        return [""] * len(links)
    place = {name: number for number, name in enumerate(names)}
    pairs = np.array([(place[row[0]], place[name]) for row in links for name in row], dtype=np.int64)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(names), len(names)))
    groups = connected_components(graph, directed=False)[1].tolist()
    smallest: dict[int, str] = {}
    for group, name in zip(groups, names, strict=True):
        smallest.setdefault(group, name)
    return [smallest[groups[place[row[0]]]] if row else "" for row in links]


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
