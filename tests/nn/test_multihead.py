"""saccade.nn.MultiheadAttention is torch.nn.MultiheadAttention, and can say where it looked."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from saccade import errors, nn
from saccade.functional import OBSERVER
from saccade.statistics import Entropy, Received, TopKeys

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def pair(*args, **kwargs):
    """PyTorch's layer and ours with the same weights; biases are not left at zero."""
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(*args, **kwargs)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    ours = nn.MultiheadAttention(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(layer, queries=5, keys=5, batch=2):
    shapes = [(queries, layer.embed_dim), (keys, layer.kdim), (keys, layer.vdim)]
    if batch is None:
        return [torch.randn(n, width) for n, width in shapes]
    if layer.batch_first:
        return [torch.randn(batch, n, width) for n, width in shapes]
    return [torch.randn(n, batch, width) for n, width in shapes]


def agree(theirs, ours, tensors, **kwargs):
    """Outputs, weights, and gradients of inputs and parameters."""
    results = []
    for layer in (theirs, ours):
        leaves = [x.clone().requires_grad_() for x in tensors]
        output, weights = layer(*leaves, **kwargs)
        loss = (output * torch.arange(output.numel()).view(output.shape).sin()).sum()
        if weights is not None:
            loss = loss + (weights * torch.arange(weights.numel()).view(weights.shape).cos()).sum()
        wanted = [*leaves, *layer.parameters()]
        results.append([output, weights, *torch.autograd.grad(loss, wanted)])
    for expected, found in zip(*results, strict=True):
        if expected is None:
            assert found is None
        else:
            assert found.shape == expected.shape
            # A gradient sums over many entries: its rounding errors go with the largest of them.
            largest = max(1.0, expected.detach().abs().max().item())
            assert_close(found, expected, atol=1e-5 * largest, rtol=0)


LAYERS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
    "own widths": {"kdim": 7, "vdim": 5},
    "own widths, no bias": {"kdim": 7, "vdim": 12, "bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "everything": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 3, "batch_first": True},
}
LENGTHS = [(5, 5), (1, 1), (1, 7), (6, 1), (3, 8), (9, 4)]
WEIGHTS = {
    "none": {"need_weights": False},
    "averaged": {},
    "per head": {"average_attn_weights": False},
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_outputs_weights_and_gradients_agree_with_torch(options, queries, keys, weights):
    theirs, ours = pair(12, 3, **options)
    agree(theirs, ours, inputs(theirs, queries, keys), **weights)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_unbatched_input_agrees_with_torch(options, weights):
    theirs, ours = pair(12, 3, **options)
    agree(theirs, ours, inputs(theirs, 4, 6, batch=None), **weights)


@pytest.mark.parametrize(("width", "heads"), [(1, 1), (7, 7), (15, 5), (33, 3), (130, 2)])
def test_odd_widths_agree_with_torch(width, heads):
    theirs, ours = pair(width, heads)
    agree(theirs, ours, inputs(theirs))


def masks(kind, batch, heads, queries, keys):
    """attn_mask and key_padding_mask; every query sees the first key."""
    torch.manual_seed(1)
    shape = (batch * heads, queries, keys) if "per head" in kind else (queries, keys)
    hidden = torch.rand(shape) < 0.4
    padded = torch.rand(batch, keys) < 0.4
    hidden[..., 0] = padded[:, 0] = False
    if "bias" in kind:
        return torch.randn(shape), torch.randn(batch, keys)
    if "float" in kind:
        return (
            torch.zeros(x.shape).masked_fill(x, -torch.inf) + 0.5 * x.shape[0] * ("mixed" in kind)
            for x in (hidden, padded)
        )
    return hidden, padded


KINDS = ["bool", "float", "mixed float", "bias", "bool per head", "float per head", "bias per head"]


@pytest.mark.parametrize("used", ["attn_mask", "key_padding_mask", "both"])
@pytest.mark.parametrize("options", [{}, LAYERS["everything"]], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_agree_with_torch(kind, options, used):
    theirs, ours = pair(12, 3, **options)
    given = dict(zip(("attn_mask", "key_padding_mask"), masks(kind, 2, 3, 4, 6), strict=True))
    if used != "both":
        given = {used: given[used]}
    for weights in WEIGHTS.values():
        agree(theirs, ours, inputs(theirs, 4, 6), **given, **weights)


def test_masks_of_unbatched_input_agree_with_torch():
    theirs, ours = pair(12, 3)
    attn_mask, padding = masks("bool per head", 1, 3, 4, 6)
    tensors = inputs(theirs, 4, 6, batch=None)
    agree(theirs, ours, tensors, attn_mask=attn_mask, key_padding_mask=padding[0])


def test_scattered_padding_of_many_runs_agrees_with_torch():
    theirs, ours = pair(12, 3)
    padding = torch.arange(100).expand(2, -1) % 2 == 1  # 50 runs: more than intervals are kept for
    agree(theirs, ours, inputs(theirs, 3, 100), key_padding_mask=padding)


def test_gradient_reaches_an_additive_mask():
    theirs, ours = pair(12, 3)
    tensors, grads = inputs(theirs), []
    for layer in (theirs, ours):
        mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        mask.requires_grad_()
        layer(*tensors, attn_mask=mask, need_weights=False)[0].square().sum().backward()
        grads.append(mask.grad)
    assert grads[1].abs().max() > 0
    assert_close(grads[1], grads[0], **CLOSE)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_causal_hint_agrees_with_torch_and_needs_no_mask(weights):
    theirs, ours = pair(12, 3)
    x, mask = inputs(theirs), torch.nn.Transformer.generate_square_subsequent_mask(5)
    agree(theirs, ours, x, attn_mask=mask, is_causal=True, **weights)
    with_mask, without = ours(*x, attn_mask=mask), ours(*x, is_causal=True)
    assert_close(with_mask, without, **CLOSE)


def test_causal_alone_leaves_the_layers_own_keys_visible():
    _, ours = pair(12, 3, add_bias_kv=True, add_zero_attn=True)
    _, weights = ours(*inputs(ours), is_causal=True)
    assert (weights[..., -2:] > 0).all()
    assert (weights[..., :5].triu(1) == 0).all()
    assert (weights[..., :5].tril() > 0).sum() == 2 * 15


def test_a_wrong_causal_hint_does_not_change_the_mask():
    _, ours = pair(12, 3)
    x, mask = inputs(ours), torch.zeros(5, 5)
    hinted, plain = (ours(*x, attn_mask=mask, is_causal=hint, need_weights=False)[0] for hint in (True, False))
    assert_close(hinted, plain)


def test_a_query_that_sees_no_key_gets_the_output_bias():
    _, ours = pair(12, 3)
    x = inputs(ours)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[2] = True
    output, weights = ours(*x, attn_mask=mask)
    assert (weights[:, 2] == 0).all()
    assert_close(output[2], ours.out_proj.bias.expand(2, -1))


def test_one_key_takes_everything():
    """With one key the pattern is 1 and the output is its projected value."""
    _, ours = pair(12, 3)
    query, key, value = inputs(ours, 4, 1)
    output, weights = ours(query, key, value)
    assert (weights == 1).all()
    projected = value @ ours.in_proj_weight[24:].T + ours.in_proj_bias[24:]
    assert_close(output, ours.out_proj(projected).expand(4, -1, -1), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    theirs, ours = pair(12, 3, dtype=dtype)
    x = [x.to(dtype) for x in inputs(theirs)]
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2
    for expected, found in zip(theirs(*x), ours(*x), strict=True):
        assert found.dtype == dtype
        assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_another_dtype_on_the_meta_device_is_one_clear_error():
    layer = nn.MultiheadAttention(8, 2, device="meta")
    x = torch.empty(3, 1, 8, device="meta", dtype=torch.float64)
    with pytest.raises(errors.DtypeError, match="convert one of them"):
        layer(x, x, x)


def test_autocast_agrees_with_torch():
    theirs, ours = pair(12, 3, add_bias_kv=True)
    x = inputs(theirs)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = theirs(*x, need_weights=False)[0], ours(*x, need_weights=False)[0]
    assert found.dtype == expected.dtype
    assert_close(found, expected, atol=3e-2, rtol=3e-2)


# ------------------------------------------------------------------ both ways


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_state_dict_goes_both_ways(options):
    theirs, ours = pair(12, 3, **options)
    state = {name: 1.5 * x for name, x in ours.state_dict().items()}
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state)
    x = inputs(theirs)
    assert not torch.allclose(theirs(*x)[0], ours(*x)[0])
    ours.load_state_dict(theirs.state_dict())
    agree(theirs, ours, x)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_a_seed_gives_the_weights_it_gives_torch(options):
    states = []
    for kind in (torch.nn.MultiheadAttention, nn.MultiheadAttention):
        torch.manual_seed(5)
        states.append(kind(12, 3, **options).state_dict())
    assert_close(states[1], states[0], atol=0, rtol=0)


def test_copies_are_independent():
    _, ours = pair(12, 3)
    x, twin = inputs(ours), copy.deepcopy(ours)
    assert_close(twin(*x)[0], ours(*x)[0])
    assert twin.in_proj_weight is not ours.in_proj_weight


# ------------------------------------------------------------------ statistics


@pytest.mark.parametrize("batch", [None, 2])
def test_statistics_come_third_and_are_those_of_the_weights(batch):
    _, ours = pair(12, 3, batch_first=True)
    x = inputs(ours, 4, 6, batch=batch)
    output, weights, report = ours(*x, average_attn_weights=False, statistics=[Entropy(), Received(), TopKeys(1)])
    assert_close(output, ours(*x)[0])
    weights = weights if batch else weights[None]
    assert_close(report.entropy, torch.special.entr(weights).sum(-1), **CLOSE)
    assert_close(report.received, weights.sum(-2), **CLOSE)
    assert torch.equal(report.top_keys.indices[..., 0], weights.argmax(-1))


def test_statistics_without_weights():
    _, ours = pair(12, 3)
    output, weights, report = ours(*inputs(ours), need_weights=False, statistics=Entropy())
    assert output.shape == (5, 2, 12)
    assert weights is None
    assert report.entropy.shape == (2, 3, 5)


def test_output_is_the_weights_times_the_values():
    _, ours = pair(12, 3, batch_first=True)
    query, key, value = inputs(ours, 4, 6)
    output, weights = ours(query, key, value, average_attn_weights=False)
    values = (value @ ours.in_proj_weight[24:].T + ours.in_proj_bias[24:]).unflatten(-1, (3, 4))
    joined = torch.einsum("bhij,bjhd->bihd", weights, values).flatten(2)
    assert_close(output, ours.out_proj(joined), **CLOSE)


# ------------------------------------------------------------------ no way around


class Counter:
    """An observer that counts the calls which reach saccade.attention."""

    def __init__(self):
        self.calls = 0

    def wanted(self, lengths):
        del lengths
        return []

    def receive(self, report, problem, inputs):
        del report, problem, inputs
        self.calls += 1


@pytest.fixture
def counter():
    counter = Counter()
    token = OBSERVER.set(counter)
    yield counter
    OBSERVER.reset(token)


def encoder_layer(**kwargs):
    return torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **kwargs).eval()


def fused_calls(run):
    """How often PyTorch's fused layer was called."""
    with torch.profiler.profile() as profile:
        run()
    return sum("_transformer_encoder_layer_fwd" in event.name for event in profile.events())


def test_torchs_fused_path_does_not_bypass_the_layer(counter):
    layer, x = encoder_layer(), torch.randn(2, 5, 8)
    with torch.no_grad():
        assert fused_calls(lambda: layer(x)) == 1, "this PyTorch has no fused path: nothing is tested"
        expected = layer(x)
        ours = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        ours.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = ours
        assert fused_calls(lambda: layer(x)) == 0
        assert_close(layer(x), expected, **CLOSE)
    assert counter.calls == 2


def test_an_encoder_built_around_the_layer_makes_no_nested_tensors(counter):
    layer = encoder_layer()
    layer.self_attn = nn.MultiheadAttention(8, 2, batch_first=True)
    with pytest.warns(UserWarning, match="_qkv_same_embed_dim"):
        encoder = torch.nn.TransformerEncoder(layer, 3).eval()
    padding = torch.tensor([[False, False, True]])
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 8), src_key_padding_mask=padding).shape == (1, 3, 8)
    assert counter.calls == 3


