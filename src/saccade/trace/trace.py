"""`Trace`: what a model attended to, read back; nothing is read before it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast, overload

from torch import Tensor, nn

from saccade.errors import MissingExtraError, NotRecordedError
from saccade.masks import Dense, Intervals, Mask
from saccade.pattern import Pattern
from saccade.scores import Bias, decode_bias
from saccade.statistics import Map, Received, Report, TopKeys, TopKeysResult
from saccade.trace.metadata import EntryMetadata, Stack, TraceMetadata
from saccade.trace.metadata import Site as SiteMetadata
from saccade.trace.reading import StoredEntry, StoredTrace, open_files
from saccade.trace.storage import Arrays, Index, as_stored
from saccade.trace.tokens import Tokens


class Library(Protocol):
    """Where a trace's entries are."""

    metadata: TraceMetadata
    finished: list[Arrays]


class Trace:
    """What a model attended to, in any number of forwards.

    Indexing gives an entry, ``trace[0]``, a site of it, ``trace[0, "encoder.layer.3.attention.self"]`` (or its number
    among the entry's sites), or heads of a site, ``trace[0, 3, 5]``, ``trace[0, 3, [1, 2]]``.

    Args:
        library: where the entries are; `open_trace` and `record` make traces.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    @property
    def metadata(self) -> TraceMetadata:
        """What the trace says of itself: the model, what was kept."""
        return self._library.metadata

    @property
    def entries(self) -> Sequence[Entry]:
        """The whole entries, one for each forward of the model."""
        return [Entry(arrays) for arrays in self._library.finished]

    @property
    def complete(self) -> bool:
        """Whether its recorder closed it. If not, it is being recorded, or the recorder was killed."""
        return self._library.metadata.complete

    @property
    def unfinished(self) -> int | None:
        """The number of an entry that was begun and not finished, none of which can be read; None if there is none."""
        return getattr(self._library, "unfinished", None)

    @property
    def model(self) -> nn.Module | None:
        """The model, of a recording that is in memory and whose model still is; else None."""
        return None

    def given(self, entry: int) -> dict[str, Any] | None:
        """What the model was called with in an entry, by name, where `model` is known; else None."""
        del entry
        return None

    @property
    def sites(self) -> list[str]:
        """The attention sites of all entries, each once, in the order of their first call."""
        return list(dict.fromkeys(site for entry in self.entries for site in entry.sites))

    def __len__(self) -> int:
        return len(self._library.finished)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @overload
    def __getitem__(self, key: int) -> Entry: ...
    @overload
    def __getitem__(self, key: tuple[int, str | int] | tuple[int, str | int, int | slice | list[int]]) -> Site: ...

    def __getitem__(self, key: Any) -> Entry | Site:
        if not isinstance(key, tuple):
            return self._entry(key)
        if len(key) not in (2, 3):
            raise IndexError(f"{len(key)} indices; expected entry, site and perhaps heads")
        site = self._entry(key[0])[key[1]]
        return site if len(key) == 2 else site.heads(key[2])  # noqa: PLR2004

    def _entry(self, number: Any) -> Entry:
        count = len(self)
        if not isinstance(number, int) or isinstance(number, bool) or not -count <= number < count:
            unfinished = f"; entry {self.unfinished} was not finished" if self.unfinished is not None else ""
            raise IndexError(f"there is no entry {number!r}: the trace has {count} entries, from 0{unfinished}")
        return Entry(self._library.finished[number])

    def __repr__(self) -> str:
        state = "" if self.complete else ", not closed"
        about = self.metadata
        return f"Trace({len(self)} entries of {about.model}, {about.keep}{state})"

    def to_dataset(self, entry: int = 0, stack: int = 0) -> Any:
        """An entry's calls of one shape as an `xarray.Dataset`, lazy where the trace is on disk.

        Args:
            entry: which entry.
            stack: which of its stacks: calls of one shape, see `Entry.stacks`.

        Raises:
            MissingExtraError: xarray is not installed.
            IndexError: there is no such entry or stack.
        """
        return self[entry].to_dataset(stack)


class Entry:
    """One forward of the model.

    Args:
        arrays: where it is kept.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    @property
    def metadata(self) -> EntryMetadata:
        """What the entry says of itself."""
        return self._arrays.metadata

    @property
    def index(self) -> int:
        """Its number in the trace."""
        return self.metadata.index

    @property
    def sites(self) -> list[str]:
        """The attention calls in order, by the `named_modules` path of who made them; ``path#1`` for a second call."""
        return [site.name for site in self.metadata.sites]

    @property
    def stacks(self) -> Sequence[Stack]:
        """The calls by shape."""
        return self.metadata.stacks

    @property
    def sources(self) -> list[str]:
        """What the texts of the batch are called, where that was said."""
        return [source.name for source in self.metadata.sources]

    @cached_property
    def tokens(self) -> Tokens | None:
        """The tokens of the first site whose queries are known; None if none are."""
        known = [site.queries for site in self.metadata.sites if site.queries is not None]
        return self.sequence(known[0]) if known else None

    def sequence(self, number: int) -> Tokens:
        """One of the sequences of tokens that the entry's sites name."""
        return Tokens.read(self._arrays, number)

    def __getitem__(self, site: str | int) -> Site:
        """A site by its name, or by its number among the entry's.

        Raises:
            KeyError: there is no site of that name.
            IndexError: there is no site of that number.
        """
        sites = self.metadata.sites
        if isinstance(site, int) and not isinstance(site, bool):
            if not -len(sites) <= site < len(sites):
                raise IndexError(f"entry {self.index} has {len(sites)} sites, from 0; there is no {site}")
            return Site(self._arrays, sites[site])
        found = next((known for known in sites if known.name == site), None)
        if found is None:
            raise KeyError(f"entry {self.index} has no site {site!r}; its sites are {self.sites}")
        return Site(self._arrays, found)

    def __iter__(self) -> Iterator[Site]:
        return (Site(self._arrays, site) for site in self.metadata.sites)

    def __len__(self) -> int:
        return len(self.metadata.sites)

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{len(s.sites)} x (B {s.batch}, H {s.heads}, Nq {s.queries:,}, Nk {s.keys:,})" for s in self.stacks
        )
        return f"Entry({self.index}, {shapes})"

    def stacked(
        self, name: str, *, stack: int = 0, layers: int | slice | list[int] | None = None, heads: Any = None
    ) -> Tensor:
        """A statistic of many layers at once, ``(L, B, H, ...)``.

        Args:
            name: of the array: "entropy", "top_keys", "top_weights", "received", "queries", "keys", ...
            stack: which calls, see `stacks`.
            layers: rows of the stack; None for all.
            heads: positions among the kept heads; None for all.

        Raises:
            NotRecordedError: it was not kept.
            IndexError: there is no such stack.
        """
        self._check_stack(stack)
        path = f"stacks/{stack}/{name}"
        arrays = self.metadata.arrays
        if path not in arrays or not arrays[path].rows:
            have = [p.rpartition("/")[2] for p, a in arrays.items() if p.startswith(f"stacks/{stack}/") and a.rows]
            raise NotRecordedError(f"{name} was not kept; there are {', '.join(have)}")
        index: Index = (slice(None) if layers is None else layers,)
        if heads is not None:
            index += (slice(None), heads)
        return cast("Tensor", self._arrays.read(path, index))

    def _check_stack(self, stack: int) -> None:
        if not 0 <= stack < len(self.stacks):
            raise IndexError(f"entry {self.index} has {len(self.stacks)} stacks, from 0; there is no {stack}")

    def to_dataset(self, stack: int = 0) -> Any:
        """See `Trace.to_dataset`."""
        try:
            import xarray
        except ImportError:
            raise MissingExtraError("xarray", "xarray") from None
        self._check_stack(stack)
        if isinstance(self._arrays, StoredEntry):
            group = f"{self._arrays.path}/stacks/{stack}"
            return xarray.open_zarr(self._arrays.files.name, group=group, consolidated=False, chunks=None)
        group = f"stacks/{stack}/"
        variables = {
            path.removeprefix(group): (array.dims, as_stored(self._arrays.read(path)))
            for path, array in self.metadata.arrays.items()
            if path.startswith(group)
        }
        return xarray.Dataset(variables)


