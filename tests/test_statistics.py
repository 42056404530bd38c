"""Merging statistics over parts of keys and queries; reports; what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conformance import assert_reports_agree
from hypothesis import given, settings
from hypothesis import strategies as st

import saccade
from saccade import masks, statistics
from saccade.errors import ArgumentError, NotAskedError, ShapeError
from saccade.statistics import merge_keys, merge_queries


def rows(groups):
    return [
        statistics.LogSumExp(),
        statistics.Entropy(),
        statistics.MaxWeight(),
        statistics.TopKeys(4),
        statistics.Mass(groups, 3),
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    st.floats(0.1, 30.0),
)
def test_parts_of_the_keys_merge_to_the_whole(seed, cuts, spread):
    """Empty parts, parts that a query sees nothing of, and very uneven ones."""
    torch.manual_seed(seed)
    query, key, value = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (5, 12, 12))
    query = query * spread
    visible, groups = torch.rand(1, 2, 5, 12) < 0.6, torch.randint(-1, 3, (12,))
    _, whole = saccade.attention(query, key, value, mask=masks.dense(visible), statistics=rows(groups))
    bounds = [0, *sorted(cuts), 12]
    parts, offsets = [], []
    for start, stop in pairwise(bounds):
        here = slice(start, stop)
        _, report = saccade.attention(
            query,
            key[:, :, here],
            value[:, :, here],
            mask=masks.dense(visible[..., here]),
            statistics=rows(groups[here]),
        )
        parts.append(report)
        offsets.append(start)
    assert_reports_agree(merge_keys(rows(groups), parts, offsets), whole, 1e-9)


def test_distance_merges_with_shifted_offsets():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (5, 12, 12))
    _, whole = saccade.attention(query, key, value, statistics=[statistics.Distance(offset=0)])
    parts = [
        saccade.attention(
            query,
            key[:, :, start:stop],
            value[:, :, start:stop],
            statistics=[statistics.LogSumExp(), statistics.Distance(offset=-start)],
        )[1]
        for start, stop in ((0, 7), (7, 12))
    ]
    merged = merge_keys([statistics.Distance(0)], parts, [0, 7])
    torch.testing.assert_close(merged.distance, whole.distance)


def test_parts_of_the_queries_merge_to_the_whole():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (12, 7, 7))
    asked = [*rows(torch.arange(7) % 3), statistics.Received(), statistics.Map((4, 3))]
    halves = [*asked[:-1], statistics.Map((2, 3))]
    _, whole = saccade.attention(query, key, value, statistics=asked)
    parts = [saccade.attention(query[:, :, i : i + 6], key, value, statistics=halves)[1] for i in (0, 6)]
    assert_reports_agree(merge_queries(asked, parts), whole, 1e-12)


@pytest.mark.parametrize("statistic", [statistics.Received(), statistics.Map(2)])
def test_statistics_by_key_do_not_merge_over_keys(statistic):
    query = torch.randn(1, 1, 4, 4)
    asked = [statistics.LogSumExp(), statistic]
    _, report = saccade.attention(query, query, query, statistics=asked)
    with pytest.raises(ArgumentError, match="final log-sum-exp"):
        merge_keys(asked, [report, report], [0, 4])


def test_a_report_says_how_to_ask():
    query = torch.randn(1, 1, 4, 4)
    _, report = saccade.attention(query, query, query, statistics=statistics.TopKeys(2))
    assert list(report) == ["top_keys"]
    assert report["top_keys"] is report.top_keys
    assert repr(report) == "Report(top_keys (1, 1, 4, 2))"
    with pytest.raises(NotAskedError, match=r"saccade\.statistics\.Entropy"):
        _ = report.entropy
    with pytest.raises(AttributeError):
        _ = report.nonsense
    with pytest.raises(KeyError):
        report["nonsense"]


def test_statistics_are_float32_and_without_gradient():
    query = torch.randn(1, 1, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    asked = [statistics.LogSumExp(), statistics.Entropy(), statistics.TopKeys(1)]
    _, report = saccade.attention(query, query, query, statistics=asked)
    assert report.lse.dtype == report.entropy.dtype == report.top_keys.weights.dtype == torch.float32
    assert report.lse.requires_grad
    assert not report.entropy.requires_grad
    assert not report.top_keys.weights.requires_grad


BAD = {
    "no keys": (lambda: statistics.TopKeys(0), "k >= 1"),
    "half a key": (lambda: statistics.TopKeys(1.5), "integer"),
    "three sides": (lambda: statistics.Map((1, 2, 3)), "pair"),
    "half a cell": (lambda: statistics.Map(2.5), "integer"),
    "groups of floats": (lambda: ask(statistics.Mass(torch.zeros(5))), "integers"),
    "a group too many": (lambda: ask(statistics.Mass(torch.arange(5), 3)), "group 4 does not exist"),
    "no cells": (lambda: statistics.Map(0), "integer >= 1"),
    "unknown reduction": (lambda: statistics.Map(3, "median"), "mean, max, sum"),
    "groups of other length": (lambda: ask(statistics.Mass(torch.arange(3))), r"\(5,\)"),
    "query groups of other length": (lambda: ask(statistics.Received(torch.arange(3))), r"\(4,\)"),
    "distance without offset": (lambda: ask(statistics.Distance()), "offset="),
    "a class": (lambda: ask(statistics.Entropy), "saccade.statistics"),
    "twice": (lambda: ask(statistics.TopKeys(1), statistics.TopKeys(2)), "2 times"),
}


def ask(*asked):
    query, key = torch.randn(1, 1, 4, 2), torch.randn(1, 1, 5, 2)
    return saccade.attention(query, key, key, statistics=asked)


@pytest.mark.parametrize("name", BAD)
def test_bad_statistic(name):
    make, message = BAD[name]
    with pytest.raises((ArgumentError, ShapeError), match=message):
        make()
