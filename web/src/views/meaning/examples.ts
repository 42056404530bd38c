/** Sentences to begin with: those of `src/saccade/analysis/senses/examples.py`, the unclear one first. */
import type { SensedSentence } from "../../source/contract";

export const WORD = "bank";

const BY_SENSE: Record<string, readonly string[]> = {
  river: [
    "He sat on the river bank.",
    "The boat drifted toward the muddy bank.",
    "Willows grew along the bank of the stream.",
    "We pitched our tent on the bank and fished until dark.",
    "After the flood the water spilled over the bank.",
  ],
  money: [
    "She opened a bank account.",
    "The bank raised its interest rates on loans.",
    "He went to the bank to deposit his salary.",
    "A clerk at the bank counted the cash.",
    "They asked the bank for a mortgage on the house.",
  ],
  row: [
    "A bank of monitors.",
    "A bank of lights hung above the stage.",
    "The engineer faced a long bank of switches.",
    "One wall held a bank of telephones for the reporters.",
    "The pilot reached up to a bank of dials and buttons.",
  ],
};

export const SENTENCES: readonly SensedSentence[] = [
  { text: "He left the roses by the bank.", sense: null },
  ...Object.entries(BY_SENSE).flatMap(([sense, texts]) => texts.map((text) => ({ text, sense }))),
];
