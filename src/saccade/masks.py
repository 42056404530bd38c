"""Which keys a query may see.

One form serves every mask: for each query a short sorted list of disjoint intervals ``[start, stop)`` of keys. Causal,
windowed, prefix, packed, padded and block-sparse attention are all such lists, they cost O(Nq) memory, never
Nq x Nk, and tell a kernel at once which tiles to skip, which to run without a mask, and where to compare positions.
(FlashMask, arXiv 2410.01359, uses the same idea by columns; rows suit a row-wise softmax.)

A `Mask` is a description that knows no lengths: ``causal() & window(512, 0)``. `Mask.resolve` turns it into
`Intervals` for one problem. Only a dense boolean mask whose rows are many short runs stays dense (`Dense`).
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.errors import MaskError

# A dense row with more runs than this costs a kernel more as intervals than as booleans.
MAX_RUNS = 32

# Predicates are evaluated over at most this many query-key pairs at a time (16 MiB of booleans).
STRIP_PAIRS = 1 << 24

# No text is so long: farther reaches and offsets would only overflow.
FARTHEST = 1 << 40


@dataclass(frozen=True)
class Lengths:
    """The sizes a mask is resolved for: B batch, H query heads, Nq queries, Nk keys."""

    batch: int
    heads: int
    queries: int
    keys: int
    device: torch.device | str = "cpu"


class Mask(ABC):
    """A rule that says which keys each query may see; combine with ``&``, ``|`` and ``~``."""

    @abstractmethod
    def resolve(self, lengths: Lengths) -> Intervals | Dense:
        """The rule for one problem's lengths.

        Raises:
            MaskError: the lengths leave the rule ambiguous or do not fit its tensors.
        """

    def to_dense(self, lengths: Lengths) -> Tensor:
        """The mask as booleans ``(B | 1, H | 1, Nq, Nk)``, True where a query sees a key. O(Nq Nk) memory."""
        return self.resolve(lengths).to_dense(lengths)

    def __and__(self, other: Mask) -> Mask:
        return _Combined(self, _as_mask(other), "&")

    def __or__(self, other: Mask) -> Mask:
        return _Combined(self, _as_mask(other), "|")

    def __invert__(self) -> Mask:
        return _Not(self)


def _as_mask(value: object) -> Mask:
    if isinstance(value, Mask):
        return value
    raise MaskError(
        f"expected a mask of saccade.masks, got {type(value).__name__}: wrap a boolean tensor in saccade.masks.dense"
    )


# ---------------------------------------------------------------------------------------- resolved masks


@dataclass(frozen=True, eq=False)
class Intervals(Mask):
    """For each query the keys it sees, as sorted, disjoint, non-touching intervals; empty ones come last.

    Attributes:
        starts: int32 ``(B | 1, H | 1, Nq, R)``, first key of each interval.
        stops: int32, same shape, one past the last key. An empty interval has start = stop = `keys`.
        keys: Nk.
    """

    starts: Tensor
    stops: Tensor
    keys: int

    @classmethod
    def make(cls, starts: Tensor, stops: Tensor, keys: int) -> Intervals:
        """Intervals from lists ``(..., Nq, R)`` in any order, overlapping, touching or empty."""
        starts, stops = torch.broadcast_tensors(starts, stops)
        starts, stops = (x.clamp(0, keys).to(torch.int32) for x in (starts, stops))
        return cls(*_trim(*_merge(starts, stops, keys), keys), keys)

    @property
    def runs(self) -> int:
        """R, the largest number of intervals of any query."""
        return self.starts.shape[-1]

    def resolve(self, lengths: Lengths) -> Intervals:
        """These intervals, checked against the lengths."""
        _check_rows("intervals", self.starts.shape[:-1], lengths)
        if self.keys != lengths.keys:
            raise MaskError(f"mask covers {self.keys} keys; the problem has Nk = {lengths.keys}")
        return Intervals(self.starts.to(lengths.device), self.stops.to(lengths.device), self.keys)

    def to_dense(self, lengths: Lengths | None = None) -> Tensor:
        """Booleans ``(B | 1, H | 1, Nq, Nk)``; O(Nq Nk) memory."""
        del lengths
        position = torch.arange(self.keys, device=self.starts.device, dtype=torch.int32)
        return self.between(position)

    def between(self, position: Tensor) -> Tensor:
        """Which of the keys at `position` ``(n,)`` each query sees: booleans ``(..., Nq, n)``."""
        seen = self.starts.new_zeros((*self.starts.shape[:-1], position.numel()), dtype=torch.bool)
        for run in range(self.runs):
            start, stop = self.starts[..., run, None], self.stops[..., run, None]
            seen |= (position >= start) & (position < stop)
        return seen

    def count(self) -> Tensor:
        """How many keys each query sees: int64 ``(B | 1, H | 1, Nq)``."""
        return (self.stops - self.starts).sum(-1)

    def complement(self) -> Intervals:
        """The keys these intervals leave out."""
        first = self.starts.new_zeros((*self.starts.shape[:-1], 1))
        starts = torch.cat([first, self.stops], -1)
        stops = torch.cat([self.starts, first + self.keys], -1)
        return Intervals(*_trim(*_merge(starts, stops, self.keys), self.keys), self.keys)

    def union(self, other: Intervals) -> Intervals:
        """Keys in either."""
        starts, stops = (
            torch.cat(_broadcast_rows(mine, theirs), -1)
            for mine, theirs in ((self.starts, other.starts), (self.stops, other.stops))
        )
        return Intervals(*_trim(*_merge(starts, stops, self.keys), self.keys), self.keys)

    def intersection(self, other: Intervals) -> Intervals:
        """Keys in both: every pair of runs overlaps in one interval, possibly empty."""
        starts = torch.maximum(self.starts[..., :, None], other.starts[..., None, :]).flatten(-2)
        stops = torch.minimum(self.stops[..., :, None], other.stops[..., None, :]).flatten(-2)
        return Intervals(*_trim(*_merge(starts, stops, self.keys), self.keys), self.keys)


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """A boolean tensor ``(B | 1, H | 1, Nq, Nk)``, True where a query sees a key, that is not a few runs per row."""

    visible: Tensor

    def resolve(self, lengths: Lengths) -> Intervals | Dense:
        """As intervals when no row has more than `MAX_RUNS` runs, else as it is."""
        visible = self.visible.to(lengths.device)
        _check_rows("dense mask", visible.shape[:-1], lengths)
        if visible.shape[-1] != lengths.keys:
            raise MaskError(f"dense mask has {visible.shape[-1]} columns; the problem has Nk = {lengths.keys} keys")
        if torch.compiler.is_compiling():  # how many runs there are depends on data
            return Dense(visible)
        return _compress(visible, MAX_RUNS) or Dense(visible)

    def to_dense(self, lengths: Lengths | None = None) -> Tensor:
        """The tensor itself."""
        del lengths
        return self.visible

    def count(self) -> Tensor:
        """How many keys each query sees: int64 ``(B | 1, H | 1, Nq)``."""
        return self.visible.sum(-1)


def _check_rows(name: str, shape: Sequence[int], lengths: Lengths) -> None:
    batch, heads, queries = shape
    wanted = (lengths.batch, lengths.heads, lengths.queries)
    # A tuple, not a set: what hashes a size ties a compiled graph to it.
    if batch not in (1, wanted[0]) or heads not in (1, wanted[1]) or queries != wanted[2]:
        raise MaskError(
            f"{name} is for (B, H, Nq) = {(batch, heads, queries)}; the problem has {wanted}: "
            "batch and heads must match or be 1, queries must match"
        )


def _broadcast_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their common leading dimensions; the last (R) stays each one's own."""
    rows = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return a.expand(*rows, -1), b.expand(*rows, -1)


