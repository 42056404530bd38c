"""saccade.sdpa(): PyTorch's attention functions, served and never half-observed."""

import threading
import warnings

import pytest
import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.functional import scaled_dot_product_attention as imported_by_name
from torch.testing import assert_close

from saccade import errors, sdpa
from saccade.functional import OBSERVER
from saccade.statistics import Entropy

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
torch_sdpa = functional.scaled_dot_product_attention


@pytest.fixture
def reports():
    """The report of each call that reached saccade.attention."""

    class Observer:
        def wanted(self, lengths):
            del lengths
            return [Entropy()]

        def receive(self, report, problem, inputs):
            del problem, inputs
            reports.append(report)

    reports = []
    token = OBSERVER.set(Observer())
    yield reports
    OBSERVER.reset(token)


def agree(query, key, value, **kwargs):
    """Output and gradients, served and not; one call is counted."""
    results = []
    serving = sdpa()
    for served in (False, True):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        if served:
            with serving:
                output = torch_sdpa(*leaves, **kwargs)
        else:
            output = torch_sdpa(*leaves, **kwargs)
        loss = (output * torch.arange(output.numel()).view(output.shape).sin()).sum()
        results.append([output, *torch.autograd.grad(loss, leaves)])
    assert serving.calls == 1
    for expected, found in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert_close(found, expected, **CLOSE)


def tensors(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes]


SHAPES = {
    "4-D": [(2, 3, 5, 8)] * 3,
    "one token": [(1, 1, 1, 1)] * 3,
    "more keys": [(2, 3, 1, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
    "more queries": [(2, 3, 9, 8), (2, 3, 4, 8), (2, 3, 4, 8)],
    "odd, Dv != D": [(2, 3, 5, 7), (2, 3, 6, 7), (2, 3, 6, 13)],
    "2-D": [(5, 8), (6, 8), (6, 8)],
    "3-D": [(4, 5, 8), (4, 6, 8), (4, 6, 8)],
    "5-D": [(2, 3, 2, 5, 8), (2, 3, 2, 6, 8), (2, 3, 2, 6, 8)],
    "6-D": [(2, 1, 3, 2, 5, 8)] * 3,
    "broadcast batch": [(2, 3, 5, 8), (1, 3, 6, 8), (1, 3, 6, 8)],
    "broadcast heads": [(2, 3, 5, 8), (2, 1, 6, 8), (2, 1, 6, 8)],
    "broadcast rank": [(2, 4, 3, 5, 8), (3, 6, 8), (4, 1, 6, 8)],
}


@pytest.mark.parametrize("kwargs", [{}, {"is_causal": True}, {"scale": 0.3}, {"dropout_p": 0.0}])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes_agree_with_torch(shapes, kwargs):
    agree(*tensors(*shapes), **kwargs)


MASK_SHAPES = [
    (5, 6),
    (1, 6),
    (5, 1),
    (3, 5, 6),
    (3, 1, 6),
    (2, 1, 5, 6),
    (2, 3, 5, 6),
    (2, 1, 1, 6),
]


@pytest.mark.parametrize("kind", ["bool", "hides", "bias"])
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks_agree_with_torch(shape, kind):
    query, key, value = tensors((2, 3, 5, 8), (2, 3, 6, 8), (2, 3, 6, 8))
    seen = torch.rand(shape) < 0.6
    seen[..., 0] = True
    mask = {
        "bool": seen,
        "hides": torch.zeros(shape).masked_fill(~seen, -torch.inf),
        "bias": torch.randn(shape),
    }[kind]
    agree(query, key, value, attn_mask=mask)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5, 6), (4, 1, 5, 6), (2, 1, 3, 1, 6), (5, 6)], ids=str)
def test_masks_of_many_batch_dimensions_agree_with_torch(shape):
    query, key, value = tensors((2, 4, 3, 5, 8), (2, 4, 3, 6, 8), (2, 4, 3, 6, 8))
    mask = torch.rand(shape) < 0.6
    mask[..., 0] = True
    agree(query, key, value, attn_mask=mask)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_grouped_queries_agree_with_torch(heads, lead):
    query, key, value = tensors((*lead, 4, 5, 8), (*lead, heads, 6, 8), (*lead, heads, 6, 8))
    agree(query, key, value, enable_gqa=True)


