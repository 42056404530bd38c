"""Which token of a recorded text is meant."""

from __future__ import annotations

from collections.abc import Sequence

from saccade.analysis.words import find_word, not_found
from saccade.errors import ArgumentError
from saccade.trace.tokens import Tokens

Place = int | str


def find_token(place: Place, tokens: Tokens | None, length: int, batch: int = 0) -> int:
    """The position of a token.

    Args:
        place: a position, from the end if negative; or a word. ``word:2`` is its second occurrence.
        tokens: the tokens, if they are known.
        length: how many there are.
        batch: of which element of the batch.

    Raises:
        ArgumentError: there is no such token, it is padding, or the word is several.
    """
    if isinstance(place, int) and not isinstance(place, bool):
        if not -length <= place < length:
            raise ArgumentError(f"token = {place}: there are {length} tokens, from 0")
        if tokens is not None and not tokens.visible[batch, place]:
            raise ArgumentError(f"token = {place} is padding: nobody sees it, and what it sees means nothing")
        return place % length
    if not isinstance(place, str):
        raise ArgumentError(f"token is {type(place).__name__}; expected a position or a word")
    found = word_tokens(place, tokens, batch)
    if len(found) > 1:
        assert tokens is not None
        said = tokens.labels(batch)
        listed = ", ".join(f"{i} {said[i]!r}" for i in found)
        raise ArgumentError(f"token = {place!r} is {len(found)} tokens ({listed}): give the number of one of them")
    return found[0]


def word_tokens(word: str, tokens: Tokens | None, batch: int = 0) -> range:
    """The positions of a word's tokens. ``word:2`` is its second occurrence.

    Raises:
        ArgumentError: the word is not in the text, or the text is not known.
    """
    if tokens is None or tokens.texts is None:
        raise ArgumentError(f"token = {word!r}: the texts are not known; record with a tokenizer, or give a position")
    said, number = _numbered(word)
    found = _occurrences(said, tokens, batch)
    if not found:
        missing = not_found(said, tokens.texts.text[batch], tokens.labels(batch))
        raise ArgumentError(f"{missing}. A token can be given by its number as well, from 0")
    if number > len(found):
        raise ArgumentError(f"token = {word!r}: {said!r} occurs {len(found)} times")
    return found[number - 1]


def _occurrences(said: str, tokens: Tokens, batch: int) -> list[range]:
    """Where a word stands in the text; or, if it does not, the tokens that are called so: a subword, [CLS]."""
    texts = tokens.texts
    assert texts is not None
    spans = list(zip(texts.start[batch].tolist(), texts.stop[batch].tolist(), strict=True))
    found = find_word([said], texts.text[batch], spans, texts.special[batch].tolist())
    return found or [range(i, i + 1) for i, label in enumerate(tokens.labels(batch)) if label.strip() == said]


def _numbered(word: str) -> tuple[str, int]:
    said, colon, number = word.rpartition(":")
    return (said, int(number)) if colon and said and number.isdecimal() and int(number) else (word, 1)


def labels(tokens: Tokens | None, length: int, batch: int = 0) -> list[str]:
    """What to call each token, each name once; numbers where the tokens are not known."""
    return unique([str(i) for i in range(length)] if tokens is None else tokens.labels(batch))


def unique(labels: Sequence[str]) -> list[str]:
    """Labels told apart: the second ``the`` is ``the:2``.

    >>> unique(["the", "roses", "the"])
    ['the', 'roses', 'the:2']
    """
    seen: dict[str, int] = {}
    made = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        made.append(label if seen[label] == 1 else f"{label}:{seen[label]}")
    return made
