import { describe, expect, it } from "vitest";
import type { Questions, Source } from "../../source/contract";
import { type Shown, shownAs } from "./shown";
import { SumsLoader, sumAt } from "./sums";
import type { Subject } from "./tiles";

const gutters = { left: 50, top: 50, right: 40, bottom: 40 };

function map(tokens: number, less: number | null): Shown {
  const subject = (text: string, count: number): Subject => ({
    text,
    site: 0,
    head: 0,
    reduce: "max",
    extent: { queries: count, keys: count },
    exact: true,
  });
  const against = less === null ? null : subject("1", less);
  const labels = { title: "", queryLabels: null, keyLabels: null, specialKeys: null };
  const made = shownAs({ subject: subject("0", tokens), against, ...labels }, [], 0);
  made.box = { left: 50, top: 50, width: 100, height: 100 };
  made.window = { x: 0, y: 0, sx: 100 / tokens, sy: 100 / tokens };
  return made;
}

/** Sums that tell which text and token they are of. */
function source(asked: Questions["margins"][0][] = []): Source {
  return {
    ask: async (_, parameters) => {
      const { text, queries, keys } = parameters as unknown as Questions["margins"][0];
      asked.push({ text, queries, keys } as Questions["margins"][0]);
      const of = ([start, stop]: readonly [number, number]) => ({
        data: Float32Array.from({ length: stop - start }, (_, i) => (text === "0" ? 2 : 1) * (start + i)),
        shape: [stop - start],
      });
      return { rows: of(queries), columns: of(keys) } as never;
    },
    run: () => Promise.reject(new Error("no job")),
  };
}

describe("sums at the sides", () => {
  it("are asked for once, and read at their bars", async () => {
    const asked: Questions["margins"][0][] = [];
    const [loader, one] = [new SumsLoader(source(asked)), map(10, null)];
    expect(sumAt([one], gutters, { x: 160, y: 75 })).toBeNull();
    await loader.load([one]);
    await loader.load([one]);
    expect(asked).toEqual([{ text: "0", queries: [0, 10], keys: [0, 10] }]);
    expect(sumAt([one], gutters, { x: 160, y: 75 })).toEqual({ map: 0, side: "queries", tokens: [2, 3], sum: 4 });
    expect(sumAt([one], gutters, { x: 85, y: 160 })).toEqual({ map: 0, side: "keys", tokens: [3, 4], sum: 6 });
    for (const [x, y] of [
      [100, 100],
      [195, 75],
      [160, 160],
      [85, 195],
    ] as const)
      expect(sumAt([one], gutters, { x, y })).toBeNull();
  });

  it("of a difference are those of both, as far as both go", async () => {
    const [loader, as, shorter] = [new SumsLoader(source()), map(4, 6), map(6, 4)];
    await loader.load([as, shorter]);
    expect([...(as.sums?.rows ?? [])]).toEqual([0, 1, 2, 3]);
    expect([as.sums?.keys, shorter.sums?.keys]).toEqual([
      [0, 4],
      [0, 4],
    ]);
  });

  it("are given up without a word, and fail with one", async () => {
    const failing: Source = { ...source(), ask: () => Promise.reject(new Error("away")) };
    const loader = new SumsLoader(failing);
    await expect(loader.load([map(4, null)])).rejects.toThrow("away");
    const [given, one] = [new SumsLoader(source()), map(4, null)];
    const loading = given.load([one]);
    given.stop();
    await loading;
    expect(one.sums).toBeNull();
  });
});
