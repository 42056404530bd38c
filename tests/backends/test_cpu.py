"""The compiled kernels: the suite, once for each instruction set that runs on this machine."""

from __future__ import annotations

import pytest
import torch
from conformance import Conformance

from saccade.backends import native

library = native.load()
assert isinstance(library, native.Library), library


@pytest.fixture(autouse=True, params=library.variants)
def variant(request):
    before = library.variant
    yield library.use(request.param)
    library.use(before)


class TestCPU(Conformance):
    backend = "cpu"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    float64 = False
