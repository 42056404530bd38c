"""Attention layers whose pattern can be asked, with the parameters of PyTorch's own."""

from saccade.nn.multihead import MultiheadAttention
from saccade.nn.swap import replace, restore

__all__ = ["MultiheadAttention", "replace", "restore"]
