"""Attention in tiles of PyTorch operations: any device, linear memory, forward and backward.

The pattern is computed a *panel* at a time: a block of queries against every key it looks at, or against as many as
fit the workspace. A panel that holds whole rows is exact as soon as it is normalised, so statistics are read off it in
the same pass. Rows too long for the workspace are joined panel by panel, and a second pass, with the denominators
known, reads the statistics. (Small tiles and an online softmax, as a compiled kernel would do it, lose here: each pass
over a tile is a PyTorch call of its own.)

Subtracting a row's maximum before the exponential only guards against overflow. Where the norms of queries and keys
bound every score well inside the range of exp, it is left out: the same numbers, two passes over the panel fewer.
Scores are kept in units of ln 2 and the exponential is exp2: PyTorch's exp, where it calls MKL, is ten times slower on
-inf and thirty times on what underflows. Only a bias keeps them as they are, as the lowest float would overflow.

Query heads that share a key head are rows of the same panel, so grouped queries never repeat keys in memory. float16
and bfloat16 are computed in float32: keys and values are converted once, O(N D).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.backends.contract import Backend, Forward, Gradients, Inputs, poison, sink_gradient, split_heads
from saccade.backends.schedule import Block, Part, Piece, plan
from saccade.masks import Dense, Intervals, Lengths
from saccade.scores import Area, Columns, Problem
from saccade.statistics import Statistic, Tensors, Tile

# The most scores of one key head in a panel: 8 MiB in float32. A panel holds two key heads if there are two, as matrix
# products of two run on two cores without sharing, and more while they are few scores (PANEL // 2 in all).
PANEL = 1 << 21

# Rows of a panel for each key head, and what a score then costs, relative to one another (measured, 2 cores).
ROWS = {512: 1.0, 256: 1.04, 64: 1.35}

# Scores within +-TAME need no maximum subtracted: exp(40) = 2e17, times values up to 1e10, summed over 1e9 keys, is
# below float32's 3e38, and exp(-40) = 4e-18 is far above its smallest normal number, 1e-38.
TAME = 40.0
TAME_VALUE = 1e10

LOG2_E = math.log2(math.e)


@dataclass(frozen=True, eq=False)
class _Operands:
    """The inputs as the tiles use them, in the compute dtype.

    Attributes:
        query: ``(B, Hk, group, Nq, D)``, times `factor`.
        factor: what turns a dot product into the first score: times `unit`, or in units of the softcap.
        unit: what scores are multiplied by: log2 e, or 1 if there is a bias.
        key: ``(B, Hk, Nk, D)``; infinities are NaN.
        value: ``(B, Hk, Nk, Dv)``; what is not finite is 0.
        bad_values: for every value that is not finite 1, else 0, ``(B, Hk, Nk, Dv)``; None if all are finite.
        finite: all queries and keys are finite.
        tame: all scores lie within +-TAME.
    """

    query: Tensor
    factor: float
    unit: float
    key: Tensor
    value: Tensor
    bad_values: Tensor | None
    finite: bool
    tame: bool

    @classmethod
    def of(cls, inputs: Inputs, problem: Problem) -> _Operands:
        query, key, value = (x.to(inputs.compute) for x in (inputs.query, inputs.key, inputs.value))
        bound = abs(problem.scale) * _largest_norm(query) * _largest_norm(key)
        finite = math.isfinite(bound)
        if not finite and not (bool(query.isfinite().all()) and bool(key.isfinite().all())):
            query, key = poison(query), poison(key)
        else:
            finite = True  # huge but finite: the norm overflowed, not the entries
        bad, largest = None, _largest(value)
        if not math.isfinite(largest):
            bad = (~value.isfinite()).to(value.dtype)
            value = value.masked_fill(bad > 0, 0.0)
        if problem.sinks is not None:
            bound = max(bound, _largest(problem.sinks))
        tame = bound <= TAME and largest <= TAME_VALUE and problem.bias is None
        unit = LOG2_E if problem.bias is None else 1.0
        factor = problem.scale * unit if problem.softcap is None else problem.scale / problem.softcap
        query = split_heads(query * factor, key.shape[1])
        return cls(query, factor, unit, key, value, bad, finite, tame)


def _largest_norm(x: Tensor) -> float:
    """The largest Euclidean norm along the last dimension; NaN or infinite if an entry is."""
    return _largest(torch.linalg.vector_norm(x, dim=-1))


def _largest(x: Tensor) -> float:
    """The largest magnitude; NaN if an entry is."""
    if x.numel() == 0:
        return 0.0
    low, high = (float(extreme) for extreme in x.aminmax())
    return math.nan if math.isnan(low) else max(-low, high)


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

    def of_keys(self, x: Tensor) -> Tensor:
        """This panel's rows ``(h, n, d)`` of ``x (B, Hk, Nk, d)``: a view unless they come from several ranges."""
        if isinstance(self.area.keys, slice):
            return x[self.batch, self.heads, self.area.keys]
        return x[self.batch, self.heads].index_select(1, self.area.keys)


