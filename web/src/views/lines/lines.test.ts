import { describe, expect, test } from "vitest";
import { unitsOf } from "../../model/words";
import type { Source, StrongestKey } from "../../source/contract";
import { drawnHeads, only, stepped, withToggled } from "./drawn";
import { beyond, type Column, LINE, linesOf, middle, offsetOf, scrolledTo, slotsOf, visible } from "./layout";
import { curveOf, Raster } from "./raster";
import { BLOCK, type Row, Rows, rowOf, type Subject } from "./rows";
import { partnersOf, sharesOf, toggled } from "./selection";

const row = (partners: number[], weights: number[], special = 0): Row => ({
  partners: Int32Array.from(partners),
  weights: Float32Array.from(weights),
  whole: 1,
  special,
});

describe("layout", () => {
  const shown = Int32Array.of(1, 2, 4, 5, 6);
  const column = (offset: number, height: number): Column => ({
    shown,
    slots: slotsOf(shown, 8),
    offset,
    height,
    line: LINE,
  });

  test("units that are not shown have no slot", () => {
    expect([...column(0, 100).slots]).toEqual([-1, 0, 1, -1, 2, 3, 4, -1]);
  });
  test("a scrolled column shows its slots", () => {
    expect(visible(column(LINE, 2 * LINE), 0)).toEqual([1, 3]);
    expect(visible(column(LINE * 1.5, 2 * LINE), 0)).toEqual([1, 4]);
    expect(visible(column(0, 100 * LINE))).toEqual([0, 5]);
  });
  test("a slot is in the window, above or below", () => {
    const scrolled = column(LINE, 2 * LINE);
    expect([0, 1, 2, 3].map((slot) => beyond(scrolled, slot))).toEqual([-1, 0, 0, 1]);
    expect(middle(scrolled, 1)).toBe(LINE / 2);
  });
  test("columns of unequal length reach their ends together", () => {
    const height = 10 * LINE;
    expect(offsetOf(90 * LINE, 100, 100, height)).toBe(90 * LINE);
    expect(offsetOf(90 * LINE, 20, 100, height)).toBe(10 * LINE);
    expect(offsetOf(45 * LINE, 20, 100, height)).toBe(5 * LINE);
    expect(offsetOf(50, 5, 8, height)).toBe(0);
  });
  test("scrolling brings a slot into the window, with a line to spare", () => {
    const height = 10 * LINE;
    expect(scrolledTo(5, 2 * LINE, height)).toBe(2 * LINE);
    expect(scrolledTo(1, 20 * LINE, height)).toBe(0);
    expect(scrolledTo(40, 0, height)).toBe(32 * LINE);
  });
  test("lines go to partners, weak ones first, and fade where a partner is out of the window", () => {
    const seen = column(0, 2 * LINE);
    const lines = linesOf(seen, seen, [1], () => [row([2, 6, 3], [0.5, 0.3, 0.2])]);
    expect(lines).toEqual([
      { from: LINE / 2, to: 2 * LINE, weight: expect.closeTo(0.3), head: 0, fades: "far" },
      { from: LINE / 2, to: 1.5 * LINE, weight: 0.5, head: 0, fades: "none" },
    ]);
  });
  test("a row that is not there yet has no lines", () => {
    expect(linesOf(column(0, 100), column(0, 100), [1, 3], () => [undefined])).toEqual([]);
  });
});

