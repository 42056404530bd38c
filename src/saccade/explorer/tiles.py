"""Questions about a rectangle of one head's pattern, or of the heads' mean: tile, window, margins.

Everything is computed from queries and keys when it is asked. Where cells are so large that a stored map has as fine
ones, that is read instead: the whole of a long text's pattern takes minutes to compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import ArgumentError
from saccade.explorer.parameters import Head, Range, read
from saccade.explorer.parcel import Answer
from saccade.explorer.patterns import Floats, Heads, fold, rows_of, weights
from saccade.explorer.stored import margins_of_all, stored_tile
from saccade.explorer.work import Asked, go_on
from saccade.statistics import cell_bounds

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer

TILE = 256  # cells along a tile's side
MOST_WEIGHTS = 1 << 20  # of a window
MOST_CELLS = 512  # along a margin
ROWS = 1 << 22  # weights of heads that are averaged before they are reduced, at a time
REDUCTIONS = ("mean", "max")


@dataclass(frozen=True)
class TileKey:
    """Of question `tile`: cells of ``2**level`` tokens, the tile's place in the grid, and what a cell is."""

    text: str
    site: int
    head: Head
    level: int
    row: int
    column: int
    reduce: str


@dataclass(frozen=True)
class Rectangle:
    """Of questions `window` and `margins`: ranges of tokens."""

    text: str
    site: int
    head: Head
    queries: Range
    keys: Range


