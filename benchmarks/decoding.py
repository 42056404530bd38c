"""One new token over a long cache: how fast keys and values are read, beside PyTorch and plain reading of memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from harness import Effort, Section, Target, compare, judged, ms, name_of, progress, spread, table, versus
from torch import Tensor

import saccade

KEYS = 8192
PAGE = 128
READING = Target(0.8)
# Several caches in turn, as the layers of a model have them: together so large that none stays in the processor's.
BYTES = 256 * 2**20


@dataclass(frozen=True)
class Case:
    """Heads, and what the ratios to SDPA and to SDPA with folded groups should be."""

    heads: int
    key_heads: int
    width: int
    dtype: torch.dtype
    target: Target
    folded: Target | None = None

    def __str__(self) -> str:
        return f"{name_of(self.dtype)}, H {self.heads}/{self.key_heads}, D {self.width}"

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        return 2 * self.key_heads * KEYS * self.width * self.dtype.itemsize


CASES = (
    Case(32, 32, 64, torch.float32, Target(1.3)),
    Case(32, 32, 128, torch.float32, Target(2)),
    Case(32, 8, 128, torch.float32, Target(4), Target(1.7)),
    Case(32, 8, 128, torch.bfloat16, Target(15), Target(2.7)),
)


def in_pages(x: Tensor, order: Tensor) -> Tensor:
    """A cache (1, Hk, N, D) as pages (P, Hk, S, D), the i-th stretch of keys in page order[i]."""
    pages = torch.empty(len(order), x.shape[1], PAGE, x.shape[3], dtype=x.dtype)
    pages[order] = x[0].unflatten(1, (-1, PAGE)).transpose(0, 1)
    return pages


def in_turn(call: Callable[[Tensor, Tensor], Tensor], caches: list[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
    """A call that takes the next cache each time."""
    caches_again = itertools.cycle(caches)
    return lambda: call(*next(caches_again))


def calls(case: Case) -> dict[str, Callable[[], Tensor]]:
    """PyTorch's attention, ours, ours in pages, and PyTorch's with the group of queries as its length."""
    torch.manual_seed(0)
    query = torch.randn(1, case.heads, 1, case.width).to(case.dtype)
    shape = (1, case.key_heads, KEYS, case.width)
    count = -(-BYTES // case.bytes)
    caches = [(torch.randn(shape).to(case.dtype), torch.randn(shape).to(case.dtype)) for _ in range(count)]
    order = torch.randperm(KEYS // PAGE)
    paged = [(in_pages(k, order), in_pages(v, order)) for k, v in caches]
    pages = order[None]
    folded = query.view(1, case.key_heads, -1, case.width)
    found = {
        "sdpa": in_turn(lambda k, v: F.scaled_dot_product_attention(query, k, v, enable_gqa=True), caches),
        "saccade": in_turn(lambda k, v: saccade.attention(query, k, v), caches),
        "paged": in_turn(lambda k, v: saccade.attention(query, k, v, page_table=pages), paged),
    }
    if case.folded:
        found["folded"] = in_turn(lambda k, v: F.scaled_dot_product_attention(folded, k, v).view_as(query), caches)
    return found


def _agree(found: dict[str, Callable[[], Tensor]], case: Case) -> None:
    """All of them compute the same (this leaves each at its second cache)."""
    expected = found["saccade"]()
    for name in found.keys() - {"saccade"}:
        torch.testing.assert_close(found[name](), expected, rtol=0, atol=1e-4 if case.dtype == torch.float32 else 0.02)


def measure(case: Case, effort: Effort) -> dict[str, float]:
    """Seconds of each call, and of reading as plainly as it goes."""
    progress(f"decode: {case}")
    found = calls(case)
    _agree(found, case)
    memory = torch.ones(BYTES // 4)
    return compare(effort, {**found, "read": memory.sum})


def share(case: Case, seconds: dict[str, float]) -> float:
    """Speed of reading keys and values, relative to plain reading."""
    return case.bytes / seconds["saccade"] / (BYTES / seconds["read"])


def beside_sdpa(results: dict[Case, dict[str, float]]) -> list[list[str]]:
    """Rows of ratios."""
    rows = []
    for case, seconds in results.items():
        rows.append([str(case), "SDPA, enable_gqa", *versus(seconds["sdpa"], seconds["saccade"], case.target)])
        if case.folded:
            ratio = versus(seconds["folded"], seconds["saccade"], case.folded)
            rows.append([str(case), "SDPA, group as length", *ratio])
    return rows


def beside_reading(results: dict[Case, dict[str, float]]) -> list[list[str]]:
    """Rows of GB/s."""
    return [
        [
            str(case),
            f"{BYTES / seconds['read'] / 1e9:.1f}",
            f"{case.bytes / seconds['saccade'] / 1e9:.1f}",
            judged(share(case, seconds), READING),
            str(READING),
            ms(seconds["saccade"]),
            ms(seconds["paged"]),
        ]
        for case, seconds in results.items()
    ]


def run(effort: Effort) -> Section:
    """The tables of decoding."""
    with torch.no_grad():
        results = {case: measure(case, effort) for case in CASES}
    ratios = [seconds["sdpa"] / seconds["saccade"] for seconds in results.values()]
    shares = [share(case, seconds) for case, seconds in results.items()]
    read = (
        f"What is read of keys and values, beside the sum of a float32 tensor of {BYTES // 2**20} MiB; and the same "
        f"from a cache in shuffled pages of {PAGE} keys:"
    )
    parts = [
        f"Decoding, B 1, one query, {KEYS:,} keys, no mask, caches of {BYTES // 2**20} MiB or more together in turn:",
        table(["case", "against", "peer, ms", "saccade, ms", "ratio", "target"], beside_sdpa(results)),
        read,
        table(
            ["case", "sum, GB/s", "saccade, GB/s", "share", "target", "contiguous, ms", "in pages, ms"],
            beside_reading(results),
        ),
    ]
    short = (
        f"Decoding over {KEYS:,} keys is {spread(ratios)} times as fast as PyTorch's and reads at "
        f"{min(shares):.0%} to {max(shares):.0%} of the speed of plain reading."
    )
    return Section("\n\n".join(parts), short)
