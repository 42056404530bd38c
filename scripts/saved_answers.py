"""Write what a saved page has to answer: traces, questions, and the answers of `saccade.explorer`.

    python scripts/saved_answers.py tests/explorer/saved.bin

Read by `web/src/source/stored.test.ts`. The traces hold every form of mask and bias, sinks, a softcap, grouped queries,
half precision, padding, keys of another text, a long text with a map, and one without queries and keys. One file,
gzipped: a parcel of files (NAME/trace/..., NAME/answers/...) with the cases as JSON, each answer among the files.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import saccade
from saccade import attention, masks, scores
from saccade import statistics as asked_for
from saccade.explorer.explorer import Explorer
from saccade.explorer.folder import Chosen, copy
from saccade.explorer.parcel import pack
from saccade.explorer.saved import ANSWERS, TRACE, answers, document
from saccade.trace import Trace

WORDS = ["[CLS]", "he", "left", "the", "rose", "##s", "by", "bank", ".", "[PAD]"]
PAD = len(WORDS) - 1
HEADS, WIDTH = 4, 8
LENGTH = 260  # of the long text: more than a tile
REACH = 8  # of its tokens


class Tokenizer:
    """As much of one as a recording asks for."""

    is_fast = False
    unk_token_id = None
    all_special_ids = (0, PAD)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [WORDS[i] for i in ids]

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(WORDS[i][2:] if WORDS[i].startswith("##") else f" {WORDS[i]}" for i in ids)


class Call(nn.Module):
    """Attention over what it is given, with whatever options."""

    def __init__(self, key_heads: int = HEADS, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        super().__init__()
        self.key_heads, self.dtype, self.options = key_heads, dtype, options

    def forward(self, hidden_states: Tensor, keys: Tensor | None = None, **more: Any) -> Tensor:
        query = _heads(hidden_states).to(self.dtype)
        key = _heads(hidden_states if keys is None else keys)[:, : self.key_heads].roll(1, -1).to(self.dtype)
        return attention(query, key, key.flip(-1), **self.options, **more)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


class Model(nn.Module):
    """A call of each kind."""

    def __init__(self, length: int) -> None:
        super().__init__()
        places = torch.arange(length)
        bias = ((places[:, None] * 3 + places * 5) % 7 - 3).float()[None, None] / 4
        relative = (torch.arange(HEADS * 5).view(HEADS, 5) % 11 - 5).float() / 3
        slopes = scores.ALiBi(scores.alibi_slopes(HEADS))
        sinks = torch.tensor([-1.0, 0.0, 1.0, 2.0])
        by_head = (places[:, None] + places + torch.arange(HEADS).view(1, HEADS, 1, 1)) % 3 > 0
        self.layers = nn.ModuleList([
            Call(2, mask=masks.causal(), sinks=sinks, bias=slopes),
            Call(bias=bias, softcap=2.0, scale=0.5),
            Call(1, bias=scores.RelativeBias(relative, first=-2), mask=masks.window(3, 2)),
            Call(dtype=torch.float16, mask=masks.dense(by_head)),
            Call(dtype=torch.bfloat16, bias=bias[..., :1, :], mask=masks.causal() | masks.window(0, 1)),
        ])  # fmt: skip
        self.cross = Call()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = embed(input_ids)
        padding = masks.dense(attention_mask.bool()[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1))
        for layer in self.layers:
            mask = layer.options.pop("mask", None)
            layer(hidden, mask=padding if mask is None else mask & padding)
            if mask is not None:
                layer.options["mask"] = mask
        self.cross(hidden, embed(torch.arange(7)[None].expand(len(input_ids), -1)))
        return hidden


class Long(nn.Module):
    """One call over many tokens, whose mask is no few intervals."""

    def __init__(self, length: int) -> None:
        super().__init__()
        i, j = torch.arange(length)[:, None], torch.arange(length)
        near, head = (i - j).abs() <= REACH, torch.arange(2).view(1, 2, 1, 1)
        comb = ((j + head) % 3 == 0) & (i % 25 == 0)
        self.call = Call(1, mask=masks.dense(near | comb))

    def forward(self, input_ids: Tensor) -> Tensor:
        # No two weights alike, so that there is one right order of the heaviest.
        hidden = embed(input_ids)[..., : 2 * WIDTH]
        return self.call(hidden + torch.arange(hidden.shape[1])[:, None] ** 2 / 2**17)


def embed(ids: Tensor) -> Tensor:
    """Numbers that every machine makes alike: no random generator, no sine."""
    places = torch.arange(HEADS * WIDTH, dtype=torch.int64)
    position = torch.arange(ids.shape[-1])[:, None]
    return ((ids[..., None] * 37 + position * 5 + places * places * 11) % 64 - 32).float() / 16


# ---------------------------------------------------------------------------------------- traces


def _record(path: Path) -> Iterator[tuple[str, Path]]:
    """Every trace, by name."""
    short = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3, 7, 8], [0, 3, 7, 2, 8, 9, 9, 9, 9, 9]])
    with saccade.record(Model(10), Tokenizer(), keep="qkv", to=path / "short", name="short") as trace:
        trace.model(input_ids=short, attention_mask=(short != PAD).long())
    yield "short", path / "short"
    long = torch.arange(LENGTH)[None] * 5 % 7 + 1
    rows = [asked_for.LogSumExp(), asked_for.Received()]
    for name, keep, map_ in (
        ("long", "qk", asked_for.Map(LENGTH // 2)),  # as fine as a tile of level 1
        ("maps", "statistics", asked_for.Map((65, 26), "max")),
    ):
        with saccade.record(Long(LENGTH), Tokenizer(), keep=keep, statistics=[*rows, map_],
                            hidden=False, to=path / name, name=name) as trace:  # fmt: skip
            trace.model(input_ids=long)
        yield name, path / name


# ---------------------------------------------------------------------------------------- questions


def _asked(name: str, explorer: Explorer) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is asked of each trace."""
    if name != "short":
        yield from _asked_of_long(exact=name == "long")
        return
    for text in explorer.library.texts:
        for site, (info, _) in enumerate(text.sites):
            at = {"text": text.id, "site": site}
            queries, keys = info["queries"], info["keys"]
            for head in (3, "mean"):
                whole = {**at, "head": head, "queries": [0, queries], "keys": [0, keys]}
                yield "window", whole
                yield "margins", {**whole, "queries": [1, queries - 1]}
                yield "margins", whole
                yield "tile", {**at, "head": head, "level": 0, "row": 0, "column": 0, "reduce": "max"}
            for query, key in ((0, 0), (3, 1), (queries - 1, 2)):
                yield "inside", {**at, "head": 2, "query": query, "key": key}
            for words in (False, True):
                for side in ("queries", "keys"):
                    yield "strongest", {**at, "heads": [1, 2], "side": side, "range": [0, 3], "count": 5,
                                        "words": words, "ordinary": words}  # fmt: skip


