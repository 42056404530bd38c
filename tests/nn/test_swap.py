"""saccade.nn.replace: other people's models, our layers, the same numbers."""

import copy
import warnings

import pytest
import torch
from torch.testing import assert_close

from saccade import errors, nn
from saccade.functional import OBSERVER

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask(5)
OPTIONS = {"dropout": 0.0, "dim_feedforward": 16}


@pytest.fixture(autouse=True)
def _quiet():
    """PyTorch's own notes on which of its fast paths it takes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        yield


@pytest.fixture
def calls():
    """What reached saccade.attention: one entry a call."""

    class Observer:
        def wanted(self, lengths):
            calls.append(lengths)
            return []

        def receive(self, report, problem, inputs):
            del report, problem, inputs

    calls = []
    token = OBSERVER.set(Observer())
    yield calls
    OBSERVER.reset(token)


def encoder(**options):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, **(OPTIONS | options))
    return torch.nn.TransformerEncoder(layer, 3)


def transformer(**options):
    torch.manual_seed(0)
    return torch.nn.Transformer(8, 2, 2, 2, **(OPTIONS | options))


def run_encoder(model, mode, **kwargs):
    torch.manual_seed(1)
    src = torch.randn(2, 5, 8) if model.layers[0].self_attn.batch_first else torch.randn(5, 2, 8)
    return mode(lambda: model(src, **kwargs))


def with_grad(run):
    return run()


def without_grad(run):
    with torch.no_grad():
        return run()


MODES = {"grad": with_grad, "no grad": without_grad}
MASKS = {
    "no mask": {},
    "causal": {"mask": CAUSAL},
    "causal hint": {"mask": CAUSAL, "is_causal": True},
    "bool": {"mask": CAUSAL < 0},
    "padding": {"src_key_padding_mask": PADDING},
    "both": {"mask": CAUSAL < 0, "src_key_padding_mask": PADDING},
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{"batch_first": True}, {"norm_first": True}, {"bias": False}])
def test_an_encoder_gives_what_it_gave(options, training, mode, masks, calls):
    model = encoder(**options).train(training)
    expected = run_encoder(model, mode, **masks)
    assert not calls
    assert nn.replace(model) is model
    found = run_encoder(model, mode, **masks)
    assert len(calls) == 3
    if "src_key_padding_mask" in masks and options.get("batch_first"):
        found, expected = found[~PADDING], expected[~PADDING]  # nested tensors leave 0 elsewhere
    assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_transformer_gives_what_it_gave(batch_first, training, mode, calls):
    model = transformer(batch_first=batch_first).train(training)
    shapes = [(2, 6, 8), (2, 5, 8)] if batch_first else [(6, 2, 8), (5, 2, 8)]
    src, tgt = map(torch.randn, shapes)

    def run():
        return mode(lambda: model(src, tgt, tgt_mask=CAUSAL, tgt_key_padding_mask=PADDING.float()))

    expected = run()
    nn.replace(model)
    assert_close(run(), expected, **CLOSE)
    assert len(calls) == 2 + 2 * 2


def test_gradients_are_those_of_torch():
    model = transformer()
    src, tgt, grads = torch.randn(6, 2, 8), torch.randn(5, 2, 8), []
    for _ in "ab":
        model.zero_grad()
        model(src, tgt).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
        nn.replace(model)
    for name, expected in grads[0].items():
        largest = max(1.0, expected.abs().max().item())
        assert_close(grads[1][name], expected, atol=1e-5 * largest, rtol=0)


# ------------------------------------------------------------------ what is kept


def test_everything_is_shared_and_restored():
    model = encoder(dtype=torch.float64).eval()
    model.layers[1].train()
    before = dict(model.named_parameters())
    layers, kinds = list(model.layers), [type(m) for m in model.modules()]
    nn.replace(model)
    assert list(model.layers) == layers
    assert [type(layer.self_attn) for layer in layers] == [nn.MultiheadAttention] * 3
    assert [layer.self_attn.training for layer in layers] == [False, True, False]
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert nn.restore(model) is model
    assert [type(m) for m in model.modules()] == kinds
    restored = dict(model.named_parameters())
    assert all(restored[name] is before[name] for name in before)


@pytest.mark.parametrize("options", [{}, {"kdim": 3}, {"add_bias_kv": True, "bias": False}])
def test_a_single_layer_is_returned_and_comes_back_whole(options):
    layer = torch.nn.MultiheadAttention(8, 2, **options)
    x = torch.randn(5, 2, 8), torch.randn(4, 2, options.get("kdim", 8)), torch.randn(4, 2, 8)
    ours = nn.replace(layer)
    theirs = nn.restore(ours)
    assert type(ours) is nn.MultiheadAttention
    assert type(theirs) is torch.nn.MultiheadAttention
    assert theirs.__dict__.keys() == layer.__dict__.keys()
    assert_close(ours(*x), layer(*x), **CLOSE)
    assert_close(theirs(*x), layer(*x), atol=0, rtol=0)


def test_layers_built_as_ours_become_torchs():
    ours = nn.MultiheadAttention(8, 2, vdim=3)
    x = torch.randn(5, 2, 8), torch.randn(4, 2, 8), torch.randn(4, 2, 3)
    assert_close(nn.restore(ours)(*x), ours(*x), **CLOSE)


def test_hooks_and_their_handles_keep_working():
    model, seen = encoder(), []
    handle = model.layers[0].self_attn.register_forward_hook(lambda m, *_: seen.append(type(m)))
    nn.replace(model)
    run_encoder(model, without_grad)
    assert seen == [nn.MultiheadAttention]
    handle.remove()
    run_encoder(model, without_grad)
    assert len(seen) == 1


def test_a_layer_used_twice_stays_one():
    layer = torch.nn.MultiheadAttention(8, 2)
    model = torch.nn.ModuleDict({"a": layer, "b": torch.nn.ModuleList([layer])})
    nn.replace(model)
    assert model["a"] is model["b"][0]
    assert type(model["a"]) is nn.MultiheadAttention


def test_replace_twice_is_replace_once():
    model = encoder(batch_first=True).eval()
    assert model.use_nested_tensor
    nn.replace(nn.replace(model))
    assert not model.use_nested_tensor
    assert nn.restore(model).use_nested_tensor
    assert not nn.restore(encoder()).use_nested_tensor


def test_a_replaced_model_can_be_copied_moved_and_optimized():
    model = nn.replace(encoder())
    twin = copy.deepcopy(model).double()
    assert type(twin.layers[2].self_attn) is nn.MultiheadAttention
    assert model.layers[2].self_attn.in_proj_weight.dtype == torch.float32
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    src = torch.randn(5, 2, 8, dtype=torch.float64)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = twin(src).sub(1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    with torch.no_grad():
        assert_close(nn.restore(twin)(src), nn.replace(twin)(src))


# ------------------------------------------------------------------ what is refused


class Subclass(torch.nn.MultiheadAttention):
    """Someone's own layer, whose forward we do not know."""


