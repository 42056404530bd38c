"""Attention in tiles of PyTorch operations: any device, linear memory, forward and backward.

The pattern is computed a *panel* at a time: a block of queries against every key it looks at, or against as many as fit the
workspace. A panel that holds whole rows is normalised by one fused softmax and is then exact, so that statistics are read
off it in the same pass. Rows too long for the workspace are joined panel by panel through their log-sum-exp, and a second
pass, with the final lse known, reads the statistics. (An online softmax over small tiles, as a compiled kernel would
do it, loses here: each pass over a tile is a separate PyTorch call.)

Query heads that share a key head are rows of the same panel, so grouped queries never repeat keys in memory. float16 and
bfloat16 are computed in float32: keys and values are converted once, O(N D).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.backends.contract import Backend, Forward, Gradients, Inputs, poison, split_heads
from saccade.backends.schedule import Block, Part, Piece, plan
from saccade.masks import Dense, Intervals, Lengths
from saccade.scores import Area, Columns, Problem
from saccade.statistics import Statistic, Tensors, Tile

# Scores in one panel: two float32 workspaces of this size are 16 MiB.
PANEL = 1 << 21

# Rows of a panel. 256 keep the matrix products efficient while a panel of 2,048 keys stays in a second-level cache.
ROWS = 256


@dataclass(frozen=True, eq=False)
class _Operands:
    """The inputs as the tiles use them, in the compute dtype.

    Attributes:
        query: ``(B, Hk, group, Nq, D)``, a view of the input in its own dtype.
        key: ``(B, Hk, Nk, D)``; infinities are NaN.
        value: ``(B, Hk, Nk, Dv)``; what is not finite is 0.
        bad_values: for every value that is not finite 1, else 0, ``(B, Hk, Nk, Dv)``; None if all are finite.
        finite: all queries and keys are finite.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bad_values: Tensor | None
    finite: bool

    @classmethod
    def of(cls, inputs: Inputs) -> _Operands:
        query = split_heads(inputs.query, inputs.key.shape[1])
        key, value = inputs.key.to(inputs.compute), inputs.value.to(inputs.compute)
        finite = _all_finite(query) and _all_finite(key)
        if not finite:
            query, key = poison(query), poison(key)
        bad = None
        if not _all_finite(value):
            bad = (~value.isfinite()).to(value.dtype)
            value = value.masked_fill(bad > 0, 0.0)
        return cls(query, key, value, bad, finite)


def _all_finite(x: Tensor) -> bool:
    # The largest magnitude is NaN or infinite if any entry is: one pass, no temporary.
    return x.numel() == 0 or bool(torch.linalg.vector_norm(x, torch.inf).isfinite())


@dataclass(frozen=True, eq=False)
class _Panel:
    """A block of queries of a few heads against one portion of its keys.

    Attributes:
        batch: the batch element.
        heads: key heads, a range; the panel has ``group`` times as many query heads.
        block: the queries.
        pieces: the keys.
        area: the same in terms of the whole pattern.
    """

    batch: int
    heads: slice
    block: Block
    pieces: tuple[Piece, ...]
    area: Area

    @property
    def keys(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)

    def of_keys(self, x: Tensor) -> Tensor:
        """This panel's rows ``(h, n, d)`` of ``x (B, Hk, Nk, d)``: a view unless they come from several ranges."""
        return x[self.batch, self.heads][:, self.area.keys]


