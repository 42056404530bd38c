/**
 * The mathematics of attention weights, for a rectangle of one head's pattern. The formula is that of
 * `src/saccade/scores.py`:
 *
 *     s = scale q·k;  s = softcap tanh(s / softcap)  if softcap;  s = s + bias;  s = -inf where the mask hides the key
 *     p = exp(s - lse),  lse = ln(sum exp(s) + exp(sink))
 *
 * All of it is computed in float64, from queries and keys as they were kept.
 */
import type { Floats } from "../trace";
import type { Range } from "./contract";

/** What is added to the scores of the rectangle's queries and keys. */
export type Bias =
  /** A value for each pair; where there is one row, or one column, it serves all. */
  | { kind: "dense"; values: Floats; rows: number; columns: number }
  /** -slope |i + offset - j| */
  | { kind: "alibi"; slope: number; offset: number }
  /** One value for each j - (i + offset), from `first` on; farther ones take the value at that end. */
  | { kind: "relative"; values: Floats; first: number; offset: number };

/** Which of the keys each of the rectangle's queries sees. */
export type Mask =
  /** (rows, runs) ranges of keys, counted from the sequence's start. */
  | { kind: "intervals"; starts: Int32Array; stops: Int32Array; runs: number }
  /** (rows, columns) */
  | { kind: "dense"; visible: Uint8Array };

/** A rectangle of one head's pattern, with all that makes its scores. */
export interface Block {
  queries: Range;
  keys: Range;
  /** Numbers of a query, and of a key. */
  width: number;
  /** (rows, width) */
  query: Floats;
  /** (columns, width) */
  key: Floats;
  scale: number;
  softcap: number | null;
  bias: Bias | null;
  mask: Mask | null;
}

/** `out` becomes a row's scores before bias and mask. */
export function capped(block: Block, row: number, out: Float64Array): void {
  const { width, key, scale, softcap } = block;
  const query = block.query.subarray(row * width, (row + 1) * width);
  const columns = length(block.keys);
  for (let column = 0, at = 0; column < columns; column++) {
    let sum = 0;
    for (let d = 0; d < width; d++, at++) sum += (query[d] as number) * (key[at] as number);
    const score = scale * sum;
    out[column] = softcap === null ? score : softcap * Math.tanh(score / softcap);
  }
}

/** Add a row's bias to `out`. */
export function addBias({ bias, queries, keys }: Block, row: number, out: Float64Array): void {
  if (!bias) return;
  const columns = length(keys);
  if (bias.kind === "dense") {
    const start = bias.rows === 1 ? 0 : row * bias.columns;
    for (let column = 0; column < columns; column++) {
      (out[column] as number) += bias.values[start + (bias.columns === 1 ? 0 : column)] as number;
    }
    return;
  }
  const here = queries[0] + row + bias.offset;
  const last = bias.kind === "relative" ? bias.values.length - 1 : 0;
  for (let column = 0; column < columns; column++) {
    const apart = keys[0] + column - here;
    (out[column] as number) +=
      bias.kind === "alibi"
        ? -bias.slope * Math.abs(apart)
        : (bias.values[Math.min(Math.max(apart - bias.first, 0), last)] as number);
  }
}

/** `out` becomes 1 where a row's query sees the key, else 0. */
export function visible({ mask, keys }: Block, row: number, out: Uint8Array): void {
  const columns = length(keys);
  if (!mask) out.fill(1, 0, columns);
  else if (mask.kind === "dense") out.set(mask.visible.subarray(row * columns, (row + 1) * columns));
  else {
    out.fill(0, 0, columns);
    for (let run = row * mask.runs; run < (row + 1) * mask.runs; run++) {
      const start = Math.max((mask.starts[run] as number) - keys[0], 0);
      const stop = Math.min((mask.stops[run] as number) - keys[0], columns);
      if (start < stop) out.fill(1, start, stop);
    }
  }
}

/** Computes rows of scores and weights; has the room that this takes. */
export class Rows {
  private readonly score: Float64Array;
  private readonly seen: Uint8Array;

  /** `columns`: the most keys that a block has. */
  constructor(columns: number) {
    this.score = new Float64Array(columns);
    this.seen = new Uint8Array(columns);
  }

  /** Add a row's weights, times a factor, to `out` from `at` on. `lse` is the row's. */
  add(block: Block, row: number, lse: number, factor: number, out: Float64Array, at: number): void {
    if (lse === Number.NEGATIVE_INFINITY) return; // it sees no key
    this.scores(block, row);
    const columns = length(block.keys);
    for (let column = 0; column < columns; column++) {
      if (this.seen[column]) (out[at + column] as number) += factor * Math.exp((this.score[column] as number) - lse);
    }
  }

  /** ln sum exp(s) of a row's keys, and of `so_far`: that of other keys, or the head's sink. */
  lse(block: Block, row: number, soFar: number): number {
    this.scores(block, row);
    const columns = length(block.keys);
    let most = soFar;
    for (let column = 0; column < columns; column++) {
      if (this.seen[column]) most = Math.max(most, this.score[column] as number);
    }
    if (most === Number.NEGATIVE_INFINITY || Number.isNaN(most)) return most;
    let sum = Math.exp(soFar - most);
    for (let column = 0; column < columns; column++) {
      if (this.seen[column]) sum += Math.exp((this.score[column] as number) - most);
    }
    return most + Math.log(sum);
  }

  private scores(block: Block, row: number): void {
    capped(block, row, this.score);
    addBias(block, row, this.score);
    visible(block, row, this.seen);
  }
}

export function length([start, stop]: Range): number {
  return stop - start;
}

/** The cell of c in which a place of n lies: cell a holds the places from floor(a n / c) to floor((a + 1) n / c). */
export function cellsOf(places: number, cells: number): Int32Array {
  const found = new Int32Array(places);
  for (let cell = 0; cell < cells; cell++) {
    found.fill(cell, Math.floor((cell * places) / cells), Math.floor(((cell + 1) * places) / cells));
  }
  return found;
}
