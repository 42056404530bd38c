"""How fast is attention on an NVIDIA GPU, beside its peers in the same run, and what does asking cost?

    python benchmarks/gpu.py [--check] [--tune] [--bench] [--only forward,decoding] [--write] [--rehearse]

`--check` runs the GPU's tests there, in all dtypes. `--tune` measures candidates for the kernels' tiles, as `saccade
tune` does, prints lines for `backends/gpu_tiles.py`, and goes on with the fastest. `--bench` prints tables; `--write`
puts them into docs/benchmarks/gpu.md. `--rehearse` goes through what is asked for without a GPU, with tiny sizes in
Triton's interpreter: it shows that the script works, and its times mean nothing.

Peers are PyTorch's: scaled_dot_product_attention with FlashAttention-2, cuDNN or the memory-efficient kernel behind it,
and FlexAttention, compiled.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from harness import Section, Target, judged, name_of, progress, publish, spread, table
from torch import Tensor
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

import saccade
from saccade import masks
from saccade.backends import gpu_tiles, gpu_tuning
from saccade.statistics import Entropy, LogSumExp, Map, MaxWeight, Received, Statistic, TopKeys


@dataclass(frozen=True)
class Sizes:
    """What is measured, and where.

    Attributes:
        tokens: in a batch.
        hidden: heads times their width.
        masked, window: tokens with masks, and of a window, a prefix and about a document.
        sequences, cached, shared: sequences that are decoded at once, tokens of each, query heads and key heads.
        asked: tokens with statistics.
        most: tokens of one head, with all statistics.
        cells: of a map, along each side.
        copied: bytes of a copy.
        rounds: in which the peers take turns.
    """

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    tokens: int = 32_768
    hidden: int = 2048
    widths: tuple[int, ...] = (64, 128)
    lengths: tuple[int, ...] = (1024, 4096, 16_384, 32_768)
    masked: int = 16_384
    window: int = 1024
    sequences: tuple[int, ...] = (1, 4, 16, 64)
    cached: tuple[int, ...] = (4096, 32_768)
    shared: tuple[int, int] = (32, 8)
    asked: int = 16_384
    most: int = 1 << 20
    cells: int = 64
    copied: int = 1 << 30
    rounds: int = 5
    tuned: gpu_tuning.Sizes | None = None

    @property
    def is_rehearsal(self) -> bool:
        """Whether nothing is measured."""
        return self.device == "cpu"


REHEARSAL = Sizes(
    device="cpu",
    dtype=torch.float32,
    tokens=64,
    hidden=32,
    widths=(16,),
    lengths=(32,),
    masked=96,
    window=32,
    sequences=(1, 2),
    cached=(64,),
    shared=(4, 2),
    asked=64,
    most=64,
    cells=2,
    copied=1 << 16,
    rounds=1,
    tuned=gpu_tuning.Sizes(32, 1, 1, 32),
)
SIZES = Sizes()

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
    times: dict[str, list[float]] = {name: [] for name in cases}
    for name, case in cases.items():
        try:
            case()
        except (RuntimeError, NotImplementedError) as error:
            progress(f"  {name} does not run: {str(error).splitlines()[0][:100]}")
            times[name] = [math.nan]
    for _ in range(SIZES.rounds):
        for name, case in cases.items():
            if not math.isnan(sum(times[name])):
                times[name].append(_once(case))
    return {name: statistics.median(some) for name, some in times.items()}


def _once(case: Case) -> float:
    if SIZES.is_rehearsal:
        start = time.perf_counter()
        case()
        return 1000 * (time.perf_counter() - start)
    from triton.testing import do_bench

    return float(do_bench(case, warmup=5, rep=20, return_mode="median"))


def tensors(length: int, width: int, *, batch: int = 0, heads: int = 0, key_heads: int = 0, queries: int = 0) -> Inputs:
    """Random queries, keys and values; by default as many as make a batch of `Sizes.tokens`."""
    torch.manual_seed(0)
    batch, heads = batch or max(1, SIZES.tokens // length), heads or SIZES.hidden // width
    new = partial(torch.randn, device=SIZES.device, dtype=SIZES.dtype)
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
    if SIZES.is_rehearsal:
        return flex_attention.flex_attention  # type: ignore[return-value]
    return torch.compile(flex_attention.flex_attention, dynamic=False)  # type: ignore[no-any-return]


def block_mask_of(rule: Callable[..., Tensor], length: int) -> flex_attention.BlockMask:
    """FlexAttention's form of a mask."""
    return flex_attention.create_block_mask(rule, None, None, length, length, device=SIZES.device)


