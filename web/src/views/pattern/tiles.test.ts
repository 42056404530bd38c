import { describe, expect, it, vi } from "vitest";
import type { Range, TileAnswer, TileKey } from "../../source/contract";
import { cellOf, cellRange, drawn, placesOf, type Subject, Tile, TileCache, TileLoader } from "./tiles";

const extent = { queries: 2000, keys: 2000 };
const subject: Subject = { text: "0", site: 1, head: 2, reduce: "max", extent, exact: true };
const all: Range = [0, 2000];

/** What a source that computes tiles answers. */
function answer({ level, row, column, reduce }: TileKey): TileAnswer {
  const tile = 256 * 2 ** level;
  const range = (i: number): Range => [i * tile, Math.min((i + 1) * tile, 2000)];
  const cells = (r: Range) => Math.ceil((r[1] - r[0]) / 2 ** level);
  const [queries, keys] = [range(row), range(column)];
  const shape = [cells(queries), cells(keys)] as const;
  return {
    queries,
    keys,
    weights: { data: new Float32Array(shape[0] * shape[1]).fill(level), shape },
    exact: level === 0,
    reduce,
  };
}

function put(cache: TileCache, level: number, row: number, column: number): Tile {
  return cache.put(subject, answer({ ...subject, level, row, column }));
}

/** An ask whose answers are given by hand. */
function byHand() {
  const asked: {
    key: TileKey;
    signal: AbortSignal;
    give: (value: TileAnswer) => void;
    fail: (error: unknown) => void;
  }[] = [];
  const ask = (key: TileKey, signal: AbortSignal) =>
    new Promise<TileAnswer>((give, fail) => {
      asked.push({ key, signal, give, fail });
    });
  return { asked, ask };
}

const settled = () => new Promise((done) => setTimeout(done));

describe("cells", () => {
  it("finds a token in the cell that holds it", () => {
    for (const [length, cells] of [
      [10, 10],
      [10, 3],
      [1000, 64],
      [7, 5],
    ] as const) {
      const range: Range = [100, 100 + length];
      for (let token = 100; token < 100 + length; token++) {
        const [start, stop] = cellRange(cellOf(token, range, cells), range, cells);
        expect(token).toBeGreaterThanOrEqual(start);
        expect(token).toBeLessThan(stop);
      }
    }
  });

  it("reads the weight of a pair", () => {
    const tile = new Tile([10, 14], [20, 26], new Float32Array([1, 2, 3, 4, 5, 6]), [2, 3], false, "max");
    expect([tile.at(10, 20), tile.at(11, 25), tile.at(13, 22), tile.at(14, 20)]).toEqual([1, 3, 5, undefined]);
    expect(tile.cellAt(13, 23)).toEqual({ queries: [12, 14], keys: [22, 24] });
  });
});

describe("places", () => {
  it("covers a part, the middle first, cut at the map's end", () => {
    const places = placesOf(1, [300, 1500], [600, 2000], extent);
    expect(places.map(({ row, column }) => `${row}.${column}`).sort()).toEqual([
      "0.1",
      "0.2",
      "0.3",
      "1.1",
      "1.2",
      "1.3",
      "2.1",
      "2.2",
      "2.3",
    ]);
    expect(places[0]).toEqual({ level: 1, row: 1, column: 2, queries: [512, 1024], keys: [1024, 1536] });
    expect(places.find(({ column }) => column === 3)?.keys).toEqual([1536, 2000]);
  });
});

describe("the cache", () => {
  it("holds no more bytes than it may, and lets go of what was least lately seen", () => {
    const gone = vi.fn();
    const cache = new TileCache(4 * 2 * 256 * 256 * 4, gone);
    const [first, second] = [put(cache, 0, 0, 0), put(cache, 0, 0, 1)];
    put(cache, 0, 0, 2);
    put(cache, 0, 0, 3);
    cache.touch([first]);
    put(cache, 0, 0, 4);
    expect(gone.mock.calls).toEqual([[second]]);
    expect(cache.bytes).toBe(4 * 2 * 256 * 256 * 4);
    expect(cache.of(subject)).toContain(first);
  });

  it("keeps the newest tile even if it is larger than all may be", () => {
    const cache = new TileCache(10);
    put(cache, 0, 0, 0);
    const last = put(cache, 0, 0, 1);
    expect(cache.of(subject)).toEqual([last]);
  });

  it("keeps the same rectangle once", () => {
    const cache = new TileCache(1e9);
    expect(put(cache, 2, 0, 0)).toBe(put(cache, 2, 0, 0));
    expect(cache.of(subject)).toHaveLength(1);
  });

  it("finds no coarser tile for a place, but a stored map where that is all there is", () => {
    const cache = new TileCache(1e9);
    const [place] = placesOf(0, [0, 10], [0, 10], extent);
    const coarse = put(cache, 3, 0, 0);
    expect(cache.find(subject, place as never)).toBeUndefined();
    expect(cache.find({ ...subject, exact: false }, place as never)).toBe(coarse);
    expect(cache.find(subject, placesOf(3, all, all, extent)[0] as never)).toBe(coarse);
  });

  it("knows single weights from the finest tiles only", () => {
    const cache = new TileCache(1e9);
    put(cache, 3, 0, 0);
    expect(cache.weightAt(subject, 3, 4)).toBeUndefined();
    put(cache, 0, 0, 0);
    expect(cache.weightAt(subject, 3, 4)).toBe(0);
  });
});

