"""Senses of a word: how far apart a model's vectors of it come to lie, layer by layer.

A model begins with one vector for "bank" and moves it, by what stands around it. How far it moves it is seen in the
similarity of its occurrences: where senses are told apart, those of one sense lie nearer to each other than to others.

Two things would make a plain cosine say too much. All vectors of a layer share a large common part, so that any two of
them are similar (Ethayarajh 2019, section 4.1, arXiv:1909.00512): the mean of all ordinary tokens at that layer is
taken off first. And two occurrences in one sentence read each other: an occurrence is never compared with its own
sentence, neither for its nearest neighbour nor for the centre of its sense.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.adapters.pretrained import Encoded, Pretrained, as_pretrained, encode, together
from saccade.analysis.result import Result
from saccade.analysis.senses import drawing
from saccade.analysis.senses.geometry import (
    cosines,
    fixed_axes,
    less,
    nearest_share,
    similarity_to_centres,
    unit,
    within_and_between,
)
from saccade.analysis.senses.movers import Mover, Movers, movers
from saccade.analysis.words import find_word, not_found
from saccade.errors import ArgumentError
from saccade.trace import record
from saccade.trace.trace import Entry, Site, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNKNOWN = "?"  # stands for a sense that is not known
CAVEAT = "Similar vectors are no proof that a model understands the sense."
FEWEST = 2  # sentences, in all and of each sense
MOVERS = 3  # that are told of each occurrence
TOGETHER = 32  # sentences that are read in one forward


@dataclass(frozen=True)
class Sentence:
    """A sentence that was read.

    Attributes:
        text: as it was given.
        sense: of the word in it; None if that is not known.
        tokens: as the tokenizer writes them, special ones included.
        entry: of the trace, where it was read.
        row: which element of that entry's batch it is.
    """

    text: str
    sense: str | None
    tokens: tuple[str, ...]
    entry: int
    row: int


@dataclass(frozen=True)
class Occurrence:
    """The word at one place.

    Attributes:
        label: its sense, the number of the sentence in that sense, and, of several in the sentence, which.
        sentence: number of its sentence.
        tokens: positions of its subwords in the sentence.
        start, stop: its characters.
    """

    label: str
    sentence: int
    tokens: range
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Senses(Result):
    """What a word's vectors say about its senses, by layer: layer 0 is what enters the first, l what left l layers.

    Attributes:
        word: what was looked for.
        model: its name.
        senses: their names.
        sentences: what was read.
        occurrences: where the word stands.
        chance: the accuracy if all occurrences were equally near; NaN for fewer than two senses.
        kept: share of the last layer's variance that the projection shows.
        reader: the model and its tokenizer.
        encoded: the sentences as the model read them.
        trace: what it attended to, an entry for each sentence.
        similarity: ``(layer, occurrence, sense)``, cosine with the centre (mean) of the sense's vectors, those of the
            occurrence's own sentence left out. None if no sense was given.
        accuracy: ``(layer,)``, share of the occurrences of known sense whose nearest one in another sentence has the
            same sense; where several are equally near, each counts as its part. None for fewer than two senses.
        raw_accuracy: the same by `raw_cosine`.
        within, between: ``(layer,)``, mean cosine of two occurrences, in two sentences, of one sense and of two. None
            for fewer than two senses.
        cosine: ``(layer, occurrence, other)``, of vectors less the mean of all ordinary tokens of the layer.
        raw_cosine: the same of vectors as they are.
        projection: ``(layer, occurrence, axis)``, see `fixed_axes`: the axes are those of the last layer in all layers.
        vectors: ``(occurrence, layer, width)``, hidden states as they are, the mean of the word's subwords.
    """

    SIZE: ClassVar[tuple[float, float]] = (7.5, 5.5)
    CAVEAT: ClassVar[str] = CAVEAT

    word: str
    model: str
    senses: tuple[str, ...]
    sentences: tuple[Sentence, ...]
    occurrences: tuple[Occurrence, ...]
    chance: float
    kept: float
    reader: Pretrained
    encoded: tuple[Encoded, ...]
    trace: Trace
    similarity: Float[Tensor, "layer occurrence sense"] | None
    accuracy: Float[Tensor, "layer"] | None
    raw_accuracy: Float[Tensor, "layer"] | None
    within: Float[Tensor, "layer"] | None
    between: Float[Tensor, "layer"] | None
    cosine: Float[Tensor, "layer occurrence other"]
    raw_cosine: Float[Tensor, "layer occurrence other"]
    projection: Float[Tensor, "layer occurrence axis"]
    vectors: Float[Tensor, "occurrence layer width"]

    def coordinates(self) -> dict[str, Sequence[Any]]:
        """See `Result.coordinates`."""
        labels = [occurrence.label for occurrence in self.occurrences]
        return {
            "layer": range(len(self.cosine)),
            "occurrence": labels,
            "other": labels,
            "sense": self.senses,
            "axis": ["first", "second"],
        }

    def about(self) -> dict[str, Any]:
        """See `Result.about`."""
        return {
            "word": self.word,
            "model": self.model,
            "sentences": [
                {"text": sentence.text, "sense": sentence.sense, "occurrences": list(self._said_of(number))}
                for number, sentence in enumerate(self.sentences)
            ],
            "notes": list(self._notes()),
        }

    def _said_of(self, number: int) -> Iterator[dict[str, Any]]:
        tokens = self.sentences[number].tokens
        for occurrence in self.occurrences:
            if occurrence.sentence == number:
                moved = [mover.as_dict() for mover in self.moved_most[self.occurrences.index(occurrence)]]
                yield {"label": occurrence.label, "tokens": [tokens[i] for i in occurrence.tokens], "moved_by": moved}

    def _notes(self) -> Iterator[str]:
        yield "layer 0 is what enters the first layer, layer l what left l layers"
        yield "cosine: after the mean of all ordinary tokens of the layer was taken off; raw_cosine: as the vectors are"
        if self.similarity is None:
            yield "no sense was given: there is no similarity to senses"
        else:
            yield "similarity: cosine with the mean of a sense's vectors, those of the same sentence left out"
        if self.accuracy is None:
            yield "fewer than two senses were given: there is no accuracy"
        else:
            yield f"accuracy: by chance it would be {self.chance:.2f}"
        yield f"projection: principal components of the last layer; they hold {self.kept:.0%} of its variance"
        yield CAVEAT

    def sense_of(self, occurrence: int) -> str | None:
        """The sense of an occurrence; None if it is not known."""
        return self.sentences[self.occurrences[occurrence].sentence].sense

    @property
    def unknown(self) -> list[int]:
        """The occurrences whose sense is not known."""
        return [i for i in range(len(self.occurrences)) if self.sense_of(i) is None]

    def snippet(self, occurrence: int) -> str:
        """An occurrence with a few words on each side."""
        where = self.occurrences[occurrence]
        return snippet(self.sentences[where.sentence].text, where.start, where.stop)

    def movers(self, occurrence: int | str, sense: str | None = None) -> Movers:
        """Which heads, reading which words, moved an occurrence towards a sense; see `movers`.

        Args:
            occurrence: its number or label.
            sense: None for its own; of one whose sense is not known, the nearest in the last layer.

        Raises:
            ArgumentError: there is no such occurrence or sense, or fewer than two senses.
            UnsupportedModelError: a layer cannot be taken apart.
        """
        number = self._number(occurrence)
        return movers(self, [(number, sense or self.sense_of(number) or self.nearest(number))])[0]

    @cached_property
    def moved_most(self) -> list[list[Mover]]:
        """What moved each occurrence most towards its sense (or the nearest), the strongest `MOVERS` of each.

        Empty for fewer than two senses. Computed once, when it is asked for.
        """
        numbers = range(len(self.occurrences))
        if len(self.senses) < 2:  # noqa: PLR2004  a direction has two ends
            return [[] for _ in numbers]
        asked = [(number, self.sense_of(number) or self.nearest(number)) for number in numbers]
        return [moved.strongest(MOVERS) for moved in movers(self, asked)]

    def nearest(self, occurrence: int) -> str:
        """The sense that an occurrence is nearest to in the last layer.

        Raises:
            ArgumentError: no sense was given.
        """
        if self.similarity is None:
            raise ArgumentError("no sense was given, so that none is nearest")
        return self.senses[int(self.similarity[-1, occurrence].argmax())]

    def _number(self, occurrence: int | str) -> int:
        labels = [known.label for known in self.occurrences]
        if occurrence in labels:
            return labels.index(str(occurrence))
        if not isinstance(occurrence, int) or not -len(labels) <= occurrence < len(labels):
            raise ArgumentError(f"there is no occurrence {occurrence!r}; there are {', '.join(labels)}")
        return occurrence % len(labels)

    def draw(self, axis: Axes) -> None:
        """Draw each occurrence's path from layer 0 to the last, in the fixed axes of `projection`."""
        drawing.draw_paths(axis, self)

    def draw_similarity(self, axis: Axes, occurrence: str | None = None) -> None:
        """Draw how near one occurrence is to each sense, by layer.

        Args:
            axis: where to.
            occurrence: its label; None for the first whose sense is not known.

        Raises:
            ArgumentError: no sense was given, or there is no such occurrence.
        """
        if self.similarity is None:
            raise ArgumentError("no sense was given: there is no similarity to draw")
        if occurrence is None and not self.unknown:
            labels = ", ".join(known.label for known in self.occurrences)
            raise ArgumentError(f"every sense is known; expected the label of an occurrence: {labels}")
        number = self.unknown[0] if occurrence is None else self._number(occurrence)
        drawing.draw_similarity(axis, self, number)


