"""Write the golden trace that the tests of every language read: golden.zarr, and in golden.json what is in it.

    python scripts/golden_trace.py tests/trace/golden.zarr

Small and made of nothing but this file: two layers of attention over nine words, with a tokenizer of those words.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

import saccade
from saccade import attention, masks, scores

TEXT = "He left the roses by the bank ."


class Words:
    """As much of a tokenizer as a recording asks for."""

    is_fast = True
    unk_token_id = None
    all_special_ids = (0,)
    vocabulary = ("[CLS]", *dict.fromkeys(TEXT.split()))

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.vocabulary[i] for i in ids]

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(self.vocabulary[i] for i in ids if i)

    def __call__(self, text: str, **_: object) -> dict[str, list]:
        ids, spans, at = [0], [(0, 0)], 0
        for word in text.split():
            at = text.index(word, at)
            ids.append(self.vocabulary.index(word))
            spans.append((at, at + len(word)))
            at += len(word)
        return {"input_ids": ids, "offset_mapping": spans}


class Attention(nn.Module):
    """Four heads on two of keys, causal, with sinks."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query = hidden_states.unflatten(-1, (4, 8)).transpose(1, 2)
        key = query[:, ::2].roll(1, -1)
        sinks = torch.tensor([-1.0, 0.0, 1.0, 2.0])
        bias = scores.ALiBi(scores.alibi_slopes(4))
        return attention(query, key, key, mask=masks.causal(), sinks=sinks, bias=bias).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.attention(hidden_states)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        # Numbers that every machine makes alike: no random generator, no sine.
        places = torch.arange(32, dtype=torch.int64)
        hidden = ((input_ids[..., None] * 37 + places * places * 11) % 64 - 32).float() / 16
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def write(path: Path) -> None:
    """Write the trace and what is in it."""
    shutil.rmtree(path, ignore_errors=True)
    model, words = Model(), Words()
    ids = torch.tensor([words(TEXT)["input_ids"]])
    with saccade.record(model, words, keep="qkv", to=path, name="golden") as trace:
        trace.next(texts=[TEXT], sources=["roses"])
        model(input_ids=ids)
    entry = trace[0]
    names = ("stacks/0/entropy", "stacks/0/top_keys", "stacks/0/layer", "stacks/0/keys", "maps/0/0/s0/map",
             "sequences/0/token", "sequences/0/start", "sequences/0/special", "masks/0/stops")  # fmt: skip
    said = {
        "sites": [entry.sites for entry in trace],
        "labels": entry.tokens.labels() if entry.tokens else [],
        "pattern": entry[0].pattern.dense().tolist(),
        "arrays": {name: _listed(entry._arrays.read(name)) for name in names},  # noqa: SLF001  all of it
    }
    path.with_suffix(".json").write_text(json.dumps(said) + "\n")


def _listed(values: object) -> list:
    return values.double().tolist() if isinstance(values, torch.Tensor) else values.tolist()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
