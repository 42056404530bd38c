"""What moved a word towards a sense: which heads, reading which words, and the MLPs.

A layer's output is a sum of what its parts add (see `contributions`). So is its projection on any direction: here on
the one from the other senses' centres to one sense's, as the layer's output has them. What a head brought from a word
along it is how far that moved the word towards the sense, in that layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from saccade.views.units import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from saccade.analysis.senses import Senses


_AFTER = "after"  # beside the names of parts
MOST_NUMBERS = 1 << 24  # in a stack: 64 MiB


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


def movers(found: Senses, asked: Sequence[tuple[int, str]]) -> list[Movers]:
    """What moved occurrences towards senses, in every layer. All of one entry run through the model together.

    Args:
        found: of at least two senses.
        asked: occurrences, by number, each with one of the senses.

    Raises:
        ArgumentError: there is no such sense, or no other.
        UnsupportedModelError: a layer cannot be taken apart.
    """
    wrong = [sense for _, sense in asked if sense not in found.senses or len(found.senses) < 2]  # noqa: PLR2004
    if wrong:
        raise ArgumentError(f"sense = {wrong[0]!r}: expected one of two or more, and there are {_listed(found.senses)}")
    moved = [_Moved(found, occurrence, sense) for occurrence, sense in asked]
    made: dict[int, Movers] = {}
    for entry in {one.entry for one in moved}:
        mine = [(number, one) for number, one in enumerate(moved) if one.entry == entry]
        replay = Replay(found.trace, found.reader.model, entry=entry)
        for some in _in_chunks(replay, mine):
            taken = _Along(replay, [one for _, one in some])
            made |= {number: taken.of(i) for i, (number, _) in enumerate(some)}
    return [made[number] for number in range(len(asked))]


def _in_chunks(replay: Replay, moved: list[tuple[int, _Moved]]) -> Iterator[list[tuple[int, _Moved]]]:
    """So many at a time that what their heads bring takes `MOST_NUMBERS` in a layer."""
    call = replay.site(replay.layers[0].sites[0])
    words_of_all = max(len(one.units) for _, one in moved)
    tokens = max(len(one.where.tokens) for _, one in moved)
    size = max(MOST_NUMBERS // (call.shape[1] * words_of_all * tokens * call.hidden.shape[-1]), 1)
    for start in range(0, len(moved), size):
        yield moved[start : start + size]


def _listed(senses: Sequence[str]) -> str:
    return ", ".join(senses) or "none"


class _Moved:
    """One occurrence that is moved.

    Attributes:
        where: the occurrence.
        sense: towards which.
        entry: where its sentence was read.
        row: the sentence's element of the batch.
        units: its words.
        directions: by layer, ``(L, width)``.
    """

    def __init__(self, found: Senses, occurrence: int, sense: str) -> None:
        self.where, self.sense = found.occurrences[occurrence], sense
        sentence = found.sentences[self.where.sentence]
        self.entry, self.row = sentence.entry, sentence.row
        self.units = words(sentence.text, found.encoded[self.where.sentence])
        self.directions = _directions(found, occurrence, sense)


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
    """All layers, each with what its parts add to each token along that token's direction."""

    def __init__(self, replay: Replay, moved: Sequence[_Moved]) -> None:
        self.replay, self.moved = replay, moved
        counts = torch.tensor([len(one.where.tokens) for one in moved])
        self._whose = torch.arange(len(moved)).repeat_interleave(counts)  # of each token, which occurrence
        self._directions = torch.stack([one.directions for one in moved])[self._whose]  # (T, L, width)
        self._sites: list[str] = []
        self._along: list[Tensor] = []
        self._sums: dict[str, list[Tensor]] = {COMPUTED: [], RESIDUAL: [], _AFTER: []}
        tokens = torch.cat([torch.tensor(list(one.where.tokens)) for one in moved])
        elements = torch.tensor([one.row for one in moved])[self._whose]
        replay.run(tokens, self, until=replay.layers[-1], elements=elements)

    def of(self, number: int) -> Movers:
        """What moved one of the occurrences: the mean over its tokens."""
        one, mine = self.moved[number], self._whose == number
        sums = {name: torch.stack(by_layer)[:, mine].mean(1) for name, by_layer in self._sums.items()}
        own = one.where.tokens
        return Movers(
            along=torch.stack(self._along)[..., : len(one.units), mine].mean(-1),
            mlp=sums[COMPUTED],
            residual=sums[RESIDUAL],
            after=sums[_AFTER],
            occurrence=one.where.label,
            sense=one.sense,
            words=unique([unit.label for unit in one.units]),
            own=[i for i, unit in enumerate(one.units) if unit.start < own.stop and unit.stop > own.start],
        )

    def follows(self, layer: Layer) -> bool:
        """See `Plan`."""
        del layer
        return True

    def attention(self, layer: Layer, site: str, output: Tensor) -> Tensor:
        """See `Plan`: what each head brought from each word, ``(H words, T, H, 1, Dv)``; zero where words are fewer."""
        del layer
        self._sites.append(site)
        tokens, heads, _, width = output.shape
        most = max(len(one.units) for one in self.moved)
        stack = output.new_zeros(heads, most, tokens, heads, 1, width)
        brought = self._brought(site, most).to(output)
        for head in range(heads):
            stack[head, :, :, head, 0] = brought[head]
        return stack.flatten(0, 1)

    def _brought(self, site: str, most: int) -> Tensor:
        """``(H, words, T, Dv)``."""
        weights = self.replay.weights(site)  # (H, T, N)
        made = []
        for token, number in enumerate(self._whose.tolist()):
            one = self.moved[number]
            value = self.replay.values(site, one.row).to(weights)  # (H, N, Dv)
            weighted = weights[:, token, :, None] * value
            ends = torch.nn.functional.pad(weighted.cumsum(1), (0, 0, 1, 0))
            starts, stops = ([getattr(unit, end) for unit in one.units] for end in ("start", "stop"))
            by_word = ends[:, stops] - ends[:, starts]
            made.append(torch.nn.functional.pad(by_word, (0, 0, 0, most - len(one.units))))
        return torch.stack(made, 2)

    def left(self, layer: Layer, state: Tensor, following: Following) -> None:
        """See `Plan`."""
        direction = self._directions[:, layer.number].to(state)

        def along(part: Tensor) -> Tensor:
            return (part.flatten(-2) * direction).sum(-1).cpu()

        parts = following.parts(state) or {}
        site = self._sites[-1]
        heads = self.replay.site(site).shape[1]
        self._along.append(along(linear_map(parts, site, heads)))  # (H, words, T)
        nothing = state.new_zeros(1, *state.shape)
        for name in (COMPUTED, RESIDUAL):
            self._sums[name].append(along(parts.get(name, nothing).sum(0)))
        self._sums[_AFTER].append(along(state))
