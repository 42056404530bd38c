"""An entry while its forward runs: calls become rows of stacks, and what they share is kept once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.adapters.observation import Call
from saccade.backends import Inputs
from saccade.masks import Dense, Intervals, Lengths
from saccade.scores import Bias, Problem
from saccade.statistics import (
    Map,
    Received,
    Statistic,
    TopKeys,
    cell_bounds,
)
from saccade.trace import metadata
from saccade.trace.blocks import name_of_run
from saccade.trace.hidden import HiddenStates
from saccade.trace.metadata import (
    Asked,
    BiasForm,
    EntryMetadata,
    MaskForm,
    pyramid_sides,
)
from saccade.trace.storage import Open
from saccade.trace.tokens import Tokens


class Seen:
    """One call, cut down to the heads that are kept."""

    def __init__(self, call: Call, problem: Problem, inputs: Inputs, keep: str, heads: list[int] | None) -> None:
        self.call = call
        self.heads = list(range(call.lengths.heads)) if heads is None else heads
        self.precision = metadata.name_of(inputs.query.dtype)
        self.compute = metadata.name_of(inputs.compute)
        self.kept = {"statistics": (), "qk": ("queries", "keys"), "qkv": ("queries", "keys", "values")}[keep]
        inputs = inputs.gathered() if self.kept else inputs
        self.inputs = inputs if heads is None or inputs.pages is not None else _of_heads(inputs, heads)
        self.problem = problem if heads is None else problem.select(slice(None), heads)
        self._subset = heads

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Queries, keys, values and sinks that are kept, by name."""
        parts = {"queries": self.inputs.query, "keys": self.inputs.key, "values": self.inputs.value}
        yield from ((name, parts[name]) for name in self.kept)
        if self.problem.sinks is not None:
            yield "sinks", self.problem.sinks.to(self.inputs.compute)

    def of_heads(self, result: Tensor) -> Tensor:
        """Of a result ``(B, H, ...)``, the heads that are kept."""
        return result if self._subset is None else result[:, self._subset]