describe("raster", () => {
  const ink = (width: number) => Float32Array.from({ length: width * 4 }, (_, i) => [200, 100, 50, 1][i % 4] as number);

  test("the curve leaves and arrives level, and is the same from both ends", () => {
    const curve = curveOf(101, 0.45);
    expect(curve[50]).toBeCloseTo(0.5, 6);
    expect(curve[0]).toBeLessThan(0.001);
    for (let x = 1; x < 101; x++) expect(curve[x]).toBeGreaterThan(curve[x - 1] as number);
    for (let x = 0; x < 101; x++) expect((curve[x] as number) + (curve[100 - x] as number)).toBeCloseTo(1, 5);
  });
  test("a level line covers pixels in part", () => {
    const raster = new Raster(4, 6, 0.45);
    raster.stroke(2.75, 2.75, 1.5, 0.5, ink(4));
    const column = Array.from({ length: 6 }, (_, y) => raster.pixels()[(y * 4 + 1) * 4 + 3]);
    expect(column).toEqual([0, 0, 128, 64, 0, 0]);
    expect([...raster.pixels().subarray(2 * 16, 2 * 16 + 3)]).toEqual([200, 100, 50]);
  });
  test("lines lie over each other, and what is out of the picture is cut", () => {
    const raster = new Raster(3, 2, 0.45);
    raster.stroke(0.5, 0.5, 1, 0.5, ink(3));
    raster.stroke(0.5, 0.5, 1, 0.5, ink(3));
    raster.stroke(-40, -40, 3, 1, ink(3));
    raster.stroke(3, 3, 3, 1, ink(3));
    expect(raster.pixels()[3]).toBe(191);
    expect(raster.pixels()[3 * 4 + 3]).toBe(128);
  });
  test("a steep line is as heavy as its length asks", () => {
    const raster = new Raster(200, 400, 0.45);
    raster.stroke(50, 350, 2, 1, ink(200));
    const sum = raster.pixels().reduce((total, value, i) => (i % 4 === 3 ? total + value / 255 : total), 0);
    let length = 0;
    const curve = curveOf(200, 0.45);
    for (let x = 1; x < 200; x++) length += Math.hypot(1, 300 * ((curve[x] as number) - (curve[x - 1] as number)));
    expect(sum / (2 * length)).toBeCloseTo(1, 1);
  });
});

describe("selection", () => {
  test("locked units are summed, heads averaged", () => {
    const partners = partnersOf(
      [
        [row([3, 4], [0.5, 0.25]), row([4], [1])],
        [row([4], [0.25]), row([3], [0.5])],
      ],
      2,
    );
    expect(partners).toEqual([
      { unit: 4, heads: [0.5, 1], weight: 0.75 },
      { unit: 3, heads: [0.5, 0.5], weight: 0.5 },
    ]);
  });
  test("shares of what is drawn, of special tokens and of the rest make one", () => {
    expect(sharesOf([row([1], [0.25], 0.5)])).toEqual({ drawn: 0.25, special: 0.5, rest: 0.25 });
    expect(sharesOf([row([1, 2], [0.5, 0.49999], 0)])?.rest).toBe(0);
    expect(sharesOf([{ ...row([], []), whole: 0 }])).toBe(null);
    expect(sharesOf([])).toBe(null);
  });
  test("toggling", () => {
    expect(toggled([1, 5], 3)).toEqual([1, 3, 5]);
    expect(toggled([1, 3], 3)).toEqual([1]);
  });
});

describe("heads that are drawn", () => {
  test("those that are listed, or the one of the look, and none that is not there", () => {
    expect(drawnHeads({ drawn: [7, 3, 3, 40], head: 1 }, 12)).toEqual([3, 7]);
    expect(drawnHeads({ drawn: [], head: 15 }, 12)).toEqual([11]);
    expect(drawnHeads({ drawn: [40], head: "mean" }, 12)).toEqual(["mean"]);
  });
  test("toggling leaves at least one", () => {
    expect(withToggled([3], 5)).toEqual({ drawn: [3, 5], head: 3 });
    expect(withToggled([3, 5], 3)).toEqual({ drawn: [], head: 5 });
    expect(withToggled([5], 5)).toEqual({ drawn: [], head: 5 });
    expect(withToggled(["mean"], 5)).toEqual({ drawn: [], head: 5 });
  });
  test("steps go round by way of the mean", () => {
    expect(stepped(["mean"], 1, 3)).toEqual(only([0]));
    expect(stepped([2], 1, 3)).toEqual({ drawn: [], head: "mean" });
    expect(stepped(["mean"], -1, 3)).toEqual(only([2]));
    expect(stepped([0, 1], 1, 3)).toEqual(only([2]));
  });
});

