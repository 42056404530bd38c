"""Tokens into words, and both into labels that are safe to print.

A word is a run of tokens. Where it begins is decided from the characters that each token covers in
the text, which every fast tokenizer knows, rather than from markers such as ``##``, ``Ġ`` and
``▁``, which differ by tokenizer: some tokenizers call a whole sentence one word, and a character
outside their vocabulary becomes several tokens.
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
    same_word = encoded.words[i] is not None and encoded.words[i] == encoded.words[i - 1]
    return same_word and start == before and start < len(text) and _joined(text[before - 1], text[start])


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters can be of one word."""
    return not left.isspace() and _kind(left) == _kind(right) != "ideograph"


def _kind(character: str) -> str:
    if unicodedata.category(character) == "Lo" and unicodedata.east_asian_width(character) == "W":
        return "ideograph"  # a word by itself, as BERT has it
    return "word" if character.isalnum() or unicodedata.category(character)[0] == "M" else "sign"


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
