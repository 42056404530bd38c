"""What a backend is: two functions over one attention problem.

Arguments arrive checked: shapes fit, the mask is resolved, biases and statistics are fitted to the lengths, everything
lies on one device. A backend does exactly what the problem says, or says why it cannot (`refuses`) and is not chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from saccade.masks import Dense, Intervals, Lengths
from saccade.scores import Area, Problem
from saccade.statistics import Statistic, Tensors


@dataclass(frozen=True, eq=False)
class Inputs:
    """Queries, keys and values of one problem. H is a multiple of Hk; any strides.

    Attributes:
        query: ``(B, H, Nq, D)``.
        key: ``(B, Hk, Nk, D)``.
        value: ``(B, Hk, Nk, Dv)``.
        pages: with a cache in pages, int32 ``(B, n)``: then key and value are ``(P, Hk, S, D)`` and ``(P, Hk, S, Dv)``,
            and keys ``i * S`` to ``(i + 1) * S`` of a batch element are those of page ``pages[b, i]``; Nk = n S.
        lengths: B, H, Nq and Nk.
    """

    query: Float[Tensor, "B H Nq D"]
    key: Float[Tensor, "B Hk Nk D"] | Float[Tensor, "P Hk S D"]
    value: Float[Tensor, "B Hk Nk Dv"] | Float[Tensor, "P Hk S Dv"]
    pages: Int32[Tensor, "B n"] | None = None
    lengths: Lengths = field(init=False)

    def __post_init__(self) -> None:  # no cached_property: torch.compile cannot trace its lock
        batch, heads, queries, _ = self.query.shape
        keys = self.key.shape[2] * (1 if self.pages is None else self.pages.shape[1])
        object.__setattr__(self, "lengths", Lengths(batch, heads, queries, keys, self.query.device))

    def gathered(self) -> Inputs:
        """The same with keys and values in one piece: a copy of O(Nk D) if they lie in pages."""
        if self.pages is None:
            return self

        def gather(x: Tensor) -> Tensor:
            assert self.pages is not None
            return x[self.pages.long()].transpose(1, 2).flatten(2, 3)

        return Inputs(self.query, gather(self.key), gather(self.value))

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.query.shape[1] // max(self.key.shape[1], 1)

    @property
    def compute(self) -> torch.dtype:
        """The dtype of scores, sums and statistics: float64 for float64 inputs, else float32."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @property
    def output_shape(self) -> torch.Size:
        """(B, H, Nq, Dv)."""
        return torch.Size((*self.query.shape[:3], self.value.shape[3]))

    def empty_output(self) -> Float[Tensor, "B H Nq Dv"]:
        """Memory for the output. Where queries lie as (B, Nq, H, D), so does it: so the next layer reads it."""
        batch, heads, queries, width = self.output_shape
        if heads > 1 and queries > 1 and self.query.stride(1) < self.query.stride(2):
            return self.query.new_empty(batch, queries, heads, width).transpose(1, 2)
        return self.query.new_empty(batch, heads, queries, width)


