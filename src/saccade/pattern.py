"""`Pattern`: the attention pattern as a matrix that is never stored and can be asked.

    A = softmax(scale * Q K^T + bias, masked)      one row for each query, one column for each key

What comes of it (a product, a row, a window, where each query looks) is computed from queries and keys when it is asked
for, exactly, in memory of the answer and O(N). What divides each row, exp(lse), is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saccade import backends
from saccade.backends import Inputs, operation
from saccade.errors import ArgumentError, MaskError, ShapeError
from saccade.functional import check_inputs, make_problem
from saccade.masks import Dense, Intervals, Lengths, Mask
from saccade.scores import ALiBi, Bias, DenseBias, Problem, RelativeBias
from saccade.statistics import (
    Distance,
    Entropy,
    LogSumExp,
    Map,
    Mass,
    MaxWeight,
    Received,
    Report,
    Statistic,
    Tensors,
    TopKeys,
    TopKeysResult,
    check_all,
)

# Entries that a window or `dense` writes out at most: 512 MiB.
MOST_ENTRIES = 1 << 27

Index = int | slice | Sequence[int] | Tensor


class Pattern:
    """An attention pattern ``(B, H, Nq, Nk)`` that is never stored.

    Args:
        query: ``(B, H, Nq, D)``.
        key: ``(B, Hk, Nk, D)``; H a multiple of Hk.
        mask, scale, softcap, bias, sinks, backend: as of `saccade.attention`.

    Raises:
        ShapeError, DtypeError, DeviceError, MaskError, ArgumentError, BackendError: as `saccade.attention`.

    Weights are float32 (float64 for float64 inputs) whatever the dtype of queries and keys. Products have gradients;
    what is read off the pattern has none.

    Attributes:
        inputs: queries and keys (which stand for the values as well).
        problem: what else forms the pattern.
        backend: what computes it.

    >>> import torch, saccade
    >>> x = torch.eye(3)[None, None]
    >>> A = saccade.Pattern(x, x, mask=saccade.masks.causal())
    >>> A.shape
    torch.Size([1, 1, 3, 3])
    >>> A[0, 0, 1].tolist() == A.dense()[0, 0, 1].tolist()
    True
    """

    def __init__(
        self,
        query: Float[Tensor, "B H Nq D"],
        key: Float[Tensor, "B Hk Nk D"],
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        bias: Bias | Float[Tensor, "..."] | None = None,
        sinks: Float[Tensor, "..."] | None = None,
        backend: str | None = None,
    ) -> None:
        self.inputs = check_inputs(query, key, key)
        self.problem = make_problem(self.inputs, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks)
        self.backend, _ = backends.choose(self.problem, self.inputs, backend)
        self._lse: Tensor | None = None

    def with_lse(self, lse: Tensor) -> Pattern:
        """The same pattern with its lse ``(B, H, Nq)``, where that is known; that of another gives wrong answers.

        Raises:
            ShapeError: it has another shape.
        """
        if lse.shape != self.shape[:3]:
            raise ShapeError(f"lse has shape {tuple(lse.shape)}; expected (B, H, Nq) = {tuple(self.shape[:3])}")
        made = copy(self)
        vars(made)["_lse"] = lse.to(self.device, self.dtype)
        return made

    # ------------------------------------------------------------------------------------ a matrix

    @property
    def shape(self) -> torch.Size:
        """(B, H, Nq, Nk)."""
        lengths = self.inputs.lengths
        return torch.Size((lengths.batch, lengths.heads, lengths.queries, lengths.keys))

    @property
    def ndim(self) -> int:
        """4."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.inputs.compute

    @property
    def device(self) -> torch.device:
        """Where queries and keys are."""
        return self.inputs.query.device

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """4."""
        return self.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        known = "" if self._lse is None else ", lse known"
        return f"Pattern({_sizes(self.shape)}, {self.dtype}, {self.device}, {self.backend.name}{known}; never stored)"

    @property
    def mT(self) -> Transposed:  # noqa: N802  torch's name
        """The transposed pattern ``(B, H, Nk, Nq)``, for products."""
        return Transposed(self)

    def __matmul__(self, value: Tensor) -> Tensor:
        """``A @ V``, attention's output.

        Args:
            value: ``(Nk, Dv)``, or anything that broadcasts to ``(B, Hk, Nk, Dv)`` or ``(B, H, Nk, Dv)``.

        Returns:
            ``(B, H, Nq, Dv)``, in the wider one of the dtypes of queries and value. O(Nq Nk) time, O(N) memory.
        """
        value = _broadcast("value", value, self.shape, self.shape[3], {1, self.inputs.key.shape[1], self.shape[1]})
        if value.shape[1] == 1:
            value = value.expand(-1, self.inputs.key.shape[1], -1, -1)
        return operation.call(self.backend, self.problem, _with_value(self.inputs, value), []).output

    # ------------------------------------------------------------------------------------ what rows are divided by

    @property
    def lse(self) -> Tensor:
        """The natural logarithm of what each row is divided by, ``(B, H, Nq)``. O(Nq Nk D) time, once."""
        if self._lse is None:
            self._results([])
        assert self._lse is not None
        return self._lse

    def ask(self, statistics: Statistic | Iterable[Statistic]) -> Report:
        """Any statistics of `saccade.statistics` in one pass. O(Nq Nk D) time, memory of the answers.

        Raises:
            ArgumentError, ShapeError: as `saccade.attention`.
        """
        asked = check_all(statistics, self.inputs.lengths)
        results = self._results(asked)
        return Report.of(
            (s, (self.lse,) if isinstance(s, LogSumExp) else r) for s, r in zip(asked, results, strict=True)
        )

    @torch.no_grad()
    def _results(self, asked: Sequence[Statistic]) -> list[Tensors]:
        """These statistics; the lse, if it is not known yet, comes with them in one pass."""
        if self._lse is None:
            inputs = _with_value(self.inputs, self.inputs.key[..., :1])
            forward = self.backend.forward(self.problem, inputs, asked, want_lse=True)
            self._lse = forward.lse
            return forward.results
        return self.backend.observe(self.problem, self.inputs, self._lse, asked)

    # ------------------------------------------------------------------------------------ by query

    def entropy(self) -> Tensor:
        """``-sum p ln p`` of each row, in nats, ``(B, H, Nq)``. O(Nq Nk D) time, O(N) memory."""
        return self.ask(Entropy()).entropy

    def max_weight(self) -> Tensor:
        """The largest weight of each row, ``(B, H, Nq)``. O(Nq Nk D) time, O(N) memory."""
        return self.ask(MaxWeight()).max_weight

    def top_keys(self, k: int) -> TopKeysResult:
        """The k heaviest keys of each row, ``(B, H, Nq, k)`` each. O(Nq Nk D) time, O(N k) memory."""
        return self.ask(TopKeys(k)).top_keys

    def distance(self, offset: int | None = None) -> Tensor:
        """How far each row looks on average, in tokens, ``(B, H, Nq)``. O(Nq Nk D) time, O(N) memory.

        Args:
            offset: the key position of the first query; may be left out when Nq = Nk.
        """
        return self.ask(Distance(offset)).distance

    def mass(self, groups: Tensor, count: int | None = None) -> Tensor:
        """The weight that each row gives each group of keys, ``(B, H, Nq, G)``. O(Nq Nk D) time, O(N G) memory.

        Args:
            groups: integers ``(Nk,)`` or ``(B, Nk)``, as of `saccade.statistics.Mass`.
            count: G; left out, one more than the largest number in `groups`.
        """
        return self.ask(Mass(groups, count)).mass

    @torch.no_grad()
    def mass_on(
        self, mask: Mask, *, groups: Tensor | None = None, count: int | None = None, queries: slice | None = None
    ) -> Tensor:
        """The weight that each row gives the keys of a mask, ``(B, H, Nq)``.

        Tiles outside of the mask are skipped: O(Nq D) time for each key in reach, O(N) memory beside the mask's own;
        the whole lse once. A row that sees no key of the mask has 0.

        Args:
            mask: which keys count for each query; those that the pattern itself hides count nothing.
            groups: with integers as of `mass`, the weight by group of keys, ``(B, H, Nq, G)``.
            count: G; left out, one more than the largest number in `groups`.
            queries: only these rows, a slice without a step, for which the mask is made; None for all.

        Raises:
            MaskError: the mask does not fit.
            ShapeError, ArgumentError: the groups do not, or the range of queries has a step.

        >>> import torch, saccade
        >>> x = torch.zeros(1, 1, 4, 8)
        >>> A = saccade.Pattern(x, x, mask=saccade.masks.causal())
        >>> A.mass_on(saccade.masks.window(1, 0)).mul(6).round().tolist()  # of 1, 2, 3 and 4 keys that are all alike
        [[[6.0, 6.0, 4.0, 3.0]]]
        """
        if not isinstance(mask, Mask):
            raise MaskError(f"mask is {type(mask).__name__}; expected one of saccade.masks, e.g. window(4, 4)")
        rows = _range("queries", queries, self.shape[2])
        inputs = replace(self.inputs, query=self.inputs.query[:, :, rows])
        problem = _restricted(self.problem, rows, slice(0, self.shape[3]), inputs.lengths)
        both = (mask if problem.mask is None else problem.mask & mask).resolve(inputs.lengths)
        one = torch.zeros(self.shape[3], dtype=torch.int64, device=self.device)
        asked = check_all(Mass(one, 1) if groups is None else Mass(groups, count), inputs.lengths)
        lse = self.lse[:, :, rows]
        [[found]] = self.backend.observe(replace(problem, mask=both), inputs, lse, asked, partial=True)
        return found[..., 0] if groups is None else found

    # ------------------------------------------------------------------------------------ by key, and as a map

    def received(self, by: Tensor | None = None, count: int | None = None) -> Tensor:
        """The weight that each key receives, ``(B, H, Nk)``, or from each group of queries ``(B, H, G, Nk)``.

        O(Nq Nk D) time, O(N G) memory.

        Args:
            by: integers ``(Nq,)`` or ``(B, Nq)``: the group of each query.
            count: G; left out, one more than the largest number in `by`.
        """
        return self.ask(Received(by, count)).received

    def map(
        self,
        cells: int | tuple[int, int],
        reduce: str = "mean",
        *,
        queries: slice | None = None,
        keys: slice | None = None,
    ) -> Tensor:
        """The pattern, or a rectangle of it, reduced to cells ``(B, H, cells of queries, cells of keys)``.

        O(rows x columns x D) time, O(cells) memory; the whole lse once.

        Args:
            cells: along each side, or of queries and of keys.
            reduce: "mean", "max" or "sum" of the weights in a cell.
            queries: the rectangle's rows, a slice without a step; None for all.
            keys: its columns.
        """
        return _map(self, Map(cells, reduce), queries, keys)

    # ------------------------------------------------------------------------------------ parts

    def head(self, head: int) -> Pattern:
        """The pattern of one head, ``(B, 1, Nq, Nk)``. A view."""
        return self._select(slice(None), _as_slice(_positions(head, self.shape[1])))

    def element(self, batch: int) -> Pattern:
        """The pattern of one element of the batch, ``(1, H, Nq, Nk)``. A view."""
        return self._select(_as_slice(_positions(batch, self.shape[0])), slice(None))

    def mean_heads(self) -> MeanPattern:
        """The mean of all heads, never stored either."""
        return MeanPattern(self)

    def _select(self, batch: slice | list[int], heads: slice | list[int]) -> Pattern:
        """Some batch elements and heads, all of their queries and keys. A view where they are neighbours."""
        chosen, query, key = _positions(heads, self.shape[1]), self.inputs.query, self.inputs.key
        if chosen.tolist() != list(range(self.shape[1])):  # else the heads of a group go on sharing keys
            key = key[:, _as_slice(chosen // self.inputs.group)]
        made = copy(self)
        made.inputs = Inputs(query[batch][:, heads], key[batch], key[batch])
        made.problem = self.problem.select(batch, heads)
        vars(made)["_lse"] = None if self._lse is None else self._lse[batch][:, heads]
        return made

    def __getitem__(self, index: Any) -> Tensor:
        """Entries of the pattern, as of a tensor: ``A[0, 3]``, ``A[..., 10:20, :]``, ``A[0, :, [1, 5], 7]``.

        O(rows x columns x D) time and memory of the answer; the whole lse once. Two lists give all pairs of their
        entries, as ``A[:, :, i][..., j]`` would.

        Raises:
            IndexError: out of range, or more than four indices.
            ArgumentError: more than 2**27 entries.
        """
        parts = _spread(index, self.ndim)
        wanted = [_positions(part, length) for part, length in zip(parts, self.shape, strict=True)]
        _check_size([len(x) for x in wanted])
        batch, heads = (_as_slice(x) for x in wanted[:2])
        if 0 in (len(x) for x in wanted):
            return self.lse.new_empty(
                [len(x) for part, x in zip(parts, wanted, strict=True) if not isinstance(part, int)]
            )
        self.lse  # noqa: B018  once for all heads, not again for each selection
        return _squeezed(_window(self._select(batch, heads), *wanted[2:]), parts)

    def dense(self) -> Tensor:
        """The whole pattern as a tensor ``(B, H, Nq, Nk)``: what a viewer for short texts wants.

        Raises:
            ArgumentError: more than 2**27 entries (512 MiB).
        """
        return self[...]


class Transposed:
    """A transposed pattern ``(B, H, Nk, Nq)``: who looks at each key."""

    def __init__(self, pattern: Pattern) -> None:
        self.mT = pattern

    @property
    def shape(self) -> torch.Size:
        """(B, H, Nk, Nq)."""
        batch, heads, queries, keys = self.mT.shape
        return torch.Size((batch, heads, keys, queries))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.mT.dtype

    def __repr__(self) -> str:
        return f"{self.mT!r}.mT"

    def __matmul__(self, rows: Tensor) -> Tensor:
        """``A^T @ Y``: what each key gets if each query sends it ``Y`` by its weights.

        Args:
            rows: ``(Nq, width)``, or anything that broadcasts to ``(B, H, Nq, width)``.

        Returns:
            ``(B, H, Nk, width)``, in the wider one of the dtypes of queries and rows. O(Nq Nk) time, O(N) memory.
        """
        pattern = self.mT
        rows = _broadcast("rows", rows, pattern.shape, pattern.shape[2], {1, pattern.shape[1]})
        rows = rows.expand(-1, pattern.shape[1], -1, -1)
        query, key = pattern.inputs.query, pattern.inputs.key
        dtype = torch.promote_types(query.dtype, rows.dtype)
        bias = None if pattern.problem.bias is None else pattern.problem.bias.values
        return _TransposedProduct.apply(  # type: ignore[no-untyped-call,no-any-return]
            query.to(dtype), key.to(dtype), bias, pattern.problem.sinks, rows.to(dtype), pattern
        )


class _TransposedProduct(torch.autograd.Function):
    """A^T Y. With G its gradient, that of Y is A G and that of A is Y G^T: what ``A @ G`` would have for gradient Y."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, bias: Tensor | None, sinks: Tensor | None, rows: Tensor, pattern: Pattern
    ) -> Tensor:
        ctx.save_for_backward(query, key, bias, sinks, rows)
        ctx.pattern = pattern
        inputs = Inputs(query, key, key)
        return pattern.backend.transposed(pattern.problem, inputs, pattern.lse, rows).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *leaves, rows = (None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors)
        query, key, bias, sinks = leaves
        assert query is not None
        assert key is not None
        assert rows is not None
        with torch.enable_grad():
            problem = ctx.pattern.problem.with_tensors(bias, sinks)
            inputs = _with_value(Inputs(query, key, key), grad)
            output = operation.call(ctx.pattern.backend, problem, inputs, []).output
            found = iter(torch.autograd.grad(output, [x for x in leaves if x is not None], rows.detach()))
        return *(None if x is None else next(found) for x in leaves), output.detach(), None


class MeanPattern:
    """The mean of a pattern's heads, ``(B, 1, Nq, Nk)``. Only what is linear in the weights can be asked of it."""

    def __init__(self, heads: Pattern) -> None:
        self._heads = heads

    @property
    def shape(self) -> torch.Size:
        """(B, 1, Nq, Nk)."""
        return torch.Size((self._heads.shape[0], 1, *self._heads.shape[2:]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._heads.dtype

    def __repr__(self) -> str:
        return f"{self._heads!r}.mean_heads()"

    @property
    def mT(self) -> _MeanTransposed:  # noqa: N802  torch's name
        """The transposed mean, for products."""
        return _MeanTransposed(self._heads)

    def __matmul__(self, value: Tensor) -> Tensor:
        """As of `Pattern`, the mean over heads: ``(B, 1, Nq, Dv)``."""
        return (self._heads @ value).mean(1, keepdim=True)

    def received(self, by: Tensor | None = None, count: int | None = None) -> Tensor:
        """As of `Pattern`: ``(B, 1, [G,] Nk)``."""
        return self._heads.ask(Received(by, count, over_heads=True)).received[:, None] / self._heads.shape[1]

    def map(self, cells: int | tuple[int, int], *, queries: slice | None = None, keys: slice | None = None) -> Tensor:
        """As of `Pattern`, the mean of each cell: ``(B, 1, cells of queries, cells of keys)``."""
        return _map(self._heads, Map(cells, "mean", over_heads=True), queries, keys)[:, None]

    def __getitem__(self, index: Any) -> Tensor:
        """As of `Pattern`."""
        parts = _spread(index, 4)
        _positions(parts[1], 1)
        batch, _, rows, columns = (_listed(part) for part in parts)
        return _squeezed(self._heads[batch, :, rows, columns].mean(1, keepdim=True), parts)

    def dense(self) -> Tensor:
        """As of `Pattern`."""
        return self[...]


@dataclass(frozen=True, eq=False)
class _MeanTransposed:
    heads: Pattern

    def __matmul__(self, rows: Tensor) -> Tensor:
        return (self.heads.mT @ rows).mean(1, keepdim=True)


# ---------------------------------------------------------------------------------------- parts of a problem


def _broadcast(name: str, x: Tensor, shape: torch.Size, length: int, heads: set[int]) -> Tensor:
    """`x` as ``(B, one of heads, length, width)``."""
    if not isinstance(x, Tensor) or x.dim() not in (2, 3, 4):
        found = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{name} is {found}; expected a tensor (..., {length}, width) of 2 to 4 dimensions")
    full = x[(None,) * (4 - x.dim())]
    if full.shape[0] not in (1, shape[0]) or full.shape[1] not in heads or full.shape[2] != length:
        wanted = f"({shape[0]}, {' | '.join(map(str, sorted(heads)))}, {length}, width)"
        raise ShapeError(f"{name} has shape {tuple(x.shape)}; expected one that broadcasts to {wanted}")
    return full.expand(shape[0], -1, -1, -1)


def _with_value(inputs: Inputs, value: Tensor) -> Inputs:
    """Queries, keys and these values in one dtype; keys repeated where each query head has its own values."""
    dtype = torch.promote_types(inputs.query.dtype, value.dtype)
    query, key, value = (x.to(dtype) for x in (inputs.query, inputs.key, value))
    if value.shape[1] != key.shape[1]:
        key = key.repeat_interleave(value.shape[1] // key.shape[1], 1)
    return Inputs(query, key, value)


@torch.no_grad()
def _map(pattern: Pattern, statistic: Map, queries: slice | None, keys: slice | None) -> Tensor:
    """A map of the whole pattern, or of a rectangle."""
    if queries is None and keys is None:
        return pattern.ask(statistic).map
    rows, columns = _range("queries", queries, pattern.shape[2]), _range("keys", keys, pattern.shape[3])
    key = pattern.inputs.key[:, :, columns]
    inputs = Inputs(pattern.inputs.query[:, :, rows], key, key)
    problem = _restricted(pattern.problem, rows, columns, inputs.lengths)
    asked = check_all(statistic, inputs.lengths)
    lse = pattern.lse[:, :, rows]
    return pattern.backend.observe(problem, inputs, lse, asked, partial=True)[0][0]


@torch.no_grad()
def _window(pattern: Pattern, rows: Tensor, columns: Tensor) -> Tensor:
    """The entries at some queries and keys, run by run of neighbours."""

    def window(i: slice, j: slice) -> Tensor:
        return pattern.backend.window(pattern.problem, pattern.inputs, pattern.lse, i, j)

    return torch.cat([torch.cat([window(i, j) for j in _runs(columns)], -1) for i in _runs(rows)], 2)


def _restricted(problem: Problem, rows: slice, keys: slice, lengths: Lengths) -> Problem:
    """The problem of a rectangle. Sinks are in the lse already."""
    return replace(
        problem,
        mask=_restricted_mask(problem.mask, rows, keys, lengths),
        bias=_restricted_bias(problem.bias, rows, keys),
        sinks=None,
    )


def _restricted_mask(mask: Intervals | Dense | None, rows: slice, keys: slice, lengths: Lengths) -> Any:
    if isinstance(mask, Dense):
        return Dense(mask.visible[:, :, rows if mask.visible.shape[2] != 1 else slice(None), keys])
    if isinstance(mask, Intervals):
        starts, stops = (x[:, :, rows].long() - keys.start for x in (mask.starts, mask.stops))
        return Intervals.make(starts, stops, lengths.keys)
    return None


def _restricted_bias(bias: Bias | None, rows: slice, keys: slice) -> Bias | None:
    if isinstance(bias, DenseBias):
        values = bias.values if bias.values.shape[2] == 1 else bias.values[:, :, rows]
        return DenseBias(values if values.shape[3] == 1 else values[..., keys])
    if isinstance(bias, ALiBi | RelativeBias):
        return replace(bias, offset=(bias.offset or 0) + rows.start - keys.start)
    return None


# ---------------------------------------------------------------------------------------- indices


def _sizes(shape: torch.Size) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in zip(("B", "H", "Nq", "Nk"), shape, strict=True))


def _spread(index: Any, dims: int) -> list[Index]:
    """One index for each dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > dims:
        raise IndexError(f"{len(parts)} indices; a pattern has {dims} dimensions: batch, head, query, key")
    at = dots[0] if dots else len(parts)
    missing = dims - len(parts) + len(dots)
    return [*parts[:at], *[slice(None)] * missing, *parts[at + len(dots) :]]


def _positions(part: Any, length: int) -> Tensor:
    """The positions that an index names, ``(n,)``."""
    if isinstance(part, bool) or not isinstance(part, int | slice | Sequence | Tensor) or isinstance(part, str):
        raise IndexError(f"index {part!r}: expected an integer, a slice, or a list of integers")
    if isinstance(part, Sequence) and not part:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    if isinstance(part, slice):
        return torch.tensor(range(length)[part], device="cpu", dtype=torch.int64)
    chosen = part.cpu() if isinstance(part, Tensor) else torch.tensor(part, device="cpu")
    if chosen.dtype == torch.bool and chosen.shape == (length,):
        chosen = chosen.nonzero()[:, 0]
    if chosen.dim() > 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise IndexError(f"index of shape {tuple(chosen.shape)}, {chosen.dtype}: expected integers (n,)")
    chosen = chosen.reshape(-1).long()
    if len(chosen) and not -length <= int(chosen.min()) <= int(chosen.max()) < length:
        raise IndexError(f"index {part} is out of range for {length} entries")
    return torch.where(chosen < 0, chosen + length, chosen)


def _listed(part: Index) -> Index:
    """The same index, but one that keeps its dimension."""
    return [part] if isinstance(part, int) else part


def _squeezed(window: Tensor, parts: Sequence[Index]) -> Tensor:
    """A window of four dimensions without those that an integer named."""
    return window[tuple(0 if isinstance(part, int) else slice(None) for part in parts)]


def _range(name: str, part: slice | None, length: int) -> slice:
    """A contiguous range, said in full."""
    start, stop, step = (part or slice(None)).indices(length)
    if step != 1:
        raise ArgumentError(f"{name} = {part}: expected a range without steps")
    return slice(start, max(start, stop))


def _runs(positions: Tensor) -> list[slice]:
    """The positions as ranges of neighbours, in order."""
    if len(positions) == 0:
        return []
    breaks = ((positions[1:] - positions[:-1]) != 1).nonzero()[:, 0] + 1
    return [slice(int(run[0]), int(run[-1]) + 1) for run in positions.tensor_split(breaks)]


def _as_slice(positions: Tensor) -> slice | list[int]:
    """A slice where the positions are neighbours, as a view costs nothing."""
    runs = _runs(positions)
    return runs[0] if len(runs) == 1 else positions.tolist()


def _check_size(sizes: Sequence[int]) -> None:
    entries = 1
    for size in sizes:
        entries *= size
    if entries > MOST_ENTRIES:
        raise ArgumentError(
            f"{' x '.join(f'{size:,}' for size in sizes)} entries would take {entries * 4 / 2**30:,.1f} GiB; a pattern "
            f"writes out {MOST_ENTRIES:,} at most: ask for a smaller window, for map(cells) or for statistics"
        )
