"""`attention`: check once, choose a backend, call it, hand the report to whoever observes."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Protocol, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._compile import _disable_dynamo

from saccade import backends
from saccade.backends import Inputs, operation
from saccade.backends.contract import Prepared
from saccade.errors import ArgumentError, DeviceError, DtypeError, ShapeError
from saccade.masks import Lengths, Mask, causal, dense
from saccade.scores import Bias, Problem, as_bias
from saccade.statistics import LogSumExp, Report, Statistic, Tensors, check_all

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Observer(Protocol):
    """Someone who wants statistics of every attention call in a stretch of code."""

    def wanted(self, lengths: Lengths) -> Sequence[Statistic]:
        """What to compute for a call of these lengths, besides what its caller asked for."""

    def receive(self, report: Report, problem: Problem, inputs: Inputs) -> None:
        """Take the call's report, and what formed the pattern that it is of."""


OBSERVER: ContextVar[Observer | None] = ContextVar("saccade_observer", default=None)


class Intervention(Protocol):
    """Someone who changes attention calls in a stretch of code, to see what follows."""

    def change_inputs(self, problem: Problem, inputs: Inputs) -> Inputs:
        """What the call is computed from; of the same shapes."""

    def change_output(self, problem: Problem, inputs: Inputs, output: Tensor) -> Tensor:
        """What the caller gets, ``(B, H, Nq, Dv)``."""


INTERVENTION: ContextVar[Intervention | None] = ContextVar("saccade_intervention", default=None)

# Makes a function for which compiled code leaves its graph. torch.compiler.disable would import the compiler at once,
# which takes seconds; this does when the function is called.
uncompiled = _disable_dynamo

# Whether anybody observes, in this or another thread. Code under torch.compile cannot ask a `ContextVar`: it asks this,
# is compiled for the answer that it got, and leaves its graph for attention where the answer is yes.
OBSERVED = False

