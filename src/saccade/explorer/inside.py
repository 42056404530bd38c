"""Question `inside`: one head, step by step, for one query and one key, in the numbers of the model.

Scores, bias, mask and weights are those of one row, computed in float64 from the queries and keys that were kept. What
its output becomes, only the model can say: the query's token is run through its layer once more (`analysis/replay.py`),
each head's output followed by itself (`analysis/following.py`).

What attention adds to the state is found where it is added: the first sum of its output with something that does not
come of it. `projected` and `added` are followed to there. In a layer that normalises after that sum, as BERT's, they
are what the output projection gives; in one that normalises before it as well, as Gemma 2's, that norm is within.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saccade.analysis.following import ATTENTION, BIAS, COMPUTED, CONSTANT, Following, Parts
from saccade.analysis.replay import RESIDUAL, TOLERANCE, Layer, OneLayer, Replay
from saccade.backends import Inputs
from saccade.backends.contract import scores
from saccade.errors import ArgumentError, NotRecordedError, UnsupportedModelError
from saccade.explorer.parameters import read
from saccade.explorer.parcel import Answer
from saccade.explorer.work import Asked, go_on
from saccade.masks import Dense, Intervals
from saccade.scores import Area, Problem
from saccade.trace import Site, Trace

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer
    from saccade.explorer.library import Text

MOST_KEYS = 64  # that are told one by one
NEIGHBOURS = 4  # tokens on each side of the query that are told in any case
MODEL_NEEDED = (
    "What the head's output becomes needs the model: open the trace together with the model that was recorded."
)

aten = torch.ops.aten
_SUMS = (aten.add, aten.add_, aten.sub, aten.sub_)


@dataclass(frozen=True)
class Place:
    """Parameters of the question; `head` is a place among the heads of the site that were kept."""

    text: str
    site: int
    head: int
    query: int
    key: int


def inside(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """One head, step by step: InsideAnswer.

    O(Nk H (D + Dv)) time; memory of one head's keys and values. The lse is -inf, told as null, where the query sees no
    key and there is no sink.

    Raises:
        ArgumentError: there is no such text, site, head, query or key.
        NotRecordedError: queries and keys were not kept.
        Cancelled: the answer is not wanted any more.
    """
    asked = read(Place, parameters)
    text = explorer.text(asked.text)
    info, call = text.site(asked.site)
    for name, count in (("head", len(info["heads"])), ("query", info["queries"]), ("key", info["keys"])):
        if getattr(asked, name) >= count:
            raise ArgumentError(f"{name} = {getattr(asked, name)}: {info['label']} has {count}, from 0")
    go_on(cancelled)
    row = Row.of(call, asked.head, text.batch, asked.query)
    known = _Known(text, call, asked)
    became = _became(explorer, asked, row, cancelled)
    weighing = _weighing(row, asked, _chosen(row.weight[: info["keys"]], asked, known.first_query))
    answer = weighing | known.answer() | became.answer
    reasons = [row.missing, known.missing(answer), None if answer["state"] is None else became.missing]
    return answer | {"missing": " ".join(reason for reason in reasons if reason) or None}


# ---------------------------------------------------------------------------------------- one row of the pattern


@dataclass(frozen=True, eq=False)
class Row:
    """One row of one head's pattern, in float64.

    Attributes:
        problem: what else forms the pattern.
        query: ``(D,)``.
        key: ``(Nk, D)``.
        score: ``(Nk,)``, scale q·k with the softcap applied.
        bias: ``(Nk,)``.
        visible: booleans ``(Nk,)``.
        value: ``(Nk, Dv)``; None if values were not kept.
        missing: why there are none.
    """

    problem: Problem
    query: Tensor
    key: Tensor
    score: Tensor
    bias: Tensor
    visible: Tensor
    value: Tensor | None
    missing: str | None

    @classmethod
    def of(cls, call: Site, head: int, batch: int, query: int) -> Row:
        """The row of a query in one of the heads that were kept, by its place among them.

        Raises:
            NotRecordedError: queries and keys were not kept.
        """
        one = call.heads(call.head_numbers[head])
        pattern = one.pattern.element(batch)
        given, problem = pattern.inputs, pattern.problem
        inputs = Inputs(given.query.double(), given.key.double(), given.key)
        area = Area(slice(0, 1), slice(0, 1), slice(query, query + 1), slice(0, pattern.shape[3]))
        score = scores(replace(problem, mask=None, bias=None), inputs, area)[0, 0, 0]
        bias = score.new_zeros(()) if problem.bias is None else problem.bias.tile(area).to(score)
        try:
            value, missing = one.value[batch, 0].double(), None
        except NotRecordedError as error:
            value, missing = None, f"{error}."
        return cls(
            problem,
            inputs.query[0, 0, query],
            inputs.key[0, 0],
            score,
            bias.expand(1, 1, 1, len(score))[0, 0, 0],
            _visible(problem.mask, area, len(score)),
            value,
            missing,
        )

    @property
    def sink(self) -> Tensor | None:
        """The logit that takes weight away from all keys, if there is one."""
        return None if self.problem.sinks is None else self.problem.sinks.double().reshape(())

    @cached_property
    def logits(self) -> Tensor:
        """What the softmax is of, ``(Nk,)``."""
        return torch.where(self.visible, self.score + self.bias, -torch.inf)

    @cached_property
    def lse(self) -> Tensor:
        """Natural logarithm of what each exponential is divided by; -inf where there is none."""
        logits = self.logits if self.sink is None else torch.cat([self.logits, self.sink[None]])
        return logits.logsumexp(0)

    @cached_property
    def weight(self) -> Tensor:
        """``(Nk,)``; 0 where the mask hides the key."""
        return torch.where(self.visible, (self.logits - self.lse).exp(), 0.0)

    @property
    def output(self) -> Tensor | None:
        """Sum over all keys of weight x value, ``(Dv,)``; what is hidden adds nothing, whatever it holds."""
        return None if self.value is None else self.weight[self.visible] @ self.value[self.visible]


def _visible(mask: Intervals | Dense | None, area: Area, keys: int) -> Tensor:
    """Which keys a row sees, booleans ``(Nk,)``."""
    if mask is None:
        return torch.ones(keys, dtype=torch.bool)
    if isinstance(mask, Dense):
        return area.of(mask.visible, queries=True, keys=True).expand(1, 1, 1, keys)[0, 0, 0]
    starts, stops = (area.of(x, queries=True) for x in (mask.starts, mask.stops))
    return Intervals(starts, stops, keys).between(torch.arange(keys, dtype=torch.int32))[0, 0, 0]


def _chosen(weight: Tensor, asked: Place, first_query: int | None) -> Tensor:
    """The keys that are told one by one, ascending: all; or the asked one, the query's neighbours, the heaviest."""
    keys = len(weight)
    if keys <= MOST_KEYS:
        return torch.arange(keys)
    wanted = {asked.key}
    if first_query is not None:
        own = first_query + asked.query
        wanted |= set(range(max(own - NEIGHBOURS, 0), min(own + NEIGHBOURS + 1, keys)))
    for key in weight.nan_to_num(0.0).topk(MOST_KEYS).indices.tolist():
        if len(wanted) < MOST_KEYS:
            wanted.add(key)
    return torch.tensor(sorted(wanted))


