"""A sliding window of 512 keys, beside dense attention, a boolean mask, and compiled FlexAttention."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Effort, Section, Target, compare, name_of, progress, table, tensors, versus
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import saccade
from saccade import masks
from saccade.masks import Lengths

WINDOW = 512
TARGETS = {
    ("dense causal SDPA", torch.float32): Target(10),
    ("dense causal SDPA", torch.bfloat16): Target(10),
    ("compiled FlexAttention", torch.float32): Target(2),
    ("compiled FlexAttention", torch.bfloat16): Target(5),
}


def flex(length: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention, compiled, with the window as its block mask."""

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        del b, h
        return (j <= i) & (i - j < WINDOW)

    blocks = create_block_mask(visible, None, None, length, length, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks)


def peers(query: Tensor, key: Tensor, value: Tensor) -> tuple[dict[str, Callable[[], Tensor]], str]:
    """What to compare with, each checked against our output, and why FlexAttention is missing if it is."""
    length = query.shape[2]
    mask = masks.window(WINDOW - 1, 0)
    visible = mask.to_dense(Lengths(1, 1, length, length))
    calls: dict[str, Callable[[], Tensor]] = {
        "dense causal SDPA": lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True),
        "SDPA, boolean mask": lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=visible),
        "saccade": lambda: saccade.attention(query, key, value, mask=mask),
    }
    try:
        attention = flex(length)
        flexed = attention(query, key, value)
    except (RuntimeError, ImportError) as error:
        return calls, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    torch.testing.assert_close(flexed, calls["saccade"](), rtol=0, atol=0.05 if query.dtype != torch.float32 else 1e-4)
    return calls | {"compiled FlexAttention": lambda: attention(query, key, value)}, ""


def run(effort: Effort) -> Section:
    """The table of windows."""
    length = 2048 if effort.quick else 8192
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        progress(f"window: {name_of(dtype)}, N {length:,}, compiling FlexAttention")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls, missing = peers(*tensors(4, length, 64, dtype))
            progress(f"window: {name_of(dtype)}, N {length:,}, timing")
            seconds = compare(effort, calls)
        ours = seconds.pop("saccade")
        for peer, taken in seconds.items():
            rows.append([name_of(dtype), peer, *versus(taken, ours, TARGETS.get((peer, dtype)))])
        if missing:
            rows.append([name_of(dtype), "compiled FlexAttention", f"not run: {missing}", "", "", ""])
    text = f"A causal window of {WINDOW} keys, B 1, H 4, N {length:,}, D 64:\n\n"
    text += table(["dtype", "against", "peer, ms", "saccade, ms", "ratio", "target"], rows)
    return Section(text)
