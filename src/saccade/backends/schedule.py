"""Which keys each block of queries has to look at, worked out from the mask before any score is computed.

For every block of consecutive queries: the *pieces*, ranges of keys that at least one of its queries sees (all others are
skipped), and within each piece the *inside*, a range that all of its queries see (no mask is needed there). Only what lies
between, the edges, is compared key by key. Everything is found from the intervals in O(Nq) tensor operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.masks import Dense, Intervals, Lengths

# Pieces closer than this are run as one: a second small matrix product costs more than the hidden scores between.
GAP = 32


@dataclass(frozen=True)
class Piece:
    """A range of keys `start` to `stop` that a block looks at, visible to the whole block from `inside` to `inside_stop`.

    `runs` are the interval slots that can touch it; without an inside, inside = inside_stop = stop.
    """

    start: int
    stop: int
    inside: int
    inside_stop: int
    runs: range = range(1)

    def edges(self) -> list[tuple[int, int]]:
        """The ranges of keys in which queries differ."""
        edges = [(self.start, self.inside), (self.inside_stop, self.stop)]
        return [(start, stop) for start, stop in edges if start < stop]

    def cut(self, start: int, stop: int) -> Piece:
        """The part of this piece within a range of keys."""

        def within(x: int) -> int:
            return min(max(x, start), stop)

        return Piece(*(within(x) for x in (self.start, self.stop, self.inside, self.inside_stop)), self.runs)


@dataclass(frozen=True)
class Block:
    """Consecutive queries and the pieces of keys that they look at, in order."""

    rows: slice
    pieces: tuple[Piece, ...]

    def chunks(self, most: int) -> list[tuple[Piece, ...]]:
        """The pieces in portions of at most `most` keys, so that a portion's scores fit the workspace."""
        portions: list[tuple[Piece, ...]] = []
        portion: list[Piece] = []
        room = most
        for piece in self.pieces:
            start = piece.start
            while start < piece.stop:
                stop = min(piece.stop, start + room)
                portion.append(piece.cut(start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    portions.append(tuple(portion))
                    portion, room = [], most
        return [*portions, tuple(portion)] if portion else portions


@dataclass(frozen=True)
class Part:
    """Batch elements and key heads that share one schedule."""

    batch: slice
    key_heads: slice
    blocks: Sequence[Block]


def plan(mask: Intervals | Dense | None, lengths: Lengths, key_heads: int, sizes: Sequence[int]) -> list[Part]:
    """The schedule of a problem.

    Args:
        mask: resolved, or None when every query sees every key.
        lengths: of the problem.
        key_heads: Hk; query heads of one group run together.
        sizes: block sizes to choose from, largest first. The one with the least work is taken, a smaller one only when
            it leaves out at least a third of it, as smaller products run slower.
    """
    if mask is None:
        rows = range(0, lengths.queries, sizes[0])
        piece = Piece(0, lengths.keys, 0, lengths.keys)
        pieces = (piece,) if lengths.keys else ()
        blocks = [Block(slice(r, min(r + sizes[0], lengths.queries)), pieces) for r in rows]
        return [Part(slice(0, lengths.batch), slice(0, key_heads), blocks)]
    covers = [_cover(mask, size, key_heads) for size in sizes]
    best = covers[0]
    for cover in covers[1:]:
        if cover.work() * 3 <= best.work() * 2:
            best = cover
    return _parts(best, lengths, key_heads)


@dataclass(frozen=True, eq=False)
class _Cover:
    """For every block and interval slot: the keys some query sees and those all see, ``(b, h, blocks, R)``."""

    size: int
    start: Tensor
    stop: Tensor
    inside: Tensor
    inside_stop: Tensor

    def work(self) -> int:
        """Query-key pairs to compute, slots that overlap counted twice."""
        return int((self.stop - self.start).clamp_min(0).sum()) * self.size


def _cover(mask: Intervals | Dense, size: int, key_heads: int) -> _Cover:
    starts, stops = (mask.starts, mask.stops) if isinstance(mask, Intervals) else _span(mask)
    keys = mask.keys if isinstance(mask, Intervals) else mask.visible.shape[-1]
    # (b, h, Nq, R) -> (b, hk, blocks, group * size, R); rows that pad the last block are empty intervals
    heads = key_heads if starts.shape[1] > 1 else 1
    missing = -starts.shape[2] % size

    def by_block(x: Tensor, fill: int) -> Tensor:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing), value=fill)
        return x.unflatten(1, (heads, -1)).unflatten(3, (-1, size)).transpose(2, 3).flatten(3, 4)

    def real(x: Tensor, nothing: int) -> Tensor:
        return x.masked_fill(starts >= stops, nothing)

    inside = by_block(starts, 0).amax(-2)
    inside_stop = by_block(stops, keys).amin(-2)
    if isinstance(mask, Dense):
        inside = torch.full_like(inside, keys)
    return _Cover(
        size,
        by_block(real(starts, keys), keys).amin(-2),
        by_block(real(stops, 0), 0).amax(-2),
        inside,
        inside_stop,
    )


def _span(mask: Dense) -> tuple[Tensor, Tensor]:
    """First and one past the last visible key of each row, ``(b, h, Nq, 1)``."""
    visible, keys = mask.visible, mask.visible.shape[-1]
    some = visible.any(-1, keepdim=True)
    first = visible.int().argmax(-1, keepdim=True).where(some, keys)
    stop = (keys - visible.flip(-1).int().argmax(-1, keepdim=True)).where(some, keys)
    return first.int(), stop.int()


def _parts(cover: _Cover, lengths: Lengths, key_heads: int) -> list[Part]:
    table = torch.stack([cover.start, cover.stop, cover.inside, cover.inside_stop], -1).tolist()
    batches, heads = len(table), len(table[0])
    parts = []
    for b in range(batches):
        for h in range(heads):
            blocks = [
                Block(slice(i * cover.size, min((i + 1) * cover.size, lengths.queries)), tuple(_pieces(slots)))
                for i, slots in enumerate(table[b][h])
            ]
            batch = slice(0, lengths.batch) if batches == 1 else slice(b, b + 1)
            parts.append(Part(batch, slice(0, key_heads) if heads == 1 else slice(h, h + 1), blocks))
    return parts


def _pieces(slots: list[list[int]]) -> list[Piece]:
    """Slots, each with the keys it covers and those all rows see, joined where they overlap or nearly touch."""
    found = sorted((*slot, r) for r, slot in enumerate(slots) if slot[0] < slot[1])
    pieces: list[Piece] = []
    for start, stop, first, last, run in found:
        inside, inside_stop = (first, last) if first < last else (stop, stop)
        piece = Piece(start, stop, inside, inside_stop, range(run, run + 1))
        if pieces and start <= pieces[-1].stop + GAP:
            piece = _join(pieces.pop(), piece)
        pieces.append(piece)
    return pieces


def _join(a: Piece, b: Piece) -> Piece:
    """Both and the gap between; of the two insides the larger one stays."""
    larger = a if a.inside_stop - a.inside >= b.inside_stop - b.inside else b
    inside, inside_stop = larger.inside, larger.inside_stop
    stop = max(a.stop, b.stop)
    if inside >= inside_stop:
        inside = inside_stop = stop
    runs = range(min(a.runs.start, b.runs.start), max(a.runs.stop, b.runs.stop))
    return Piece(min(a.start, b.start), stop, inside, inside_stop, runs)
