"""How the arrays of a trace lie in a Zarr store; the names and numbers of docs/trace-format.md.

A row (one call of a shape, one layer's hidden state) is written once and by itself, so a shard holds whole rows. Within
it chunks are at most 1 MiB, cut along the last dimensions first, so that one head of one layer can be read alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from saccade.trace.metadata import Array, EntryMetadata, Stack, pyramid_sides

MEMBER = "saccade"  # of a group's attributes
ENTRIES = "entries"
CHUNK_BYTES = 1 << 20
STRING_BYTES = 64  # what a token's text is taken for when chunks are cut
ZSTD_LEVEL = 1
LITTLE: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
INDEX_CODECS: list[dict[str, Any]] = [LITTLE, {"name": "crc32c"}]
CHUNK_KEYS = {"name": "default", "configuration": {"separator": "."}}


def entry_path(index: int) -> str:
    """Where an entry's group is."""
    return f"{ENTRIES}/{index:06d}"


def itemsize(dtype: str) -> int:
    """Bytes of a number; about, for strings."""
    return STRING_BYTES if dtype == "string" else np.dtype(dtype).itemsize


def chunk_and_shard(array: Array, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a chunk and of a shard.

    Args:
        array: what is stored.
        rows: rows in a shard, for an array of rows.
    """
    row = array.shape[1:] if array.rows else array.shape
    chunk, shard = _cut(row, itemsize(array.dtype))
    return ((1, *chunk), (max(rows, 1), *shard)) if array.rows else (chunk, shard)


def _cut(shape: Sequence[int], size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A chunk of at most `CHUNK_BYTES`, and the shard of such chunks that holds all of a shape."""
    room, chunk, shard = CHUNK_BYTES // size, [], []
    for length in reversed(shape):
        parts = math.ceil(length / max(1, min(length, room))) or 1
        piece = math.ceil(length / parts) or 1
        chunk.append(piece)
        shard.append(piece * parts)
        room //= piece
    return tuple(reversed(chunk)), tuple(reversed(shard))


def fill_value(dtype: str) -> Any:
    """What stands where nothing was written: no plausible number."""
    if dtype == "string":
        return ""
    if dtype == "bool":
        return False
    return math.nan if dtype.startswith("float") else -1


def json_fill_value(dtype: str) -> Any:
    """The same as Zarr writes it in JSON, which has no NaN."""
    value = fill_value(dtype)
    return "NaN" if isinstance(value, float) else value


def group_json(attributes: dict[str, Any]) -> dict[str, Any]:
    """A group's `zarr.json`."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_json(array: Array, rows: int) -> dict[str, Any]:
    """An array's `zarr.json`.

    Args:
        array: what is stored.
        rows: rows in a shard, for an array of rows.
    """
    chunk, shard = chunk_and_shard(array, rows)
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [serializer(array.dtype), {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}}],
        "index_codecs": INDEX_CODECS,
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": CHUNK_KEYS,
        "fill_value": json_fill_value(array.dtype),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {} if array.precision is None else {"precision": array.precision},
        "dimension_names": list(array.dims),
        "storage_transformers": [],
    }


def serializer(dtype: str) -> dict[str, Any]:
    """The codec that makes bytes of numbers or strings."""
    if dtype == "string":
        return {"name": "vlen-utf8", "configuration": {}}
    if itemsize(dtype) == 1:
        return {"name": "bytes"}  # one byte has no order
    return LITTLE


def pyramid(name: str, lengths: tuple[int, int], levels: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The attributes of a map's group, by OME-Zarr 0.5: cells are placed in tokens, cell a of c at its middle.

    Args:
        name: what is shown.
        lengths: Nq and Nk.
        levels: cells along queries and keys of each level.
    """
    axes = [("layer", "time"), ("head", "channel"), ("query", "space"), ("key", "space")]
    datasets = []
    for level, sides in enumerate(levels):
        scale = [length / max(cells, 1) for length, cells in zip(lengths, sides, strict=True)]
        transformations = [
            {"type": "scale", "scale": [1.0, 1.0, *(s or 1.0 for s in scale)]},
            {"type": "translation", "translation": [0.0, 0.0, *((s - 1) / 2 if s else 0.0 for s in scale)]},
        ]
        datasets.append({"path": f"s{level}/map", "coordinateTransformations": transformations})
    scales = {"name": name, "axes": [{"name": n, "type": t} for n, t in axes], "datasets": datasets}
    return {"ome": {"version": "0.5", "multiscales": [scales]}}


def map_levels(stack: Stack) -> list[tuple[int, int]]:
    """The cells of each level of a stack's maps; none if it has no maps."""
    return [] if stack.map is None else pyramid_sides(stack.map.grid(stack.lengths))


def group_attributes(metadata: EntryMetadata) -> dict[str, dict[str, Any]]:
    """Every group within an entry, by path, and its attributes."""
    found: dict[str, dict[str, Any]] = {
        parent.as_posix(): {} for path in metadata.arrays for parent in list(PurePosixPath(path).parents)[:-1]
    }
    for number, stack in enumerate(metadata.stacks):
        if levels := map_levels(stack):
            for b in range(stack.batch):
                name = f"entry {metadata.index}, batch element {b}"
                found[f"maps/{number}/{b}"] = pyramid(name, (stack.queries, stack.keys), levels)
    return found
