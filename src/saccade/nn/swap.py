"""Put our attention layers where a model has PyTorch's, and back.

A swapped layer is a second view of the same state: parameters, submodules and hooks are shared by
identity, so optimizers, tied weights and hook handles keep working. All is checked before anything
is changed: a model with a layer that cannot be swapped is refused as a whole, and left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch.nn import Module

from saccade.errors import UnsupportedModelError
from saccade.nn.multihead import MultiheadAttention

M = TypeVar("M", bound=Module)

# An attribute that `replace` leaves on an encoder: what its use_nested_tensor was before.
_NESTED_BEFORE = "_use_nested_tensor_before_saccade"


def replace(model: Module) -> Module:
    """Make every `torch.nn.MultiheadAttention` of a model a `saccade.nn.MultiheadAttention`.

    The new layers share parameters (by identity) and hooks with the old ones and keep their
    training mode; a layer used in two places stays one layer. `torch.nn.TransformerEncoder` is told
    not to make nested tensors, so that padded positions hold what the layers compute instead of 0.
    The model works in evaluation mode, and in training mode where the dropout of attention weights
    is 0.

    Args:
        model: any module. It is changed in place.

    Returns:
        The model; if it is a `torch.nn.MultiheadAttention` itself, the layer to use in its place.

    Raises:
        UnsupportedModelError: there is nothing to swap, or something that cannot be: subclasses of
            PyTorch's layer (quantizable, parametrized), layers with a `forward` of their own, or
            scripted ones. The message names them; nothing was changed.

    >>> import torch, saccade
    >>> model = torch.nn.TransformerEncoderLayer(8, 2, dropout=0.0)
    >>> type(saccade.nn.replace(model).self_attn).__module__
    'saccade.nn.multihead'
    >>> type(saccade.nn.restore(model).self_attn).__module__
    'torch.nn.modules.activation'
    """
    _refuse_unknown(model)
    modules = list(model.modules())
    if not any(isinstance(m, (torch.nn.MultiheadAttention, MultiheadAttention)) for m in modules):
        raise UnsupportedModelError(
            f"{type(model).__name__} holds no torch.nn.MultiheadAttention, so nothing can be "
            "swapped: use saccade.sdpa() or saccade.attach() for models with attention of their own"
        )
    swapped = _swap(model, torch.nn.MultiheadAttention, _ours)
    for encoder in _encoders(swapped):
        encoder.__dict__.setdefault(_NESTED_BEFORE, encoder.use_nested_tensor)
        encoder.use_nested_tensor = False
    return swapped


def restore(model: Module) -> Module:
    """Make every `saccade.nn.MultiheadAttention` of a model a `torch.nn.MultiheadAttention` again.

    The way back from `replace`, with what was learned meanwhile: the parameters are still shared.
    Layers that were built as ours become PyTorch's too.

    Args:
        model: any module. It is changed in place.

    Returns:
        The model; if it is one of our layers itself, the layer to use in its place.
    """
    restored = _swap(model, MultiheadAttention, _theirs)
    for encoder in _encoders(restored):
        if _NESTED_BEFORE in encoder.__dict__:
            encoder.use_nested_tensor = encoder.__dict__.pop(_NESTED_BEFORE)
    return restored


def _swap(model: Module, kind: type[Module], make: Callable[[Module], Module]) -> Module:
    """Put ``make(layer)`` where the model has a layer of exactly that kind, one for each layer."""
    made = {id(m): make(m) for m in model.modules() if type(m) is kind}
    for parent in list(model.modules()):
        children = parent._modules  # noqa: SLF001  named_children() leaves out repeated ones
        for name, child in children.items():
            if child is not None and id(child) in made:
                children[name] = made[id(child)]
    return made.get(id(model), model)


def _ours(layer: Module) -> Module:
    twin = MultiheadAttention.__new__(MultiheadAttention)
    twin.__dict__ = dict(layer.__dict__)
    return twin


def _theirs(layer: Module) -> Module:
    twin = torch.nn.MultiheadAttention.__new__(torch.nn.MultiheadAttention)
    packed = layer.in_proj_weight is not None
    twin.__dict__ = {**layer.__dict__, "_qkv_same_embed_dim": packed}
    return twin


def _encoders(model: Module) -> Iterator[torch.nn.TransformerEncoder]:
    """The encoders that hold one of our layers, or held one."""
    for module in model.modules():
        if isinstance(module, torch.nn.TransformerEncoder):
            ours = any(isinstance(m, MultiheadAttention) for m in module.modules())
            if ours or _NESTED_BEFORE in module.__dict__:
                yield module


def _refuse_unknown(model: Module) -> None:
    reasons = [f"{name or 'the model itself'} ({why})" for name, why in _unknown(model)]
    if reasons:
        raise UnsupportedModelError(
            f"{type(model).__name__} is left as it was, as these layers cannot be swapped: {', '.join(reasons)}"
        )


def _unknown(model: Module) -> Iterator[tuple[str, str]]:
    """Path of each layer that computes multi-head attention in a way we do not know, and why."""
    for name, module in model.named_modules():
        if getattr(module, "original_name", None) == "MultiheadAttention":
            yield name, "a scripted MultiheadAttention"
        elif not isinstance(module, torch.nn.MultiheadAttention):
            continue
        elif type(module) is not torch.nn.MultiheadAttention:
            yield name, f"{type(module).__module__}.{type(module).__name__}, a subclass"
        elif "forward" in module.__dict__:
            yield name, "its forward was overridden"
