"""How fast is attention on an NVIDIA GPU, beside its peers in the same run, and what does asking cost?

    python benchmarks/gpu.py [--check] [--tune] [--bench] [--only forward,decoding] [--write]

`--check` runs the conformance suite on the GPU in all dtypes. `--tune` measures candidates for the kernels' tiles and
prints the table for `backends/gpu.py`. `--bench` prints tables; `--write` puts them into docs/benchmarks/gpu.md.

Peers are PyTorch's: scaled_dot_product_attention with FlashAttention-2, cuDNN or the memory-efficient kernel behind it,
and FlexAttention, compiled.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from harness import Section, Target, judged, name_of, progress, publish, spread, table
from torch import Tensor
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

import saccade
from saccade import masks
from saccade.backends import gpu
from saccade.statistics import Entropy, LogSumExp, Map, MaxWeight, Received, Statistic, TopKeys

ROUNDS = 5
TOKENS = 32_768  # in a batch
HIDDEN = 2048  # heads times their width
LENGTHS = (1024, 4096, 16_384, 32_768)

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

BEST = Target(1.0)
CUDNN = Target(0.8)
BACKWARD = Target(0.9)
MASKED = Target(1.1)
CREATION = Target(5.0)
BANDWIDTH = Target(0.8)
EAGER = Target(20.0)

Case = Callable[[], object]
Inputs = tuple[Tensor, Tensor, Tensor]


# ---------------------------------------------------------------------------------------- time


def milliseconds(cases: dict[str, Case]) -> dict[str, float]:
    """Median milliseconds of each case on the GPU, in turn; NaN for those that do not run."""
    from triton.testing import do_bench

    times: dict[str, list[float]] = {name: [] for name in cases}
    for name, case in cases.items():
        try:
            case()
        except (RuntimeError, NotImplementedError) as error:
            progress(f"  {name} does not run: {str(error).splitlines()[0][:100]}")
            times[name] = [math.nan]
    for _ in range(ROUNDS):
        for name, case in cases.items():
            if not math.isnan(sum(times[name])):
                times[name].append(do_bench(case, warmup=5, rep=20, return_mode="median"))
    torch.cuda.synchronize()
    return {name: statistics.median(some) for name, some in times.items()}


def tensors(length: int, width: int, *, batch: int = 0, heads: int = 0, key_heads: int = 0, queries: int = 0) -> Inputs:
    """Random queries, keys and values in bfloat16; by default as many as make a batch of `TOKENS`."""
    torch.manual_seed(0)
    batch, heads = batch or max(1, TOKENS // length), heads or HIDDEN // width
    new = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    query = new(batch, heads, queries or length, width)
    key, value = (new(batch, key_heads or heads, length, width) for _ in range(2))
    return query, key, value


def peers(inputs: Inputs, *, causal: bool) -> dict[str, Case]:
    """PyTorch's ways through the same problem."""

    def run(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(*inputs, is_causal=causal)

    cases: dict[str, Case] = {name: partial(run, backend) for name, backend in SDPA.items()}
    length = inputs[0].shape[2]
    block_mask = block_mask_of(_causal, length) if causal else None
    cases["flex"] = partial(_flex(), *inputs, block_mask=block_mask)
    return cases


def _flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention.flex_attention, dynamic=False)  # type: ignore[no-any-return]


def block_mask_of(rule: Callable[..., Tensor], length: int) -> flex_attention.BlockMask:
    """FlexAttention's form of a mask."""
    return flex_attention.create_block_mask(rule, None, None, length, length, device="cuda")


def _causal(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def tflops(inputs: Inputs, ms: float, *, causal: bool) -> float:
    """10^12 operations a second of the two products of matrices."""
    batch, heads, length, width = inputs[0].shape
    return 4 * batch * heads * length**2 * width / (2 if causal else 1) / ms / 1e9


# ---------------------------------------------------------------------------------------- what is measured


def forward() -> Section:
    """Forward, bfloat16."""
    return _against_peers("forward", lambda case, _: case)


def backward() -> Section:
    """Backward, bfloat16."""

    def gradients(case: Case, inputs: Inputs) -> Case:
        output = case()
        assert isinstance(output, Tensor)
        grad = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True)

    return _against_peers("backward", gradients)