def _weighing(row: Row, asked: Place, chosen: Tensor) -> dict[str, Any]:
    """Scores, weights and values of the chosen keys, and the weight of all others."""
    others = torch.ones_like(row.visible).index_fill(0, chosen, value=False)
    held = 0.0 if row.sink is None else float((row.sink - row.lse).exp())
    return {
        "scale": float(row.problem.scale),
        "softcap": None if row.problem.softcap is None else float(row.problem.softcap),
        "sink": None if row.sink is None else float(row.sink),
        "lse": float(row.lse),
        "query": row.query.float(),
        "key": row.key[asked.key].float(),
        "chosen": chosen.int(),
        "score": row.score[chosen].float(),
        "bias": row.bias[chosen].float(),
        "visible": row.visible[chosen],
        "weight": row.weight[chosen].float(),
        "rest": float(row.weight[others].sum()) + held,
        "value": None if row.value is None else row.value[chosen].float(),
        "output": None if row.output is None else row.output.float(),
    }


def _outputs(row: Row, call: Site, batch: int, asked: Place, cancelled: Asked) -> Tensor | None:
    """The outputs of all heads that were kept, ``(H, Dv)``, one after the other; None without values."""
    if row.value is None:
        return None
    found = []
    for head in range(len(call.head_numbers)):
        go_on(cancelled)
        output = (row if head == asked.head else Row.of(call, head, batch, asked.query)).output
        assert output is not None
        found.append(output.float())
    return torch.stack(found)


# ---------------------------------------------------------------------------------------- what the trace has of states


