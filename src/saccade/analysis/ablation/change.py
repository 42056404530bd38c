"""How attention calls are changed so that heads or tokens are gone, and what is put in their place.

A call is known by its place among the self-attention calls of a forward, so a module that is used in several layers has
several numbers. What stands in for outputs or values is taken from forwards of the whole model: their mean, or as many
draws of them as the text has tokens; never all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saccade.adapters.intervention import Change
from saccade.adapters.observation import Running
from saccade.analysis.ablation.parts import Layer, Part
from saccade.backends import Inputs
from saccade.errors import ArgumentError, UnsupportedModelError
from saccade.masks import Intervals
from saccade.scores import Problem


class Counting(Change):
    """A change that knows which self-attention call of the forward is running."""

    def __init__(self) -> None:
        self.layer = -1

    def begin(self) -> None:
        """A forward is about to begin."""
        self.layer = -1

    def inputs(self, running: Running, problem: Problem, inputs: Inputs) -> Inputs:
        """See `Change`."""
        if running.is_cross_attention():
            return inputs
        self.layer += 1
        return self.values(running, problem, inputs)

    def output(self, running: Running, problem: Problem, inputs: Inputs, output: Tensor) -> Tensor:
        """See `Change`."""
        del problem, inputs
        return output if running.is_cross_attention() else self.outputs(running, output)

    def values(self, running: Running, problem: Problem, inputs: Inputs) -> Inputs:
        """What a self-attention call is computed from."""
        del running, problem
        return inputs

    def outputs(self, running: Running, output: Tensor) -> Tensor:
        """What its heads give, ``(B, H, Nq, Dv)``."""
        del running
        return output


# ---------------------------------------------------------------------------------------- what stands in


class StandIn(ABC):
    """What is put where something was taken away; it is told what the whole model has there."""

    @abstractmethod
    def add(self, layer: int, found: Tensor) -> None:
        """Take what a text gives in a layer: outputs ``(H, N, Dv)`` or values ``(Hk, N, Dv)``."""

    @abstractmethod
    def heads(self, layer: int, heads: Sequence[int]) -> Tensor:
        """Instead of the outputs of these heads; broadcasts to ``(n, N, Dv)``."""

    @abstractmethod
    def tokens(self, layer: int, groups: Sequence[Sequence[int]]) -> Tensor:
        """Instead of the values of groups of n tokens in all; broadcasts to ``(n, Hk, Dv)``."""


class Zero(StandIn):
    """Nothing."""

    def add(self, layer: int, found: Tensor) -> None:
        """See `StandIn`."""

    def heads(self, layer: int, heads: Sequence[int]) -> Tensor:
        """See `StandIn`."""
        del layer, heads
        return torch.zeros(())

    def tokens(self, layer: int, groups: Sequence[Sequence[int]]) -> Tensor:
        """See `StandIn`."""
        del layer, groups
        return torch.zeros(())


class Mean(StandIn):
    """The mean over tokens."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = defaultdict(int)

    def add(self, layer: int, found: Tensor) -> None:
        """See `StandIn`."""
        total = found.double().sum(1)
        self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
        self._counts[layer] += found.shape[1]

    def heads(self, layer: int, heads: Sequence[int]) -> Tensor:
        """See `StandIn`."""
        return self._of(layer)[heads, None]

    def tokens(self, layer: int, groups: Sequence[Sequence[int]]) -> Tensor:
        """See `StandIn`."""
        del groups
        return self._of(layer)

    def _of(self, layer: int) -> Tensor:
        return self._sums[layer] / self._counts[layer]