@dataclass(frozen=True, eq=False)
class Forward:
    """What a forward pass returns.

    Attributes:
        output: ``(B, H, Nq, Dv)`` in the inputs' dtype.
        lse: ``(B, H, Nq)`` in the compute dtype; empty when neither it nor a gradient was wanted.
        results: each asked statistic's tensors, in the order asked.
    """

    output: Float[Tensor, "B H Nq Dv"]
    lse: Tensor
    results: list[Tensors]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of a scalar with respect to what formed the pattern; None where there is no such input."""

    query: Float[Tensor, "B H Nq D"]
    key: Float[Tensor, "B Hk Nk D"]
    value: Float[Tensor, "B Hk Nk Dv"]
    bias: Tensor | None
    sinks: Tensor | None


# Computes the output from queries, keys and values like those it was prepared for, or None if it cannot.
Prepared = Callable[[Tensor, Tensor, Tensor], Tensor | None]


class Backend(ABC):
    """One way to compute attention."""

    name: str

    def refuses(self, problem: Problem, inputs: Inputs) -> str | None:
        """Why this backend cannot serve the problem, or None if it can."""
        del problem, inputs
        return None

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared | None:
        """A short way through later calls with inputs of these shapes, strides and dtype, if there is one.

        For calls so small that looking at their arguments takes longer than attention itself.
        """
        del problem, inputs
        return None

    @abstractmethod
    def forward(self, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic], *, want_lse: bool) -> Forward:
        """The output, and the statistics asked for."""

    @abstractmethod
    def observe(
        self,
        problem: Problem,
        inputs: Inputs,
        lse: Float[Tensor, "B H Nq"],
        statistics: Sequence[Statistic],
        *,
        partial: bool = False,
    ) -> list[Tensors]:
        """Statistics of a pattern whose lse is known, from queries and keys alone; values are not looked at.

        `partial`: the pattern is a part of one with more keys, whose lse this is.
        """

    @abstractmethod
    def transposed(
        self, problem: Problem, inputs: Inputs, lse: Float[Tensor, "B H Nq"], rows: Float[Tensor, "B H Nq Y"]
    ) -> Float[Tensor, "B H Nk Y"]:
        """The product of the transposed pattern with `rows`, in the compute dtype, from queries, keys and the lse."""

    def window(
        self, problem: Problem, inputs: Inputs, lse: Float[Tensor, "B H Nq"], queries: slice, keys: slice
    ) -> Float[Tensor, "B H rows columns"]:
        """The entries of the pattern at some queries and keys, in the compute dtype: exp(s - lse), 0 where hidden.

        Memory is that of the window. Weights are no better than the lse: half of its last digit in float32 is 2e-6 of a
        weight at 64 and 2e-5 at 512.
        """
        area = Area(slice(0, inputs.lengths.batch), slice(0, inputs.lengths.heads), queries, keys)
        s = scores(problem, inputs, area)
        base = lse[:, :, queries, None].to(s.dtype)
        return (s - base.masked_fill(base == -torch.inf, 0.0)).exp()

    @abstractmethod
    def backward(
        self,
        problem: Problem,
        inputs: Inputs,
        forward: Forward,
        grad_output: Float[Tensor, "B H Nq Dv"],
        grad_lse: Float[Tensor, "B H Nq"],
        *,
        want_bias: bool = True,
    ) -> Gradients:
        """Gradients, from those of the output and of the lse; that of the bias only if it is wanted."""


def scores(problem: Problem, inputs: Inputs, area: Area) -> Tensor:
    """The scores s = scale * q·k, softcapped, biased, -inf where hidden, of an area: ``(B, H, rows, columns)``.

    An infinite query or key makes the scores it touches NaN.
    """
    group = inputs.query.shape[1] // max(inputs.key.shape[1], 1)
    query = poison(inputs.query[:, :, area.rows].to(inputs.compute))
    key = poison(inputs.key[:, :, area.keys].to(inputs.compute)).repeat_interleave(group, 1)
    s = problem.scale * (query @ key.mT)
    if problem.softcap is not None:
        s = problem.softcap * torch.tanh(s / problem.softcap)
    if problem.bias is not None:
        s = s + problem.bias.tile(area).to(s.dtype)
    if problem.mask is None:
        return s
    if isinstance(problem.mask, Dense):
        return s.masked_fill(~area.of(problem.mask.visible, queries=True, keys=True), -torch.inf)
    starts, stops = (area.of(x, queries=True) for x in (problem.mask.starts, problem.mask.stops))
    visible = Intervals(starts, stops, problem.mask.keys).between(area.key_positions(s.device).int())
    return s.masked_fill(~visible, -torch.inf)


def sink_gradient(problem: Problem, forward: Forward, grad_output: Tensor, grad_lse: Tensor) -> Tensor | None:
    """The gradient of the sinks: a sink holds the weight w = exp(sink - lse) and has no value, so it is -w delta.

    Here delta = sum(dO * O) less the gradient of the lse (FlashAttention-2, arXiv 2307.08691, algorithm 2).
    """
    sinks = problem.sinks
    if sinks is None:
        return None
    lse = forward.lse
    delta = (grad_output.to(lse.dtype) * forward.output.to(lse.dtype)).sum(-1) - grad_lse.to(lse.dtype)
    held = (sinks.to(lse.dtype)[..., None] - lse.masked_fill(lse == -torch.inf, 0.0)).exp()
    return -(held * delta).sum(-1).sum_to_size(sinks.shape).to(sinks.dtype)


def split_heads(x: Tensor, key_heads: int) -> Tensor:
    """``(b, H | 1, ...)`` as ``(b, Hk | 1, group | 1, ...)``: query heads beside the key head they share. A view."""
    if x.shape[1] == 1:
        return x[:, :, None]
    return x.view(x.shape[0], key_heads, x.shape[1] // key_heads, *x.shape[2:])


def unit_stride(x: Tensor) -> Tensor:
    """`x` itself if its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def shared_stride(x: Tensor, dim: int) -> int:
    """The stride of a dimension; 0 where it has size 1 and serves every index."""
    return 0 if x.shape[dim] == 1 else x.stride(dim)


def poison(x: Tensor) -> Tensor:
    """`x` with infinities as NaN, so that whatever they touch comes out as NaN and never as a plausible number."""
    return torch.where(x.isfinite(), x, torch.nan)
