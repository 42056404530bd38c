"""`record`: what is kept of which call, in memory and on disk alike, and what is left behind."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, largest_error, token_ids
from nets import Layer
from tiny_models import VOCAB, tokenizer
from tokenizers import decoders
from torch import nn

import saccade
from saccade import masks, record, scores
from saccade.errors import ArgumentError, NotRecordedError, ShapeError, UnsupportedModelError
from saccade.functional import OBSERVER
from saccade.statistics import Distance, Entropy, Map, Mass, Received, TopKeys
from saccade.trace.choice import default_statistics
from saccade.trace.entry import coarser

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def tiny(name: str) -> nn.Module:
    return BY_NAME[name].build()


def eager_weights(model: nn.Module, sites: list[str], inputs) -> dict[str, torch.Tensor]:
    """What each attention module of an eager model returns as its weights."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for site in sites:

        def keep(module, args, output, site=site):
            del module, args
            found[site] = next(x for x in reversed(output[1:]) if isinstance(x, torch.Tensor) and x.dim() == 4)

        handles.append(model.get_submodule(site).register_forward_hook(keep))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def name_of_mask(site: str) -> str:
    return "decoder_attention_mask" if "decoder" in site else "attention_mask"


@pytest.fixture(params=["memory", "disk"])
def place(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "run.zarr"


def reopened(trace, place):
    """What was recorded: as it stands in memory, or read back by somebody else."""
    return trace if place is None else saccade.open_trace(place)


# ---------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_patterns_are_those_of_eager(architecture, place):
    model = architecture.build()
    case = "right" if "right" in architecture.cases else "single"
    inputs, _ = architecture.inputs(case)
    with record(model, keep="qk", to=place) as trace, torch.no_grad():
        model(**inputs)
    trace = reopened(trace, place)
    assert len(trace) == 1
    assert trace.complete
    sites = trace[0].sites
    assert set(sites) == set(saccade.adapters.huggingface.attention_sites(model))
    weights = eager_weights(model, sites, inputs)
    for site in sites:
        seen = trace[0, site]
        dense = seen.pattern.dense()
        rows = torch.ones(dense.shape[:3], dtype=torch.bool)
        if (
            case == "right" and "vision" not in site and name_of_mask(site) in inputs
        ):  # what padding looks at depends on what nothing is taken for
            rows &= inputs[name_of_mask(site)].bool()[:, None]
        assert largest_error([dense[rows]], [weights[site][rows]]) < 1e-5
        entropy = torch.special.entr(dense).sum(-1)
        assert largest_error([seen.statistics.entropy[rows]], [entropy[rows]]) < 1e-4
        assert seen.hidden.shape[0] == dense.shape[0]


@pytest.mark.parametrize("name", ["BERT", "Llama", "T5", "ViT"])
def test_memory_and_disk_give_the_same_bits(name, tmp_path):
    model, (inputs, _) = tiny(name), BY_NAME[name].inputs("single")
    read = tokenizer(framed=False) if name != "ViT" else None
    traces = []
    for to in (None, tmp_path / "run.zarr"):
        with record(model, read, keep="qkv", to=to) as trace, torch.no_grad():
            model(**inputs)
        traces.append(trace)
    traces.append(saccade.open_trace(tmp_path / "run.zarr"))
    first, *others = traces
    for other in others:
        assert other[0].metadata == first[0].metadata
        for path, array in first[0].metadata.arrays.items():
            mine, theirs = (trace[0]._arrays.read(path) for trace in (first, other))
            assert tuple(mine.shape) == tuple(theirs.shape) == array.shape
            if array.dtype == "string":
                assert mine.tolist() == theirs.tolist()
            else:
                assert mine.dtype == theirs.dtype
                assert torch.equal(mine, theirs)


def test_the_statistics_are_those_that_observe_reports(place):
    model, ids = tiny("Llama"), token_ids(2, 24)
    asked = default_statistics(masks.Lengths(2, 4, 24, 24))
    with saccade.observe(model, asked) as observation, torch.no_grad():
        model(ids)
    with record(model, to=place) as trace, torch.no_grad():
        model(ids)
    trace = reopened(trace, place)
    assert [call.site for call in observation.calls] == trace.sites
    for call in observation.calls:
        found = trace[0, call.site].statistics
        assert set(found) == set(call.report) == {statistic.field for statistic in asked}
        for name in set(found) - {"top_keys"}:
            assert torch.equal(found[name], call.report[name]), name
        for mine, theirs in zip(found.top_keys, call.report.top_keys, strict=True):
            assert torch.equal(mine, theirs)
            assert mine.dtype == theirs.dtype


def test_hidden_states_are_those_the_model_reports(place):
    model, ids = tiny("Llama"), token_ids(2, 10)
    with record(model, to=place) as trace, torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    trace = reopened(trace, place)
    assert torch.equal(trace[0, 0].hidden, expected[0])
    assert torch.equal(trace[0, 0].hidden_after, expected[1])
    assert torch.equal(trace[0, 1].hidden, expected[1])
    # transformers' last one is after the final norm
    assert torch.allclose(model.model.norm(trace[0, 1].hidden_after), expected[2], atol=1e-6)
    with record(model, hidden=False) as trace, torch.no_grad():
        model(ids)
    with pytest.raises(NotRecordedError, match="hidden=True"):
        _ = trace[0, 0].hidden


def test_a_layer_that_runs_again_is_a_site_of_its_own():
    options = {"embedding_size": 16, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.AlbertConfig(vocab_size=99, num_hidden_layers=3, **options)
    model = transformers.AlbertModel(config).eval()
    with record(model, keep="qk", layers=[0, 2]) as trace, torch.no_grad():
        expected = model(token_ids(1, 6), output_hidden_states=True).hidden_states
    site = "encoder.albert_layer_groups.0.albert_layers.0.attention"
    assert trace.sites == [site, f"{site}#2"]
    assert torch.equal(trace[0, 0].hidden, expected[0])
    assert torch.equal(trace[0, 1].hidden, expected[2])
    assert torch.equal(trace[0, 1].hidden_after, expected[3])


# ---------------------------------------------------------------------------------------- whose tokens


def test_generating_goes_on_where_it_was(place):
    model, ids = tiny("Llama"), token_ids(2, 6)
    with record(model, tokenizer(framed=False), keep="qk", to=place) as trace, torch.no_grad():
        said = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    trace = reopened(trace, place)
    assert len(trace) == 4
    for step, entry in enumerate(trace):
        site = entry[0]
        assert site.shape == (2, 4, 6 if step == 0 else 1, 6 + step)
        assert torch.equal(site.tokens.ids, said[:, :6] if step == 0 else said[:, 5 + step : 6 + step])
        assert torch.equal(site.key_tokens.ids, said[:, : 6 + step])
        assert len(site.key_tokens.labels(1)) == 6 + step
        torch.testing.assert_close(site.pattern.dense().sum(-1), torch.ones(site.shape[:3]))


def test_beam_search_moves_rows_and_their_tokens_move_along():
    model, ids = tiny("GPT-2"), token_ids(1, 4)
    with record(model, keep="qk") as trace, torch.no_grad():
        model.generate(ids, max_new_tokens=6, num_beams=4, do_sample=False, eos_token_id=None)
    rows_moved = 0
    for entry in trace.entries[1:]:
        site = entry[0]
        history = site.key_tokens.ids
        assert torch.equal(history[:, -1:], site.tokens.ids)
        # The first layer's keys depend on token and position alone: the same prefix has the same keys.
        fresh = record(model, keep="qk")
        with fresh as check, torch.no_grad():
            model(history)
        torch.testing.assert_close(check[0, 0].key, site.key, atol=1e-5, rtol=1e-5)
        before = trace[entry.index - 1, 0].key_tokens.ids
        rows_moved += int(not torch.equal(history[:, :-1], before))
    assert rows_moved  # else this tested nothing


def test_a_cache_that_was_written_to_is_not_recognised():
    """Keys that moved, in place, belong to the tokens that they are of, and else to nobody that is known."""
    model, ids = tiny("Llama"), token_ids(2, 7)
    with record(model, keep="qk") as trace, torch.no_grad():
        swapped, rolled = (model(ids, use_cache=True).past_key_values for _ in range(2))
        for layer in swapped.layers:
            layer.keys.copy_(layer.keys.flip(0))
        model(ids[:, :1], past_key_values=swapped)
        model(ids, use_cache=True)
        for layer in rolled.layers:
            layer.keys.copy_(layer.keys.roll(1, 2))
        model(ids[:, :1], past_key_values=rolled)
    with pytest.raises(NotRecordedError):  # it goes on with an earlier forward than the last
        _ = trace[4, 0].key_tokens
    with record(model, keep="qk") as trace, torch.no_grad():
        swapped = model(ids, use_cache=True).past_key_values
        for layer in swapped.layers:
            layer.keys.copy_(layer.keys.flip(0))
        model(ids[:, :1], past_key_values=swapped)
    assert torch.equal(trace[1, 0].key_tokens.ids, torch.cat([ids.flip(0), ids[:, :1]], 1))


def test_an_encoder_decoder_that_generates():
    model = tiny("T5")
    with record(model, keep="qk") as trace, torch.no_grad():
        model.generate(input_ids=token_ids(2, 7), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert [entry.metadata.forward for entry in trace] == ["encoder", "", "", ""]
    last = trace[-1]
    cross = [site for site in last if "EncDec" in site.name]
    own = [site for site in last if "SelfAttention" in site.name]
    assert cross[0].shape == (2, 4, 1, 7)
    assert torch.equal(cross[0].key_tokens.ids, token_ids(2, 7))
    assert own[0].shape == (2, 4, 1, 3)
    assert own[0].key_tokens.name == "decoder_input_ids"
    assert "distance" not in cross[0].statistics  # it has no meaning there
    assert "distance" in own[0].statistics


def test_keys_of_another_text_are_not_guessed():
    model = tiny("T5")
    other = model.encoder(token_ids(2, 7)).last_hidden_state.detach() + 1
    with record(model) as trace, torch.no_grad():
        model.encoder(token_ids(2, 7))
        model(encoder_outputs=(other,), decoder_input_ids=token_ids(2, 3))
    cross = next(site for site in trace[1] if "EncDec" in site.name)
    with pytest.raises(NotRecordedError, match="not known"):
        _ = cross.key_tokens


def test_texts_of_tokens():
    read = tokenizer(framed=True)
    read.backend_tokenizer.decoder = decoders.WordPiece()
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(VOCAB), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).eval()
    texts = ["He left the roses by the bank.", "She left."]
    batch = read(texts, return_tensors="pt", padding=True)
    with record(model, read) as trace, torch.no_grad():
        trace.next(texts=texts, sources=["a", "b"])
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        model(input_ids=batch["input_ids"][:1])
    tokens = trace[0].tokens
    assert trace[0].sources == ["a", "b"]
    assert tokens.labels(0) == ["[CLS]", "He", "left", "the", "rose", "s", "by", "the", "bank", ".", "[SEP]"]
    assert tokens.labels(1)[:5] == ["[CLS]", "She", "left", ".", "[SEP]"]
    assert tokens.texts.special[1].tolist() == [True, False, False, False, *[True] * 7]
    assert tokens.visible.sum(-1).tolist() == [11, 5]
    assert tokens.texts.text == texts
    # Nobody said the text of the second forward: it is what the tokenizer makes of its tokens.
    assert trace[1].tokens.labels()[1:-1] == [
        "he",
        "left",
        "the",
        "rose",
        "s",
        "by",
        "the",
        "bank",
        ".",
    ]
    assert trace[1].sources == []


# ---------------------------------------------------------------------------------------- other modules


G = torch.Generator().manual_seed(3)
X = torch.randn(2, 4, 9, 8, generator=G)
OPTIONS = {
    "plain": {},
    "grouped": {"key_heads": 2, "mask": masks.causal()},
    "window": {"mask": masks.causal() & masks.window(3, 0)},
    "padding": {"mask": masks.padding(torch.tensor([9, 4]))},
    "dense mask": {"mask": torch.rand(2, 4, 9, 9, generator=G) > 0.5},
    "stays dense": {"mask": masks.Dense((torch.arange(9)[:, None] + torch.arange(9)).remainder(2).bool()[None, None])},
    "by head": {"mask": torch.arange(9).expand(1, 4, 9, 9) <= torch.arange(2, 6)[:, None, None]},
    "alibi": {"bias": scores.ALiBi(scores.alibi_slopes(4)), "mask": masks.causal()},
    "relative": {"bias": scores.RelativeBias(torch.randn(4, 5, generator=G), first=-2)},
    "dense bias": {"bias": torch.randn(1, 4, 9, 9, generator=G)},
    "sinks": {"sinks": torch.randn(4, generator=G), "softcap": 2.0, "scale": 0.7},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_option_of_attention_is_read_back(name, dtype, place):
    options = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in OPTIONS[name].items()
    }
    net, x = Layer(**options), X.to(dtype)
    with record(net, keep="qkv", to=place) as trace:
        output = net(x)
    site = reopened(trace, place)[0, 0]
    keys = x[:, : options.get("key_heads", 4)]
    given = {k: v for k, v in options.items() if k != "key_heads"}
    expected = saccade.Pattern(x, keys, **given)
    assert site.query.dtype == dtype
    assert torch.equal(site.query, x)
    assert torch.equal(site.key, keys)
    assert torch.equal(site.value, keys)
    assert torch.equal(site.pattern.dense(), expected.dense())
    assert torch.equal(site.pattern @ site.value, output)
    assert torch.equal(site.heads([3, 1]).pattern.dense(), expected.dense()[:, [3, 1]])
    assert torch.equal(site.heads(2).statistics.entropy, site.statistics.entropy[:, [2]])


def test_only_some_heads_and_layers(place):
    net = Layer(key_heads=2, mask=masks.causal())
    with record(net, keep="qkv", heads=[3, 0], to=place) as trace:
        net(X)
    site = reopened(trace, place)[0, 0]
    full = saccade.Pattern(X, X[:, :2], mask=masks.causal())
    assert site.head_numbers == [3, 0]
    assert torch.equal(site.pattern.dense(), full.dense()[:, [3, 0]])
    assert torch.equal(site.heads(0).pattern.dense(), full.dense()[:, [0]])
    assert torch.equal(site.heads(0).statistics.top_keys.indices, full.top_keys(8).indices[:, [0]])
    with pytest.raises(IndexError, match="head 1 was not kept"):
        site.heads(1)
    model = tiny("BERT")
    with record(model, layers=[1]) as trace, torch.no_grad():
        model(token_ids(1, 5))
    assert trace.sites == ["encoder.layer.1.attention.self"]
    with record(model, layers=["encoder.layer.0.attention.self"]) as trace, torch.no_grad():
        model(token_ids(1, 5))
    assert trace.sites == ["encoder.layer.0.attention.self"]


def test_statistics_of_ones_own(place):
    asked = [
        Entropy(),
        TopKeys(2),
        Received(by=torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])),
        Map(4, "mean", over_heads=True),
        Mass(torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 1])),
        Distance(),
    ]
    net = Layer(mask=masks.causal())
    with record(net, statistics=asked, to=place) as trace:
        net(X)
    found = reopened(trace, place)[0, 0].statistics
    expected = saccade.Pattern(X, X, mask=masks.causal()).ask(asked)
    assert set(found) == set(expected)
    for name in set(found) - {"top_keys"}:
        assert torch.equal(found[name], expected[name]), name
    assert found.mass.shape == (2, 4, 9, 2)
    with pytest.raises(NotRecordedError, match="keep='qk'"):
        _ = trace[0, 0].pattern