class Shuffled(StandIn):
    """What the text itself gives, at other tokens.

    A head's outputs change places. A token takes the value of the next token, in an order drawn at random, that is not
    taken away with it.

    Args:
        seed: of the order.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._found: dict[int, Tensor] = {}

    def add(self, layer: int, found: Tensor) -> None:
        """See `StandIn`."""
        self._found[layer] = found

    def heads(self, layer: int, heads: Sequence[int]) -> Tensor:
        """See `StandIn`."""
        found = self._found[layer]
        return found[heads][:, order(found.shape[1], self._seed)]

    def tokens(self, layer: int, groups: Sequence[Sequence[int]]) -> Tensor:
        """See `StandIn`."""
        found = self._found[layer]
        shuffled = order(found.shape[1], self._seed)
        sources = [source for group in groups for source in from_others(group, shuffled)]
        return found[:, sources].transpose(0, 1)


class Drawn(StandIn):
    """Draws from other texts' tokens, with replacement, one for each token of the text.

    Each of them is replaced by one of n tokens that come with probability n / (t + n) where t came before (reservoir
    sampling): nothing but the draws is kept. All layers of as many tokens draw alike.

    Args:
        lengths: N, of each layer.
        seed: of the draws.
    """

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        self._lengths = lengths
        self._generators = [torch.Generator().manual_seed(seed) for _ in lengths]
        self._counts = [0] * len(lengths)
        self._found: dict[int, Tensor] = {}

    def add(self, layer: int, found: Tensor) -> None:
        """See `StandIn`."""
        new = found.shape[1]
        self._counts[layer] += new
        drawn = torch.randint(self._counts[layer], (self._lengths[layer],), generator=self._generators[layer])
        drawn = drawn.to(found.device)
        there = found[:, drawn.clamp(max=new - 1)]
        self._found[layer] = torch.where((drawn < new)[:, None], there, self._found.get(layer, there))

    def heads(self, layer: int, heads: Sequence[int]) -> Tensor:
        """See `StandIn`."""
        return self._found[layer][heads]

    def tokens(self, layer: int, groups: Sequence[Sequence[int]]) -> Tensor:
        """See `StandIn`."""
        return self._found[layer][:, [token for group in groups for token in group]].transpose(0, 1)


def order(tokens: int, seed: int) -> list[int]:
    """The numbers of so many tokens, in an order drawn at random."""
    shuffled: list[int] = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed)).tolist()
    return shuffled


def from_others(group: Sequence[int], shuffled: Sequence[int]) -> list[int]:
    """For each of a group of tokens the next one in a shuffled order that is not of the group.

    Raises:
        ArgumentError: there is no other.

    >>> from_others([0, 2], [3, 0, 2, 1])
    [1, 1]
    """
    others = [token for token in shuffled if token not in group]
    if not others:
        raise ArgumentError("no other token is left to take values from: give reference=, texts to take them from")
    place = {token: i for i, token in enumerate(shuffled)}
    following = sorted(place[token] for token in others)
    return [shuffled[next((i for i in following if i > place[token]), following[0])] for token in group]


# ---------------------------------------------------------------------------------------- looking


class Survey(Counting):
    """The whole model: which layers it has, and what may stand in for what they give.

    Args:
        noun: "heads": outputs stand in; "tokens": values do.
        keep: what is told them.
    """

    def __init__(self, noun: str, keep: StandIn) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self._noun, self._keep = noun, keep

    def values(self, running: Running, problem: Problem, inputs: Inputs) -> Inputs:
        """See `Counting`."""
        lengths = inputs.lengths
        self.layers.append(Layer(running.site, lengths.heads, lengths.keys, is_causal(problem, lengths.queries)))
        if self._noun == "tokens":
            self._keep.add(self.layer, inputs.value[0])
        return inputs

    def outputs(self, running: Running, output: Tensor) -> Tensor:
        """See `Counting`."""
        del running
        if self._noun == "heads":
            self._keep.add(self.layer, output[0])
        return output


def is_causal(problem: Problem, queries: int) -> bool:
    """Whether no query sees a key that comes later than itself."""
    mask = problem.mask
    if mask is None:
        return queries == 1
    if isinstance(mask, Intervals):
        position = torch.arange(queries, device=mask.stops.device)[:, None]
        return not bool(((mask.stops > position + 1) & (mask.starts < mask.stops)).any())
    return not bool(mask.visible.triu(1).any())


# ---------------------------------------------------------------------------------------- taking away


class Removal(Counting):
    """Each row of a batch goes without one part.

    Args:
        stand_in: what is put in its place.
    """

    def __init__(self, stand_in: StandIn) -> None:
        super().__init__()
        self.stand_in = stand_in
        self._rows = 0
        self._gone: dict[int, dict[int, list[int]]] = {}  # by layer and row: heads or tokens

    def without(self, parts: Sequence[Part]) -> None:
        """A forward is about to begin whose rows go without these."""
        self.begin()
        self._rows = len(parts)
        self._gone = defaultdict(lambda: defaultdict(list))
        for row, part in enumerate(parts):
            for layer, place in part.places:
                self._gone[layer][row].append(place)

    def gone(self, running: Running, x: Tensor) -> tuple[list[int], list[int], list[list[int]]]:
        """What is taken away in the running layer: rows and places, one for each, and the places by row.

        Raises:
            UnsupportedModelError: rows of the batch are no rows of the call.
        """
        if x.shape[0] != self._rows:
            raise UnsupportedModelError(
                f"{running.site} makes {x.shape[0]} sequences of a batch of {self._rows} texts, so which belongs to "
                "which text is not known"
            )
        by_row = self._gone.get(self.layer, {})
        rows = [row for row, places in by_row.items() for _ in places]
        return rows, [place for places in by_row.values() for place in places], list(by_row.values())


class WithoutHeads(Removal):
    """Outputs of heads are replaced."""

    def outputs(self, running: Running, output: Tensor) -> Tensor:
        """See `Counting`."""
        rows, heads, _ = self.gone(running, output)
        if not rows:
            return output
        changed = output.clone()
        changed[rows, heads] = self.stand_in.heads(self.layer, heads).to(output)
        return changed


class WithoutTokens(Removal):
    """Values of tokens are replaced."""

    def values(self, running: Running, problem: Problem, inputs: Inputs) -> Inputs:
        """See `Counting`."""
        del problem
        rows, tokens, groups = self.gone(running, inputs.value)
        if not rows:
            return inputs
        changed = inputs.value.clone()
        changed[rows, :, tokens] = self.stand_in.tokens(self.layer, groups).to(changed)
        return replace(inputs, value=changed)


REMOVALS = {"heads": WithoutHeads, "tokens": WithoutTokens}
