"""What a trace says of itself: the JSON of the specification (docs/trace-format.md) as dataclasses.

Whatever is read here may have been written by anybody, so it is checked to the last number before it is used: a value
of the wrong kind, out of range, or contradicting another is a `TraceFormatError`. `EntryMetadata.arrays` derives every
array that an entry has, with its shape; no file's own word is taken for that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Self

import torch

from saccade.errors import SaccadeError, TraceFormatError
from saccade.masks import Lengths
from saccade.statistics import FIELDS, Map, Received, Statistic, TopKeys, decode

VERSION = 1
KEEPS = ("statistics", "qk", "qkv")
# No count of anything is larger.
MOST = 1 << 40
MOST_HEADS = 1 << 16  # and batch elements
FLOATS = ("float16", "float32", "float64")
PRECISIONS = {"bfloat16": torch.bfloat16, **{name: getattr(torch, name) for name in FLOATS}}


# ---------------------------------------------------------------------------------------- the JSON of dataclasses


class _Json:
    """A dataclass that is written as a JSON object, and read back strictly. Unknown members are ignored."""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        members: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        return members

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """From JSON.

        Raises:
            TraceFormatError: a member is missing or of the wrong kind.
        """
        made: Self = _parse(cls, value, where)
        return made


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _parse(kind: Any, value: object, where: str) -> Any:
    """A JSON value as what a type hint says."""
    if dataclasses.is_dataclass(kind):
        return _parse_object(typing.cast("type", kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _parse(next(a for a in arguments if a is not types.NoneType), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise TraceFormatError(f"{where} is {_shown(value)}; expected a list")
        return tuple(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    return _parse_plain(kind, value, where)


def _parse_object(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise TraceFormatError(f"{where} is {_shown(value)}; expected an object")
    members = [field.name for field in dataclasses.fields(kind)]
    for name in members:
        if name not in value:
            raise TraceFormatError(f"{where} has no member {name!r}")
    return kind(**{name: _parse(_hints(kind)[name], value[name], f"{where}.{name}") for name in members})


def _parse_plain(kind: type, value: object, where: str) -> Any:
    if kind is float and type(value) is int and -MOST <= value <= MOST:
        value = float(value)
    if type(value) is not kind:
        raise TraceFormatError(f"{where} is {_shown(value)}; expected {_NAMES[kind]}")
    if isinstance(value, int | float) and not -MOST <= value <= MOST:  # so is NaN
        raise TraceFormatError(f"{where} is {_shown(value)}; expected a number between -2**40 and 2**40")
    return value


_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004  fits in a line


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its member "digest": members sorted, no white space, ASCII."""
    rest = {name: value for name, value in document.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


# ---------------------------------------------------------------------------------------- a trace


@dataclass(frozen=True)
class TraceMetadata(_Json):
    """Of a whole trace.

    Attributes:
        version: of the format.
        writer: what wrote it.
        complete: whether its recorder closed it; written last.
        entries: how many there are, once it is complete.
        model: the model's class.
        name: what the model is called, "" if it has no name.
        fingerprint: of the model's weights, so that a recording is resumed with the same ones.
        keep: "statistics", "qk" or "qkv".
        statistics: what was asked of every call, [name, ...] or ["default"].
        layers: the layers or sites that were recorded; null for all.
        heads: the heads that were recorded; null for all.
        hidden: whether hidden states were kept.
    """

    version: int
    writer: str
    complete: bool
    entries: int
    model: str
    name: str
    fingerprint: str
    keep: str
    statistics: tuple[str, ...]
    layers: tuple[str, ...] | None
    heads: tuple[int, ...] | None
    hidden: bool

    def __post_init__(self) -> None:
        if self.keep not in KEEPS:
            raise TraceFormatError(f"keep is {self.keep!r}; expected one of {', '.join(KEEPS)}")
        if self.entries < 0:
            raise TraceFormatError(f"entries is {self.entries}; expected 0 or more")

    def closed(self, entries: int) -> TraceMetadata:
        """The same of a trace that its recorder closed with so many entries."""
        return replace(self, complete=True, entries=entries)

    def opened(self) -> TraceMetadata:
        """The same while it is written."""
        return replace(self, complete=False, entries=0)


# ---------------------------------------------------------------------------------------- an entry


@dataclass(frozen=True)
class Site(_Json):
    """One attention call.

    Attributes:
        name: the `named_modules` path of the module that made it; ``path#1`` for its second call in the forward.
        stack, row: where its results are.
        scale, softcap: of its scores.
        mask, bias: which of the entry's; null for none.
        queries, keys: which of the entry's sequences they are of; null if that is not known.
        hidden, hidden_row: where the hidden state is that entered its layer; null if it was not kept.
    """

    name: str
    stack: int
    row: int
    scale: float
    softcap: float | None
    mask: int | None
    bias: int | None
    queries: int | None
    keys: int | None
    hidden: int | None
    hidden_row: int | None


@dataclass(frozen=True)
class Asked(_Json):
    """A statistic, as `Statistic.code` names it; whether it had groups of queries or keys."""

    field: str
    numbers: tuple[int, ...]
    grouped: bool

    @classmethod
    def of(cls, statistic: Statistic) -> Asked:
        """How a statistic is named."""
        field, numbers, tensor = statistic.code()
        return cls(field, tuple(numbers), tensor is not None)

    def statistic(self) -> Statistic:
        """The statistic, with an empty tensor of groups.

        Raises:
            TraceFormatError: there is none of that name, or the numbers do not fit it.
        """
        if self.field not in FIELDS:
            raise TraceFormatError(f"there is no statistic {self.field!r}; expected one of {', '.join(FIELDS)}")
        groups = torch.zeros(0, dtype=torch.int64, device="cpu") if self.grouped or self.field == "mass" else None
        try:
            made = decode(self.field, list(self.numbers), groups)
        except (IndexError, SaccadeError) as error:
            raise TraceFormatError(f"numbers of {self.field} are {list(self.numbers)}: {error}") from None
        if len(made.code()[1]) != len(self.numbers):
            raise TraceFormatError(f"numbers of {self.field} are {list(self.numbers)}: not as many as it has")
        return made


@dataclass(frozen=True)
class Stack(_Json):
    """Calls of one shape, whose results lie in one array for each kind, a row for each call.

    Attributes:
        sites: their names, in order.
        batch, heads, key_heads, queries, keys, width, value_width: B, H, Hk, Nq, Nk, D and Dv of what was kept.
        head_numbers: which of the model's heads these are.
        precision: the dtype that queries and keys had.
        compute: the dtype of statistics.
        statistics: what was asked.
        kept: which of "queries", "keys", "values" were kept.
        sink_batch: batch elements that have sinks of their own; null if there are none.
    """

    sites: tuple[str, ...]
    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    value_width: int
    head_numbers: tuple[int, ...]
    precision: str
    compute: str
    statistics: tuple[Asked, ...]
    kept: tuple[str, ...]
    sink_batch: int | None

    def __post_init__(self) -> None:
        sizes = (self.batch, self.heads, self.key_heads, self.queries, self.keys, self.width, self.value_width)
        _need(min(sizes) >= 0, "a stack has a negative size")
        _need(max(self.batch, self.heads) <= MOST_HEADS, f"a stack has more than {MOST_HEADS} batch elements or heads")
        _need(self.precision in PRECISIONS, f"precision is {self.precision!r}; expected {', '.join(PRECISIONS)}")
        _need(self.compute in ("float32", "float64"), f"compute is {self.compute!r}; expected float32 or float64")
        _need(len(self.head_numbers) == self.heads, f"{len(self.head_numbers)} head numbers for {self.heads} heads")
        _need(set(self.kept) <= set(_KEPT), f"kept is {list(self.kept)}; expected some of {', '.join(_KEPT)}")
        _need(self.sink_batch in (None, 1, self.batch), "sinks are for another batch")
        fields = [asked.field for asked in self.statistics]
        _need(len(set(fields)) == len(fields), "a stack names one statistic twice")

    @property
    def lengths(self) -> Lengths:
        """B, H, Nq and Nk, without a device to compute on."""
        return Lengths(self.batch, self.heads, self.queries, self.keys, "meta")

    def asked(self) -> list[Statistic]:
        """The statistics that were asked."""
        return [asked.statistic() for asked in self.statistics]

    @property
    def map(self) -> Map | None:
        """The map that was asked, if one was."""
        return next((statistic for statistic in self.asked() if isinstance(statistic, Map)), None)


_KEPT = ("queries", "keys", "values")


@dataclass(frozen=True)
class Sequence(_Json):
    """The tokens that a model read.

    Attributes:
        name: of the argument that held their ids.
        batch, length: B and N.
        labelled: whether the tokens' texts are known.
    """

    name: str
    batch: int
    length: int
    labelled: bool


@dataclass(frozen=True)
class MaskForm(_Json):
    """Which keys each query saw: "intervals" with `runs` of them in each row, or "dense".

    `batch` and `heads` are 1 where all are alike.
    """

    kind: str
    batch: int
    heads: int
    queries: int
    keys: int
    runs: int

    def __post_init__(self) -> None:
        _need(self.kind in ("intervals", "dense"), f"a mask is {self.kind!r}; expected intervals or dense")


@dataclass(frozen=True)
class BiasForm(_Json):
    """What was added to the scores: the kind, shape, dtype and integers of a bias of `saccade.scores`."""

    kind: str
    numbers: tuple[int, ...]
    shape: tuple[int, ...]
    precision: str

    def __post_init__(self) -> None:
        sizes = {"dense": (4, 1), "alibi": (2, 1), "relative": (3, 2)}.get(self.kind)
        _need(sizes is not None, f"a bias is {self.kind!r}; expected dense, alibi or relative")
        _need((len(self.shape), len(self.numbers)) == sizes, f"a bias {self.kind} of shape {list(self.shape)}")
        _need(self.precision in PRECISIONS, f"precision is {self.precision!r}; expected {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Hidden(_Json):
    """Hidden states of one shape: row i entered layer i; the last row left the last of them.

    Attributes:
        layers: the layers' names, one fewer than there are rows.
    """

    layers: tuple[str, ...]
    batch: int
    length: int
    width: int
    precision: str

    def __post_init__(self) -> None:
        _need(self.precision in PRECISIONS, f"precision is {self.precision!r}; expected {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Source(_Json):
    """Where the text of a batch element came from: what it is called, and the SHA-256 of its UTF-8 bytes."""

    name: str
    sha256: str

    @classmethod
    def of(cls, name: str, text: str) -> Source:
        """The source of a text."""
        return cls(name, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True)
class Array:
    """An array of an entry.

    Attributes:
        shape, dtype, dims: as Zarr says them; dtype "string" is UTF-8 text.
        precision: the dtype that the numbers had in the model; Zarr has no bfloat16, which is stored as float32.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    precision: str | None = None

    @property
    def rows(self) -> bool:
        """Whether the first dimension counts calls or layers, each of which is written and read by itself."""
        return self.dims[0] == "layer" and len(self.dims) > 1


@dataclass(frozen=True)
class EntryMetadata(_Json):
    """One forward of the model.

    Attributes:
        index: which entry this is.
        forward: the `named_modules` path of what ran, "" for the whole model.
        sites, stacks, sequences, masks, biases, hidden, sources: see their classes.
    """

    index: int
    forward: str
    sites: tuple[Site, ...]
    stacks: tuple[Stack, ...]
    sequences: tuple[Sequence, ...]
    masks: tuple[MaskForm, ...]
    biases: tuple[BiasForm, ...]
    hidden: tuple[Hidden, ...]
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        _need(len({site.name for site in self.sites}) == len(self.sites), "two sites have one name")
        placed = sorted((site.stack, site.row, site.name) for site in self.sites)
        wanted = [(s, r, name) for s, stack in enumerate(self.stacks) for r, name in enumerate(stack.sites)]
        _need(placed == wanted, "the sites do not lie in the rows of the stacks that name them")
        for site in self.sites:
            self._check(site)

    def _check(self, site: Site) -> None:
        stack = self.stacks[site.stack]
        _need(site.softcap is None or site.softcap > 0, f"{site.name}: softcap is {site.softcap}")
        for what, number, among in (
            ("mask", site.mask, self.masks),
            ("bias", site.bias, self.biases),
            ("queries", site.queries, self.sequences),
            ("keys", site.keys, self.sequences),
            ("hidden", site.hidden, self.hidden),
        ):
            _need(number is None or 0 <= number < len(among), f"{site.name}: there is no {what} {number}")
        if site.mask is not None:
            mask = self.masks[site.mask]
            _need((mask.queries, mask.keys) == (stack.queries, stack.keys), f"{site.name}: its mask has another shape")
            fits = mask.batch in (1, stack.batch) and mask.heads in (1, stack.heads)
            _need(fits, f"{site.name}: its mask is for another batch or other heads")
        for side, length in ((site.queries, stack.queries), (site.keys, stack.keys)):
            if side is not None:
                tokens = self.sequences[side]
                _need((tokens.batch, tokens.length) == (stack.batch, length), f"{site.name}: its tokens do not fit")
        if site.hidden is not None:
            rows = len(self.hidden[site.hidden].layers)
            here = site.hidden_row is not None and 0 <= site.hidden_row < rows
            _need(here, f"{site.name}: there is no hidden row {site.hidden_row}")

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Every array that the entry has, by its path within it."""
        found: dict[str, Array] = {}
        for i, stack in enumerate(self.stacks):
            found |= _stack_arrays(i, stack)
        for i, tokens in enumerate(self.sequences):
            found |= {f"sequences/{i}/{name}": array for name, array in _sequence_arrays(tokens).items()}
        for i, mask in enumerate(self.masks):
            found |= {f"masks/{i}/{name}": array for name, array in _mask_arrays(mask).items()}
        for i, bias in enumerate(self.biases):
            dims = tuple(f"bias_{d}" for d in range(len(bias.shape)))
            found[f"biases/{i}/values"] = Array(bias.shape, stored(bias.precision), dims, precision=bias.precision)
        for i, hidden in enumerate(self.hidden):
            shape = (len(hidden.layers) + 1, hidden.batch, hidden.length, hidden.width)
            found[f"hidden/{i}/states"] = Array(
                shape, stored(hidden.precision), ("layer", "batch", "position", "width"), hidden.precision
            )
        return found


def _need(right: bool, message: str) -> None:  # noqa: FBT001
    if not right:
        raise TraceFormatError(message)


def name_of(dtype: torch.dtype) -> str:
    """What a trace calls a dtype."""
    return str(dtype).removeprefix("torch.")


def stored(precision: str) -> str:
    """The dtype in which numbers of a precision are stored: float32 holds every bfloat16 exactly."""
    return "float32" if precision == "bfloat16" else precision


# Dimensions of each array of a stack, the row's apart. `rank`: the heaviest key is 0.
_DIMS = {
    "lse": ("batch", "head", "query"),
    "entropy": ("batch", "head", "query"),
    "max_weight": ("batch", "head", "query"),
    "distance": ("batch", "head", "query"),
    "mass": ("batch", "head", "query", "group"),
    "top_keys": ("batch", "head", "query", "rank"),
    "top_weights": ("batch", "head", "query", "rank"),
    "queries": ("batch", "head", "query", "width"),
    "keys": ("batch", "key_head", "key", "width"),
    "values": ("batch", "key_head", "key", "value_width"),
    "sinks": ("sink_batch", "head"),
}


def _stack_arrays(number: int, stack: Stack) -> dict[str, Array]:
    rows, group = len(stack.sites), f"stacks/{number}"
    sizes = {
        "queries": (stack.batch, stack.heads, stack.queries, stack.width),
        "keys": (stack.batch, stack.key_heads, stack.keys, stack.width),
        "values": (stack.batch, stack.key_heads, stack.keys, stack.value_width),
    }
    found = {
        f"{group}/layer": Array((rows,), "string", ("layer",)),
        f"{group}/head": Array((stack.heads,), "int64", ("head",)),
    }
    for statistic in stack.asked():
        found |= _statistic_arrays(number, stack, statistic)
    for name in stack.kept:
        found[f"{group}/{name}"] = Array(
            (rows, *sizes[name]), stored(stack.precision), ("layer", *_DIMS[name]), stack.precision
        )
    if stack.sink_batch is not None:
        shape = (rows, stack.sink_batch, stack.heads)
        found[f"{group}/sinks"] = Array(shape, stack.compute, ("layer", *_DIMS["sinks"]))
    return found


def _statistic_arrays(number: int, stack: Stack, statistic: Statistic) -> dict[str, Array]:
    """The arrays of one statistic; their shapes are those that it says itself."""
    rows, group = len(stack.sites), f"stacks/{number}"
    if isinstance(statistic, Map):
        return _map_arrays(number, stack, statistic)
    try:
        shapes = [tuple(x.shape) for x in statistic.empty(stack.lengths, torch.float32)]
    except RuntimeError as error:
        raise TraceFormatError(f"{statistic.field} would have more entries than can be counted") from error
    if statistic.field == "lse":
        shapes = [(stack.batch, stack.heads, stack.queries)]
    if isinstance(statistic, TopKeys):
        return {
            f"{group}/top_keys": Array((rows, *shapes[0]), "int32", ("layer", *_DIMS["top_keys"])),
            f"{group}/top_weights": Array((rows, *shapes[1]), stack.compute, ("layer", *_DIMS["top_weights"])),
        }
    dims = _DIMS[statistic.field] if not isinstance(statistic, Received) else received_dims(statistic)
    return {f"{group}/{statistic.field}": Array((rows, *shapes[0]), stack.compute, ("layer", *dims))}


def received_dims(received: Received) -> tuple[str, ...]:
    """The dimensions of what keys received."""
    heads = () if received.over_heads else ("head",)
    return "batch", *heads, *(() if received.by is None else ("query_group",)), "key"


def _map_arrays(number: int, stack: Stack, statistic: Map) -> dict[str, Array]:
    rows, heads = len(stack.sites), 1 if statistic.over_heads else stack.heads
    return {
        f"maps/{number}/{b}/s{level}/map": Array(
            (rows, heads, *sides), stack.compute, ("layer", "head", "query", "key")
        )
        for b in range(stack.batch)
        for level, sides in enumerate(pyramid_sides(statistic.grid(stack.lengths)))
    }


SMALLEST_SIDE = 16


def pyramid_sides(sides: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells of each level of a map's pyramid: halved as long as no cell is left over and a side is larger than 16."""
    levels = [sides]
    while max(levels[-1]) > SMALLEST_SIDE and all(side == 1 or side % 2 == 0 for side in levels[-1]):
        queries, keys = levels[-1]
        levels.append((max(queries // 2, 1), max(keys // 2, 1)))
    return levels


def _sequence_arrays(tokens: Sequence) -> dict[str, Array]:
    shape, dims = (tokens.batch, tokens.length), ("batch", "position")
    found = {"ids": Array(shape, "int64", dims), "visible": Array(shape, "bool", dims)}
    if tokens.labelled:
        found["token"] = Array(shape, "string", dims)
        found |= {name: Array(shape, "int32", dims) for name in ("start", "stop")}
        found["special"] = Array(shape, "bool", dims)
        found["text"] = Array((tokens.batch,), "string", ("batch",))
    return found


def _mask_arrays(mask: MaskForm) -> dict[str, Array]:
    if mask.kind == "dense":
        shape = (mask.batch, mask.heads, mask.queries, mask.keys)
        return {"visible": Array(shape, "bool", ("mask_batch", "mask_head", "query", "key"))}
    runs = (mask.batch, mask.heads, mask.queries, mask.runs)
    return {name: Array(runs, "int32", ("mask_batch", "mask_head", "query", "run")) for name in ("starts", "stops")}
