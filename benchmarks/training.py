"""Forward and backward together, beside PyTorch's fused attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from forward import DTYPES, Case
from harness import Effort, Section, Target, compare, name_of, progress, spread, table, tensors, versus
from torch import Tensor

import saccade
from saccade import masks

SHAPES = ((8, 512), (8, 2048), (1, 4096))  # heads, length


def target(case: Case) -> Target:
    """How many times as fast as PyTorch's it should be."""
    if case.dtype == torch.float16:
        return Target(6)
    if case.heads == 1:
        return Target(1.2 if case.dtype == torch.float32 else 2.0)
    full, causal = (1.15, 1.4) if case.dtype == torch.float32 else (1.6, 2.0)
    return Target(causal if case.causal else full)


def calls(case: Case) -> dict[str, Callable[[], object]]:
    """One step of each: the output, and the gradients of all three inputs."""
    inputs = [x.requires_grad_() for x in tensors(case.heads, case.length, case.width, case.dtype)]
    grad = torch.randn(1, case.heads, case.length, case.width).to(case.dtype)
    mask = masks.causal() if case.causal else None

    def step(output: Tensor) -> object:
        return torch.autograd.grad(output, inputs, grad)

    return {
        "sdpa": lambda: step(F.scaled_dot_product_attention(*inputs, is_causal=case.causal)),
        "saccade": lambda: step(saccade.attention(*inputs, mask=mask)),
    }


def run(effort: Effort) -> Section:
    """The table of training."""
    rows, ratios = [], {dtype: [] for dtype in DTYPES}
    for dtype in DTYPES:
        for heads, length in SHAPES[:1] if effort.quick else SHAPES:
            for causal in (False, True):
                case = Case(heads, length, 64, dtype, causal)
                progress(f"training: {case}")
                seconds = compare(effort, calls(case))
                rows.append([str(case), *versus(seconds["sdpa"], seconds["saccade"], target(case))])
                ratios[dtype].append(seconds["sdpa"] / seconds["saccade"])
    text = "Forward and backward, B 1:\n\n"
    text += table(["case", "torch SDPA, ms", "saccade, ms", "ratio", "target"], rows)
    means = ", ".join(f"{name_of(dtype)} {spread(found)}" for dtype, found in ratios.items())
    return Section(text, f"Forward and backward together, against PyTorch's: {means} times as fast.")
