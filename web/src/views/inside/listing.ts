/** Which keys are listed in a step: the heaviest, the asked one, and some that the mask hides, so that it is seen. */
import type { Row, Softmax } from "./story";

const HIDDEN = 2;

export interface Listing {
  rows: Row[];
  /** Of the keys that are not listed: how many, and their weight. */
  others: number;
  weight: number;
}

/** At most `count` keys and those that must be there, heaviest first or as in the text. */
export function listing(softmax: Softmax, query: number, keys: number, count: number, byWeight: boolean): Listing {
  const heaviest = [...softmax.rows].filter((row) => row.visible).sort((a, b) => b.weight - a.weight);
  // The nearest of those that are hidden: under a causal mask the very next token.
  const hidden = softmax.rows.filter((row) => !row.visible);
  hidden.sort((a, b) => Math.abs(a.position - query) - Math.abs(b.position - query));
  const all = count >= softmax.rows.length;
  const taken = all ? softmax.rows : [...heaviest.slice(0, count), ...hidden.slice(0, HIDDEN), softmax.asked];
  const rows = [...new Set(taken)];
  rows.sort((a, b) => (byWeight ? b.weight - a.weight || a.position - b.position : a.position - b.position));
  const listed = rows.reduce((sum, row) => sum + row.weight, 0);
  return { rows, others: keys - rows.length, weight: Math.max(softmax.listed - listed, 0) + softmax.others };
}
