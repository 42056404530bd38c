"""Job `cost`: what attention costs on this machine as the text grows, beside attention that stores its pattern.

Both are measured in a process of their own (``python -m saccade.explorer.cost``), where nothing else holds memory and
none of ours is left behind if the job is given up. Both answer the same: the output and every statistic of a recording.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade import functional
from saccade.adapters.pretrained import Pretrained, first_line
from saccade.backends import native
from saccade.errors import SaccadeError
from saccade.explorer.parameters import read
from saccade.explorer.parcel import Answer
from saccade.explorer.questions import NoParameters
from saccade.explorer.work import Asked, go_on
from saccade.masks import Lengths
from saccade.statistics import Map, Statistic
from saccade.trace import default_statistics
from saccade.trace.choice import TOP_KEYS

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer, Progress

HEADS, WIDTH = 12, 64  # where no model says others
LENGTHS = tuple(128 << i for i in range(6))
ROUNDS = 3
SHORTEST = 0.02  # seconds: a faster call is repeated within its turn
CALLS = ROUNDS + 3  # two before they are timed, one to see its memory
SECONDS = 8.0  # that all calls may take
MOST_BYTES = 1 << 30  # that a call may be expected to take
GROWTH = 4  # what both grow by at most when the text is twice as long
LOOK = 0.1  # seconds between two looks at whether the job is still wanted


@dataclass(frozen=True)
class Point:
    """What one call takes: CostPoint."""

    seconds: float
    bytes: int


def cost(explorer: Explorer, parameters: Mapping[str, Any], progress: Progress, cancelled: Asked) -> Answer:
    """What attention costs here: CostAnswer. About ten seconds.

    Raises:
        SaccadeError: this machine does not tell how much memory a process has used.
        Cancelled: nobody waits for it any more.
    """
    read(NoParameters, parameters)
    heads, width = _sizes(explorer.reader)
    threads = torch.get_num_threads()
    points: list[Any] = []
    progress(0.0, "starting a process to measure in")
    with _measuring(heads, width, threads) as process:
        for line in _lines(process, cancelled):
            points.append(json.loads(line))
            progress(len(points) / len(LENGTHS), f"measured {points[-1]['length']:,} tokens")
    return {
        "conditions": _conditions(heads, width, threads),
        "heads": heads,
        "width": width,
        "itemsize": torch.float32.itemsize,
        "points": points,
    }


def _sizes(reader: Pretrained | None) -> tuple[int, int]:
    """How many heads the model has in a layer, and how wide they are."""
    if reader is None:
        return HEADS, WIDTH
    config = reader.model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    if heads and width is None and getattr(config, "hidden_size", None):
        width = config.hidden_size // heads
    return (int(heads), int(width)) if heads and width else (HEADS, WIDTH)


def _conditions(heads: int, width: int, threads: int) -> str:
    library = native.load()
    kernels = "no kernels of ours" if isinstance(library, str) else f"kernels {library.variant}"
    return (
        f"{heads} heads of width {width}, float32, one text, every query sees every key; {threads} threads of "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {kernels}. Seconds are medians of {ROUNDS} runs, in turn. "
        "Bytes are the most main memory that the process held during a call, less what it held before. Both give the "
        "output, each query's lse, entropy, largest weight, distance and top keys, what each key received, and a map; "
        "stored: softmax(QKᵀ) written out by PyTorch and reduced to the same."
    )


# ---------------------------------------------------------------------------------------- the other process


@contextmanager
def _measuring(heads: int, width: int, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that measures; it is ended with the context.

    Raises:
        SaccadeError: it could not measure.
    """
    command = [sys.executable, "-P", "-m", "saccade.explorer.cost", *map(str, (heads, width, threads))]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)  # noqa: S603
        with process:
            try:
                yield process
                code = process.wait()
            finally:
                process.kill()
        if code:
            raise SaccadeError(f"the cost could not be measured: {_last_line(said)}")


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the process that measures was ended"


def _lines(process: subprocess.Popen[bytes], cancelled: Asked) -> Iterator[bytes]:
    """What the process says, line by line, as it says it."""
    assert process.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            go_on(cancelled)
            if not selector.select(LOOK):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            yield from lines


# ---------------------------------------------------------------------------------------- what is measured


def _asked(query: Tensor) -> list[Statistic]:
    """The statistics of a recording, of as many keys as queries."""
    batch, heads, length, _ = query.shape
    return default_statistics(Lengths(batch, heads, length, length))


