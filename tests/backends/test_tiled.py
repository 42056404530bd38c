"""The tiled backend: the suite, and again with tiny panels so that every row is joined from several."""

from __future__ import annotations

import pytest
import torch
from conformance import Case, Conformance, Shape

import saccade
from saccade import masks, statistics
from saccade.backends import tiled


class TestTiled(Conformance):
    backend = "tiled"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)


class TestTiledInSmallPanels(Conformance):
    backend = "tiled"

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(tiled, "PANEL", 4096)
        monkeypatch.setattr(tiled, "ROWS", {128: 1.0, 32: 1.35})


class TestTiledInFloat64(Conformance):
    backend = "tiled"
    dtypes = (torch.float64,)


def test_nothing_of_size_n_by_n_is_allocated():
    """The largest tensor any operation makes stays far below one boolean per query-key pair."""
    n = 8192
    case = Case(Shape(1, 1, 1, n, n, 16, 16))
    leaves = {name: x.float().detach().requires_grad_() for name, x in case.leaves(torch.float64).items()}
    mask = (masks.window(512) | masks.prefix(4)) & masks.causal()
    with LargestTensor() as largest:
        output, _ = saccade.attention(**leaves, mask=mask, statistics=[statistics.Entropy(), statistics.Received()])
        output.sum().backward()
    assert 0 < largest.bytes < n * n // 4


def test_the_largest_tensor_is_found():
    with LargestTensor() as largest:
        torch.ones(100, 100)
    assert largest.bytes == 40_000


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return result
