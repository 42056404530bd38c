"""How a score is formed, and everything that makes one attention problem.

    s = scale * q·k
    s = softcap * tanh(s / softcap)      if softcap           (Gemma 2, arXiv 2408.00118)
    s = s + bias
    s = -inf                             where the mask hides the key
    p = exp(s - lse)                     lse = ln(sum exp(s) + exp(sink))

`reference.py` computes exactly this. The biases here know three things each: their value on a tile of the pattern,
how a gradient on that tile flows back, and how they are named to the operator (`code`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from saccade.errors import ShapeError
from saccade.masks import Dense, Intervals, check_offset

if TYPE_CHECKING:
    from saccade.masks import Lengths

Columns = slice | Tensor


@dataclass(frozen=True)
class Area:
    """A rectangle of the pattern: a range of batch elements, heads and queries against some keys.

    Attributes:
        batch, heads, rows: ranges of batch elements, query heads and queries.
        keys: the keys, a range, or positions ``(n,)`` when they are gathered from several ranges.
    """

    batch: slice
    heads: slice
    rows: slice
    keys: Columns

    def query_positions(self, device: torch.device) -> Tensor:
        """Index of each query, ``(rows, 1)``."""
        return torch.arange(self.rows.start, self.rows.stop, device=device)[:, None]

    def key_positions(self, device: torch.device) -> Tensor:
        """Index of each key, ``(n,)``."""
        if isinstance(self.keys, Tensor):
            return self.keys
        return torch.arange(self.keys.start, self.keys.stop, device=device)

    def of(self, x: Tensor, *, queries: bool = False, keys: bool = False) -> Tensor:
        """The part of ``x (B | 1, H | 1, ...)`` that falls in this area; dimensions of size 1 stay whole.

        Args:
            x: any tensor whose first dimensions are batch and heads.
            queries: its third dimension counts queries (or is 1).
            keys: its last dimension counts keys (or is 1).
        """
        x = x if x.shape[0] == 1 else x[self.batch]
        x = x if x.shape[1] == 1 else x[:, self.heads]
        if queries and x.shape[2] != 1:
            x = x[:, :, self.rows]
        if keys and x.shape[-1] != 1:
            x = x[..., self.keys]
        return x


class Bias(ABC):
    """Something added to every score. Its `values` may require a gradient."""

    values: Tensor
    offset: int | None = None
    kind: ClassVar[str]

    @abstractmethod
    def check(self, lengths: Lengths) -> Bias:
        """This bias fitted to the lengths: values as ``(B | 1, H | 1, ...)``, offset known.

        Raises:
            ShapeError: the values do not fit, or Nq != Nk and no offset was said.
        """

    @abstractmethod
    def tile(self, area: Area) -> Tensor:
        """The bias on one area, broadcastable to ``(b, h, rows, n)``."""

    @abstractmethod
    def accumulate(self, grad: Tensor, grad_scores: Tensor, area: Area) -> None:
        """Add to `grad`, shaped as `values`, what the scores' gradient ``(b, h, rows, n)`` on an area gives."""

    def numbers(self) -> list[int]:
        """The integers that describe this bias besides its values."""
        return [self.offset or 0]


def _need_offset(name: str, offset: int | None, lengths: Lengths) -> int:
    if offset is None and lengths.queries != lengths.keys:
        raise ShapeError(
            f"{name} is ambiguous for Nq = {lengths.queries} and Nk = {lengths.keys}: say offset=, the key position "
            f"of the first query ({lengths.keys - lengths.queries} if the last query stands at the last key)"
        )
    if offset is not None:
        check_offset(f"{name} offset", offset)
    return offset or 0


def _per_head(name: str, values: Tensor, lengths: Lengths) -> Tensor:
    """Values ``([B | 1,] H | 1, ...)`` checked against the lengths."""
    if values.shape[0] not in (1, lengths.batch) or values.shape[1] not in (1, lengths.heads):
        raise ShapeError(
            f"{name} has {values.shape[0]} x {values.shape[1]} (batch x heads); "
            f"expected (1 | {lengths.batch}) x (1 | {lengths.heads})"
        )
    return values.to(lengths.device)