def _against_peers(what: str, prepare: Callable[[Case, Inputs], Case]) -> Section:
    rows, ratios = [], []
    for width, causal, length in itertools.product((64, 128), (False, True), LENGTHS):
        progress(f"{what}: width {width}, {'causal' if causal else 'full'}, {length:,} tokens")
        inputs = tensors(length, width)
        if what == "backward":
            for x in inputs:
                x.requires_grad_()
        mask = masks.causal() if causal else None
        cases = {"saccade": partial(saccade.attention, *inputs, mask=mask)} | peers(inputs, causal=causal)
        found = {}
        for name, case in cases.items():
            try:
                found[name] = prepare(case, inputs)
            except RuntimeError as error:
                progress(f"  {name} does not run: {str(error).splitlines()[0][:100]}")
        ms = milliseconds(found)
        ours = ms.pop("saccade")
        best = min(t for name in ("flash", "flex") if not math.isnan(t := ms.get(name, math.nan)))
        speed = f"{tflops(inputs, ours, causal=causal) * (2.5 if what == 'backward' else 1):.0f}"
        times = [f"{ms.get(name, math.nan):.3f}" for name in ("flash", "efficient", "flex", "cuDNN")]
        against = ms.get("flash", math.nan) if what == "backward" else best
        target, cudnn = (BACKWARD, None) if what == "backward" else (BEST, CUDNN)
        ratios.append(against / ours)
        rows.append(
            [
                str(width),
                "causal" if causal else "full",
                f"{length:,}",
                f"{ours:.3f}",
                speed,
                *times,
                judged(against / ours, target),
                judged(ms.get("cuDNN", math.nan) / ours, cudnn),
            ]
        )
    head = ["width", "mask", "tokens", "saccade ms", "TFLOP/s", "flash ms", "efficient ms", "flex ms", "cuDNN ms"]
    versus = "flash / ours" if what == "backward" else "best of flash and flex / ours"
    return Section(table([*head, versus, "cuDNN / ours"], rows), f"{what}: {spread(ratios)}")


