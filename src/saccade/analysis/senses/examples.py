"""Sentences to try an analysis on without any of one's own.

The first of each sense of "bank", and the one that may be read in two ways, are those by which attention is usually
explained. With four more of each sense, written before anything was measured on them, there is enough to compare.
"""

from __future__ import annotations

BANK: dict[str | None, list[str]] = {
    "river": [
        "He sat on the river bank.",
        "The boat drifted toward the muddy bank.",
        "Willows grew along the bank of the stream.",
        "We pitched our tent on the bank and fished until dark.",
        "After the flood the water spilled over the bank.",
    ],
    "money": [
        "She opened a bank account.",
        "The bank raised its interest rates on loans.",
        "He went to the bank to deposit his salary.",
        "A clerk at the bank counted the cash.",
        "They asked the bank for a mortgage on the house.",
    ],
    "row": [
        "A bank of monitors.",
        "A bank of lights hung above the stage.",
        "The engineer faced a long bank of switches.",
        "One wall held a bank of telephones for the reporters.",
        "The pilot reached up to a bank of dials and buttons.",
    ],
    None: ["He left the roses by the bank."],
}

# The built-in sentences of a word, by sense; of those under None the sense is not known.
EXAMPLES: dict[str, dict[str | None, list[str]]] = {"bank": BANK}
