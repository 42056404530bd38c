"""Patterns of single heads, kept while they are looked at, and what of them is asked again and again.

Reading a head's queries and keys of a long text takes many times as long as a tile of its pattern, so heads that were
looked at last stay in memory (`Explorer.cache`). A mean of heads is made head by head: never are all held at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.backends import Inputs
from saccade.errors import ArgumentError, NotRecordedError
from saccade.explorer.library import SiteInfo, Text
from saccade.explorer.parameters import MEAN, Head, Range
from saccade.explorer.work import Asked, go_on
from saccade.masks import Dense, Intervals
from saccade.pattern import Pattern
from saccade.trace.trace import Site

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer

Floats = NDArray[np.float64]

# Weights that are computed between two looks at whether they are still wanted: about 0.1 s on two cores at D = 64.
CHUNK = 1 << 25
WIDTH = 64
MOST_HELD = 1 << 30  # bytes of patterns that one answer needs at once
WITHOUT = "queries and keys were not kept: record with keep='qk' (saccade record --keep qk)"


@dataclass(frozen=True, eq=False)
class Heads:
    """Some heads of a site of a text, or one.

    Attributes:
        explorer: whose cache keeps them.
        text: which text.
        number: the site's number in it.
        places: which heads, as places in the site's list. More than one stand for their mean.
    """

    explorer: Explorer
    text: Text
    number: int
    places: Sequence[int]

    @classmethod
    def of(cls, explorer: Explorer, text: str, site: int, head: Head) -> Heads:
        """What a question names.

        Raises:
            ArgumentError: there is no such text, site or head.
        """
        found = explorer.text(text)
        info, _ = found.site(site)
        count = len(info["heads"])
        if isinstance(head, int) and head >= count:
            raise ArgumentError(f"head = {head}: site {site} has {count} heads, from 0")
        return cls(explorer, found, site, range(count) if head == MEAN else [int(head)])

    @property
    def info(self) -> SiteInfo:
        """What the page knows of the site."""
        return self.text.site(self.number)[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Nq and Nk."""
        return self.info["queries"], self.info["keys"]

    def site(self, place: int) -> Site:
        """One of the heads, as the trace has it."""
        info, site = self.text.site(self.number)
        return site.heads([info["heads"][place]])

    def need_exact(self) -> None:
        """Raise `NotRecordedError` if queries and keys are not there."""
        if not self.info["exact"]:
            raise NotRecordedError(f"{self.info['label']}: {WITHOUT}")

    def need_room(self) -> None:
        """Raise `ArgumentError` if the patterns of all these heads cannot be held at once."""
        stack = self.text.entry.metadata.stacks[self.text.entry.metadata.sites[self.number].stack]
        size = (stack.queries + stack.keys) * stack.width * 4 * len(self.places)
        if size > MOST_HELD:
            raise ArgumentError(
                f"the largest weights of a mean of {len(self.places)} heads need {size / 2**30:.1f} GiB of queries "
                "and keys at once, too much: ask for reduce=mean, or for one head"
            )

    def pattern(self, place: int) -> Pattern:
        """The pattern ``(1, 1, Nq, Nk)`` of one head, padding included.

        Raises:
            NotRecordedError: queries and keys were not kept.
        """
        self.need_exact()

        def make() -> tuple[Pattern, int]:
            pattern = _alone(self.site(place).pattern, self.text.batch)
            return pattern, _bytes(pattern)

        return self.explorer.cache.get(("pattern", self.text.id, self.number, place), Pattern, make)

    def patterns(self, cancelled: Asked) -> Iterator[Pattern]:
        """The pattern of each head, one after the other."""
        for place in self.places:
            go_on(cancelled)
            yield self.pattern(place)

    def check_range(self, name: str, part: Range, length: int) -> slice:
        """A range of positions as a slice.

        Raises:
            ArgumentError: it is empty, or reaches beyond the end.
        """
        start, stop = part
        if not start < stop <= length:
            raise ArgumentError(f"{name} = {start},{stop}: expected a range within the {length:,} that there are")
        return slice(start, stop)


def _alone(pattern: Pattern, batch: int) -> Pattern:
    """One element of a batch, without holding on to the others."""
    made = copy(pattern.element(batch))
    if pattern.shape[0] > 1:
        key = made.inputs.key.clone()
        made = copy(made)
        made.inputs = Inputs(made.inputs.query.clone(), key, key)
    made.lse  # noqa: B018  once, not in each thread that asks
    return made


def _bytes(pattern: Pattern) -> int:
    """What a pattern holds."""
    mask, bias = pattern.problem.mask, pattern.problem.bias
    tensors = [pattern.inputs.query, pattern.inputs.key, pattern.lse]
    tensors += [mask.visible] if isinstance(mask, Dense) else []
    tensors += [mask.starts, mask.stops] if isinstance(mask, Intervals) else []
    tensors += [] if bias is None else [bias.values]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ---------------------------------------------------------------------------------------- rectangles


def weights(pattern: Pattern, queries: slice, keys: slice) -> Tensor:
    """The weights ``(rows, columns)`` of one head, padding included.

    Straight from the backend: what makes `Pattern` take any index costs more than a tile does.
    """
    return pattern.backend.window(pattern.problem, pattern.inputs, pattern.lse, queries, keys)[0, 0]


def rows_of(
    pattern: Pattern, queries: slice, keys: slice, cells: int, reduce: str, cancelled: Asked
) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a rectangle, its keys reduced to cells: some rows at a time.

    Args:
        pattern: of one head.
        queries: the rectangle's rows.
        keys: its columns.
        cells: along the keys, by the rule of `saccade.statistics.Map`.
        reduce: "sum" or "max".
        cancelled: looked at between two blocks of rows.

    Yields:
        Which rows of the rectangle, and their cells ``(rows, cells)``.
    """
    rows = max(CHUNK * WIDTH // max((keys.stop - keys.start) * pattern.inputs.key.shape[3], 1), 1)
    for first in range(queries.start, queries.stop, rows):
        go_on(cancelled)
        block = slice(first, min(first + rows, queries.stop))
        found = pattern.map((block.stop - block.start, cells), reduce, queries=block, keys=keys)
        yield slice(block.start - queries.start, block.stop - queries.start), found[0, 0]


def fold(total: Floats, rows: slice, values: Tensor, bounds: Tensor, reduce: str) -> None:
    """Some rows of a rectangle into the cells that they lie in.

    Args:
        total: cells along the rows, to be changed.
        rows: which rows of the rectangle.
        values: of these rows.
        bounds: where the cells of all rows begin and end.
        reduce: "sum" or "max", of numbers that are not negative.
    """
    cells = torch.bucketize(torch.arange(rows.start, rows.stop, device="cpu"), bounds[1:], right=True)
    found, counts = cells.unique_consecutive(return_counts=True)
    together = np.maximum if reduce == "max" else np.add
    folded = together.reduceat(values.double().numpy(), (counts.cumsum(0) - counts).numpy(), axis=0)
    here = slice(int(found[0]), int(found[-1]) + 1)
    total[here] = together(total[here], folded)
