import { describe, expect, it } from "vitest";
import { addBias, type Bias, type Block, capped, cellsOf, type Mask, Rows, visible } from "./attention";

const QUERIES = [3, 8] as const;
const KEYS = [2, 9] as const;
const [ROWS, COLUMNS, WIDTH] = [5, 7, 4];

/** Numbers without a pattern, from -2 to 2. */
const numbers = (count: number, seed: number): Float32Array =>
  Float32Array.from({ length: count }, (_, at) => 2 * Math.sin(seed + at * at * 12.9898));

const query = numbers(ROWS * WIDTH, 1);
const key = numbers(COLUMNS * WIDTH, 2);
const block = (rest: Partial<Block> = {}): Block => ({
  queries: QUERIES,
  keys: KEYS,
  width: WIDTH,
  query,
  key,
  scale: 0.7,
  softcap: null,
  bias: null,
  mask: null,
  ...rest,
});

/** The formula, pair by pair, from the positions of the query and the key. */
function weights(options: {
  bias?: (i: number, j: number) => number;
  sees?: (i: number, j: number) => boolean;
  softcap?: number;
  sink?: number;
}): { lse: number[]; weights: number[][] } {
  const scores = Array.from({ length: ROWS }, (_, row) =>
    Array.from({ length: COLUMNS }, (_, column) => {
      const [i, j] = [QUERIES[0] + row, KEYS[0] + column];
      let score = 0;
      for (let d = 0; d < WIDTH; d++)
        score += 0.7 * (query[row * WIDTH + d] as number) * (key[column * WIDTH + d] as number);
      if (options.softcap) score = options.softcap * Math.tanh(score / options.softcap);
      score += options.bias?.(i, j) ?? 0;
      return (options.sees?.(i, j) ?? true) ? score : Number.NEGATIVE_INFINITY;
    }),
  );
  const exponentials = scores.map((row) => row.map(Math.exp));
  const sums = exponentials.map((row) =>
    row.reduce((a, b) => a + b, options.sink === undefined ? 0 : Math.exp(options.sink)),
  );
  return {
    lse: sums.map(Math.log),
    weights: exponentials.map((row, at) => row.map((one) => (sums[at] ? one / (sums[at] as number) : 0))),
  };
}

function check(given: Block, expected: ReturnType<typeof weights>, sink = Number.NEGATIVE_INFINITY): void {
  const rows = new Rows(COLUMNS);
  for (let row = 0; row < ROWS; row++) {
    const lse = rows.lse(given, row, sink);
    if (Number.isFinite(expected.lse[row])) expect(lse).toBeCloseTo(expected.lse[row] as number, 12);
    else expect(lse).toBe(expected.lse[row]);
    const out = new Float64Array(COLUMNS + 2);
    rows.add(given, row, lse, 1, out, 2);
    Array.from(out.subarray(2)).forEach((weight, at) => {
      expect(weight, `row ${row}, column ${at}`).toBeCloseTo((expected.weights[row] as number[])[at] as number, 12);
    });
  }
}

const pairs = numbers(ROWS * COLUMNS, 3);
const relative = numbers(4, 4);
const clamped = (place: number): number => relative[Math.min(Math.max(place, 0), 3)] as number;

const BIASES: Record<string, [Bias, (i: number, j: number) => number]> = {
  "a value for each pair": [
    { kind: "dense", values: pairs, rows: ROWS, columns: COLUMNS },
    (i, j) => pairs[(i - QUERIES[0]) * COLUMNS + j - KEYS[0]] as number,
  ],
  "a value for each key": [
    { kind: "dense", values: pairs.subarray(0, COLUMNS), rows: 1, columns: COLUMNS },
    (_, j) => pairs[j - KEYS[0]] as number,
  ],
  "a value for each query": [
    { kind: "dense", values: pairs.subarray(0, ROWS), rows: ROWS, columns: 1 },
    (i) => pairs[i - QUERIES[0]] as number,
  ],
  "one value": [{ kind: "dense", values: pairs.subarray(0, 1), rows: 1, columns: 1 }, () => pairs[0] as number],
  alibi: [{ kind: "alibi", slope: 0.3, offset: -2 }, (i, j) => -0.3 * Math.abs(i - 2 - j)],
  "relative positions": [
    { kind: "relative", values: relative, first: -2, offset: 1 },
    (i, j) => clamped(j - (i + 1) + 2),
  ],
};