def ours(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Attention with every statistic of a recording: the output, then the statistics in their order."""
    output, report = functional.attention(query, key, value, statistics=_asked(query))
    found = [output]
    for field in report:
        answer = report[field]
        found += [answer] if isinstance(answer, Tensor) else [answer.indices, answer.weights]
    return found


def stored(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """The same by a pattern that is stored and reduced with PyTorch's operations, as fast as these are."""
    length = query.shape[2]
    cells = next(asked.cells for asked in _asked(query) if isinstance(asked, Map))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[3]))
    weights = scores.softmax(-1)
    lse = scores.logsumexp(-1)
    entropy = lse - (weights * scores).sum(-1)
    del scores
    position = torch.arange(length, dtype=weights.dtype)
    top = weights.topk(TOP_KEYS, dim=-1)
    return [
        weights @ value,
        lse,
        entropy,
        weights.amax(-1),
        (weights * (position[:, None] - position).abs_()).sum(-1),
        top.indices,
        top.values,
        weights.sum(-2),
        F.adaptive_max_pool2d(weights, cells),
    ]


Case = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Timed:
    """What was seen of a side: the seconds of its calls, and the bytes of one."""

    times: Sequence[float]
    bytes: int

    def point(self) -> dict[str, Any]:
        """CostPoint."""
        return asdict(Point(median(self.times), self.bytes))


def measured(heads: int, width: int) -> Iterator[dict[str, Any]]:
    """The points by ascending length, each as it is known.

    A side is not tried where it would have to be expected to be too slow or too large: four times what it took at half
    the length. Without ours there is no point.
    """
    end = time.perf_counter() + SECONDS
    last = {"ours": Timed([0.0], 0), "stored": Timed([0.0], 0)}
    for length in LENGTHS:
        names = _affordable(last, end - time.perf_counter())
        if "ours" not in names:
            return
        inputs = torch.randn(3, 1, heads, length, width).unbind()
        cases = {name: partial(SIDES[name], *inputs) for name in names}
        times = _in_turn(cases)
        seen = {name: Timed(times[name], peak_bytes(case)) for name, case in cases.items()}
        last |= seen
        yield {"length": length, "stored": None} | {name: one.point() for name, one in seen.items()}


SIDES = {"ours": ours, "stored": stored}


def _affordable(half: Mapping[str, Timed], seconds: float) -> list[str]:
    """Which sides may be tried at twice the length, ours first."""
    found = []
    for name, one in half.items():
        needed = CALLS * GROWTH * min(one.times)
        if needed <= seconds and one.bytes * GROWTH <= MOST_BYTES:
            found.append(name)
            seconds -= needed
    return found


def _in_turn(cases: Mapping[str, Case]) -> dict[str, list[float]]:
    """Seconds of each, run in turn, so that what else the machine does falls on all alike."""
    repeats = {}
    for name, case in cases.items():
        _seconds(case, 1)  # the first call loads what the others find
        repeats[name] = max(1, int(SHORTEST / max(_seconds(case, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            times[name].append(_seconds(case, repeats[name]))
    return times


def _seconds(case: Case, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        case()
    return (time.perf_counter() - start) / repeats


# ---------------------------------------------------------------------------------------- memory

_PROCESS = Path("/proc/self")
_FORGET_HIGHEST = "5"  # what, written to clear_refs, makes VmHWM begin anew


def peak_bytes(case: Case) -> int:
    """The most resident memory that a call adds, what it returns included.

    In a thread of its own, as our kernels keep a workspace for each thread that calls them.

    Raises:
        SaccadeError: the system does not tell (only Linux does).
    """
    _give_back()
    try:
        (_PROCESS / "clear_refs").write_text(_FORGET_HIGHEST, encoding="ascii")
        before = _status("VmRSS")
        returned = _in_thread(case)
        return max(_status("VmHWM") - before, returned)
    except OSError as error:
        raise SaccadeError(
            f"this system does not tell how much memory a process has used ({first_line(error)})"
        ) from None


def _in_thread(case: Case) -> int:
    """Call it in a new thread; the bytes that it returned."""
    found = []
    thread = threading.Thread(target=lambda: found.append(sum(x.nbytes for x in case())))
    thread.start()
    thread.join()
    return found[0]


def _status(field: str) -> int:
    """A number of bytes in /proc/self/status."""
    lines = (_PROCESS / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


_MMAP_THRESHOLD, _SMALL = -3, 1 << 16  # M_MMAP_THRESHOLD of glibc's malloc.h


def _give_back() -> None:
    """Free memory goes back to the system, and so does, from now on, what is freed.

    Else a call would use what earlier ones left behind, or find it in pieces that are too small: then a pattern of 512
    tokens takes twice as much.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; others do so by themselves
        libc.mallopt(_MMAP_THRESHOLD, _SMALL)
        libc.malloc_trim(0)


def main() -> None:
    """Measure, and print each point as a line of JSON."""
    heads, width, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    with torch.no_grad():
        for point in measured(heads, width):
            print(json.dumps(point), flush=True)  # noqa: T201  this is what the process is for


if __name__ == "__main__":
    main()
