"""Which keys each block of queries has to look at, worked out from the mask before any score is computed.

For every block of consecutive queries: the *pieces*, ranges of keys that at least one of its queries sees (all others
are skipped), and within each piece the *inside*, a range that all of its queries see (no mask is needed there). Only
what lies between, the edges, is compared key by key. Everything is found from the intervals by O(Nq) work on tensors.
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
    """Keys `start` to `stop` that a block looks at, visible to the whole block from `inside` to `inside_stop`.

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

        return Piece(within(self.start), within(self.stop), within(self.inside), within(self.inside_stop), self.runs)


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


def plan(mask: Intervals | Dense | None, lengths: Lengths, key_heads: int, sizes: dict[int, float]) -> list[Part]:
    """The schedule of a problem.

    Args:
        mask: resolved, or None when every query sees every key.
        lengths: of the problem.
        key_heads: Hk; query heads of one group run together.
        sizes: the block sizes to choose from and how long a score takes in each, relative to one another: the larger
            a block, the faster its matrix products, and the more hidden scores it computes.
    """
    if lengths.queries == 0:
        return []
    largest, smallest = max(sizes), min(sizes)
    if mask is None:
        piece = Piece(0, lengths.keys, 0, lengths.keys)
        pieces = (piece,) if lengths.keys else ()
        rows = range(0, lengths.queries, largest)
        blocks = [Block(slice(r, min(r + largest, lengths.queries)), pieces) for r in rows]
        return [Part(slice(0, lengths.batch), slice(0, key_heads), blocks)]
    useful = sizes if lengths.queries > smallest else {smallest: 1.0}
    covers = [(_cover(mask, size, key_heads), seconds) for size, seconds in useful.items()]
    best, _ = min(covers, key=lambda cover: cover[0].work() * cover[1])
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
    batch, heads, queries, runs = starts.shape
    key_heads = min(heads, key_heads)
    size = min(size, queries)
    missing = -queries % size

    def by_block(x: Tensor, fill: int) -> Tensor:
        """(b, h, Nq, R) -> (b, hk, blocks, group * size, R), the last block filled up."""
        if missing:
            x = torch.nn.functional.pad(x, (0, 0, 0, missing), value=fill)
        x = x.reshape(batch, key_heads, heads // key_heads, -1, size, runs).transpose(2, 3)
        return x.reshape(batch, key_heads, x.shape[2], -1, runs)

    empty = starts >= stops
    inside, inside_stop = by_block(starts, 0).amax(-2), by_block(stops, keys).amin(-2)
    return _Cover(
        size,
        by_block(starts.masked_fill(empty, keys), keys).amin(-2),
        by_block(stops.masked_fill(empty, 0), 0).amax(-2),
        inside if isinstance(mask, Intervals) else torch.full_like(inside, keys),
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
