"""The multi-head attention layer of the article, interchangeable with PyTorch's.

Parameters, their names and the forward contract are those of `torch.nn.MultiheadAttention`, so that
trained weights load in both directions. It is no subclass: PyTorch's transformer layers take a
fused path around any layer they believe to be their own, and no statistic could be taken there. The
one attribute that tells them so, `_qkv_same_embed_dim`, is False here whatever the widths are.

What PyTorch's layer does and this one does not: dropout of attention weights (refused), nested
tensors (refused), and NaN for a query that sees no key (0 here). What this one adds: `statistics`,
in linear memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, Parameter, functional, init
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from saccade import masks
from saccade.backends import Inputs
from saccade.backends.reference import pattern
from saccade.errors import ArgumentError, DeviceError, DtypeError, MaskError, ShapeError
from saccade.functional import attention, make_problem
from saccade.masks import Lengths, Mask
from saccade.nn.autocast import autocast_dtype
from saccade.nn.torch_masks import check_dtype, combine
from saccade.scores import Problem
from saccade.statistics import Report, Statistic


@dataclass(frozen=True, eq=False)
class Projections:
    """The parameters of one layer. E is its width, H its number of heads.

    Attributes:
        heads: H.
        query, key, value: weights ``(E, E)``, ``(E, kdim)`` and ``(E, vdim)``.
        in_bias: biases of the three, one after the other ``(3 E,)``, or None.
        out: weight ``(E, E)`` of the output projection.
        out_bias: its bias ``(E,)``, or None.
        extra_key, extra_value: a learned key and value ``(1, 1, E)`` behind all others, or None.
        zero_key: whether a key and value of zeros follow.
    """

    heads: int
    query: Float[Tensor, "E E"]
    key: Float[Tensor, "E kdim"]
    value: Float[Tensor, "E vdim"]
    in_bias: Float[Tensor, "3E"] | None
    out: Float[Tensor, "E E"]
    out_bias: Float[Tensor, " E"] | None
    extra_key: Float[Tensor, "1 1 E"] | None = None
    extra_value: Float[Tensor, "1 1 E"] | None = None
    zero_key: bool = False

    @property
    def extra(self) -> int:
        """How many keys the layer itself appends."""
        return int(self.extra_key is not None) + int(self.zero_key)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> Inputs:
        """Queries ``(B, H, Nq, D)``, keys and values ``(B, H, Nk + extra, D)``, with D = E / H."""
        biases = (None,) * 3 if self.in_bias is None else self.in_bias.chunk(3)
        weights = (self.query, self.key, self.value)
        q, k, v = map(functional.linear, (query, key, value), weights, biases)
        k, v = self._append(k, self.extra_key), self._append(v, self.extra_value)
        return Inputs(*(x.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v)))

    def _append(self, x: Tensor, learned: Tensor | None) -> Tensor:
        rows = [] if learned is None else [learned.to(x).expand(x.shape[0], 1, -1)]
        if self.zero_key:
            rows.append(x.new_zeros(x.shape[0], 1, x.shape[-1]))
        return torch.cat([x, *rows], 1) if rows else x

    def join(self, heads: Float[Tensor, "B H Nq D"]) -> Float[Tensor, "B Nq E"]:
        """The heads side by side, through the output projection."""
        return functional.linear(heads.transpose(1, 2).flatten(2), self.out, self.out_bias)


@dataclass(frozen=True, eq=False)
class Masking:
    """What queries may see, as PyTorch says it. Booleans are True where a key is hidden.

    Attributes:
        attn_mask: ``(Nq, Nk)`` or ``(B * H, Nq, Nk)``; floats are added to the scores.
        key_padding_mask: ``(B, Nk)``, or ``(Nk,)`` if B is 1; floats are added to the scores.
        is_causal: without an attn_mask, query i sees keys ``j <= i``.
    """

    attn_mask: Tensor | None = None
    key_padding_mask: Tensor | None = None
    is_causal: bool = False

    def combine(self, lengths: Lengths, extra: int) -> tuple[Mask | None, Tensor | None]:
        """One mask and one bias over Nk given keys, and `extra` more that every query sees.

        Raises:
            MaskError, DtypeError: a mask does not fit.
        """
        parts = [functional.pad(x, (0, extra), value=x.dtype == torch.bool) for x in self._parts(lengths)]
        mask, bias = combine(parts, dataclasses.replace(lengths, keys=lengths.keys + extra))
        if not self.is_causal or self.attn_mask is not None:
            return mask, bias
        rule = _causal(lengths)
        return rule if mask is None else mask & rule, bias

    def _parts(self, lengths: Lengths) -> Iterator[Tensor]:
        """The masks as ``(B | 1, H | 1, Nq | 1, Nk)``: floats, or booleans, True where seen."""
        for name, mask, fit in (
            ("attn_mask", self.attn_mask, _per_pair),
            ("key_padding_mask", self.key_padding_mask, _per_key),
        ):
            if mask is not None:
                check_dtype(name, mask, "hidden")
                fitted = fit(mask, lengths)
                yield ~fitted if fitted.dtype == torch.bool else fitted


def _per_pair(mask: Tensor, lengths: Lengths) -> Tensor:
    batch, heads = lengths.batch, lengths.heads
    pair = (lengths.queries, lengths.keys)
    if mask.shape == pair:
        return mask[None, None]
    if mask.shape == (batch * heads, *pair):
        return mask.reshape(batch, heads, *pair)
    raise MaskError(
        f"attn_mask has shape {tuple(mask.shape)}; expected (Nq, Nk) = {pair}, or (B * num_heads, "
        f"Nq, Nk) = {(batch * heads, *pair)} for one mask by batch element and head"
    )


def _per_key(mask: Tensor, lengths: Lengths) -> Tensor:
    batch, keys = lengths.batch, lengths.keys
    if mask.shape == (batch, keys) or (batch == 1 and mask.shape == (keys,)):
        return mask.reshape(batch, 1, 1, keys)
    raise MaskError(
        f"key_padding_mask has shape {tuple(mask.shape)}; expected (B, Nk) = {(batch, keys)}, or "
        f"({keys},) for unbatched input"
    )


def _causal(lengths: Lengths) -> Mask:
    """Causal over the given keys; keys that the layer appends are seen by all."""
    if lengths.queries != lengths.keys:
        raise MaskError(
            f"is_causal is ambiguous for Nq = {lengths.queries} queries and Nk = {lengths.keys} "
            "keys: give the mask itself as attn_mask"
        )
    return masks.causal(offset=0) | ~masks.prefix(lengths.keys)


class Result(NamedTuple):
    """What `multi_head_attention` returns; None for what was not asked."""

    output: Tensor
    weights: Tensor | None
    report: Report | None


def multi_head_attention(
    query: Float[Tensor, "... E"],
    key: Float[Tensor, "... kdim"],
    value: Float[Tensor, "... vdim"],
    projections: Projections,
    masking: Masking,
    *,
    batch_first: bool,
    need_weights: bool = False,
    average_attn_weights: bool = True,
    statistics: Statistic | Iterable[Statistic] = (),
) -> Result:
    """`MultiheadAttention.forward` as a function of the parameters; see there."""
    _check(query, key, value, projections, batch_first=batch_first)
    unbatched = query.dim() == 2  # noqa: PLR2004
    q, k, v = (_lay_out(x, batch_first=batch_first) for x in (query, key, value))
    lengths = Lengths(q.shape[0], projections.heads, q.shape[1], k.shape[1], q.device)
    mask, bias = masking.combine(lengths, projections.extra)
    inputs = projections.project(q, k, v)
    problem = make_problem(inputs, mask=mask, scale=None, softcap=None, bias=bias, sinks=None)
    heads, report = _attend(inputs, problem, statistics)
    output = projections.join(heads)
    weights = _weights(inputs, problem, average=average_attn_weights) if need_weights else None
    if unbatched:
        return Result(output[0], None if weights is None else weights[0], report)
    return Result(output if batch_first else output.transpose(0, 1), weights, report)


def _lay_out(x: Tensor, *, batch_first: bool) -> Float[Tensor, "B N E"]:
    if x.dim() == 2:  # noqa: PLR2004
        return x[None]
    return x if batch_first else x.transpose(0, 1)


def _attend(
    inputs: Inputs, problem: Problem, statistics: Statistic | Iterable[Statistic]
) -> tuple[Tensor, Report | None]:
    asked = [statistics] if isinstance(statistics, Statistic) else list(statistics)
    tensors = (inputs.query, inputs.key, inputs.value)
    if not asked:
        return attention(*tensors, mask=problem.mask, bias=problem.bias), None
    return attention(*tensors, mask=problem.mask, bias=problem.bias, statistics=asked)


def _weights(inputs: Inputs, problem: Problem, *, average: bool) -> Tensor:
    """The pattern, ``(B, Nq, Nk)`` averaged over heads or ``(B, H, Nq, Nk)``; differentiable."""
    weights, _ = pattern(problem, inputs.query.to(inputs.compute), inputs.key.to(inputs.compute))
    return (weights.mean(1) if average else weights).to(inputs.query.dtype)


# ------------------------------------------------------------------ checks


def refuse_dropout(name: str, probability: float) -> None:
    """Dropped weights would make output and pattern disagree.

    Raises:
        ArgumentError: the probability is above 0.
    """
    if probability > 0:
        raise ArgumentError(
            f"{name} = {probability} on attention weights: Saccade's attention is exact and drops "
            "none. Use model.eval(), or set the dropout of the attention layers to 0 (dropout "
            "elsewhere is free)"
        )


def _check(query: Tensor, key: Tensor, value: Tensor, projections: Projections, *, batch_first: bool) -> None:
    weights = {"query": projections.query, "key": projections.key, "value": projections.value}
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_input(name, x, weights[name])
    if not query.dim() == key.dim() == value.dim():
        dims = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ShapeError(f"query, key and value have shapes {dims}; expected all batched (3-D) or none (2-D)")
    if key.shape[:-1] != value.shape[:-1]:
        raise ShapeError(
            f"value has shape {tuple(value.shape)}; key has {tuple(key.shape)}: all but the width "
            "must match, as each key carries one value"
        )
    batched, axis = query.dim() == 3, 0 if batch_first else 1  # noqa: PLR2004
    if batched and query.shape[axis] != key.shape[axis]:
        order = "(B, N, width)" if batch_first else "(N, B, width)"
        raise ShapeError(
            f"key has a batch of {key.shape[axis]}; query has {query.shape[axis]}: the layer has "
            f"batch_first={batch_first}, so inputs are {order}"
        )


def _check_input(name: str, x: Tensor, weight: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{name} is {type(x).__name__}; expected a torch.Tensor")
    if x.is_nested:
        raise ArgumentError(
            f"{name} is a nested tensor; expected a padded one with key_padding_mask. An enclosing "
            "torch.nn.TransformerEncoder makes nested tensors: set its use_nested_tensor to False, "
            "or give the encoder itself to saccade.nn.replace"
        )
    if x.dim() not in {2, 3}:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}; expected 3 dimensions, or 2 unbatched")
    if x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}; the layer projects {name} from a width of "
            f"{weight.shape[1]}: the last dimension must be that"
        )
    if x.device != weight.device:
        raise DeviceError(f"{name} is on {x.device}, the layer on {weight.device}: move one of them")
    if x.dtype != weight.dtype and autocast_dtype(x.device) is None:
        raise DtypeError(f"{name} is {x.dtype}, the layer {weight.dtype}: convert one of them")


# ------------------------------------------------------------------ the layer


class MultiheadAttention(Module):
    """Multi-head attention (Vaswani et al., arXiv 1706.03762, section 3.2.2).

        head_h = Attention(Q W_h^Q, K W_h^K, V W_h^V)
        output = Concat(head_1, ..., head_H) W^O

    Constructor, parameter names and `forward` are those of `torch.nn.MultiheadAttention`.

    Args:
        embed_dim: width E of queries and outputs.
        num_heads: H; each head has the width E / H.
        dropout: probability of dropping an attention weight in training. Only 0 can be served: with
            more, `forward` works in evaluation mode and raises in training mode.
        bias: whether the projections have biases.
        add_bias_kv: append a learned key and value to the sequence.
        add_zero_attn: append a key and value of zeros.
        kdim: width of keys; None for E.
        vdim: width of values; None for E.
        batch_first: inputs are ``(B, N, width)`` instead of ``(N, B, width)``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ShapeError: a size below 1, or `num_heads` does not divide `embed_dim`.

    >>> import torch, saccade
    >>> layer = saccade.nn.MultiheadAttention(8, 2, batch_first=True)
    >>> x = torch.randn(1, 5, 8)
    >>> entropy = saccade.statistics.Entropy()
    >>> output, weights, report = layer(x, x, x, need_weights=False, statistics=entropy)
    >>> output.shape, weights, report.entropy.shape
    (torch.Size([1, 5, 8]), None, torch.Size([1, 2, 5]))
    """

    in_proj_weight: Parameter | None
    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,  # noqa: FBT001, FBT002
        add_bias_kv: bool = False,  # noqa: FBT001, FBT002
        add_zero_attn: bool = False,  # noqa: FBT001, FBT002
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,  # noqa: FBT001, FBT002
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._check_sizes()
        self.head_dim = embed_dim // num_heads
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        for name, shape in self._shapes(bias=bias, add_bias_kv=add_bias_kv).items():
            empty = None if shape is None else Parameter(torch.empty(shape, **where))
            self.register_parameter(name, empty)
        self.out_proj = NonDynamicallyQuantizableLinear(embed_dim, embed_dim, bias=bias, **where)
        self._reset_parameters()

    def _check_sizes(self) -> None:
        for name in ("embed_dim", "num_heads", "kdim", "vdim"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.embed_dim % self.num_heads:
            raise ShapeError(
                f"embed_dim = {self.embed_dim} is no multiple of num_heads = {self.num_heads}: "
                "every head gets embed_dim / num_heads of the width"
            )

    def _shapes(self, *, bias: bool, add_bias_kv: bool) -> dict[str, tuple[int, ...] | None]:
        """Each parameter's shape; None for those that this layer does not have."""
        width = self.embed_dim
        packed = width == self.kdim == self.vdim
        return {
            "in_proj_weight": (3 * width, width) if packed else None,
            "q_proj_weight": None if packed else (width, width),
            "k_proj_weight": None if packed else (width, self.kdim),
            "v_proj_weight": None if packed else (width, self.vdim),
            "in_proj_bias": (3 * width,) if bias else None,
            "bias_k": (1, 1, width) if add_bias_kv else None,
            "bias_v": (1, 1, width) if add_bias_kv else None,
        }

    def _reset_parameters(self) -> None:
        """In the order of torch.nn.MultiheadAttention: a seed gives the weights it gives there."""
        weights = (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        for weight in weights:
            if weight is not None:
                init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
        for learned in (self.bias_k, self.bias_v):
            if learned is not None:
                init.xavier_normal_(learned)

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """False: PyTorch's transformer layers read this before they go around the layer."""
        return False

    def forward(
        self,
        query: Float[Tensor, "... E"],
        key: Float[Tensor, "... kdim"],
        value: Float[Tensor, "... vdim"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002
        is_causal: bool = False,  # noqa: FBT001, FBT002
        *,
        statistics: Statistic | Iterable[Statistic] = (),
    ) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Report]:
        """Attend, and say where.

        Args:
            query: ``(Nq, B, E)``, ``(B, Nq, E)`` if `batch_first`, or ``(Nq, E)`` unbatched.
            key: ``(Nk, B, kdim)``, likewise.
            value: ``(Nk, B, vdim)``, likewise.
            key_padding_mask: ``(B, Nk)``, or ``(Nk,)`` unbatched: booleans, True where a key is
                hidden from all queries, or floats to be added to all scores of a key.
            need_weights: return the attention weights as well. They take O(Nq Nk) memory for each
                head, and time beyond the output's; `statistics` do not.
            attn_mask: ``(Nq, Nk)`` or ``(B * H, Nq, Nk)``: booleans, True where a key is hidden
                from a query, or floats to be added to the scores.
            average_attn_weights: return the mean of the weights over heads.
            is_causal: with `attn_mask`, a hint that it is causal, which changes nothing: the mask
                itself is applied, always. Without, query i sees keys ``j <= i``; needs Nq = Nk.
            statistics: what to ask of the pattern, from `saccade.statistics`.

        Returns:
            The output, shaped as `query`, and the weights ``(B, Nq, Nk)``, or ``(B, H, Nq, Nk)``
            not averaged, without B for unbatched input; None if `need_weights` is False. With
            `statistics`, a third item: their `Report`, with B = 1 for unbatched input. The keys
            that `add_bias_kv` and `add_zero_attn` append come last and count in Nk of weights and
            report. A query that sees no key has weights 0 and the output projection's bias as its
            output (PyTorch: NaN).

        Raises:
            ShapeError, DtypeError, DeviceError: inputs that do not fit the layer or each other.
            MaskError: a mask that does not fit, or `is_causal` alone with Nq != Nk.
            ArgumentError: `dropout` above 0 in training mode, or nested tensors.
        """
        if self.training:
            refuse_dropout("dropout", self.dropout)
        result = multi_head_attention(
            query,
            key,
            value,
            self._projections(),
            Masking(attn_mask, key_padding_mask, is_causal),
            batch_first=self.batch_first,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
            statistics=statistics,
        )
        return result[:2] if result.report is None else (*result[:2], result.report)

    def _projections(self) -> Projections:
        packed = self.in_proj_weight
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        query, key, value = separate if packed is None else packed.chunk(3)
        assert query is not None
        assert key is not None
        assert value is not None
        return Projections(
            self.num_heads,
            query,
            key,
            value,
            self.in_proj_bias,
            self.out_proj.weight,
            self.out_proj.bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
        )

    def extra_repr(self) -> str:
        """The sizes that `print(model)` shows."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"
