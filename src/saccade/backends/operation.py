"""The operator as PyTorch's dispatcher sees it.

One `torch.library` operation, `saccade::forward`, with `saccade::backward` as its derivative, so that autograd,
torch.compile and fake tensors treat it as they treat PyTorch's own. An operation takes tensors and numbers only: masks,
biases and statistics are handed over in the flat form that `Call` packs and unpacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual

from saccade.backends import get
from saccade.backends.contract import Backend, Forward, Inputs
from saccade.errors import DerivativeError
from saccade.masks import Dense, Intervals
from saccade.scores import Problem, decode_bias
from saccade.statistics import Statistic, Tensors, decode


@dataclass(frozen=True, eq=False)
class Call:
    """One call in the form that the operation takes: tensors and numbers."""

    inputs: Inputs
    problem: Problem
    statistics: Sequence[Statistic]
    want_lse: bool
    backend: str

    def pack(self) -> tuple[Any, ...]:
        """The operation's arguments, in the order of `_ARGUMENTS`."""
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
            self.inputs.pages,
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
    def unpack(  # noqa: PLR0913, PLR0917  as many as the operation has
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
        pages: Tensor | None,
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
    ) -> Call:
        """The reverse of `pack`."""
        mask: Intervals | Dense | None = None if visible is None else Dense(visible)
        if starts is not None and stops is not None:
            mask = Intervals(starts, stops, key.shape[2] * (1 if pages is None else pages.shape[1]))
        problem = Problem(scale, mask, softcap, decode_bias(bias_kind, bias, bias_numbers), sinks)
        tensors, rest = iter(groups), iter(numbers)
        statistics = [
            decode(field, [next(rest) for _ in range(count)], next(tensors) if has_tensor else None)
            for field, count, has_tensor in zip(fields, counts, grouped, strict=True)
        ]
        return cls(Inputs(query, key, value, pages), problem, statistics, want_lse, backend)


_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? sinks, Tensor? starts, Tensor? stops, "
    "Tensor? visible, Tensor[] groups, Tensor? pages, float scale, float? softcap, str bias_kind, int[] bias_numbers, "
    "str[] fields, "
    "int[] counts, int[] numbers, bool[] grouped, bool want_lse, str backend"
)

_library = torch.library.Library("saccade", "DEF")
_library.define(f"forward({_ARGUMENTS}) -> Tensor[]")
_library.define(
    f"backward({_ARGUMENTS}, Tensor output, Tensor lse, Tensor grad_output, Tensor grad_lse, bool want_bias)"
    " -> Tensor[]"
)


def _forward(*arguments: Any) -> list[Tensor]:
    """Output, lse, and the tensors of each statistic one after the other."""
    call = Call.unpack(*arguments)
    forward = get(call.backend).forward(call.problem, call.inputs, call.statistics, want_lse=call.want_lse)
    lse = forward.lse if _has_lse(call) else forward.lse.new_empty(0)
    return [forward.output, lse, *(x for result in forward.results for x in result)]


def _forward_fake(*arguments: Any) -> list[Tensor]:
    """Empty results of the right shapes and strides, for torch.compile."""
    call = Call.unpack(*arguments)
    inputs, shape = call.inputs, call.inputs.output_shape
    output = inputs.empty_output()
    lse = inputs.query.new_empty(shape[:3] if _has_lse(call) else (0,), dtype=inputs.compute)
    results = [s.empty(inputs.lengths, inputs.compute) for s in call.statistics]
    return [output, lse, *(x for result in results for x in result)]


def _has_lse(call: Call) -> bool:
    return call.want_lse or bool(call.statistics)


