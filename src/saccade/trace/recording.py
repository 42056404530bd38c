"""`record`: keep what a model attends to while it runs.

Each forward of the model (or of a part of it that is called directly, as `generate` calls an encoder) is one entry.
Its attention calls are rows of stacks: calls of one shape lie together, so that a whole model's statistic is one array.
What a call consists of is copied to main memory at once, and handed to a sink; nothing of the model is held on to.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade._version import __version__
from saccade.adapters import huggingface
from saccade.adapters.observation import FAILED, OTHER_SEQUENCE, Call, Running, check_complete, watching
from saccade.backends import Inputs
from saccade.errors import ArgumentError
from saccade.masks import Dense, Intervals, Lengths
from saccade.scores import Bias, Problem
from saccade.statistics import (
    Distance,
    Entropy,
    LogSumExp,
    Map,
    MaxWeight,
    Received,
    Statistic,
    TopKeys,
    cell_bounds,
    check_kinds,
)
from saccade.trace import metadata
from saccade.trace.metadata import (
    KEEPS,
    VERSION,
    Asked,
    BiasForm,
    EntryMetadata,
    MaskForm,
    TraceMetadata,
    pyramid_sides,
)
from saccade.trace.storage import MemorySink, Open, Sink
from saccade.trace.tokens import Texts, Tokens, read_texts
from saccade.trace.trace import Trace
from saccade.trace.writing import DiskSink

TOP_KEYS = 8
LARGEST_SIDE = 1024


def default_statistics(lengths: Lengths) -> list[Statistic]:
    """What is asked of a call if nobody says: every row and column in a few numbers, and a map.

    84 bytes for each query of a head (lse, entropy, largest weight, distance, 8 top keys, received), and a map whose
    levels take at most 64 bytes for each of its tokens.
    """
    side = min(_power_of_two(math.isqrt(12 * max(lengths.queries, lengths.keys))), LARGEST_SIDE)
    cells = min(side, _power_of_two(lengths.queries)), min(side, _power_of_two(lengths.keys))
    rows: list[Statistic] = [LogSumExp(), Entropy(), MaxWeight(), Distance(), TopKeys(TOP_KEYS), Received()]
    return [*rows, Map(cells, "max")]


def _power_of_two(n: int) -> int:
    """The largest one that is no larger; at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)