@pytest.mark.filterwarnings("ignore:Lower right causal bias will produce NaNs")
@pytest.mark.parametrize("queries", [3, 6, 9])
@pytest.mark.parametrize("variant", [causal_upper_left, causal_lower_right])
def test_causal_biases_agree_with_torch(variant, queries):
    query, key, value = tensors((1, 2, queries, 8), (1, 2, 6, 8), (1, 2, 6, 8))
    mask = variant(queries, 6)
    with sdpa():
        found = torch_sdpa(query, key, value, attn_mask=mask)
    seen = torch.ones(queries, 6, dtype=torch.bool)
    seen = seen.tril(6 - queries if variant is causal_lower_right else 0)
    expected = torch_sdpa(query, key, value, attn_mask=seen)
    visible = seen.any(-1)
    assert_close(found[:, :, visible], expected[:, :, visible], **CLOSE)
    assert (found[:, :, ~visible] == 0).all()


def test_causal_is_aligned_at_the_upper_left():
    """Query 0 sees key 0 only, whatever the lengths: its output is value 0."""
    query, key, value = tensors((1, 1, 2, 4), (1, 1, 5, 4), (1, 1, 5, 4))
    with sdpa():
        output = torch_sdpa(query, key, value, is_causal=True)
    assert_close(output[0, 0, 0], value[0, 0, 0])


@pytest.mark.parametrize("mask", [torch.zeros(2, 3).bool(), torch.full((2, 3), -torch.inf)])
def test_a_query_that_sees_no_key_gets_zero(mask):
    query, key, value = tensors((1, 1, 2, 4), (1, 1, 3, 4), (1, 1, 3, 4))
    with sdpa():
        assert (torch_sdpa(query, key, value, attn_mask=mask) == 0).all()


def test_the_mask_gets_its_gradient():
    query, key, value = tensors((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8))
    grads = []
    for context in (warnings.catch_warnings(), sdpa()):
        mask = torch.zeros(4, 4, requires_grad=True)
        with context:
            torch_sdpa(query, key, value, attn_mask=mask).square().sum().backward()
        grads.append(mask.grad)
    assert grads[1].abs().max() > 0
    assert_close(grads[1], grads[0], **CLOSE)


def test_the_meta_device():
    x = torch.empty(2, 3, 5, 8, device="meta")
    with sdpa():
        output = functional.scaled_dot_product_attention(x, x, x)
    assert (output.shape, output.device.type) == (x.shape, "meta")


def test_autocast_agrees_with_torch():
    query, key, value = tensors(*[(1, 2, 4, 8)] * 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch_sdpa(query, key.bfloat16(), value)
        with sdpa():
            found = torch_sdpa(query, key.bfloat16(), value)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert_close(found, expected, atol=3e-2, rtol=3e-2)


# ------------------------------------------------------------------ every way to call it


def on_device(*x):
    with torch.device("cpu"):
        return torch_sdpa(*x)


WAYS = {
    "functional": functional.scaled_dot_product_attention,
    "imported by name": imported_by_name,
    "C function": torch._C._nn.scaled_dot_product_attention,
    "operator": torch.ops.aten.scaled_dot_product_attention,
    "overload": torch.ops.aten.scaled_dot_product_attention.default,
    "under another mode": on_device,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_call_it_is_served(way, reports):
    x = tensors(*[(1, 2, 4, 8)] * 3)
    expected = way(*x)
    assert not reports
    with sdpa() as serving:
        found = way(*x)
    assert len(reports) == serving.calls == 1
    assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"kdim": 5, "vdim": 3}, {"add_bias_kv": True, "bias": False}],
)
def test_torchs_layer_is_served_with_and_without_weights(options, training, need_weights, reports):
    layer = torch.nn.MultiheadAttention(8, 2, **options).train(training)
    x = tensors((4, 4, 8), (4, 4, layer.kdim), (4, 4, layer.vdim))
    x = [x[0]] * 3 if layer._qkv_same_embed_dim else x
    with torch.set_grad_enabled(training):
        expected = layer(*x, need_weights=need_weights)
        with sdpa() as serving:
            found = layer(*x, need_weights=need_weights)
    assert len(reports) == serving.calls == 1
    assert_close(found, expected, **CLOSE)


