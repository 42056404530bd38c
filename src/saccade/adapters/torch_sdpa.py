"""A context in which PyTorch's own attention functions are served by Saccade.

`scaled_dot_product_attention` is one C function that modules import under many names, so replacing
an attribute would miss most callers. A `TorchFunctionMode` sees the call itself, however the
function was obtained, patches nothing, and is gone when its block is left. While one is active,
PyTorch's transformer layers also keep off their fused paths: they call
`multi_head_attention_forward`, which is served as a whole, as with need_weights=True it never
reaches `scaled_dot_product_attention`.

Other functions that compute attention in one step (fused kernels called directly) are refused,
never half-observed. What no mode sees, and so goes by unserved: calls from other threads (each
needs its own context), calls inside TorchScript or exported programs, and attention written out as
products and a softmax.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from saccade import masks
from saccade.errors import ArgumentError, MaskError, ShapeError, UnsupportedModelError
from saccade.functional import attention
from saccade.masks import Lengths, Mask
from saccade.nn.autocast import autocast_dtype
from saccade.nn.multihead import Masking, Projections, multi_head_attention, refuse_dropout
from saccade.nn.torch_masks import check_dtype, combine


class Serving(TorchFunctionMode):
    """The context of `sdpa`.

    Attributes:
        calls: how many calls were served so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Serve attention, refuse what looks like it, and let all else pass."""
        del types
        if not _computes_attention(func):
            return func(*args, **(kwargs or {}))
        result = _uncompiled(_server(func))(*args, **(kwargs or {}))
        self.calls += 1
        return result


def sdpa() -> Serving:
    """A context in which `torch.nn.functional.scaled_dot_product_attention` is `saccade.attention`.

    Every caller in this thread is served: any model, `torch.nn.MultiheadAttention` (with and
    without need_weights) and PyTorch's transformer layers, in training and evaluation. Results
    agree with PyTorch's but for a query that sees no key: its heads' output is 0, never NaN. Padded
    positions of `torch.nn.TransformerEncoder` hold what its layers compute, not the 0 that nested
    tensors leave there. Contexts nest; the innermost serves. Code under torch.compile leaves its
    graph for each attention call, so fullgraph=True fails.

    Returns:
        The context; ``with saccade.sdpa() as serving`` also gives ``serving.calls``, the number of
        calls served so far.

    Raises (from the calls within):
        ArgumentError: dropout of attention weights above 0, or nested tensors.
        ShapeError, DtypeError, DeviceError, MaskError: as `saccade.attention`.
        UnsupportedModelError: a call of another attention function, which could not be observed.

    >>> import torch, saccade
    >>> query = key = value = torch.randn(1, 2, 5, 8)
    >>> with saccade.sdpa() as serving:
    ...     output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    >>> serving.calls
    1
    """
    return Serving()


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as ordinary Python even within torch.compile, where no observer would be asked.

    Importing torch._dynamo takes seconds; where it was not imported, nothing is compiled.
    """
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function)