def senses(
    model: Any, word: str | Sequence[str], sentences: Mapping[str | None, Sequence[str]], *, tokenizer: Any = None
) -> Senses:
    """Follow a word's vectors through the layers of a model, in sentences where its sense is known or asked for.

    Args:
        model: a name or a folder as of `saccade.adapters.pretrained.load`, None for the packaged model, a `Pretrained`,
            or a model of Hugging Face together with its tokenizer.
        word: looked for in any case and regular inflection, as "banks"; a list of forms: just those.
        sentences: those of each sense, at least two; under None those in which the sense is not known. All occurrences
            of the word in them count.
        tokenizer: of a model that is no name and no `Pretrained`.

    Raises:
        ArgumentError: the word is not in a sentence; a sentence is empty, too long, or given twice; there are fewer
            than two, or only one of a sense, which then has no other to be compared with; the tokenizer does not know
            where in a text its tokens stand; the model shows no hidden states of its layers.
        ModelNotFoundError, UnsupportedModelError, IntegrityError, MissingExtraError: as of `load` and `record`.

    >>> from saccade.analysis.senses import senses
    >>> found = senses(None, "bank", {
    ...     "river": ["He sat on the river bank.", "The boat drifted toward the muddy bank."],
    ...     "money": ["She opened a bank account.", "He went to the bank to deposit his salary."],
    ...     None: ["The bank was closed."],
    ... })
    >>> found.similarity.shape  # layer, occurrence, sense
    torch.Size([7, 5, 2])
    >>> found.accuracy[-1].item()
    1.0
    """
    read = list(_checked(sentences))
    reader = _reader(model, tokenizer)
    encoded = [_encode(reader, text) for text, _ in read]
    said = tuple(
        Sentence(text, sense, tuple(one.tokens), *divmod(number, TOGETHER))
        for number, ((text, sense), one) in enumerate(zip(read, encoded, strict=True))
    )
    occurrences = tuple(_find(word, said, encoded))
    trace = _record(reader, said, encoded)
    entries = [hidden_states(entry) for entry in trace]
    states = [entries[one.entry][:, one.row, : len(one.tokens)] for one in said]
    ordinary = torch.cat([x[:, ~torch.tensor(one.special)] for x, one in zip(states, encoded, strict=True)], 1)
    vectors = torch.stack([states[found.sentence][:, found.tokens].mean(1) for found in occurrences], 1)
    return _compared(vectors, ordinary.mean(1), word, reader, said, occurrences, trace, tuple(encoded))


