"""What can be asked of a pattern.

Each statistic is a value object that knows its result's shape, how a tile of exact weights adds to it (`add`), and how
results over parts of the keys or of the queries merge (`merge`). Row statistics (one result per query) ride in the
forward pass; those by key (`Received`, `Map`) need the final log-sum-exp of every row, so they cannot be merged over
parts of the keys that were normalised each on its own.

Weights here are the entries of the pattern, p = exp(s - lse). With attention sinks rows sum to less than 1, and every
statistic is of the weights as they are: nothing is renormalised. A row that sees no key adds nothing anywhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from saccade.errors import ArgumentError, NotAskedError, ShapeError
from saccade.masks import Lengths, check_offset
from saccade.scores import Area


class TopKeysResult(NamedTuple):
    """The k heaviest keys of each query, heaviest first; -1 with weight 0 where there are fewer."""

    indices: Tensor
    weights: Tensor


Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of the pattern, exact.

    Attributes:
        weights: ``(b, h, rows, n)``.
        area: which part it is.
        lengths: of the whole pattern.
    """

    weights: Tensor
    area: Area
    lengths: Lengths

    def rows_of(self, result: Tensor) -> Tensor:
        """The rows of a per-query result that this tile touches (a view)."""
        return result[self.area.batch, self.area.heads, self.area.rows]

    def heads_of(self, result: Tensor) -> Tensor:
        """The heads of a per-key result that this tile touches (a view)."""
        return result[self.area.batch, self.area.heads]

    def distance(self, offset: int) -> Tensor:
        """|i + offset - j| of every entry, ``(rows, n)``, in the weights' dtype (exact up to 2**24)."""
        i = self.area.query_positions(self.weights.device) + offset
        j = self.area.key_positions(self.weights.device)
        return (i.to(self.weights.dtype) - j.to(self.weights.dtype)).abs_()


class Statistic(ABC):
    """Something to ask of a pattern. Subclasses are frozen dataclasses."""

    field: ClassVar[str]
    by_key: ClassVar[bool] = False
    tensors: ClassVar[int] = 1

    def check(self, lengths: Lengths) -> Statistic:
        """This statistic fitted to the lengths: its tensors as ``(B | 1, N)``, nothing left open.

        Raises:
            ShapeError: a tensor of groups does not fit, or an offset is needed.
        """
        del lengths
        return self

    @abstractmethod
    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """The result of a pattern in which nothing is visible, to which tiles are added."""

    @abstractmethod
    def add(self, result: Tensors, tile: Tile) -> None:
        """Add a tile of the pattern to a result from `empty`."""

    def finish(self, result: Tensors, lengths: Lengths) -> Tensors:
        """What is reported once all tiles were added."""
        del lengths
        return result

    def code(self) -> tuple[str, list[int], Tensor | None]:
        """Name, integers and tensor: the form in which the operator receives a statistic."""
        return self.field, [], None

    def rescale(self, result: Tensors, log_share: Tensor) -> Tensors:
        """A row statistic of some keys, once those keys hold ``exp(log_share)`` of the whole row's weight."""
        return tuple(part * log_share.exp() for part in result)

    def merge_keys(self, results: Sequence[Tensors], key_offsets: Sequence[int]) -> Tensors:
        """One result from rescaled results of disjoint ranges of keys that start at `key_offsets`."""
        del key_offsets
        return tuple(torch.stack(parts).sum(0) for parts in zip(*results, strict=True))

    def merge_queries(self, results: Sequence[Tensors]) -> Tensors:
        """One result from those of consecutive ranges of queries."""
        return tuple(torch.cat(parts, 2) for parts in zip(*results, strict=True))


def _rows(lengths: Lengths, dtype: torch.dtype) -> Tensor:
    return torch.zeros(lengths.batch, lengths.heads, lengths.queries, dtype=dtype, device=lengths.device)


def _groups(name: str, groups: Tensor, wanted: int, lengths: Lengths) -> Tensor:
    """Group numbers as int64 ``(B | 1, N)``."""
    table = torch.as_tensor(groups, device=lengths.device)
    if table.is_floating_point() or table.dtype == torch.bool:
        raise ArgumentError(f"{name}: groups are {table.dtype}; expected integers, the number of each one's group")
    table = table[None] if table.dim() == 1 else table
    if table.dim() != 2 or table.shape[-1] != wanted or table.shape[0] not in (1, lengths.batch):  # noqa: PLR2004
        raise ShapeError(
            f"{name}: groups have shape {tuple(table.shape)}; expected ({wanted},) or ({lengths.batch}, {wanted})"
        )
    return table.long()