def _sum_to(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum `x` over the dimensions that `shape` broadcasts."""
    return x.sum_to_size(shape)


@dataclass(frozen=True, eq=False)
class DenseBias(Bias):
    """A bias tensor ``(B | 1, H | 1, Nq | 1, Nk | 1)``, added by broadcasting."""

    values: Tensor
    kind: ClassVar[str] = "dense"

    def check(self, lengths: Lengths) -> DenseBias:
        """See `Bias.check`."""
        values = self.values[(None,) * max(0, 4 - self.values.dim())]
        wanted = (lengths.batch, lengths.heads, lengths.queries, lengths.keys)
        if values.dim() != 4 or any(n not in (1, w) for n, w in zip(values.shape, wanted, strict=True)):  # noqa: PLR2004
            raise ShapeError(
                f"bias has shape {tuple(self.values.shape)}; expected one that broadcasts to (B, H, Nq, Nk) = {wanted}"
            )
        return replace(self, values=values.to(lengths.device))

    def tile(self, area: Area) -> Tensor:
        """See `Bias.tile`."""
        return area.of(self.values, queries=True, keys=True)

    def accumulate(self, grad: Tensor, grad_scores: Tensor, area: Area) -> None:
        """See `Bias.accumulate`."""
        part = area.of(grad, queries=True)
        part = _sum_to(grad_scores, torch.Size([*part.shape[:-1], grad_scores.shape[-1]]))
        target = area.of(grad, queries=True)
        if grad.shape[-1] == 1:
            target += part.sum(-1, keepdim=True)
        elif isinstance(area.keys, slice):
            target[..., area.keys] += part
        else:
            target.index_add_(-1, area.keys, part)


@dataclass(frozen=True, eq=False)
class ALiBi(Bias):
    """Attention with linear biases: ``-slope * |i + offset - j|`` (Press et al., arXiv 2108.12409).

    Args:
        slopes: one for each head, ``(H,)`` or ``(B | 1, H | 1)``. `alibi_slopes` gives the paper's.
        offset: the key position of the first query; may be left out when Nq = Nk.
    """

    values: Tensor
    offset: int | None = None
    kind: ClassVar[str] = "alibi"

    def check(self, lengths: Lengths) -> ALiBi:
        """See `Bias.check`."""
        slopes = self.values if self.values.dim() != 1 else self.values[None]
        if slopes.dim() != 2:  # noqa: PLR2004
            raise ShapeError(f"ALiBi slopes have shape {tuple(slopes.shape)}; expected (H,) or (B, H)")
        offset = _need_offset("ALiBi", self.offset, lengths)
        return ALiBi(_per_head("ALiBi slopes", slopes, lengths), offset)

    def _distance(self, area: Area) -> Tensor:
        """|i + offset - j|, ``(rows, n)``, in float32 at least: bfloat16 cannot count beyond 256."""
        dtype = torch.promote_types(self.values.dtype, torch.float32)
        i, j = area.query_positions(self.values.device), area.key_positions(self.values.device)
        return ((i + (self.offset or 0)).to(dtype) - j.to(dtype)).abs_()

    def tile(self, area: Area) -> Tensor:
        """See `Bias.tile`."""
        return self._distance(area) * -area.of(self.values)[..., None, None]

    def accumulate(self, grad: Tensor, grad_scores: Tensor, area: Area) -> None:
        """See `Bias.accumulate`."""
        by_head = -(grad_scores * self._distance(area)).sum((-2, -1))
        target = area.of(grad)
        target += _sum_to(by_head, target.shape)


def alibi_slopes(heads: int) -> Tensor:
    """The slopes of the ALiBi paper (arXiv 2108.12409, section 3), float32 ``(H,)``.

    For a power of two they fall geometrically from ``2 ** (-8 / H)``; otherwise every other slope of the next power
    of two fills up the list.

    >>> alibi_slopes(8)[:3].tolist()
    [0.5, 0.25, 0.125]
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 / power * torch.arange(1, power + 1))
    between = 2.0 ** (-4.0 / power * torch.arange(1, 2 * (heads - power) + 1, 2))
    return torch.cat([slopes, between])


