"""What the explorer answers about patterns, against the float64 pattern written out."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

import saccade
from saccade import masks, record, scores
from saccade.errors import ArgumentError, NotRecordedError, SaccadeError
from saccade.explorer import library, overview, patterns, strongest, tiles
from saccade.explorer.explorer import JOBS, QUESTIONS, Cancelled, Explorer
from saccade.explorer.parcel import pack
from saccade.pattern import Pattern
from saccade.statistics import LogSumExp, Map, Received
from saccade.trace.corpus import Text, record_texts

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()


class Attention(nn.Module):
    """One call, of whatever shapes."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, query, key):
        return saccade.attention(query, key, key, **self.options)


def recorded(queries, keys, *, heads=2, key_heads=2, batch=1, keep="qk", statistics=None, bad=False, **options):
    """A trace of one call on numbers with sharp patterns."""
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    query = 2 * torch.randn(batch, heads, queries, 16, generator=generator)
    key = torch.randn(batch, key_heads, keys, 16, generator=generator)
    if bad:
        query[:, :, queries // 2] = torch.nan
    model = Attention(**options)
    with record(model, keep=keep, statistics=statistics) as trace:
        model(query, key)
    return trace


def reference(trace, batch=0, site=0):
    """The pattern of every head in float64, ``(H, Nq, Nk)``."""
    pattern = trace[0, site].pattern
    problem = pattern.problem
    return Pattern(
        pattern.inputs.query.double(),
        pattern.inputs.key.double(),
        mask=problem.mask,
        scale=problem.scale,
        softcap=problem.softcap,
        bias=problem.bias,
        sinks=None if problem.sinks is None else problem.sinks.double(),
        backend="reference",
    ).dense()[batch]


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tolerance, atol=tolerance / 10)