def _computes_attention(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return "attention" in name or "encoder_layer_fwd" in name


def _server(func: Callable[..., Any]) -> Callable[..., Any]:
    """What serves an attention function.

    Raises:
        UnsupportedModelError: nothing does.
    """
    try:
        return _SERVED[func]
    except KeyError:
        raise UnsupportedModelError(
            f"{func.__name__} was called inside saccade.sdpa(), which serves "
            "scaled_dot_product_attention and multi_head_attention_forward of torch.nn.functional: "
            "call one of these instead, or leave the context for this call"
        ) from None


# ------------------------------------------------------------------ scaled dot product


def _scaled_dot_product_attention(
    query: Float[Tensor, "... Nq D"],
    key: Float[Tensor, "... Nk D"],
    value: Float[Tensor, "... Nk Dv"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "... Nq Dv"]:
    """PyTorch's function of this name; the dimension before the last two counts as the heads."""
    refuse_dropout("dropout_p", dropout_p)
    _check(query=query, key=key, value=value)
    query, key, value = _autocast(query, key, value)
    ranks = {query.dim(), key.dim(), value.dim()}
    grouped = enable_gqa and min(ranks) > 2  # noqa: PLR2004  there is a dimension of heads
    *batch, heads = _leading(query, key, value, grouped=grouped)
    key_heads, value_heads = (x.shape[-3] if grouped else heads for x in (key, value))
    q, k, v = (_fold(x, batch, n) for x, n in ((query, heads), (key, key_heads), (value, value_heads)))
    lengths = Lengths(q.shape[0], heads, q.shape[2], k.shape[2], q.device)
    mask, bias = _mask(attn_mask, batch, lengths, is_causal=is_causal)
    output = attention(q, k, v, mask=mask, bias=bias, scale=scale)
    output = output.reshape(*batch, heads, *output.shape[2:])
    return output[0] if ranks == {2} else output


def _check(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.is_nested:
            raise ArgumentError(f"{name} is a nested tensor; expected a padded one, with attn_mask")
        if x.dim() < 2:  # noqa: PLR2004
            raise ShapeError(f"{name} has shape {tuple(x.shape)}; expected (..., N, D)")


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """In the dtype that autocast, if it is on, makes PyTorch compute attention in."""
    dtype = autocast_dtype(tensors[0].device)
    if dtype is None:
        return list(tensors)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _leading(query: Tensor, key: Tensor, value: Tensor, *, grouped: bool) -> tuple[int, ...]:
    """Batch dimensions and query heads, broadcast; with grouped queries only the batch is."""
    ends = -3 if grouped else -2
    shapes = [x.shape[:ends] for x in (query, key, value)]
    try:
        lead = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        found = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ShapeError(
            f"query, key and value have shapes {found}: all but the last two dimensions must match "
            "or be 1 (grouped queries need enable_gqa=True)"
        ) from None
    return (*lead, query.shape[-3]) if grouped else lead or (1,)


def _fold(x: Tensor, batch: list[int], heads: int) -> Float[Tensor, "B H N D"]:
    """``x (..., N, D)`` with all batch dimensions as one."""
    shape = x.shape[-2:]
    return x.expand(*batch, heads, *shape).reshape(math.prod(batch), heads, *shape)


# ------------------------------------------------------------------ masks


def _mask(
    attn_mask: Tensor | None, batch: list[int], lengths: Lengths, *, is_causal: bool
) -> tuple[Mask | None, Tensor | None]:
    """PyTorch's two ways to say what is seen, as a mask and a bias."""
    if attn_mask is not None and is_causal:
        raise MaskError("attn_mask was given together with is_causal=True: put both into attn_mask")
    if is_causal:
        return masks.causal(offset=0), None
    if attn_mask is None:
        return None, None
    offset = _causal_offset(attn_mask, lengths)
    if offset is not None:
        return masks.causal(offset=offset), None
    check_dtype("attn_mask", attn_mask, "seen")
    return combine([_fold_mask(attn_mask, batch, lengths)], lengths)


def _causal_offset(attn_mask: Tensor, lengths: Lengths) -> int | None:
    """The offset that a mask of `torch.nn.attention.bias` stands for; None for any other mask."""
    from torch.nn.attention.bias import CausalBias, CausalVariant

    if not isinstance(attn_mask, CausalBias):
        return None
    return lengths.keys - lengths.queries if attn_mask.variant == CausalVariant.LOWER_RIGHT else 0


def _fold_mask(mask: Tensor, batch: list[int], lengths: Lengths) -> Tensor:
    """A mask that broadcasts to ``(*batch, H, Nq, Nk)`` as ``(B | 1, H | 1, Nq | 1, Nk | 1)``."""
    rows = (lengths.heads, lengths.queries, lengths.keys)
    full = (*batch, *rows)
    missing = len(full) - mask.dim()
    aligned = mask[(None,) * max(missing, 0)]
    if missing < 0 or any(n not in (1, f) for n, f in zip(aligned.shape, full, strict=True)):
        raise MaskError(
            f"attn_mask has shape {tuple(mask.shape)}; expected one that broadcasts to (..., H, Nq, Nk) = {full}"
        )
    shape = aligned.shape[-3:]
    if math.prod(aligned.shape[:-3]) == 1:
        return aligned.reshape(1, *shape)
    return aligned.expand(*batch, *shape).reshape(math.prod(batch), *shape)


# ------------------------------------------------------------------ multi-head attention


def _multi_head_attention_forward(  # noqa: PLR0913, PLR0917  PyTorch's signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,  # noqa: FBT001
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,  # noqa: FBT001, FBT002
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,  # noqa: FBT001, FBT002
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,  # noqa: FBT001, FBT002
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,  # noqa: FBT001, FBT002
    is_causal: bool = False,  # noqa: FBT001, FBT002
) -> tuple[Tensor, Tensor | None]:
    """PyTorch's function of this name, by the code of `saccade.nn.MultiheadAttention`."""
    if training:
        refuse_dropout("dropout_p", dropout_p)
    if static_k is not None or static_v is not None:
        raise ArgumentError("static_k and static_v are not served: project keys and values instead")
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights = separate if use_separate_proj_weight else _unpack(in_proj_weight)
    _check_width(query, embed_dim_to_check, num_heads)
    projections = Projections(
        num_heads,
        *_all_given(weights),
        in_proj_bias,
        out_proj_weight,
        out_proj_bias,
        bias_k,
        bias_v,
        add_zero_attn,
    )
    result = multi_head_attention(
        query,
        key,
        value,
        projections,
        Masking(attn_mask, key_padding_mask, is_causal),
        batch_first=False,
        need_weights=need_weights,
        average_attn_weights=average_attn_weights,
    )
    return result.output, result.weights


def _unpack(packed: Tensor | None) -> tuple[Tensor | None, ...]:
    return (None,) * 3 if packed is None else tuple(packed.chunk(3))


def _all_given(weights: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = weights
    if query is None or key is None or value is None:
        raise ArgumentError(
            "weights are missing: give in_proj_weight, or q_proj_weight, k_proj_weight and "
            "v_proj_weight with use_separate_proj_weight=True"
        )
    return query, key, value


def _check_width(query: Tensor, width: int, heads: int) -> None:
    if query.shape[-1] != width or width % heads:
        raise ShapeError(
            f"query has width {query.shape[-1]}; expected embed_dim = {width}, a multiple of num_heads = {heads}"
        )


_SERVED: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.scaled_dot_product_attention: _scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention: _scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default: _scaled_dot_product_attention,
    functional.multi_head_attention_forward: _multi_head_attention_forward,
}