const runs: [number, number][][] = [
  [[0, 3]],
  [
    [1, 2],
    [4, 20],
  ],
  [[9, 9]],
  [[2, 9]],
  [
    [3, 3],
    [5, 6],
  ],
];
const intervals: Mask = {
  kind: "intervals",
  starts: Int32Array.from(runs.flatMap((row) => [row[0]?.[0] ?? 9, row[1]?.[0] ?? 9])),
  stops: Int32Array.from(runs.flatMap((row) => [row[0]?.[1] ?? 9, row[1]?.[1] ?? 9])),
  runs: 2,
};
const dense = Uint8Array.from({ length: ROWS * COLUMNS }, (_, at) => ((at * 7) % 3 === 0 ? 0 : 1)).fill(
  0,
  COLUMNS,
  2 * COLUMNS,
);

const MASKS: Record<string, [Mask, (i: number, j: number) => boolean]> = {
  intervals: [intervals, (i, j) => (runs[i - QUERIES[0]] as [number, number][]).some(([a, b]) => a <= j && j < b)],
  booleans: [{ kind: "dense", visible: dense }, (i, j) => dense[(i - QUERIES[0]) * COLUMNS + j - KEYS[0]] === 1],
};

describe("weights follow the formula", () => {
  it("plainly", () => check(block(), weights({})));
  it("with a softcap", () => check(block({ softcap: 0.9 }), weights({ softcap: 0.9 })));
  it("with a sink", () => check(block(), weights({ sink: 1.2 }), 1.2));
  it.each(Object.keys(BIASES))("with a bias: %s", (name) => {
    const [bias, formula] = BIASES[name] as (typeof BIASES)[string];
    check(block({ bias }), weights({ bias: formula }));
  });
  it.each(Object.keys(MASKS))("behind a mask of %s, where a row may see nothing", (name) => {
    const [mask, sees] = MASKS[name] as (typeof MASKS)[string];
    expect(weights({ sees }).lse).toContain(Number.NEGATIVE_INFINITY);
    check(block({ mask }), weights({ sees }));
    check(block({ mask }), weights({ sees, sink: -0.4 }), -0.4);
  });
  it("with all of it at once", () => {
    const [bias, formula] = BIASES.alibi as (typeof BIASES)[string];
    const [mask, sees] = MASKS.intervals as (typeof MASKS)[string];
    check(block({ bias, mask, softcap: 2 }), weights({ bias: formula, sees, softcap: 2, sink: 0.1 }), 0.1);
  });
});

describe("a row", () => {
  it("is told step by step", () => {
    const [bias] = BIASES.alibi as (typeof BIASES)[string];
    const given = block({ bias, mask: intervals, softcap: 2 });
    const [score, added, seen] = [new Float64Array(COLUMNS), new Float64Array(COLUMNS), new Uint8Array(COLUMNS)];
    capped(given, 1, score);
    addBias(given, 1, added);
    visible(given, 1, seen);
    expect(Array.from(seen)).toEqual([0, 0, 1, 1, 1, 1, 1]);
    expect(added[0]).toBeCloseTo(0, 12); // query 4 - 2 is at key 2
    expect(added[6]).toBeCloseTo(-1.8, 6);
    expect(Math.max(...score.map(Math.abs))).toBeLessThan(2);
  });

  it("keeps what is no number, and hides it where the mask does", () => {
    const broken = key.slice();
    broken[0] = Number.NaN;
    const rows = new Rows(COLUMNS);
    const out = new Float64Array(COLUMNS);
    rows.add(block({ key: broken }), 0, 1, 1, out, 0);
    expect(out[0]).toBeNaN();
    expect(rows.lse(block({ key: broken }), 0, Number.NEGATIVE_INFINITY)).toBeNaN();
    out.fill(0);
    rows.add(block({ key: broken, mask: intervals }), 1, 1, 1, out, 0);
    expect(out.some(Number.isNaN)).toBe(false);
  });

  it("adds a share of itself to what is there", () => {
    const out = new Float64Array(COLUMNS).fill(1);
    new Rows(COLUMNS).add(block(), 0, 0, 0.5, out, 0);
    const score = new Float64Array(COLUMNS);
    capped(block(), 0, score);
    expect(out[3]).toBeCloseTo(1 + 0.5 * Math.exp(score[3] as number), 12);
  });
});

it("cells hold what the trace format says", () => {
  expect(Array.from(cellsOf(7, 3))).toEqual([0, 0, 1, 1, 2, 2, 2]);
  expect(Array.from(cellsOf(4, 4))).toEqual([0, 1, 2, 3]);
});
