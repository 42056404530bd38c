"""`contributions`: what attention adds to a token in a layer, split exactly by head and source token.

A head's output for query i is a sum over keys, and the output projection is linear, so what attention adds is

    sum over h, j of  A[h, i, j] * v[h, j] W[h]    +  bias                (Kobayashi et al. 2020, arXiv 2004.10102)

where W[h] are the rows of the output projection that belong to head h. What stands between that sum and the layer's
output (the residual, layer norms, other parts) is followed as well, layer norms with the deviation that they divided by
(Kobayashi et al. 2021, arXiv 2109.07152): each vector here is a term of the hidden state that left the layer.

For one token that is N vectors, and one matrix: all W[h] with what follows them. O(N width) memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.analysis.following import ATTENTION, BIAS, Following, Parts
from saccade.analysis.places import Place, find_token, labels
from saccade.analysis.replay import RESIDUAL, TOLERANCE, Layer, OneLayer, Replay
from saccade.analysis.result import Result
from saccade.errors import ArgumentError, ShapeError, UnsupportedModelError
from saccade.trace.trace import Trace
from saccade.views import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHER_ATTENTION, OUTPUT_BIAS, ATTENDED = "other attention", "output bias", "attention"
MOST_COLUMNS = 24  # keys in a picture


@dataclass(frozen=True, eq=False)
class Contributions(Result):
    """What moved a token in a layer.

    Attributes:
        norm: ``(H, Nk)``, the length of what each head brought from each key.
        weight: ``(H, Nk)``, the attention weights ``A[:, i, :]``.
        by_key: ``(Nk, width)``, what all heads together brought from each key.
        by_head: ``(H, width)``, what each head brought from all keys together.
        parts: ``(P, width)``: the residual, attention (the sum of the above), its output bias, other attention calls in
            the layer, the MLP, and constants of normalisation. They sum to `after`.
        before: ``(width,)``, the hidden state that entered the layer.
        after: ``(width,)``, the one that left it.
        site: the attention call.
        token: the position of the query.
        keys: labels of the keys, each once.
        query: label of the query.
        part_names: of `parts`.
    """

    norm: Float[Tensor, "head key"]
    weight: Float[Tensor, "head key"]
    by_key: Float[Tensor, "key width"]
    by_head: Float[Tensor, "head width"]
    parts: Float[Tensor, "part width"]
    before: Float[Tensor, "width"]
    after: Float[Tensor, "width"]
    site: str
    token: int
    keys: list[str]
    query: str
    part_names: list[str]
    _value: Tensor
    _map: Tensor

    SIZE = (9.0, 5.0)

    def coordinates(self) -> dict[str, Any]:
        """Keys by their labels, parts by their names."""
        return {"key": self.keys, "part": self.part_names}

    def about(self) -> dict[str, Any]:
        """Which token, and where."""
        return {"site": self.site, "token": self.token, "query": self.query}

    def part(self, name: str) -> Tensor:
        """One of the parts, ``(width,)``.

        Raises:
            ArgumentError: there is none of that name.
        """
        if name not in self.part_names:
            raise ArgumentError(f"part = {name!r}: expected one of {', '.join(self.part_names)}")
        return self.parts[self.part_names.index(name)]

    def vector(self, head: int, key: int) -> Tensor:
        """What one head brought from one key, ``(width,)``.

        Raises:
            IndexError: there is no such head or key.
        """
        heads, keys = self.weight.shape
        if not -heads <= head < heads or not -keys <= key < keys:
            raise IndexError(f"head {head}, key {key}: there are {heads} heads and {keys} keys, from 0")
        group = heads // len(self._value)
        return self.weight[head, key] * (self._value[head % heads // group, key] @ self._map[head])

    def project(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """How far each contribution goes along a direction, and each part.

        Args:
            direction: ``(width,)``; its length counts.

        Returns:
            ``(H, Nk)`` for contributions, ``(P,)`` for `parts`, whose sum is ``after @ direction``.

        Raises:
            ShapeError: the direction has another width.
        """
        if direction.shape != self.after.shape:
            raise ShapeError(f"direction has shape {tuple(direction.shape)}; expected {tuple(self.after.shape)}")
        direction = direction.to(self._map)
        group = len(self._map) // len(self._value)
        readers = (self._map @ direction).unflatten(0, (-1, group))  # (Hk, heads that read them, Dv)
        along = (readers @ self._value.mT).flatten(0, 1)
        return self.weight * along, self.parts @ direction

    def draw(self, axis: Axes) -> None:
        """Lengths of what each head brought from the keys that brought most."""
        strongest = self.norm.sum(0).topk(min(MOST_COLUMNS, len(self.keys))).indices.sort().values
        image = axis.imshow(self.norm[:, strongest].numpy(), cmap=drawing.pale(), vmin=0, aspect="auto")
        heads = [str(head) for head in range(len(self.norm))]
        drawing.name_cells(axis, [self.keys[i] for i in strongest.tolist()], heads)
        axis.set_xlabel("from", fontsize=8)
        axis.set_ylabel("head", fontsize=8)
        axis.set_title(f"What moved “{drawing.short(self.query)}” in {self.site}", fontsize=9)
        drawing.colour_bar(axis, image, "length of the contribution")


def contributions(
    trace: Trace,
    site: str | int,
    token: Place,
    *,
    model: nn.Module | None = None,
    entry: int = 0,
    batch: int = 0,
    inputs: Mapping[str, Any] | None = None,
) -> Contributions:
    """What attention adds to a token in a layer, by head and source, and the other parts of what leaves the layer.

    The token is run through the model once more by itself, given what the trace has of it (see `replay`), and the parts
    of what leaves the layer are followed to it. O(Nk H width + width^2) time, O(Nk width) memory.

    Args:
        trace: recorded with ``keep="qkv"`` and hidden states.
        site: an attention call, by name or number in the entry.
        token: the query: its position, or a word that is one token (``bank``, ``bank:2``).
        model: the recorded model; not needed while the recording and its model are in memory.
        entry: which forward.
        batch: which element of the batch.
        inputs: what the model was called with, by name, where it does not read token ids (pictures, sound); not needed
            while the recording is in memory.

    Raises:
        ArgumentError: there is no such token or element, or the model is another.
        KeyError, IndexError: there is no such site or entry.
        NotRecordedError: values or hidden states were not kept.
        UnsupportedModelError: attention's output cannot be followed to what leaves the layer.

    >>> import torch, saccade
    >>> class Layer(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.out = torch.nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         a = saccade.attention(x[:, None], x[:, None], x[:, None])
    ...         return x + self.out(a[:, 0])
    >>> net, x = Layer(), torch.randn(1, 3, 4)
    >>> with saccade.record(net, keep="qkv") as trace:
    ...     y = net(x)
    >>> c = contributions(trace, 0, 2, inputs={"x": x})
    >>> c.part_names, torch.allclose(c.parts.sum(0), y[0, 2], atol=1e-6)
    (['residual', 'attention', 'output bias'], True)
    >>> torch.allclose(c.by_key.sum(0), c.part("attention"), atol=1e-6)
    True
    """
    replay = Replay(trace, model, entry=entry, batch=batch, inputs=inputs)
    call = replay.entry[site]
    position = find_token(token, call.known_tokens, call.shape[2], batch)
    layer = replay.layer_of(call.name)
    taken = _TakeApart(layer, call.name)
    replay.run(torch.tensor([position]), taken, until=layer)
    return _assembled(replay, call, position, taken)


class _TakeApart(OneLayer):
    """One layer, with a basis of what one of its attention calls may give."""

    def __init__(self, layer: Layer, site: str) -> None:
        super().__init__(layer)
        self.site = site
        self.after: Tensor | None = None
        self.parts: Parts = {}

    def attention(self, layer: Layer, site: str, output: Tensor) -> Tensor:
        """See `Plan`."""
        return basis_of(output) if site == self.site else super().attention(layer, site, output)

    def left(self, layer: Layer, state: Tensor, following: Following) -> None:
        """See `Plan`."""
        del layer
        parts = following.parts(state) or {}
        self.after, self.parts = state[0, 0], {name: part[:, 0, 0] for name, part in parts.items()}


def basis_of(output: Tensor) -> Tensor:
    """Unit vectors ``(H Dv, T, H, 1, Dv)`` of what an attention call may give, ``(T, H, 1, Dv)``."""
    tokens, heads, _, width = output.shape
    unit = torch.eye(heads * width, dtype=torch.promote_types(output.dtype, torch.float32), device=output.device)
    return unit.view(-1, 1, heads, 1, width).expand(-1, tokens, -1, -1, -1)


def linear_map(parts: Parts, site: str, heads: int) -> Tensor:
    """What a head's output becomes in what leaves the layer, ``(H, Dv, ..., width)``, from the parts of `basis_of`.

    Raises:
        UnsupportedModelError: nothing of it is left.
    """
    if ATTENTION + site not in parts:
        raise UnsupportedModelError(
            f"{site}: its output cannot be followed to what leaves the layer: on the way is an operation that is not "
            "linear and no norm or gate that is known, so there is no output projection to split it by"
        )
    mapped: Tensor = parts[ATTENTION + site].unflatten(0, (heads, -1))
    return mapped


def _assembled(replay: Replay, call: Any, position: int, taken: _TakeApart) -> Contributions:
    assert taken.after is not None
    batch, heads = replay.batch, call.shape[1]
    mapped = linear_map(taken.parts, call.name, heads).cpu()
    weight = replay.weights(call.name)[:, 0].to(mapped).cpu()
    value = call.value[batch].to(mapped).cpu()
    by_key, by_head = _sums(weight, value, mapped)
    named = {RESIDUAL: None, ATTENDED: None, OUTPUT_BIAS: None} | _summed(taken.parts, call.name)
    named[ATTENDED] = by_head.sum(0)
    parts = {name: part.cpu() for name, part in named.items() if part is not None}
    after = taken.after.to(mapped).cpu()
    _check_sum(call.name, list(parts.values()), after, taken.after.dtype)
    return Contributions(
        norm=weight * lengths_of(value, mapped),
        weight=weight,
        by_key=by_key,
        by_head=by_head,
        parts=torch.stack(list(parts.values())),
        before=replay.running_states(taken.layer)[0].to(mapped),
        after=after,
        site=call.name,
        token=position,
        keys=labels(call.known_key_tokens, call.shape[3], batch),
        query=labels(call.known_tokens, call.shape[2], batch)[position],
        part_names=list(parts),
        _value=value,
        _map=mapped,
    )


def _check_sum(site: str, parts: list[Tensor], after: Tensor, dtype: torch.dtype) -> None:
    """Refuse parts that do not sum to what left the layer: something was done to a tensor that was not seen."""
    off = float((torch.stack(parts).sum(0) - after).norm() / after.norm())
    if not off <= TOLERANCE[dtype]:
        raise UnsupportedModelError(
            f"{site}: the parts of what leaves its layer do not sum to it (off by {off:.2g} of its length)"
        )


def _summed(parts: Parts, site: str) -> dict[str, Tensor]:
    """The parts but the attention call in question, each summed over its stack, by our names."""
    made: dict[str, Tensor] = {}
    for name, part in parts.items():
        if name == ATTENTION + site:
            continue
        other = OTHER_ATTENTION if name.startswith((ATTENTION, BIAS)) else name
        called = OUTPUT_BIAS if name == BIAS + site else other
        made[called] = made[called] + part.sum(0) if called in made else part.sum(0)
    return made


def _sums(weight: Tensor, value: Tensor, mapped: Tensor) -> tuple[Tensor, Tensor]:
    """Contributions summed over heads ``(Nk, width)``, and over keys ``(H, width)``."""
    heads, inner, width = mapped.shape
    group = heads // len(value)
    weighted = value.new_empty(value.shape[1], heads, inner)
    for head in range(heads):
        torch.mul(weight[head, :, None], value[head // group], out=weighted[:, head])
    by_key = weighted.flatten(1) @ mapped.reshape(-1, width)
    return by_key, (weighted.sum(0)[:, None] @ mapped)[:, 0]


def lengths_of(value: Tensor, mapped: Tensor) -> Tensor:
    """``||v_j W_h||``, ``(H, Nk)``. With W^T = Q R it is ``||v R^T||``: as exact, and only Dv wide."""
    triangles = torch.linalg.qr(mapped.mT, mode="r").R
    group = len(mapped) // len(value)
    return torch.stack([(value[head // group] @ triangle.mT).norm(dim=-1) for head, triangle in enumerate(triangles)])
