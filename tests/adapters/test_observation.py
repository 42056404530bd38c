"""`observe`: whose call it was, in which forward, and what is left behind."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import ARCHITECTURES, run, token_ids
from torch import nn

from saccade import attention, masks
from saccade.adapters.huggingface import is_attached
from saccade.adapters.observation import observe
from saccade.errors import ArgumentError, NotAskedError, ShapeError, UnsupportedModelError
from saccade.functional import OBSERVER
from saccade.statistics import (
    Distance,
    Entropy,
    LogSumExp,
    Map,
    Mass,
    MaxWeight,
    Received,
    TopKeys,
)

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def tiny(name: str):
    return BY_NAME[name].build()


def state(model) -> tuple:
    """Everything that observing could leave behind."""
    hooks = [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._forward_hooks_always_called))
        for m in model.modules()
    ]
    interfaces = (transformers.AttentionInterface, transformers.AttentionMaskInterface)
    implementations = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    return (
        hooks,
        implementations,
        [set(vars(m)) for m in model.modules()],
        *({k: v for k, v in i._global_mapping.items() if k != "saccade"} for i in interfaces),
        torch.nn.functional.scaled_dot_product_attention,
        torch.nn.functional.multi_head_attention_forward,
        OBSERVER.get(),
    )


class Net(nn.Module):
    """Two layers of plain attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Layer(nn.Module):
    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        key = x if memory is None else memory
        return attention(x, key, key)


X = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------- values


def test_the_values_are_those_of_eager():
    model = tiny("Llama")
    ids = token_ids(2, 12)
    model.config._attn_implementation = "eager"
    weights = model(ids, output_attentions=True).attentions
    asked = [Entropy(), MaxWeight(), Received(), Distance(), LogSumExp(), Map(12)]
    with observe(model, asked) as observation:
        model(ids)
    assert observation.sites == [f"model.layers.{i}.self_attn" for i in range(2)]
    apart = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    for call, eager in zip(observation.calls, weights, strict=True):
        report = call.report
        expected = {
            "entropy": torch.special.entr(eager).sum(-1),
            "max_weight": eager.amax(-1),
            "received": eager.sum(-2),
            "distance": (eager * apart).sum(-1),
            "map": eager,
        }
        for name, value in expected.items():
            torch.testing.assert_close(report[name], value.detach(), atol=1e-5, rtol=1e-5)
        assert not any(value.requires_grad for value in report.values())
        assert (call.lengths.batch, call.lengths.heads) == (2, 4)
        assert (call.lengths.queries, call.lengths.keys) == (12, 12)


def test_only_what_was_asked_is_reported():
    net = Net()
    with observe(net, statistics=Entropy()) as observation:
        net(X)
    with pytest.raises(NotAskedError):
        _ = observation.calls[0].report.distance
    assert repr(observation) == "Observation(2 calls, 2 sites, 1 forwards)"


def test_the_caller_and_the_observer_each_get_what_they_asked_for():
    class Asks(nn.Module):
        def forward(self, x):
            return attention(x, x, x, statistics=[TopKeys(1), Entropy()])

    model = Asks()
    with observe(model, [TopKeys(3), MaxWeight()]) as observation:
        _, report = model(X)
    assert set(report) == {"top_keys", "entropy"}
    assert report.top_keys.indices.shape[-1] == 1
    assert set(observation.calls[0].report) == {"top_keys", "max_weight"}
    assert observation.calls[0].report.top_keys.indices.shape[-1] == 3


# ---------------------------------------------------------------------------------- whose call


def test_forwards_and_sites():
    net = Net()
    with observe(net, [Entropy()]) as observation:
        net(X)
        net(X[:1])
        net.second(X)  # a part called directly is a forward as well
    assert [(c.site, c.forward) for c in observation.calls] == [
        ("first", 0), ("second", 0), ("first", 1), ("second", 1), ("second", 2),
    ]  # fmt: skip
    assert observation.sites == ["first", "second"]
    assert [r.entropy.shape[0] for r in observation["second"]] == [2, 1, 2]
    with pytest.raises(KeyError, match=r"third.*first.*second"):
        observation["third"]


