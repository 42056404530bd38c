/**
 * Rows: where a unit (token or word) looks, or who looks at it, in one head. Asked for in blocks of units, and kept.
 *
 * Heads by themselves come from question `strongest`. The mean of a layer's heads comes from windows, from which the
 * strongest are chosen here: those of the mean are not among the strongest of the heads.
 */
import type { Units } from "../../model/words";
import type { Head, Range, Source } from "../../source/contract";

export type Side = "queries" | "keys";

/** A unit's partners in one head, heaviest first. */
export interface Row {
  readonly partners: Int32Array;
  readonly weights: Float32Array;
  /** The whole weight, of which those of the partners and of special tokens are parts. */
  readonly whole: number;
  /** The weight of special tokens where they are left out. */
  readonly special: number;
}

/** What rows are of. */
export interface Subject {
  readonly text: string;
  readonly site: number;
  readonly side: Side;
  readonly queries: Units;
  readonly keys: Units;
  /** Whether special tokens are left out. */
  readonly ordinary: boolean;
}

/** Units that are asked for at once. */
export const BLOCK = 32;
/** Partners of a unit at most. */
export const PARTNERS = 64;
const MOST_BLOCKS = 1024;
const WINDOW = 2 ** 20;

/** Asks for rows and keeps them, the latest blocks longest. */
export class Rows {
  private readonly kept = new Map<string, readonly Row[]>();

  constructor(private readonly source: Source) {}

  /** The row of a unit, if it has been answered. */
  find(subject: Subject, head: Head, unit: number): Row | undefined {
    const block = Math.floor(unit / BLOCK);
    return this.kept.get(keyOf(subject, head, block))?.[unit - block * BLOCK];
  }

  /** Ask for what is missing of some units in some heads. Whether anything was. */
  async fetch(
    subject: Subject,
    heads: readonly Head[],
    units: Iterable<number>,
    signal?: AbortSignal,
  ): Promise<boolean> {
    const blocks = [...new Set([...units].map((unit) => Math.floor(unit / BLOCK)))];
    const jobs = blocks.flatMap((block) => {
      const missing = heads.filter((head) => !this.kept.has(keyOf(subject, head, block)));
      return missing.length ? [this.fetchBlock(subject, missing, block, signal)] : [];
    });
    await Promise.all(jobs);
    return jobs.length > 0;
  }

  private async fetchBlock(
    subject: Subject,
    heads: readonly Head[],
    block: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const count = subject[subject.side].labels.length;
    const range: Range = [block * BLOCK, Math.min((block + 1) * BLOCK, count)];
    const numbers = heads.filter((head): head is number => head !== "mean");
    const [single, mean] = await Promise.all([
      numbers.length ? strongest(this.source, subject, numbers, range, signal) : [],
      heads.includes("mean") ? meanRows(this.source, subject, range, signal) : null,
    ]);
    numbers.forEach((head, place) => {
      this.keep(keyOf(subject, head, block), single[place] as Row[]);
    });
    if (mean) this.keep(keyOf(subject, "mean", block), mean);
  }

  private keep(key: string, rows: readonly Row[]): void {
    this.kept.delete(key);
    this.kept.set(key, rows);
    const [oldest] = this.kept.keys();
    if (this.kept.size > MOST_BLOCKS && oldest !== undefined) this.kept.delete(oldest);
  }
}

function keyOf({ text, site, side, queries, ordinary }: Subject, head: Head, block: number): string {
  return [text, site, side, queries.merged, ordinary, head, block].join(" ");
}

/** [head][unit of the range] */
async function strongest(
  source: Source,
  subject: Subject,
  heads: number[],
  range: Range,
  signal?: AbortSignal,
): Promise<Row[][]> {
  const { text, site, side, ordinary, queries, keys } = subject;
  const partners = (side === "queries" ? keys : queries).labels.length;
  const count = Math.min(PARTNERS, partners);
  const words = queries.merged;
  const answer = await source.ask("strongest", { text, site, heads, side, range, count, words, ordinary }, signal);
  const length = range[1] - range[0];
  const depth = answer.partner.shape[2] ?? count;
  return heads.map((_, head) =>
    Array.from({ length }, (_, unit) => {
      const row = head * length + unit;
      const all = answer.partner.data.subarray(row * depth, (row + 1) * depth);
      const end = all.indexOf(-1);
      const found = end < 0 ? depth : end;
      return {
        partners: all.subarray(0, found),
        weights: answer.weight.data.subarray(row * depth, row * depth + found),
        whole: answer.whole.data[row] ?? 0,
        special: answer.special.data[row] ?? 0,
      };
    }),
  );
}

/** The rows of the mean of all heads: exact windows, merged here. */
async function meanRows(source: Source, subject: Subject, range: Range, signal?: AbortSignal): Promise<Row[]> {
  const { text, site, side } = subject;
  const own = subject[side];
  const other = subject[side === "queries" ? "keys" : "queries"];
  const mine: Range = [own.starts[range[0]] as number, own.starts[range[1]] as number];
  const tokens = other.of.length;
  const step = Math.max(1, Math.floor(WINDOW / Math.max(mine[1] - mine[0], 1)));
  const sums = new Float64Array((range[1] - range[0]) * other.labels.length);
  for (let start = 0; start < tokens; start += step) {
    const theirs: Range = [start, Math.min(start + step, tokens)];
    const [queries, keys] = side === "queries" ? [mine, theirs] : [theirs, mine];
    const { weights } = await source.ask("window", { text, site, head: "mean", queries, keys }, signal);
    merge(sums, weights.data, { subject, range, queries, keys });
  }
  return Array.from({ length: range[1] - range[0] }, (_, unit) => {
    const row = sums.subarray(unit * other.labels.length, (unit + 1) * other.labels.length);
    return rowOf(row, subject.ordinary ? other.special : null);
  });
}

/** Add a window's weights to (units of the range, units of the other side): keys are summed, queries averaged. */
export function merge(
  sums: Float64Array,
  weights: ArrayLike<number>,
  window: { subject: Subject; range: Range; queries: Range; keys: Range },
): void {
  const { subject, range, queries, keys } = window;
  const width = subject[subject.side === "queries" ? "keys" : "queries"].labels.length;
  const length = keys[1] - keys[0];
  for (let query = queries[0]; query < queries[1]; query++) {
    const a = subject.queries.of[query] as number;
    const tokens = (subject.queries.starts[a + 1] as number) - (subject.queries.starts[a] as number);
    for (let key = keys[0]; key < keys[1]; key++) {
      const b = subject.keys.of[key] as number;
      const place = subject.side === "queries" ? (a - range[0]) * width + b : (b - range[0]) * width + a;
      sums[place] =
        (sums[place] as number) + (weights[(query - queries[0]) * length + key - keys[0]] as number) / tokens;
    }
  }
}

/** The strongest of a whole row. */
export function rowOf(weights: ArrayLike<number>, leftOut: Uint8Array | null): Row {
  let whole = 0;
  let special = 0;
  const places: number[] = [];
  for (let place = 0; place < weights.length; place++) {
    const weight = weights[place] as number;
    whole += weight;
    if (leftOut?.[place]) special += weight;
    else if (weight > 0) places.push(place);
  }
  places.sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
  const partners = Int32Array.from(places.slice(0, PARTNERS));
  return { partners, weights: Float32Array.from(partners, (place) => weights[place] as number), whole, special };
}