@dataclass(frozen=True, eq=False)
class _Known:
    """What a trace has of the hidden states around a call."""

    text: Text
    call: Site
    asked: Place

    def answer(self) -> dict[str, Tensor | None]:
        """Members of the answer."""
        return {"state": self._state(0, self.asked.query), "key_state": self._key_state(), "after": self._after()}

    def missing(self, answer: Mapping[str, Any]) -> str | None:
        """Why one of them is."""
        if answer["state"] is None:
            return "The hidden states of the layer's tokens were not kept."
        if answer["after"] is None:
            return "The state that left the layer was not kept."
        return "The key is no token of this layer, so it has no state there." if answer["key_state"] is None else None

    def _state(self, step: int, token: int) -> Tensor | None:
        """The state of a token that entered the layer (0) or left it (1), ``(width,)``."""
        try:
            states = self.call.hidden_after if step else self.call.hidden
        except NotRecordedError:
            return None
        batch, _, queries, _ = self.call.shape
        return states[self.text.batch, token].float() if states.shape[:2] == (batch, queries) else None

    def _after(self) -> Tensor | None:
        """What left the layer. None where nobody saw it, or where it may be what entered a layer farther on."""
        state = self._state(1, self.asked.query) if self.text.trace.metadata.layers is None else None
        return None if state is None or state.isnan().any() else state

    def _key_state(self) -> Tensor | None:
        """What entered the layer for the key, if that is one of its tokens."""
        first = self.first_query
        return None if first is None or self.asked.key < first else self._state(0, self.asked.key - first)

    @cached_property
    def first_query(self) -> int | None:
        """The place of the first query among the keys; None where they are of another text."""
        call = self.call
        if call.looks_at_itself:
            return 0
        queries, keys = call.known_tokens, call.known_key_tokens
        if queries is None or keys is None or queries.name != keys.name:
            return None
        later = len(keys) - len(queries)
        return later if later >= 0 and torch.equal(keys.ids[:, later:], queries.ids) else None


# ---------------------------------------------------------------------------------------- what the model makes of it


@dataclass(frozen=True, eq=False)
class _Became:
    """What followed from a row in all heads: members of the answer, and why some of them are missing."""

    answer: dict[str, Any]
    missing: str | None = None


def _became(explorer: Explorer, asked: Place, row: Row, cancelled: Asked) -> _Became:
    """What the heads' outputs are, and what they become. Kept: the page goes on to ask about other keys."""
    text = explorer.text(asked.text)
    _, call = text.site(asked.site)

    def make() -> tuple[_Became, int]:
        outputs = _outputs(row, call, text.batch, asked, cancelled)
        told, missing = _replayed(_model_of(explorer, text.trace), text, call, asked, outputs)
        answer = {"projected": None, "added": None, "parts": None, "outputs": outputs} | told
        return _Became(answer, missing), sum(x.nbytes for x in answer.values() if isinstance(x, Tensor))

    return explorer.cache.get(("inside", asked.text, asked.site, asked.head, asked.query), _Became, make)


def _model_of(explorer: Explorer, trace: Trace) -> nn.Module | None:
    if trace.model is not None:
        return trace.model
    return None if explorer.reader is None else explorer.reader.model


def _replayed(
    model: nn.Module | None, text: Text, call: Site, asked: Place, outputs: Tensor | None
) -> tuple[dict[str, Any], str | None]:
    """What the heads' outputs become in their layer, as members of the answer; and why, where that cannot be told."""
    if model is None:
        return {}, MODEL_NEEDED
    if outputs is None:
        return {}, None
    try:
        replay = _OfOutputs(text, call, model, outputs)
        taken, summed = _EachHead(replay.layer_of(call.name), call.name), _UntilAdded(call.name)
        replay.run(torch.tensor([asked.query]), taken, until=taken.layer, following=summed)
        return taken.told(summed, call, asked)
    except (ArgumentError, NotRecordedError, UnsupportedModelError) as error:
        return {}, f"What the head's output becomes cannot be told: {error}."


class _OfOutputs(Replay):
    """A replay that is given what one attention call gave."""

    def __init__(self, text: Text, call: Site, model: nn.Module, outputs: Tensor) -> None:
        super().__init__(text.trace, model, entry=text.entry.index, batch=text.batch)
        self._given_by, self._outputs = call.name, outputs

    def attended(self, site: str) -> Tensor:
        """See `Replay`."""
        self._heads(site)  # refuses a site some of whose heads were not kept
        return self._outputs[None] if site == self._given_by else super().attended(site)