def test_a_shared_module_is_one_site():
    shared = Layer()
    model = nn.Sequential(shared, shared)
    with observe(model, [Entropy()]) as observation:
        model(X)
    assert [(c.site, c.forward) for c in observation.calls] == [("0", 0), ("0", 0)]


def test_generate():
    model = tiny("Llama")
    ids = token_ids(1, 7)
    plain = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with observe(model, [Entropy(), Distance()]) as observation:
        found = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert torch.equal(found, plain)
    assert [c.forward for c in observation.calls] == [0, 0, 1, 1, 2, 2, 3, 3]
    sizes = [(c.lengths.queries, c.lengths.keys) for c in observation.calls[::2]]
    assert sizes == [(7, 7), (1, 8), (1, 9), (1, 10)]


@pytest.mark.parametrize("kind", ["default", "static"])
@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_distance_with_a_cache(name: str, kind: str):
    """What a token looks back is the same whether the text before it is cached or not."""
    model = tiny(name)
    ids = token_ids(1, 12)
    options = {} if kind == "default" else {"cache_implementation": "static"}
    with observe(model, [Distance()]) as observation:
        generated = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, **options)
    with observe(model, [Distance()]) as whole:
        model(generated, use_cache=False)
    for site in observation.sites:
        step = torch.cat([report.distance for report in observation[site]], -1)
        torch.testing.assert_close(step, whole[site][0].distance[..., :-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "self_sites", "cross_sites"), [("T5", 4, 2), ("BART", 4, 2), ("Whisper", 4, 2)])
def test_distance_is_left_out_of_cross_attention(name: str, self_sites: int, cross_sites: int):
    architecture = BY_NAME[name]
    model = architecture.build()
    inputs, _ = architecture.inputs("single")
    if name != "Whisper":  # as many queries as keys: nothing but the arguments tells them apart
        inputs["decoder_input_ids"] = token_ids(1, inputs["input_ids"].shape[1])
        inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
    with observe(model, [Distance(), Entropy()]) as observation:
        run(model, inputs, {"logits": None})
    without = {c.site for c in observation.calls if "distance" not in c.report}
    assert len(without) == cross_sites
    assert all("cross" in s.lower() or "encdec" in s.lower() or "encoder_attn" in s for s in without)
    assert len(observation.sites) == self_sites + cross_sites
    assert all("entropy" in c.report for c in observation.calls)


@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_cross_attention_of_models_that_are_given_it(name: str):
    kinds = {"BERT": ("BertLMHeadModel", {"is_decoder": True}), "GPT-2": ("GPT2LMHeadModel", {})}
    kind, options = kinds[name]
    config = copy.deepcopy(BY_NAME[name].build().config)
    config.update(options | {"add_cross_attention": True})
    model = getattr(transformers, kind)(config).eval()
    with observe(model, [Distance()]) as observation:
        model(token_ids(1, 6), encoder_hidden_states=torch.randn(1, 6, 32))
    without = {c.site for c in observation.calls if "distance" not in c.report}
    assert len(without) == 2
    assert all("cross" in site for site in without)
    assert len(observation.sites) == 4