def refused(model, message):
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(errors.UnsupportedModelError, match=message):
        nn.replace(model)
    assert [type(m) for m in model.modules()] == kinds


def test_subclasses_are_named_and_nothing_is_changed():
    model = transformer()
    model.decoder.layers[1].multihead_attn = Subclass(8, 2)
    model.encoder.layers[0].self_attn = torch.ao.nn.quantizable.MultiheadAttention(8, 2)
    refused(
        model,
        r"encoder\.layers\.0\.self_attn \(torch.*quantizable.*a subclass\), "
        r"decoder\.layers\.1\.multihead_attn \(.*Subclass",
    )
    refused(Subclass(8, 2), "the model itself")


def test_parametrized_and_patched_layers_are_refused():
    model = encoder()
    torch.nn.utils.parametrizations.weight_norm(model.layers[0].self_attn, "in_proj_weight")
    refused(model, r"layers\.0\.self_attn \(.*Parametrized")
    model = encoder()
    model.layers[2].self_attn.forward = lambda *_, **__: None
    refused(model, r"layers\.2\.self_attn \(its forward was overridden")


def test_a_model_without_such_layers_is_refused():
    refused(torch.nn.Linear(2, 2), "Linear holds no torch.nn.MultiheadAttention")


def test_nested_tensors_of_an_encoder_that_was_not_replaced_are_refused():
    model = encoder(batch_first=True).eval()
    nn.replace(model.layers[0])
    with pytest.raises(errors.ArgumentError, match="use_nested_tensor"):
        run_encoder(model, without_grad, src_key_padding_mask=PADDING)
