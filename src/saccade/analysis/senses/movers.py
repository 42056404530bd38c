"""What moved a word towards a sense: which heads, reading which words, and the MLPs.

A layer's output is a sum of what its parts add (see `contributions`). So is its projection on any direction: here on
the one from the other senses' centres to one sense's, as the layer's output has them. What a head brought from a word
along it is how far that moved the word towards the sense, in that layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.analysis.contributions import linear_map
from saccade.analysis.following import COMPUTED, Following
from saccade.analysis.places import unique
from saccade.analysis.replay import RESIDUAL, Layer, Plan, Replay
from saccade.analysis.result import Result
from saccade.errors import ArgumentError
from saccade.views import drawing
from saccade.views.units import Unit, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saccade.analysis.senses import Senses


@dataclass(frozen=True)
class Mover:
    """What a head brought from a word.

    Attributes:
        layer, head: which head.
        word: which word it read.
        along: how far that moved the occurrence along the direction of its sense.
    """

    layer: int
    head: int
    word: str
    along: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Movers(Result):
    """What moved one occurrence of a word towards a sense.

    Attributes:
        along: ``(L, H, W)``, what each head brought from each word of the sentence, along the direction of the sense.
        mlp: ``(L,)``, what the MLP added along it.
        residual: ``(L,)``, what was there before and is kept.
        after: ``(L,)``, how far the occurrence lies along it when it leaves the layer: the sum of all, with biases.
        occurrence: its label.
        sense: towards which.
        words: of the sentence.
        own: which of them are the occurrence.
    """

    along: Float[Tensor, "layer head word"]
    mlp: Float[Tensor, "layer"]
    residual: Float[Tensor, "layer"]
    after: Float[Tensor, "layer"]
    occurrence: str
    sense: str
    words: list[str]
    own: list[int]

    SIZE: ClassVar[tuple[float, float]] = (6.5, 4.0)

    def coordinates(self) -> dict[str, Any]:
        """Words by their labels."""
        return {"word": self.words}

    def about(self) -> dict[str, Any]:
        """Which occurrence, and towards which sense."""
        return {"occurrence": self.occurrence, "sense": self.sense}

    def strongest(self, count: int) -> list[Mover]:
        """What other words moved it most towards the sense, at most so many; fewer if less did."""
        _, heads, width = self.along.shape
        flat = self.along.index_fill(2, torch.tensor(self.own), 0).flatten()
        places = flat.topk(min(count, len(flat))).indices.tolist()
        return [
            Mover(place // (heads * width), place // width % heads, self.words[place % width], float(flat[place]))
            for place in places
            if flat[place] > 0
        ]

    def draw(self, axis: Axes) -> None:
        """Words by layers, all heads together."""
        moved = self.along.sum(1)
        limit = float(moved.abs().max()) or 1.0
        image = axis.imshow(moved.numpy(), cmap=drawing.both(), vmin=-limit, vmax=limit, aspect="auto")
        drawing.name_cells(axis, self.words, [str(layer) for layer in range(len(moved))])
        axis.set_xlabel("reading", fontsize=8)
        axis.set_ylabel("layer", fontsize=8)
        axis.set_title(f"What moved “{self.words[self.own[0]]}” towards “{self.sense}”", fontsize=9)
        drawing.colour_bar(axis, image, "how far, all heads together")


def movers(found: Senses, occurrence: int, sense: str) -> Movers:
    """What moved an occurrence towards a sense, in every layer.

    Args:
        found: at least two senses.
        occurrence: which, by number.
        sense: one of its senses.

    Raises:
        ArgumentError: there is no such sense, or no other.
        UnsupportedModelError: a layer cannot be taken apart.
    """
    if sense not in found.senses or len(found.senses) < 2:  # noqa: PLR2004  a direction has two ends
        raise ArgumentError(f"sense = {sense!r}: expected one of two or more, and there are {', '.join(found.senses)}")
    where = found.occurrences[occurrence]
    units = words(found.sentences[where.sentence].text, found.encoded[where.sentence])
    replay = Replay(found.trace, found.reader.model, entry=where.sentence)
    taken = _Along(replay, _directions(found, occurrence, sense), units)
    replay.run(torch.tensor(list(where.tokens)), taken, until=replay.layers[-1])
    return Movers(
        along=torch.stack(taken.along),
        mlp=torch.stack(taken.mlp),
        residual=torch.stack(taken.kept),
        after=torch.stack(taken.after),
        occurrence=where.label,
        sense=sense,
        words=unique([unit.label for unit in units]),
        own=[i for i, unit in enumerate(units) if unit.start < where.tokens.stop and unit.stop > where.tokens.start],
    )


def _directions(found: Senses, occurrence: int, sense: str) -> Tensor:
    """From the other senses' centres to that of a sense, of length 1, ``(L, width)``; the own sentence left out."""
    own = found.occurrences[occurrence].sentence
    centres = []
    for name in found.senses:
        of_it = [i for i, other in enumerate(found.occurrences) if found.sense_of(i) == name and other.sentence != own]
        centres.append(found.vectors[of_it, 1:].mean(0))
    chosen = found.senses.index(sense)
    others = torch.stack([centre for i, centre in enumerate(centres) if i != chosen]).mean(0)
    return torch.nn.functional.normalize(centres[chosen] - others, dim=-1)


class _Along(Plan):
    """All layers, each with what its parts add along its direction: the mean over the word's tokens."""

    def __init__(self, replay: Replay, directions: Tensor, units: Sequence[Unit]) -> None:
        self.replay, self.directions, self.units = replay, directions, units
        self.along: list[Tensor] = []
        self.mlp: list[Tensor] = []
        self.kept: list[Tensor] = []
        self.after: list[Tensor] = []
        self._site = ""

    def follows(self, layer: Layer) -> bool:
        """See `Plan`."""
        del layer
        return True

    def attention(self, layer: Layer, site: str, output: Tensor) -> Tensor:
        """See `Plan`: what each head brought from each word, ``(H words, T, H, 1, Dv)``."""
        del layer
        self._site = site
        tokens, heads, _, width = output.shape
        weight, value = self.replay.weights(site).to(output), self.replay.values(site).to(output)
        spans = [slice(unit.start, unit.stop) for unit in self.units]
        brought = torch.stack([weight[..., span] @ value[:, span] for span in spans], 1)  # (H, words, T, Dv)
        stack = output.new_zeros(heads, len(spans), tokens, heads, 1, width)
        for head in range(heads):
            stack[head, :, :, head, 0] = brought[head]
        return stack.flatten(0, 1)

    def left(self, layer: Layer, state: Tensor, following: Following) -> None:
        """See `Plan`."""
        direction = self.directions[layer.number].to(state)
        parts = {name: (part @ direction).mean((1, 2)).cpu() for name, part in (following.parts(state) or {}).items()}
        along = linear_map(parts, self._site, self.replay.site(self._site).shape[1])
        self.along.append(along)  # (H, words)
        self.mlp.append(parts.get(COMPUTED, torch.zeros(1)).sum())
        self.kept.append(parts.get(RESIDUAL, torch.zeros(1)).sum())
        self.after.append((state @ direction).mean().cpu())