def stack(kind, **options):
    torch.manual_seed(0)
    if kind == "transformer":
        model = torch.nn.Transformer(8, 2, 2, 2, 16, dropout=0.0, batch_first=True, **options)
        return lambda x, **masks: model(x, x, **masks), model, 6
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **options)
    if kind == "layer":
        return layer, layer, 1
    encoder = torch.nn.TransformerEncoder(layer, 3)
    return encoder, encoder, 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["layer", "encoder", "transformer"])
def test_torchs_transformers_are_served_fused_path_included(kind, training, padded, reports):
    run, model, sites = stack(kind)
    model.train(training)
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    masks = {"src_key_padding_mask": padding} if padded else {}
    if padded and kind == "transformer":
        masks["memory_key_padding_mask"] = padding  # what nested tensors leave there is not used
    with torch.set_grad_enabled(training):
        expected = run(x, **masks)
        with sdpa() as serving:
            found = run(x, **masks)
    assert len(reports) == serving.calls == sites
    if padded and kind == "encoder":
        found, expected = found[~padding], expected[~padding]  # nested tensors leave 0 elsewhere
    assert_close(found, expected, **CLOSE)


def test_compiled_code_is_served_and_observed(reports):
    compiled = torch.compile(lambda x: torch_sdpa(x, x, x) + 1, backend="eager")
    x = torch.randn(1, 2, 4, 8)
    expected = compiled(x)
    assert not reports
    for _ in range(2):
        with sdpa() as serving:
            assert_close(compiled(x), expected, **CLOSE)
            assert serving.calls == 1
    assert len(reports) == 2
    compiled(x)
    assert len(reports) == 2


# ------------------------------------------------------------------ nothing is left


def served():
    """Whether a call is served at this moment."""
    x = torch.ones(1, 1, 1, 1)
    seen = []

    class Observer:
        def wanted(self, lengths):
            seen.append(lengths)
            return []

        def receive(self, report, problem, inputs):
            del report, problem, inputs

    token = OBSERVER.set(Observer())
    torch_sdpa(x, x, x)
    OBSERVER.reset(token)
    return bool(seen)


def test_nothing_is_left_afterwards_nor_after_an_error():
    function, fast = (
        functional.scaled_dot_product_attention,
        torch.backends.mha.get_fastpath_enabled(),
    )
    assert not served()
    with sdpa():
        assert served()
        assert torch.backends.mha.get_fastpath_enabled() == fast
    assert not served()
    with pytest.raises(ZeroDivisionError), sdpa():
        raise ZeroDivisionError
    with pytest.raises(errors.ShapeError), sdpa():
        torch_sdpa(torch.ones(3), torch.ones(3), torch.ones(3))
    assert not served()
    assert functional.scaled_dot_product_attention is function


def test_contexts_nest_and_the_innermost_serves():
    x = torch.randn(1, 2, 4, 8)
    outer, inner = sdpa(), sdpa()
    with outer:
        torch_sdpa(x, x, x)
        with inner:
            torch_sdpa(x, x, x)
            with inner:
                torch_sdpa(x, x, x)
        torch_sdpa(x, x, x)
        assert served()
    assert not served()
    assert (outer.calls, inner.calls) == (3, 2)


def test_other_threads_are_not_served():
    answers = []
    with sdpa():
        thread = threading.Thread(target=lambda: answers.append(served()))
        thread.start()
        thread.join()
        assert served()
    assert answers == [False]


# ------------------------------------------------------------------ what is refused


def refused(error, message, *args, function=torch_sdpa, **kwargs):
    with pytest.raises(error, match=message), sdpa() as serving:
        function(*args, **kwargs)
    assert serving.calls == 0


