"""Question `heads`: every head of a text at a glance.

Of a text that is short enough, all that is shown is computed from queries and keys in one pass for each site. Of a
longer one it is what was kept when it was recorded; what was not kept, and cannot be told from it exactly, is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saccade.explorer.library import Text
from saccade.explorer.parameters import read
from saccade.explorer.parcel import Answer
from saccade.explorer.patterns import Floats
from saccade.explorer.sites import crosses
from saccade.explorer.stored import receives
from saccade.explorer.work import Asked, go_on
from saccade.statistics import Distance, Entropy, Mass, MaxWeight, Statistic, cell_bounds
from saccade.trace.metadata import pyramid_sides

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer

THUMB = 32
# Weights of all heads together up to which they are computed: about a second on two cores.
MOST_WEIGHTS = 1 << 28
MOST_WITHOUT_MAP = 1 << 30

STATISTICS = (
    ("entropy", "entropy", "nats"),
    ("distance", "distance looked", "tokens"),
    ("max_weight", "largest weight", ""),
    ("sink", "weight on first and special tokens", ""),
)
_OVER_ALL_ROWS = ", mean over all rows"


@dataclass(frozen=True)
class TextKey:
    """Of question `heads`: a text's id."""

    text: str


@dataclass(frozen=True, eq=False)
class Overview:
    """One site: what its heads' maps and rows are.

    Attributes:
        map: float64 ``(H, cells of queries, cells of keys)``, the largest weights; None if there is none.
        values: float64 ``(H, statistics)``.
    """

    map: Floats | None
    values: Floats


