"""How an attention pattern scores on each role that heads are known to play, in memory of O(N).

A role is a set of keys for each query, and a head's score is the weight on it. Sets that are the same for all queries
(the first token, separators) are groups of keys and ride in the forward pass. Neighbours are a narrow band, of which
nearly all tiles are skipped. Other occurrences of a token, thousands for a frequent one, would be a mask of as many
runs; they are groups of keys as well, made for a block of queries at a time.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from saccade.masks import Dense, Intervals, Lengths, Mask
from saccade.pattern import Pattern
from saccade.statistics import Distance, Entropy, Mass, Report, Statistic

ROLES = ("previous", "next", "first", "separators", "duplicate", "induction", "local", "global")
HABITS = ("distance", "entropy")

# Weights by group, of all heads of a block of queries with as many groups: at most so many (16 MiB), or one tile’s.
BLOCK_WEIGHTS, TILE, LARGEST_BLOCK = 1 << 22, 64, 512

_FIRST, _SEPARATOR, _OTHER = range(3)


@dataclass(frozen=True, eq=False)
class Reading:
    """The tokens of a batch, of which the last ones look (all of them, if nothing was read before).

    Attributes:
        ids: integers ``(B, Nk)``.
        valid: booleans ``(B, Nk)``, False for padding.
        separators: booleans ``(B, Nk)``: special tokens and punctuation; None where that is not known.
        queries: Nq.
    """

    ids: Tensor
    valid: Tensor
    separators: Tensor | None
    queries: int

    @property
    def offset(self) -> int:
        """The key position of the first query."""
        return self.ids.shape[1] - self.queries

    @property
    def first(self) -> Tensor:
        """Which token is the first of its text, booleans ``(B, Nk)``."""
        return self.valid & (self.valid.cumsum(-1) == 1)

    @property
    def later_separators(self) -> Tensor | None:
        """Which ones are separators and not the first token."""
        return None if self.separators is None else self.separators & self.valid & ~self.first

    def tokens_before(self, shift: int) -> Tensor:
        """The token that stands `shift` before each one, ``(B, Nk)``; -1 where there is none, or padding."""
        ids = self.ids.masked_fill(~self.valid, -1)
        moved = torch.cat([ids.new_full((len(ids), shift), -1), ids], 1)[:, : ids.shape[1]]
        return moved.masked_fill(~self.valid, -1)

    def statistics(self) -> Sequence[Statistic]:
        """What to ask of a pattern in its own pass."""
        groups = torch.where(self.valid, _OTHER, -1)
        if self.later_separators is not None:
            groups[self.later_separators] = _SEPARATOR
        groups[self.first] = _FIRST
        return Entropy(), Distance(self.offset), Mass(groups, 3)


def is_punctuation(piece: str) -> bool:
    """Whether a token's text is punctuation only, by the Unicode categories.

    >>> is_punctuation(" ."), is_punctuation("e."), is_punctuation("—"), is_punctuation(" ")
    (True, False, True, False)
    """
    said = piece.strip()
    return bool(said) and all(unicodedata.category(character)[0] == "P" for character in said)


class Tally:
    """Scores of the heads of one site, summed over queries."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, role: str, weights: Tensor, chance: Tensor, can: Tensor) -> None:
        """Add a batch's queries.

        Args:
            role: which sum.
            weights: ``(B, H, Nq)``.
            chance: ``(B, H | 1, Nq)``, what the weights would be if all visible keys had the same.
            can: booleans ``(B, H | 1, Nq)``, the queries that count.
        """
        parts = (weights, chance, torch.ones_like(weights))
        sums = torch.stack(
            [torch.where(can, part, 0.0).double().sum((0, 2)).expand(weights.shape[1]) for part in parts]
        )
        self._sums[role] = self._sums.get(role, 0) + sums.cpu()

    def means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Each role's mean score, and what a uniform pattern would have, ``(H,)``; NaN where no query counts."""
        return {role: (sums[0] / sums[2], sums[1] / sums[2]) for role, sums in self._sums.items()}


