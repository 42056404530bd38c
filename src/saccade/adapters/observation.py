"""`observe`: the statistics of every attention call that a model makes.

Every call of `saccade.attention` asks `functional.OBSERVER` what is wanted, and tells it the
result. What remains to be known here is whose call it was: hooks on the model's modules keep the
stack of those that are running, and the innermost one is the site of the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from saccade.adapters import huggingface
from saccade.errors import ArgumentError, ShapeError, UnsupportedModelError
from saccade.functional import OBSERVER, Observer, observed_by
from saccade.masks import Lengths
from saccade.statistics import Distance, Report, Statistic, TopKeysResult, check_all


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call.

    Attributes:
        site: the `named_modules` path of the module that made it.
        forward: which forward of the model it belongs to, counted from 0. A part of the model that
            is called directly counts as well: an encoder-decoder's `generate` runs the encoder (0),
            then the decoder once for each token.
        lengths: B, H, Nq and Nk.
        report: the statistics, detached from any graph.
    """

    site: str
    forward: int
    lengths: Lengths
    report: Report


class Observation:
    """What `observe` collects.

    Attributes:
        calls: every attention call, in order.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @property
    def sites(self) -> list[str]:
        """The sites of the calls, each once, in the order of their first call."""
        return list(dict.fromkeys(call.site for call in self.calls))

    def __getitem__(self, site: str) -> list[Report]:
        """The reports of one site, in order.

        Raises:
            KeyError: no call came from there.
        """
        reports = [call.report for call in self.calls if call.site == site]
        if not reports:
            raise KeyError(f"no attention call came from {site!r}; calls came from {self.sites}")
        return reports

    def __repr__(self) -> str:
        forwards = len({call.forward for call in self.calls})
        return f"Observation({len(self.calls)} calls, {len(self.sites)} sites, {forwards} forwards)"


@contextmanager
def observe(model: nn.Module, statistics: Statistic | Iterable[Statistic] = ()) -> Iterator[Observation]:
    """Collect statistics of every attention call that a model makes in this context.

    Hugging Face models are attached for the duration if they are not; in any other model the calls
    of `torch.nn.functional.scaled_dot_product_attention` are served and observed as well. Contexts
    may be nested, for one model or several; other threads may observe the same model, each in a
    context of its own. Afterwards the model is what it was, also after an error.

    `Distance()` takes the position of the first query from the model's cache. It is left out of a
    report where distance has no meaning or is not known: in cross-attention, and where Nq differs
    from Nk and nobody says how they are aligned.

    Args:
        model: any module; only its own calls are collected.
        statistics: what to ask of every pattern, from `saccade.statistics`.

    Raises:
        UnsupportedModelError: the model's attention does not come through Saccade, or it is
            compiled; when the context ends: a forward of the model, or all of them, made no
            attention call that came through.
        ShapeError: a statistic does not fit a call, such as `Mass` of 12 keys where there are 13.
        ArgumentError: nested contexts ask for one statistic in two ways; when the context ends: the
            model was not run inside it.

    >>> import torch, saccade
    >>> from saccade.adapters.observation import observe
    >>> class Net(torch.nn.Module):
    ...     def forward(self, x):
    ...         return saccade.attention(x, x, x)
    >>> net = Net()
    >>> with observe(net, statistics=[saccade.statistics.Entropy()]) as observation:
    ...     _ = net(torch.zeros(1, 1, 4, 8))
    >>> observation.calls[0].report.entropy.exp().round().tolist()  # four keys, all alike
    [[[4.0, 4.0, 4.0, 4.0]]]
    """
    _refuse_compiled(model)
    asked = [statistics] if isinstance(statistics, Statistic) else list(statistics)
    observation = Observation()
    with ExitStack() as stack:
        stack.enter_context(_served(model))
        watch = stack.enter_context(_watched(model))
        observer = _Watcher(observation, asked, watch, OBSERVER.get())
        stack.enter_context(observed_by(observer))
        yield observation
    _check_complete(model, observation, watch)


@contextmanager
def _served(model: nn.Module) -> Iterator[None]:
    """The model's attention comes through Saccade."""
    models = huggingface.huggingface_models(model)
    with ExitStack() as stack:
        stack.enter_context(huggingface.attached(models))
        if model not in models:
            from saccade.adapters.torch_sdpa import sdpa

            stack.enter_context(sdpa())
        yield