# ------------------------------------------------------------------ bad input


def test_dropout_in_training_is_refused_with_the_remedy():
    layer = nn.MultiheadAttention(12, 3, dropout=0.1)
    x = inputs(layer)
    with pytest.raises(errors.ArgumentError, match=r"(?s)dropout = 0\.1 .*eval\(\)"):
        layer(*x)
    assert layer.eval()(*x)[0].shape == (5, 2, 12)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((12, 5), "embed_dim = 12 is no multiple of num_heads = 5"),
        ((0, 1), "embed_dim = 0: expected at least 1"),
        ((12, 0), "num_heads = 0"),
        ((12, -3), "num_heads = -3"),
    ],
)
def test_sizes_that_do_not_fit(args, message):
    with pytest.raises(errors.ShapeError, match=message):
        nn.MultiheadAttention(*args)


NESTED = "a nested tensor; .* use_nested_tensor"
BAD = {
    "query width": ([(5, 2, 11), (5, 2, 7), (5, 2, 4)], errors.ShapeError, "query .* width of 12"),
    "key width": ([(5, 2, 12), (5, 2, 8), (5, 2, 4)], errors.ShapeError, "key .* width of 7"),
    "value width": ([(5, 2, 12), (5, 2, 7), (5, 2, 5)], errors.ShapeError, "value .* width of 4"),
    "value length": ([(5, 2, 12), (5, 2, 7), (4, 2, 4)], errors.ShapeError, "each key carries"),
    "batch": ([(5, 2, 12), (5, 3, 7), (5, 3, 4)], errors.ShapeError, "batch of 3; query has 2"),
    "4-D": ([(1, 5, 2, 12), (5, 2, 7), (5, 2, 4)], errors.ShapeError, "expected 3 dimensions"),
    "mixed": ([(5, 12), (5, 2, 7), (5, 2, 4)], errors.ShapeError, "all batched"),
}


