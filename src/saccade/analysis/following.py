"""`Following`: what a tensor consists of, followed through a model's own operations.

A tensor is said to be the sum of named parts. While the model runs, each operation that is linear in the tensor (a
matrix product, a sum, a reshape) is done to every part as well. Layer norms are linear once the number that they divide
by is taken as it is (Kobayashi et al. 2021, arXiv 2109.07152, section 3), and so are gates on attention's output. Where
an operation is not linear, as an MLP's activation is, what comes of it is a new part, `COMPUTED`. So the parts of any
later tensor sum to it, and nothing needs to be known of the model's modules or their names.

What is followed are numbers of ATen, PyTorch's operations: there are few of them, whatever a model is written in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten

COMPUTED = "mlp"  # what an operation that is not linear made
CONSTANT = "normalisation"  # biases added to what has several parts: those of layer norms
ATTENTION = "attention:"  # a part of that name, and a site's, is an attention call's output
BIAS = "bias:"  # what was added to such a part alone: the output projection's bias

# The parts of a tensor, by name. Each is a stack (K, *shape of the tensor): a part may be followed as K entries that
# sum to it, or as a basis of what it may be.
Parts = dict[str, Tensor]


class Following(TorchDispatchMode):
    """A context in which parts are followed.

    Attributes:
        attended: the tensor with attention's output in it that something computed was added to last, with its parts:
            what an attention block gives to the MLP after it. None if there was none.

    >>> layer = torch.nn.Linear(2, 2)
    >>> with torch.no_grad(), Following() as following:
    ...     a, b = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    ...     x = following.begin(torch.ones(1, 2), {"a": a, "b": b})
    ...     y = layer(x) + x
    >>> sorted(following.parts(y))
    ['a', 'b', 'normalisation']
    >>> torch.allclose(sum(part.sum(0) for part in following.parts(y).values()), y)
    True
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = WeakIdKeyDictionary()
        self.attended: tuple[Tensor, Parts] | None = None

    def begin(self, tensor: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """Say what a tensor consists of.

        Args:
            tensor: of any shape.
            parts: stacks ``(K, *shape)``, which sum to it.
        """
        self._known[tensor] = {name: _wide(part).clone() for name, part in parts.items()}
        return tensor

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Follow nothing in this context: what is done here is no part of the model."""
        with _disable_current_modes():
            yield

    def parts(self, tensor: Tensor) -> Parts | None:
        """What a tensor consists of; None if it came of nothing that is followed."""
        return self._known.get(tensor)  # type: ignore[no-any-return]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """PyTorch hands every operation to this."""
        del types
        kwargs = kwargs or {}
        known = self._known
        if not known or not any(x in known for x in _tensors((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        if func._schema.is_mutable:  # noqa: SLF001  no public way
            self._written(func, args, kwargs, output)
        else:
            self._made(func, args, kwargs, output)
        return output

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Parts of what an operation made of tensors that have some."""
        rule = _RULES.get(func.overloadpacket)
        made = None if rule is None else rule(_Operation(self, func, args, kwargs, output))
        several = output if isinstance(output, list | tuple) else [output]
        found: Sequence[Any] = made if isinstance(made, list) else [made] * len(several)
        for tensor, parts in zip(several, found, strict=True):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self._known[tensor] = _computed(tensor) if parts is None else parts
                self._join(args, self._known[tensor])

    def _join(self, args: tuple[Any, ...], parts: Parts) -> None:
        """Note what something computed was just added to."""
        if COMPUTED not in parts or not _attends(parts):
            return
        for x in args:
            known = self.parts(x) if isinstance(x, Tensor) else None
            if known and COMPUTED not in known and _attends(known) and _only_attention(known) is None:
                self.attended = x, known

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Parts of a tensor that was written to."""
        target = args[0]
        same = _IN_PLACE.get(func.overloadpacket)
        rule = None if same is None else _RULES[same]
        made = None if rule is None else rule(_Operation(self, func, args, kwargs, output))
        if isinstance(target, Tensor) and target.is_floating_point():
            self._known[target] = _computed(target) if made is None else made


class _Operation:
    """One operation: what it was given, what it made, and whose parts are known."""

    def __init__(
        self, following: Following, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self.func, self.args, self.kwargs, self.output = func, args, kwargs, output
        self.first = output[0] if isinstance(output, list | tuple) else output
        self.parts = following.parts

    def of(self, place: int) -> Parts | None:
        """Parts of the argument at a place."""
        x = self.args[place] if place < len(self.args) else None
        return self.parts(x) if isinstance(x, Tensor) else None

    def argument(self, place: int, name: str, default: Any) -> Any:
        """An argument by place or name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)


