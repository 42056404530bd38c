"""A word is found in whatever case, inflected, in several subwords, and never inside another word."""

import pytest

from saccade.analysis.words import find_word, forms_of, not_found
from saccade.errors import ArgumentError


def spans_of(text):
    """One token for each character that is no space."""
    return [(i, i + 1) for i, character in enumerate(text) if not character.isspace()]


def found(word, text):
    spans = spans_of(text)
    ranges = find_word(word, text, spans, [False] * len(spans))
    return [text[spans[tokens[0]][0] : spans[tokens[-1]][1]] for tokens in ranges]


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("bank", "A bank, BANKS and the Bank's banking.", ["bank", "BANKS", "Bank", "banking"]),
        ("bank", "The embankment and the riverbank of Bankok.", []),
        ("bank", "a river-bank, a bank_note", ["bank", "bank"]),
        ("Bank", "the bank", ["bank"]),
        ("rise", "It rises, rose, is rising.", ["rises", "rising"]),
        ("city", "Cities of a city", ["Cities", "city"]),
        ("New York", "in new   york.", ["new   york"]),
        (["mouse", "mice"], "Mice, a mouse, mouses", ["Mice", "mouse"]),
        ("C++", "C++ is not C.", ["C++"]),
        ("銀行", "彼は銀行家だ", ["銀行"]),
        ("über", "ÜBER uns, überall", ["ÜBER"]),
    ],
)
def test_what_counts_as_the_word(word, text, expected):
    assert found(word, text) == expected


def test_tokens_that_begin_with_a_space_belong_to_the_word():
    spans = [(0, 1), (1, 3), (3, 6), (6, 7)]  # "a", " b", "ank", "."
    assert find_word("bank", "a bank.", spans, [False] * 4) == [range(1, 3)]


def test_special_tokens_and_lone_spaces_do_not_belong_to_it():
    spans = [(0, 4), (0, 4), (4, 5), (5, 9)]
    assert find_word("bank", "bank bank", spans, [True, False, False, False]) == [range(1, 2), range(3, 4)]


def test_a_word_that_was_cut_off_is_not_found():
    assert find_word("bank", "the bank", [(0, 3)], [False]) == []


@pytest.mark.parametrize("word", ["", "  ", [], ["bank", " "], [3]])
def test_no_word(word):
    with pytest.raises(ArgumentError, match="expected a word, or a list of its forms"):
        forms_of(word)


def test_the_message_names_the_text_and_its_tokens_and_stays_short():
    message = str(not_found(["mouse", "mice"], "x" * 200, ["x"] * 60))
    assert "there is no 'mouse/mice' in" in message
    assert message.endswith("x …")
    assert len(message) < 250