@contextmanager
def record(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    keep: str = "statistics",
    statistics: Statistic | Sequence[Statistic] | None = None,
    layers: Sequence[int | str] | None = None,
    heads: Sequence[int] | None = None,
    hidden: bool = True,
    to: str | Path | None = None,
    resume: bool = False,
) -> Iterator[Recording]:
    """Keep what a model attends to, in memory or on disk, while it runs in this context.

    Models are served and watched as by `saccade.observe`; afterwards the model is what it was, also after an error. A
    forward that an exception ends leaves no entry. On disk, entries are written while the model runs, in memory of one
    layer and a few times 8 MiB.

    Args:
        model: any module whose attention comes through Saccade: see `saccade.observe`.
        tokenizer: of Hugging Face; without one, tokens are known by their numbers only.
        keep: "statistics"; "qk": queries and keys as well (after rotary embedding), from which every entry of the
            pattern is exact; "qkv": values as well.
        statistics: what to ask of every call, from `saccade.statistics`; None for `default_statistics`. With queries
            and keys the lse is always among it.
        layers: only these: numbers from 0, or names of sites.
        heads: only these.
        hidden: keep the hidden state that enters each layer, and the one that leaves the last.
        to: a new folder (by custom named ``.zarr``); None keeps the recording in memory.
        resume: go on with a recording of the same model and options at `to`, after its last whole entry.

    Yields:
        The recording, a `Trace` that grows.

    Raises:
        ArgumentError: an argument does not fit; nested contexts ask for one statistic in two ways.
        UnsupportedModelError, ShapeError: as of `saccade.observe`.
        TraceExistsError, TraceBusyError, TraceWriteError: `to` cannot be written to.
        MissingExtraError: `to` needs zarr.

    >>> import torch, saccade
    >>> class Net(torch.nn.Module):
    ...     def forward(self, x):
    ...         return saccade.attention(x, x, x)
    >>> net = Net()
    >>> with saccade.record(net, keep="qk") as trace:
    ...     _ = net(torch.zeros(1, 2, 4, 8))
    >>> trace.sites
    ['']
    >>> trace[0, ""].pattern[0, 0, 0].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    choice = _Choice.checked(keep, statistics, layers, heads, hidden=hidden)
    about = _about(model, choice)
    if resume and to is None:
        raise ArgumentError("resume=True needs to=, the folder of the recording to go on with")
    sink = MemorySink(about) if to is None else DiskSink(Path(to), about, resume=resume)
    recorder = _Recorder(model, sink, choice, tokenizer)
    try:
        with watching(model, recorder) as watch:
            yield recorder.recording
            recorder.drop()
        if watch.count or not resume:  # resumed, nothing may be left to do
            check_complete(model, recorder.calling, watch)
            choice.check_used(recorder.seen)
    finally:
        recorder.drop()
        sink.close()


class Recording(Trace):
    """A trace while it is recorded."""

    def __init__(self, sink: Any) -> None:
        super().__init__(sink)
        self.coming = Coming()

    def next(self, *, texts: Sequence[str] | None = None, sources: Sequence[str] | None = None) -> None:
        """Say what the next forward will read.

        Args:
            texts: one for each batch element; without them texts are decoded from the tokens.
            sources: what they are called.

        Raises:
            ArgumentError: there are more or fewer sources than texts.
        """
        if sources is not None and (texts is None or len(texts) != len(sources)):
            raise ArgumentError(f"sources are {len(sources)}, texts {len(texts or ())}; expected as many")
        self.coming.texts, self.coming.sources = texts, sources


@dataclass(eq=False)
class Coming:
    """What was said of the next forward, and who wants to know how far it is."""

    texts: Sequence[str] | None = None
    sources: Sequence[str] | None = None
    on_call: Callable[[Call], None] | None = None


# ---------------------------------------------------------------------------------------- what is kept


@dataclass(frozen=True, eq=False)
class _Choice:
    """What a recording keeps; see `record`."""

    keep: str
    statistics: tuple[Statistic, ...] | None
    layers: tuple[int | str, ...] | None
    heads: tuple[int, ...] | None
    hidden: bool

    @classmethod
    def checked(cls, keep: str, statistics: Any, layers: Any, heads: Any, *, hidden: bool) -> _Choice:
        if keep not in KEEPS:
            raise ArgumentError(f"keep = {keep!r}: expected one of {', '.join(KEEPS)}")
        if statistics is not None:
            statistics = check_kinds(statistics)
            if keep != "statistics" and not any(isinstance(s, LogSumExp) for s in statistics):
                statistics.append(LogSumExp())
        layers = _chosen("layers", layers, int | str)
        heads = _chosen("heads", heads, int)
        return cls(keep, None if statistics is None else tuple(statistics), layers, heads, hidden)

    def asked(self, lengths: Lengths) -> Sequence[Statistic]:
        return default_statistics(lengths) if self.statistics is None else self.statistics

    def wants(self, site: str, number: int) -> bool:
        """Whether a call is to be recorded, by its site and its layer's number."""
        return self.layers is None or number in self.layers or site in self.layers

    def check_used(self, seen: dict[str, set[int]]) -> None:
        """Refuse, at the end, layers that there never were."""
        numbers = set().union(*seen.values())
        unknown = [x for x in self.layers or () if x not in seen and x not in numbers]
        if unknown:
            raise ArgumentError(
                f"layers: there is no {unknown[0]!r}; layers were {sorted(numbers)}, sites {list(seen)}"
            )


def _chosen(name: str, given: Any, kinds: Any) -> tuple[Any, ...] | None:
    """A list of numbers (or names), each once, or None."""
    if given is None:
        return None
    listed = [given] if isinstance(given, int | str) else list(given)
    wrong = [x for x in listed if not isinstance(x, kinds) or isinstance(x, bool) or (isinstance(x, int) and x < 0)]
    if wrong or not listed:
        raise ArgumentError(f"{name} = {given!r}: expected numbers from 0, or None for all")
    return tuple(dict.fromkeys(listed))