Rule = Callable[[_Operation], Parts | list[Parts] | None]


# ---------------------------------------------------------------------------------------- shapes


def _reshaped(op: _Operation) -> Parts | None:
    """The same numbers in another shape."""
    return _each(op.of(0), lambda part: part.reshape(len(part), *op.first.shape))


def _same(op: _Operation) -> Parts | None:
    """The same numbers, perhaps elsewhere or in another dtype (parts keep theirs)."""
    return _each(op.of(0), lambda part: part)


def _clamped(op: _Operation) -> Parts | None:
    """Bounds that nothing has reached change nothing (T5 in float16)."""
    return _same(op) if op.of(0) is not None and torch.equal(op.first, op.args[0]) else None


def _expanded(op: _Operation) -> Parts | None:
    return _each(op.of(0), lambda part: _broadcast(part, op.first))


def _permuted(op: _Operation) -> Parts | None:
    dims = [dim % op.first.dim() + 1 for dim in op.args[1]]
    return _each(op.of(0), lambda part: part.permute(0, *dims))


def _transposed(op: _Operation) -> Parts | None:
    n = op.first.dim()
    if len(op.args) == 1:  # aten.t
        return _each(op.of(0), lambda part: part.transpose(-1, -2) if n == 2 else part)  # noqa: PLR2004  a matrix
    a, b = (dim % n + 1 for dim in op.args[1:3])
    return _each(op.of(0), lambda part: part.transpose(a, b))


def _one_by_one(op: _Operation) -> Parts | list[Parts] | None:
    """Any operation that is linear in its first argument: done to each entry of each stack."""
    parts = op.of(0)
    if parts is None:
        return None

    def done(entry: Tensor) -> Any:
        return op.func(entry, *op.args[1:], **op.kwargs)

    made = {name: [done(entry) for entry in part] for name, part in parts.items()}
    if isinstance(op.output, list | tuple):
        return [
            {name: torch.stack([entry[i] for entry in entries]) for name, entries in made.items()}
            for i in range(len(op.output))
        ]
    return {name: torch.stack(entries) for name, entries in made.items()}


def _joined(op: _Operation) -> Parts | None:
    """Concatenation and stacking: where a tensor lacks a part, that is zero."""
    tensors, dim = op.args[0], op.argument(1, "dim", 0)
    known = [_parts_or_constant(op, x) for x in tensors]
    names = {name: len(part) for parts in known for name, part in parts.items()}

    def entries(name: str, size: int) -> list[Tensor]:
        lacking = (_wide(x).new_zeros(1, *x.shape).expand(size, *x.shape) for x in tensors)
        return [parts.get(name, zero).expand(size, *zero.shape[1:]) for parts, zero in zip(known, lacking, strict=True)]

    join = torch.cat if op.func.overloadpacket is aten.cat else torch.stack
    return {name: join(entries(name, size), dim % op.first.dim() + 1) for name, size in names.items()}


def _parts_or_constant(op: _Operation, x: Tensor) -> Parts:
    return op.parts(x) or {CONSTANT: _wide(x)[None]}


# ---------------------------------------------------------------------------------------- sums and products


def _sum(op: _Operation) -> Parts | None:
    """Sums: a + alpha b, and a - alpha b."""
    sign = -1 if op.func.overloadpacket in {aten.sub, aten.sub_} else 1
    factor = sign * op.kwargs.get("alpha", 1)
    a, b = op.args[:2]
    mine, theirs = op.of(0), op.of(1)
    if mine is None:
        return None if theirs is None else _plus(_each(theirs, lambda p: _broadcast(factor * p, op.first)), a, op.first)
    left = _each(mine, lambda part: _broadcast(part, op.first))
    if theirs is None:
        return _plus(left, _scaled(b, factor), op.first)
    for name, part in theirs.items():
        term = _broadcast(factor * part, op.first)
        left[name] = left[name] + term if name in left else term
    return left


