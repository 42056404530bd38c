"""`Replay`: tokens run through a model once more, each by itself, every layer given what a trace has of it.

What attention adds to a token, and what becomes of it in the layer, depends on two things only: the hidden state that
entered the layer, and what attention gave. A trace has both, so one token can be run without all the others: the model
gets sequences of one token, each layer's input is replaced by the recorded state, and each attention call's output by
what the recorded pattern makes of the recorded values. Meanwhile `Following` keeps what the layer's output consists of.

That the model does what it did is checked: what leaves a layer is compared with what the trace has.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from saccade.adapters import huggingface
from saccade.adapters.huggingface_masks import CarriedMask
from saccade.adapters.intervention import Change, intervening
from saccade.adapters.observation import Running
from saccade.analysis.following import ATTENTION, Following
from saccade.backends import Inputs
from saccade.errors import ArgumentError, NotRecordedError, UnsupportedModelError
from saccade.scores import Problem
from saccade.trace.blocks import Blocks, name_of_run, path_of
from saccade.trace.choice import fingerprint
from saccade.trace.hidden import state_given, state_returned, with_state_given, with_state_returned
from saccade.trace.trace import Entry, Site, Trace

RESIDUAL = "residual"
FEW = 64  # rows of a pattern that are cheaper to write out than the whole product is to compute
# How much of a hidden state's length may be off where the model is run again.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True)
class Layer:
    """A layer of a recorded forward.

    Attributes:
        name: the path of its module; ``path#1`` where that ran a second time.
        sites: the attention calls in it.
        place: where the trace has the hidden states that entered it.
        number: counted from 0 in the order in which they ran.
    """

    name: str
    sites: tuple[str, ...]
    place: tuple[int, int]
    number: int

    @property
    def path(self) -> str:
        """The path of its module."""
        return path_of(self.name)


class Plan:
    """What of a replay is to be followed. This one follows nothing; states and outputs are followed whole.

    Attributes:
        changes: whether layers are meant to give something else than what was recorded.
    """

    changes = False

    def follows(self, layer: Layer) -> bool:
        """Whether the parts of what leaves this layer are wanted."""
        del layer
        return False

    def residual(self, layer: Layer, state: Tensor) -> Tensor:
        """The stack ``(K, T, 1, width)`` that stands for the state that entered, ``(T, 1, width)``."""
        del layer
        return state[None]

    def attention(self, layer: Layer, site: str, output: Tensor) -> Tensor:
        """The stack ``(K, T, H, 1, Dv)`` that stands for an attention call's output, ``(T, H, 1, Dv)``."""
        del layer, site
        return output[None]

    def output(self, site: str, output: Tensor) -> Tensor:
        """The output to go on with, ``(T, H, 1, Dv)``."""
        del site
        return output

    def left(self, layer: Layer, state: Tensor, following: Following) -> Tensor | None:
        """Take what left a layer, ``(T, 1, width)``, with what is followed; what is returned takes its place."""
        del layer, state, following
        return None


