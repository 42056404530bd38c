"""What a backend is: two functions over one attention problem.

Arguments arrive checked: shapes fit, the mask is resolved, biases and statistics are fitted to the lengths, everything
lies on one device. A backend does exactly what the problem says, or says why it cannot (`refuses`) and is not chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.masks import Lengths
from saccade.scores import Problem
from saccade.statistics import Statistic, Tensors


@dataclass(frozen=True, eq=False)
class Inputs:
    """Queries, keys and values of one problem. H is a multiple of Hk; any strides.

    Attributes:
        query: ``(B, H, Nq, D)``.
        key: ``(B, Hk, Nk, D)``.
        value: ``(B, Hk, Nk, Dv)``.
    """

    query: Float[Tensor, "B H Nq D"]
    key: Float[Tensor, "B Hk Nk D"]
    value: Float[Tensor, "B Hk Nk Dv"]

    @property
    def lengths(self) -> Lengths:
        """B, H, Nq and Nk."""
        batch, heads, queries, _ = self.query.shape
        return Lengths(batch, heads, queries, self.key.shape[2], self.query.device)

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
        """Memory for the output. Where queries lie as (B, Nq, H, D), so does it: the next layer reads it in that order."""
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


class Backend(ABC):
    """One way to compute attention."""

    name: str

    def refuses(self, problem: Problem, inputs: Inputs) -> str | None:
        """Why this backend cannot serve the problem, or None if it can."""
        del problem, inputs
        return None

    @abstractmethod
    def forward(self, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic], *, want_lse: bool) -> Forward:
        """The output, and the statistics asked for."""

    @abstractmethod
    def backward(
        self,
        problem: Problem,
        inputs: Inputs,
        forward: Forward,
        grad_output: Float[Tensor, "B H Nq Dv"],
        grad_lse: Float[Tensor, "B H Nq"],
    ) -> Gradients:
        """Gradients, from those of the output and of the lse."""


def sink_gradient(problem: Problem, forward: Forward, grad_output: Tensor, grad_lse: Tensor) -> Tensor | None:
    """The gradient of the sinks: one holds the weight exp(sink - lse) and has no value, so it is minus that times delta.

    delta = sum(dO * O) less the gradient of the lse (FlashAttention-2, arXiv 2307.08691, algorithm 2).
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


def poison(x: Tensor) -> Tensor:
    """`x` with infinities as NaN, so that whatever they touch comes out as NaN and never as a plausible number."""
    return torch.where(x.isfinite(), x, torch.nan)