def _causal(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def ms_of(times: dict[str, float], name: str) -> str:
    """A time, or a dash for what does not run."""
    found = times.get(name, math.nan)
    return "–" if math.isnan(found) else f"{found:.3f}"


def ratio(found: float, target: Target | None) -> str:
    """A ratio, bold where it misses its target; a dash where one side does not run."""
    return "–" if math.isnan(found) else judged(found, target)


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
    for width, causal, length in itertools.product(SIZES.widths, (False, True), SIZES.lengths):
        progress(f"{what}: width {width}, {'causal' if causal else 'full'}, {length:,} tokens")
        inputs = tensors(length, width)
        if what == "backward":
            for x in inputs:
                x.requires_grad_()
        mask = masks.causal() if causal else None
        cases = {"saccade": partial(saccade.attention, *inputs, mask=mask, backend="gpu")} | peers(
            inputs, causal=causal
        )
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
        times = [ms_of(ms, name) for name in ("flash", "efficient", "flex", "cuDNN")]
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
                ratio(against / ours, target),
                ratio(ms.get("cuDNN", math.nan) / ours, cudnn),
            ]
        )
    head = ["width", "mask", "tokens", "saccade ms", "TFLOP/s", "flash ms", "efficient ms", "flex ms", "cuDNN ms"]
    versus = "flash / ours" if what == "backward" else "best of flash and flex / ours"
    return Section(table([*head, versus, "cuDNN / ours"], rows), f"{what}: {spread(ratios)}")


def masked() -> Section:
    """Masks, beside compiled FlexAttention; the mask's creation counts in the second ratio."""
    length, near = SIZES.masked, SIZES.window
    inputs = tensors(length, SIZES.widths[-1])
    document = torch.arange(length, device=SIZES.device) // near

    def window(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= near)

    def prefix(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) | (key < near)

    def documents(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[query] == document[key])

    rules: dict[str, tuple[masks.Mask, Callable[..., Tensor]]] = {
        f"window of {near:,}": (masks.window(near), window),
        f"documents of {near:,}": (masks.documents(document) & masks.causal(), documents),
        f"prefix of {near:,}": (masks.causal() | masks.prefix(near), prefix),
    }
    rows = []
    lengths = masks.Lengths(*inputs[0].shape[:3], length, inputs[0].device)
    for name, (mask, rule) in rules.items():
        progress(f"masks: {name}")
        resolved, block_mask = mask.resolve(lengths), block_mask_of(rule, length)
        flex = _flex()
        ms = milliseconds(
            {
                "ours": partial(saccade.attention, *inputs, mask=resolved, backend="gpu"),
                "flex": partial(flex, *inputs, block_mask=block_mask),
                "our mask": partial(mask.resolve, lengths),
                "its mask": partial(block_mask_of, rule, length),
            }
        )
        created = (ms["flex"] + ms["its mask"]) / (ms["ours"] + ms["our mask"])
        cells = [ms_of(ms, key) for key in ("ours", "flex", "our mask", "its mask")]
        rows.append([name, *cells, ratio(ms["flex"] / ms["ours"], MASKED), ratio(created, CREATION)])
    head = ["mask", "saccade ms", "flex ms", "our mask ms", "its mask ms", "flex / ours", "with its creation"]
    return Section(table(head, rows))