@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
@pytest.mark.parametrize(("queries", "keys", "cells"), [(64, 64, 32), (37, 53, 16), (1, 100, 32), (16, 16, 16)])
def test_a_coarser_map_is_exact(reduce, queries, keys, cells):
    pattern = saccade.Pattern(torch.randn(1, 2, queries, 8, generator=G), torch.randn(1, 2, keys, 8, generator=G))
    fine = pattern.map(cells, reduce)
    while max(fine.shape[2:]) > 2:
        fine = coarser(fine, reduce, (queries, keys))
        expected = pattern.map((fine.shape[2], fine.shape[3]), reduce)
        torch.testing.assert_close(fine, expected, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------------------------------- what is left behind


def functions(model) -> tuple:
    """Everything that recording could leave behind, functions by identity."""
    interfaces = (transformers.AttentionInterface, transformers.AttentionMaskInterface)
    return (
        [
            (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._forward_hooks_always_called))
            for m in model.modules()
        ],
        [(set(vars(m)), id(type(m).forward), id(vars(m).get("forward"))) for m in model.modules()],
        [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")],
        [{k: id(v) for k, v in i._global_mapping.items() if k != "saccade"} for i in interfaces],
        id(torch.nn.functional.scaled_dot_product_attention),
        id(torch.nn.functional.multi_head_attention_forward),
        OBSERVER.get(),
    )


@pytest.mark.parametrize("name", ["BERT", "Llama", "T5"])
def test_nothing_is_left(name, tmp_path):
    model, (inputs, _) = tiny(name), BY_NAME[name].inputs("single")
    before = functions(model)
    with record(model, keep="qk", to=tmp_path / "a.zarr") as trace, torch.no_grad():
        assert functions(model) != before
        model(**inputs)
    assert functions(model) == before
    fails = model.get_submodule(trace.sites[-1])
    handle = fails.register_forward_pre_hook(lambda *_: 1 / 0)
    before = functions(model)
    with pytest.raises(ZeroDivisionError), record(model, to=tmp_path / "b.zarr"), torch.no_grad():
        model(**inputs)
    assert functions(model) == before
    handle.remove()
    before = functions(model)
    with pytest.raises(KeyboardInterrupt), record(model, to=tmp_path / "c.zarr"):
        raise KeyboardInterrupt
    assert functions(model) == before


def test_a_forward_that_fails_leaves_no_entry(place):
    model, ids = tiny("BERT"), token_ids(2, 6)
    with record(model, to=place) as trace, torch.no_grad():
        model(ids)
        with pytest.raises(IndexError):
            model(token_ids(1, 4) + 10_000)
        with pytest.raises(RuntimeError):
            model(ids, position_ids=torch.zeros(1, 3, 3, 3, dtype=torch.long))
        model(ids[:1])
    trace = reopened(trace, place)
    assert [entry[0].shape[0] for entry in trace] == [2, 1]
    assert trace.complete


def test_an_interrupted_forward_leaves_no_entry(place):
    class Stops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Layer()

        def forward(self, x, *, stop=False):
            y = self.inner(x)
            if stop:
                raise KeyboardInterrupt
            return y

    net = Stops()
    with record(net, to=place) as trace:
        with pytest.raises(KeyboardInterrupt):
            net(X, stop=True)
        net(X[:1])
    trace = reopened(trace, place)
    assert [entry[0].shape[0] for entry in trace] == [1]
    assert trace.complete


def test_the_dtype_may_change_in_between(place):
    net = Layer()
    with record(net, keep="qk", to=place) as trace:
        net(X)
        net(X.bfloat16())
        net(X.double())
    trace = reopened(trace, place)
    assert [entry[0].query.dtype for entry in trace] == [torch.float32, torch.bfloat16, torch.float64]
    assert trace[2, 0].statistics.entropy.dtype == torch.float64
    assert torch.equal(trace[1, 0].query, X.bfloat16())


def test_what_was_recorded_is_a_copy():
    net, x = Layer(), X.clone()
    with record(net, keep="qk") as trace:
        net(x)
        x.zero_()
    assert torch.equal(trace[0, 0].query, X)
    trace[0, 0].query.zero_()
    assert torch.equal(trace[0, 0].query, X)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "all"}, "expected one of statistics, qk, qkv"),
        ({"layers": [7]}, "BertModel has layers 0 to 1"),
        ({"layers": ["encoder"]}, r"there is no 'encoder'; layers were \[0, 1\]"),
        ({"layers": []}, "expected numbers from 0"),
        ({"layers": [-1]}, "expected numbers from 0"),
        ({"heads": [True]}, "expected numbers from 0"),
        ({"heads": [9]}, "has 4 heads"),
        ({"statistics": [Entropy(), Entropy()]}, "2 times"),
        ({"statistics": ["entropy"]}, "expected values of saccade.statistics"),
        ({"resume": True}, "needs to="),
        ({"tokenizer": 7}, "tokenizer is int"),
        ({"to": 5}, "expected a folder"),
        ({"to": "http://127.0.0.1/x.zarr"}, "expected a folder on this machine"),
        ({"to": "a\0b"}, "expected a folder"),
        ({"name": 5}, "expected a string"),
        ({"hidden": "no"}, "expected True or False"),
    ],
)
def test_wrong_arguments(options, message):
    model = tiny("BERT")
    with pytest.raises(ArgumentError, match=message), record(model, **options), torch.no_grad():
        model(token_ids(1, 5))


def test_models_that_do_not_come_through():
    with pytest.raises(ArgumentError, match="was not run inside its context"), record(Layer()):
        pass
    silent = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="no attention call came through"), record(silent):
        silent(torch.zeros(1, 2))
    net = Layer()
    with pytest.raises(ShapeError, match="Mass"), record(net, statistics=Mass(torch.zeros(3, dtype=torch.long))):
        net(X)
    net = Layer()
    with record(net) as trace:
        net(X)
        with pytest.raises(ArgumentError, match="sources"):
            trace.next(texts=["a"], sources=[])
    with pytest.raises(IndexError, match="there is no entry 1"):
        trace[1]
    with pytest.raises(KeyError, match="has no site 'x'"):
        trace[0, "x"]


def test_another_model_is_not_recorded():
    net, other = Layer(), Layer()
    with record(net) as trace:
        other(X)
        net(X)
    assert len(trace) == 1
