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


def split_heads(x: Tensor, key_heads: int) -> Tensor:
    """``(b, H | 1, ...)`` as ``(b, Hk | 1, group | 1, ...)``: query heads beside the key head they share. A view."""
    if x.shape[1] == 1:
        return x[:, :, None]
    return x.view(x.shape[0], key_heads, x.shape[1] // key_heads, *x.shape[2:])


def poison(x: Tensor) -> Tensor:
    """`x` with infinities as NaN, so that whatever they touch comes out as NaN and never as a plausible number."""
    return torch.where(x.isfinite(), x, torch.nan)