def decoding() -> Section:
    """One query for each of some sequences, grouped: what share of the bandwidth of a copy keys and values come by."""
    source = torch.empty(SIZES.copied, dtype=torch.uint8, device=SIZES.device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / milliseconds({"copy": partial(target.copy_, source)})["copy"] / 1e6
    rows = []
    heads, key_heads = SIZES.shared
    for batch, length in itertools.product(SIZES.sequences, SIZES.cached):
        progress(f"decoding: {batch} sequences of {length:,} tokens")
        inputs = tensors(length, SIZES.widths[-1], batch=batch, heads=heads, key_heads=key_heads, queries=1)
        cases: dict[str, Case] = {"ours": partial(saccade.attention, *inputs, backend="gpu")}
        cases["sdpa"] = partial(sdpa, *inputs, enable_gqa=True)
        ms = milliseconds(cases)
        read = 2 * inputs[1].nbytes / ms["ours"] / 1e6
        cells = [ms_of(ms, "ours"), ms_of(ms, "sdpa"), f"{read:,.0f}"]
        rows.append([str(batch), f"{length:,}", *cells, ratio(read / copy, BANDWIDTH)])
    head = ["sequences", "tokens each", "saccade ms", "sdpa ms", "GB/s", f"share of a copy's {copy:,.0f} GB/s"]
    return Section(table(head, rows))


def asking() -> Section:
    """What statistics cost, and eager attention with reductions."""
    inputs = tensors(SIZES.asked, SIZES.widths[-1], batch=1, heads=SIZES.hidden // SIZES.widths[-1])
    every: list[Statistic] = [LogSumExp(), Entropy(), MaxWeight(), TopKeys(8), Received(), Map(SIZES.cells)]
    asked: dict[str, tuple[Sequence[Statistic], Target | None]] = {
        "nothing": ((), None),
        "lse and entropy": ((LogSumExp(), Entropy()), Target(1.05, at_most=True)),
        "8 top keys": ((TopKeys(8),), Target(1.3, at_most=True)),
        "received and map": ((Received(), Map(SIZES.cells)), Target(1.6, at_most=True)),
        "everything": (every, Target(1.9, at_most=True)),
    }
    cases: dict[str, Case] = {
        name: partial(saccade.attention, *inputs, mask=masks.causal(), statistics=some, backend="gpu")
        for name, (some, _) in asked.items()
    }
    ms = milliseconds(cases)
    plain = ms["nothing"]
    rows = [
        [name, f"{ms[name]:.3f}", ratio(ms[name] / plain, target), str(target or "")]
        for name, (_, target) in asked.items()
    ]
    few: Inputs = (inputs[0][:, :4], inputs[1][:, :4], inputs[2][:, :4])
    eager = milliseconds(
        {
            "eager": partial(_eager, *few),
            "ours": partial(saccade.attention, *few, mask=masks.causal(), statistics=every, backend="gpu"),
        }
    )
    times = ratio(eager["eager"] / eager["ours"], EAGER)
    said = f"Eager attention with the same reductions takes {times} times as long ({few[0].shape[1]} heads)."
    return Section(f"{table(['asked', 'ms', 'ratio', 'target'], rows)}\n\n{said}")


def _eager(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The pattern written out, and the same statistics of it."""
    length = query.shape[2]
    hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ key.mT).float().mul_(query.shape[-1] ** -0.5).masked_fill_(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = scores.softmax(-1)
    top = weights.topk(8, dim=-1)
    cells = torch.nn.functional.adaptive_avg_pool2d(weights, SIZES.cells)
    entropy = torch.special.entr(weights).sum(-1)
    return weights.to(value.dtype) @ value, lse, entropy, top.values, top.indices, weights.sum(-2), cells


def million() -> Section:
    """One head over a million tokens."""
    inputs = tensors(SIZES.most, SIZES.widths[0], batch=1, heads=1)
    held = 0
    if not SIZES.is_rehearsal:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    every = [LogSumExp(), Entropy(), TopKeys(8), Received(), Map(SIZES.cells)]
    ms = milliseconds(
        {"all": partial(saccade.attention, *inputs, mask=masks.causal(), statistics=every, backend="gpu")}
    )["all"]
    if not SIZES.is_rehearsal:
        held = torch.cuda.max_memory_allocated() - held
    return Section(
        f"One head of width {SIZES.widths[0]} over {SIZES.most:,} tokens, causal, with lse, entropy, 8 top keys, "
        f"received and a map: {ms / 1e3:.2f} s, {held / 2**20:,.0f} MiB beside its inputs; the pattern would be "
        f"{4 * SIZES.most**2 / 2**20:,.0f} MiB."
    )


FIRST = """
import time, torch, saccade
from saccade import masks
x = torch.randn(1, 2, 256, {width}, device="{device}", dtype={dtype}, requires_grad=True)
for _ in range(2):
    torch.cuda.is_available() and torch.cuda.synchronize()
    start = time.perf_counter()
    output = saccade.attention(x, x, x, mask=masks.causal(), backend="gpu")
    torch.cuda.is_available() and torch.cuda.synchronize()
    between = time.perf_counter()
    output.sum().backward()
    torch.cuda.is_available() and torch.cuda.synchronize()
    print(between - start, time.perf_counter() - between)
"""


def first() -> Section:
    """What the first call costs: on a new machine, where kernels are compiled, and later, where they are read."""
    said = FIRST.format(width=SIZES.widths[-1], device=SIZES.device, dtype=SIZES.dtype)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name in ("nothing compiled before", "compiled by an earlier process"):
            progress(f"first call: {name}")
            done = subprocess.run(
                [sys.executable, "-c", said],
                env=os.environ | {"TRITON_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=True,
            )
            calls = [[f"{float(x):.2f}" for x in line.split()] for line in done.stdout.splitlines()]
            rows.append([name, *calls[0]])
    return Section(table(["first call", "forward s", "backward s"], rows))


SECTIONS: dict[str, tuple[str, Callable[[], Section]]] = {
    "forward": ("Forward", forward),
    "backward": ("Backward", backward),
    "masks": ("Masks", masked),
    "decoding": ("Decoding", decoding),
    "asking": ("Asking", asking),
    "million": ("A million tokens", million),
    "first": ("First calls", first),
}


# ---------------------------------------------------------------------------------------- tiles


def tune() -> None:
    """Measure the candidates, print the fastest as lines for `gpu_tiles.py`, and go on with them."""
    measure = _once if SIZES.is_rehearsal else None
    device, measured = torch.device(SIZES.device), []
    for one in gpu_tuning.tune(device, SIZES.dtype, SIZES.widths, sizes=SIZES.tuned, measure=measure):
        progress(f"  {one.place.kernel} {one.place.width}: {one.milliseconds:.3f} ms {tuple(one.tiles)}")
        measured.append(one)
    for place, tiles in gpu_tuning.fastest(measured).items():
        times = {one.tiles: one.milliseconds for one in measured if one.place == place}
        others = [other for other in gpu_tiles.TILES[place] if other != tiles]
        was = times[gpu_tiles.TILES[place][0]]
        print(
            f"    {place.kernel} {place.width}: {tiles}  # {times[tiles]:.3f} ms; the first choice {was:.3f}",
            flush=True,
        )
        gpu_tiles.TILES[place] = (tiles, *others)


def check() -> None:
    """Run the tests of the GPU kernels."""
    tests = Path(__file__).parents[1] / "tests"
    names = (
        "backends/test_gpu.py",
        "backends/test_gpu_tiles.py",
        "backends/test_gpu_in_torch.py",
        "trace/test_copies.py",
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-n",
        "12",
        *(str(tests / name) for name in names),
    ]
    if SIZES.is_rehearsal:
        command[-4:] = [command[-3], "-k", "described or persistent"]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("not all tests passed")


def conditions() -> str:
    """Versions and the GPU."""
    import triton

    card = "a rehearsal" if SIZES.is_rehearsal else f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    heads = " or ".join(f"{SIZES.hidden // width} heads of width {width}" for width in SIZES.widths)
    return (
        f"{card}, Python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"{name_of(SIZES.dtype)}; {SIZES.tokens:,} tokens in a batch, {heads}; medians of {SIZES.rounds} alternating "
        "rounds; bold misses its target"
    )


def asked() -> tuple[argparse.Namespace, list[str]]:
    """What the command line says, and the sections that it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (
        ("check", "run the tests of the GPU kernels"),
        ("tune", "find the fastest tiles"),
        ("bench", "measure"),
        ("rehearse", "go through what is asked for without a GPU"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=what)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--write", action="store_true", help="keep the result of a whole --bench in docs/benchmarks")
    chosen = parser.parse_args()
    names = [name.strip() for name in chosen.only.split(",")] if chosen.only else list(SECTIONS)
    unknown = [name for name in names if name not in SECTIONS]
    if not (chosen.rehearse or torch.cuda.is_available()):
        parser.error("no GPU is found: this script measures one; --rehearse goes through it without")
    if unknown:
        parser.error(f"--only {chosen.only}: there is no {unknown[0]!r}; expected some of {','.join(SECTIONS)}")
    if not (chosen.check or chosen.tune or chosen.bench):
        parser.error("nothing to do: say --check, --tune or --bench")
    if chosen.only and not chosen.bench:
        parser.error("--only is of --bench")
    if chosen.write and (chosen.only or chosen.rehearse or not chosen.bench):
        parser.error("--write is of a whole --bench on a GPU")
    return chosen, names


def main() -> None:
    """Do what the command line says."""
    global SIZES  # noqa: PLW0603  what the whole run is of
    chosen, names = asked()
    if chosen.rehearse:
        SIZES = REHEARSAL
        os.environ["TRITON_INTERPRET"] = "1"
    if chosen.check:
        check()
    if chosen.tune:
        tune()
    if chosen.bench:
        found = {title: run() for title, run in (SECTIONS[name] for name in names)}
        text = "\n\n".join(f"## {title}\n\n{section.text}" for title, section in found.items())
        said = f"Conditions: {conditions()}.\n\n{text}"
        publish("gpu", "On a GPU", said, write=chosen.write, command="benchmarks/gpu.py")


if __name__ == "__main__":
    main()
