"""What scoring the roles of all heads costs beside a plain forward of the same texts.

.venv/bin/python benchmarks/heads.py [--quick] [--write]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from harness import Effort, Section, Target, alternate, conditions, fresh, judged, peak_memory, progress, publish, table

from saccade.adapters.pretrained import Pretrained
from saccade.analysis.roles import HeadRoles, score_batches
from saccade.analysis.roles.reading import Batch, Untold, random_repeats
from saccade.analysis.roles.scoring import Reading

THREADS = 2
COST = Target(1.5, at_most=True)
BATCH, TOKENS = 32, 512


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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the texts")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/benchmarks")
    chosen = parser.parse_args()
    torch.set_num_threads(THREADS)
    section = cost(Effort(quick=chosen.quick))
    how = f"Conditions: {conditions()}. Medians of alternating runs; bold misses its target."
    publish("heads", "Roles of heads on the CPU", f"{section.short}\n\n{how}\n\n{section.text}", write=chosen.write)


if __name__ == "__main__":
    main()
