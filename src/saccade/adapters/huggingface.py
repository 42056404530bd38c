"""Hugging Face models: their attention comes through Saccade, all of it or none.

transformers lets every attention module look up a function by the name in its configuration
(`AttentionInterface`, `AttentionMaskInterface`). `attach` registers ours under "saccade" and sets
that name on a model that is already built: chosen at construction, some models that know nothing of
the interface drop their causal mask.

A model is attached only if every module that computes attention looks its function up. This is read
from the modules' code before anything is changed; then, in each module's first forward, the calls
that arrive are counted. So a model is never observed by halves: it is refused by name, and is
afterwards what it was before.

What undoes it lies on the model, so that a copy of an attached model, or one loaded from a file, is
attached as well. The registered name stays: it changes nothing in a model that does not name it,
and copies of models and configurations that do would fail without it.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import CodeType, FunctionType, TracebackType
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from saccade import functional, masks
from saccade.adapters.huggingface_masks import Carried, CarriedMask, carry, everything, hide_keys, know_transformers
from saccade.errors import ArgumentError, MaskError, MissingExtraError, UnsupportedModelError
from saccade.masks import Mask
from saccade.nn.autocast import autocast_dtype
from saccade.pattern import Pattern
from saccade.scores import DenseBias

NAME = "saccade"

# The index among the keys at which the running call's first query stands; None if unknown.
QUERY_OFFSET: ContextVar[int | None] = ContextVar("saccade_query_offset", default=None)


# ---------------------------------------------------------------------------------- attach, detach


@dataclass(eq=False)
class Attachment:
    """A model whose attention comes through Saccade; as a context, it undoes what `attach` did.

    A model that was attached several times, also by several threads, is detached by the last context
    that is left.

    Attributes:
        model: the model.
        sites: the `named_modules` paths of its attention modules.
        fresh: False if the model was attached already.
    """

    model: nn.Module
    sites: list[str]
    fresh: bool = True
    _undo: _Undo | None = None

    def detach(self) -> None:
        """See `saccade.detach`."""
        detach(self.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        undo, self._undo = self._undo, None
        with LOCK:
            if undo is None or _undo_of(self.model) is not undo:
                return
            undo.users -= 1
            if not undo.users:
                self.detach()


@dataclass(eq=False)
class _Undo:
    """How to make a model what it was. Copied and pickled together with the model.

    Attributes:
        users: how many handles that `attach` gave out have not been left as contexts.
    """

    model: nn.Module
    sites: dict[str, nn.Module]
    configs: list[tuple[Any, Any]] = field(default_factory=list)
    hooks: list[Any] = field(default_factory=list)
    users: int = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _register()
        _attached.add(self.model)

    def __call__(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for module in self.sites.values():
            vars(module).pop(_FIRST, None)
        for config, implementation in self.configs:
            # The setter of the public attribute would change the configurations inside as well.
            config._attn_implementation_internal = implementation  # noqa: SLF001


# The attribute of an attached model that holds its `_Undo`.
_UNDO = "_saccade_undo"
# The attribute of an attention module that holds its `_FirstForward`, until that is over.
_FIRST = "_saccade_first_forward"

_attached: WeakSet[nn.Module] = WeakSet()
# Held while models are attached and detached, and while hooks are put on: PyTorch counts their ids unguarded.
LOCK = threading.RLock()


def _undo_of(model: nn.Module) -> _Undo | None:
    return vars(model).get(_UNDO)


def attach(model: nn.Module) -> Attachment:
    """Let the attention of a Hugging Face model come through Saccade; results stay the same.

    The model may hold several models (vision and text, encoder and decoder). Attaching it again
    changes nothing. A copy of an attached model is attached as well, until it is detached itself.

    Args:
        model: a `transformers.PreTrainedModel`.

    Returns:
        A handle, which is a context as well: ``with saccade.attach(model): ...`` undoes itself.

    Raises:
        MissingExtraError: transformers is not installed.
        UnsupportedModelError: this is no Hugging Face model, or some of its attention does not come
            through; it is left as it was. Attention that fails to arrive although the model says so
            raises in its first forward.
    """
    _need_huggingface(model)
    with LOCK:
        undo = _undo_of(model)
        fresh = undo is None
        undo = undo or _attach(model)
        undo.users += 1
        return Attachment(model, list(undo.sites), fresh, undo)


def _attach(model: nn.Module) -> _Undo:
    undo = _Undo(model, attention_sites(model), _implementations(model))
    _register()
    vars(model)[_UNDO] = undo
    _attached.add(model)
    try:
        model.set_attn_implementation(NAME)  # type: ignore[operator]
        _check_configurations(model, undo.sites)
    except BaseException:
        detach(model)
        raise
    for site, module in undo.sites.items():
        undo.hooks += _FirstForward(site).watch(module)
    return undo


def detach(model: nn.Module) -> None:
    """Make a model what it was before `attach`, however often that was; nothing if it is not attached.

    The name that `attach` registered in transformers stays, for copies of the model.
    """
    with LOCK:
        undo = vars(model).pop(_UNDO, None)
        if undo is not None:
            _attached.discard(model)
            undo()


def is_attached(model: nn.Module) -> bool:
    """Whether the attention of this model comes through Saccade."""
    return _undo_of(model) is not None


def huggingface_models(model: nn.Module) -> list[nn.Module]:
    """The outermost Hugging Face models within a model, itself included. Imports nothing."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        return []
    if isinstance(model, library.PreTrainedModel):
        return [model]
    return [found for child in model.children() for found in huggingface_models(child)]