def test_dropout_is_refused():
    x = torch.randn(1, 2, 4, 8)
    refused(errors.ArgumentError, r"dropout_p = 0\.1 on attention", x, x, x, dropout_p=0.1)
    layer, y = torch.nn.MultiheadAttention(8, 2, dropout=0.1), torch.randn(4, 1, 8)
    refused(errors.ArgumentError, r"dropout_p = 0\.1 on attention", y, y, y, function=layer)
    with sdpa():
        assert layer.eval()(y, y, y)[0].shape == y.shape


def test_other_attention_functions_are_refused():
    x = torch.randn(1, 2, 4, 8)
    message = "was called inside saccade.sdpa"
    for function in (
        torch._scaled_dot_product_attention_math,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    ):
        refused(errors.UnsupportedModelError, message, x, x, x, function=function)
    layer, y = torch.nn.MultiheadAttention(8, 2), torch.randn(1, 4, 8)
    weights = layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias
    native = torch._native_multi_head_attention
    refused(errors.UnsupportedModelError, message, y, y, y, 8, 2, *weights, function=native)


def test_static_keys_are_refused():
    layer, x = torch.nn.MultiheadAttention(8, 2), torch.randn(4, 1, 8)
    args = (
        x,
        x,
        x,
        8,
        2,
        layer.in_proj_weight,
        None,
        None,
        None,
        False,
        0.0,
        layer.out_proj.weight,
        None,
    )
    function = functional.multi_head_attention_forward
    refused(errors.ArgumentError, "static_k", *args, static_k=x, function=function)
    refused(errors.ShapeError, "embed_dim = 6", *args[:3], 6, *args[4:], function=function)
    refused(errors.ArgumentError, "weights are missing", *args[:5], None, *args[6:], function=function)


X, Y = (2, 3, 5, 8), (2, 3, 6, 8)
BAD = {
    "width": ([X, (2, 3, 6, 7), (2, 3, 6, 7)], {}, errors.ShapeError, "last dimension must match"),
    "batch": ([X, (3, 3, 6, 8), (3, 3, 6, 8)], {}, errors.ShapeError, "must match or be 1"),
    "heads": ([X, (2, 2, 6, 8), (2, 2, 6, 8)], {}, errors.ShapeError, "enable_gqa=True"),
    "grouped heads": (
        [X, (2, 2, 6, 8), (2, 2, 6, 8)],
        {"enable_gqa": True},
        errors.ShapeError,
        "3 must be a multiple of 2",
    ),
    "lengths": ([X, Y, X], {}, errors.ShapeError, "batch, heads and length must match"),
    "1-D": ([(8,)] * 3, {}, errors.ShapeError, r"expected \(\.\.\., N, D\)"),
    "mask length": (
        [X, Y, Y],
        {"attn_mask": torch.zeros(5, 5)},
        errors.MaskError,
        r"\(2, 3, 5, 6\)",
    ),
    "mask rank": (
        [X, Y, Y],
        {"attn_mask": torch.zeros(1, 1, 1, 5, 6)},
        errors.MaskError,
        "expected one",
    ),
    "mask dtype": (
        [X, Y, Y],
        {"attn_mask": torch.zeros(5, 6).int()},
        errors.DtypeError,
        "torch.int32",
    ),
    "mask and causal": (
        [X, X, X],
        {"attn_mask": torch.zeros(5, 5), "is_causal": True},
        errors.MaskError,
        "together with is_causal",
    ),
}


@pytest.mark.parametrize(("shapes", "kwargs", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error(shapes, kwargs, error, message):
    refused(error, message, *tensors(*shapes), **kwargs)


def test_tensors_of_another_kind_are_refused():
    x = torch.randn(1, 2, 4, 8)
    nested = torch.nested.nested_tensor([torch.randn(3, 8)], layout=torch.jagged)
    refused(errors.ArgumentError, "query is a nested tensor", nested, nested, nested)
    refused(errors.DtypeError, "must share one dtype", x, x.double(), x)