def _compared(
    vectors: Tensor,
    mean: Tensor,
    word: str | Sequence[str],
    reader: Pretrained,
    sentences: tuple[Sentence, ...],
    occurrences: tuple[Occurrence, ...],
    trace: Trace,
    encoded: tuple[Encoded, ...],
) -> Senses:
    """All comparisons of vectors ``(layer, occurrence, width)``, the mean ``(layer, width)`` taken off them."""
    names = tuple(dict.fromkeys(sentence.sense for sentence in sentences if sentence.sense is not None))
    numbers: dict[str | None, int] = {None: -1, **{name: i for i, name in enumerate(names)}}
    place = torch.tensor([found.sentence for found in occurrences])
    group = torch.tensor([numbers[sentences[found.sentence].sense] for found in occurrences])
    moved = less(vectors, mean)
    if not moved[-1].any(-1).all():
        raise ArgumentError(
            "the word's vectors are the mean of all tokens: expected sentences with other words in them"
        )
    cosine, raw = cosines(moved), cosines(vectors)
    several = len(names) > 1
    within, between = within_and_between(cosine, group, place) if several else (None, None)
    axes, kept = fixed_axes(unit(moved[-1]))
    return Senses(
        similarity=similarity_to_centres(moved, group, place, len(names)) if names else None,
        accuracy=nearest_share(cosine, group, place) if several else None,
        raw_accuracy=nearest_share(raw, group, place) if several else None,
        within=within,
        between=between,
        cosine=cosine,
        raw_cosine=raw,
        projection=(unit(moved) - unit(moved[-1]).mean(0)) @ axes,
        vectors=vectors.transpose(0, 1).float(),
        word=word if isinstance(word, str) else "/".join(word),
        model=f"{reader.name} ({reader.part})" if reader.part else reader.name,
        senses=names,
        sentences=sentences,
        occurrences=occurrences,
        chance=float(nearest_share(torch.zeros_like(cosine[:1]), group, place)) if several else math.nan,
        kept=kept,
        reader=reader,
        encoded=encoded,
        trace=trace,
    )


