"""What recording costs beside a plain forward, and beside transformers' own `output_attentions=True`.

.venv/bin/python benchmarks/recording.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from harness import (
    Effort,
    Section,
    Target,
    alternate,
    conditions,
    fresh,
    judged,
    peak_memory,
    progress,
    publish,
    spread,
    table,
)
from torch import Tensor, nn

import saccade

THREADS = 2
STATISTICS, QK = Target(1.3, at_most=True), Target(1.5, at_most=True)
LONGEST = (8_192, 16_384, 32_768, 65_536)


@dataclass(frozen=True)
class Shape:
    """A model and what it reads."""

    name: str
    kind: str
    options: dict[str, Any]
    batch: int
    tokens: int

    def build(self, implementation: str = "sdpa") -> tuple[nn.Module, Tensor]:
        """The model, with random weights, and its input."""
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{self.kind}Config")(attn_implementation=implementation, **self.options)
        model = getattr(transformers, f"{self.kind}Model")(config).eval()
        return model, torch.randint(0, 1000, (self.batch, self.tokens))


def llama(layers: int, width: int, heads: int) -> dict[str, Any]:
    """A small Llama, four heads to one of keys."""
    return {
        "vocab_size": 1000,
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4,
        "max_position_embeddings": 1 << 17,
        "use_cache": False,
    }


BERT = Shape("BERT-base, 16 x 512 tokens", "Bert", {}, 16, 512)
LLAMA = Shape("Llama, 4 layers of 8 heads, 8,192 tokens", "Llama", llama(4, 512, 8), 1, 8192)


class Ways:
    """The ways to run a model; what they leave on disk is removed."""

    def __init__(self, shape: Shape) -> None:
        self.model, self.ids = shape.build()
        self._eager, _ = shape.build("eager")
        self._folder = Path(tempfile.mkdtemp(prefix="saccade-bench-"))
        self.bytes: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)

    @torch.no_grad()
    def plain(self) -> object:
        return self.model(self.ids)

    @torch.no_grad()
    def eager(self) -> object:
        return self._eager(self.ids, output_attentions=True)

    @torch.no_grad()
    def memory(self) -> object:
        with saccade.record(self.model) as trace:
            self.model(self.ids)
        return trace

    @torch.no_grad()
    def disk(self, keep: str) -> None:
        path = self._folder / f"{keep}.zarr"
        with saccade.record(self.model, keep=keep, to=path):
            self.model(self.ids)
        self.bytes[keep] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)

    def cases(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name."""
        return {
            "plain sdpa": self.plain,
            "statistics, in memory": self.memory,
            "statistics, to disk": lambda: self.disk("statistics"),
            "qk, to disk": lambda: self.disk("qk"),
            "output_attentions": self.eager,
        }


TARGETS = {"statistics, in memory": STATISTICS, "statistics, to disk": STATISTICS, "qk, to disk": QK}


def _peak(shape: Shape, case: str) -> float:
    with Ways(shape) as ways:
        return peak_memory(ways.cases()[case])


def cost(effort: Effort) -> Section:
    """Time and memory of each way."""
    rows, ratios = [], []
    for shape in (BERT, LLAMA):
        progress(f"recording: {shape.name}")
        with Ways(shape) as ways:
            seconds = alternate(ways.cases(), rounds=3 if effort.quick else 5, seconds=60 if effort.quick else 400)
            sizes = ways.bytes
        for case, taken in seconds.items():
            progress(f"recording: {shape.name}, memory of {case}")
            ratio = taken / seconds["plain sdpa"]
            target = TARGETS.get(case)
            ratios += [ratio] if target is STATISTICS else []
            size = sizes.get(case.split(",")[0]) if "disk" in case else None
            on_disk = "" if size is None else f"{size / 2**20:,.0f}"
            peak = fresh(_peak, shape, case)
            cells = [f"{taken:.2f}", judged(ratio, target), str(target or ""), f"{peak:,.0f}", on_disk]
            rows.append([shape.name, case, *cells])
    header = ["model", "way", "seconds", "of plain", "target", "peak, MiB", "on disk, MiB"]
    text = (
        "Recording, with hidden states, random weights, float32. Memory beyond model and input at its peak, each in a "
    )
    text += "process of its own; a disk's cache is the system's:\n\n" + table(header, rows)
    return Section(text, f"Recording statistics takes {spread(ratios)} times as long as a plain forward.")


def _long(tokens: int, to: str | None) -> tuple[float, float, float]:
    """Seconds of a plain forward, of a recorded one, and the memory of the latter."""
    shape = Shape("", "Llama", llama(2, 256, 4), 1, tokens)
    model, ids = shape.build()
    start = time.perf_counter()
    with torch.no_grad():
        model(ids)
    plain = time.perf_counter() - start
    taken = []

    def recorded() -> None:
        begin = time.perf_counter()
        with saccade.record(model, to=to), torch.no_grad():
            model(ids)
        taken.append(time.perf_counter() - begin)

    return plain, peak_memory(recorded), taken[-1]


def long(effort: Effort) -> Section:
    """Memory by length."""
    rows = []
    for tokens in LONGEST[:2] if effort.quick else LONGEST:
        progress(f"recording: {tokens:,} tokens")
        with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
            plain, peak, seconds = fresh(_long, tokens, str(Path(folder) / "run.zarr"))
        stored = 2 * 4 * tokens * tokens * 4 / 2**20
        cells = [
            f"{tokens:,}",
            f"{plain:.2f}",
            f"{seconds:.2f}",
            f"{peak:,.0f}",
            f"{peak * 1024 / tokens:.1f}",
            f"{stored:,.0f}",
        ]
        rows.append(cells)
    header = ["tokens", "plain, s", "recorded, s", "peak, MiB", "KiB by token", "stored patterns would be, MiB"]
    text = "A Llama of 2 layers, 4 heads of width 64 on one of keys; statistics and hidden states to disk:\n\n"
    return Section(text + table(header, rows))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer lengths and turns")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/benchmarks")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    sections = [section(Effort(quick=chosen.quick)) for section in (cost, long)]
    how = f"Conditions: {conditions()}. Medians of alternating runs; bold misses its target."
    text = "\n\n".join([*(s.short for s in sections if s.short), how, *(s.text for s in sections)])
    publish("recording", "Recording on the CPU", text, write=chosen.write)


if __name__ == "__main__":
    main()
