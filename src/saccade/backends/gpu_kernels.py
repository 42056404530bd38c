"""Attention on a GPU as Triton kernels, imported when `gpu.py` needs them; `gpu_gradients.py` has the backward ones.

Every kernel walks the pattern in tiles and computes a tile's scores by the same few functions (`_dot`, `_score`,
`_seen`), whichever way it walks: by rows (a block of queries against its keys) or by columns (a block of keys against
the queries that see it). What a program writes nobody else writes: no atomic operations, the same bits in each run.

A tile is *inside* if all its queries see all its keys: no mask is needed there. Others are *edges*. In an edge, what is
hidden must not leak through products with 0, as 0 * NaN is NaN. Numbers are not looked at one by one for that: where
NaN came out, a block is computed again with care, and what is not finite counts only where it is seen.

Scores are in units of ln 2, so that the exponential is exp2; where there is a bias they stay in nats, as the lowest
float times log2 e would overflow.
"""

# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources  # noqa: F401  what gpu.py needs: nobody else imports Triton
from triton.testing import do_bench
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: F401

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))
FAR = tl.constexpr(64.0)  # from 0: half of the last digit of such an lse is 2e-6 of a weight


def compiler() -> str:
    """What kernels are compiled by."""
    return f"triton {triton.__version__}"


def milliseconds(call: Callable[[], object]) -> float:
    """What a call takes on the GPU, the median of many."""
    return do_bench(call, warmup=20, rep=100, return_mode="median")


class Form(NamedTuple):
    """What a kernel is compiled for (`C` in what follows).

    Attributes:
        D, DV: widths of queries, and of values or of what stands for them.
        DP, DVP: the powers of two that hold them.
        ROWS, KEYS: queries and keys of a tile.
        MASK: 0: all is seen; 1: intervals; 2: a dense mask.
        BIAS: 0: none; 1: dense; 2: ALiBi; 3: relative.
        CAP: whether scores are softcapped.
        RAW: whether a score is just a dot product times a positive factor.
        PRECISION: of products of float32: "ieee", "tf32" or "tf32x3".
        PRODUCT: likewise, of products with the weights.
        ENTROPY, DISTANCE: whether these are asked of each row.
        TOP, K: how many top keys are asked of each row, and the power of two that holds them; 0 for none.
        PACKED: the query heads of a key head are rows of one block, so that few queries fill it.
        SPLIT: a program looks at a part of the keys.
        PEAK: of cells the largest weight is wanted, not the sum.
        BIAS_GRAD: whether rows sum up their parts of the gradient of ALiBi's slopes, or a relative bias's ends.
        SUM_ROWS, SUM_KEYS: a dense bias is shared by all rows, or all keys.
        GROUPS: rows that the transposed pattern is multiplied with say which group each is of.
    """

    D: int
    DP: int
    DV: int
    DVP: int
    ROWS: int
    KEYS: int
    MASK: int
    BIAS: int
    CAP: bool
    RAW: bool
    PRECISION: str
    PRODUCT: str
    ENTROPY: bool = False
    DISTANCE: bool = False
    TOP: int = 0
    K: int = 0
    PACKED: bool = False
    SPLIT: bool = False
    PEAK: bool = False
    BIAS_GRAD: bool = False
    SUM_ROWS: bool = False
    SUM_KEYS: bool = False
    GROUPS: bool = False


class Operand(NamedTuple):
    """A tensor ``(B, H, N, D)``: its memory and its strides; that of the last dimension is 1."""

    pointer: Any
    batch: int
    head: int
    row: int


class Intervals(NamedTuple):
    """`saccade.masks.Intervals`, contiguous; strides are 0 where one serves all."""

    starts: Any
    stops: Any
    batch: int
    head: int
    runs: int


class Dense(NamedTuple):
    """`saccade.masks.Dense`; strides are 0 where one serves all."""

    visible: Any
    batch: int
    head: int
    row: int


class Bias(NamedTuple):
    """A bias; strides are 0 where one value serves all.

    Attributes:
        offset: of ALiBi, the first query's position among the keys; of a relative bias, and where its values begin.
        count: how many values a relative bias has.
    """

    pointer: Any
    batch: int
    head: int
    row: int
    key: int
    offset: int
    count: int


class Sinks(NamedTuple):
    """Logits ``(B | 1, H)``."""

    pointer: Any
    batch: int


class Pages(NamedTuple):
    """A page table ``(B, n)``, and how many keys a page holds."""

    pointer: Any
    batch: int
    size: int


class Problem(NamedTuple):
    """One attention problem. Which of the fields are None is part of what a kernel is compiled for.

    Attributes:
        factor: what a dot product is multiplied by: the scale, divided by the softcap if there is one, else in the
            scores' unit.
        cap: the softcap in the scores' unit.
    """

    query: Operand
    key: Operand
    value: Operand | None
    heads: int
    group: int
    queries: int
    keys: int
    factor: float
    cap: float
    mask: Intervals | Dense | None
    bias: Bias | None
    sinks: Sinks | None
    pages: Pages | None


@triton.jit
def _program(count):
    """Which of the `count` programs of a line this one is, and which line. Only a grid's first axis is long enough."""
    return tl.program_id(0) % count, tl.program_id(0) // count


# ---------------------------------------------------------------------------------------- tiles of the inputs


@triton.jit
def _tile(operand, batch, head, rows, WIDTH: tl.constexpr, PADDED: tl.constexpr, count, CHECKED: tl.constexpr):
    """Rows of an operand, ``(rows, PADDED)``; 0 beyond its width, and beyond `count` rows if that is checked."""
    column = tl.arange(0, PADDED)
    base = operand.pointer + batch.to(tl.int64) * operand.batch
    offset = head.to(tl.int64) * operand.head + rows.to(tl.int64) * operand.row
    at = base + offset[:, None] + column[None, :]
    if CHECKED:
        inside = (rows < count)[:, None]
        if WIDTH != PADDED:
            inside = inside & (column < WIDTH)[None, :]
        x = tl.load(at, mask=inside, other=0.0)
    elif WIDTH != PADDED:
        x = tl.load(at, mask=(column < WIDTH)[None, :], other=0.0)
    else:
        x = tl.load(at)
    return x


