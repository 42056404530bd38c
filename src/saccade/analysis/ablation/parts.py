"""Which heads or tokens are taken away, and together with which: `Heads` and `Tokens`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from saccade.analysis.ablation.text import Place, Reading
from saccade.errors import ArgumentError, UnsupportedModelError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """One self-attention call of a forward.

    Attributes:
        site: the `named_modules` path of the module that makes it.
        heads: H.
        keys: Nk.
        causal: whether no query sees a later key.
    """

    site: str
    heads: int
    keys: int
    causal: bool


@dataclass(frozen=True)
class Part:
    """What one row of a batch goes without.

    Attributes:
        name: how it is called on screen.
        places: layer and head, or layer and token, of all that is taken away together.
    """

    name: str
    places: Sequence[Pair]


@dataclass(frozen=True)
class Plan:
    """Parts in turn, and the arrays that their effects are put in.

    Attributes:
        parts: in order.
        dims: of the arrays.
        shape: of the arrays.
        along: what stands along each dimension.
        cells: where in an array, taken flat, each part belongs.
        tokens: N, of the text.
    """

    parts: Sequence[Part]
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    along: dict[str, Sequence[Any]]
    cells: Sequence[int]
    tokens: int


class Parts(ABC):
    """What is to be ablated: see `Heads` and `Tokens`."""

    noun: ClassVar[str]

    @abstractmethod
    def plan(self, reading: Reading, layers: Sequence[Layer]) -> Plan:
        """The parts of this model and text.

        Raises:
            ArgumentError: there is no such layer, head or token.
        """


@dataclass(frozen=True)
class Heads(Parts):
    """Heads of self-attention, by what they hand to the output projection.

    Args:
        which: ``(layer, head)`` pairs, ablated in turn; a list of pairs in their place is ablated together. None:
            every head in turn.
        layers: with None, only the heads of these.

    >>> Heads([(0, 3), [(4, 1), (5, 7)]]).which  # one head, then two at once
    [(0, 3), [(4, 1), (5, 7)]]
    """

    noun: ClassVar[str] = "heads"

    which: Sequence[Pair | Sequence[Pair]] | None = None
    layers: Sequence[int] | None = None

    def plan(self, reading: Reading, layers: Sequence[Layer]) -> Plan:
        """See `Parts`."""
        tokens = count_tokens(reading, layers)
        if self.which is not None:
            if self.layers is not None:
                raise ArgumentError("Heads: pairs name their layers; expected pairs or layers=, not both")
            parts = [_joined(one, layers, reading.name) for one in _some("Heads", self.which)]
            return _listed(parts, "part", [part.name for part in parts], tokens)
        chosen = _checked_layers(self.layers, layers, reading.name)
        widest = max(layers[i].heads for i in chosen)
        grid = {row * widest + head: (i, head) for row, i in enumerate(chosen) for head in range(layers[i].heads)}
        parts = [Part(f"layer {i} head {head}", [(i, head)]) for i, head in grid.values()]
        along = {"layer": chosen, "head": range(widest)}
        return Plan(parts, ("layer", "head"), (len(chosen), widest), along, list(grid), tokens)


@dataclass(frozen=True)
class Tokens(Parts):
    """Tokens, by the values that self-attention reads of them: they stay in place, but have nothing to say.

    What a token itself carries from layer to layer is left to it. In a causal model, those that stand before it do not
    see it anyway. Key heads that several query heads share have one value, so it is gone for all of them. Of an
    encoder-decoder model, the tokens are those that the encoder reads.

    Args:
        which: words (all their tokens, in all their occurrences) and positions, ablated in turn; a list of these in
            their place is ablated together. None: every token in turn, markers such as [CLS] included.
        layers: only in these; None for all.

    >>> Tokens(["roses", -1, ["he", "left"]], layers=[0]).layers
    [0]
    """

    noun: ClassVar[str] = "tokens"

    which: Sequence[Place | Sequence[Place]] | None = None
    layers: Sequence[int] | None = None

    def plan(self, reading: Reading, layers: Sequence[Layer]) -> Plan:
        """See `Parts`."""
        tokens = count_tokens(reading, layers)
        reached = [i for i, layer in enumerate(layers) if _reads(reading, layer, tokens)]
        chosen = reached if self.layers is None else _checked_layers(self.layers, layers, reading.name)
        if strangers := sorted(set(chosen) - set(reached)):
            raise ArgumentError(f"layer {strangers[0]} ({layers[strangers[0]].site}) does not read the text's tokens")
        labels = reading.labels(tokens)
        if self.which is None:
            parts = [Part(f"{label} ({token})", [(i, token) for i in chosen]) for token, label in enumerate(labels)]
            return _listed(parts, "token", labels, tokens)
        places = [reading.places(one, tokens) for one in _some("Tokens", self.which)]
        names = [_called(one, labels) for one in self.which]
        parts = [Part(name, [(i, token) for i in chosen for token in one]) for name, one in zip(names, places)]  # noqa: B905  of one length
        return _listed(parts, "part", names, tokens)


def count_tokens(reading: Reading, layers: Sequence[Layer]) -> int:
    """N: of the numbers that the model reads, else of what its first attention call reads.

    Raises:
        UnsupportedModelError: there is no such call.
    """
    if not layers:
        raise UnsupportedModelError(
            f"{reading.name} made no self-attention call that came through Saccade; expected a model whose attention "
            "calls saccade.attention, saccade.nn.MultiheadAttention or "
            "torch.nn.functional.scaled_dot_product_attention, or one of Hugging Face"
        )
    return layers[0].keys if reading.ids is None else len(reading.ids)


def _reads(reading: Reading, layer: Layer, tokens: int) -> bool:
    """Whether a layer's keys are the text's tokens, as far as can be told: a decoder has others beside an encoder."""
    beside = getattr(getattr(reading.model, "config", None), "is_encoder_decoder", False)
    return layer.keys == tokens and not (beside and "decoder" in layer.site)


def _some(name: str, which: Any) -> Sequence[Any]:
    if isinstance(which, str) or not isinstance(which, Sequence) or not which:
        raise ArgumentError(f"{name}({which!r}): expected a list of what to ablate in turn, or None for all")
    return which


def _is_pair(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and all(isinstance(i, int) for i in one)  # noqa: PLR2004


def _joined(one: Any, layers: Sequence[Layer], model: str) -> Part:
    group = [one] if _is_pair(one) else one
    if not isinstance(group, Sequence) or not group or not all(map(_is_pair, group)):
        raise ArgumentError(f"Heads: {one!r} is no (layer, head) pair, nor a list of such pairs")
    for i, head in group:
        _checked_layers([i], layers, model)
        if not 0 <= head < layers[i].heads:
            raise ArgumentError(f"there is no head {head}: layer {i} of {model} has heads 0 to {layers[i].heads - 1}")
    named = " + ".join(f"{i}.{head}" for i, head in group)
    return Part("layer {} head {}".format(*group[0]) if len(group) == 1 else f"heads {named}", list(group))


def _checked_layers(chosen: Sequence[int] | None, layers: Sequence[Layer], model: str) -> list[int]:
    if chosen is None:
        return list(range(len(layers)))
    wrong = [i for i in chosen if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < len(layers)]
    if wrong:
        raise ArgumentError(f"there is no layer {wrong[0]!r}: {model} has layers 0 to {len(layers) - 1}")
    if not chosen:
        raise ArgumentError("layers = []: expected numbers of layers, or None for all")
    return sorted(set(chosen))


def _called(one: Place | Sequence[Place], labels: Sequence[str]) -> str:
    if isinstance(one, str):
        return one
    return labels[one] if isinstance(one, int) else " + ".join(_called(each, labels) for each in one)


def _listed(parts: Sequence[Part], dim: str, names: Sequence[str], tokens: int) -> Plan:
    return Plan(parts, (dim,), (len(parts),), {dim: names}, range(len(parts)), tokens)
