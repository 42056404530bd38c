"""Traces in a Zarr store: opened, checked, read.

Nothing in a store is believed. Metadata are parsed strictly (`metadata`), and an array's own `zarr.json` has to say
what the entry's metadata imply. `GuardedStore`, through which zarr reads, looks at every byte range before a
decompressor does. A file that is missing, cut off, or a link to elsewhere, and a frame that would expand to more than
its chunk, end in a named error and not in a plausible number or a full memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
import torch

from saccade.errors import (
    DamagedTraceError,
    MissingExtraError,
    NotATraceError,
    TraceError,
    TraceFormatError,
    TraceVersionError,
)
from saccade.trace.layout import ENTRIES, MEMBER, entry_path, itemsize
from saccade.trace.metadata import (
    MOST,
    PRECISIONS,
    VERSION,
    Array,
    EntryMetadata,
    TraceMetadata,
    digest,
)
from saccade.trace.storage import Arrays, Index, Values

if TYPE_CHECKING:
    from zarr.abc.store import Store

# A group's or array's JSON is smaller.
MOST_JSON = 1 << 26
# A chunk is smaller when it is unpacked.
MOST_CHUNK = 1 << 24
MOST_STRINGS = 1 << 28
# What zarr and its codecs raise when bytes are not what they should be. MemoryError: a size that is none.
UNREADABLE = (ValueError, RuntimeError, KeyError, IndexError, TypeError, EOFError, OSError, MemoryError)


class Files(Protocol):
    """The files of a store, on a disk or elsewhere."""

    name: str

    def read(self, key: str) -> bytes | None:
        """A small file's content; None if there is no such file."""

    def check(self, key: str) -> None:
        """Refuse a file that lies outside of the store."""

    def store(self) -> Store:
        """The same files for zarr."""


class LocalFiles:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.name = str(root)

    def read(self, key: str) -> bytes | None:
        """See `Files`."""
        self.check(key)
        path = self.root / key
        try:
            if path.stat().st_size > MOST_JSON:
                raise TraceFormatError(f"{path} is larger than {MOST_JSON >> 20} MiB; no metadata are")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def check(self, key: str) -> None:
        """See `Files`."""
        if not (self.root / key).resolve().is_relative_to(self.root):
            raise TraceFormatError(f"{self.root / key} is a link that leads out of the trace; it is not followed")

    def store(self) -> Store:
        """See `Files`."""
        from zarr.storage import LocalStore

        return LocalStore(self.root, read_only=True)

    def entries(self) -> list[int]:
        """The numbers of the entries' folders."""
        folder = self.root / ENTRIES
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"\d{6,}", name))


class RemoteFiles:
    """Whatever fsspec reads: HTTP, object stores."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs

            self._fs, self._root = url_to_fs(url)
        except ImportError as error:
            raise MissingExtraError(_lacking(error), "http") from None
        except ValueError as error:
            raise NotATraceError(f"{url}: {error}") from None
        self.name = url

    def read(self, key: str) -> bytes | None:
        """See `Files`."""
        try:
            content: bytes = self._fs.cat_file(f"{self._root.rstrip('/')}/{key}", start=0, end=MOST_JSON + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotATraceError(f"{self.name} cannot be read: {error}") from None
        if len(content) > MOST_JSON:
            raise TraceFormatError(f"{self.name}/{key} is larger than {MOST_JSON >> 20} MiB; no metadata are")
        return content

    def check(self, key: str) -> None:
        """See `Files`. What a server gives out is its own affair."""

    def store(self) -> Store:
        """See `Files`."""
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self.name, read_only=True)


def _lacking(error: ImportError) -> str:
    return error.name or "aiohttp"


def need_zarr() -> None:
    """Raise unless zarr is installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise MissingExtraError("zarr", "trace") from None


def open_files(path: str | Path) -> Files:
    """The files of a trace, by folder or URL.

    Raises:
        NotATraceError: there is no such folder.
        MissingExtraError: what reads that URL is not installed.
    """
    need_zarr()
    if "://" in str(path):
        return RemoteFiles(str(path))
    folder = Path(path)
    if not folder.exists():
        raise NotATraceError(f"{folder}: there is nothing of that name")
    if not folder.is_dir():
        raise NotATraceError(f"{folder} is a file; a trace is a folder")
    return LocalFiles(folder)


# ---------------------------------------------------------------------------------------- JSON


