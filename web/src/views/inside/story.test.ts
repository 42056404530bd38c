import { describe, expect, it } from "vitest";
import type { InsideAnswer, NumberArray } from "../../source/contract";
import { listing } from "./listing";
import { drawn, LEFT } from "./products";
import { broken, remainder, tell } from "./story";
import { brief, type Told } from "./told";
import { rows, words } from "./words";

const vector = (...numbers: number[]): NumberArray => ({ data: Float32Array.from(numbers), shape: [numbers.length] });
const matrix = (...lines: number[][]): NumberArray => ({
  data: Float32Array.from(lines.flat()),
  shape: [lines.length, lines[0]?.length ?? 0],
});

const LN = Math.log;

/** Scores 0, ln 2 and ln 5: weights 1/8, 2/8 and 5/8. The key is the second: q·k = 2 ln 2, halved by the scale. */
function answer(change: Partial<InsideAnswer> = {}): InsideAnswer {
  return {
    scale: 0.5,
    softcap: null,
    sink: null,
    lse: LN(8),
    state: vector(3, 4),
    key_state: vector(1, 0),
    query: vector(2, 1, -1),
    key: vector(LN(2), 1, 1),
    chosen: { data: Int32Array.from([0, 1, 2]), shape: [3] },
    score: vector(0, LN(2), LN(5)),
    bias: vector(0, 0, 0),
    visible: { data: Uint8Array.from([1, 1, 1]), shape: [3] },
    weight: vector(1 / 8, 2 / 8, 5 / 8),
    rest: 0,
    value: matrix([8, 0], [0, 8], [8, 8]),
    output: vector(6, 7),
    outputs: matrix([1, 1], [6, 7]),
    projected: matrix([3, 0], [0, 4]),
    added: vector(3, 4),
    after: vector(6, 8),
    parts: [
      { label: "residual", length: 5, cosine: 1 },
      { label: "heads", length: 5, cosine: 1 },
    ],
    missing: null,
    ...change,
  };
}

function told(given: InsideAnswer): Told {
  return {
    story: tell(given, 1, 1),
    queryAt: 2,
    keyAt: 1,
    headAt: 1,
    query: "“c”",
    queryLabel: "c",
    key: "“b”",
    head: "head 5",
    layer: "layer 3",
    heads: [0, 5],
    keys: 3,
    quoted: (at) => `“${"abc"[at]}”`,
    shown: (at) => "abc"[at] ?? "",
    label: (at) => "abc"[at] ?? "",
    missing: "",
  };
}