def _about(model: nn.Module, choice: _Choice) -> TraceMetadata:
    named = "default" if choice.statistics is None else None
    config = getattr(model, "config", None)
    return TraceMetadata(
        version=VERSION,
        writer=f"saccade {__version__}",
        complete=False,
        entries=0,
        model=type(model).__name__,
        name=str(getattr(config, "_name_or_path", "") or ""),
        fingerprint=fingerprint(model),
        keep=choice.keep,
        statistics=(named,) if named else tuple(_said(s) for s in choice.statistics or ()),
        layers=None if choice.layers is None else tuple(map(str, choice.layers)),
        heads=choice.heads,
        hidden=choice.hidden,
    )


def _said(statistic: Statistic) -> str:
    field_, numbers, tensor = (
        (statistic.field, [statistic.offset], None) if isinstance(statistic, Distance) else statistic.code()
    )
    groups = "" if tensor is None else hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return f"{field_}{numbers}{groups}"


_FINGERPRINTED = 64  # numbers of a parameter


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters' names, shapes and dtypes, and of some of their numbers: other weights have another."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.is_meta or not parameter.numel():
            continue
        flat = parameter.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(_FINGERPRINTED, len(flat)), dtype=torch.float64).long()
        found.update(flat[places.to(flat.device)].double().cpu().numpy().tobytes())
    return found.hexdigest()


# ---------------------------------------------------------------------------------------- layers


class _Blocks:
    """Which module is the layer of an attention site, and the layer's number.

    A layer is what is numbered: of the numbers in a site's path the last one that tells sites of its kind apart. So
    ``decoder.block.3.layer.1.EncDecAttention`` is in layer 3, whose hidden state is that of ``decoder.block.3``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths = [path for path, _ in model.named_modules()]
        self._of: dict[str, tuple[str, int | None]] = {}
        self.modules = self._modules()

    def _modules(self) -> dict[nn.Module, str]:
        """The layers of all attention sites that can be known before the model runs, by module."""
        sites: list[str] = []
        for model in huggingface.huggingface_models(self._model):
            prefix = next(path for path, module in self._model.named_modules() if module is model)
            sites += [f"{prefix}.{site}".lstrip(".") for site in huggingface.attention_sites(model)]
        modules = dict(self._model.named_modules())
        return {modules[block]: block for block in dict.fromkeys(self.of(site)[0] for site in sites)}

    def of(self, site: str) -> tuple[str, int | None]:
        """The path of a site's layer, and its number; without numbers in its path, the site and None."""
        if site not in self._of:
            self._of[site] = self._find(site)
        return self._of[site]

    def _find(self, site: str) -> tuple[str, int | None]:
        parts = site.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdecimal()]
        if not numbered:
            return site, None
        alike = re.compile(r"\.".join(r"(\d+)" if part.isdecimal() else re.escape(part) for part in parts))
        found = [match.groups() for path in self._paths if (match := alike.fullmatch(path))]
        telling = [i for k, i in enumerate(numbered) if len({numbers[k] for numbers in found}) > 1]
        at = telling[-1] if telling else numbered[0]
        return ".".join(parts[: at + 1]), int(parts[at])


# ---------------------------------------------------------------------------------------- the listener