def _of_heads(inputs: Inputs, heads: list[int]) -> Inputs:
    """Some heads' queries, with the keys and values that they look at."""
    shared = [head // inputs.group for head in heads]
    return Inputs(inputs.query[:, heads], inputs.key[:, shared], inputs.value[:, shared])


class OpenEntry:
    """An entry while its forward runs."""

    def __init__(
        self, opened: Open, index: int, forward: str, sources: Sequence[str] | None, texts: Sequence[str] | None
    ) -> None:
        self.open, self.index, self.forward = opened, index, forward
        self.tokens: list[Tokens] = []  # that the forward was given
        self.sites: list[metadata.Site] = []
        self.counted: Counter[str] = Counter()
        self.hidden = HiddenStates(opened)
        self._stacks: list[metadata.Stack] = []
        self._sequences: list[Tokens] = []
        self._masks: list[Intervals | Dense] = []
        self._biases: list[Bias] = []
        said = zip(sources or (), texts or (), strict=True) if sources else ()
        self._sources = [metadata.Source.of(name, text) for name, text in said]

    # ------------------------------------------------------------------------------------ calls

    def add(self, seen: Seen, sides: tuple[Tokens | None, Tokens | None], hidden: tuple[int, int] | None) -> None:
        """Keep a call."""
        site, times = seen.call.site, self.counted[seen.call.site]
        name = name_of_run(site, times)
        stack, row = self._place(name, seen)
        for path, tensor in seen.tensors():
            self.open.append(f"stacks/{stack}/{path}", tensor)
        for statistic in seen.call.statistics:
            self._add_statistic(stack, statistic, seen)
        self.sites.append(
            metadata.Site(
                name=name,
                stack=stack,
                row=row,
                scale=float(seen.problem.scale),
                softcap=None if seen.problem.softcap is None else float(seen.problem.softcap),
                mask=self._mask(seen.problem),
                bias=self._bias(seen.problem),
                queries=self._sequence(sides[0]),
                keys=self._sequence(sides[1]),
                hidden=None if hidden is None else hidden[0],
                hidden_row=None if hidden is None else hidden[1],
            )
        )

    def _place(self, name: str, seen: Seen) -> tuple[int, int]:
        """The stack and row of a call; a stack of its own if none has its shape yet."""
        form = _form(seen)
        for i, stack in enumerate(self._stacks):
            if replace(stack, sites=()) == form:
                self._stacks[i] = replace(stack, sites=(*stack.sites, name))
                return i, len(stack.sites)
        self._stacks.append(replace(form, sites=(name,)))
        return len(self._stacks) - 1, 0

    def _add_statistic(self, stack: int, statistic: Statistic, seen: Seen) -> None:
        report, group = seen.call.report, f"stacks/{stack}"
        if isinstance(statistic, Map):
            cells = report.map[:, None] if statistic.over_heads else seen.of_heads(report.map)
            self._add_maps(stack, statistic, cells, seen.call.lengths)
        elif isinstance(statistic, TopKeys):
            self.open.append(f"{group}/top_keys", seen.of_heads(report.top_keys.indices).to(torch.int32))
            self.open.append(f"{group}/top_weights", seen.of_heads(report.top_keys.weights))
        else:
            result = report[statistic.field]
            assert isinstance(result, Tensor)
            whole = isinstance(statistic, Received) and statistic.over_heads
            self.open.append(f"{group}/{statistic.field}", result if whole else seen.of_heads(result))

    def _add_maps(self, stack: int, statistic: Map, cells: Tensor, lengths: Lengths) -> None:
        levels = pyramid_sides((cells.shape[2], cells.shape[3]))
        for level in range(len(levels)):
            for b, one in enumerate(cells):
                self.open.append(f"maps/{stack}/{b}/s{level}/map", one)
            if level + 1 < len(levels):
                cells = coarser(cells, statistic.reduce, (lengths.queries, lengths.keys))

    # ------------------------------------------------------------------------------------ what calls share

    def _mask(self, problem: Problem) -> int | None:
        if problem.mask is None:
            return None
        same = (i for i, known in enumerate(self._masks) if _same_mask(known, problem.mask))
        return _index(self._masks, problem.mask, next(same, None))

    def _bias(self, problem: Problem) -> int | None:
        if problem.bias is None:
            return None
        same = (i for i, known in enumerate(self._biases) if _same_bias(known, problem.bias))
        return _index(self._biases, problem.bias, next(same, None))

    def _sequence(self, tokens: Tokens | None) -> int | None:
        if tokens is None:
            return None
        same = (i for i, known in enumerate(self._sequences) if known is tokens or _same_tokens(known, tokens))
        return _index(self._sequences, tokens, next(same, None))

    # ------------------------------------------------------------------------------------ the end

    def finish(self) -> None:
        """All calls are there."""
        for i, stack in enumerate(self._stacks):
            self.open.put(f"stacks/{i}/layer", _strings(stack.sites))
            self.open.put(f"stacks/{i}/head", torch.tensor(stack.head_numbers, device="cpu"))
        for i, tokens in enumerate(self._sequences):
            tokens.write(self.open, i)
        for i, mask in enumerate(self._masks):
            parts = (
                {"visible": mask.visible} if isinstance(mask, Dense) else {"starts": mask.starts, "stops": mask.stops}
            )
            for name, part in parts.items():
                self.open.put(f"masks/{i}/{name}", part)
        for i, bias in enumerate(self._biases):
            self.open.put(f"biases/{i}/values", bias.values)
        self.open.finish(
            EntryMetadata(
                index=self.index,
                forward=self.forward,
                sites=tuple(self.sites),
                stacks=tuple(self._stacks),
                sequences=tuple(tokens.form() for tokens in self._sequences),
                masks=tuple(_mask_form(mask) for mask in self._masks),
                biases=tuple(_bias_form(bias) for bias in self._biases),
                hidden=self.hidden.finish(),
                sources=tuple(self._sources),
            )
        )


def _form(seen: Seen) -> metadata.Stack:
    """The stack, without sites, that a call belongs to."""
    lengths, inputs = seen.call.lengths, seen.inputs
    return metadata.Stack(
        sites=(),
        batch=lengths.batch,
        heads=len(seen.heads),
        key_heads=inputs.key.shape[1],
        queries=lengths.queries,
        keys=lengths.keys,
        width=inputs.query.shape[3],
        value_width=inputs.value.shape[3],
        head_numbers=tuple(seen.heads),
        precision=seen.precision,
        compute=seen.compute,
        statistics=tuple(Asked.of(statistic) for statistic in seen.call.statistics),
        kept=seen.kept,
        sink_batch=None if seen.problem.sinks is None else seen.problem.sinks.shape[0],
    )


def _index(known: list[Any], new: Any, place: int | None) -> int:
    """Where something is among what is known, which it joins if it is new."""
    if place is None:
        known.append(new)
        return len(known) - 1
    return place


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _same_mask(a: Intervals | Dense, b: Intervals | Dense) -> bool:
    if isinstance(a, Intervals) and isinstance(b, Intervals):
        return a.keys == b.keys and _same(a.starts, b.starts) and _same(a.stops, b.stops)
    return isinstance(a, Dense) and isinstance(b, Dense) and _same(a.visible, b.visible)


def _same_bias(a: Bias, b: Bias) -> bool:
    return a.kind == b.kind and a.numbers() == b.numbers() and _same(a.values, b.values)


def _same_tokens(a: Tokens, b: Tokens) -> bool:
    return a.name == b.name and torch.equal(a.ids, b.ids) and torch.equal(a.visible, b.visible)


def _mask_form(mask: Intervals | Dense) -> MaskForm:
    if isinstance(mask, Dense):
        batch, heads, queries, keys = mask.visible.shape
        return MaskForm("dense", batch, heads, queries, keys, 0)
    batch, heads, queries, runs = mask.starts.shape
    return MaskForm("intervals", batch, heads, queries, mask.keys, runs)


def _bias_form(bias: Bias) -> BiasForm:
    values = bias.values
    return BiasForm(bias.kind, tuple(bias.numbers()), tuple(values.shape), metadata.name_of(values.dtype))


def _strings(names: Sequence[str]) -> Any:
    return np.array(names, dtype=object)


def coarser(cells: Tensor, reduce: str, lengths: tuple[int, int]) -> Tensor:
    """A map of half as many cells along each side (one stays one), exact: as if it had been asked of the pattern.

    Args:
        cells: ``(B, H, cells of queries, cells of keys)``, each side even or 1.
        reduce: what a cell is of its weights: "mean", "max" or "sum".
        lengths: Nq and Nk.
    """
    for dim, length in zip((2, 3), lengths, strict=True):
        count = cells.shape[dim]
        if count == 1:
            continue
        pairs = cells.unflatten(dim, (count // 2, 2))
        if reduce == "mean":
            widths = cell_bounds(length, count).diff().to(cells).view(-1, 2, *[1] * (3 - dim))
            cells = (pairs * widths).sum(dim + 1) / widths.sum(1)
        else:
            cells = pairs.amax(dim + 1) if reduce == "max" else pairs.sum(dim + 1)
    return cells
