"""Attention on an NVIDIA GPU by Triton kernels (`gpu_kernels.py`): the host's side.

One kernel goes through the pattern by rows: the output, the lse and what is asked of each row. A second pass, without
values, goes by columns: what each key receives, maps, and transposed products. The gradients are one pass each way, in
which the weights are computed again. No kernel adds to what another program writes, so that results are the same bits
in each run.

`gpu_tiles.py` has the tiles that kernels are run with.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.backends.contract import Backend, Forward, Gradients, Inputs, shared_stride, sink_gradient, unit_stride
from saccade.backends.gpu_tiles import SMALLEST, Tiling, candidates, described, place_of, power
from saccade.backends.tiled import LOG2_E, Tiled
from saccade.errors import BackendError
from saccade.masks import Dense, Intervals
from saccade.scores import ALiBi, DenseBias, Problem, RelativeBias
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
    cell_bounds,
    one_hot,
)

WIDEST = 256  # D and Dv
MOST_TOP_KEYS = 32  # that are kept in a program's registers
MOST_PROGRAMS = (1 << 31) - 1
MOST_CELLS = 64 << 20  # bytes of sums of a map before they are added up by key; more are done in parts
_CHUNK = 128  # numbers that a program adds up at a time

_BIASES = {DenseBias: 1, ALiBi: 2, RelativeBias: 3}


# ---------------------------------------------------------------------------------------- what there is


def interpreted() -> bool:
    """Whether Triton runs kernels in Python, on the CPU's tensors: a way to test them without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(device: torch.device) -> str | None:
    """Why no kernel runs on a device, or None if they do."""
    if device.type == "cpu" and not interpreted():
        return "tensors are on the CPU"
    return _unavailable(device)


# What torch.compiler.assume_constant_result sets, which would import the compiler: a graph takes the answer as it is.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


@functools.cache
def _unavailable(device: torch.device) -> str | None:
    if device.type not in {"cuda", "cpu"} or torch.version.hip is not None:
        return f"the kernels run on NVIDIA GPUs, and tensors are on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is missing: pip install 'saccade[gpu]'"
    if device.type == "cpu":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:  # noqa: PLR2004
        return f"the kernels need compute capability 8.0 or later; this GPU has {major}.{minor}"
    return None


def _modules() -> tuple[ModuleType, ModuleType]:
    from saccade.backends import gpu_gradients, gpu_kernels

    return gpu_kernels, gpu_gradients


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


# ---------------------------------------------------------------------------------------- the backend