def _check_integer(name: str, value: object, least: int | None = None) -> None:
    """Refuse what is no integer (or tensor of integers), or is below `least`."""
    bound = "" if least is None else f" >= {least}"
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.dtype == torch.bool:
            raise MaskError(f"{name} are {value.dtype}; expected integers{bound}")
        # Under torch.compile a graph cannot depend on values.
        if least is not None and not torch.compiler.is_compiling() and bool((value < least).any()):
            raise MaskError(f"{name}: the smallest is {int(value.min())}; expected integers{bound}")
    elif not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise MaskError(f"{name} = {value!r}: expected an integer{bound}")


def check_offset(name: str, offset: object) -> None:
    """Refuse an offset that is no integer, or longer than any text.

    Raises:
        MaskError: it is.
    """
    _check_integer(name, offset)
    if isinstance(offset, int) and abs(offset) > FARTHEST:
        raise MaskError(f"{name} = {offset}: expected an integer between -2**40 and 2**40")


def _merge(starts: Tensor, stops: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Sort each row's runs, join those that overlap or touch, move empty ones to the end."""
    empty = starts >= stops
    starts, stops = starts.masked_fill(empty, keys), stops.masked_fill(empty, keys)
    if starts.shape[-1] <= 1:
        return starts, stops
    if starts.shape[-1] == 2:  # noqa: PLR2004  two runs need no sort: a fifth of the time at a million rows
        return _merge_two(starts, stops, keys)
    starts, order = starts.sort(-1)
    stops = stops.gather(-1, order)
    # `reach` is the furthest key seen so far; a run that starts beyond it is a new one.
    before = torch.cat([starts.new_full((*starts.shape[:-1], 1), -1), stops[..., :-1]], -1).cummax(-1).values
    fresh = (starts > before) & (starts < keys)
    slot = (fresh.cumsum(-1) - 1).clamp_min(0)
    merged_starts = torch.full_like(starts, keys).scatter_reduce(-1, slot, starts, "amin")
    reached = stops.masked_fill(starts == keys, 0)
    merged_stops = torch.zeros_like(stops).scatter_reduce(-1, slot, reached, "amax")
    return merged_starts, merged_stops.masked_fill(merged_starts == keys, keys)


def _merge_two(starts: Tensor, stops: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    (a, b), (a_stop, b_stop) = starts.unbind(-1), stops.unbind(-1)
    swap = b < a
    a, b = torch.where(swap, b, a), torch.where(swap, a, b)
    a_stop, b_stop = torch.where(swap, b_stop, a_stop), torch.where(swap, a_stop, b_stop)
    joined = (b <= a_stop) & (b < keys)
    a_stop = torch.where(joined, torch.maximum(a_stop, b_stop), a_stop)
    b, b_stop = b.masked_fill(joined, keys), b_stop.masked_fill(joined, keys)
    return torch.stack([a, b], -1), torch.stack([a_stop, b_stop], -1)


def _trim(starts: Tensor, stops: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Drop the runs that are empty in every row. Skipped under torch.compile: the size would depend on data."""
    if starts.shape[-1] <= 1 or torch.compiler.is_compiling():
        return starts, stops
    used = (starts < keys).flatten(0, -2).any(0)
    runs = max(1, int(used.sum()))
    return starts[..., :runs].contiguous(), stops[..., :runs].contiguous()


def _compress(visible: Tensor, most: int) -> Intervals | None:
    """A boolean mask as intervals, or None when a row has more than `most` runs."""
    turns = _turns(visible)
    rows = visible.numel() // max(visible.shape[-1], 1)
    if int(turns.count_nonzero()) > 2 * most * rows:
        return None
    intervals = _from_turns(turns)
    return intervals if intervals.runs <= most else None


def _turns(visible: Tensor) -> Tensor:
    """True where a run begins and, one past its end, where it stops: ``(..., Nk + 1)``."""
    turns = visible.new_zeros((*visible.shape[:-1], visible.shape[-1] + 1))
    if visible.shape[-1]:
        turns[..., 0], turns[..., -1] = visible[..., 0], visible[..., -1]
        torch.ne(visible[..., 1:], visible[..., :-1], out=turns[..., 1:-1])
    return turns


def _from_turns(turns: Tensor) -> Intervals:
    """The intervals between turns: in row-major order every row's turns alternate between start and stop."""
    keys = turns.shape[-1] - 1
    row, position = turns.flatten(0, -2).nonzero().unbind(-1)
    counts = torch.bincount(row, minlength=turns.shape[:-1].numel())
    runs = max(int(counts.max()) // 2 if counts.numel() else 0, 1)
    index = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row]
    ends = torch.full((counts.numel(), 2 * runs), keys, dtype=torch.int32, device=turns.device)
    ends[row, index] = position.to(torch.int32)
    ends = ends.view(*turns.shape[:-1], runs, 2)
    return Intervals(ends[..., 0].contiguous(), ends[..., 1].contiguous(), keys)


# ---------------------------------------------------------------------------------------- algebra


@dataclass(frozen=True, eq=False)
class _Combined(Mask):
    left: Mask
    right: Mask
    symbol: str  # & or |

    def __repr__(self) -> str:
        return f"({self.left!r} {self.symbol} {self.right!r})"

    def resolve(self, lengths: Lengths) -> Intervals | Dense:
        left, right = self.left.resolve(lengths), self.right.resolve(lengths)
        both = self.symbol == "&"
        if isinstance(left, Intervals) and isinstance(right, Intervals):
            return left.intersection(right) if both else left.union(right)
        x, y = left.to_dense(lengths), right.to_dense(lengths)
        return Dense(x & y if both else x | y).resolve(lengths)


@dataclass(frozen=True, eq=False)
class _Not(Mask):
    mask: Mask

    def __repr__(self) -> str:
        return f"~{self.mask!r}"

    def resolve(self, lengths: Lengths) -> Intervals | Dense:
        resolved = self.mask.resolve(lengths)
        if isinstance(resolved, Intervals):
            return resolved.complement()
        return Dense(~resolved.visible).resolve(lengths)


@dataclass(frozen=True, eq=False)
class _Stacked(Mask):
    masks: tuple[Mask, ...]
    dim: int  # 0 batch, 1 heads

    def resolve(self, lengths: Lengths) -> Intervals | Dense:
        size, name = ((lengths.batch, "B"), (lengths.heads, "H"))[self.dim]
        if len(self.masks) != size:
            raise MaskError(f"{len(self.masks)} masks stacked; the problem has {name} = {size}: give one for each")
        single = dataclasses.replace(lengths, batch=1) if self.dim == 0 else dataclasses.replace(lengths, heads=1)
        parts = [mask.resolve(single) for mask in self.masks]
        if all(isinstance(part, Intervals) for part in parts):
            return self._stack([part for part in parts if isinstance(part, Intervals)], lengths.keys)
        dense = torch.broadcast_tensors(*(part.to_dense(lengths) for part in parts))
        return Dense(torch.cat(dense, self.dim))

    def _stack(self, parts: list[Intervals], keys: int) -> Intervals:
        runs = max(part.runs for part in parts)

        def together(name: str) -> Tensor:
            padded = [_pad_runs(getattr(part, name), runs, keys) for part in parts]
            return torch.cat(torch.broadcast_tensors(*padded), self.dim)

        return Intervals(together("starts"), together("stops"), keys)


def _pad_runs(x: Tensor, runs: int, keys: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, runs - x.shape[-1]), value=keys)


def per_head(masks: Sequence[Mask]) -> Mask:
    """One mask for each of the H query heads."""
    return _Stacked(tuple(_as_mask(mask) for mask in masks), dim=1)


def per_batch(masks: Sequence[Mask]) -> Mask:
    """One mask for each of the B batch elements."""
    return _Stacked(tuple(_as_mask(mask) for mask in masks), dim=0)


# ---------------------------------------------------------------------------------------- the rules


def _positions(lengths: Lengths, offset: int | None, rule: str) -> Tensor:
    """The key position ``(Nq,)`` at which each query stands: its index plus `offset`."""
    if offset is None and lengths.queries != lengths.keys:
        nq, nk = lengths.queries, lengths.keys
        raise MaskError(
            f"{rule} is ambiguous for Nq = {nq} queries and Nk = {nk} keys: say offset=0 (the first query stands "
            f"at the first key) or offset={nk - nq} (the last query stands at the last key)"
        )
    return torch.arange(lengths.queries, device=lengths.device) + (offset or 0)


def _check_offset(rule: str, offset: int | None) -> None:
    if offset is not None:
        check_offset(f"{rule} offset", offset)


def _rows(x: Tensor) -> Tensor:
    """(Nq,) or (B, Nq) or (B, H, Nq) as (B | 1, H | 1, Nq, 1)."""
    if x.dim() == 1:
        return x[None, None, :, None]
    return (x[:, None] if x.dim() == 2 else x)[..., None]  # noqa: PLR2004


@functools.lru_cache(maxsize=32)
def _remembered(rule: _Causal, lengths: Lengths) -> Intervals:
    return rule.resolve_anew(lengths)


def _may_remember(lengths: Lengths) -> bool:
    """Whether intervals are short enough to keep, 4 MiB in all at most, and of use to any later call."""
    special = (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()  # a gradient could not use them
        or torch._C._len_torch_dispatch_stack()  # noqa: SLF001  a mode may make them fake
    )
    return not special and lengths.queries <= 1 << 14


@dataclass(frozen=True)
class _Causal(Mask):
    offset: int | None

    def __repr__(self) -> str:
        return "causal()" if self.offset is None else f"causal(offset={self.offset})"

    def resolve(self, lengths: Lengths) -> Intervals:
        # For a short text this would take longer than attention itself. Nobody writes into intervals.
        if _may_remember(lengths):
            return _remembered(self, dataclasses.replace(lengths, batch=1, heads=1))
        return self.resolve_anew(lengths)

    def resolve_anew(self, lengths: Lengths) -> Intervals:
        stop = _rows(_positions(lengths, self.offset, "causal()") + 1)
        return Intervals.make(torch.zeros_like(stop), stop, lengths.keys)


def causal(offset: int | None = None) -> Mask:
    """Query i sees keys ``j <= i + offset``.

    Args:
        offset: how many keys stand before the first query. May be left out only when Nq = Nk, where it is 0.
            With more keys than queries, 0 means that the first query sees the first key only (a prefill into a
            larger cache) and ``Nk - Nq`` that the last query sees every key (decoding with a cache).
    """
    _check_offset("causal", offset)
    return _Causal(offset)


@dataclass(frozen=True, eq=False)
class _Window(Mask):
    left: int | Tensor | None
    right: int | Tensor | None
    offset: int | None

    def __repr__(self) -> str:
        offset = "" if self.offset is None else f", offset={self.offset}"
        return f"window({self.left}, {self.right}{offset})"

    def resolve(self, lengths: Lengths) -> Intervals:
        position = _rows(_positions(lengths, self.offset, "window()"))
        left, right = (self._reach(x, lengths) for x in (self.left, self.right))
        return Intervals.make(position - left, position + right + 1, lengths.keys)

    @staticmethod
    def _reach(reach: int | Tensor | None, lengths: Lengths) -> int | Tensor:
        if reach is None:
            return lengths.queries + lengths.keys
        if not isinstance(reach, Tensor):
            return min(reach, 2 * FARTHEST)
        reach = reach.clamp(max=2 * FARTHEST) if reach.dtype == torch.int64 else reach
        if reach.dim() == 0:
            return reach
        if reach.shape != (lengths.heads,):
            raise MaskError(
                f"window reach has shape {tuple(reach.shape)}; expected an integer, or a tensor of one for each "
                f"of the H = {lengths.heads} heads"
            )
        return reach.to(lengths.device)[None, :, None, None]


def window(left: int | Tensor | None, right: int | Tensor | None = 0, *, offset: int | None = None) -> Mask:
    """Query i sees keys ``i + offset - left <= j <= i + offset + right``, both ends included.

    Args:
        left: keys visible before the query's own; None for all of them; a tensor ``(H,)`` for one reach per head.
        right: keys visible after it, likewise. The default 0 makes the window causal.
        offset: as in `causal`.
    """
    for name, reach in (("left", left), ("right", right)):
        if reach is not None:
            _check_integer(f"window {name}", reach, 0)
    _check_offset("window", offset)
    return _Window(left, right, offset)


@dataclass(frozen=True, eq=False)
class _Prefix(Mask):
    length: int | Tensor

    def __repr__(self) -> str:
        return f"prefix({self.length})"

    def resolve(self, lengths: Lengths) -> Intervals:
        stop = _per_batch("prefix length", self.length, lengths)
        stop = stop[:, None, None, None].expand(-1, 1, lengths.queries, 1)
        return Intervals.make(torch.zeros_like(stop), stop, lengths.keys)


def _per_batch(name: str, value: int | Tensor, lengths: Lengths) -> Tensor:
    value = torch.as_tensor(value, device=lengths.device).reshape(-1)
    if value.numel() not in (1, lengths.batch):
        raise MaskError(f"{name} has {value.numel()} entries; expected 1 or B = {lengths.batch}")
    return value


def prefix(length: int | Tensor) -> Mask:
    """Every query sees the first `length` keys (attention sinks, or a prompt read in both directions).

    Args:
        length: one number, or a tensor ``(B,)``.
    """
    _check_integer("prefix length", length, 0)
    return _Prefix(length)


@dataclass(frozen=True, eq=False)
class _Padding(Mask):
    lengths: Tensor
    side: str

    def __repr__(self) -> str:
        return f"padding({self.lengths.tolist()}, side={self.side!r})"

    def resolve(self, lengths: Lengths) -> Intervals:
        valid = _per_batch("padding lengths", self.lengths, lengths)[:, None, None, None]
        if not torch.compiler.is_compiling() and bool(((valid < 0) | (valid > lengths.keys)).any()):
            raise MaskError(f"padding lengths {self.lengths.tolist()} must lie between 0 and Nk = {lengths.keys}")
        valid = valid.expand(-1, 1, lengths.queries, 1)
        if self.side == "right":
            return Intervals.make(torch.zeros_like(valid), valid, lengths.keys)
        return Intervals.make(lengths.keys - valid, torch.full_like(valid, lengths.keys), lengths.keys)


def padding(lengths: Tensor | Sequence[int], *, side: str = "right") -> Mask:
    """Only the valid keys of each batch element are seen.

    Args:
        lengths: ``(B,)``, how many keys are valid.
        side: where the padding stands: "right" (valid keys come first) or "left".
    """
    if side not in {"left", "right"}:
        raise MaskError(f"padding side = {side!r}: expected 'left' or 'right'")
    valid = torch.as_tensor(lengths)
    _check_integer("padding lengths", valid)
    return _Padding(valid, side)


@dataclass(frozen=True)
class _Chunked(Mask):
    size: int
    offset: int | None

    def __repr__(self) -> str:
        return f"chunked({self.size})"

    def resolve(self, lengths: Lengths) -> Intervals:
        first = _rows(_positions(lengths, self.offset, "chunked()") // self.size * self.size)
        return Intervals.make(first, first + self.size, lengths.keys)


def chunked(size: int, *, offset: int | None = None) -> Mask:
    """Query i sees the keys of its own chunk of `size` positions (Llama 4); combine with `causal`.

    Args:
        size: positions in a chunk, at least 1.
        offset: as in `causal`.
    """
    _check_integer("chunk size", size, 1)
    _check_offset("chunked", offset)
    return _Chunked(size, offset)


@dataclass(frozen=True, eq=False)
class _Documents(Mask):
    queries: Tensor
    keys: Tensor

    def __repr__(self) -> str:
        return f"documents(<{'x'.join(map(str, self.keys.shape))} ids>)"

    def resolve(self, lengths: Lengths) -> Intervals:
        queries, keys = self.queries.to(lengths.device), self.keys.to(lengths.device)
        for name, ids, wanted in (("query", queries, lengths.queries), ("key", keys, lengths.keys)):
            if ids.shape[-1] != wanted or ids.shape[0] not in (1, lengths.batch):
                raise MaskError(
                    f"documents: {name} ids have shape {tuple(ids.shape)}; expected (B | 1, N) = "
                    f"({lengths.batch} | 1, {wanted}); with Nq != Nk give ids and key_ids"
                )
        rows = max(queries.shape[0], keys.shape[0])
        tables = [_runs_of_ids(keys[b % keys.shape[0]], queries[b % queries.shape[0]]) for b in range(rows)]
        runs = max(table[0].shape[-1] for table in tables)
        starts, stops = (
            torch.stack([_pad_runs(table[side], runs, lengths.keys) for table in tables])[:, None] for side in (0, 1)
        )
        return Intervals.make(starts, stops, lengths.keys)


def _runs_of_ids(keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """For each query the runs ``(Nq, R)`` of keys that share its id; ids below 0 belong nowhere."""
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    starts = first.nonzero()[:, 0]
    stops = torch.cat([starts[1:], starts.new_tensor([keys.numel()])])[: starts.numel()]
    ids, order = keys[starts].sort(stable=True)  # runs of one id side by side
    begin = torch.searchsorted(ids, queries.contiguous())
    count = torch.searchsorted(ids, queries.contiguous(), right=True) - begin
    count = count.masked_fill(queries < 0, 0)
    runs = max(int(count.max()) if count.numel() else 0, 1)
    slot = torch.arange(runs, device=keys.device)
    index = (begin[:, None] + slot).clamp_max(max(starts.numel() - 1, 0))
    if starts.numel() == 0:
        return index, index
    used, chosen = slot < count[:, None], order[index]
    return starts[chosen].where(used, 0), stops[chosen].where(used, 0)


def documents(
    ids: Tensor | Sequence[int] | None = None,
    *,
    key_ids: Tensor | Sequence[int] | None = None,
    cumulative_lengths: Tensor | Sequence[int] | None = None,
) -> Mask:
    """Queries see the keys of their own document only (packed sequences).

    Args:
        ids: document of each query, ``(Nq,)`` or ``(B, Nq)`` integers; below 0: a token of no document.
        key_ids: document of each key, ``(Nk,)`` or ``(B, Nk)``; left out when keys and queries are the same tokens.
        cumulative_lengths: instead of ids, the boundaries ``[0, n1, n1 + n2, ..., N]`` (``cu_seqlens``).
    """
    if (ids is None) == (cumulative_lengths is None):
        raise MaskError("documents: give either ids or cumulative_lengths")
    if cumulative_lengths is not None:
        ids = _ids_from_boundaries(torch.as_tensor(cumulative_lengths))
    queries = _as_ids("ids", ids)
    return _Documents(queries, queries if key_ids is None else _as_ids("key_ids", key_ids))


def _as_ids(name: str, ids: object) -> Tensor:
    tensor = torch.as_tensor(ids)
    if tensor.dim() not in {1, 2} or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise MaskError(
            f"documents: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected integers (N,) or (B, N)"
        )
    return tensor[None] if tensor.dim() == 1 else tensor


def _ids_from_boundaries(boundaries: Tensor) -> Tensor:
    sizes = boundaries.diff()
    if boundaries.dim() != 1 or boundaries.numel() < 1 or int(boundaries[0]) != 0 or bool((sizes < 0).any()):
        raise MaskError(
            f"documents: cumulative_lengths = {boundaries.tolist()}; expected a rising list that starts with 0"
        )
    return torch.repeat_interleave(torch.arange(sizes.numel(), device=sizes.device), sizes)


@dataclass(frozen=True, eq=False)
class _Blocks(Mask):
    indices: Tensor
    size: int

    def __repr__(self) -> str:
        return f"blocks(<{'x'.join(map(str, self.indices.shape))} indices>, {self.size})"

    def resolve(self, lengths: Lengths) -> Intervals:
        indices = self.indices.to(lengths.device)
        indices = indices[(None,) * (4 - indices.dim())]
        wanted, last = -(-lengths.queries // self.size), -(-lengths.keys // self.size) - 1
        if indices.shape[-2] != wanted:
            raise MaskError(
                f"blocks: indices have {indices.shape[-2]} rows; {lengths.queries} queries in blocks of "
                f"{self.size} need {wanted}"
            )
        if not torch.compiler.is_compiling() and indices.numel() and int(indices.max()) > last:
            raise MaskError(f"blocks: index {int(indices.max())}; the last block of keys is {last}")
        starts = indices * self.size
        stops = torch.where(indices < 0, starts, starts + self.size)
        merged = Intervals.make(starts, stops, lengths.keys)
        return Intervals(self._by_row(merged.starts, lengths), self._by_row(merged.stops, lengths), lengths.keys)

    def _by_row(self, x: Tensor, lengths: Lengths) -> Tensor:
        return x.repeat_interleave(self.size, -2)[..., : lengths.queries, :]


def blocks(indices: Tensor, size: int) -> Mask:
    """Block-sparse attention: each block of `size` queries sees the listed blocks of `size` keys.

    Args:
        indices: integers ``([[B | 1,] H | 1,] ceil(Nq / size), K)``, the key blocks seen; below 0: none.
        size: tokens in a block.
    """
    indices = torch.as_tensor(indices)
    if size < 1 or indices.dim() not in {2, 3, 4} or indices.is_floating_point():
        raise MaskError(
            f"blocks: indices are {indices.dtype} of shape {tuple(indices.shape)}, size {size}; expected integers "
            "([[B,] H,] query blocks, K) and a size of at least 1"
        )
    return _Blocks(indices, size)


def dense(visible: Tensor) -> Mask:
    """A boolean mask, True where a query sees a key; kept as intervals when its rows are few runs.

    Args:
        visible: bool ``(Nq, Nk)``, ``(B | 1, Nq, Nk)`` or ``(B | 1, H | 1, Nq, Nk)``.
    """
    if not isinstance(visible, Tensor) or visible.dtype != torch.bool or visible.dim() not in {2, 3, 4}:
        tensor = isinstance(visible, Tensor)
        what = f"{visible.dtype} of shape {tuple(visible.shape)}" if tensor else type(visible).__name__
        raise MaskError(
            f"mask is {what}; expected a mask of saccade.masks or booleans ([[B,] H,] Nq, Nk); "
            "additive masks of floats belong into bias="
        )
    if visible.dim() == 3:  # noqa: PLR2004
        visible = visible[:, None]
    return Dense(visible[(None,) * (4 - visible.dim())])


def from_predicate(visible: Callable[[Tensor, Tensor], Tensor], lengths: Lengths, *, rows: int = 0) -> Intervals:
    """The intervals of any predicate, found by evaluating it in strips of rows: exact, never Nq x Nk memory.

    Args:
        visible: ``visible(i, j) -> bool (B | 1, H | 1, n, Nk)`` for query indices ``i (n, 1)`` and keys ``j (1, Nk)``.
        lengths: the sizes of the problem.
        rows: rows in a strip; 0 chooses them so that a strip holds `STRIP_PAIRS` pairs.
    """
    keys = torch.arange(lengths.keys, device=lengths.device)[None, :]
    rows = rows or max(1, STRIP_PAIRS // max(1, lengths.keys * lengths.batch))
    none = torch.zeros(1, 1, 0, 1, device=lengths.device)
    strips = [Intervals.make(none, none, lengths.keys)]
    for first in range(0, lengths.queries, rows):
        last = min(first + rows, lengths.queries)
        strip = visible(torch.arange(first, last, device=lengths.device)[:, None], keys)
        strips.append(_from_turns(_turns(strip)))
    strips = strips[1:] or strips
    runs = max(strip.runs for strip in strips)
    starts, stops = (
        torch.cat([_pad_runs(getattr(strip, name), runs, lengths.keys) for strip in strips], -2)
        for name in ("starts", "stops")
    )
    return Intervals(starts, stops, lengths.keys)
