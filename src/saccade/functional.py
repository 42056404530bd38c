"""`attention`: check once, choose a backend, call it through the dispatcher.

The whole operator is one `torch.library` operation, `saccade::forward`, with `saccade::backward` as its derivative, so
autograd, torch.compile and fake tensors treat it as they treat PyTorch's own. An operation takes tensors and numbers
only: masks, biases and statistics are handed over in the flat form that `_Call` packs and unpacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saccade import backends
from saccade.backends import Backend, Forward, Inputs
from saccade.errors import ArgumentError, DeviceError, DtypeError, MaskError, ShapeError
from saccade.masks import Dense, Intervals, Lengths, Mask
from saccade.scores import Bias, Problem, as_bias, decode_bias
from saccade.statistics import LogSumExp, Report, Statistic, Tensors, check_all, decode

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Observer(Protocol):
    """Someone who wants statistics of every attention call in a stretch of code."""

    def wanted(self, lengths: Lengths) -> Sequence[Statistic]:
        """What to compute for a call of these lengths, besides what its caller asked for."""

    def receive(self, report: Report) -> None:
        """Take the call's report."""


OBSERVER: ContextVar[Observer | None] = ContextVar("saccade_observer", default=None)


@overload
def attention(
    query: Float[Tensor, "B H Nq D"],
    key: Float[Tensor, "B Hk Nk D"],
    value: Float[Tensor, "B Hk Nk Dv"],
    *,
    mask: Mask | Bool[Tensor, "..."] | None = ...,
    scale: float | None = ...,
    softcap: float | None = ...,
    bias: Bias | Float[Tensor, "..."] | None = ...,
    sinks: Float[Tensor, "..."] | None = ...,
    statistics: tuple[()] = ...,
    backend: str | None = ...,
) -> Float[Tensor, "B H Nq Dv"]: ...


@overload
def attention(
    query: Float[Tensor, "B H Nq D"],
    key: Float[Tensor, "B Hk Nk D"],
    value: Float[Tensor, "B Hk Nk Dv"],
    *,
    mask: Mask | Bool[Tensor, "..."] | None = ...,
    scale: float | None = ...,
    softcap: float | None = ...,
    bias: Bias | Float[Tensor, "..."] | None = ...,
    sinks: Float[Tensor, "..."] | None = ...,
    statistics: Statistic | Iterable[Statistic],
    backend: str | None = ...,
) -> tuple[Float[Tensor, "B H Nq Dv"], Report]: ...


def attention(  # the operator's one public signature
    query: Float[Tensor, "B H Nq D"],
    key: Float[Tensor, "B Hk Nk D"],
    value: Float[Tensor, "B Hk Nk Dv"],
    *,
    mask: Mask | Bool[Tensor, "..."] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Bias | Float[Tensor, "..."] | None = None,
    sinks: Float[Tensor, "..."] | None = None,
    statistics: Statistic | Iterable[Statistic] = (),
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Report]:
    """Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, section 3.2.1) that can say where it looked.

    Args:
        query: ``(B, H, Nq, D)``, float32, float64, bfloat16 or float16.
        key: ``(B, Hk, Nk, D)``; H a multiple of Hk (grouped-query attention, arXiv 2305.13245).
        value: ``(B, Hk, Nk, Dv)``; Dv may differ from D.
        mask: which keys each query sees, from `saccade.masks`; a boolean tensor means `masks.dense`. None: all.
        scale: factor of the dot products; None for ``1 / sqrt(D)``.
        softcap: bounds scores to ``softcap * tanh(score / softcap)``; None for no bound.
        bias: added to the scores: a tensor that broadcasts to ``(B, H, Nq, Nk)``, or a bias of `saccade.scores`.
        sinks: one logit for each head, ``(H,)`` or ``(B, H)``, that takes part in the softmax without a key, so that
            a row's weights sum to less than 1.
        statistics: what to ask of the pattern, from `saccade.statistics`.
        backend: a backend's name; None for the best one that serves the problem.

    Returns:
        The output ``(B, H, Nq, Dv)``; with statistics, the output and a `Report` of them, in float32 (float64 for
        float64 inputs). Gradients flow to query, key, value, bias and sinks, from the output and from ``report.lse``.
        A query that sees no key gets output 0 and lse -inf. NaN and infinite inputs come out as NaN wherever they
        are seen, and nowhere else.

    Raises:
        ShapeError: shapes that cannot belong together, or heads that do not divide.
        DtypeError: mixed or unsupported dtypes.
        DeviceError: tensors on different devices.
        MaskError: a mask that does not fit, or is ambiguous when Nq != Nk.
        BackendError: the named backend does not exist or cannot serve the problem.

    >>> import torch, saccade
    >>> q = k = v = torch.eye(3)[None, None]
    >>> out, report = saccade.attention(
    ...     q, k, v, mask=saccade.masks.causal(), statistics=[saccade.statistics.TopKeys(1)]
    ... )
    >>> report.top_keys.indices[0, 0, :, 0].tolist()
    [0, 1, 2]
    """
    inputs = check_inputs(query, key, value)
    problem = make_problem(inputs, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks)
    asked = check_all(statistics, inputs.lengths)
    observer = OBSERVER.get() if not torch.compiler.is_compiling() else None
    extra = [] if observer is None else check_all(observer.wanted(inputs.lengths), inputs.lengths)
    fields = {statistic.field for statistic in asked}
    everything = asked + [statistic for statistic in extra if statistic.field not in fields]
    chosen, _ = backends.choose(problem, inputs, backend)
    forward = _call(chosen, problem, inputs, everything)
    if observer is not None:
        observer.receive(_report(forward, everything, {statistic.field for statistic in extra}))
    return (forward.output, _report(forward, everything, fields)) if asked else forward.output