# ---------------------------------------------------------------------------------------- what is read


def _checked(sentences: Mapping[str | None, Sequence[str]]) -> Iterator[tuple[str, str | None]]:
    """Each sentence with its sense."""
    if not isinstance(sentences, Mapping):
        raise ArgumentError(f"sentences is {type(sentences).__name__}; expected {{sense or None: [sentence, ...]}}")
    for sense, texts in sentences.items():
        _check_sense(sense, texts)
    times = Counter(text.strip() for texts in sentences.values() for text in texts)
    if times.total() < FEWEST:
        raise ArgumentError(f"there is {times.total() or 'no'} sentence; expected at least {FEWEST}, to compare them")
    if twice := [text for text, count in times.items() if count > 1]:
        raise ArgumentError(f"{twice[0]!r} is given twice; it would be its own nearest neighbour")
    for sense, texts in sentences.items():
        yield from ((text.strip(), sense) for text in texts)


def _check_sense(sense: Any, texts: Any) -> None:
    """Refuse what is no sense with its sentences."""
    if sense is not None and (
        not isinstance(sense, str) or not sense.strip() or not sense.isprintable() or sense == UNKNOWN
    ):
        raise ArgumentError(f"sense {sense!r}: expected a name in one line, or None where the sense is not known")
    called = "of unknown sense" if sense is None else f"of the sense {sense!r}"
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(x, str) for x in texts):
        raise ArgumentError(f"sentences {called}: expected a list of strings")
    if empty := [i for i, text in enumerate(texts, 1) if not text.strip()]:
        raise ArgumentError(f"sentence {empty[0]} {called} is empty; expected at least one word")
    if sense is not None and len(texts) < FEWEST:
        raise ArgumentError(
            f"there is {len(texts) or 'no'} sentence {called}; expected at least {FEWEST}: an occurrence is compared "
            "with those of its sense in other sentences. Give another, or give it as one of unknown sense"
        )


