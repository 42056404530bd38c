"""Tokens into words, and both into labels that are safe to print.

A word is a run of tokens. Where it begins is decided from the characters that each token covers in
the text, and from nothing else: a trace holds those, so that what was read today and what was
recorded last year have the same words. Markers such as ``##``, ``Ġ`` and ``▁`` differ by tokenizer,
and so do the tokenizers' own numbers of words: some call a whole sentence one word. Characters are
parted as BERT parts them, whose own words these therefore are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from saccade.adapters.pretrained import Encoded

CONTINUES = "·"  # stands before a token that continues a word
_VISIBLE_CONTROLS = {"\n": "↵", "\r": "↵", "\t": "⇥", "\u200d": "\u200d"}


@dataclass(frozen=True)
class Unit:
    """One word, or one token, of the text.

    Attributes:
        label: what is printed for it; never empty, without control characters.
        start: its first token.
        stop: one past its last token.
        special: whether it stands outside the text, such as [CLS].
    """

    label: str
    start: int
    stop: int
    special: bool = False


def words(text: str, encoded: Encoded) -> tuple[Unit, ...]:
    """The text's words, in order; together they cover every token. Needs a tokenizer that knows spans."""
    spans = _spans(encoded)
    starts = [i for i in range(len(spans)) if not _continues(text, encoded, i)]
    stops = [*starts[1:], len(spans)]
    return tuple(_word(text, encoded, a, b) for a, b in zip(starts, stops, strict=True))


def tokens(text: str, encoded: Encoded) -> tuple[Unit, ...]:
    """One unit for each token; `CONTINUES` before those that continue a word."""
    if encoded.spans is None:
        parts = zip(encoded.tokens, encoded.special, strict=True)
        return tuple(Unit(_bare(token), i, i + 1, s) for i, (token, s) in enumerate(parts))
    units = []
    for i, special in enumerate(encoded.special):
        label = _word(text, encoded, i, i + 1).label
        mark = CONTINUES if not special and _continues(text, encoded, i) else ""
        units.append(Unit(mark + label, i, i + 1, special))
    return tuple(units)


def _spans(encoded: Encoded) -> Sequence[tuple[int, int]]:
    assert encoded.spans is not None, "words need a tokenizer that knows spans"
    return encoded.spans


def _word(text: str, encoded: Encoded, start: int, stop: int) -> Unit:
    spans = _spans(encoded)
    covered = text[spans[start][0] : spans[stop - 1][1]].strip(" ")
    special = encoded.special[start]
    return Unit(
        printable(encoded.tokens[start] if special or not covered else covered),
        start,
        stop,
        special,
    )


def _continues(text: str, encoded: Encoded, i: int) -> bool:
    """Whether token i is in the same word as the token before it."""
    if i == 0 or encoded.special[i] or encoded.special[i - 1]:
        return False
    spans = _spans(encoded)
    (start, stop), before = spans[i], spans[i - 1][1]
    if start < before:  # two tokens of one character
        return True
    start += len(text[start:stop]) - len(text[start:stop].lstrip())
    return start == before and start < len(text) and _joined(text[before - 1], text[start])


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters can be of one word."""
    return not left.isspace() and _kind(left) == _kind(right) != "alone"


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Lo" and unicodedata.east_asian_width(character) == "W":
        return "alone"  # an ideograph
    if character.isalnum() or category[0] == "M":
        return "word"
    # As BERT has it, all ASCII that is no letter or digit is punctuation: "$" and "~" as well.
    return "alone" if category[0] == "P" or (character.isascii() and character.isprintable()) else "sign"


def _bare(token: str) -> str:
    """A token without its tokenizer's markers, for tokenizers that know no spans."""
    if token.startswith("##"):
        return CONTINUES + printable(token[2:])
    return printable(token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n").strip(" "))


def printable(label: str) -> str:
    """A label without characters that would move the cursor, change direction, or start an escape sequence."""
    return "".join(map(_printable_character, label)) or "␣"


def _printable_character(character: str) -> str:
    if character in _VISIBLE_CONTROLS:
        return _VISIBLE_CONTROLS[character]
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return "�" if category[0] == "C" or category in {"Zl", "Zp"} else character


def is_word(label: str) -> bool:
    """Whether a label says something: it has a letter or a digit."""
    return any(character.isalnum() for character in label)
