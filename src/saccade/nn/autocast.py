"""What autocast asks for, on every device: PyTorch's own question raises where it does not exist."""

from __future__ import annotations

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype in which autocast makes PyTorch compute attention; None where it is off or unknown (meta)."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