def _report(forward: Forward, statistics: Sequence[Statistic], fields: set[str]) -> Report:
    """The report of those statistics whose field is among `fields`."""
    return Report.of(
        (statistic, (forward.lse,) if isinstance(statistic, LogSumExp) else result)
        for statistic, result in zip(statistics, forward.results, strict=True)
        if statistic.field in fields
    )


# ---------------------------------------------------------------------------------------- checks


def check_inputs(query: Tensor, key: Tensor, value: Tensor) -> Inputs:
    """Queries, keys and values that fit each other.

    Raises:
        ShapeError, DtypeError, DeviceError: they do not.
    """
    tensors = {"query": query, "key": key, "value": value}
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ArgumentError(f"{name} is {type(x).__name__}; expected a torch.Tensor of shape (B, H, N, D)")
        if x.dim() != 4:  # noqa: PLR2004
            raise ShapeError(f"{name} has shape {tuple(x.shape)}; expected 4 dimensions (B, H, N, D)")
    _check_dtypes_and_devices(tensors)
    (batch, heads, _, width), (_, key_heads, keys, _) = query.shape, key.shape
    if key_heads == 0 or heads % key_heads:
        raise ShapeError(
            f"key has {key_heads} heads; query has {heads}: {heads} must be a multiple of {key_heads} "
            "(grouped-query attention)"
        )
    if key.shape != (batch, key_heads, keys, width):
        raise ShapeError(
            f"key has shape {tuple(key.shape)}; query has {tuple(query.shape)}: batch and last dimension must match"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ShapeError(
            f"value has shape {tuple(value.shape)}; key has {tuple(key.shape)}: batch, heads and length must match"
        )
    if width == 0:
        raise ShapeError(f"query has shape {tuple(query.shape)}; expected a width D of at least 1")
    return Inputs(query, key, value)


def _check_dtypes_and_devices(tensors: dict[str, Tensor]) -> None:
    dtypes = {name: x.dtype for name, x in tensors.items()}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise DtypeError(f"{found}: query, key and value must share one dtype")
    if dtypes["query"] not in DTYPES:
        raise DtypeError(f"query is {dtypes['query']}; expected one of {', '.join(map(str, DTYPES))}")
    devices = {name: x.device for name, x in tensors.items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} is on {device}" for name, device in devices.items())
        raise DeviceError(f"{found}: move them to one device")


def make_problem(
    inputs: Inputs,
    *,
    mask: Mask | Tensor | None,
    scale: float | None,
    softcap: float | None,
    bias: Bias | Tensor | None,
    sinks: Tensor | None,
) -> Problem:
    """The checked problem for these inputs.

    Raises:
        MaskError, ShapeError, ArgumentError: something does not fit.
    """
    lengths = inputs.lengths
    if softcap is not None and not 0 < softcap < math.inf:
        raise ArgumentError(f"softcap = {softcap}: expected a finite number > 0, or None for no bound")
    scale = 1.0 / math.sqrt(inputs.query.shape[-1]) if scale is None else scale
    if not math.isfinite(scale):
        raise ArgumentError(f"scale = {scale}: expected a finite number, or None for 1 / sqrt(D)")
    return Problem(
        scale=scale,
        mask=None if mask is None else _as_mask(mask).resolve(lengths),
        softcap=softcap,
        bias=_check_bias(bias, lengths),
        sinks=None if sinks is None else _check_sinks(sinks, lengths),
    )


def _as_mask(mask: Mask | Tensor) -> Mask:
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() in {2, 3, 4}:
        visible = mask[:, None] if mask.dim() == 3 else mask  # noqa: PLR2004
        return Dense(visible[(None,) * (4 - visible.dim())])
    what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise MaskError(
        f"mask is {what}; expected a mask of saccade.masks or booleans ([[B,] H,] Nq, Nk); "
        "additive masks of floats belong into bias="
    )


def _check_bias(bias: Bias | Tensor | None, lengths: Lengths) -> Bias | None:
    if bias is not None and not isinstance(bias, (Bias, Tensor)):
        raise ArgumentError(f"bias is {type(bias).__name__}; expected a tensor or a bias of saccade.scores")
    checked = as_bias(bias)
    if checked is None:
        return None
    if not checked.values.is_floating_point():
        raise DtypeError(f"bias is {checked.values.dtype}; expected floats (a boolean mask belongs into mask=)")
    return checked.check(lengths)


def _check_sinks(sinks: Tensor, lengths: Lengths) -> Tensor:
    table = sinks[None] if sinks.dim() == 1 else sinks
    if table.dim() != 2 or table.shape[0] not in {1, lengths.batch} or table.shape[1] != lengths.heads:  # noqa: PLR2004
        raise ShapeError(
            f"sinks have shape {tuple(sinks.shape)}; expected one for each head: ({lengths.heads},) or "
            f"({lengths.batch}, {lengths.heads})"
        )
    return table.to(lengths.device)


# ---------------------------------------------------------------------------------------- the operation


@dataclass(frozen=True, eq=False)
class _Call:
    """One call in the form that the operation takes: tensors and numbers."""

    inputs: Inputs
    problem: Problem
    statistics: Sequence[Statistic]
    want_lse: bool
    backend: str

    def pack(self) -> tuple[Any, ...]:
        """The operation's arguments, in the order of `_SCHEMA`."""
        mask, bias = self.problem.mask, self.problem.bias
        codes = [statistic.code() for statistic in self.statistics]
        return (
            self.inputs.query,
            self.inputs.key,
            self.inputs.value,
            None if bias is None else bias.values,
            self.problem.sinks,
            mask.starts if isinstance(mask, Intervals) else None,
            mask.stops if isinstance(mask, Intervals) else None,
            mask.visible if isinstance(mask, Dense) else None,
            [tensor for _, _, tensor in codes if tensor is not None],
            self.problem.scale,
            self.problem.softcap,
            "" if bias is None else bias.kind,
            [] if bias is None else bias.numbers(),
            [field for field, _, _ in codes],
            [len(numbers) for _, numbers, _ in codes],
            [number for _, numbers, _ in codes for number in numbers],
            [tensor is not None for _, _, tensor in codes],
            self.want_lse,
            self.backend,
        )

    @classmethod
    def unpack(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        starts: Tensor | None,
        stops: Tensor | None,
        visible: Tensor | None,
        groups: list[Tensor],
        scale: float,
        softcap: float | None,
        bias_kind: str,
        bias_numbers: list[int],
        fields: list[str],
        counts: list[int],
        numbers: list[int],
        grouped: list[bool],
        want_lse: bool,  # noqa: FBT001  positional in an operation's schema
        backend: str,
    ) -> _Call:
        """The reverse of `pack`."""
        mask: Intervals | Dense | None = None if visible is None else Dense(visible)
        if starts is not None and stops is not None:
            mask = Intervals(starts, stops, key.shape[2])
        problem = Problem(scale, mask, softcap, decode_bias(bias_kind, bias, bias_numbers), sinks)
        tensors, rest = iter(groups), iter(numbers)
        statistics = [
            decode(field, [next(rest) for _ in range(count)], next(tensors) if has_tensor else None)
            for field, count, has_tensor in zip(fields, counts, grouped, strict=True)
        ]
        return cls(Inputs(query, key, value), problem, statistics, want_lse, backend)


_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? sinks, Tensor? starts, Tensor? stops, "
    "Tensor? visible, Tensor[] groups, float scale, float? softcap, str bias_kind, int[] bias_numbers, str[] fields, "
    "int[] counts, int[] numbers, bool[] grouped, bool want_lse, str backend"
)

