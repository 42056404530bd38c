"""`observe`: the statistics of every attention call that a model makes; `watching`: all that can be seen of it.

Every call of `saccade.attention` asks `functional.OBSERVER` what is wanted, and tells it the
result. What remains to be known here is whose call it was: hooks on the model's modules keep the
stack of those that are running, and the innermost one is the site of the call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saccade.adapters import huggingface
from saccade.backends import Inputs
from saccade.errors import ArgumentError, ShapeError, UnsupportedModelError
from saccade.functional import OBSERVER, Observer, observed_by
from saccade.masks import Lengths
from saccade.scores import Problem
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
        statistics: what was asked, fitted to this call.
        report: the answers, detached from any graph.
    """

    site: str
    forward: int
    lengths: Lengths
    statistics: Sequence[Statistic]
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
    asked = [statistics] if isinstance(statistics, Statistic) else list(statistics)
    observation = Observation()
    with watching(model, _Collector(asked, observation.calls)) as watch:
        yield observation
    check_complete(model, {call.forward for call in observation.calls}, watch)


class Listener(Protocol):
    """Someone who follows a model while it runs."""

    def statistics(self, running: Running, lengths: Lengths) -> Sequence[Statistic]:
        """What to compute for a call that this module is about to make."""

    def called(self, call: Call, running: Running, problem: Problem, inputs: Inputs) -> None:
        """Take an attention call: what was asked of it, and what formed its pattern."""

    def entered(self, running: Running, forward: int) -> None:
        """A module begins its forward; it is the outermost one if `running.depth` is 0."""

    def left(self, running: Running, forward: int, output: Any) -> None:
        """A module ended its forward; the output is `FAILED` if an exception ended it."""


FAILED = object()


@dataclass(eq=False)
class _Collector:
    """The listener of `observe`."""

    asked: Sequence[Statistic]
    calls: list[Call]

    def statistics(self, running: Running, lengths: Lengths) -> Sequence[Statistic]:
        """See `Listener`."""
        del running, lengths
        return self.asked

    def called(self, call: Call, running: Running, problem: Problem, inputs: Inputs) -> None:
        """See `Listener`."""
        del running, problem, inputs
        self.calls.append(call)

    def entered(self, running: Running, forward: int) -> None:
        """See `Listener`."""

    def left(self, running: Running, forward: int, output: Any) -> None:
        """See `Listener`."""


@contextmanager
def watching(model: nn.Module, listener: Listener) -> Iterator[Watch]:
    """Tell a listener of all that a model does in this context; see `observe` for what is served and what is left.

    Raises:
        UnsupportedModelError, ShapeError, ArgumentError: as of `observe`, but for what it finds out at its end.
    """
    _refuse_compiled(model)
    with ExitStack() as stack:
        stack.enter_context(_served(model))
        watch = stack.enter_context(_watched(model, listener))
        stack.enter_context(observed_by(_Watcher(watch, OBSERVER.get())))
        yield watch


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


def check_complete(model: nn.Module, calling: set[int], watch: Watch) -> None:
    """Raise if the model was not run, if a forward made no attention call, or none was made at all.

    Args:
        model: the model that was watched.
        calling: the numbers of the forwards that made an attention call.
        watch: what `watching` gave.

    Raises:
        ArgumentError: the model was not run.
        UnsupportedModelError: a forward made no attention call.
    """
    if not watch.count:
        raise ArgumentError(
            f"{type(model).__name__} was not run inside its context: call the model itself "
            "(not a copy) inside it, in this thread"
        )
    silent = sorted(watch.whole - watch.failed - calling)
    if silent or not (calling or watch.failed):
        what = f"forward {silent[0]} of {watch.count}" if silent else f"{watch.count} forwards"
        raise UnsupportedModelError(
            f"no attention call came through Saccade in {what} of {type(model).__name__}: its "
            "attention has to run in this thread, not compiled, and call saccade.attention, "
            "saccade.nn.MultiheadAttention or torch.nn.functional.scaled_dot_product_attention"
        )


# ---------------------------------------------------------------------------------- who is running


@dataclass(frozen=True, eq=False)
class Running:
    """A module in its forward, with the arguments it was given.

    Attributes:
        site: its `named_modules` path.
        depth: how many modules of the model were running around it.
    """

    site: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    depth: int = 0

    def is_cross_attention(self) -> bool:
        """Whether queries and keys come from different sequences, as far as the arguments tell."""
        given = self.arguments()
        if any(given.get(name) is not None for name in OTHER_SEQUENCE):
            return True
        query, key = given.get("query"), given.get("key")
        if isinstance(query, Tensor) and isinstance(key, Tensor):
            return key is not query
        return bool(getattr(self.module, "is_cross_attention", False))

    def arguments(self) -> dict[str, Any]:
        """The arguments by name; only those given by keyword if the others' names cannot be known."""
        try:
            bound = inspect.signature(self.module.forward).bind_partial(*self.args, **self.kwargs)
        except (TypeError, ValueError):
            return self.kwargs
        return dict(bound.arguments)