def test_encoder_and_decoder_in_generate():
    model = tiny("T5")
    with observe(model, [Entropy()]) as observation:
        model.generate(token_ids(1, 7), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    by_forward = {}
    for call in observation.calls:
        by_forward.setdefault(call.forward, set()).add(call.site.split(".")[0])
    assert by_forward == {0: {"encoder"}, 1: {"decoder"}, 2: {"decoder"}, 3: {"decoder"}}


def test_unaligned_queries_have_no_distance():
    layer = Layer()
    with observe(layer, [Distance(), Entropy()]) as observation:
        layer(X, X[:, :, :4])
    assert set(observation.calls[0].report) == {"entropy"}
    with observe(layer, [Distance(offset=0)]) as observation:
        layer(X, X[:, :, :4])
    assert set(observation.calls[0].report) == {"distance"}


# ---------------------------------------------------------------------------------- PyTorch's own


def test_transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
        with observe(model, [Entropy(), Distance()]) as observation:
            found = model(x)
    torch.testing.assert_close(found, expected)
    assert observation.sites == ["layers.0.self_attn", "layers.1.self_attn"]
    assert set(observation.calls[0].report) == {"entropy", "distance"}


def test_transformer_decoder_layer():
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    with observe(layer, [Entropy(), Distance()]) as observation:
        layer(torch.randn(2, 5, 8), torch.randn(2, 5, 8))
    found = {call.site: set(call.report) for call in observation.calls}
    assert found == {"self_attn": {"entropy", "distance"}, "multihead_attn": {"entropy"}}


def test_a_model_with_a_hugging_face_model_inside():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language, self.more = tiny("Llama"), Layer()

        def forward(self, ids):
            hidden = self.language.model(ids).last_hidden_state
            return self.more(hidden[:, None])

    model = Holder()
    before = state(model)
    with observe(model, [Entropy()]) as observation:
        model(token_ids(1, 5))
        assert is_attached(model.language)
    layers = [f"language.model.layers.{i}.self_attn" for i in range(2)]
    assert observation.sites == [*layers, "more"]
    assert state(model) == before


# ---------------------------------------------------------------------------------- nesting


def test_two_models_at_once():
    a, b = Net(), Net()
    with observe(a, [Entropy()]) as of_a, observe(b, [TopKeys(2)]) as of_b:
        a(X)
        b(X)
        a(X)
    assert [c.forward for c in of_a.calls] == [0, 0, 1, 1]
    assert [set(c.report) for c in of_a.calls] == [{"entropy"}] * 4
    assert [c.forward for c in of_b.calls] == [0, 0]
    assert [set(c.report) for c in of_b.calls] == [{"top_keys"}] * 2


def test_a_model_within_an_observed_model():
    net = Net()
    with observe(net, [Entropy()]) as whole, observe(net.second, [Entropy(), TopKeys(2)]) as part:
        net(X)
    assert [(c.site, set(c.report)) for c in whole.calls] == [
        ("first", {"entropy"}), ("second", {"entropy"}),
    ]  # fmt: skip
    assert [(c.site, set(c.report)) for c in part.calls] == [("", {"entropy", "top_keys"})]


def test_nested_contexts_that_disagree():
    net = Net()
    with (
        pytest.raises(ArgumentError, match="top_keys in two ways"),
        observe(net, [TopKeys(2)]),
        observe(net, [TopKeys(3)]),
    ):
        net(X)
    groups = torch.zeros(6, dtype=torch.long)
    with observe(net, [Mass(groups, 1)]) as a, observe(net, [Mass(groups.clone(), 1)]) as b:
        net(X)
    assert len(a.calls) == len(b.calls) == 2


def test_an_attached_model_stays_attached():
    from saccade.adapters.huggingface import attach

    model = tiny("Llama")
    with attach(model):
        with observe(model, [Entropy()]), observe(model, [MaxWeight()]):
            model(token_ids(1, 4))
        assert is_attached(model)
    assert not is_attached(model)


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["Llama", "T5", "net"])
def test_nothing_is_left_behind(name: str):
    model = Net() if name == "net" else tiny(name)
    before = state(model)

    def go() -> None:
        if name == "net":
            model(X)
        else:
            run(model, *BY_NAME[name].inputs("single"))

    with observe(model, [Entropy()]):
        go()
    assert state(model) == before
    with pytest.raises(RuntimeError, match="boom"), observe(model, [Entropy()]):
        raise RuntimeError("boom" + str(go() or ""))
    assert state(model) == before


def test_an_error_inside_a_forward():
    class Fails(Layer):
        def forward(self, x):
            if x.shape[0] == 1:
                raise RuntimeError("boom")
            return super().forward(x)

    net = Net()
    net.second = Fails()
    before = state(net)
    with observe(net, [Entropy()]) as observation:
        with pytest.raises(RuntimeError, match="boom"):
            net(X[:1])
        net(X)
    assert [(c.site, c.forward) for c in observation.calls] == [
        ("first", 0), ("first", 1), ("second", 1),
    ]  # fmt: skip
    assert state(net) == before


def test_groups_that_do_not_fit_name_the_call():
    model = tiny("Llama")
    with (
        pytest.raises(ShapeError, match=r"layers\.0\.self_attn, forward 1, .*Nk = 8: Mass"),
        observe(model, [Mass(torch.zeros(7, dtype=torch.long))]),
    ):
        model.generate(token_ids(1, 7), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert not is_attached(model)


def test_a_forward_without_attention():
    net = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="forward 0 of 1 of Linear"), observe(net):
        net(torch.zeros(1, 2))