describe("what is drawn", () => {
  const places = placesOf(1, [0, 1024], [0, 512], extent);

  it("is only the right level when all of it is there", () => {
    const cache = new TileCache(1e9);
    put(cache, 3, 0, 0);
    const fine = [put(cache, 1, 0, 0), put(cache, 1, 1, 0)];
    expect(new Set(drawn(cache, subject, places))).toEqual(new Set(fine));
  });

  it("is the nearest coarse one below the fine until then, and no other", () => {
    const cache = new TileCache(1e9);
    const fine = put(cache, 1, 0, 0);
    const [coarse] = [put(cache, 2, 0, 0), put(cache, 3, 0, 0), put(cache, 2, 1, 1)];
    expect(drawn(cache, subject, places)).toEqual([coarse, fine]);
  });

  it("is what finer ones there are where the coarse one is far too coarse, or none", () => {
    const cache = new TileCache(1e9);
    const fine = put(cache, 0, 3, 1);
    put(cache, 0, 7, 7); // elsewhere
    expect(drawn(cache, subject, places)).toEqual([fine]);
    const coarse = put(cache, 4, 0, 0);
    expect(drawn(cache, subject, places)).toEqual([coarse, fine]);
  });
});

describe("the loader", () => {
  const wanted = placesOf(0, all, all, extent).map((place) => ({ subject, place }));

  it("asks for a few at a time, in order, until all are there", async () => {
    const cache = new TileCache(1e9);
    const { asked, ask } = byHand();
    const loader = new TileLoader(ask, cache, () => {}, 3);
    loader.want(wanted);
    expect(asked.map(({ key }) => [key.row, key.column])).toEqual(
      wanted.slice(0, 3).map(({ place }) => [place.row, place.column]),
    );
    for (let i = 0; i < wanted.length; i++) {
      asked[i]?.give(answer(asked[i]?.key as TileKey));
      await settled();
    }
    expect(asked).toHaveLength(64);
    expect(loader.missing).toBe(0);
  });

  it("gives up what is out of view, and uses the place for what is in view", () => {
    const { asked, ask } = byHand();
    const loader = new TileLoader(ask, new TileCache(1e9), () => {}, 3);
    loader.want(wanted.slice(0, 3));
    loader.want(wanted.slice(2, 5));
    expect(asked.map(({ signal }) => signal.aborted)).toEqual([true, true, false, false, false]);
  });

  it("does not keep what it gave up, and asks for it anew", async () => {
    const cache = new TileCache(1e9);
    const { asked, ask } = byHand();
    const loader = new TileLoader(ask, cache, () => {}, 3);
    loader.want(wanted.slice(0, 1));
    loader.want([]);
    asked[0]?.fail(new DOMException("aborted", "AbortError"));
    loader.want(wanted.slice(0, 1));
    await settled();
    expect(loader.error).toBeUndefined();
    expect(asked).toHaveLength(2);
  });

  it("says what failed, goes on with the others, and tries again when told", async () => {
    const { asked, ask } = byHand();
    const changed = vi.fn();
    const loader = new TileLoader(ask, new TileCache(1e9), changed, 1);
    loader.want(wanted.slice(0, 2));
    asked[0]?.fail(new Error("no"));
    await settled();
    expect((loader.error as Error).message).toBe("no");
    expect(changed).toHaveBeenCalledOnce();
    expect(asked).toHaveLength(2);
    asked[1]?.give(answer(asked[1].key));
    await settled();
    loader.retry();
    expect(asked).toHaveLength(3);
    expect(loader.error).toBeUndefined();
  });

  it("asks for a stored map once", async () => {
    const cache = new TileCache(1e9);
    const { asked, ask } = byHand();
    const loader = new TileLoader(ask, cache, () => {}, 3);
    loader.want(wanted.map(({ place }) => ({ subject: { ...subject, exact: false }, place })));
    expect(asked).toHaveLength(1);
    asked[0]?.give({
      queries: all,
      keys: all,
      weights: { data: new Float32Array(64), shape: [8, 8] },
      exact: false,
      reduce: "mean",
    });
    await settled();
    expect(asked).toHaveLength(1);
    expect(loader.missing).toBe(0);
  });

  it("does not take an answer for another place for the one it asked for", async () => {
    const { asked, ask } = byHand();
    const loader = new TileLoader(ask, new TileCache(1e9), () => {}, 1);
    loader.want(wanted.slice(0, 1));
    asked[0]?.give(answer({ ...subject, level: 0, row: 0, column: 0 }));
    await settled();
    expect(String(loader.error)).toMatch(/^Error: Expected queries .* in cells of 1 tokens; got queries 0–256/);
  });

  it("does not ask for ever where cells come coarser than asked", async () => {
    const { asked, ask } = byHand();
    const loader = new TileLoader(ask, new TileCache(1e9), () => {}, 1);
    loader.want(placesOf(0, [0, 10], [0, 10], extent).map((place) => ({ subject, place })));
    asked[0]?.give(answer({ ...subject, level: 2, row: 0, column: 0 }));
    await settled();
    expect(asked).toHaveLength(1);
    expect(String(loader.error)).toMatch(/cells of 1 tokens; got .* in cells of 4 tokens/);
  });
});
