"""Where an entry's arrays are kept while it is recorded: in memory, or (in `writing`) in a Zarr store.

Both take rows one by one and give them back alike, so that a recording and a trace are one thing whatever they lie in.
"""

from __future__ import annotations

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
        self._rows: dict[str, list[Tensor]] = {}
        self._arrays: dict[str, Values] = {}

    def append(self, path: str, row: Tensor) -> None:
        """See `Open`."""
        self._rows.setdefault(path, []).append(on_host(row))

    def put(self, path: str, array: Values) -> None:
        """See `Open`."""
        self._arrays[path] = on_host(array) if isinstance(array, Tensor) else array

    def finish(self, metadata: EntryMetadata) -> MemoryEntry:
        """See `Open`."""
        self.metadata = metadata
        self._sink.finished.append(self)
        return self

    def discard(self) -> None:
        """See `Open`."""
        self._rows.clear()
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


def on_host(x: Tensor) -> Tensor:
    """A copy in main memory that nobody else writes to."""
    return x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