# How the attention modules of transformers call the sequence that keys and values come from.
OTHER_SEQUENCE = ("key_value_states", "encoder_hidden_states", "cross_attention_states")


@dataclass(eq=False)
class Watch:
    """The modules of one model that are running now, and how many forwards there were.

    Attributes:
        listener: who is told.
        running: outermost first.
        count: forwards begun.
        whole: those among them that were forwards of the model itself and not of a part of it.
        failed: those that an exception ended.
    """

    listener: Listener
    running: list[Running] = field(default_factory=list)
    count: int = 0
    whole: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    @property
    def forward(self) -> int:
        """The number of the running forward."""
        return self.count - 1

    def enter(self, running: Running) -> None:
        """A module begins."""
        if not running.site:  # what is still here was interrupted (Ctrl-C runs no hooks)
            self._drop(0)
        if not self.running:
            if not running.site:
                self.whole.add(self.count)
            self.count += 1
        running = replace(running, depth=len(self.running))
        self.running.append(running)
        self.listener.entered(running, self.forward)

    def leave(self, module: nn.Module, output: Any) -> None:
        """A module ended."""
        depth = next((entry.depth for entry in reversed(self.running) if entry.module is module), None)
        if depth is None:
            return
        self._drop(depth + 1)  # modules above this one, if any, failed before their hooks could run
        if output is FAILED and not depth:
            self.failed.add(self.forward)
        self.listener.left(self.running.pop(), self.forward, output)

    def _drop(self, depth: int) -> None:
        while len(self.running) > depth:
            if len(self.running) == 1:
                self.failed.add(self.forward)
            self.listener.left(self.running.pop(), self.forward, FAILED)


@contextmanager
def _watched(model: nn.Module, listener: Listener) -> Iterator[Watch]:
    """Hooks on every module of the model that keep a `Watch`."""
    watch = Watch(listener)
    with ExitStack() as stack:
        stack.callback(_WATCHES.reset, _WATCHES.set(_WATCHES.get() | {watch}))
        with huggingface.LOCK:
            for site, module in model.named_modules():
                hook = _Hook(site, watch)
                stack.callback(module.register_forward_pre_hook(hook.enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(hook.leave, always_call=True).remove)
        yield watch


# The observations that are open here: a module's hooks also run in the forwards of other threads.
_WATCHES: ContextVar[frozenset[Watch]] = ContextVar("saccade_watches", default=frozenset())


@dataclass(eq=False)
class _Hook:
    """The hooks of one module. Its copies, on a copy of the module, watch nothing."""

    site: str = ""
    watch: Watch | None = None

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()

    # No kwargs: another thread is just adding or removing this hook, so the call is not ours.
    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if self.watch in _WATCHES.get() and self.watch is not None:
            self.watch.enter(Running(self.site, module, args, kwargs or {}))

    def leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if self.watch in _WATCHES.get() and self.watch is not None:
            self.watch.leave(module, FAILED if output is None and sys.exc_info()[1] is not None else output)


# ---------------------------------------------------------------------------------- the observer


@dataclass(eq=False)
class _Watcher:
    """The observer of one context; serves the context around it, if there is one, as well."""

    watch: Watch
    outer: Observer | None
    _lengths: Lengths | None = None
    _asked: Sequence[Statistic] = ()

    def wanted(self, lengths: Lengths) -> Sequence[Statistic]:
        """See `saccade.functional.Observer`."""
        mine = self._mine(lengths) if self.watch.running else []
        self._lengths, self._asked = lengths, mine
        return mine if self.outer is None else _together(mine, self.outer.wanted(lengths))

    def receive(self, report: Report, problem: Problem, inputs: Inputs) -> None:
        """See `saccade.functional.Observer`."""
        if self.watch.running and self._lengths is not None:
            running = self.watch.running[-1]
            detached = Report({asked.field: _detach(report[asked.field]) for asked in self._asked})
            call = Call(running.site, self.watch.forward, self._lengths, self._asked, detached)
            self.watch.listener.called(call, running, problem, inputs)
        if self.outer is not None:
            self.outer.receive(report, problem, inputs)

    def _mine(self, lengths: Lengths) -> list[Statistic]:
        running = self.watch.running[-1]
        cross = running.is_cross_attention()
        asked = self.watch.listener.statistics(running, lengths)
        placed = [_placed(statistic, lengths, cross=cross) for statistic in asked]
        try:
            return check_all([statistic for statistic in placed if statistic is not None], lengths)
        except ShapeError as error:
            raise ShapeError(
                f"{running.site}, forward {self.watch.forward}, Nq = {lengths.queries}, Nk = {lengths.keys}: {error}"
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
