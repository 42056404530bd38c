"""Job `meaning`: how a word's vectors come apart in sentences where it has several senses; see `analysis/senses`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.analysis.senses import CAVEAT, TOGETHER, Senses, senses
from saccade.analysis.senses.movers import movers
from saccade.errors import ArgumentError, UnsupportedModelError
from saccade.explorer.parameters import read
from saccade.explorer.parcel import Answer
from saccade.explorer.reading import Steps, calls_of, reader_of, run_of_model
from saccade.explorer.work import Asked

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer, Progress

MOST_SENTENCES = 64
LONGEST_SENTENCE = 1000  # characters
LONGEST_NAME = 100  # of a word or a sense
MOST_MOVERS = 8  # that are told of each occurrence
READING = 0.4  # share of the job


@dataclass(frozen=True)
class Sentences:
    """Parameters of the job: each sentence is an object of `text` and `sense`, which may be null."""

    word: str
    sentences: tuple[Mapping[str, Any], ...]


def meaning(explorer: Explorer, parameters: Mapping[str, Any], progress: Progress, cancelled: Asked) -> Answer:
    """How a word's vectors come apart: MeaningAnswer.

    Where there are fewer than two senses there is no accuracy and no chance of one (null), and nothing is said to have
    moved the word.

    Raises:
        ArgumentError: there is no model, a sentence is not as it should be, or the word is not in it.
        Cancelled: nobody waits for it any more.
    """
    asked = read(Sentences, parameters)
    reader = reader_of(explorer)
    by_sense = _by_sense(asked)
    forwards = max(-(-len(asked.sentences) // TOGETHER), 1)
    calls = forwards * calls_of(reader.model)
    steps, said = Steps(progress, cancelled), f"{len(asked.sentences)} sentences"
    steps.begin(calls, f"reading {said}", (0.0, READING), keeping=said)
    with run_of_model(explorer, steps):
        found = senses(reader, asked.word, by_sense)
        steps.begin(calls, "finding out what moved the word", (READING, 1.0))
        moved, remark = _moved(found)
    return _compared(found) | {"moved": moved, "caveat": f"{CAVEAT} {remark}".strip()}


# ---------------------------------------------------------------------------------------- what was asked


def _by_sense(asked: Sentences) -> dict[str | None, list[str]]:
    """The sentences of each sense.

    Raises:
        ArgumentError: there are too many, one is too long, or is no sentence.
    """
    if not asked.word.strip() or len(asked.word) > LONGEST_NAME:
        raise ArgumentError(f"expected a word of at most {LONGEST_NAME} characters; it has {len(asked.word.strip())}")
    if len(asked.sentences) > MOST_SENTENCES:
        raise ArgumentError(f"there are {len(asked.sentences)} sentences; expected at most {MOST_SENTENCES}")
    found: dict[str | None, list[str]] = {}
    for number, sentence in enumerate(asked.sentences, 1):
        text, sense = _checked(number, sentence)
        found.setdefault(sense, []).append(text)
    return found


def _checked(number: int, sentence: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text and the sense of a sentence."""
    text, sense = sentence.get("text"), sentence.get("sense")
    if set(sentence) != {"text", "sense"} or not isinstance(text, str) or not isinstance(sense, str | None):
        raise ArgumentError(f"sentence {number}: expected its text, a string, and its sense, a string or null")
    if len(text) > LONGEST_SENTENCE:
        raise ArgumentError(f"sentence {number} has {len(text):,} characters; expected at most {LONGEST_SENTENCE:,}")
    if any("\ud800" <= character <= "\udfff" for character in text + (sense or "")):
        raise ArgumentError(f"sentence {number} holds half of a character (a lone surrogate), which is no text")
    if sense is not None and len(sense) > LONGEST_NAME:
        raise ArgumentError(
            f"sentence {number}: its sense has {len(sense)} characters; expected at most {LONGEST_NAME}"
        )
    return text, sense


# ---------------------------------------------------------------------------------------- what was found


def _compared(found: Senses) -> dict[str, Any]:
    layers, count = found.projection.shape[:2]
    similarity = found.projection.new_zeros(layers, count, 0) if found.similarity is None else found.similarity
    return {
        "word": found.word,
        "senses": list(found.senses),
        "occurrences": list(_occurrences(found)),
        "similarity": similarity.float(),
        "projection": found.projection.float(),
        "kept": found.kept,
        "accuracy": None if found.accuracy is None else found.accuracy.tolist(),
        "chance": found.chance,
    }


def _occurrences(found: Senses) -> Iterator[dict[str, Any]]:
    for number, occurrence in enumerate(found.occurrences):
        text = found.sentences[occurrence.sentence].text
        yield {
            "label": occurrence.label,
            "sentence": text,
            "start": units_before(text, occurrence.start),
            "stop": units_before(text, occurrence.stop),
            "sense": found.sense_of(number),
        }


def units_before(text: str, place: int) -> int:
    """How many UTF-16 units, as browsers count, stand before a character.

    >>> units_before("a 😀 bank", 4)
    5
    """
    return len(text[:place].encode("utf-16-le")) // 2


def _moved(found: Senses) -> tuple[list[dict[str, Any]], str]:
    """What moved each occurrence towards its sense, or the nearest; and why that cannot be told, if it cannot."""
    numbers = range(len(found.occurrences))
    towards = [found.sense_of(n) or (found.nearest(n) if found.senses else "") for n in numbers]
    if len(found.senses) < 2:  # noqa: PLR2004  a direction has two ends
        return [{"towards": sense, "movers": []} for sense in towards], ""
    try:
        brought = [one.strongest(MOST_MOVERS) for one in movers(found, list(zip(numbers, towards, strict=True)))]
    except UnsupportedModelError as error:
        return [{"towards": sense, "movers": []} for sense in towards], f"What moved the word cannot be told: {error}."
    return [
        {
            "towards": sense,
            "movers": [
                {"layer": mover.layer, "head": mover.head, "word": mover.word, "amount": mover.along}
                for mover in strongest
            ],
        }
        for sense, strongest in zip(towards, brought, strict=True)
    ], ""
