"""Tiny random models of the architectures that must agree with eager, and inputs for each case."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

Inputs = dict[str, Tensor]
BATCH, TOKENS, PADDING = 3, 24, 5

# Not every model keeps packed sequences apart: OPT and GPT-OSS do not hand position_ids to their
# mask.
CASES = ("single", "left", "right", "holes", "packed")

_WIDTH = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _WIDTH | {"num_key_value_heads": 2, "head_dim": 8}
_LAYERS = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Architecture:
    """One model class with a tiny configuration.

    Attributes:
        kind: the transformers class.
        config: the configuration class.
        options: its arguments.
        cases: which of `CASES` apply.
        inputs: makes the inputs of a case, and which positions of the outputs named are valid.
    """

    name: str
    kind: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[str], tuple[Inputs, dict[str, Tensor | None]]]
    cases: tuple[str, ...] = CASES
    generates: bool = True
    sub_configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nn.Module:
        """The model with random weights, in eval mode."""
        torch.manual_seed(seed)
        config = getattr(tf, self.config)(**copy.deepcopy(self.options | self.sub_configs))
        model = getattr(tf, self.kind)._from_config(config, attn_implementation="eager")
        # Larger weights than at initialisation: attention that is not flat.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.15)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                nn.init.normal_(parameter)
        return model.eval()


def run(model: nn.Module, inputs: Inputs, valid: dict[str, Tensor | None]) -> list[Tensor]:
    """The model's named outputs at valid positions."""
    with torch.no_grad():
        outputs = model(**inputs)
    found = []
    for name, where in valid.items():
        value = outputs
        for part in name.split("."):
            value = getattr(value, part)
        found.append(value if where is None else value[where])
    return found


def largest_error(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference anywhere."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def padding(case: str, length: int = TOKENS) -> Tensor:
    """The 2-D mask of a case: each row with another amount of padding, the first with none."""
    mask = torch.ones(BATCH, length, dtype=torch.long)
    for row in range(1, BATCH):
        amount = row * PADDING - 2
        if case == "left":
            mask[row, :amount] = 0
        elif case == "right":
            mask[row, length - amount :] = 0
        elif case == "holes":
            mask[row, 4 : 4 + amount : row] = 0
            mask[row, -1] = 0
    return mask


def token_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 99, (batch, length), generator=torch.Generator().manual_seed(seed))


def packed_positions(batch: int, length: int) -> Tensor:
    """Three documents in each row, of other lengths in each."""
    rows = []
    for row in range(batch):
        cuts = [0, 5 + row, 14 - row, length]
        rows.append(torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(cuts)]))
    return torch.stack(rows)


def text(case: str, output: str = "logits") -> tuple[Inputs, dict[str, Tensor | None]]:
    if case == "single":
        return {"input_ids": token_ids(1, TOKENS)}, {output: None}
    inputs = {"input_ids": token_ids(BATCH, TOKENS)}
    if case == "packed":
        return inputs | {"position_ids": packed_positions(BATCH, TOKENS)}, {output: None}
    mask = padding(case)
    return inputs | {"attention_mask": mask}, {output: mask.bool()}


def causal(case: str) -> tuple[Inputs, dict[str, Tensor | None]]:
    inputs, valid = text(case)
    return inputs | {"use_cache": False}, valid  # type: ignore[dict-item]


def encoder(case: str) -> tuple[Inputs, dict[str, Tensor | None]]:
    return text(case, "last_hidden_state")


def encoder_decoder(case: str) -> tuple[Inputs, dict[str, Tensor | None]]:
    inputs, valid = text(case, "encoder_last_hidden_state")
    batch = inputs["input_ids"].shape[0]
    mask = padding("right" if case == "right" else "single", 9)[:batch]
    decoder = {"decoder_input_ids": token_ids(batch, 9, seed=2), "decoder_attention_mask": mask}
    return inputs | decoder, valid | {"logits": mask.bool()}


def whisper(case: str) -> tuple[Inputs, dict[str, Tensor | None]]:
    inputs, valid = encoder_decoder("right" if case == "right" else "single")
    batch = inputs.pop("input_ids").shape[0]
    inputs.pop("attention_mask", None)
    valid["encoder_last_hidden_state"] = None
    sound = torch.randn(batch, 8, 60, generator=torch.Generator().manual_seed(3))
    return inputs | {"input_features": sound}, valid


