"""The gradients of attention on a GPU, as Triton kernels: `gpu_kernels.py` has what they share, and its conventions.

The weights of a tile are computed again from scores and lse. Keys and values get theirs from a walk by columns, queries
from one by rows: five products of matrices would do in one walk, but then programs would add to each other's sums.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from saccade.backends.gpu_kernels import (
    INFINITY,
    _base_of,
    _block,
    _dot,
    _finite,
    _has_nan,
    _is_finite,
    _of_rows,
    _ones_like,
    _program,
    _score,
    _seen,
    _span,
    _tile,
    _tiles_of_run,
    _weights,
    _write,
    _zero,
    _zeros,
)


class Rows(NamedTuple):
    """What gradients are computed with, numbers for each row, ``(B, H, Nq)``: w = exp(s - base) * share.

    Attributes:
        base: in the scores' unit.
        share: None for 1.
        delta: sum(dO * O) (FlashAttention-2, arXiv 2307.08691, algorithm 2), less the gradient of the lse.
    """

    base: Any
    share: Any
    delta: Any


@triton.jit
def _numbers(rows, place, there, CHECKED: tl.constexpr):
    """Base, share and delta of some rows; the weights of those that are not there are 0."""
    base = _of_rows(rows.base, place, there, CHECKED, INFINITY)
    delta = _of_rows(rows.delta, place, there, CHECKED)
    share = _ones_like(delta) if rows.share is None else _of_rows(rows.share, place, there, CHECKED)
    return base, share, delta


@triton.jit
def _down(numbers):
    """Numbers of rows that lie one below the other."""
    return numbers[0][:, None], numbers[1][:, None], numbers[2][:, None]


@triton.jit
def _across(numbers):
    """Numbers of rows that lie side by side."""
    return numbers[0][None, :], numbers[1][None, :], numbers[2][None, :]


@triton.jit
def backward_start_kernel(p, output, grad, lse, grad_lse, rows, C: tl.constexpr):
    """Write `Rows`: delta and, where weights have no share, the base.

    Args:
        output, grad: `Operand`s, the output and its gradient.
        lse, grad_lse: ``(B, H, Nq)``, contiguous.
    """
    block, line = _program(tl.cdiv(p.queries, C.ROWS))
    batch, head = line // p.heads, line % p.heads
    i = block * C.ROWS + tl.arange(0, C.ROWS)
    there = i < p.queries
    o = _tile(output, batch, head, i, C.DV, C.DVP, p.queries, True).to(tl.float32)
    do = _tile(grad, batch, head, i, C.DV, C.DVP, p.queries, True).to(tl.float32)
    place = line.to(tl.int64) * p.queries + i
    delta = tl.sum(o * do, 1) - _of_rows(grad_lse, place, there, True)
    tl.store(rows.delta + place, delta, mask=there)
    if rows.share is None:
        tl.store(rows.base + place, _base_of(_of_rows(lse, place, there, True), C), mask=there)


@triton.jit
def _change(dot, change, numbers, p, batch, head, i, j, C: tl.constexpr, EDGE: tl.constexpr, CARE: tl.constexpr):
    """Of a tile of dot products: the weights, and the gradients of the scores and of the products times the scale.

    ds = w (change - delta) with `change` = dO · v (FlashAttention-2, arXiv 2307.08691, algorithm 2); d tanh(x) = 1 -
    tanh(x)^2. At an edge what is hidden gets weights of 0, and so gradients of 0 if all is finite; with CARE in any
    case.
    """
    base, share, delta = numbers
    if EDGE:
        seen = _seen(p, batch, head, i, j, C)
        if C.RAW:
            dot = tl.where(seen, dot, -INFINITY)
    s, tanh = _score(dot, p, batch, head, i, j, C)
    if EDGE and not C.RAW:
        s = tl.where(seen, s, -INFINITY)
    w = _weights(s, base, C) * share
    if CARE:
        w = tl.where(seen, w, 0.0)
    ds = w * (change - delta)
    if CARE:
        ds = tl.where(seen, ds, 0.0)
    raw = ds
    if C.CAP:
        raw = ds * (1.0 - tanh * tanh)
        if CARE:
            raw = tl.where(seen, raw, 0.0)
    return w, ds, raw


@triton.jit
def _from_rows(
    p,
    fetch,
    k,
    v,
    state,
    rows,
    grad,
    batch,
    head,
    j,
    first,
    last,
    C: tl.constexpr,
    EDGE: tl.constexpr,
    CARE: tl.constexpr,
):
    """Have a tile of keys add up its gradients from blocks of rows; with CARE what is not seen adds no NaN."""
    key_grad, value_grad = state
    for block in range(first, last):
        i = block * C.ROWS + tl.arange(0, C.ROWS)
        there = i < p.queries
        place = (batch * p.heads + head).to(tl.int64) * p.queries + i
        q = _block(p.query, fetch[0], batch, head, block * C.ROWS, C.ROWS, C.D, C.DP, p.queries, EDGE)
        dot = _dot(k, q, C)
        numbers = _numbers(rows, place, there, EDGE)
        do = _block(grad, fetch[1], batch, head, block * C.ROWS, C.ROWS, C.DV, C.DVP, p.queries, EDGE)
        change = tl.dot(v, tl.trans(do), input_precision=C.PRECISION)
        w, _, raw = _change(dot, change, _across(numbers), p, batch, head, i[None, :], j[:, None], C, EDGE, CARE)
        if CARE:
            q, do = _finite(q), _finite(do)
        value_grad = tl.dot(w.to(do.dtype), do, value_grad, input_precision=C.PRECISION)
        key_grad = tl.dot(raw.to(q.dtype), q, key_grad, input_precision=C.PRECISION)
    return key_grad, value_grad


@triton.jit
def _from_all_rows(p, fetch, k, v, rows, grad, spans, tile, batch, key_head, C: tl.constexpr, CARE: tl.constexpr):
    """The gradients of a tile of keys and of its values, from the rows of all heads that share them."""
    j = tile * C.KEYS + tl.arange(0, C.KEYS)
    state = _zeros(C.KEYS, C.DP), _zeros(C.KEYS, C.DVP)
    for member in range(p.group):
        head = key_head * p.group + member
        first, inner, outer, last = _span(p, spans, tile, batch, head, C)
        if CARE:
            state = _from_rows(p, fetch, k, v, state, rows, grad, batch, head, j, first, last, C, True, True)
        else:
            state = _from_rows(p, fetch, k, v, state, rows, grad, batch, head, j, first, inner, C, True, False)
            state = _from_rows(p, fetch, k, v, state, rows, grad, batch, head, j, inner, outer, C, False, False)
            state = _from_rows(p, fetch, k, v, state, rows, grad, batch, head, j, outer, last, C, True, False)
    return state


@triton.jit
def _not_finite(p, fetch, grad, spans, tile, batch, key_head, C: tl.constexpr):
    """Where values are seen by rows whose gradients are not finite: counts of them, ``(KEYS, DVP)``."""
    j = tile * C.KEYS + tl.arange(0, C.KEYS)
    bad = _zeros(C.KEYS, C.DVP)
    for member in range(p.group):
        head = key_head * p.group + member
        first, _, _, last = _span(p, spans, tile, batch, head, C)
        for block in range(first, last):
            i = block * C.ROWS + tl.arange(0, C.ROWS)
            do = _block(grad, fetch[1], batch, head, block * C.ROWS, C.ROWS, C.DV, C.DVP, p.queries, True)
            seen = _seen(p, batch, head, i[None, :], j[:, None], C)
            bad = tl.dot(seen.to(do.dtype), tl.where(_is_finite(do), 0.0, 1.0).to(do.dtype), bad)
    return bad


@triton.jit
def backward_keys_kernel(p, query_blocks, grad_blocks, rows, grad, key_grad, value_grad, spans, scale, C: tl.constexpr):
    """Gradients of tiles of keys and their values, from the rows of all query heads that share them.

    Args:
        rows: `Rows`.
        grad: an `Operand`, the output's gradient.
        key_grad, value_grad: `Operand`s.
    """
    tile, line = _program(tl.cdiv(p.keys, C.KEYS))
    key_heads = p.heads // p.group
    batch, key_head = line // key_heads, line % key_heads
    j = tile * C.KEYS + tl.arange(0, C.KEYS)
    k = _tile(p.key, batch, key_head, j, C.D, C.DP, p.keys, True)
    v = _tile(p.value, batch, key_head, j, C.DV, C.DVP, p.keys, True)
    fetch = query_blocks, grad_blocks
    state = _from_all_rows(p, fetch, k, v, rows, grad, spans, tile, batch, key_head, C, False)
    if C.MASK != 0:  # noqa: SIM102  known when this is compiled
        if _has_nan(state[0]) | _has_nan(state[1]):  # perhaps from rows that see none of these keys: look again
            state = _from_all_rows(p, fetch, k, v, rows, grad, spans, tile, batch, key_head, C, True)
            bad = _not_finite(p, fetch, grad, spans, tile, batch, key_head, C)
            state = state[0], tl.where(bad > 0, float("nan"), state[1])
    _write(key_grad, batch, key_head, j, j < p.keys, state[0] * scale, C.D, C.DP)
    _write(value_grad, batch, key_head, j, j < p.keys, state[1], C.DV, C.DVP)


@triton.jit
def _from_keys(
    p,
    fetch,
    q,
    do,
    state,
    numbers,
    batch,
    head,
    i,
    first,
    last,
    C: tl.constexpr,
    EDGE: tl.constexpr,
    CARE: tl.constexpr,
):
    """Have a block of rows add up its gradients from tiles of keys; with CARE what is not seen adds no NaN."""
    query_grad, low, high = state
    for tile in range(first, last):
        j = tile * C.KEYS + tl.arange(0, C.KEYS)
        k = _block(p.key, fetch[0], batch, head // p.group, tile * C.KEYS, C.KEYS, C.D, C.DP, p.keys, EDGE)
        v = _block(p.value, fetch[1], batch, head // p.group, tile * C.KEYS, C.KEYS, C.DV, C.DVP, p.keys, EDGE)
        dot = _dot(q, k, C)
        change = tl.dot(do, tl.trans(v), input_precision=C.PRECISION)
        _, ds, raw = _change(dot, change, _down(numbers), p, batch, head, i[:, None], j[None, :], C, EDGE, CARE)
        if CARE:
            k = _finite(k)
        query_grad = tl.dot(raw.to(k.dtype), k, query_grad, input_precision=C.PRECISION)
        if C.BIAS_GRAD and C.BIAS == 2:
            away = tl.abs((i[:, None] + p.bias.offset - j[None, :]).to(tl.float32))
            low -= tl.sum(ds * away, 1)
        if C.BIAS_GRAD and C.BIAS == 3:
            place = j[None, :] - i[:, None] - p.bias.offset
            low += tl.sum(tl.where(place <= 0, ds, 0.0), 1)
            high += tl.sum(tl.where((place > 0) & (place >= p.bias.count - 1), ds, 0.0), 1)
    return query_grad, low, high


@triton.jit
def _from_all_keys(p, fetch, q, do, numbers, batch, head, i, C: tl.constexpr, CARE: tl.constexpr):
    """The gradient of a block of queries, and of what else it is asked, from all keys."""
    zero = _zero(C.ROWS)
    state = _zeros(C.ROWS, C.DP), zero, zero
    if C.MASK == 1:
        at = tl.minimum(i, p.queries - 1).to(tl.int64) * p.mask.runs
        at = at + batch.to(tl.int64) * p.mask.batch + head.to(tl.int64) * p.mask.head
        done = 0
        for run in range(p.mask.runs):
            first, inner, outer, last = _tiles_of_run(p, at + run, done, 0, p.keys, C)
            if CARE:
                state = _from_keys(p, fetch, q, do, state, numbers, batch, head, i, first, last, C, True, True)
            else:
                state = _from_keys(p, fetch, q, do, state, numbers, batch, head, i, first, inner, C, True, False)
                state = _from_keys(p, fetch, q, do, state, numbers, batch, head, i, inner, outer, C, False, False)
                state = _from_keys(p, fetch, q, do, state, numbers, batch, head, i, outer, last, C, True, False)
            done = tl.maximum(done, last)
    else:
        inner, last = p.keys // C.KEYS if C.MASK == 0 else 0, tl.cdiv(p.keys, C.KEYS)
        state = _from_keys(p, fetch, q, do, state, numbers, batch, head, i, 0, inner, C, False, False)
        state = _from_keys(p, fetch, q, do, state, numbers, batch, head, i, inner, last, C, True, CARE)
    return state


@triton.jit
def backward_rows_kernel(p, key_blocks, value_blocks, rows, grad, query_grad, low, high, scale, C: tl.constexpr):
    """Gradients of blocks of queries.

    Args:
        low, high: ``(B, H, Nq)``, with BIAS_GRAD: each row's part of the gradient of ALiBi's slope (low), or of the
            first and the last value of a relative bias, which stand for all positions beyond.
    """
    blocks = tl.cdiv(p.queries, C.ROWS)
    block, line = _program(blocks)
    block = blocks - 1 - block  # the longest first, under a causal mask
    batch, head = line // p.heads, line % p.heads
    i = block * C.ROWS + tl.arange(0, C.ROWS)
    there = i < p.queries
    q = _tile(p.query, batch, head, i, C.D, C.DP, p.queries, True)
    do = _tile(grad, batch, head, i, C.DV, C.DVP, p.queries, True)
    place = (batch * p.heads + head).to(tl.int64) * p.queries + i
    numbers = _numbers(rows, place, there, True)
    fetch = key_blocks, value_blocks
    state = _from_all_keys(p, fetch, q, do, numbers, batch, head, i, C, False)
    if C.MASK != 0:  # noqa: SIM102
        if _has_nan(state[0]):  # perhaps from keys that these rows do not see: look again
            state = _from_all_keys(p, fetch, q, do, numbers, batch, head, i, C, True)
    _write(query_grad, batch, head, i, there, state[0] * scale, C.D, C.DP)
    if C.BIAS_GRAD and C.BIAS >= 2:
        tl.store(low + place, state[1], mask=there)
    if C.BIAS_GRAD and C.BIAS == 3:
        tl.store(high + place, state[2], mask=there)


@triton.jit
def dense_bias_kernel(p, rows, grad, out, batches, heads, row_blocks, key_tiles, C: tl.constexpr):
    """The gradient of a dense bias, a tile of it for each program, which sums over what the bias is shared by.

    Args:
        out: a `Bias`, contiguous, whose strides are 0 along what is shared.
        batches, heads, row_blocks, key_tiles: how many batch elements, heads, blocks of rows and tiles of keys share
            one value of the bias.
    """
    tile0, rest = _program(1 if C.SUM_KEYS else tl.cdiv(p.keys, C.KEYS))
    blocks = 1 if C.SUM_ROWS else tl.cdiv(p.queries, C.ROWS)
    block0, line = rest % blocks, rest // blocks
    lines = p.heads // heads
    total = _zeros(C.ROWS, C.KEYS)
    for shared in range(batches * heads * row_blocks * key_tiles):
        batch = line // lines + (shared // (heads * row_blocks * key_tiles))
        head = line % lines + (shared // (row_blocks * key_tiles)) % heads
        block, tile = block0 + (shared // key_tiles) % row_blocks, tile0 + shared % key_tiles
        i, j = block * C.ROWS + tl.arange(0, C.ROWS), tile * C.KEYS + tl.arange(0, C.KEYS)
        there = i < p.queries
        q = _tile(p.query, batch, head, i, C.D, C.DP, p.queries, True)
        do = _tile(grad, batch, head, i, C.DV, C.DVP, p.queries, True)
        k = _tile(p.key, batch, head // p.group, j, C.D, C.DP, p.keys, True)
        v = _tile(p.value, batch, head // p.group, j, C.DV, C.DVP, p.keys, True)
        dot = _dot(q, k, C)
        change = tl.dot(do, tl.trans(v), input_precision=C.PRECISION)
        place = (batch * p.heads + head).to(tl.int64) * p.queries + i
        numbers = _numbers(rows, place, there, True)
        _, ds, _ = _change(dot, change, _down(numbers), p, batch, head, i[:, None], j[None, :], C, True, True)
        total += ds
    to = out.pointer + (line // lines).to(tl.int64) * out.batch + (line % lines).to(tl.int64) * out.head
    i, j = block0 * C.ROWS + tl.arange(0, C.ROWS), tile0 * C.KEYS + tl.arange(0, C.KEYS)
    row, key = i.to(tl.int64) * out.row, j * out.key
    if C.SUM_ROWS and C.SUM_KEYS:
        tl.store(to, tl.sum(tl.sum(total, 1), 0))
    elif C.SUM_ROWS:
        tl.store(to + key, tl.sum(total, 0), mask=j < p.keys)
    elif C.SUM_KEYS:
        tl.store(to + row, tl.sum(total, 1), mask=i < p.queries)
    else:
        there = (i < p.queries)[:, None] & (j < p.keys)[None, :]
        tl.store(to + row[:, None] + key[None, :], total, mask=there)


@triton.jit
def relative_bias_kernel(p, rows, grad, out, C: tl.constexpr):
    """The gradient of a relative bias but for its two ends, from each block of rows: ``(B, H, blocks, count)``.

    A position is one key for each row, so that scores here are no product of matrices.
    """
    blocks = tl.cdiv(p.queries, C.ROWS)
    block, line = _program(blocks)
    batch, head = line // p.heads, line % p.heads
    i = block * C.ROWS + tl.arange(0, C.ROWS)
    there = i < p.queries
    q = _tile(p.query, batch, head, i, C.D, C.DP, p.queries, True).to(tl.float32)
    do = _tile(grad, batch, head, i, C.DV, C.DVP, p.queries, True).to(tl.float32)
    place = line.to(tl.int64) * p.queries + i
    numbers = _numbers(rows, place, there, True)
    for position in range(1, p.bias.count - 1):
        j = i + p.bias.offset + position
        key = tl.where((j >= 0) & (j < p.keys), j, p.keys)
        k = _tile(p.key, batch, head // p.group, key, C.D, C.DP, p.keys, True).to(tl.float32)
        v = _tile(p.value, batch, head // p.group, key, C.DV, C.DVP, p.keys, True).to(tl.float32)
        dot, change = tl.sum(q * k, 1), tl.sum(do * v, 1)
        _, ds, _ = _change(dot, change, numbers, p, batch, head, i, key, C, True, True)
        at = (line.to(tl.int64) * blocks + block) * p.bias.count + position
        tl.store(out + at, tl.sum(ds, 0))