class _Run:
    """One problem on its way through the panels: operands, schedule and workspaces."""

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        self.problem = problem
        self.lengths: Lengths = inputs.lengths
        self.group = inputs.group
        self.dtype = inputs.compute
        self.operands = _Operands.of(inputs, problem)
        sizes = {max(16, rows // max(self.group, 1)): cost for rows, cost in ROWS.items()}
        self.parts = plan(problem.mask, self.lengths, inputs.key.shape[1], sizes)
        self._workspaces: dict[str, Tensor] = {}
        self._visible: dict[tuple[object, ...], Tensor] = {}

    # ------------------------------------------------------------------------------------ walking

    def blocks(self) -> Iterator[tuple[Block, int, slice, list[_Panel]]]:
        """Every block of queries with a range of heads and the panels that together hold its rows.

        Heads are the inner loop, so that what the mask hides in a block is worked out once for all of them.
        """
        for part in self.parts:
            for block in part.blocks:
                self._visible.clear()
                rows = (block.rows.stop - block.rows.start) * self.group
                chunks = block.chunks(max(PANEL // max(rows, 1), 1))
                for batch, heads in self._lanes(part, block, rows):
                    yield block, batch, heads, [self._panel(batch, heads, block, chunk) for chunk in chunks]

    def _lanes(self, part: Part, block: Block, rows: int) -> Iterator[tuple[int, slice]]:
        """Batch elements and ranges of key heads whose panels fit the workspace together."""
        keys = sum(piece.stop - piece.start for piece in block.pieces)
        together = max(2, PANEL // 2 // max(rows * keys, 1))
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
        """Memory for one panel, reused: fresh pages for every panel would cost as much as the exponentials.

        It grows by doubling, as the blocks of a causal mask grow one by one.
        """
        size, held = math.prod(shape), self._workspaces.get(name)
        if held is None or held.numel() < size:
            size_held = size if held is None else max(size, 2 * held.numel())
            held = torch.empty(size_held, dtype=self.dtype, device=self.operands.key.device)
            self._workspaces[name] = held
        return held[:size].view(shape)

    def queries(self, panel: _Panel) -> Tensor:
        """The panel's queries times `_Operands.factor`, ``(h, group * rows, D)``."""
        return self.operands.query[panel.batch, panel.heads, :, panel.block.rows].flatten(1, 2)

    def scores(self, panel: _Panel) -> Tensor:
        """The panel's scores times `_Operands.unit`, ``(h, group * rows, n)``, in a workspace.

        What the mask hides is -inf already, unless scores are tame: then weights are multiplied by 0 there later.
        """
        problem = self.problem
        query, key = self.queries(panel), panel.of_keys(self.operands.key)
        s = self.workspace("products", (query.shape[0], query.shape[1], key.shape[1]))
        torch.bmm(query, key.mT, out=s)
        if problem.softcap is not None:
            bounded = self.workspace("scores", tuple(s.shape))
            s = torch.mul(s.tanh_(), problem.softcap * self.operands.unit, out=bounded)
        if problem.bias is not None:
            self.by_query_head(s, panel).add_(problem.bias.tile(panel.area).to(s.dtype))
        if not self.operands.tame:
            for edge, visible in self.edges(s, panel):
                edge.masked_fill_(visible == 0, -torch.inf)
        return s

    def last_tanh(self, shape: tuple[int, ...]) -> Tensor:
        """With a softcap, tanh(s / softcap) of the panel whose scores were computed last."""
        return self.workspace("products", shape)

    def by_query_head(self, x: Tensor, panel: _Panel) -> Tensor:
        """A panel ``(h, group * rows, n)`` as ``(1, h * group, rows, n)``, a view."""
        rows = panel.block.rows.stop - panel.block.rows.start
        return x.view(1, x.shape[0] * self.group, rows, x.shape[-1])

    def edges(self, x: Tensor, panel: _Panel) -> Iterator[tuple[Tensor, Tensor]]:
        """The parts of a panel in which queries differ in what they see, each with 1 where visible and 0 where not."""
        if self.problem.mask is None:
            return
        view, first = self.by_query_head(x, panel), 0
        for piece in panel.pieces:
            for start, stop in piece.edges():
                edge = view[..., first + start - piece.start : first + stop - piece.start]
                yield edge, self.visible(panel, piece, start, stop)
            first += piece.stop - piece.start

    def visible(self, panel: _Panel, piece: Piece, start: int, stop: int) -> Tensor:
        """1 where a query of the block sees a key from `start` to `stop`, else 0, ``(1, h | 1, rows, n)``."""
        mask = self.problem.mask
        assert mask is not None
        batches, heads = (mask.starts if isinstance(mask, Intervals) else mask.visible).shape[:2]
        where = (start, stop, batches > 1 and panel.batch, heads > 1 and panel.heads.start)
        if where not in self._visible:
            self._visible[where] = _visible(mask, panel.area, piece, start, stop).to(self.dtype)
        return self._visible[where]

    # ------------------------------------------------------------------------------------ rows

    def exponentials(self, panel: _Panel, top: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """exp(s - top) of the panel, and top ``(h, group * rows, 1)`` in the scores' unit: as given, else the largest.

        Where scores are tame, top is 0 and None is returned for it.
        """
        s = self.scores(panel)
        if not self.operands.tame:
            top = s.amax(-1, keepdim=True) if top is None else top
            s.sub_(_finite(top))
        if self.operands.unit != LOG2_E:
            s.mul_(LOG2_E / self.operands.unit)
        return self.zero_hidden(s.exp2_(), panel), top

    def zero_hidden(self, p: Tensor, panel: _Panel) -> Tensor:
        """Weights with 0 where hidden, in place: they are 0 already unless scores are tame or rows are NaN."""
        if self.operands.tame:
            for edge, visible in self.edges(p, panel):
                edge.mul_(visible)
        elif not self.operands.finite:
            for edge, visible in self.edges(p, panel):
                edge.masked_fill_(visible == 0, 0.0)
        return p

    def sinks(self, panel_heads: slice, batch: int, rows: int) -> Tensor | None:
        """The sink of each of the panel's rows, ``(h, group * rows, 1)``."""
        if self.problem.sinks is None:
            return None
        heads = slice(panel_heads.start * self.group, panel_heads.stop * self.group)
        sinks = self.problem.sinks[batch if self.problem.sinks.shape[0] > 1 else 0]
        sinks = sinks[heads] if sinks.shape[0] > 1 else sinks.expand(heads.stop - heads.start)
        return sinks.to(self.dtype).view(-1, self.group, 1).expand(-1, -1, rows).reshape(-1, self.group * rows, 1)

    def split(self, x: Tensor) -> Tensor:
        """``x (B, H, Nq, ...)`` as ``(B, Hk, group, Nq, ...)``: a view."""
        return split_heads(x, self.operands.key.shape[1])


def _visible(mask: Intervals | Dense, area: Area, piece: Piece, start: int, stop: int) -> Tensor:
    if isinstance(mask, Dense):
        return area.of(mask.visible, queries=True)[..., start:stop]
    position = torch.arange(start, stop, device=mask.starts.device, dtype=torch.int32)
    runs = slice(piece.runs.start, piece.runs.stop)
    starts, stops = (area.of(x, queries=True)[..., runs] for x in (mask.starts, mask.stops))
    if len(piece.runs) == 1 and piece.inside < piece.inside_stop:
        # Every run reaches from its start over the inside to its stop: each edge needs one comparison.
        return position >= starts if stop <= piece.inside else position < stops
    return Intervals(starts, stops, mask.keys).between(position)


class Tiled(Backend):
    """Panels of PyTorch operations, in linear memory, on any device."""

    name = "tiled"

    def forward(self, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic], *, want_lse: bool) -> Forward:
        """See `Backend.forward`. Memory: O(N D), and some tens of MiB of workspace."""
        inputs = inputs.gathered()
        run = _Run(problem, inputs)
        shape = inputs.output_shape
        output = inputs.empty_output()
        lse = torch.empty(shape[:3] if want_lse or statistics else (0,), dtype=run.dtype, device=output.device)
        results = [statistic.empty(run.lengths, run.dtype) for statistic in statistics]
        asked = [(s, r) for s, r in zip(statistics, results, strict=True) if r]
        rows_out, rows_lse = run.split(output), run.split(lse) if lse.numel() else None
        for block, batch, heads, panels in run.blocks():
            _Rows(run, block, batch, heads, panels).finish(rows_out, rows_lse, asked)
        if run.operands.bad_values is not None:
            output.masked_fill_(_sees_bad_value(run), torch.nan)
        done = [s.finish(r, run.lengths) for s, r in zip(statistics, results, strict=True)]
        return Forward(output, lse, done)

    def observe(
        self, problem: Problem, inputs: Inputs, lse: Tensor, statistics: Sequence[Statistic], *, partial: bool = False
    ) -> list[Tensors]:
        """See `Backend.observe`. Weights are computed panel by panel."""
        run = _Run(problem, inputs)
        results = [statistic.empty(run.lengths, run.dtype) for statistic in statistics]
        for tile, _ in _tiles(run, lse, partial=partial):
            for statistic, result in zip(statistics, results, strict=True):
                if result:
                    statistic.add(result, tile)
        return [s.finish(r, run.lengths) for s, r in zip(statistics, results, strict=True)]

    def transposed(self, problem: Problem, inputs: Inputs, lse: Tensor, rows: Tensor) -> Tensor:
        """See `Backend.transposed`. Weights are computed panel by panel."""
        run = _Run(problem, inputs)
        rows = rows.to(run.dtype)
        result = rows.new_zeros(*rows.shape[:2], run.lengths.keys, rows.shape[3])
        for tile, panel in _tiles(run, lse):
            part, first = tile.weights.mT @ tile.rows_of(rows), 0
            target = tile.heads_of(result)
            for piece in panel.pieces:
                count = piece.stop - piece.start
                target[:, :, piece.start : piece.stop] += part[:, :, first : first + count]
                first += count
        return result

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
        """See `Backend.backward`. The weights are computed again panel by panel (Dao et al., arXiv 2205.14135)."""
        return _Backward(problem, inputs, want_bias=want_bias).gradients(forward, grad_output, grad_lse)


def _tiles(run: _Run, lse: Tensor, *, partial: bool = False) -> Iterator[tuple[Tile, _Panel]]:
    """The whole pattern in tiles of exact weights, once its lse ``(B, H, Nq)`` is known."""
    of_rows = run.split(lse.to(run.dtype)[..., None])
    for block, batch, heads, panels in run.blocks():
        rows = of_rows[batch, heads, :, block.rows].flatten(1, 2)
        for panel, weights in _Rows(run, block, batch, heads, panels).weights_given(rows, partial=partial):
            yield Tile(run.by_query_head(weights, panel), panel.area, run.lengths), panel


@dataclass(eq=False)
class _Sums:
    """What rows have added up so far: ``sum exp(s - top) v``, ``sum exp(s - top)``, and top (None where it is 0).

    `top` is in the scores' unit. Joining keeps the larger (Milakov and Gimelshein, arXiv 1805.02867, section 3.1).
    """

    out: Tensor
    total: Tensor
    top: Tensor | None
    unit: float

    def join(self, other: _Sums) -> _Sums:
        """Both, over disjoint keys."""
        if self.top is None or other.top is None:
            return _Sums(self.out + other.out, self.total + other.total, None, self.unit)
        top = torch.maximum(self.top, other.top)
        mine, theirs = (_above(x, top, self.unit) for x in (self.top, other.top))
        return _Sums(self.out * mine + other.out * theirs, self.total * mine + other.total * theirs, top, self.unit)

    def lse(self) -> Tensor:
        """The rows' log-sum-exp; -inf where nothing was added."""
        return self.total.log() if self.top is None else self.total.log() + _finite(self.top) / self.unit

    def divisor(self) -> Tensor:
        """What weights and output are divided by: at least a number that is not 0 where nothing was added."""
        return self.total.clamp_min(torch.finfo(self.total.dtype).tiny)


def _finite(top: Tensor) -> Tensor:
    """A maximum that can be subtracted: 0 where nothing is visible, as -inf - -inf would be NaN."""
    return top.masked_fill(top == -torch.inf, 0.0)


def _above(top: Tensor, other: Tensor, unit: float) -> Tensor:
    """exp(top - other) of two tops in the scores' unit; 0 where both are -inf."""
    return ((top - _finite(other)) * (LOG2_E / unit)).exp2()


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of one block of queries, for a range of heads.

    Attributes:
        run: what they belong to.
        block, batch, heads: which rows.
        panels: the keys they look at, in portions.
    """

    run: _Run
    block: Block
    batch: int
    heads: slice
    panels: list[_Panel]

    def finish(self, output: Tensor, lse: Tensor | None, asked: list[tuple[Statistic, Tensors]]) -> None:
        """Write the rows into ``output (B, Hk, group, Nq, Dv)`` and ``lse``; add them to the statistics."""
        sums, exponentials = self.sums(self.run.operands.value)
        self._write(output, sums.out.div_(sums.divisor()))
        if lse is not None:
            self._write(lse, sums.lse())
        for panel, weights in self.weights(sums, exponentials) if asked else ():
            tile = Tile(self.run.by_query_head(weights, panel), panel.area, self.run.lengths)
            for statistic, result in asked:
                statistic.add(result, tile)

    def sums(self, value: Tensor) -> tuple[_Sums, Tensor | None]:
        """Numerators for ``value (B, Hk, Nk, Dv)`` and denominators; and exp(s - top), if one panel held it all."""
        sums = self._of_sinks(value.shape[-1])
        exponentials = top = None
        for panel in self.panels:
            exponentials, top = self.run.exponentials(panel)
            total = exponentials.sum(-1, keepdim=True)
            here = _Sums(exponentials @ panel.of_keys(value), total, top, self.run.operands.unit)
            sums = here if sums is None else sums.join(here)
        if sums is None:
            sums = self._of_nothing(value.shape[-1])
        if exponentials is None or len(self.panels) > 1:
            return sums, None
        if top is not None and sums.top is not None and sums.top is not top:  # a sink may be higher
            exponentials.mul_(_above(top, sums.top, sums.unit))
        return sums, exponentials

    def weights(self, sums: _Sums, exponentials: Tensor | None) -> Iterator[tuple[_Panel, Tensor]]:
        """The panels with their exact weights, from what `sums` returned."""
        for panel in self.panels:
            if exponentials is None or len(self.panels) > 1:
                exponentials, _ = self.run.exponentials(panel, sums.top)
            yield panel, self.run.zero_hidden(exponentials.div_(sums.divisor()), panel)

    def weights_given(self, lse: Tensor, *, partial: bool = False) -> Iterator[tuple[_Panel, Tensor]]:
        """The panels with their exact weights, once their lse ``(h, group * rows, 1)`` is known.

        Far from 0 an lse in float32 has lost digits of the denominator, so there it is added up again, unless it is
        of more keys than these.
        """
        unit = self.run.operands.unit
        if self.run.operands.tame:
            return self.weights(_Sums(lse, lse.exp(), None, LOG2_E), None)
        if partial:
            return self.weights(_Sums(lse, (lse > -torch.inf).to(lse.dtype), lse * unit, unit), None)
        return self.weights(*self.sums(self.run.operands.value[..., :0]))

    def _of_nothing(self, width: int) -> _Sums:
        value = self.run.operands.value
        rows = self.run.group * (self.block.rows.stop - self.block.rows.start)
        shape = (self.heads.stop - self.heads.start, rows)
        return _Sums(value.new_zeros(*shape, width), value.new_zeros(*shape, 1), None, self.run.operands.unit)

    def _of_sinks(self, width: int) -> _Sums | None:
        """A sink adds exp(sink) to the denominator, and no value."""
        sinks = self.run.sinks(self.heads, self.batch, self.block.rows.stop - self.block.rows.start)
        if sinks is None:
            return None
        out, unit = self._of_nothing(width).out, self.run.operands.unit
        if self.run.operands.tame:
            return _Sums(out, sinks.exp(), None, unit)
        return _Sums(out, (sinks - _finite(sinks)).exp(), sinks * unit, unit)

    def _write(self, target: Tensor, rows: Tensor) -> None:
        target = target[self.batch, self.heads, :, self.block.rows]
        target.copy_(rows.view(target.shape))


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

    def __init__(self, problem: Problem, inputs: Inputs, *, want_bias: bool) -> None:
        self.run = _Run(problem, inputs)
        self.problem, self.inputs = problem, inputs
        operands = self.run.operands
        # 0 * NaN is NaN: what is hidden must not leak through the products with keys and queries.
        self.key = operands.key if operands.finite else operands.key.nan_to_num()
        self.grad_query = torch.zeros(inputs.query.shape, dtype=self.run.dtype, device=inputs.query.device)
        self.grad_key, self.grad_value = torch.zeros_like(operands.key), torch.zeros_like(operands.value)
        bias = problem.bias if want_bias else None
        self.grad_bias = None if bias is None else torch.zeros_like(bias.values, dtype=self.run.dtype)

    def gradients(self, forward: Forward, grad_output: Tensor, grad_lse: Tensor) -> Gradients:
        """All gradients, in the dtypes of what they belong to."""
        grad_output, grad_lse = grad_output.to(self.run.dtype), grad_lse.to(self.run.dtype)
        # One value for each row, (B, H, Nq): what is subtracted from dP.
        delta = (grad_output * forward.output.to(self.run.dtype)).sum(-1) - grad_lse
        of_rows = [self.run.split(x) for x in (grad_output, delta[..., None], forward.lse[..., None])]
        for block, batch, heads, panels in self.run.blocks():
            grad, delta_rows, lse = (x[batch, heads, :, block.rows].flatten(1, 2) for x in of_rows)
            rows = _Rows(self.run, block, batch, heads, panels)
            for panel, weights in rows.weights_given(lse):
                self._panel(panel, weights, grad, delta_rows)
        return self._as_inputs(sink_gradient(self.problem, forward, grad_output, grad_lse))

    def _panel(self, panel: _Panel, p: Tensor, grad_output: Tensor, delta: Tensor) -> None:
        """Add what one panel with weights `p` contributes to every gradient."""
        run, area = self.run, panel.area
        self._add_keys(self.grad_value, panel, p.mT @ grad_output)
        grad = torch.bmm(grad_output, panel.of_keys(run.operands.value).mT, out=run.workspace("grad", tuple(p.shape)))
        grad.sub_(delta).mul_(p)
        if self.problem.bias is not None and self.grad_bias is not None:
            self.problem.bias.accumulate(self.grad_bias, run.by_query_head(grad, panel), area)
        if self.problem.softcap is not None:
            grad.mul_(run.last_tanh(tuple(grad.shape)).square_().neg_().add_(1.0))
        target = run.split(self.grad_query)[panel.batch, panel.heads, :, panel.block.rows]
        target += (grad @ panel.of_keys(self.key)).view(target.shape).mul_(self.problem.scale)
        query = run.queries(panel)
        query = query if run.operands.finite else query.nan_to_num()
        self._add_keys(self.grad_key, panel, grad.mT @ query)

    @staticmethod
    def _add_keys(grad: Tensor, panel: _Panel, part: Tensor) -> None:
        target, first = grad[panel.batch, panel.heads], 0
        for piece in panel.pieces:
            count = piece.stop - piece.start
            target[:, piece.start : piece.stop] += part[:, first : first + count]
            first += count

    def _as_inputs(self, sinks: Tensor | None) -> Gradients:
        bias = self.problem.bias
        return Gradients(
            self.grad_query.to(self.inputs.query.dtype),
            self.grad_key.mul_(self.problem.softcap or 1.0 / self.run.operands.unit).to(self.inputs.key.dtype),
            self.grad_value.to(self.inputs.value.dtype),
            None if bias is None or self.grad_bias is None else self.grad_bias.to(bias.values.dtype),
            sinks,
        )