def one_hot(groups: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Membership ``(b, n, count)``; negative groups belong nowhere."""
    return (groups[..., None] == torch.arange(count, device=groups.device)).to(dtype)


@dataclass(frozen=True)
class LogSumExp(Statistic):
    """Natural logarithm of the softmax's denominator, ``(B, H, Nq)``; -inf where nothing is visible.

    The only statistic with a gradient. Every backend computes it anyway: asking for it costs nothing.
    """

    field: ClassVar[str] = "lse"
    tensors: ClassVar[int] = 0

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`. The backend's own lse is the result, so there is nothing to add to."""
        del lengths, dtype
        return ()

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""


@dataclass(frozen=True)
class Entropy(Statistic):
    """Shannon entropy of each row in nats, ``-sum p ln p``, ``(B, H, Nq)`` (Clark et al., arXiv 1906.04341)."""

    field: ClassVar[str] = "entropy"

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`."""
        return (_rows(lengths, dtype),)

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""
        # p log2 p is 0 at p = 0 whatever finite number stands for log2 0; torch.special.entr takes four times as long.
        smallest = torch.finfo(tile.weights.dtype).tiny
        bits = tile.weights.clamp_min(smallest).log2_().mul_(tile.weights).sum(-1)
        tile.rows_of(result[0]).sub_(bits, alpha=math.log(2.0))

    def rescale(self, result: Tensors, log_share: Tensor) -> Tensors:
        """With p' = c p: ``-sum p' ln p' = c (H - ln c)``, for rows that summed to 1."""
        share = log_share.exp()
        return (share * result[0] - torch.where(share > 0, share * log_share, 0.0),)


@dataclass(frozen=True)
class MaxWeight(Statistic):
    """The largest weight of each row, ``(B, H, Nq)``."""

    field: ClassVar[str] = "max_weight"

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`."""
        return (_rows(lengths, dtype),)

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""
        target = tile.rows_of(result[0])
        target.copy_(torch.maximum(target, tile.weights.amax(-1)))

    def merge_keys(self, results: Sequence[Tensors], key_offsets: Sequence[int]) -> Tensors:
        """See `Statistic.merge_keys`."""
        del key_offsets
        return (torch.stack([part for (part,) in results]).amax(0),)


@dataclass(frozen=True)
class TopKeys(Statistic):
    """The k heaviest keys of each query: indices (int64) and weights, both ``(B, H, Nq, k)``, heaviest first.

    Keys of weight 0 are not listed: index -1, weight 0. Keys of equal weight come in any order.

    Args:
        k: how many keys, at least 1.
    """

    k: int
    field: ClassVar[str] = "top_keys"
    tensors: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise ArgumentError(f"TopKeys(k={self.k}): expected an integer k >= 1")

    def code(self) -> tuple[str, list[int], Tensor | None]:
        """See `Statistic.code`."""
        return self.field, [self.k], None

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`."""
        shape = (lengths.batch, lengths.heads, lengths.queries, self.k)
        indices = torch.full(shape, -1, dtype=torch.int64, device=lengths.device)
        return indices, torch.zeros(shape, dtype=dtype, device=lengths.device)

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""
        indices, best = (tile.rows_of(part) for part in result)
        tile_best, where = tile.weights.topk(min(self.k, tile.weights.shape[-1]), dim=-1)
        tile_indices = tile.area.key_positions(where.device)[where]
        self._keep(indices, best, torch.cat([indices, tile_indices], -1), torch.cat([best, tile_best], -1))

    def _keep(self, indices: Tensor, best: Tensor, all_indices: Tensor, all_best: Tensor) -> None:
        top, where = all_best.topk(self.k, dim=-1)
        best.copy_(top)
        # A weight of 0 names no key, and neither does NaN, which is not greater than 0 either.
        indices.copy_(all_indices.gather(-1, where).where(top > 0, -1))

    def rescale(self, result: Tensors, log_share: Tensor) -> Tensors:
        """See `Statistic.rescale`."""
        return result[0], result[1] * log_share.exp()[..., None]

    def merge_keys(self, results: Sequence[Tensors], key_offsets: Sequence[int]) -> Tensors:
        """See `Statistic.merge_keys`."""
        indices = [i.where(i < 0, i + offset) for (i, _), offset in zip(results, key_offsets, strict=True)]
        merged = (torch.empty_like(indices[0]), torch.empty_like(results[0][1]))
        self._keep(*merged, torch.cat(indices, -1), torch.cat([w for _, w in results], -1))
        return merged


@dataclass(frozen=True)
class Distance(Statistic):
    """Expected distance to what is attended, ``sum p |i + offset - j|`` in tokens, ``(B, H, Nq)``.

    (Vig and Belinkov, arXiv 1906.04284, section 4.3.)

    Args:
        offset: the key position of the first query; may be left out when Nq = Nk.
    """

    offset: int | None = None
    field: ClassVar[str] = "distance"

    def check(self, lengths: Lengths) -> Distance:
        """See `Statistic.check`."""
        if self.offset is None and lengths.queries != lengths.keys:
            raise ShapeError(
                f"Distance() is ambiguous for Nq = {lengths.queries} and Nk = {lengths.keys}: say offset=, the key "
                "position of the first query"
            )
        if self.offset is not None:
            check_offset("Distance offset", self.offset)
        return Distance(self.offset or 0)

    def code(self) -> tuple[str, list[int], Tensor | None]:
        """See `Statistic.code`."""
        return self.field, [self.offset or 0], None

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`."""
        return (_rows(lengths, dtype),)

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""
        tile.rows_of(result[0]).add_((tile.weights * tile.distance(self.offset or 0)).sum(-1))


@dataclass(frozen=True, eq=False)
class Mass(Statistic):
    """How much of each query's attention falls on each group of keys, ``(B, H, Nq, G)``.

    Args:
        groups: integers ``(Nk,)`` or ``(B, Nk)``, the group 0 .. G - 1 of each key; below 0: none.
        count: G; left out, one more than the largest number in `groups`.
    """

    groups: Tensor
    count: int | None = None
    field: ClassVar[str] = "mass"

    def check(self, lengths: Lengths) -> Mass:
        """See `Statistic.check`."""
        groups = _groups("Mass", self.groups, lengths.keys, lengths)
        return Mass(groups, _group_count("Mass", groups, self.count))

    def code(self) -> tuple[str, list[int], Tensor | None]:
        """See `Statistic.code`."""
        return self.field, [self.count or 0], self.groups

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`."""
        shape = (lengths.batch, lengths.heads, lengths.queries, self.count or 0)
        return (torch.zeros(shape, dtype=dtype, device=lengths.device),)

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""
        groups = tile.area.of(self.groups[:, None], keys=True)
        tile.rows_of(result[0]).add_(tile.weights @ one_hot(groups, self.count or 0, tile.weights.dtype))

    def rescale(self, result: Tensors, log_share: Tensor) -> Tensors:
        """See `Statistic.rescale`."""
        return (result[0] * log_share.exp()[..., None],)


def _group_count(name: str, groups: Tensor, count: int | None) -> int:
    """How many groups there are: as given, or as the largest number says."""
    if count is not None and torch.compiler.is_compiling():  # a graph cannot depend on the numbers
        return count
    largest = int(groups.max()) if groups.numel() else -1
    if count is not None and largest >= count:
        raise ArgumentError(f"{name}: group {largest} does not exist among count = {count} groups (0 to {count - 1})")
    return largest + 1 if count is None else count


@dataclass(frozen=True, eq=False)
class Received(Statistic):
    """How much attention each key receives, summed over queries (H2O, arXiv 2306.14048).

    Args:
        by: None for the sum over all queries, ``(B, H, Nk)``; or integers ``(Nq,)`` or ``(B, Nq)``, the group
            0 .. G - 1 of each query (below 0: none), for one sum by group, ``(B, H, G, Nk)``.
        count: G; left out, one more than the largest number in `by`.
        over_heads: sum over heads as well: ``(B, Nk)`` or ``(B, G, Nk)``.
    """

    by: Tensor | None = None
    count: int | None = None
    over_heads: bool = False
    field: ClassVar[str] = "received"
    by_key: ClassVar[bool] = True

    def check(self, lengths: Lengths) -> Received:
        """See `Statistic.check`."""
        if self.by is None:
            return self
        groups = _groups("Received", self.by, lengths.queries, lengths)
        return Received(groups, _group_count("Received", groups, self.count), self.over_heads)

    def code(self) -> tuple[str, list[int], Tensor | None]:
        """See `Statistic.code`."""
        return self.field, [self.count or 0, int(self.over_heads)], self.by

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`."""
        groups = () if self.by is None else (self.count or 0,)
        shape = (*_of_heads(lengths, self.over_heads), *groups, lengths.keys)
        return (torch.zeros(shape, dtype=dtype, device=lengths.device),)

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""
        if self.by is None:
            sums = tile.weights.sum(-2)
        else:
            groups = tile.area.of(self.by[:, None, :, None], queries=True)[..., 0]
            member = one_hot(groups, self.count or 0, tile.weights.dtype).mT
            unknown = tile.weights.isnan()  # of one group only, and 0 * NaN would be NaN in all
            sums = member @ tile.weights.masked_fill(unknown, 0.0)
            sums = sums.masked_fill(member @ unknown.to(member.dtype) > 0, torch.nan)
        target = tile.heads_of(result[0])
        if self.over_heads:
            sums, target = sums.sum(1), result[0][tile.area.batch]
        if isinstance(tile.area.keys, slice):
            target[..., tile.area.keys] += sums
        else:
            target.index_add_(-1, tile.area.keys, sums)

    def merge_queries(self, results: Sequence[Tensors]) -> Tensors:
        """See `Statistic.merge_queries`. With groups, all parts must number them alike."""
        return (torch.stack([part for (part,) in results]).sum(0),)


def _of_heads(lengths: Lengths, over_heads: bool) -> tuple[int, ...]:  # noqa: FBT001
    """The leading dimensions of a statistic by key: (B, H), or (B,) over heads."""
    return (lengths.batch,) if over_heads else (lengths.batch, lengths.heads)


_REDUCTIONS = ("mean", "max", "sum")


@dataclass(frozen=True)
class Map(Statistic):
    """The whole pattern as a small picture: cells of queries x keys, ``(B, H, cells_q, cells_k)``.

    Cell a of c covers the indices from ``floor(a N / c)`` to ``floor((a + 1) N / c)``. Hidden entries count as 0.

    Args:
        cells: cells along each side, or (cells of queries, cells of keys); never more than there are tokens.
        reduce: "mean", "max" or "sum" of the weights in a cell.
        over_heads: one map ``(B, cells_q, cells_k)`` of all heads together, whose cells reduce over heads as well.
    """

    cells: int | tuple[int, int]
    reduce: str = "mean"
    over_heads: bool = False
    field: ClassVar[str] = "map"
    by_key: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.reduce not in _REDUCTIONS:
            raise ArgumentError(f"Map reduce = {self.reduce!r}: expected one of {', '.join(_REDUCTIONS)}")
        sides = self.cells if isinstance(self.cells, tuple) else (self.cells, self.cells)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):  # noqa: PLR2004
            raise ArgumentError(
                f"Map cells = {self.cells}: expected an integer >= 1, or a pair of them (along queries, along keys)"
            )

    def _sides(self) -> tuple[int, int]:
        return (self.cells, self.cells) if isinstance(self.cells, int) else self.cells

    def grid(self, lengths: Lengths) -> tuple[int, int]:
        """How many cells there are along queries and keys."""
        cells_q, cells_k = self._sides()
        return min(cells_q, lengths.queries), min(cells_k, lengths.keys)

    def code(self) -> tuple[str, list[int], Tensor | None]:
        """See `Statistic.code`."""
        return self.field, [*self._sides(), _REDUCTIONS.index(self.reduce), int(self.over_heads)], None

    def empty(self, lengths: Lengths, dtype: torch.dtype) -> Tensors:
        """See `Statistic.empty`."""
        shape = (*_of_heads(lengths, self.over_heads), *self.grid(lengths))
        return (torch.zeros(shape, dtype=dtype, device=lengths.device),)

    def add(self, result: Tensors, tile: Tile) -> None:
        """See `Statistic.add`."""
        cells_q, cells_k = self.grid(tile.lengths)
        device = tile.weights.device
        of_key = _cell_of(tile.area.key_positions(device), tile.lengths.keys, cells_k)
        of_query = _cell_of(tile.area.query_positions(device)[:, 0], tile.lengths.queries, cells_q)
        weights, columns = self._reduce(tile.weights, of_key)
        weights, rows = self._reduce(weights.mT, of_query)
        target, where = tile.heads_of(result[0]), (..., rows[:, None], columns)
        if self.over_heads:
            weights, target = weights.amax(1) if self.reduce == "max" else weights.sum(1), result[0][tile.area.batch]
        here = target[where]
        target[where] = torch.maximum(here, weights.mT) if self.reduce == "max" else here + weights.mT

    def merge_queries(self, results: Sequence[Tensors]) -> Tensors:
        """See `Statistic.merge_queries`."""
        return (torch.cat([part for (part,) in results], -2),)

    def _reduce(self, weights: Tensor, cell_of: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce the last dimension to the cells present in it; also which cells these are."""
        cells, counts = cell_of.unique_consecutive(return_counts=True)
        width = int(counts.max())
        if width * cells.numel() == cell_of.numel():
            members = weights.reshape(*weights.shape[:-1], cells.numel(), width)
        else:  # cells differ in width: pad each to the widest with a column of zeros
            slot = torch.arange(width, device=counts.device)
            first = counts.cumsum(0) - counts
            index = (first[:, None] + slot).where(slot < counts[:, None], cell_of.numel())
            members = torch.nn.functional.pad(weights, (0, 1))[..., index]
        return (members.amax(-1) if self.reduce == "max" else members.sum(-1)), cells

    def finish(self, result: Tensors, lengths: Lengths) -> Tensors:
        """See `Statistic.finish`: a mean is a sum divided by the entries of its cell."""
        if self.reduce != "mean":
            return result
        cells_q, cells_k = self.grid(lengths)
        rows = cell_bounds(lengths.queries, cells_q).diff().to(result[0])
        columns = cell_bounds(lengths.keys, cells_k).diff().to(result[0])
        return (result[0] / (rows[:, None] * columns * (lengths.heads if self.over_heads else 1)),)


def cell_bounds(length: int, cells: int, device: torch.device | str = "cpu") -> Tensor:
    """Where the cells of a `Map` begin and the last ends: ``floor(a * length / cells)``, int64 ``(cells + 1,)``."""
    return torch.arange(cells + 1, device=device) * length // max(cells, 1)


def _cell_of(position: Tensor, length: int, cells: int) -> Tensor:
    return torch.bucketize(position, cell_bounds(length, cells)[1:].to(position.device), right=True)


_KINDS: tuple[type[Statistic], ...] = (LogSumExp, Entropy, MaxWeight, TopKeys, Distance, Mass, Received, Map)
FIELDS = tuple(kind.field for kind in _KINDS)


def decode(field: str, numbers: list[int], tensor: Tensor | None) -> Statistic:
    """The statistic that `Statistic.code` describes."""
    if field == TopKeys.field:
        return TopKeys(numbers[0])
    if field == Distance.field:
        return Distance(numbers[0])
    if field == Mass.field:
        assert tensor is not None
        return Mass(tensor, numbers[0])
    if field == Received.field:
        return Received(tensor, None if tensor is None else numbers[0], bool(numbers[1]))
    if field == Map.field:
        return Map((numbers[0], numbers[1]), _REDUCTIONS[numbers[2]], bool(numbers[3]))
    return {kind.field: kind for kind in (LogSumExp, Entropy, MaxWeight)}[field]()


class Report(Mapping[str, "Tensor | TopKeysResult"]):
    """The statistics of one attention call, as attributes or as a mapping: ``report.entropy``, ``report["map"]``.

    Reading a statistic that was not asked for raises `NotAskedError` and says how to ask.
    """

    lse: Tensor
    entropy: Tensor
    max_weight: Tensor
    top_keys: TopKeysResult
    distance: Tensor
    mass: Tensor
    received: Tensor
    map: Tensor

    def __init__(self, results: Mapping[str, Tensor | TopKeysResult]) -> None:
        self._results = dict(results)

    @classmethod
    def of(cls, results: Iterable[tuple[Statistic, Tensors]]) -> Report:
        """A report from each statistic's tensors."""
        return cls({s.field: TopKeysResult(*r) if isinstance(s, TopKeys) else r[0] for s, r in results})

    def __getattr__(self, name: str) -> Tensor | TopKeysResult:
        if name in FIELDS:
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, name: str) -> Tensor | TopKeysResult:
        try:
            return self._results[name]
        except KeyError:
            kind = {kind.field: kind.__name__ for kind in _KINDS}.get(name)
            if kind is None:
                raise KeyError(name) from None
            raise NotAskedError(
                f"{name} was not asked for: add saccade.statistics.{kind} to statistics=[...]"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._results  # the default asks __getitem__, whose error is no KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        def shape(value: Tensor | TopKeysResult) -> str:
            return str(tuple((value.indices if isinstance(value, TopKeysResult) else value).shape))

        return f"Report({', '.join(f'{name} {shape(value)}' for name, value in self.items())})"


def check_all(statistics: Statistic | Iterable[Statistic], lengths: Lengths) -> list[Statistic]:
    """The asked statistics fitted to the lengths.

    Raises:
        ArgumentError: something is no statistic, or one is asked for twice.
        ShapeError: groups or offsets do not fit.
    """
    return [statistic.check(lengths) for statistic in check_kinds(statistics)]


def check_kinds(statistics: Statistic | Iterable[Statistic]) -> list[Statistic]:
    """The asked statistics as a list, each once.

    Raises:
        ArgumentError: something is no statistic, or one is asked for twice.
    """
    if isinstance(statistics, type) or not isinstance(statistics, Statistic | Iterable):
        raise ArgumentError(f"statistics = {statistics!r}; expected values of saccade.statistics, e.g. [Entropy()]")
    asked = [statistics] if isinstance(statistics, Statistic) else list(statistics)
    for statistic in asked:
        if not isinstance(statistic, Statistic):
            raise ArgumentError(
                f"statistics holds {statistic!r}; expected values of saccade.statistics, e.g. TopKeys(8)"
            )
    fields = [statistic.field for statistic in asked]
    for field in fields:
        if fields.count(field) > 1:
            raise ArgumentError(f"statistics asks for {field} {fields.count(field)} times: a report holds one of each")
    return asked


def merge_keys(statistics: Sequence[Statistic], reports: Sequence[Report], key_offsets: Sequence[int]) -> Report:
    """One report from those of disjoint ranges of keys, each normalised over its own range, without sinks.

    Every part must hold the lse. With lse = logsumexp of the parts', a part's share of each row's weight is
    ``exp(lse_part - lse)``; a row statistic is rescaled by it and the parts are joined.

    Args:
        statistics: what the reports hold.
        reports: one for each range of keys.
        key_offsets: where each range starts.

    Raises:
        ArgumentError: `Received` or `Map` is among the statistics.
    """
    parts = torch.stack([report.lse for report in reports])
    lse = parts.logsumexp(0)
    # A row that sees nothing has lse -inf in every part; its share of nothing is 0, not NaN.
    shares = torch.where(parts == -torch.inf, -torch.inf, parts - lse)
    merged: dict[str, Tensor | TopKeysResult] = {"lse": lse}
    for statistic in statistics:
        if isinstance(statistic, LogSumExp):
            continue
        if statistic.by_key:
            raise ArgumentError(
                f"{type(statistic).__name__} sums over queries, so it cannot be merged over ranges of keys that were "
                "normalised each on its own: it needs the final log-sum-exp of every row"
            )
        rescaled = [
            statistic.rescale(_tensors(report[statistic.field]), share)
            for report, share in zip(reports, shares, strict=True)
        ]
        merged |= Report.of([(statistic, statistic.merge_keys(rescaled, key_offsets))])
    return Report(merged)


def merge_queries(statistics: Sequence[Statistic], reports: Sequence[Report]) -> Report:
    """One report from those of consecutive ranges of queries: rows follow one another, what keys receive is summed.

    A `Map`'s rows of cells follow one another as well.
    """
    return Report.of(
        (statistic, statistic.merge_queries([_tensors(report[statistic.field]) for report in reports]))
        for statistic in statistics
    )


def _tensors(result: Tensor | TopKeysResult) -> Tensors:
    return tuple(result) if isinstance(result, TopKeysResult) else (result,)
