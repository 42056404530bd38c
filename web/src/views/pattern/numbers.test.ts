import { describe, expect, it } from "vitest";
import type { Source } from "../../source/contract";
import { cellsCsv, isExact, jsonOf, type Seen, weightsCsv, weightsOf } from "./numbers";
import { type Subject, Tile } from "./tiles";

const subject: Subject = { text: "0", site: 0, head: 1, reduce: "max", extent: { queries: 3, keys: 3 }, exact: true };
const tile = new Tile([0, 4000], [0, 4000], new Float32Array([0.5, 0.25, Number.NaN, 0]), [2, 2], false, "max");
const labels = ["a", "=b", 'c"'];
const seen: Seen = {
  subject,
  against: null,
  tiles: [tile],
  less: null,
  view: { queries: [1, 3], keys: [0, 2] },
  queryLabels: labels,
  keyLabels: labels,
  reduce: "max",
};

/** Weights that tell where they are from: 10 head + query + key / 10. */
const source = {
  ask: async (
    _: string,
    { head, queries, keys }: { head: number; queries: [number, number]; keys: [number, number] },
  ) => {
    const shape = [queries[1] - queries[0], keys[1] - keys[0]] as const;
    const data = Float32Array.from(
      { length: shape[0] * shape[1] },
      (_, i) => 10 * head + queries[0] + Math.floor(i / shape[1]) + (keys[0] + (i % shape[1])) / 10,
    );
    return { weights: { data, shape } };
  },
} as unknown as Source;

describe("numbers in view", () => {
  it("writes single weights with their tokens, as text where a spreadsheet might compute", async () => {
    expect(isExact(seen)).toBe(true);
    const csv = weightsCsv(
      await weightsOf(source, { ...seen, view: { queries: [1, 2], keys: [1, 3] } }),
      labels,
      labels,
    );
    expect(csv.split("\n")).toEqual([
      "query_position,query,key_position,key,weight",
      `1,'=b,1,'=b,${Math.fround(11.1)}`,
      `1,'=b,2,"c""",${Math.fround(11.2)}`,
      "",
    ]);
  });

  it("writes a difference with both of its parts, as far as both texts go", async () => {
    const against = { ...subject, text: "1", head: 0, extent: { queries: 2, keys: 3 } };
    const weights = await weightsOf(source, { ...seen, against });
    expect(weights.queries).toEqual([1, 2]);
    expect([...(weights.less ?? [])]).toEqual([1, expect.closeTo(1.1)]);
    expect(weightsCsv(weights, null, null).split("\n")[1]).toBe("1,,0,,11,1,10");
  });

  it("has no difference where the other text has no tokens", async () => {
    const against = { ...subject, extent: { queries: 1, keys: 1 } };
    await expect(weightsOf(source, { ...seen, against })).rejects.toThrow(/no difference to save/);
  });

  it("writes the cells where single weights are too many or were not kept", () => {
    const far = { ...seen, view: { queries: [0, 4000], keys: [0, 2000] } } as const;
    expect(isExact(far)).toBe(false);
    expect(isExact({ ...seen, subject: { ...subject, exact: false } })).toBe(false);
    expect(cellsCsv(far)).toBe(
      "query_start,query_stop,key_start,key_stop,max_weight\n0,2000,0,2000,0.5\n2000,4000,0,2000,\n",
    );
  });

  it("gives the same as JSON", async () => {
    expect(await jsonOf(source, { ...seen, view: { queries: [2, 3], keys: [0, 2] } }, { model: "m" })).toEqual({
      model: "m",
      queries: [2, 3],
      keys: [0, 2],
      query_tokens: ['c"'],
      key_tokens: ["a", "=b"],
      weights: [[12, expect.closeTo(12.1)]],
    });
    const far = (await jsonOf(source, { ...seen, view: { queries: [0, 2000], keys: [0, 4000] } }, {})) as {
      cells: number[][];
    };
    expect(far.cells).toEqual([
      [0, 2000, 0, 2000, 0.5],
      [0, 2000, 2000, 4000, 0.25],
    ]);
  });
});