class GPU(Backend):
    """The Triton kernels."""

    name = "gpu"

    def refuses(self, problem: Problem, inputs: Inputs) -> str | None:
        """See `Backend.refuses`. Any problem is served, in three dtypes, with heads up to 256 wide."""
        del problem
        reason = unavailable(inputs.query.device)
        if reason is not None:
            return reason
        if inputs.query.dtype == torch.float64:
            return "the kernels do not compute float64"
        width = max(inputs.query.shape[-1], inputs.value.shape[-1])
        if width > WIDEST:
            return f"the kernels serve heads up to {WIDEST} wide, and these are {width}"
        lengths = inputs.lengths
        rows = lengths.batch * lengths.heads * max(lengths.queries, lengths.keys)
        if rows // SMALLEST >= MOST_PROGRAMS:
            return f"a GPU runs at most {MOST_PROGRAMS:,} programs, and these are {rows:,} rows"
        return None

    def forward(self, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic], *, want_lse: bool) -> Forward:
        """See `Backend.forward`. Memory: O(N D).

        Row statistics ride along; those by key, and masses of groups, take passes of their own without values. More
        than 32 top keys are found by `tiled`.
        """
        run = _Run(problem, inputs)
        output = inputs.empty_output()
        lse = run.new_rows() if want_lse or statistics else None
        with run.device():
            results = run.look(statistics, output=output, lse=lse)
        return Forward(output, run.new_rows(0) if lse is None else lse, results)

    def observe(
        self,
        problem: Problem,
        inputs: Inputs,
        lse: Float[Tensor, "B H Nq"],
        statistics: Sequence[Statistic],
        *,
        partial: bool = False,
    ) -> list[Tensors]:
        """See `Backend.observe`. O(Nq Nk D) time for what goes by rows, and again for what goes by columns."""
        run = _Run(problem, inputs)
        with run.device():
            return run.look(statistics, given=lse.float().contiguous() if partial else None)

    def transposed(
        self, problem: Problem, inputs: Inputs, lse: Float[Tensor, "B H Nq"], rows: Float[Tensor, "B H Nq Y"]
    ) -> Float[Tensor, "B H Nk Y"]:
        """See `Backend.transposed`. The rows are added up in the inputs' dtype, in sums of float32."""
        del lse  # far from 0 it has lost digits, so that weights are computed from the scores again
        run = _Run(problem, inputs)
        with run.device():
            state = run.new_state()
            run.rows(state)
            return run.product(rows.to(inputs.query.dtype), state)

    def window(
        self, problem: Problem, inputs: Inputs, lse: Float[Tensor, "B H Nq"], queries: slice, keys: slice
    ) -> Float[Tensor, "B H rows columns"]:
        """See `Backend.window`. The time of the window, and that of its rows where an lse is beyond 64 in magnitude."""
        run = _Run(problem, inputs)
        with run.device():
            return run.window(lse.float().contiguous(), queries, keys)

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
        """See `Backend.backward`. Weights are computed again, once by columns and once by rows."""
        run = _Run(problem, inputs)
        with run.device():
            grads = run.backward(forward, grad_output.to(inputs.query.dtype), grad_lse, want_bias=want_bias)
        return replace(grads, sinks=sink_gradient(problem, forward, grad_output, grad_lse))


# ---------------------------------------------------------------------------------------- one problem


def _passes(asked: Sequence[tuple[Statistic, Tensors]]) -> list[dict[str, tuple[Statistic, Tensors]]]:
    """What goes by rows, in as few passes as can be: one of each kind in a pass."""
    passes: list[dict[str, tuple[Statistic, Tensors]]] = []
    for statistic, result in asked:
        if not isinstance(statistic, Entropy | MaxWeight | Distance) and not _is_few_top_keys(statistic):
            continue
        kind = statistic.field
        for together in passes:
            if kind not in together:
                together[kind] = (statistic, result)
                break
        else:
            passes.append({kind: (statistic, result)})
    return passes


def _is_few_top_keys(statistic: Statistic) -> bool:
    return isinstance(statistic, TopKeys) and statistic.k <= MOST_TOP_KEYS


