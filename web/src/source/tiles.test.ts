import { describe, expect, it } from "vitest";
import type { Range } from "./contract";
import { choose } from "./inside";
import type { Recorded, Visit } from "./recorded";
import type { StoredSource } from "./stored";
import { cells, covering, tile } from "./tiles";

describe("cells of a stored map that cover a tile", () => {
  it.each([
    [300, 150],
    [300, 128],
    [97, 32],
    [4096, 128],
    [131072, 1024],
  ])("of %i tokens in %i cells", (count, cells) => {
    for (const range of [
      [0, count],
      [0, Math.min(256, count)],
      [Math.floor(count / 3), Math.floor(count / 2)],
    ] as const) {
      const [[first, stop], [from, to]] = covering(range, count, cells);
      expect(from).toBeLessThanOrEqual(range[0]);
      expect(to).toBeGreaterThanOrEqual(range[1]);
      // The part's own cells are those of the whole.
      for (let cell = 0; cell <= stop - first; cell++) {
        const here = from + Math.floor((cell * (to - from)) / (stop - first));
        expect(here).toBe(Math.floor(((first + cell) * count) / cells));
      }
    }
  });

  it("are no more than are needed where lengths divide", () => {
    expect(covering([256, 512], 4096, 128)).toEqual([
      [8, 16],
      [256, 512],
    ]);
  });
});

describe("the keys that are told one by one", () => {
  it("are all of a short text", () => expect(choose(new Float64Array(64), 3, 3)).toHaveLength(64));

  it("are the asked one, the query's neighbours and the heaviest", () => {
    const weight = Float64Array.from({ length: 300 }, (_, at) => (at < 200 ? 0.001 * at : 0));
    const found = choose(weight, 250, 100);
    expect(found).toHaveLength(64);
    expect(found).toEqual([...found].sort((a, b) => a - b));
    expect(found.slice(0, 9)).toEqual([96, 97, 98, 99, 100, 101, 102, 103, 104]);
    expect(found.slice(9)).toEqual([...Array.from({ length: 54 }, (_, at) => 146 + at), 250]);
  });
});

describe("a tile that would take too long", () => {
  /** A site of so many tokens that nothing of it is to be computed here. */
  const source = (map: object | null): StoredSource => {
    const info = { label: "layer 0", heads: [0, 1], queries: 65536, keys: 65536, exact: true, map };
    const site = {
      info,
      levels: () => [
        [4, 4],
        [2, 2],
      ],
      map: async () => Float32Array.from({ length: 16 }, (_, at) => at),
    };
    return { asked: async () => site, exact: async () => site } as unknown as StoredSource;
  };
  const key = { text: "0", site: 0, head: 0, level: 5, row: 1, column: 0, reduce: "mean" } as const;

  it("is what there is in the stored map, and says so", async () => {
    const found = await tile(source({ cells: [4, 4], reduce: "max" }), key);
    expect(found).toMatchObject({ queries: [0, 16384], keys: [0, 16384], exact: false, reduce: "max" });
    expect(await tile(source({ cells: [4, 4], reduce: "max" }), { ...key, row: 2, column: 7 })).toMatchObject({
      queries: [16384, 32768],
      keys: [49152, 65536],
      weights: { data: Float32Array.of(7), shape: [1, 1] },
    });
  });

  it("is refused where there is no map of it", async () => {
    await expect(tile(source(null), key)).rejects.toThrow("Zoom in");
    await expect(tile(source({ cells: [4, 4], reduce: "max" }), { ...key, head: "mean" })).rejects.toThrow("Zoom in");
  });
});

describe("a rectangle", () => {
  /** A pattern whose weight is 10 query + key, swept in parts of two keys. */
  const site = {
    sweep: async (_: unknown, queries: Range, keys: Range, visit: Visit) => {
      for (let query = queries[0]; query < queries[1]; query++)
        for (let key = keys[0]; key < keys[1]; key += 2)
          visit(Float64Array.of(10 * query + key, 10 * query + key + 1), query, key);
    },
  } as Recorded;

  it("has cells of its own tokens, whatever the parts in which it comes", async () => {
    const area = { head: 0, queries: [2, 4], keys: [4, 8] } as const;
    expect([...(await cells(site, area, [2, 4], "mean"))]).toEqual([24, 25, 26, 27, 34, 35, 36, 37]);
    expect([...(await cells(site, area, [1, 2], "mean"))]).toEqual([29.5, 31.5]);
    expect([...(await cells(site, area, [1, 1], "max"))]).toEqual([37]);
  });
});