def _refuse_compiled(model: nn.Module) -> None:
    for site, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:  # noqa: SLF001
            raise UnsupportedModelError(
                f"{site or type(model).__name__} is compiled, so its calls cannot be observed: "
                "observe the model from "
                "which it was compiled"
            )


def _check_complete(model: nn.Module, observation: Observation, watch: _Watch) -> None:
    """Raise if the model was not run, if a forward made no attention call, or none was made at all."""
    if not watch.count:
        raise ArgumentError(
            f"{type(model).__name__} was not run inside the observe context: call the model itself "
            "(not a copy) inside it, in this thread"
        )
    silent = sorted(watch.whole - {call.forward for call in observation.calls})
    if silent or not observation.calls:
        what = f"forward {silent[0]} of {watch.count}" if silent else f"{watch.count} forwards"
        raise UnsupportedModelError(
            f"no attention call came through Saccade in {what} of {type(model).__name__}: its "
            "attention has to run in this thread, not compiled, and call saccade.attention, "
            "saccade.nn.MultiheadAttention or torch.nn.functional.scaled_dot_product_attention"
        )


# ---------------------------------------------------------------------------------- who is running


@dataclass(frozen=True, eq=False)
class _Running:
    """A module in its forward, with the arguments it was given."""

    site: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def is_cross_attention(self) -> bool:
        """Whether queries and keys come from different sequences, as far as the arguments tell."""
        given = self._arguments()
        if any(given.get(name) is not None for name in _OTHER_SEQUENCE):
            return True
        query, key = given.get("query"), given.get("key")
        if isinstance(query, Tensor) and isinstance(key, Tensor):
            return key is not query
        return bool(getattr(self.module, "is_cross_attention", False))

    def _arguments(self) -> dict[str, Any]:
        try:
            bound = inspect.signature(self.module.forward).bind_partial(*self.args, **self.kwargs)
        except (TypeError, ValueError):
            return self.kwargs
        return dict(bound.arguments)


# How the attention modules of transformers call the sequence that keys and values come from.
_OTHER_SEQUENCE = ("key_value_states", "encoder_hidden_states", "cross_attention_states")


