"""Flow: how much of a token in a late layer came from which tokens of the text, through all layers in between.

Each method says for one layer how much of query i comes from key j: a matrix C whose rows sum to 1. Through several
layers it is their product (Abnar & Zuidema 2020, arXiv 2005.00928). For chosen tokens only some rows of the product
are asked, so it is taken from the top down, ``r <- r C``: no matrix N x N is kept, and for rollout none is written out.

- `rollout`: C = (I + A) / 2, A the mean of the heads' patterns.
- `rollout` by values: C = (I + B) / 2, B ~ sum over h of A[h, i, j] * ||v[h, j] W[h]||: weights times the lengths of
  what they weigh (Kobayashi et al. 2020, arXiv 2004.10102), after the norm that ends the attention block, if one does.
- `alti`: C ~ max(0, ||y_i|| - ||y_i - T_i(x_j)||), lengths being sums of absolute values, where T_i(x_j) is the vector
  that j brings to i through the attention block, residual and norm included, and y_i what the block gives (Ferrando et
  al. 2022, arXiv 2203.04212, section 3).
- `value_zeroing`: C ~ the cosine distance between what leaves the layer for i and what would with the value of j set
  to zero (Mohebbi et al. 2023, arXiv 2301.12971, section 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.analysis.contributions import basis_of, lengths_of, linear_map
from saccade.analysis.following import ATTENTION, COMPUTED, Following, Parts
from saccade.analysis.places import Place, find_token, labels
from saccade.analysis.replay import RESIDUAL, Layer, OneLayer, Replay, checked_trace
from saccade.analysis.result import Result
from saccade.errors import ArgumentError, UnsupportedModelError
from saccade.trace.blocks import kind_of_path, path_of
from saccade.trace.trace import Site, Trace
from saccade.views import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TOKENS = 2048  # whose flow is computed if none are chosen
MOST_NUMBERS = 1 << 25  # that a chunk of tokens may take: 128 MiB
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Flow(Result):
    """How much of each chosen token came from which.

    Attributes:
        share: ``(L, Q, N)``: of query i as it leaves the last layer, the share that comes from token j as it enters
            layer l. Layer 0 is where the text comes in.
        direct: ``(L, Q, N)``: the same within each layer alone, C[i, j].
        method: its name.
        queries: labels of the chosen tokens.
        keys: labels of all tokens.
        sites: the attention calls, by layer.
    """

    share: Float[Tensor, "layer query key"]
    direct: Float[Tensor, "layer query key"]
    method: str
    queries: list[str]
    keys: list[str]
    sites: list[str]

    SIZE = (8.0, 4.5)

    def coordinates(self) -> dict[str, Any]:
        """Tokens by their labels."""
        return {"query": self.queries, "key": self.keys}

    def about(self) -> dict[str, Any]:
        """The method, and the attention calls."""
        return {"method": self.method, "sites": self.sites}

    def draw(self, axis: Axes) -> None:
        """Where each chosen token came from, as the text came in; of one token, through all layers."""
        one = len(self.queries) == 1
        shares = self.share[:, 0] if one else self.share[0]
        strongest = shares.amax(0).topk(min(32, len(self.keys))).indices.sort().values
        image = axis.imshow(shares[:, strongest].numpy(), cmap=drawing.pale(), vmin=0, aspect="auto")
        rows = [str(layer) for layer in range(len(shares))] if one else self.queries
        drawing.name_cells(axis, [self.keys[i] for i in strongest.tolist()], rows)
        axis.set_xlabel("from", fontsize=8)
        axis.set_ylabel("entering layer" if one else "token", fontsize=8)
        what = f"“{drawing.short(self.queries[0])}”" if one else "the tokens"
        axis.set_title(f"Where {what} came from ({self.method})", fontsize=9)
        drawing.colour_bar(axis, image, "share")


# ---------------------------------------------------------------------------------------- the methods


def rollout(
    trace: Trace,
    tokens: Sequence[Place] | None = None,
    *,
    by: str = "attention",
    sites: Sequence[str | int] | None = None,
    model: nn.Module | None = None,
    entry: int = 0,
    batch: int = 0,
    inputs: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Flow:
    """Attention rollout (Abnar & Zuidema 2020), O(N Q) memory and a product with each layer's pattern.

    Args:
        trace: recorded with ``keep="qk"``; by values, with ``keep="qkv"`` and hidden states.
        tokens: the queries, positions or words; None for all, of a text that is not too long.
        by: "attention", or "values" for weights times the lengths of what they weigh.
        sites: the attention calls from the first layer to the last, by name or number; None for all, if they are of one
            kind: an encoder's, or a decoder's.
        model: the recorded model, by values; not needed while the recording and its model are in memory.
        entry: which forward.
        batch: which element of the batch.
        inputs: what the model was called with, by values, where it does not read token ids.
        on_progress: is told how many layers of how many are done.

    Raises:
        ArgumentError: there is no such token, or the attention calls are of several kinds.
        NotRecordedError: something was not kept.
        UnsupportedModelError: by values, a layer cannot be taken apart.
    """
    if by not in ("attention", "values"):
        raise ArgumentError(f"by = {by!r}: expected 'attention' or 'values'")
    chosen = _calls(trace, entry, sites)
    if by == "attention":
        return _flow(_ByAttention(chosen, batch), f"rollout by {by}", chosen, tokens, batch, on_progress)
    replay = Replay(trace, model, entry=entry, batch=batch, inputs=inputs)
    return _flow(_ByValues(replay, chosen), f"rollout by {by}", chosen, tokens, batch, on_progress)


def alti(
    trace: Trace,
    tokens: Sequence[Place] | None = None,
    *,
    sites: Sequence[str | int] | None = None,
    model: nn.Module | None = None,
    entry: int = 0,
    batch: int = 0,
    inputs: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Flow:
    """ALTI (Ferrando et al. 2022): the layer-wise contributions of tokens, by how near each brings a query to its sum.

    O(N width) memory; O(N^2 H Dv width) time in each layer but the last.

    Args:
        trace: recorded with ``keep="qkv"`` and hidden states.
        tokens: as of `rollout`, like all that follow.
        sites: the attention calls.
        model: the recorded model.
        entry: which forward.
        batch: which element of the batch.
        inputs: what the model was called with.
        on_progress: is told how far it is.

    Raises:
        ArgumentError, NotRecordedError, UnsupportedModelError: as of `rollout`.
    """
    chosen = _calls(trace, entry, sites)
    replay = Replay(trace, model, entry=entry, batch=batch, inputs=inputs)
    return _flow(_ByDistance(replay, chosen), "ALTI", chosen, tokens, batch, on_progress)


def value_zeroing(
    trace: Trace,
    tokens: Sequence[Place] | None = None,
    *,
    sites: Sequence[str | int] | None = None,
    model: nn.Module | None = None,
    entry: int = 0,
    batch: int = 0,
    inputs: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Flow:
    """Value zeroing (Mohebbi et al. 2023): how far a token's output turns when one value is set to zero in its layer.

    O(N width) memory; N^2 tokens run through each layer but the last.

    Args:
        trace: recorded with ``keep="qkv"`` and hidden states.
        tokens: as of `rollout`, like all that follow.
        sites: the attention calls.
        model: the recorded model.
        entry: which forward.
        batch: which element of the batch.
        inputs: what the model was called with.
        on_progress: is told how far it is.

    Raises:
        ArgumentError, NotRecordedError, UnsupportedModelError: as of `rollout`.
    """
    chosen = _calls(trace, entry, sites)
    replay = Replay(trace, model, entry=entry, batch=batch, inputs=inputs)
    return _flow(_ByZeroing(replay, chosen), "value zeroing", chosen, tokens, batch, on_progress)


# ---------------------------------------------------------------------------------------- through the layers


class _Mixing(ABC):
    """What each layer mixes: the matrices C, of which only products with some rows are asked."""

    @abstractmethod
    def times(self, layer: int, rows: Tensor) -> Tensor:
        """``rows @ C``, ``(Q, N)``."""


def _flow(
    mixing: _Mixing,
    method: str,
    calls: list[Site],
    tokens: Sequence[Place] | None,
    batch: int,
    on_progress: Progress | None,
) -> Flow:
    length, known = calls[0].shape[2], calls[0].known_tokens
    places = _places(tokens, known, length, batch)
    start = _unit_rows(places, length)
    rows, shares, direct = start, [], []
    for layer in reversed(range(len(calls))):
        rows = mixing.times(layer, rows)
        shares.append(rows)
        direct.append(rows if layer == len(calls) - 1 else mixing.times(layer, start))
        if on_progress is not None:
            on_progress(len(calls) - layer, len(calls))
    keys = labels(known, length, batch)
    return Flow(
        share=torch.stack(shares[::-1]),
        direct=torch.stack(direct[::-1]),
        method=method,
        queries=[keys[i] for i in places],
        keys=keys,
        sites=[call.name for call in calls],
    )


def _unit_rows(places: list[int], length: int) -> Tensor:
    rows = torch.zeros(len(places), length)
    rows[range(len(places)), places] = 1
    return rows


def _places(tokens: Sequence[Place] | None, known: Any, length: int, batch: int) -> list[int]:
    if tokens is None:
        if length > MOST_TOKENS:
            raise ArgumentError(f"the text has {length:,} tokens: choose whose flow is wanted with tokens=")
        return list(range(length))
    listed = [tokens] if isinstance(tokens, int | str) else list(tokens)
    if not listed:
        raise ArgumentError("tokens is empty; expected at least one position or word")
    return [find_token(token, known, length, batch) for token in listed]


def _calls(trace: Trace, entry: int, sites: Sequence[str | int] | None) -> list[Site]:
    """The self-attention calls, from the first layer to the last."""
    found = checked_trace(trace)[entry]
    if sites is not None:
        calls = [found[site] for site in sites]
    else:
        calls = [call for call in found if call.looks_at_itself]
        kinds = sorted({kind_of_path(path_of(call.name)) for call in calls})
        if len(kinds) > 1:
            said = ", ".join(kinds)
            raise ArgumentError(f"entry {entry} has attention calls of several kinds ({said}): choose sites=")
    lengths = {call.shape[2:] for call in calls}
    if len(lengths) != 1 or len(set(next(iter(lengths)))) != 1:
        raise ArgumentError(f"expected self-attention calls of one length; (Nq, Nk) are {sorted(lengths)}")
    return calls


class _ByAttention(_Mixing):
    """C = (I + A) / 2; rows of A that do not sum to 1, because of sinks, are scaled with the identity's."""

    def __init__(self, calls: list[Site], batch: int) -> None:
        self.calls, self.batch = calls, batch

    def times(self, layer: int, rows: Tensor) -> Tensor:
        """See `_Mixing`."""
        pattern = self.calls[layer].pattern.element(self.batch).mean_heads()
        mass = (pattern @ torch.ones(pattern.shape[3], 1, dtype=pattern.dtype))[0, 0, :, 0]
        scaled = rows.to(mass) / (1 + mass)
        return scaled + (pattern.mT @ scaled.T)[0, 0].T