def masked() -> Section:
    """Masks, beside compiled FlexAttention; the mask's creation counts in the second ratio."""
    length, width = 16_384, 128
    inputs = tensors(length, width)
    document = torch.arange(length, device="cuda") // 1000

    def window(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= 1024)

    def prefix(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) | (key < 1024)

    def documents(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    rules: dict[str, tuple[masks.Mask, Callable[..., Tensor]]] = {
        "window of 1,024": (masks.window(1024), window),
        "documents of 1,000": (masks.documents(document) & masks.causal(), documents),
        "prefix of 1,024": (masks.causal() | masks.prefix(1024), prefix),
    }
    rows = []
    lengths = masks.Lengths(*inputs[0].shape[:3], length, inputs[0].device)
    for name, (mask, rule) in rules.items():
        progress(f"masks: {name}")
        resolved, block_mask = mask.resolve(lengths), block_mask_of(rule, length)
        flex = _flex()
        ms = milliseconds(
            {
                "ours": partial(saccade.attention, *inputs, mask=resolved),
                "flex": partial(flex, *inputs, block_mask=block_mask),
                "our mask": partial(mask.resolve, lengths),
                "its mask": partial(block_mask_of, rule, length),
            }
        )
        created = (ms["flex"] + ms["its mask"]) / (ms["ours"] + ms["our mask"])
        cells = [f"{ms[key]:.3f}" for key in ("ours", "flex", "our mask", "its mask")]
        rows.append([name, *cells, judged(ms["flex"] / ms["ours"], MASKED), judged(created, CREATION)])
    head = ["mask", "saccade ms", "flex ms", "our mask ms", "its mask ms", "flex / ours", "with its creation"]
    return Section(table(head, rows))


def decoding() -> Section:
    """One query for each of some sequences, grouped: what share of the bandwidth of a copy keys and values come by."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / milliseconds({"copy": partial(target.copy_, source)})["copy"] / 1e6
    rows = []
    for batch, length in itertools.product((1, 4, 16, 64), (4096, 32_768)):
        inputs = tensors(length, 128, batch=batch, heads=32, key_heads=8, queries=1)
        cases: dict[str, Case] = {"ours": partial(saccade.attention, *inputs)}
        cases["sdpa"] = partial(sdpa, *inputs, enable_gqa=True)
        ms = milliseconds(cases)
        read = 2 * inputs[1].numel() * 2 / ms["ours"] / 1e6
        cells = [f"{ms['ours']:.4f}", f"{ms['sdpa']:.4f}", f"{read:,.0f}"]
        rows.append([str(batch), f"{length:,}", *cells, judged(read / copy, BANDWIDTH)])
    head = ["sequences", "tokens each", "saccade ms", "sdpa ms", "GB/s", f"share of a copy's {copy:,.0f} GB/s"]
    return Section(table(head, rows))


def asking() -> Section:
    """What statistics cost, and eager attention with reductions."""
    length = 16_384
    inputs = tensors(length, 128, batch=1, heads=16)
    every: list[Statistic] = [LogSumExp(), Entropy(), MaxWeight(), TopKeys(8), Received(), Map(64)]
    asked: dict[str, tuple[Sequence[Statistic], Target | None]] = {
        "nothing": ((), None),
        "lse and entropy": ((LogSumExp(), Entropy()), Target(1.05, at_most=True)),
        "8 top keys": ((TopKeys(8),), Target(1.3, at_most=True)),
        "received and map": ((Received(), Map(64)), Target(1.6, at_most=True)),
        "everything": (every, Target(1.9, at_most=True)),
    }
    cases: dict[str, Case] = {
        name: partial(saccade.attention, *inputs, mask=masks.causal(), statistics=some)
        for name, (some, _) in asked.items()
    }
    ms = milliseconds(cases)
    plain = ms["nothing"]
    rows = [
        [name, f"{ms[name]:.3f}", judged(ms[name] / plain, target), str(target or "")]
        for name, (_, target) in asked.items()
    ]
    few: Inputs = (inputs[0][:, :4], inputs[1][:, :4], inputs[2][:, :4])
    eager = milliseconds(
        {
            "eager": partial(_eager, *few),
            "ours": partial(saccade.attention, *few, mask=masks.causal(), statistics=every),
        }
    )
    ratio = eager["eager"] / eager["ours"]
    said = f"Eager attention with the same reductions takes {judged(ratio, EAGER)} times as long (4 heads)."
    return Section(f"{table(['asked', 'ms', 'ratio', 'target'], rows)}\n\n{said}")


def _eager(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The pattern written out, and the same statistics of it."""
    length = query.shape[2]
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ key.mT).float().mul_(query.shape[-1] ** -0.5).masked_fill_(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = scores.softmax(-1)
    top = weights.topk(8, dim=-1)
    cells = torch.nn.functional.adaptive_avg_pool2d(weights, 64)
    entropy = torch.special.entr(weights).sum(-1)
    return weights.to(value.dtype) @ value, lse, entropy, top.values, top.indices, weights.sum(-2), cells


def million() -> Section:
    """One head over a million tokens."""
    inputs = tensors(1 << 20, 64, batch=1, heads=1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    every = [LogSumExp(), Entropy(), TopKeys(8), Received(), Map(64)]
    ms = milliseconds({"all": partial(saccade.attention, *inputs, mask=masks.causal(), statistics=every)})["all"]
    held = (torch.cuda.max_memory_allocated() - before) / 2**20
    return Section(
        f"One head of width 64 over 1,048,576 tokens, causal, with lse, entropy, 8 top keys, received and a map: "
        f"{ms / 1e3:.2f} s, {held:,.0f} MiB beside its inputs; the pattern would be 4,194,304 MiB."
    )


SECTIONS: dict[str, tuple[str, Callable[[], Section]]] = {
    "forward": ("Forward", forward),
    "backward": ("Backward", backward),
    "masks": ("Masks", masked),
    "decoding": ("Decoding", decoding),
    "asking": ("Asking", asking),
    "million": ("A million tokens", million),
}


# ---------------------------------------------------------------------------------------- tiles


class Kind(NamedTuple):
    """What a kind of tile is measured with."""

    rows: Sequence[int]
    keys: Sequence[int]
    run: Callable[[Inputs], Case]


def _tuned(inputs: Inputs) -> Case:
    return partial(saccade.attention, *inputs, mask=masks.causal())


def _tuned_columns(inputs: Inputs) -> Case:
    return partial(saccade.attention, *inputs, mask=masks.causal(), statistics=[Received()])


def _tuned_backward(inputs: Inputs) -> Case:
    output = saccade.attention(*(x.requires_grad_() for x in inputs), mask=masks.causal())
    grad = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True)


KINDS = {
    "rows": Kind((64, 128), (32, 64, 128), _tuned),
    "columns": Kind((32, 64, 128), (64, 128), _tuned_columns),
    "backward_keys": Kind((32, 64), (64, 128), _tuned_backward),
    "backward_rows": Kind((64, 128), (32, 64), _tuned_backward),
    "few": Kind((16,), (32, 64, 128), lambda inputs: partial(saccade.attention, *inputs)),
}


def tune(widths: Sequence[int]) -> None:
    """Print the fastest tiles, as lines of `_TILES`."""
    for (name, kind), width in itertools.product(KINDS.items(), widths):
        key = (name, 2, width)
        kept, times = gpu._TILES[key], {}  # noqa: SLF001
        if name == "few":
            inputs = tensors(32_768, width, batch=16, heads=32, key_heads=8, queries=1)
        else:
            inputs = tensors(8192, width)
        for rows, keys, warps, stages in itertools.product(kind.rows, kind.keys, (4, 8), (2, 3, 4)):
            tiles = gpu.Tiling(rows, keys, warps, stages)
            gpu._TILES[key] = tiles  # noqa: SLF001
            try:
                times[tiles] = milliseconds({str(tiles): kind.run(inputs)})[str(tiles)]
            except Exception as error:  # noqa: BLE001  too much shared memory: not among the candidates
                progress(f"  {tiles}: {str(error)[:80]}")
        fastest = min((t for t in times if not math.isnan(times[t])), key=times.__getitem__)
        gpu._TILES[key] = fastest  # noqa: SLF001
        was = times.get(kept, math.nan)
        print(f"    {key!r}: {fastest},  # {times[fastest]:.3f} ms; before {was:.3f}", flush=True)


def check() -> None:
    """Run the conformance suite on the GPU."""
    suite = Path(__file__).parents[1] / "tests" / "backends" / "test_gpu.py"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-n", "12", str(suite)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("the conformance suite did not pass")


def conditions() -> str:
    """Versions and the GPU."""
    import triton

    peak = name_of(torch.bfloat16)
    return (
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, triton {triton.__version__}, {peak}; {TOKENS:,} tokens in a batch, {HIDDEN // 64} heads "
        f"of width 64 or {HIDDEN // 128} of 128; medians of {ROUNDS} alternating rounds; bold misses its target"
    )


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (
        ("check", "run the conformance suite"),
        ("tune", "find the fastest tiles"),
        ("bench", "measure"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=what)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/benchmarks")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is found: this script measures one")
    if chosen.check:
        check()
    if chosen.tune:
        tune((64, 128))
    if chosen.bench:
        names = chosen.only.split(",") if chosen.only else list(SECTIONS)
        found = {title: run() for title, run in (SECTIONS[name] for name in names)}
        text = "\n\n".join(f"## {title}\n\n{section.text}" for title, section in found.items())
        write = chosen.write and not chosen.only
        publish("gpu", "On a GPU", f"Conditions: {conditions()}.\n\n{text}", write=write, command="benchmarks/gpu.py")


if __name__ == "__main__":
    main()
