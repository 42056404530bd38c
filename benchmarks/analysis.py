"""What the analyses cost: the roles of all heads, the contributions to a token, the senses of a word.

.venv/bin/python benchmarks/analysis.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Effort, Section, Target, alternate, conditions, fresh, judged, peak_memory, progress, publish, table

import saccade
from saccade.adapters.pretrained import Pretrained
from saccade.analysis import contributions
from saccade.analysis.roles import HeadRoles, score_batches
from saccade.analysis.roles.reading import Batch, Untold, random_repeats
from saccade.analysis.roles.scoring import Reading

THREADS = 2
COST = Target(1.5, at_most=True)
BATCH, TOKENS = 32, 512
LONG = 16_384
SECONDS, SENSES = Target(1.0, at_most=True), Target(5.0, at_most=True)
ROUNDS = 5


class Ways:
    """A BERT of the base size with random weights, and a batch of texts as token ids."""

    def __init__(self, batch: int = BATCH) -> None:
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        self.model = BertModel(BertConfig(attn_implementation="sdpa")).eval()
        self.reader = Pretrained("BERT-base, random", self.model, Untold(), TOKENS)
        ids = torch.randint(1000, 30000, (batch, TOKENS))
        valid = torch.ones_like(ids, dtype=torch.bool)
        separators = torch.rand(ids.shape) < 0.1  # as much punctuation as in a text
        self.text = Batch({"input_ids": ids}, Reading(ids, valid, separators, TOKENS))

    @torch.no_grad()
    def plain(self) -> Any:
        """The forward as it is."""
        return self.model(**self.text.inputs)

    def roles(self) -> HeadRoles:
        """All roles: those of the texts, and duplicate and induction by a forward of 4 x 128 repeated random tokens."""
        return score_batches(self.reader, [self.text], random_repeats(self.reader, None, 4, 0).batch)


def _peak(case: str, batch: int) -> float:
    return peak_memory(getattr(Ways(batch), case))


def cost(effort: Effort) -> Section:
    """Time and memory."""
    batch = BATCH // 4 if effort.quick else BATCH
    progress(f"heads: {batch} x {TOKENS} tokens")
    ways = Ways(batch)
    seconds = alternate({"plain": ways.plain, "roles": ways.roles}, rounds=3)
    names = {"plain": "plain sdpa forward", "roles": "roles of all heads"}
    rows = []
    for case, taken in seconds.items():
        progress(f"heads: memory of {names[case]}")
        target = COST if case == "roles" else None
        ratio = judged(taken / seconds["plain"], target)
        peak = f"{fresh(_peak, case, batch):,.0f}"
        rows.append([names[case], f"{taken:.2f}", ratio, str(target or ""), peak])
    text = (
        f"12 layers of 12 heads, width 768, {batch} x {TOKENS} tokens, random weights, float32; the forward on "
        "repeated random tokens for duplicate and induction included. Memory beyond model and input at its "
        "peak, each in a process of its own; written out, the patterns of one layer would be "
        f"{batch * 12 * TOKENS**2 * 4 / 2**20:,.0f} MiB:\n\n"
    )
    ratio = seconds["roles"] / seconds["plain"]
    header = ["way", "seconds", "of plain", "target", "peak, MiB"]
    return Section(text + table(header, rows), f"Scoring all heads takes {ratio:.2f} times as long as a plain forward.")


def taking_apart(effort: Effort) -> Section:
    """The contributions to one token of a long text, once it is recorded."""
    from transformers import BertConfig, BertModel

    tokens = LONG // 4 if effort.quick else LONG
    progress(f"contributions: recording {tokens:,} tokens")
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=2, max_position_embeddings=tokens)).eval()
    ids = torch.randint(1000, 30000, (1, tokens))
    with torch.no_grad(), saccade.record(model, keep="qkv", statistics=[]) as trace:
        model(ids)
    contributions(trace, 1, 0)
    progress("contributions: to one token")
    taken = median_of(lambda: contributions(trace, 1, tokens // 2))
    return Section(
        "",
        f"The contributions of all keys in {tokens:,} tokens to one token, 12 heads of width 64: {taken:.2f} s (target "
        f"{SECONDS}), after the recording.",
    )


def median_of(do: Callable[[], Any]) -> float:
    """Seconds."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        do()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def senses(effort: Effort) -> Section:
    """`saccade senses bank` as a process, and what importing PyTorch and transformers takes by itself."""
    del effort
    progress("senses: as a process")
    imports = [sys.executable, "-c", "from transformers import AutoModel, AutoTokenizer, BertModel"]
    command = [str(Path(sys.executable).parent / "saccade"), "senses", "bank"]
    seconds: dict[str, list[float]] = {"imports": [], "senses": []}
    for _ in range(ROUNDS):
        for name, call in (("imports", imports), ("senses", command)):
            start = time.perf_counter()
            subprocess.run(call, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            seconds[name].append(time.perf_counter() - start)
    whole, alone = (statistics.median(seconds[name]) for name in ("senses", "imports"))
    return Section(
        "",
        f"`saccade senses bank`, 16 sentences: {whole:.1f} s from start to end (target {SENSES}). A process that only "
        f"imports PyTorch and the classes of transformers that it needs takes {alone:.1f} s; what remains for reading "
        f"the model, the sentences, and what moved each word is {whole - alone:.1f} s.",
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the texts")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/benchmarks")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    effort = Effort(quick=chosen.quick)
    sections = [senses(effort), taking_apart(effort), cost(effort)]
    how = f"Conditions: {conditions()}. Medians; alternating runs where there is a peer; bold misses its target."
    lines = "\n".join(f"- {section.short}" for section in sections)
    publish("analysis", "Analyses on the CPU", f"{lines}\n\n{how}\n\n{sections[-1].text}", write=chosen.write)


if __name__ == "__main__":
    main()