def tile(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """A tile of a map: TileAnswer."""
    asked = read(TileKey, parameters)
    if asked.reduce not in REDUCTIONS:
        raise ArgumentError(f"reduce = {asked.reduce[:100]!r}: expected one of {', '.join(REDUCTIONS)}")
    heads = Heads.of(explorer, asked.text, asked.site, asked.head)
    queries, keys = _place(asked, heads.shape)
    kept = stored_tile(heads, (queries, keys), asked.level, asked.reduce)
    if kept is not None:
        return kept
    if asked.level == 0:
        found: Tensor | Floats = _window(heads, queries, keys, cancelled)
    elif len(heads.places) > 1 and asked.reduce == "max":
        found = _largest_of_mean(heads, (queries, keys), 1 << asked.level, cancelled)
    else:
        found = _reduced(heads, (queries, keys), 1 << asked.level, asked.reduce, cancelled)
    return {
        "queries": [queries.start, queries.stop],
        "keys": [keys.start, keys.stop],
        "weights": found,
        "exact": asked.level == 0,
        "reduce": asked.reduce,
    }


def _place(asked: TileKey, shape: tuple[int, int]) -> tuple[slice, slice]:
    """The tokens that a tile covers.

    Raises:
        ArgumentError: there is no such tile.
    """
    top = max(math.ceil(math.log2(max(*shape, 1) / TILE)), 0)
    if asked.level > top:
        raise ArgumentError(f"level = {asked.level}: at level {top} one tile holds all {max(shape):,} tokens")
    side = TILE << asked.level
    starts = asked.row * side, asked.column * side
    for name, number, start, length in zip(("row", "column"), (asked.row, asked.column), starts, shape, strict=True):
        if start >= length:
            raise ArgumentError(f"{name} = {number}: level {asked.level} has {-(-length // side)} of them, from 0")
    found = [slice(start, min(start + side, length)) for start, length in zip(starts, shape, strict=True)]
    return found[0], found[1]


def _window(heads: Heads, queries: slice, keys: slice, cancelled: Asked) -> Tensor:
    """The weights themselves, of the mean if there are several heads."""
    each = (weights(pattern, queries, keys) for pattern in heads.patterns(cancelled))
    total = next(each)
    for found in each:
        total += found
    return total.div_(len(heads.places))


def _reduced(heads: Heads, area: tuple[slice, slice], size: int, reduce: str, cancelled: Asked) -> Floats:
    """Cells of some tokens along each side. "max" is of one head."""
    bounds = _bounds(area, size)
    total = np.zeros([len(edges) - 1 for edges in bounds])
    how = "max" if reduce == "max" else "sum"
    for pattern in heads.patterns(cancelled):
        for rows, found in rows_of(pattern, *area, total.shape[1], how, cancelled):
            fold(total, rows, found, bounds[0], how)
    if reduce == "max":
        return total
    sizes = [edges.diff().numpy() for edges in bounds]
    mean: Floats = total / (sizes[0][:, None] * sizes[1] * len(heads.places))
    return mean


def _bounds(area: tuple[slice, slice], size: int) -> list[Tensor]:
    """Where cells of so many tokens begin and end, along each side."""
    return [cell_bounds(n, -(-n // size)) for n in (part.stop - part.start for part in area)]


def _largest_of_mean(heads: Heads, area: tuple[slice, slice], size: int, cancelled: Asked) -> Floats:
    """The largest weight of the heads' mean in each cell: the mean has to be there before it is reduced."""
    queries, keys = area
    heads.need_room()
    patterns = list(heads.patterns(cancelled))
    bounds = _bounds(area, size)
    total = np.zeros([len(edges) - 1 for edges in bounds])
    starts = bounds[1][:-1].numpy()
    step = max(ROWS // (keys.stop - keys.start), 1)
    for first in range(queries.start, queries.stop, step):
        block = slice(first, min(first + step, queries.stop))
        mean = np.zeros((block.stop - block.start, keys.stop - keys.start), dtype=np.float32)
        for pattern in patterns:
            go_on(cancelled)
            mean += weights(pattern, block, keys).numpy()
        rows = torch.from_numpy(np.maximum.reduceat(mean, starts, axis=1) / len(patterns))
        fold(total, slice(first - queries.start, block.stop - queries.start), rows, bounds[0], "max")
    return total


def window(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """Exact weights of a rectangle: WindowAnswer."""
    asked = read(Rectangle, parameters)
    heads = Heads.of(explorer, asked.text, asked.site, asked.head)
    queries, keys = _area(heads, asked)
    count = (queries.stop - queries.start) * (keys.stop - keys.start)
    if count > MOST_WEIGHTS:
        raise ArgumentError(f"the window has {count:,} weights; expected at most {MOST_WEIGHTS:,}: ask for tiles")
    heads.need_exact()
    return {"weights": _window(heads, queries, keys, cancelled)}


def _area(heads: Heads, asked: Rectangle) -> tuple[slice, slice]:
    parts = zip(("queries", "keys"), (asked.queries, asked.keys), heads.shape, strict=True)
    queries, keys = (heads.check_range(name, part, length) for name, part, length in parts)
    return queries, keys


def margins(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """Sums of a rectangle along its sides: MarginsAnswer."""
    asked = read(Rectangle, parameters)
    heads = Heads.of(explorer, asked.text, asked.site, asked.head)
    area = _area(heads, asked)
    bounds = [cell_bounds(n, min(n, MOST_CELLS)) for n in (part.stop - part.start for part in area)]
    known = margins_of_all(heads, area, cancelled)
    if known is not None:
        rows, columns = (
            np.add.reduceat(one.double().numpy(), edges[:-1].numpy()) for one, edges in zip(known, bounds, strict=True)
        )
    else:
        heads.need_exact()
        rows, columns = _sums(heads, area, bounds, cancelled)
    shares = [edges.diff().numpy() * len(heads.places) for edges in bounds]
    return {"rows": rows / shares[0], "columns": columns / shares[1]}


def _sums(heads: Heads, area: tuple[slice, slice], bounds: Sequence[Tensor], cancelled: Asked) -> tuple[Floats, Floats]:
    """Sums over the cells along queries and along keys, over all heads."""
    rows, columns = (np.zeros(len(edges) - 1) for edges in bounds)
    for pattern in heads.patterns(cancelled):
        for block, found in rows_of(pattern, *area, len(columns), "sum", cancelled):
            fold(rows, block, found.double().sum(1), bounds[0], "sum")
            columns += found.double().sum(0).numpy()
    return rows, columns