_observers = 0
_lock = threading.Lock()


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Tell an observer of every call in this context, from compiled code as well."""
    token = OBSERVER.set(observer)
    _count_observers(1)
    try:
        yield
    finally:
        _count_observers(-1)
        OBSERVER.reset(token)


def _count_observers(change: int) -> None:
    global _observers, OBSERVED  # noqa: PLW0603  a plain global is what compiled code is guarded by
    with _lock:
        _observers += change
        OBSERVED = _observers > 0


@overload
def attention(  # type: ignore[overload-overlap]  # () is an Iterable[Statistic] as well
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
    page_table: Int[Tensor, "B n"] | None = ...,
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
    page_table: Int[Tensor, "B n"] | None = ...,
    backend: str | None = ...,
) -> tuple[Float[Tensor, "B H Nq Dv"], Report]: ...


def attention(
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
    page_table: Int[Tensor, "B n"] | None = None,
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
        page_table: with a cache in pages (PagedAttention, arXiv 2309.06180, section 4.1), the pages of each batch
            element in order, integers ``(B, n)``. Key and value are then all pages, ``(P, Hk, S, D)`` and
            ``(P, Hk, S, Dv)``, shared by the batch and read in place, and Nk = n S; `masks.padding` hides what is not
            filled yet. Without gradients.
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
    simple = statistics == () and bias is None and sinks is None and page_table is None and backend is None
    signature = _signature(query, key, value, mask, scale, softcap) if simple else None
    if signature is not None and (prepared := _prepared.get(signature)) is not None:
        output = prepared(query, key, value)
        if output is not None:
            return output
    inputs = check_inputs(query, key, value) if page_table is None else check_pages(query, key, value, page_table)
    problem = make_problem(inputs, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks)
    if signature is not None:
        _prepare(signature, problem, inputs)
    asked = check_all(statistics, inputs.lengths) if statistics != () else []
    return _answer(problem, inputs, asked, backend)


def _answer(
    problem: Problem, inputs: Inputs, asked: Sequence[Statistic], backend: str | None
) -> Tensor | tuple[Tensor, Report]:
    """What `attention` returns for checked arguments; the observer gets a report of its own."""
    # Asked in this function, as the compiler may begin with any. is_compiling() would be true in every thread.
    traced = torch.compiler.is_dynamo_compiling()
    if traced and OBSERVED:
        return _answer_uncompiled(problem, inputs, asked, backend)
    observer = None if traced else OBSERVER.get()
    extra = [] if observer is None else check_all(observer.wanted(inputs.lengths), inputs.lengths)
    intervention = None if traced else INTERVENTION.get()
    if intervention is not None:
        inputs = intervention.change_inputs(problem, inputs)
    chosen, _ = backends.choose(problem, inputs, backend)
    # Caller and observer may ask for one statistic in two ways (other groups, another k): each gets its own.
    forward = operation.call(chosen, problem, inputs, [*asked, *extra])
    if observer is not None:
        observer.receive(_report(extra, forward.results[len(asked) :], forward.lse), problem, inputs)
    output = forward.output
    if intervention is not None:
        output = intervention.change_output(problem, inputs, output)
    return (output, _report(asked, forward.results[: len(asked)], forward.lse)) if asked else output


_answer_uncompiled = uncompiled(_answer)


def _report(statistics: Sequence[Statistic], results: Sequence[Tensors], lse: Tensor) -> Report:
    """The report of these statistics."""
    return Report.of(
        (statistic, (lse,) if isinstance(statistic, LogSumExp) else result)
        for statistic, result in zip(statistics, results, strict=True)
    )


# ---------------------------------------------------------------------------------------- repeated calls


# How calls like earlier ones are computed, by their signature. Only those so small that checks would take long beside
# attention itself, and so that the masks kept with them are short.
_prepared: dict[tuple[object, ...], Prepared] = {}
_MOST_PREPARED = 256
_MOST_ENTRIES = 1 << 16  # of the pattern

_NUMBERS = {type(None), float, int}


def _signature(
    query: Tensor, key: Tensor, value: Tensor, mask: object, scale: object, softcap: object
) -> tuple[object, ...] | None:
    """All that a call depends on but the numbers; None if it may depend on more, or if anybody wants to see it."""
    if operation.watched() or (OBSERVER.get() or INTERVENTION.get()) is not None:
        return None
    if not (type(query) is type(key) is type(value) is Tensor):
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    if not (query.is_cpu and key.is_cpu and value.is_cpu and query.dtype == key.dtype == value.dtype):
        return None
    if (
        not (_written_out(query) and _written_out(key) and _written_out(value))
        or type(scale) not in _NUMBERS
        or type(softcap) not in _NUMBERS
        or not (mask is None or (isinstance(mask, Mask) and mask == _CAUSAL))
    ):
        return None
    shapes = query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride()
    return *shapes, query.dtype, mask is None, scale, softcap, torch.get_num_threads()


_CAUSAL = causal()


def _prepare(signature: tuple[object, ...], problem: Problem, inputs: Inputs) -> None:
    """Have calls of this signature computed in a shorter way from now on, if their backend knows one."""
    if inputs.lengths.queries * inputs.lengths.keys > _MOST_ENTRIES:
        return
    prepared = backends.choose(problem, inputs)[0].prepare(problem, inputs)
    if prepared is None:
        return
    if len(_prepared) >= _MOST_PREPARED:
        _prepared.clear()
    _prepared[signature] = prepared


# ---------------------------------------------------------------------------------------- checks


def check_inputs(query: Tensor, key: Tensor, value: Tensor) -> Inputs:
    """Queries, keys and values that fit each other.

    Raises:
        ShapeError, DtypeError, DeviceError: they do not.
    """
    if _plain(query, key, value):
        return Inputs(query, key, value)
    tensors = {"query": query, "key": key, "value": value}
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ArgumentError(f"{name} is {type(x).__name__}; expected a torch.Tensor of shape (B, H, N, D)")
        if x.dim() != 4:  # noqa: PLR2004
            raise ShapeError(f"{name} has shape {tuple(x.shape)}; expected 4 dimensions (B, H, N, D)")
        if x.layout != torch.strided:
            raise ArgumentError(f"{name} is {x.layout}; expected a dense tensor: call {name}.to_dense()")
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
    return Inputs(*(x if _written_out(x) else x.clone() for x in (query, key, value)))


def _written_out(x: Tensor) -> bool:
    """Whether a tensor's memory holds its numbers: not so of lazy negatives, zeros without memory, and sparse ones."""
    if torch.compiler.is_dynamo_compiling():  # cannot be asked there; the operation finds them written out
        return True
    return x.layout is torch.strided and not x.is_neg() and not x._is_zerotensor()  # noqa: SLF001


