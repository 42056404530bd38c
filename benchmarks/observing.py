"""What asking costs: statistics beside a plain forward, beside a stored pattern, and in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import (
    Effort,
    Section,
    Target,
    alternate,
    compare,
    fresh,
    judged,
    ms,
    name_of,
    peak_memory,
    progress,
    spread,
    table,
    tensors,
    versus,
)
from torch import Tensor

import saccade
from saccade import masks, statistics
from saccade.statistics import Statistic

CELLS = 512
GROUPS = 8
TOP = 8


def groups_of(length: int) -> Tensor:
    """Keys in equal stretches."""
    return torch.arange(length) * GROUPS // length


def everything(length: int) -> list[Statistic]:
    """One of each statistic, in the order of `eager`'s results."""
    return [
        statistics.LogSumExp(),
        statistics.Entropy(),
        statistics.MaxWeight(),
        statistics.TopKeys(TOP),
        statistics.Distance(),
        statistics.Mass(groups_of(length)),
        statistics.Received(),
        statistics.Map(CELLS),
    ]


# ---------------------------------------------------------------------------------------- beside a plain forward


def bundles(length: int, dtype: torch.dtype) -> dict[str, tuple[list[Statistic], Target]]:
    """What is asked together, and what the whole call may take relative to one that asks nothing."""
    narrow, long = dtype != torch.float32, length >= 8192
    rows = [statistics.LogSumExp(), statistics.Entropy()]
    all_bound = (1.3 if narrow else 1.12) if long else (1.5 if narrow else 1.25)
    bounds = {"rows": 1.03, "keys": 1.12 if narrow else 1.08, "top": 1.25 if narrow else 1.15, "all": all_bound}
    targets = {name: Target(bound, at_most=True) for name, bound in bounds.items()}
    return {
        "lse, entropy": (rows, targets["rows"]),
        f"the same, received, map of {CELLS}": (
            [*rows, statistics.Received(), statistics.Map(CELLS)],
            targets["keys"],
        ),
        f"top {TOP} keys": ([statistics.TopKeys(TOP)], targets["top"]),
        "everything": (everything(length), targets["all"]),
    }


def beside_plain(heads: int, length: int, dtype: torch.dtype, effort: Effort) -> tuple[list[list[str]], float]:
    """Rows of one shape, and the ratio for everything."""
    progress(f"statistics: {name_of(dtype)}, N {length:,}, H {heads}")
    q, k, v = tensors(heads, length, 64, dtype)
    asked = bundles(length, dtype)
    calls: dict[str, Callable[[], object]] = {"plain": lambda: saccade.attention(q, k, v)}
    for name, (wanted, _) in asked.items():
        calls[name] = lambda wanted=wanted: saccade.attention(q, k, v, statistics=wanted)
    # Some per cent are to be told apart: more turns than elsewhere.
    seconds = alternate(calls, rounds=2 * effort.rounds + 1, seconds=8 * effort.seconds)
    plain = seconds.pop("plain")
    case = f"{name_of(dtype)}, N {length:,}, H {heads}"
    rows = [
        [case, name, ms(plain), ms(taken), judged(taken / plain, asked[name][1]), str(asked[name][1])]
        for name, taken in seconds.items()
    ]
    return rows, seconds["everything"] / plain


def run(effort: Effort) -> Section:
    """The table of what statistics cost."""
    rows, costs = [], []
    for length, heads in {2048: 4}.items() if effort.quick else {2048: 4, 8192: 2}.items():
        for dtype in (torch.float32, torch.bfloat16):
            with torch.no_grad():
                found, cost = beside_plain(heads, length, dtype, effort)
            rows += found
            costs.append(cost)
    text = (
        f"Statistics beside a plain forward, B 1, D 64, full attention, mass of {GROUPS} groups. Here the ratio is the "
        "time with statistics divided by the time without:\n\n"
    )
    text += table(["case", "asked", "plain, ms", "with statistics, ms", "ratio", "target"], rows)
    return Section(
        text, f"A forward that answers all eight statistics takes {spread(costs)} times as long as a plain one."
    )


# ---------------------------------------------------------------------------------------- beside a stored pattern


