"""Tiles of the GPU kernels: what each is run with, on which GPU.

For each kernel there is a short list of candidates, the first choice first. What does not fit into a GPU's shared
memory is passed over, so one list serves every architecture. `gpu_tuning.tune` measures the candidates on the GPU that
is there and keeps the fastest in a file, which is read once, when the first kernel runs. Nothing is measured while a
program runs: a first call costs its compilation, and two runs add up in the same order.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.errors import BackendError


class Tiling(NamedTuple):
    """How a kernel is run.

    Attributes:
        rows, keys: queries and keys of a tile.
        warps: of a program.
        stages: tiles that are fetched ahead.
        descriptors: whether the tensor memory accelerator fetches tiles, where there is one (compute capability 9.0).
        persistent: whether there are as many programs as processors, which take one block after another, and not one
            program for each block; for "rows" only.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    descriptors: bool = False
    persistent: bool = False


class Place(NamedTuple):
    """What tiles are chosen by: the kernel, bytes of a number, and the width of a head as a power of two from 64."""

    kernel: str
    itemsize: int
    width: int


_HALF = [
    ("rows", 64, [(128, 128, 8, 3), (128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 3)]),
    ("rows", 128, [(128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2)]),
    ("rows", 256, [(64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 4, 2), (32, 32, 4, 1)]),
    ("few", 64, [(16, 128, 4, 3), (16, 64, 4, 4), (16, 64, 4, 3)]),
    ("few", 128, [(16, 64, 4, 3), (16, 128, 4, 3), (16, 32, 4, 4), (16, 32, 4, 3)]),
    ("few", 256, [(16, 32, 4, 3), (16, 64, 4, 2), (16, 32, 4, 2)]),
    ("columns", 64, [(128, 128, 8, 3), (64, 128, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2)]),
    ("columns", 128, [(64, 128, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (32, 64, 4, 2)]),
    ("columns", 256, [(64, 64, 4, 2), (64, 128, 8, 2), (32, 64, 4, 2), (32, 32, 4, 1)]),
    ("backward_keys", 64, [(64, 128, 8, 3), (64, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2)]),
    ("backward_keys", 128, [(64, 128, 8, 2), (32, 128, 8, 2), (32, 64, 4, 2), (32, 64, 4, 1), (32, 32, 4, 1)]),
    ("backward_keys", 256, [(32, 64, 8, 2), (32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)]),
    ("backward_rows", 64, [(128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2)]),
    ("backward_rows", 128, [(128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1)]),
    ("backward_rows", 256, [(64, 32, 8, 1), (32, 64, 8, 2), (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)]),
]
_SINGLE = [
    ("rows", 64, [(64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1)]),
    ("rows", 128, [(64, 32, 4, 2), (32, 32, 4, 2), (32, 32, 4, 1)]),
    ("rows", 256, [(32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)]),
    ("few", 64, [(16, 64, 4, 3), (16, 32, 4, 3), (16, 32, 4, 2)]),
    ("few", 128, [(16, 32, 4, 3), (16, 32, 4, 2)]),
    ("few", 256, [(16, 32, 4, 2), (16, 16, 4, 2), (16, 16, 4, 1)]),
    ("columns", 64, [(64, 64, 4, 2), (32, 64, 4, 2), (32, 32, 4, 1)]),
    ("columns", 128, [(32, 64, 4, 2), (32, 32, 4, 2), (32, 32, 4, 1)]),
    ("columns", 256, [(32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)]),
    ("backward_keys", 64, [(32, 64, 4, 2), (32, 32, 4, 1), (16, 32, 4, 1)]),
    ("backward_keys", 128, [(32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)]),
    ("backward_keys", 256, [(16, 32, 4, 1), (16, 16, 4, 1)]),
    ("backward_rows", 64, [(64, 32, 4, 2), (32, 32, 4, 1), (32, 16, 4, 1)]),
    ("backward_rows", 128, [(32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1)]),
    ("backward_rows", 256, [(32, 16, 4, 1), (16, 16, 4, 1)]),
]

SMALLEST = 16  # rows, keys and widths of a product of matrices
_ALIGNMENT = 16  # bytes, of what the tensor memory accelerator fetches


def power(n: int) -> int:
    """The smallest power of two that holds n, at least `SMALLEST`."""
    return max(SMALLEST, 1 << max(n - 1, 0).bit_length())


def place_of(kernel: str, dtype: torch.dtype, width: int) -> Place:
    """What a kernel's tiles are chosen by, for numbers of a type and heads of a width."""
    return Place(kernel, dtype.itemsize, max(64, power(width)))


def candidates(place: Place, device: torch.device) -> Iterator[Tiling]:
    """The tiles to run a kernel with, or the next where they do not fit: what was found by tuning, then the table."""
    tried = _tried.get(place)
    if tried is not None:
        yield tried
        return
    found = tuned(device).get(place)
    if found is not None:
        yield found
    yield from TILES[place]


@contextmanager
def trying(place: Place, tiles: Tiling) -> Iterator[None]:
    """Have kernels run with these tiles and no others."""
    _tried[place] = tiles
    try:
        yield
    finally:
        del _tried[place]


_tried: dict[Place, Tiling] = {}


def _table() -> dict[Place, tuple[Tiling, ...]]:
    return {
        Place(kernel, itemsize, width): tuple(Tiling(*one, descriptors=kernel != "few") for one in some)
        for itemsize, lines in ((2, _HALF), (4, _SINGLE))
        for kernel, width, some in lines
    }


TILES = _table()


# ---------------------------------------------------------------------------------------- what was found by tuning


def tuned_file() -> Path:
    """Where tuned tiles are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  never fails
    return Path(cache) / "saccade" / "gpu-tiles.json"


def gpu_name(device: torch.device) -> str:
    """What tuned tiles hold for: a kind of GPU, and a version of the compiler."""
    from saccade.backends.gpu_kernels import compiler

    return f"{torch.cuda.get_device_name(device)}, {compiler()}"


@functools.cache
def tuned(device: torch.device) -> dict[Place, Tiling]:
    """The tiles that were tuned for this kind of GPU; none, with a warning, if the file holds anything else."""
    if device.type != "cuda":
        return {}
    try:
        return _read().get(gpu_name(device), {})
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{tuned_file()} cannot be read ({error}), so the tiles of GPU kernels come from the table; remove it, or "
            "make it anew: saccade tune",
            stacklevel=2,
        )
        return {}


def keep_tuned(device: torch.device, found: dict[Place, Tiling]) -> None:
    """Add to the tiles that are kept for this kind of GPU; from now on they are used.

    Raises:
        BackendError: the file cannot be written.
    """
    file = tuned_file()
    try:
        _write(file, device, found)
    except OSError as error:
        raise BackendError(
            f"{file} cannot be written: {error.strerror or error}; XDG_CACHE_HOME names another place"
        ) from error
    tuned.cache_clear()


def _write(file: Path, device: torch.device, found: dict[Place, Tiling]) -> None:
    try:
        known = _read()
    except ValueError:
        known = {}
    known[gpu_name(device)] = known.get(gpu_name(device), {}) | found
    document = {name: [[*place, *tiles] for place, tiles in some.items()] for name, some in known.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1), encoding="ascii")
    partial.replace(file)


def _read() -> dict[str, dict[Place, Tiling]]:
    """What the file holds, for each kind of GPU.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not of the form that `keep_tuned` writes.
    """
    try:
        text = tuned_file().read_text(encoding="ascii")
    except FileNotFoundError:
        return {}
    try:
        return {name: dict(_line(*line) for line in lines) for name, lines in json.loads(text).items()}
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _line(
    kernel: str, itemsize: int, width: int, rows: int, keys: int, warps: int, stages: int, *others: bool
) -> tuple[Place, Tiling]:
    place, tiles = Place(kernel, itemsize, width), Tiling(rows, keys, warps, stages, *others)
    known = place in TILES and {rows, keys} <= _SIDES and warps in _WARPS and stages in _STAGES
    whole = all(type(number) is int for number in (rows, keys, warps, stages))
    if not (known and whole and all(isinstance(other, bool) for other in others)):
        raise ValueError(f"no tiles are {[*place, *tiles]}")
    return place, tiles


_SIDES = {16, 32, 64, 128, 256}
_WARPS = {4, 8}
_STAGES = {1, 2, 3, 4}


# ---------------------------------------------------------------------------------------- descriptors


def described(x: Tensor) -> bool:
    """Whether a tensor's rows begin where the tensor memory accelerator can fetch them."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    whole = x.numel() > 0 and x.stride(-1) == 1 and x.data_ptr() % _ALIGNMENT == 0
    return whole and all(step > 0 and step * x.itemsize % _ALIGNMENT == 0 for step in x.stride()[:-1])