def heads(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """All heads of a text: HeadsAnswer."""
    text = explorer.text(read(TextKey, parameters).text)

    def make() -> tuple[dict[str, Any], int]:
        answer = _heads(text, cancelled)
        return answer, 4 * (answer["thumbs"].size + answer["values"].size)

    return explorer.cache.get(("heads", text.id), dict, make)


def _heads(text: Text, cancelled: Asked) -> dict[str, Any]:
    computes = is_short(text)
    found = []
    for number in range(len(text.sites)):
        go_on(cancelled)
        found.append((_computed if computes else _kept)(text, number))
    count = max((len(site.values) for site in found), default=0)
    values = np.full((len(found), count, len(STATISTICS)), np.nan, dtype=np.float32)
    for site, row in zip(found, values, strict=True):
        row[: len(site.values)] = site.values
    return {"thumbs": _thumbs(found, count), "statistics": _scales(values, computes=computes), "values": values}


def is_short(text: Text) -> bool:
    """Whether all weights of a text can be computed while somebody waits; longer where no map was kept."""
    infos = [info for info, _ in text.sites]
    weights = sum(len(info["heads"]) * info["queries"] * info["keys"] for info in infos)
    most = MOST_WEIGHTS if all(info["map"] for info in infos) else MOST_WITHOUT_MAP
    return all(info["exact"] for info in infos) and weights <= most


def _scales(values: np.ndarray[Any, Any], *, computes: bool) -> list[dict[str, Any]]:
    """What the statistics are, and the least and the most that any head has."""
    scales = []
    for i, (name, label, unit) in enumerate(STATISTICS):
        known = values[..., i][np.isfinite(values[..., i])]
        ends = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        said = label + (_OVER_ALL_ROWS if name == "sink" and not computes else "")
        scales.append({"name": name, "label": said, "unit": unit, "least": ends[0], "most": ends[1]})
    return scales


# ---------------------------------------------------------------------------------------- computed


def _computed(text: Text, number: int) -> Overview:
    info, site = text.site(number)
    pattern, kept = site.pattern.element(text.batch), _Kept(text, number)
    queries, keys = info["queries"], info["keys"]
    offset = _offset(text, number)
    groups = torch.zeros(pattern.shape[3], dtype=torch.int64, device="cpu")
    groups[:keys] = _sinks(text, number).long()
    asked: list[Statistic] = [Entropy(), MaxWeight(), Mass(groups, 2), *([] if offset is None else [Distance(offset)])]
    report = pattern.ask(asked)
    rows = {
        "entropy": report.entropy[0],
        "max_weight": report.max_weight[0],
        "sink": report.mass[0, ..., 1],
        "distance": kept.rows("distance") if offset is None else report.distance[0],
    }
    shown = pattern.map((THUMB, THUMB), "max", queries=slice(0, queries), keys=slice(0, keys))
    return Overview(shown[0].double().numpy(), _means(text, number, rows))


def _offset(text: Text, number: int) -> int | None:
    """The position among the keys of the first query; None where that has no meaning, or is not known.

    Keys that outnumber the queries and are known are those of a cache; its last are the queries.
    """
    site, (info, _) = text.entry.metadata.sites[number], text.site(number)
    if crosses(text.entry.metadata)[number]:
        return None
    if info["queries"] == info["keys"]:
        return 0
    grown = site.queries is not None and site.keys is not None and info["keys"] > info["queries"]
    return info["keys"] - info["queries"] if grown else None


def _sinks(text: Text, number: int) -> Tensor:
    """Which keys are special, or the first, ``(Nk,)``."""
    info, _ = text.site(number)
    special = torch.zeros(info["keys"], dtype=torch.bool, device="cpu")
    if info["key_tokens"] is not None:
        special |= text.tokens(info["key_tokens"]).special
    special[:1] = True
    return special


def _means(text: Text, number: int, rows: Mapping[str, Tensor | None]) -> Floats:
    """Each statistic's mean over the rows of ordinary tokens (all rows, if there are none), ``(H, statistics)``."""
    info, _ = text.site(number)
    ordinary = torch.ones(info["queries"], dtype=torch.bool, device="cpu")
    if info["query_tokens"] is not None:
        special = text.tokens(info["query_tokens"]).special
        ordinary = ordinary if bool(special.all()) else ~special
    means = np.full((len(info["heads"]), len(STATISTICS)), np.nan)
    for i, (name, _, _) in enumerate(STATISTICS):
        found = rows.get(name)
        if found is not None:
            means[:, i] = found[:, : len(ordinary)][:, ordinary].double().mean(-1).numpy()
    return means


# ---------------------------------------------------------------------------------------- kept


@dataclass(frozen=True, eq=False)
class _Kept:
    """What a trace has kept of one site."""

    text: Text
    number: int

    def rows(self, name: str) -> Tensor | None:
        """A statistic ``(H, ...)``; None if it was not kept."""
        entry = self.text.entry
        site = entry.metadata.sites[self.number]
        if name not in {asked.field for asked in entry.stacks[site.stack].statistics}:
            return None
        return entry.stacked(name, stack=site.stack, layers=site.row)[self.text.batch]

    @property
    def sink(self) -> Tensor | None:
        """The weight on special tokens and the first, ``(H, 1)``: a mean over all rows, from what keys received."""
        info, _ = self.text.site(self.number)
        stack = self.text.entry.stacks[self.text.entry.metadata.sites[self.number].stack]
        if not receives(stack) or (info["queries"], info["keys"]) != (stack.queries, stack.keys):
            return None
        received = self.rows("received")
        assert received is not None
        return received[:, _sinks(self.text, self.number)].double().sum(-1, keepdim=True) / max(stack.queries, 1)

    def map(self) -> Floats | None:
        """The stored map in few cells ``(H, cells of queries, cells of keys)``; None if there is none."""
        info, site = self.text.site(self.number)
        if info["map"] is None:
            return None
        levels = pyramid_sides(tuple(info["map"]["cells"]))
        fits = [i for i, sides in enumerate(levels) if max(sides) <= THUMB]
        level = fits[0] if fits else len(levels) - 1
        cells: Floats = site.map_level(level)[self.text.batch].double().numpy()
        for axis, length in ((1, info["queries"]), (2, info["keys"])):
            cells = _fewer(cells, axis, length, info["map"]["reduce"])
        return cells


def _fewer(cells: Floats, axis: int, length: int, reduce: str) -> Floats:
    """A map of at most `THUMB` cells along an axis, each of some whole cells of a finer one."""
    count = cells.shape[axis]
    if count <= THUMB:
        return cells
    first = cell_bounds(count, THUMB)[:-1].numpy()
    if reduce == "max":
        found: Floats = np.maximum.reduceat(cells, first, axis=axis)
        return found
    shape = [1, 1, 1]
    shape[axis] = count
    widths = cell_bounds(length, count).diff().double().numpy().reshape(shape) if reduce == "mean" else np.ones(shape)
    total: Floats = np.add.reduceat(cells * widths, first, axis=axis)
    return total / np.add.reduceat(widths, first, axis=axis) if reduce == "mean" else total


def _kept(text: Text, number: int) -> Overview:
    kept = _Kept(text, number)
    rows = {name: kept.rows(name) for name in ("entropy", "distance", "max_weight")}
    values = _means(text, number, rows)
    sink = kept.sink
    if sink is not None:
        values[:, [name for name, _, _ in STATISTICS].index("sink")] = sink[:, 0].numpy()
    return Overview(kept.map(), values)


# ---------------------------------------------------------------------------------------- thumbnails


def _thumbs(found: Sequence[Overview], heads: int) -> np.ndarray[Any, Any]:
    """All maps in squares of one size; where a map has fewer cells, each of its cells fills several."""
    maps = [site.map for site in found if site.map is not None]
    side = max((max(cells.shape[1:]) for cells in maps), default=1)
    thumbs = np.full((len(found), heads, side, side), np.nan, dtype=np.float32)
    for site, thumb in zip(found, thumbs, strict=True):
        if site.map is not None:
            rows, columns = (np.arange(side) * n // side for n in site.map.shape[1:])
            thumb[: len(site.map)] = site.map[:, rows[:, None], columns]
    return thumbs