def _need_huggingface(model: object) -> None:
    try:
        from transformers import PreTrainedModel
    except ImportError:
        raise MissingExtraError("transformers", "hf") from None
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no transformers.PreTrainedModel: for a model that calls "
            "torch.nn.functional.scaled_dot_product_attention use `with saccade.sdpa():`, and for "
            "one that contains a "
            "Hugging Face model attach that one"
        )


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    know_transformers()
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, carry)


def _implementations(model: nn.Module) -> list[tuple[Any, Any]]:
    """Every configuration within the model and the implementation that it names."""
    pending: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    found: dict[int, Any] = {}
    while pending:
        config = pending.pop()
        if id(config) in found or not hasattr(config, "_attn_implementation_internal"):
            continue
        found[id(config)] = config
        pending += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    return [(config, config._attn_implementation_internal) for config in found.values()]  # noqa: SLF001


# ---------------------------------------------------------------------------------- refusals


def attention_sites(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that look up their attention function, by `named_modules` path.

    Raises:
        UnsupportedModelError: there is none, or some other module computes attention by itself.
    """
    from transformers import PreTrainedModel

    # A model as such computes no attention, but its base class knows every implementation.
    parts = model.named_modules()
    modules = {site: part for site, part in parts if not isinstance(part, PreTrainedModel)}
    reasons = {kind: _computes_alone(kind) for kind in {type(part) for part in modules.values()}}
    alone = {site: why for site, part in modules.items() if (why := reasons[type(part)])}
    if alone:
        site, why = next(iter(alone.items()))
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported: {type(modules[site]).__name__} ({site}) "
            f"{why}, so its attention "
            f"would not come through Saccade ({len(alone)} such modules). The model is left as it "
            "was"
        )
    looking = {kind for kind in reasons if "ALL_ATTENTION_FUNCTIONS" in _names(kind)}
    sites = {site: part for site, part in modules.items() if type(part) in looking}
    if not sites:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported: none of its modules looks its attention "
            "function up in "
            "transformers' AttentionInterface. The model is left as it was"
        )
    return sites


_OWN_ATTENTION = {
    "softmax",
    "Softmax",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
}


def _computes_alone(kind: type[nn.Module]) -> str | None:
    """Why the attention of a class of modules would not come through unchanged, or None."""
    if issubclass(kind, nn.MultiheadAttention):
        return "is PyTorch's own attention layer"
    names = _names(kind)
    if "ALL_ATTENTION_FUNCTIONS" in names:
        if _by_name(kind):
            return "treats each attention implementation that it knows by name in another way"
        return None
    if re.search(r"attention|attn", kind.__name__, re.IGNORECASE) and names & _OWN_ATTENTION:
        return "computes attention by itself"
    return None


def _by_name(kind: type) -> bool:
    """Whether a class asks if its implementation is "sdpa" (GPT-2 asks for "eager": harmless)."""
    return "_attn_implementation" in _names(kind) and any(
        constant == "sdpa" or (isinstance(constant, tuple) and "sdpa" in constant)
        for code in _codes(kind)
        for constant in code.co_consts
    )


def _names(kind: type[nn.Module]) -> frozenset[str]:
    """The global names and attributes that a module class uses in its own methods."""
    return frozenset(name for code in _codes(kind) for name in code.co_names)


def _codes(kind: type) -> Iterator[CodeType]:
    """The code of a module class's methods, functions within them included."""
    for owner in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for method in vars(owner).values():
            function = method
            while isinstance(function, FunctionType):
                yield from _nested(function.__code__)
                function = getattr(function, "__wrapped__", None)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _check_configurations(model: nn.Module, sites: dict[str, nn.Module]) -> None:
    for site, module in sites.items():
        found = getattr(getattr(module, "config", None), "_attn_implementation", NAME)
        if found != NAME:
            raise UnsupportedModelError(
                f"{type(model).__name__} is not supported: after "
                f"set_attn_implementation({NAME!r}) {site} still has "
                f"{found!r}. The model is left as it was"
            )


_arrived: ContextVar[int] = ContextVar("saccade_arrived", default=0)


@dataclass(eq=False)
class _FirstForward:
    """Hooks that see whether a call arrives in a module's first forward, and then go.

    They hold no model: a copy of the module is watched on its own, and can be pickled.

    Under torch.compile they are traced with the module, so they look once for each graph. A number that rises in every
    call would have the graph compiled again for every call: there they ask only whether a call ever arrived. And they
    cannot go from inside of a graph: the first forward that is not compiled, or `detach`, takes them away.

    Attributes:
        site: where the module stands in its model.
        arrived: whether a call came that named the module.
    """

    site: str
    arrived: bool = False
    hooks: list[Any] = field(default_factory=list)
    before: dict[int, int] = field(default_factory=dict)  # by thread

    def watch(self, module: nn.Module) -> list[Any]:
        vars(module)[_FIRST] = self
        self.hooks = [module.register_forward_pre_hook(self.enter), module.register_forward_hook(self.leave)]
        return self.hooks

    def enter(self, *_: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            self.before[threading.get_ident()] = _arrived.get()

    def leave(self, module: nn.Module, *_: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            if not self.arrived:
                no_attention_call_came_through(self, module)
            return
        before = self.before.pop(threading.get_ident(), None)
        if before is None and not self.arrived:  # it was not seen how this forward began
            return
        with LOCK:
            for hook in self.hooks:
                hook.remove()
            vars(module).pop(_FIRST, None)
        if not self.arrived and _arrived.get() == before:
            self.refuse(module)

    def refuse(self, module: nn.Module) -> None:
        with LOCK:
            undos = {model: undo for model in _attached if (undo := _undo_of(model)) is not None}
            models = [model for model, undo in undos.items() if undo.sites.get(self.site) is module]
            for model in models:
                detach(model)
        name = type(models[0] if models else module).__name__
        raise UnsupportedModelError(
            f"{name} is not supported: {self.site} ran and no attention call came through Saccade. The "
            "model is detached and left as it was"
        )


def _arrives(module: nn.Module) -> None:
    """Count a call that comes from this module."""
    first = getattr(module, _FIRST, None)
    if first is not None:
        first.arrived = True
    if not torch.compiler.is_dynamo_compiling():
        _arrived.set(_arrived.get() + 1)


@functional.uncompiled
def no_attention_call_came_through(first: _FirstForward, module: nn.Module) -> None:
    """Leave the graph to refuse a model; the error of fullgraph=True shows this name."""
    first.refuse(module)


# ---------------------------------------------------------------------------------- the function


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Carried | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,  # noqa: FBT001
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, Pattern | None]:
    """The attention function that transformers calls.

    Args:
        module: the attention module; trusted for `training` and `is_causal` only.
        query: ``(B, H, Nq, D)``.
        key: ``(B, Hk, Nk, D)``.
        value: ``(B, Hk, Nk, Dv)``.
        attention_mask: a `CarriedMask`, in a compiled graph a `Carried`, or what the user gave:
            booleans, or floats to add, ``(B, 1 | H, Nq | 1, Nk)``.
        scaling: factor of the dot products; None for ``1 / sqrt(D)``.
        dropout: only 0 is possible in training.
        is_causal: without a mask, whether query i sees keys ``j <= i``; None asks the module.
        softcap: bound of the scores (Gemma 2).
        s_aux: one sink for each head ``(H,)`` (GPT-OSS).
        position_bias: added to the scores ``(B | 1, H, Nq, Nk)`` (T5).
        others: whatever else a model hands on. A window is in the mask already, as it is for
            `sdpa`.

    Returns:
        The output ``(B, Nq, H, Dv)``, and the `saccade.Pattern`, which is not stored, if the model is to return it
        (``output_attentions=True``); else None.

    Raises:
        UnsupportedModelError: the model asks for something that changes the pattern and is not
            known here.
        ArgumentError: dropout in training.
    """
    traced = torch.compiler.is_dynamo_compiling()
    if traced and (functional.OBSERVED or others.get("output_attentions") or isinstance(attention_mask, CarriedMask)):
        return _attend_uncompiled(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling,
            dropout,
            is_causal,
            softcap,
            s_aux,
            position_bias,
            **others,
        )
    _refuse(module, dropout, others)
    _arrives(module)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    visible, bias, offset = _understand(attention_mask, query.shape[2], key.shape[2], causal=bool(causal))
    token = None if traced else QUERY_OFFSET.set(None if offset is None else int(offset))
    query, key, value = _autocast(query, key, value)
    options: dict[str, Any] = {
        "mask": visible,
        "scale": scaling,
        "softcap": softcap,
        "bias": _sum(position_bias, bias),
        "sinks": s_aux,
    }
    try:
        output = functional.attention(query, key, value, **options)
    finally:
        if token is not None:
            QUERY_OFFSET.reset(token)
    pattern = None if traced or not _collected(others) else Pattern(query, key, **options)
    return output.transpose(1, 2).contiguous(), pattern


def _collected(others: dict[str, Any]) -> bool:
    """Whether the model is to return its patterns: it says so, or transformers' own hooks wait for them."""
    from transformers.utils.output_capturing import _active_collector

    return bool(others.get("output_attentions")) or any("attentions" in key for key in _active_collector.get() or ())


_attend_uncompiled = functional.uncompiled(attend)


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """In the dtype that autocast, if it is on, makes PyTorch compute attention in."""
    dtype = autocast_dtype(tensors[0].device)
    return list(tensors) if dtype is None else [x.to(dtype) for x in tensors]


# Arguments that change the pattern in ways that are not in the mask: sparse indices, block indices,
# a paged cache, sinks with one value for each query.
_UNKNOWN = ("indices", "block_indices", "cache", "sinks")


def _refuse(module: nn.Module, dropout: float, others: dict[str, Any]) -> None:
    for name in _UNKNOWN:
        if others.get(name) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} gives its attention function `{name}`, which Saccade "
                "does not know: its "
                "results would be wrong. Use saccade.detach(model)"
            )
    if dropout > 0 and module.training:
        raise ArgumentError(
            f"{type(module).__name__} is in training with attention dropout {dropout}; Saccade "
            "computes the exact "
            "pattern, without dropout: call model.eval() or set the attention dropout of its "
            "configuration to 0"
        )


