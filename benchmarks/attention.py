"""How fast is the `tiled` backend on this machine's CPU, beside PyTorch's fused attention in the same run?

    python benchmarks/attention.py [--quick] [--write]

Prints a table; `--write` puts it into docs/benchmarks/attention.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import alternate, conditions, peak_memory, publish, statement_seconds, table
from torch import Tensor

import saccade
from saccade import masks, statistics
from saccade.masks import Lengths


def tensors(heads: int, length: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values (1, H, N, D)."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, width).to(dtype) for _ in range(3))
    return query, key, value


def against_sdpa(lengths: list[int], rounds: int) -> list[list[str]]:
    """Full and causal attention, forward, float32 and bfloat16."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for length in lengths:
            for width in (64, 128):
                heads = max(1, 16384 // length) if length >= 2048 else 8
                for causal in (False, True):
                    q, k, v = tensors(heads, length, width, dtype)
                    mask = masks.causal() if causal else None
                    rows.append(
                        _row(
                            f"{'causal' if causal else 'full'} N {length} D {width} H {heads} {str(dtype)[6:]}",
                            lambda q=q, k=k, v=v, c=causal: F.scaled_dot_product_attention(q, k, v, is_causal=c),
                            lambda q=q, k=k, v=v, m=mask: saccade.attention(q, k, v, mask=m),
                            rounds,
                        )
                    )
    return rows


def backward(rounds: int) -> list[list[str]]:
    """Forward and backward together."""
    rows = []
    for causal in (False, True):
        q, k, v = (x.requires_grad_() for x in tensors(4, 2048, 64))
        mask = masks.causal() if causal else None

        def step(output: Callable[[], Tensor], inputs: tuple[Tensor, ...] = (q, k, v)) -> object:
            return torch.autograd.grad(output().sum(), inputs)

        rows.append(
            _row(
                f"{'causal' if causal else 'full'} N 2048 D 64 H 4 forward + backward",
                lambda q=q, k=k, v=v, c=causal, s=step: s(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=c)),
                lambda q=q, k=k, v=v, m=mask, s=step: s(lambda: saccade.attention(q, k, v, mask=m)),
                rounds,
            )
        )
    return rows


def window(length: int, rounds: int) -> list[list[str]]:
    """A sliding window of 512 keys, beside SDPA with the same window as a boolean mask."""
    q, k, v = tensors(1, length, 64)
    mask = masks.window(511, 0)
    visible = mask.to_dense(Lengths(1, 1, length, length))
    return [
        _row(
            f"window 512 N {length} D 64 H 1 (SDPA: boolean mask)",
            lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=visible),
            lambda: saccade.attention(q, k, v, mask=mask),
            rounds,
        )
    ]


def _row(name: str, peer: Callable[[], object], ours: Callable[[], object], rounds: int) -> list[str]:
    with torch.set_grad_enabled("backward" in name):
        seconds = alternate({"sdpa": peer, "saccade": ours}, rounds=rounds)
    ratio = seconds["sdpa"] / seconds["saccade"]
    return [name, f"{seconds['sdpa'] * 1e3:.1f}", f"{seconds['saccade'] * 1e3:.1f}", f"{ratio:.2f}"]


def everything(length: int) -> list[statistics.Statistic]:
    """One of each statistic."""
    groups = torch.arange(length) * 8 // length
    return [
        statistics.LogSumExp(),
        statistics.Entropy(),
        statistics.MaxWeight(),
        statistics.TopKeys(8),
        statistics.Distance(),
        statistics.Mass(groups),
        statistics.Received(),
        statistics.Map(256),
    ]


def memory(lengths: list[int]) -> list[list[str]]:
    """Peak extra memory and time of one head of width 64 with every statistic, inputs not counted."""
    rows = []
    for length in lengths:
        q, k, v = tensors(1, length, 64)
        taken: list[float] = []

        def run(q: Tensor = q, k: Tensor = k, v: Tensor = v, n: int = length, taken: list[float] = taken) -> None:
            taken.append(
                alternate(
                    {"all": lambda: saccade.attention(q, k, v, mask=masks.causal(), statistics=everything(n))},
                    rounds=1,
                    warm=False,
                )["all"]
            )

        peak = peak_memory(run)
        stored = length * length * 4 / 2**20
        rows.append([f"{length:,}", f"{peak:.0f}", f"{stored:,.0f}", f"{taken[0]:.2f}"])
    return rows


def import_seconds() -> float:
    """What `import saccade` costs once every public name was used, as names are imported on first use."""
    return statement_seconds("import saccade; [getattr(saccade, n) for n in saccade.__all__]", after="import torch")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer lengths and rounds")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/benchmarks")
    options = parser.parse_args()
    rounds = 3 if options.quick else 5
    lengths = [2048, 8192] if options.quick else [128, 512, 2048, 8192]
    header = ["case", "torch SDPA, ms", "saccade tiled, ms", "ratio"]
    parts = [
        f"Conditions: {conditions()}. Medians of {rounds} alternating runs; a ratio above 1 means Saccade is faster.",
        table(header, against_sdpa(lengths, rounds) + backward(rounds) + window(16384, rounds)),
        "One head of width 64, causal, float32, every statistic at once; memory beyond the inputs, sampled:",
        table(
            ["tokens", "peak, MiB", "stored pattern would be, MiB", "seconds"],
            memory([1024, 4096, 16384] if options.quick else [1024, 4096, 16384, 65536]),
        ),
        f"`import saccade` with all its public names takes {import_seconds():.3f} s beyond `import torch`.",
    ]
    publish("attention", "Attention on the CPU", "\n\n".join(parts), write=options.write)


if __name__ == "__main__":
    main()
