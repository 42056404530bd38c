"""`verify`: whether a trace is what docs/trace-format.md says, sentence by sentence, down to the last byte.

Each check carries the numbers of the sentences that it proves; a test holds the page and this module together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from saccade.errors import NotATraceError, TraceError, TraceVersionError
from saccade.trace.entry import coarser
from saccade.trace.layout import ENTRIES, group_attributes, group_json, json_fill_value, map_levels
from saccade.trace.metadata import Array, EntryMetadata, Stack
from saccade.trace.reading import Files, StoredEntry, StoredTrace, open_files, read_json


@dataclass(frozen=True)
class Finding:
    """A sentence that does not hold.

    Attributes:
        sentence: its number in docs/trace-format.md.
        where: which part of the trace.
        message: what was found.
    """

    sentence: str
    where: str
    message: str


@dataclass(eq=False)
class Verdict:
    """What `verify` found.

    Attributes:
        findings: what is wrong; empty for a trace that is right.
        entries, arrays, numbers: how much was checked.
        complete: whether the trace was closed; None if that cannot be told.
        unfinished: the number of an entry that was not finished, or None.
    """

    findings: list[Finding] = field(default_factory=list)
    entries: int = 0
    arrays: int = 0
    numbers: int = 0
    complete: bool | None = None
    unfinished: int | None = None

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


# The sentences that a check proves, by its name.
SENTENCES: dict[str, str] = {}


def proves(sentences: str) -> Callable[[Any], Any]:
    """Which sentences of the specification a check proves."""

    def mark(check: Any) -> Any:
        SENTENCES[check.__name__] = sentences
        return check

    return mark


def verify(path: str | Path) -> Verdict:
    """Check all of a trace: metadata, shapes, every byte, and what the numbers may be.

    Args:
        path: as of `saccade.open_trace`.

    Raises:
        NotATraceError: there is no trace.
        TraceVersionError: it is of another version.
    """
    verdict = Verdict()
    files = open_files(path)
    stored = _root(files, verdict)
    if stored is None:
        return verdict
    _group("_root", files, ENTRIES, {}, verdict)
    verdict.complete, verdict.unfinished = stored.metadata.complete, stored.unfinished
    for entry in stored.finished:
        _check_entry(cast("StoredEntry", entry), verdict)
        verdict.entries += 1
    return verdict


def _check_entry(entry: StoredEntry, verdict: Verdict) -> None:
    metadata = _metadata(entry, verdict)
    if metadata is None:
        return
    _groups(entry, verdict)
    whole = True
    for path, array in entry.metadata.arrays.items():
        verdict.arrays += 1
        whole &= _array(entry, path, array, verdict)
    if whole:
        for check in (_fill_values, _precision, _statistics, _top_keys, _maps, _masks, _tokens, _heads):
            for message in check(entry):
                verdict.findings.append(Finding(SENTENCES[check.__name__], entry.name, message))


def _held(check: str, where: str, verdict: Verdict, step: Callable[[], Any]) -> Any:
    """What a step gives; None and a finding if it raises."""
    try:
        return step()
    except TraceError as error:
        verdict.findings.append(Finding(SENTENCES[check], where, str(error)))
        return None


# ---------------------------------------------------------------------------------------- metadata


@proves("1 2 3 4 5 6 7")
def _root(files: Files, verdict: Verdict) -> StoredTrace | None:
    """The root, its version and digest, how many entries it has, whether the others are whole."""
    try:
        return StoredTrace(files)
    except (NotATraceError, TraceVersionError):
        raise
    except TraceError as error:
        verdict.findings.append(Finding(SENTENCES["_root"], files.name, str(error)))
        return None


@proves("3 6 8 9 10")
def _metadata(entry: StoredEntry, verdict: Verdict) -> EntryMetadata | None:
    """Members, kinds, ranges, and what has to fit each other; the digest."""
    found = _held("_metadata", entry.name, verdict, lambda: (entry.metadata, entry.metadata.arrays))
    return None if found is None else entry.metadata


@proves("11 21")
def _groups(entry: StoredEntry, verdict: Verdict) -> None:
    """Every folder on the way to an array is a group; those of maps say where their cells are."""
    for path, attributes in group_attributes(entry.metadata).items():
        _group("_groups", entry.files, f"{entry.path}/{path}", attributes, verdict)


def _group(check: str, files: Files, path: str, attributes: dict[str, Any], verdict: Verdict) -> None:
    """One group's `zarr.json` is what it has to be."""
    where = f"{files.name}/{path}"
    document = _held(check, where, verdict, lambda: read_json(files, f"{path}/zarr.json"))
    if document != group_json(attributes):
        message = f"its zarr.json is not that of a group with attributes {attributes}"
        verdict.findings.append(Finding(SENTENCES[check], where, message))


@proves("12 13 14 15 16 26")
def _array(entry: StoredEntry, path: str, array: Array, verdict: Verdict) -> bool:
    """Shape, type, names, codecs; every chunk is there and is what was written."""

    def read() -> bool:
        rows = range(array.shape[0]) if array.rows else [None]
        for row in rows:
            values = entry.read(path, () if row is None else (row,))
            verdict.numbers += values.numel() if isinstance(values, Tensor) else values.size
        return True

    return bool(_held("_array", f"{entry.name}/{path}", verdict, read))


@proves("17")
def _fill_values(entry: StoredEntry) -> Iterator[str]:
    """What stands for nothing is no plausible number."""
    for path, array in entry.metadata.arrays.items():
        found = read_json(entry.files, f"{entry.path}/{path}/zarr.json").get("fill_value")
        if found != json_fill_value(array.dtype):
            yield f"{path}: fill_value is {found!r}"


