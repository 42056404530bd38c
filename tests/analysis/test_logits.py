"""The logit lens and direct logit attribution, against the models' own logits."""

import architectures
import pytest
import tiny_models
import torch
from test_contributions import random_biases

import saccade
from saccade.adapters.intervention import Change, intervening
from saccade.analysis import logit_attribution, logit_lens
from saccade.errors import ArgumentError, UnsupportedModelError

CAUSAL = [a for a in architectures.ARCHITECTURES if a.kind.endswith(("ForCausalLM", "LMHeadModel"))]
ENCODERS = [a for a in architectures.ARCHITECTURES if a.name in {"BERT", "T5", "ViT", "Gemma 3, pictures"}]


def recorded(architecture, case="single"):
    model = random_biases(architecture.build())
    inputs, _ = architecture.inputs(case)
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        logits = model(**inputs).logits
    return model, trace, logits


@pytest.mark.parametrize("architecture", CAUSAL, ids=lambda a: a.name)
def test_the_terms_sum_to_the_logit(architecture):
    model, trace, logits = recorded(architecture, "left")
    cap = getattr(model.config, "final_logit_softcapping", None)
    uncapped = logits if cap is None else torch.atanh(logits / cap) * cap
    found = logit_attribution(trace, 7, -1, against=9, batch=1)
    total = float(found.heads.sum() + found.mlps.sum()) + found.embedding + found.biases
    assert total == pytest.approx(found.logit, abs=1e-5)
    assert float(found.terms.sum()) == pytest.approx(found.logit, abs=1e-5)
    assert found.capped == (cap is not None)
    assert found.logit == pytest.approx(float(uncapped[1, -1, 7] - uncapped[1, -1, 9]), abs=1e-4)
    assert found.heads.abs().max() > 1e-3
    one = logit_attribution(trace, 7, 12, batch=2)
    assert one.logit == pytest.approx(float(uncapped[2, 12, 7]), abs=1e-4)


SCALED = [
    ("CohereConfig", "CohereForCausalLM", {"logit_scale": 0.0625}),
    ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 8.0, "residual_multiplier": 0.3}),
]


@pytest.mark.parametrize(("config", "kind", "options"), SCALED, ids=["Cohere", "Granite"])
def test_logits_that_are_scaled(config, kind, options):
    import transformers as tf

    sizes = architectures._GROUPED | options
    sizes = {name: size for name, size in sizes.items() if config != "CohereConfig" or name != "head_dim"}
    model = random_biases(getattr(tf, kind)._from_config(getattr(tf, config)(**sizes)).eval())
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        logits = model(architectures.token_ids(1, 6), use_cache=False).logits
    found = logit_attribution(trace, 7, 4, against=9)
    assert found.logit == pytest.approx(float(logits[0, 4, 7] - logits[0, 4, 9]), abs=1e-5)
    assert float(found.terms.sum()) == pytest.approx(found.logit, abs=1e-5)
    assert not found.capped


class WithoutHead(Change):
    def __init__(self, site, head):
        self.site, self.head = site, head

    def output(self, running, problem, inputs, output):
        output = output.clone()
        if running.site == self.site:
            output[:, self.head] = 0
        return output