class Site:
    """One attention call of an entry.

    Args:
        arrays: where the entry is kept.
        site: which call.
        heads: positions among the kept heads; None for all.
    """

    def __init__(self, arrays: Arrays, site: SiteMetadata, heads: list[int] | None = None) -> None:
        self._arrays, self._site, self._heads = arrays, site, heads
        self._stack = arrays.metadata.stacks[site.stack]

    @property
    def name(self) -> str:
        """The `named_modules` path of the module that made the call."""
        return self._site.name

    @property
    def head_numbers(self) -> list[int]:
        """Which of the model's heads these are."""
        numbers = list(self._stack.head_numbers)
        return numbers if self._heads is None else [numbers[i] for i in self._heads]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, Nq, Nk) of the pattern."""
        return self._stack.batch, len(self.head_numbers), self._stack.queries, self._stack.keys

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {size:,}" for name, size in zip(("B", "H", "Nq", "Nk"), self.shape, strict=True))
        return f"Site({self.name!r}, {sizes})"

    def heads(self, heads: int | slice | list[int]) -> Site:
        """Only these of the model's heads, by number; what is read of them is read alone.

        Raises:
            IndexError: a head was not kept.
        """
        have = self.head_numbers
        if isinstance(heads, slice):
            wanted = list(range(max(have, default=-1) + 1)[heads])
            wanted = [head for head in wanted if head in have]
        else:
            wanted = [heads] if isinstance(heads, int) else list(heads)
        missing = [head for head in wanted if head not in have]
        if missing:
            raise IndexError(f"{self.name}: head {missing[0]} was not kept; there are {have}")
        positions = list(self._stack.head_numbers)
        return Site(self._arrays, self._site, [positions.index(head) for head in wanted])

    def _read(self, name: str, heads: list[int] | None) -> Any:
        """A row of the stack's array of that name; of some heads, its second dimension."""
        index: Index = (self._site.row,)
        if heads is not None:
            index += (slice(None), heads)
        return self._arrays.read(f"stacks/{self._site.stack}/{name}", index)

    # ------------------------------------------------------------------------------------ what was asked

    @cached_property
    def statistics(self) -> Report:
        """The statistics that were asked, as `saccade.attention` reports them."""
        found: dict[str, Tensor | TopKeysResult] = {}
        for statistic in self._stack.asked():
            whole = isinstance(statistic, Map | Received) and statistic.over_heads
            heads = None if whole else self._heads
            if isinstance(statistic, Map):
                found["map"] = self.map_level(0)
            elif isinstance(statistic, TopKeys):
                found["top_keys"] = TopKeysResult(
                    self._read("top_keys", heads).long(), self._read("top_weights", heads)
                )
            else:
                found[statistic.field] = self._read(statistic.field, heads)
        return Report(found)

    def map_level(self, level: int) -> Tensor:
        """A level of the map's pyramid, ``(B, H, cells of queries, cells of keys)``; 0 is the finest.

        Raises:
            NotRecordedError: there is no map, or no such level.
        """
        import torch

        asked = self._stack.map
        if asked is None or f"maps/{self._site.stack}/0/s{level}/map" not in self._arrays.metadata.arrays:
            raise NotRecordedError(f"{self.name}: there is no map of level {level}")
        heads = None if asked.over_heads else self._heads
        index: Index = (self._site.row,) if heads is None else (self._site.row, heads)
        levels = [
            cast("Tensor", self._arrays.read(f"maps/{self._site.stack}/{b}/s{level}/map", index))
            for b in range(self._stack.batch)
        ]
        stacked = torch.stack(levels)
        return stacked[:, 0] if asked.over_heads else stacked

    # ------------------------------------------------------------------------------------ what was kept

    @cached_property
    def pattern(self) -> Pattern:
        """The pattern, of which anything can be asked, exactly.

        Raises:
            NotRecordedError: queries and keys were not kept.
        """
        entry = self._arrays.metadata
        pattern = Pattern(
            self.query,
            self.key,
            mask=self._mask(entry),
            scale=self._site.scale,
            softcap=self._site.softcap,
            bias=self._bias(entry),
            sinks=None if self._stack.sink_batch is None else self._read("sinks", self._heads),
        )
        kept = any(asked.field == "lse" for asked in self._stack.statistics)
        return pattern.with_lse(self._read("lse", self._heads)) if kept else pattern

    @property
    def query(self) -> Tensor:
        """The queries, ``(B, H, Nq, D)``, as the scores were made of them."""
        self._need("queries")
        return cast("Tensor", self._read("queries", self._heads))

    @property
    def key(self) -> Tensor:
        """The keys, ``(B, Hk, Nk, D)``."""
        self._need("keys")
        return cast("Tensor", self._read_keys("keys"))

    @property
    def value(self) -> Tensor:
        """The values, ``(B, Hk, Nk, Dv)``."""
        self._need("values")
        return cast("Tensor", self._read_keys("values"))

    def _need(self, name: str) -> None:
        if name not in self._stack.kept:
            level = "qkv" if name == "values" else "qk"
            raise NotRecordedError(f"{self.name}: {name} were not kept: record with keep={level!r}")

    def _read_keys(self, name: str) -> Any:
        """Keys or values; of some heads, those that each of them looks at."""
        if self._heads is None:
            return self._read(name, None)
        group = self._stack.heads // max(self._stack.key_heads, 1)
        return self._read(name, [head // group for head in self._heads])

    def _mask(self, entry: EntryMetadata) -> Mask | None:
        if self._site.mask is None:
            return None
        form, path = entry.masks[self._site.mask], f"masks/{self._site.mask}"
        index: Index = () if self._heads is None or form.heads == 1 else (slice(None), self._heads)

        def part(name: str) -> Tensor:
            return cast("Tensor", self._arrays.read(f"{path}/{name}", index))

        if form.kind == "dense":
            return Dense(part("visible"))
        return Intervals(part("starts"), part("stops"), form.keys)

    def _bias(self, entry: EntryMetadata) -> Bias | None:
        if self._site.bias is None:
            return None
        form = entry.biases[self._site.bias]
        index: Index = () if self._heads is None or form.shape[1] == 1 else (slice(None), self._heads)
        values = cast("Tensor", self._arrays.read(f"biases/{self._site.bias}/values", index))
        return decode_bias(form.kind, values, list(form.numbers))

    @property
    def hidden(self) -> Tensor:
        """The hidden state that entered the site's layer, ``(B, N, width)``.

        Raises:
            NotRecordedError: it was not kept.
        """
        return self._state(0)

    @property
    def hidden_after(self) -> Tensor:
        """The hidden state that entered the next recorded layer or left the last one; NaN if nobody saw it leave."""
        return self._state(1)

    def _state(self, step: int) -> Tensor:
        if self._site.hidden is None or self._site.hidden_row is None:
            raise NotRecordedError(f"{self.name}: no hidden state was kept: record with hidden=True")
        row = self._site.hidden_row + step
        return cast("Tensor", self._arrays.read(f"hidden/{self._site.hidden}/states", (row,)))

    # ------------------------------------------------------------------------------------ whose

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens that look.

        Raises:
            NotRecordedError: they are not known.
        """
        return self._tokens(self._site.queries)

    @cached_property
    def key_tokens(self) -> Tokens:
        """The tokens that are looked at.

        Raises:
            NotRecordedError: they are not known.
        """
        return self._tokens(self._site.keys)

    @property
    def known_tokens(self) -> Tokens | None:
        """`tokens`, or None where they are not known."""
        return None if self._site.queries is None else self.tokens

    @property
    def known_key_tokens(self) -> Tokens | None:
        """`key_tokens`, or None where they are not known."""
        return None if self._site.keys is None else self.key_tokens

    @property
    def looks_at_itself(self) -> bool:
        """Whether queries and keys are the same tokens, all of them: as many, and of one text where that is known."""
        return self._site.queries == self._site.keys and self._stack.queries == self._stack.keys

    def _tokens(self, number: int | None) -> Tokens:
        if number is None:
            raise NotRecordedError(f"{self.name}: its tokens are not known: the model was not given them as ids")
        return Tokens.read(self._arrays, number)


def open_trace(path: str | Path) -> Trace:
    """A trace that `record` wrote, to read. Any number of processes may, also while it is being written.

    Args:
        path: a folder, or a URL that fsspec reads (``http://...``).

    Raises:
        NotATraceError: there is no trace.
        TraceVersionError: it is of a version that this Saccade does not know.
        DamagedTraceError, TraceFormatError: it is not as it was written, or against the specification. What is only
            read later may raise these as well.
        MissingExtraError: what unpacks traces, or reads that URL, is not installed.
    """
    return Trace(StoredTrace(open_files(path)))