def _understand(
    mask: Tensor | Carried | None, queries: int, keys: int, *, causal: bool
) -> tuple[Mask | None, Tensor | None, int | Tensor | None]:
    """Which keys are seen, what is added to the scores, where the first query stands (if known)."""
    if isinstance(mask, CarriedMask | Carried):
        carried = mask if isinstance(mask, Carried) else mask.carried
        return carried.visible, carried.hidden_keys, carried.offset
    known = 0 if queries == keys else None
    if mask is None:
        # Upper left: the first query stands at the first key (the prefill of a static cache), as
        # for `sdpa`.
        return (masks.causal(0), None, 0) if causal and queries > 1 else (None, None, known)
    if mask.dtype != torch.bool:
        if not mask.is_floating_point():
            raise MaskError(f"attention mask is {mask.dtype}; expected booleans, or floats to add to the scores")
        return None, mask, known
    if mask.shape[1:-1] == (1, 1):
        return *hide_keys(everything(queries, keys, mask.device), mask[:, 0, 0]), known
    return masks.dense(mask), None, known


def _sum(position_bias: Tensor | None, bias: Tensor | None) -> DenseBias | None:
    parts = [part for part in (position_bias, bias) if part is not None]
    if not parts:
        return None
    return DenseBias(parts[0] if len(parts) == 1 else parts[0] + parts[1])


@contextmanager
def attached(models: list[nn.Module]) -> Iterator[None]:
    """All of these models attached; those that were not are detached afterwards."""
    handles: list[Attachment] = []
    try:
        for model in models:
            handles.append(attach(model))  # noqa: PERF401  what is attached is detached, if a later one is refused
        yield
    finally:
        for handle in reversed(handles):
            handle.__exit__(None, None, None)
