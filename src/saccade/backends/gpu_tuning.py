"""Find the fastest tiles of the GPU kernels on the GPU that is there: `saccade tune`.

For each kernel and width the shapes of tiles are measured first, then, with the fastest of them, whether the tensor
memory accelerator and a persistent grid help. Each kernel is timed in the call that users wait for: the forward pass,
the statistics by key, the backward pass, one step of decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from saccade import masks
from saccade.backends import get
from saccade.backends.contract import Inputs
from saccade.backends.gpu_tiles import TILES, Place, Tiling, described, place_of, trying
from saccade.errors import BackendError
from saccade.scores import Problem
from saccade.statistics import Received

Call = Callable[[], object]

KERNELS = ("rows", "columns", "backward_keys", "backward_rows", "few")


class Sizes(NamedTuple):
    """What kernels are measured with."""

    tokens: int = 8192
    heads: int = 16
    sequences: int = 16  # that are decoded at once
    cached: int = 32_768  # tokens of each of them


class Measured(NamedTuple):
    """One candidate for a kernel's tiles, and what a call takes with it; NaN if it does not fit into shared memory."""

    place: Place
    tiles: Tiling
    milliseconds: float
    is_first_choice: bool


def tune(
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    widths: Sequence[int] = (64, 128),
    *,
    kernels: Iterable[str] = KERNELS,
    sizes: Sizes | None = None,
    measure: Callable[[Call], float] | None = None,
) -> Iterator[Measured]:
    """Measure the candidates of each kernel and width, one after the other.

    Args:
        device: the GPU.
        dtype: of queries, keys and values.
        widths: of heads.
        kernels: some of `KERNELS`.
        sizes: what is measured; enough to fill a GPU.
        measure: milliseconds of a call; the median of many by default.
    """
    from saccade.backends import gpu_kernels

    for width in widths:
        for kernel in kernels:
            place = place_of(kernel, dtype, width)
            call = _CALLS[kernel](device, dtype, width, sizes or Sizes())
            yield from _of_kernel(
                place,
                call,
                measure or gpu_kernels.milliseconds,
                accelerated=described(torch.empty(1, 8, device=device)),
            )


def fastest(measured: Iterable[Measured]) -> dict[Place, Tiling]:
    """The fastest tiles at each place where some fit."""
    found: dict[Place, Measured] = {}
    for one in measured:
        best = found.get(one.place)
        if not math.isnan(one.milliseconds) and (best is None or one.milliseconds < best.milliseconds):
            found[one.place] = one
    return {place: one.tiles for place, one in found.items()}


def _of_kernel(place: Place, call: Call, measure: Callable[[Call], float], *, accelerated: bool) -> Iterator[Measured]:
    """The shapes of tiles, and then, with the fastest of them, what else can be chosen."""
    first = TILES[place][0]

    def measured(tiles: Tiling) -> Measured:
        with trying(place, tiles):
            try:
                took = measure(call)
            except BackendError:
                took = math.nan
        return Measured(place, tiles, took, tiles == first)

    results = []
    for tiles in TILES[place]:
        results.append(measured(tiles))
        yield results[-1]
    others = [{"descriptors": not first.descriptors}] if accelerated else []
    if place.kernel == "rows":
        others.append({"persistent": True})
    for other in others:
        best = fastest(results).get(place)
        if best is not None:
            results.append(measured(best._replace(**other)))
            yield results[-1]


# ---------------------------------------------------------------------------------------- what is measured


def _inputs(
    device: torch.device, dtype: torch.dtype, batch: int, heads: tuple[int, int], lengths: tuple[int, int], width: int
) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)

    def new(count: int, length: int) -> Tensor:
        return torch.randn(batch, count, length, width, device=device, generator=generator).to(dtype)

    return Inputs(new(heads[0], lengths[0]), new(heads[1], lengths[1]), new(heads[1], lengths[1]))


def _causal(inputs: Inputs) -> Problem:
    return Problem(scale=inputs.query.shape[-1] ** -0.5, mask=masks.causal().resolve(inputs.lengths))


def _full(device: torch.device, dtype: torch.dtype, width: int, sizes: Sizes) -> tuple[Problem, Inputs]:
    inputs = _inputs(device, dtype, 1, (sizes.heads, sizes.heads), (sizes.tokens, sizes.tokens), width)
    return _causal(inputs), inputs


def _rows(device: torch.device, dtype: torch.dtype, width: int, sizes: Sizes) -> Call:
    return partial(get("gpu").forward, *_full(device, dtype, width, sizes), [], want_lse=False)


def _columns(device: torch.device, dtype: torch.dtype, width: int, sizes: Sizes) -> Call:
    return partial(get("gpu").forward, *_full(device, dtype, width, sizes), [Received()], want_lse=True)


def _backward(device: torch.device, dtype: torch.dtype, width: int, sizes: Sizes) -> Call:
    problem, inputs = _full(device, dtype, width, sizes)
    forward = get("gpu").forward(problem, inputs, [], want_lse=True)
    grads = torch.ones_like(forward.output), torch.zeros_like(forward.lse)
    return partial(get("gpu").backward, problem, inputs, forward, *grads)


def _few(device: torch.device, dtype: torch.dtype, width: int, sizes: Sizes) -> Call:
    inputs = _inputs(device, dtype, sizes.sequences, (32, 8), (1, sizes.cached), width)
    return partial(get("gpu").forward, Problem(scale=width**-0.5), inputs, [], want_lse=False)


_CALLS: dict[str, Callable[[torch.device, torch.dtype, int, Sizes], Call]] = {
    "rows": _rows,
    "columns": _columns,
    "backward_keys": _backward,
    "backward_rows": _backward,
    "few": _few,
}
