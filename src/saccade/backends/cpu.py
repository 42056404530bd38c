"""Attention on the CPU by compiled kernels (``native/``): forward, backward, decoding and every statistic.

The kernels compute float32, and bfloat16 and float16 in float32 sums. They serve finite numbers only: a call in which
an input or a score turns out to be NaN or infinite is computed by `tiled`, which keeps what is not finite apart from
what does not see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.backends.contract import (
    Backend,
    Forward,
    Gradients,
    Inputs,
    Prepared,
    shared_stride,
    sink_gradient,
    unit_stride,
)
from saccade.backends.native import DTYPES, POINTERS, Fields, Library, NotFiniteError, load, unavailable
from saccade.backends.tiled import Tiled
from saccade.masks import Dense, Intervals
from saccade.scores import ALiBi, DenseBias, Problem, RelativeBias
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
)

_KINDS = {Entropy: 0, MaxWeight: 1, TopKeys: 2, Distance: 3, Mass: 4, Received: 5, Map: 6}
_REDUCTIONS = ("mean", "max", "sum")
_BIASES = {DenseBias: 1, ALiBi: 2, RelativeBias: 3}


class CPU(Backend):
    """The compiled kernels."""

    name = "cpu"

    def refuses(self, problem: Problem, inputs: Inputs) -> str | None:
        """See `Backend.refuses`. Any problem is served, in three dtypes, where the library was built."""
        del problem
        if inputs.query.device.type != "cpu":
            return f"tensors are on {inputs.query.device}, not on the CPU"
        if inputs.query.dtype == torch.float64:
            return "the kernels do not compute float64"
        return unavailable()

    def prepare(self, problem: Problem, inputs: Inputs) -> Prepared | None:
        """See `Backend.prepare`. All but four addresses is packed once."""
        if inputs.pages is not None or _with_unit_stride(inputs) is not inputs:
            return None
        library, output = _library(), inputs.empty_output()
        fields, keep = _problem(problem, inputs)
        _tensor(fields, "output", output)
        rest = library.pack(fields)[POINTERS.size :]
        shape, strides, dtype, device = output.shape, output.stride(), output.dtype, output.device

        def forward(query: Tensor, key: Tensor, value: Tensor, keep: list[Tensor] = keep) -> Tensor | None:
            del keep
            output = torch.empty_strided(shape, strides, dtype=dtype, device=device)
            addresses = POINTERS.pack(query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr())
            try:
                library.call_packed("forward", addresses + rest)
            except NotFiniteError:
                return None
            return output

        return forward

    def forward(self, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic], *, want_lse: bool) -> Forward:
        """See `Backend.forward`. Memory: O(N D), and for each thread a panel of at most 8 MiB with statistics."""
        inputs = _with_unit_stride(inputs)
        output = inputs.empty_output()
        shape = output.shape[:3] if want_lse or statistics else (0,)
        lse = output.new_empty(shape, dtype=torch.float32)
        results = [statistic.empty(inputs.lengths, torch.float32) for statistic in statistics]
        fields, keep = _problem(problem, inputs)
        _tensor(fields, "output", output)
        fields["lse"] = lse.data_ptr()
        records = _records(statistics, results)
        try:
            _library().call("forward", fields, records)
        except NotFiniteError:
            return Tiled().forward(problem, inputs, statistics, want_lse=want_lse)
        del keep
        done = [s.finish(r, inputs.lengths) for s, r in zip(statistics, results, strict=True)]
        return Forward(output, lse, done)

    def observe(
        self,
        problem: Problem,
        inputs: Inputs,
        lse: Float[Tensor, "B H Nq"],
        statistics: Sequence[Statistic],
        *,
        partial: bool = False,
    ) -> list[Tensors]:
        """See `Backend.observe`. O(Nq Nk D) time, no memory beyond the results."""
        results = [statistic.empty(inputs.lengths, torch.float32) for statistic in statistics]
        records = _records(statistics, results)
        lse = lse.float().contiguous()
        fields, keep = _problem(problem, _with_unit_stride(inputs))
        fields |= {"value": 0, "lse": lse.data_ptr(), "partial": int(partial)}
        try:
            _library().call("observe", fields, records)
        except NotFiniteError:
            return Tiled().observe(problem, inputs, lse, statistics, partial=partial)
        del keep
        return [s.finish(r, inputs.lengths) for s, r in zip(statistics, results, strict=True)]

    def transposed(
        self, problem: Problem, inputs: Inputs, lse: Float[Tensor, "B H Nq"], rows: Float[Tensor, "B H Nq Y"]
    ) -> Float[Tensor, "B H Nk Y"]:
        """See `Backend.transposed`. O(Nq Nk (D + Y)) time; for each thread O(Nq D) memory."""
        rows, lse = unit_stride(rows.to(inputs.query.dtype)), lse.float().contiguous()
        result = rows.new_empty(*rows.shape[:2], inputs.lengths.keys, rows.shape[3], dtype=torch.float32)
        fields, keep = _problem(problem, _with_unit_stride(inputs))
        _tensor(fields, "rows_grad", rows)
        fields |= {"value": 0, "lse": lse.data_ptr(), "value_grad": result.data_ptr(), "value_width": rows.shape[3]}
        try:
            _library().call("transposed", fields)
        except NotFiniteError:
            return Tiled().transposed(problem, inputs, lse, rows)
        del keep
        return result

    def window(
        self, problem: Problem, inputs: Inputs, lse: Float[Tensor, "B H Nq"], queries: slice, keys: slice
    ) -> Float[Tensor, "B H rows columns"]:
        """See `Backend.window`. The time of the window, and that of its rows where an lse is beyond 64 in magnitude."""
        lse = lse.float().contiguous()
        shape = (queries.stop - queries.start, keys.stop - keys.start)
        result = lse.new_zeros(*lse.shape[:2], *shape)
        fields, keep = _problem(problem, _with_unit_stride(inputs))
        fields |= {"value": 0, "lse": lse.data_ptr(), "output": result.data_ptr()}
        fields |= {"row_start": queries.start, "row_stop": queries.stop, "key_start": keys.start, "key_stop": keys.stop}
        try:
            _library().call("window", fields)
        except NotFiniteError:
            return super().window(problem, inputs, lse, queries, keys)
        del keep
        return result

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
        """See `Backend.backward`. Weights are computed again tile by tile; the same bits for the same threads."""
        inputs = _with_unit_stride(inputs)
        rows_grad, lse_grad = unit_stride(grad_output.to(inputs.query.dtype)), grad_lse.float().contiguous()
        grads = [x.new_empty(x.shape) for x in (inputs.query, inputs.key, inputs.value)]
        fields, keep = _problem(problem, inputs)
        output = unit_stride(forward.output)
        _tensor(fields, "output", output)
        _tensor(fields, "rows_grad", rows_grad)
        fields |= {"lse": forward.lse.data_ptr(), "lse_grad": lse_grad.data_ptr()}
        fields |= dict(zip(("query_grad", "key_grad", "value_grad"), (x.data_ptr() for x in grads), strict=True))
        bias_grad = None
        if problem.bias is not None and want_bias:
            bias_grad = lse_grad.new_zeros(problem.bias.values.shape)
            fields |= _bias_gradient(bias_grad)
        try:
            _library().call("backward", fields)
        except NotFiniteError:
            return Tiled().backward(problem, inputs, forward, grad_output, grad_lse, want_bias=want_bias)
        del keep
        query_grad, key_grad, value_grad = grads
        return Gradients(
            query_grad,
            key_grad,
            value_grad,
            None if bias_grad is None or problem.bias is None else bias_grad.to(problem.bias.values.dtype),
            sink_gradient(problem, forward, grad_output, grad_lse),
        )


def _library() -> Library:
    library = load()
    assert isinstance(library, Library), "refuses() said so"
    return library


def _with_unit_stride(inputs: Inputs) -> Inputs:
    query, key, value = inputs.query, inputs.key, inputs.value
    if query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        return inputs
    return Inputs(unit_stride(query), unit_stride(key), unit_stride(value), inputs.pages)


# ---------------------------------------------------------------------------------------- the fields of native/abi.h


_STRIDES = {
    name: (f"{name}_batch", f"{name}_head", f"{name}_row") for name in ("query", "key", "value", "output", "rows_grad")
}


def _tensor(fields: Fields, name: str, x: Tensor) -> None:
    """Address and strides of a tensor ``(B, H, N, D)``."""
    batch, head, row = _STRIDES[name]
    fields[name] = x.data_ptr()
    fields[batch], fields[head], fields[row], _ = x.stride()


def _problem(problem: Problem, inputs: Inputs) -> tuple[Fields, list[Tensor]]:
    """What every call says of a problem, and the tensors made on the way, to be kept until the call is over."""
    query, key, value = inputs.query, inputs.key, inputs.value
    fields = _library().blank()
    _tensor(fields, "query", query)
    _tensor(fields, "key", key)
    _tensor(fields, "value", value)
    fields["batch"], fields["heads"], fields["queries"], fields["width"] = query.shape
    _, fields["key_heads"], fields["keys"], fields["value_width"] = value.shape
    if inputs.pages is not None:
        fields["pages"], fields["pages_batch"] = inputs.pages.data_ptr(), inputs.pages.stride(0)
        fields["page_size"], fields["keys"] = value.shape[2], inputs.lengths.keys
    fields["dtype"] = DTYPES[query.dtype]
    fields["scale"] = problem.scale
    fields["softcap"] = problem.softcap or 0.0
    fields["threads"] = torch.get_num_threads()
    keep: list[Tensor] = []
    if problem.mask is not None:
        fields |= _mask(problem.mask, keep)
    if problem.bias is not None:
        fields |= _bias(problem, keep)
    if problem.sinks is not None:
        sinks = problem.sinks.detach().float().contiguous()
        keep.append(sinks)
        fields |= {"sinks": sinks.data_ptr(), "sinks_batch": shared_stride(sinks, 0)}
    return fields, keep


def _mask(mask: Intervals | Dense, keep: list[Tensor]) -> Fields:
    if isinstance(mask, Dense):
        visible = unit_stride(mask.visible)
        keep.append(visible)
        return {
            "visible": visible.data_ptr(),
            "visible_batch": shared_stride(visible, 0),
            "visible_head": shared_stride(visible, 1),
            "visible_row": visible.stride(2),
        }
    starts, stops = mask.starts.contiguous(), mask.stops.contiguous()
    keep += [starts, stops]
    return {
        "starts": starts.data_ptr(),
        "stops": stops.data_ptr(),
        "runs": mask.runs,
        "mask_batch": shared_stride(starts, 0),
        "mask_head": shared_stride(starts, 1),
    }


def _bias(problem: Problem, keep: list[Tensor]) -> Fields:
    bias = problem.bias
    assert bias is not None
    values = bias.values.detach()
    if values.dtype not in DTYPES:
        values = values.float()
    if not isinstance(bias, DenseBias):
        values = values.contiguous()
    keep.append(values)
    fields: Fields = {
        "bias": values.data_ptr(),
        "bias_kind": _BIASES[type(bias)],
        "bias_dtype": DTYPES[values.dtype],
        "bias_batch": shared_stride(values, 0),
        "bias_head": shared_stride(values, 1),
        "bias_offset": bias.offset or 0,
        "bias_count": values.shape[-1],
    }
    if isinstance(bias, DenseBias):
        fields |= {"bias_row": shared_stride(values, 2), "bias_key": shared_stride(values, 3)}
    if isinstance(bias, RelativeBias):
        fields["bias_first"] = bias.first
    return fields


def _bias_gradient(grad: Tensor) -> Fields:
    """Where a bias's gradient goes; like the bias, shared along dimensions of size 1."""
    names = ("bias_grad_batch", "bias_grad_head", "bias_grad_row", "bias_grad_key")
    strides = {name: shared_stride(grad, dim) for dim, name in enumerate(names[: grad.dim()])}
    return {"bias_grad": grad.data_ptr(), "bias_grad_size": grad.numel()} | strides


