"""The bytes of arrays: shards of Zarr 3, written and read.

A trace's arrays all have one chain of codecs (little-endian bytes or vlen-utf8, Zstandard with a checksum, in shards
with an index at their end), and there are many small ones: a dozen for each forward. Read and written here, one takes a
fraction of a millisecond, where zarr takes several; and every size is checked before anything is unpacked, which cannot
be done from outside of it. Zarr reads what is written here, and the tests hold that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.errors import DamagedTraceError, MissingExtraError
from saccade.trace.layout import ZSTD_LEVEL, fill_value, itemsize
from saccade.trace.storage import Index

Shape = tuple[int, ...]

MISSING = np.iinfo(np.uint64).max  # the offset and length of a chunk that is not there
MOST_STRINGS = 1 << 28  # bytes that a chunk of strings unpacks to at most
SMALL_SHARD = 1 << 22  # bytes: a shard that is read in one piece
PARALLEL = 1 << 20  # bytes from which on several threads pack or unpack


@cache
def _codecs() -> tuple[Any, Any, Callable[[bytes], int]]:
    """Zstandard, UTF-8 strings, and CRC-32C."""
    try:
        import google_crc32c
        from numcodecs.vlen import VLenUTF8
        from numcodecs.zstd import Zstd
    except ImportError as error:
        raise MissingExtraError(error.name or "numcodecs", "trace") from None
    return Zstd(level=ZSTD_LEVEL, checksum=True), VLenUTF8(), google_crc32c.value


def need_codecs() -> None:
    """Raise unless what packs a trace's arrays is installed.

    Raises:
        MissingExtraError: it is not.
    """
    _codecs()


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype(object) if dtype == "string" else np.dtype(dtype).newbyteorder("<")


def _in_threads(work: Callable[[Any], Any], items: Iterable[Any], size: int) -> list[Any]:
    """The results of some work, by as many threads as PyTorch has where that pays."""
    threads = torch.get_num_threads()
    if size < PARALLEL or threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


# ---------------------------------------------------------------------------------------- writing


def shard_name(number: Sequence[int]) -> str:
    """The file of a shard, by its number along each side; one folder for all, as making folders costs more than files.

    >>> shard_name([2, 0, 0])
    'c.2.0.0'
    """
    return ".".join(["c", *map(str, number)])


def pack(values: NDArray[Any], dtype: str, chunk: Shape, shard: Shape) -> bytes:
    """A shard's bytes.

    Args:
        values: its numbers, or strings; smaller than the shard at the end of an array.
        dtype: as Zarr calls it.
        chunk: the shape of a chunk.
        shard: the shape of a shard, which chunks divide.
    """
    crc = _codecs()[2]
    counts = [s // c for s, c in zip(shard, chunk, strict=True)]
    places = [where for where in np.ndindex(*counts) if _inside(where, chunk, values.shape)]
    packed = _in_threads(lambda where: _pack_chunk(_part(values, where, chunk, dtype), dtype), places, values.nbytes)
    index = np.full((*counts, 2), MISSING, "<u8")
    offset = 0
    for where, content in zip(places, packed, strict=True):
        index[where] = offset, len(content)
        offset += len(content)
    table = index.tobytes()
    return b"".join([*packed, table, crc(table).to_bytes(4, "little")])


def _inside(where: Sequence[int], chunk: Shape, shape: Shape) -> bool:
    return all(at * size < length for at, size, length in zip(where, chunk, shape, strict=True))


def _part(values: NDArray[Any], where: Sequence[int], chunk: Shape, dtype: str) -> NDArray[Any]:
    """A chunk, filled up where the array ends."""
    part = values[tuple(slice(at * size, (at + 1) * size) for at, size in zip(where, chunk, strict=True))]
    if part.shape == chunk:
        return part
    whole = np.full(chunk, fill_value(dtype), _numpy_dtype(dtype))
    whole[tuple(slice(n) for n in part.shape)] = part
    return whole


def _pack_chunk(chunk: NDArray[Any], dtype: str) -> bytes:
    zstd, strings, _ = _codecs()
    if dtype == "string":
        packed: bytes = zstd.encode(strings.encode(np.ascontiguousarray(chunk.ravel())))
    else:
        packed = zstd.encode(np.ascontiguousarray(chunk, _numpy_dtype(dtype)))
    return packed


# ---------------------------------------------------------------------------------------- reading


class Ranges(Protocol):
    """Files of which parts can be read."""

    def size(self, key: str) -> int | None:
        """A file's length; None if there is no such file."""

    def part(self, key: str, start: int, length: int) -> bytes:
        """Some of its bytes."""