def pictures(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def vision(case: str) -> tuple[Inputs, dict[str, Tensor | None]]:
    del case
    return {"pixel_values": pictures(2)}, {"last_hidden_state": None}


def clip(case: str) -> tuple[Inputs, dict[str, Tensor | None]]:
    inputs, valid = text(case, "text_model_output.last_hidden_state")
    valid["vision_model_output.last_hidden_state"] = None
    return inputs | {"pixel_values": pictures(2)}, valid


def captions(case: str) -> tuple[Inputs, dict[str, Tensor | None]]:
    """Text around a picture of four tokens, which see one another in both directions."""
    inputs, valid = text(case)
    ids = inputs["input_ids"]
    ids[:, 12:16] = 98
    pixels = {"pixel_values": pictures(ids.shape[0]), "token_type_ids": (ids == 98).long()}
    return inputs | pixels, valid


_BERT = _WIDTH | {"type_vocab_size": 2}
_SEQ2SEQ = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_EYES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
_PADDED = ("single", "left", "right", "holes")

ARCHITECTURES = (
    Architecture(
        "GPT-2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        causal,
    ),
    Architecture("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", _WIDTH, causal),
    Architecture(
        "OPT",
        "OPTForCausalLM",
        "OPTConfig",
        {k: v for k, v in _WIDTH.items() if k != "intermediate_size"} | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        causal,
        _PADDED,
    ),
    Architecture("Llama", "LlamaForCausalLM", "LlamaConfig", _GROUPED, causal),
    Architecture("Mistral", "MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 7}, causal),
    Architecture(
        "Gemma 2",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _GROUPED
        | {"sliding_window": 7, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
        | {"layer_types": _LAYERS},
        causal,
    ),
    Architecture(
        "Gemma 3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _GROUPED | {"sliding_window": 7, "query_pre_attn_scalar": 8, "layer_types": _LAYERS},
        causal,
    ),
    Architecture(
        "Gemma 3, pictures",
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"mm_tokens_per_image": 4, "image_token_id": 98, "boi_token_index": 97} | {"eoi_token_index": 96},
        captions,
        ("single", "left", "right"),
        generates=False,
        sub_configs={
            "text_config": _GROUPED | {"sliding_window": 7, "query_pre_attn_scalar": 8, "layer_types": _LAYERS},
            "vision_config": _EYES | {"vision_use_head": False},
        },
    ),
    Architecture("Qwen 3", "Qwen3ForCausalLM", "Qwen3Config", _GROUPED, causal),
    Architecture(
        "GPT-OSS",
        "GptOssForCausalLM",
        "GptOssConfig",
        _GROUPED | {"sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1} | {"layer_types": _LAYERS},
        causal,
        _PADDED,
    ),
    Architecture(
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _WIDTH
        | {"num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4}
        | {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
        | {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
        | {"v_head_dim": 12, "n_shared_experts": 1},
        causal,
    ),
    Architecture(
        "Llama 4",
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        _GROUPED
        | {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 6}
        | {"moe_layers": [], "layer_types": ["chunked_attention", "full_attention"]}
        | {"no_rope_layers": [1, 0]},
        causal,
    ),
    Architecture("BERT", "BertModel", "BertConfig", _BERT, encoder, _PADDED, generates=False),
    Architecture("RoBERTa", "RobertaModel", "RobertaConfig", _BERT, encoder, _PADDED, generates=False),
    Architecture(
        "ModernBERT",
        "ModernBertModel",
        "ModernBertConfig",
        _WIDTH | {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 1} | {"sep_token_id": 2},
        encoder,
        _PADDED,
        generates=False,
    ),
    Architecture(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
        encoder_decoder,
        _PADDED,
    ),
    Architecture(
        "BART",
        "BartForConditionalGeneration",
        "BartConfig",
        _SEQ2SEQ | {"max_position_embeddings": 64},
        encoder_decoder,
        _PADDED,
    ),
    Architecture(
        "Whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _SEQ2SEQ
        | {"num_mel_bins": 8, "max_source_positions": 30, "max_target_positions": 32}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
        whisper,
        ("single", "right"),
        generates=False,
    ),
    Architecture("ViT", "ViTModel", "ViTConfig", _EYES, vision, ("single",), generates=False),
    Architecture(
        "CLIP",
        "CLIPModel",
        "CLIPConfig",
        {"projection_dim": 16},
        clip,
        _PADDED,
        generates=False,
        sub_configs={
            "text_config": _WIDTH | {"eos_token_id": 98},
            "vision_config": _EYES | {"projection_dim": 16},
        },
    ),
)


def cases() -> Iterator[tuple[Architecture, str]]:
    """Every architecture with each of its cases."""
    for architecture in ARCHITECTURES:
        for case in architecture.cases:
            yield architecture, case
