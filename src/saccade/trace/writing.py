"""Traces on a disk, written while the model runs.

Rows wait in memory until an array has `FLUSH_BYTES` of them, then become one shard; so a short entry has one file for
each array, and a long one is written layer by layer. Files are written under another name and renamed. An entry's own
metadata are written twice: as unfinished when it begins, and in full when all its arrays are there; the trace's own say
that it is complete only when it is closed. So whatever ends the process, what is marked as finished is.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saccade.errors import TraceBusyError, TraceExistsError, TraceWriteError
from saccade.trace.layout import (
    ENTRIES,
    MEMBER,
    array_json,
    chunk_and_shard,
    entry_path,
    group_attributes,
    group_json,
    itemsize,
)
from saccade.trace.metadata import Array, EntryMetadata, TraceMetadata, digest, name_of, stored
from saccade.trace.reading import LocalFiles, StoredEntry, StoredTrace, read_root
from saccade.trace.shards import need_codecs, pack, shard_name
from saccade.trace.storage import Arrays, Copies, Copy, Values, as_stored

FLUSH_BYTES = 8 << 20
LOCK = ".lock"
PARTIAL = ".partial"


class DiskSink:
    """A trace that is being written; one recorder at a time.

    Args:
        path: the folder; new or empty, unless `resume`.
        metadata: what the trace says of itself.
        resume: go on with a trace of the same model and options, also where there is none yet.

    Raises:
        TraceExistsError: something is there, or it was recorded in another way.
        TraceBusyError: another recorder writes there.
        TraceWriteError: the folder cannot be written to.
    """

    def __init__(self, path: Path, metadata: TraceMetadata, *, resume: bool = False) -> None:
        need_codecs()
        self.path, self.metadata = path, metadata
        self._was_there = path.exists()
        with _writing(path, begun=False):
            self._check_free(resume=resume)
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
        try:
            self._open(resume=resume)
        except BaseException:
            self._unlock()
            raise

    def _check_free(self, *, resume: bool) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise TraceExistsError(f"{self.path} is a file; a trace is a folder: choose another name")
        if not resume and self._names():
            started = (self.path / "zarr.json").exists() and (self.path / ENTRIES).exists()
            more = ", or go on with it: --resume, resume=True" if started else ""
            raise TraceExistsError(f"{self.path} is not empty: choose another name{more}")

    def _names(self) -> set[str]:
        """What is in the folder that matters."""
        return {path.name for path in self.path.iterdir()} - {LOCK, f"zarr.json{PARTIAL}"}

    def _open(self, *, resume: bool) -> None:
        files = LocalFiles(self.path)
        self._new = not (self.path / "zarr.json").exists()
        if resume and (self.path / "zarr.json").exists():
            self._check_same(read_root(files))
        elif resume and self._names():
            raise TraceExistsError(f"{self.path} holds something that is no trace: choose another name")
        self._set_complete(complete=False)
        _write_group(self.path / ENTRIES, {})
        stored = StoredTrace(files)
        self.finished: list[Arrays] = stored.finished
        self._files = files
        if stored.unfinished is not None:
            shutil.rmtree(self.path / entry_path(stored.unfinished))

    def _check_same(self, found: TraceMetadata) -> None:
        """Refuse to go on with a trace of another model or with other options."""
        for name in ("model", "fingerprint", "keep", "statistics", "layers", "heads", "hidden"):
            mine, theirs = getattr(self.metadata, name), getattr(found, name)
            if mine != theirs:
                what = "of other weights" if name == "fingerprint" else f"with {name} {theirs!r}, not {mine!r}"
                raise TraceExistsError(
                    f"{self.path} was recorded {what}: it cannot be gone on with; choose another name"
                )

    def begin(self, index: int) -> DiskEntry:
        """See `Sink`."""
        assert index == len(self.finished)
        with _writing(self.path):
            _write_group(self.path / entry_path(index), {MEMBER: {"index": index, "complete": False}})
        return DiskEntry(self, index)

    def finish(self, metadata: EntryMetadata) -> StoredEntry:
        """An entry's arrays are all there: mark it so."""
        document = _sealed({**metadata.to_json(), "complete": True})
        _write_group(self.path / entry_path(metadata.index), {MEMBER: document})
        entry = StoredEntry(self._files, metadata.index)
        self.finished.append(entry)
        return entry

    def close(self, *, failed: bool = False) -> None:
        """See `Sink`."""
        try:
            with _writing(self.path):
                if failed and self._new and not self.finished:
                    self._remove()
                else:
                    self._set_complete(complete=True)
        finally:
            self._unlock()

    def _remove(self) -> None:
        """Leave the folder as it was found: not there, or empty."""
        shutil.rmtree(self.path / ENTRIES, ignore_errors=True)
        (self.path / "zarr.json").unlink(missing_ok=True)
        (self.path / LOCK).unlink(missing_ok=True)
        if not self._was_there:
            self.path.rmdir()

    def _set_complete(self, *, complete: bool) -> None:
        self.metadata = self.metadata.closed(len(self.finished)) if complete else self.metadata.opened()
        _write_group(self.path, {MEMBER: _sealed(self.metadata.to_json())})

    def _unlock(self) -> None:
        with suppress(OSError):
            (self.path / LOCK).unlink()
        os.close(self._lock)


def _write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Make a folder a group of Zarr."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder, group_json(attributes))


