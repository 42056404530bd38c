"""`Pattern`: the attention pattern as a matrix that is never stored and can be asked.

    A = softmax(scale * Q K^T + bias, masked)      one row for each query, one column for each key

What comes of it (a product, a row, a window, where each query looks) is computed from queries and keys when it is asked,
exactly, in memory of the answer and O(N). What divides each row, exp(lse), is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saccade import backends
from saccade.backends import Inputs, operation
from saccade.errors import ArgumentError, ShapeError
from saccade.functional import check_inputs, make_problem
from saccade.masks import Dense, Intervals, Lengths, Mask
from saccade.scores import ALiBi, Bias, DenseBias, Problem, RelativeBias
from saccade.statistics import (
    Distance,
    Entropy,
    Map,
    Mass,
    MaxWeight,
    Received,
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

    Weights are float32 (float64 for float64 inputs) whatever the dtype of queries and keys. Products have gradients; what is
    read off the pattern has none.

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
        self._inputs = check_inputs(query, key, key)
        self._problem = make_problem(self._inputs, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks)
        self._backend, _ = backends.choose(self._problem, self._inputs, backend)
        self._lse: Tensor | None = None
        self._partial = False  # some keys are left out, so that the lse cannot be found from those that are here

    @classmethod
    def _of(cls, like: Pattern, problem: Problem, inputs: Inputs, lse: Tensor | None, *, partial: bool) -> Pattern:
        made = cls.__new__(cls)
        made._problem, made._inputs, made._lse, made._partial = problem, inputs, lse, partial
        made._backend = like._backend
        return made

    # ------------------------------------------------------------------------------------ a matrix

    @property
    def shape(self) -> torch.Size:
        """(B, H, Nq, Nk)."""
        lengths = self._inputs.lengths
        return torch.Size((lengths.batch, lengths.heads, lengths.queries, lengths.keys))

    @property
    def ndim(self) -> int:
        """4."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._inputs.compute

    @property
    def device(self) -> torch.device:
        """Where queries and keys are."""
        return self._inputs.query.device

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
        return f"Pattern({_sizes(self.shape)}, {self.dtype}, {self.device}, {self._backend.name}{known}; never stored)"

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
        value = self._broadcast("value", value, self.shape[3])
        if value.shape[1] == 1:
            value = value.expand(-1, self._inputs.key.shape[1], -1, -1)
        return operation.call(self._backend, self._problem, self._inputs_with(value), []).output

    def _broadcast(self, name: str, x: Tensor, length: int) -> Tensor:
        """`x` as ``(B, 1 | Hk | H, length, width)``."""
        heads = {1, self.shape[1], self._inputs.key.shape[1]}
        if not isinstance(x, Tensor) or x.dim() not in (2, 3, 4):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"{name} is {found}; expected a tensor (..., {length}, width) of 2 to 4 dimensions")
        full = x[(None,) * (4 - x.dim())]
        if full.shape[0] not in (1, self.shape[0]) or full.shape[1] not in heads or full.shape[2] != length:
            raise ShapeError(
                f"{name} has shape {tuple(x.shape)}; expected one that broadcasts to "
                f"({self.shape[0]}, {' | '.join(map(str, sorted(heads)))}, {length}, width)"
            )
        return full.expand(self.shape[0], -1, -1, -1)

    def _inputs_with(self, value: Tensor) -> Inputs:
        """Queries, keys and these values in one dtype; keys repeated where each query head has its own values."""
        dtype = torch.promote_types(self._inputs.query.dtype, value.dtype)
        query, key, value = (x.to(dtype) for x in (self._inputs.query, self._inputs.key, value))
        if value.shape[1] != key.shape[1]:
            key = key.repeat_interleave(value.shape[1] // key.shape[1], 1)
        return Inputs(query, key, value)

    # ------------------------------------------------------------------------------------ what rows are divided by

    @property
    def lse(self) -> Tensor:
        """The natural logarithm of what each row is divided by, ``(B, H, Nq)``. O(Nq Nk D) time, once."""
        if self._lse is None:
            self._ask([])
        assert self._lse is not None
        return self._lse

    @torch.no_grad()
    def _ask(self, statistics: Sequence[Statistic]) -> list[Tensors]:
        """These statistics; the lse, if it is not known yet, comes with them in one pass."""
        asked = check_all(statistics, self._inputs.lengths) if statistics else []
        if self._lse is None:
            inputs = Inputs(self._inputs.query, self._inputs.key, self._inputs.key[..., :1])
            forward = self._backend.forward(self._problem, inputs, asked, want_lse=True)
            self._lse = forward.lse
            return forward.results
        return self._backend.observe(self._problem, self._inputs, self._lse, asked, partial=self._partial)

    # ------------------------------------------------------------------------------------ by query

    def entropy(self) -> Tensor:
        """``-sum p ln p`` of each row, in nats, ``(B, H, Nq)``. O(Nq Nk D) time, O(N) memory."""
        return self._ask([Entropy()])[0][0]

    def max_weight(self) -> Tensor:
        """The largest weight of each row, ``(B, H, Nq)``. O(Nq Nk D) time, O(N) memory."""
        return self._ask([MaxWeight()])[0][0]

    def top_keys(self, k: int) -> TopKeysResult:
        """The k heaviest keys of each row, ``(B, H, Nq, k)`` each. O(Nq Nk D) time, O(N k) memory."""
        return TopKeysResult(*self._ask([TopKeys(k)])[0])

    def distance(self, offset: int | None = None) -> Tensor:
        """How far each row looks on average, in tokens, ``(B, H, Nq)``. O(Nq Nk D) time, O(N) memory.

        Args:
            offset: the key position of the first query; may be left out when Nq = Nk.
        """
        return self._ask([Distance(offset)])[0][0]

    def mass(self, groups: Tensor, count: int | None = None) -> Tensor:
        """The weight that each row gives each group of keys, ``(B, H, Nq, G)``. O(Nq Nk D) time, O(N G) memory.

        Args:
            groups: integers ``(Nk,)`` or ``(B, Nk)``, as of `saccade.statistics.Mass`.
            count: G; left out, one more than the largest number in `groups`.
        """
        return self._ask([Mass(groups, count)])[0][0]

    # ------------------------------------------------------------------------------------ by key, and as a map

    def received(self, by: Tensor | None = None, count: int | None = None) -> Tensor:
        """The weight that each key receives, ``(B, H, Nk)``, or from each group of queries ``(B, H, G, Nk)``.

        O(Nq Nk D) time, O(N G) memory.

        Args:
            by: integers ``(Nq,)`` or ``(B, Nq)``: the group of each query.
            count: G; left out, one more than the largest number in `by`.
        """
        return self._ask([Received(by, count)])[0][0]

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
            queries, keys: the rectangle; None for all.
        """
        return self._rectangle(queries, keys)._ask([Map(cells, reduce)])[0][0]

    def _rectangle(self, queries: slice | None, keys: slice | None) -> Pattern:
        if queries is None and keys is None:
            return self
        rows, columns = (
            _range(name, part, length)
            for name, part, length in zip(("queries", "keys"), (queries, keys), self.shape[2:], strict=True)
        )
        inputs = Inputs(
            self._inputs.query[:, :, rows], self._inputs.key[:, :, columns], self._inputs.key[:, :, columns]
        )
        problem = _restricted(self._problem, rows, columns, inputs.lengths)
        partial = self._partial or len(range(*columns.indices(self.shape[3]))) < self.shape[3]
        return Pattern._of(self, problem, inputs, self.lse[:, :, rows], partial=partial)

    # ------------------------------------------------------------------------------------ parts

    def head(self, head: int) -> Pattern:
        """The pattern of one head, ``(B, 1, Nq, Nk)``. A view."""
        return self._select(slice(None), _range("head", slice(*_one("head", head, self.shape[1])), self.shape[1]))

    def mean_heads(self) -> MeanPattern:
        """The mean of all heads, never stored either."""
        return MeanPattern(self)

    def _select(self, batch: Index, heads: Index) -> Pattern:
        """Some batch elements and heads, all of their queries and keys."""
        chosen = torch.arange(self.shape[1])[heads] if not isinstance(heads, int) else torch.tensor([heads])
        key_heads = _as_slice(chosen // self._inputs.group) if self._inputs.group > 1 else heads
        whole = len(chosen) == self.shape[1] and isinstance(heads, slice)
        query = self._inputs.query[batch][:, heads]
        key = self._inputs.key[batch] if whole else self._inputs.key[batch][:, key_heads]
        lse = None if self._lse is None else self._lse[batch][:, heads]
        return Pattern._of(
            self, _of_heads(self._problem, batch, heads), Inputs(query, key, key), lse, partial=self._partial
        )

    def __getitem__(self, index: Any) -> Tensor:
        """Entries of the pattern, as a tensor indexed so would give: ``A[0, 3]``, ``A[..., 10:20, :]``, ``A[0, :, [1, 5], 7]``.

        O(rows x columns x D) time and memory of the answer; the whole lse once. Two lists give all pairs of their entries,
        as ``A[:, :, i][..., j]`` would.

        Raises:
            IndexError: out of range, or more than four indices.
            ArgumentError: more than 2**27 entries.
        """
        parts = _spread(index, self.ndim)
        wanted = [_positions(part, length) for part, length in zip(parts, self.shape, strict=True)]
        _check_size([len(x) for x in wanted])
        batch, heads = (_as_slice(x) for x in wanted[:2])
        self.lse  # noqa: B018  once for all heads, not again for each selection
        chosen = self._select(batch, heads)
        window = chosen._window(*wanted[2:])
        return window[tuple(0 if isinstance(part, int) else slice(None) for part in parts)]

    @torch.no_grad()
    def _window(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The entries at some queries and keys, run by run of neighbours."""
        inputs = self._inputs
        runs = [_runs(x) for x in (rows, columns)]
        bands = [
            torch.cat([self._backend.window(self._problem, inputs, self.lse, i, j) for j in runs[1]], -1)
            for i in runs[0]
            if runs[1]
        ]
        return torch.cat(bands, 2) if bands else self.lse.new_zeros(*self.shape[:2], len(rows), len(columns))

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
        rows = pattern._broadcast("rows", rows, pattern.shape[2]).expand(-1, pattern.shape[1], -1, -1)
        problem, inputs = pattern._problem, pattern._inputs_with(rows.new_empty(*pattern._inputs.key.shape[:3], 1))
        bias = None if problem.bias is None else problem.bias.values
        return _TransposedProduct.apply(  # type: ignore[no-untyped-call,no-any-return]
            inputs.query, inputs.key, bias, problem.sinks, rows.to(inputs.query.dtype), pattern
        )


class _TransposedProduct(torch.autograd.Function):
    """A^T Y. With G its gradient, that of Y is A G, and that of the pattern Y G^T: what A G would have for gradient Y."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, bias: Tensor | None, sinks: Tensor | None, rows: Tensor, pattern: Pattern
    ) -> Tensor:
        ctx.save_for_backward(query, key, bias, sinks, rows)
        ctx.pattern = pattern
        inputs = Inputs(query, key, key)
        return pattern._backend.transposed(pattern._problem, inputs, pattern.lse, rows).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, bias, sinks, rows = ctx.saved_tensors
        leaves = [None if x is None else x.detach().requires_grad_() for x in (query, key, bias, sinks)]
        with torch.enable_grad():
            query, key, bias, sinks = leaves
            repeated = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            problem = ctx.pattern._problem.with_tensors(bias, sinks)
            output = operation.call(ctx.pattern._backend, problem, Inputs(query, repeated, grad), []).output
            found = iter(torch.autograd.grad(output, [x for x in leaves if x is not None], rows))
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
        return self._heads._ask([Received(by, count, over_heads=True)])[0][0][:, None] / self._heads.shape[1]

    def map(self, cells: int | tuple[int, int], *, queries: slice | None = None, keys: slice | None = None) -> Tensor:
        """As of `Pattern`, the mean of each cell: ``(B, 1, cells of queries, cells of keys)``."""
        part = self._heads._rectangle(queries, keys)
        return part._ask([Map(cells, "mean", over_heads=True)])[0][0][:, None]

    def __getitem__(self, index: Any) -> Tensor:
        """As of `Pattern`."""
        batch, head, rows, columns = _spread(index, 4)
        _positions(head, 1)
        mean = self._heads[batch if not isinstance(batch, int) else [batch], :, _listed(rows), _listed(columns)].mean(
            1, keepdim=True
        )
        return mean[tuple(0 if isinstance(part, int) else slice(None) for part in (batch, head, rows, columns))]

    def dense(self) -> Tensor:
        """As of `Pattern`."""
        return self[...]


@dataclass(frozen=True, eq=False)
class _MeanTransposed:
    heads: Pattern

    def __matmul__(self, rows: Tensor) -> Tensor:
        return (self.heads.mT @ rows).mean(1, keepdim=True)


# ---------------------------------------------------------------------------------------- parts of a problem


T = TypeVar("T")


def _of_heads(problem: Problem, batch: Any, heads: Any) -> Problem:
    """The problem of some batch elements and heads."""

    def part(x: Tensor) -> Tensor:
        x = x if x.shape[0] == 1 else x[batch]
        return x if x.shape[1] == 1 else x[:, heads]

    mask, bias, sinks = problem.mask, problem.bias, problem.sinks
    if isinstance(mask, Intervals):
        mask = Intervals(part(mask.starts), part(mask.stops), mask.keys)
    elif isinstance(mask, Dense):
        mask = Dense(part(mask.visible))
    values = None if bias is None else part(bias.values)
    return replace(problem, mask=mask).with_tensors(values, None if sinks is None else part(sinks))


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
    if isinstance(part, slice):
        return torch.arange(length)[part] if (part.step or 1) > 0 else torch.tensor(range(length)[part])
    chosen = torch.as_tensor(part).cpu()
    if chosen.dtype == torch.bool and chosen.shape == (length,):
        chosen = chosen.nonzero()[:, 0]
    if chosen.dim() > 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise IndexError(f"index of shape {tuple(chosen.shape)}, {chosen.dtype}: expected integers (n,)")
    chosen = chosen.reshape(-1).long()
    if len(chosen) and not -length <= int(chosen.min()) <= int(chosen.max()) < length:
        raise IndexError(f"index {part} is out of range for {length} entries")
    return torch.where(chosen < 0, chosen + length, chosen)


def _listed(part: Index) -> Index:
    return [part] if isinstance(part, int) else part


def _one(name: str, index: int, length: int) -> tuple[int, int]:
    if not -length <= index < length:
        raise IndexError(f"{name} {index} is out of range for {length}")
    return index % length, index % length + 1


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