@dataclass(frozen=True)
class Sharded:
    """An array in shards.

    Attributes:
        place: where its files are.
        where: what to call it in messages.
        shape, chunk, shard: of the array, of a chunk, of a shard.
        dtype: as Zarr calls it.
    """

    place: str
    where: str
    shape: Shape
    chunk: Shape
    shard: Shape
    dtype: str

    def read(self, files: Ranges, index: Index = ()) -> NDArray[Any]:
        """Some of the numbers, an axis for each index that is no integer.

        Raises:
            DamagedTraceError: a shard is missing, cut off, or not what was written.
            IndexError: an index is out of range.
        """
        first = [0] * len(self.shape)
        # Refuse a shape that the files cannot hold before anything is done for each of its numbers.
        opened = {tuple(first): self._opened(files, first)} if math.prod(self.shape) else {}
        axes = [_Axis.of(part, n, c) for part, n, c in self._indexed(index)]
        out = self._answer([axis.length for axis in axes])
        wanted: dict[Shape, list[Shape]] = {}
        for where in itertools.product(*(axis.chunks for axis in axes)):
            number = tuple(at // n for at, n in zip(where, self._counts, strict=True))
            wanted.setdefault(number, []).append(where)
        for number, places in wanted.items():
            shard = opened.get(number) or self._opened(files, number)

            def fill(where: Shape, shard: _Opened = shard) -> None:
                inner = tuple(at % n for at, n in zip(where, self._counts, strict=True))
                parts = [axis.parts[at] for axis, at in zip(axes, where, strict=True)]
                _place(out, shard.chunk(inner), parts)

            _in_threads(fill, places, len(places) * math.prod(self.chunk) * itemsize(self.dtype))
        return out[tuple(0 if axis.single else slice(None) for axis in axes)]

    def _opened(self, files: Ranges, number: Sequence[int]) -> _Opened:
        return _Opened(self, files, f"{self.place}/{shard_name(number)}", self._counts)

    def _answer(self, shape: Sequence[int]) -> NDArray[Any]:
        try:
            return np.empty(shape, _numpy_dtype(self.dtype))
        except (MemoryError, ValueError):
            raise DamagedTraceError(f"{self.where}: {list(shape)} numbers are more than memory can hold") from None

    @property
    def _counts(self) -> Shape:
        """Chunks along each side of a shard."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    def _indexed(self, index: Index) -> Iterator[tuple[Any, int, int]]:
        whole = [*index, *[slice(None)] * (len(self.shape) - len(index))]
        return zip(whole, self.shape, self.chunk, strict=True)


_Piece = slice | NDArray[np.int64]


@dataclass(frozen=True)
class _Axis:
    """What is wanted along one dimension.

    Attributes:
        length: of the answer.
        single: whether an integer asked for it.
        parts: for each chunk that holds some of it, where it is in the answer and where in the chunk.
    """

    length: int
    single: bool
    parts: dict[int, tuple[_Piece, _Piece]]

    @property
    def chunks(self) -> list[int]:
        return list(self.parts)

    @classmethod
    def of(cls, part: int | slice | list[int], length: int, chunk: int) -> _Axis:
        """What an index asks of a dimension of that length, in chunks of that size."""
        asked = range(length)[part] if isinstance(part, slice) else [_position(i, length) for i in _listed(part)]
        if isinstance(asked, range) and asked.step == 1:
            return cls(len(asked), single=False, parts=dict(_runs(asked, chunk)))
        positions = np.array(asked, dtype=np.int64)
        parts: dict[int, tuple[_Piece, _Piece]] = {}
        for number in np.unique(positions // chunk).tolist():
            where = np.flatnonzero(positions // chunk == number)
            parts[number] = _piece(where), _piece(positions[where] - number * chunk)
        return cls(len(positions), isinstance(part, int), parts)


def _listed(part: int | list[int]) -> list[int]:
    return [part] if isinstance(part, int) else part


def _position(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"there is no {index} among {length}")
    return index % length


def _runs(asked: range, chunk: int) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """A range cut where chunks begin. No array of positions: a length may be a lie until its chunks are read."""
    for number in range(asked.start // chunk, -(-asked.stop // chunk)) if asked else ():
        start, stop = max(asked.start, number * chunk), min(asked.stop, (number + 1) * chunk)
        here = slice(start - number * chunk, stop - number * chunk)
        yield number, (slice(start - asked.start, stop - asked.start), here)


def _piece(positions: NDArray[np.int64]) -> _Piece:
    """Positions as a slice, if they follow one another."""
    first, count = int(positions[0]), len(positions)
    return slice(first, first + count) if (np.diff(positions) == 1).all() else positions


def _place(out: NDArray[Any], chunk: NDArray[Any], parts: Sequence[tuple[_Piece, _Piece]]) -> None:
    if all(isinstance(piece, slice) for pair in parts for piece in pair):
        out[tuple(there for there, _ in parts)] = chunk[tuple(here for _, here in parts)]
    else:
        sides = [[_positions(piece) for piece in side] for side in zip(*parts, strict=True)]
        out[np.ix_(*sides[0])] = chunk[np.ix_(*sides[1])]


def _positions(piece: _Piece) -> NDArray[np.int64]:
    return np.arange(piece.start, piece.stop) if isinstance(piece, slice) else piece


class _Opened:
    """A shard whose index is read and right."""

    def __init__(self, array: Sharded, files: Ranges, key: str, counts: Shape) -> None:
        self._array, self._files, self._key = array, files, key
        self.where = f"{array.where}: {key.rpartition(array.place)[2].lstrip('/')}"
        size = files.size(key)
        if size is None:
            raise DamagedTraceError(f"{self.where} is missing")
        self._size = size
        self._whole = memoryview(files.part(key, 0, size)) if size <= SMALL_SHARD else None
        self._index = self._read_index(counts)

    def _read_index(self, counts: Shape) -> NDArray[np.uint64]:
        length = 16 * math.prod(counts) + 4
        if length > self._size:
            raise DamagedTraceError(f"{self.where} is cut off")
        content = self._bytes(self._size - length, length)
        table = content[:-4]
        if _codecs()[2](table) != int.from_bytes(content[-4:], "little"):
            raise DamagedTraceError(f"{self.where}: its index is not what was written (CRC-32C differs)")
        return np.frombuffer(table, "<u8").reshape(*counts, 2)

    def _bytes(self, start: int, length: int) -> bytes:
        if self._whole is not None:
            return bytes(self._whole[start : start + length])
        return self._files.part(self._key, start, length)

    def chunk(self, where: Shape) -> NDArray[Any]:
        """A chunk's numbers."""
        offset, length = (int(n) for n in self._index[where])
        if offset == MISSING:
            raise DamagedTraceError(f"{self.where} lacks chunk {list(where)}")
        if offset + length > self._size:
            raise DamagedTraceError(f"{self.where}: chunk {list(where)} is beyond its end")
        content = self._bytes(offset, length)
        if len(content) != length:
            raise DamagedTraceError(f"{self.where} is cut off")
        return self._unpack(content, f"{self.where}: chunk {list(where)}")

    def _unpack(self, content: bytes, where: str) -> NDArray[Any]:
        array, (zstd, strings, _) = self._array, _codecs()
        size, count = frame_content_size(content), math.prod(array.chunk)
        text = array.dtype == "string"
        fits = size is not None and (size <= MOST_STRINGS if text else size == count * itemsize(array.dtype))
        if not fits:
            raise DamagedTraceError(f"{where} is no Zstandard frame with a checksum, of a chunk's size")
        try:
            plain = zstd.decode(content)
            found = strings.decode(plain) if text else np.frombuffer(plain, _numpy_dtype(array.dtype))
        except (RuntimeError, ValueError) as error:
            raise DamagedTraceError(f"{where} is not what was written: {error}") from None
        if len(found) != count:
            raise DamagedTraceError(f"{where} holds {len(found)} strings; expected {count}")
        shaped: NDArray[Any] = found.reshape(array.chunk)
        return shaped


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
