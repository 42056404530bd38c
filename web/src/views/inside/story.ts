/**
 * The story of one weight: an answer to `inside` worked through, each step computed again from the numbers of the step
 * before it and compared with what the model's pattern says. Sums are in double precision, so what is off beyond the
 * rounding of single precision is a bug, and the view says so.
 */
import { length } from "../../parts/vector";
import type { InsideAnswer, NumberArray } from "../../source/contract";

/** Two ways to one number: `mine` from the step before, `theirs` from the answer. */
export interface Check {
  mine: number;
  theirs: number;
  holds: boolean;
}

/** One dimension of q·k. */
export interface Product {
  dimension: number;
  query: number;
  key: number;
  product: number;
  /** Of this and all products before it. */
  sum: number;
}

/** One key in the softmax. */
export interface Row {
  /** Its place among the chosen ones. */
  place: number;
  position: number;
  score: number;
  bias: number;
  /** Score and bias; −∞ where the mask hides the key. */
  total: number;
  visible: boolean;
  /** e to the power of (total − highest). */
  exponential: number;
  weight: number;
}

/** A key's weight times its value. */
export interface Share {
  row: Row;
  vector: Float64Array;
  length: number;
}

/** From q and k to the score. */
export interface Score {
  products: Product[];
  /** Dimensions whose products are largest, largest first. */
  largest: Product[];
  /** q·k. */
  sum: number;
  /** q·k times the scale. */
  scaled: number;
  /** After the softcap; `scaled` where there is none. */
  capped: number;
  bias: number;
  check: Check;
}

/** From scores to weights. */
export interface Softmax {
  /** In the order of the text. */
  rows: Row[];
  /** The key that the story is about. */
  asked: Row;
  /** Highest total; what the mask hides does not count. −∞ where it hides all. */
  highest: number;
  /** Sum of all exponentials, those of the other keys and the sink included. */
  whole: number;
  /** Weights: of the rows, of keys that are not among them, of the sink. */
  listed: number;
  others: number;
  sink: number;
  /** Whether the mask lets the query see anything. */
  any: boolean;
  /** All of it against 1. */
  sum: Check;
  /** The row whose weight is furthest from its own exponential. */
  weights: Check;
}

/** From weights and values to the output. */
export interface Output {
  /** Heaviest first. */
  shares: Share[];
  output: NumberArray;
  length: number;
  /** Their sum against the output, by length; null where keys are left out of the answer. */
  check: Check | null;
}

/** What all heads add, and what becomes of it. */
export interface Layer {
  /** Lengths of what each head adds after the projection. */
  lengths: number[] | null;
  /** Length of what all add together. */
  added: number | null;
  /** Of what is added, that which no head brought: the projection's bias. */
  bias: number | null;
  /** Parts of the state that left the layer; `along`: how far each goes in its direction. */
  parts: { label: string; length: number; cosine: number; along: number }[] | null;
  /** This head's output: among those of all heads, and as it was computed from weights and values. */
  same: Check | null;
  /** The parts along the state against its length. */
  check: Check | null;
}

export interface Story {
  answer: InsideAnswer;
  score: Score;
  softmax: Softmax;
  output: Output | null;
  layer: Layer;
}

const LABELLED = 3;
/** Of single precision, with room for sums of a few thousand terms. */
const ROUNDING = 1e-5;

/** Work an answer through. `key` and `head` are those that were asked for. */
export function tell(answer: InsideAnswer, key: number, head: number): Story {
  const softmax = softmaxOf(answer, key);
  const output = outputOf(answer, softmax);
  return { answer, score: scoreOf(answer, softmax.asked), softmax, output, layer: layerOf(answer, head) };
}

/** The checks that did not hold. */
export function broken(story: Story): Check[] {
  const { score, softmax, output, layer } = story;
  const all = [score.check, softmax.weights, softmax.sum, output?.check, layer.same, layer.check];
  return all.filter((check): check is Check => check != null && !check.holds);
}

/** One row of a matrix. */
export function rowOf(matrix: NumberArray, row: number): Float32Array {
  const width = matrix.shape[1] as number;
  return matrix.data.subarray(row * width, (row + 1) * width);
}

/** The sum of a matrix's rows. */
export function rowsSum(matrix: NumberArray): Float64Array {
  const [count, width] = matrix.shape as [number, number];
  const sum = new Float64Array(width);
  for (let row = 0; row < count; row++) add(sum, rowOf(matrix, row));
  return sum;
}

function add(sum: Float64Array, vector: ArrayLike<number>): void {
  for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + (vector[i] as number);
}

function difference(a: ArrayLike<number>, b: ArrayLike<number>): Float64Array {
  return Float64Array.from(a, (value, i) => value - (b[i] as number));
}

/** Not a number agrees with nothing. */
function checked(mine: number, theirs: number, tolerance: number): Check {
  return { mine, theirs, holds: mine === theirs || Math.abs(mine - theirs) <= tolerance };
}

