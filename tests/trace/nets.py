"""A small module with attention, its inputs, and a recorder that can be killed."""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from saccade import attention, masks


class Layer(nn.Module):
    """Self-attention with whatever options; `key_heads` shares keys among heads."""

    def __init__(self, key_heads: int | None = None, **options) -> None:
        super().__init__()
        self.key_heads, self.options = key_heads, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys = x[:, : self.key_heads]
        return attention(x, keys, keys, **self.options)


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(mask=masks.causal()), Layer(mask=masks.causal())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


ENTRIES = 6


def inputs(entry: int) -> torch.Tensor:
    return torch.randn(1, 4, 100 + 7 * entry, 16, generator=torch.Generator().manual_seed(entry))


def record_all(to, *, resume: bool = False) -> None:
    """Record the entries that are not there yet."""
    import saccade

    net = Net()
    with saccade.record(net, keep="qk", to=to, resume=resume) as trace:
        for entry in range(len(trace), ENTRIES):
            net(inputs(entry))


def _recorders(folder: str, count: int) -> None:
    """For each line read fork a recorder and say its process id; at the next one say that it ended."""
    import zarr  # noqa: F401  so that the forks need not import it

    import saccade.trace  # noqa: F401

    torch.set_num_threads(1)
    for run in range(count):
        sys.stdin.readline()
        child = os.fork()
        if not child:
            try:
                record_all(os.path.join(folder, f"{run}.zarr"))  # noqa: PTH118
            finally:
                os._exit(0)
        print(child, flush=True)  # noqa: T201  the protocol
        sys.stdin.readline()
        os.waitpid(child, 0)
        print("ended", flush=True)  # noqa: T201  the protocol


if __name__ == "__main__":
    if sys.argv[1] == "recorders":
        _recorders(sys.argv[2], int(sys.argv[3]))
    else:
        record_all(sys.argv[2])