_library = torch.library.Library("saccade", "DEF")
_library.define(f"forward({_ARGUMENTS}) -> Tensor[]")
_library.define(f"backward({_ARGUMENTS}, Tensor output, Tensor lse, Tensor grad_output, Tensor grad_lse) -> Tensor[]")


def _forward(*arguments: Any) -> list[Tensor]:
    """Output, lse, and the tensors of each statistic one after the other."""
    call = _Call.unpack(*arguments)
    forward = backends.get(call.backend).forward(
        call.problem, call.inputs, call.statistics, want_lse=call.want_lse
    )
    return [forward.output, forward.lse, *(x for result in forward.results for x in result)]


def _forward_fake(*arguments: Any) -> list[Tensor]:
    """Empty results of the right shapes, for torch.compile."""
    call = _Call.unpack(*arguments)
    inputs, shape = call.inputs, call.inputs.output_shape
    output = inputs.query.new_empty(shape)
    lse = inputs.query.new_empty(shape[:3] if _has_lse(call) else (0,), dtype=inputs.compute)
    results = [s.empty(inputs.lengths, inputs.compute) for s in call.statistics]
    return [output, lse, *(x for result in results for x in result)]


def _has_lse(call: _Call) -> bool:
    return call.want_lse or bool(call.statistics)