@dataclass(eq=False)
class Scoring:
    """One call's pattern, scored.

    Attributes:
        pattern: with its lse.
        reading: whose tokens.
        tally: where scores are added.
    """

    pattern: Pattern
    reading: Reading
    tally: Tally
    _seen: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._all = slice(0, self.reading.queries)
        self._seen = _count(self._mask(self._all), self.reading.valid, self.reading.queries)

    def text(self, report: Report, reach: int, patterns: Mapping[str, Mask]) -> None:
        """What any text tells: all roles but those of repeated tokens.

        Args:
            report: the answers to `Reading.statistics`.
            reach: how far away a key is local.
            patterns: the user's own.
        """
        self._add("entropy", report.entropy, self._seen)
        self._add("distance", report.distance, self._seen)
        self._by_group(report.mass)
        self._neighbours()
        near = self._around(-reach, reach)
        local, targets = self.pattern.mass_on(near), self._targets(near, self._all)
        self._add("local", local, targets)
        self._add("global", (report.mass.sum(-1) - local).clamp_min(0), self._seen - targets)
        for name, mask in patterns.items():
            self._add(name, self.pattern.mass_on(mask), self._targets(mask, self._all))

    def repeats(self) -> None:
        """What repeated tokens tell: duplicate and induction."""
        batch, heads, queries, _ = self.pattern.shape
        step = _rows_of_a_block(batch * heads)
        for start in range(0, queries, step):
            rows = slice(start, min(start + step, queries))
            self._following("duplicate", 0, rows)
            self._following("induction", 1, rows)

    # ------------------------------------------------------------------------------------ keys

    def _by_group(self, mass: Tensor) -> None:
        reading, mask = self.reading, self._mask(self._all)
        self._add("first", mass[..., _FIRST], _count(mask, reading.first, reading.queries))
        if reading.later_separators is not None:
            targets = _count(mask, reading.later_separators, reading.queries)
            self._add("separators", mass[..., _SEPARATOR], targets)

    def _neighbours(self) -> None:
        """Both neighbours in one pass: of three keys in a row no two have the same remainder by 3."""
        positions = self._positions()
        groups = torch.arange(self.reading.ids.shape[1], device=positions.device) % 3
        band = self.pattern.mass_on(self._around(-1, 1), groups=groups, count=3)
        for role, step in (("previous", -1), ("next", 1)):
            group = ((positions + step) % 3).expand(*band.shape[:2], -1)
            weights = band.gather(-1, group[..., None])[..., 0]
            self._add(role, weights, self._targets(self._around(step, step), self._all))

    def _positions(self) -> Tensor:
        """The key position of each query, ``(Nq,)``."""
        reading = self.reading
        return torch.arange(reading.offset, reading.offset + reading.queries, device=reading.ids.device)

    def _around(self, first: int, last: int) -> Intervals:
        """The keys from `first` to `last` positions after the query."""
        positions = self._positions()[None, None, :, None]
        return Intervals.make(positions + first, positions + last + 1, self.reading.ids.shape[1])

    def _following(self, role: str, shift: int, rows: slice) -> None:
        """Score some queries on the keys `shift` positions after another occurrence of their token.

        Keys are grouped by the token that stands `shift` before them, and all but that of the query itself are summed
        up by group. Only the tokens of these queries have a group, so there are no more groups than queries.
        """
        reading, own = self.reading, self._around(shift, shift)
        others = Intervals(own.starts[:, :, rows], own.stops[:, :, rows], own.keys).complement()
        before = reading.tokens_before(shift)
        group, groups, count = _numbered(reading.ids[:, reading.offset :][:, rows], before)
        mass = self.pattern.mass_on(others, groups=groups, count=count, queries=rows)
        weights = mass.gather(-1, group[:, None, :, None].expand(-1, mass.shape[1], -1, 1))[..., 0]
        mask = self._mask(rows)
        both = (others if mask is None else mask & others).resolve(self._lengths(rows))
        self._add(role, weights, _count_alike(both, groups, group), rows)

    # ------------------------------------------------------------------------------------ queries

    def _mask(self, rows: slice) -> Intervals | Dense | None:
        """The pattern's own mask, of some rows."""
        mask = self.pattern.problem.mask
        if isinstance(mask, Intervals):
            return Intervals(mask.starts[:, :, rows], mask.stops[:, :, rows], mask.keys)
        return Dense(mask.visible[:, :, rows]) if isinstance(mask, Dense) else None

    def _targets(self, keys: Mask, rows: slice) -> Tensor:
        """How many of these keys each query sees, ``(B, H | 1, rows)``."""
        own = self._mask(rows)
        both = (keys if own is None else own & keys).resolve(self._lengths(rows))
        return _count(both, self.reading.valid, rows.stop - rows.start)

    def _lengths(self, rows: slice) -> Lengths:
        return replace(self.pattern.inputs.lengths, queries=rows.stop - rows.start)

    def _add(self, role: str, weights: Tensor, targets: Tensor, rows: slice | None = None) -> None:
        """Tally the queries that are no padding and see a key of the role."""
        rows = rows or self._all
        queries = self.reading.valid[:, self.reading.offset :][:, None, rows]
        chance = targets / self._seen[:, :, rows].clamp_min(1)
        self.tally.add(role, weights, chance.to(weights.dtype), queries & (targets > 0))


