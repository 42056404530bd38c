"""Contributions: the parts of what leaves a layer, in closed form, by brute force, and in every architecture."""

from dataclasses import replace

import architectures
import pytest
import torch
from torch import nn

import saccade
from saccade.analysis import contributions, following
from saccade.analysis.following import Following
from saccade.errors import ArgumentError, NotRecordedError, UnsupportedModelError

EXACT = 1e-5  # of the length, in float32


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


class Block(nn.Module):
    """A layer of one's own: pre-norm or post-norm, with a way from attention's output that may be strange."""

    def __init__(self, width=6, heads=2, inner=3, norm="pre", way=None):
        super().__init__()
        self.heads, self.norm, self.way = heads, norm, way
        self.qkv = nn.Linear(width, 3 * heads * inner)
        self.out = nn.Linear(heads * inner, width)
        self.gate = nn.Linear(width, heads * inner)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, hidden_states):
        x = hidden_states
        entered = self.first(x) if self.norm == "pre" else x
        q, k, v = self.qkv(entered).unflatten(-1, (3, self.heads, -1)).movedim(2, 0).transpose(-2, -3)
        attended = saccade.attention(q, k, v).transpose(1, 2).flatten(2)
        if self.way == "gate":
            attended = attended * torch.sigmoid(self.gate(entered))
        if self.way == "bent":
            attended = attended.tanh()
        y = x + self.out(attended)
        if self.way == "mixed":
            y = y + x.mean(1, keepdim=True)
        y = self.first(y) if self.norm == "post" else y
        y = y + self.down(torch.relu(self.up(self.second(y) if self.norm == "pre" else y)))
        return self.second(y) if self.norm == "post" else y


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block(**options), Block(**options)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def recorded(net, x, **options):
    with torch.no_grad(), saccade.record(net, keep="qkv", **options) as trace:
        net(x)
    trace.kept = net  # a trace does not keep its model alive
    return trace


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