def _scaled(x: Any, factor: float) -> Any:
    return _wide(x) * factor if isinstance(x, Tensor) else x * factor


def _plus(parts: Parts, constant: Any, shape_of: Tensor) -> Parts:
    """Parts, and a constant: the bias of what it is added to, or a part of its own."""
    name = _belonging(parts)
    number = constant if isinstance(constant, Tensor) else torch.tensor(constant, device=shape_of.device)
    term = _wide(number.to(shape_of.device)).expand(shape_of.shape)[None]
    known = parts.get(name)
    if known is None:
        return parts | {name: term}
    return parts | {name: torch.cat([known[:1] + term, known[1:]])}


def _belonging(parts: Parts) -> str:
    """Which part a constant that is added belongs to."""
    names = set(parts)
    if names == {COMPUTED}:
        return COMPUTED
    site = _only_attention(parts)
    return CONSTANT if site is None else BIAS + site


def _attends(parts: Parts) -> bool:
    return any(name.startswith(ATTENTION) for name in parts)


def _only_attention(parts: Parts) -> str | None:
    """The site whose attention is all that there is in a tensor; None if there is more."""
    sites = {name.split(":", 1)[1] for name in parts if name.startswith((ATTENTION, BIAS))}
    alone = all(name.startswith((ATTENTION, BIAS)) for name in parts)
    return next(iter(sites)) if alone and len(sites) == 1 else None


def _product(op: _Operation) -> Parts | None:
    """Products a * b, and a / b, where that is linear in one of them: see `_factor`."""
    divided = op.func.overloadpacket in {aten.div, aten.div_}
    a, b = op.args[:2]
    if op.kwargs.get("rounding_mode") is not None:
        return None
    if op.of(0) is not None and _factor(op, a, b):
        other = 1 / _wide(b) if divided else _wide(b)
        return _each(op.of(0), lambda part: _broadcast(_aligned(part, op.first) * other, op.first))
    if not divided and op.of(1) is not None and _factor(op, b, a):
        return _each(op.of(1), lambda part: _broadcast(_aligned(part, op.first) * _wide(a), op.first))
    return None


def _factor(op: _Operation, x: Tensor, other: Any) -> bool:
    """Whether what x is multiplied by can be taken as it is.

    A weight can. Of what was itself computed from followed tensors, two things can: one number for each token, as a
    norm divides by; and a gate on attention's output, before anything else is added to it.
    """
    if not isinstance(other, Tensor) or op.parts(other) is None:
        return True
    normalised = other.dim() > 0 and other.shape[-1] == 1 < x.shape[-1]
    return normalised or _only_attention(op.parts(x) or {}) is not None


def _matrix_product(op: _Operation) -> Parts | None:
    """A projection x @ W. If W is followed as well, or alone, it is no projection."""
    if op.of(1) is not None:
        return None
    return _each(op.of(0), lambda part: part @ _wide(op.args[1]))


