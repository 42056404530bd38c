"""`ablate`: against models whose weights are zero, hand-written forwards, and hooks."""

import copy
import json
import math

import architectures
import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import saccade
from saccade import functional
from saccade.adapters import pretrained
from saccade.analysis.ablation import CAVEAT, Ablation, Heads, Logit, Loss, Tokens, WordVector, ablate
from saccade.analysis.ablation.change import Drawn, from_others, order
from saccade.errors import ArgumentError, ShapeError, UnsupportedModelError

ROSES = "He left the roses by the bank."
BANK = "She left the river bank, and it left."
KINDS = {architecture.name: architecture for architecture in architectures.ARCHITECTURES}


def lm():
    """A causal language model with the tiny tokenizer, and weights large enough for sharp patterns."""
    torch.manual_seed(7)
    config = GPT2Config(vocab_size=len(tiny_models.VOCAB), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1 if "ln" in name else 6)
    return pretrained.wrap(model.eval(), tiny_models.tokenizer(framed=False), "tiny LM")


@pytest.fixture(scope="module")
def gpt2():
    return lm()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return pretrained.load(str(tiny_models.save(tmp_path_factory.mktemp("bert") / "tiny")))


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm") / "tiny-lm"
    loaded = lm()
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


# ---------------------------------------------------------------------------------------- heads, by weights


def total(outputs, rows):
    """A number that depends on all of a model's outputs."""
    found = next(x for x in outputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point())
    return weighed(found, rows)


def weighed(found, rows):
    """The sum of a row's numbers, with other weights for each: it shows a change that a layer norm would hide."""
    flat = found.reshape(rows, -1).double()
    return (flat * torch.linspace(-1, 1, flat.shape[1], dtype=torch.float64)).sum(1)


def silence(linear, columns):
    """The weights that read these of a projection's inputs become 0; GPT-2's Conv1D has them in rows."""
    with torch.no_grad():
        (linear.weight[columns] if type(linear).__name__ == "Conv1D" else linear.weight[:, columns]).zero_()


PROJECTIONS = {
    "GPT-2": lambda model, i: model.transformer.h[i].attn.c_proj,
    "Llama": lambda model, i: model.model.layers[i].self_attn.o_proj,
    "OPT": lambda model, i: model.model.decoder.layers[i].self_attn.out_proj,
    "BERT": lambda model, i: model.encoder.layer[i].attention.output.dense,
    "T5": lambda model, i: (model.encoder.block[i] if i < 2 else model.decoder.block[i - 2]).layer[0].SelfAttention.o,
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_head_set_to_zero_is_a_projection_without_its_columns(name):
    model = KINDS[name].build().double()
    inputs, _ = KINDS[name].inputs("single")
    projection = PROJECTIONS[name]
    found = ablate(model, inputs, effect=total, batch=3)
    layers = range(4 if name == "T5" else 2)  # its decoder has heads too, and leaves those of cross-attention alone
    pairs = [(i, head) for i in layers for head in range(4)]
    with torch.no_grad():
        whole = total(model(**inputs), 1)
        for i, head in pairs:
            other = copy.deepcopy(model)
            silence(projection(other, i), slice(8 * head, 8 * head + 8))
            expected = total(other(**inputs), 1)
            torch.testing.assert_close(found.value[i, head], expected[0], rtol=1e-5, atol=1e-9)
        for i in layers:
            silence(projection(model, i), slice(None))
        without = total(model(**inputs), 1)
    assert found.baseline == pytest.approx(float(whole), rel=1e-6)
    assert found.effect.abs().min() > 1e-3
    torch.testing.assert_close(found.effect, found.value - found.baseline)
    assert found.effect.shape == (len(layers), 4)
    together = ablate(KINDS[name].build().double(), inputs, Heads([pairs]), effect=total)
    torch.testing.assert_close(together.value[0], without[0], rtol=1e-5, atol=1e-9)
    assert together.plan.dims == ("part",)


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES, ids=lambda a: a.name)
def test_every_architecture_can_be_ablated(architecture):
    model = architecture.build()
    inputs, valid = architecture.inputs("single")
    inputs = {name: x[:1] if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}

    def first(outputs, rows):
        value = outputs
        for part in next(iter(valid)).split("."):
            value = getattr(value, part)
        return weighed(value, rows)

    before = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    for parts in (Heads(), Tokens()):
        together = ablate(model, inputs, parts, effect=first)
        alone = ablate(model, inputs, parts, effect=first, batch=1)
        torch.testing.assert_close(together.value, alone.value, rtol=1e-4, atol=1e-3, equal_nan=True)
        if parts == Heads() or architecture.name != "CLIP":
            assert together.effect.nan_to_num().abs().max() > 1e-3
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == before


