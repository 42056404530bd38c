"""Where a word stands in a text, in tokens: however many subwords it is, in whatever case, inflected."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from saccade.errors import ArgumentError

# Regular English inflections. Whoever wants others names the forms.
_ENDINGS = ("", "s", "es", "ed", "d", "ing")
_REPLACED = (("y", "ies"), ("y", "ied"), ("e", "ing"))  # what stands in for a last letter
_MOST_NAMED = 40  # tokens that a message lists


def forms_of(word: str | Sequence[str]) -> tuple[str, ...]:
    """The forms that a word is looked for in: itself and its regular inflections; of a list, just those.

    Raises:
        ArgumentError: there is no word.

    >>> forms_of("bank")
    ('bank', 'banks', 'bankes', 'banked', 'bankd', 'banking')
    >>> forms_of("rise")[-1], forms_of("city")[-2]
    ('rising', 'cities')
    >>> forms_of(["Bank", "Banken"])
    ('Bank', 'Banken')
    """
    forms = _inflected(word.strip()) if isinstance(word, str) else list(word)
    if not forms or not all(isinstance(form, str) and form.strip() for form in forms):
        raise ArgumentError(f"word = {word!r}: expected a word, or a list of its forms")
    return tuple(form.strip() for form in forms)


def _inflected(word: str) -> list[str]:
    endings = [word + ending for ending in _ENDINGS]
    return endings + [word[: -len(last)] + ending for last, ending in _REPLACED if word.endswith(last)]


def find_word(
    word: str | Sequence[str], text: str, spans: Sequence[tuple[int, int]], special: Sequence[bool]
) -> list[range]:
    """The tokens of each occurrence of a word, in order. Case does not matter.

    Args:
        word: see `forms_of`; may be several words with spaces between them.
        text: where to look.
        spans: the characters of the text that each token stands for.
        special: whether a token stands outside the text.

    >>> find_word("bank", "Banks? A bank.", [(0, 4), (4, 5), (5, 6), (7, 8), (9, 13), (13, 14)], [False] * 6)
    [range(0, 2), range(4, 5)]
    """
    found = []
    for match in _pattern(forms_of(word)).finditer(text):
        start, stop = match.span()
        inside = [
            i for i, (a, b) in enumerate(spans) if not special[i] and a < stop and b > start and text[a:b].strip()
        ]
        if inside:
            found.append(range(inside[0], inside[-1] + 1))
    return found


def _pattern(forms: Sequence[str]) -> re.Pattern[str]:
    """Any of the forms, not within a longer word."""
    longest_first = sorted(set(forms), key=len, reverse=True)
    return re.compile("|".join(_bounded(form) for form in longest_first), re.IGNORECASE)


def _bounded(form: str) -> str:
    escaped = re.escape(form).replace(r"\ ", r"\s+")
    before = r"(?<![^\W_])" if _joins(form[0]) else ""
    after = r"(?![^\W_])" if _joins(form[-1]) else ""
    return before + escaped + after


def _joins(character: str) -> bool:
    """Whether a neighbouring letter would be of the same word; an ideograph is a word by itself."""
    wide = unicodedata.category(character) == "Lo" and unicodedata.east_asian_width(character) == "W"
    return character.isalnum() and not wide


def not_found(word: str | Sequence[str], text: str, tokens: Sequence[str]) -> ArgumentError:
    """The error that says that a word is not in a text, and what is."""
    said = word if isinstance(word, str) else "/".join(word)
    listed = " ".join(tokens[:_MOST_NAMED]) + (" …" if len(tokens) > _MOST_NAMED else "")
    shortened = text if len(text) <= 100 else text[:99] + "…"  # noqa: PLR2004  a line
    return ArgumentError(f"there is no {said!r} in {shortened!r}; its tokens are: {listed}")
