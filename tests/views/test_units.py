"""Words and labels from hand-made encodings that look like those of real tokenizers."""

import pytest

from saccade.adapters.pretrained import Encoded
from saccade.views import units


def encoded(tokens, spans, special=None):
    return Encoded({}, tokens, special or [False] * len(tokens), spans)


def labels(found):
    return [unit.label for unit in found]


def test_a_whole_sentence_that_the_tokenizer_calls_one_word():
    text = "by the bank."
    e = encoded(["▁by", "▁the", "▁ba", "nk", "."], [(0, 2), (2, 6), (6, 9), (9, 11), (11, 12)])
    assert labels(units.words(text, e)) == ["by", "the", "bank", "."]
    assert labels(units.tokens(text, e)) == ["by", "the", "ba", "·nk", "."]


def test_several_tokens_of_one_character_are_one_word():
    text = "a 🙂"
    e = encoded(["a", "Ġð", "Ł", "Ļ"], [(0, 1), (1, 3), (2, 3), (2, 3)])
    found = units.words(text, e)
    assert labels(found) == ["a", "🙂"]
    assert (found[1].start, found[1].stop) == (1, 4)


def test_punctuation_is_a_word_by_itself_and_other_signs_are_not():
    text = "a&&b !?… 5€€"
    spans = [(i, i + 1) for i, character in enumerate(text) if character != " "]
    e = encoded([text[a:b] for a, b in spans], spans)
    assert labels(units.words(text, e)) == ["a", "&", "&", "b", "!", "?", "…", "5", "€€"]


def test_ideographs_are_words_by_themselves():
    e = encoded(["銀", "行"], [(0, 1), (1, 2)])
    assert labels(units.words("銀行", e)) == ["銀", "行"]


def test_special_tokens_keep_their_name_and_join_nothing():
    e = encoded(["<s>", "a", "</s>"], [(0, 0), (0, 1), (1, 1)], [True, False, True])
    assert labels(units.words("a", e)) == ["<s>", "a", "</s>"]


@pytest.mark.parametrize(
    ("token", "label"), [("##ses", "·ses"), ("Ġbank", "bank"), ("▁bank", "bank"), ("Ġ", "␣"), ("Ċ", "↵")]
)
def test_markers_are_prettified_where_spans_are_unknown(token, label):
    assert labels(units.tokens("", encoded([token], None))) == [label]


@pytest.mark.parametrize(("raw", "label"), [("\x1b[31mred", "�[31mred"), ("a\u202eb", "ab"), ("\n", "↵"), ("", "␣")])
def test_labels_cannot_command_a_terminal(raw, label):
    assert units.printable(raw) == label
