"""The Triton kernels: the suite, on a GPU where there is one, else in Triton's interpreter on the CPU's tensors."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conformance import SHAPES, Case, Conformance, Shape

from saccade import masks

pytest.importorskip("triton", reason="triton is an extra: pip install 'saccade[gpu]'")

CUDA = torch.cuda.is_available()

pytestmark = pytest.mark.usefixtures("kernels")


# In the interpreter a tile takes milliseconds. One row past a block of 64, and two past two tiles of keys.
FEW_SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1),
    Shape(1, 1, 1, 1, 40, 3, 5),
    Shape(2, 2, 2, 0, 5, 4, 4),
    Shape(2, 2, 2, 5, 0, 4, 4),
    Shape(1, 2, 1, 65, 130, 16, 7),
    Shape(1, 2, 2, 130, 33, 8, 24),
    Shape(2, 1, 1, 3, 3, 111, 1),
]


MASKS = ["none", "causal", "sinks-and-window", "dense", "not"]
NOT_FINITE = (
    [*itertools.product(MASKS, [torch.nan, torch.inf, -torch.inf])]
    if CUDA
    else [("dense", torch.nan), ("not", torch.inf), ("causal", -torch.inf), ("none", -torch.inf)]
)


class TestGPU(Conformance):
    backend = "gpu"
    shapes = SHAPES if CUDA else FEW_SHAPES
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if CUDA else (torch.float32,)
    float64 = False

    @pytest.mark.parametrize("where", ["query", "key", "value"])
    @pytest.mark.parametrize(("mask", "bad"), NOT_FINITE)
    def test_not_finite(self, mask, where, bad):
        super().test_not_finite(mask, where, bad)

    @pytest.mark.parametrize("some", FEW_SHAPES[4:], ids=str)
    def test_float16(self, some):
        self.check(Case(some, masks.causal(some.offset), dtype=torch.float16))


def test_kernels_compile_for_a_gpu():
    """For a Hopper GPU, by Triton's own compiler: the interpreter takes what that refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("hopper.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    kernels = {
        "rows",
        "merge",
        "bounds",
        "spans",
        "columns",
        "cells",
        "backward_start",
        "backward_keys",
        "backward_rows",
        "relative_bias",
    }
    assert {about["kernel"] for about in compiled} == kernels
    for about in compiled:
        assert about["shared"] <= 227 << 10, about  # bytes that a program may have
        assert not about["double"], about
        if about["kernel"] in {"rows", "columns", "backward_keys", "backward_rows"}:
            assert about["wgmma"] or about["mma"], about  # tensor cores
