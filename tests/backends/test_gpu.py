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
from conformance import MASKS as MASKS_BY_NAME
from conformance import SHAPES, Case, Conformance, Shape

import saccade
from saccade import masks, scores, statistics
from saccade.backends import gpu

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


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that were run."""
    names, launch = [], gpu._Run._launch

    def noted(self, name, *arguments):
        names.append(name)
        launch(self, name, *arguments)

    monkeypatch.setattr(gpu._Run, "_launch", noted)
    return names


class TestGPU(Conformance):
    backend = "gpu"
    shapes = SHAPES if CUDA else FEW_SHAPES
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if CUDA else (torch.float32,)
    float64 = False

    @pytest.mark.parametrize("where", ["query", "key", "value"])
    @pytest.mark.parametrize(("mask", "bad"), NOT_FINITE)
    def test_not_finite(self, mask, where, bad):
        super().test_not_finite(mask, where, bad)

    @pytest.mark.parametrize("mask", ["none", "padding", "sinks-and-window"])
    @pytest.mark.parametrize("group", [1, 3])
    def test_split_keys(self, mask, group, launches):
        """Few rows and many keys: several programs look at the keys of one row."""
        shape = Shape(2, 2 * group, 2, 1, 700, 16, 8)
        self.check(Case(shape, MASKS_BY_NAME[mask](shape), sinks=torch.randn(2 * group), dtype=self.dtypes[0]))
        assert "merge" in launches

    def test_split_keys_not_finite(self, launches):
        query, key, value = Case(Shape(1, 2, 2, 1, 700, 16, 8), dtype=torch.float32).tensors
        query, key, value = (x.float() for x in (query, key, value))
        key[0, 0, 501, 3] = torch.nan
        value[0, 1, 650, 3] = torch.inf
        asked = [statistics.Entropy(), statistics.TopKeys(3)]
        output, report = saccade.attention(query, key, value, statistics=asked, backend="gpu")
        assert "merge" in launches
        assert output[0, 0].isnan().all()
        assert output[0, 1, 0].isnan().tolist() == [False] * 3 + [True] + [False] * 4
        assert report.entropy.isnan().flatten().tolist() == [True, False]
        assert report.top_keys.weights[0, 0].isnan().all()
        assert (report.top_keys.indices[0, 1] >= 0).all()

    @pytest.mark.parametrize("start", [0, 1])
    def test_descriptors(self, start, monkeypatch):
        """Where rows begin at multiples of 16 bytes blocks come by descriptors, and elsewhere without."""
        from saccade.backends import gpu_kernels

        made, kind = [], gpu_kernels.TensorDescriptor
        monkeypatch.setattr(gpu_kernels, "TensorDescriptor", lambda *form: made.append(form) or kind(*form))
        torch.manual_seed(0)
        parts = torch.randn(2, 40, 3, 3, 32)[..., start : start + 16].unbind(2)
        memory = parts[0].untyped_storage().data_ptr()
        query, key, value = (x.transpose(1, 2) for x in parts)
        found = []
        for backend in ("gpu", "reference"):
            leaves = [x.detach().requires_grad_() for x in (query, key, value)]
            output, report = saccade.attention(
                *leaves, mask=masks.causal(), statistics=[statistics.Received()], backend=backend
            )
            found.append([output, report.received, *torch.autograd.grad(output.square().sum(), leaves)])
        for ours, exact in zip(*found, strict=True):
            torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-3)
        of_inputs = [form for form in made if form[0].untyped_storage().data_ptr() == memory]
        is_possible = not CUDA or torch.cuda.get_device_capability() >= (9, 0)
        assert len(of_inputs) == (6 if start == 0 and is_possible else 0)

    @pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (4, 1), (1, 1)])
    def test_memberships_are_shared(self, heads, key_heads):
        """Four groups, so that rows of memberships begin at multiples of 16 bytes; they serve all heads."""
        shape = Shape(2, heads, key_heads, 33, 70, 16, 16)
        groups = statistics.Mass(torch.arange(70) % 4, 4), statistics.Received(torch.arange(33) % 4, 4)
        case = Case(shape, masks.causal(shape.offset), dtype=self.dtypes[0])
        self.check(case, [statistics.LogSumExp(), *groups])

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_gradients_and_rows_that_are_not_finite(self, bad):
        """What does not see them stays a number."""
        query, key, value, rows = (torch.randn(1, 1, 70, 4) for _ in range(4))
        rows[0, 0, 33, 2] = bad
        seen = torch.zeros(70, 4, dtype=torch.bool)
        seen[:34, 2] = True
        value.requires_grad_()
        output = saccade.attention(query, key, value, mask=masks.causal(), backend="gpu")
        (grad,) = torch.autograd.grad(output, value, rows)
        product = saccade.Pattern(query, key, mask=masks.causal(), backend="gpu").mT @ rows
        assert torch.equal(grad[0, 0].isnan(), seen)
        assert torch.equal(product[0, 0].isnan(), seen)

    def test_relative_biases_beyond_32_bits(self):
        query = torch.randn(1, 2, 5, 8)
        values = torch.randn(2, 5)
        far = (
            scores.RelativeBias(values, -2, offset=-(1 << 31)),
            scores.RelativeBias(values, -(1 << 31)),
            scores.RelativeBias(values, (1 << 31) - 10),
        )
        for bias in far:
            ours, theirs = (saccade.attention(query, query, query, bias=bias, backend=b) for b in ("gpu", "tiled"))
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("some", FEW_SHAPES[4:], ids=str)
    def test_half_precision(self, some, dtype):
        self.check(Case(some, masks.causal(some.offset), dtype=dtype))

    @pytest.mark.parametrize("mask", ["none", "sinks-and-window", "dense"])
    def test_bfloat16(self, mask):
        shape = Shape(1, 4, 2, 70, 150, 32, 24)
        sinks = torch.randn(4)
        self.check(Case(shape, MASKS_BY_NAME[mask](shape), sinks=sinks, softcap=5.0, dtype=torch.bfloat16))


def compiled_for(capability):
    """What is said of each kernel that was compiled for a GPU of a compute capability."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiling.py")
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


ALL = {"rows", "merge", "bounds", "spans", "columns", "cells", "window"}
ALL |= {"backward_start", "backward_keys", "backward_rows"}
WITH_PRODUCTS = {"rows", "columns", "backward_keys", "backward_rows"}


def test_kernels_compile_for_hopper():
    """By Triton's own compiler: the interpreter takes what that refuses."""
    compiled = compiled_for(90)
    assert {about["kernel"] for about in compiled} == {*ALL, "relative_bias", "product"}
    for about in compiled:
        assert not about["double"], about
        if about["kernel"] in WITH_PRODUCTS:
            assert about["wgmma"] or about["mma"], about  # tensor cores
    first = {about["kernel"]: about for about in reversed(compiled)}
    assert all(first[kernel]["wgmma"] and first[kernel]["tma"] for kernel in WITH_PRODUCTS)


def test_kernels_compile_for_a_gpu_with_little_shared_memory():
    """Of an RTX 4090: smaller tiles are taken there, and nothing that it does not have."""
    compiled = compiled_for(89)
    assert {about["kernel"] for about in compiled} == ALL
    for about in compiled:
        assert about["shared"] <= 99 << 10, about
        assert not about["wgmma"], about
        assert not about["tma"], about
        assert about["mma"] or about["kernel"] not in WITH_PRODUCTS, about
