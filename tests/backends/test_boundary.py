"""The border between Python and the kernels, at random: any sizes, strides, offsets, dtypes and masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saccade
from saccade import masks, statistics
from saccade.backends import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the kernels are not built")

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
ORDERS = ((0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 0, 2, 3), (3, 1, 2, 0), (0, 1, 3, 2))


@st.composite
def laid_out(draw, shape, dtype):
    """A tensor of this shape: dimensions in some order in memory, gaps between, an odd offset, dimensions repeated."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = draw(st.sampled_from(ORDERS))
    repeated = draw(st.sets(st.sampled_from([0, 1, 2]), max_size=1))
    sizes = [1 if dim in repeated else shape[dim] for dim in order]
    gaps = [draw(st.sampled_from([0, 0, 1, 3])) for _ in order]
    steps = [draw(st.sampled_from([1, 1, 1, 2])) for _ in order]
    offset = draw(st.sampled_from([0, 1, 5]))
    room = [size * step + gap for size, step, gap in zip(sizes, steps, gaps, strict=True)]
    memory = torch.full((offset + torch.Size(room).numel(),), torch.nan, dtype=dtype)  # a read astray shows
    x = memory[offset:].view(room)
    x = x[tuple(slice(0, size * step, step) for size, step in zip(sizes, steps, strict=True))]
    x.copy_(torch.randn(sizes, generator=generator))
    return x.permute([order.index(dim) for dim in range(4)]).expand(shape)


@st.composite
def calls(draw):
    """Queries, keys, values, options of `attention`."""
    batch, key_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    queries, keys = draw(st.integers(0, 70)), draw(st.integers(0, 140))
    width, value_width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    heads = key_heads * group
    query = draw(laid_out((batch, heads, queries, width), dtype))
    key = draw(laid_out((batch, key_heads, keys, width), dtype))
    value = draw(laid_out((batch, key_heads, keys, value_width), dtype))
    options = {}
    mask = draw(st.sampled_from(["none", "causal", "window", "padding", "dense"]))
    offset = draw(st.integers(-3, 80))
    if mask == "causal":
        options["mask"] = masks.causal(offset)
    if mask == "window":
        options["mask"] = masks.window(draw(st.integers(1, 50)), offset=offset)
    if mask == "padding":
        options["mask"] = masks.padding(torch.tensor([draw(st.integers(0, keys)) for _ in range(batch)]))
    if mask == "dense":
        sizes = [draw(st.sampled_from([1, size])) for size in (batch, heads)]
        options["mask"] = masks.dense(torch.rand(*sizes, keys, queries).mT > 0.3)
    if draw(st.booleans()):
        bias = draw(laid_out((draw(st.sampled_from([1, batch])), heads, queries, keys), dtype))
        options["bias"] = bias
    if draw(st.booleans()):
        options["sinks"] = torch.randn(2 * heads)[::2]
    if draw(st.booleans()):
        options["softcap"] = 3.0
    return query, key, value, options


def check(query, key, value, options):
    asked = [statistics.LogSumExp(), statistics.Received(), statistics.Map(cells=(5, 7))] if key.shape[2] else []
    wide = {name: x.double() if name in ("bias", "sinks") else x for name, x in options.items()}
    exact = saccade.attention(
        query.double(), key.double(), value.double(), **wide, statistics=asked, backend="reference"
    )
    found = saccade.attention(query, key, value, **options, statistics=asked, backend="cpu")
    plain = saccade.attention(query, key, value, **options, backend="cpu")
    tolerance = TOLERANCE[query.dtype]
    output, report = exact if asked else (exact, None)
    torch.testing.assert_close(plain.double(), output, atol=tolerance, rtol=tolerance)
    if report is None:
        return
    torch.testing.assert_close(found[0].double(), output, atol=tolerance, rtol=tolerance)
    for name in report:
        torch.testing.assert_close(found[1][name].double(), report[name], atol=1e-4, rtol=1e-4)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(calls())
def test_any_layout(call):
    check(*call)


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.data())
def test_any_layout_decoding(data):
    """Few rows and many keys: the kernel that splits keys."""
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    rows, group, width = (data.draw(st.integers(1, high)) for high in (4, 4, 80))
    keys = data.draw(st.sampled_from([1, 31, 33, 600, 1500]))
    query = data.draw(laid_out((2, 2 * group, rows, width), dtype))
    key, value = (data.draw(laid_out((2, 2, keys, width), dtype)) for _ in range(2))
    check(query, key, value, {"mask": masks.causal(keys - rows)} if keys >= rows else {})


@settings(max_examples=40, deadline=None, print_blob=True)
@given(calls())
def test_repeated_calls_see_new_numbers(call):
    """The second call of a kind takes a shorter way: it must look at its own tensors, not at the first one's."""
    query, key, value, _ = call
    first = saccade.attention(query, key, value)
    query, key, value = (x.clone(memory_format=torch.preserve_format).neg_() for x in (query, key, value))
    again = saccade.attention(query, key, value)
    torch.testing.assert_close(again, -first)