class _Run:
    """One problem as the kernels take it."""

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        self.problem, self.inputs = problem, inputs
        self.kernels, self.gradients = _modules()
        self.query, self.key, self.value = (unit_stride(x) for x in (inputs.query, inputs.key, inputs.value))
        self.dtype = self.query.dtype
        self.lines = inputs.lengths.batch * inputs.lengths.heads
        self._known_spans: dict[tuple[int, int], Any] = {}  # by rows and keys of a tile
        exact = self.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
        plain = problem.bias is None and problem.softcap is None
        width = self.query.shape[-1]
        precision = "tf32x3" if exact else "tf32"
        # What every kernel is compiled for.
        self.form = self.kernels.Form(
            D=width,
            DP=power(width),
            DV=1,
            DVP=SMALLEST,
            ROWS=0,
            KEYS=0,
            MASK=0 if problem.mask is None else 1 if isinstance(problem.mask, Intervals) else 2,
            BIAS=0 if problem.bias is None else _BIASES[type(problem.bias)],
            CAP=problem.softcap is not None,
            RAW=plain and problem.scale > 0,
            PRECISION=precision,
            PRODUCT=precision,
        )

    def device(self) -> AbstractContextManager[Any]:
        """Kernels are launched on the device of the context."""
        return torch.cuda.device(self.query.device) if self.query.is_cuda else nullcontext()

    # ------------------------------------------------------------------------------------ memory

    def new_rows(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A number for each row, ``(B, H, Nq)``, or another shape."""
        lengths = self.inputs.lengths
        shape = shape or (lengths.batch, lengths.heads, lengths.queries)
        return torch.empty(shape, dtype=dtype, device=self.query.device)

    def new_state(self) -> Any:
        """What weights are computed from, with all digits: the top of each row, and its share of a weight."""
        return self.kernels.Results(self._rows, top=self.new_rows(), share=self.new_rows())

    @property
    def _rows(self) -> int:
        return self.lines * self.inputs.lengths.queries

    # ------------------------------------------------------------------------------------ arguments

    def _operand(self, x: Tensor) -> Any:
        """A tensor ``(B | 1, H | 1, N, D)`` whose last stride is 1."""
        return self.kernels.Operand(x, shared_stride(x, 0), shared_stride(x, 1), x.stride(2))

    def _row_blocks(self, x: Tensor | None, tiles: Tiling) -> Any:
        """A descriptor of queries, or of what else there is for each row."""
        return self._descriptor(x, tiles, tiles.rows, self.inputs.lengths.heads)

    def _key_blocks(self, x: Tensor | None, tiles: Tiling) -> Any:
        """A descriptor of keys or values."""
        return self._descriptor(x, tiles, tiles.keys, self.key.shape[1])

    def _descriptor(self, x: Tensor | None, tiles: Tiling, count: int, heads: int) -> Any:
        """What the tensor memory accelerator fetches blocks of `count` rows by, if they are to be fetched so.

        It cannot serve all batch elements or heads with the same rows.
        """
        if x is None or not tiles.descriptors or self.inputs.pages is not None:
            return None
        if x.shape[:2] != (self.inputs.lengths.batch, heads) or not described(x):
            return None
        return self.kernels.TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, count, power(x.shape[-1])])

    def _packed(self, value: Tensor | None) -> Any:
        """The problem, with these values."""
        problem, lengths = self.problem, self.inputs.lengths
        unit = 1.0 if problem.bias is not None else LOG2_E
        pages = self.inputs.pages
        return self.kernels.Problem(
            query=self._operand(self.query),
            key=self._operand(self.key),
            value=None if value is None else self._operand(value),
            heads=lengths.heads,
            group=self.inputs.group,
            queries=lengths.queries,
            keys=lengths.keys,
            factor=problem.scale / problem.softcap if problem.softcap is not None else problem.scale * unit,
            cap=(problem.softcap or 0.0) * unit,
            mask=self._mask(),
            bias=self._bias(),
            sinks=self._sinks(),
            pages=None if pages is None else self.kernels.Pages(pages, pages.stride(0), self.key.shape[2]),
        )

    def _mask(self) -> Any:
        mask = self.problem.mask
        if mask is None:
            return None
        if isinstance(mask, Dense):
            visible = unit_stride(mask.visible)
            return self.kernels.Dense(
                visible.view(torch.uint8), shared_stride(visible, 0), shared_stride(visible, 1), visible.stride(2)
            )
        starts, stops = mask.starts.contiguous(), mask.stops.contiguous()
        return self.kernels.Intervals(starts, stops, shared_stride(starts, 0), shared_stride(starts, 1), mask.runs)

    def _bias(self, values: Tensor | None = None) -> Any:
        """The bias, or something of its shape."""
        bias = self.problem.bias
        if bias is None:
            return None
        values = bias.values.detach() if values is None else values
        if values.dtype not in {torch.float32, torch.bfloat16, torch.float16}:
            values = values.float()
        dense = isinstance(bias, DenseBias)
        values = values if dense else values.contiguous()
        return self.kernels.Bias(
            values,
            shared_stride(values, 0),
            shared_stride(values, 1),
            row=shared_stride(values, 2) if dense else 0,
            key=shared_stride(values, 3) if dense else 0,
            offset=_shift(bias),
            count=values.shape[-1],
        )

    def _sinks(self) -> Any:
        sinks = self.problem.sinks
        if sinks is None:
            return None
        sinks = sinks.detach().float().contiguous()
        return self.kernels.Sinks(sinks, shared_stride(sinks, 0))

    def kernel(self, name: str) -> Any:
        """The kernel of that name."""
        return getattr(self.gradients if hasattr(self.gradients, f"{name}_kernel") else self.kernels, f"{name}_kernel")

    def _launch(self, name: str, grid: tuple[int, ...], tiles: Tiling, *arguments: Any) -> None:
        """Run a kernel, unless there is nothing to do."""
        if min(grid) > 0:
            self.kernel(name)[grid](*arguments, num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True)

    def _fit(self, kernel: str, width: int, run: Callable[[Tiling], None]) -> None:
        """Run a kernel with the first tiles that fit into the GPU's shared memory; `width` is that of values."""
        place = place_of(kernel, self.dtype, max(width, self.query.shape[-1]))
        for tiles in candidates(place, self.query.device):
            try:
                return run(self._slimmed(tiles))
            except self.kernels.OutOfResources:
                continue
        raise BackendError(f"backend 'gpu': no tiles of kernel {kernel!r} fit into the shared memory of this GPU")

    def _slimmed(self, tiles: Tiling) -> Tiling:
        """Smaller tiles where numbers for each pair are fetched ahead as well, and have to lie in shared memory."""
        if self.form.MASK == 2 or self.form.BIAS in {1, 3}:  # noqa: PLR2004
            return tiles._replace(keys=max(SMALLEST, tiles.keys // 2), stages=min(tiles.stages, 2))
        return tiles

    # ------------------------------------------------------------------------------------ by rows

    def look(
        self,
        statistics: Sequence[Statistic],
        *,
        output: Tensor | None = None,
        lse: Tensor | None = None,
        given: Tensor | None = None,
    ) -> list[Tensors]:
        """Statistics, and the output and the lse where there is memory for them.

        `given`: the pattern is a part of one with more keys, whose lse this is.
        """
        lengths = self.inputs.lengths
        asked = [(statistic, statistic.empty(lengths, torch.float32)) for statistic in statistics]
        by_key = [(statistic, result) for statistic, result in asked if statistic.by_key]
        known = self.kernels.Results(self._rows, lse=given)
        if by_key and given is None:
            known = self.new_state()
        first, *later = _passes(asked) or [{}]
        self.rows(known._replace(lse=lse, given=given), first, output=output)
        for together in later:
            self.rows(self.kernels.Results(self._rows, given=given), together)
        for statistic, result in asked:
            if isinstance(statistic, Mass):
                # Which group a key is of does not lie in pages.
                whole = self if self.inputs.pages is None else _Run(self.problem, self.inputs.gathered())
                whole.mass(statistic, result[0], given)
            elif isinstance(statistic, TopKeys) and not _is_few_top_keys(statistic):
                self._many_top_keys(statistic, result, lse, given)
        self._by_key(by_key, known)
        return [statistic.finish(result, lengths) for statistic, result in asked]

    def rows(
        self,
        results: Any,
        asked: dict[str, tuple[Statistic, Tensors]] | None = None,
        *,
        output: Tensor | None = None,
        value: Tensor | None = None,
        product: str | None = None,
    ) -> None:
        """A pass by rows.

        Args:
            results: `Results` with memory for what is wanted besides `asked`.
            asked: statistics of different kinds by their names, with their memory.
            output: memory for the output.
            value: other values than the problem's, ``(B | 1, 1, Nk, Dv)``.
            product: precision of products with them.
        """
        asked = asked or {}
        entropy, largest, distance = (asked[name][1][0] if name in asked else None for name in _NAMES)
        results = results._replace(entropy=entropy, max_weight=largest, distance=distance)
        top = 0
        if "top_keys" in asked:
            statistic, (index, weight) = asked["top_keys"]
            assert isinstance(statistic, TopKeys)
            top, results = statistic.k, results._replace(top_index=index, top_weight=weight)
        if output is None and all(field is None for field in results[1:9]):
            return
        offset = asked["distance"][0].offset if distance is not None else 0  # type: ignore[attr-defined]
        if output is not None and value is None:
            value = self.value
        width = 1 if output is None else output.shape[-1]
        form = self.form._replace(
            PRODUCT=product or self.form.PRECISION,
            ENTROPY=entropy is not None,
            DISTANCE=distance is not None,
            TOP=top,
            K=0 if top == 0 else 1 << (top - 1).bit_length(),
            PACKED=self.inputs.lengths.queries * self.inputs.group <= SMALLEST,
        )
        run = partial(self._rows_pass, results, offset, form, output, value, width)
        self._fit("few" if form.PACKED else "rows", width, run)

    def _rows_pass(
        self,
        results: Any,
        offset: int,
        form: Any,
        output: Tensor | None,
        value: Tensor | None,
        width: int,
        tiles: Tiling,
    ) -> None:
        """The pass, in one go or, where there are too few rows for all processors, with its keys split."""
        lengths = self.inputs.lengths
        members = self.inputs.group if form.PACKED else 1  # heads whose rows are of one block
        blocks, lines = -(-lengths.queries * members // tiles.rows), self.lines // members
        form = self._form(tiles, width, form)
        packed = (self._packed(value), self._key_blocks(self.key, tiles), self._key_blocks(value, tiles))
        out = None if output is None else self._operand(output)
        share = self._share_of_keys(blocks * lines, tiles)
        programs = blocks * lines
        if tiles.persistent:
            programs = min(programs, processors(self.query.device))
        if output is None or results.given is not None or share >= lengths.keys:
            self._launch("rows", (programs,), tiles, *packed, out, results, offset, 0, blocks, lines, form)
            return
        splits = -(-lengths.keys // share)
        parts = self._parts(splits, results, form)
        sums = self.new_rows(splits, self._rows, width)
        split = form._replace(SPLIT=True)
        grid = (programs, splits)
        self._launch("rows", grid, tiles, *packed, sums, parts, offset, share, blocks, lines, split)
        held = 1 << (splits - 1).bit_length()
        self._launch("merge", (self._rows,), _MERGING, packed[0], sums, parts, out, results, splits, form, held)

    def _parts(self, splits: int, results: Any, form: Any) -> Any:
        """Memory for what `rows_kernel` leaves of each split."""
        new = partial(self.new_rows, splits, self._rows)
        return self.kernels.Results(
            self._rows,
            top=new(),
            share=new(),
            entropy=None if results.entropy is None else new(),
            distance=None if results.distance is None else new(),
            top_weight=new(form.K) if form.TOP else None,
            top_index=new(form.K, dtype=torch.int32) if form.TOP else None,
        )

    def _form(self, tiles: Tiling, width: int, form: Any = None) -> Any:
        """What a kernel is compiled for: `width` is that of values, or of what stands for them."""
        form = self.form if form is None else form
        return form._replace(ROWS=tiles.rows, KEYS=tiles.keys, DV=width, DVP=power(width))

    def _share_of_keys(self, programs: int, tiles: Tiling) -> int:
        """Keys that a program looks at, if as many are to run as there are processors, twice over."""
        keys = max(self.inputs.lengths.keys, 1)
        splits = max(1, min(2 * processors(self.query.device) // max(programs, 1), keys // (2 * tiles.keys)))
        return -(-keys // (splits * tiles.keys)) * tiles.keys

    def mass(self, statistic: Mass, result: Tensor, given: Tensor | None) -> None:
        """Masses of groups: the pattern times which group each key is of."""
        member = _membership(statistic.groups, statistic.count or 0)
        for start in range(0, result.shape[-1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            results = self.kernels.Results(self._rows, given=given)
            self.rows(results, output=result[..., part], value=member[..., part], product="tf32x3")

    def _many_top_keys(self, statistic: TopKeys, result: Tensors, lse: Tensor | None, given: Tensor | None) -> None:
        if lse is None:
            lse = self.new_rows()
            self.rows(self.kernels.Results(self._rows, lse=lse))
        lse, partial = (lse, False) if given is None else (given, True)
        found = Tiled().observe(self.problem, self.inputs.gathered(), lse, [statistic], partial=partial)
        for here, there in zip(result, found[0], strict=True):
            here.copy_(there)

    # ------------------------------------------------------------------------------------ by columns

    def _by_key(self, asked: Sequence[tuple[Statistic, Tensors]], known: Any) -> None:
        """Statistics by key; one pass serves a map, and what all keys receive."""
        lengths = self.inputs.lengths
        sums: Tensor | None = None
        if any(isinstance(statistic, Received) and statistic.by is None for statistic, _ in asked):
            sums = self.new_rows(lengths.batch, lengths.heads, lengths.keys)
        missing = sums
        for statistic, (result, *_) in asked:
            if isinstance(statistic, Map):
                cells = self._map(statistic, known, missing)
                if statistic.over_heads:
                    cells = cells.amax(1) if statistic.reduce == "max" else cells.sum(1)
                result.copy_(cells)
                missing = None
        if missing is not None:
            self._columns(known, sums=missing)
        for statistic, (result, *_) in asked:
            if not isinstance(statistic, Received):
                continue
            received = self._received(statistic, known) if sums is None or statistic.by is not None else sums
            result.copy_(received.sum(1) if statistic.over_heads else received)

    def _received(self, statistic: Received, known: Any) -> Tensor:
        """What keys receive from groups of queries: the transposed pattern times which group each query is of."""
        assert statistic.by is not None
        return self.product(_membership(statistic.by, statistic.count or 0), known, groups=True).mT

    def product(self, rows: Tensor, known: Any, *, groups: bool = False) -> Tensor:
        """The transposed pattern times ``rows (B | 1, H | 1, Nq, Y)``, float32 ``(B, H, Nk, Y)``.

        `groups`: rows say which group each is of.
        """
        width = rows.shape[-1]
        if width > _COLUMNS:
            return torch.cat([self.product(part, known, groups=groups) for part in rows.split(_COLUMNS, -1)], -1)
        lengths, packed, rows = self.inputs.lengths, self._packed(None), unit_stride(rows)
        result = self.new_rows(lengths.batch, lengths.heads, lengths.keys, width)
        form = self.form._replace(GROUPS=groups, PRODUCT="tf32x3" if groups else self.form.PRECISION)
        operand = self._operand(rows)

        def run(tiles: Tiling) -> None:
            fetch = self._row_blocks(self.query, tiles), self._row_blocks(rows, tiles)
            arguments = (known, operand, result, self._spans(tiles), self._form(tiles, width, form))
            grid = (-(-lengths.keys // tiles.keys) * self.lines,)
            self._launch("product", grid, tiles, packed, *fetch, *arguments)

        if width:
            self._fit("columns", width, run)
        return result

    def _map(self, statistic: Map, known: Any, sums: Tensor | None) -> Tensor:
        """Sums or the largest weights of cells, ``(B, H, cells_q, cells_k)``; `sums`: what keys receive, as well."""
        lengths = self.inputs.lengths
        cells_q, cells_k = statistic.grid(lengths)
        found = self.new_rows(self.lines, cells_q, cells_k)
        peak = statistic.reduce == "max"
        edges = cell_bounds(lengths.keys, cells_k, self.query.device).int()
        lines = max(1, min(self.lines, MOST_CELLS // max(4 * cells_q * lengths.keys, 1)))
        for start in range(0, self.lines, lines):
            count = min(lines, self.lines - start)
            cells = self.new_rows(count, cells_q, lengths.keys)
            self._columns(known, sums=sums, cells=cells, part=start, peak=peak)
            here = found[start : start + count]
            grid = (count * cells_q * cells_k,)
            self._launch("cells", grid, _MERGING, cells, here, edges, lengths.keys, cells_k, peak, _CHUNK)
        return found.view(lengths.batch, lengths.heads, cells_q, cells_k)

    def _columns(
        self,
        known: Any,
        *,
        sums: Tensor | None = None,
        cells: Tensor | None = None,
        part: int = 0,
        peak: bool = False,
    ) -> None:
        """What keys receive; see `gpu_kernels.columns_kernel`."""
        lengths, packed = self.inputs.lengths, self._packed(None)
        cell_rows = 1 if cells is None else cells.shape[1]
        lines = self.lines if cells is None else cells.shape[0]
        edges = cell_bounds(lengths.queries, cell_rows, self.query.device).int()
        form = self.form._replace(PEAK=peak)

        def run(tiles: Tiling) -> None:
            if cells is not None:  # blocks of rows that are not much higher than a cell
                tiles = tiles._replace(rows=min(tiles.rows, power(-(-lengths.queries // max(cell_rows, 1)))))
            arguments = (known, sums, cells, edges, cell_rows, self._spans(tiles), part, self._form(tiles, 1, form))
            grid = (-(-lengths.keys // tiles.keys) * lines,)
            self._launch("columns", grid, tiles, packed, self._row_blocks(self.query, tiles), *arguments)

        self._fit("columns", 1, run)

    def _spans(self, tiles: Tiling) -> Any:
        """Which blocks of rows each tile of keys has to look at."""
        mask, lengths, size = self.problem.mask, self.inputs.lengths, (tiles.rows, tiles.keys)
        if not isinstance(mask, Intervals):
            return None
        if size in self._known_spans:
            return self._known_spans[size]
        batch, heads = mask.starts.shape[:2]
        blocks, tiles_of_keys = -(-lengths.queries // tiles.rows), -(-lengths.keys // tiles.keys)
        new = partial(torch.empty, dtype=torch.int32, device=self.query.device)
        bounds, spans = new(batch, heads, blocks, mask.runs, 4), new(batch, heads, tiles_of_keys, 4)
        packed = self._packed(None)
        self._launch("bounds", (blocks * batch * heads,), _MERGING, packed, bounds, tiles.rows)
        grid = (tiles_of_keys * batch * heads,)
        self._launch("spans", grid, _MERGING, packed, bounds, spans, blocks, tiles.keys, _CHUNK)
        self._known_spans[size] = self.kernels.Spans(spans, shared_stride(spans, 0), shared_stride(spans, 1))
        return self._known_spans[size]

    def window(self, lse: Tensor, queries: slice, keys: slice) -> Tensor:
        """See `Backend.window`."""
        lengths = self.inputs.lengths
        rows, columns = queries.stop - queries.start, keys.stop - keys.start
        result = self.new_rows(lengths.batch, lengths.heads, max(rows, 0), max(columns, 0))
        bounds = (queries.start, queries.stop, keys.start, keys.stop)
        packed = self._packed(None)

        def run(tiles: Tiling) -> None:
            grid = (-(-columns // tiles.keys) * -(-rows // tiles.rows) * self.lines,)
            self._launch("window", grid, tiles, packed, lse, result, *bounds, self._form(tiles, 1))

        self._fit("columns", 1, run)
        return result

    # ------------------------------------------------------------------------------------ backward

    def backward(self, forward: Forward, grad_output: Tensor, grad_lse: Tensor, *, want_bias: bool) -> Gradients:
        """All gradients but those of sinks."""
        lengths, width = self.inputs.lengths, self.value.shape[-1]
        rows = self.gradients.Rows(self.new_rows(), None, self.new_rows())
        if isinstance(self.problem.bias, DenseBias):  # it may be so low that the lse has lost all digits that matter
            state = self.new_state()
            self.rows(state)
            rows = rows._replace(base=state.top, share=state.share)
        grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (self.query, self.key, self.value)]
        bias = self.problem.bias if want_bias else None
        ends = isinstance(bias, ALiBi | RelativeBias)
        low, high = (self.new_rows() if ends else None for _ in range(2))
        grad_output = unit_stride(grad_output)
        packed, grad = self._packed(self.value), self._operand(grad_output)
        numbers = (x.float().contiguous() for x in (forward.lse, grad_lse))
        start = (self._operand(unit_stride(forward.output)), grad, *numbers, rows)
        grid = (-(-lengths.queries // _STARTING.rows) * self.lines,)
        self._launch("backward_start", grid, _STARTING, packed, *start, self._form(_STARTING, width))
        arguments = (rows, grad)
        query_grad, key_grad, value_grad = (self._operand(x) for x in grads)
        scale = self.problem.scale

        def by_keys(tiles: Tiling) -> None:
            grid = (-(-lengths.keys // tiles.keys) * self.lines // self.inputs.group,)
            fetch = self._row_blocks(self.query, tiles), self._row_blocks(grad_output, tiles)
            rest = (key_grad, value_grad, self._spans(tiles), scale, self._form(tiles, width))
            self._launch("backward_keys", grid, tiles, packed, *fetch, *arguments, *rest)

        def by_rows(tiles: Tiling) -> None:
            grid = (-(-lengths.queries // tiles.rows) * self.lines,)
            fetch = self._key_blocks(self.key, tiles), self._key_blocks(self.value, tiles)
            form = self._form(tiles, width)._replace(BIAS_GRAD=ends)
            self._launch("backward_rows", grid, tiles, packed, *fetch, *arguments, query_grad, low, high, scale, form)

        self._fit("backward_keys", width, by_keys)
        self._fit("backward_rows", width, by_rows)
        bias_grad = None
        if isinstance(bias, DenseBias):
            bias_grad = self._dense_bias(bias, (packed, *arguments))
        elif isinstance(bias, ALiBi):
            assert low is not None
            bias_grad = low.sum(-1)
        elif isinstance(bias, RelativeBias):
            bias_grad = self._relative_bias(bias, (low, high), (packed, *arguments))
        if bias is not None and bias_grad is not None:
            bias_grad = bias_grad.sum_to_size(bias.values.shape).to(bias.values.dtype)
        return Gradients(grads[0], grads[1], grads[2], bias_grad, None)

    def _dense_bias(self, bias: DenseBias, arguments: tuple[Any, ...]) -> Tensor:
        lengths, values = self.inputs.lengths, bias.values
        result = torch.zeros(values.shape, dtype=torch.float32, device=values.device)
        batch, heads, rows, keys = values.shape
        out, width = self._bias(result), self.value.shape[-1]

        def run(tiles: Tiling) -> None:
            blocks, tiles_of_keys = -(-lengths.queries // tiles.rows), -(-lengths.keys // tiles.keys)
            shared = (
                lengths.batch // max(batch, 1),
                lengths.heads // max(heads, 1),
                blocks if rows == 1 else 1,
                tiles_of_keys if keys == 1 else 1,
            )
            grid = ((1 if keys == 1 else tiles_of_keys) * (1 if rows == 1 else blocks) * batch * heads,)
            form = self._form(tiles, width)._replace(SUM_ROWS=rows == 1, SUM_KEYS=keys == 1)
            self._launch("dense_bias", grid, tiles, *arguments, out, *shared, form)

        self._fit("backward_rows", width, run)
        return result

    def _relative_bias(self, bias: RelativeBias, ends: tuple[Tensor | None, ...], arguments: tuple[Any, ...]) -> Tensor:
        lengths, count = self.inputs.lengths, bias.values.shape[-1]
        blocks = -(-lengths.queries // _BAND)
        parts = torch.zeros(lengths.batch, lengths.heads, blocks, count, device=self.query.device)
        form = self._form(_MERGING._replace(rows=_BAND), self.value.shape[-1])
        self._launch("relative_bias", (blocks * self.lines,), _MERGING, *arguments, parts, form)
        result = parts.double().sum(-2)
        for place, end in zip((0, -1), ends, strict=True):
            assert end is not None
            result[..., place] += end.double().sum(-1)
        return result


_NAMES = ("entropy", "max_weight", "distance")
_COLUMNS = 64  # of values that are no values of the problem
_BAND = 32  # rows of which a program adds up the diagonals
_MERGING = Tiling(0, 0, 4, 1)
_STARTING = Tiling(32, 0, 4, 1)


def _shift(bias: Any) -> int:
    """What is added to a query's position; for a relative bias the first value's place as well, within 32 bits.

    Beyond 2^30 all pairs of positions have the first value, or the last.
    """
    if isinstance(bias, RelativeBias):
        return max(-_FARTHEST, min(_FARTHEST, (bias.offset or 0) + bias.first))
    return bias.offset or 0


_FARTHEST = 1 << 30


def _membership(groups: Tensor, count: int) -> Tensor:
    """Which group each position is of, float32 ``(B | 1, 1, N, count)``."""
    return one_hot(groups, count, torch.float32)[:, None]