def _records(statistics: Sequence[Statistic], results: Sequence[Tensors]) -> list[dict[str, int]]:
    """The statistics that there is something to compute of; the lse is none of them."""
    return [
        _record(statistic, result)
        for statistic, result in zip(statistics, results, strict=True)
        if not isinstance(statistic, LogSumExp) and result[0].numel()
    ]


def _record(statistic: Statistic, result: Tensors) -> dict[str, int]:
    """One statistic, as native/statistics.h lists them."""
    first = second = third = groups = groups_batch = 0
    over_heads = False
    table: Tensor | None = None
    match statistic:
        case TopKeys():
            first = statistic.k
        case Distance():
            first = statistic.offset or 0
        case Mass():
            first, table = statistic.count or 0, statistic.groups
        case Received():
            first, table = (0, None) if statistic.by is None else (statistic.count or 0, statistic.by)
            over_heads = statistic.over_heads
        case Map():
            first, second, third = *result[0].shape[-2:], _REDUCTIONS.index(statistic.reduce)
            over_heads = statistic.over_heads
    if table is not None:
        groups, groups_batch = table.data_ptr(), shared_stride(table, 0)
    index, values = (0, result[0]) if len(result) == 1 else (result[0].data_ptr(), result[1])
    return {
        "kind": _KINDS[type(statistic)],
        "first": first,
        "second": second,
        "third": third,
        "over_heads": int(over_heads),
        "result": values.data_ptr(),
        "indices": index,
        "groups": groups,
        "groups_batch": groups_batch,
    }