@pytest.mark.parametrize(("shapes", "error", "message"), BAD.values(), ids=BAD)
def test_shapes_that_do_not_fit(shapes, error, message):
    layer = nn.MultiheadAttention(12, 3, kdim=7, vdim=4)
    with pytest.raises(error, match=message):
        layer(*map(torch.randn, shapes))


def test_inputs_of_another_kind():
    layer = nn.MultiheadAttention(12, 3)
    x = torch.randn(5, 2, 12)
    with pytest.raises(errors.DtypeError, match=r"key is torch.float64, the layer torch.float32"):
        layer(x, x.double(), x)
    with pytest.raises(errors.ArgumentError, match="value is list"):
        layer(x, x, [1.0])
    with pytest.raises(errors.DeviceError, match="query is on meta, the layer on cpu"):
        layer(x.to("meta"), x, x)
    nested = torch.nested.nested_tensor([torch.randn(3, 12)], layout=torch.jagged)
    with pytest.raises(errors.ArgumentError, match=NESTED):
        layer(nested, nested, nested)


@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_masks_that_do_not_fit(name):
    layer = nn.MultiheadAttention(12, 3)
    x = inputs(layer, 4, 6)
    right = (4, 6) if name == "attn_mask" else (2, 6)
    for shape in [(6, 4), (3, 6), (2, 5), (6,), (2, 4, 6), (1, 2, 3, 4)]:
        with pytest.raises(errors.MaskError, match=f"{name} has shape") as caught:
            layer(*x, **{name: torch.zeros(shape, dtype=torch.bool)})
        assert str(right) in str(caught.value)
    with pytest.raises(errors.DtypeError, match=f"{name} is torch.int64; expected torch.bool"):
        layer(*x, **{name: torch.zeros(right, dtype=torch.int64)})


def test_causal_alone_needs_as_many_keys_as_queries():
    layer = nn.MultiheadAttention(12, 3)
    with pytest.raises(errors.MaskError, match="Nq = 4 queries and Nk = 6 keys: give the mask"):
        layer(*inputs(layer, 4, 6), is_causal=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_comes_out_as_nan(which, bad):
    layer = nn.MultiheadAttention(12, 3)
    x = inputs(layer)
    x[which][0, 0, 0] = bad
    output, _ = layer(*x)
    assert output[0, 0].isnan().all()
    assert output[:, 1].isfinite().all()
