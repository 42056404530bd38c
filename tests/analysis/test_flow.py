"""Flow through layers, against matrices N x N in float64 and against models that were changed and run again."""

import architectures
import pytest
import torch
from test_contributions import Net, X, random_biases, recorded

import saccade
from saccade.adapters.intervention import Change, intervening
from saccade.analysis import alti, contributions, rollout, value_zeroing
from saccade.errors import ArgumentError, NotRecordedError

NAMES = ("BERT", "Llama", "GPT-OSS", "ViT", "GPT-NeoX")


def architecture(name):
    return next(a for a in architectures.ARCHITECTURES if a.name == name)


@pytest.fixture(params=NAMES)
def run(request):
    """A model, its inputs, and a trace of them."""
    chosen = architecture(request.param)
    model = random_biases(chosen.build())
    inputs, _ = chosen.inputs("right" if "right" in chosen.cases else "single")
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(**inputs)
    return model, inputs, trace


def product(matrices):
    """C_L ... C_l for every l."""
    found, made = torch.eye(len(matrices[0])).double(), []
    for matrix in reversed(matrices):
        found = found @ matrix
        made.append(found)
    return torch.stack(made[::-1])


def scaled(matrix):
    """Rows that sum to 1; one of nothing stays itself."""
    total = matrix.sum(-1, keepdim=True)
    return torch.where(total > 0, matrix / total, torch.eye(matrix.shape[-1], dtype=matrix.dtype)[: len(matrix)])


def check(flow, matrices, atol=1e-5):
    places = [flow.keys.index(query) for query in flow.queries]
    torch.testing.assert_close(flow.share.double(), product(matrices)[:, places], atol=atol, rtol=1e-4)
    torch.testing.assert_close(flow.direct.double(), torch.stack(matrices)[:, places], atol=atol, rtol=1e-4)
    torch.testing.assert_close(flow.share.sum(-1), torch.ones(flow.share.shape[:2]), atol=1e-4, rtol=0)


def test_rollout_is_the_product_of_the_patterns_with_the_residual(run):
    _, _, trace = run
    patterns = [site.pattern.dense()[1].double().mean(0) for site in trace[0]]
    eye = torch.eye(len(patterns[0])).double()
    check(rollout(trace, batch=1), [scaled(pattern + eye) for pattern in patterns])
    check(rollout(trace, [3, -5], batch=1), [scaled(pattern + eye) for pattern in patterns])


@pytest.mark.parametrize("name", ["Llama", "GPT-OSS", "Gemma 2"])  # their blocks end in the layer's output
def test_rollout_by_values_weighs_with_their_lengths(name):
    chosen = architecture(name)
    model = random_biases(chosen.build())
    inputs, _ = chosen.inputs("left")
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(**inputs)
    matrices = []
    for site in trace[0]:
        n, padding = site.shape[2], 3
        rows = torch.eye(n, dtype=torch.float64)
        for i in range(padding, n):  # lengths with the deviations of each query's own norms
            norms = contributions(trace, site.name, i, batch=1).norm.double().sum(0)
            rows[i] = norms / norms.sum()
        matrices.append((rows + torch.eye(n)) / 2)
    check(rollout(trace, [5, 9], by="values", batch=1), matrices)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_alti_by_its_formula(norm):
    net = Net(norm=norm)
    trace = recorded(net, X)
    matrices = []
    for number, block in enumerate(net.layers):
        pattern, value = trace[0, number].pattern.dense()[0].double(), trace[0, number].value[0].double()
        x = trace[0, number].hidden[0].double()
        brought = torch.einsum("hik,hkd,whd->ikw", pattern, value, block.out.weight.double().view(6, 2, 3))
        brought[torch.arange(5), torch.arange(5)] += x
        y = brought.sum(1) + block.out.bias.double()
        if norm == "post":  # the norm that ends the attention block, its deviation as it was
            deviation = (y.var(-1, correction=0, keepdim=True) + block.first.eps).sqrt()
            y = (y - y.mean(-1, keepdim=True)) / deviation * block.first.weight.double() + block.first.bias.double()
            brought = (brought - brought.mean(-1, keepdim=True)) / deviation[:, None] * block.first.weight.double()
        near = (y.abs().sum(-1, keepdim=True) - (y[:, None] - brought).abs().sum(-1)).clamp(min=0)
        matrices.append(scaled(near))
    check(alti(trace, batch=0), matrices)


def test_alti_in_real_layers_prefers_what_is_looked_at(run):
    _, _, trace = run
    flow = alti(trace, [2, 7], batch=1)
    assert flow.share.min() >= 0
    torch.testing.assert_close(flow.share.sum(-1), torch.ones(flow.share.shape[:2]))
    unseen = torch.stack([site.pattern.dense()[1, :, [2, 7]].sum(0) for site in trace[0]]) == 0
    assert flow.direct[unseen].sum() < 1e-5