@dataclass(frozen=True, eq=False)
class RelativeBias(Bias):
    """One value for each relative position ``j - (i + offset)`` (T5, arXiv 1910.10683, section 2.1).

    Position r takes ``values[..., r - first]``; positions beyond either end take the value at that end, so that a bias
    that saturates, as T5's buckets do, needs only as many values as it has distinct positions.

    Args:
        values: ``(M,)``, ``(H | 1, M)`` or ``(B | 1, H | 1, M)``.
        first: the relative position of ``values[..., 0]``, usually negative (keys before the query).
        offset: the key position of the first query; may be left out when Nq = Nk.
    """

    values: Tensor
    first: int
    offset: int | None = None
    kind: ClassVar[str] = "relative"

    def check(self, lengths: Lengths) -> RelativeBias:
        """See `Bias.check`."""
        values = self.values[(None,) * max(0, 3 - self.values.dim())]
        if values.dim() != 3 or values.shape[-1] == 0:  # noqa: PLR2004
            raise ShapeError(f"relative bias has shape {tuple(self.values.shape)}; expected ([[B,] H,] M) with M >= 1")
        offset = _need_offset("relative bias", self.offset, lengths)
        return RelativeBias(_per_head("relative bias", values, lengths), self.first, offset)

    def numbers(self) -> list[int]:
        """See `Bias.numbers`."""
        return [self.offset or 0, self.first]

    def _index(self, area: Area) -> Tensor:
        i, j = area.query_positions(self.values.device), area.key_positions(self.values.device)
        return (j - i - (self.offset or 0) - self.first).clamp(0, self.values.shape[-1] - 1)

    def tile(self, area: Area) -> Tensor:
        """See `Bias.tile`."""
        return area.of(self.values)[..., self._index(area)]

    def accumulate(self, grad: Tensor, grad_scores: Tensor, area: Area) -> None:
        """See `Bias.accumulate`."""
        target = area.of(grad)
        part = _sum_to(grad_scores, torch.Size([*target.shape[:-1], *grad_scores.shape[-2:]]))
        # Thousands of entries fall on the ends: float32 would lose digits adding them one by one.
        sums = torch.zeros_like(target, dtype=torch.float64)
        sums.index_add_(-1, self._index(area).flatten(), part.flatten(-2).double())
        target += sums


def as_bias(bias: Bias | Tensor | None) -> Bias | None:
    """A tensor as `DenseBias`; a bias or None as it is."""
    return DenseBias(bias) if isinstance(bias, Tensor) else bias


def decode_bias(kind: str, values: Tensor | None, numbers: list[int]) -> Bias | None:
    """The bias that `Bias.kind`, its values and `Bias.numbers` describe; the operator receives it in this form."""
    if values is None:
        return None
    if kind == ALiBi.kind:
        return ALiBi(values, numbers[0])
    if kind == RelativeBias.kind:
        return RelativeBias(values, first=numbers[1], offset=numbers[0])
    assert kind == DenseBias.kind
    return DenseBias(values)


@dataclass(frozen=True, eq=False)
class Problem:
    """One attention problem: all that forms the pattern besides queries and keys, checked and on one device.

    Attributes:
        scale: factor of the dot products.
        mask: which keys each query sees; None for all.
        softcap: bound of the scores; None for none.
        bias: added to the scores; None for none.
        sinks: one logit for each head ``(B | 1, H)`` that joins the softmax without a key; None for none.
    """

    scale: float
    mask: Intervals | Dense | None = None
    softcap: float | None = None
    bias: Bias | None = None
    sinks: Tensor | None = None

    def with_tensors(self, values: Tensor | None, sinks: Tensor | None) -> Problem:
        """The same problem with other bias values and sinks (of the same shapes)."""
        bias = None
        if self.bias is not None:
            bias = decode_bias(self.bias.kind, values, self.bias.numbers())
        return replace(self, bias=bias, sinks=sinks)

    def select(self, batch: Any, heads: Any) -> Problem:
        """The problem of some batch elements and heads: a slice or a list of positions each."""

        def part(x: Tensor) -> Tensor:
            x = x if x.shape[0] == 1 else x[batch]
            return x if x.shape[1] == 1 else x[:, heads]

        mask, bias, sinks = self.mask, self.bias, self.sinks
        if isinstance(mask, Intervals):
            mask = Intervals(part(mask.starts), part(mask.stops), mask.keys)
        elif isinstance(mask, Dense):
            mask = Dense(part(mask.visible))
        values = None if bias is None else part(bias.values)
        return replace(self, mask=mask).with_tensors(values, None if sinks is None else part(sinks))
