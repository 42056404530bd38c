import { describe, expect, it } from "vitest";
import { Tally } from "../../model/colour";
import { countsOf, meanOfLargest, strongest, tallyOf } from "./facts";
import { Tile } from "./tiles";

const tile = new Tile([0, 2], [0, 3], new Float32Array([0.1, 0.7, 0.2, 0.5, 0.25, 0.25]), [2, 3], true, "max");
const all = { queries: [0, 2], keys: [0, 3] } as const;

describe("what is in view", () => {
  it("names the strongest cells in order, of what is in view only", () => {
    const weights = (keys: readonly [number, number]) =>
      strongest([tile], null, { ...all, keys }, 3).map(({ weight }) => weight);
    expect(weights([0, 3])).toEqual([0.7, 0.5, 0.25].map((weight) => expect.closeTo(weight)));
    expect(weights([2, 3])).toEqual([0.25, 0.2].map((weight) => expect.closeTo(weight)));
  });

  it("tells the tokens of a strongest cell", () => {
    const coarse = new Tile([0, 8], [0, 8], new Float32Array([0, 0, 1, 0]), [2, 2], false, "max");
    expect(strongest([coarse], null, { queries: [0, 8], keys: [0, 8] }, 5)).toEqual([
      { weight: 1, queries: [4, 8], keys: [0, 4] },
    ]);
  });

  it("takes what is taken off at the same tokens, only where both maps are", () => {
    const other = new Tile([0, 1], [0, 2], new Float32Array([0.4, 0.1]), [1, 2], true, "max");
    const found = strongest([tile], [other], all, 9);
    expect(found.map(({ weight }) => weight)).toEqual([0.6, -0.3].map((weight) => expect.closeTo(weight)));
  });

  it("leaves special tokens' columns out of a tally, and says so", () => {
    const tally = new Tally();
    expect(tallyOf(tally, [tile], null, all, countsOf([0, 1, 0]))).toBe(true);
    expect(tally.largest).toBeCloseTo(0.5);
    const whole = new Tally();
    expect(tallyOf(whole, [tile], null, all, null)).toBe(false);
    expect(whole.largest).toBeCloseTo(0.7);
  });

  it("means the largest weights of the queries", () => {
    expect(meanOfLargest([tile], all)).toBeCloseTo(0.6);
    expect(meanOfLargest([], all)).toBeNull();
  });
});
