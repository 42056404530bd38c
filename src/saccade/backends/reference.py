"""The formula, literally: the oracle that every other backend is tested against.

The whole pattern is stored, Nq x Nk for each head, in float32 (float64 for float64 inputs), and every statistic is
computed from it by its definition. Gradients come from PyTorch's autograd of these same lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saccade.backends.contract import Backend, Forward, Gradients, Inputs, scores
from saccade.masks import Lengths
from saccade.scores import Area, Problem
from saccade.statistics import (
    Distance,
    Entropy,
    LogSumExp,
    Map,
    Mass,
    MaxWeight,
    Received,
    Statistic,
    Tensors,
    TopKeys,
    cell_bounds,
)


def pattern(problem: Problem, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The pattern A ``(B, H, Nq, Nk)`` and its lse ``(B, H, Nq)``: A = softmax(s, sink) without the sink's column."""
    inputs = Inputs(query, key, key)
    s = scores(problem, inputs, _everything(inputs.lengths))
    hidden = s == -torch.inf
    logits = s
    if problem.sinks is not None:
        column = problem.sinks.to(s.dtype)[..., None, None]
        logits = torch.cat([s, column.expand(*s.shape[:-1], 1)], -1)
    blind = (logits == -torch.inf).all(-1, keepdim=True)
    # A softmax over nothing would be NaN: let such a row pass through as zeros, and set its results below.
    logits = logits.masked_fill(blind, 0.0)
    lse = torch.logsumexp(logits, -1).masked_fill(blind[..., 0], -torch.inf)
    return torch.softmax(logits, -1)[..., : s.shape[-1]].masked_fill(hidden, 0.0), lse