class Zeroed(Change):
    def __init__(self, site, key):
        self.site, self.key = site, key

    def inputs(self, running, problem, inputs):
        if running.site != self.site:
            return inputs
        value = inputs.value.clone()
        value[:, :, self.key] = 0
        return type(inputs)(inputs.query, inputs.key, value)


def test_value_zeroing_is_what_the_model_does_without_the_value(run):
    model, inputs, trace = run
    flow = value_zeroing(trace, [1, 4], batch=1)
    for number, site in list(enumerate(trace[0]))[-1:]:
        rows = torch.zeros(2, site.shape[3], dtype=torch.float64)
        plain = site.hidden_after[1, [1, 4]].double()
        for key in range(site.shape[3]):
            with torch.no_grad(), intervening(model, Zeroed(site.name, key)), saccade.record(model) as changed:
                model(**inputs)
            turned = changed[0, number].hidden_after[1, [1, 4]].double()
            rows[:, key] = 1 - torch.cosine_similarity(plain, turned, dim=-1)
        torch.testing.assert_close(flow.direct[number].double(), scaled(rows.clamp(min=0)), atol=2e-4, rtol=1e-2)


def test_one_token_by_hand():
    """Uniform attention over two tokens, twice: rollout is (3/4, 1/4), then (5/8, 3/8)."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
            self.attend = torch.nn.ModuleList([Uniform(), Uniform()])

        def forward(self, x):
            return self.attend[1](self.attend[0](x))

    class Uniform(torch.nn.Module):
        def forward(self, x):
            nothing = torch.zeros_like(x)[:, None]
            return x + saccade.attention(nothing, nothing, x[:, None])[:, 0]

    net = Twice()
    flow = rollout(recorded(net, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])), [0])
    torch.testing.assert_close(flow.share[:, 0], torch.tensor([[0.625, 0.375], [0.75, 0.25]]))


def test_a_long_text_in_linear_memory():
    net = Net(width=6, heads=1, inner=2)
    trace = recorded(net, torch.randn(1, 6000, 6))
    for by in ("attention", "values"):
        flow = rollout(trace, [17, 5999], by=by)
        torch.testing.assert_close(flow.share.sum(-1), torch.ones(2, 2))
    with pytest.raises(ArgumentError, match="6,000 tokens: choose"):
        rollout(trace)


def test_rows_are_formed_in_chunks_that_do_not_grow_with_the_text(monkeypatch):
    from saccade.analysis import flow as module

    net, taken = Net(), []
    trace = recorded(net, torch.randn(1, 300, 6))
    whole = alti(trace, [7])
    rows = module._ByDistance.rows
    monkeypatch.setattr(module, "MOST_NUMBERS", 20_000)
    monkeypatch.setattr(
        module._ByDistance, "rows", lambda self, call, chunk: taken.append(len(chunk)) or rows(self, call, chunk)
    )
    torch.testing.assert_close(alti(trace, [7]).share, whole.share)
    assert max(taken) <= 20_000 // (2 * 300)  # two heads' weights of a row, at least


def test_encoder_and_decoder_are_asked_for_by_name():
    chosen = architecture("T5")
    model = chosen.build()
    inputs, _ = chosen.inputs("single")
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(**inputs)
    with pytest.raises(ArgumentError, match=r"of several kinds .*choose sites="):
        rollout(trace, [0])
    sites = [site for site in trace.sites if "encoder" in site]
    assert rollout(trace, [0], sites=sites).sites == sites
    with pytest.raises(ArgumentError, match="self-attention calls of one length"):
        rollout(trace, [0], sites=[site for site in trace.sites if "EncDec" in site])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": [9]}, "there are 5 tokens"),
        ({"tokens": []}, "tokens is empty"),
        ({"by": "magic"}, "expected 'attention' or 'values'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    net = Net()
    with pytest.raises(ArgumentError, match=message):
        rollout(recorded(net, X), **options)


def test_statistics_alone_are_not_enough():
    net = Net()
    with torch.no_grad(), saccade.record(net) as trace:
        net(X)
    with pytest.raises(NotRecordedError, match="record with keep='qk'"):
        rollout(trace)


def test_pictures_and_progress(tmp_path):
    pytest.importorskip("matplotlib")
    net, seen = Net(), []
    flow = value_zeroing(recorded(net, X), on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    assert flow.save(tmp_path / "flow.png") == []
    assert "the tokens" in flow.plot().get_title()
    assert "“1”" in rollout(recorded(net, X), [1]).plot().get_title()
    frame = flow.to_frame()
    assert list(frame.columns) == ["layer", "query", "key", "share", "direct"]