def _rows_of_a_block(heads: int) -> int:
    """How many queries are taken at a time, for so many heads of the whole batch."""
    side = math.isqrt(BLOCK_WEIGHTS // max(heads, 1)) // TILE * TILE
    return min(max(side, TILE), LARGEST_BLOCK)


def _numbered(tokens: Tensor, among: Tensor) -> tuple[Tensor, Tensor, int]:
    """The tokens ``(B, n)`` of each batch element numbered from 0; those of `among` likewise, -1 if they are others.

    Returns:
        both, and how many numbers there are.
    """
    numbers, groups, count = torch.empty_like(tokens), torch.empty_like(among), 1
    for b, row in enumerate(tokens):
        known, numbers[b] = row.unique(return_inverse=True)
        place = torch.searchsorted(known, among[b]).clamp_max(len(known) - 1)
        groups[b] = place.where(known[place] == among[b], -1)
        count = max(count, len(known))
    return numbers, groups, count


def _count_alike(mask: Intervals | Dense, groups: Tensor, group: Tensor) -> Tensor:
    """How many keys of its own group each query sees, ``(B, H | 1, n)``, of groups ``(B, Nk)`` and ``(B, n)``."""
    if isinstance(mask, Dense):
        return (mask.visible & (groups[:, None, None] == group[:, None, :, None])).sum(-1)
    keys = groups.shape[1]
    # Keys in the order of their groups, then of their positions: those of a group below a position are neighbours.
    order = (groups * (keys + 1) + torch.arange(keys, device=groups.device)).sort(-1).values
    base = group[:, None, :, None] * (keys + 1)

    def up_to(ends: Tensor) -> Tensor:
        wanted = base + ends
        return torch.searchsorted(order, wanted.flatten(1)).view(wanted.shape)

    return (up_to(mask.stops) - up_to(mask.starts)).sum(-1)


def _count(mask: Intervals | Dense | None, keys: Tensor, queries: int) -> Tensor:
    """How many of some keys ``(B, Nk)`` each query sees, ``(B, H | 1, Nq)``."""
    if mask is None:
        return keys.sum(-1)[:, None, None].expand(-1, 1, queries)
    if isinstance(mask, Dense):
        return (mask.visible & keys[:, None, None]).sum(-1)
    before = torch.nn.functional.pad(keys.cumsum(-1), (1, 0))

    def up_to(ends: Tensor) -> Tensor:
        ends = ends.long().expand(len(keys), -1, -1, -1)
        return before.gather(1, ends.flatten(1)).view(ends.shape)

    return (up_to(mask.stops) - up_to(mask.starts)).sum(-1)
