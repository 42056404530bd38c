"""Masks against dense booleans: every rule by its definition, the algebra by hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade import masks
from saccade.errors import MaskError
from saccade.masks import Dense, Intervals, Lengths

N = 23
LENGTHS = Lengths(2, 3, N, N)
QUERY, KEY = torch.arange(N)[:, None], torch.arange(N)[None, :]


def dense(mask, lengths=LENGTHS):
    """The mask as booleans (B, H, Nq, Nk), after checking that it is canonical."""
    resolved = mask.resolve(lengths)
    if isinstance(resolved, Intervals):
        assert_canonical(resolved)
    full = (lengths.batch, lengths.heads, lengths.queries, lengths.keys)
    return resolved.to_dense(lengths).expand(full)


def assert_canonical(intervals):
    """Sorted, disjoint, not touching, empty ones last."""
    starts, stops, keys = intervals.starts, intervals.stops, intervals.keys
    assert starts.dtype == torch.int32
    empty = starts == stops
    assert bool((starts <= stops).all())
    assert bool((starts[empty] == keys).all())
    assert bool((starts[..., 1:] > stops[..., :-1])[~empty[..., 1:]].all())
    assert bool((empty[..., 1:] >= empty[..., :-1]).all())


def everywhere(visible):
    return visible.expand(2, 3, N, N)


RULES = {
    "causal": (masks.causal(), KEY <= QUERY),
    "causal, first sees none": (masks.causal(-1), KEY <= QUERY - 1),
    "window": (masks.window(4, 2), (KEY >= QUERY - 4) & (KEY <= QUERY + 2)),
    "window, open to the left": (masks.window(None, 2), KEY <= QUERY + 2),
    "window, open to the right": (masks.window(0, None), KEY >= QUERY),
    "prefix": (masks.prefix(5), KEY < 5),
    "prefix beyond the end": (masks.prefix(500), KEY >= 0),
    "chunked": (masks.chunked(5), QUERY // 5 == KEY // 5),
    "documents": (
        masks.documents(torch.arange(N) // 4),
        QUERY // 4 == KEY // 4,
    ),
    "documents that come again": (masks.documents(torch.arange(N) // 4 % 2), QUERY // 4 % 2 == KEY // 4 % 2),
    "documents from boundaries": (
        masks.documents(cumulative_lengths=[0, 3, 3, N]),
        (QUERY < 3) == (KEY < 3),
    ),
    "tokens of no document": (masks.documents([-1] * 3 + [0] * (N - 3)), (QUERY >= 3) & (KEY >= 3)),
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    mask, expected = RULES[name]
    assert torch.equal(dense(mask), everywhere(expected))


def test_window_by_head():
    reach = torch.tensor([0, 3, 30])
    expected = (QUERY - reach[:, None, None] <= KEY) & (KEY <= QUERY)
    assert torch.equal(dense(masks.window(reach)), expected.expand(2, 3, N, N))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_by_batch(side):
    lengths = torch.tensor([0, 7])[:, None, None, None]
    expected = lengths > KEY if side == "right" else N - lengths <= KEY
    assert torch.equal(dense(masks.padding([0, 7], side=side)), expected.expand(2, 3, N, N))


def test_prefix_by_batch():
    expected = torch.tensor([2, 9])[:, None, None, None] > KEY
    assert torch.equal(dense(masks.prefix(torch.tensor([2, 9]))), expected.expand(2, 3, N, N))


def test_blocks():
    indices = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    expected = torch.zeros(N, N, dtype=torch.bool)
    expected[:10, :20] = True
    expected[10:20, 20:] = True
    assert torch.equal(dense(masks.blocks(indices, 10)), everywhere(expected))


def test_per_head_and_per_batch():
    by_head = masks.per_head([masks.causal(), masks.prefix(3), masks.dense((QUERY + KEY) % 2 == 0)])
    expected = torch.stack([KEY <= QUERY, (KEY < 3).expand(N, N), (QUERY + KEY) % 2 == 0])
    assert torch.equal(dense(by_head), expected.expand(2, 3, N, N))
    by_batch = masks.per_batch([masks.causal(), masks.causal() | masks.prefix(3)])
    expected = torch.stack([KEY <= QUERY, (KEY <= QUERY) | (KEY < 3)])[:, None]
    assert torch.equal(dense(by_batch), expected.expand(2, 3, N, N))


def test_dense_of_few_runs_becomes_intervals_and_of_many_stays_dense():
    visible = torch.rand(2, 1, N, N) < 0.5
    assert isinstance(masks.dense(visible).resolve(LENGTHS), Intervals)
    long = Lengths(1, 1, 3, 1000)
    checkered = (torch.arange(1000) % 2 == 0).expand(3, 1000)
    assert isinstance(masks.dense(checkered).resolve(long), Dense)
    assert torch.equal(
        dense(masks.dense(checkered) & ~masks.prefix(7), long)[0, 0], checkered & (torch.arange(1000) >= 7)
    )


def test_from_predicate_in_strips():
    visible = torch.rand(2, 1, N, N) < 0.5
    found = masks.from_predicate(lambda i, j: visible[:, :, i, j], LENGTHS, rows=4)
    assert torch.equal(found.to_dense(), visible)
    empty = masks.from_predicate(lambda i, j: i >= j, Lengths(1, 1, 0, 5))
    assert empty.starts.shape == (1, 1, 0, 1)


def test_queries_against_a_longer_cache():
    lengths = Lengths(1, 1, 3, 10)
    i, j = torch.arange(3)[:, None], torch.arange(10)
    assert torch.equal(dense(masks.causal(7), lengths)[0, 0], j <= i + 7)
    assert torch.equal(dense(masks.causal(0), lengths)[0, 0], j <= i)
    assert torch.equal(dense(masks.window(2, offset=7), lengths)[0, 0], (j <= i + 7) & (j >= i + 5))


LEAVES = st.one_of(
    st.integers(-3, N).map(masks.causal),
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda lr: masks.window(*lr)),
    st.integers(0, N + 2).map(masks.prefix),
    st.integers(1, 9).map(masks.chunked),
    st.lists(st.integers(-1, 3), min_size=N, max_size=N).map(masks.documents),
    st.lists(st.integers(0, N), min_size=2, max_size=2).map(masks.padding),
    st.integers(0, 2**31).map(lambda seed: masks.dense(_noise(seed))),
)


def _noise(seed):
    return torch.rand(2, 3, N, N, generator=torch.Generator().manual_seed(seed)) < 0.5


@settings(max_examples=60, deadline=None)
@given(LEAVES, LEAVES, LEAVES)
def test_algebra_is_that_of_booleans(a, b, c):
    x, y, z = dense(a), dense(b), dense(c)
    assert torch.equal(dense(a & b), x & y)
    assert torch.equal(dense(a | b), x | y)
    assert torch.equal(dense(~a), ~x)
    assert torch.equal(dense((a | b) & ~c), (x | y) & ~z)
    assert torch.equal(dense(~(a & b) | c), ~(x & y) | z)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 14), st.integers(-2, 14)), max_size=7))
def test_any_runs_become_canonical(runs):
    starts, stops = (torch.tensor([run[side] for run in runs] or [0]).expand(1, 1, 1, -1) for side in (0, 1))
    intervals = Intervals.make(starts, stops, 12)
    assert_canonical(intervals)
    expected = [any(start <= j < stop for start, stop in runs) for j in range(12)]
    assert intervals.to_dense().flatten().tolist() == expected
    assert intervals.count().item() == sum(expected)


BAD = {
    "bare causal": (lambda: masks.causal().resolve(Lengths(1, 1, 3, 5)), "offset=2"),
    "bare window": (lambda: masks.window(3).resolve(Lengths(1, 1, 3, 5)), "offset=0"),
    "bare chunked": (lambda: masks.chunked(3).resolve(Lengths(1, 1, 3, 5)), "ambiguous"),
    "negative window": (lambda: masks.window(-1), ">= 0"),
    "negative window of a head": (lambda: masks.window(torch.tensor([1, -1])), "smallest is -1"),
    "half a window": (lambda: masks.window(1.5), "integer"),
    "half an offset": (lambda: masks.causal(1.5), "integer"),
    "negative prefix": (lambda: masks.prefix(-1), ">= 0"),
    "half a prefix": (lambda: masks.prefix(1.5), "integer"),
    "padding of halves": (lambda: masks.padding([1.5]), "integer"),
    "chunk of nothing": (lambda: masks.chunked(0), ">= 1"),
    "chunk of halves": (lambda: masks.chunked(2.5), "integer"),
    "dense of floats": (lambda: masks.dense(torch.zeros(3, 3)), "bias="),
    "dense of a list": (lambda: masks.dense([[True]]), "list"),
    "dense of other length": (lambda: masks.dense(torch.ones(3, 4).bool()).resolve(LENGTHS), "queries must match"),
    "dense of other width": (lambda: masks.dense(torch.ones(N, 4).bool()).resolve(LENGTHS), "4 columns"),
    "intervals of other width": (
        lambda: masks.prefix(3).resolve(LENGTHS).resolve(Lengths(1, 1, N, 9)),
        "Nk = 9",
    ),
    "documents of other length": (lambda: masks.documents([0, 1]).resolve(LENGTHS), "key_ids"),
    "documents of floats": (lambda: masks.documents(torch.zeros(3)), "integers"),
    "documents of nothing": (masks.documents, "either"),
    "falling boundaries": (lambda: masks.documents(cumulative_lengths=[0, 5, 3]), "rising"),
    "padding longer than keys": (lambda: masks.padding([99, 1]).resolve(LENGTHS), "Nk = 23"),
    "padding of other batch": (lambda: masks.padding([1, 2, 3]).resolve(LENGTHS), "B = 2"),
    "padding of no side": (lambda: masks.padding([1], side="top"), "'left'"),
    "blocks of other length": (lambda: masks.blocks(torch.zeros(2, 1).long(), 10).resolve(LENGTHS), "need 3"),
    "block beyond the end": (lambda: masks.blocks(torch.full((3, 1), 3), 10).resolve(LENGTHS), "last block"),
    "heads that do not match": (lambda: masks.per_head([masks.causal()]).resolve(LENGTHS), "H = 3"),
    "window of other heads": (lambda: masks.window(torch.arange(2)).resolve(LENGTHS), "H = 3"),
    "algebra with a tensor": (lambda: masks.causal() & torch.ones(3, 3).bool(), "saccade.masks.dense"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_mask(name):
    make, message = BAD[name]
    with pytest.raises(MaskError, match=message):
        make()


def test_repr_reads_as_it_was_written():
    mask = (masks.window(512, 0) | masks.prefix(4)) & ~masks.causal(offset=2)
    assert repr(mask) == "((window(512, 0) | prefix(4)) & ~causal(offset=2))"


def test_a_million_queries_in_linear_memory():
    n = 1 << 20
    mask = ((masks.window(512, 0) | masks.prefix(4)) & masks.causal()).resolve(Lengths(1, 1, n, n))
    assert isinstance(mask, Intervals)
    assert mask.starts.shape == (1, 1, n, 2)
    assert mask.starts[0, 0, -1].tolist() == [0, n - 513]
    assert mask.stops[0, 0, -1].tolist() == [4, n]