def test_no_forward_at_all():
    with pytest.raises(ArgumentError, match="Net was not run inside its context"), observe(Net()):
        attention(X, X, X)
    with pytest.raises(ArgumentError, match="Net was not run inside its context"), observe(Net()):
        pass


def test_another_thread_is_not_silent():
    net = Net()
    with (
        pytest.raises(ArgumentError, match=r"not run inside its context.*in this thread"),
        observe(net, [Entropy()]),
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(net, X).result()


@pytest.mark.parametrize("name", ["Llama", "net"])
def test_threads_that_observe_one_model_get_their_own_calls(name: str):
    """Forwards of both overlap: each waits for the other within its first layer."""
    model = Net() if name == "net" else tiny(name)
    before = state(model)
    inside = threading.Barrier(2, timeout=60)

    def go(statistic, lengths):
        with observe(model, [statistic]) as observation:
            for n in lengths:
                inside.wait()
                model(X[:, :, :n] if name == "net" else token_ids(1, n))
        return observation

    def meet(*_):
        inside.wait()

    layer = model.first if name == "net" else model.model.layers[0]
    handle = layer.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        a = pool.submit(go, Entropy(), [3, 4, 3])
        b = pool.submit(go, MaxWeight(), [5, 6, 5])
        found = [a.result(), b.result()]
    handle.remove()
    assert [[c.lengths.queries for c in o.calls] for o in found] == [[3, 3, 4, 4, 3, 3], [5, 5, 6, 6, 5, 5]]
    assert [[c.forward for c in o.calls] for o in found] == [[0, 0, 1, 1, 2, 2]] * 2
    assert [{*c.report} for o in found for c in o.calls] == [{"entropy"}] * 6 + [{"max_weight"}] * 6
    assert found[0].sites == found[1].sites
    assert state(model) == before


def test_a_thread_that_is_done_does_not_detach_the_model_of_another():
    model = tiny("Llama")
    with observe(model, [Entropy()]) as observation:

        def other():
            with observe(model, [Entropy()]) as mine:
                model(token_ids(1, 4))
            return len(mine.calls)

        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(other).result()
        model(token_ids(1, 5))
    assert (early, len(observation.calls)) == (2, 2)
    assert not is_attached(model)


def test_the_first_context_to_open_may_be_the_first_to_close():
    model = tiny("Llama")
    both, opened, closed = threading.Barrier(2, timeout=60), threading.Event(), threading.Event()

    def first():
        with observe(model, [Entropy()]) as observation:
            opened.set()
            both.wait()
            model(token_ids(1, 4))
        closed.set()
        return len(observation.calls)

    def second():
        assert opened.wait(60)
        with observe(model, [Entropy()]) as observation:
            both.wait()
            assert closed.wait(60)
            model(token_ids(1, 5))
        return len(observation.calls)

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(first), pool.submit(second)]
        assert [result.result() for result in results] == [2, 2]
    assert not is_attached(model)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])  # noqa: S301
def test_a_copy_made_while_observed_is_not_observed(how):
    net = Net()
    with observe(net, [Entropy()]) as observation:
        copied = how(net)
        net(X)
        copied(X)
    assert [c.forward for c in observation.calls] == [0, 0]
    assert copied(X).equal(net(X))
    with observe(copied, [Entropy()]) as of_copy:
        copied(X)
    assert len(of_copy.calls) == 2


def test_an_unsupported_model_is_named():
    config = transformers.BloomConfig(vocab_size=99, hidden_size=32, n_layer=1, n_head=4)
    model = transformers.BloomModel(config)
    with pytest.raises(UnsupportedModelError, match="BloomModel"), observe(model, [Entropy()]):
        pass


def test_a_compiled_model_is_refused():
    net = torch.compile(Net(), backend="eager")
    with pytest.raises(UnsupportedModelError, match="compiled"), observe(net, [Entropy()]):
        pass
    inside = Net()
    inside.first.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="first is compiled"), observe(inside):
        pass


def test_calls_of_other_models_are_not_collected():
    net, other = Net(), Net()
    with observe(net, [Entropy()]) as observation:
        other(X)
        net(X)
        attention(X, X, X, mask=masks.causal())
    assert len(observation.calls) == 2