describe("tell", () => {
  it("works a whole answer through", () => {
    const { score, softmax, output, layer } = tell(answer(), 1, 1);
    expect(score.products.map((one) => one.product)).toEqual([2 * Math.fround(LN(2)), 1, -1]);
    expect(score.products.at(-1)?.sum).toBeCloseTo(2 * LN(2), 6);
    expect(score.largest[0]?.dimension).toBe(0);
    expect(score.capped).toBeCloseTo(LN(2), 6);
    expect(softmax.whole).toBeCloseTo(8 / 5, 6);
    expect(softmax.rows.map((row) => row.exponential)).toEqual([1 / 5, 2 / 5, 1].map((one) => expect.closeTo(one, 6)));
    expect(output?.shares.map((share) => share.row.position)).toEqual([2, 1, 0]);
    expect(output?.length).toBeCloseTo(Math.hypot(6, 7), 6);
    expect(layer).toMatchObject({ lengths: [3, 4], added: 5, bias: 0 });
    expect(broken(tell(answer(), 1, 1))).toEqual([]);
  });

  it.each<[string, Partial<InsideAnswer>]>([
    ["a score that is not q·k", { score: vector(0, LN(2) + 0.001, LN(5)) }],
    ["a scale that is another", { scale: 0.51 }],
    ["a weight that is not its score's", { weight: vector(1 / 8, 3 / 8, 4 / 8) }],
    ["weights that sum to more", { rest: 0.01 }],
    ["an output that is not the values'", { output: vector(6, 7.01) }],
    ["an output that is another head's", { outputs: matrix([6, 7], [1, 1]) }],
    ["parts that make another state", { after: vector(6, 9) }],
    ["a weight that is no number", { weight: vector(1 / 8, Number.NaN, 5 / 8) }],
  ])("says that it does not add up: %s", (_, change) => {
    expect(broken(tell(answer(change), 1, 1)).length).toBeGreaterThan(0);
    expect(words(told(answer(change)))).toContain("do not add up");
  });

  it("caps scores softly", () => {
    const capped = 2 * Math.tanh(LN(2) / 2);
    const total = 1 + Math.exp(capped) + 5;
    const change = { softcap: 2, lse: LN(total), score: vector(0, capped, LN(5)) };
    const weight = vector(1 / total, Math.exp(capped) / total, 5 / total);
    const { score, softmax } = tell(answer({ ...change, weight, output: null, outputs: null }), 1, 1);
    expect(score.scaled).toBeCloseTo(LN(2), 6);
    expect(score.check.holds).toBe(true);
    expect(softmax.weights.holds).toBe(true);
  });

  it("takes the sink's weight apart from the other keys'", () => {
    // Sink and keys left out weigh 4 and 4 of 16.
    const weight = vector(1 / 16, 2 / 16, 5 / 16);
    const { softmax, output } = tell(answer({ sink: LN(4), lse: LN(16), weight, rest: 0.5 }), 1, 1);
    expect(softmax.sink).toBeCloseTo(0.25, 6);
    expect(softmax.others).toBeCloseTo(0.25, 6);
    expect(softmax.sum.holds).toBe(true);
    expect(output?.check).toBeNull();
  });

  it("lets the mask hide keys", () => {
    const visible = { data: Uint8Array.from([1, 1, 0]), shape: [3] };
    const weight = vector(1 / 3, 2 / 3, 0);
    const story = tell(answer({ visible, weight, lse: LN(3), output: vector(8 / 3, 16 / 3), outputs: null }), 1, 1);
    expect(story.softmax.rows[2]).toMatchObject({ total: -Infinity, exponential: 0, weight: 0 });
    expect(broken(story)).toEqual([]);
    expect(listing(story.softmax, 2, 3, 1, true).rows.map((row) => row.position)).toEqual([1, 2]);
  });

  it("tells of a query that sees nothing, whose lse JSON cannot hold", () => {
    const visible = { data: Uint8Array.from([0, 0, 0]), shape: [3] };
    const change = {
      visible,
      weight: vector(0, 0, 0),
      lse: null as unknown as number,
      output: vector(0, 0),
      outputs: null,
    };
    const story = tell(answer(change), 1, 1);
    expect(story.softmax.any).toBe(false);
    expect(broken(story)).toEqual([]);
    expect(words({ ...told(answer()), story })).toContain("hides every key");
  });

  it("does without values and without the model", () => {
    const none = { value: null, output: null, outputs: null, projected: null, added: null, after: null, parts: null };
    const story = tell(answer({ ...none, state: null, key_state: null }), 1, 1);
    expect(story.output).toBeNull();
    expect(story.layer).toMatchObject({ lengths: null, added: null, parts: null, check: null });
    expect(broken(story)).toEqual([]);
  });

  it("refuses an answer without the key that was asked for", () => {
    expect(() => tell(answer(), 7, 1)).toThrow("token 7");
  });
});

it("leaves to the others what the listed keys do not bring", () => {
  const { output } = tell(answer(), 1, 1);
  if (!output) throw new Error("no output");
  expect(Array.from(remainder(output, output.shares.slice(0, 1)))).toEqual([1, 2]);
});

it("lists the asked key also where it is light, and counts the rest", () => {
  const { softmax } = tell(answer(), 0, 1);
  const list = listing(softmax, 2, 100, 1, false);
  expect(list.rows.map((row) => row.position)).toEqual([0, 2]);
  expect(list.others).toBe(98);
  expect(list.weight).toBeCloseTo(2 / 8, 6);
});

it("draws products up and down from zero, and their sum to its end", () => {
  const { score } = tell(answer(), 1, 1);
  const drawing = drawn(score.products, score.largest, LEFT + 60 + 300);
  expect(drawing.column).toBe(100);
  const [up, , down] = drawing.bars;
  expect((up?.y ?? 0) + (up?.height ?? 0)).toBeCloseTo(drawing.zero, 6);
  expect(down?.y).toBeCloseTo(drawing.zero, 6);
  expect(drawing.line.endsWith(`H${LEFT + 300}`)).toBe(true);
});

it("shows a token that is as long as a line in brief, and saves it whole", () => {
  const long = "rose".repeat(30);
  expect([brief("unpredictably"), brief(long)]).toEqual(["unpredictably", "roseroseroseroseros…"]);
  expect([...rows({ ...told(answer()), label: () => long })]).toContainEqual([3, `weight of ${long} (token 1)`, 0.25]);
});

it("gives every number of every step", () => {
  const list = [...rows(told(answer()))];
  expect(list).toContainEqual([1, "q[0]", 2]);
  expect(list).toContainEqual([3, "weight of b (token 1)", 0.25]);
  expect(list).toContainEqual([4, "output[1]", 7]);
  expect(list).toContainEqual([5, "length of what head 5 adds", 4]);
});
