"""Question `strongest`: the heaviest partners of some tokens, or words, in some heads.

Rows of the pattern (or columns, for who looks at a key) are computed some at a time and reduced to the heaviest. As
words, keys are summed and queries averaged: a row of words sums to what a row of tokens does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saccade.errors import ArgumentError
from saccade.explorer.library import Text
from saccade.explorer.parameters import Range, read
from saccade.explorer.parcel import Answer
from saccade.explorer.patterns import Heads
from saccade.explorer.work import Asked, go_on
from saccade.pattern import Pattern

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer

MOST_UNITS = 256
MOST_PARTNERS = 64
BLOCK = 1 << 22  # weights that are held at a time: 16 MiB
SIDES = ("queries", "keys")


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
        unit: int64 ``(N,)``, the unit of each token, ascending.
        special: booleans ``(units,)``.
        averaged: whether a unit is the mean of its tokens, as queries are, and not their sum.
    """

    unit: Tensor
    special: Tensor
    averaged: bool

    @classmethod
    def of(cls, text: Text, sequence: str | None, length: int, *, words: bool, queries: bool) -> _Side:
        unit, special = torch.arange(length, device="cpu"), torch.zeros(length, dtype=torch.bool, device="cpu")
        if sequence is None:
            return cls(unit, special, queries)
        tokens = text.tokens(sequence)
        if words and tokens.words < length:  # a special token is a word by itself
            special = torch.zeros(tokens.words, dtype=torch.bool, device="cpu")
            special[tokens.word[tokens.special]] = True
            return cls(tokens.word, special, queries)
        return cls(unit, tokens.special, queries)

    def tokens(self, units: slice) -> slice:
        """The tokens of some units."""
        ends = torch.searchsorted(self.unit, torch.tensor([units.start, units.stop], device="cpu"))
        return slice(int(ends[0]), int(ends[1]))

    def merge(self, values: Tensor, tokens: slice, units: slice, dim: int) -> Tensor:
        """A dimension of some tokens, which belong to some units, as these units' sums or shares of their means."""
        if len(self.special) == len(self.unit):
            return values
        if self.averaged:
            sizes = self.unit.bincount()[self.unit[tokens]].to(values)
            values = values / (sizes[:, None] if dim == 0 else sizes)
        shape = list(values.shape)
        shape[dim] = units.stop - units.start
        return values.new_zeros(shape).index_add_(dim, self.unit[tokens] - units.start, values)


def strongest(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """The heaviest partners: StrongestAnswer."""
    asked = read(StrongestKey, parameters)
    _check(asked)
    chosen = [Heads.of(explorer, asked.text, asked.site, head) for head in asked.heads]
    chosen[0].need_exact()
    mine, others = _sides(chosen[0], asked)
    units = chosen[0].check_range("range", asked.range, len(mine.special))
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
    step = max(BLOCK // len(others.special), 1)
    every, all_tokens = slice(0, len(others.special)), slice(0, len(others.unit))
    for first in range(units.start, units.stop, step):
        part = slice(first, min(first + step, units.stop))
        total = torch.zeros(part.stop - part.start, every.stop, dtype=torch.float64, device="cpu")
        tokens = mine.tokens(part)
        for block in _blocks(tokens, max(BLOCK // len(others.unit), 1)):
            go_on(cancelled)
            values = _weights(pattern, block, all_tokens, by_query=mine.averaged).double()
            here = slice(int(mine.unit[block.start]), int(mine.unit[block.stop - 1]) + 1)
            found = mine.merge(others.merge(values, all_tokens, every, 1), block, here, 0)
            total[here.start - part.start : here.stop - part.start] += found
        yield total


def _blocks(tokens: slice, step: int) -> Iterator[slice]:
    for first in range(tokens.start, tokens.stop, step):
        yield slice(first, min(first + step, tokens.stop))


def _weights(pattern: Pattern, mine: slice, others: slice, *, by_query: bool) -> Tensor:
    """The weights between some tokens of the side that is asked about and those of the other side."""
    return pattern[0, 0, mine, others] if by_query else pattern[0, 0, others, mine].mT


def _heaviest(values: Tensor, left_out: Tensor | None, count: int) -> tuple[Tensor, ...]:
    """Of rows, the heaviest entries and their places, the sum of all, and of it that of those that are left out."""
    whole, special = values.sum(1), values.new_zeros(len(values))
    if left_out is not None:
        special = values[:, left_out].sum(1)
        values = values.masked_fill(left_out, 0.0)
    weight, partner = values.topk(min(count, values.shape[1]), 1)
    partner = partner.where(weight > 0, -1)  # nor does NaN, which is not greater than 0, name a partner
    missing = count - weight.shape[1]
    padded = torch.nn.functional.pad(partner, (0, missing), value=-1), torch.nn.functional.pad(weight, (0, missing))
    return *padded, whole, special
