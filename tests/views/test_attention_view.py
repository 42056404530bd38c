"""The view model's numbers, against the model's own weights and against cases worked out by hand."""

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModel

from saccade.adapters import pretrained
from saccade.errors import ArgumentError, UnsupportedModelError
from saccade.views import attention_view, look
from saccade.views.attention_view import information, summarize

TEXT = "He left the roses by the bank."
WORDS = ["[CLS]", "He", "left", "the", "roses", "by", "the", "bank", ".", "[SEP]"]
ROSES = 4  # its tokens are 4 and 5


def eager(folder, inputs):
    """The model's own weights, (L, H, N, N)."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions
    return torch.stack(weights)[:, 0].numpy()


@pytest.mark.parametrize("kind", list(tiny_models.KINDS))
def test_tokens_are_the_models_own_weights(tmp_path, kind):
    folder = tiny_models.save(tmp_path / kind, kind)
    loaded = pretrained.load(str(folder))
    view = look(loaded, TEXT, kind="tokens")
    inputs = pretrained.encode(loaded, TEXT).inputs
    inputs.pop("token_type_ids", None)
    expected = eager(folder, inputs)
    assert view.part == ("encoder" if kind == "t5" else "")
    assert view.weights.shape == expected.shape
    np.testing.assert_allclose(view.weights, expected, atol=1e-5)


def test_words_sum_keys_and_average_queries(bert, view):
    tokens = look(bert, TEXT, kind="tokens").weights
    keys = np.concatenate([tokens[..., :4], tokens[..., 4:6].sum(-1, keepdims=True), tokens[..., 6:]], -1)
    rows = [keys[:, :, :4], keys[:, :, 4:6].mean(2, keepdims=True), keys[:, :, 6:]]
    assert view.labels == WORDS
    np.testing.assert_allclose(view.weights, np.concatenate(rows, 2), atol=1e-6)
    np.testing.assert_allclose(view.weights.sum(-1), 1, atol=1e-5)


def test_hidden_special_tokens_leave_their_mass(view):
    plain = view.without_special()
    assert plain.labels == WORDS[1:-1]
    assert plain.hidden == ("[CLS]", "[SEP]")
    assert float(plain.summary.special_mass.min()) > 0
    np.testing.assert_allclose(plain.weights.sum(-1) + plain.summary.special_mass, 1, atol=1e-5)


def test_hidden_special_tokens_leave_the_lists_of_heaviest_keys(view):
    plain = view.without_special()
    top = plain.summary.top_keys[..., 0]
    assert (top == plain.weights.argmax(-1)).all()
    found = np.take_along_axis(plain.weights, top[..., None], -1)[..., 0]
    np.testing.assert_array_equal(plain.summary.top_weights[..., 0], found)


def test_select_picks_and_averages(view):
    np.testing.assert_array_equal(view.select(1, 0).weights[0, 0], view.weights[1, 0])
    np.testing.assert_allclose(view.select("mean", "mean").weights[0, 0], view.weights.mean((0, 1)), atol=1e-6)
    assert view.select(1, "mean").title(0, 0) == "layer 1 all heads"


@pytest.mark.parametrize(("layer", "head"), [(3, None), (None, 2)])
def test_select_out_of_range_says_the_range(view, layer, head):
    with pytest.raises(ArgumentError, match=r"layers 0 to 2|heads 0 to 1"):
        view.select(layer, head)


def test_find_ignores_case_and_counts(view):
    assert view.find("HE") == 1
    assert view.find("the") == 3
    assert view.find("the:2") == 6
    with pytest.raises(ArgumentError, match=r"lilies: not in the text. Its words: \[CLS\] He left"):
        view.find("lilies")
    with pytest.raises(ArgumentError, match="the:3"):
        view.find("the:3")


def test_last_word_is_no_punctuation(view):
    assert view.labels[view.last_word()] == "bank"


def test_information_of_hand_made_heads():
    n, none = 4, np.zeros(4, dtype=bool)
    alike = np.full((n, n), 1 / n)
    sink = np.eye(n)[[0] * n]
    cycle = np.eye(n)[[1, 2, 3, 0]]
    weights = np.stack([alike, sink, cycle])[None].astype(np.float32)
    np.testing.assert_allclose(information(weights, none, apart=0)[0], [0, 0, 2], atol=1e-6)


def test_what_a_causal_mask_forces_is_not_counted_as_information():
    """Each word looks alike at all it may see: the mask alone makes rows differ."""
    weights = np.tril(np.ones((6, 6)))
    weights = (weights / weights.sum(-1, keepdims=True))[None, None].astype(np.float32)
    assert information(weights, np.zeros(6, dtype=bool))[0, 0] < 0.06


def test_habit_is_named():
    weights = np.zeros((1, 2, 5, 5), dtype=np.float32)
    weights[0, 0] = np.eye(5, k=-1)
    weights[0, 1, :, 3] = 1
    view = _hand_made(weights)
    assert view.habit(0, 0) == "mostly one back"
    assert view.habit(0, 1) == "mostly “d”"


def _hand_made(weights):
    units = tuple(attention_view.Unit(label, i, i + 1) for i, label in enumerate("abcde"))
    summary = summarize(weights, np.zeros(5, dtype=bool))
    heads = tuple(map(str, range(weights.shape[1])))
    return attention_view.AttentionView("m", "a b c d e", "words", units, ("0",), heads, summary, weights)


def test_a_long_texts_statistics_are_those_of_the_exact_pattern(bert, monkeypatch):
    exact = look(bert, TEXT, kind="tokens").without_special()
    monkeypatch.setattr(attention_view, "EXACT_ENTRIES", 10)
    long = look(bert, TEXT).without_special()
    assert long.weights is None
    assert long.kind == "tokens"
    assert long.labels == exact.labels
    for name in ("top_weights", "entropy", "special_mass", "received", "cells"):
        np.testing.assert_allclose(
            getattr(long.summary, name)[..., :8], getattr(exact.summary, name)[..., :8], atol=1e-5
        )
    with pytest.raises(ArgumentError, match="summaries have no average"):
        long.select(None, "mean")


def test_a_model_that_computes_nan_is_refused(bert):
    weights = next(bert.model.parameters())
    kept = weights.detach().clone()
    with torch.no_grad():
        weights.fill_(torch.nan)
    try:
        with pytest.raises(UnsupportedModelError, match="not a number"):
            look(bert, TEXT)
    finally:
        with torch.no_grad():
            weights.copy_(kept)