def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients of query, key and value, then of bias and sinks where there are any."""
    *packed, output, lse, grad_output, grad_lse = arguments
    call = _Call.unpack(*packed)
    found = backends.get(call.backend).backward(
        call.problem, call.inputs, Forward(output, lse, []), grad_output, grad_lse
    )
    grads = (found.query, found.key, found.value, found.bias, found.sinks)
    return [grad for grad in grads if grad is not None]


def _backward_fake(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x in arguments[:5] if x is not None]


class _Derivative(torch.autograd.Function):
    """Connects the two operations. Only the output and the lse have a gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            output, lse, *results = torch.ops.saccade.forward.default(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        ctx.save_for_backward(output, lse, *tensors, *arguments[8])
        ctx.template = tuple(None if isinstance(x, Tensor) else x for x in arguments)
        ctx.is_tensor = tuple(isinstance(x, Tensor) for x in arguments)
        ctx.mark_non_differentiable(*results)
        return output, lse, *results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        output, lse, *saved = ctx.saved_tensors
        tensors = iter(saved)
        arguments = [next(tensors) if t else x for t, x in zip(ctx.is_tensor, ctx.template, strict=True)]
        arguments[8] = list(tensors)
        grads = iter(torch.ops.saccade.backward.default(*arguments, output, lse, grad_output, grad_lse))
        first = [None if x is None else next(grads) for x in arguments[:5]]
        return *first, *(None for _ in arguments[5:])


def _forward_autograd(*arguments: Any) -> list[Tensor]:
    return list(_Derivative.apply(*arguments))


_library.impl("forward", _forward, "CompositeExplicitAutograd")
_library.impl("backward", _backward, "CompositeExplicitAutograd")
_library.impl("forward", _forward_autograd, "Autograd")
torch.library.register_fake("saccade::forward", _forward_fake, lib=_library)
torch.library.register_fake("saccade::backward", _backward_fake, lib=_library)


def _call(backend: Backend, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic]) -> Forward:
    """Run the operation; the lse is computed only for a statistic or a gradient."""
    bias = None if problem.bias is None else problem.bias.values
    leaves = [inputs.query, inputs.key, inputs.value, bias, problem.sinks]
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves)
    call = _Call(inputs, problem, statistics, differentiable or bool(statistics), backend.name)
    output, lse, *rest = torch.ops.saccade.forward.default(*call.pack())
    tensors = iter(rest)
    results: list[Tensors] = [tuple(next(tensors) for _ in range(s.tensors)) for s in statistics]
    return Forward(output, lse, results)
