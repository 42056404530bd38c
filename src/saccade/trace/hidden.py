"""The hidden states of a forward: what entered each layer that attends, and what left the last one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saccade.adapters.observation import FAILED, Running
from saccade.trace.blocks import kind_of_path, name_of_run, path_of
from saccade.trace.metadata import PRECISIONS, Hidden, name_of
from saccade.trace.storage import Open

Place = tuple[int, int]  # which of the entry's arrays of hidden states, and which row


@dataclass(eq=False)
class _Layer:
    """A module that is running.

    Attributes:
        path: its `named_modules` path.
        state: the hidden state that it was given.
        version: how often that tensor had been written to; None for one that does not count it.
        place: where the state is kept, once it is.
    """

    path: str
    state: Tensor | None
    version: int | None
    place: Place | None = None

    @classmethod
    def of(cls, running: Running) -> _Layer:
        state = state_given(running.args, running.kwargs)
        return cls(running.site, state, _version(state))

    def unchanged(self) -> Tensor | None:
        """The state, if nobody wrote to it since."""
        return self.state if _version(self.state) == self.version else None


def _version(state: Tensor | None) -> int | None:
    return None if state is None or state.is_inference() else state._version  # noqa: SLF001  no public way


class HiddenStates:
    """The hidden states of one entry. Which modules are layers is known when attention is called in them."""

    def __init__(self, opened: Open) -> None:
        self._open = opened
        self._running: list[_Layer] = []
        self._forms: list[Hidden] = []
        self._times: Counter[str] = Counter()
        self._last_out: dict[int, Tensor | None] = {}

    def entered(self, running: Running) -> None:
        """A module begins."""
        self._running.append(_Layer.of(running))

    def left(self, output: Any) -> None:
        """The innermost module ended."""
        layer = self._running.pop()
        if layer.place is not None and output is not FAILED:
            self._last_out[layer.place[0]] = state_returned(output)

    def of_layer(self, path: str) -> Place | None:
        """Where the hidden state is kept that a running layer was given; None if it was given none."""
        layer = next((layer for layer in reversed(self._running) if layer.path == path), None)
        if layer is None:
            return None
        if layer.place is None and (state := layer.unchanged()) is not None:
            layer.place = self._keep(path, state)
        return layer.place

    def _keep(self, path: str, state: Tensor) -> Place:
        times = self._times[path]
        self._times[path] += 1
        number = self._array(path, state)
        form = self._forms[number]
        self._forms[number] = replace(form, layers=(*form.layers, name_of_run(path, times)))
        self._open.append(f"hidden/{number}/states", state)
        return number, len(form.layers)

    def _array(self, path: str, state: Tensor) -> int:
        """The array of the hidden states of this kind of layer and shape."""
        batch, length, width = state.shape
        wanted = Hidden((), batch, length, width, name_of(state.dtype))
        for i, form in enumerate(self._forms):
            if kind_of_path(path_of(form.layers[0])) == kind_of_path(path) and replace(form, layers=()) == wanted:
                return i
        self._forms.append(wanted)
        return len(self._forms) - 1

    def finish(self) -> tuple[Hidden, ...]:
        """Keep what left the last layers; NaN where that was no hidden state of the same shape."""
        for i, form in enumerate(self._forms):
            last, shape = self._last_out.get(i), (form.batch, form.length, form.width)
            fits = last is not None and last.shape == shape and name_of(last.dtype) == form.precision
            missing = torch.full(shape, torch.nan, dtype=PRECISIONS[form.precision], device="cpu")
            self._open.append(f"hidden/{i}/states", last if fits and last is not None else missing)
        return tuple(self._forms)


def state_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden state ``(B, N, width)`` among a module's arguments: the one of that name, or the first."""
    return _hidden(kwargs.get("hidden_states", args[0] if args else None))


def with_state_given(
    args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another hidden state."""
    return (args, kwargs | {"hidden_states": state}) if "hidden_states" in kwargs else ((state, *args[1:]), kwargs)


def state_returned(output: Any) -> Tensor | None:
    """The hidden state ``(B, N, width)`` that a module gave back, by itself or as the first of several."""
    if isinstance(output, Mapping):
        output = list(output.values())
    return _hidden(next(iter(output), None) if isinstance(output, tuple | list) else output)


def with_state_returned(output: Any, state: Tensor) -> Any:
    """What a module gave back, with another hidden state."""
    if isinstance(output, Mapping):
        kind: Any = type(output)
        return kind({**output, next(iter(output)): state})
    return type(output)([state, *output[1:]]) if isinstance(output, tuple | list) else state


def _hidden(x: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3 else None  # noqa: PLR2004