class _ByValues(_Mixing):
    """C = (I + B) / 2, B's rows being A[h] * lengths, summed over heads and scaled to 1.

    What follows the output projection scales all vectors of a query alike (a norm's deviation), so the lengths are
    taken with those of any one query.
    """

    def __init__(self, replay: Replay, calls: list[Site]) -> None:
        self.replay, self.calls = replay, calls
        self._lengths: dict[int, Tensor] = {}

    def times(self, layer: int, rows: Tensor) -> Tensor:
        """See `_Mixing`."""
        call = self.calls[layer]
        pattern = call.pattern.element(self.replay.batch)
        lengths = self._of(layer)
        mass = (pattern @ lengths[None, :, :, None])[0].sum(0)[:, 0]
        sees = mass > 0
        scaled = torch.where(sees, rows / mass.where(sees, torch.ones(())), 0)
        taken = (lengths[None, :, :, None] * (pattern.mT @ scaled.T))[0].sum(0).T
        return (rows + taken) / 2 + torch.where(sees, 0, rows) / 2  # a query that sees nothing stays what it is

    def _of(self, layer: int) -> Tensor:
        """``(H, N)``, the lengths of what heads bring."""
        if layer not in self._lengths:
            call = self.calls[layer]
            taken = _Blocks(self.replay, call, torch.tensor([0]))
            mapped = linear_map(taken.parts, call.name, call.shape[1])[:, :, 0]
            self._lengths[layer] = lengths_of(call.value[self.replay.batch].to(mapped), mapped)
        return self._lengths[layer]