def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients of query, key and value, then of the bias if it is wanted, and of sinks if there are any."""
    *packed, output, lse, grad_output, grad_lse, want_bias = arguments
    call, forward = Call.unpack(*packed), Forward(output, lse, [])
    backend = get(call.backend)
    found = backend.backward(call.problem, call.inputs, forward, grad_output, grad_lse, want_bias=want_bias)
    grads = (found.query, found.key, found.value, found.bias, found.sinks)
    return [grad.contiguous() for grad in grads if grad is not None]


def _backward_fake(*arguments: Any) -> list[Tensor]:
    *inputs, bias, sinks = arguments[:5]
    leaves = [*inputs, bias if arguments[-1] else None, sinks]
    return [x.new_empty(x.shape) for x in leaves if x is not None]


class _Derivative(torch.autograd.Function):
    """Connects the two operations. Only the output and the lse have a gradient."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        with _AutoDispatchBelowAutograd():
            return tuple(torch.ops.saccade.forward.default(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*output[:2], *tensors, *inputs[8])
        ctx.template = tuple(None if isinstance(x, Tensor) else x for x in inputs)
        ctx.is_tensor = tuple(isinstance(x, Tensor) for x in inputs)
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        output, lse, *saved = ctx.saved_tensors
        tensors = iter(saved)
        arguments = [next(tensors) if t else x for t, x in zip(ctx.is_tensor, ctx.template, strict=True)]
        arguments[8] = list(tensors)
        with torch.no_grad():
            wanted = arguments[3] is not None and ctx.needs_input_grad[3]
            found = torch.ops.saccade.backward.default(*arguments, output, lse, grad_output, grad_lse, wanted)
        leaves = [x for x in arguments[:5] if x is not None]
        if torch.is_grad_enabled():  # somebody means to differentiate the gradients
            found = _Final.apply(len(found), *found, *leaves, grad_output, grad_lse)  # type: ignore[no-untyped-call]
        grads, has_grad = iter(found), [True, True, True, wanted, arguments[4] is not None]
        return *(next(grads) if has else None for has in has_grad), *(None for _ in arguments[5:])


class _Final(torch.autograd.Function):
    """Gradients that refuse to be differentiated; without this they would count as constants, silently."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no way back."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        del ctx, grads
        raise DerivativeError(
            "saccade.attention was differentiated twice; it has first derivatives only. For second ones write "
            "attention out in PyTorch operations"
        )


def _forward_autograd(*arguments: Any) -> list[Tensor]:
    leaves = [x for x in arguments[:5] if x is not None]
    if any(unpack_dual(x).tangent is not None for x in leaves):
        raise DerivativeError(
            "saccade.attention was called in forward-mode differentiation (jvp); it has reverse mode only: "
            "torch.autograd.grad"
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in leaves):
        return list(_Derivative.apply(*arguments))  # type: ignore[no-untyped-call]
    with _AutoDispatchBelowAutograd():
        return list(torch.ops.saccade.forward.default(*arguments))


_library.impl("forward", _forward, "CompositeExplicitAutograd")
_library.impl("backward", _backward, "CompositeExplicitAutograd")
_library.impl("forward", _forward_autograd, "Autograd")
torch.library.register_fake("saccade::forward", _forward_fake, lib=_library)
torch.library.register_fake("saccade::backward", _backward_fake, lib=_library)


def watched() -> bool:
    """Whether somebody has to see every operation: a mode, a transform, a tracer, the profiler.

    If nobody has to, the backend is called at once: the way through the dispatcher takes longer than a small call.
    """
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()  # noqa: SLF001
        or torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
        or torch._C._get_tracing_state() is not None  # noqa: SLF001
        or forward_ad._current_level >= 0  # noqa: SLF001
        or torch._C._autograd._profiler_enabled()  # noqa: SLF001
    )


def _plain(leaves: Sequence[Tensor | None]) -> bool:
    """Whether these are no subclass and hold numbers."""
    return all(x is None or (type(x) in _PLAIN and not x.is_meta) for x in leaves)


_NOTHING = nullcontext()
_PLAIN = {Tensor, torch.nn.Parameter}


def call(backend: Backend, problem: Problem, inputs: Inputs, statistics: Sequence[Statistic]) -> Forward:
    """Run the operation; the lse is computed only for a statistic or a gradient."""
    bias = None if problem.bias is None else problem.bias.values
    leaves = [inputs.query, inputs.key, inputs.value, bias, problem.sinks]
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves)
    if not differentiable and _plain(leaves) and not watched():
        with torch.no_grad() if torch.is_grad_enabled() else _NOTHING:
            return backend.forward(problem, inputs, statistics, want_lse=bool(statistics))
    call = Call(inputs, problem, statistics, differentiable or bool(statistics), backend.name)
    output, lse, *rest = torch.ops.saccade.forward.default(*call.pack())
    tensors = iter(rest)
    results: list[Tensors] = [tuple(next(tensors) for _ in range(s.tensors)) for s in statistics]
    return Forward(output, lse, results)
