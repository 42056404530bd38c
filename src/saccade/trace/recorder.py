"""The listener that turns what a model does into entries."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saccade.adapters.observation import FAILED, Call, Running
from saccade.backends import Inputs
from saccade.errors import ArgumentError
from saccade.masks import Lengths
from saccade.scores import Problem
from saccade.statistics import (
    Statistic,
)
from saccade.trace.blocks import Blocks
from saccade.trace.choice import Choice
from saccade.trace.entry import OpenEntry, Seen
from saccade.trace.history import History
from saccade.trace.storage import MemorySink, Sink
from saccade.trace.tokens import Texts, Tokens, read_texts
from saccade.trace.trace import Trace


class Recording(Trace):
    """A trace while it is recorded. Of one in memory, its model and what that was called with are known."""

    def __init__(self, sink: Any, model: nn.Module) -> None:
        super().__init__(sink)
        self.coming = Coming()
        self._model = weakref.ref(model)
        self._given: dict[int, dict[str, Any]] = {}

    @property
    def model(self) -> nn.Module | None:
        """See `Trace.model`."""
        return self._model()

    def given(self, entry: int) -> dict[str, Any] | None:
        """See `Trace.given`."""
        return self._given.get(entry)

    def remember(self, entry: int, arguments: dict[str, Any]) -> None:
        """Keep what an entry's forward was called with. Its tensors are the caller's, not copies."""
        if isinstance(self._library, MemorySink):
            self._given[entry] = arguments

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


class Recorder:
    """The listener of a recording."""

    def __init__(self, model: nn.Module, sink: Sink, choice: Choice, tokenizer: Any) -> None:
        self.sink, self.choice, self.blocks = sink, choice, Blocks(model)
        self.encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self.recording = Recording(sink, model)
        self.tokenizer = tokenizer
        self.calling: set[int] = set()  # the forwards that made a call
        self.seen: dict[str, set[int]] = {}  # every site, and its layers' numbers
        self._history = History()
        self._entry: OpenEntry | None = None

    def entered(self, running: Running, forward: int) -> None:
        """See `Listener`."""
        del forward
        said = self.recording.coming
        if not running.depth:
            self.recording.coming = Coming(on_call=said.on_call)
            index = len(self.sink.finished)
            self._entry = OpenEntry(self.sink.begin(index), index, running.site, said.sources, said.texts)
        if self._entry is not None and self.choice.hidden:
            self._entry.hidden.entered(running)
        if self._entry is not None and not running.depth:
            self._entry.tokens = list(self._read(running, said.texts))
            self.recording.remember(self._entry.index, running.arguments())
            self._history.begin()

    def left(self, running: Running, forward: int, output: Any) -> None:
        """See `Listener`."""
        del forward
        entry = self._entry
        if entry is None:
            return
        if self.choice.hidden:
            entry.hidden.left(output)
        if running.depth:
            return
        if output is FAILED:
            self.drop()
        else:
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
            seen = Seen(call, problem, inputs, self.choice.keep, heads)
            sides = self._sides(entry, running, call, inputs)
            hidden = entry.hidden.of_layer(self.blocks.of(running.site)[0]) if self.choice.hidden else None
            entry.add(seen, sides, hidden)
        entry.counted[running.site] += 1
        if self.recording.coming.on_call is not None:
            self.recording.coming.on_call(call)

    def drop(self) -> None:
        """Forget an entry that was not finished."""
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.open.discard()

    def _finish(self, entry: OpenEntry) -> None:
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
        self, entry: OpenEntry, running: Running, call: Call, inputs: Inputs
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