def _reader(model: Any, tokenizer: Any) -> Pretrained:
    if getattr(model, "training", False):
        raise ArgumentError("the model is in training mode, and dropout would move its vectors: call model.eval()")
    return as_pretrained(model, tokenizer)


def _encode(reader: Pretrained, text: str) -> Encoded:
    encoded = encode(reader, text, truncate=True)
    if encoded.dropped:
        count = len(encoded.tokens) + encoded.dropped
        raise ArgumentError(f"{text[:60]!r}… is {count} tokens long; {reader.name} has positions for {reader.limit}")
    if encoded.spans is None:
        raise ArgumentError(
            f"the tokenizer of {reader.name} does not know where in a text its tokens stand, so that no word can be "
            "found; expected a fast tokenizer"
        )
    return encoded


def _find(word: str | Sequence[str], sentences: Sequence[Sentence], encoded: Sequence[Encoded]) -> Iterator[Occurrence]:
    """The word's occurrences in all sentences, of which each has one."""
    numbers: Counter[str | None] = Counter()
    for place, (sentence, one) in enumerate(zip(sentences, encoded, strict=True)):
        assert one.spans is not None
        numbers[sentence.sense] += 1
        found = find_word(word, sentence.text, one.spans, one.special)
        if not found:
            raise not_found(word, sentence.text, sentence.tokens)
        label = f"{sentence.sense or UNKNOWN} {numbers[sentence.sense]}"
        for nth, tokens in enumerate(found, 1):
            start, stop = one.spans[tokens[0]][0], one.spans[tokens[-1]][1]
            yield Occurrence(f"{label}.{nth}" if len(found) > 1 else label, place, tokens, start, stop)


def snippet(text: str, start: int, stop: int, room: int = 14) -> str:
    """A piece of a text with up to two words before and three after, as far as so many characters a side allow.

    >>> snippet("Willows grew along the bank of the stream.", 23, 27)
    'along the bank of the stream'
    """
    before, after = text[:start].split()[-2:], text[stop:].split()[:3]
    while len(" ".join(before)) > room:
        before = before[1:]
    while len(" ".join(after)) > room:
        after = after[:-1]
    whole = " ".join([*before, text[start:stop].strip(), *after]).rstrip(" .,;:!?")
    return "".join(character if character.isprintable() else "�" for character in whole)


# ---------------------------------------------------------------------------------------- what is seen of the model


def _record(reader: Pretrained, sentences: Sequence[Sentence], encoded: Sequence[Encoded]) -> Trace:
    """A trace of all sentences, so many in each entry, shorter ones padded."""
    with record(reader.model, reader.tokenizer, keep="qkv", statistics=[], name=reader.name) as trace, torch.no_grad():
        for start in range(0, len(sentences), TOGETHER):
            some = slice(start, start + TOGETHER)
            trace.next(texts=[sentence.text for sentence in sentences[some]])
            reader.model(**together(reader, encoded[some]))
    return trace


def hidden_states(entry: Entry) -> Tensor:
    """The hidden states of an entry, float64 ``(layer, B, token, width)``: layer 0 enters the first layer.

    What leaves the last layer is taken before the final norm, if the model has one.

    Raises:
        ArgumentError: the model shows none, or of different sizes, or they are no numbers.
    """
    sites: dict[tuple[int | None, int | None], Site] = {}
    for about, site in zip(entry.metadata.sites, entry, strict=True):
        sites.setdefault((about.hidden, about.hidden_row), site)  # a layer may attend several times
    if (None, None) in sites:
        raise ArgumentError("the model shows no hidden states of its layers; expected layers that are given some")
    states = [site.hidden for site in sites.values()]
    states.append(list(sites.values())[-1].hidden_after)
    if len({state.shape for state in states}) > 1:
        raise ArgumentError(f"hidden states are {[tuple(x.shape) for x in states]}; expected one size in all layers")
    stacked = torch.stack(states).double()
    if not stacked.isfinite().all():
        raise ArgumentError("hidden states are not all numbers; expected a model whose layers give back hidden states")
    return stacked