# ---------------------------------------------------------------------------------------- numbers


@proves("18")
def _precision(entry: StoredEntry) -> Iterator[str]:
    """Numbers that were bfloat16 are still: the lower half of each float32 is 0."""
    for path, array in entry.metadata.arrays.items():
        document = read_json(entry.files, f"{entry.path}/{path}/zarr.json")
        if document.get("attributes", {}).get("precision") != array.precision:
            yield f"{path}: precision is not {array.precision!r}"
        if array.precision == "bfloat16":
            for row in range(array.shape[0]) if array.rows else [None]:
                raw = entry.raw(path, () if row is None else (row,))
                if (raw.view(np.uint32) & 0xFFFF).any():
                    yield f"{path}: a number is no bfloat16"


def _rows(entry: StoredEntry, number: int, name: str) -> Iterator[Tensor]:
    """The rows of a stack's array, if it has that one."""
    path = f"stacks/{number}/{name}"
    if path in entry.metadata.arrays:
        for row in range(entry.metadata.arrays[path].shape[0]):
            yield cast("Tensor", entry.read(path, (row,)))


def _largest(stack: Stack, name: str) -> float:
    """The largest number that a statistic can be; rounding aside."""
    return {
        "entropy": float(np.log(max(stack.keys, 1))),
        "received": float(stack.queries * stack.heads),
        "distance": float("inf"),
    }.get(name, 1.0)


@proves("19")
def _statistics(entry: StoredEntry) -> Iterator[str]:
    """Entropies, weights and sums of weights are in range, or NaN; an lse is not +infinity."""
    for number, stack in enumerate(entry.metadata.stacks):
        for name in ("entropy", "max_weight", "distance", "mass", "received", "top_weights"):
            most = _largest(stack, name) * (1 + 1e-3) + 1e-3
            for row in _rows(entry, number, name):
                if ((row < -1e-3) | (row > most)).any():  # noqa: PLR2004  rounding
                    yield f"stacks/{number}/{name}: {float(row.min())} to {float(row.max())}; expected 0 to {most:.3g}"
        if any((row == torch.inf).any() for row in _rows(entry, number, "lse")):
            yield f"stacks/{number}/lse: infinite"


@proves("20")
def _top_keys(entry: StoredEntry) -> Iterator[str]:
    """Top keys are keys, heaviest first, and each once."""
    for number, stack in enumerate(entry.metadata.stacks):
        both = zip(_rows(entry, number, "top_keys"), _rows(entry, number, "top_weights"), strict=True)
        for indices, weights in both:
            if ((indices < -1) | (indices >= stack.keys)).any():
                yield f"stacks/{number}/top_keys: there is no key {int(indices.max())} of {stack.keys}"
            if (weights.diff(dim=-1) > 0).any() or ((indices == -1) & (weights > 0)).any():
                yield f"stacks/{number}/top_weights: not heaviest first"
            ordered = indices.sort(-1).values
            if ((ordered.diff(dim=-1) == 0) & (ordered[..., 1:] >= 0)).any():
                yield f"stacks/{number}/top_keys: a key is named twice"


@proves("22")
def _maps(entry: StoredEntry) -> Iterator[str]:
    """Coarser levels are made of finer ones."""
    for number, stack in enumerate(entry.metadata.stacks):
        reduce = stack.map.reduce if stack.map else ""
        for b in range(stack.batch):
            for level in range(1, len(map_levels(stack))):
                fine, coarse = (cast("Tensor", entry.read(f"maps/{number}/{b}/s{k}/map")) for k in (level - 1, level))
                expected = coarser(fine, reduce, (stack.queries, stack.keys))
                if not torch.allclose(expected, coarse, rtol=1e-4, atol=1e-6, equal_nan=True):
                    yield f"maps/{number}/{b}: level {level} is not made of level {level - 1}"


@proves("23")
def _masks(entry: StoredEntry) -> Iterator[str]:
    """Intervals are sorted, apart, and within the keys."""
    for number, form in enumerate(entry.metadata.masks):
        if form.kind != "intervals":
            continue
        starts, stops = (cast("Tensor", entry.read(f"masks/{number}/{name}")) for name in ("starts", "stops"))
        wrong = (starts < 0) | (starts > stops) | (stops > form.keys)
        if wrong.any() or (starts[..., 1:] < stops[..., :-1]).any():
            yield f"masks/{number}: an interval is no range of the {form.keys} keys, or they are not sorted"


@proves("24")
def _tokens(entry: StoredEntry) -> Iterator[str]:
    """Every token's characters are some of its text's."""
    for number, form in enumerate(entry.metadata.sequences):
        if not form.labelled:
            continue
        start, stop, text = (entry.read(f"sequences/{number}/{name}") for name in ("start", "stop", "text"))
        lengths = torch.tensor([len(one) for one in text], device="cpu")[:, None]
        if ((cast("Tensor", start) < 0) | (start > stop) | (cast("Tensor", stop) > lengths)).any():
            yield f"sequences/{number}: a token starts or stops outside of its text"


@proves("25")
def _heads(entry: StoredEntry) -> Iterator[str]:
    """The coordinates of layers and heads are what the metadata say."""
    for number, stack in enumerate(entry.metadata.stacks):
        if cast("Any", entry.read(f"stacks/{number}/layer")).tolist() != list(stack.sites):
            yield f"stacks/{number}/layer: not the names of the sites"
        if cast("Any", entry.read(f"stacks/{number}/head")).tolist() != list(stack.head_numbers):
            yield f"stacks/{number}/head: not the numbers of the heads"