describe("rows", () => {
  const tokens = {
    labels: ["[S]", "a", "b", "c"],
    word: { data: Int32Array.of(0, 1, 1, 2), shape: [4] },
    special: { data: Uint8Array.of(1, 0, 0, 0), shape: [4] },
  };
  const units = unitsOf(tokens, 4, true);
  // Rows sum to 1.
  const pattern = [
    [1, 0, 0, 0],
    [0.5, 0.125, 0.125, 0.25],
    [0.25, 0.25, 0.25, 0.25],
    [0.125, 0.5, 0.25, 0.125],
  ];
  const subject = (side: "queries" | "keys", ordinary = true): Subject => ({
    text: "0",
    site: 2,
    side,
    queries: units,
    keys: units,
    ordinary,
  });
  const windows: Source = {
    ask: async (question, parameters) => {
      expect(question).toBe("window");
      const { queries, keys } = parameters as unknown as { queries: [number, number]; keys: [number, number] };
      const part = pattern.slice(...queries).map((line) => line.slice(...keys));
      return { weights: { data: Float32Array.from(part.flat()), shape: [part.length, part[0]?.length ?? 0] } } as never;
    },
    run: () => Promise.reject(new Error("no job")),
  };

  test("the mean's rows: keys of a word are summed, queries averaged, special ones told apart", async () => {
    const rows = new Rows(windows);
    await rows.fetch(subject("queries"), ["mean"], [1]);
    const found = rows.find(subject("queries"), "mean", 1) as Row;
    expect([...found.partners]).toEqual([1, 2]);
    expect([...found.weights]).toEqual([0.375, 0.25]);
    expect([found.whole, found.special]).toEqual([1, 0.375]);
  });
  test("the other way round", async () => {
    const rows = new Rows(windows);
    await rows.fetch(subject("keys", false), ["mean"], [1]);
    const found = rows.find(subject("keys", false), "mean", 1) as Row;
    expect([...found.partners]).toEqual([2, 1]);
    expect([...found.weights]).toEqual([0.75, 0.375]);
    expect([found.whole, found.special]).toEqual([1.125, 0]);
  });
  test("equal weights keep the order of the text", () => {
    expect([...rowOf([0.25, 0.5, 0.25, 0], null).partners]).toEqual([1, 0, 2]);
  });
  test("heads are asked for by blocks, once, and -1 ends a row", async () => {
    const asked: StrongestKey[] = [];
    const source: Source = {
      ask: async (_, parameters) => {
        const key = parameters as unknown as StrongestKey;
        asked.push(key);
        const length = key.range[1] - key.range[0];
        const n = key.heads.length * length;
        const partner = new Int32Array(n * 3).fill(-1);
        const weight = new Float32Array(n * 3);
        for (let i = 0; i < n; i++) partner[i * 3] = i;
        return {
          partner: { data: partner, shape: [key.heads.length, length, 3] },
          weight: { data: weight.fill(0.5), shape: [key.heads.length, length, 3] },
          whole: { data: new Float32Array(n).fill(1), shape: [key.heads.length, length] },
          special: { data: new Float32Array(n), shape: [key.heads.length, length] },
        } as never;
      },
      run: () => Promise.reject(new Error("no job")),
    };
    const long = unitsOf(null, 100, true);
    const of: Subject = { text: "0", site: 0, side: "queries", queries: long, keys: long, ordinary: true };
    const rows = new Rows(source);
    expect(await rows.fetch(of, [0, 4], [BLOCK - 1, BLOCK])).toBe(true);
    expect(asked.map(({ heads, range, count }) => [heads, range, count])).toEqual([
      [[0, 4], [0, 32], 64],
      [[0, 4], [32, 64], 64],
    ]);
    expect([...(rows.find(of, 4, 33) as Row).partners]).toEqual([33]);
    expect(await rows.fetch(of, [4], [40])).toBe(false);
    expect(await rows.fetch(of, [4, 7], [99])).toBe(true);
    expect(asked.at(-1)?.range).toEqual([96, 100]);
    expect(rows.find(of, 3, 0)).toBe(undefined);
  });
});