def _write_json(folder: Path, document: dict[str, Any]) -> None:
    """Write a `zarr.json`, so that there is the old one or the new one."""
    temporary = folder / f"zarr.json{PARTIAL}"
    temporary.write_text(json.dumps(document, allow_nan=False), encoding="ascii")
    temporary.replace(folder / "zarr.json")


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    """With its digest, over what JSON makes of it."""
    plain = json.loads(json.dumps(document, allow_nan=False))
    return {**plain, "digest": digest(plain)}


def _lock(path: Path) -> int:
    """An open file that only one process at a time can hold; the system lets go of it if that one dies."""
    while True:
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise TraceBusyError(
                f"{path} is being written by another recorder: wait for it, or choose another name"
            ) from None
        try:
            if os.path.samestat(os.fstat(handle), (path / LOCK).stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # whoever had it has just removed it


@contextmanager
def _writing(path: Path, *, begun: bool = True) -> Iterator[None]:
    """What a disk says when it cannot be written to, as a `TraceWriteError`."""
    try:
        yield
    except OSError as error:
        more = (
            ". The entries that were finished are whole; when that is mended, --resume (resume=True) goes on after them"
        )
        raise TraceWriteError(
            f"{path} cannot be written to: {error.strerror or error}{more if begun else ''}"
        ) from error


class DiskEntry:
    """An entry that is being written."""

    def __init__(self, sink: DiskSink, index: int) -> None:
        self._sink, self._index = sink, index
        self._path = sink.path / entry_path(index)
        self._copies = Copies()
        self._waiting: dict[str, list[Copy]] = {}
        self._shards: dict[str, _RowsOnDisk] = {}
        self._whole: dict[str, Values] = {}

    def append(self, path: str, row: Tensor) -> None:
        """See `Open`."""
        rows = self._waiting.setdefault(path, [])
        rows.append(self._copies.take(row))
        started = self._shards.get(path)
        enough = len(rows) * _bytes(row) >= FLUSH_BYTES if started is None else len(rows) == started.rows_in_shard
        if enough:
            with _writing(self._sink.path):
                self._flush(path)

    def put(self, path: str, array: Values) -> None:
        """See `Open`."""
        self._whole[path] = self._copies.take(array).wait() if isinstance(array, Tensor) else array

    def finish(self, metadata: EntryMetadata) -> StoredEntry:
        """See `Open`."""
        expected = metadata.arrays
        with _writing(self._sink.path):
            for path in list(self._waiting):
                self._flush(path)
            for path, array in self._whole.items():
                _write_whole(self._path / path, expected[path], as_stored(array))
            for path, written in self._shards.items():
                written.describe(expected[path])
            assert set(expected) == {*self._shards, *self._whole}
            for group, attributes in group_attributes(metadata).items():
                _write_group(self._path / group, attributes)
            return self._sink.finish(metadata)

    def discard(self) -> None:
        """See `Open`."""
        self._waiting.clear()
        shutil.rmtree(self._path, ignore_errors=True)

    def _flush(self, path: str) -> None:
        rows = self._waiting[path]
        if not rows:
            return
        written = self._shards.setdefault(path, _RowsOnDisk(self._path / path, len(rows)))
        written.append([row.wait() for row in rows])
        rows.clear()


class _RowsOnDisk:
    """An array of rows whose number is not known before the last one was written."""

    def __init__(self, path: Path, rows_in_shard: int) -> None:
        self._path = path
        self.rows_in_shard = rows_in_shard
        self._shape: tuple[int, ...] = ()  # of all rows so far

    def append(self, rows: list[Tensor]) -> None:
        """Write a shard's rows; fewer than a shard has only at the end."""
        numbers = as_stored(torch.stack(rows))
        written = self._shape[0] if self._shape else 0
        assert written % self.rows_in_shard == 0
        self._shape = (written + len(rows), *numbers.shape[1:])
        dims = ("layer", *("" for _ in numbers.shape[1:]))
        array = Array(self._shape, str(numbers.dtype), dims)
        _write_shard(self._path, array, numbers, written // self.rows_in_shard, self.rows_in_shard)

    def describe(self, expected: Array) -> None:
        """Now that all rows are there, write what the array is."""
        assert self._shape == expected.shape, f"{self._path}: {self._shape} written, {expected.shape} expected"
        _write_json(self._path, array_json(expected, self.rows_in_shard))


def _write_whole(path: Path, array: Array, values: Any) -> None:
    """An array in one shard."""
    if math.prod(array.shape):
        _write_shard(path, array, values, 0, 1)
    else:
        path.mkdir(parents=True)
    _write_json(path, array_json(array, 1))


def _write_shard(path: Path, array: Array, values: Any, number: int, rows: int) -> None:
    """A shard's file, so that there is all of it or none."""
    if not values.size:
        path.mkdir(parents=True, exist_ok=True)
        return
    chunk, shard = chunk_and_shard(array, rows)
    path.mkdir(parents=True, exist_ok=True)
    file = path / shard_name([number, *[0] * (len(shard) - 1)])
    temporary = path / f"{file.name}{PARTIAL}"
    temporary.write_bytes(pack(values, array.dtype, chunk, shard))
    temporary.replace(file)


def _bytes(row: Tensor) -> int:
    return row.numel() * itemsize(stored(name_of(row.dtype)))
