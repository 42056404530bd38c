"""The oracle, held to closed forms that can be worked out by hand, and in float32 to the suite."""

from __future__ import annotations

import math

import pytest
import torch
from conformance import Conformance

import saccade
from saccade import masks, statistics


class TestReference(Conformance):
    backend = "reference"


def attend(scores, value=None, **options):
    """Attention over given scores: one-dimensional queries of 1 and keys equal to the scores."""
    scores = torch.tensor(scores, dtype=torch.float64)
    key = scores[None, None, :, None]
    value = torch.eye(len(scores), dtype=torch.float64)[None, None] if value is None else value
    query = torch.ones(1, 1, options.pop("queries", 1), 1, dtype=torch.float64)
    return saccade.attention(query, key, value, scale=1.0, backend="reference", **options)


def test_one_query_two_keys():
    """P = (1/4, 3/4) for scores 0 and ln 3."""
    out, report = attend(
        [0.0, math.log(3)],
        statistics=[
            statistics.LogSumExp(),
            statistics.Entropy(),
            statistics.MaxWeight(),
            statistics.TopKeys(3),
            statistics.Distance(offset=0),
            statistics.Mass(torch.tensor([1, 0])),
            statistics.Received(),
            statistics.Map(1),
        ],
    )
    assert out.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert report.lse.item() == pytest.approx(math.log(4))
    assert report.entropy.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert report.max_weight.item() == pytest.approx(0.75)
    assert report.top_keys.indices.flatten().tolist() == [1, 0, -1]
    assert report.top_keys.weights.flatten().tolist() == pytest.approx([0.75, 0.25, 0.0])
    assert report.distance.item() == pytest.approx(0.75)
    assert report.mass.flatten().tolist() == pytest.approx([0.75, 0.25])
    assert report.received.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert report.map.item() == pytest.approx(0.5)


def test_a_sink_takes_its_share():
    """Scores 0, 0 and a sink of ln 2: weights 1/4, 1/4, and half goes to the sink."""
    out, report = attend(
        [0.0, 0.0],
        sinks=torch.tensor([math.log(2)], dtype=torch.float64),
        statistics=[statistics.LogSumExp(), statistics.Entropy()],
    )
    assert out.flatten().tolist() == pytest.approx([0.25, 0.25])
    assert report.lse.item() == pytest.approx(math.log(4))
    assert report.entropy.item() == pytest.approx(0.5 * math.log(4))


def test_a_softcap_bounds_the_score():
    out = attend([0.0, 1e6], softcap=math.log(3))
    assert out.flatten().tolist() == pytest.approx([0.25, 0.75])


def test_a_query_that_sees_nothing():
    out, report = attend(
        [1.0, 2.0],
        mask=masks.prefix(0),
        statistics=[statistics.LogSumExp(), statistics.Entropy(), statistics.TopKeys(1), statistics.Received()],
    )
    assert out.flatten().tolist() == [0.0, 0.0]
    assert report.lse.item() == -math.inf
    assert report.entropy.item() == 0.0
    assert report.top_keys.indices.item() == -1
    assert report.top_keys.weights.item() == 0.0
    assert report.received.flatten().tolist() == [0.0, 0.0]


def test_a_query_that_sees_only_the_sink():
    _, report = attend(
        [1.0],
        mask=masks.prefix(0),
        sinks=torch.tensor([0.5], dtype=torch.float64),
        statistics=[statistics.LogSumExp()],
    )
    assert report.lse.item() == pytest.approx(0.5)


def test_agrees_with_pytorch():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8, dtype=torch.float64) for _ in range(3))
    ours = saccade.attention(q, k, v, mask=masks.causal(), backend="reference")
    torchs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, torchs)
