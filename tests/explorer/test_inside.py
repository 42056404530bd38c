"""Question `inside`: against the formula in float64, projections by hand, and the model, in every architecture."""

import math

import architectures
import pytest
import tiny_models
import torch
from torch import nn

import saccade
from saccade import masks
from saccade.adapters import pretrained
from saccade.analysis import contributions
from saccade.errors import ArgumentError, NotRecordedError
from saccade.explorer.explorer import Explorer
from saccade.explorer.inside import MOST_KEYS, NEIGHBOURS, inside
from saccade.explorer.parcel import pack
from saccade.explorer.work import Cancelled, never
from saccade.scores import ALiBi

NEVER = never


def recorded(model, *args, keep="qkv", hidden=True, **inputs):
    with torch.no_grad(), saccade.record(model, keep=keep, hidden=hidden) as trace:
        model(*args, **inputs)
    trace.kept = model  # a trace does not keep its model alive
    return trace


def ask(trace, site, head, query, key, text="0", explorer=None):
    explorer = explorer or Explorer(trace)
    return inside(explorer, {"text": text, "site": site, "head": head, "query": query, "key": key}, NEVER)


def random_biases(model):
    """Biases and weights of norms that are not zero and one."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                scale = "norm" in name.lower() and "bias" not in name
                parameter.normal_(1.0 if scale else 0.0, 0.3)
    return model


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=1e-4)


# ---------------------------------------------------------------------------------------- the row


class Net(nn.Module):
    """An attention call whose queries, keys and values are what they are given as."""

    def __init__(self, q, k, v, **options):
        super().__init__()
        self.q, self.k, self.v, self.options = q, k, v, options

    def forward(self):
        return saccade.attention(self.q, self.k, self.v, **self.options)


def tensors(heads=4, key_heads=2, queries=5, keys=7, width=6, inner=3):
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, queries, width), (key_heads, keys, width), (key_heads, keys, inner))
    return [torch.randn(2, *shape, generator=generator) for shape in shapes]


def blind(rows, keys):
    """Causal at the end, and the third query sees nothing."""
    seen = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    seen[2] = False
    return seen


DENSE = torch.rand(2, 4, 5, 7, generator=torch.Generator().manual_seed(4)) > 0.4
CASES = {
    "plain": {},
    "scale, softcap": {"scale": 0.7, "softcap": 0.5},
    "bias": {"bias": torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(1))},
    "broadcast bias": {"bias": torch.randn(2, 1, 1, 7, generator=torch.Generator().manual_seed(1))},
    "alibi": {"bias": ALiBi(torch.tensor([0.5, 0.25, 0.1, 0.05]), offset=2)},
    "sinks": {"sinks": torch.tensor([0.3, -1.0, 2.0, 0.0])},
    "causal": {"mask": masks.causal(2)},
    "window": {"mask": masks.causal(2) & masks.window(1, 0, offset=2)},
    "dense": {"mask": DENSE},
    "dense and long runs": {"mask": blind(5, 7)},
    "sinks where nothing is seen": {"mask": blind(5, 7), "sinks": torch.tensor([0.3, -1.0, 2.0, 0.0])},
}


def formula(net, batch, head, query):
    """Score, bias, what is visible, lse and weights of a row, written out."""
    q, k = net.q[batch, head, query].double(), net.k[batch, head // 2].double()
    options = net.options
    score = options.get("scale", 1 / math.sqrt(6)) * (k @ q)
    if "softcap" in options:
        score = options["softcap"] * (score / options["softcap"]).tanh()
    bias = options.get("bias", torch.zeros(1, 1, 1, 1))
    if isinstance(bias, ALiBi):
        distance = (torch.arange(5)[:, None] + 2 - torch.arange(7)).abs()
        bias = -bias.values[None, :, None, None] * distance
    bias = bias.expand(2, 4, 5, 7)[batch, head, query].double()
    mask = options.get("mask", torch.ones(5, 7, dtype=torch.bool))
    if not isinstance(mask, torch.Tensor):
        mask = mask.to_dense(masks.Lengths(2, 4, 5, 7))
    visible = mask.expand(2, 4, 5, 7)[batch, head, query]
    total = ((score + bias).exp() * visible).sum()
    if "sinks" in options:
        total = total + options["sinks"][head].double().exp()
    weight = torch.where(visible, (score + bias).exp() / total, 0.0)
    return score, bias, visible, total.log(), weight


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_the_formula(name):
    net = Net(*tensors(), **CASES[name])
    trace = recorded(net)
    for batch, head, query, key in [(0, 0, 0, 0), (1, 3, 2, 6), (1, 1, 4, 3), (0, 2, 2, 5)]:
        found = ask(trace, 0, head, query, key, text=str(batch))
        score, bias, visible, lse, weight = formula(net, batch, head, query)
        assert found["chosen"].tolist() == list(range(7))
        close(found["score"], score)
        close(found["bias"], bias)
        assert found["visible"].tolist() == visible.tolist()
        assert found["lse"] == pytest.approx(float(lse), abs=1e-6)
        close(found["weight"], weight)
        close(found["weight"], trace[0, 0].pattern[batch, head, query])
        sinks = net.options.get("sinks")
        assert found["sink"] == (None if sinks is None else pytest.approx(float(sinks[head])))
        held = 0.0 if sinks is None else 1 - float(weight.sum())
        assert found["rest"] == pytest.approx(held, abs=1e-6)
        value = net.v[batch, head // 2].double()
        close(found["output"], weight @ value)
        close(found["query"], net.q[batch, head, query])
        close(found["key"], net.k[batch, head // 2, key])
        close(found["value"], value)
        outputs = torch.stack([formula(net, batch, h, query)[4] @ net.v[batch, h // 2].double() for h in range(4)])
        close(found["outputs"], outputs)
        assert found["scale"] == pytest.approx(net.options.get("scale", 1 / math.sqrt(6)))
        assert found["softcap"] == net.options.get("softcap")
        pack(found)


def test_a_query_that_sees_nothing_has_weights_of_zero_and_no_lse():
    found = ask(recorded(Net(*tensors(), mask=blind(5, 7))), 0, 1, 2, 0)
    assert found["lse"] == -math.inf
    assert not found["weight"].any()
    assert not found["output"].any()
    assert found["rest"] == 0


def test_hidden_values_that_are_not_finite_add_nothing():
    q, k, v = tensors()
    v[:, :, 6] = torch.nan
    found = ask(recorded(Net(q, k, v, mask=masks.causal(1))), 0, 0, 2, 0)
    assert found["output"].isfinite().all()
    assert found["outputs"].isfinite().all()


def test_of_a_long_text_the_heaviest_keys_the_asked_one_and_the_neighbours():
    q, k, v = tensors(queries=300, keys=300)
    net = Net(q, k, v, sinks=torch.tensor([0.3, -1.0, 2.0, 0.0]))
    trace = recorded(net)
    weight = trace[0, 0].pattern[0, 2, 100].double()
    lightest = int(weight.argmin())
    found = ask(trace, 0, 2, 100, lightest)
    chosen = found["chosen"].tolist()
    assert len(chosen) == MOST_KEYS
    assert chosen == sorted(set(chosen))
    around = set(range(100 - NEIGHBOURS, 100 + NEIGHBOURS + 1)) | {lightest}
    assert around <= set(chosen)
    heaviest = weight.argsort(descending=True).tolist()
    assert set(chosen) - around == set([i for i in heaviest if i not in around][: MOST_KEYS - len(around)])
    close(found["weight"], weight[chosen])
    assert found["rest"] == pytest.approx(1 - float(weight[chosen].sum()), abs=1e-6)  # the sink's is in it
    close(found["output"], weight @ v[0, 1].double())
    close(found["key"], k[0, 1, lightest])


def test_neighbours_at_the_ends_are_those_that_there_are():
    trace = recorded(Net(*tensors(queries=300, keys=300)))
    assert set(range(NEIGHBOURS + 1)) <= set(ask(trace, 0, 0, 0, 150)["chosen"].tolist())
    assert set(range(299 - NEIGHBOURS, 300)) <= set(ask(trace, 0, 0, 299, 150)["chosen"].tolist())


# ---------------------------------------------------------------------------------------- what the model makes of it


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES, ids=lambda a: a.name)
def test_every_architecture_adds_up(architecture):
    model = random_biases(architecture.build())
    case = "right" if "right" in architecture.cases else architecture.cases[0]
    inputs, _ = architecture.inputs(case)
    trace = recorded(model, **inputs)
    explorer = Explorer(trace)
    for number, site in enumerate(trace[0]):
        found = ask(trace, number, 1, 3, 2, text="1", explorer=explorer)
        assert found["missing"] is None or found["key_state"] is None
        close(found["state"], site.hidden[1, 3])
        close(found["after"], site.hidden_after[1, 3], 1e-4)
        parts = {part["label"]: part for part in found["parts"]}
        c = contributions(trace, number, 3, batch=1)
        assert parts["residual"]["length"] == pytest.approx(float(c.part("residual").norm()), rel=1e-4)
        assert parts["head 1"]["length"] == pytest.approx(float(c.by_head[1].norm()), rel=1e-3, abs=1e-5)
        assert parts["MLP"]["length"] == pytest.approx(float(c.part("mlp").norm()), rel=1e-4)
        others = c.by_head.sum(0) - c.by_head[1]
        assert parts["other heads"]["length"] == pytest.approx(float(others.norm()), rel=1e-3, abs=1e-5)
        # What the parts have along the state sums to its length.
        along = sum(part["length"] * part["cosine"] for part in found["parts"])
        assert along == pytest.approx(float(found["after"].norm()), rel=1e-4)
        for part in found["parts"]:
            assert part["length"] >= 0
            assert -1.0001 <= part["cosine"] <= 1.0001
        pattern = site.pattern[1, :, 3].double()
        value = site.value[1].double()
        close(found["outputs"], (pattern.unflatten(0, (len(value), -1)) @ value).flatten(0, 1))


def seen(model, path, call):
    """What a module gave and was given, of a forward."""
    given = {}
    hook = model.get_submodule(path).register_forward_hook(lambda _, args, output: given.update(x=args[0], y=output))
    with torch.no_grad():
        call()
    hook.remove()
    return given["x"], given["y"]


ADDED = {
    "BERT": "encoder.layer.1.attention.output.dense",
    "GPT-2": "transformer.h.1.attn.c_proj",
    "Llama": "model.layers.1.self_attn.o_proj",
    "Gemma 2": "model.layers.1.post_attention_layernorm",  # its norm stands before the sum
    "GPT-NeoX": "gpt_neox.layers.1.attention.dense",  # attention and the MLP are side by side
}


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_is_what_the_model_adds(name):
    architecture = next(a for a in architectures.ARCHITECTURES if a.name == name)
    model = random_biases(architecture.build())
    inputs, _ = architecture.inputs("single")
    trace = recorded(model, **inputs)
    _, added = seen(model, ADDED[name], lambda: model(**inputs))
    found = ask(trace, 1, 0, 3, 2)
    close(found["added"], added[0, 3])


@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_projections_by_hand(name):
    architecture = next(a for a in architectures.ARCHITECTURES if a.name == name)
    model = random_biases(architecture.build())
    inputs, _ = architecture.inputs("single")
    trace = recorded(model, **inputs)
    projection = model.get_submodule(ADDED[name])
    # Linear keeps (out, in), GPT-2's Conv1D (in, out).
    weight = projection.weight.mT if name == "BERT" else projection.weight
    found = ask(trace, 1, 2, 3, 2)
    by_head = torch.einsum("hd,hdw->hw", found["outputs"].double(), weight.double().unflatten(0, (4, 8)))
    close(found["projected"], by_head.detach())
    close(found["added"], (by_head.sum(0) + projection.bias).detach())


def test_nothing_but_attention_and_its_projection():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 8)

        def forward(self, x):
            split = x.unflatten(-1, (2, 4)).transpose(1, 2)
            return self.out(saccade.attention(split, split, split).transpose(1, 2).flatten(2))

    torch.manual_seed(1)
    net, x = Alone(), torch.randn(1, 5, 8)
    trace = recorded(net, x)
    found = ask(trace, 0, 0, 3, 2)
    with torch.no_grad():
        close(found["added"], net(x)[0, 3])
    assert [part["label"] for part in found["parts"]] == ["head 0", "other heads", "output bias"]


def test_an_output_that_is_bent_on_its_way_is_not_taken_apart():
    class Bent(nn.Module):
        def forward(self, x):
            return x + saccade.attention(x[:, None], x[:, None], x[:, None])[:, 0].tanh()

    found = ask(recorded(Bent(), torch.randn(1, 5, 8)), 0, 0, 3, 2)
    assert found["projected"] is None
    assert found["added"] is None
    assert found["parts"] is None
    assert "no sum of heads" in found["missing"]


def test_a_sum_that_is_bent_is_told_up_to_there():
    class Bent(nn.Module):
        def forward(self, x):
            return (x + saccade.attention(x[:, None], x[:, None], x[:, None])[:, 0]).tanh()

    found = ask(recorded(Bent(), torch.randn(1, 5, 8)), 0, 0, 3, 2)
    close(found["added"], found["outputs"][0])
    assert found["parts"] is None
    assert "no sum that heads are parts of" in found["missing"]
    assert found["after"] is not None


# ---------------------------------------------------------------------------------------- what is missing


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return pretrained.load(str(tiny_models.save(tmp_path_factory.mktemp("inside") / "bert")))


def text_of(reader, text="he left the roses by the bank", **options):
    encoded = pretrained.encode(reader, text)
    return recorded(reader.model, **encoded.inputs, **options)


def test_without_the_model_the_row_is_whole_and_the_reason_said(reader, tmp_path):
    encoded = pretrained.encode(reader, "he left the roses by the bank")
    with saccade.record(reader.model, keep="qkv", to=tmp_path / "t.zarr"), torch.no_grad():
        reader.model(**encoded.inputs)
    stored, live = ask(saccade.open_trace(tmp_path / "t.zarr"), 1, 1, 4, 2), ask(text_of(reader), 1, 1, 4, 2)
    assert stored["projected"] is stored["added"] is stored["parts"] is None
    assert "needs the model" in stored["missing"]
    assert live["missing"] is None
    for name in ("weight", "score", "value", "outputs", "state", "key_state", "after"):
        close(stored[name], live[name])
    opened = Explorer(saccade.open_trace(tmp_path / "t.zarr"), reader)
    close(ask(opened.trace, 1, 1, 4, 2, explorer=opened)["projected"], live["projected"])


def test_without_values_or_states_it_is_said_what_was_not_kept(reader):
    found = ask(text_of(reader, keep="qk"), 1, 1, 4, 2)
    assert found["value"] is found["output"] is found["outputs"] is found["projected"] is None
    assert "keep='qkv'" in found["missing"]
    assert found["weight"].sum() == pytest.approx(1)
    found = ask(text_of(reader, hidden=False), 1, 1, 4, 2)
    assert found["state"] is found["key_state"] is found["after"] is found["parts"] is None
    assert found["missing"] == "The hidden states of the layer's tokens were not kept."
    assert found["output"] is not None
    with pytest.raises(NotRecordedError, match="queries were not kept"):
        ask(text_of(reader, keep="statistics"), 1, 1, 4, 2)


def test_of_some_heads_or_layers_what_they_tell(reader):
    inputs = pretrained.encode(reader, "he left the roses by the bank").inputs
    with torch.no_grad(), saccade.record(reader.model, keep="qkv", heads=[1]) as trace:
        reader.model(**inputs)
    found, whole = ask(trace, 1, 0, 4, 2), ask(text_of(reader), 1, 1, 4, 2)
    close(found["weight"], whole["weight"])
    assert found["outputs"].shape == (1, 8)
    assert found["projected"] is None
    assert "only heads [1] were kept" in found["missing"]
    with torch.no_grad(), saccade.record(reader.model, keep="qkv", layers=[0, 2]) as trace:
        reader.model(**inputs)
    close(ask(trace, 0, 1, 4, 2)["after"], ask(text_of(reader), 0, 1, 4, 2)["after"])


def test_without_the_model_the_state_behind_a_layer_that_may_be_of_a_later_one_is_not_told(reader, tmp_path):
    inputs = pretrained.encode(reader, "he left the roses by the bank").inputs
    with torch.no_grad(), saccade.record(reader.model, keep="qkv", layers=[0, 2], to=tmp_path / "t.zarr"):
        reader.model(**inputs)
    found = ask(saccade.open_trace(tmp_path / "t.zarr"), 0, 1, 4, 2)
    assert found["after"] is None
    assert "left the layer" in found["missing"]


def test_cross_attention_has_no_state_of_its_key():
    model = tiny_models.t5().eval()
    ids = torch.arange(4, 10)[None]
    trace = recorded(model, input_ids=ids, decoder_input_ids=ids[:, :4])
    number = next(i for i, name in enumerate(trace[0].sites) if "EncDec" in name)
    found = ask(trace, number, 1, 2, 5)
    assert found["key_state"] is None
    assert "no token of this layer" in found["missing"]
    assert found["state"] is not None
    assert found["projected"] is not None
    close(found["weight"], trace[0, number].pattern[0, 1, 2])


def test_keys_from_a_cache_have_a_state_where_they_entered_the_layer():
    model = tiny_models.gpt2().eval()
    ids = torch.arange(4, 12)[None]
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        first = model(input_ids=ids[:, :5], use_cache=True)
        model(input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    trace.kept = model
    assert trace[1, 0].shape[2:] == (3, 8)
    assert ask(trace, 0, 1, 2, 4, text="1")["key_state"] is None  # it entered in the forward before
    close(ask(trace, 0, 1, 2, 6, text="1")["key_state"], trace[1, 0].hidden[0, 1])


def test_padding_is_no_key_that_is_told(reader):
    texts = ["he left the roses by the bank", "the bank"]
    inputs = pretrained.together(reader, [pretrained.encode(reader, text) for text in texts])
    trace = recorded(reader.model, **inputs)
    found = ask(trace, 1, 1, 3, 2, text="1")
    assert found["chosen"].tolist() == [0, 1, 2, 3]
    assert found["rest"] == pytest.approx(0, abs=1e-6)
    assert found["weight"].sum() == pytest.approx(1)
    with pytest.raises(ArgumentError, match="key = 4: layer 1 has 4, from 0"):
        ask(trace, 1, 1, 3, 4, text="1")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("site", 3, "site = 3: text 0 has 3 sites, from 0"),
        ("head", 2, "head = 2: layer 0 has 2, from 0"),
        ("query", 10, "query = 10: layer 0 has 10, from 0"),
        ("key", 10, "key = 10: layer 0 has 10, from 0"),
        ("text", "7", "there is no text"),
        ("key", "x", "expected a whole number"),
    ],
)
def test_what_there_is_not(reader, name, value, said):
    asked = {"text": "0", "site": 0, "head": 0, "query": 0, "key": 0} | {name: value}
    with pytest.raises(ArgumentError, match=said):
        inside(Explorer(text_of(reader)), asked, NEVER)


def test_an_answer_that_nobody_waits_for_is_given_up(reader):
    asked = {"text": "0", "site": 0, "head": 0, "query": 0, "key": 0}
    explorer, looks = Explorer(text_of(reader)), []

    def later():
        looks.append(None)
        return len(looks) > 2  # among the heads

    with pytest.raises(Cancelled):
        inside(explorer, asked, later)
    assert len(looks) == 3
    assert inside(explorer, asked, NEVER)["projected"] is not None


def test_another_key_of_the_same_query_costs_no_run(reader, monkeypatch):
    explorer = Explorer(text_of(reader))
    first = ask(explorer.trace, 1, 1, 4, 2, explorer=explorer)
    monkeypatch.setattr(reader.model, "forward", None)  # running it would fail
    other = ask(explorer.trace, 1, 1, 4, 3, explorer=explorer)
    assert torch.equal(other["projected"], first["projected"])
    assert not torch.equal(other["key"], first["key"])
    assert torch.equal(other["weight"], first["weight"])
