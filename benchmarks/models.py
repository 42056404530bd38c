"""Whole models, random weights: `saccade.attach` beside `attn_implementation="sdpa"`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from harness import Effort, Section, Target, alternate, compare, name_of, progress, spread, table, versus
from torch import Tensor, nn

import saccade

NEVER_SLOWER = Target(1)
# Where PyTorch has no bfloat16 product of its own for a processor, its general one is a hundred times as slow as
# float32, attention is nothing in a model's time, and one forward takes minutes.
SLOW_PRODUCT = 10


def bert() -> nn.Module:
    """BERT-base with room for 2,048 tokens."""
    import transformers

    return transformers.BertModel(transformers.BertConfig(max_position_embeddings=2048, attn_implementation="sdpa"))


def llama() -> nn.Module:
    """A small Llama: 12 layers, 12 heads that share 4 key heads."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {"BERT-base": bert, "Llama, 12 layers": llama}


def pair(build: Callable[[], nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A model and its attached copy; they agree."""
    torch.manual_seed(0)
    model = build().eval().to(dtype)
    ours = copy.deepcopy(model)
    saccade.attach(ours)
    if dtype == torch.float32:
        tokens = torch.arange(64)[None]
        torch.testing.assert_close(ours(tokens)[0], model(tokens)[0], rtol=1e-3, atol=1e-3)
    return model, ours


def product_ratio(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a product of matrices takes."""
    x, y = torch.randn(128, 768), torch.randn(768, 768)
    narrow_x, narrow_y = x.to(dtype), y.to(dtype)
    seconds = alternate({"narrow": lambda: narrow_x @ narrow_y, "float32": lambda: x @ y}, rounds=3)
    return seconds["narrow"] / seconds["float32"]


def measure(name: str, dtype: torch.dtype, lengths: tuple[int, ...], effort: Effort) -> dict[int, dict[str, float]]:
    """Seconds of one model, by number of tokens."""
    progress(f"models: {name}, {name_of(dtype)}")
    model, ours = pair(MODELS[name], dtype)
    found = {}
    for length in lengths:
        progress(f"models: {name}, {name_of(dtype)}, {length:,} tokens")
        tokens: Tensor = torch.arange(length)[None] % 1000
        found[length] = compare(effort, {"sdpa": lambda x=tokens: model(x), "saccade": lambda x=tokens: ours(x)})
    return found


def run(effort: Effort) -> Section:
    """The table of models."""
    import transformers

    rows, ratios, left_out = [], [], ""
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            slow = product_ratio(dtype)
            if slow > SLOW_PRODUCT:
                left_out += (
                    f"\n\n{name_of(dtype)} is left out: PyTorch's product of matrices takes {slow:.0f} times as "
                )
                left_out += "long as float32 on this processor, so nearly all of a model's time."
                continue
            for name in MODELS:
                for length, seconds in measure(name, dtype, (512,) if effort.quick else (512, 2048), effort).items():
                    case = f"{name}, {name_of(dtype)}, {length:,} tokens"
                    rows.append([case, *versus(seconds["sdpa"], seconds["saccade"], NEVER_SLOWER)])
                    ratios.append(seconds["sdpa"] / seconds["saccade"])
    text = f"Whole models of transformers {transformers.__version__}, random weights, forward of one text:\n\n"
    text += table(["model", "sdpa, ms", "saccade, ms", "ratio", "target"], rows) + left_out
    return Section(text, f"Whole models, against their own `sdpa`: {spread(ratios)} times as fast.")
