"""Comparing vectors that belong to groups: pure functions on tensors.

Letters in shapes: L layers, O occurrences, S senses, W width. `group` (O,) is the number of an occurrence's sense, -1
where it is not known; `place` (O,) the number of its sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIED = 1e-9  # cosines in float64 that differ by less are the same
ROUNDING = 1e-6  # of a vector's length: what a model in float32 may leave of one that should be 0


def unit(x: Tensor) -> Tensor:
    """Vectors ``(..., W)`` of length 1; NaN for those of length 0, which point nowhere."""
    return x / _length(x)


def _length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length


def less(x: Tensor, mean: Tensor) -> Tensor:
    """Vectors ``(L, O, W)`` less the mean ``(L, W)``; exactly 0 where nothing but rounding is left."""
    moved = x - mean[:, None]
    return torch.where(_length(moved) > ROUNDING * _length(x), moved, 0)


def cosines(x: Tensor) -> Tensor:
    """The cosine of every two vectors ``(..., O, W)``, ``(..., O, O)``.

    >>> cosines(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    tensor([[1.0000, 0.6000],
            [0.6000, 1.0000]])
    """
    return unit(x) @ unit(x).mT


def similarity_to_centres(x: Tensor, group: Tensor, place: Tensor, count: int) -> Tensor:
    """The cosine of each vector with the mean of each group's, those of its own sentence left out.

    Args:
        x: ``(L, O, W)``.
        group: ``(O,)``.
        place: ``(O,)``.
        count: S, how many groups there are.

    Returns:
        ``(L, O, S)``; NaN where a group has no vector in another sentence.
    """
    belongs = group == torch.arange(count)[:, None]  # (S, O)
    counted = (belongs & (place[:, None, None] != place)).to(x)  # (O, S, O)
    weights = counted / counted.sum(-1, keepdim=True)
    # Layer by layer: the centres of all layers at once would be L O S W numbers.
    return torch.stack([(unit(layer)[:, None] * unit(weights @ layer)).sum(-1) for layer in x])


def nearest_share(cosine: Tensor, group: Tensor, place: Tensor) -> Tensor:
    """How often the nearest occurrence of known group in another sentence is of the same group.

    Where several are equally near, as in a layer that has seen no context yet, each counts as its part: so equal
    cosines everywhere give the share that is expected by chance.

    Args:
        cosine: ``(L, O, O)``.
        group: ``(O,)``.
        place: ``(O,)``.

    Returns:
        ``(L,)``.
    """
    known = group >= 0
    others = known & (place[:, None] != place)
    found = cosine.masked_fill(~others, -torch.inf)
    nearest = (found >= found.amax(-1, keepdim=True) - TIED) & others
    same = nearest & (group[:, None] == group)
    return (same.sum(-1).to(cosine) / nearest.sum(-1))[:, known].mean(-1)


def within_and_between(cosine: Tensor, group: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The mean cosine of two occurrences of known group in two sentences: of one group, and of two groups.

    Args:
        cosine: ``(L, O, O)``.
        group: ``(O,)``.
        place: ``(O,)``.

    Returns:
        Two tensors ``(L,)``.
    """
    known = (group >= 0) & (group >= 0)[:, None] & (place != place[:, None])
    same = group == group[:, None]
    return cosine[:, known & same].mean(-1), cosine[:, known & ~same].mean(-1)


def fixed_axes(x: Tensor) -> tuple[Tensor, float]:
    """The two directions in which vectors ``(O, W)`` differ most: their first principal components.

    Of each direction, the sign is the one in which the vector farthest out is positive. A direction in which they do
    not differ is 0.

    Returns:
        The axes ``(W, 2)``, and their share of the variance, 0 to 1; 1 where there is none.
    """
    moved = x - x.mean(0)
    # Two rows of zeros change nothing, and bring two directions where there are fewer vectors.
    _, sizes, directions = torch.linalg.svd(torch.nn.functional.pad(moved, (0, 0, 0, 2)), full_matrices=False)
    sizes = torch.where(sizes > ROUNDING * torch.linalg.vector_norm(x), sizes, 0)
    axes = (directions[:2] * (sizes[:2, None] > 0)).T
    along = moved @ axes
    signs = torch.where(along[along.abs().argmax(0), [0, 1]] < 0, -1, 1)
    return axes * signs, float(sizes[:2].square().sum() / sizes.square().sum()) if sizes.any() else 1.0
