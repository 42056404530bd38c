"""Whose keys those are that a forward did not make itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saccade.adapters.observation import OTHER_SEQUENCE, Running
from saccade.backends import Inputs
from saccade.trace.blocks import kind_of_path
from saccade.trace.hidden import state_returned
from saccade.trace.tokens import Tokens


class History:
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
        state = state_returned(output)
        if [t.name for t in tokens] == ["input_ids"] and state is not None and tokens[0].ids.shape == state.shape[:2]:
            self._encoded = state.detach().clone(), tokens[0]

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
        kind, keys = kind_of_path(site), inputs.lengths.keys
        if kind not in self._now:
            found = queries if keys == len(queries) else self._grown(kind, queries, inputs)
            self._now[kind] = found
            if found is not None:
                self._last[kind] = inputs.key.detach().clone(), found  # a cache may be written to in place
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


def _row_of(keys: Tensor, before: Tensor) -> int | None:
    """Which row of earlier keys these are."""
    if keys.shape != before.shape[1:] or keys.dtype != before.dtype or keys.device != before.device:
        return None
    return next((i for i, row in enumerate(before) if torch.equal(keys, row)), None)