function scoreOf(answer: InsideAnswer, asked: Row): Score {
  let sum = 0;
  let size = 0;
  const products = Array.from(answer.query.data, (query, dimension): Product => {
    const key = answer.key.data[dimension] as number;
    const product = query * key;
    sum += product;
    size += Math.abs(product);
    return { dimension, query, key, product, sum };
  });
  const largest = [...products].sort((a, b) => Math.abs(b.product) - Math.abs(a.product)).slice(0, LABELLED);
  const scaled = answer.scale * sum;
  const capped = answer.softcap === null ? scaled : answer.softcap * Math.tanh(scaled / answer.softcap);
  const tolerance = ROUNDING * (Math.abs(answer.scale) * size + Math.abs(capped)) + 1e-6;
  return { products, largest, sum, scaled, capped, bias: asked.bias, check: checked(capped, asked.score, tolerance) };
}

function softmaxOf(answer: InsideAnswer, key: number): Softmax {
  const { chosen, score, bias, visible, weight } = answer;
  const bare = Array.from(chosen.data, (position, place): Omit<Row, "exponential"> => {
    const shown = visible.data[place] === 1;
    const parts = { score: score.data[place] as number, bias: bias.data[place] as number };
    const total = shown ? parts.score + parts.bias : -Infinity;
    return { place, position, ...parts, total, visible: shown, weight: weight.data[place] as number };
  });
  const highest = bare.reduce(
    (most, row) => (row.total > most || Number.isNaN(row.total) ? row.total : most),
    -Infinity,
  );
  const any = highest !== -Infinity;
  const rows = bare.map((row): Row => ({ ...row, exponential: any ? Math.exp(row.total - highest) : 0 }));
  const asked = rows.find((row) => row.position === key);
  if (!asked) throw new Error(`The answer has ${rows.length} keys, and not the one that was asked for: token ${key}.`);

  // JSON has no −∞: a query that sees nothing has null, or a very low sum.
  const lse = (answer.lse as number | null) ?? -Infinity;
  const sink = answer.sink === null || lse === -Infinity ? 0 : Math.exp(answer.sink - lse);
  const listed = rows.reduce((sum, row) => sum + row.weight, 0);
  return {
    rows,
    asked,
    highest,
    whole: any ? Math.exp(lse - highest) : 0,
    listed,
    others: Math.max(answer.rest - sink, 0),
    sink,
    any,
    sum: checked(listed + answer.rest, any || sink > 0 ? 1 : 0, 10 * ROUNDING),
    weights: worst(rows, lse),
  };
}

/** Each weight against e to the power of (total − lse): the one that is furthest off. */
function worst(rows: Row[], lse: number): Check {
  const checks = rows.map((row) => {
    const mine = row.total === -Infinity ? 0 : Math.exp(row.total - lse);
    // An error in the exponent is an error of the weight in proportion.
    return checked(mine, row.weight, ROUNDING * (10 + Math.abs(row.total)) * mine + 1e-6);
  });
  const off = (check: Check) => (check.holds ? Math.abs(check.mine - check.theirs) : Infinity);
  return checks.reduce((a, b) => (off(b) > off(a) ? b : a));
}

function outputOf(answer: InsideAnswer, softmax: Softmax): Output | null {
  const { value, output } = answer;
  if (value === null || output === null) return null;
  const shares = softmax.rows
    .map((row): Share => {
      const vector = Float64Array.from(rowOf(value, row.place), (v) => (row.weight === 0 ? 0 : row.weight * v));
      return { row, vector, length: length(vector) };
    })
    .sort((a, b) => b.row.weight - a.row.weight);
  const sum = new Float64Array(output.data.length);
  for (const { vector } of shares) add(sum, vector);
  const mine = length(sum);
  const theirs = length(output.data);
  const size = shares.reduce((all, share) => all + share.length, 0);
  const off = length(difference(sum, output.data));
  const complete = softmax.others <= ROUNDING;
  const check = complete ? { mine, theirs, holds: off <= 10 * ROUNDING * size + 1e-6 } : null;
  return { shares, output, length: theirs, check };
}

/** What keys that are not among `shown` bring to the output. */
export function remainder(output: Output, shown: readonly Share[]): Float64Array {
  const sum = new Float64Array(output.output.data.length);
  for (const { vector } of shown) add(sum, vector);
  return difference(output.output.data, sum);
}

function layerOf(answer: InsideAnswer, head: number): Layer {
  const { output, outputs, projected, added, after } = answer;
  const lengths =
    projected && Array.from({ length: projected.shape[0] as number }, (_, row) => length(rowOf(projected, row)));
  const parts = answer.parts?.map((part) => ({ ...part, along: part.length * part.cosine })) ?? null;
  return {
    lengths,
    added: added && length(added.data),
    bias: added && projected && length(difference(added.data, rowsSum(projected))),
    parts,
    same: outputs && output && sameVector(rowOf(outputs, head), output.data),
    check: parts && after && alongAll(parts, length(after.data)),
  };
}

function sameVector(a: ArrayLike<number>, b: ArrayLike<number>): Check {
  const theirs = length(b);
  return { mine: length(a), theirs, holds: length(difference(a, b)) <= 10 * ROUNDING * theirs + 1e-6 };
}

/** Parts that sum to a vector go its own length along it. */
function alongAll(parts: { length: number; along: number }[], whole: number): Check {
  const along = parts.reduce((sum, part) => sum + part.along, 0);
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  return checked(along, whole, 100 * ROUNDING * size);
}
