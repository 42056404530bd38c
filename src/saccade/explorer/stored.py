"""What a trace has kept of a pattern, where that answers a question without computing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.errors import NotRecordedError
from saccade.explorer.parcel import Answer
from saccade.explorer.patterns import WITHOUT, Heads
from saccade.explorer.work import Asked, go_on
from saccade.statistics import Received, cell_bounds
from saccade.trace.metadata import Stack, pyramid_sides


def stack_of(heads: Heads) -> Stack:
    """What was kept of the site's calls."""
    entry = heads.text.entry.metadata
    return entry.stacks[entry.sites[heads.number].stack]


# ---------------------------------------------------------------------------------------- maps


def stored_tile(heads: Heads, area: tuple[slice, slice], level: int, reduce: str) -> Answer | None:
    """A tile from the stored map, whose cells cover it and are no larger; None if it is to be computed.

    Where nothing can be computed it is what is there: larger cells, or another reduction.

    Args:
        heads: whose.
        area: what the tile covers.
        level: its cells are ``2**level`` tokens wide.
        reduce: what they are to be: "mean" or "max".

    Raises:
        NotRecordedError: there is nothing to answer from.
    """
    kept = heads.info["map"]
    if kept is None:
        heads.need_exact()
        return None
    several = len(heads.places) > 1
    fits = (reduce, kept["reduce"]) in {("mean", "mean"), ("mean", "sum")}
    fits |= reduce == kept["reduce"] and not several
    levels = pyramid_sides(tuple(kept["cells"]))
    fine = [
        i for i, sides in enumerate(levels) if all(n <= c << level for n, c in zip(heads.shape, sides, strict=True))
    ]
    if heads.info["exact"] and not (fits and fine and level):
        return None
    if several and kept["reduce"] == "max":
        raise NotRecordedError(
            f"{heads.info['label']}: maps of each head's largest weights do not give a mean of heads, and {WITHOUT}"
        )
    return _part(heads, fine[-1] if fine else 0, area, reduce if fits else kept["reduce"])


def _part(heads: Heads, level: int, area: Sequence[slice], reduce: str) -> Answer:
    """The cells of a level that cover a rectangle."""
    weights = stored_map(heads, level)
    parts = [_covering(part, n, c) for part, n, c in zip(area, heads.shape, weights.shape, strict=True)]
    (rows, queries), (columns, keys) = parts
    found = weights[rows, columns]
    if reduce == "mean" and heads.info["map"]["reduce"] == "sum":
        sizes = [cell_bounds(n, c).diff()[p] for n, c, (p, _) in zip(heads.shape, weights.shape, parts, strict=True)]
        found = found / (sizes[0][:, None] * sizes[1])
    return {
        "queries": queries,
        "keys": keys,
        "weights": found,
        "exact": tuple(weights.shape) == heads.shape,
        "reduce": reduce,
    }


def _covering(part: slice, length: int, cells: int) -> tuple[slice, list[int]]:
    """Which of the cells of a whole length cover a range, and the tokens that they hold.

    Cells begin at ``floor(a * length / cells)``; those of a part of the map follow its own length by the same rule only
    if it begins and ends where that is no fraction, at multiples of ``cells / gcd(cells, length)``.
    """
    step = cells // math.gcd(cells, length)
    first = part.start * cells // length // step * step
    stop = min(-(-part.stop * cells // (length * step)) * step, cells)
    return slice(first, stop), [first * length // cells, stop * length // cells]


def stored_map(heads: Heads, level: int) -> Tensor:
    """A level of the stored map ``(cells of queries, cells of keys)``; of several heads, their mean."""

    def make() -> tuple[Tensor, int]:
        found = [heads.site(place).map_level(level)[heads.text.batch, 0] for place in heads.places]
        mean = torch.stack(found).mean(0) if len(found) > 1 else found[0].clone()
        return mean, mean.numel() * mean.element_size()

    key = ("map", heads.text.id, heads.number, tuple(heads.places), level)
    return heads.explorer.cache.get(key, Tensor, make)


# ---------------------------------------------------------------------------------------- margins


def margins_of_all(heads: Heads, area: tuple[slice, slice], cancelled: Asked) -> tuple[Tensor, Tensor] | None:
    """What each query gives all keys, and what each key gets from all queries, summed over heads.

    None where the area is not the whole pattern, or what is needed was not kept.
    """
    stack = stack_of(heads)
    whole = all(part == slice(0, n) for part, n in zip(area, (stack.queries, stack.keys), strict=True))
    if not whole or not _keeps(stack, exact=heads.info["exact"]):
        return None
    given, received = torch.zeros(stack.queries, device="cpu"), torch.zeros(stack.keys, device="cpu")
    for place in heads.places:
        go_on(cancelled)
        report = heads.site(place).statistics
        lse = report.lse[heads.text.batch, 0]
        received += report.received[heads.text.batch, 0]
        given += _given(heads, place, lse)
    return given, received


def receives(stack: Stack) -> bool:
    """Whether it was kept what each key received in each head from all queries."""
    received = next((asked for asked in stack.asked() if isinstance(asked, Received)), None)
    return received is not None and received.by is None and not received.over_heads


def _keeps(stack: Stack, *, exact: bool) -> bool:
    """Whether all that `margins_of_all` needs was kept."""
    has_lse = any(asked.field == "lse" for asked in stack.statistics)
    return receives(stack) and has_lse and (exact or stack.sink_batch is None)


def _given(heads: Heads, place: int, lse: Tensor) -> Tensor:
    """The weight that each row gives its keys: all of it, less what a sink takes; none where it sees no key."""
    rows = torch.where(lse == -torch.inf, 0.0, torch.where(lse.isnan(), lse, 1.0)).float()
    if stack_of(heads).sink_batch is None:
        return rows
    sinks = heads.pattern(place).problem.sinks
    assert sinks is not None
    return rows - torch.where(lse == -torch.inf, 0.0, (sinks.reshape(-1).float() - lse).exp())