class OneLayer(Plan):
    """A plan that follows a single layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def follows(self, layer: Layer) -> bool:
        """See `Plan`."""
        return layer.name == self.layer.name


class Replay:
    """Tokens of one element of a batch, to be run through the model again.

    Args:
        trace: recorded with ``keep="qkv"`` and hidden states.
        model: the recorded model; None for that of a recording which is still in memory.
        entry: which forward.
        batch: which element of the batch.
        inputs: what the model was called with, by name; needed where the trace does not have the tokens' ids.

    Attributes:
        running: the tokens that run, or ran last, ``(T,)``.
        elements: the element of the batch that each of them is of, ``(T,)``.

    Raises:
        ArgumentError: the trace is of another model, or has no such entry or element.
        NotRecordedError: values or hidden states were not kept.
    """

    def __init__(
        self,
        trace: Trace,
        model: nn.Module | None = None,
        *,
        entry: int = 0,
        batch: int = 0,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.trace = checked_trace(trace)
        self.model = _model_of(trace, model)
        self.entry: Entry = trace[entry]
        self.batch = batch
        self.running = self.elements = torch.empty(0, dtype=torch.int64)
        self._weights: dict[str, Tensor] = {}
        self._sites: dict[str, Site] = {}
        self._given = inputs if inputs is not None else trace.given(self.entry.index)
        self._check_batch()

    # ------------------------------------------------------------------------------------ the trace

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers whose attention was recorded, in the order in which they ran."""
        forms = self.entry.metadata.hidden
        found: dict[tuple[int, int], list[str]] = {}
        for site in self.entry.metadata.sites:
            if site.hidden is None or site.hidden_row is None:
                raise NotRecordedError(f"{site.name}: no hidden state was kept: record with hidden=True")
            found.setdefault((site.hidden, site.hidden_row), []).append(site.name)
        return [
            Layer(forms[place[0]].layers[place[1]], tuple(sites), place, number)
            for number, (place, sites) in enumerate(found.items())
        ]

    def layer_of(self, site: str) -> Layer:
        """The layer that an attention call is in."""
        return next(layer for layer in self.layers if site in layer.sites)

    def site(self, name: str) -> Site:
        """An attention call, by name."""
        if name not in self._sites:
            self._sites[name] = self.entry[name]
        return self._sites[name]

    def state(self, layer: Layer, tokens: Tensor, *, after: bool = False) -> Tensor:
        """The hidden states ``(T, width)`` of tokens of our element that entered a layer, or left it."""
        return self._states(layer, after=after)[self.batch, tokens]

    def running_states(self, layer: Layer, *, after: bool = False) -> Tensor:
        """Likewise of the tokens that run."""
        return self._states(layer, after=after)[self.elements, self.running]

    def _states(self, layer: Layer, *, after: bool) -> Tensor:
        site = self.site(layer.sites[0])
        return site.hidden_after if after else site.hidden

    def weights(self, site: str) -> Tensor:
        """The attention weights of the tokens that run, ``(H, T, Nk)``."""
        if site not in self._weights:
            pattern = self.site(site).pattern
            found = pattern.inputs.query.new_empty(pattern.shape[1], len(self.running), pattern.shape[3])
            self._weights[site] = found = found.to(pattern.dtype)
            for element, mine in self._by_element():
                found[:, mine] = pattern.element(element)[0, :, self.running[mine]]
        return self._weights[site]

    def values(self, site: str, element: int | None = None) -> Tensor:
        """The values that each head reads, ``(H, Nk, Dv)``, of an element of the batch; None for our own."""
        value = self.site(site).value[self.batch if element is None else element]
        return value.repeat_interleave(self._heads(site) // len(value), 0)

    def attended(self, site: str) -> Tensor:
        """What attention gave the tokens that run, ``(T, H, Dv)``."""
        heads, call = self._heads(site), self.site(site)
        found = call.value.new_empty(len(self.running), heads, call.value.shape[3])
        for element, mine in self._by_element():
            value = call.value[element]
            if len(mine) > FEW:
                rows = (call.pattern.element(element) @ value[None])[0][:, self.running[mine]]
            else:
                weights = self.weights(site)[:, mine].unflatten(0, (-1, heads // len(value)))
                rows = (weights @ value[:, None].to(weights)).flatten(0, 1)
            found[mine] = rows.transpose(0, 1).to(found)
        return found

    def _by_element(self) -> Iterator[tuple[int, Tensor]]:
        """The elements of the batch that run, each with the places of its tokens among those that run."""
        for element in self.elements.unique().tolist():
            yield element, (self.elements == element).nonzero()[:, 0]

    def leaves_to_next(self, layer: Layer) -> bool:
        """Whether what the trace has behind a layer is what left it, and not what entered a later one."""
        form, row = layer.place
        rows = self.entry.metadata.hidden[form].layers
        if self.trace.metadata.layers is None or row + 1 == len(rows):
            return True
        number, following = (Blocks(self.model).of(path_of(rows[i]))[1] for i in (row, row + 1))
        return number is not None and following == number + 1

    def _heads(self, site: str) -> int:
        heads = self.site(site).head_numbers
        if self.trace.metadata.heads is not None:
            raise NotRecordedError(f"{site}: only heads {heads} were kept; record all of them")
        return len(heads)

    def _check_batch(self) -> None:
        sizes = {stack.batch for stack in self.entry.stacks}
        if not isinstance(self.batch, int) or not all(0 <= self.batch < size for size in sizes):
            raise ArgumentError(f"batch = {self.batch}: entry {self.entry.index} has elements 0 to {min(sizes) - 1}")

    # ------------------------------------------------------------------------------------ the run

    @torch.no_grad()
    def run(
        self,
        tokens: Tensor,
        plan: Plan,
        until: Layer | None = None,
        *,
        elements: Tensor | None = None,
        following: Following | None = None,
    ) -> Any:
        """Run these tokens.

        Args:
            tokens: positions ``(T,)`` among the queries.
            plan: what is to be followed.
            until: stop after this layer; None runs to the model's end.
            elements: the element of the batch that each token is of; None for our own.
            following: what to follow with, for who wants to ask it of more than layers.

        Returns:
            What the model gave; None if it was stopped.

        Raises:
            UnsupportedModelError: the layers cannot be reached in this way, or do not do what they did.
        """
        self.running, self._weights = tokens, {}
        self.elements = torch.full_like(tokens, self.batch) if elements is None else elements
        wanted = [layer for layer in self.layers if plan.follows(layer)]
        for arguments in self._arguments(wanted or self.layers):
            run = _Run(self, plan, until, following or Following())
            with run.hooks(), run.following:
                try:
                    output = self._call(arguments)
                except _StoppedError:
                    output = None
            if all(layer.name in run.seen for layer in wanted):
                return output
        missing = wanted[0].name if wanted else "a layer"
        raise UnsupportedModelError(
            f"{type(self.model).__name__}: {missing} was not reached when single tokens were run through the model. "
            "Give inputs=, what the model was called with"
        )

    def _call(self, arguments: dict[str, Any]) -> Any:
        """Run the recorded forward; its first argument by place, as most are called."""
        module = self.model.get_submodule(self.entry.metadata.forward)
        first = next(iter(inspect.signature(module.forward).parameters), "")
        if first not in arguments:
            return module(**arguments)
        return module(arguments[first], **{name: x for name, x in arguments.items() if name != first})

    def _arguments(self, wanted: Sequence[Layer]) -> Iterator[dict[str, Any]]:
        """Ways to call the model so that those layers run on these tokens."""
        ids = self._ids(wanted)
        module = self.model.get_submodule(self.entry.metadata.forward)
        known = inspect.signature(module.forward).parameters
        quiet = {"use_cache": False} if "use_cache" in known else {}
        main = getattr(module, "main_input_name", "input_ids")
        given = {name: self._element(x) for name, x in _by_name(self._given or {}, known).items()}
        if any(isinstance(x, Tensor) and x.is_floating_point() for x in given.values()):
            yield given | quiet  # pictures or sound, whose tokens have no ids
        if main in ids:
            yield ids | quiet
        elif not given:
            raise ArgumentError(
                f"{type(self.model).__name__} reads {main}, which a trace does not have: give inputs=, what it was "
                "called with"
            )

    def _ids(self, wanted: Sequence[Layer]) -> dict[str, Tensor]:
        """The model's arguments that are ids of tokens, each token a sequence of its own."""
        device = next((x.device for x in self.model.parameters()), torch.device("cpu"))
        queries = {number for layer in wanted for site in layer.sites if (number := self._queries(site)) is not None}
        found = {}
        for number in range(len(self.entry.metadata.sequences)):
            sequence = self.entry.sequence(number)
            rows = sequence.ids[self.elements % len(sequence.ids)]  # (T, N)
            if number in queries and int(self.running.max()) < rows.shape[1]:
                found[sequence.name] = rows.gather(1, self.running[:, None]).to(device)
            elif sequence.name not in found:
                found[sequence.name] = rows[:, :1].to(device)
        config = getattr(self.model, "config", None)
        if found and getattr(config, "is_encoder_decoder", False) and not self.entry.metadata.forward:
            anything = next(iter(found.values()))
            found = {"input_ids": anything, "decoder_input_ids": anything} | found
        return found

    def _queries(self, site: str) -> int | None:
        return next(known.queries for known in self.entry.metadata.sites if known.name == site)

    def _element(self, x: Any) -> Any:
        """Of an argument, what belongs to each token's element of the batch."""
        size = max(stack.batch for stack in self.entry.stacks)
        if not isinstance(x, Tensor) or not x.dim() or len(x) != size:
            return x
        return x[self.elements.to(x.device)]


def checked_trace(trace: Any) -> Trace:
    """A trace.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(trace, Trace):
        raise ArgumentError(
            f"trace is {type(trace).__name__}; expected what saccade.record or saccade.open_trace gives: "
            'with saccade.record(model, tokenizer, keep="qkv") as trace: model(**inputs)'
        )
    return trace


def _model_of(trace: Trace, model: nn.Module | None) -> nn.Module:
    """The model that was recorded."""
    found = trace.model if model is None else model
    if found is None:
        raise ArgumentError("this trace does not hold its model: give model=, the one that was recorded")
    if not isinstance(found, nn.Module):
        raise ArgumentError(f"model is {type(found).__name__}; expected the torch module that was recorded")
    if fingerprint(found) != trace.metadata.fingerprint:
        raise ArgumentError(
            f"the trace was recorded with another model than this {type(found).__name__}: "
            f"with a {trace.metadata.model} whose weights have another fingerprint"
        )
    return found


def _by_name(given: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Arguments by name, those that the signature does not list among them."""
    gathered = {name for name in given if name in known and known[name].kind is inspect.Parameter.VAR_KEYWORD}
    listed = {name: x for name, x in given.items() if name not in gathered}
    return listed | {name: x for several in gathered for name, x in given[several].items()}


# The run of this thread: hooks on a module are called in the forwards of other threads as well.
_RUN: ContextVar[Any] = ContextVar("saccade_replay", default=None)


class _StoppedError(Exception):
    """The last layer that was wanted is through."""


class _Run(Change):
    """One run: hooks on the layers, and the change of their attention calls."""

    def __init__(self, replay: Replay, plan: Plan, until: Layer | None, following: Following) -> None:
        self.replay, self.plan, self.until, self.following = replay, plan, until, following
        self.seen: set[str] = set()
        self._layers = {layer.name: layer for layer in replay.layers}
        self._of = {site: layer for layer in replay.layers for site in layer.sites}
        self._entered: Counter[str] = Counter()
        self._called: Counter[str] = Counter()
        self._running: list[Layer | None] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """The model's layers and attention calls are ours."""
        model = self.replay.model
        with ExitStack() as stack:
            stack.callback(_RUN.reset, _RUN.set(self))
            stack.enter_context(intervening(model, self))
            with huggingface.LOCK:
                for path in {layer.path for layer in self.replay.layers}:
                    module = model.get_submodule(path)
                    stack.callback(module.register_forward_pre_hook(self._enter(path), with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, path: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            del module
            if _RUN.get() is not self:
                return None
            times = self._entered[path]
            self._entered[path] += 1
            layer = self._layers.get(name_of_run(path, times))
            self._running.append(layer)
            if layer is None or not self.plan.follows(layer):
                return None
            with self.following.paused():
                return self._given(layer, args, kwargs)

        return enter

    def _given(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer's arguments with the recorded states in place of the hidden state."""
        was = state_given(args, kwargs)
        if was is None:
            return None
        state = self.replay.running_states(layer)[:, None].to(was)
        self.following.begin(state, {RESIDUAL: self.plan.residual(layer, state)})
        self.following.attended = None
        length = was.shape[1]
        others = tuple(self._others(x, length) for x in args), {k: self._others(x, length) for k, x in kwargs.items()}
        return with_state_given(*others, state)

    def _others(self, x: Any, length: int) -> Any:
        """Another argument of a layer: of what it has by token (rotary angles, positions), that of our tokens.

        No mask: attention's output is known, and its mask is for all tokens.
        """
        if isinstance(x, tuple | list):
            return type(x)(self._others(part, length) for part in x)
        if isinstance(x, CarriedMask) or (isinstance(x, Tensor) and x.dim() == 4):  # noqa: PLR2004  (B, H, Nq, Nk)
            return None
        if not isinstance(x, Tensor) or x.dim() not in (2, 3) or x.shape[1] != length or length == 1:
            return x
        elements = self.replay.elements.clamp(max=len(x) - 1).to(x.device)
        return x[elements, self.replay.running.to(x.device)][:, None]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        del module, args
        if _RUN.get() is not self:
            return None
        layer = self._running.pop()
        if layer is None:
            return None
        with self.following.paused():
            changed = self._follow(layer, output) if self.plan.follows(layer) else None
        self.seen.add(layer.name)
        if self.until is not None and layer.name == self.until.name:
            raise _StoppedError
        return None if changed is None else with_state_returned(output, changed)

    def _follow(self, layer: Layer, output: Any) -> Tensor | None:
        state = state_returned(output)
        if state is None or self.following.parts(state) is None:
            raise UnsupportedModelError(
                f"{layer.name}: what it gives back does not come of the hidden state it is given"
            )
        self._check(layer, state)
        return self.plan.left(layer, state, self.following)

    def _check(self, layer: Layer, state: Tensor) -> None:
        """Refuse a layer that did something else than what was recorded."""
        if self.plan.changes or not self.replay.leaves_to_next(layer):
            return
        was = self.replay.running_states(layer, after=True)
        off = (state[:, 0].cpu().float() - was.float()).norm(dim=-1) / was.float().norm(dim=-1)
        if bool((off <= TOLERANCE[state.dtype]).all()):
            return
        hint = ". In training mode dropout may be why: call model.eval() first" if self.replay.model.training else ""
        raise UnsupportedModelError(
            f"{layer.name}: run with one token it gives another hidden state than in the recording (off by "
            f"{float(off.max()):.2g} of its length), so it reads other tokens by more than its attention. It cannot be "
            f"taken apart{hint}"
        )

    def output(self, running: Running, problem: Problem, inputs: Inputs, output: Tensor) -> Tensor:
        """See `Change`: what attention gave when the model was recorded."""
        del problem, inputs
        times = self._called[running.site]
        self._called[running.site] += 1
        site = name_of_run(running.site, times)
        layer = self._of.get(site)
        if layer is None or not self.plan.follows(layer):
            return output
        with self.following.paused():
            given = self.plan.output(site, self.replay.attended(site)[:, :, None].to(output))
            return self.following.begin(given, {ATTENTION + site: self.plan.attention(layer, site, given)})