@dataclass(eq=False)
class _Watch:
    """The modules of one model that are running now, and how many forwards there were.

    Attributes:
        running: outermost first.
        count: forwards begun.
        whole: those among them that were forwards of the model itself and not of a part of it.
    """

    running: list[_Running] = field(default_factory=list)
    count: int = 0
    whole: set[int] = field(default_factory=set)

    def enter(self, running: _Running) -> None:
        if not self.running:
            if not running.site:
                self.whole.add(self.count)
            self.count += 1
        self.running.append(running)

    def leave(self, module: nn.Module) -> None:
        # Modules above this one on the stack, if any, failed before their hooks could run.
        while any(entry.module is module for entry in self.running):
            if self.running.pop().module is module:
                return


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Watch]:
    """Hooks on every module of the model that keep a `_Watch`."""
    watch = _Watch()
    with ExitStack() as stack:
        stack.callback(_WATCHES.reset, _WATCHES.set(_WATCHES.get() | {watch}))
        with huggingface.LOCK:
            for site, module in model.named_modules():
                hook = _Hook(site, watch)
                stack.callback(module.register_forward_pre_hook(hook.enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(hook.leave, always_call=True).remove)
        yield watch


# The observations that are open here: a module's hooks also run in the forwards of other threads.
_WATCHES: ContextVar[frozenset[_Watch]] = ContextVar("saccade_watches", default=frozenset())


@dataclass(eq=False)
class _Hook:
    """The hooks of one module. Its copies, on a copy of the module, watch nothing."""

    site: str = ""
    watch: _Watch | None = None

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()

    # No kwargs: another thread is just adding or removing this hook, so the call is not ours.
    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if self.watch in _WATCHES.get() and self.watch is not None:
            self.watch.enter(_Running(self.site, module, args, kwargs or {}))

    def leave(self, module: nn.Module, *_: Any) -> None:
        if self.watch in _WATCHES.get() and self.watch is not None:
            self.watch.leave(module)


# ---------------------------------------------------------------------------------- the observer


@dataclass(eq=False)
class _Watcher:
    """The observer of one context; serves the context around it, if there is one, as well."""

    observation: Observation
    statistics: Sequence[Statistic]
    watch: _Watch
    outer: Observer | None
    _lengths: Lengths | None = None
    _fields: frozenset[str] = frozenset()

    def wanted(self, lengths: Lengths) -> Sequence[Statistic]:
        """See `saccade.functional.Observer`."""
        mine = self._mine(lengths) if self.watch.running else []
        self._lengths, self._fields = lengths, frozenset(s.field for s in mine)
        return mine if self.outer is None else _together(mine, self.outer.wanted(lengths))

    def receive(self, report: Report) -> None:
        """See `saccade.functional.Observer`."""
        if self.watch.running and self._lengths is not None:
            site = self.watch.running[-1].site
            detached = Report({name: _detach(report[name]) for name in report if name in self._fields})
            call = Call(site, self.watch.count - 1, self._lengths, detached)
            self.observation.calls.append(call)
        if self.outer is not None:
            self.outer.receive(report)

    def _mine(self, lengths: Lengths) -> list[Statistic]:
        running = self.watch.running[-1]
        cross = running.is_cross_attention()
        placed = [_placed(statistic, lengths, cross=cross) for statistic in self.statistics]
        try:
            return check_all([statistic for statistic in placed if statistic is not None], lengths)
        except ShapeError as error:
            raise ShapeError(
                f"{running.site}, forward {self.watch.count - 1}, Nq = {lengths.queries}, Nk = {lengths.keys}: {error}"
            ) from None


def _placed(statistic: Statistic, lengths: Lengths, *, cross: bool) -> Statistic | None:
    """The statistic with the offset of this call's first query; None if it has no meaning here."""
    if not isinstance(statistic, Distance):
        return statistic
    if cross:
        return None
    if statistic.offset is not None:
        return statistic
    offset = huggingface.QUERY_OFFSET.get()
    if offset is None and lengths.queries != lengths.keys:
        return None
    return replace(statistic, offset=offset or 0)


def _together(mine: Sequence[Statistic], theirs: Sequence[Statistic]) -> list[Statistic]:
    """Both lists, each statistic once."""
    merged = {statistic.field: statistic for statistic in mine}
    for statistic in theirs:
        known = merged.setdefault(statistic.field, statistic)
        if not _alike(known, statistic):
            raise ArgumentError(
                f"nested contexts ask for {statistic.field} in two ways ({known!r} and "
                f"{statistic!r}): a call has one "
                "report, so ask for it once or one after the other"
            )
    return list(merged.values())


def _alike(a: Statistic, b: Statistic) -> bool:
    (*a_rest, a_tensor), (*b_rest, b_tensor) = a.code(), b.code()
    if a_tensor is None or b_tensor is None:
        return a_rest == b_rest and a_tensor is b_tensor
    return a_rest == b_rest and torch.equal(a_tensor, b_tensor)


def _detach(result: Tensor | TopKeysResult) -> Tensor | TopKeysResult:
    if isinstance(result, TopKeysResult):
        return TopKeysResult(result.indices.detach(), result.weights.detach())
    return result.detach()
