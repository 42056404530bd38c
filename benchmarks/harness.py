"""What every benchmark shares: alternating runs with medians, peak memory, targets, and the conditions of a run."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from saccade.backends import native

P = ParamSpec("P")
R = TypeVar("R")

START = time.perf_counter()


@dataclass(frozen=True)
class Effort:
    """How thorough a run is.

    Attributes:
        quick: fewer lengths, fewer turns.
    """

    quick: bool = False

    @property
    def rounds(self) -> int:
        """The most turns that are taken."""
        return 3 if self.quick else 9

    @property
    def seconds(self) -> float:
        """About how long all turns of one comparison may take, where three of them do not take longer."""
        return 0.3 if self.quick else 1.5


@dataclass(frozen=True)
class Section:
    """What one script found.

    Attributes:
        text: Markdown, tables and what has to be said about them.
        short: one sentence for the summary; empty for none.
    """

    text: str
    short: str = ""


@dataclass(frozen=True)
class Target:
    """What a ratio should be: at least the bound, or at most."""

    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"

    def met(self, ratio: float) -> bool:
        """Whether a ratio is as it should be."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


# ---------------------------------------------------------------------------------------- conditions


def conditions() -> str:
    """Versions, processor, threads and kernels, in one line."""
    library = native.load()
    kernels = f"no kernels ({library})" if isinstance(library, str) else f"kernels {library.variant}"
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, {_processor()}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {kernels}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    return platform.processor() or platform.machine()


def progress(what: str) -> None:
    """Say on stderr what runs now."""
    print(f"{time.perf_counter() - START:7.1f} s  {what}", file=sys.stderr, flush=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------- time


def alternate(
    cases: dict[str, Callable[[], object]], *, rounds: int = 7, seconds: float = math.inf, warm: bool = True
) -> dict[str, float]:
    """Median seconds of each case, run in turn so that noise from outside falls on all of them alike.

    Args:
        cases: what to run, by name.
        rounds: turns.
        seconds: what the turns together may take: there are fewer, but at least three, where cases are slow.
        warm: run each case unmeasured first (a run of over a second counts), and repeat a short one within its turn
            until it takes 20 ms.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    repeats = dict.fromkeys(cases, 1)
    turn = 0.0
    for name, case in cases.items() if warm else ():
        taken = _seconds(case, 1)
        if taken > 1:
            times[name].append(taken)
        elif taken < 0.02:
            repeats[name] = max(1, int(0.02 / max(_seconds(case, 1), 1e-9)))
        turn += max(taken, 0.02)
    rounds = max(min(rounds, 3), int(min(rounds, seconds / max(turn, 1e-9))))
    for _ in range(rounds):
        for name, case in cases.items():
            if len(times[name]) < rounds:
                times[name].append(_seconds(case, repeats[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


def compare(effort: Effort, cases: dict[str, Callable[[], object]]) -> dict[str, float]:
    """`alternate` with this effort."""
    return alternate(cases, rounds=effort.rounds, seconds=effort.seconds)


def _seconds(case: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        case()
    return (time.perf_counter() - start) / repeats


def statement_seconds(statement: str, *, after: str) -> float:
    """Median seconds that a statement takes in a fresh interpreter in which another one ran before."""
    code = f"{after}\nimport time; t = time.perf_counter()\n{statement}\nprint(time.perf_counter() - t)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    return statistics.median(taken)


# ---------------------------------------------------------------------------------------- memory


def peak_memory(case: Callable[[], object]) -> float:
    """The most resident memory in MiB that a call adds (Linux).

    Memory that earlier calls left with the allocator does not count: measure in a `fresh` process.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest so far
    before = _status("VmRSS")
    case()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A number of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise AssertionError(f"/proc/self/status has no {field}")


def fresh(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a module's function in a new process, with as many threads as here."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.submit(function, *args, **kwargs).result()


# ---------------------------------------------------------------------------------------- inputs and results


def tensors(
    heads: int, length: int, width: int, dtype: torch.dtype = torch.float32, *, batch: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values (B, H, N, D)."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(batch, heads, length, width).to(dtype) for _ in range(3))
    return query, key, value


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype, without `torch.`."""
    return str(dtype).removeprefix("torch.")


def ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    value = seconds * 1e3
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def judged(ratio: float, target: Target | None) -> str:
    """A ratio, bold where it misses its target."""
    text = f"{ratio:.2f}"
    return text if target is None or target.met(ratio) else f"**{text}**"


def versus(peer: float, ours: float, target: Target | None) -> list[str]:
    """Four cells: both times, how many times as fast ours is, and the target."""
    return [ms(peer), ms(ours), judged(peer / ours, target), str(target or "")]


def spread(ratios: Sequence[float]) -> str:
    """Geometric mean and range of ratios, for a sentence."""
    low, high = min(ratios), max(ratios)
    return f"{statistics.geometric_mean(ratios):.2f}" + (f" ({low:.2f} to {high:.2f})" if len(ratios) > 1 else "")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


_ROOT = Path(__file__).parent.parent
_HEADLINE = re.compile(r"(?<=<!-- headline of docs/benchmarks/attention.md -->\n).*?(?=<!-- end -->)", re.DOTALL)


def publish(name: str, title: str, text: str, *, write: bool, command: str = "make bench") -> None:
    """Print a result; with `write`, also keep it as docs/benchmarks/NAME.md, and its headline in README.md."""
    print(text)
    if not write:
        return
    document = _ROOT / "docs" / "benchmarks" / f"{name}.md"
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(f"# {title}\n\nGenerated by `{command}`.\n\n{text}\n", encoding="utf-8")
    if name == "attention":
        readme = _ROOT / "README.md"
        readme.write_text(_HEADLINE.sub(lambda _: headline(text), readme.read_text(encoding="utf-8")), encoding="utf-8")


def headline(text: str) -> str:
    """The conditions and the short sentences of the table of attention, as README.md shows them."""
    [short] = re.findall(r"## In short\n\n(.*?)\n\n## Measured", text, re.DOTALL)
    [measured] = re.findall(r"^Conditions: (.*?)\. Medians", text, re.MULTILINE)
    return f"Measured with {measured}. {short}\n"
