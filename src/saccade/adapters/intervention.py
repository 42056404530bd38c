"""`intervening`: what if an attention call of a model had read other values, or given another output?

Ablations, and whatever else asks what follows from attention rather than what it looks like, change calls of a model
while it runs. Which module makes a call is known as in `observation`: by the hooks of `watching`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saccade.adapters.observation import Call, Running, Watch, watching
from saccade.backends import Inputs
from saccade.errors import ShapeError
from saccade.functional import INTERVENTION
from saccade.masks import Lengths
from saccade.scores import Problem
from saccade.statistics import Statistic


class Change:
    """A change of attention calls. This one changes nothing: override what is to be changed."""

    def inputs(self, running: Running, problem: Problem, inputs: Inputs) -> Inputs:
        """What the call is computed from, of the same shapes.

        Args:
            running: the module that calls.
            problem: what else forms the pattern.
            inputs: queries ``(B, H, Nq, D)``, keys ``(B, Hk, Nk, D)``, values ``(B, Hk, Nk, Dv)``.
        """
        del running, problem
        return inputs

    def output(self, running: Running, problem: Problem, inputs: Inputs, output: Tensor) -> Tensor:
        """What the module gets, ``(B, H, Nq, Dv)``."""
        del running, problem, inputs
        return output


@contextmanager
def intervening(model: nn.Module, change: Change) -> Iterator[Watch]:
    """Change the attention calls that a model makes in this context; afterwards it is what it was, also after an error.

    Contexts may be nested: the inner one sees the inputs first and the output last.

    Args:
        model: any module that `saccade.observe` can watch; only its own calls are changed.
        change: what to do with them.

    Raises:
        UnsupportedModelError: the model's attention does not come through Saccade, or it is compiled.
        ShapeError: a call was given tensors of other shapes than its own.
    """
    with watching(model, _Onlooker()) as watch:
        token = INTERVENTION.set(_Intervention(watch, change, INTERVENTION.get()))
        try:
            yield watch
        finally:
            INTERVENTION.reset(token)


@dataclass(eq=False)
class _Intervention:
    """The change of one context, for the calls of its model; and that of the context around it, for all calls."""

    watch: Watch
    change: Change
    outer: Any

    def change_inputs(self, problem: Problem, inputs: Inputs) -> Inputs:
        """See `saccade.functional.Intervention`."""
        if self.watch.running:
            changed = self.change.inputs(self.watch.running[-1], problem, inputs)
            for name in ("query", "key", "value"):
                _check_shape(self.watch.running[-1], name, getattr(changed, name), getattr(inputs, name))
            inputs = changed
        return inputs if self.outer is None else self.outer.change_inputs(problem, inputs)

    def change_output(self, problem: Problem, inputs: Inputs, output: Tensor) -> Tensor:
        """See `saccade.functional.Intervention`."""
        if self.outer is not None:
            output = self.outer.change_output(problem, inputs, output)
        if not self.watch.running:
            return output
        changed = self.change.output(self.watch.running[-1], problem, inputs, output)
        _check_shape(self.watch.running[-1], "output", changed, output)
        return changed


def _check_shape(running: Running, name: str, changed: Tensor, given: Tensor) -> None:
    if changed.shape != given.shape:
        raise ShapeError(
            f"{running.site}: the changed {name} has shape {tuple(changed.shape)}; expected {tuple(given.shape)}"
        )


class _Onlooker:
    """The listener of an intervention: `watching` is needed for who is running, not for what was seen."""

    def statistics(self, running: Running, lengths: Lengths) -> Sequence[Statistic]:
        """See `Listener`."""
        del running, lengths
        return ()

    def called(self, call: Call, running: Running, problem: Problem, inputs: Inputs) -> None:
        """See `Listener`."""

    def entered(self, running: Running, forward: int) -> None:
        """See `Listener`."""

    def left(self, running: Running, forward: int, output: Any) -> None:
        """See `Listener`."""