def _weighted_values(problem: Problem, a: Tensor, value: Tensor, lengths: Lengths) -> Tensor:
    """A @ V. A value that is not finite makes NaN of the outputs that see its key, and of no other."""
    value = value.repeat_interleave(lengths.heads // max(value.shape[1], 1), 1)
    bad = ~value.isfinite()
    out = a @ value.masked_fill(bad, 0.0)
    if not bool(bad.any()):
        return out
    seen = torch.ones_like(a) if problem.mask is None else problem.mask.to_dense(lengths).to(a)
    return out.masked_fill(seen.expand_as(a) @ bad.to(a) > 0, torch.nan)


def _everything(lengths: Lengths) -> Area:
    return Area(slice(0, lengths.batch), slice(0, lengths.heads), slice(0, lengths.queries), slice(0, lengths.keys))


def _entropy(a: Tensor, _: Statistic) -> Tensors:
    return (-torch.special.xlogy(a, a).sum(-1),)


def _max_weight(a: Tensor, _: Statistic) -> Tensors:
    return (a.amax(-1) if a.shape[-1] else a.sum(-1),)


def _top_keys(a: Tensor, statistic: TopKeys) -> Tensors:
    weights, indices = a.sort(dim=-1, descending=True, stable=True)
    missing = max(0, statistic.k - a.shape[-1])
    weights, indices = (torch.nn.functional.pad(x[..., : statistic.k], (0, missing)) for x in (weights, indices))
    return indices.where(weights > 0, -1), weights


def _distance(a: Tensor, statistic: Distance) -> Tensors:
    i = torch.arange(a.shape[-2], device=a.device)[:, None] + (statistic.offset or 0)
    return ((a * (i - torch.arange(a.shape[-1], device=a.device)).abs()).sum(-1),)


def _mass(a: Tensor, statistic: Mass) -> Tensors:
    groups = statistic.groups[:, None, None]
    count = statistic.count or 0
    return (torch.stack([(a * (groups == g)).sum(-1) for g in range(max(count, 1))], -1)[..., :count],)


def _received(a: Tensor, statistic: Received) -> Tensors:
    if statistic.over_heads:
        a = a.sum(1, keepdim=True)
        return (_received(a, dataclasses.replace(statistic, over_heads=False))[0][:, 0],)
    if statistic.by is None:
        return (a.sum(-2),)
    groups = statistic.by[:, None, :, None]
    count = statistic.count or 0
    return (torch.stack([a.where(groups == g, 0.0).sum(-2) for g in range(max(count, 1))], 2)[:, :, :count],)


def _map(a: Tensor, statistic: Map) -> Tensors:
    lengths = Lengths(a.shape[0], a.shape[1], a.shape[2], a.shape[3])
    rows, columns = (
        cell_bounds(n, cells).tolist() for n, cells in zip(a.shape[2:], statistic.grid(lengths), strict=True)
    )
    reductions: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}
    if statistic.over_heads:
        a = reductions[statistic.reduce](a, dim=1, keepdim=True)
    reduce = reductions[statistic.reduce]
    result = a.new_zeros(*a.shape[:2], len(rows) - 1, len(columns) - 1)
    for i in range(len(rows) - 1):
        for j in range(len(columns) - 1):
            cell = a[..., rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
            result[..., i, j] = reduce(cell, dim=(-2, -1))
    return (result[:, 0] if statistic.over_heads else result,)


_FORMULAS: dict[type[Statistic], Callable[..., Tensors]] = {
    LogSumExp: lambda *_: (),
    Entropy: _entropy,
    MaxWeight: _max_weight,
    TopKeys: _top_keys,
    Distance: _distance,
    Mass: _mass,
    Received: _received,
    Map: _map,
}


class Reference(Backend):
    """Stores the whole pattern; for tests and for short texts."""

    name = "reference"

    def forward(self, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic], *, want_lse: bool) -> Forward:
        """See `Backend.forward`. O(Nq Nk) memory for each head."""
        del want_lse
        inputs = inputs.gathered()
        query, key, value = (x.to(inputs.compute) for x in (inputs.query, inputs.key, inputs.value))
        a, lse = pattern(problem, query, key)
        output = inputs.empty_output().copy_(_weighted_values(problem, a, value, inputs.lengths))
        return Forward(output, lse, [_FORMULAS[type(statistic)](a, statistic) for statistic in statistics])

    def observe(
        self, problem: Problem, inputs: Inputs, lse: Tensor, statistics: Sequence[Statistic], *, partial: bool = False
    ) -> list[Tensors]:
        """See `Backend.observe`. The lse is computed again, if it can be."""
        if partial:
            a = self.window(problem, inputs, lse, slice(0, inputs.lengths.queries), slice(0, inputs.lengths.keys))
        else:
            a, _ = pattern(problem, inputs.query.to(inputs.compute), inputs.key.to(inputs.compute))
        return [_FORMULAS[type(statistic)](a, statistic) for statistic in statistics]

    def transposed(self, problem: Problem, inputs: Inputs, lse: Tensor, rows: Tensor) -> Tensor:
        """See `Backend.transposed`. The lse is computed again."""
        del lse
        a, _ = pattern(problem, inputs.query.to(inputs.compute), inputs.key.to(inputs.compute))
        return a.mT @ rows.to(inputs.compute)

    def backward(
        self,
        problem: Problem,
        inputs: Inputs,
        forward: Forward,
        grad_output: Tensor,
        grad_lse: Tensor,
        *,
        want_bias: bool = True,
    ) -> Gradients:
        """See `Backend.backward`. The forward pass again, under autograd."""
        query, key, value = (x.detach().requires_grad_() for x in (inputs.query, inputs.key, inputs.value))
        bias = None if problem.bias is None else problem.bias.values.detach().requires_grad_(want_bias)
        sinks = None if problem.sinks is None else problem.sinks.detach().requires_grad_()
        with torch.enable_grad():
            again = problem.with_tensors(bias, sinks)
            a, lse = pattern(again, query.to(inputs.compute), key.to(inputs.compute))
            output = _weighted_values(again, a, value.to(inputs.compute), inputs.lengths)
            # A row that sees nothing has a constant lse of -inf: no gradient passes there.
            lse = lse.masked_fill(forward.lse == -torch.inf, 0.0)
            leaves = [x for x in (query, key, value, bias, sinks) if x is not None and x.requires_grad]
            losses, weights = [output, lse], [grad_output.to(output), grad_lse.to(lse)]
            found = torch.autograd.grad(losses, leaves, weights, allow_unused=True)
        grads = iter(_or_zeros(grad, leaf) for grad, leaf in zip(found, leaves, strict=True))
        return Gradients(
            next(grads),
            next(grads),
            next(grads),
            None if bias is None or not want_bias else next(grads),
            None if sinks is None else next(grads),
        )


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