def _added_product(op: _Operation) -> Parts | None:
    """A projection: bias + x @ W."""
    bias, x, weight = op.args[:3]
    parts = op.parts(x)
    scaled = any(op.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
    if parts is None or scaled or op.of(0) is not None or op.of(2) is not None:
        return None
    return _plus(_each(parts, lambda part: part @ _wide(weight)), bias, op.first)


def _linear(op: _Operation) -> Parts | None:
    """A projection: x @ W^T + bias."""
    bias, parts = op.argument(2, "bias", None), op.of(0)
    if parts is None or op.of(1) is not None:
        return None
    made = _each(parts, lambda part: part @ _wide(op.args[1]).mT)
    return made if bias is None else _plus(made, bias, op.first)


# ---------------------------------------------------------------------------------------- norms


def _layer_norm(op: _Operation) -> list[Parts] | None:
    """(x - mean) / deviation * weight + bias, the deviation taken as it is."""
    parts, shape = op.of(0), op.args[1]
    if parts is None or len(shape) != 1:
        return None
    weight, bias = op.argument(2, "weight", None), op.argument(3, "bias", None)
    inverse = _inverse(op)
    factor = inverse if weight is None else inverse * _wide(weight)
    made = _each(parts, lambda part: (part - part.mean(-1, keepdim=True)) * factor)
    if bias is not None:
        term = _wide(bias).expand(op.first.shape)[None]
        made[CONSTANT] = made[CONSTANT] + term if CONSTANT in made else term
    return [made, *map(_computed, op.output[1:])]


def _inverse(op: _Operation) -> Tensor:
    """One over the deviation, in full precision: that which the operation gives back may be rounded."""
    x, eps = _wide(op.args[0]), op.argument(4, "eps", 1e-5)
    inverse: Tensor = (x.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    return inverse


def _rms_norm(op: _Operation) -> list[Parts] | None:
    """RMS norm: x / root mean square * weight, the root mean square taken as it is."""
    parts, shape = op.of(0), op.args[1]
    if parts is None or len(shape) != 1:
        return None
    weight = op.argument(2, "weight", None)
    inverse = _wide(op.output[1])
    factor = inverse if weight is None else inverse * _wide(weight)
    return [_each(parts, lambda part: part * factor), *map(_computed, op.output[1:])]


# ---------------------------------------------------------------------------------------- parts of rules


def _computed(x: Tensor) -> Parts:
    """A tensor as one part. A copy: the model may go on to write into it."""
    return {COMPUTED: _wide(x)[None].clone()}


@overload
def _each(parts: Parts, do: Callable[[Tensor], Tensor]) -> Parts: ...
@overload
def _each(parts: None, do: Callable[[Tensor], Tensor]) -> None: ...
@overload
def _each(parts: Parts | None, do: Callable[[Tensor], Tensor]) -> Parts | None: ...
def _each(parts: Parts | None, do: Callable[[Tensor], Tensor]) -> Parts | None:
    """The same done to every stack; None if there is none."""
    return None if parts is None else {name: do(part) for name, part in parts.items()}


def _aligned(part: Tensor, like: Tensor) -> Tensor:
    """A stack whose entries have as many dimensions as a tensor that they broadcast to."""
    lacking = like.dim() + 1 - part.dim()
    return part.reshape(len(part), *[1] * lacking, *part.shape[1:])


def _broadcast(part: Tensor, like: Tensor) -> Tensor:
    return _aligned(part, like).expand(len(part), *like.shape)


def _wide(x: Any) -> Any:
    """At least float32, in which parts are computed whatever the model's dtype."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


_RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze), _reshaped),  # noqa: SLF001
    **dict.fromkeys((aten.clone, aten.alias, aten.detach, aten._to_copy, aten.contiguous), _same),  # noqa: SLF001
    aten.clamp: _clamped,
    aten.expand: _expanded,
    aten.permute: _permuted,
    **dict.fromkeys((aten.transpose, aten.t), _transposed),
    **dict.fromkeys((aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind, aten.chunk), _one_by_one),
    **dict.fromkeys((aten.index, aten.index_select, aten.gather, aten.neg, aten.sum, aten.mean), _one_by_one),
    **dict.fromkeys((aten.cat, aten.stack), _joined),
    **dict.fromkeys((aten.add, aten.sub), _sum),
    **dict.fromkeys((aten.mul, aten.div), _product),
    **dict.fromkeys((aten.mm, aten.bmm, aten.matmul), _matrix_product),
    **dict.fromkeys((aten.addmm, aten.baddbmm), _added_product),
    aten.linear: _linear,
    aten.native_layer_norm: _layer_norm,
    aten._fused_rms_norm: _rms_norm,  # noqa: SLF001
}

# Those that write the same into their first argument.
_IN_PLACE = {aten.add_: aten.add, aten.sub_: aten.sub, aten.mul_: aten.mul, aten.div_: aten.div}