# ---------------------------------------------------------------------------------------- a net by hand


class Net(nn.Module):
    """Two layers of two heads; the first argument is the text's, the second says how to mix."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Attend(), Attend()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Attend(nn.Module):
    def forward(self, x):
        q = x.unflatten(-1, (2, 3)).transpose(1, 2)
        return x + saccade.attention(q, q, q + 1).transpose(1, 2).flatten(-2)


def by_hand(x, change_value=None, change_output=None):
    """The net in formulas, in float64; changes are functions of layer and values or outputs ``(1, 2, N, 3)``."""
    x = x.double()
    for i in range(2):
        q = x.unflatten(-1, (2, 3)).transpose(1, 2)
        v = q + 1 if change_value is None else change_value(i, q + 1)
        out = (q @ q.transpose(-1, -2) / math.sqrt(3)).softmax(-1) @ v
        out = out if change_output is None else change_output(i, out)
        x = x + out.transpose(1, 2).flatten(-2)
    return x


def texts(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, n, 6, generator=generator) for n in lengths]


def last(outputs, _rows):
    return outputs[:, -1].sum(-1)


X, *OTHERS = texts(5, 7, 4)


def captured(x):
    """All values and outputs of the whole net, by layer."""
    values, outputs = {}, {}

    def keep(where):
        def note(i, y):
            where[i] = y
            return y

        return note

    by_hand(x, keep(values), keep(outputs))
    return values, outputs


@pytest.mark.parametrize("layers", [None, [0], [1]])
def test_a_token_without_values_is_a_forward_by_hand(layers):
    found = ablate(Net().eval(), {"x": X}, Tokens(layers=layers), effect=last)

    def without(token):
        def change(i, value):
            value = value.clone()
            value[:, :, token] *= layers is not None and i not in layers
            return value

        return change

    expected = torch.stack([last(by_hand(X, without(token)), 1)[0] for token in range(5)])
    torch.testing.assert_close(found.value, expected, rtol=1e-5, atol=1e-5)
    assert found.baseline == pytest.approx(float(last(by_hand(X), 1)), rel=1e-5)
    assert found.plan.dims == ("token",)
    assert found.effect.abs().min() > 1e-2


@pytest.mark.parametrize("reference", [None, OTHERS])
@pytest.mark.parametrize("how", ["mean", "resample"])
def test_heads_replaced(how, reference):
    found = ablate(Net().eval(), {"x": X}, how=how, effect=last, reference=as_texts(reference), seed=5, batch=3)
    seen = [captured(x)[1] for x in reference or [X]]
    for layer in range(2):
        alone = [outputs[layer] for outputs in seen]
        for head in range(2):

            def change(i, output, layer=layer, head=head, alone=alone):
                output = output.clone()
                if i == layer:
                    output[0, head] = replacement(how, [each[0, head] for each in alone], own=reference is None)
                return output

            expected = last(by_hand(X, None, change), 1)[0]
            torch.testing.assert_close(found.value[layer, head], expected, rtol=1e-5, atol=1e-5)


def as_texts(reference):
    return None if reference is None else [{"x": x} for x in reference]


def replacement(how, alone, *, own):
    """What stands in at each of the 5 tokens, of what texts have there, ``(N, 3)`` each."""
    if how == "mean":
        return torch.cat(alone).mean(0, keepdim=True)
    if own:
        return alone[0][torch.randperm(5, generator=torch.Generator().manual_seed(5))]
    # Reservoir sampling, one slot for each token, written out.
    generator, slots, count = torch.Generator().manual_seed(5), [None] * 5, 0
    for text in alone:
        count += len(text)
        drawn = torch.randint(count, (5,), generator=generator).tolist()
        slots = [text[j] if j < len(text) else slots[i] for i, j in enumerate(drawn)]
    return torch.stack(slots)


@pytest.mark.parametrize("reference", [None, OTHERS])
@pytest.mark.parametrize("how", ["mean", "resample"])
def test_tokens_replaced(how, reference):
    parts = Tokens([0, [1, 4], 3])
    found = ablate(Net().eval(), {"x": X}, parts, how=how, effect=last, reference=as_texts(reference), seed=5)
    seen = [captured(x)[0] for x in reference or [X]]
    shuffled = torch.randperm(5, generator=torch.Generator().manual_seed(5)).tolist()
    for part, tokens in enumerate(([0], [1, 4], [3])):

        def change(i, value, tokens=tokens):
            value = value.clone()
            for token in tokens:
                if how == "resample" and reference is None:
                    after = shuffled[shuffled.index(token) + 1 :] + shuffled[: shuffled.index(token)]
                    value[0, :, token] = seen[0][i][0, :, next(t for t in after if t not in tokens)]
                else:
                    alone = [values[i][0].transpose(0, 1).flatten(1) for values in seen]
                    there = replacement(how, alone, own=False)
                    value[0, :, token] = there[token if how == "resample" else 0].view(2, 3)
            return value

        expected = last(by_hand(X, change), 1)[0]
        torch.testing.assert_close(found.value[part], expected, rtol=1e-5, atol=1e-5)


def test_draws_are_even():
    """Each of 30 tokens in three texts is drawn as often, within 5 standard deviations."""
    drawn = Drawn([20000], seed=1)
    for start, stop in ((0, 4), (4, 20), (20, 30)):
        drawn.add(0, torch.arange(start, stop)[None, :, None])
    counts = torch.bincount(drawn.heads(0, [0]).flatten(), minlength=30)
    assert len(counts) == 30
    assert (counts - 20000 / 30).abs().max() < 5 * math.sqrt(20000 / 30)


def test_a_token_takes_from_the_next_that_stays():
    assert from_others([3], [3, 0, 2, 1]) == [0]
    assert from_others([1], [3, 0, 2, 1]) == [3]
    assert from_others([0, 2, 3], [3, 0, 2, 1]) == [1, 1, 1]
    assert sorted(order(9, 0)) == list(range(9))
    assert order(9, 0) != order(9, 1)


def test_rows_do_not_know_of_one_another():
    together = ablate(Net().eval(), {"x": X}, effect=last)
    alone = [ablate(Net().eval(), {"x": X}, Heads([(i, h)]), effect=last).value[0] for i in range(2) for h in range(2)]
    torch.testing.assert_close(together.value.flatten(), torch.stack(alone))


# ---------------------------------------------------------------------------------------- effects


def test_the_loss_is_that_of_transformers(gpt2):
    inputs = pretrained.encode(gpt2, ROSES).inputs
    found = ablate(gpt2, ROSES)
    with torch.no_grad():
        assert found.baseline == pytest.approx(float(gpt2.model(**inputs, labels=inputs["input_ids"]).loss), rel=1e-6)
        other = copy.deepcopy(gpt2.model)
        silence(other.transformer.h[1].attn.c_proj, slice(8, 16))
        assert float(found.value[1, 1]) == pytest.approx(
            float(other(**inputs, labels=inputs["input_ids"]).loss), rel=1e-5
        )
    assert found.measured == "the next-token loss (nats)"
    assert found.layers == ["transformer.h.0.attn", "transformer.h.1.attn"]


def test_a_tokens_logit_and_its_log_probability(gpt2):
    found = ablate(gpt2, ROSES, effect=Logit("bank"))
    number = tiny_models.VOCAB["bank"]
    with torch.no_grad():
        logits = gpt2.model(**pretrained.encode(gpt2, ROSES).inputs).logits[0, -1]
        other = copy.deepcopy(gpt2.model)
        silence(other.transformer.h[0].attn.c_proj, slice(0, 8))
        without = other(**pretrained.encode(gpt2, ROSES).inputs).logits[0, -1]
    assert found.baseline == pytest.approx(float(logits.log_softmax(-1)[number]), rel=1e-5)
    assert float(found.value[0, 0]) == pytest.approx(float(without.log_softmax(-1)[number]), rel=1e-5)
    assert float(found.further["logit"][0, 0]) == pytest.approx(float(without[number]), rel=1e-5)
    by_number = ablate(gpt2, ROSES, effect=Logit(number, position=len(found.text.split())))
    assert by_number.measured.endswith("at token 7 (nats)")


@pytest.mark.parametrize("layer", [-1, 1])
def test_a_words_vector(bert, layer):
    found = ablate(bert, ROSES, effect=WordVector("roses", layer))  # two tokens, 4 and 5
    other = copy.deepcopy(bert.model)
    silence(other.encoder.layer[0].attention.output.dense, slice(8, 16))
    inputs = pretrained.encode(bert, ROSES).inputs
    with torch.no_grad():
        before, after = (
            model(**inputs, output_hidden_states=True).hidden_states[layer][0, 4:6].double().mean(0)
            for model in (bert.model, other)
        )
    assert found.baseline == 0
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=0)
    assert float(found.effect[0, 1]) == pytest.approx(float(1 - cosine), rel=1e-4)
    distance = (after - before).norm() / before.norm()
    assert float(found.further["distance"][0, 1]) == pytest.approx(float(distance), rel=1e-4)
    if layer == 1:  # what leaves layer 0 knows nothing of later heads
        assert found.effect[1:].abs().max() < 1e-12


def test_a_word_is_all_its_tokens_wherever_it_stands(bert):
    found = ablate(bert, ROSES, Tokens(["roses", "the", -2, ["he", 3]]), effect=WordVector("bank"))
    assert [sorted({token for _, token in part.places}) for part in found.plan.parts] == [[4, 5], [3, 7], [9], [1, 3]]
    assert found.coordinates() == {"part": ["roses", "the", ".", "he + the"]}
    same = ablate(bert, ROSES, Tokens([[4, 5]]), effect=WordVector([8]))
    torch.testing.assert_close(same.effect[0], found.effect[0], rtol=1e-4, atol=1e-9)
    everywhere = ablate(bert, ROSES, Tokens(), effect=WordVector("bank"))
    assert everywhere.coordinates()["token"][:6] == ["[CLS]", "He", "left", "the", "rose", "s"]


def test_in_a_causal_model_later_tokens_change_nothing(gpt2):
    found = ablate(gpt2, ROSES, Tokens(), effect=Logit("bank", position=3))
    assert found.effect[:4].abs().min() > 1e-5
    assert found.effect[4:].abs().max() < 1e-5


# ---------------------------------------------------------------------------------------- what is left behind


def test_nothing_stays_on_the_model(bert):
    implementation = bert.model.config._attn_implementation
    named = list(bert.model.named_modules())
    with torch.no_grad():  # puts hooks of transformers on, which stay
        bert.model(**pretrained.encode(bert, ROSES).inputs, output_hidden_states=True)
    before = {name: (*module._forward_hooks, *module._forward_pre_hooks) for name, module in named}

    def wrong(_, rows):
        if rows > 1:
            raise RuntimeError("stop")
        return torch.zeros(rows)

    ablate(bert, ROSES, effect=WordVector("bank"))
    with pytest.raises(RuntimeError, match="stop"):
        ablate(bert, ROSES, effect=wrong)
    assert functional.INTERVENTION.get() is None
    assert functional.OBSERVER.get() is None
    assert {name: (*module._forward_hooks, *module._forward_pre_hooks) for name, module in named} == before
    assert bert.model.config._attn_implementation == implementation
    assert not bert.model.training


def test_progress_is_told():
    told = []
    ablate(Net().eval(), {"x": X}, effect=last, batch=3, on_progress=lambda *done: told.append(done))
    assert told == [(3, 4), (4, 4)]


def test_all_heads_of_a_small_model_are_a_handful_of_forwards():
    loaded, rows = pretrained.load(), []
    with loaded.model.register_forward_hook(lambda _module, _given, output: rows.append(len(output[0]))):
        found = ablate(loaded, ROSES, effect=WordVector("bank"))
    assert found.effect.shape == (6, 12)
    assert rows == [1, 16, 16, 16, 16, 8]


# ---------------------------------------------------------------------------------------- doors


def test_doors(gpt2, tmp_path):
    found = ablate(gpt2, ROSES)
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "head", "effect", "value"]
    assert frame.effect[3] == pytest.approx(float(found.effect[1, 1]))
    said = json.loads(found.to_json())
    assert said["baseline"] == found.baseline
    assert said["caveat"] == CAVEAT
    assert said["arrays"]["effect"]["dims"] == ["layer", "head"]
    names = [name for name, _ in found.strongest(4)]
    sizes = [abs(effect) for _, effect in found.strongest(4)]
    assert sorted(names) == [f"layer {i} head {h}" for i in range(2) for h in range(2)]
    assert sizes == sorted(sizes, reverse=True)
    for name, parts in (("a.png", None), ("b.svg", Tokens()), ("c.npz", Tokens(["roses", "left"]))):
        ablate(gpt2, ROSES, parts).save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 500
    assert list(np.load(tmp_path / "c.npz")["part"]) == ["roses", "left"]


def test_the_picture_says_it_all(gpt2):
    axis = ablate(gpt2, ROSES).plot()
    assert axis.get_xlabel() == "head"
    assert ROSES in axis.get_title(loc="left")
    image = axis.images[0]
    assert image.get_clim()[0] == -image.get_clim()[1]
    bars = ablate(gpt2, ROSES, Tokens()).plot()
    assert [label.get_text() for label in bars.get_xticklabels()][:3] == ["He", "left", "the"]
    assert isinstance(ablate(gpt2, " ".join([ROSES] * 6), Tokens()).plot().get_xlabel(), str)


def test_layers_with_fewer_heads_have_gaps():
    class Uneven(nn.Module):
        def forward(self, x):
            one = x[:, None]
            two = x.unflatten(-1, (2, 3)).transpose(1, 2)
            return saccade.attention(one, one, one).sum((1, 2, 3)) + saccade.attention(two, two, two).sum((1, 2, 3))

    found = ablate(Uneven().eval(), {"x": X}, effect=lambda out, _: out)
    assert found.effect.isnan().tolist() == [[False, True], [False, False]]
    assert json.loads(found.to_json())["arrays"]["effect"]["values"][0][1] is None
    found.plot()
    assert len(found.strongest(9)) == 3


# ---------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UnsupportedModelError, "predicts no next token.*effect=WordVector"),
        ({"effect": Logit("bank")}, UnsupportedModelError, "has no logits"),
        ({"effect": WordVector("lily")}, ArgumentError, "there is no 'lily'"),
        ({"effect": WordVector(99)}, ArgumentError, "there is no token 99: the text has 11 tokens"),
        ({"effect": WordVector("bank", 9)}, ArgumentError, "there is no hidden state 9"),
        ({"effect": WordVector}, ArgumentError, "expected Loss"),
        ({"effect": lambda out, _: out}, ShapeError, r"a number for each row, a tensor \(1,\)"),
        ({"parts": Heads([(3, 0)])}, ArgumentError, "there is no layer 3: tiny has layers 0 to 2"),
        ({"parts": Heads([(0, 2)])}, ArgumentError, "there is no head 2: layer 0 of tiny has heads 0 to 1"),
        ({"parts": Heads([3])}, ArgumentError, "3 is no .layer, head. pair"),
        ({"parts": Heads([])}, ArgumentError, "expected a list"),
        ({"parts": Heads([[]])}, ArgumentError, "is no .layer, head. pair"),
        ({"parts": Heads([(0, 0)], layers=[0])}, ArgumentError, "not both"),
        ({"parts": Heads(layers=[])}, ArgumentError, "expected numbers of layers"),
        ({"parts": Tokens(["lily"])}, ArgumentError, "there is no 'lily'"),
        ({"parts": Tokens([11])}, ArgumentError, "there is no token 11"),
        ({"parts": Tokens([[]])}, ArgumentError, "an empty list of tokens"),
        ({"parts": Tokens("bank")}, ArgumentError, "expected a list"),
        ({"parts": Tokens(layers=[3])}, ArgumentError, "there is no layer 3"),
        ({"parts": "heads"}, ArgumentError, "expected Heads"),
        ({"how": "nothing"}, ArgumentError, "expected one of zero, mean, resample"),
        ({"reference": [BANK]}, ArgumentError, '"zero" reads no reference'),
        ({"reference": [], "how": "mean"}, ArgumentError, "holds no text"),
        ({"batch": 0}, ArgumentError, "batch = 0"),
        ({"parts": Tokens([list(range(11))]), "how": "resample"}, ArgumentError, "no other token is left"),
    ],
)
def test_bad_arguments(bert, options, error, message):
    needs_no_effect = "effect" in options or not options
    with pytest.raises(error, match=message):
        ablate(bert, ROSES, **({} if needs_no_effect else {"effect": WordVector("bank")}) | options)


def test_bad_texts_and_models(bert, gpt2):
    with pytest.raises(ArgumentError, match="the text is empty"):
        ablate(bert, "  ", effect=WordVector("bank"))
    with pytest.raises(ArgumentError, match="has no tokenizer"):
        ablate(bert.model, ROSES, effect=WordVector("bank"))
    with pytest.raises(ArgumentError, match=r"x has shape \(2, 5, 6\); expected one text"):
        ablate(Net().eval(), {"x": X.repeat(2, 1, 1)}, effect=last)
    with pytest.raises(ArgumentError, match="expected a string, or a dict"):
        ablate(Net().eval(), X, effect=last)
    partly = copy.deepcopy(bert.model)
    partly.encoder.layer[0].train()
    with pytest.raises(ArgumentError, match="in training mode, or a part of it"):
        ablate(partly, {"input_ids": torch.tensor([[3, 4]])}, effect=last)
    with pytest.raises(ArgumentError, match="training mode"):
        ablate(Net(), {"x": X}, effect=last)
    with pytest.raises(ArgumentError, match="expected a Pretrained or a torch"):
        ablate("gpt2", {"x": X}, effect=last)
    with pytest.raises(UnsupportedModelError, match="made no self-attention call"):
        ablate(nn.Identity().eval(), {"input": X}, effect=last)
    with pytest.raises(ArgumentError, match="needs the text as a string"):
        ablate(Net().eval(), {"x": X}, Tokens(["bank"]), effect=last)
    with pytest.raises(ArgumentError, match="one token long"):
        ablate(gpt2, "bank")
    with pytest.raises(ArgumentError, match=r"'roses' is not one token that tiny LM knows, but rose ##s"):
        ablate(gpt2, ROSES, effect=Logit("roses"))
    with pytest.raises(ArgumentError, match="there is no token 99"):
        ablate(gpt2, ROSES, effect=Logit(99))
    with pytest.raises(UnsupportedModelError, match="returns no hidden states"):
        ablate(Folded().eval(), {"x": X}, effect=WordVector(0))


class Folded(nn.Module):
    """Every token is a text of its own, as windows of a picture are."""

    def forward(self, x, output_hidden_states=None):
        folded = x.reshape(-1, 1, 1, 6)
        return saccade.attention(folded, folded, folded).reshape(x.shape)


def test_a_model_that_mixes_rows_is_refused():
    with pytest.raises(UnsupportedModelError, match="makes 20 sequences of a batch of 4 texts"):
        ablate(Folded().eval(), {"x": X}, Heads([(0, 0)] * 4), effect=last)


def test_an_encoder_with_a_head_has_no_loss():
    model = architectures.tf.BertForMaskedLM(architectures.tf.BertConfig(**architectures._BERT)).eval()
    with pytest.raises(UnsupportedModelError, match="predicts no next token"):
        ablate(model, {"input_ids": architectures.token_ids(1, 6)}, effect=Loss())


# ---------------------------------------------------------------------------------------- command line


def test_the_command_prints_effects_and_a_map(run, model):
    code, out, err = run("ablate", ROSES, "-m", model, "--word", "bank")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("tiny  each head set to zero")
    assert "Change of the direction of “bank” (1 − cosine)" in out
    assert sum(line.startswith("layer") and " head " in line for line in lines) == 6
    assert "Every head" in out
    assert " ".join(lines[-2:]) == CAVEAT
    assert max(map(len, lines)) <= 80


def test_the_command_ablates_tokens_of_some_layers(run, model):
    code, out, _ = run("ablate", ROSES, "-m", model, "--word", "bank", "--what", "tokens", "--layers", "1-2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["coordinates"]["token"][-2:] == [".", "[SEP]"]
    loaded = pretrained.load(model)
    expected = ablate(loaded, ROSES, Tokens(layers=[1, 2]), effect=WordVector("bank"))
    assert found["arrays"]["effect"]["values"] == pytest.approx(expected.effect.tolist(), rel=1e-5)


def test_the_command_measures_loss_and_logits(run, lm_folder, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{BANK}\n\n{ROSES}\n")
    reference = "--reference", tmp_path / "texts.txt"
    code, out, err = run("ablate", ROSES, "-m", lm_folder, "--how", "mean", *reference)
    assert (code, err) == (0, "")
    assert "each head replaced by a mean" in out
    assert "Change of the next-token loss (nats)" in out
    code, out, _ = run("ablate", ROSES, "-m", lm_folder, "--logit", "bank", "--layers", "1", "--json")
    assert code == 0
    assert json.loads(out)["coordinates"]["layer"] == [1]
    code, out, _ = run("ablate", "-m", lm_folder, "--out", tmp_path / "x.png", stdin=ROSES.encode())
    assert (code, out) == (0, f"wrote {tmp_path / 'x.png'}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "predicts no next token.*--word WORD"),
        (["--logit", "bank"], "predicts no next token.*--word WORD"),
        (["--word", "lily"], "there is no 'lily'"),
        (["--word", "bank", "--logit", "bank"], "not both"),
        (["--word", "bank", "--how", "nothing"], "expected one of zero, mean, resample"),
        (["--word", "bank", "--what", "words"], "expected heads or tokens"),
        (["--word", "bank", "--layers", "9"], "there is no layer 9: tiny has layers 0 to 2"),
        (["--word", "bank", "--layers", "a"], "expected numbers and ranges"),
        (["--word", "bank", "--out", "a.txt"], "the ending says the format"),
        (["--word", "bank", "--out", "a.json", "--json"], "not both"),
        (["--word", "bank", "--how", "mean", "--reference", "none.txt"], "none.txt: No such file"),
        (["--word", "bank", "--reference", __file__], "reads no reference"),
    ],
)
def test_bad_requests(run, model, arguments, message):
    import re

    code, out, err = run("ablate", ROSES, "-m", model, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("saccade: ")
    assert re.search(message, err)


def test_an_empty_text(run, model):
    code, _, err = run("ablate", " ", "-m", model, "--word", "bank")
    assert code == 2
    assert "the text is empty" in err


def test_the_result_is_one():
    assert issubclass(Ablation, saccade.analysis.result.Result)