class _UntilAdded(Following):
    """Follows, and notes what an attention call's output has become where it is first added to something else.

    Attributes:
        added: the parts of that; None if it was not.
    """

    def __init__(self, site: str) -> None:
        super().__init__()
        self.added: Parts | None = None
        self._name = ATTENTION + site

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """PyTorch hands every operation to this."""
        if self.added is None and func.overloadpacket in _SUMS:
            known = [self.parts(x) for x in args[:2] if isinstance(x, Tensor)]
            mine = [parts for parts in known if parts and self._name in parts]
            others = [parts for parts in known if parts and self._name not in parts]
            if mine and others:
                self.added = mine[0]
        return super().__torch_dispatch__(func, types, args, kwargs)


class _EachHead(OneLayer):
    """One layer, with the output of each head of one of its attention calls as a part."""

    def __init__(self, layer: Layer, site: str) -> None:
        super().__init__(layer)
        self.site = site
        self.after = torch.empty(0)
        self.parts: Parts = {}

    def attention(self, layer: Layer, site: str, output: Tensor) -> Tensor:
        """See `Plan`: a stack ``(H, T, H, 1, Dv)``, in each entry one head's output."""
        if site != self.site:
            return super().attention(layer, site, output)
        heads = output.shape[1]
        return output[None] * torch.eye(heads, dtype=output.dtype, device=output.device).view(heads, 1, heads, 1, 1)

    def left(self, layer: Layer, state: Tensor, following: Following) -> None:
        """See `Plan`."""
        del layer
        self.after = state[0, 0].cpu()
        self.parts = {name: part[:, 0, 0].cpu() for name, part in (following.parts(state) or {}).items()}

    def told(self, summed: _UntilAdded, call: Site, asked: Place) -> tuple[dict[str, Any], str | None]:
        """Members of the answer, and why some are missing.

        Raises:
            UnsupportedModelError: the parts do not sum to what left the layer.
        """
        name, after = ATTENTION + self.site, {"after": self.after.float()}
        found = summed.added or self.parts  # where it is added to nothing, it leaves the layer by itself
        if name not in found or RESIDUAL in found:
            return (
                after,
                f"What {self.site} adds to the state cannot be told: on the way it is no sum of heads any more.",
            )
        at = {part: x.reshape(len(x), -1).cpu() for part, x in found.items()}
        added = after | {"projected": at[name], "added": torch.cat([*at.values()]).sum(0)}
        if name not in self.parts:
            return (
                added,
                "What left the layer is no sum that heads are parts of: attention's output is bent on its way.",
            )
        listed = list(_listed(self.parts, self.site, asked.head, call.head_numbers))
        return added | {"parts": _measured(listed, self.after)}, None


def _listed(parts: Parts, site: str, head: int, numbers: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """The parts of what left a layer, ``(width,)`` each, in the order in which they came to it."""
    heads = parts[ATTENTION + site]
    of_others = {name for name in parts if name.startswith((ATTENTION, BIAS))} - {ATTENTION + site, BIAS + site}
    rest = [place for place in range(len(heads)) if place != head]
    if RESIDUAL in parts:
        yield RESIDUAL, parts[RESIDUAL].sum(0)
    yield f"head {numbers[head]}", heads[head]
    if rest:
        yield "other heads", heads[rest].sum(0)
    if BIAS + site in parts:
        yield "output bias", parts[BIAS + site].sum(0)
    if of_others:
        yield "other attention", torch.cat([parts[name] for name in sorted(of_others)]).sum(0)
    named = ((COMPUTED, "MLP"), (CONSTANT, "norm bias"))
    yield from ((label, parts[name].sum(0)) for name, label in named if name in parts)


def _measured(parts: Sequence[tuple[str, Tensor]], after: Tensor) -> list[dict[str, Any]]:
    """Each part's length, and its cosine with the state that they sum to.

    Raises:
        UnsupportedModelError: they do not.
    """
    whole = after.to(parts[0][1])
    off = float((torch.stack([part for _, part in parts]).sum(0) - whole).norm() / whole.norm())
    if not off <= TOLERANCE[after.dtype]:
        raise UnsupportedModelError(
            f"the parts of what leaves the layer do not sum to it (off by {off:.2g} of its length)"
        )
    return [
        {
            "label": label,
            "length": float(part.norm()),
            "cosine": float(torch.nn.functional.cosine_similarity(part, whole, dim=0)),
        }
        for label, part in parts
    ]