def by_cells(dense, sides, reduce):
    """A matrix in cells by the rule of the contract, one row or column of cells at a time."""
    dense, sizes = np.asarray(dense), []
    for axis, c in enumerate(sides):
        n = dense.shape[axis]
        edges = [a * n // c for a in range(c + 1)]
        parts = [np.take(dense, range(a, b), axis) for a, b in itertools.pairwise(edges)]
        dense = np.stack([part.max(axis) if reduce == "max" else part.sum(axis) for part in parts], axis)
        sizes.append(np.diff(edges))
    return dense / np.outer(*sizes) if reduce == "mean" else dense


def of_head(dense, head):
    return (dense.mean(0) if head == "mean" else dense[head]).numpy()


def blind(queries, keys):
    """A mask without runs; the second query sees nothing."""
    seen = torch.rand(1, 1, queries, keys, generator=torch.Generator().manual_seed(3)) < 0.5
    seen[..., 1:2, :] = False
    return seen


ALIBI = scores.ALiBi(torch.tensor([0.5, 0.25]), offset=0)
CASES = {
    "one token": ((1, 1), {}),
    "one past a tile": ((257, 257), {"mask": masks.causal()}),
    "more keys": ((70, 600), {"mask": masks.causal(530), "key_heads": 1}),
    "more queries": ((530, 3), {"heads": 4, "key_heads": 2}),
    "sinks and a window": ((300, 300), {"mask": masks.window(20, 0), "sinks": torch.tensor([0.5, -1.0])}),
    "blind rows": ((40, 300), {"mask": blind(40, 300), "softcap": 3.0}),
    "bias": ((100, 300), {"bias": ALIBI}),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    (queries, keys), options = CASES[request.param]
    trace = recorded(queries, keys, statistics=[LogSumExp()], **options)
    return Explorer(trace), reference(trace)


def ask(explorer, question, **parameters):
    """An answer about the only site, which can be sent."""
    found = explorer.answer(question, {"text": "0", "site": 0, **parameters})
    pack(found)
    return found


# ---------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("head", [0, 1, "mean"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_tiles_cover_the_pattern(case, head, reduce):
    explorer, dense = case
    expected, shape = of_head(dense, head), dense.shape[1:]
    top = max(max(shape) - 1, 255).bit_length() - 8
    for level in range(top + 1):
        seen = np.zeros(shape, dtype=int)
        side = 256 << level
        for row, column in itertools.product(*(range(-(-n // side)) for n in shape)):
            found = ask(explorer, "tile", head=head, level=level, row=row, column=column, reduce=reduce)
            (a, b), (c, d) = found["queries"], found["keys"]
            assert (a, c) == (row * side, column * side)
            seen[a:b, c:d] += 1
            assert found["exact"] == (level == 0)
            assert found["reduce"] == reduce
            sides = [-(-n // (1 << level)) for n in (b - a, d - c)]
            close(found["weights"], by_cells(expected[a:b, c:d], sides, reduce))
        assert (seen == 1).all()


def test_blocks_of_rows_join(monkeypatch):
    trace = recorded(700, 300, statistics=[LogSumExp()], mask=masks.causal(0))
    expected = reference(trace)
    monkeypatch.setattr(patterns, "CHUNK", 3000)
    monkeypatch.setattr(tiles, "ROWS", 3000)
    for head, reduce in itertools.product((1, "mean"), ("mean", "max")):
        found = ask(Explorer(trace), "tile", head=head, level=2, row=0, column=0, reduce=reduce)
        close(found["weights"], by_cells(of_head(expected, head), (175, 75), reduce))


def test_tiles_that_there_are_none_of():
    explorer = Explorer(recorded(300, 40))
    tile = {"head": 0, "level": 0, "row": 0, "column": 0, "reduce": "mean"}
    for wrong, says in [
        ({"level": 2}, "at level 1 one tile holds all 300"),
        ({"level": 2**39}, "at level 1"),
        ({"row": 2}, "level 0 has 2 of them"),
        ({"column": 1}, "level 0 has 1 of them"),
        ({"head": 2}, "site 0 has 2 heads"),
        ({"reduce": "sum"}, "expected one of mean, max"),
        ({"site": 1}, "text 0 has 1 sites"),
        ({"text": "1"}, "no text"),
    ]:
        with pytest.raises(ArgumentError, match=says):
            explorer.answer("tile", {"text": "0", "site": 0, **tile, **wrong})


@pytest.mark.parametrize(("queries", "keys"), [(256, 256), (300, 520), (257, 16), (1, 1000)])
@pytest.mark.parametrize("kept", ["max", "mean", "sum"])
@pytest.mark.parametrize("keep", ["qk", "statistics"])
def test_stored_maps_answer_where_they_are_fine_enough(queries, keys, kept, keep, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 16)  # so that short texts have levels
    statistics = [LogSumExp(), Map((48, 48), kept)]
    explorer = Explorer(recorded(queries, keys, keep=keep, statistics=statistics))
    expected = reference(recorded(queries, keys))
    top, from_map = max(max(queries, keys) - 1, 15).bit_length() - 4, 0
    for level, head, reduce in itertools.product(range(top + 1), (1, "mean"), ("mean", "max")):
        side = 16 << level
        for row, column in itertools.product(*({0, (n - 1) // side} for n in (queries, keys))):
            tile = {"head": head, "level": level, "row": row, "column": column, "reduce": reduce}
            if keep == "statistics" and head == "mean" and kept == "max":
                with pytest.raises(NotRecordedError, match="keep='qk'"):
                    ask(explorer, "tile", **tile)
                continue
            found = ask(explorer, "tile", **tile)
            (a, b), (c, d) = found["queries"], found["keys"]
            assert a <= row * side < min((row + 1) * side, queries) <= b
            assert c <= column * side < min((column + 1) * side, keys) <= d
            fits = reduce == kept or (reduce, kept) == ("mean", "sum")
            assert found["reduce"] == (reduce if fits or keep == "qk" else kept)
            from_map += max(found["weights"].shape) > 16
            dense = of_head(expected, head)[a:b, c:d]
            close(found["weights"], by_cells(dense, found["weights"].shape, found["reduce"]))
    assert from_map or (keep, kept) == ("statistics", "max") or queries == 1


def test_a_stored_map_is_read_and_not_computed_again(monkeypatch):
    explorer = Explorer(recorded(1024, 1024, heads=1, key_heads=1, statistics=[LogSumExp(), Map(512, "max")]))
    monkeypatch.setattr(patterns.Heads, "pattern", None)
    found = ask(explorer, "tile", head=0, level=2, row=0, column=0, reduce="max")
    assert found["weights"].shape == (256, 256)
    found = ask(explorer, "tile", head=0, level=1, row=1, column=0, reduce="max")
    assert (found["weights"].shape, found["queries"], found["keys"]) == ((256, 256), [512, 1024], [0, 512])
    with pytest.raises(TypeError):  # finer than what was kept, and another reduction: these need the pattern
        ask(explorer, "tile", head=0, level=0, row=0, column=0, reduce="max")
    with pytest.raises(TypeError):
        ask(explorer, "tile", head=0, level=2, row=0, column=0, reduce="mean")


# ---------------------------------------------------------------------------------------- windows and margins


@pytest.mark.parametrize("head", [1, "mean"])
def test_windows_are_exact(case, head):
    explorer, dense = case
    _, queries, keys = dense.shape
    for a, b, c, d in [(0, queries, 0, min(keys, 1000)), (queries - 1, queries, keys // 2, keys)]:
        found = ask(explorer, "window", head=head, queries=[a, b], keys=[c, d])
        close(found["weights"], of_head(dense, head)[a:b, c:d])


def test_windows_have_bounds():
    explorer = Explorer(recorded(1025, 1025))
    for queries, says in [
        ([0, 1025], "at most 1,048,576"),
        ([3, 3], "within the 1,025"),
        ([0, 1026], "within the 1,025"),
    ]:
        with pytest.raises(ArgumentError, match=says):
            ask(explorer, "window", head=0, queries=queries, keys=[0, 1024])
    with pytest.raises(NotRecordedError, match="saccade record --keep qk"):
        ask(Explorer(recorded(5, 5, keep="statistics")), "window", head=0, queries=[0, 1], keys=[0, 1])


def margins_of(dense):
    """Sums by the contract, one cell at a time."""
    sides = [min(n, 512) for n in dense.shape]
    rows, columns = dense.sum(1)[:, None], dense.sum(0)[:, None]
    return [by_cells(x, (side, 1), "mean")[:, 0] for x, side in zip((rows, columns), sides, strict=True)]


@pytest.mark.parametrize("head", [1, "mean"])
@pytest.mark.parametrize("statistics", [None, [LogSumExp()]], ids=["received was kept", "computed"])
@pytest.mark.parametrize("name", CASES)
def test_margins_are_exact(name, head, statistics):
    (queries, keys), options = CASES[name]
    trace = recorded(queries, keys, statistics=statistics, **options)
    dense = reference(trace)
    for a, b, c, d in [(0, queries, 0, keys), (0, queries, keys // 3, keys), (queries // 2, queries, 0, keys)]:
        found = ask(Explorer(trace), "margins", head=head, queries=[a, b], keys=[c, d])
        rows, columns = margins_of(of_head(dense, head)[a:b, c:d])
        close(found["rows"], rows)
        close(found["columns"], columns, 1e-4)


def test_margins_of_the_whole_come_from_what_was_kept():
    kept = Explorer(recorded(600, 600, keep="statistics", mask=masks.causal()))
    found = ask(kept, "margins", head=0, queries=[0, 600], keys=[0, 600])
    rows, columns = margins_of(of_head(reference(recorded(600, 600, mask=masks.causal())), 0))
    close(found["rows"], rows)
    close(found["columns"], columns, 1e-4)
    with pytest.raises(NotRecordedError):
        ask(kept, "margins", head=0, queries=[0, 599], keys=[0, 600])
    by_group = [LogSumExp(), Received(torch.zeros(9, dtype=torch.int64))]
    for statistics in (by_group, [Received()], [LogSumExp(), Received(over_heads=True)]):
        lacking = Explorer(recorded(9, 9, keep="statistics", statistics=statistics))
        with pytest.raises(NotRecordedError):
            ask(lacking, "margins", head=0, queries=[0, 9], keys=[0, 9])


# ---------------------------------------------------------------------------------------- strongest


def heaviest(merged, special, count):
    """By the contract, one row at a time; None where partners of one weight may come in any order."""
    partners, weights = [], []
    for row in merged:
        order = [i for i in np.argsort(-row, kind="stable") if row[i] > 0 and not special[i]][:count]
        partners.append(order + [-1] * (count - len(order)))
        weights.append([row[i] for i in order] + [0] * (count - len(order)))
    return np.array(partners), np.array(weights), merged.sum(1), (merged * special).sum(1)


def check_strongest(found, expected):
    for answer, (partners, weights, whole, special) in zip(
        zip(*(np.asarray(found[name]) for name in ("partner", "weight", "whole", "special")), strict=True),
        expected,
        strict=True,
    ):
        close(answer[1], weights)
        told = (weights == 0) | (weights > 1e-15)  # less than that may be nothing in float32
        np.testing.assert_array_equal((answer[0] < 0)[told], (partners < 0)[told])
        apart = np.abs(np.diff(weights, axis=1, prepend=9, append=-9))
        clear = (apart[:, 1:] > 1e-5) & (apart[:, :-1] > 1e-5)
        np.testing.assert_array_equal(answer[0][clear], partners[clear])
        close(answer[2], whole)
        close(answer[3], special)


@pytest.mark.parametrize("side", ["queries", "keys"])
def test_strongest_partners(case, side, monkeypatch):
    monkeypatch.setattr(strongest, "BLOCK", 1000)
    explorer, dense = case
    dense = dense.numpy() if side == "queries" else dense.mT.numpy()
    n = dense.shape[1]
    for start, stop in {(0, min(n, 256)), (n - 1, n)}:
        key = {"heads": [1, 0], "side": side, "range": [start, stop], "count": 5, "words": False, "ordinary": True}
        found = ask(explorer, "strongest", **key)
        none = np.zeros(dense.shape[2], dtype=bool)
        check_strongest(found, [heaviest(dense[head, start:stop], none, 5) for head in (1, 0)])


def test_strongest_has_bounds():
    explorer = Explorer(recorded(300, 300))
    key = {"heads": [0], "side": "keys", "range": [0, 9], "count": 5, "words": True, "ordinary": True}
    for wrong, says in [
        ({"side": "both"}, "queries, keys"),
        ({"heads": []}, "heads is empty"),
        ({"heads": [0, 2]}, "has 2 heads"),
        ({"count": 0}, "expected 1 to 64"),
        ({"count": 65}, "expected 1 to 64"),
        ({"range": [0, 257]}, "at most 256"),
        ({"range": [290, 301]}, "within the 300"),
    ]:
        with pytest.raises(ArgumentError, match=says):
            ask(explorer, "strongest", **key | wrong)
    with pytest.raises(NotRecordedError):
        ask(Explorer(recorded(9, 9, keep="statistics")), "strongest", **key)


# ---------------------------------------------------------------------------------------- a model that reads


TEXTS = ["He roses left. The river bank rose", "the bank", "roses"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    from saccade.adapters.pretrained import load

    return load(str(tiny_models.save(tmp_path_factory.mktemp("explorer") / "tiny")))


@pytest.fixture(scope="module")
def read(reader):
    """Three texts of different lengths in one batch."""
    texts = [Text(f"{i}.txt", text) for i, text in enumerate(TEXTS)]
    return record_texts(reader, texts, batch=3, keep="qk")


def test_tokens_are_labelled_and_joined_to_words(read):
    found = Explorer(read).answer("tokens", {"text": "0", "sequence": "0"})
    assert found["labels"] == ["[CLS]", "He", "rose", "s", "left", ".", "The", "river", "bank", "rose", "[SEP]"]
    assert found["word"].tolist() == [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found["special"].tolist() == [True, *[False] * 9, True]


def test_padding_at_the_end_is_no_part_of_a_text(read):
    explorer = Explorer(read)
    assert explorer.answer("tokens", {"text": "1", "sequence": "0"})["labels"] == ["[CLS]", "the", "bank", "[SEP]"]
    texts = explorer.about()["texts"]
    assert [text["name"] for text in texts] == ["0.txt", "1.txt", "2.txt"]
    assert [text["text"] for text in texts] == TEXTS
    assert [(text["sites"][0]["queries"], text["sites"][0]["keys"]) for text in texts] == [(11, 11), (4, 4), (4, 4)]
    assert [text["sites"][0]["map"] is None for text in texts] == [False, True, True]
    dense = reference(read, batch=1)[:, :4, :4]
    tile = explorer.answer(
        "tile", {"text": "1", "site": 0, "head": 1, "level": 0, "row": 0, "column": 0, "reduce": "mean"}
    )
    assert (tile["queries"], tile["keys"]) == ([0, 4], [0, 4])
    close(tile["weights"], dense[1])
    whole = {"text": "1", "site": 0, "head": "mean", "queries": "0,4", "keys": "0,4"}
    close(explorer.answer("margins", whole)["columns"], dense.mean(0).sum(0))
    with pytest.raises(ArgumentError, match="within the 4"):
        explorer.answer("window", whole | {"queries": "0,5"})


def test_padding_stays_where_only_maps_were_kept(reader):
    trace = record_texts(reader, [Text("a", TEXTS[0]), Text("b", TEXTS[2])], batch=2)
    explorer = Explorer(trace)
    found = explorer.answer("tokens", {"text": "1", "sequence": "0"})
    assert found["special"].tolist() == [True, False, False, True] + [True] * 7
    site = explorer.about()["texts"][1]["sites"][0]
    assert (site["queries"], site["exact"], site["map"]) == (11, False, {"cells": [8, 8], "reduce": "max"})


def words_of(word, special):
    """Membership (tokens, words), and which words are special."""
    member = np.eye(int(word[-1]) + 1)[np.asarray(word)]
    return member, (member * np.asarray(special)[:, None]).any(0)


@pytest.mark.parametrize("ordinary", [True, False])
@pytest.mark.parametrize("side", ["queries", "keys"])
@pytest.mark.parametrize(("text", "block"), [("0", 1 << 22), ("0", 7), ("2", 1 << 22)])
def test_strongest_words(read, text, block, side, ordinary, monkeypatch):
    monkeypatch.setattr(strongest, "BLOCK", block)
    explorer = Explorer(read)
    tokens = explorer.answer("tokens", {"text": text, "sequence": "0"})
    member, special = words_of(tokens["word"], tokens["special"])
    n = len(member)
    dense = reference(read, batch=int(text), site=1)[:, :n, :n].numpy()
    merged = (member / member.sum(0)).T @ dense @ member  # queries are averaged, keys summed
    merged = merged if side == "queries" else merged.transpose(0, 2, 1)
    key = {"text": text, "site": 1, "heads": [0, 1], "side": side, "range": [1, member.shape[1]], "count": 4}
    found = explorer.answer("strongest", key | {"words": True, "ordinary": ordinary})
    left_out = special if ordinary else np.zeros_like(special)
    check_strongest(found, [heaviest(merged[head, 1:], left_out, 4) for head in (0, 1)])
    assert (np.asarray(found["special"]) > 0).all() == ordinary


def test_heads_at_a_glance(read):
    explorer = Explorer(read)
    for text, n in (("0", 11), ("1", 4)):
        found = explorer.answer("heads", {"text": text})
        pack(found)
        assert found["thumbs"].shape == (3, 2, n, n)
        names = [statistic["name"] for statistic in found["statistics"]]
        special = np.asarray(explorer.answer("tokens", {"text": text, "sequence": "0"})["special"])
        sink = special.copy()
        sink[0] = True
        for site in range(3):
            dense = reference(read, batch=int(text), site=site)[:, :n, :n]
            close(found["thumbs"][site], dense)
            away = (torch.arange(n)[:, None] - torch.arange(n)).abs()
            rows = {
                "entropy": torch.special.entr(dense).sum(-1),
                "distance": (dense * away).sum(-1),
                "max_weight": dense.amax(-1),
                "sink": dense[..., sink].sum(-1),
            }
            for i, name in enumerate(names):
                close(found["values"][site, :, i], rows[name][:, ~special].mean(-1), 1e-4)
        for i, statistic in enumerate(found["statistics"]):
            assert statistic["least"] == pytest.approx(found["values"][..., i].min())
            assert statistic["most"] == pytest.approx(found["values"][..., i].max())


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_heads_of_a_long_text_are_what_was_kept(reduce, monkeypatch):
    monkeypatch.setattr(overview, "MOST_WEIGHTS", 0)
    monkeypatch.setattr(overview, "MOST_WITHOUT_MAP", 0)
    trace = recorded(300, 70, statistics=[LogSumExp(), saccade.statistics.Entropy(), Received(), Map((99, 35), reduce)])
    dense = reference(trace)
    found = Explorer(trace).answer("heads", {"text": "0"})
    assert found["thumbs"].shape == (1, 2, 32, 32)
    (n, m), stored = dense.shape[1:], [99, 35]
    edges = [[a * c // 32 * length // c for a in range(33)] for c, length in zip(stored, (n, m), strict=True)]
    for head, (a, b) in itertools.product((0, 1), itertools.product(range(32), repeat=2)):
        part = dense[head, edges[0][a] : edges[0][a + 1], edges[1][b] : edges[1][b + 1]].numpy()
        close(found["thumbs"][0, head, a, b], getattr(part, reduce)(), 1e-4)
    values = found["values"][0]
    close(values[:, 0], torch.special.entr(dense).sum(-1).mean(-1), 1e-4)
    assert np.isnan(values[:, 1:3]).all()
    close(values[:, 3], dense[..., 0].mean(-1), 1e-4)
    assert found["statistics"][3]["label"].endswith("mean over all rows")


def test_heads_of_sites_that_differ():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Attention(), Attention()

        def forward(self, x):
            self.second(x[:, :1, :3], x[:, :1])
            return self.first(x, x)

    net = Net()
    with record(net, keep="qk") as trace:
        net(torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(0)))
    found = Explorer(trace).answer("heads", {"text": "0"})
    assert found["thumbs"].shape == (2, 2, 32, 32)
    narrow = by_cells(trace[0, 0].pattern.dense()[0, 0].numpy(), (3, 32), "max")
    close(found["thumbs"][0, 0], narrow[np.arange(32) * 3 // 32])
    assert np.isnan(found["thumbs"][0, 1]).all()
    assert np.isnan(found["values"][0, 1]).all()
    assert np.isnan(found["values"][0, 0, 1])  # how far apart the two are is not known
    assert np.isfinite(found["values"][0, 0, [0, 2, 3]]).all()


def test_the_document(read, reader):
    about = Explorer(read).about()
    assert about["model"] == reader.name
    assert about["precision"] == "full"
    assert about["abilities"]["inside"] is True
    assert "--model" in about["abilities"]["read"]
    assert about["texts"][0]["sites"][2]["label"] == "layer 2"
    assert Explorer(read, reader).about()["abilities"] == dict.fromkeys(("read", "inside", "meaning", "cost"), True)
    kept = Explorer(recorded(5, 5, keep="statistics")).about()
    assert "qkv" in kept["abilities"]["inside"]
    assert kept["texts"][0]["sites"][0] == {
        "name": "",
        "label": "layer 0",
        "heads": [0, 1],
        "queries": 5,
        "keys": 5,
        "query_tokens": None,
        "key_tokens": None,
        "exact": False,
        "map": {"cells": [4, 4], "reduce": "max"},
    }
    assert Explorer(reader=reader).about()["texts"] == []


def test_sites_of_two_parts_are_told_apart():
    from architectures import ARCHITECTURES

    architecture = next(one for one in ARCHITECTURES if one.name == "T5")
    model, (inputs, _) = architecture.build(), architecture.inputs("single")
    with record(model, keep="qk") as trace, torch.no_grad():
        model(**inputs)
    sites = Explorer(trace).about()["texts"][0]["sites"]
    assert [site["label"] for site in sites] == [
        *("encoder 0", "encoder 1"),
        *("decoder 0", "decoder 0, cross", "decoder 1", "decoder 1, cross"),
    ]
    cross = sites[3]
    assert cross["query_tokens"] != cross["key_tokens"]
    distances = Explorer(trace).answer("heads", {"text": "0"})["values"][..., 1]
    assert np.isnan(distances).all(1).tolist() == ["cross" in site["label"] for site in sites]


def test_layers_are_numbered_by_what_tells_them_apart():
    class Net(nn.ModuleDict):
        def forward(self, x):
            for stage in self["stages"].values():
                for block in stage.values():
                    block(x, x)

    def labels(*stages):
        attention = [{block: Attention() for block in blocks} for blocks in stages]
        net = Net({"stages": nn.ModuleDict({str(i): nn.ModuleDict(blocks) for i, blocks in enumerate(attention)})})
        with record(net) as trace:
            net(torch.zeros(1, 2, 3, 8))
        return [site["label"] for site in Explorer(trace).about()["texts"][0]["sites"]]

    assert labels("01", "2") == ["layer 0", "layer 1", "layer 2"]
    assert labels("34") == ["layer 3", "layer 4"]
    assert labels("7") == ["layer 0"]  # the first of its path's numbers
    assert labels("01", "0") == ["stages.0.0", "stages.0.1", "stages.1.0"]


def test_generating_looks_back_at_what_was_read():
    from architectures import ARCHITECTURES, token_ids

    model = next(one for one in ARCHITECTURES if one.name == "Llama").build()
    with record(model, keep="qk") as trace, torch.no_grad():
        model.generate(token_ids(1, 6), max_new_tokens=3, do_sample=False, eos_token_id=None)
    explorer = Explorer(trace)
    site = explorer.about()["texts"][2]["sites"][0]
    assert (site["queries"], site["keys"]) == (1, 8)
    assert len(explorer.answer("tokens", {"text": "2", "sequence": site["key_tokens"]})["labels"]) == 8
    distance = explorer.answer("heads", {"text": "2"})["values"][0, :, 1]
    dense = trace[2, 0].pattern.dense()[0, :, 0].double()
    close(distance, (dense * torch.arange(7, -1, -1)).sum(-1))


def test_several_texts_of_a_batch_without_tokens():
    trace = recorded(5, 5, batch=3)
    explorer = Explorer(trace)
    assert [text["name"] for text in explorer.about()["texts"]] == [
        "entry 0",
        "entry 0, element 1",
        "entry 0, element 2",
    ]
    found = explorer.answer("window", {"text": "2", "site": 0, "head": 1, "queries": [0, 5], "keys": [0, 5]})
    close(found["weights"], reference(trace, batch=2)[1])


# ---------------------------------------------------------------------------------------- what is no number


def test_what_is_no_number_stays_so():
    trace = recorded(9, 20, bad=True)
    explorer, bad = Explorer(trace), np.arange(9) == 4
    window = np.asarray(ask(explorer, "window", head=0, queries=[0, 9], keys=[0, 20])["weights"])
    np.testing.assert_array_equal(np.isnan(window).all(1), bad)
    monkeyed = Explorer(recorded(600, 600, bad=True, statistics=[LogSumExp()]))
    for reduce, head in itertools.product(("max", "mean"), (0, "mean")):
        cells = ask(monkeyed, "tile", head=head, level=2, row=0, column=0, reduce=reduce)["weights"]
        np.testing.assert_array_equal(np.isnan(cells), (np.arange(150) == 75)[:, None].repeat(150, 1))
    for statistics in (None, [LogSumExp()]):
        again = Explorer(recorded(9, 20, bad=True, statistics=statistics))
        margins = ask(again, "margins", head=0, queries=[0, 9], keys=[0, 20])
        np.testing.assert_array_equal(np.isnan(margins["rows"]), bad)
        assert np.isnan(margins["columns"]).all()
    key = {"heads": [0], "side": "queries", "range": [0, 9], "count": 3, "words": False, "ordinary": True}
    found = ask(explorer, "strongest", **key)
    np.testing.assert_array_equal(np.isnan(np.asarray(found["weight"][0])).all(1), bad)
    np.testing.assert_array_equal(np.asarray(found["partner"][0] < 0).all(1), bad)
    np.testing.assert_array_equal(np.isnan(np.asarray(found["whole"][0])), bad)
    assert np.isnan(explorer.answer("heads", {"text": "0"})["values"][0, :, [0, 2, 3]]).all()


# ---------------------------------------------------------------------------------------- asking


def test_what_there_is_not():
    with pytest.raises(ArgumentError, match="nothing to explore"):
        Explorer()
    explorer = Explorer(recorded(3, 3))
    with pytest.raises(ArgumentError, match=r"no question 'titles'.*tile"):
        explorer.answer("titles", {})
    with pytest.raises(ArgumentError, match=r"no job 'tile'.*read"):
        explorer.run("tile", {})
    with pytest.raises(ArgumentError, match="no such parameter"):
        explorer.answer("document", {"text": "0"})
    for text in ("1", "x", "", "00", "1" * 5000, "²"):
        with pytest.raises(ArgumentError, match="no text"):
            explorer.answer("heads", {"text": text})
    for sequence in ("0", "-1", "x"):
        with pytest.raises(ArgumentError, match="text 0 has 0"):
            explorer.answer("tokens", {"text": "0", "sequence": sequence})


def test_every_name_has_its_function():
    from importlib import import_module

    for name, home in {**QUESTIONS, **JOBS}.items():
        assert callable(getattr(import_module(f"saccade.explorer.{home}"), name))


def test_a_trace_of_another_model_is_refused(reader):
    with pytest.raises(ArgumentError, match="other weights"):
        Explorer(recorded(3, 3), reader)


@pytest.mark.parametrize(
    ("question", "parameters"),
    [
        ("heads", {"text": "0"}),
        ("tile", {"text": "0", "site": 0, "head": "mean", "level": 1, "row": 0, "column": 0, "reduce": "max"}),
        ("tile", {"text": "0", "site": 0, "head": 0, "level": 1, "row": 0, "column": 0, "reduce": "mean"}),
        ("window", {"text": "0", "site": 0, "head": 0, "queries": [0, 9], "keys": [0, 9]}),
        ("margins", {"text": "0", "site": 0, "head": 0, "queries": [0, 300], "keys": [0, 300]}),
        (
            "strongest",
            {
                "text": "0",
                "site": 0,
                "heads": [0],
                "side": "keys",
                "range": [0, 9],
                "count": 3,
                "words": False,
                "ordinary": False,
            },
        ),
    ],
)
def test_work_is_given_up(question, parameters):
    explorer = Explorer(recorded(300, 300))
    with pytest.raises(Cancelled):
        explorer.answer(question, parameters, lambda: True)
    assert issubclass(Cancelled, SaccadeError)
    pack(explorer.answer(question, parameters, lambda: False))


def test_long_work_asks_often_whether_it_is_wanted(monkeypatch):
    monkeypatch.setattr(patterns, "CHUNK", 300 * 64)
    explorer, asked = Explorer(recorded(300, 300, statistics=[LogSumExp()])), []
    tile = {"text": "0", "site": 0, "head": 0, "level": 1, "row": 0, "column": 0, "reduce": "mean"}
    explorer.answer("tile", tile, lambda: bool(asked.append(0)))
    assert len(asked) > 300 * 300 / 300 / 256


def test_many_threads_get_the_same(read):
    explorer, wrong = Explorer(read), []
    keys = [
        {"text": text, "site": site, "head": head, "level": 0, "row": 0, "column": 0, "reduce": "mean"}
        for text, site, head in itertools.product("012", range(3), (0, 1, "mean"))
    ]
    expected = [pack(Explorer(read).answer("tile", key)) for key in keys]
    explorer.cache._room = 2000  # so that patterns come and go

    def work(seed):
        order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
        wrong.extend(i for i in order * 3 if pack(explorer.answer("tile", keys[i])) != expected[i])
        wrong.extend(() if explorer.about()["texts"][2]["name"] == "2.txt" else ("name",))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert explorer.cache.held <= 2000


# ---------------------------------------------------------------------------------------- texts that come and go


def test_live_texts_are_dropped_and_those_of_the_trace_stay(read, monkeypatch):
    monkeypatch.setattr(library, "MOST_LIVE", 2)
    explorer = Explorer(read)
    added = [explorer.library.add(recorded(4 + i, 4), name=f"live {i}").id for i in range(4)]
    assert added == ["3", "4", "5", "6"]
    assert [text["id"] for text in explorer.about()["texts"]] == ["0", "1", "2", "5", "6"]
    with pytest.raises(ArgumentError, match="read it again"):
        explorer.answer("heads", {"text": "3"})
    with pytest.raises(ArgumentError, match="reload"):
        explorer.answer("heads", {"text": "7"})
    assert explorer.library.text("6").info["name"] == "live 3"
    monkeypatch.setattr(library, "LIVE_BYTES", 1)
    explorer.library.add(recorded(4, 4))
    assert [text.id for text in explorer.library.texts] == ["0", "1", "2", "7"]


def test_texts_beyond_what_is_listed_are_counted(monkeypatch):
    monkeypatch.setattr(library, "MOST_TEXTS", 2)
    explorer = Explorer(recorded(3, 3, batch=5))
    about = explorer.about()
    assert (len(about["texts"]), about["more"]) == (2, 3)
    assert explorer.library.add(recorded(3, 3)).id == "2"


def test_names_and_texts_are_short(reader):
    text = "the bank\x1b[2J " * 12
    trace = record_texts(reader, [Text("", "the bank")], keep="qk")
    named = explorer_text(trace, "the river")
    assert named.info["name"] == "the river"
    model = reader.model
    with record(model, reader.tokenizer) as trace, torch.no_grad():
        trace.next(texts=[text])
        model(**reader.tokenizer(text, return_tensors="pt"))
    name = explorer_text(trace).info["name"]
    assert len(name) == library.LONGEST_NAME
    assert "\x1b" not in name


def explorer_text(trace, name=None):
    return Explorer(trace).library.add(trace, name=name)


def test_a_cache_keeps_what_was_used_last():
    from saccade.explorer.cache import Cache

    cache, made = Cache(10), []

    def get(key, size=4):
        return cache.get(key, str, lambda: (made.append(key) or key, size))

    for key in "abab":
        get(key)
    for key in "acab":  # c drives b out, b drives c out
        get(key)
    assert made == ["a", "b", "c", "b"]
    for _ in range(2):
        get("larger than all of it", 11)
    get("b"), get("a")
    assert made[4:] == ["larger than all of it"] * 2
    assert cache.held == 8
