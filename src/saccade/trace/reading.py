"""Traces in a Zarr store: opened, checked, read.

Nothing in a store is believed. Metadata are parsed strictly (`metadata`), an array's own `zarr.json` has to say what
the entry's metadata imply, and sizes are checked before anything is unpacked (`shards`). A file that is missing, cut
off, changed, or a link to elsewhere ends in a named error and not in a plausible number or a full memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch

from saccade.errors import (
    DamagedTraceError,
    MissingExtraError,
    NotATraceError,
    TraceFormatError,
    TraceVersionError,
)
from saccade.trace.layout import CHUNK_KEYS, ENTRIES, INDEX_CODECS, MEMBER, entry_path, itemsize, serializer
from saccade.trace.metadata import (
    MOST,
    PRECISIONS,
    VERSION,
    Array,
    EntryMetadata,
    TraceMetadata,
    digest,
)
from saccade.trace.shards import Ranges, Sharded, need_codecs
from saccade.trace.storage import Arrays, Index, Values

# A group's or array's JSON is smaller.
MOST_JSON = 1 << 26
# A chunk is smaller when it is unpacked.
MOST_CHUNK = 1 << 24


class Files(Ranges, Protocol):
    """The files of a store, on a disk or elsewhere."""

    name: str

    def read(self, key: str) -> bytes | None:
        """A small file's content; None if there is no such file."""


class LocalFiles:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.name = str(root)

    def _path(self, key: str) -> Path:
        path = self.root / key
        if not path.resolve().is_relative_to(self.root):
            raise TraceFormatError(f"{path} is a link that leads out of the trace; it is not followed")
        return path

    def read(self, key: str) -> bytes | None:
        """See `Files`."""
        path, size = self._path(key), self.size(key)
        if size is None:
            return None
        if size > MOST_JSON:
            raise TraceFormatError(f"{path} is larger than {MOST_JSON >> 20} MiB; no metadata are")
        return path.read_bytes()

    def size(self, key: str) -> int | None:
        """See `Ranges`."""
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def part(self, key: str, start: int, length: int) -> bytes:
        """See `Ranges`."""
        with self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

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

    def _url(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def read(self, key: str) -> bytes | None:
        """See `Files`."""
        try:
            content: bytes = self._fs.cat_file(self._url(key), start=0, end=MOST_JSON + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotATraceError(f"{self.name} cannot be read: {error}") from None
        if len(content) > MOST_JSON:
            raise TraceFormatError(f"{self.name}/{key} is larger than {MOST_JSON >> 20} MiB; no metadata are")
        return content

    def size(self, key: str) -> int | None:
        """See `Ranges`."""
        try:
            size = self._fs.info(self._url(key))["size"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedTraceError(f"{self.name}/{key} cannot be read: {error}") from None
        return int(size) if size is not None else len(self._fetch(key))

    def part(self, key: str, start: int, length: int) -> bytes:
        """See `Ranges`."""
        content = self._fetch(key, start=start, end=start + length)
        # A server that knows no ranges sends the whole file.
        return content if len(content) <= length else content[start : start + length]

    def _fetch(self, key: str, **part: int) -> bytes:
        try:
            content: bytes = self._fs.cat_file(self._url(key), **part)
        except OSError as error:
            raise DamagedTraceError(f"{self.name}/{key} cannot be read: {error}") from None
        return content


def _lacking(error: ImportError) -> str:
    return error.name or "aiohttp"


def open_files(path: str | Path) -> Files:
    """The files of a trace, by folder or URL.

    Raises:
        NotATraceError: there is no such folder.
        MissingExtraError: what reads that URL is not installed.
    """
    need_codecs()
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
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
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
        count, self.unfinished = self._count()
        self.finished: list[Arrays] = [StoredEntry(files, i) for i in range(count)]

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

    def __init__(self, files: Files, index: int) -> None:
        self.files, self._index = files, index
        self._open: dict[str, Sharded] = {}
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

    def read(self, path: str, index: Index = ()) -> Values:
        """See `Arrays`."""
        return _as_values(self.raw(path, index), self.metadata.arrays[path])

    def raw(self, path: str, index: Index = ()) -> Any:
        """The same as NumPy has it; bfloat16 as float32."""
        return self._opened(path).read(self.files, index)

    def _opened(self, path: str) -> Sharded:
        """An array whose own metadata are right."""
        expected, place = self.metadata.arrays[path], f"{self.path}/{path}"
        where = f"{self.files.name}/{place}"
        if path not in self._open:
            chunk, shard = check_array(read_json(self.files, f"{place}/zarr.json"), expected, where)
            self._open[path] = Sharded(place, where, expected.shape, chunk, shard, expected.dtype)
        return self._open[path]


def _as_values(found: Any, expected: Array) -> Values:
    if expected.dtype == "string":
        return np.asarray(found, dtype=object)
    values = torch.from_numpy(found)
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
        "chunk_key_encoding": CHUNK_KEYS,
    }
    for name, value in says.items():
        if document.get(name) != value:
            raise TraceFormatError(f"{where}: {name} is {_short(document.get(name))}; expected {_short(value)}")
    if document.get("storage_transformers"):
        raise TraceFormatError(f"{where}: storage transformers are not part of a trace")
    shard = _shape(document.get("chunk_grid"), expected, f"{where}: chunk_grid")
    return _check_codecs(document.get("codecs"), expected, shard, where), shard


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


def _check_codecs(codecs: Any, expected: Array, shard: Sequence[int], where: str) -> tuple[int, ...]:
    """The chain of codecs is ours, and no other one is looked up; the shape of a chunk."""
    if not isinstance(codecs, list) or len(codecs) != 1:
        raise TraceFormatError(f"{where}: codecs are {_short(codecs)}; expected sharding_indexed")
    sharding = _configured(codecs[0], "sharding_indexed", f"{where}: codecs")
    _check_chain(sharding.get("codecs"), [serializer(expected.dtype), {"name": "zstd"}], f"{where}: codecs")
    _check_chain(sharding.get("index_codecs"), INDEX_CODECS, f"{where}: index_codecs")
    if sharding.get("index_location", "end") != "end":
        raise TraceFormatError(f"{where}: the index of a shard has to be at its end")
    chunk = sharding.get("chunk_shape")
    if not _is_shape(chunk, len(expected.shape)) or math.prod(chunk) * itemsize(expected.dtype) > MOST_CHUNK:
        raise TraceFormatError(f"{where}: chunk_shape is {_short(chunk)}; expected at most {MOST_CHUNK >> 20} MiB")
    if any(side % part for side, part in zip(shard, chunk, strict=True)):
        raise TraceFormatError(f"{where}: chunk_shape {_short(chunk)} does not divide a shard's {_short(shard)}")
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