class _Recorder:
    """The listener of a recording."""

    def __init__(self, model: nn.Module, sink: Sink, choice: _Choice, tokenizer: Any) -> None:
        self.sink, self.choice, self.blocks = sink, choice, _Blocks(model)
        self.encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self.recording = Recording(sink)
        self.tokenizer = tokenizer
        self.calling: set[int] = set()  # the forwards that made a call
        self.seen: dict[str, set[int]] = {}  # every site, and its layers' numbers
        self._history = _History()
        self._entry: _Entry | None = None

    def entered(self, running: Running, forward: int) -> None:
        """See `Listener`."""
        del forward
        if not running.depth:
            said, self.recording.coming = self.recording.coming, Coming(on_call=self.recording.coming.on_call)
            index = len(self.sink.finished)
            self._entry = _Entry(self.sink.begin(index), index, running.site, said.sources, said.texts)
            self._entry.tokens = list(self._read(running, said.texts))
            self._history.begin()
        if self._entry is not None and self.choice.hidden and running.module in self.blocks.modules:
            self._entry.layer_in(self._layer(running), _hidden_in(running))

    def left(self, running: Running, forward: int, output: Any) -> None:
        """See `Listener`."""
        del forward
        entry = self._entry
        if entry is None:
            return
        if output is FAILED:
            if not running.depth:
                self.drop()
            return
        if self.choice.hidden and running.module in self.blocks.modules:
            entry.layer_out(self.blocks.modules[running.module], _first_tensor(output))
        if not running.depth:
            if self.encoder_decoder:
                self._history.end(entry.tokens, output)
            self._finish(entry)

    def statistics(self, running: Running, lengths: Lengths) -> Sequence[Statistic]:
        """See `Listener`."""
        return self.choice.asked(lengths) if self._wanted(running.site) else ()

    def called(self, call: Call, running: Running, problem: Problem, inputs: Inputs) -> None:
        """See `Listener`."""
        entry = self._entry
        if entry is None:
            return
        number = self._number(running.site)
        self.seen.setdefault(running.site, set()).add(number)
        self.calling.add(call.forward)
        if self._wanted(running.site):
            heads = self._heads(call)
            seen = _Seen(call, problem, inputs, self.choice.keep, heads)
            sides = self._sides(entry, running, call, inputs)
            hidden = entry.hidden_of(self.blocks.of(running.site)[0]) if self.choice.hidden else None
            entry.add(seen, sides, hidden)
        entry.counted[running.site] += 1
        if self.recording.coming.on_call is not None:
            self.recording.coming.on_call(call)

    def drop(self) -> None:
        """Forget an entry that was not finished."""
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.open.discard()

    def _finish(self, entry: _Entry) -> None:
        if entry.sites:
            self._entry = None
            try:
                entry.finish()
            except BaseException:
                entry.open.discard()
                raise
        else:
            self.drop()

    def _number(self, site: str) -> int:
        """The number of a site's layer; where no path says it, which call of the forward this is."""
        number = self.blocks.of(site)[1]
        assert self._entry is not None
        times = self._entry.counted
        if number is None:
            return times.total()
        return number if number or not times[site] else times[site]

    def _wanted(self, site: str) -> bool:
        return self._entry is not None and self.choice.wants(site, self._number(site))

    def _heads(self, call: Call) -> list[int] | None:
        if self.choice.heads is None:
            return None
        if max(self.choice.heads) >= call.lengths.heads:
            raise ArgumentError(
                f"heads = {list(self.choice.heads)}: {call.site or 'the model'} has {call.lengths.heads} heads, from 0"
            )
        return list(self.choice.heads)

    def _layer(self, running: Running) -> str:
        """A layer's name; one that runs again in the forward (ALBERT) has a number behind it."""
        assert self._entry is not None
        name = self.blocks.modules[running.module]
        times = sum(known == name or known.startswith(f"{name}#") for known in self._entry.layers)
        return f"{name}#{times}" if times else name

    # ------------------------------------------------------------------------------------ whose tokens

    def _read(self, running: Running, texts: Sequence[str] | None) -> Iterator[Tokens]:
        """The tokens that a forward was given."""
        given = running.arguments()
        for name, mask in _TOKENS.items():
            ids, visible = given.get(name), given.get(mask)
            if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():  # noqa: PLR2004
                continue
            ids = ids.detach().cpu().long()
            fits = isinstance(visible, Tensor) and visible.shape == ids.shape
            seen = (
                visible.detach().cpu().bool()
                if fits and visible is not None
                else torch.ones_like(ids, dtype=torch.bool)
            )
            mine = texts if texts is not None and len(texts) == len(ids) and name == "input_ids" else None
            yield Tokens(name, ids, seen, self._texts(ids, seen, mine))

    def _texts(self, ids: Tensor, visible: Tensor, texts: Sequence[str] | None) -> Texts | None:
        return None if self.tokenizer is None else read_texts(self.tokenizer, ids, visible, texts)

    def _sides(
        self, entry: _Entry, running: Running, call: Call, inputs: Inputs
    ) -> tuple[Tokens | None, Tokens | None]:
        """The tokens that are a call's queries, and those that are its keys, as far as they are known."""
        lengths = call.lengths
        first = [t for t in entry.tokens if "decoder" in t.name] if "decoder" in running.site else []
        mine = [t for t in [*first, *entry.tokens] if t.ids.shape == (lengths.batch, lengths.queries)]
        queries = mine[0] if mine else None
        if running.is_cross_attention():
            both = [t for t in entry.tokens if "decoder" not in t.name] if len(entry.tokens) > 1 else []
            fits = [t for t in both if t.ids.shape == (lengths.batch, lengths.keys)]
            return queries, fits[0] if fits else self._history.encoded(running)
        return queries, self._history.keys(running.site, queries, inputs)


