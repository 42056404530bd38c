"""Where an entry's arrays are kept while it is recorded: in memory, or (in `writing`) in a Zarr store.

Both take rows one by one and give them back alike, so that a recording and a trace are one thing whatever they lie in.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.trace.metadata import EntryMetadata, TraceMetadata

Values = Tensor | NDArray[Any]  # an array of strings is a NumPy array
Index = tuple[int | slice | list[int], ...]


class Arrays(Protocol):
    """The arrays of an entry that is finished."""

    @property
    def metadata(self) -> EntryMetadata:
        """What the entry says of itself."""

    def read(self, path: str, index: Index = ()) -> Values:
        """An array, or a part of it, of its own; by its path within the entry.

        Raises:
            DamagedTraceError, TraceFormatError: it is not what was written, or not what it should be.
        """


class Open(Protocol):
    """An entry that is being recorded."""

    def append(self, path: str, row: Tensor) -> None:
        """The next row of an array of rows."""

    def put(self, path: str, array: Values) -> None:
        """A whole array."""

    def finish(self, metadata: EntryMetadata) -> Arrays:
        """All is there: the entry counts from now on."""

    def discard(self) -> None:
        """Forget the entry."""


class Sink(Protocol):
    """Where a recording goes."""

    @property
    def finished(self) -> list[Arrays]:
        """The entries that were finished."""

    def begin(self, index: int) -> Open:
        """A new entry."""

    def close(self, *, failed: bool = False) -> None:
        """Nothing follows; after a failure, nothing at all remains of a recording that has no entry."""


class MemorySink:
    """A recording in memory."""

    def __init__(self, metadata: TraceMetadata) -> None:
        self.metadata = metadata
        self.finished: list[Arrays] = []

    def begin(self, index: int) -> MemoryEntry:
        """See `Sink`."""
        assert index == len(self.finished)
        return MemoryEntry(self)

    def close(self, *, failed: bool = False) -> None:
        """See `Sink`."""
        del failed
        self.metadata = self.metadata.closed(len(self.finished))


class MemoryEntry:
    """An entry in memory: while it is recorded, and afterwards."""

    metadata: EntryMetadata

    def __init__(self, sink: MemorySink) -> None:
        self._sink = sink
        self._copies = Copies()
        self._underway: dict[str, list[Copy]] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._arrays: dict[str, Values] = {}

    def append(self, path: str, row: Tensor) -> None:
        """See `Open`."""
        self._underway.setdefault(path, []).append(self._copies.take(row))

    def put(self, path: str, array: Values) -> None:
        """See `Open`."""
        self._arrays[path] = self._copies.take(array).wait() if isinstance(array, Tensor) else array

    def finish(self, metadata: EntryMetadata) -> MemoryEntry:
        """See `Open`."""
        self.metadata = metadata
        self._rows = {path: [copy.wait() for copy in copies] for path, copies in self._underway.items()}
        self._underway.clear()
        self._sink.finished.append(self)
        return self

    def discard(self) -> None:
        """See `Open`."""
        self._underway.clear()
        self._arrays.clear()

    def read(self, path: str, index: Index = ()) -> Values:
        """See `Arrays`."""
        if path in self._arrays:
            array = self._arrays[path][index]
            return array.clone() if isinstance(array, Tensor) else np.array(array)
        rows = self._rows[path]
        if index and isinstance(index[0], int):
            return rows[index[0]][index[1:]].clone()
        chosen = [rows[i] for i in _numbers(index[0], len(rows))] if index else rows
        return torch.stack(chosen)[(slice(None), *index[1:])]


def _numbers(part: slice | list[int] | int, length: int) -> list[int]:
    return list(range(length)[part]) if isinstance(part, slice) else [part] if isinstance(part, int) else part


def as_stored(values: Values) -> NDArray[Any]:
    """The numbers as Zarr has them: bfloat16 as float32."""
    if not isinstance(values, Tensor):
        return np.asarray(values, dtype=object)
    return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()


# ---------------------------------------------------------------------------------------- copies in main memory


class Copy:
    """A tensor's numbers in main memory, where nobody else writes to them; they may be on their way still."""

    def __init__(self, numbers: Tensor, ready: torch.cuda.Event | None = None) -> None:
        self._numbers, self._ready = numbers, ready

    @property
    def is_underway(self) -> bool:
        """Whether nobody has waited for it yet."""
        return self._ready is not None

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self._numbers.nbytes

    def wait(self) -> Tensor:
        """The numbers, once they are there."""
        if self._ready is not None:
            self._ready.synchronize()
            self._numbers, self._ready = self._numbers.clone(), None  # out of page-locked memory
        return self._numbers


class Copies:
    """Makes copies in main memory.

    What lies on a GPU goes by a stream of its own, into page-locked memory: neither the program nor the model's next
    kernel waits for it. When more than `MOST_UNDERWAY` bytes are on their way, the oldest are waited for.
    """

    def __init__(self) -> None:
        self._underway: deque[Copy] = deque()
        self._bytes = 0

    def take(self, x: Tensor) -> Copy:
        """A copy of what the tensor holds now."""
        x = x.detach()
        if not is_remote(x):
            return Copy(x.to("cpu", copy=True, memory_format=torch.contiguous_format))
        copy = fetch(x)
        self._underway.append(copy)
        self._bytes += copy.nbytes
        while self._underway and (self._bytes > MOST_UNDERWAY or not self._underway[0].is_underway):
            oldest = self._underway.popleft()
            oldest.wait()
            self._bytes -= oldest.nbytes
        return copy


MOST_UNDERWAY = 256 << 20


def is_remote(x: Tensor) -> bool:
    """Whether a tensor's numbers have to be fetched from a GPU."""
    return x.is_cuda


def fetch(x: Tensor) -> Copy:
    """Start the copy of a tensor on a GPU, of what it holds when all that its stream was given is done."""
    with torch.cuda.device(x.device):
        side = _side_stream(x.device)
        # A copy on the GPU first, in the stream's order: the model may write to the tensor next.
        source = x.clone(memory_format=torch.contiguous_format)
        side.wait_stream(torch.cuda.current_stream())
        numbers = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
        with torch.cuda.stream(side):
            numbers.copy_(source, non_blocking=True)
            source.record_stream(side)
            ready = side.record_event()
    return Copy(numbers, ready)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