def eager(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Attention that stores its pattern and reduces it by PyTorch operations: output, then `everything`.

    Written to be fast: reductions are products where they can be, and the entropy follows from the lse.
    """
    length = query.shape[2]
    scores = query @ key.mT * (1 / math.sqrt(query.shape[3]))
    weights = scores.softmax(-1)
    lse = scores.logsumexp(-1)
    entropy = lse - (weights * scores).sum(-1)
    del scores
    position = torch.arange(length, dtype=weights.dtype)
    distance = (position[:, None] - position).abs_()
    return [
        weights @ value,
        lse,
        entropy,
        weights.amax(-1),
        *weights.topk(TOP, dim=-1)[::-1],
        (weights * distance).sum(-1),
        weights @ F.one_hot(groups_of(length), GROUPS).to(weights.dtype),
        weights.sum(-2),
        F.avg_pool2d(weights, length // CELLS),
    ]


def observed(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """The same from Saccade."""
    output, report = saccade.attention(query, key, value, statistics=everything(query.shape[2]))
    results = [output]
    for field in report:
        results += report.top_keys if field == "top_keys" else [report[field]]
    return results


def eager_memory(length: int) -> float:
    """Peak extra MiB of `eager`, one head. For a fresh process."""
    return _memory(eager, length)


def observed_memory(length: int) -> float:
    """Peak extra MiB of `observed`, one head. For a fresh process."""
    return _memory(observed, length)


def _memory(call: Callable[[Tensor, Tensor, Tensor], object], length: int) -> float:
    with torch.no_grad():
        call(*tensors(1, CELLS, 64))  # what is loaded once is no memory of the call
        inputs = tensors(1, length, 64)
        return peak_memory(lambda: call(*inputs))


def _agree() -> None:
    """Both answer the same."""
    inputs = tensors(1, 2 * CELLS, 64)
    for ours, theirs in zip(observed(*inputs), eager(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def _against_stored(length: int, heads: int, effort: Effort) -> dict[str, float]:
    progress(f"stored: N {length:,}, H {heads}")
    q, k, v = tensors(heads, length, 64)
    calls = {
        "eager": lambda: eager(q, k, v),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v),
        "saccade": lambda: observed(q, k, v),
    }
    return compare(effort, calls)


def stored(effort: Effort) -> Section:
    """The table of everything beside a stored pattern."""
    shapes = ((2048, 4, Target(6)),) if effort.quick else ((2048, 4, Target(6)), (8192, 1, Target(8)))
    rows, ratios, plain = [], [], 0.0
    with torch.no_grad():
        _agree()
        for length, heads, target in shapes:
            seconds = _against_stored(length, heads, effort)
            case, ours = f"N {length:,}, H {heads}", seconds["saccade"]
            rows.append([case, "eager, pattern stored", *versus(seconds["eager"], ours, target)])
            bound = Target(1) if length == 8192 else None
            rows.append([case, "torch SDPA, nothing asked", *versus(seconds["sdpa"], ours, bound)])
            ratios.append(seconds["eager"] / ours)
            plain = seconds["sdpa"] / ours
    longest = shapes[-1][0]
    progress(f"stored: memory at N {longest:,}")
    eager_peak, peak = fresh(eager_memory, longest), fresh(observed_memory, longest)
    less = eager_peak / max(peak, 0.1)
    memory = [f"{longest:,}", f"{eager_peak:,.0f}", f"{peak:,.1f}", judged(less, Target(100)), str(Target(100))]
    what = (
        "Everything, beside attention that stores its pattern and reduces it in the same way by PyTorch operations, "
        "and beside PyTorch's fused attention, which can tell nothing; float32, B 1, D 64, full attention:"
    )
    parts = [
        what,
        table(["case", "against", "peer, ms", "saccade with everything, ms", "ratio", "target"], rows),
        "Memory at its peak beyond the inputs, one head, each in a process of its own:",
        table(["tokens", "eager, MiB", "saccade, MiB", "times less", "target"], [memory]),
    ]
    short = (
        f"Asking everything is {spread(ratios)} times as fast as storing the pattern and reducing it, takes {less:.0f} "
        f"times less memory at {longest:,} tokens, and runs there at {plain:.2f} times the speed of PyTorch's fused "
        "attention, which tells nothing."
    )
    return Section("\n\n".join(parts), short)


# ---------------------------------------------------------------------------------------- memory


def causal_everything(length: int) -> tuple[float, float]:
    """Peak extra MiB and seconds of one causal head with every statistic. For a fresh process."""
    taken = []

    def call(n: int) -> None:
        start = time.perf_counter()
        saccade.attention(*inputs[n], mask=masks.causal(), statistics=everything(n))
        taken.append(time.perf_counter() - start)

    with torch.no_grad():
        inputs = {n: tensors(1, n, 64) for n in (128, length)}
        call(128)  # what is loaded once is no memory of the call
        return peak_memory(lambda: call(length)), taken[-1]


def memory(effort: Effort) -> Section:
    """The table of memory and time by length."""
    rows = []
    for length in (1024, 4096, 16384) if effort.quick else (1024, 4096, 16384, 65536, 131072):
        progress(f"memory: N {length:,}")
        peak, seconds = fresh(causal_everything, length)
        rows.append([f"{length:,}", f"{peak:.1f}", f"{length * length * 4 / 2**20:,.0f}", f"{seconds:.2f}"])
    text = "One head of width 64, causal, float32, everything; memory beyond the inputs at its peak:\n\n"
    return Section(text + table(["tokens", "peak, MiB", "stored pattern would be, MiB", "seconds"], rows))