def _asked_of_long(*, exact: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    at = {"text": "0", "site": 0}
    for head in (1, "mean") if exact else (1,):
        for reduce in ("mean", "max"):
            yield "tile", {**at, "head": head, "level": 1, "row": 0, "column": 0, "reduce": reduce}
        yield "margins", {**at, "head": head, "queries": [0, LENGTH], "keys": [0, LENGTH]}
    if not exact:
        return
    yield "tile", {**at, "head": 1, "level": 0, "row": 1, "column": 1, "reduce": "max"}
    yield "window", {**at, "head": 1, "queries": [100, 120], "keys": [90, 130]}
    yield "inside", {**at, "head": 1, "query": 150, "key": 7}
    yield "strongest", {**at, "heads": [1], "side": "keys", "range": [50, 60], "count": 3, "words": True,
                        "ordinary": True}  # fmt: skip


def build() -> bytes:
    """The whole parcel."""
    files: dict[str, bytes] = {}
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in _record(Path(folder)):
            chosen = Chosen.of(path, None)
            explorer = Explorer(Trace(chosen))
            copy(chosen, path.parent / f"{name}-copy")
            files |= {
                f"{name}/{TRACE}/{file.relative_to(path.parent / f'{name}-copy').as_posix()}": file.read_bytes()
                for file in sorted((path.parent / f"{name}-copy").rglob("*"))
                if file.is_file()
            }
            said = answers(explorer, lambda *_: None, roles=lambda _: False)
            said[f"{ANSWERS}/document"] = pack(document(explorer))
            files |= {f"{name}/{file}": content for file, content in said.items()}
            for question, parameters in _asked(name, explorer):
                answer = f"expected/{len(cases)}"
                cases.append({"trace": name, "question": question, "parameters": parameters, "answer": answer})
                files[answer] = pack(explorer.answer(question, parameters))
    return pack({"cases": cases, **{name: np.frombuffer(content, np.uint8) for name, content in files.items()}})


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(gzip.compress(build(), 9, mtime=0))
