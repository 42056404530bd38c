"""Compiles kernels for a GPU that is not there: run as a script, it prints a line of JSON for each.

    python compiling.py [90 | 89 | 80]

Triton asks its driver which GPU there is; here it is told: a Hopper (compute capability 9.0), or an older one.
Nothing is launched.
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

from saccade import masks, scores, statistics
from saccade.backends import Inputs, get, gpu
from saccade.functional import make_problem
from saccade.statistics import check_all

SHARED = {80: 163, 89: 99, 90: 227}  # KiB that a program may have


class NoDriver:
    """The driver of a GPU that is not there."""

    def __init__(self, capability=90):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def compile_only(run, name, grid, tiles, *arguments):
    """In place of a launch."""
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    compiled = run.kernel(name).warmup(*arguments, grid=grid, **options)
    limit = SHARED[driver.active.capability] << 10
    if compiled.metadata.shared > limit:  # as when it is loaded
        raise OutOfResources(compiled.metadata.shared, limit, "shared memory")
    ptx = compiled.asm["ptx"]
    about = {
        "kernel": name,
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma.mma_async" in ptx,
        "tma": "cp.async.bulk.tensor" in ptx,
        "mma": "mma.sync" in ptx,
        "double": ".f64" in ptx,
    }
    print(json.dumps(about), flush=True)  # noqa: T201


def attend(dtype, width, *, queries=512, heads=4, key_heads=4, asked=(), backward=False, **options):
    query = torch.zeros(1, heads, queries, width, dtype=dtype)
    key = torch.zeros(1, key_heads, 512, width, dtype=dtype)
    inputs = Inputs(query, key, key)
    problem = make_problem(
        inputs, **{"mask": None, "scale": None, "softcap": None, "bias": None, "sinks": None} | options
    )
    forward = get("gpu").forward(problem, inputs, check_all(asked, inputs.lengths) if asked else [], want_lse=True)
    if backward:
        get("gpu").window(problem, inputs, forward.lse, slice(0, 64), slice(0, 64))
        get("gpu").backward(problem, inputs, forward, query, torch.zeros(1, heads, queries))


def main(capability):
    driver.set_active(NoDriver(capability))
    if capability < 90:
        gpu.described = lambda _: False
    gpu.unavailable = lambda _: None
    gpu.processors = lambda _: 132
    gpu._Run._launch = compile_only
    every = [
        statistics.Entropy(),
        statistics.TopKeys(8),
        statistics.Distance(),
        statistics.Received(),
        statistics.Map(8),
    ]
    attend(torch.bfloat16, 128, mask=masks.causal(), asked=every, backward=True)
    if capability < 90:
        return
    relative = scores.RelativeBias(torch.zeros(4, 9), -4)
    attend(torch.float16, 64, mask=masks.dense(torch.rand(512, 512) < 0.5), bias=relative, softcap=20.0, backward=True)
    attend(torch.float32, 64, bias=torch.zeros(1, 4, 512, 512), sinks=torch.zeros(4))
    groups = torch.arange(512) % 3
    attend(
        torch.bfloat16, 64, asked=[statistics.Mass(groups, 3), statistics.Received(groups, 3), statistics.MaxWeight()]
    )
    attend(torch.bfloat16, 128, queries=1, heads=32, key_heads=8)


if __name__ == "__main__":
    main(int((sys.argv[1:] or [90])[0]))