def test_an_attention_that_can_be_worked_out_by_hand():
    class Hand(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(2, 2)
            with torch.no_grad():
                self.out.weight.copy_(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
                self.out.bias.copy_(torch.tensor([10.0, 20.0]))

        def forward(self, x):
            nothing = torch.zeros_like(x)[:, None]  # every query looks at all keys alike
            return x + self.out(saccade.attention(nothing, nothing, x[:, None])[:, 0])

    net = Hand()
    trace = recorded(net, torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
    c = contributions(trace, "", 0)
    torch.testing.assert_close(c.weight, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(c.vector(0, 0), torch.tensor([4.0, 1.5]))  # half of (2 * 4, 3)
    torch.testing.assert_close(c.by_key, torch.tensor([[4.0, 1.5], [2.0, 0.0]]))
    torch.testing.assert_close(c.norm, torch.tensor([[18.25**0.5, 2.0]]))
    assert c.part_names == ["residual", "attention", "output bias"]
    torch.testing.assert_close(c.parts, torch.tensor([[3.0, 4.0], [6.0, 1.5], [10.0, 20.0]]))
    torch.testing.assert_close(c.after, torch.tensor([19.0, 25.5]))
    along, parts = c.project(torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(along, torch.tensor([[2.5, 2.0]]))
    torch.testing.assert_close(parts, torch.tensor([-1.0, 4.5, -10.0]))


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES, ids=lambda a: a.name)
def test_every_architecture_is_taken_apart_exactly(architecture):
    model = random_biases(architecture.build())
    case = "right" if "right" in architecture.cases else architecture.cases[0]
    inputs, _ = architecture.inputs(case)
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(**inputs)
    for site in trace[0]:
        c = contributions(trace, site.name, 3, batch=1)
        assert off(c.after, site.hidden_after[1, 3]) < EXACT
        assert off(c.parts.sum(0), site.hidden_after[1, 3]) < EXACT
        assert off(c.by_key.sum(0), c.part("attention")) < EXACT
        assert off(c.by_head.sum(0), c.part("attention")) < EXACT
        assert c.part("attention").norm() > 1e-2
        assert {"residual", "attention", "mlp"} <= set(c.part_names)
        vectors = torch.stack([torch.stack([c.vector(h, k) for k in range(len(c.keys))]) for h in range(len(c.norm))])
        torch.testing.assert_close(vectors.norm(dim=-1), c.norm, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vectors.sum(0), c.by_key, atol=1e-5, rtol=1e-4)
        along, _ = c.project(c.after)
        torch.testing.assert_close(along, vectors @ c.after, atol=1e-4, rtol=1e-4)


ODD = {
    "BERT": {"hidden_size": 33, "num_attention_heads": 3},
    "GPT-2": {"n_embd": 33, "n_head": 3},
    "OPT": {"hidden_size": 33, "num_attention_heads": 3, "word_embed_proj_dim": 33},
    "T5": {"d_kv": 7, "num_heads": 5},
    "BART": {"d_model": 33, "encoder_attention_heads": 3, "decoder_attention_heads": 3},
    "ViT": {"hidden_size": 33, "num_attention_heads": 3},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_head_sizes(name):
    chosen = next(a for a in architectures.ARCHITECTURES if a.name == name)
    test_every_architecture_is_taken_apart_exactly(replace(chosen, options=chosen.options | ODD[name]))


def random_biases(model):
    """Biases and weights of norms that are not zero and one."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                scale = "norm" in name.lower() and "bias" not in name
                parameter.normal_(1.0 if scale else 0.0, 0.3)
    return model


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_parts_against_norms_written_out(norm):
    net = Net(norm=norm)
    trace = recorded(net, X)
    block, x = net.layers[0], X[1]
    c = contributions(trace, 0, 2, batch=1)
    pattern = trace[0, 0].pattern.dense()[1].double()
    value = trace[0, 0].value[1].double()
    weight = block.out.weight.double().view(6, 2, 3)
    vectors = torch.einsum("hk,hkd,whd->hkw", pattern[:, 2], value, weight)
    if norm == "post":
        # y = L2(L1(x + a) + m), each L with the deviation that it divided by.
        one = x[2].double() + vectors.sum((0, 1)) + block.out.bias.double()
        vectors = scaled(scaled(vectors, one, block.first), after_first(block, one), block.second)
    torch.testing.assert_close(c.norm.double(), vectors.norm(dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(c.by_key.double(), vectors.sum(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(c.by_head.double(), vectors.sum(1), atol=1e-5, rtol=1e-4)


def scaled(vectors, of, norm):
    """What a layer norm makes of vectors that are terms of `of`."""
    deviation = (of.var(correction=0) + norm.eps).sqrt()
    return (vectors - vectors.mean(-1, keepdim=True)) / deviation * norm.weight.double()


def after_first(block, one):
    u = nn.functional.layer_norm(one, (6,), block.first.weight.double(), block.first.bias.double())
    up = torch.relu(block.up.weight.double() @ u + block.up.bias.double())
    return u + block.down.weight.double() @ up + block.down.bias.double()


def test_a_gate_on_attention_is_taken_as_it_is():
    net = Net(way="gate")
    c = contributions(recorded(net, X), 1, 4, batch=0)
    assert off(c.parts.sum(0), c.after) < EXACT
    assert c.part("attention").norm() > 1e-2


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("bent", r"layers\.0: its output cannot be followed"),
        ("mixed", r"layers\.0: run with one token it gives another"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_by_name(way, message):
    with pytest.raises(UnsupportedModelError, match=message):
        contributions(recorded(Net(way=way), X), 0, 1)


def test_lower_precision_is_refused_only_where_it_is_wrong():
    net = Net().to(torch.bfloat16)
    c = contributions(recorded(net, X.to(torch.bfloat16)), 0, 1)
    assert c.norm.dtype == torch.float32
    assert off(c.parts.sum(0), c.after) < 2e-2


def test_a_trace_on_disk_needs_the_model_that_was_recorded(tmp_path):
    pytest.importorskip("numcodecs")
    bert = next(a for a in architectures.ARCHITECTURES if a.name == "BERT")
    model = bert.build()
    inputs, _ = bert.inputs("right")
    live = recorded_model(model, inputs)
    with torch.no_grad(), saccade.record(model, keep="qkv", to=tmp_path / "t.zarr"):
        model(**inputs)
    trace = saccade.open_trace(tmp_path / "t.zarr")
    with pytest.raises(ArgumentError, match="does not hold its model: give model="):
        contributions(trace, 0, 1)
    with pytest.raises(ArgumentError, match="another model than this BertModel"):
        contributions(trace, 0, 1, model=bert.build(seed=1))
    found = contributions(trace, 0, 1, model=model)
    assert torch.equal(found.norm, contributions(live, 0, 1).norm)


def recorded_model(model, inputs):
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(**inputs)
    return trace


def test_a_picture_s_trace_on_disk_needs_the_picture(tmp_path):
    pytest.importorskip("numcodecs")
    vit = next(a for a in architectures.ARCHITECTURES if a.name == "ViT")
    model = vit.build()
    inputs, _ = vit.inputs("single")
    with torch.no_grad(), saccade.record(model, keep="qkv", to=tmp_path / "t.zarr"):
        model(**inputs)
    trace = saccade.open_trace(tmp_path / "t.zarr")
    with pytest.raises(ArgumentError, match=r"reads pixel_values.*give inputs="):
        contributions(trace, 1, 5, model=model)
    c = contributions(trace, 1, 5, model=model, batch=1, inputs=inputs)
    assert off(c.parts.sum(0), trace[0, 1].hidden_after[1, 5]) < EXACT


def test_generated_tokens_and_shared_layers():
    gpt = next(a for a in architectures.ARCHITECTURES if a.name == "GPT-2").build()
    ids = architectures.token_ids(1, 6)
    with torch.no_grad(), saccade.record(gpt, keep="qkv") as trace:
        gpt.generate(ids, max_new_tokens=3, do_sample=False)
    c = contributions(trace, 1, 0, entry=2)  # the second new token, over a cache of 7
    assert c.norm.shape == (4, 8)
    assert off(c.parts.sum(0), trace[2, 1].hidden_after[0, 0]) < EXACT

    import transformers as tf

    albert = tf.AlbertModel(
        tf.AlbertConfig(
            vocab_size=99,
            embedding_size=8,
            hidden_size=32,
            num_attention_heads=4,
            intermediate_size=48,
            num_hidden_layers=3,
        )
    ).eval()
    trace = recorded_model(albert, {"input_ids": ids})
    for number, site in enumerate(trace[0]):  # one module, three layers
        assert site.name.endswith(f"#{number}") == (number > 0)
        c = contributions(trace, site.name, 3)
        assert off(c.parts.sum(0), site.hidden_after[0, 3]) < EXACT


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"token": 5}, ArgumentError, "token = 5: there are 5 tokens"),
        ({"token": "bank"}, ArgumentError, "texts are not known"),
        ({"token": 1.5}, ArgumentError, "token is float"),
        ({"site": 7}, IndexError, "has 2 sites"),
        ({"site": "x"}, KeyError, "no site 'x'"),
        ({"batch": 2}, ArgumentError, "batch = 2: entry 0 has elements 0 to 1"),
        ({"entry": 1}, IndexError, "no entry 1"),
        ({"model": "BERT"}, ArgumentError, "model is str"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message):
    trace = recorded(Net(), X)
    with pytest.raises(error, match=message):
        contributions(trace, **{"site": 0, "token": 0} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "qk"}, "values were not kept"),
        ({"hidden": False}, "no hidden state was kept"),
        ({"heads": [0]}, r"only heads \[0\] were kept"),
    ],
)
def test_what_was_not_recorded_is_named(options, message):
    net = Net()
    with torch.no_grad(), saccade.record(net, **{"keep": "qkv"} | options) as trace:
        net(X)
    with pytest.raises(NotRecordedError, match=message):
        contributions(trace, 0, 0)


def test_a_model_that_is_gone_is_asked_for():
    with torch.no_grad(), saccade.record(Net(), keep="qkv") as trace:
        trace.model(X)
    with pytest.raises(ArgumentError, match="give model="):
        contributions(trace, 0, 0)


def test_padding_is_no_token():
    bert = next(a for a in architectures.ARCHITECTURES if a.name == "BERT")
    model = bert.build()
    trace = recorded_model(model, bert.inputs("right")[0])
    with pytest.raises(ArgumentError, match="token = -1 is padding"):
        contributions(trace, 0, -1, batch=1)
    assert contributions(trace, 0, -1, batch=0).token == architectures.TOKENS - 1


def test_t5_in_float16_has_bounds_that_nothing_reaches():
    chosen = next(a for a in architectures.ARCHITECTURES if a.name == "T5")
    model = chosen.build().half()
    inputs, _ = chosen.inputs("single")
    trace = recorded_model(model, inputs)
    for site in trace[0]:
        c = contributions(trace, site.name, 3)
        assert off(c.parts.sum(0), c.after.float()) < 1e-2
        assert c.part("attention").norm() > 1e-2


def test_tokens_by_word_by_piece_and_by_number():
    """Where the tokenizer cannot put its tokens together again, they are found by what they are called."""
    import tiny_models

    model = tiny_models.bert().eval()
    tokenizer = tiny_models.tokenizer(framed=True)
    ids = tokenizer("he left the roses by the bank . the bank", return_tensors="pt")
    with torch.no_grad(), saccade.record(model, tokenizer, keep="qkv") as trace:
        model(**ids)
    named = {place: contributions(trace, 0, place).token for place in ("left", "bank:2", "rose", "[CLS]", -1)}
    assert named == {"left": 2, "bank:2": 11, "rose": 4, "[CLS]": 0, -1: 12}
    assert contributions(trace, 0, "bank:2").query == "bank:2"
    with pytest.raises(ArgumentError, match=r"no 'sea' .* can be given by its number as well"):
        contributions(trace, 0, "sea")


@pytest.mark.parametrize("what", [None, "trace.zarr", Net])
def test_what_is_no_trace_is_refused(what):
    from saccade.analysis import alti, logit_lens, rollout

    for ask in (rollout, alti, logit_lens, lambda x: contributions(x, 0, 0)):
        with pytest.raises(
            ArgumentError, match=r"trace is .*; expected what saccade\.record or saccade\.open_trace gives"
        ):
            ask(what)


def test_other_threads_may_run_the_model():
    import threading

    net = Net()
    trace, expected, wrong, done = recorded(net, X), net(X), [], threading.Event()

    def run():
        while not done.is_set():
            wrong.append(not torch.equal(net(X), expected))

    with torch.no_grad():
        other = threading.Thread(target=run)
        other.start()
        try:
            for token in range(20):
                contributions(trace, 0, token % 5)
        finally:
            done.set()
            other.join()
    assert wrong
    assert not any(wrong)


def test_dropout_is_named_where_it_is_why():
    bert = next(a for a in architectures.ARCHITECTURES if a.name == "BERT")
    model = bert.build()
    model.train()
    model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if hasattr(module, "dropout_prob") or type(module).__name__.endswith("SelfAttention"):
            module.dropout = nn.Dropout(0.0) if isinstance(getattr(module, "dropout", None), nn.Module) else 0.0
    inputs, _ = bert.inputs("single")
    trace = recorded_model(model, inputs)
    with pytest.raises(UnsupportedModelError, match=r"In training mode dropout may be why: call model\.eval\(\)"):
        contributions(trace, 0, 1)


def test_only_some_layers_were_recorded():
    trace = recorded(Net(), X, layers=[1])
    c = contributions(trace, 0, 2)
    assert off(c.parts.sum(0), trace[0, 0].hidden_after[0, 2]) < EXACT


def test_nothing_is_left_on_the_model():
    net = Net()
    trace = recorded(net, X)
    before = net(X)
    contributions(trace, 0, 0)
    with pytest.raises(UnsupportedModelError):
        contributions(recorded(Net(way="bent"), X), 0, 0)
    assert torch.equal(net(X), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# ---------------------------------------------------------------------------------------- following


@pytest.mark.parametrize(
    "do",
    [
        lambda x: x.transpose(0, 1) @ torch.ones(3, 2) + 1,
        lambda x: torch.cat([x, x * 2], 1)[:, 1:5].flatten(),
        lambda x: x.view(2, 3, 2).permute(2, 0, 1).sum(0).unbind(1)[2],
        lambda x: torch.stack([x, torch.ones_like(x)]).mean((0, 1)),
        lambda x: (x - 3 * torch.ones(4)) / 7 - x[:1].expand(3, 4),
        lambda x: torch.ones(4) - x.to(torch.float64).float().contiguous().unsqueeze(0).squeeze(),
        lambda x: nn.functional.layer_norm(x, (4,), torch.arange(4.0), torch.ones(4)),
        lambda x: nn.functional.rms_norm(x, (4,), torch.arange(4.0)),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x.clone().add_(1).mul_(2).sub_(x).div_(3),
        lambda x: torch.relu(x) * x + x.softmax(-1),
        lambda x: torch.baddbmm(torch.ones(1, 3, 4), x[None], torch.ones(1, 4, 4)),
        lambda x: x[torch.tensor([2, 0])].index_select(1, torch.tensor([3, 3])),
        lambda x: torch.zeros(3, 4).index_add_(0, torch.tensor([0, 0, 1]), x),
        lambda x: x.split(2, 1)[0] + x.chunk(2, 1)[1] + x.narrow(1, 1, 2),
    ],
)
def test_parts_sum_to_the_tensor_whatever_is_done_with_it(do):
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), Following() as follow:
        y = do(follow.begin(a + b, {"a": a[None], "b": torch.stack([b / 4, 3 * b / 4])}))
    parts = follow.parts(y)
    torch.testing.assert_close(sum(part.sum(0) for part in parts.values()), y)


def test_what_is_linear_stays_apart_and_what_is_not_does_not():
    x = torch.randn(3, 4)
    with torch.no_grad(), Following() as follow:
        x = follow.begin(x, {"a": x[None]})
        linear, bent = x @ torch.ones(4, 4) * 2, torch.relu(x)
        gated = bent * (x + torch.ones(4))
        untouched = torch.ones(3) + 1
    assert set(follow.parts(linear)) == {"a"}
    assert set(follow.parts(bent)) == set(follow.parts(gated)) == {following.COMPUTED}
    assert follow.parts(untouched) is None


# ---------------------------------------------------------------------------------------- doors


def test_frames_files_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    pd = pytest.importorskip("pandas")
    c = contributions(recorded(Net(), X), 0, 2)
    frame = c.to_frame()
    assert list(frame.columns) == ["head", "key", "norm", "weight"]
    assert len(frame) == 10
    assert frame[(frame["head"] == 1) & (frame["key"] == "3")]["norm"].item() == pytest.approx(float(c.norm[1, 3]))
    assert set(c.to_frame("parts")["part"]) == set(c.part_names)
    assert c.plot().get_title()
    for ending in (".png", ".svg", ".csv", ".json", ".npz"):
        assert c.save(tmp_path / f"c{ending}") == []
    assert len(pd.read_csv(tmp_path / "c.csv")) == 10
    with pytest.raises(ArgumentError, match="no array 'x'"):
        c.to_frame("x")
    with pytest.raises(ArgumentError, match=r"the ending says the format"):
        c.save(tmp_path / "c.txt")