def check_pages(query: Tensor, key: Tensor, value: Tensor, page_table: Tensor) -> Inputs:
    """Queries, and keys and values in pages, that fit each other.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError: they do not, or a gradient is wanted.
    """
    if not isinstance(page_table, Tensor) or page_table.is_floating_point() or page_table.dtype == torch.bool:
        kind = page_table.dtype if isinstance(page_table, Tensor) else type(page_table).__name__
        raise ArgumentError(f"page_table is {kind}; expected a tensor of integers, the pages of each batch element")
    if page_table.dim() != 2 or (query.dim() == 4 and page_table.shape[0] != query.shape[0]):  # noqa: PLR2004
        raise ShapeError(
            f"page_table has shape {tuple(page_table.shape)}; query has {tuple(query.shape)}: expected (B, n), the "
            "pages of each of the B batch elements"
        )
    if key.dim() != 4 or key.shape[:3] != value.shape[:3]:  # noqa: PLR2004
        raise ShapeError(
            f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}; with a page_table expected "
            "(P, Hk, S, D) and (P, Hk, S, Dv): P pages of S keys"
        )
    if query.dim() == 4 and len(query) and len(key):  # noqa: PLR2004
        # A page stands for all of them: what else there is to check does not depend on their number.
        check_inputs(query[:1], key[:1], value[:1])
    if page_table.device != query.device:
        raise DeviceError(f"page_table is on {page_table.device} and query on {query.device}: move them to one device")
    if not torch.compiler.is_compiling() and page_table.numel():
        low, high = (int(x) for x in page_table.aminmax())
        if low < 0 or high >= len(key):
            raise ArgumentError(f"page_table names page {low if low < 0 else high}; there are P = {len(key)} pages")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise ArgumentError("page_table: a cache in pages has no gradient: call attention under torch.no_grad()")
    return Inputs(query, key, value, page_table.to(torch.int32).contiguous())


def _plain(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether these are of the most common kind and need no further check: a whole call may take 20 µs."""
    if not (type(query) is type(key) is type(value) is Tensor):
        return False
    shape, keys = query.shape, key.shape
    return (
        query.dtype == key.dtype == value.dtype == torch.float32
        and query.device == key.device == value.device
        and len(shape) == 4  # noqa: PLR2004
        and _written_out(query)
        and _written_out(key)
        and _written_out(value)
        and shape[1] > 0
        and shape[3] > 0
        and keys == (shape[0], shape[1], keys[-2], shape[3])
        and value.shape == (*keys[:3], value.shape[-1])
    )


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
    if softcap is not None and not (isinstance(softcap, int | float) and 0 < softcap < math.inf):
        raise ArgumentError(f"softcap = {softcap}: expected a finite number > 0, or None for no bound")
    scale = 1.0 / math.sqrt(inputs.query.shape[-1]) if scale is None else scale
    if not isinstance(scale, int | float | torch.SymFloat) or not -math.inf < scale < math.inf:
        raise ArgumentError(f"scale = {scale}: expected a finite number, or None for 1 / sqrt(D)")
    return Problem(
        scale=scale,
        mask=None if mask is None else (mask if isinstance(mask, Mask) else dense(mask)).resolve(lengths),
        softcap=softcap,
        bias=_check_bias(bias, lengths),
        sinks=None if sinks is None else _check_sinks(sinks, lengths),
    )


def _check_bias(bias: Bias | Tensor | None, lengths: Lengths) -> Bias | None:
    if bias is not None and not isinstance(bias, (Bias, Tensor)):
        raise ArgumentError(f"bias is {type(bias).__name__}; expected a tensor or a bias of saccade.scores")
    checked = as_bias(bias)
    if checked is None:
        return None
    if not isinstance(checked.values, Tensor):
        raise ArgumentError(
            f"values of {type(checked).__name__} are {type(checked.values).__name__}; expected a tensor"
        )
    _check_on("bias", checked.values, lengths)
    if not _written_out(checked.values):
        checked = replace(checked, values=checked.values.clone())  # type: ignore[type-var]
    if not checked.values.is_floating_point():
        raise DtypeError(f"bias is {checked.values.dtype}; expected floats (a boolean mask belongs into mask=)")
    return checked.check(lengths)


def _check_on(name: str, x: Tensor, lengths: Lengths) -> None:
    """Refuse a tensor without numbers where there are some."""
    if x.is_meta and torch.device(lengths.device).type != "meta":
        raise DeviceError(f"{name} on meta holds no numbers, and query is on {lengths.device}")


def _check_sinks(sinks: Tensor, lengths: Lengths) -> Tensor:
    if not isinstance(sinks, Tensor):
        raise ArgumentError(f"sinks are {type(sinks).__name__}; expected a tensor of one logit for each head")
    _check_on("sinks", sinks, lengths)
    table = sinks[None] if sinks.dim() == 1 else sinks
    if table.dim() != 2 or table.shape[0] not in (1, lengths.batch) or table.shape[1] != lengths.heads:  # noqa: PLR2004
        raise ShapeError(
            f"sinks have shape {tuple(sinks.shape)}; expected one for each head: ({lengths.heads},) or "
            f"({lengths.batch}, {lengths.heads})"
        )
    return (table if _written_out(table) else table.clone()).to(lengths.device)