@triton.jit
def _write(operand, batch, head, rows, there, x, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Those rows of an operand that are there."""
    column = tl.arange(0, PADDED)
    base = operand.pointer + batch.to(tl.int64) * operand.batch
    offset = head.to(tl.int64) * operand.head + rows.to(tl.int64) * operand.row
    at = base + offset[:, None] + column[None, :]
    tl.store(at, x.to(operand.pointer.dtype.element_ty), mask=there[:, None] & (column < WIDTH)[None, :])


@triton.jit
def _block(
    operand,
    descriptor,
    batch,
    head,
    start,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    count,
    CHECKED: tl.constexpr,
):
    """`_tile` of the rows from `start`: by the tensor memory accelerator where there is a descriptor of the operand."""
    if descriptor is None:
        x = _tile(operand, batch, head, start + tl.arange(0, ROWS), WIDTH, PADDED, count, CHECKED)
    else:  # with 0 beyond the tensor's ends
        x = tl.reshape(descriptor.load([batch, head, start, 0]), (ROWS, PADDED))
    return x


@triton.jit
def _of_keys(
    operand,
    descriptor,
    p,
    batch,
    key_head,
    start,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    C: tl.constexpr,
    CHECKED: tl.constexpr,
):
    """Keys or values from `start`, ``(KEYS, PADDED)``, from one piece of memory or from pages."""
    if p.pages is None:
        x = _block(operand, descriptor, batch, key_head, start, C.KEYS, WIDTH, PADDED, p.keys, CHECKED)
    else:
        keys = start + tl.arange(0, C.KEYS)
        column = tl.arange(0, PADDED)
        there = keys < p.keys
        page = tl.load(p.pages.pointer + batch * p.pages.batch + keys // p.pages.size, mask=there, other=0)
        offset = page.to(tl.int64) * operand.batch + (keys % p.pages.size).to(tl.int64) * operand.row
        at = operand.pointer + key_head.to(tl.int64) * operand.head + offset[:, None] + column[None, :]
        x = tl.load(at, mask=there[:, None] & (column < WIDTH)[None, :], other=0.0)
    return x


@triton.jit
def _has_nan(x):
    """Whether a tile holds NaN."""
    return tl.max(tl.max((x != x).to(tl.int32), 1), 0) != 0  # noqa: PLR0124


@triton.jit
def _zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.zeros((ROWS, COLUMNS), tl.float32)


@triton.jit
def _zero(ROWS: tl.constexpr):
    return tl.zeros((ROWS,), tl.float32)


@triton.jit
def _ones_like(x):
    return tl.zeros_like(x) + 1.0


@triton.jit
def _is_finite(x):
    return tl.abs(x.to(tl.float32)) < INFINITY


@triton.jit
def _finite(x):
    """What is finite of a tile; 0 in place of the rest."""
    return tl.where(_is_finite(x), x, 0.0).to(x.dtype)


# ---------------------------------------------------------------------------------------- scores


@triton.jit
def _dot(a, b, C: tl.constexpr):
    """Dot products of the rows of two tiles."""
    return tl.dot(a, tl.trans(b), input_precision=C.PRECISION)


@triton.jit
def _poisoned(x):
    """NaN in place of what is infinite: x * 0 + x."""
    return tl.fma(x, x * 0.0, x)


@triton.jit
def _bits(x, C: tl.constexpr):
    """A difference of scores in units of ln 2."""
    if C.BIAS != 0:
        x = x * LOG2_E
    return x


@triton.jit
def _tanh(x):
    """The hyperbolic tangent; near 0, where differences from 1 have lost their digits, by its Taylor series."""
    z = x * x
    series = -929569.0 / 638512875.0
    series = series * z + 21844.0 / 6081075.0
    series = series * z - 1382.0 / 155925.0
    series = series * z + 62.0 / 2835.0
    series = series * z - 17.0 / 315.0
    series = series * z + 2.0 / 15.0
    series = series * z - 1.0 / 3.0
    far = 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2_E)) + 1.0)
    return tl.where(z < 0.25, series * z * x + x, far)


@triton.jit
def _bias_at(p, batch, head, i, j, C: tl.constexpr):
    """The bias at queries and keys that broadcast against each other, in nats."""
    base = p.bias.pointer + batch.to(tl.int64) * p.bias.batch + head.to(tl.int64) * p.bias.head
    if C.BIAS == 1:
        at = base + tl.minimum(i, p.queries - 1).to(tl.int64) * p.bias.row
        at = at + tl.minimum(j, p.keys - 1).to(tl.int64) * p.bias.key
        bias = tl.load(at).to(tl.float32)
    elif C.BIAS == 2:
        bias = tl.load(base).to(tl.float32) * -tl.abs((i + p.bias.offset - j).to(tl.float32))
    else:
        place = tl.minimum(tl.maximum(j - i - p.bias.offset, 0), p.bias.count - 1)
        bias = tl.load(base + place).to(tl.float32)
    return bias


@triton.jit
def _score(raw, p, batch, head, i, j, C: tl.constexpr):
    """Scores of a tile whose queries and keys broadcast, and the hyperbolic tangent on the way (else 0)."""
    s = raw * p.factor
    tanh = 0.0
    if C.CAP:
        tanh = _tanh(s)
        s = tanh * p.cap
    if C.BIAS != 0:
        s = s + _bias_at(p, batch, head, i, j, C)
    return s, tanh


@triton.jit
def _within(p, at, j):
    """Whether keys lie in the interval of a place in the mask."""
    start, stop = tl.load(p.mask.starts + at), tl.load(p.mask.stops + at)
    # By one comparison: what lies before `start` is huge without a sign.
    return (j - start).to(tl.uint32) < tl.maximum(stop - start, 0).to(tl.uint32)


@triton.jit
def _seen(p, batch, head, i, j, C: tl.constexpr):
    """Which keys which queries see; `i` and `j` broadcast against each other, `head` against `i`.

    Queries beyond the last see what it sees.
    """
    if C.MASK == 1:
        row = tl.minimum(i, p.queries - 1).to(tl.int64) * p.mask.runs
        row = row + batch.to(tl.int64) * p.mask.batch + head.to(tl.int64) * p.mask.head
        seen = _within(p, row, j)
        for run in range(1, p.mask.runs):
            seen = seen | _within(p, row + run, j)
    else:
        seen = (j < p.keys) & (i >= 0)
    if C.MASK == 2:
        at = p.mask.visible + batch.to(tl.int64) * p.mask.batch + head.to(tl.int64) * p.mask.head
        at = at + tl.minimum(i, p.queries - 1).to(tl.int64) * p.mask.row + tl.minimum(j, p.keys - 1)
        seen = seen & (tl.load(at) != 0)
    return seen


# ---------------------------------------------------------------------------------------- by rows


@triton.jit
def _keep_top(s, top, start, best, at, C: tl.constexpr):
    """Of each row, the K largest so far, ``(ROWS, K)`` in any order, and their keys.

    `top` is the largest of each row of `s`, whose keys begin at `start`. NaN is passed over.
    """
    slot, column = tl.arange(0, C.K)[None, :], tl.arange(0, C.KEYS)[None, :]
    worst = tl.min(best, 1)
    while tl.max((top > worst).to(tl.int32), 0) > 0:
        where = tl.min(tl.where(s == top[:, None], column, C.KEYS), 1)
        here = (slot == tl.argmin(best, 1)[:, None]) & (top > worst)[:, None]
        best = tl.where(here, top[:, None], best)
        at = tl.where(here, (start + where)[:, None], at)
        s = tl.where(column == where[:, None], -INFINITY, s)
        top = tl.max(s, 1)
        worst = tl.min(best, 1)
    return best, at


@triton.jit
def _in_unit(best, p, C: tl.constexpr):
    """Scores of top keys."""
    return best * p.factor if C.RAW else best


@triton.jit
def _add_with_care(acc, w, v, seen, C: tl.constexpr):
    """Sums of w v in which what is not finite makes NaN of the rows that see it, and of no other."""
    finite = _is_finite(v)
    bad = tl.dot(seen.to(v.dtype), tl.where(finite, 0.0, 1.0).to(v.dtype), input_precision="ieee")
    acc = tl.where(bad > 0, float("nan"), acc)
    return tl.dot(w.to(v.dtype), tl.where(finite, v, 0.0).to(v.dtype), acc, input_precision=C.PRODUCT)


@triton.jit
def _look(
    p,
    fetch,
    q,
    state,
    batch,
    head,
    key_head,
    i,
    first,
    stop,
    offset,
    C: tl.constexpr,
    EDGE: tl.constexpr,
    CARE: tl.constexpr,
):
    """Have a block of rows look at tiles of keys, and add up what they see (online softmax, arXiv 1805.02867).

    The state: sum of w v, largest score m, sum of w, largest magnitude of a dot product, sum of w log2 w, sum of w
    times distance, top scores (with RAW dot products), their keys; w = exp(s - m).
    """
    acc, m, total, high, bits, far, best, at = state
    for tile in range(first, stop):
        j = tile * C.KEYS + tl.arange(0, C.KEYS)
        k = _of_keys(p.key, fetch[0], p, batch, key_head, tile * C.KEYS, C.D, C.DP, C, EDGE)
        raw = _dot(q, k, C)
        if EDGE:
            seen = _seen(p, batch, head[:, None], i[:, None], j[None, :], C)
            raw = _poisoned(raw)
        elif not C.ENTROPY or not C.RAW:
            high = tl.maximum(high, tl.max(tl.abs(raw), 1))
        if C.RAW:  # scores are not needed themselves: one multiplication and addition leads to the exponent
            if EDGE:
                raw = tl.where(seen, raw, -INFINITY)
            here = tl.max(raw, 1)
            top = tl.maximum(m, here * p.factor)
            base = tl.where(top == -INFINITY, 0.0, top)
            x = raw * p.factor - base[:, None]
            s = raw
        else:
            s, _ = _score(raw, p, batch, head[:, None], i[:, None], j[None, :], C)
            if EDGE:
                s = tl.where(seen, s, -INFINITY)
            here = tl.max(s, 1)
            top = tl.maximum(m, here)
            base = tl.where(top == -INFINITY, 0.0, top)
            x = _bits(s - base[:, None], C)
        w = tl.exp2(x)
        change = _bits(m - base, C)
        shrink = tl.exp2(change)
        if C.ENTROPY:
            if EDGE or C.BIAS == 1:
                x = tl.maximum(x, -1000.0)  # w is 0 there, and 0 * -inf would be NaN
            bits = shrink * (bits + tl.maximum(change, -1000.0) * total) + tl.sum(w * x, 1)
        if C.DISTANCE:
            column = tl.arange(0, C.KEYS).to(tl.float32)
            away = tl.abs((i + offset - tile * C.KEYS).to(tl.float32)[:, None] - column[None, :])
            far = shrink * far + tl.sum(w * away, 1)
        total = shrink * total + tl.sum(w, 1)
        m = top
        if C.K > 0:
            if CARE:  # NaN is seen as well, and comes first
                s = tl.where(s == s, s, INFINITY)  # noqa: PLR0124
                here = tl.max(s, 1)
            best, at = _keep_top(s, here, tile * C.KEYS, best, at, C)
        if p.value is not None:
            v = _of_keys(p.value, fetch[1], p, batch, key_head, tile * C.KEYS, C.DV, C.DVP, C, EDGE)
            acc = acc * shrink[:, None]
            if CARE:
                acc = _add_with_care(acc, w, v, seen, C)
            else:
                acc = tl.dot(w.to(v.dtype), v, acc, input_precision=C.PRODUCT)
    return acc, m, total, high, bits, far, best, at


@triton.jit
def _tiles_of_run(p, at, done, least, most, C: tl.constexpr):
    """Tiles that one run of some rows' intervals touches: from `first`, inside from `inner` to `outer`, to `last`.

    `at` is where the run of each row is; tiles before `done`, and keys not from `least` to `most`, are left out.
    """
    starts, stops = tl.load(p.mask.starts + at), tl.load(p.mask.stops + at)
    some = starts < stops
    start = tl.maximum(tl.min(tl.where(some, starts, p.keys), 0), least)
    stop = tl.minimum(tl.max(tl.where(some, stops, 0), 0), most)
    first = tl.maximum(start // C.KEYS, done)
    last = tl.maximum(tl.cdiv(stop, C.KEYS), first)
    inner = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(tl.max(starts, 0), least), C.KEYS), first), last)
    outer = tl.minimum(tl.maximum(tl.minimum(tl.min(stops, 0), most) // C.KEYS, inner), last)
    return first, inner, outer, last


@triton.jit
def _look_everywhere(
    p, fetch, q, state, batch, head, key_head, i, least, most, offset, C: tl.constexpr, CARE: tl.constexpr
):
    """Have a block of rows look at all keys from `least` to `most` that one of them sees."""
    if C.MASK == 1:
        at = i.to(tl.int64) * p.mask.runs + batch.to(tl.int64) * p.mask.batch + head.to(tl.int64) * p.mask.head
        done = least // C.KEYS
        for run in range(p.mask.runs):
            first, inner, outer, last = _tiles_of_run(p, at + run, done, least, most, C)
            if CARE:
                state = _look(p, fetch, q, state, batch, head, key_head, i, first, last, offset, C, True, True)
            else:
                state = _look(p, fetch, q, state, batch, head, key_head, i, first, inner, offset, C, True, False)
                state = _look(p, fetch, q, state, batch, head, key_head, i, inner, outer, offset, C, False, False)
                state = _look(p, fetch, q, state, batch, head, key_head, i, outer, last, offset, C, True, False)
            done = tl.maximum(done, last)
    else:
        first = least // C.KEYS
        inner, last = first, tl.cdiv(most, C.KEYS)
        if C.MASK == 0 and not CARE:
            inner = most // C.KEYS
            state = _look(p, fetch, q, state, batch, head, key_head, i, first, inner, offset, C, False, False)
        state = _look(p, fetch, q, state, batch, head, key_head, i, inner, last, offset, C, True, CARE)
    return state


@triton.jit
def _nothing_seen(C: tl.constexpr):
    """The state that `_look` begins with."""
    zero = _zero(C.ROWS)
    KS: tl.constexpr = C.K if C.K > 0 else 1
    best, at = _zeros(C.ROWS, KS) - INFINITY, _zeros(C.ROWS, KS).to(tl.int32) - 1
    return _zeros(C.ROWS, C.DVP), zero - INFINITY, zero, zero, zero, zero, best, at


@triton.jit
def _block_of_rows(p, fetch, out, results, offset, share, block, line, C: tl.constexpr):
    """One block of rows of a batch element and head (with PACKED a key head), `line`: see `rows_kernel`."""
    row = block * C.ROWS + tl.arange(0, C.ROWS)
    if C.PACKED:
        key_heads = p.heads // p.group
        batch, key_head = line // key_heads, line % key_heads
        there = row < p.queries * p.group
        row = tl.minimum(row, p.queries * p.group - 1)
        head, i = key_head * p.group + row // p.queries, row % p.queries
    else:
        batch = line // p.heads
        head = line % p.heads + row * 0
        key_head = (line % p.heads) // p.group
        there = row < p.queries
        i = tl.minimum(row, p.queries - 1)
    q = _tile(p.query, batch, head, i, C.D, C.DP, p.queries, False)

    zero = _zero(C.ROWS)
    start = _nothing_seen(C)
    least, most = 0, p.keys
    if C.SPLIT:
        least = tl.program_id(1) * share
        most = tl.minimum(p.keys, least + share)
    state = _look_everywhere(p, fetch, q, start, batch, head, key_head, i, least, most, offset, C, False)
    acc, m, total, high, bits, far, best, keys = state
    total = tl.where(high == INFINITY, float("nan"), total)
    if C.ENTROPY and C.RAW:  # where a score was -inf, 0 * -inf has made NaN of the sum of w log2 w
        total = tl.where(bits == bits, total, float("nan"))  # noqa: PLR0124
    # NaN, perhaps from values that are hidden, or passed over among the top keys: rare enough to look again.
    if p.value is not None and C.MASK != 0:
        if _has_nan(acc):
            state = _look_everywhere(p, fetch, q, start, batch, head, key_head, i, least, most, offset, C, True)
            acc, _, _, _, _, _, best, keys = state
    elif C.K > 0:  # noqa: SIM102  known when this is compiled
        if _has_nan(total[:, None]):
            state = _look_everywhere(p, fetch, q, start, batch, head, key_head, i, least, most, offset, C, True)
            _, _, _, _, _, _, best, keys = state
    place = (batch * p.heads + head).to(tl.int64) * p.queries + i
    if C.SPLIT:
        column = tl.arange(0, C.DVP)
        place = place + tl.program_id(1).to(tl.int64) * results.rows
        at = out + place[:, None] * C.DV + column[None, :]
        tl.store(at, acc, mask=there[:, None] & (column < C.DV)[None, :])
        tl.store(results.top + place, m, mask=there)
        tl.store(results.share + place, total, mask=there)
        if C.ENTROPY:
            tl.store(results.entropy + place, bits, mask=there)
        if C.DISTANCE:
            tl.store(results.distance + place, far, mask=there)
        if C.TOP > 0:
            slot = tl.arange(0, C.K)[None, :]
            tl.store(results.top_weight + place[:, None] * C.K + slot, _in_unit(best, p, C), mask=there[:, None])
            tl.store(results.top_index + place[:, None] * C.K + slot, keys, mask=there[:, None])
    else:
        sink = _sink(p, batch, head, C)
        given = zero
        if results.given is not None:
            given = tl.load(results.given + place)
        m, lse, weight = _normalize(m, total, sink, given, C, results.given is not None)
        if p.value is not None:
            acc = acc * weight[:, None]
            acc = tl.where(_is_finite(acc), acc, float("nan"))
            _write(out, batch, head, i, there, acc, C.DV, C.DVP)
        _store_rows(results, place, there, m, lse, weight, total, bits, far, C)
        if C.TOP > 0:
            _store_top(results, place, there, m, weight, _in_unit(best, p, C), keys, C)


@triton.jit
def rows_kernel(p, key_blocks, value_blocks, out, results, offset, share, blocks, lines, C: tl.constexpr):
    """Blocks of rows: the output, and what is asked of each row. With SPLIT a program looks at some of the keys.

    Args:
        key_blocks, value_blocks: descriptors of keys and values, or None.
        out: an `Operand`, or with SPLIT memory for sums ``(splits, B, H, Nq, DV)``; not looked at without values.
        results: a `Results`; those asked for are pointers.
        offset: position of the first query among the keys, for distances.
        share: keys of a program, with SPLIT.
        blocks, lines: how many blocks there are, for each of so many lines; where there are fewer programs, each takes
            one after the other.
    """
    fetch = key_blocks, value_blocks
    for task in range(tl.program_id(0), blocks * lines, tl.num_programs(0)):
        block = blocks - 1 - task % blocks  # the longest first, under a causal mask
        _block_of_rows(p, fetch, out, results, offset, share, block, task // blocks, C)


class Results(NamedTuple):
    """Where results by row go, each contiguous ``(B, H, Nq)``, or ``(B, H, Nq, k)``; None for what is not wanted.

    Attributes:
        rows: B H Nq.
        lse: in nats.
        top_index, top_weight: with SPLIT, ``(splits, B H Nq, K)``: keys as int32, and scores.
        top, share: a weight is exp(s - top) * share, s and top in the scores' unit; with SPLIT, m and the sum of w.
        given: an lse in nats of which these keys are a part.
    """

    rows: int
    lse: Any = None
    entropy: Any = None
    max_weight: Any = None
    distance: Any = None
    top_index: Any = None
    top_weight: Any = None
    top: Any = None
    share: Any = None
    given: Any = None


@triton.jit
def _sink(p, batch, head, C: tl.constexpr):
    """The sinks of some heads, in the scores' unit; -inf where there are none."""
    if p.sinks is None:
        sink = head * 0.0 - INFINITY
    else:
        sink = tl.load(p.sinks.pointer + batch * p.sinks.batch + head).to(tl.float32)
        if C.BIAS == 0:
            sink = sink * LOG2_E
    return sink


@triton.jit
def _normalize(m, total, sink, given, C: tl.constexpr, GIVEN: tl.constexpr):
    """Rows that have seen all their keys: m, 0 where they saw none; their lse in nats; what w becomes a weight by."""
    UNIT: tl.constexpr = 1.0 if C.BIAS != 0 else LN_2  # nats of a score's unit
    top = tl.maximum(m, sink)
    top = tl.where(top == -INFINITY, 0.0, top)
    shrink = tl.exp2(_bits(m - top, C))
    whole = shrink * total + tl.exp2(_bits(sink - top, C))
    lse = top * UNIT + tl.log2(whole) * LN_2
    blind = whole == 0.0
    lse = tl.where(blind, -INFINITY, lse)
    weight = tl.where(blind, 0.0, shrink / tl.where(blind, 1.0, whole))
    m = tl.where(m == -INFINITY, 0.0, m)
    if GIVEN:
        lse = given
        weight = tl.where(given == -INFINITY, 0.0, tl.exp2((m * UNIT - given) * LOG2_E))
    # Whoever saw nothing but a sink has weights of 0, and none of NaN.
    weight = tl.where(total == 0.0, 0.0, weight)
    return m, lse, weight


@triton.jit
def _store_rows(results, place, there, m, lse, weight, total, bits, far, C: tl.constexpr):
    """Write what is asked of each row."""
    if results.lse is not None:
        tl.store(results.lse + place, lse, mask=there)
    if results.top is not None:
        tl.store(results.top + place, m, mask=there)
    if results.share is not None:
        tl.store(results.share + place, weight, mask=there)
    if results.max_weight is not None:
        tl.store(results.max_weight + place, weight, mask=there)
    if C.ENTROPY:
        # -sum p ln p with p = weight * w: ln p = ln weight + ln w.
        log = tl.where(weight > 0.0, tl.log2(tl.where(weight == 0.0, 1.0, weight)), weight)
        tl.store(results.entropy + place, -weight * (total * log + bits) * LN_2, mask=there)
    if C.DISTANCE:
        tl.store(results.distance + place, weight * far, mask=there)


@triton.jit
def _store_top(results, place, there, m, weight, best, keys, C: tl.constexpr):
    """Write the top keys, the heaviest first; `best` and `keys` are ``(rows, candidates)``."""
    slot = tl.arange(0, best.shape[1])[None, :]
    for rank in range(C.TOP):
        score, where = tl.max(best, 1, return_indices=True)
        taken = slot == where[:, None]
        key = tl.sum(tl.where(taken, keys, 0), 1)
        best = tl.where(taken, -INFINITY, best)
        found = tl.where(score == -INFINITY, 0.0, _weights(score, m, C) * weight)
        tl.store(results.top_weight + place * C.TOP + rank, found, mask=there)
        tl.store(results.top_index + place * C.TOP + rank, tl.where(found > 0.0, key, -1).to(tl.int64), mask=there)


@triton.jit
def merge_kernel(p, sums, parts, out, results, splits, C: tl.constexpr, SPLITS: tl.constexpr):
    """One row from the parts that `rows_kernel` left of it with SPLIT (`sums`, and `Results` of parts)."""
    place = tl.program_id(0).to(tl.int64)
    i, line = (place % p.queries).to(tl.int32), place // p.queries
    head, batch = (line % p.heads).to(tl.int32), (line // p.heads).to(tl.int32)
    split = tl.arange(0, SPLITS)
    there = split < splits
    at = split.to(tl.int64) * parts.rows + place
    tops = tl.load(parts.top + at, mask=there, other=-INFINITY)
    totals = tl.load(parts.share + at, mask=there, other=0.0)
    m = tl.max(tops, 0)
    base = tl.where(m == -INFINITY, 0.0, m)
    change = _bits(tops - base, C)
    shrink = tl.exp2(change)
    total = tl.sum(shrink * totals, 0)
    bits, far = 0.0, 0.0
    if C.ENTROPY:
        some = tl.load(parts.entropy + at, mask=there, other=0.0)
        bits = tl.sum(shrink * (some + tl.maximum(change, -1000.0) * totals), 0)
    if C.DISTANCE:
        far = tl.sum(shrink * tl.load(parts.distance + at, mask=there, other=0.0), 0)
    column = tl.arange(0, C.DVP)
    acc = tl.load(
        sums + at[:, None] * C.DV + column[None, :], mask=there[:, None] & (column < C.DV)[None, :], other=0.0
    )
    acc = tl.sum(acc * shrink[:, None], 0)
    sink = _sink(p, batch, head, C)
    m, lse, weight = _normalize(m, total, sink, 0.0, C, False)
    acc = acc * weight
    acc = tl.where(_is_finite(acc), acc, float("nan"))
    at = out.pointer + batch.to(tl.int64) * out.batch + head.to(tl.int64) * out.head + i.to(tl.int64) * out.row + column
    tl.store(at, acc.to(out.pointer.dtype.element_ty), mask=column < C.DV)
    _store_rows(results, place, True, m, lse, weight, total, bits, far, C)
    if C.TOP > 0:
        slot = tl.arange(0, SPLITS * C.K)
        at = ((slot // C.K).to(tl.int64) * parts.rows + place) * C.K + slot % C.K
        here = slot < splits * C.K
        best = tl.load(parts.top_weight + at, mask=here, other=-INFINITY)
        keys = tl.load(parts.top_index + at, mask=here, other=-1)
        row = tl.arange(0, 1)
        _store_top(results, place + row, row == 0, m + _zero(1), weight + _zero(1), best[None, :], keys[None, :], C)


# ---------------------------------------------------------------------------------------- which queries see which keys


@triton.jit
def bounds_kernel(p, bounds, ROWS: tl.constexpr):
    """Of each block of rows and run of its intervals: keys that some row sees, and keys that all see, ``(..., 4)``."""
    blocks = tl.cdiv(p.queries, ROWS)
    block, line = _program(blocks)
    line = line.to(tl.int64)
    row = tl.minimum(block * ROWS + tl.arange(0, ROWS), p.queries - 1)
    for run in range(p.mask.runs):
        at = (line * p.queries + row) * p.mask.runs + run
        starts, stops = tl.load(p.mask.starts + at), tl.load(p.mask.stops + at)
        some = starts < stops
        to = bounds + ((line * blocks + block) * p.mask.runs + run) * 4
        tl.store(to, tl.min(tl.where(some, starts, p.keys), 0))
        tl.store(to + 1, tl.max(tl.where(some, stops, 0), 0))
        tl.store(to + 2, tl.max(starts, 0))
        tl.store(to + 3, tl.min(stops, 0))


@triton.jit
def spans_kernel(p, bounds, spans, blocks, KEYS: tl.constexpr, CHUNK: tl.constexpr):
    """Of each block of keys: the blocks of rows to look at, and which in a row among them are inside, ``(..., 4)``."""
    tiles = tl.cdiv(p.keys, KEYS)
    tile, line = _program(tiles)
    line = line.to(tl.int64)
    start = tile * KEYS
    stop = start + KEYS
    first, last, inner = blocks, 0, blocks
    for chunk in range(0, blocks, CHUNK):
        block = chunk + tl.arange(0, CHUNK)
        touched, inside = _touches(p, bounds, line, block, blocks, start, stop)
        first = tl.minimum(first, tl.min(tl.where(touched, block, blocks), 0))
        last = tl.maximum(last, tl.max(tl.where(touched, block + 1, 0), 0))
        inner = tl.minimum(inner, tl.min(tl.where(inside, block, blocks), 0))
    outer = last
    for chunk in range(0, blocks, CHUNK):
        block = chunk + tl.arange(0, CHUNK)
        _, inside = _touches(p, bounds, line, block, blocks, start, stop)
        outer = tl.minimum(outer, tl.min(tl.where((block > inner) & (inside == 0), block, blocks), 0))
    first = tl.minimum(first, last)
    inner = tl.minimum(tl.maximum(inner, first), last)
    outer = tl.maximum(outer, inner)
    to = spans + (line * tiles + tile) * 4
    tl.store(to, first)
    tl.store(to + 1, inner)
    tl.store(to + 2, outer)
    tl.store(to + 3, last)


@triton.jit
def _touches(p, bounds, line, block, blocks, start, stop):
    """Whether blocks of rows see some of a tile of keys, and whether they see all of it."""
    there = block < blocks
    touched, inside = block < 0, block < 0
    for run in range(p.mask.runs):
        at = bounds + ((line * blocks + block) * p.mask.runs + run) * 4
        some, some_stop = tl.load(at, mask=there, other=0), tl.load(at + 1, mask=there, other=0)
        every, every_stop = tl.load(at + 2, mask=there, other=0), tl.load(at + 3, mask=there, other=0)
        touched = touched | ((some < stop) & (some_stop > start))
        inside = inside | ((every <= start) & (every_stop >= stop))
    return touched & there, inside & there


# ---------------------------------------------------------------------------------------- by columns


class Spans(NamedTuple):
    """What `spans_kernel` wrote; strides are 0 where one serves all batch elements, or heads."""

    pointer: Any
    batch: int
    head: int


@triton.jit
def _span(p, spans, tile, batch, head, C: tl.constexpr):
    """Blocks of rows that a tile of keys looks at: from `first`, inside from `inner` to `outer`, to `last`."""
    blocks = tl.cdiv(p.queries, C.ROWS)
    first, inner, outer, last = blocks * 0, blocks * 0, p.queries // C.ROWS, blocks
    if C.MASK == 1:
        at = spans.pointer + batch.to(tl.int64) * spans.batch + head.to(tl.int64) * spans.head + tile * 4
        first, inner, outer, last = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
        outer = tl.maximum(tl.minimum(outer, p.queries // C.ROWS), inner)
    if C.MASK == 2:
        outer = inner
    if (tile + 1) * C.KEYS > p.keys:
        outer = inner
    return first, inner, outer, last


@triton.jit
def _of_rows(numbers, place, there, CHECKED: tl.constexpr, OTHER: tl.constexpr = 0.0):
    """A number for each of some rows; `OTHER` for those that are not there, if that is checked."""
    return tl.load(numbers + place, mask=there, other=OTHER) if CHECKED else tl.load(numbers + place)


@triton.jit
def _rows_of_state(results, place, there, C: tl.constexpr, CHECKED: tl.constexpr):
    """What weights of some rows are computed with: w = exp(s - base) * share, s and base in the scores' unit."""
    if results.share is not None:
        base = _of_rows(results.top, place, there, CHECKED)
        share = _of_rows(results.share, place, there, CHECKED)
    else:
        base = _base_of(_of_rows(results.lse, place, there, CHECKED), C)
        share = _ones_like(base)
    return base, share


@triton.jit
def _base_of(lse, C: tl.constexpr):
    """What is subtracted from a row's scores, in their unit: its lse; where that is -inf, infinity: weights are 0."""
    base = tl.where(lse == -INFINITY, INFINITY, lse)
    if C.BIAS == 0:
        base = base * LOG2_E
    return base


@triton.jit
def _weights(s, base, C: tl.constexpr):
    """exp(s - base), both in the scores' unit."""
    return tl.exp2(_bits(s - base, C))


@triton.jit
def _gather(
    p, query_blocks, k, state, results, batch, head, j, first, stop, least, most, C: tl.constexpr, EDGE: tl.constexpr
):
    """Have a tile of keys receive from those rows of some blocks that lie between `least` and `most`.

    The state, ``(ROWS, KEYS)``: sums of weights, and the largest ones, not added up over rows yet. So each thread
    fetches the numbers of few rows.
    """
    sums, peaks = state
    for block in range(first, stop):
        i = block * C.ROWS + tl.arange(0, C.ROWS)
        q = _block(p.query, query_blocks, batch, head, block * C.ROWS, C.ROWS, C.D, C.DP, p.queries, EDGE)
        there = (i >= least) & (i < most)
        place = (batch * p.heads + head).to(tl.int64) * p.queries + i
        base, share = _rows_of_state(results, place, there, C, EDGE)
        s, _ = _score(_dot(q, k, C), p, batch, head, i[:, None], j[None, :], C)
        w = _weights(s, base[:, None], C) * share[:, None]
        if EDGE:
            w = tl.where(_seen(p, batch, head, i[:, None], j[None, :], C) & there[:, None], w, 0.0)
        sums += w
        peaks = _larger(peaks, w)
    return sums, peaks


@triton.jit
def _larger(a, b):
    """The larger of two; NaN if one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _largest(x):
    """The largest along the first axis; NaN if one is."""
    unknown = tl.max((x != x).to(tl.int32), 0)  # noqa: PLR0124
    return tl.where(unknown > 0, float("nan"), tl.max(x, 0))


@triton.jit
def columns_kernel(p, query_blocks, results, sums, cells, edges, cell_rows, spans, part, C: tl.constexpr):
    """What tiles of keys receive from all queries that see them, one range of queries after another.

    Args:
        query_blocks: a descriptor of the queries, or None.
        results: `Results` with what weights are computed from: top and share, or an lse.
        sums: where sums over all queries go, ``(B, H, Nk)``; or None.
        cells: where sums (with PEAK the largest) over each range of queries go, ``(lines, cell_rows, Nk)``; or None.
        edges, cell_rows: where the ranges begin and the last ends, and how many there are.
        part: the first batch element and head, counted together.
    """
    tile, place = _program(tl.cdiv(p.keys, C.KEYS))
    line = place + part
    batch, head = line // p.heads, line % p.heads
    j = tile * C.KEYS + tl.arange(0, C.KEYS)
    k = _of_keys(p.key, None, p, batch, head // p.group, tile * C.KEYS, C.D, C.DP, C, True)
    first, inner, outer, last = _span(p, spans, tile, batch, head, C)
    whole = _zero(C.KEYS)
    for cell in range(cell_rows):
        least, most = tl.load(edges + cell), tl.load(edges + cell + 1)
        # Blocks from `inside` to `outside` lie in the range, and are inside.
        begin = tl.maximum(first, least // C.ROWS)
        end = tl.maximum(tl.minimum(last, tl.cdiv(most, C.ROWS)), begin)
        inside = tl.minimum(tl.maximum(tl.maximum(inner, tl.cdiv(least, C.ROWS)), begin), end)
        outside = tl.minimum(tl.maximum(tl.minimum(outer, most // C.ROWS), inside), end)
        state = _zeros(C.ROWS, C.KEYS), _zeros(C.ROWS, C.KEYS)
        state = _gather(p, query_blocks, k, state, results, batch, head, j, begin, inside, least, most, C, True)
        state = _gather(p, query_blocks, k, state, results, batch, head, j, inside, outside, least, most, C, False)
        state = _gather(p, query_blocks, k, state, results, batch, head, j, outside, end, least, most, C, True)
        found, peaks = state
        if sums is not None or not C.PEAK:
            whole += tl.sum(found, 0)
        if cells is not None:
            at = cells + (place.to(tl.int64) * cell_rows + cell) * p.keys + j
            tl.store(at, _largest(peaks) if C.PEAK else tl.sum(found, 0), mask=j < p.keys)
    if sums is not None:
        tl.store(sums + line.to(tl.int64) * p.keys + j, whole, mask=j < p.keys)


@triton.jit
def _multiply(
    p,
    fetch,
    k,
    product,
    results,
    rows,
    batch,
    head,
    j,
    first,
    stop,
    C: tl.constexpr,
    EDGE: tl.constexpr,
    CARE: tl.constexpr,
):
    """Have a tile of keys add up the products of its weights with rows of some blocks."""
    for block in range(first, stop):
        i = block * C.ROWS + tl.arange(0, C.ROWS)
        there = i < p.queries
        q = _block(p.query, fetch[0], batch, head, block * C.ROWS, C.ROWS, C.D, C.DP, p.queries, EDGE)
        place = (batch * p.heads + head).to(tl.int64) * p.queries + i
        base, share = _rows_of_state(results, place, there, C, EDGE)
        s, _ = _score(_dot(k, q, C), p, batch, head, i[None, :], j[:, None], C)
        w = _weights(s, base[None, :], C) * share[None, :]
        y = _block(rows, fetch[1], batch, head, block * C.ROWS, C.ROWS, C.DV, C.DVP, p.queries, EDGE)
        if EDGE:
            seen = _seen(p, batch, head, i[None, :], j[:, None], C) & there[None, :]
            w = tl.where(seen, w, 0.0)
        if CARE:
            product = _add_of_groups(product, w, y, C) if C.GROUPS else _add_with_care(product, w, y, seen, C)
        else:
            product = tl.dot(w.to(y.dtype), y, product, input_precision=C.PRODUCT)
    return product


@triton.jit
def _add_of_groups(acc, w, member, C: tl.constexpr):
    """Sums of w by group, in which NaN makes NaN of the groups that its row is of, and of no other."""
    unknown = w != w  # noqa: PLR0124
    bad = tl.dot(unknown.to(member.dtype), member, input_precision="ieee")
    acc = tl.where(bad > 0, float("nan"), acc)
    return tl.dot(tl.where(unknown, 0.0, w).to(member.dtype), member, acc, input_precision=C.PRODUCT)


@triton.jit
def product_kernel(p, query_blocks, row_blocks, results, rows, product, spans, C: tl.constexpr):
    """The transposed pattern times rows, a tile of keys for each program.

    Args:
        query_blocks, row_blocks: descriptors of queries and rows, or None.
        results: `Results` with what weights are computed from: top and share, or an lse.
        rows, product: an `Operand` of the rows, and where the product goes, ``(B, H, Nk, DV)``.
    """
    tile, line = _program(tl.cdiv(p.keys, C.KEYS))
    batch, head = line // p.heads, line % p.heads
    j = tile * C.KEYS + tl.arange(0, C.KEYS)
    k = _of_keys(p.key, None, p, batch, head // p.group, tile * C.KEYS, C.D, C.DP, C, True)
    first, inner, outer, last = _span(p, spans, tile, batch, head, C)
    fetch = query_blocks, row_blocks
    x = _zeros(C.KEYS, C.DVP)
    x = _multiply(p, fetch, k, x, results, rows, batch, head, j, first, inner, C, True, False)
    x = _multiply(p, fetch, k, x, results, rows, batch, head, j, inner, outer, C, False, False)
    x = _multiply(p, fetch, k, x, results, rows, batch, head, j, outer, last, C, True, False)
    if C.MASK != 0 or C.GROUPS:  # noqa: SIM102  known when this is compiled
        if _has_nan(x):  # perhaps from rows that do not see these keys, or of another group: look again
            x = _zeros(C.KEYS, C.DVP)
            x = _multiply(p, fetch, k, x, results, rows, batch, head, j, first, last, C, True, True)
    column = tl.arange(0, C.DVP)
    at = product + (line.to(tl.int64) * p.keys + j)[:, None] * C.DV + column[None, :]
    tl.store(at, x, mask=(j < p.keys)[:, None] & (column < C.DV)[None, :])


@triton.jit
def cells_kernel(cells, out, edges, keys, columns, PEAK: tl.constexpr, CHUNK: tl.constexpr):
    """Sums, or the largest, over ranges of keys that `edges` bound: ``(lines, Nk)`` to ``(lines, columns)``."""
    place = tl.program_id(0).to(tl.int64)
    cell, line = place % columns, place // columns
    least, most = tl.load(edges + cell), tl.load(edges + cell + 1)
    found = tl.zeros((CHUNK,), tl.float32)
    for start in range(least, most, CHUNK):
        j = start + tl.arange(0, CHUNK)
        here = tl.load(cells + line * keys + j, mask=j < most, other=0.0)
        found = _larger(found, here) if PEAK else found + here
    whole = _largest(found) if PEAK else tl.sum(found, 0)
    tl.store(out + place, whole)


@triton.jit
def window_kernel(p, lse, out, row_start, row_stop, key_start, key_stop, C: tl.constexpr):
    """Weights of some queries and keys, ``(B, H, rows, columns)``, from an lse.

    An lse far from 0 has lost digits: such rows look at all their keys again.
    """
    tile, rest = _program(tl.cdiv(key_stop - key_start, C.KEYS))
    blocks = tl.cdiv(row_stop - row_start, C.ROWS)
    block, line = rest % blocks, rest // blocks
    batch, head = line // p.heads, line % p.heads
    i = row_start + block * C.ROWS + tl.arange(0, C.ROWS)
    j = key_start + tile * C.KEYS + tl.arange(0, C.KEYS)
    q = _tile(p.query, batch, head, i, C.D, C.DP, p.queries, True)
    k = _of_keys(p.key, None, p, batch, head // p.group, key_start + tile * C.KEYS, C.D, C.DP, C, True)
    s, _ = _score(_dot(q, k, C), p, batch, head, i[:, None], j[None, :], C)
    there = i < row_stop
    lse = _of_rows(lse, line.to(tl.int64) * p.queries + i, there, True)
    base, share = _base_of(lse, C), _ones_like(lse)
    if tl.max((_is_finite(lse) & (tl.abs(lse) > FAR)).to(tl.int32), 0) > 0:
        heads, row = head + i * 0, tl.minimum(i, p.queries - 1)
        state = _nothing_seen(C)
        state = _look_everywhere(p, (None, None), q, state, batch, heads, head // p.group, row, 0, p.keys, 0, C, False)
        total = tl.where(state[3] == INFINITY, float("nan"), state[2])
        sink = _sink(p, batch, heads, C)
        base, _lse, share = _normalize(state[1], total, sink, lse, C, False)
    w = _weights(s, base[:, None], C) * share[:, None]
    w = tl.where(_seen(p, batch, head, i[:, None], j[None, :], C), w, 0.0)
    at = out + (line.to(tl.int64) * (row_stop - row_start) + i - row_start)[:, None] * (key_stop - key_start)
    tl.store(at + (j - key_start)[None, :], w, mask=there[:, None] & (j < key_stop)[None, :])