def test_in_the_last_layer_a_head_adds_what_is_missing_without_it():
    """Where only the last norm follows: with its deviation kept, the logit falls by just the head's term."""
    chosen = next(a for a in CAUSAL if a.name == "GPT-2")
    model = random_biases(chosen.build())
    last = model.transformer.h[1]
    with torch.no_grad():
        for parameter in last.mlp.parameters():
            parameter.zero_()
    states = {}
    model.transformer.ln_f.register_forward_hook(lambda _, args, __: states.update(entered=args[0].detach()))
    inputs, _ = chosen.inputs("single")
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(**inputs)
    whole = states["entered"][0, -1].double()
    found = logit_attribution(trace, 7)
    for head in range(4):
        with torch.no_grad(), intervening(model, WithoutHead(trace.sites[1], head)):
            model(**inputs)
        term = whole - states["entered"][0, -1].double()
        norm = model.transformer.ln_f
        deviation = (whole.var(correction=0) + norm.eps).sqrt()
        scaled = (term - term.mean()) / deviation * norm.weight.detach().double()
        expected = float(scaled @ model.lm_head.weight[7].detach().double())
        assert float(found.heads[1, head]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", CAUSAL, ids=lambda a: a.name)
def test_the_lens_ends_in_what_the_model_predicts(architecture):
    _, trace, logits = recorded(architecture, "left")
    found = logit_lens(trace, [5, -1], top=3, batch=1)
    expected = logits[1, [5, -1]].topk(3)
    torch.testing.assert_close(found.logit[-1], expected.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.predicted[-1], expected.indices)
    torch.testing.assert_close(found.final[-1], found.probability[-1, :, 0])
    assert found.logit.shape == (3, 2, 3)
    assert found.tokens == ["5", "23"] or len(found.tokens) == 2


def test_the_lens_reads_a_state_as_if_no_layer_came_after_it():
    chosen = next(a for a in CAUSAL if a.name == "Llama")
    model, trace, _ = recorded(chosen)
    found = logit_lens(trace, top=1)
    for number in range(2):
        state = trace[0, number].hidden[0]
        with torch.no_grad():
            expected = model.lm_head(model.model.norm(state))
        torch.testing.assert_close(found.logit[number, :, 0], expected.amax(-1))


@pytest.mark.parametrize("architecture", ENCODERS, ids=lambda a: a.name)
def test_models_that_predict_no_next_token_are_refused(architecture):
    model = architecture.build()
    inputs, _ = architecture.inputs("single")
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(**inputs)
    for look in (lambda: logit_lens(trace), lambda: logit_attribution(trace, 7)):
        with pytest.raises(UnsupportedModelError, match="Expected a causal language model"):
            look()


def test_an_encoder_with_an_output_matrix_is_refused_as_well():
    import transformers as tf

    model = tf.BertForMaskedLM(tf.BertConfig(vocab_size=99, **tiny_models.SIZES)).eval()
    with torch.no_grad(), saccade.record(model, keep="qkv") as trace:
        model(torch.tensor([[3, 4, 5]]))
    with pytest.raises(UnsupportedModelError, match="tokens see what comes after them, as in an encoder"):
        logit_lens(trace)


def test_names_pictures_and_what_does_not_fit(tmp_path):
    pytest.importorskip("matplotlib")
    chosen = next(a for a in CAUSAL if a.name == "GPT-2")
    model, trace, _ = recorded(chosen)
    tokenizer = tiny_models.tokenizer(framed=False)
    found = logit_attribution(trace, "bank", against="river", tokenizer=tokenizer)
    assert (found.target, found.against) == ("bank", "river")
    assert "“bank” rather than “river”" in found.plot().get_title()
    lens = logit_lens(trace, [3], tokenizer=tokenizer)
    assert lens.save(tmp_path / "lens.png") == found.save(tmp_path / "dla.svg") == []
    assert len(lens.words[0][0]) == 5
    frame = found.to_frame()  # a whole table: nothing is left out of the sum
    assert frame["terms"].sum() == pytest.approx(found.logit, abs=1e-5)
    assert {"embedding", "biases", "layer 1 MLP", "layer 0 head 3"} <= set(frame["term"])
    for options, message in [
        ({"target": "roses", "tokenizer": tokenizer}, r"is 2 tokens \(rose ##s\); expected the text of one"),
        ({"target": "bank"}, "expected the id of a token, or with tokenizer= its text"),
        ({"target": 99}, "the vocabulary has 99 tokens"),
        ({"target": 7, "token": 24}, "there are 24 tokens"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            logit_attribution(trace, **options)
    with pytest.raises(ArgumentError, match="top = 0: expected 1 to 32"):
        logit_lens(trace, top=0)
    assert model is not None