class _Run:
    """One problem on its way through the panels: operands, schedule and workspaces."""

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        self.problem = problem
        self.lengths: Lengths = inputs.lengths
        self.group = inputs.group
        self.dtype = inputs.compute
        self.operands = _Operands.of(inputs)
        sizes = [max(16, ROWS // max(self.group, 1)), max(16, ROWS // 4 // max(self.group, 1))]
        self.parts = plan(problem.mask, self.lengths, inputs.key.shape[1], sizes)
        self._workspaces: dict[str, Tensor] = {}
        self._hidden: dict[tuple[object, ...], Tensor] = {}

    # ------------------------------------------------------------------------------------ walking

    def blocks(self) -> Iterator[tuple[Block, int, slice, list[_Panel]]]:
        """Every block of queries with a range of heads and the panels that together hold its rows.

        Heads are the inner loop, so that what the mask hides in a block is worked out once for all of them.
        """
        for part in self.parts:
            for block in part.blocks:
                self._hidden.clear()
                rows = (block.rows.stop - block.rows.start) * self.group
                chunks = block.chunks(max(PANEL // max(rows, 1), 1))
                for batch, heads in self._lanes(part, block, rows):
                    yield block, batch, heads, [self._panel(batch, heads, block, chunk) for chunk in chunks]

    def _lanes(self, part: Part, block: Block, rows: int) -> Iterator[tuple[int, slice]]:
        """Batch elements and ranges of key heads whose panels fit the workspace together."""
        keys = sum(piece.stop - piece.start for piece in block.pieces)
        together = max(1, PANEL // 4 // max(rows * keys, 1))
        for batch in range(part.batch.start, part.batch.stop):
            for first in range(part.key_heads.start, part.key_heads.stop, together):
                yield batch, slice(first, min(first + together, part.key_heads.stop))

    def _panel(self, batch: int, heads: slice, block: Block, pieces: tuple[Piece, ...]) -> _Panel:
        keys: Columns
        if len(pieces) == 1:
            keys = slice(pieces[0].start, pieces[0].stop)
        else:
            device = self.operands.key.device
            keys = torch.cat([torch.arange(piece.start, piece.stop, device=device) for piece in pieces])
        query_heads = slice(heads.start * self.group, heads.stop * self.group)
        area = Area(slice(batch, batch + 1), query_heads, block.rows, keys)
        return _Panel(batch, heads, block, pieces, area)

    # ------------------------------------------------------------------------------------ scores

    def workspace(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory for one panel, reused: fresh pages for every panel would cost as much as the softmax."""
        size = 1
        for n in shape:
            size *= n
        held = self._workspaces.get(name)
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=self.dtype, device=self.operands.key.device)
            self._workspaces[name] = held
        return held[:size].view(shape)

    def queries(self, panel: _Panel, factor: float = 1.0) -> Tensor:
        """The panel's queries times a factor, ``(h, group * rows, D)``."""
        query = self.operands.query[panel.batch, panel.heads, :, panel.block.rows]
        return (query.to(self.dtype) * factor).flatten(1, 2)

    def scores(self, panel: _Panel) -> tuple[Tensor, Tensor | None]:
        """The panel's scores ``(h, group * rows, n)``, and tanh(s / softcap) if there is a softcap."""
        problem = self.problem
        factor = problem.scale if problem.softcap is None else problem.scale / problem.softcap
        query, key = self.queries(panel, factor), panel.of_keys(self.operands.key)
        s = self.workspace("scores", (query.shape[0], query.shape[1], key.shape[1]))
        torch.bmm(query, key.mT, out=s)
        capped = None
        if problem.softcap is not None:
            capped = s.tanh_()
            s = torch.mul(capped, problem.softcap, out=self.workspace("softcap", tuple(s.shape)))
        if problem.bias is not None:
            self.by_query_head(s, panel).add_(problem.bias.tile(panel.area).to(s.dtype))
        self.hide(s, panel, -torch.inf)
        return s, capped

    def by_query_head(self, x: Tensor, panel: _Panel) -> Tensor:
        """A panel ``(h, group * rows, n)`` as ``(1, h * group, rows, n)``, a view."""
        rows = panel.block.rows.stop - panel.block.rows.start
        return x.view(1, x.shape[0] * self.group, rows, x.shape[-1])

    def hide(self, x: Tensor, panel: _Panel, fill: float) -> None:
        """Fill, at the edges of the panel's pieces, what the mask hides."""
        if self.problem.mask is None:
            return
        view, first = self.by_query_head(x, panel), 0
        for piece in panel.pieces:
            for start, stop in piece.edges():
                hidden = self.hidden(panel, piece, start, stop)
                view[..., first + start - piece.start : first + stop - piece.start].masked_fill_(hidden, fill)
            first += piece.stop - piece.start

    def hidden(self, panel: _Panel, piece: Piece, start: int, stop: int) -> Tensor:
        """Which of the keys from `start` to `stop` each of the block's queries must not see, ``(1, h | 1, rows, n)``."""
        mask = self.problem.mask
        assert mask is not None
        shared = (mask.starts if isinstance(mask, Intervals) else mask.visible).shape
        where = (start, stop, shared[0] > 1 and panel.batch, shared[1] > 1 and panel.heads.start)
        if where not in self._hidden:
            self._hidden[where] = ~_visible(mask, panel.area, piece, start, stop)
        return self._hidden[where]

    # ------------------------------------------------------------------------------------ rows

    def may_be_blind(self, panel: _Panel) -> bool:
        """Whether a row of the panel might see none of its keys."""
        return self.problem.bias is not None or any(piece.edges() for piece in panel.pieces)

    def softmax(self, panel: _Panel, *, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        """The panel's weights, normalised over its own keys, and their lse ``(h, group * rows, 1)`` if wanted.

        Rows that see none of the keys have weights 0 and lse -inf.
        """
        s, _ = self.scores(panel)
        p = self.workspace("weights", tuple(s.shape))
        torch.softmax(s, -1, out=p)
        if not (want_lse or self.may_be_blind(panel)):
            return p, None
        top = s.amax(-1, keepdim=True)
        blind = top == -torch.inf
        if bool(blind.any()):
            p.masked_fill_(blind, 0.0)
        if not self.operands.finite:
            self.hide(p, panel, 0.0)
        if not want_lse:
            return p, None
        # The largest weight is exp(top - lse).
        return p, torch.where(blind, -torch.inf, top - p.amax(-1, keepdim=True).log())

    def given_lse(self, panel: _Panel, lse: Tensor) -> tuple[Tensor, Tensor | None]:
        """The panel's exact weights once the whole row's lse ``(h, group * rows, 1)`` is known; and the tanh."""
        s, capped = self.scores(panel)
        p = s.sub_(lse.masked_fill(lse == -torch.inf, torch.inf)).exp_()
        if not self.operands.finite:
            self.hide(p, panel, 0.0)
        return p, capped

    def sinks(self, panel_heads: slice, batch: int, rows: int) -> Tensor | None:
        """The sink of each of the panel's rows, ``(h, group * rows, 1)``."""
        if self.problem.sinks is None:
            return None
        heads = slice(panel_heads.start * self.group, panel_heads.stop * self.group)
        sinks = self.problem.sinks[batch if self.problem.sinks.shape[0] > 1 else 0]
        sinks = sinks[heads] if sinks.shape[0] > 1 else sinks.expand(heads.stop - heads.start)
        return sinks.to(self.dtype).view(-1, self.group, 1).expand(-1, -1, rows).reshape(-1, self.group * rows, 1)

    def rows_of(self, x: Tensor, batch: int, heads: slice, block: Block) -> Tensor:
        """``x (B, H, Nq, ...)`` at a block's rows, ``(h, group, rows, ...)``: a view."""
        return split_heads(x, self.operands.key.shape[1])[batch, heads, :, block.rows]


def _visible(mask: Intervals | Dense, area: Area, piece: Piece, start: int, stop: int) -> Tensor:
    if isinstance(mask, Dense):
        return area.of(mask.visible, queries=True)[..., start:stop]
    position = torch.arange(start, stop, device=mask.starts.device, dtype=torch.int32)
    runs = slice(piece.runs.start, piece.runs.stop)
    starts, stops = (area.of(x, queries=True)[..., runs] for x in (mask.starts, mask.stops))
    return Intervals(starts, stops, mask.keys).between(position)


class Tiled(Backend):
    """Panels of PyTorch operations, in linear memory, on any device."""

    name = "tiled"

    def forward(
        self, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic], *, want_lse: bool
    ) -> Forward:
        """See `Backend.forward`. Memory: O(N D), and about 24 MiB of workspace."""
        run = _Run(problem, inputs)
        shape = inputs.output_shape
        output = torch.zeros(shape, dtype=inputs.query.dtype, device=inputs.query.device)
        lse = torch.empty(shape[:3] if want_lse or statistics else (0,), dtype=run.dtype, device=output.device)
        results = [statistic.empty(run.lengths, run.dtype) for statistic in statistics]
        asked = [(s, r) for s, r in zip(statistics, results, strict=True) if r]
        for block, batch, heads, panels in run.blocks():
            rows = _Rows.attend(run, block, batch, heads, panels, want_lse=lse.numel() > 0)
            rows.write(output, lse)
            rows.observe(asked)
        if run.operands.bad_values is not None:
            output.masked_fill_(_sees_bad_value(run), torch.nan)
        done = [s.finish(r, run.lengths) for s, r in zip(statistics, results, strict=True)]
        return Forward(output, lse, done)

    def backward(
        self, problem: Problem, inputs: Inputs, forward: Forward, grad_output: Tensor, grad_lse: Tensor
    ) -> Gradients:
        """See `Backend.backward`. The weights are computed again panel by panel (Dao et al., arXiv 2205.14135)."""
        return _Backward(problem, inputs).gradients(forward, grad_output, grad_lse)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The finished rows of one block of queries, for a range of heads.

    Attributes:
        run: what they belong to.
        block, batch, heads: which rows.
        panels: the keys they look at, in portions.
        out: ``(h, group * rows, Dv)``.
        lse: ``(h, group * rows, 1)``; None if it was not wanted.
        weights: the exact weights, if a single panel held them all; else None.
    """

    run: _Run
    block: Block
    batch: int
    heads: slice
    panels: list[_Panel]
    out: Tensor
    lse: Tensor | None
    weights: Tensor | None

    @classmethod
    def attend(
        cls, run: _Run, block: Block, batch: int, heads: slice, panels: list[_Panel], *, want_lse: bool
    ) -> _Rows:
        """Output and lse of one block of queries, joined over its panels and the sink."""
        rows = run.group * (block.rows.stop - block.rows.start)
        sinks = run.sinks(heads, batch, rows // run.group)
        want_lse = want_lse or sinks is not None or len(panels) > 1
        value = run.operands.value
        out = value.new_zeros(heads.stop - heads.start, rows, value.shape[-1])
        lse: Tensor | None = value.new_full((*out.shape[:2], 1), -torch.inf) if want_lse else None
        weights = None
        for i, panel in enumerate(panels):
            weights, panel_lse = run.softmax(panel, want_lse=want_lse)
            part = weights @ panel.of_keys(value)
            out, lse = (part, panel_lse) if i == 0 else _join(out, lse, part, panel_lse)
        if sinks is not None:
            total = torch.logaddexp(lse, sinks)
            share = _share(lse, total)
            out, lse = out * share, total
            weights = None if weights is None else weights.mul_(share)
        return cls(run, block, batch, heads, panels, out, lse, weights if len(panels) == 1 else None)

    def write(self, output: Tensor, lse: Tensor) -> None:
        """Copy the rows to where they belong in ``output (B, H, Nq, Dv)`` and, unless empty, ``lse (B, H, Nq)``."""
        target = self.run.rows_of(output, self.batch, self.heads, self.block)
        target.copy_(self.out.view(target.shape))
        if lse.numel():
            assert self.lse is not None
            target = self.run.rows_of(lse, self.batch, self.heads, self.block)
            target.copy_(self.lse.view(target.shape))

    def observe(self, asked: list[tuple[Statistic, Tensors]]) -> None:
        """Add the rows' exact weights to the statistics."""
        for panel in self.panels if asked else ():
            exact = self.weights
            if exact is None:
                assert self.lse is not None
                exact, _ = self.run.given_lse(panel, self.lse)
            tile = Tile(self.run.by_query_head(exact, panel), panel.area, self.run.lengths)
            for statistic, result in asked:
                statistic.add(result, tile)


def _join(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two partial results over disjoint keys as one (Milakov and Gimelshein, arXiv 1805.02867, section 3.1)."""
    total = torch.logaddexp(lse, other_lse)
    return out * _share(lse, total) + other * _share(other_lse, total), total


def _share(lse: Tensor, total: Tensor) -> Tensor:
    """The part exp(lse - total) of a row's weight; 0 where there is nothing at all (-inf - -inf would be NaN)."""
    return (lse - total.masked_fill(total == -torch.inf, 0.0)).exp()


def _sees_bad_value(run: _Run) -> Tensor:
    """Which outputs see a key whose value is not finite, booleans ``(B, H, Nq, Dv)``."""
    bad, mask, lengths = run.operands.bad_values, run.problem.mask, run.lengths
    assert bad is not None
    seen = []
    for batch, head in itertools.product(range(lengths.batch), range(lengths.heads)):
        columns = bad[batch, head // run.group]
        if mask is None:
            seen.append(columns.any(0).expand(lengths.queries, -1))
        elif isinstance(mask, Dense):
            visible = mask.visible.expand(lengths.batch, lengths.heads, -1, -1)[batch, head]
            seen.append(visible.to(bad.dtype) @ columns > 0)
        else:
            seen.append(_any_in_runs(mask, columns, batch, head))
    return torch.stack(seen).view(lengths.batch, lengths.heads, lengths.queries, -1)


def _any_in_runs(mask: Intervals, columns: Tensor, batch: int, head: int) -> Tensor:
    """Whether each query's intervals hold a 1 of ``columns (Nk, Dv)``: differences of a running sum, O(Nq + Nk)."""
    total = torch.nn.functional.pad(columns.double().cumsum(0), (0, 0, 1, 0))
    batch, head = (i if n > 1 else 0 for i, n in zip((batch, head), mask.starts.shape[:2], strict=True))
    starts, stops = mask.starts[batch, head].long(), mask.stops[batch, head].long()
    return (total[stops] - total[starts]).sum(1) > 0


class _Backward:
    """Gradients of one problem, panel by panel.

    With P the weights and dO the output's gradient: dV = Pᵀ dO, dP = dO Vᵀ, and, since rows of P sum to a constant,
    dS = P * (dP - delta), delta = sum(dO * O). The lse adds its own gradient to every score of its row: dlse / ds = p.
    """

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        self.run = _Run(problem, inputs)
        self.problem, self.inputs = problem, inputs
        operands = self.run.operands
        # 0 * NaN is NaN: what is hidden must not leak through the products with keys and queries.
        self.key = operands.key if operands.finite else operands.key.nan_to_num()
        self.grad_query = torch.zeros(inputs.query.shape, dtype=self.run.dtype, device=inputs.query.device)
        self.grad_key, self.grad_value = torch.zeros_like(operands.key), torch.zeros_like(operands.value)
        bias = problem.bias
        self.grad_bias = None if bias is None else torch.zeros_like(bias.values, dtype=self.run.dtype)

    def gradients(self, forward: Forward, grad_output: Tensor, grad_lse: Tensor) -> Gradients:
        """All gradients, in the dtypes of what they belong to."""
        grad_output, grad_lse = grad_output.to(self.run.dtype), grad_lse.to(self.run.dtype)
        # One value for each row, (B, H, Nq): what is subtracted from dP.
        delta = (grad_output * forward.output.to(self.run.dtype)).sum(-1) - grad_lse
        for block, batch, heads, panels in self.run.blocks():
            rows = [
                self.run.rows_of(x, batch, heads, block).flatten(1, 2)
                for x in (grad_output, delta[..., None], forward.lse[..., None])
            ]
            for panel in panels:
                self._panel(panel, *rows)
        return self._as_inputs(self._sinks(forward.lse, delta))

    def _panel(self, panel: _Panel, grad_output: Tensor, delta: Tensor, lse: Tensor) -> None:
        """Add what one panel contributes to every gradient."""
        run, area = self.run, panel.area
        p, capped = run.given_lse(panel, lse)
        self._add_keys(self.grad_value, panel, p.mT @ grad_output)
        grad = torch.bmm(grad_output, panel.of_keys(run.operands.value).mT, out=run.workspace("grad", tuple(p.shape)))
        grad.sub_(delta).mul_(p)
        if self.problem.bias is not None and self.grad_bias is not None:
            self.problem.bias.accumulate(self.grad_bias, run.by_query_head(grad, panel), area)
        if capped is not None:
            grad.mul_(capped.square_().neg_().add_(1.0))
        target = run.rows_of(self.grad_query, panel.batch, panel.heads, panel.block)
        target += (grad @ panel.of_keys(self.key)).view(target.shape).mul_(self.problem.scale)
        query = run.queries(panel, self.problem.scale)
        query = query if run.operands.finite else query.nan_to_num()
        self._add_keys(self.grad_key, panel, grad.mT @ query)

    @staticmethod
    def _add_keys(grad: Tensor, panel: _Panel, part: Tensor) -> None:
        target, first = grad[panel.batch, panel.heads], 0
        for piece in panel.pieces:
            count = piece.stop - piece.start
            target[:, piece.start : piece.stop] += part[:, first : first + count]
            first += count

    def _sinks(self, lse: Tensor, delta: Tensor) -> Tensor | None:
        """A sink holds the weight exp(sink - lse) and has no value: its gradient is minus that times delta."""
        sinks = self.problem.sinks
        if sinks is None:
            return None
        held = _share(sinks.to(lse.dtype)[..., None], lse)
        return -(held * delta).sum(-1).sum_to_size(sinks.shape)

    def _as_inputs(self, sinks: Tensor | None) -> Gradients:
        bias = self.problem.bias
        return Gradients(
            self.grad_query.to(self.inputs.query.dtype),
            self.grad_key.to(self.inputs.key.dtype),
            self.grad_value.to(self.inputs.value.dtype),
            None if bias is None or self.grad_bias is None else self.grad_bias.to(bias.values.dtype),
            None if sinks is None or self.problem.sinks is None else sinks.to(self.problem.sinks.dtype),
        )
