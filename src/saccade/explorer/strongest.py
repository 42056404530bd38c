"""Question `strongest`: the heaviest partners of some tokens, or words, in some heads.

Rows of the pattern (or columns, for who looks at a key) are computed some at a time and reduced to the heaviest. As
words, keys are summed and queries averaged: a row of words sums to what a row of tokens does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.errors import ArgumentError
from saccade.explorer.library import Text
from saccade.explorer.parameters import Range, read
from saccade.explorer.parcel import Answer
from saccade.explorer.patterns import Heads, weights
from saccade.explorer.work import Asked, go_on
from saccade.pattern import Pattern

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer

MOST_UNITS = 256
MOST_PARTNERS = 64
BLOCK = 1 << 22  # weights that are held at a time: 16 MiB
SIDES = ("queries", "keys")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StrongestKey:
    """Of question `strongest`: see the page's contract."""

    text: str
    site: int
    heads: tuple[int, ...]
    side: str
    range: Range
    count: int
    words: bool
    ordinary: bool


@dataclass(frozen=True, eq=False)
class _Side:
    """The queries or the keys of a site as units: tokens, or words.

    Attributes:
        first: int64 ``(units + 1,)``, the first token of each unit, and how many tokens there are.
        special: booleans ``(units,)``.
        averaged: whether a unit is the mean of its tokens, as queries are, and not their sum.
    """

    first: NDArray[np.int64]
    special: Tensor
    averaged: bool

    @classmethod
    def of(cls, text: Text, sequence: str | None, length: int, *, words: bool, queries: bool) -> _Side:
        if sequence is None:
            return cls(np.arange(length + 1), torch.zeros(length, dtype=torch.bool, device="cpu"), queries)
        tokens = text.tokens(sequence)
        if not words:
            return cls(np.arange(length + 1), tokens.special, queries)
        first = np.searchsorted(tokens.word.numpy(), np.arange(tokens.words + 1))
        return cls(first, tokens.special[first[:-1]], queries)  # a special token is a word by itself

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.special)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return int(self.first[-1])

    def merge(self, values: Floats, tokens: slice, units: slice, axis: int) -> Floats:
        """An axis of some tokens as the units that they belong to: their sums, or their part of the units' means."""
        if self.units == self.tokens:
            return values
        first = np.maximum(self.first[units.start : units.stop] - tokens.start, 0)
        summed: Floats = np.add.reduceat(values, first, axis=axis)
        if self.averaged:
            sizes = np.diff(self.first)[units].astype(np.float32)
            summed /= sizes[:, None] if axis == 0 else sizes
        return summed


def strongest(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """The heaviest partners: StrongestAnswer."""
    asked = read(StrongestKey, parameters)
    _check(asked)
    chosen = [Heads.of(explorer, asked.text, asked.site, head) for head in asked.heads]
    chosen[0].need_exact()
    mine, others = _sides(chosen[0], asked)
    units = chosen[0].check_range("range", asked.range, mine.units)
    found = [_of_head(heads, asked, mine, others, units, cancelled) for heads in chosen]
    partner, weight, whole, special = (torch.stack(parts) for parts in zip(*found, strict=True))
    return {"partner": partner.int(), "weight": weight, "whole": whole, "special": special}


def _check(asked: StrongestKey) -> None:
    if asked.side not in SIDES:
        raise ArgumentError(f"side = {asked.side[:100]!r}: expected one of {', '.join(SIDES)}")
    if not asked.heads:
        raise ArgumentError("heads is empty: expected at least one")
    if not 1 <= asked.count <= MOST_PARTNERS:
        raise ArgumentError(f"count = {asked.count}: expected 1 to {MOST_PARTNERS}")
    if asked.range[1] - asked.range[0] > MOST_UNITS:
        raise ArgumentError(f"range = {asked.range[0]},{asked.range[1]}: expected at most {MOST_UNITS} of them")


def _sides(heads: Heads, asked: StrongestKey) -> tuple[_Side, _Side]:
    """The side that is asked about, and that of its partners."""
    info = heads.info
    queries = _Side.of(heads.text, info["query_tokens"], info["queries"], words=asked.words, queries=True)
    keys = _Side.of(heads.text, info["key_tokens"], info["keys"], words=asked.words, queries=False)
    return (queries, keys) if asked.side == "queries" else (keys, queries)


def _of_head(
    heads: Heads, asked: StrongestKey, mine: _Side, others: _Side, units: slice, cancelled: Asked
) -> tuple[Tensor, ...]:
    """Partners, weights, whole and special of one head."""
    pattern = heads.pattern(heads.places[0])
    parts = [
        _heaviest(values, others.special if asked.ordinary else None, asked.count)
        for values in _merged(pattern, mine, others, units, cancelled)
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _merged(pattern: Pattern, mine: _Side, others: _Side, units: slice, cancelled: Asked) -> Iterator[Tensor]:
    """The weights between some units and all partners ``(units, partners)``, few units at a time."""
    step = BLOCK // max(others.tokens, 1)
    for part in _blocks(units, step):
        tokens = slice(int(mine.first[part.start]), int(mine.first[part.stop]))
        total = np.zeros((part.stop - part.start, others.units), dtype=np.float32)
        for block in _blocks(tokens, step):  # a word may be long
            go_on(cancelled)
            weights = _weights(pattern, block, slice(0, others.tokens), by_query=mine.averaged)
            partners = others.merge(weights, slice(0, others.tokens), slice(0, others.units), 1)
            ends = np.searchsorted(mine.first, (block.start, block.stop - 1), side="right")
            here = slice(int(ends[0]) - 1, int(ends[1]))
            total[here.start - part.start : here.stop - part.start] += mine.merge(partners, block, here, 0)
        yield torch.from_numpy(total)


def _blocks(whole: slice, step: int) -> Iterator[slice]:
    for first in range(whole.start, whole.stop, max(step, 1)):
        yield slice(first, min(first + max(step, 1), whole.stop))


def _weights(pattern: Pattern, mine: slice, others: slice, *, by_query: bool) -> Floats:
    """The weights between some tokens of the side that is asked about and those of the other side."""
    found: Floats = (weights(pattern, mine, others) if by_query else weights(pattern, others, mine).mT).numpy()
    return found


def _heaviest(values: Tensor, left_out: Tensor | None, count: int) -> tuple[Tensor, ...]:
    """Of rows, the heaviest entries and their places, the sum of all, and of it that of those that are left out."""
    whole, special = values.sum(1, dtype=torch.float64), values.new_zeros(len(values))
    if left_out is not None:
        special = values[:, left_out].sum(1)
        values[:, left_out] = 0.0
    weight, partner = values.topk(min(count, values.shape[1]), 1)
    partner = partner.where(weight > 0, -1)  # nor does NaN, which is not greater than 0, name a partner
    missing = count - weight.shape[1]
    padded = torch.nn.functional.pad(partner, (0, missing), value=-1), torch.nn.functional.pad(weight, (0, missing))
    return *padded, whole, special