_TOKENS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def _hidden_in(running: Running) -> Tensor | None:
    """The hidden state ``(B, N, width)`` that a layer was given."""
    given = running.kwargs.get("hidden_states", running.args[0] if running.args else None)
    return _hidden(given)


def _first_tensor(output: Any) -> Tensor | None:
    """The hidden state that a layer or a model gave back, by itself or as the first of several."""
    several = isinstance(output, tuple | list | Mapping) and len(output) > 0
    return _hidden(
        next(iter(output.values())) if isinstance(output, Mapping) and several else output[0] if several else output
    )


def _hidden(x: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3 else None  # noqa: PLR2004


class _History:
    """Which tokens the keys of a call are that come from a cache, or from an encoder that ran before.

    The numbers themselves say it: the keys of a forward that goes on with an earlier one begin with that one's, row by
    row, also where beam search has put the rows in another order; and a decoder is given the encoder's very output.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[Tensor, Tokens]] = {}  # by kind of site: its first keys in the forward before
        self._now: dict[str, Tokens | None] = {}
        self._encoded: tuple[Tensor, Tokens] | None = None

    def begin(self) -> None:
        """A forward begins."""
        self._now.clear()

    def end(self, tokens: list[Tokens], output: Any) -> None:
        """A forward of these tokens ended: perhaps that of an encoder."""
        state = _first_tensor(output)
        if [t.name for t in tokens] == ["input_ids"] and state is not None and tokens[0].ids.shape == state.shape[:2]:
            self._encoded = state.detach(), tokens[0]

    def encoded(self, running: Running) -> Tokens | None:
        """The tokens whose encoding a cross-attention call looks at."""
        given = running.arguments()
        if self._encoded is not None:
            state, tokens = self._encoded
            for name in OTHER_SEQUENCE:
                other = given.get(name)
                if isinstance(other, Tensor) and other.shape == state.shape and torch.equal(other, state):
                    return tokens
        return None

    def keys(self, site: str, queries: Tokens | None, inputs: Inputs) -> Tokens | None:
        """The tokens that are the keys of a self-attention call."""
        if queries is None or inputs.pages is not None:
            return None
        kind, keys = _kind(site), inputs.lengths.keys
        if kind not in self._now:
            found = queries if keys == len(queries) else self._grown(kind, queries, inputs)
            self._now[kind] = found
            if found is not None:
                self._last[kind] = inputs.key.detach(), found
        found = self._now[kind]
        if keys == len(queries):
            return queries
        return found if found is not None and len(found) == keys else None

    def _grown(self, kind: str, queries: Tokens, inputs: Inputs) -> Tokens | None:
        if kind not in self._last:
            return None
        before, tokens = self._last[kind]
        past = before.shape[2]
        if past + len(queries) != inputs.lengths.keys:
            return None
        rows = [_row_of(row, before) for row in inputs.key[:, :, :past]]
        if None in rows:
            return None
        return tokens.then(torch.tensor(rows, device="cpu"), queries)


def _kind(path: str) -> str:
    """A path without its numbers: the same for all layers."""
    return re.sub(r"\d+", "*", path)


def _row_of(keys: Tensor, before: Tensor) -> int | None:
    """Which row of earlier keys these are."""
    if keys.shape != before.shape[1:] or keys.dtype != before.dtype or keys.device != before.device:
        return None
    return next((i for i, row in enumerate(before) if torch.equal(keys, row)), None)


# ---------------------------------------------------------------------------------------- an entry


class _Seen:
    """One call, cut down to the heads that are kept."""

    def __init__(self, call: Call, problem: Problem, inputs: Inputs, keep: str, heads: list[int] | None) -> None:
        self.call = call
        self.heads = list(range(call.lengths.heads)) if heads is None else heads
        self.precision = str(inputs.query.dtype).removeprefix("torch.")
        self.compute = str(inputs.compute).removeprefix("torch.")
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


class _Entry:
    """An entry while its forward runs."""

    def __init__(
        self, opened: Open, index: int, forward: str, sources: Sequence[str] | None, texts: Sequence[str] | None
    ) -> None:
        self.open, self.index, self.forward = opened, index, forward
        self.tokens: list[Tokens] = []  # that the forward was given
        self.sites: list[metadata.Site] = []
        self.counted: Counter[str] = Counter()
        self.layers: dict[str, tuple[int, int] | None] = {}  # where each layer's hidden state is
        self._stacks: list[metadata.Stack] = []
        self._sequences: list[Tokens] = []
        self._masks: list[Intervals | Dense] = []
        self._biases: list[Bias] = []
        self._hidden: list[metadata.Hidden] = []
        self._last_out: dict[int, Tensor] = {}
        said = zip(sources or (), texts or (), strict=True) if sources else ()
        self._sources = [metadata.Source(n, hashlib.sha256(t.encode()).hexdigest()) for n, t in said]

    # ------------------------------------------------------------------------------------ calls

    def add(self, seen: _Seen, sides: tuple[Tokens | None, Tokens | None], hidden: tuple[int, int] | None) -> None:
        """Keep a call."""
        site, times = seen.call.site, self.counted[seen.call.site]
        name = f"{site}#{times}" if times else site
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

    def _place(self, name: str, seen: _Seen) -> tuple[int, int]:
        """The stack and row of a call; a stack of its own if none has its shape yet."""
        form = _form(seen)
        for i, stack in enumerate(self._stacks):
            if replace(stack, sites=()) == form:
                self._stacks[i] = replace(stack, sites=(*stack.sites, name))
                return i, len(stack.sites)
        self._stacks.append(replace(form, sites=(name,)))
        return len(self._stacks) - 1, 0

    def _add_statistic(self, stack: int, statistic: Statistic, seen: _Seen) -> None:
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

    # ------------------------------------------------------------------------------------ hidden states

    def layer_in(self, name: str, state: Tensor | None) -> None:
        """A layer begins, with this hidden state."""
        self.layers[name] = None
        if state is None:
            return
        number = self._hidden_of(name, state)
        self.layers[name] = number, len(self._hidden[number].layers)
        form = self._hidden[number]
        self._hidden[number] = replace(form, layers=(*form.layers, name))
        self.open.append(f"hidden/{number}/states", state)

    def _hidden_of(self, name: str, state: Tensor) -> int:
        """Where hidden states of this kind of layer and shape are."""
        precision = str(state.dtype).removeprefix("torch.")
        for i, form in enumerate(self._hidden):
            alike = _kind(form.layers[0]) == _kind(name)
            if alike and (form.batch, form.length, form.width) == state.shape and form.precision == precision:
                return i
        self._hidden.append(metadata.Hidden((), state.shape[0], state.shape[1], state.shape[2], precision))
        return len(self._hidden) - 1

    def layer_out(self, name: str, state: Tensor | None) -> None:
        """A layer ended, with this hidden state."""
        places = [place for layer, place in self.layers.items() if layer.split("#")[0] == name and place is not None]
        if state is not None and places:
            self._last_out[places[-1][0]] = state

    def hidden_of(self, block: str) -> tuple[int, int] | None:
        """Where the hidden state is that entered the layer that runs."""
        places = [place for layer, place in self.layers.items() if layer.split("#")[0] == block]
        return places[-1] if places else None

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
        for i, form in enumerate(self._hidden):
            last = self._last_out.get(i)
            shape = (form.batch, form.length, form.width)
            fits = last is not None and tuple(last.shape) == shape
            self.open.append(f"hidden/{i}/states", last if fits and last is not None else torch.full(shape, torch.nan))
        self.open.finish(
            EntryMetadata(
                index=self.index,
                forward=self.forward,
                sites=tuple(self.sites),
                stacks=tuple(self._stacks),
                sequences=tuple(tokens.form() for tokens in self._sequences),
                masks=tuple(_mask_form(mask) for mask in self._masks),
                biases=tuple(_bias_form(bias) for bias in self._biases),
                hidden=tuple(self._hidden),
                sources=tuple(self._sources),
            )
        )


def _form(seen: _Seen) -> metadata.Stack:
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
    precision = str(bias.values.dtype).removeprefix("torch.")
    return BiasForm(bias.kind, tuple(bias.numbers()), tuple(bias.values.shape), precision)


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
