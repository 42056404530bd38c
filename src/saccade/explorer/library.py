"""The texts that can be looked at: those of a trace, and those that were read since.

A text is one element of one entry (one forward) of a trace, with that forward's attention calls as its sites. The texts
of the trace that was opened stay; of those read live the latest are kept.

A batch is padded at the end of its shorter texts. Where queries and keys were kept, that padding is no part of a text:
it is shorter, and its tokens stand where they stood. Stored maps cover the padding as well; where there are only maps,
padding stays in the text and counts as special.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from saccade.adapters.pretrained import Encoded
from saccade.errors import ArgumentError
from saccade.explorer import sites as sites_of
from saccade.trace import Trace
from saccade.trace.layout import itemsize
from saccade.trace.metadata import Site as SiteMetadata
from saccade.trace.tokens import Tokens
from saccade.trace.trace import Entry, Site
from saccade.views import units

MOST_TEXTS = 1000  # of a trace; each is described in the document
MOST_LIVE = 32
LIVE_BYTES = 4 << 30
LONGEST_TEXT = 20_000  # characters that the document holds
LONGEST_NAME = 60

SiteInfo = Mapping[str, Any]  # as the page's contract has it


@dataclass(frozen=True, eq=False)
class TokenList:
    """The tokens of one sequence of a text.

    Attributes:
        labels: what is printed for each.
        word: int64 ``(N,)``: the number of the word that it is in, ascending from 0 by ones.
        special: booleans ``(N,)``: it stands for begin, end, padding or the like.
    """

    labels: list[str]
    word: Tensor
    special: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def words(self) -> int:
        """How many words there are."""
        return int(self.word[-1]) + 1 if len(self.labels) else 0


class Text:
    """One element of one entry.

    Args:
        id: names it in questions.
        trace: where it is.
        entry: the forward that read it.
        batch: which element of the batch.
        title: what it is called; None for its source's name, or its first words.
    """

    def __init__(self, id: str, trace: Trace, entry: Entry, batch: int, title: str | None = None) -> None:  # noqa: A002
        self.id, self.trace, self.entry, self.batch = id, trace, entry, batch
        self._title = title

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """What the page is told of it: TextInfo."""
        text = self._text
        return {
            "id": self.id,
            "name": self._name(text),
            "text": text if text is not None and len(text) <= LONGEST_TEXT else None,
            "sites": [info for info, _ in self.sites],
        }

    @property
    def _text(self) -> str | None:
        tokens = self.entry.tokens
        return None if tokens is None or tokens.texts is None else tokens.texts.text[self.batch]

    def _name(self, text: str | None) -> str:
        if self._title is not None:
            return self._title
        if self.batch < len(self.entry.sources):
            return self.entry.sources[self.batch]
        words = " ".join(units.printable(text or "").split())
        if text and text.strip():
            return words if len(words) <= LONGEST_NAME else words[: LONGEST_NAME - 1] + "…"
        return f"entry {self.entry.index}" + (f", element {self.batch}" if self.batch else "")

    # ------------------------------------------------------------------------------------ sites

    @cached_property
    def sites(self) -> list[tuple[SiteInfo, Site]]:
        """Every attention call: what the page is told of it, and the call itself."""
        known = self.entry.metadata.sites
        names = sites_of.labels(self.entry.metadata)
        return [
            (self._describe(site, name), stored) for site, name, stored in zip(known, names, self.entry, strict=True)
        ]

    def site(self, number: int) -> tuple[SiteInfo, Site]:
        """One of the sites.

        Raises:
            ArgumentError: there is none of that number.
        """
        if number >= len(self.sites):
            raise ArgumentError(f"site = {number}: text {self.id} has {len(self.sites)} sites, from 0")
        return self.sites[number]

    def _describe(self, site: SiteMetadata, label: str) -> SiteInfo:
        stack = self.entry.metadata.stacks[site.stack]
        queries, keys = (
            length if number is None else self._lengths[number]
            for number, length in ((site.queries, stack.queries), (site.keys, stack.keys))
        )
        asked = stack.map
        whole = (queries, keys) == (stack.queries, stack.keys)
        return {
            "name": site.name,
            "label": label,
            "heads": list(stack.head_numbers),
            "queries": queries,
            "keys": keys,
            "query_tokens": None if site.queries is None else str(site.queries),
            "key_tokens": None if site.keys is None else str(site.keys),
            "exact": _is_exact(stack.kept),
            "map": None
            if asked is None or asked.over_heads or not whole
            else {"cells": list(asked.grid(stack.lengths)), "reduce": asked.reduce},
        }

    # ------------------------------------------------------------------------------------ tokens

    def tokens(self, sequence: str) -> TokenList:
        """The tokens of a sequence that sites name.

        Raises:
            ArgumentError: there is none of that name.
        """
        return self._token_lists(sequence)

    @cached_property
    def _token_lists(self) -> Callable[[str], TokenList]:
        return lru_cache(maxsize=2)(self._read_tokens)

    def _read_tokens(self, sequence: str) -> TokenList:
        count = len(self.entry.metadata.sequences)
        if sequence not in {str(i) for i in range(count)}:
            raise ArgumentError(f"sequence = {sequence[:100]!r}: text {self.id} has {count}, from 0")
        number = int(sequence)
        return token_list(self.entry.sequence(number), self.batch, self._lengths[number])

    @cached_property
    def _lengths(self) -> list[int]:
        """How many tokens each sequence has, without padding at its end where that can be left out."""
        forms = self.entry.metadata.sequences
        if not all(_is_exact(stack.kept) for stack in self.entry.stacks):
            return [form.length for form in forms]
        return [_visible_length(self.entry.sequence(i).visible[self.batch]) for i in range(len(forms))]


def _is_exact(kept: Sequence[str]) -> bool:
    return "queries" in kept and "keys" in kept


def _visible_length(visible: Tensor) -> int:
    """How many tokens there are if those that are no padding come first; else all."""
    count = int(visible.sum())
    return count if count and bool(visible[:count].all()) else len(visible)


def token_list(tokens: Tokens, batch: int, length: int) -> TokenList:
    """The first tokens of a batch element as labels and words."""
    hidden = ~tokens.visible[batch, :length]
    if tokens.texts is None:
        return TokenList([str(int(i)) for i in tokens.ids[batch, :length]], torch.arange(length, device="cpu"), hidden)
    texts = tokens.texts
    special = texts.special[batch, :length] | hidden
    spans = list(zip(texts.start[batch, :length].tolist(), texts.stop[batch, :length].tolist(), strict=True))
    encoded = Encoded({}, texts.token[batch][:length], special.tolist(), spans)
    text = texts.text[batch]
    words = units.words(text, encoded)
    word = torch.repeat_interleave(torch.tensor([unit.stop - unit.start for unit in words], device="cpu"))
    labels = [unit.label for unit in units.tokens(text, encoded)]
    for unit in words:
        for i in range(unit.start + 1, unit.stop):
            labels[i] = labels[i].removeprefix(units.CONTINUES) or "␣"
    return TokenList(labels, word, special)


# ---------------------------------------------------------------------------------------- all of them


class Library:
    """The texts by id.

    Args:
        trace: whose texts stay; None for none.
    """

    def __init__(self, trace: Trace | None) -> None:
        self._lock = Lock()
        self._opened = [] if trace is None else _texts_of(trace)
        self._texts: dict[str, Text] = {text.id: text for text in self._opened[:MOST_TEXTS]}
        self._live: OrderedDict[str, int] = OrderedDict()  # id: bytes, the oldest first
        self._passed: set[str] = set()
        self._next = len(self._texts)

    @property
    def texts(self) -> list[Text]:
        """All of them but those that were only come by, in the order in which they were read."""
        with self._lock:
            return [text for text in self._texts.values() if text.id not in self._passed]

    @property
    def more(self) -> int:
        """Texts of the trace that are left out, as it has too many."""
        return max(len(self._opened) - MOST_TEXTS, 0)

    def text(self, text: str) -> Text:
        """The text of that id.

        Raises:
            ArgumentError: there is none, or none any more.
        """
        with self._lock:
            found = self._texts.get(text)
        if found is None:
            gone = text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < self._next  # noqa: PLR2004
            said = f"only the {MOST_LIVE} texts read last are kept; read it again" if gone else "reload the page"
            raise ArgumentError(f"there is no text {text[:100]!r}: {said}")
        return found

    def add(self, trace: Trace, entry: int = 0, batch: int = 0, *, name: str | None = None) -> Text:
        """A text that was read live; the oldest of its kind may be dropped for it.

        Args:
            trace: a recording in memory.
            entry: which of its entries.
            batch: which element of the batch.
            name: what it is called; None for its source's name, or its first words.
        """
        read = trace[entry]
        size = _bytes(read)
        with self._lock:
            text = Text(str(self._next), trace, read, batch, name)
            self._next += 1
            self._texts[text.id] = text
            self._live[text.id] = size
            while len(self._live) > 1 and (len(self._live) > MOST_LIVE or sum(self._live.values()) > LIVE_BYTES):
                dropped, _ = self._live.popitem(last=False)
                del self._texts[dropped]
                self._passed.discard(dropped)
        return text

    def pass_by(self, text: str) -> None:
        """No longer list a text that was read live, as one only came by it; who looks at it is still answered."""
        with self._lock:
            if text in self._live:
                self._passed.add(text)


def _texts_of(trace: Trace) -> list[Text]:
    places = [(entry, b) for entry in trace for b in range(min(s.batch for s in entry.stacks))]
    return [Text(str(i), trace, entry, b) for i, (entry, b) in enumerate(places)]


def _bytes(entry: Entry) -> int:
    return sum(math.prod(array.shape) * itemsize(array.dtype) for array in entry.metadata.arrays.values())