class _ByRows(_Mixing):
    """C row by row, in chunks of queries."""

    def __init__(self, replay: Replay, calls: list[Site]) -> None:
        self.replay, self.calls = replay, calls

    @abstractmethod
    def rows(self, call: Site, tokens: Tensor) -> Tensor:
        """Rows of C, ``(T, N)``, before they are scaled to sum to 1."""

    @abstractmethod
    def numbers(self, call: Site) -> int:
        """How many numbers one row takes to compute."""

    def times(self, layer: int, rows: Tensor) -> Tensor:
        """See `_Mixing`."""
        call, made = self.calls[layer], torch.zeros_like(rows)
        needed = rows.any(0).nonzero()[:, 0]
        for chunk in needed.split(max(MOST_NUMBERS // self.numbers(call), 1)):
            mixed = self.rows(call, chunk).to(rows)
            total = mixed.sum(1, keepdim=True)
            made += rows[:, chunk] @ torch.where(total > 0, mixed / total, 0)
            silent = chunk[total[:, 0] == 0]
            made[:, silent] += rows[:, silent]  # what nothing was brought to stays what it is
        return made


class _ByDistance(_ByRows):
    """ALTI."""

    def numbers(self, call: Site) -> int:
        """See `_ByRows`."""
        heads, width = call.shape[1], call.hidden.shape[-1]
        return heads * (call.value.shape[3] * width + call.shape[3])

    def rows(self, call: Site, tokens: Tensor) -> Tensor:
        """See `_ByRows`."""
        block = _Blocks(self.replay, call, tokens)
        mapped = linear_map(block.parts, call.name, call.shape[1])
        weights, by_head = self.replay.weights(call.name).to(mapped), self.replay.values(call.name).to(mapped)
        made = []
        for i, token in enumerate(tokens.tolist()):
            weighted = (weights[:, i, :, None] * by_head).movedim(0, 1).flatten(1)  # (N, H Dv)
            brought = weighted @ mapped[:, :, i].flatten(0, 1)  # (N, width)
            brought[token] += block.parts[RESIDUAL][:, i].sum(0)
            whole = block.value[i]
            made.append((whole.abs().sum() - (whole - brought).abs().sum(-1)).clamp(min=0))
        return torch.stack(made)


class _Blocks(OneLayer):
    """What a layer's attention block gives to the MLP after it, for some tokens, with a basis of attention's output.

    Attributes:
        parts: of the block's output, ``(K, T, width)`` each.
        value: the block's output, ``(T, width)``.
    """

    def __init__(self, replay: Replay, call: Site, tokens: Tensor) -> None:
        super().__init__(replay.layer_of(call.name))
        self.site = call.name
        self.parts: Parts = {}
        self.value = torch.empty(0)
        self._given = torch.empty(0)
        replay.run(tokens, self, until=self.layer)

    def attention(self, layer: Layer, site: str, output: Tensor) -> Tensor:
        """See `Plan`."""
        if site != self.site:
            return super().attention(layer, site, output)
        self._given = output[:, :, 0].flatten(1)
        return basis_of(output)

    def left(self, layer: Layer, state: Tensor, following: Following) -> None:
        """See `Plan`."""
        block = following.attended
        parts = (following.parts(state) or {}) if block is None else block[1]
        if RESIDUAL not in parts:
            raise UnsupportedModelError(f"{layer.name}: what leaves it has no residual in it, which this method needs")
        tokens = len(self._given)
        self.parts = {name: part.reshape(len(part), tokens, -1) for name, part in parts.items() if name != COMPUTED}
        mapped = linear_map(self.parts, self.site, 1)[0]
        self.value = torch.einsum("tk,ktw->tw", self._given.to(mapped), mapped)
        for name, part in self.parts.items():
            if name != ATTENTION + self.site:
                self.value = self.value + part.sum(0)


class _ByZeroing(_ByRows):
    """Value zeroing."""

    def numbers(self, call: Site) -> int:
        """See `_ByRows`."""
        return call.shape[3] * (8 * call.hidden.shape[-1] + 2 * call.shape[1] * call.value.shape[3])

    def rows(self, call: Site, tokens: Tensor) -> Tensor:
        """See `_ByRows`."""
        return _Zeroed(self.replay, call, tokens).turned


class _Zeroed(OneLayer):
    """Some tokens, each run once with nothing and once with each value set to zero.

    Attributes:
        turned: cosine distances ``(T, N)``.
    """

    changes = True

    def __init__(self, replay: Replay, call: Site, tokens: Tensor) -> None:
        super().__init__(replay.layer_of(call.name))
        self.call = call
        self.count, keys = len(tokens), call.shape[3]
        weights = call.pattern.element(replay.batch)[0, :, tokens]
        by_head = replay.values(call.name).to(weights)
        # What each value gave, (T, N, H, Dv).
        self._gave = (weights[..., None] * by_head[:, None]).permute(1, 2, 0, 3)
        self.turned = torch.empty(0)
        replay.run(tokens.repeat_interleave(keys + 1), self, until=self.layer)

    def output(self, site: str, output: Tensor) -> Tensor:
        """See `Plan`."""
        if site != self.call.name:
            return output
        changed = output.clone()
        changed.unflatten(0, (self.count, -1))[:, 1:, :, 0] -= self._gave.to(output)
        return changed

    def left(self, layer: Layer, state: Tensor, following: Following) -> None:
        """See `Plan`."""
        del layer, following
        states = nn.functional.normalize(state[:, 0].unflatten(0, (self.count, -1)).double(), dim=-1)
        # The cosine distance of vectors of length 1, exact also where they are almost the same.
        self.turned = (states[:, :1] - states[:, 1:]).square().sum(-1) / 2
