"""What every benchmark shares: alternating runs with medians, peak memory, and the conditions they ran under."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch


def conditions() -> str:
    """Versions, processor and threads, in one line."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, {_processor()}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    return platform.processor() or platform.machine()


def alternate(cases: dict[str, Callable[[], object]], *, rounds: int = 7, warm: bool = True) -> dict[str, float]:
    """Median seconds of each case, run in turn so that noise from outside falls on all of them alike.

    Args:
        cases: what to run, by name.
        rounds: turns.
        warm: run each case unmeasured first, and repeat a short one within its turn until it takes 20 ms.
    """
    repeats = dict.fromkeys(cases, 1)
    for name, case in cases.items() if warm else ():
        case()
        repeats[name] = max(1, int(0.02 / max(_seconds(case, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(_seconds(case, repeats[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _seconds(case: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        case()
    return (time.perf_counter() - start) / repeats


def peak_memory(case: Callable[[], object]) -> float:
    """The most resident memory in MiB that a call adds, sampled every millisecond (Linux)."""
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    before, done = resident(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        case()
    finally:
        done.set()
        watcher.join()
    return (max(peak, resident()) - before) / 2**20


def import_seconds(module: str, *, after: str) -> float:
    """Median seconds that importing `module` adds in a fresh interpreter that already imported `after`."""
    code = f"import time, {after}; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    return statistics.median(taken)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])
