import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Source, WindowAnswer } from "../../source/contract";
import { type Pointed, Pointing } from "./pointing";
import { shownAs } from "./shown";
import { type Subject, Tile, TileCache } from "./tiles";

const subject: Subject = {
  text: "0",
  site: 0,
  head: 0,
  reduce: "max",
  extent: { queries: 8, keys: 8 },
  exact: true,
};
const coarse = new Tile([0, 8], [0, 8], Float32Array.of(0, 0, 0.5, 0), [2, 2], false, "max");

function pointing(against: Subject | null = null, answer = () => Promise.resolve(0.25)) {
  const labels = { title: "", queryLabels: null, keyLabels: null, specialKeys: null };
  const map = shownAs({ subject, against, ...labels }, [], 0);
  map.tiles = [coarse];
  const heard: (Pointed | null)[] = [];
  const errors: unknown[] = [];
  const asked: unknown[] = [];
  const source: Source = {
    ask: async (_, parameters) => {
      asked.push(parameters);
      return { weights: { data: Float32Array.of(await answer()), shape: [1, 1] } } satisfies WindowAnswer as never;
    },
    run: () => Promise.reject(new Error("no job")),
  };
  const cache = new TileCache(1e9);
  const made = new Pointing(() => [map], cache, source, {
    moves: (at) => heard.push(at),
    learns: (at, error) => {
      heard.push(at);
      if (error) errors.push(error);
    },
  });
  return { made, heard, errors, asked, cache };
}

describe("pointing at a pair", () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it("tells the cell at once and the weight when it came, and asks for it once", async () => {
    const { made, heard, asked } = pointing();
    made.point(0, { query: 5, key: 1 });
    expect(heard).toEqual([
      { map: 0, query: 5, key: 1, exact: undefined, cell: { queries: [4, 8], keys: [0, 4], weight: 0.5 } },
    ]);
    await vi.runAllTimersAsync();
    expect(heard.at(-1)?.exact).toBe(0.25);
    made.point(0, { query: 5, key: 2 });
    made.point(0, { query: 5, key: 1 });
    await vi.runAllTimersAsync();
    expect([heard.at(-1)?.exact, asked.length]).toEqual([0.25, 1]);
  });

  it("says nothing about the same pair, and gives up what is passed over", async () => {
    const { made, heard } = pointing();
    made.point(0, { query: 5, key: 1 });
    made.point(0, { query: 5, key: 1 });
    await vi.advanceTimersByTimeAsync(10);
    made.point(0, null);
    await vi.runAllTimersAsync();
    expect(heard.map((at) => at?.key)).toEqual([1, undefined]);
  });

  it("has no weight where none was kept, or where the other map ends", async () => {
    const { made, asked } = pointing({ ...subject, text: "1", extent: { queries: 4, keys: 4 } });
    expect(made.point(0, { query: 5, key: 1 })?.exact).toBeNull();
    expect(made.point(0, { query: 2, key: 1 })?.exact).toBeUndefined();
    await vi.runAllTimersAsync();
    expect([made.at?.exact, asked.length]).toEqual([0, 2]);
  });

  it("asks only for what no tile tells", async () => {
    const against = { ...subject, text: "1" };
    const { made, asked, cache } = pointing(against);
    const weights = { data: new Float32Array(64).fill(0.125), shape: [8, 8] };
    cache.put(against, { queries: [0, 8], keys: [0, 8], weights, exact: true, reduce: "max" });
    made.point(0, { query: 5, key: 1 });
    await vi.runAllTimersAsync();
    expect([made.at?.exact, asked.length]).toEqual([0.125, 1]);
  });

  it("says what went wrong", async () => {
    const { made, errors } = pointing(null, () => Promise.reject(new Error("away")));
    made.point(0, { query: 5, key: 1 });
    await vi.runAllTimersAsync();
    expect([made.at?.exact, String(errors)]).toEqual([null, "Error: away"]);
  });
});
