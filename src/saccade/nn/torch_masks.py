"""Masks as PyTorch passes them, taken apart into what is seen and what is added to the scores.

PyTorch writes both into one tensor: -inf hides a key, any other number is a bias, and its
transformer layers turn every boolean mask into such a tensor. Kernels skip what a mask hides but
must read every entry of a bias. So the entries of -inf become a mask again, and a bias of zeros is
dropped. Looking at the entries costs one pass over a tensor that the caller has built anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saccade import masks
from saccade.errors import DtypeError
from saccade.masks import Intervals, Lengths, Mask


def check_dtype(name: str, mask: Tensor, meaning_of_true: str) -> None:
    """Refuse a mask that is neither booleans nor floats.

    Raises:
        DtypeError: it is something else, such as integers, whose meaning would be a guess.
    """
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise DtypeError(
            f"{name} is {mask.dtype}; expected torch.bool (True: {meaning_of_true}) or floats "
            f"(added to the scores): convert it, for instance with {name}.bool()"
        )


def combine(parts: Iterable[Tensor], lengths: Lengths) -> tuple[Mask | None, Tensor | None]:
    """One mask and one bias that together say what several tensors say.

    Args:
        parts: each ``(B | 1, H | 1, Nq | 1, Nk | 1)``, booleans (True where a query sees a key) or
            floats (added to the scores).
        lengths: of the problem.

    Returns:
        The mask, None if nothing is hidden; and the bias, broadcastable to ``(B, H, Nq, Nk)``, None
        if nothing is added.
    """
    mask: Mask | None = None
    bias: Tensor | None = None
    for part in parts:
        visible, summand = (part, None) if part.dtype == torch.bool else _split(part)
        if visible is not None:
            rule = _as_mask(visible, lengths)
            mask = rule if mask is None else mask & rule
        if summand is not None:
            bias = summand if bias is None else bias + summand
    return mask, bias


def _split(
    additive: Float[Tensor, "B H Nq Nk"],
) -> tuple[Bool[Tensor, "B H Nq Nk"] | None, Float[Tensor, "B H Nq Nk"] | None]:
    """Where an additive mask is not -inf, and what it adds there; None for what it does not say."""
    hidden = additive == -torch.inf
    hides = bool(hidden.any())
    bias = additive.masked_fill(hidden, 0.0) if hides else additive
    says_nothing = not bias.requires_grad and not bool(bias.any())
    return ~hidden if hides else None, None if says_nothing else bias


def _as_mask(visible: Bool[Tensor, "B H Nq Nk"], lengths: Lengths) -> Mask:
    """A boolean tensor as a mask; one that is the same for all queries stays O(Nk)."""
    visible = visible.expand(-1, -1, -1, lengths.keys)
    if visible.shape[2] == lengths.queries:
        return masks.dense(visible)
    row = masks.dense(visible).resolve(dataclasses.replace(lengths, queries=1))
    if not isinstance(row, Intervals):
        return masks.dense(visible.expand(-1, -1, lengths.queries, -1))
    starts, stops = (x.expand(-1, -1, lengths.queries, -1) for x in (row.starts, row.stops))
    return Intervals(starts, stops, lengths.keys)