def read_json(files: Files, key: str) -> Any:
    """A JSON file; None if there is none.

    Raises:
        TraceFormatError: it is no JSON.
    """
    content = files.read(key)
    if content is None:
        return None
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedTraceError(f"{files.name}/{key} is no JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _member(files: Files, path: str) -> dict[str, Any] | None:
    """What a group of ours says of itself; None if there is no such group."""
    key = f"{path}/zarr.json" if path else "zarr.json"
    document = read_json(files, key)
    if document is None:
        return None
    if not isinstance(document, Mapping) or (document.get("zarr_format"), document.get("node_type")) != (3, "group"):
        raise TraceFormatError(f"{files.name}/{key} is no group of Zarr 3")
    attributes = document.get("attributes")
    found = attributes.get(MEMBER) if isinstance(attributes, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else None


def _check_digest(document: Mapping[str, Any], where: str) -> None:
    try:
        right = document.get("digest") == digest(document)
    except (ValueError, TypeError) as error:
        raise TraceFormatError(f"{where}: {error}") from None
    if not right:
        raise DamagedTraceError(f"{where}: its metadata were changed after they were written (the digest differs)")


# ---------------------------------------------------------------------------------------- the trace


class StoredTrace:
    """A trace in a store.

    Attributes:
        files: where it lies.
        metadata: of the whole.
        finished: its whole entries.
        unfinished: the number of an entry that was not finished, or None.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.metadata = read_root(files)
        self.guard = _guarded(files)
        count, self.unfinished = self._count()
        self.finished: list[Arrays] = [StoredEntry(files, self.guard, i) for i in range(count)]

    def _count(self) -> tuple[int, int | None]:
        """How many entries are whole, and the number of one that is not."""
        if self.metadata.complete and not isinstance(self.files, LocalFiles):
            return self.metadata.entries, None
        found = self.files.entries() if isinstance(self.files, LocalFiles) else list(range(self._probe()))
        if found != list(range(len(found))):
            missing = min(set(range(found[-1])) - set(found))
            raise DamagedTraceError(f"{self.files.name}: entry {missing} is missing")
        last = len(found) - 1
        if found and not is_finished(self.files, last):
            found.pop()
        unfinished = last if len(found) == last else None
        if self.metadata.complete and (len(found) != self.metadata.entries or unfinished is not None):
            raise DamagedTraceError(
                f"{self.files.name}: it was closed with {self.metadata.entries} entries and has {len(found)}"
            )
        return len(found), unfinished if found or last >= 0 else None

    def _probe(self) -> int:
        count = 0
        while self.files.read(f"{entry_path(count)}/zarr.json") is not None:
            count += 1
        return count


def read_root(files: Files) -> TraceMetadata:
    """A trace's own metadata.

    Raises:
        NotATraceError: there is no trace.
        TraceVersionError: it is of another version.
        DamagedTraceError, TraceFormatError: it is not as it was written, or against the specification.
    """
    document = _root_document(files)
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise TraceVersionError(
            f"{files.name} is a trace of version {version!r}; this Saccade reads version {VERSION}. "
            "Look for another release of saccade"
        )
    _check_digest(document, files.name)
    return TraceMetadata.from_json(document, files.name)


def _root_document(files: Files) -> dict[str, Any]:
    try:
        document = _member(files, "")
    except (TraceFormatError, DamagedTraceError) as error:
        raise NotATraceError(f"{files.name} is no trace: {error}") from None
    if document is None:
        raise NotATraceError(
            f"{files.name} is no trace: there is no zarr.json of Saccade. Expected a folder written by saccade record"
        )
    return document


def _entry_document(files: Files, index: int) -> dict[str, Any]:
    where = f"{files.name}, entry {index}"
    document = _member(files, entry_path(index))
    if document is None:
        raise DamagedTraceError(f"{where}: its zarr.json is missing or says nothing of the entry")
    return document


def is_finished(files: Files, index: int) -> bool:
    """Whether an entry was finished; a folder without metadata was just begun."""
    document = _member(files, entry_path(index))
    return document is not None and document.get("complete") is True


class StoredEntry:
    """An entry in a store; nothing is read before it is asked for."""

    def __init__(self, files: Files, guard: GuardedStore, index: int) -> None:
        self.files, self.guard, self._index = files, guard, index
        self.path = entry_path(index)
        self.name = f"{files.name}, entry {index}"

    @cached_property
    def metadata(self) -> EntryMetadata:
        """What the entry says of itself."""
        where = self.name
        document = _entry_document(self.files, self._index)
        if document.get("complete") is not True:
            raise DamagedTraceError(f"{where} is marked as unfinished, and others follow it")
        _check_digest(document, where)
        try:
            metadata = EntryMetadata.from_json(document, where)
        except TraceFormatError as error:
            raise TraceFormatError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
        if metadata.index != self._index:
            raise TraceFormatError(f"{where} says that it is entry {metadata.index}")
        return metadata

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The entry's arrays by path."""
        return self.metadata.arrays()

    def read(self, path: str, index: Index = ()) -> Values:
        """See `Arrays`."""
        return _as_values(self.raw(path, index), self.arrays[path])

    def raw(self, path: str, index: Index = ()) -> Any:
        """The same as NumPy has it; bfloat16 as float32."""
        expected = self.arrays[path]
        place = f"{self.path}/{path}"
        where = f"{self.files.name}/{place}"
        with _reading(where):
            array = self._open(place, expected)
            lists = any(isinstance(part, list) for part in index)
            return np.asarray(array.oindex[index] if lists else array[index or ...])

    def _open(self, place: str, expected: Array) -> Any:
        import zarr

        chunk, shard = check_array(read_json(self.files, f"{place}/zarr.json"), expected, f"{self.files.name}/{place}")
        self.guard.expect(place, Shard(expected.dtype, chunk, shard))
        return zarr.open_array(self.guard, path=place, mode="r", zarr_format=3)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Errors of zarr and its codecs as ours."""
    try:
        yield
    except TraceError:
        raise
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedTraceError(f"{where} cannot be read: {reason}") from error


def _as_values(found: Any, expected: Array) -> Values:
    if expected.dtype == "string":
        return np.asarray(found, dtype=object)
    values = torch.from_numpy(found if found.flags.writeable else found.copy())
    return values if expected.precision is None else values.to(PRECISIONS[expected.precision])


# ---------------------------------------------------------------------------------------- arrays


def check_array(document: Any, expected: Array, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An array's `zarr.json` says what it should; its chunk and shard shapes.

    Raises:
        DamagedTraceError: there is none.
        TraceFormatError: it says something else.
    """
    if document is None:
        raise DamagedTraceError(f"{where}/zarr.json is missing")
    if not isinstance(document, Mapping):
        raise TraceFormatError(f"{where} is no array of Zarr 3")
    says = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(expected.shape),
        "data_type": expected.dtype,
        "dimension_names": list(expected.dims),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }
    for name, value in says.items():
        if document.get(name) != value:
            raise TraceFormatError(f"{where}: {name} is {_short(document.get(name))}; expected {_short(value)}")
    if document.get("storage_transformers"):
        raise TraceFormatError(f"{where}: storage transformers are not part of a trace")
    shard = _shape(document.get("chunk_grid"), expected, f"{where}: chunk_grid")
    return _check_codecs(document.get("codecs"), expected, where), shard


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004  fits in a line


def _shape(grid: Any, expected: Array, where: str) -> tuple[int, ...]:
    """The shape of a shard: some rows, and all of everything else."""
    shape = _configured(grid, "regular", where).get("chunk_shape")
    if not _is_shape(shape, len(expected.shape)):
        raise TraceFormatError(f"{where} is {_short(grid)}; expected {len(expected.shape)} sizes of at least 1")
    first = 1 if expected.rows else 0
    whole = all(part >= length for part, length in zip(shape[first:], expected.shape[first:], strict=True))
    if not whole or any(part > 2 * max(length, 1) for part, length in zip(shape, expected.shape, strict=True)):
        raise TraceFormatError(f"{where} is {_short(shape)}; expected whole rows of {list(expected.shape)}")
    return tuple(shape)


def _is_shape(shape: Any, dims: int) -> TypeGuard[list[int]]:
    return (
        isinstance(shape, list)
        and len(shape) == dims
        and all(type(n) is int and 1 <= n <= MOST for n in shape)
        and math.prod(shape) < 1 << 62
    )


def _configured(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and value.get("name") == name:
        configuration = value.get("configuration", {})
        if isinstance(configuration, Mapping):
            return configuration
    raise TraceFormatError(f"{where} is {_short(value)}; expected {name}")


def _check_codecs(codecs: Any, expected: Array, where: str) -> tuple[int, ...]:
    """The chain of codecs is ours, and no other one is looked up; the shape of a chunk."""
    if not isinstance(codecs, list) or len(codecs) != 1:
        raise TraceFormatError(f"{where}: codecs are {_short(codecs)}; expected sharding_indexed")
    sharding = _configured(codecs[0], "sharding_indexed", f"{where}: codecs")
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    first = {"name": "vlen-utf8", "configuration": {}} if expected.dtype == "string" else little
    first = {"name": "bytes"} if itemsize(expected.dtype) == 1 else first  # one byte has no order
    _check_chain(sharding.get("codecs"), [first, {"name": "zstd"}], f"{where}: codecs")
    _check_chain(sharding.get("index_codecs"), [little, {"name": "crc32c"}], f"{where}: index_codecs")
    if sharding.get("index_location", "end") != "end":
        raise TraceFormatError(f"{where}: the index of a shard has to be at its end")
    chunk = sharding.get("chunk_shape")
    if not _is_shape(chunk, len(expected.shape)) or math.prod(chunk) * itemsize(expected.dtype) > MOST_CHUNK:
        raise TraceFormatError(f"{where}: chunk_shape is {_short(chunk)}; expected at most {MOST_CHUNK >> 20} MiB")
    return tuple(chunk)


def _check_chain(found: Any, expected: list[dict[str, Any]], where: str) -> None:
    """The codecs are these, in this order; of zstd, that it has checksums."""
    plain = [dict(codec) if isinstance(codec, Mapping) else codec for codec in found] if isinstance(found, list) else []
    for codec in plain:
        if isinstance(codec, dict) and codec.get("name") == "zstd":
            configuration = codec.pop("configuration", None)
            if not isinstance(configuration, Mapping) or configuration.get("checksum") is not True:
                raise TraceFormatError(f"{where}: zstd is without checksum")
    if plain != expected:
        raise TraceFormatError(f"{where} are {_short(found)}; expected {_short(expected)}")


@dataclass(frozen=True)
class Shard:
    """What a shard of an array has to look like."""

    dtype: str
    chunk: tuple[int, ...]
    shard: tuple[int, ...]

    @property
    def chunks(self) -> int:
        """How many there are in a shard."""
        return math.prod(-(-s // c) for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def index_bytes(self) -> int:
        """The size of a shard's index: offset and length of each chunk, and a CRC-32C."""
        return 16 * self.chunks + 4

    def check_index(self, index: bytes | memoryview, where: str) -> list[tuple[int, int]]:
        """Where the chunks are, all of which have to be there; (offset, length) of each."""
        if len(index) != self.index_bytes:
            raise DamagedTraceError(f"{where} is cut off")
        entries = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
        if (entries == np.iinfo(np.uint64).max).any():
            raise DamagedTraceError(f"{where} lacks a chunk")
        return [(int(offset), int(length)) for offset, length in entries]

    def check_chunk(self, head: bytes, where: str) -> None:
        """A chunk's Zstandard frame says that it has a checksum, and unpacks to what a chunk is."""
        size = frame_content_size(head)
        if self.dtype == "string":
            right = size is not None and size <= MOST_STRINGS
        else:
            right = size == math.prod(self.chunk) * itemsize(self.dtype)
        if not right:
            raise DamagedTraceError(f"{where}: a chunk is no Zstandard frame with a checksum and of a chunk's size")


def frame_content_size(head: bytes) -> int | None:
    """The content size in the header of a Zstandard frame (RFC 8878, section 3.1.1.1).

    None if it is no such frame, does not say its size, or has no checksum.
    """
    if len(head) < 5 or head[:4] != b"\x28\xb5\x2f\xfd":  # noqa: PLR2004
        return None
    descriptor = head[4]
    single_segment, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if not has_checksum or not width or len(head) < start + width:
        return None
    size = int.from_bytes(head[start : start + width], "little")
    return size + 256 if width == 2 else size  # noqa: PLR2004


def _guarded(files: Files) -> GuardedStore:
    need_zarr()
    guard: GuardedStore = _guard_class()(files)
    return guard


class GuardedStore(Protocol):
    """A store for zarr that refuses what an array's metadata do not imply."""

    def expect(self, place: str, shard: Shard) -> None:
        """Say what the shards of an array have to look like."""


def _guard_class() -> Any:  # zarr is imported only by those who use it
    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.storage import WrapperStore

    def _part_of(byte_range: Any, length: int) -> slice:
        """What was asked for, of the answer of a server that knows no ranges and sends the whole file."""
        if isinstance(byte_range, RangeByteRequest) and length > byte_range.end - byte_range.start:
            return slice(byte_range.start, byte_range.end)
        if isinstance(byte_range, SuffixByteRequest):
            return slice(max(0, length - byte_range.suffix), length)
        return slice(0, length)

    class Guard(WrapperStore[Any]):
        """See `GuardedStore`."""

        def __init__(self, files: Files) -> None:
            super().__init__(files.store())
            self._files = files
            self._shards: dict[str, Shard] = {}

        def expect(self, place: str, shard: Shard) -> None:
            self._shards[place] = shard

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            self._files.check(key)
            found = await self._store.get(key, prototype, byte_range)
            place, separator, _ = key.partition("/c/")
            if separator and place in self._shards:
                where = f"{self._files.name}/{key}"
                if found is None:
                    raise DamagedTraceError(f"{where} is missing")
                found = found[_part_of(byte_range, len(found))]
                self._check(self._shards[place], memoryview(found.as_numpy_array()), byte_range, where)
            return found

        def _check(self, shard: Shard, content: memoryview, byte_range: Any, where: str) -> None:
            if isinstance(byte_range, RangeByteRequest):
                shard.check_chunk(bytes(content[:32]), where)
            elif isinstance(byte_range, SuffixByteRequest):
                shard.check_index(content, where)
            else:
                for offset, length in shard.check_index(content[-shard.index_bytes :], where):
                    shard.check_chunk(bytes(content[offset : offset + min(length, 32)]), where)

    return Guard
