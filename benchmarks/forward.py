"""Full and causal attention, forward, beside PyTorch's fused attention; small calls as well."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from harness import (
    Effort,
    Section,
    Target,
    compare,
    judged,
    name_of,
    progress,
    spread,
    table,
    tensors,
    threads,
    versus,
)
from torch import Tensor

import saccade
from saccade import masks
from saccade.backends import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ORACLE = 2048  # the longest for which attention in float64 is computed: 32 MiB for each head


@dataclass(frozen=True)
class Case:
    """One attention problem."""

    heads: int
    length: int
    width: int
    dtype: torch.dtype
    causal: bool

    def __str__(self) -> str:
        kind = "causal" if self.causal else "full"
        return f"{name_of(self.dtype)} {kind}, N {self.length:,}, D {self.width}, H {self.heads}"

    @property
    def target(self) -> Target:
        """How many times as fast as PyTorch's it should be."""
        if self.dtype == torch.float16:
            return Target(1)
        if self.dtype == torch.float32:
            full, causal = (1.25 if self.width == 64 else 1.15), (2.3 if self.length <= 512 else 1.3)
        else:
            full, causal = (2.8 if self.length <= 128 else 2.2), (4.2 if self.length <= 512 else 2.3)
        return Target(causal if self.causal else full)

    @property
    def operations(self) -> float:
        """Useful floating-point operations: two products of N x N x D, half of each if causal."""
        return 4 * self.heads * self.length**2 * self.width / (2 if self.causal else 1)

    def calls(self) -> dict[str, Callable[[], Tensor]]:
        """PyTorch's attention and ours; with float16 also ours in float32."""
        q, k, v = tensors(self.heads, self.length, self.width, self.dtype)
        mask = masks.causal() if self.causal else None
        calls = {
            "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=self.causal),
            "saccade": lambda: saccade.attention(q, k, v, mask=mask),
        }
        if self.dtype == torch.float16:
            wide = [x.float() for x in (q, k, v)]
            calls["float32"] = lambda: saccade.attention(*wide, mask=mask)
        return calls

    def exact(self) -> Tensor:
        """The formula in float64, one head after the other."""
        q, k, v = tensors(self.heads, self.length, self.width, self.dtype)
        heads = [self._exact(*(x[:, h].double() for x in (q, k, v))) for h in range(self.heads)]
        return torch.stack(heads, 1)

    def _exact(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT / math.sqrt(self.width)
        if self.causal:
            hidden = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        return scores.softmax(-1) @ value


@dataclass(frozen=True)
class Result:
    """What was measured of a case."""

    case: Case
    many: dict[str, float]  # seconds with all threads
    one: dict[str, float]  # and with one
    peak: float | None
    errors: tuple[float, float] | None

    def row(self) -> list[str]:
        """Its row in the table."""
        target, single = self.case.target, self.one["sdpa"] / self.one["saccade"]
        share = "" if self.peak is None else f"{self.case.operations / self.one['saccade'] / self.peak:.0%}"
        errors = ["", ""] if self.errors is None else [f"{error:.1e}" for error in self.errors]
        sdpa, ours, ratio, bound = versus(self.many["sdpa"], self.many["saccade"], target)
        return [str(self.case), sdpa, ours, ratio, judged(single, target), bound, share, *errors]


def cases(effort: Effort) -> list[Case]:
    """Lengths from 128 to 16,384, with fewer heads from 8,192 on."""
    lengths = {128: 8, 2048: 8} if effort.quick else {128: 8, 512: 8, 2048: 8, 8192: 2, 16384: 1}
    return [
        Case(heads, length, width, dtype, causal)
        for dtype in DTYPES
        for causal in (False, True)
        for length, heads in lengths.items()
        for width in ((64,) if effort.quick else (64, 128))
    ]


def measure(case: Case, effort: Effort) -> Result:
    """All that the table says of a case."""
    progress(f"forward: {case}")
    calls = case.calls()
    many = compare(effort, calls)
    errors = None
    if case.length <= ORACLE:
        exact = case.exact()
        errors = tuple((calls[name]().double() - exact).abs().max().item() for name in ("sdpa", "saccade"))
    calls.pop("float32", None)
    library = native.load()
    peaks: list[float] = []
    if not isinstance(library, str):  # in turn with the rest, as clocks change
        calls["peak"] = lambda: peaks.append(library.peak(5_000_000))
    with threads(1):
        one = compare(effort, calls)
    return Result(case, many, one, statistics.median(peaks) if peaks else None, errors)


def float16_beside_float32(results: list[Result]) -> str:
    """What storing half as much costs, in the same run."""
    rows = [
        [str(r.case), *versus(r.many["float32"], r.many["saccade"], Target(1))] for r in results if "float32" in r.many
    ]
    return table(["case", "saccade float32, ms", "saccade float16, ms", "ratio", "target"], rows)


def run(effort: Effort) -> Section:
    """The tables of forward attention."""
    with torch.no_grad():
        results = [measure(case, effort) for case in cases(effort)]
    count = torch.get_num_threads()
    header = ["case", "torch SDPA, ms", "saccade, ms", f"ratio, {count} threads", "ratio, 1 thread", "target"]
    header += ["FMA peak, 1 thread", "error of SDPA", "error of saccade"]
    what = (
        "Forward, B 1. The share of the peak is that of useful operations (4 H N² D, half for causal) on one thread in "
        "what one core does of nothing but float32 multiply-adds. Errors are the largest from the formula in float64."
    )
    parts = [
        what,
        table(header, [result.row() for result in results]),
        "float16 beside our own float32:",
        float16_beside_float32(results),
    ]
    return Section("\n\n".join(parts), _sentence(results))


def _sentence(results: list[Result]) -> str:
    means = [
        f"{name_of(dtype)} {spread([r.many['sdpa'] / r.many['saccade'] for r in results if r.case.dtype == dtype])}"
        for dtype in DTYPES
    ]
    return f"Forward, against PyTorch's fused attention: {', '.join(means)} times as fast."


# ---------------------------------------------------------------------------------------- small calls


def small(effort: Effort) -> Section:
    """Calls so short that the way to the kernel counts."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for causal in (False, True):
            for length in (8, 64) if effort.quick else (8, 16, 32, 64):
                case = Case(12, length, 64, dtype, causal)
                progress(f"small: {case}")
                with torch.no_grad():
                    seconds = compare(effort, case.calls())
                rows.append([str(case), *versus(seconds["sdpa"], seconds["saccade"], Target(1.5))])
    header = ["case", "torch SDPA, ms", "saccade, ms", "ratio", "target"]
    return Section("Small, B 1, the overhead of a call included:\n\n" + table(header, rows))
